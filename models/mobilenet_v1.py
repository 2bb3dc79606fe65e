"""MobileNet V1 (Howard et al., arXiv 1704.04861), which is not in torchvision.

The CBAM paper does not say where attention is inserted. Of the places tried, only one gives the parameter counts of
its Table 5: after both convolutions of each of the 13 blocks, between the norm and the ReLU, as in ResNet (Figure 3).
"""

from torch import Tensor, nn

_STEM = 32  # channels of the first convolution
# Channels and stride of each block (Table 1 of the MobileNet paper).
_BLOCKS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm, ReLU: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_planes: int, out_planes: int, kernel_size: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel_size // 2
        super().__init__(
            nn.Conv2d(in_planes, out_planes, kernel_size, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_planes),
            nn.ReLU(inplace=True),
        )


class Block(nn.Sequential):
    """A depthwise 3x3 convolution, then a pointwise one: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_planes: int, out_planes: int, stride: int) -> None:
        super().__init__(
            ConvNorm(in_planes, in_planes, 3, stride, groups=in_planes),
            ConvNorm(in_planes, out_planes, 1),
        )


class MobileNetV1(nn.Module):
    """MobileNet V1: [N, 3, H, W] -> [N, num_classes] logits; `alpha` multiplies the channels of every layer."""

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
