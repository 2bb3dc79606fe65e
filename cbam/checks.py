"""Checks of the gates' arguments and inputs, and of the transforms that they run under."""

from collections.abc import Sequence

import torch
from torch import Tensor


def require_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer; got {value!r}.")


def require_one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def require_feature_map(x: Tensor, planes: int | None = None) -> None:
    if x.dim() != 4:
        raise ValueError(f"Expected a feature map [N, C, H, W]; got shape {tuple(x.shape)}.")
    if planes is not None and x.shape[1] != planes:
        raise ValueError(f"Expected {planes} channels; got shape {tuple(x.shape)}.")
    if 0 in x.shape[1:]:
        raise ValueError(f"Expected at least one channel and one position; got shape {tuple(x.shape)}.")


def is_transformed() -> bool:
    """Return whether torch.func or torch.jit.trace is active: they do not support our autograd.Functions."""
    if torch.compiler.is_compiling():
        return False
    # torch.autograd.Function.apply makes the same query; there is no public one.
    return torch._C._are_functorch_transforms_active() or torch.jit.is_tracing()  # type: ignore[attr-defined]
