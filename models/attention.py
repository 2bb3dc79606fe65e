"""Attention as a layer of a network, and the start that leaves a pretrained network as it is.

With its gates at 0.5 a layer would scale its input by 0.25, or 0.5 where it has one gate. The gain takes that back: a
power of two, so that in evaluation the network's outputs stay equal to the bit. It stands in the layer, and not in the
pretrained parameters before it, because those would then learn at another pace than the baseline's: four times as
large under a gradient four times as small.
"""

import importlib.util
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from cbam import CBAM
from models.errors import ModelError
from models.registry import Site

KINDS = ("none", "cbam", "se")
OUTPUTS = ("refined", "residual")


class CBAMLayer(nn.Module):
    """CBAM with one output: the refined map, as in the paper, or the residual one (refined + input).

    The options are those of `cbam.CBAM`. The output is multiplied by `gain`: 1, or what makes the layer the identity
    while its gates are at 0.5.
    """

    gain: Tensor

    def __init__(self, planes: int, output: str = "refined", **options: object) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)}; got {output!r}.")
        self.cbam = CBAM(planes, **options)  # type: ignore[arg-type]
        self.output = output
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        refined = self.cbam.refine(x, self.gain)
        return refined + self.gain * x if self.output == "residual" else refined

    def init_identity_(self) -> None:
        """Make every gate exactly 0.5 and the layer, but for rounding if its output is residual, the identity."""
        factor = self.cbam.zero_gates_()
        self.gain.fill_(1 / (factor + 1 if self.output == "residual" else factor))


class SELayer(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018), with biases: the paper's SE rows have its parameter counts.

    `gain` is as in CBAMLayer.
    """

    gain: Tensor

    def __init__(self, planes: int, ratio: int = 16) -> None:
        super().__init__()
        if ratio < 1:
            raise ValueError(f"ratio must be a positive integer; got {ratio!r}.")
        self.se = SqueezeExcitation(planes, max(1, planes // ratio))
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        se = self.se
        gate = se.scale_activation(se.fc2(se.activation(se.fc1(se.avgpool(x)))))
        return gate * self.gain * x

    def init_identity_(self) -> None:
        """Make the gate exactly 0.5, by zeroing its last layer, and the layer the identity."""
        nn.init.zeros_(self.se.fc2.weight)
        nn.init.zeros_(self.se.fc2.bias)
        self.gain.fill_(2)


AttentionLayer = CBAMLayer | SELayer


def gates(net: nn.Module) -> dict[str, nn.Module]:
    """The gates of a network in the order of its modules, by where they are: `layer1.0 channel`, `layer1.0 spatial`.

    Each returns its values in (0, 1): [N, C, 1, 1], or [N, 1, H, W] of a spatial gate.
    """
    found: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        place = name.removesuffix(".attention")
        if isinstance(module, SELayer):
            found[f"{place} channel"] = module.se.scale_activation
        elif isinstance(module, CBAMLayer):
            titles = {"ca": "channel", "sa": "spatial"}
            found |= {f"{place} {titles[gate]}": child for gate, child in module.cbam.named_children()}
    return found


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a network without the parameters and buffers of its attention."""
    layers = [name for name, module in net.named_modules() if isinstance(module, AttentionLayer)]
    prefixes = tuple(f"{name}." for name in layers)
    return {key: value for key, value in net.state_dict().items() if not key.startswith(prefixes)}


def fuse(net: nn.Module) -> None:
    """Let the network's CBAMs, if it has any, train by the kernels of `cbam.fused`, on CUDA alone.

    Raises:
        ModelError: if the kernels do not support its kind of CBAM, or Triton is not installed.
    """
    modules = [module for module in net.modules() if isinstance(module, CBAM)]
    if not all(module.is_fusible for module in modules):
        raise ModelError(
            "The fused kernels compute CBAM in its default order and poolings, without a norm; "
            "set runtime.fused_cbam=false for another attention."
        )
    if modules and importlib.util.find_spec("triton") is None:
        raise ModelError("The fused kernels need Triton, which is not installed; set runtime.fused_cbam=false.")
    for module in modules:
        module.fused = True


def attach(sites: Iterable[Site], kind: str, options: dict[str, object]) -> list[AttentionLayer]:
    """Put an attention layer of this kind at every site, randomly initialised.

    Raises:
        ModelError: if the kind is unknown, or an option is unknown or out of range.
    """
    if kind not in KINDS:
        raise ModelError(f"Unknown attention '{kind}'; known are {', '.join(KINDS)}.")
    if kind == "none":
        return []
    layer_class = SELayer if kind == "se" else CBAMLayer
    attached = []
    for site in sites:
        try:
            layer = layer_class(site.planes, **options)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ModelError(f"Attention '{kind}' cannot be built: {error}") from error
        site.attach(layer)
        attached.append(layer)
    return attached
