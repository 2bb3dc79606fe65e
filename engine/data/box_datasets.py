"""Data sets of images with boxes, by their layout on disk."""

import logging
from pathlib import Path

import numpy as np

from engine.config.data import DataConfig
from engine.data import coco, synthetic_boxes, voc
from engine.data.boxes import BoxDataset
from engine.errors import UserError
from engine.logging import log


def open_boxes(config: DataConfig) -> BoxDataset:
    """Read the annotations that a configuration selects, and log their problems.

    Scenes of shapes are generated if they do not exist.

    Raises:
        UserError: if files are missing or malformed, or no object counts in evaluation.
    """
    root = Path(config.root)
    if config.layout == "voc":
        lists = (config.train_list,), (config.val_list,)
        dataset = voc.open_voc(root, config.classes, config.name, *lists, config.first_pixel)
    elif config.layout == "voc2007":
        dataset = voc.open_voc2007(root, config.name)
    else:
        if config.layout == "shapes_boxes":
            synthetic_boxes.generate(root)
        dataset = coco.open_coco(root, config.name)
    for split, problems in dataset.problems.items():
        for problem in problems:
            log.log(logging.INFO if problem.is_usual else logging.WARNING, f"{config.name} {split}: {problem}")
    if np.all(dataset.val.crowd | dataset.val.difficult):
        raise UserError(f"The validation images of {root} have no boxes that count; no AP can be computed.")
    return dataset
