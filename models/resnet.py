"""ResNet, ResNeXt and wide ResNets: attention before the shortcut addition of every block (Figure 3).

It stands on the output of the block's last convolution, after its norm.
"""

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from models.registry import BackboneSpec, Site


class AttentionBasicBlock(BasicBlock):
    """torchvision's basic block with a place for attention, empty at first; its parameters keep their names."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.attention: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.conv2(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        out += shortcut
        return self.relu(out)

    def site(self) -> Site:
        return Site(self.bn2.num_features, partial(setattr, self, "attention"))


class AttentionBottleneck(Bottleneck):
    """torchvision's bottleneck with a place for attention, empty at first; its parameters keep their names."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.attention: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.attention(self.bn3(self.conv3(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        out += shortcut
        return self.relu(out)

    def site(self) -> Site:
        return Site(self.bn3.num_features, partial(setattr, self, "attention"))


class WideResNet18(ResNet):
    """ResNet-18 with the channels of its four stages multiplied by `widen`, Table 4's WideResNet18.

    The stem keeps its 64 channels: so the parameters are 25.88M and 45.62M as printed, else 25.90M and 45.69M.
    """

    def __init__(self, widen: float, num_classes: int) -> None:
        self.widen = widen  # before the parent's constructor, which makes the stages
        super().__init__(AttentionBasicBlock, [2, 2, 2, 2])
        self.fc = nn.Linear(self.inplanes, num_classes)

    def _make_layer(self, block: type[nn.Module], planes: int, *args: object, **kwargs: object) -> nn.Sequential:
        return super()._make_layer(block, int(self.widen * planes), *args, **kwargs)


def _build(block: type[nn.Module], depths: list[int], groups: int, width: int, num_classes: int) -> nn.Module:
    return ResNet(block, depths, num_classes=num_classes, groups=groups, width_per_group=width)


def _sites(net: nn.Module) -> Iterator[Site]:
    for module in net.modules():
        if isinstance(module, AttentionBasicBlock | AttentionBottleneck):
            yield module.site()


# Block, blocks of each stage, groups of the 3x3 convolution, and their width in the first stage.
_ARCHITECTURES: dict[str, tuple[type[nn.Module], list[int], int, int]] = {
    "resnet18": (AttentionBasicBlock, [2, 2, 2, 2], 1, 64),
    "resnet34": (AttentionBasicBlock, [3, 4, 6, 3], 1, 64),
    "resnet50": (AttentionBottleneck, [3, 4, 6, 3], 1, 64),
    "resnet101": (AttentionBottleneck, [3, 4, 23, 3], 1, 64),
    "resnet152": (AttentionBottleneck, [3, 8, 36, 3], 1, 64),
    "resnext50_32x4d": (AttentionBottleneck, [3, 4, 6, 3], 32, 4),
    "resnext101_32x4d": (AttentionBottleneck, [3, 4, 23, 3], 32, 4),
    "wide_resnet50_2": (AttentionBottleneck, [3, 4, 6, 3], 1, 128),
}
_WIDENED = {"resnet18_w15": 1.5, "resnet18_w20": 2.0}

BACKBONES = [
    *(
        BackboneSpec(name, "ResNet", partial(_build, *architecture), _sites, head="fc")
        for name, architecture in _ARCHITECTURES.items()
    ),
    *(
        BackboneSpec(name, "ResNet", partial(WideResNet18, widen), _sites, head="fc")
        for name, widen in _WIDENED.items()
    ),
]
