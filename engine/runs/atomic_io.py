"""Atomic writes: a file has either its old or its new content, never a part of it."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO

from engine.errors import UserError

DRAFT = ".draft"  # suffix of a file that is still being written


def atomic_write(path: Path, write: Callable[[IO[bytes]], object], previous: Path | None = None) -> None:
    """Call `write` on a temporary file beside `path`, flush it to the disk, and rename it to `path`.

    If `previous` is given, an existing `path` is renamed to it first.

    Raises:
        UserError: if writing fails; `path` is then unchanged.
    """
    draft = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}{DRAFT}")
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        draft.replace(path)
    except (OSError, RuntimeError) as error:
        # torch.save raises a RuntimeError from the OSError when it closes a file that could not be written. Any
        # other RuntimeError is raised unchanged.
        refusal = error if isinstance(error, OSError) else error.__context__
        if not isinstance(refusal, OSError):
            raise
        raise UserError(
            f"{path} cannot be written ({refusal.strerror}). {_remedy(path, refusal)}, then run the same command again."
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def _remedy(path: Path, refusal: OSError) -> str:
    if not path.parent.is_dir():
        return f"Create the folder {path.parent}"
    return "Free some space" if refusal.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "Make it writable"
