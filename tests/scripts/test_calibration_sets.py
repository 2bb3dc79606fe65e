"""scripts/calibration_sets.py: the data of the sweeps on the calibrated start."""

from pathlib import Path

from tests.commands import assert_one_line
from tests.conftest import Command


def touch(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_no_image_is_in_two_splits(command: Command, tmp_path: Path) -> None:
    photographs = [f"glass{i:03d}.jpg" for i in range(501)]
    touch(tmp_path / "trashnet" / "glass", photographs)
    touch(tmp_path / "trashnet" / "trash", [f"trash{i:03d}.jpg" for i in range(137)])
    for label in range(145):
        touch(tmp_path / "tiny" / "train" / f"n{label:08d}" / "images", [f"{i:03d}.JPEG" for i in range(310)])
    given = ["trashnet=trashnet", "tiny_imagenet=tiny", "into=made"]
    done = command("scripts/calibration_sets.py", *given)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "made"

    held_out = names(made / "trashnet" / "val" / "glass")
    assert held_out == set(photographs[4::5])
    training = names(made / "trashnet" / "train" / "glass")
    assert names(made / "trashnet_full" / "val" / "glass") == held_out
    assert names(made / "trashnet_full" / "train" / "glass") == set(photographs) - held_out
    chosen = names(made / "trashnet_choice" / "train" / "glass"), names(made / "trashnet_choice" / "val" / "glass")
    assert [len(part) for part in (training, *chosen)] == [80, 80, 50]
    assert not held_out & (training | chosen[0] | chosen[1])
    assert not chosen[0] & chosen[1]
    assert len(names(made / "trashnet_choice" / "val" / "trash")) == 27  # all that are left
    assert all(file.exists() for file in made.rglob("*.jpg"))

    assert names(made / "tiny_imagenet_choice" / "train") == {f"n{label:08d}" for label in range(110, 120)}
    assert len(list((made / "tiny_imagenet_choice" / "val").rglob("*.JPEG"))) == 500
    assert names(made / "tiny_imagenet_start" / "train") == {f"n{label:08d}" for label in range(120, 140)}

    assert_one_line(command("scripts/calibration_sets.py", *given), "made exists; delete it to make it again.")
    assert_one_line(
        command("scripts/calibration_sets.py", "trashnet=none", "tiny_imagenet=tiny", "into=other"),
        "none cannot be read or written",
    )
    assert not (tmp_path / "other").exists()
