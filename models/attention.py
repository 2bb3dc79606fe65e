"""Attention as a layer of a network, and the start that leaves a pretrained network as it is."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from cbam import CBAM
from models.architecture import Site
from models.errors import ModelError

KINDS = ("none", "cbam", "se")
OUTPUTS = ("refined", "residual")


class CBAMLayer(nn.Module):
    """CBAM with one output: the refined map, as in the paper, or the residual one (refined + input).

    The options are those of `cbam.CBAM`.
    """

    def __init__(self, planes: int, output: str = "refined", **options: object) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)}; got {output!r}.")
        self.cbam = CBAM(planes, **options)  # type: ignore[arg-type]
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        refined = self.cbam.refine(x)
        return refined + x if self.output == "residual" else refined

    def zero_gates_(self) -> float:
        """Make every gate exactly 0.5 and return the factor by which the layer now scales its input."""
        factor = self.cbam.zero_gates_()
        return factor + 1 if self.output == "residual" else factor


class SELayer(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018), with biases: the paper's SE rows have its parameter counts."""

    def __init__(self, planes: int, ratio: int = 16) -> None:
        super().__init__()
        if ratio < 1:
            raise ValueError(f"ratio must be a positive integer; got {ratio!r}.")
        self.se = SqueezeExcitation(planes, max(1, planes // ratio))

    def forward(self, x: Tensor) -> Tensor:
        return self.se(x)

    def zero_gates_(self) -> float:
        """Make the gate exactly 0.5, by zeroing its last layer, and return that factor."""
        nn.init.zeros_(self.se.fc2.weight)
        nn.init.zeros_(self.se.fc2.bias)
        return 0.5


AttentionLayer = CBAMLayer | SELayer


def attach(sites: Iterable[Site], kind: str, options: dict[str, object]) -> list[tuple[Site, AttentionLayer]]:
    """Put an attention layer of this kind at every site, randomly initialised.

    Raises:
        ModelError: if the kind is unknown, or an option is unknown or out of range.
    """
    if kind not in KINDS:
        raise ModelError(f"Unknown attention '{kind}'; known are {', '.join(KINDS)}.")
    if kind == "none":
        return []
    layer_class = SELayer if kind == "se" else CBAMLayer
    attached = []
    for site in sites:
        try:
            layer = layer_class(site.planes, **options)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ModelError(f"Attention '{kind}' cannot be built with {options}: {error}") from error
        site.attach(layer)
        attached.append((site, layer))
    return attached


@torch.no_grad()
def start_at_identity(attached: Iterable[tuple[Site, AttentionLayer]]) -> None:
    """Leave the network's function as it was before attention was inserted, and let attention learn from there.

    With every gate at 0.5 a layer only scales its input; the inverse of that factor goes into the affine just
    before. For the refined output it is 2 or 4, a power of two: outputs in evaluation mode stay equal to the bit.
    """
    for site, layer in attached:
        inverse = 1 / layer.zero_gates_()
        for parameter in site.affine.parameters(recurse=False):
            parameter.mul_(inverse)
