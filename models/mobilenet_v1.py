"""MobileNet V1 (Howard et al., arXiv 1704.04861), which torchvision does not have.

Attention stands behind both convolutions of each of the 13 blocks: the paper does not say where it put it, and of
the places tried only this one gives the parameter counts of its Table 5. It stands on the convolution's output,
after its norm and before its ReLU, as it does in ResNet (Figure 3).
"""

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from models.registry import BackboneSpec, Site

_STEM = 32  # channels of the first convolution
# Channels and stride of each block (Table 1 of the MobileNet paper).
_BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm, a place for attention, ReLU: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel_size // 2
        super().__init__(
            nn.Conv2d(in_planes, out_planes, kernel_size, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_planes),
            nn.Identity(),
            nn.ReLU(inplace=True),
        )

    def site(self) -> Site:
        norm = self[1]
        assert isinstance(norm, nn.BatchNorm2d)
        return Site(norm.num_features, partial(self.__setitem__, 2))


class Block(nn.Sequential):
    """A depthwise 3x3 convolution, then a pointwise one: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_planes: int, out_planes: int, stride: int) -> None:
        super().__init__(
            ConvNorm(in_planes, in_planes, 3, stride, groups=in_planes),
            ConvNorm(in_planes, out_planes, 1),
        )


class MobileNetV1(nn.Module):
    """[N, 3, H, W] -> [N, num_classes] logits; `alpha` is the width multiplier on every layer's channels."""

    def __init__(self, alpha: float, num_classes: int) -> None:
        super().__init__()
        planes = [int(alpha * _STEM), *(int(alpha * block_planes) for block_planes, _ in _BLOCKS)]
        self.features = nn.Sequential(
            ConvNorm(3, planes[0], 3, stride=2),
            *(Block(planes[i], planes[i + 1], stride) for i, (_, stride) in enumerate(_BLOCKS)),
        )
        self.classifier = nn.Linear(planes[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=(2, 3)))


def _sites(net: nn.Module) -> Iterator[Site]:
    for block in net.modules():
        if isinstance(block, Block):
            for layer in block:
                assert isinstance(layer, ConvNorm)
                yield layer.site()


BACKBONES = [
    BackboneSpec(name, "MobileNet V1", partial(MobileNetV1, alpha), _sites, head="classifier", body="features")
    for name, alpha in (("mobilenet_v1", 1.0), ("mobilenet_v1_a07", 0.7))
]
