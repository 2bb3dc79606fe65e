"""CBAM as a layer with one output, and the identity start that preserves a pretrained network.

With its gates at 0.5, the layer would scale its input by 0.25, or by 0.5 if it has one gate. The gain compensates for
this. For the refined output, it is a power of two, so that the network's outputs in evaluation are bitwise unchanged in
fp32 and bf16; in fp16, half of a value below 2^-13 may not be exact. The gain is not folded into the preceding
pretrained parameters: they would be four times as large with gradients four times as small, and would learn at a
different pace from the baseline's.
"""

import torch
from torch import Tensor, nn

from cbam.checks import require_one_of
from cbam.module import CBAM

OUTPUTS = ("refined", "residual")


class AttentionLayer(nn.Module):
    """A layer [N, C, H, W] -> [N, C, H, W] that can start as the identity; the base class of all kinds of attention."""

    def init_identity_(self) -> None:
        """Initialize the layer so that it returns its input unchanged and can still learn."""
        raise NotImplementedError

    def gates(self) -> dict[str, nn.Module]:
        """Return the modules whose outputs are the layer's gates, by name; empty if it has none.

        The values of a gate are in (0, 1), in any shape [N, ...]. A map [N, 1, H, W] or [N, C, H, W] can be drawn.
        """
        return {}


class CBAMLayer(AttentionLayer):
    """CBAM with one output: the refined map, as in the paper, or the residual map (refined + input).

    Args:
        planes: channels C of the feature map.
        output: `refined` or `residual`.
        options: keyword arguments of `cbam.CBAM`.

    Attributes:
        gain: scalar that multiplies the output: 1, or the value that makes the layer the identity with its gates at
            0.5.

    Raises:
        ValueError: if an option is out of range.
    """

    gain: Tensor

    def __init__(self, planes: int, output: str = "refined", **options: object) -> None:
        super().__init__()
        require_one_of("output", output, OUTPUTS)
        self.cbam = CBAM(planes, **options)  # type: ignore[arg-type]
        self.output = output
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return the refined or residual map: [N, C, H, W] -> [N, C, H, W]."""
        refined = self.cbam.refine(x, self.gain)
        return refined + self.gain * x if self.output == "residual" else refined

    def init_identity_(self) -> None:
        """Set every gate to exactly 0.5 and make the layer the identity, up to rounding if its output is residual."""
        factor = self.cbam.zero_gates_()
        self.gain.fill_(1 / (factor + 1 if self.output == "residual" else factor))

    def gates(self) -> dict[str, nn.Module]:
        """Return the gates `channel` and `spatial`, or the one that the option `order` keeps."""
        titles = {"ca": "channel", "sa": "spatial"}
        return {titles[name]: gate for name, gate in self.cbam.named_children()}
