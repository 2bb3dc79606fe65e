"""Exact evaluation of several models in one pass, with every image exactly once."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from engine.data.loader import Batch, EvalLoader
from engine.data.transforms import Preprocessing
from engine.logging import progress_bar, with_progress_lines
from engine.processes.distributed import ProcessGroup
from engine.processes.signals import GracefulStop, Interrupted
from engine.tasks.base import Predictions, Task


@dataclass(frozen=True)
class EvalModel:
    """A model on the loader's device, and the preprocessing of its images."""

    model: nn.Module
    preprocessing: Preprocessing


class _Collector:
    """The predictions of one model, collected batch by batch."""

    def __init__(self, task: Task, evaluated: EvalModel, view: int, precision: torch.dtype) -> None:
        self.task, self.evaluated, self.view, self.precision = task, evaluated, view, precision
        self.batches: list[dict[str, Tensor]] = []

    def add(self, batch: Batch, images: Tensor) -> None:
        with torch.autocast(images.device.type, self.precision, enabled=self.precision != torch.float32):
            arrays = self.task.predict(self.evaluated.model, images, batch.targets)
        self.batches.append({**arrays, "indices": batch.indices})

    def gather(self, images: int, group: ProcessGroup) -> Predictions:
        """Return the predictions for all images of all processes, in dataset order."""
        own = [{name: array.cpu() for name, array in batch.items()} for batch in self.batches]
        batches = [batch for part in group.all_gather_object(own) for batch in part]
        columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        indices = columns.pop("indices")
        order = indices.argsort()
        if not torch.equal(indices[order], torch.arange(images)):
            raise RuntimeError("the evaluation did not see every image exactly once")
        arrays: dict[str, np.ndarray] = {name: column[order].numpy() for name, column in columns.items()}
        return self.task.predictions(**arrays)


def evaluate(
    task: Task,
    models: Sequence[EvalModel],
    loader: EvalLoader,
    preprocessings: Sequence[Preprocessing],
    precision: torch.dtype,
    group: ProcessGroup,
    stop: GracefulStop | None = None,
) -> list[Predictions]:
    """Return the predictions of each model for every image of the loader, on every process.

    Args:
        models: their preprocessings are among `preprocessings`.
        loader: this process's images, from the task's `eval_samples` for `preprocessings`.
        precision: float32, or the autocast dtype.
        group: the processes that share the images.
        stop: the stop request that ends the evaluation.

    Raises:
        RuntimeError: if an image was evaluated more than once or not at all.
        Interrupted: on all processes, if a stop was requested on any of them.
    """
    collectors = [_Collector(task, m, preprocessings.index(m.preprocessing), precision) for m in models]
    for evaluated in models:
        evaluated.model.eval()
    with torch.inference_mode():
        batches = with_progress_lines(loader, len(loader), "evaluating") if group.is_main_process else loader
        for batch in progress_bar(batches, len(loader), 0, "evaluating", group.is_main_process):
            if stop is not None and stop.signal is not None:
                break
            images = task.inputs(batch.views, preprocessings)
            for collector in collectors:
                collector.add(batch, images[collector.view])
    if stop is not None:
        (number,) = group.all_reduce_max(stop.signal or 0)
        if number:
            raise Interrupted(f"Stopped by {signal.Signals(number).name} during validation.")
    return [collector.gather(loader.images, group) for collector in collectors]
