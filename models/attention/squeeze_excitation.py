"""Squeeze-and-excitation (Hu et al., CVPR 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from cbam import AttentionLayer, ScaledGate
from models.attention.kind import Kind, defaults


class SELayer(AttentionLayer, ScaledGate):
    """Squeeze-and-excitation with biases, matching the parameter counts of the CBAM paper's SE rows.

    Args:
        planes: channels C of the feature map.
        ratio: reduction ratio of the gate's hidden layer.

    Attributes:
        gain: scalar that multiplies the gate: 1, or 2 at the identity start, where the gate is 0.5.
    """

    gain: Tensor

    def __init__(self, planes: int, ratio: int = 16) -> None:
        super().__init__()
        if ratio < 1:
            raise ValueError(f"ratio must be a positive integer; got {ratio!r}.")
        self.se = SqueezeExcitation(planes, max(1, planes // ratio))
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        se = self.se
        (pooled,) = self.pooled(x)
        if self.scale is not None:
            pooled = pooled / self.scale[0].to(pooled.dtype)
        gate = se.scale_activation(se.fc2(se.activation(se.fc1(pooled))))
        return gate * self.gain * x

    def pooled(self, x: Tensor) -> Sequence[Tensor]:
        return [self.se.avgpool(x)]

    def last_layer(self) -> nn.Module:
        return self.se.fc2

    def init_identity_(self) -> None:
        """Make the layer the identity by zeroing the gate's last layer, so that the gate is exactly 0.5."""
        self.zero_()
        self.gain.fill_(2)

    def gates(self) -> dict[str, nn.Module]:
        return {"channel": self.se.scale_activation}


KIND = Kind("se", SELayer, defaults(SELayer))
