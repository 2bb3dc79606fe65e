"""ResNet: attention on the last convolution's output of every block, before the shortcut addition (Figure 3)."""

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from models.backbone import Backbone, Site


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
        return Site(self.bn2.num_features, self.bn2, partial(setattr, self, "attention"))


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
        return Site(self.bn3.num_features, self.bn3, partial(setattr, self, "attention"))


def _build(block: type[nn.Module], depths: list[int], num_classes: int) -> nn.Module:
    return ResNet(block, depths, num_classes=num_classes)


def _sites(net: nn.Module) -> Iterator[Site]:
    for module in net.modules():
        if isinstance(module, AttentionBasicBlock | AttentionBottleneck):
            yield module.site()


_ARCHITECTURES: dict[str, tuple[type[nn.Module], list[int]]] = {
    "resnet18": (AttentionBasicBlock, [2, 2, 2, 2]),
    "resnet34": (AttentionBasicBlock, [3, 4, 6, 3]),
    "resnet50": (AttentionBottleneck, [3, 4, 6, 3]),
    "resnet101": (AttentionBottleneck, [3, 4, 23, 3]),
    "resnet152": (AttentionBottleneck, [3, 8, 36, 3]),
}

BACKBONES = [
    Backbone(name, partial(_build, block, depths), _sites, head="fc")
    for name, (block, depths) in _ARCHITECTURES.items()
]
