"""Network parts with their own recipe settings: attention, head, stages, and the norms before attention."""

import re
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD

from models.attention.network import layer_names
from models.factory import parse


def parts(net: nn.Module, name: str, image_size: int | None = None, head: str | None = None) -> dict[str, list[str]]:
    """Return the module names of each part of a network from `models.build`.

    Args:
        net: the network or detector.
        name, image_size, head: as they were given to `models.build`.

    Returns:
        `attention`: the attention layers; `head`: the layers with an output for each class, empty if they are unknown,
        or all of a detector except its backbone.
    """
    if isinstance(net, GeneralizedRCNN | SSD):
        layers = [child for child, _ in net.named_children() if child != "backbone"]
    else:
        layers = list(parse(name, image_size=image_size, head=head)[0].head_layers(net))
    return {"attention": layer_names(net), "head": layers}


def last_norms(net: nn.Module, name: str) -> list[str]:
    """Return the norms that attention follows or would follow.

    If attention follows a module that is not a norm, this is the last norm inside the module.

    A detector without attention has none.
    """
    attention = layer_names(net)
    places = [layer.removesuffix(".attention") for layer in attention]
    if not isinstance(net, GeneralizedRCNN | SSD):
        places = places or _places(name)
    inserted = tuple(f"{layer}." for layer in attention)
    norms = [
        module
        for module, layer in net.named_modules()
        if isinstance(layer, _NormBase | nn.LayerNorm | nn.GroupNorm) and not module.startswith(inserted)
    ]
    last = ([norm for norm in norms if f"{norm}.".startswith(f"{place}.")][-1:] for place in places)
    return [norm for found in last for norm in found]


def stages(name: str) -> dict[str, int]:
    """Return the stage of each parameter of a network without attention, including its head, by name.

    A stage is the layers whose outputs have the same resolution. Stages are numbered from 0 in the order of the forward
    pass. The network is run on the meta device.
    """
    backbone, _ = parse(name)
    net = _on_meta(name)
    found: dict[str, int] = {}
    resolutions = [0]

    def note(module: str, _module: nn.Module, _inputs: object, output: object) -> None:
        # Outputs of one pixel belong to squeeze-and-excitation or the last pooling and are not a stage.
        if isinstance(output, Tensor) and output.dim() == 4 and 1 < output.shape[2] < (resolutions[-1] or 2**16):
            resolutions.append(output.shape[2])
        found.setdefault(module, len(resolutions) - 2)

    for module, layer in net.named_modules():
        if not list(layer.children()):
            layer.register_forward_hook(partial(note, module))
    size = backbone.image_size
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size, device="meta"))
    stage_of = {parameter: _stage(parameter.rpartition(".")[0], found) for parameter, _ in net.named_parameters()}
    number = {
        stage: number for number, stage in enumerate(sorted(set(stage_of.values())))
    }  # only stages with parameters
    return {parameter: number[stage] for parameter, stage in stage_of.items()}


def _stage(owner: str, found: dict[str, int]) -> int:
    """Return the stage of a module: that of its first layer that ran, or the last stage if none did."""
    inside = [stage for module, stage in found.items() if f"{module}.".startswith(f"{owner}.")]
    return min(inside, default=max(found.values()))


def _places(name: str) -> list[str]:
    """Return the modules that attention would follow, in module order."""
    backbone, _ = parse(name)
    net = _on_meta(name)
    after = backbone.places(net)
    if isinstance(after, list):
        return after
    return [module for module, _ in net.named_modules() if re.fullmatch(after, module)]


def _on_meta(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return parse(name)[0].build(1000).to("meta")
