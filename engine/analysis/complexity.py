"""Size and cost of a network."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engine.errors import UserError


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def gflops(model: nn.Module, image_size: int) -> float:
    """Return the multiply-adds of convolutions and linear layers for one image, in billions: GFLOPs in ImageNet papers.

    Raises:
        UserError: if the network does not accept images of this size.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=parameter.device)
    was_training = model.training
    try:
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model.eval()(image)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The network does not accept images of {image_size} pixels ({reason}).") from error
    model.train(was_training)
    return counter.get_total_flops() / 2 / 1e9
