"""Files that appear whole or not at all, and weights that can be compared by a digest."""

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from engine.errors import UserError

DRAFT = ".draft"  # ending of a file that is not whole yet


class UnreadableCheckpoint(UserError):
    """A checkpoint that is damaged, or holds something other than tensors and plain values."""


def save(state: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint in place of an earlier one, which stays until the new one is on the disk.

    Args:
        state: tensors and plain values.
        path: where the newest checkpoint is.
        previous: where to keep the one that it takes the place of; None to drop it.

    Raises:
        UserError: if it cannot be written, the disk full for instance.
    """
    atomic_write(path, lambda file: torch.save(state, file), previous)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Only tensors and plain values are read, never code.

    Raises:
        UnreadableCheckpoint: if it is damaged, or holds anything but tensors and plain values.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly every kind of exception for a file that is not its own
        raise UnreadableCheckpoint(
            f"{path} cannot be read: it is damaged, or holds something other than tensors."
        ) from error
    if not isinstance(state, dict):
        raise UnreadableCheckpoint(f"{path} cannot be read: it holds no checkpoint.")
    return state


def atomic_write(path: Path, write: Callable[[IO[bytes]], object], previous: Path | None = None) -> None:
    """Call `write` on a temporary file beside `path`, flush it to the disk, and rename it to `path`.

    What was at `path` is renamed to `previous` just before, if that is given.

    Raises:
        UserError: if that fails; `path` is then as it was.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}{DRAFT}")
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        draft.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        draft.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        remedy = "Make room" if path.parent.is_dir() else f"Make the folder {path.parent}"
        raise UserError(f"{path} cannot be written ({reason}). {remedy}, then start the same command.") from error


def sha256(state: dict[str, Tensor]) -> str:
    """Digest of a state dict: every name, dtype, shape and byte, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
