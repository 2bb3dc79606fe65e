"""The movement of attention's gates from the identity."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.processes.distributed import ProcessGroup


@dataclass(frozen=True)
class GateMovement:
    """|gate x gain - 1| over all values of a gate and all images: 0 if the gate leaves the map unchanged.

    Attributes:
        mean, largest: of each gate, by its name.
    """

    mean: Mapping[str, float]
    largest: Mapping[str, float]

    def summary(self) -> dict[str, Any]:
        """Return the mean and largest value over all gates and for each, as keys of the record; empty without gates."""
        if not self.mean:
            return {}
        return {
            "gate_movement_mean": sum(self.mean.values()) / len(self.mean),
            "gate_movement_largest": max(self.largest.values()),
            "gate_movement": {name: [self.mean[name], self.largest[name]] for name in self.mean},
        }

    def scalars(self) -> dict[str, float]:
        """Return the mean over the gates and the largest value as curves; empty without gates."""
        summary = self.summary()
        return {f"gates/movement_{key}": summary[f"gate_movement_{key}"] for key in ("mean", "largest") if summary}


class _Sums:
    """Sum, count and maximum of one gate's |gate x gain - 1|; sum and maximum are on its device."""

    def __init__(self, gain: float) -> None:
        self.gain = gain
        self.count = 0
        self.total: Tensor | None = None
        self.largest: Tensor | None = None

    def add(self, _module: nn.Module, _inputs: object, gate: Tensor) -> None:
        moved = (gate.detach().float() * self.gain - 1).abs()
        total, largest = moved.sum(dtype=torch.float64), moved.max()
        self.count += moved.numel()
        self.total = total if self.total is None else self.total + total
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)

    def values(self) -> tuple[float, int, float]:
        if self.total is None or self.largest is None:
            return 0.0, 0, 0.0
        return float(self.total), self.count, float(self.largest)


@contextmanager
def measure_movement(gates: Mapping[str, nn.Module], gains: Mapping[str, float]) -> Iterator[dict[str, _Sums]]:
    """Measure the outputs of each gate while the context is active.

    Args:
        gates: by name; each returns values in (0, 1).
        gains: of each gate, by its name.

    Yields:
        What `gather_movement` takes.
    """
    sums = {name: _Sums(gains[name]) for name in gates}
    hooks = [gate.register_forward_hook(partial(_Sums.add, sums[name])) for name, gate in gates.items()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def gather_movement(measured: Mapping[str, _Sums], group: ProcessGroup) -> GateMovement:
    """Return the movement over the images of all processes."""
    of_processes = group.all_gather_object({name: sums.values() for name, sums in measured.items()})
    mean, largest = {}, {}
    for name in measured:
        totals, counts, maxima = zip(*(own[name] for own in of_processes), strict=True)
        mean[name] = sum(totals) / max(1, sum(counts))
        largest[name] = max(maxima)
    return GateMovement(mean, largest)
