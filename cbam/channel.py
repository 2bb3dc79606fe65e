"""The channel gate."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cbam.checks import require_feature_map, require_one_of, require_positive
from cbam.maximum import first_maximum_of_positions
from cbam.scaled_gate import ScaledGate

POOLINGS = ("avg", "max", "both")


class ChannelAttention(ScaledGate):
    """The channel gate Mc(F) = sigmoid(MLP(AvgPool(F)) + MLP(MaxPool(F))), section 3, equation 2.

    Both pooled vectors share the MLP: two 1x1 convolutions with a ReLU in between and hidden width
    ``max(1, in_planes // ratio)``. The gradient of the maximum goes to the first position that attains it.

    Args:
        in_planes: channels C of the feature map.
        ratio: reduction ratio r of the MLP; 16 in the paper.
        pooling: ``both``, or ``avg`` or ``max`` alone (Table 1).
        mlp_bias: whether the two convolutions have biases. Equation 2 has none; the paper's parameter counts
            include them.

    Raises:
        ValueError: if ``in_planes`` or ``ratio`` is not a positive integer, or ``pooling`` is unknown.
    """

    def __init__(self, in_planes: int, ratio: int = 16, pooling: str = "both", mlp_bias: bool = False) -> None:
        super().__init__()
        require_positive("in_planes", in_planes)
        require_positive("ratio", ratio)
        require_one_of("pooling", pooling, POOLINGS)
        self.in_planes = in_planes
        self.pooling = pooling
        hidden = max(1, in_planes // ratio)
        self.shared_MLP = nn.Sequential(
            nn.Conv2d(in_planes, hidden, 1, bias=mlp_bias),
            nn.ReLU(),
            nn.Conv2d(hidden, in_planes, 1, bias=mlp_bias),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the gate of a feature map: [N, C, H, W] floating point -> [N, C, 1, 1] in (0, 1)."""
        require_feature_map(x, self.in_planes)
        pooled = self.pooled(x)
        if self.scale is not None:
            pooled = [values / scale.to(values.dtype) for values, scale in zip(pooled, self.scale, strict=True)]
        logits = [self._mlp(values) for values in pooled]
        return torch.sigmoid(sum(logits[1:], start=logits[0]))[..., None, None]

    def pooled(self, x: Tensor) -> Sequence[Tensor]:
        """Return the mean and the maximum over positions, or one of them, each [N, C]."""
        # Reductions instead of adaptive pooling, which has no deterministic backward on CUDA.
        if self.pooling == "avg":
            return [x.mean((2, 3))]
        if self.pooling == "max":
            return [first_maximum_of_positions(x)]
        return [x.mean((2, 3)), first_maximum_of_positions(x)]

    def _mlp(self, pooled: Tensor) -> Tensor:
        """Apply the MLP to pooled vectors [N, C]: matrix products cost a fraction of the same convolutions."""
        first, first_bias, last, last_bias = self.mlp_parameters()
        hidden = F.relu(F.linear(pooled, first.flatten(1), first_bias))
        return F.linear(hidden, last.flatten(1), last_bias)

    def mlp_parameters(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Return the weight and bias of the MLP's first layer, then those of its last layer."""
        first, _, last = cast(tuple[nn.Conv2d, nn.ReLU, nn.Conv2d], tuple(self.shared_MLP))
        return first.weight, first.bias, last.weight, last.bias

    def last_layer(self) -> nn.Module:
        return self.shared_MLP[-1]
