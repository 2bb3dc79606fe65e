"""scripts/small_sets.py and scripts/plot_gate_movement.py: the data and the figure of the sweeps attention_lr."""

import json
from pathlib import Path

import pytest
from torchvision.io import decode_image

from tests.commands import assert_one_line
from tests.conftest import Command, script_module, write_image

ANNOTATION = """<annotation><size><width>48</width><height>40</height></size>
<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>2</ymin><xmax>{right}</xmax>
<ymax>12</ymax></bndbox></object></annotation>"""


@pytest.fixture
def bccd(tmp_path: Path) -> Path:
    """Three photographs with one cell each; the last cell is at the border."""
    root = tmp_path / "BCCD"
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "Annotations").mkdir()
    for split, x in (("train", 10), ("val", 20), ("test", 38)):
        write_image(root / "JPEGImages" / f"{split}.jpg", 100, seed=x)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}\n")
        (root / "Annotations" / f"{split}.xml").write_text(ANNOTATION.format(name="RBC", x=x, right=x + 10))
    return root


def test_cells_are_cut_out_as_squares(bccd: Path, tmp_path: Path) -> None:
    script_module("small_sets").cut_cells(bccd, tmp_path / "cells")
    files = sorted(str(file.relative_to(tmp_path / "cells")) for file in (tmp_path / "cells").rglob("*.png"))
    assert files == ["train/RBC/001.png", "val/RBC/001.png", "val/RBC/002.png"]
    assert {decode_image(str(tmp_path / "cells" / file)).shape for file in files} == {(3, 13, 13)}


def test_classes_are_those_that_no_result_uses(
    tiny_imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = script_module("small_sets")
    for name, value in (("FIRST_CLASS", 2), ("CLASSES", 2), ("TRAINING", 2)):
        monkeypatch.setattr(script, name, value)
    script.copy_classes(tiny_imagenet, tmp_path / "other")
    counts = {
        str(folder.relative_to(tmp_path / "other")): len(list(folder.iterdir()))
        for folder in (tmp_path / "other").glob("*/*")
    }
    expected = {f"train/n0000000{label}": 2 for label in (2, 3)} | {f"val/n0000000{label}": 3 for label in (2, 3)}
    assert counts == expected


def test_a_wrong_source_is_one_line(command: Command, tmp_path: Path) -> None:
    done = command("scripts/small_sets.py", "tiny_imagenet=nowhere", "bccd=nowhere", "into=data")
    assert_one_line(done, "nowhere", "cannot be read or written")
    assert not (tmp_path / "data" / "tiny_imagenet_other").exists()


def test_the_figure_has_a_panel_for_each_table(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    row = {"attention": "cbam", "recipe_deviation": "", "baseline": 0, "difference": -1.0}
    row |= {"difference_low": -2.0, "difference_high": 0.5}
    rows = [row | {"attention_lr_factor": factor, "gate_movement_mean": factor / 100} for factor in (1.0, 10.0)]
    for name in ("one", "two"):
        (tmp_path / "results" / name).mkdir(parents=True)
        table = {"task": "classification", "data": {"name": name}, "rows": rows}
        (tmp_path / "results" / name / "table.json").write_text(json.dumps(table))
    done = command("scripts/plot_gate_movement.py", "results/one", "results/two")
    assert done.returncode == 0, done.stderr
    assert {file.suffix for file in (tmp_path / "results").glob("movement.*")} == {".png", ".svg"}
    assert_one_line(command("scripts/plot_gate_movement.py", "results/three"), "cannot be read")
