"""Where a network's start weights come from, and the rules under which they load.

Published weights are torchvision's, by name (`models/pretrained.py`). A local file holds a state dict, plain, with
`module.` prefixes, or under the key `model` (this repository's checkpoints) or `state_dict`. Whatever is missing,
unexpected or of another shape is an error that lists it; two differences alone are allowed: attention that the
weights do not have yet, and a head for another number of classes, which then starts anew.
"""

import logging
import warnings
from collections.abc import Set
from pathlib import Path

import torch
from torch import Tensor, nn

from models.errors import ModelError
from models.pretrained import fetch, published, published_entry
from models.registry import BackboneSpec

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]


def read(backbone: str, weights: str) -> StateDict:
    """The state dict that `weights` names: a published name or the path of a file.

    Raises:
        ModelError: if the name is unknown, the file absent or unreadable, or published weights cannot be had.
    """
    entry = published_entry(backbone, weights)
    if entry is not None:
        return read_file(fetch(backbone, entry))
    if not Path(weights).is_file():
        known = ", ".join(published(backbone)) or "none"
        raise ModelError(
            f"model.weights={weights} is neither a file nor published for {backbone}; published are {known}."
        )
    return read_file(Path(weights))


def read_file(path: Path) -> StateDict:
    """The state dict in a file, its names without `module.`; only tensors and plain values are read, never code.

    Raises:
        ModelError: if the file is unreadable or holds something else.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly every kind of exception for a file that is not its own
        raise ModelError(
            f"The weights file {path} cannot be read: it is damaged, or holds something other than tensors."
        ) from error
    if isinstance(content, dict):
        content = content.get("model", content.get("state_dict", content))
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise ModelError(f"The weights file {path} holds no state dict of tensors.")
    return {key.removeprefix("module."): value for key, value in content.items()}


def load(
    net: nn.Module, backbone: BackboneSpec, state: StateDict, attention_keys: Set[str], new_head: bool = True
) -> bool:
    """Load a state dict under this module's rules; a head for other classes keeps its random start, if it may.

    Returns:
        Whether the state dict held the attention's parameters too.

    Raises:
        ModelError: listing the names that are missing, unexpected or of another shape.
    """
    own = net.state_dict()
    # Files from before PyTorch 0.4.1 have no counters of batches, and other repositories' attention has no gain.
    needed = {key for key in own if not key.endswith(("num_batches_tracked", ".gain"))}
    attention = needed & attention_keys
    head = {f"{backbone.head}.weight", f"{backbone.head}.bias"}
    reshaped = {key for key in state if key in own and state[key].shape != own[key].shape}
    fits = all(state[key].shape[1:] == own[key].shape[1:] for key in head & state.keys())
    if new_head and fits and reshaped and reshaped <= head:
        log.warning("The head (%s) starts anew: the weights are for another number of classes.", backbone.head)
        state = {key: value for key, value in state.items() if key not in head}
        needed -= head
        reshaped = set()
    missing = needed - state.keys()
    has_attention = not missing & attention
    if missing >= attention:
        missing -= attention
    _refuse(backbone.name, missing=missing, unexpected=state.keys() - own.keys(), reshaped=reshaped)
    net.load_state_dict(state, strict=False)
    return has_attention


def _refuse(name: str, **problems: Set[str]) -> None:
    found = [f"{kind}: {_some(sorted(keys))}" for kind, keys in problems.items() if keys]
    if found:
        raise ModelError(f"The weights do not fit {name}; {'; '.join(found)}.")


def _some(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
