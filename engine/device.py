"""The device and precision that a configuration asks for."""

import torch
from torch import nn

from engine.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(name: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        UserError: if CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError("runtime.device=cuda, but torch sees no CUDA device; set runtime.device=cpu or auto.")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def place(model: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """The model on the device, its convolutions' weights in the memory format that is fastest there."""
    return model.to(device).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
