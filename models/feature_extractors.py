"""Feature extractors for torchvision's detectors: pyramids, SSD (of a VGG) and SSDlite (of a MobileNet).

The layers keep the names of torchvision's own detectors, so that published weights load unchanged.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG
from torchvision.models.detection.ssdlite import _extra_block, _normal_init
from torchvision.ops.misc import FrozenBatchNorm2d

from cbam.attachment import attach, detach, has_attention, is_inserted
from models.errors import ModelError
from models.registry import BackboneSpec

STRIDES = (4, 8, 16, 32)

# The norms of SSDlite's own layers, as in torchvision.
SSDLITE_NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)


class Child(NamedTuple):
    """A child of a network's convolutional part.

    Attributes:
        name: name of the child.
        stride: stride of its output, in pixels of the image.
        channels: channels of its output.
    """

    name: str
    stride: int
    channels: int


def pyramid(net: nn.Module, spec: BackboneSpec, channels: int) -> nn.Module:
    """Return the convolutional part of a network with a feature pyramid on top (Lin et al., CVPR 2017).

    Its output is a dictionary of maps [N, channels, H / s, W / s] for s = 4, 8, 16, 32, and one pooled from the last.

    Raises:
        ModelError: if the network lacks maps of these strides.
    """
    last = {child.stride: child for child in _children(net, spec)}
    missing = [str(stride) for stride in STRIDES if stride not in last]
    if missing:
        raise ModelError(f"{type(net).__name__} has no feature maps of stride {', '.join(missing)}.")
    stages = [last[stride] for stride in STRIDES]
    return BackboneWithFPN(
        net.get_submodule(spec.body),
        return_layers={child.name: str(level) for level, child in enumerate(stages)},
        in_channels_list=[child.channels for child in stages],
        out_channels=channels,
    )


def ssd(net: nn.Module, spec: BackboneSpec) -> nn.Module:
    """Return the convolutional part of a VGG with SSD300's extra layers, for maps of strides 8 to 300.

    Raises:
        ModelError: if the network is not a VGG.
    """
    if spec.family != "VGG":
        raise ModelError(f"SSD300 requires a VGG, not {spec.name}; use vgg16, or a MobileNet with detector=ssdlite320.")
    extractor: nn.Module = SSDFeatureExtractorVGG(net.get_submodule(spec.body), highres=False)
    return extractor


def ssdlite(net: nn.Module, spec: BackboneSpec) -> nn.Module:
    """Return the convolutional part of a MobileNet with SSDlite's extra layers, for maps of strides 16 to 512.

    The first map is the expansion, of stride 16, in the first block whose output has stride 32 (Sandler et al., CVPR
    2018, section 6.2). MobileNet V1 has no expansion and returns its last map of stride 16.

    Raises:
        ModelError: if the network is not a MobileNet.
    """
    if not spec.family.startswith("MobileNet"):
        raise ModelError(f"SSDlite requires a MobileNet, not {spec.name}; use mobilenet_v3_large.")
    features = list(net.get_submodule(spec.body).children())
    split = next(i for i, child in enumerate(_children(net, spec)) if child.stride == 32)
    block = getattr(features[split], "block", getattr(features[split], "conv", None))
    first, rest = features[:split], features[split:]
    if isinstance(block, nn.Sequential):
        first, rest = [*first, block[0]], [block[1:], *rest[1:]]
    return _SSDLiteExtractor(first, rest, _children(net, spec)[-1].channels)


class _SSDLiteExtractor(nn.Module):
    """torchvision's SSDLiteFeatureExtractorMobileNet, for the two parts of any network."""

    def __init__(self, first: Sequence[nn.Module], rest: Sequence[nn.Module], channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Sequential(*first), nn.Sequential(*rest))
        planes = (channels, 512, 256, 256, 128)
        self.extra = nn.ModuleList(_extra_block(*pair, SSDLITE_NORM) for pair in pairwise(planes))
        _normal_init(self.extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = OrderedDict()
        for level, block in enumerate((*self.features, *self.extra)):
            maps[str(level)] = x = block(x)
        return maps


def freeze_stages(net: nn.Module, spec: BackboneSpec, trainable: int) -> None:
    """Freeze the parameters of a backbone except those of its last stages. Attention stays trainable.

    A stage consists of the children that have parameters and the same stride. A ResNet has five stages, the first of
    which is the stem.

    Args:
        trainable: number of stages, counted from the output.
    """
    body = net.get_submodule(spec.body)
    children = [(body.get_submodule(child.name), child.stride) for child in _children(net, spec)]
    strides = sorted({stride for module, stride in children if any(True for _ in module.parameters())})
    frozen = strides[: max(0, len(strides) - trainable)]
    for module, stride in children:
        if stride in frozen:
            module.requires_grad_(False)
    for module in net.modules():
        if is_inserted(module):
            module.requires_grad_(True)


def freeze_norms(net: nn.Module, eps: float | None = None) -> None:
    """Replace every BatchNorm with a frozen one. Attention after it and attention's own norms are kept.

    Args:
        eps: epsilon of the new norms; None for that of the old ones.
    """
    for name, child in list(net.named_children()):
        if is_inserted(child):
            continue
        if not isinstance(child, nn.modules.batchnorm._BatchNorm):
            freeze_norms(child, eps)
            continue
        frozen = FrozenBatchNorm2d(child.num_features, child.eps if eps is None else eps)
        for key, buffer in frozen.named_buffers():
            buffer.copy_(getattr(child, key).detach())
        if has_attention(child):
            layer = child.get_submodule("attention")
            detach(child)
            attach(frozen, layer)
        setattr(net, name, frozen)


@torch.no_grad()
def _children(net: nn.Module, spec: BackboneSpec) -> list[Child]:
    """Run the convolutional part, and return its children that return maps, in execution order."""
    size = 128  # Inception v3 fails on 64
    found: list[Child] = []

    def note(child: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        if output.dim() == 4:
            found.append(Child(child, size // output.shape[2], output.shape[1]))

    body = net.get_submodule(spec.body)
    hooks = [module.register_forward_hook(partial(note, child)) for child, module in body.named_children()]
    net.eval()(torch.zeros(1, 3, size, size))
    net.train()
    for hook in hooks:
        hook.remove()
    return found
