"""Measurement of the gates' scales at the identity start.

With pooled values p, rms(p) over images (and positions or channels), and n values per logit, each gate computes

    channel   MLP(a / rms(a)) + MLP(b / rms(b))               a, b: mean and maximum over positions
    spatial   conv([u / rms(u); v / rms(v)] / sqrt(n))        u, v: mean and maximum over channels; n = 2 k k

At the identity start the last layer of each gate is zero, so that the scales do not change the network's outputs. They
determine how fast the gates learn: without them, this speed is proportional to the square of the features' scale.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cbam.attachment import has_attention
from cbam.scaled_gate import ScaledGate

# For each gate, by its name, the values of `ScaledGate.scale`.
Scales = dict[str, list[float]]

# The maps from which scales are estimated: images, side in positions, and the part of a channel's variance that is
# between images. 0.2 was chosen on EfficientNet-Lite0, by the measured scales.
_IMAGES, _SIDE, _BETWEEN = 8, 14, 0.2


def calibrate(net: nn.Module, images: Tensor | Iterable[Tensor] | None = None) -> Scales:
    """Set the scale of each gate that is at the identity start to the root mean square of its pooled values.

    The network runs in evaluation mode, without gradients; its outputs, modes and statistics do not change.

    Args:
        net: a network with CBAM at the identity start.
        images: preprocessed training images, floating point [N, 3, H, W], or an iterable of such batches, such as a
            DataLoader of images and labels; about 100 images suffice. Without images, scales are estimated from the
            weight and bias of the last BatchNorm in the module that attention follows.

    Returns:
        The scales by the name of their gate.

    Raises:
        ValueError: if no gate is at the identity start, there are no images, they are not floating point or the
            network cannot process them, a pooled value is not finite, or there is no BatchNorm to estimate scales from.
    """
    with calibrating(net) as scales:
        if images is None:
            _run_layers(net)
        else:
            _run(net, [images] if isinstance(images, Tensor) else images)
    return scales


@contextmanager
def calibrating(net: nn.Module) -> Iterator[Scales]:
    """Measure pooled values in every forward pass, and set the scales at the end.

    For networks that `calibrate` cannot run, such as detectors. Run the network in evaluation mode.

    Yields:
        The scales, which are filled in at the end.

    Raises:
        ValueError: as `calibrate`.
    """
    gates = gates_at_start(net)
    if not gates:
        raise ValueError("No gate is at the identity start; calibrate after cbam.insert and before training.")
    sums = {name: _Squares(gate) for name, gate in gates.items()}
    hooks = [gate.register_forward_pre_hook(partial(_Squares.add, sums[name])) for name, gate in gates.items()]
    scales: Scales = {}
    try:
        yield scales
    finally:
        for hook in hooks:
            hook.remove()
    scales |= {name: squares.scale(name) for name, squares in sums.items()}  # all of them, before the first is set
    set_scales(net, scales)


def gates_at_start(net: nn.Module) -> dict[str, ScaledGate]:
    """Return the gates that are at the identity start, by name."""
    return {name: gate for name, gate in net.named_modules() if isinstance(gate, ScaledGate) and gate.is_zero}


def set_scales(net: nn.Module, scales: Mapping[str, list[float]]) -> None:
    """Set the scales that `calibrate` returned for an equal network."""
    for name, values in scales.items():
        gate = net.get_submodule(name)
        assert isinstance(gate, ScaledGate)
        gate.set_scale_(values)


class _Squares:
    """The sum of squares of one gate's pooled values."""

    def __init__(self, gate: ScaledGate) -> None:
        self.root = math.sqrt(gate.values_per_logit)
        self.total: Tensor | None = None
        self.count = 0

    def add(self, gate: ScaledGate, inputs: tuple[Tensor, ...]) -> None:
        pooled = gate.pooled(inputs[0])
        total = torch.stack([values.detach().float().square().sum(dtype=torch.float64) for values in pooled])
        self.total = total if self.total is None else self.total + total
        self.count += pooled[0].numel()

    def scale(self, name: str) -> list[float]:
        if self.total is None:
            raise ValueError(
                f"The gate '{name}' did not run: there are no images, and no BatchNorm in the module that it follows "
                "from which its scales could be estimated. Give about 100 training images."
            )
        rms = [math.sqrt(total / self.count) for total in self.total.tolist()]
        if not all(map(math.isfinite, rms)):
            raise ValueError(f"The feature map at the gate '{name}' is not finite; check the weights and the images.")
        return [value * self.root or 1.0 for value in rms]  # 1 for a map of zeros


def _run(net: nn.Module, batches: Iterable[Any]) -> None:
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    with _evaluating(net), torch.no_grad():
        for batch in batches:
            images = batch[0] if isinstance(batch, list | tuple) and batch else batch  # (images, labels)
            if not (isinstance(images, Tensor) and images.is_floating_point()):
                found = images.dtype if isinstance(images, Tensor) else type(images).__name__
                raise ValueError(f"images must be preprocessed floating point tensors [N, 3, H, W]; got {found}.")
            try:
                net(images.to(device))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"The network cannot process images of shape {[*images.shape]} ({reason}).") from error


def _run_layers(net: nn.Module) -> None:
    """Run attention on random maps whose values have the mean and variance that its BatchNorm gives them.

    The values are normally distributed and independent between channels, and no activation follows the BatchNorm, which
    is not so in every network.
    """
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        norm = _last_norm(module) if has_attention(module) else None
        if norm is not None:
            weight, bias = (values.detach()[:, None, None] for values in (norm.weight, norm.bias))
            within = torch.randn(_IMAGES, len(weight), _SIDE, _SIDE, generator=generator)
            between = torch.randn(_IMAGES, len(weight), 1, 1, generator=generator)
            values = math.sqrt(1 - _BETWEEN) * within + math.sqrt(_BETWEEN) * between
            with _evaluating(module), torch.no_grad():
                module.get_submodule("attention")(bias + weight * values.to(weight))


def _last_norm(module: nn.Module) -> _BatchNorm | None:
    """Return the last BatchNorm with a weight in a module, or the module itself, without those of its attention."""
    inside = [child for name, child in module.named_modules() if not f"{name}.".startswith("attention.")]
    return next((norm for norm in reversed(inside) if isinstance(norm, _BatchNorm) and norm.affine), None)


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
