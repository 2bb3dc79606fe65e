"""The keys of `attention`: the options of the attention module."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from engine.errors import UserError


@dataclass
class AttentionConfig:
    """Options of the attention module; squeeze-and-excitation has only `ratio`, `init`, `after` and `at`."""

    ratio: int = 16  # reduction of the channel gate's MLP
    kernel_size: int = 7  # side of the spatial gate's convolution, odd
    pooling: str = "both"  # of the channel gate: avg | max | both
    mlp_bias: bool = False  # biases in the channel gate's MLP
    spatial_pooling: str = "mean_max"  # of the spatial gate: mean_max | conv: a 1x1 convolution to one plane
    spatial_norm: bool = False  # BatchNorm after the spatial gate's convolution
    order: str = "channel_spatial"  # channel_spatial | spatial_channel | parallel | channel | spatial
    output: str = "refined"  # refined: F''; residual: F'' + F
    after: str | None = None  # regular expression for the modules that attention follows; null: the family's default
    init: str | None = None  # identity | random; null: identity with start weights, random without
    at: str = "backbone"  # for detectors: backbone | heads: on each feature map before its prediction head | both

    def options(self, kind: str) -> dict[str, Any]:
        """Return the keyword arguments of `models.build` for attention of this kind.

        Raises:
            UserError: if an option is set that this kind does not have; the error names it.
        """
        options = dataclasses.asdict(self)
        known = {"none": ("init",), "se": ("ratio", "init", "after", "at")}.get(kind, tuple(options))
        for key in self.changed():
            if key not in known:
                advice = "add attention=cbam, or " if kind == "none" else ""
                raise UserError(f"attention.{key} is not an option of attention={kind}; {advice}leave it out.")
        return {"start" if key == "init" else key: options[key] for key in known if key != "at"}

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from the defaults."""
        default = AttentionConfig()
        return {key: value for key, value in vars(self).items() if value != getattr(default, key)}
