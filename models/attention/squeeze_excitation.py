"""Squeeze-and-excitation (Hu et al., CVPR 2018)."""

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from cbam import AttentionLayer
from models.attention.kind import Kind, defaults


class SELayer(AttentionLayer):
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
        gate = se.scale_activation(se.fc2(se.activation(se.fc1(se.avgpool(x)))))
        return gate * self.gain * x

    def init_identity_(self) -> None:
        """Make the layer the identity by zeroing the gate's last layer, so that the gate is exactly 0.5."""
        nn.init.zeros_(self.se.fc2.weight)
        nn.init.zeros_(self.se.fc2.bias)
        self.gain.fill_(2)

    def gates(self) -> dict[str, nn.Module]:
        return {"channel": self.se.scale_activation}

    def gate_gain(self) -> float:
        return 1.0 if float(self.gain) == 1 else 2.0


KIND = Kind("se", SELayer, defaults(SELayer))
