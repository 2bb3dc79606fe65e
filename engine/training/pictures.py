"""The picture of a validation: some validation images with the model's outputs, for each task."""

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.analysis import box_pictures, grad_cam
from engine.data.boxes import BoxDataset
from engine.data.datasets import Dataset
from engine.data.transforms import Preprocessing
from engine.tasks.base import Task
from engine.tasks.classification import Classification
from engine.tasks.detection import Detection


@singledispatch
def title(task: Task) -> str:
    """Return the title of a task's picture."""
    raise NotImplementedError(f"no picture of {type(task).__name__}")


@title.register
def _(task: Classification) -> str:  # noqa: ARG001
    return "Grad-CAM and spatial gates"


@title.register
def _(task: Detection) -> str:  # noqa: ARG001
    return "ground truth (left) and detections (right)"


@singledispatch
def draw(
    task: Task,
    model: nn.Module,
    gates: Mapping[str, nn.Module],
    data: Any,
    preprocessing: Preprocessing,
    count: int,
    title: str,
) -> np.ndarray | None:
    """Draw `count` evenly spaced validation images with the model's outputs, below a title.

    Returns:
        uint8 [height, width, 3]; None if a required package is not installed.
    """
    raise NotImplementedError(f"no picture of {type(task).__name__}")


@draw.register
def _(
    task: Classification,
    model: nn.Module,
    gates: Mapping[str, nn.Module],
    data: Dataset,
    preprocessing: Preprocessing,
    count: int,
    title: str,
) -> np.ndarray | None:
    if not grad_cam.can_draw():
        return None
    samples = task.eval_samples(data.val, (preprocessing,))
    chosen = [samples[int(index)] for index in np.linspace(0, len(samples) - 1, count)]
    images = torch.stack([views[0] for views, _, _ in chosen])
    labels = [label for _, (label,), _ in chosen]
    device = next(model.parameters()).device
    maps = grad_cam.compute_maps(model, gates, images.to(device), torch.tensor(labels, device=device), preprocessing)
    return grad_cam.pixels(grad_cam.draw(images, labels, data.classes, {"prediction": maps}, True, title))


@draw.register
def _(
    task: Detection,  # noqa: ARG001
    model: nn.Module,
    gates: Mapping[str, nn.Module],  # noqa: ARG001
    data: BoxDataset,
    preprocessing: Preprocessing,  # noqa: ARG001
    count: int,
    title: str,
) -> np.ndarray | None:
    device = next(model.parameters()).device
    chosen = np.linspace(0, len(data.val) - 1, count).astype(int).tolist()
    return box_pictures.truth_and_detections(model.eval(), data.val, chosen, data.classes, device, title)
