"""Where a network's start weights come from, and the rules under which they load.

Published weights are torchvision's, by name, from its download cache. A local file holds a state dict, plain,
with `module.` prefixes, or under the key `model` as this repository's checkpoints do. Whatever is missing,
unexpected or of another shape is an error that lists it; two differences alone are allowed: attention that the
weights do not have yet, and a head for another number of classes, which then starts anew.
"""

import logging
import pickle
from collections.abc import Set
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from models.backbone import Backbone
from models.errors import ModelError

log = logging.getLogger(__name__)

StateDict = dict[str, Tensor]


def published(backbone: str) -> list[str]:
    """Names of the weights that torchvision publishes for a backbone, `IMAGENET1K_V1` first."""
    return [entry.name for entry in torchvision.models.get_model_weights(backbone)]


def published_entry(backbone: str, weights: str | None) -> Any | None:
    """torchvision's entry (url, transforms, published accuracy) for weights of this name, None for any other."""
    if weights is None or weights not in (*published(backbone), "DEFAULT"):
        return None
    return torchvision.models.get_model_weights(backbone)[weights]


def transforms(backbone: str, weights: str | None) -> Any | None:
    """The preprocessing that torchvision published with weights of this name, None for any other weights."""
    entry = published_entry(backbone, weights)
    return None if entry is None else entry.transforms()


def read(backbone: str, weights: str) -> StateDict:
    """The state dict that `weights` names: a published name or the path of a file.

    Raises:
        ModelError: if the name is unknown, the file absent or unreadable, or the download impossible.
    """
    entry = published_entry(backbone, weights)
    return _read_file(backbone, weights) if entry is None else _download(backbone, entry)


def load(net: nn.Module, backbone: Backbone, state: StateDict, attention_keys: Set[str]) -> bool:
    """Load a state dict under this module's rules; a head for other classes keeps its random start.

    Returns:
        Whether the state dict held the attention's parameters too.

    Raises:
        ModelError: listing the names that are missing, unexpected or of another shape.
    """
    own = net.state_dict()
    # Files from before PyTorch 0.4.1 have no counters of batches; nothing here reads them.
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    attention = needed & attention_keys
    head = {f"{backbone.head}.weight", f"{backbone.head}.bias"}
    reshaped = {key for key in state if key in own and state[key].shape != own[key].shape}
    if reshaped and reshaped <= head:
        log.info("The head (%s) starts anew: the weights are for another number of classes.", backbone.head)
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


def _download(backbone: str, entry: Any) -> StateDict:
    try:
        state: StateDict = entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelError(
            f"Weights {entry.name} of {backbone} are not in {cache} and could not be downloaded ({error}). "
            f"Put {entry.url} there from a machine with internet, or set model.weights to a file, or to null "
            "to train from nothing."
        ) from error
    return state


def _read_file(backbone: str, weights: str) -> StateDict:
    path = Path(weights)
    if not path.is_file():
        raise ModelError(
            f"model.weights={weights} is neither a file nor published for {backbone}; "
            f"published are {', '.join(published(backbone))}."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"The weights file {path} cannot be read: {reason}") from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"The weights file {path} holds no state dict of tensors.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _refuse(name: str, **problems: Set[str]) -> None:
    found = [f"{kind}: {', '.join(sorted(keys))}" for kind, keys in problems.items() if keys]
    if found:
        raise ModelError(f"The weights do not fit {name}; {'; '.join(found)}.")
