"""The base class of gates that divide their pooled values by a scale."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ScaledGate(nn.Module):
    """A gate computed from pooled values, each kind of which is divided by a scale.

    One training step changes the gate in proportion to the square of the pooled values, whose size differs between
    networks. The scales remove this dependence; `cbam.calibrate` measures them.

    Attributes:
        scale: positive, one value for each tensor of `pooled`; None for the paper's module, which divides by nothing.
            None is not in the state dict. Loading a state dict that has this gate also sets or removes its scale.
    """

    scale: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", None)

    @abstractmethod
    def pooled(self, x: Tensor) -> Sequence[Tensor]:
        """Return the pooled values of a feature map [N, C, H, W], one tensor for each kind, not divided yet."""

    @abstractmethod
    def last_layer(self) -> nn.Module:
        """Return the layer that is zero at the identity start."""

    @property
    def values_per_logit(self) -> int:
        """The number of pooled values that a logit sums; a calibrated scale includes its root."""
        return 1

    def zero_(self) -> None:
        """Zero the last layer, so that the gate is exactly 0.5 for every input."""
        for parameter in self.last_layer().parameters():
            nn.init.zeros_(parameter)

    @property
    def is_zero(self) -> bool:
        """True at the identity start: the scale has no effect on the outputs yet."""
        return not any(bool(parameter.any()) for parameter in self.last_layer().parameters())

    def set_scale_(self, values: Sequence[float]) -> None:
        """Set the scale, with the device and dtype of the parameters."""
        like = next(self.parameters())
        self.scale = torch.tensor(values, dtype=like.dtype, device=like.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        stored = state_dict.get(f"{prefix}scale")
        if stored is not None and self.scale is None:
            self.set_scale_([1.0] * len(stored))
        elif stored is None and any(key.startswith(prefix) for key in state_dict):
            self.scale = None
        super()._load_from_state_dict(state_dict, prefix, *arguments)
