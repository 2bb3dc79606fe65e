"""Backbones for detection: any network of the zoo as the feature extractor of torchvision's detection models.

>>> from torchvision.models.detection import FasterRCNN
>>> detector = FasterRCNN(models.backbone("resnet50_cbam", weights="IMAGENET1K_V1"), num_classes=91)
"""

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from models import factory
from models.errors import ModelError

STRIDES = (4, 8, 16, 32)


def backbone(
    name: str, attention: str | None = None, weights: str | None = None, start: str | None = None, **options: object
) -> nn.Module:
    """The convolutional part of a network under a feature pyramid (Lin et al., CVPR 2017).

    Its output is a dictionary of maps [N, 256, H / s, W / s] for s = 4, 8, 16, 32, and one pooled from the last;
    `out_channels` is 256. That is what `torchvision.models.detection` asks of a backbone.

    Args:
        name, attention, weights, start, options: as for `models.build`.

    Raises:
        ModelError: as `models.build` does.
    """
    net = factory.build(name, attention, weights, 1000, start, **options)  # type: ignore[arg-type]
    body = net.get_submodule(factory.parse(name, attention)[0].body)
    stages = _last_of_each_stride(net, body)
    return BackboneWithFPN(
        body,
        return_layers={child: str(level) for level, (child, _) in enumerate(stages)},
        in_channels_list=[planes for _, planes in stages],
        out_channels=256,
    )


@torch.no_grad()
def _last_of_each_stride(net: nn.Module, body: nn.Module) -> list[tuple[str, int]]:
    """For each stride, the last child of the body with maps of that stride, and their channels; found by trying."""
    size = 64
    found: dict[int, tuple[str, int]] = {}

    def note(child: str, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        if output.dim() == 4:
            found[size // output.shape[2]] = (child, output.shape[1])

    hooks = [module.register_forward_hook(partial(note, child)) for child, module in body.named_children()]
    net.eval()(torch.zeros(1, 3, size, size))
    net.train()
    for hook in hooks:
        hook.remove()
    missing = [str(stride) for stride in STRIDES if stride not in found]
    if missing:
        raise ModelError(f"{type(net).__name__} has no feature maps of stride {', '.join(missing)}.")
    return [found[stride] for stride in STRIDES]
