"""Networks by name, with or without attention, with their start weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import cbam
from cbam import AttentionLayer
from models import custom, head_classes, heads, pretrained, timm_networks
from models import weights as start_weights
from models.attention import network as attention_layers
from models.attention.registry import KINDS
from models.errors import ModelError
from models.registry import BACKBONES, BackboneSpec
from models.weights import StartWeights

STARTS = ("identity", "random")


def names() -> list[str]:
    """Return the names of all backbones; torchvision's name is used if it has the network."""
    return list(BACKBONES)


def transforms(name: str, weights: str | None) -> Any | None:
    """Return the preprocessing for a network and its start weights, in the form of torchvision's transforms.

    It is the same for all weights of a timm network. For other networks, only published weights define it; for other
    weights, the result is None.
    """
    return parse(name)[0].transforms or pretrained.transforms(name, weights)


def parse(
    name: str, attention: str | None = None, image_size: int | None = None, head: str | None = None
) -> tuple[BackboneSpec, str]:
    """Split a name into backbone and attention: `resnet50_cbam` -> (the backbone `resnet50`, `cbam`).

    Args:
        name, attention, image_size, head: as for `build`.

    Raises:
        ModelError: if the backbone does not exist, or both the name and the argument select an attention module.
    """
    backbone, kind = _parse(name, attention, image_size)
    return (backbone if head is None else replace(backbone, heads=(head,))), kind


def _parse(name: str, attention: str | None, image_size: int | None) -> tuple[BackboneSpec, str]:
    if name.startswith(timm_networks.PREFIX):
        return timm_networks.spec(name), attention or "none"
    if ":" in name:
        return custom.spec(name, image_size or 224), attention or "none"
    for kind in ("none", *KINDS):
        if name.removesuffix(f"_{kind}") in BACKBONES and name not in BACKBONES:
            if attention is not None:
                backbone = name.removesuffix(f"_{kind}")
                raise ModelError(
                    f"Both the name '{name}' and attention='{attention}' select an attention module; use '{backbone}'."
                )
            return BACKBONES[name.removesuffix(f"_{kind}")], kind
    if name not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise ModelError(f"Unknown model '{name}'; choose one of {known}, each also with attention, as NAME_cbam.")
    return BACKBONES[name], attention or "none"


def build(
    name: str,
    attention: str | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    start: str | None = None,
    new_head: bool = True,
    after: str | None = None,
    sync_batchnorm: bool = False,
    image_size: int | None = None,
    head: str | None = None,
    weights_key: str | None = None,
    classes: Sequence[str] | None = None,
    **options: object,
) -> nn.Module:
    """Build a network in training mode.

    For a given torch seed, the backbone's random parameters are the same with and without attention.

    Args:
        name: a backbone (`resnet50`), or a backbone and its attention (`resnet50_cbam`); `timm/NAME` for a timm
            network; `package.module:function` for a user-defined network.
        attention: `none` or a kind of attention (`models.ATTENTION_KINDS`); None takes it from the name.
        weights: the name of published weights (`IMAGENET1K_V1`), the path of a file, or None for random weights.
        num_classes: outputs of the head; None for those of the classes that a file of weights names, as the checkpoints
            of runs do, or 1000.
        start: `identity` inserts attention without changing the network's outputs; `random` uses torch's
            initialization; None is `identity` for weights without attention and `random` without weights.
        new_head: whether to initialize the head anew (`models.heads`) if the weights have none for these classes;
            otherwise this is an error.
        after: regular expression that matches the full names of the modules that attention follows; None for the
            default of the backbone's family (`models.registry`).
        sync_batchnorm: whether every BatchNorm computes its statistics over the images of all processes.
        image_size: side of the training images, pixels; None for that of its published weights.
        head: name of the layer with an output for each class; None for that of the backbone's family, of timm's
            configuration, or the linear layer that produces the output.
        weights_key: entry of the weights file that contains the weights, or their prefix, if there are several; None
            for a moving average if there is one.
        classes: names of the data set's classes, by which the outputs of a kept head are matched; None keeps them as
            they are.
        options: options of the attention: those of its `models.ATTENTION_KINDS`.

    Raises:
        ModelError: if a name is unknown, the weights are unavailable or do not fit, or an option is out of range.
    """
    backbone, kind = parse(name, attention, image_size, head)
    if num_classes is None:
        named = head_classes.named_in_file(Path(weights)) if weights and Path(weights).is_file() else None
        num_classes = 1000 if named is None else len(named)
    _require_in_range(backbone, start, num_classes, image_size)
    net = backbone.build(num_classes)
    if head is not None:
        heads.require(net, head, num_classes)
    start_from, rest = None, {}
    if weights is not None:  # into the plain network, by its own rules
        start_from = _start_weights(net, backbone, weights, weights_key, classes)
        start_weights.require_same_attention(start_from, weights, kind, options)
        rest = start_weights.load(net, backbone, start_from, new_head)
    layers: list[AttentionLayer] = []
    if kind != "none":
        places = backbone.places(net) if after is None else after
        layers = attention_layers.insert(net, kind, places, options, backbone.image_size)
    is_learned = start_from is not None and start_weights.load_attention(net, backbone, start_from, rest)
    if not is_learned and (start or ("identity" if weights else "random")) == "identity":
        for layer in layers:
            layer.init_identity_()
    if sync_batchnorm:
        net = attention_layers.convert_sync_batchnorm(net)
    if layers:
        cbam.check(net)
    return net


def _start_weights(
    net: nn.Module, backbone: BackboneSpec, weights: str, key: str | None, classes: Sequence[str] | None
) -> StartWeights:
    """Return start weights, with the outputs of their head in the order of the classes if these are given."""
    found = start_weights.read(backbone, net, weights, key)
    if classes is not None:
        trained = head_classes.trained_classes(backbone, weights)
        head_classes.arrange(found.state, net.state_dict(), backbone.head_layers(net), trained, classes, weights)
    return found


def _require_in_range(backbone: BackboneSpec, start: str | None, num_classes: int, image_size: int | None) -> None:
    if start is not None and start not in STARTS:
        raise ModelError(f"Unknown start '{start}'; choose one of {', '.join(STARTS)}.")
    if num_classes < 1:
        raise ModelError(f"num_classes must be at least 1; got {num_classes}.")
    if image_size is not None and image_size < backbone.smallest:
        raise ModelError(
            f"{backbone.name} needs images of at least {backbone.smallest} pixels for its auxiliary classifier; got "
            f"{image_size}. Set data.image_size={backbone.smallest}."
        )
