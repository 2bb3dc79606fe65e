"""The spatial gate."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cbam.checks import require_feature_map, require_positive
from cbam.convolution import convolve
from cbam.maximum import first_maximum_of_channels
from cbam.scaled_gate import ScaledGate


class SpatialAttention(ScaledGate):
    """The spatial gate Ms(F) = sigmoid(conv([mean over channels; max over channels])), section 3, equation 3.

    Args:
        kernel_size: side of the bias-free convolution, odd; 7 in the paper. Padding keeps H and W.
        norm: whether a BatchNorm follows the convolution, as in the official implementation.
        conv_planes: channels C of the feature map, to pool it into one plane by a learned bias-free 1x1 convolution
            (Table 2, "1x1 conv"); None for mean and maximum.

    Raises:
        ValueError: if ``kernel_size`` is not a positive odd integer.
    """

    def __init__(self, kernel_size: int = 7, norm: bool = False, conv_planes: int | None = None) -> None:
        super().__init__()
        require_positive("kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd so that the map keeps its size; got {kernel_size}.")
        # One plane, not two: Table 2 gives 28.10M for ResNet-50, against 28.09M without; two planes would give 28.12M.
        self.reduce = None if conv_planes is None else nn.Conv2d(conv_planes, 1, 1, bias=False)
        pooled_planes = 2 if conv_planes is None else 1
        self.conv = nn.Conv2d(pooled_planes, 1, kernel_size, padding=kernel_size // 2, bias=False)
        # The official implementation's momentum, under which the running statistics change slowly.
        self.norm = nn.BatchNorm2d(1, momentum=0.01) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate of a feature map: [N, C, H, W] floating point -> [N, 1, H, W] in (0, 1)."""
        require_feature_map(x)
        logits = convolve(torch.cat([*self.pooled(x)], dim=1), self.kernel())
        return torch.sigmoid(logits if self.norm is None else self.norm(logits))

    def pooled(self, x: Tensor) -> Sequence[Tensor]:
        """Return the mean and the maximum over channels, or the learned plane, each [N, 1, H, W]."""
        if self.reduce is not None:
            return [self.reduce(x)]
        return [x.mean(dim=1, keepdim=True), first_maximum_of_channels(x)]

    def kernel(self) -> Tensor:
        """Return the convolution's weight divided by the scales of the planes, which are larger: [1, planes, k, k]."""
        return self.conv.weight if self.scale is None else self.conv.weight / self.scale[:, None, None]

    @property
    def values_per_logit(self) -> int:
        return self.conv.weight.numel()

    def last_layer(self) -> nn.Module:
        """Return the norm if there is one, else the convolution."""
        # Not the convolution before a norm: on its constant output the norm scales the gradient by 1 / sqrt(eps).
        return self.conv if self.norm is None else self.norm
