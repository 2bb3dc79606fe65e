"""The identity start for modules that have none of their own."""

import torch
from torch import Tensor, nn

from cbam import AttentionLayer


class BlendedLayer(AttentionLayer):
    """x + a (f(x) - x) for any module f: [N, C, H, W] -> [N, C, H, W], with a learned scalar a.

    At a = 1, the random initialization, this is f. At a = 0, the identity start, it is the identity, bitwise if f is
    finite. In the first step from a = 0, only a has a gradient; the parameters of f follow as a leaves 0.

    Args:
        module: f.

    Attributes:
        amount: a.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.amount = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.amount * (self.module(x) - x)

    def init_identity_(self) -> None:
        """Make the layer the identity."""
        nn.init.zeros_(self.amount)
