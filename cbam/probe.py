"""Output shapes of modules, from forward passes of a copy of the network on the meta device or, if it fails, the CPU.

The copy has stand-ins where attention would be inserted, attached by the same mechanism. Before the network is changed,
they detect a module after which attention would not run exactly once on a map [N, C, H, W].
"""

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cbam.attachment import InsertionError, attach

Shapes = dict[str, torch.Size]

# Layers whose output has the shape and dtype of their input, which torch needs milliseconds each to find on the meta
# device: half of the time of an insertion.
_KEEPING_SHAPE = (nn.BatchNorm2d, nn.Hardsigmoid, nn.Hardswish, nn.ReLU, nn.ReLU6, nn.SiLU)


class _StandIn(nn.Module):
    """A stand-in for attention that returns the map unchanged and records its shape."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.shape: torch.Size | None = None

    def forward(self, output: object) -> object:
        if self.shape is not None:
            raise InsertionError(
                f"Attention after '{self.name}' would run more than once in a forward pass, because the module runs "
                f"more than once or iterates over its children; choose another module."
            )
        if not isinstance(output, Tensor) or output.dim() != 4 or not output.is_floating_point():
            found = type(output).__name__
            if isinstance(output, Tensor):
                found = f"{output.dtype} {tuple(output.shape)}"
            raise InsertionError(
                f"The output of '{self.name}' is {found}, not a floating-point map [N, C, H, W]; choose another module."
            )
        self.shape = output.shape
        return output


def output_shapes(net: nn.Module, names: Sequence[str], image_size: int, image_channels: int | None = None) -> Shapes:
    """Return the output shape of each module, [1, C, H, W], for a square image.

    Without `image_channels`, images with the channels of the first convolution, 3 channels and 1 channel are tried.

    Only a copy of the network is run: parameters, buffers, modes, hooks and the state of the random number generators
    are unchanged.

    Raises:
        InsertionError: if the network cannot be run, or a module does not output exactly one map [N, C, H, W] in a
            forward pass.
    """
    channels = [image_channels] if image_channels else list(dict.fromkeys([_first_channels(net), 3, 1]))
    failures: list[Exception] = []
    # The CPU is for networks whose forward pass depends on values.
    for device, planes in itertools.product(("meta", "cpu"), channels):
        try:
            twin = _twin(net, names, device)
            square = _run(twin, names, device, (planes, image_size, image_size))
            break
        except InsertionError:
            raise
        except Exception as error:  # the network's own code may raise anything
            failures.append(error)
    else:
        first = failures[len(channels)]  # on the CPU
        tried = " or ".join(map(str, channels))
        raise InsertionError(
            f"The network cannot be run on one image of {image_size}x{image_size} pixels and {tried} channels "
            f"({type(first).__name__}: {first}); set image_size or image_channels, or insert into the submodule that "
            "takes an image."
        ) from first
    try:
        narrow = _run(twin, names, device, (planes, image_size, max(image_size - 32, image_size * 6 // 7)))
    except Exception:  # a network for square images only
        narrow = square
    for name in names:
        if _is_channels_last(square[name], narrow[name]):
            raise InsertionError(
                f"The output of '{name}' has its channels last (shape {tuple(square[name])}); choose a module whose "
                f"output is [N, C, H, W], for example its parent."
            )
    return square


def _twin(net: nn.Module, names: Sequence[str], device: str) -> nn.Module:
    """Return a copy of the network with stand-ins after the named modules."""
    twin = _copy(net, device).eval()
    if device == "meta":
        for module in twin.modules():
            if type(module) in _KEEPING_SHAPE:
                module.forward = _same
    for name in names:
        attach(twin.get_submodule(name), _StandIn(name))
    return twin


def _same(feature_map: Tensor) -> Tensor:
    return feature_map


def _run(twin: nn.Module, names: Sequence[str], device: str, image: tuple[int, int, int]) -> Shapes:
    """Run a copy of the network on an image of a shape [C, H, W]."""
    stand_ins = [module for module in twin.modules() if isinstance(module, _StandIn)]
    for stand_in in stand_ins:
        stand_in.shape = None
    with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.device(device):
        twin(torch.zeros(1, *image, dtype=_dtype(twin)))
    shapes = {stand_in.name: stand_in.shape for stand_in in stand_ins if stand_in.shape is not None}
    for name in names:
        if name not in shapes:
            raise InsertionError(
                f"The module '{name}' never runs in a forward pass in evaluation mode; choose another module."
            )
    return shapes


def _copy(net: nn.Module, device: str) -> nn.Module:
    """Return a deep copy on a device, without hooks; a copy on the meta device has no data."""
    tensors = [tensor for module in net.modules() for tensor in _tensors(module)]
    twin = copy.deepcopy(net, {id(tensor): tensor.detach().to(device, copy=True) for tensor in tensors})
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return a module's parameters, buffers and other attributes that are tensors."""
    values = (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
    return [value for value in values if isinstance(value, Tensor)]


def _first_channels(net: nn.Module) -> int:
    return next((module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d)), 3)


def _dtype(net: nn.Module) -> torch.dtype:
    floating = (parameter.dtype for parameter in net.parameters() if parameter.is_floating_point())
    return next(floating, torch.get_default_dtype())


def _is_channels_last(square: torch.Size, narrow: torch.Size) -> bool:
    """Decide by the two axes that are equal for a square image, or by the axis that changes with the image's width."""
    _, first, second, third = square
    if first != second == third:
        return False
    if narrow == square:
        return first == second != third
    return narrow[3] == third
