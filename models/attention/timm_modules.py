"""The attention modules of timm (huggingface/pytorch-image-models), from the optional extra `timm`.

timm builds them with `create_attn` and initializes them. The identity start zeros the layer before the gate, so that
every value of the gate is exactly 0.5, and doubles the gate.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cbam import AttentionLayer, ScaledGate
from models.attention.blended import BlendedLayer
from models.attention.kind import Kind
from models.errors import ModelError


@dataclass(frozen=True)
class _Module:
    """One of timm's modules.

    Attributes:
        options: keyword arguments of the module, with timm's defaults.
        last: the layers whose parameters are zero at the identity start; empty for a module that is blended.
        gate: the name for what the module's child `gate` returns; empty if the module adds instead of multiplying.
        first: the layer that takes the pooled values; empty if a norm removes their scale, or there are none.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    last: Sequence[str] = ()
    gate: str = ""
    first: str = ""


_ECA = {"gamma": 2.0, "beta": 1.0}

_MODULES = {
    "ese": _Module(last=("fc",), gate="channel", first="fc"),
    "eca": _Module(_ECA, ("conv",), "channel", "conv"),
    "ecam": _Module({**_ECA, "rd_ratio": 1 / 8}, ("conv2",), "channel", "conv"),
    "ceca": _Module(_ECA, ("conv",), "channel", "conv"),
    "ge": _Module({"rd_ratio": 1 / 16, "extent": 0, "add_maxpool": False}, ("mlp.fc2",), "context", "mlp.fc1"),
    "gc": _Module({"rd_ratio": 1 / 8}, ("mlp_scale.fc2",), "channel"),
    "gca": _Module({"rd_ratio": 1 / 8}, ("mlp_add.fc2",)),
    "coord": _Module({"rd_ratio": 1 / 16}, ("conv_h", "conv_w"), "coordinate"),
    "scoord": _Module({"rd_ratio": 1 / 4}, ("fc_h", "fc_w"), "coordinate", "fc1"),
    # Not the convolutions before the norms: on their constant output, a norm scales the gradient by 1 / sqrt(eps).
    "ela": _Module({"kernel_size": 7}, ("norm_h", "norm_w"), "coordinate"),
    "strip": _Module({"kernel_size": 3}, ("conv_h", "conv_w"), "coordinate"),
    "lcbam": _Module({"rd_ratio": 1 / 16, "spatial_kernel_size": 7}),  # its channel gate is no module
}


class TimmLayer(AttentionLayer):
    """A module of timm with an identity start.

    Args:
        module: the module.
        last: names of its layers whose parameters are zero at the identity start.
        gate: the name for the values of the module's child `gate`; empty if it has none.
    """

    def __init__(self, module: nn.Module, last: Sequence[str], gate: str) -> None:
        super().__init__()
        self.module = module
        self.last = tuple(last)
        self.gate = gate
        if gate:
            self.module.gate = _GateWithGain(module.get_submodule("gate"))

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)

    def init_identity_(self) -> None:
        """Zero the layers before the gate, whose values are then exactly 0.5, and double the gate."""
        for name in self.last:
            for parameter in self.module.get_submodule(name).parameters():
                nn.init.zeros_(parameter)
        if self.gate:
            self.module.get_buffer("gate.gain").fill_(2)

    def gates(self) -> dict[str, nn.Module]:
        """Return the gate. Coordinate attention and ELA call it twice, for the rows and for the columns."""
        return {self.gate: self.module.get_submodule("gate.gate")} if self.gate else {}


class ScaledTimmLayer(TimmLayer, ScaledGate):
    """A module of timm that divides its pooled values by a scale.

    Args:
        module, last, gate: as for `TimmLayer`.
        first: name of the layer that takes the pooled values.
    """

    def __init__(self, module: nn.Module, last: Sequence[str], gate: str, first: str) -> None:
        super().__init__(module, last, gate)
        module.get_submodule(first).register_forward_pre_hook(self._divide)

    def pooled(self, x: Tensor) -> Sequence[Tensor]:
        """Return the channels' means, also for modules that pool parts of the map."""
        return [x.mean((2, 3))]

    def last_layer(self) -> nn.Module:
        return nn.ModuleList([self.module.get_submodule(name) for name in self.last])

    def set_scale_(self, values: Sequence[float]) -> None:
        """Set the scale, rounded to a power of two, by which division is exact."""
        super().set_scale_([2.0 ** round(math.log2(value)) for value in values])

    def _divide(self, _layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        return None if self.scale is None else (inputs[0] / self.scale[0].to(inputs[0].dtype),)


class _GateWithGain(nn.Module):
    """A gate times a constant: 1, or 2 at the identity start. The gate is smaller than the feature map."""

    gain: Tensor

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate
        self.register_buffer("gain", torch.ones(()))

    def forward(self, logits: Tensor) -> Tensor:
        return self.gate(logits) * self.gain


def _make(name: str, channels: int, **options: Any) -> AttentionLayer:
    if importlib.util.find_spec("timm") is None:
        raise ModelError(f"attention={name} needs timm, which is not installed; run `pip install timm`.")
    import timm
    from timm.layers import create_attn

    try:
        module = _gather_excite(channels, **options) if name == "ge" else create_attn(name, channels, **options)
    except AssertionError as error:
        reason = str(error) or "an option is out of range"
        raise ModelError(f"timm {timm.__version__} cannot build attention={name} ({reason}).") from error
    known = _MODULES[name]
    if not known.last:
        return BlendedLayer(module)
    if known.first:
        return ScaledTimmLayer(module, known.last, known.gate, known.first)
    return TimmLayer(module, known.last, known.gate)


def _gather_excite(channels: int, rd_ratio: float, extent: int, add_maxpool: bool) -> nn.Module:
    """Return timm's GatherExcite with its MLP, which the constructor of timm 1.0.31 cannot build."""
    from timm.layers import ConvMlp, GatherExcite, make_divisible

    module: nn.Module = GatherExcite(channels, extent=extent, add_maxpool=add_maxpool, use_mlp=False)
    module.mlp = ConvMlp(channels, make_divisible(channels * rd_ratio, 1, round_limit=0.0))
    return module


KINDS = [Kind(name, partial(_make, name), module.options) for name, module in _MODULES.items()]
