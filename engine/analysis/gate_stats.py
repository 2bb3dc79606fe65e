"""The values of a network's gates for the first images of an evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn


@contextmanager
def record_gates(gates: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Record the output of each gate for its first batch.

    Args:
        gates: gate modules by name; each returns values in (0, 1).

    Yields:
        The outputs by name, filled in by the first batch: of CBAM, [N, C, 1, 1] of a channel gate and [N, 1, H, W] of a
        spatial gate. A gate that is called twice on a batch has the output of the first call.
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
