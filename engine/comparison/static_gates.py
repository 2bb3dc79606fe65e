"""Networks whose gates are constant: the control that separates attention from a learned scale.

Each gate is replaced by its mean over training images: a channel gate by one value per channel, a spatial gate by one
value per position. If the error does not change, the gates did not depend on the image in any way that mattered.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from engine.comparison.columns import STATIC
from engine.comparison.entry import GATE_VALUES, TableEntry
from engine.errors import UserError
from engine.processes.distributed import ProcessGroup
from engine.tasks.base import AnyDataset, Task
from engine.tasks.training_images import TrainingImages

IMAGES = 512  # training images for the means; all if there are fewer

# For each gate, by name, its mean over images, [1, ...] on the CPU, by its shape for one image. Coordinate attention
# calls its gate twice, with different shapes.
_Means = dict[str, dict[torch.Size, Tensor]]

Gates = Callable[[nn.Module], Mapping[str, nn.Module]]


def with_static_gates(
    entries: Sequence[TableEntry], gates: Gates, task: Task, data: AnyDataset, device: torch.device, group: ProcessGroup
) -> list[TableEntry]:
    """Return the entries, each network with gates followed by its copy with static gates.

    Args:
        gates: returns the gates of a network, by name.

    Raises:
        UserError: if no network has gates.
    """
    result: list[TableEntry] = []
    for entry in entries:
        result.append(entry)
        if entry.record and gates(entry.model):
            images = TrainingImages(task, data, entry.preprocessing, int(entry.row["seed"]), IMAGES, device)
            result.append(_static(entry, gates, images, group))
    if len(result) == len(entries):
        raise UserError("table.static_gates=true needs a network with gates; train one, or leave it out.")
    return result


def _static(entry: TableEntry, gates: Gates, images: TrainingImages, group: ProcessGroup) -> TableEntry:
    model = copy.deepcopy(entry.model)
    means: _Means = {}
    if group.is_main_process:
        with _measured_means(gates(model)) as means:
            images.run(model)
    means = group.broadcast_object(means)
    for name, gate in gates(model).items():
        gate.register_forward_hook(_Constant(means[name]))
    row = entry.row | {
        "attention": f"{entry.row['attention']}{STATIC}",
        "static_of": entry.row["attention"],
        "recorded": None,
        "published": None,
        **dict.fromkeys(GATE_VALUES),
        **{key: None for key in entry.row if key.endswith("_start")},
    }
    return replace(entry, model=model, row=row)


@contextmanager
def _measured_means(gates: Mapping[str, nn.Module]) -> Iterator[_Means]:
    """Yield the means of the gates, which are complete at the end."""
    sums: _Means = {name: {} for name in gates}
    counts: dict[tuple[str, torch.Size], int] = {}

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def add(_module: nn.Module, _inputs: object, gate: Tensor) -> None:
            total = gate.sum(0, keepdim=True, dtype=torch.float64)
            of_shape = sums[name].setdefault(gate.shape[1:], torch.zeros_like(total))
            of_shape += total
            counts[name, gate.shape[1:]] = counts.get((name, gate.shape[1:]), 0) + len(gate)

        return add

    hooks = [gate.register_forward_hook(note(name)) for name, gate in gates.items()]
    means: _Means = {}
    try:
        yield means
    finally:
        for hook in hooks:
            hook.remove()
    for name, totals in sums.items():
        means[name] = {shape: (total / counts[name, shape]).float().cpu() for shape, total in totals.items()}


@dataclass(frozen=True)
class _Constant:
    """A forward hook that replaces a gate's output."""

    values: Mapping[torch.Size, Tensor]

    def __call__(self, _module: nn.Module, _inputs: object, gate: Tensor) -> Tensor:
        return self.values[gate.shape[1:]].to(gate).expand_as(gate)
