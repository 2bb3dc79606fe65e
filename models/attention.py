"""Attention layers: CBAM, from the package `cbam`, and squeeze-and-excitation."""

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

import cbam
from cbam import CBAM, CBAMLayer
from cbam.attachment import attach, detach, has_attention
from models.errors import ModelError

KINDS = ("none", "cbam", "se")


class SELayer(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018) with biases, matching the parameter counts of the paper's SE rows.

    `gain` is as in `cbam.CBAMLayer`.
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
        """Make the layer the identity by zeroing the gate's last layer, so that the gate is exactly 0.5."""
        nn.init.zeros_(self.se.fc2.weight)
        nn.init.zeros_(self.se.fc2.bias)
        self.gain.fill_(2)


AttentionLayer = CBAMLayer | SELayer


def gates(net: nn.Module) -> dict[str, nn.Module]:
    """Return a network's gates in module order, with names like `layer1.0.bn2 channel` and `layer1.0.bn2 spatial`.

    Each returns values in (0, 1): [N, C, 1, 1], or [N, 1, H, W] for a spatial gate.
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


def gate_gains(net: nn.Module) -> dict[str, float]:
    """Return the gain of each of `gates`: 2 if its layer has the gain of the identity start, otherwise 1.

    A gate times its gain is 1 where the gate leaves the map unchanged.
    """
    layers = {name.removesuffix(".attention"): module for name, module in net.named_modules()}
    gains = {gate: layers[gate.rpartition(" ")[0]].gain for gate in gates(net)}
    return {gate: 1.0 if float(gain) == 1 else 2.0 for gate, gain in gains.items()}


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a network without the parameters and buffers of its attention."""
    layers = [name for name, module in net.named_modules() if isinstance(module, AttentionLayer)]
    prefixes = tuple(f"{name}." for name in layers)
    return {key: value for key, value in net.state_dict().items() if not key.startswith(prefixes)}


def convert_sync_batchnorm(net: nn.Module) -> nn.Module:
    """Make every BatchNorm, attention's too, compute its statistics over the images of all processes.

    torch's conversion replaces the norms and would drop the attention that follows them.
    """
    layers = {name: module.get_submodule("attention") for name, module in net.named_modules() if has_attention(module)}
    for name in layers:
        detach(net.get_submodule(name))
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    for name, layer in layers.items():
        attach(net.get_submodule(name), nn.SyncBatchNorm.convert_sync_batchnorm(layer))
    return net


def fuse(net: nn.Module) -> None:
    """Make the network's CBAMs, if any, train with the kernels of `cbam.kernels` while they are on CUDA.

    Raises:
        ModelError: if the kernels do not support its CBAM variant, or Triton is not installed.
    """
    modules = [module for module in net.modules() if isinstance(module, CBAM)]
    if not all(module.has_closed_form for module in modules):
        raise ModelError(
            "The fused kernels compute CBAM in its default order and poolings, without a norm; "
            "set runtime.fused_cbam=false for other variants."
        )
    if modules and importlib.util.find_spec("triton") is None:
        raise ModelError("The fused kernels need Triton, which is not installed; set runtime.fused_cbam=false.")
    for module in modules:
        module.fused = True


def insert(
    net: nn.Module, kind: str, after: str | Sequence[str], options: dict[str, object], image_size: int
) -> list[AttentionLayer]:
    """Insert randomly initialized attention of a kind; return its layers in module order.

    Args:
        after: the modules that attention follows, as for `cbam.insert`.
        image_size: side of images that the network accepts, pixels.

    Raises:
        ModelError: if the kind is unknown, an option is unknown or out of range, or attention cannot be inserted.
    """
    if kind not in KINDS:
        raise ModelError(f"Unknown attention '{kind}'; choose one of {', '.join(KINDS)}.")
    if kind == "none":
        return []
    layers: list[AttentionLayer] = []

    def append_layer(channels: int) -> nn.Module:
        layers.append(make_layer(kind, channels, options))
        return layers[-1]

    try:
        cbam.insert_layer(net, after, append_layer, image_size)
    except ModelError:  # from make_layer; its message is complete
        raise
    except ValueError as error:
        raise ModelError(f"Attention '{kind}' cannot be built: {error}") from error
    return layers


def make_layer(kind: str, channels: int, options: dict[str, object]) -> AttentionLayer:
    """Return a randomly initialized attention layer, `cbam` or `se`.

    Raises:
        ModelError: if an option is unknown or out of range.
    """
    try:
        return SELayer(channels, **options) if kind == "se" else CBAMLayer(channels, **options)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ModelError(f"Attention '{kind}' cannot be built: {error}") from error
