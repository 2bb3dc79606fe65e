"""What a run looks at between epochs: its accuracy, what its gates do, and where it looks."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from engine import attention_maps
from engine.augment import Preprocessing
from engine.datasets import Dataset
from engine.distributed import Ranks
from engine.evaluator import Candidate, Predictions, evaluate
from engine.gates import statistics, watch
from engine.loader import EvalLoader, EvalSamples


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
    ranks: Ranks
    pictures: int

    def __call__(self) -> Validation:
        self.ranks.share_buffers(self.model)
        (way,) = self.loader.samples.preprocessings
        with watch(self.gates) as seen:
            (predictions,) = evaluate([Candidate(self.model, way)], self.loader, self.precision, self.ranks)
        return Validation(predictions, statistics(seen), self._picture(way) if self.ranks.is_first else None)

    def _picture(self, way: Preprocessing) -> np.ndarray | None:
        count = min(self.pictures, len(self.data.val))
        if count == 0 or not attention_maps.can_draw():
            return None
        samples = EvalSamples(self.data.val, (way,))
        chosen = [samples[int(index)] for index in np.linspace(0, len(samples) - 1, count)]
        images = torch.stack([cuts[0] for cuts, _, _ in chosen])
        labels = [label for _, label, _ in chosen]
        device = self.loader.device
        maps = attention_maps.look(self.model, self.gates, images.to(device), torch.tensor(labels, device=device), way)
        return attention_maps.pixels(
            attention_maps.draw(images, labels, self.data.classes, {"network": maps}, labelled=True)
        )
