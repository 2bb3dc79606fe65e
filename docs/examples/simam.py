"""SimAM (Yang et al., ICML 2021): attention of your own, in one file.

python train.py model=resnet18 data=shapes recipe=scratch attention=custom attention.factory=docs.examples.simam:SimAM
"""

import torch
from torch import Tensor, nn


class SimAM(nn.Module):
    """A gate for each value, from its squared distance to the mean of its channel; no parameters."""

    def __init__(self, _channels: int, regularization: float = 1e-4) -> None:
        super().__init__()
        self.regularization = regularization

    def forward(self, x: Tensor) -> Tensor:
        squared = (x - x.mean((2, 3), keepdim=True)).square()
        variance = squared.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(squared / (4 * (variance + self.regularization)) + 0.5)
