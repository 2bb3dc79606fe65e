"""The movement of attention's gates from the start of training, and their saturation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from engine.processes.distributed import ProcessGroup

# A gate value outside of these has almost no gradient. A gate is saturated if more than half of its values are outside.
LOWEST, HIGHEST = 0.02, 0.98
_SATURATED_SHARE = 0.5

# For each gate, its mean value in each channel; a spatial gate has one channel.
GateMeans = Mapping[str, list[float]]

# The start of runs of earlier versions, whose records lack it.
_IDENTITY = [0.5]


@dataclass(frozen=True)
class GateMovement:
    """The values of each gate over all images, by the gate's name.

    Attributes:
        mean, largest: of |gate / start - 1|, where `start` is the gate's mean at the start of the run: 0 if the gate
            does what it did then. For a channel whose start is 0, which a hard sigmoid allows, it is the gate itself.
        saturation: share of the values below 0.02 or above 0.98.
        means: mean value in each channel.
    """

    mean: Mapping[str, float]
    largest: Mapping[str, float]
    saturation: Mapping[str, float]
    means: GateMeans

    def summary(self) -> dict[str, Any]:
        """Return the mean and largest value over all gates and for each, as keys of the record; empty without gates."""
        if not self.mean:
            return {}
        return {
            "gate_movement_mean": sum(self.mean.values()) / len(self.mean),
            "gate_movement_largest": max(self.largest.values()),
            "gate_movement": {name: [self.mean[name], self.largest[name]] for name in self.mean},
            "gate_saturation_mean": sum(self.saturation.values()) / len(self.saturation),
            "gate_saturation_largest": max(self.saturation.values()),
            "gate_saturation": dict(self.saturation),
        }

    def scalars(self) -> dict[str, float]:
        """Return means over the gates and largest values as curves; empty without gates."""
        keys = [f"{kind}_{key}" for kind in ("movement", "saturation") for key in ("mean", "largest")]
        summary = self.summary()
        return {f"gates/{key}": summary[f"gate_{key}"] for key in keys if summary}

    def describe(self) -> str:
        """Return a text for the log; empty without gates."""
        if not self.mean:
            return ""
        found = self.summary()
        return f"gates moved {found['gate_movement_mean']:.3f}, {found['gate_saturation_mean']:.1%} saturated"

    def saturated(self) -> list[str]:
        """Return the names of the gates of whose values more than half are saturated."""
        return [name for name, share in self.saturation.items() if share > _SATURATED_SHARE]


class _Sums:
    """Sums over one gate's values, on its device."""

    def __init__(self, start: list[float] | None) -> None:
        self.start = start
        self.count = 0
        self.moved: Tensor | None = None  # [3]: sum of movements, sum of saturated values; maximum movement
        self.total: Tensor | None = None  # [channels]

    def add(self, _module: nn.Module, _inputs: object, gate: Tensor) -> None:
        gate = gate.detach().float()
        channels = gate.transpose(0, 1).flatten(1)
        total = channels.sum(1, dtype=torch.float64)
        moved = torch.zeros_like(channels)
        if self.start is not None:
            start = torch.tensor(self.start, device=gate.device)[:, None]
            moved = torch.where(start == 0, channels, (channels / start - 1).abs())
        is_saturated = (gate < LOWEST) | (gate > HIGHEST)
        values = torch.stack([moved.sum(dtype=torch.float64), is_saturated.sum().double(), moved.max().double()])
        self.count += gate.numel()
        if self.moved is None or self.total is None:
            self.moved, self.total = values, total
        else:
            self.total = self.total + total
            self.moved = torch.cat([self.moved[:2] + values[:2], torch.maximum(self.moved[2:], values[2:])])

    def values(self) -> tuple[int, list[float], list[float]]:
        if self.moved is None or self.total is None:
            return 0, [0.0] * 3, []
        return self.count, self.moved.tolist(), self.total.tolist()


@contextmanager
def measure_movement(gates: Mapping[str, nn.Module], start: GateMeans | None) -> Iterator[dict[str, _Sums]]:
    """Measure the outputs of each gate while the context is active.

    Args:
        gates: by name; each returns values in (0, 1), [N, channels, ...].
        start: `GateMovement.means` at the start of the run; None at the start itself, where the movement is 0.

    Yields:
        The argument of `gather_movement`.
    """
    sums = {name: _Sums(None if start is None else start.get(name, _IDENTITY)) for name in gates}
    hooks = [gate.register_forward_hook(partial(_Sums.add, sums[name])) for name, gate in gates.items()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def gather_movement(measured: Mapping[str, _Sums], group: ProcessGroup) -> GateMovement:
    """Return the movement over the images of all processes."""
    of_processes = group.all_gather_object({name: sums.values() for name, sums in measured.items()})
    mean, largest, saturation, means = {}, {}, {}, {}
    for name in measured:
        of_gate = [own[name] for own in of_processes if own[name][0]]
        if not of_gate:  # it does not run in evaluation
            continue
        counts, moved, totals = zip(*of_gate, strict=True)
        count = sum(counts)
        mean[name] = sum(one[0] for one in moved) / count
        saturation[name] = sum(one[1] for one in moved) / count
        largest[name] = max(one[2] for one in moved)
        means[name] = [sum(channel) * len(totals[0]) / count for channel in zip(*totals, strict=True)]
    return GateMovement(mean, largest, saturation, means)
