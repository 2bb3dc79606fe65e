"""The file with the groups of images."""

from pathlib import Path

import pytest

from engine.data.groups import ImageGroups
from engine.errors import UserError

FILES = [b"val/a/1.png", b"val/a/2.png", b"val/b/1.png"]


def test_groups_are_in_the_order_of_the_images(tmp_path: Path) -> None:
    file = tmp_path / "groups.csv"
    lines = ["image,group", 'val/b/1.png,"slide 7, left"', "val/a/2.png,p2", "train/a/9.png,p9", "val/a/1.png,p2"]
    file.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")  # as a spreadsheet writes it
    groups = ImageGroups.of_split(file, FILES)
    assert groups.groups == ("p2", "p2", "slide 7, left")
    assert groups.ids.tolist() == [0, 0, 1]
    file.write_text(groups.text())
    assert ImageGroups.read(file) == groups


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val/a/1.png,p1\nval/a/2.png,p2\n", r"no group for 1 of 3 validation images \(first: val/b/1.png\)"),
        ("val/a/1.png\n", "Line 1 of .* has 1 values, not an image and its group"),
        ("val/a/1.png,p\nval/a/2.png,p\nval/b/1.png,p\n", "are of one group"),
        (None, "cannot be read .*; correct data.groups"),
    ],
)
def test_unusable_groups_are_explained(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        ImageGroups.of_split(tmp_path / "groups.csv", FILES)
