"""Validation between epochs, with predictions, gate statistics and a picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from engine.analysis.gate_movement import GateMeans, GateMovement, gather_movement, measure_movement
from engine.analysis.gate_stats import record_gates
from engine.data.loader import EvalLoader
from engine.data.transforms import Preprocessing
from engine.processes.distributed import ProcessGroup
from engine.processes.signals import GracefulStop
from engine.tasks.base import AnyDataset, Predictions, Task
from engine.tasks.inference import EvalModel, evaluate
from engine.training import pictures


@dataclass(frozen=True)
class Validation:
    """The result of one validation.

    Attributes:
        predictions: predictions for every validation image.
        movement: movement and saturation of the attention's gates, over all images.
        gates: output of each gate for the first images, by gate name.
        picture: uint8 [height, width, 3]; None if none is drawn.
    """

    predictions: Predictions
    movement: GateMovement
    gates: Mapping[str, Tensor] = field(default_factory=dict)
    picture: np.ndarray | None = None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The metrics of the predictions."""
        return self.predictions.metrics()


@dataclass(frozen=True)
class Validator:
    """Validator of one model on one data set.

    Attributes:
        gates: the model's gates, by name.
        loader: loader of the validation images, with the single view of `preprocessing`.
        pictures: number of images that the main process draws; 0 for none.
        run: name of the run, for the title of the picture.
    """

    task: Task
    model: nn.Module
    preprocessing: Preprocessing
    gates: Mapping[str, nn.Module]
    data: AnyDataset
    loader: EvalLoader
    precision: torch.dtype
    group: ProcessGroup
    pictures: int
    run: str = ""

    def __call__(
        self, epoch: int, gates_at_start: GateMeans | None = None, stop: GracefulStop | None = None
    ) -> Validation:
        """Validate the model in its current state, after `epoch` epochs, unless a stop is requested.

        Args:
            gates_at_start: means of the gates at the start of the run; None at the start itself.
        """
        self.group.broadcast_buffers(self.model)
        evaluated = EvalModel(self.model, self.preprocessing)
        with record_gates(self.gates) as recorded, measure_movement(self.gates, gates_at_start) as measured:
            (predictions,) = evaluate(
                self.task, [evaluated], self.loader, [self.preprocessing], self.precision, self.group, stop
            )
        movement = gather_movement(measured, self.group)
        return Validation(predictions, movement, recorded, self._picture(epoch))

    def _picture(self, epoch: int) -> np.ndarray | None:
        count = min(self.pictures, len(self.data.val))
        if not self.group.is_main_process or count == 0:
            return None
        title = f"{self.run}, epoch {epoch}"
        return pictures.draw(self.task, self.model, self.gates, self.data, self.preprocessing, count, title)
