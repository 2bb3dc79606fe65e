"""CBAM and its two gates, written for reading: plain PyTorch operations, equations numbered as in the paper."""

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """The channel gate Mc(F) = sigmoid(MLP(AvgPool(F)) + MLP(MaxPool(F))), section 3.1, equation 2.

    The MLP is shared by the two pooled vectors: two bias-free 1x1 convolutions with a ReLU between, of hidden
    width ``max(1, in_planes // ratio)``. The gradient of the maximum goes to the first position that attains it.

    Args:
        in_planes: channels C of the feature map.
        ratio: reduction ratio r of the MLP; 16 in the paper.

    Raises:
        ValueError: if ``in_planes`` or ``ratio`` is not a positive integer.
    """

    def __init__(self, in_planes: int, ratio: int = 16) -> None:
        super().__init__()
        _require_positive("in_planes", in_planes)
        _require_positive("ratio", ratio)
        self.in_planes = in_planes
        hidden = max(1, in_planes // ratio)
        self.shared_MLP = nn.Sequential(
            nn.Conv2d(in_planes, hidden, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(hidden, in_planes, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gate of a feature map: [N, C, H, W] floating point -> [N, C, 1, 1] in (0, 1)."""
        _require_feature_map(x, self.in_planes)
        # Reductions over dimensions, because adaptive pooling has no deterministic backward on CUDA.
        average = x.mean(dim=(2, 3), keepdim=True)
        maximum = x.flatten(2).max(dim=2).values[:, :, None, None]
        return torch.sigmoid(self.shared_MLP(average) + self.shared_MLP(maximum))


class SpatialAttention(nn.Module):
    """The spatial gate Ms(F) = sigmoid(conv([mean over channels; max over channels])), section 3.2, equation 3.

    Args:
        kernel_size: side of the bias-free convolution, odd; 7 in the paper. Padding keeps H and W.

    Raises:
        ValueError: if ``kernel_size`` is not a positive odd integer.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        _require_positive("kernel_size", kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd so that the map keeps its size; got {kernel_size}.")
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gate of a feature map: [N, C, H, W] floating point -> [N, 1, H, W] in (0, 1)."""
        _require_feature_map(x)
        mean = x.mean(dim=1, keepdim=True)
        maximum = x.max(dim=1, keepdim=True).values
        return torch.sigmoid(self.conv(torch.cat([mean, maximum], dim=1)))


class CBAM(nn.Module):
    """Channel gate, then spatial gate: F' = Mc(F) * F, F'' = Ms(F') * F' (equation 1).

    Args:
        in_planes: channels C of the feature map.
        ratio: reduction ratio of the channel gate's MLP.
        kernel_size: side of the spatial gate's convolution, odd.

    Raises:
        ValueError: from the constructor for a value out of range, from a call for an input that is not a
            non-empty [N, in_planes, H, W].

    >>> refined, residual = CBAM(64)(torch.rand(2, 64, 14, 14))
    >>> refined.shape, residual.shape
    (torch.Size([2, 64, 14, 14]), torch.Size([2, 64, 14, 14]))
    """

    def __init__(self, in_planes: int, ratio: int = 16, kernel_size: int = 7) -> None:
        super().__init__()
        self.ca = ChannelAttention(in_planes, ratio)
        self.sa = SpatialAttention(kernel_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] -> (refined F'', F'' + x), each [N, C, H, W] in the dtype of x."""
        refined = self.refine(x)
        return refined, refined + x

    def refine(self, x: Tensor) -> Tensor:
        """F'' alone, [N, C, H, W]: what the paper's networks use, without the cost of the second output."""
        x = self.ca(x) * x
        return self.sa(x) * x

    def zero_gates_(self) -> float:
        """Zero the last layer of each gate, so that both are exactly 0.5 whatever the input, and learn from there.

        Returns:
            The factor by which ``refine`` now scales its input, 0.25: a power of two, so that multiplying the
            layer before by its inverse gives back the network without CBAM to the bit.
        """
        last = self.ca.shared_MLP[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(self.sa.conv.weight)
        return 0.25


def _require_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer; got {value!r}.")


def _require_feature_map(x: Tensor, planes: int | None = None) -> None:
    if x.dim() != 4:
        raise ValueError(f"Expected a feature map [N, C, H, W]; got shape {tuple(x.shape)}.")
    if planes is not None and x.shape[1] != planes:
        raise ValueError(f"Expected {planes} channels; got shape {tuple(x.shape)}.")
    if 0 in x.shape[1:]:
        raise ValueError(f"Expected at least one channel and one position; got shape {tuple(x.shape)}.")
