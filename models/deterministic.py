"""Replacements for operations without a deterministic backward on CUDA."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def with_average_pool(net: nn.Module, side: int) -> nn.Module:
    """Replace the pooling before the classifier of VGG and AlexNet; return the network."""
    net.avgpool = AveragePool(side)
    return net


class AveragePool(nn.Module):
    """Adaptive average pooling to side x side: [N, C, H, W] -> [N, C, side, side].

    On CUDA it is two matrix products, because torch's backward is not deterministic there. The results are equal up to
    rounding, and bit-identical for H = W = side, as at 224 pixels.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return F.adaptive_avg_pool2d(x, self.side)
        height, width = x.shape[2:]
        if height == width == self.side:
            return x
        return _bins(height, self.side).to(x) @ x @ _bins(width, self.side).to(x).T


def _bins(length: int, side: int) -> Tensor:
    """Return [side, length]: row i averages the positions of the i-th of `side` bins.

    Bin i contains the positions p with floor(i length / side) <= p < ceil((i + 1) length / side).
    """
    weights = torch.zeros(side, length)
    for i in range(side):
        first, end = i * length // side, -(-(i + 1) * length // side)
        weights[i, first:end] = 1 / (end - first)
    return weights
