"""User-defined attention, built by `package.module:Class` from the number of channels."""

from typing import Any

import torch
from torch import Tensor, nn

from cbam import AttentionLayer
from models.attention.blended import BlendedLayer
from models.attention.kind import Kind
from models.errors import ModelError
from models.user_code import load, reason


def _make(channels: int, factory: str | None, options: dict[str, Any]) -> AttentionLayer:
    if factory is None:
        raise ModelError("attention=custom needs attention.factory=package.module:Class.")
    name = f"attention.factory={factory}"
    function = load("attention.factory", factory)
    try:
        module = function(channels, **options)
    except Exception as error:
        given = "".join(f", {key}={value!r}" for key, value in options.items())
        raise ModelError(f"{name} fails with ({channels}{given}): {reason(error)}.") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name} returns {type(module).__name__}; it must return a torch.nn.Module.")
    _require_same_shape(name, module, channels)
    return module if isinstance(module, AttentionLayer) else BlendedLayer(module)


def _require_same_shape(name: str, module: nn.Module, channels: int) -> None:
    x = torch.zeros(2, channels, 7, 5)
    try:
        with torch.no_grad():
            y = module.eval()(x)
    except Exception as error:
        raise ModelError(f"{name} cannot take a map {tuple(x.shape)}: {reason(error)}.") from error
    found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    if found != tuple(x.shape):
        raise ModelError(f"{name} returns {found} for a map {tuple(x.shape)}; it must return a map of the same shape.")
    module.train()


KIND = Kind("custom", _make, {"factory": None, "options": {}})
