"""A small data set with boxes in COCO's layout: bright rectangles of two classes, seconds to train on."""

import json
from pathlib import Path

import numpy as np
import torch
from torchvision.io import write_jpeg

from tests.commands import replaced

IMAGES = {"train": 18, "val": 7}

# A detector of milliseconds: its first stage draws random proposals.
DETECTOR = [
    *("model=mobilenet_v3_small", "detector=faster_rcnn_small", "detector.image_size=64", "detector.max_size=96"),
    *("detector.channels=16", "detector.rois=16", "detector.train_proposals=40", "detector.test_proposals=40"),
]


def write(root: Path) -> Path:
    """Write the scenes; the first of each split has no boxes, the second one a crowd besides."""
    (root / "annotations").mkdir(parents=True)
    for split, count in IMAGES.items():
        (root / f"{split}2017").mkdir()
        random = np.random.default_rng(count)
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for number in range(1, count + 1):
            height, width = 60 + number % 3, 80 - number % 4
            image = {"id": number, "file_name": f"{number}.jpg", "width": width, "height": height}
            pixels = torch.from_numpy(random.integers(0, 60, (3, height, width)).astype(np.uint8))
            for label in () if number == 1 else (0, 1):
                left, top = int(random.integers(2, 15)) + 35 * label, int(random.integers(2, 25))
                pixels[label, top : top + 24, left : left + 20] = 240
                annotations.append(_annotation(len(annotations) + 1, number, label + 1, [left, top, 20, 24], 0))
            if number == 2:
                annotations.append(_annotation(len(annotations) + 1, number, 1, [0, 0, width, 20], 1))
            write_jpeg(pixels, str(root / f"{split}2017" / f"{number}.jpg"), quality=95)
            images.append(image)
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(document))
    return root


def _annotation(number: int, image: int, category: int, box: list[int], crowd: int) -> dict[str, object]:
    area = box[2] * box[3]
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}


def arguments(root: Path, *more: str) -> list[str]:
    """A training run of seconds."""
    given = [
        *("data=coco", f"data.root={root}", "data.name=scenes", *DETECTOR, "recipe.epochs=2", "recipe.batch_size=4"),
        *("runtime.device=cpu", "runtime.workers=0", "run.log_every_steps=1", "run.pictures=0"),
    ]
    return replaced(given, *more)
