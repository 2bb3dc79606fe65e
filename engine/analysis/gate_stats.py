"""Statistics of a network's gates over the first images of an evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

SATURATED = 0.05  # a gate closer than this to 0 or 1 hardly learns


@contextmanager
def record_gates(gates: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record the output of each gate for its first batch.

    Args:
        gates: gate modules by name; each returns values in (0, 1).

    Yields:
        The outputs by name, filled by the batch: [N, C, 1, 1] of a channel gate, [N, 1, H, W] of a spatial gate.
    """
    seen: dict[str, Tensor] = {}

    def note(name: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.setdefault(name, output.detach())

    hooks = [gate.register_forward_hook(partial(note, name)) for name, gate in gates.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def gate_statistics(seen: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the mean, the spread (standard deviation) and the saturated share of each gate."""
    if not seen:
        return {}
    rows = [
        torch.stack([values.mean(), values.std(), ((values - 0.5).abs() > 0.5 - SATURATED).float().mean()])
        for values in (gate.float() for gate in seen.values())
    ]
    numbers = torch.stack(rows).tolist()  # one transfer for all: each makes the host wait for the device
    return {
        f"{name}/{title}": number
        for name, row in zip(seen, numbers, strict=True)
        for title, number in zip(("mean", "spread", "saturated"), row, strict=True)
    }
