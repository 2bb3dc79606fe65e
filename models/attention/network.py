"""Attention layers in a network: insertion, their gates, and operations on all of them."""

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

import cbam
from cbam import CBAM, AttentionLayer
from cbam.attachment import attach, detach, has_attention
from models.attention import registry
from models.errors import ModelError


def insert(
    net: nn.Module, kind: str, after: str | Sequence[str], options: Mapping[str, object], image_size: int
) -> list[AttentionLayer]:
    """Insert randomly initialized attention of a kind; return its layers in module order.

    Args:
        after: the modules that attention follows, as for `cbam.insert`.
        image_size: side of images that the network accepts, pixels.

    Raises:
        ModelError: if the kind is unknown, an option is unknown or out of range, or attention cannot be inserted.
    """
    if kind == "none":
        return []
    found = registry.find(kind)
    layers: list[AttentionLayer] = []

    def append_layer(channels: int) -> nn.Module:
        layers.append(found.layer(channels, options))
        return layers[-1]

    try:
        cbam.insert_layer(net, after, append_layer, image_size, image_channels=3)
    except cbam.InsertionError as error:
        raise ModelError(f"Attention '{kind}' cannot be built: {error}") from error
    return layers


def layer_names(net: nn.Module) -> list[str]:
    """Return the names of a network's attention layers in module order."""
    return [name for name, module in net.named_modules() if isinstance(module, AttentionLayer)]


def plain_state(net: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a network without the parameters and buffers of its attention."""
    prefixes = tuple(f"{name}." for name in layer_names(net))
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
        ModelError: if the kernels do not support its CBAM variant, or if Triton or its C compiler is not installed.
    """
    modules = [module for module in net.modules() if isinstance(module, CBAM)]
    if not all(module.has_closed_form for module in modules):
        raise ModelError(
            "The fused kernels compute CBAM in its default order and poolings, without a norm; "
            "set runtime.fused_cbam=false for other variants."
        )
    if modules and importlib.util.find_spec("triton") is None:
        raise ModelError("The fused kernels need Triton, which is not installed; set runtime.fused_cbam=false.")
    if modules and not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "clang"))):
        raise ModelError(
            "Triton needs a C compiler to launch the fused kernels; install gcc or clang, set the environment variable "
            "CC, or set runtime.fused_cbam=false."
        )
    for module in modules:
        module.fused = True
