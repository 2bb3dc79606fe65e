"""Memory that is shared with processes forked later."""

import math
import mmap

import torch
from torch import Tensor

from engine.errors import UserError


def zeros(*shape: int, purpose: str, remedy: str) -> Tensor:
    """Return a uint8 tensor of zeros in shared memory. Pages that are never written use no memory.

    Raises:
        UserError: if memory is insufficient; the message contains `purpose` and `remedy` (what to do).
    """
    size = math.prod(shape)
    try:
        return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8).view(shape)
    except OSError as error:
        raise UserError(f"There is not enough memory for {size / 2**30:.1f} GiB of {purpose}; {remedy}.") from error
