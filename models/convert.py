"""Conversion of the official implementation's checkpoints (github.com/Jongchan/attention-module).

Its CBAM has `mlp_bias=True` and `spatial_norm=True` here. Its networks have the same parameters as torchvision's. The
modules differ in three ways: names; linear layers [out, in] instead of our 1x1 convolutions [out, in, 1, 1]; and the
input of the 7x7 convolution, which is (maximum, mean) instead of our (mean, maximum).
"""

import re

from models.checkpoint_files import StateDict
from models.errors import ModelError

_OFFICIAL = re.compile(r"(?P<block>layer\d\.\d+)\.cbam\.(?P<part>.+)")
_PARTS = {
    "ChannelGate.mlp.1": "ca.shared_MLP.0",
    "ChannelGate.mlp.3": "ca.shared_MLP.2",
    "SpatialGate.spatial.conv": "sa.conv",
    "SpatialGate.spatial.bn": "sa.norm",
}


def convert(state: StateDict) -> StateDict:
    """Return the state dict of `build(NAME, "cbam", mlp_bias=True, spatial_norm=True)` from the official one.

    Raises:
        ModelError: if the official module has an unknown parameter or is missing.
    """
    converted: StateDict = {}
    for name, value in state.items():
        match = _OFFICIAL.fullmatch(name)
        if match is None:
            converted[name] = value
            continue
        part, _, parameter = match["part"].rpartition(".")
        if part not in _PARTS:
            raise ModelError(f"{name} is not a parameter of the official implementation's CBAM.")
        if part.startswith("ChannelGate") and parameter == "weight":
            value = value[:, :, None, None]
        if part == "SpatialGate.spatial.conv":
            value = value.flip(1)
        norm = "bn3" if f"{match['block']}.bn3.weight" in state else "bn2"
        converted[f"{match['block']}.{norm}.attention.cbam.{_PARTS[part]}.{parameter}"] = value
    if converted.keys() == state.keys():
        raise ModelError("This checkpoint does not contain the official implementation's CBAM.")
    return converted
