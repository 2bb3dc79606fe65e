"""Sources of start weights, and the rules for loading them.

Published weights are torchvision's, by name (`models/pretrained.py`). A local file contains a state dict, plain, with
`module.` prefixes, or under the key `model` (this repository's checkpoints) or `state_dict`. Only these differences
are allowed: attention, gains or batch counters that the weights do not have, and a head for another number of classes,
which is then re-initialized. For other differences, the error lists the first tensors that are missing, unexpected or
of another shape.
"""

import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.attention.network import plain_state
from models.attention.registry import KINDS
from models.errors import ModelError
from models.pretrained import fetch, published, published_entry
from models.registry import BackboneSpec

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

_PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")


@dataclass(frozen=True)
class StartWeights:
    """A state dict, and its file's record of the attention that it was trained with.

    Attributes:
        state: the state dict.
        attention: kind and options of the attention, e.g. `{"kind": "cbam", "order": "parallel"}`; empty if the file is
            not a checkpoint of this repository.
    """

    state: StateDict
    attention: dict[str, Any]

    @property
    def is_of_earlier_version(self) -> bool:
        """True if the file is a checkpoint from before attention became a child of the module that it follows."""
        return "start" in self.attention


def read(backbone: BackboneSpec, weights: str) -> StartWeights:
    """Return the weights for a published name or a file.

    Raises:
        ModelError: if the name is unknown, the file missing or unreadable, or published weights are unavailable.
    """
    if backbone.pretrained is not None and weights == "default":
        return StartWeights(backbone.pretrained(), {})
    entry = published_entry(backbone.name, weights)
    if entry is not None:
        return read_file(fetch(backbone.name, entry))
    if not Path(weights).is_file():
        known = "default" if backbone.pretrained else ", ".join(published(backbone.name)) or "none"
        raise ModelError(
            f"model.weights={weights} is neither a file nor published for {backbone.name}; published weights: {known}."
        )
    return read_file(Path(weights))


def read_file(path: Path) -> StartWeights:
    """Return the weights in a file, without the prefixes of DataParallel and torch.compile.

    Only tensors and plain values are loaded, never code.

    Raises:
        ModelError: if the file is missing or unreadable, or contains anything else.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.")
    content = _load_file(path)
    state: Any = content
    if isinstance(content, dict):
        state = content.get("model", content.get("state_dict", content))
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ModelError(f"The weights file {path} does not contain a state dict of tensors.")
    for key, value in state.items():
        if value.is_complex() or value.layout != torch.strided or value.is_meta:
            raise ModelError(f"{key} in the weights file {path} is not an ordinary tensor of real numbers.")
    named = OrderedDict((_PREFIX.sub("", key), value) for key, value in state.items())
    return StartWeights(_with_versions(named, state), _recorded_attention(content))


def _load_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ModelError(f"{path} needs the package safetensors: pip install safetensors.") from error
    except Exception as error:  # torch.load raises many kinds of exceptions for foreign files
        raise ModelError(
            f"The weights file {path} cannot be read: it is damaged, or contains something other than tensors and "
            "plain values."
        ) from error


def _recorded_attention(content: Any) -> dict[str, Any]:
    """Return the attention recorded in a checkpoint of this repository."""
    identity = content.get("identity") if isinstance(content, dict) else None
    if not isinstance(identity, dict) or "model.attention" not in identity:
        return {}
    options = {key.removeprefix("attention."): v for key, v in identity.items() if key.startswith("attention.")}
    return {"kind": identity["model.attention"], **options}


def require_same_attention(weights: StartWeights, name: str, kind: str, options: Mapping[str, object]) -> None:
    """Reject weights trained with a different attention module, which could fit but compute a different function.

    Args:
        weights: the weights; without attention or a record of it, they are accepted.
        name: name of the weights, for the message.
        kind, options: kind and options of the attention to build.

    Raises:
        ModelError: if options differ; the error names them.
    """
    trained = weights.attention
    if trained.get("kind", "none") == "none" or kind == "none":
        return
    built = {"kind": kind, **KINDS[kind].options, **options}
    relevant = ("kind", *(KINDS[trained["kind"]].options if trained["kind"] in KINDS else ()))
    differing = {key: trained[key] for key in relevant if key in trained and trained[key] != built.get(key)}
    if differing:
        text = ", ".join(f"{key}={value}" for key, value in differing.items())
        raise ModelError(
            f"The weights {name} were trained with attention {text}; build the network with the same attention."
        )


def load(net: nn.Module, backbone: BackboneSpec, weights: StartWeights, new_head: bool = True) -> bool:
    """Load weights by this module's rules. If allowed, heads for other classes keep their random initialization.

    Returns:
        True if the state dict contains the attention's parameters.

    Raises:
        ModelError: if tensors are missing, unexpected or of another shape; the error lists the first of each kind.
    """
    own, state = net.state_dict(), weights.state
    versions = state if hasattr(state, "_metadata") else own
    # Files from before PyTorch 0.4.1 have no batch counters, and other repositories' attention has no gain.
    needed = {key for key in own if not key.endswith(("num_batches_tracked", ".gain"))}
    attention = needed - plain_state(net).keys()
    if weights.is_of_earlier_version:
        state = _with_current_names(state, [key for key in own if key in attention or key.endswith(".gain")], own)
    reshaped = {key for key in state if key in own and state[key].shape != own[key].shape}
    heads = {f"{head}.{part}" for head in backbone.heads for part in ("weight", "bias")}
    is_head_alone = reshaped and all(k in heads and state[k].shape[1:] == own[k].shape[1:] for k in reshaped)
    if new_head and is_head_alone:
        log.warning(
            "The head (%s) is re-initialized: the weights have a different number of classes.", backbone.heads[0]
        )
        state = {key: value for key, value in state.items() if key not in heads}
        needed -= heads
        reshaped = set()
    missing = needed - state.keys()
    has_attention = not missing & attention
    if missing >= attention:
        missing -= attention
    refuse(backbone.name, missing=missing, unexpected=state.keys() - own.keys(), reshaped=reshaped)
    net.load_state_dict(_with_versions(OrderedDict(state), versions), strict=False)
    return has_attention


def _with_versions(state: OrderedDict[str, Tensor], source: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Copy the module versions from another state dict, because MNASNet's loading depends on its version."""
    if hasattr(source, "_metadata"):
        setattr(state, "_metadata", source._metadata)  # noqa: B010 (unknown to mypy)
    return state


def _with_current_names(state: StateDict, attention: list[str], own: StateDict) -> StateDict:
    """Rename the attention parameters of a checkpoint from an earlier version.

    It had the same parameters in the same module order, under other names.

    Args:
        attention: the network's names for its attention's parameters and buffers, in order.
    """
    unknown = [key for key in state if key not in own]
    pairs = list(zip(unknown, attention, strict=False))
    if len(unknown) != len(attention) or not all(
        _part(old) == _part(new) and state[old].shape == own[new].shape for old, new in pairs
    ):
        return state
    current = dict(pairs)
    return {current.get(key, key): value for key, value in state.items()}


def _part(key: str) -> str:
    """Strip the layer's path: `layer1.0.bn2.attention.cbam.ca.shared_MLP.0.weight` -> `cbam.ca.shared_MLP.0.weight`."""
    match = re.search(r"(?:cbam\.|se\.fc|gain$).*", key)
    return match[0] if match else key


def refuse(name: str, **problems: Set[str]) -> None:
    found = [f"{kind}: {_some(sorted(keys))}" for kind, keys in problems.items() if keys]
    if found:
        raise ModelError(f"The weights do not fit {name}; {'; '.join(found)}.")


def _some(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
