"""User-defined networks, built by a function `package.module:function`."""

import importlib
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.registry import BackboneSpec, no_default_places


def spec(name: str, image_size: int = 224) -> BackboneSpec:
    """Return the spec of a user-defined network. Modules in the working directory can also be imported.

    Args:
        name: `package.module:function`. The function is called with the keyword `num_classes`.
        image_size: side of the images used to check the network, pixels.

    Raises:
        ModelError: if the module or function does not exist.
    """
    build = partial(_build, name, _function(name), image_size)
    return BackboneSpec(name, "custom", build, after=no_default_places, heads=(), image_size=image_size)


def _function(name: str) -> Callable[..., object]:
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that it hides no other module
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ModelError(
                f"model.factory={name} names the module '{module_name}', which is neither in the working directory "
                "nor installed."
            ) from error
        raise ModelError(f"The module of model.factory={name} cannot be imported: {_reason(error)}.") from error
    if not hasattr(module, attribute):
        raise ModelError(f"model.factory={name} names '{attribute}', which the module '{module_name}' does not have.")
    function = getattr(module, attribute)
    if not callable(function):
        raise ModelError(f"model.factory={name} is not callable; name a function that returns the network.")
    return function


def _build(name: str, function: Callable[..., object], image_size: int, classes: int) -> nn.Module:
    try:
        net = function(num_classes=classes)
    except Exception as error:
        raise ModelError(f"model.factory={name} fails with num_classes={classes}: {_reason(error)}.") from error
    if not isinstance(net, nn.Module):
        raise ModelError(f"model.factory={name} returns {type(net).__name__}; it must return a torch.nn.Module.")
    try:
        with torch.no_grad():
            logits = net.eval()(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:
        size = f"{image_size}x{image_size}"
        raise ModelError(f"The network of {name} cannot take an image of {size} pixels: {_reason(error)}.") from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (1, classes):
        raise ModelError(f"The network of {name} returns {found} for one image; it must return (1, {classes}).")
    return net.train()


def _reason(error: Exception) -> str:
    """Return the error in one line, with the file and line number where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({frame.filename}, line {frame.lineno})"
