"""User-defined networks, built by a function `package.module:function`."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.registry import BackboneSpec, no_default_places
from models.user_code import load, reason


def spec(name: str, image_size: int = 224) -> BackboneSpec:
    """Return the spec of a user-defined network. Modules in the working directory can also be imported.

    Args:
        name: `package.module:function`. The function is called with the keyword `num_classes`.
        image_size: side of the images used to check the network, pixels.

    Raises:
        ModelError: if the module or function does not exist.
    """
    build = partial(_build, name, load("model.factory", name), image_size)
    return BackboneSpec(name, "custom", build, after=no_default_places, heads=(), image_size=image_size)


def _build(name: str, function: Callable[..., object], image_size: int, classes: int) -> nn.Module:
    try:
        net = function(num_classes=classes)
    except Exception as error:
        raise ModelError(f"model.factory={name} fails with num_classes={classes}: {reason(error)}.") from error
    if not isinstance(net, nn.Module):
        raise ModelError(f"model.factory={name} returns {type(net).__name__}; it must return a torch.nn.Module.")
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:
        size = f"{image_size}x{image_size}"
        raise ModelError(f"The network of {name} cannot take an image of {size} pixels: {reason(error)}.") from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (1, classes):
        raise ModelError(f"The network of {name} returns {found} for one image; it must return (1, {classes}).")
    return net.train()
