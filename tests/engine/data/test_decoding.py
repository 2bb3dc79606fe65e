"""Image files of every kind."""

import os
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from engine.data import transforms
from tests.commands import arguments, assert_one_line
from tests.conftest import Command


@pytest.mark.parametrize("form", ["gray.jpeg", "cmyk.jpeg", "png-named.JPEG", "palette.png", "transparent.png"])
def test_decoding_matches_pillow(form: str, tmp_path: Path) -> None:
    gradient = np.stack(np.meshgrid(np.linspace(20, 235, 64), np.linspace(235, 20, 48)), axis=-1)
    rgb = np.dstack([gradient, gradient.mean(axis=2)]).astype(np.uint8)
    image = PIL.Image.fromarray(rgb)
    path = tmp_path / form
    match form:
        case "gray.jpeg":
            image.convert("L").save(path)
        case "cmyk.jpeg":
            image.convert("CMYK").save(path, quality=95)
        case "png-named.JPEG":
            image.save(path, format="PNG")
        case "palette.png":
            image.quantize(64).save(path)
        case "transparent.png":
            image.putalpha(255)
            image.save(path)
    expected = torch.from_numpy(np.asarray(PIL.Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
    difference = (transforms.decode(str(path)).int() - expected.int()).abs()
    assert difference.max() <= 2


def test_unreadable_image_in_evaluation_is_an_error(command: Command, folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(folders, root)
    image = root / "val" / "class1" / "3.JPEG"
    image.write_bytes(image.read_bytes()[:300])
    common = arguments(root, "model=mobilenet_v3_small", "model.weights=null", "run.dir=run")
    assert_one_line(command("train.py", *common), f"The image {image} cannot be decoded")


def test_file_names_of_any_bytes_are_read(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff \xe9\n.jpeg")  # noqa: PTH118 (bytes)
    PIL.Image.new("RGB", (8, 8), (200, 10, 10)).save(os.fsdecode(path))
    assert transforms.decode(os.fsdecode(path)).shape == (3, 8, 8)
