"""Memory that this process shares with those that it forks later."""

import math
import mmap

import torch
from torch import Tensor

from engine.errors import UserError


def zeros(*shape: int, purpose: str, remedy: str) -> Tensor:
    """A uint8 tensor of zeros; what is never written takes no memory.

    Raises:
        UserError: if the machine has no memory for it, from `purpose` (what it is for) and `remedy` (what to do).
    """
    size = math.prod(shape)
    try:
        return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).view(shape)
    except OSError as error:
        raise UserError(f"There is no memory for {size / 2**30:.1f} GiB of {purpose}; {remedy}.") from error
