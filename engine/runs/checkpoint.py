"""Checkpoints of tensors and plain values, and a digest of weights."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import UserError
from engine.runs.atomic_io import atomic_write


class UnreadableCheckpoint(UserError):
    """Raised for a checkpoint that is damaged or contains anything but tensors and plain values."""


def save(state: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint. An earlier one is kept until the new one is on the disk.

    Args:
        state: tensors and plain values.
        path: file of the newest checkpoint.
        previous: file to keep the replaced checkpoint in; None to discard it.

    Raises:
        UserError: if writing fails, for example because the disk is full.
    """
    atomic_write(path, lambda file: torch.save(state, file), previous)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Only tensors and plain values are read, never code.

    Raises:
        UnreadableCheckpoint: if it is damaged or contains anything but tensors and plain values.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly any exception for a file that it did not write
        raise UnreadableCheckpoint(
            f"{path} cannot be read: it is damaged or contains something other than tensors and plain values."
        ) from error
    if not isinstance(state, dict):
        raise UnreadableCheckpoint(f"{path} cannot be read: it is not a checkpoint.")
    return state


def sha256(state: dict[str, Tensor]) -> str:
    """Return the digest of a state dict: every name, dtype, shape and byte, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
