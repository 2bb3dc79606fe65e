"""What a run looks at between epochs: its accuracy, what its gates do, and where it looks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from engine.analysis import grad_cam
from engine.analysis.gate_stats import gate_statistics, record_gates
from engine.data.datasets import Dataset
from engine.data.loader import EvalLoader, EvalSamples
from engine.data.transforms import Preprocessing
from engine.distributed import ProcessGroup
from engine.tasks.classification import EvalModel, Predictions, evaluate


@dataclass(frozen=True)
class Validation:
    """What came of it.

    Attributes:
        predictions: for every validation image.
        gates: statistics of the attention's gates over the first images.
        picture: uint8 [height, width, 3], where the network looks; None where none is drawn.
    """

    predictions: Predictions
    gates: dict[str, float] = field(default_factory=dict)
    picture: np.ndarray | None = None


@dataclass(frozen=True)
class Validator:
    """Validates one model on one data set.

    Attributes:
        gates: the model's, by name.
        pictures: how many images, at equal distances through the split, are drawn by the first process.
    """

    model: nn.Module
    gates: Mapping[str, nn.Module]
    data: Dataset
    loader: EvalLoader
    precision: torch.dtype
    group: ProcessGroup
    pictures: int

    def __call__(self) -> Validation:
        self.group.broadcast_buffers(self.model)
        (way,) = self.loader.samples.preprocessings
        with record_gates(self.gates) as seen:
            (predictions,) = evaluate([EvalModel(self.model, way)], self.loader, self.precision, self.group)
        return Validation(
            predictions, gate_statistics(seen), self._picture(way) if self.group.is_main_process else None
        )

    def _picture(self, way: Preprocessing) -> np.ndarray | None:
        count = min(self.pictures, len(self.data.val))
        if count == 0 or not grad_cam.can_draw():
            return None
        samples = EvalSamples(self.data.val, (way,))
        chosen = [samples[int(index)] for index in np.linspace(0, len(samples) - 1, count)]
        images = torch.stack([cuts[0] for cuts, _, _ in chosen])
        labels = [label for _, label, _ in chosen]
        device = self.loader.device
        maps = grad_cam.compute_maps(
            self.model, self.gates, images.to(device), torch.tensor(labels, device=device), way
        )
        return grad_cam.pixels(grad_cam.draw(images, labels, self.data.classes, {"network": maps}, labelled=True))
