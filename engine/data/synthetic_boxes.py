"""Synthetic detection data set for tests and demos: scenes of the five shapes, drawn once, in COCO's layout.

Shapes, textures and backgrounds are those of the classification data set. An object's class is its shape; its size,
rotation, colors and texture are independent of the class. Objects overlap a little, and some scenes have none.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.io import write_jpeg

from engine.data import synthetic
from engine.data.coco import SPLITS
from engine.errors import UserError
from engine.processes.determinism import RngPurpose, rng

SIDE = 128  # pixels
IMAGES = {"train": 400, "val": 200}
MOST_OBJECTS = 5
LARGEST_COVERED = 0.3  # fraction of an object's visible pixels that each later object may cover
_SCENES = 2**16  # separates the random numbers from those of the classification data set


def generate(root: Path) -> None:
    """Write the scenes below `root` unless they exist. The folder is created atomically."""
    if root.exists():
        return
    draft = root.with_name(f"{root.name}.{os.getpid()}.draft")
    try:
        for number, (split, folder) in enumerate(SPLITS.items()):
            _write(draft, folder, IMAGES[split], number)
        draft.rename(root)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        if not root.exists():  # otherwise another process has created it
            raise UserError(f"The scenes of {root} cannot be written ({error.strerror}); set data.root.") from error


def draw_scene(random: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Draw one scene.

    Returns:
        The image, uint8 [SIDE, SIDE, 3], and each object's class and visible pixels, bool [SIDE, SIDE].
    """
    y, x = (np.mgrid[0:SIDE, 0:SIDE] + 0.5) / SIDE
    image = synthetic.background(x, y, random)
    objects: list[tuple[int, np.ndarray]] = []
    for _ in range(random.integers(0, MOST_OBJECTS + 1)):
        label = int(random.integers(len(synthetic.SHAPES)))
        radius = random.uniform(0.08, 0.2)
        center = random.uniform(radius, 1 - radius, size=2)
        u, v = synthetic.rotate(x - center[0], y - center[1], random.uniform(0, 2 * np.pi))
        inside = synthetic.is_inside(synthetic.SHAPES[label], u / radius, v / radius)
        texture = synthetic.textured(str(random.choice(synthetic.TEXTURES)), x, y, random)
        if any((visible & inside).sum() > LARGEST_COVERED * visible.sum() for _, visible in objects):
            continue
        image[inside] = texture[inside]
        objects = [(one, visible & ~inside) for one, visible in objects] + [(label, inside)]
    noise = random.normal(0, random.uniform(2, 12), image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), objects


def _write(root: Path, folder: str, count: int, split: int) -> None:
    """Draw the images of a split and write their annotations."""
    (root / folder).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        image, objects = draw_scene(rng(synthetic.SEED, RngPurpose.SHAPES, epoch=_SCENES + split, index=number))
        file = f"{number:06d}.jpg"
        write_jpeg(torch.from_numpy(image).permute(2, 0, 1), str(root / folder / file), quality=90)
        images.append({"id": number, "file_name": file, "width": SIDE, "height": SIDE})
        for label, visible in objects:
            annotations.append(_annotation(len(annotations) + 1, number, label, visible))
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(synthetic.SHAPES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    file_name = root / "annotations" / f"instances_{folder}.json"
    file_name.parent.mkdir(exist_ok=True)
    file_name.write_text(json.dumps(document))


def _annotation(number: int, image: int, label: int, visible: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(visible.sum()),
        "iscrowd": 0,
    }
