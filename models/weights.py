"""Sources of start weights, and the rules for loading them.

Published weights are torchvision's, by name (`models/pretrained.py`). A file contains the state dict of the network, by
itself or in a checkpoint of this or another program (`models/checkpoint_files.py`). The network's own `load_state_dict`
loads it, with the renaming of older names that torchvision's networks do there. Only these differences are allowed:
attention, gains or batch counters that the weights do not have, the scales of gates, and a head that is missing or for
other classes, which is then initialized anew. For other differences, the error lists the first tensors that are
missing, unexpected or of another shape.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision.models import densenet

from cbam import ScaledGate
from models import checkpoint_files, heads, recorded
from models.attention.network import plain_state
from models.attention.registry import KINDS
from models.checkpoint_files import StateDict
from models.errors import ModelError
from models.pretrained import fetch, published, published_entry
from models.registry import BackboneSpec

log = logging.getLogger(__name__)

# Tensors that weights need not have: files from before PyTorch 0.4.1 have no batch counters, and other repositories'
# attention has no gain.
_OPTIONAL = ("num_batches_tracked", ".gain")

# Attribute of a network: the `LoadReport` of its start weights.
_REPORT = "start_weights_report"


@dataclass(frozen=True)
class LoadReport:
    """The tensors that a network took from its start weights.

    Attributes:
        tensors: number of tensors.
        entry: path of their state dict in the checkpoint; empty if the file is a state dict.
        prefix: prefix that was removed from their names.
        average: whether they are a moving average of the weights, by the name of the entry.
        ignored: number of tensors of the entry without that prefix, which were not used.
        new_head: output layers that were initialized anew.
        new_head_std: standard deviation of their weights; None without a new head.
        new_auxiliary: auxiliary classifiers that the weights do not have; they keep the network's initialization.
    """

    tensors: int
    entry: str = ""
    prefix: str = ""
    average: bool = False
    ignored: int = 0
    new_head: tuple[str, ...] = ()
    new_head_std: float | None = None
    new_auxiliary: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.tensors} tensors" + (f" from {self.entry}" if self.entry else "")]
        if self.average:
            parts.append("a moving average of the weights")
        if self.prefix:
            parts.append(f"prefix {self.prefix} removed")
        if self.ignored:
            parts.append(f"{self.ignored} tensors without the prefix ignored")
        if self.new_head:
            parts.append(f"head ({', '.join(self.new_head)}) new")
        if self.new_auxiliary:
            parts.append(f"auxiliary classifiers ({', '.join(self.new_auxiliary)}) new")
        return ", ".join(parts)


@dataclass(frozen=True)
class StartWeights:
    """A state dict, and its file's record of the attention that it was trained with.

    Attributes:
        state: the state dict.
        attention: kind and options of the attention, e.g. `{"kind": "cbam", "order": "parallel"}`; empty if the file is
            not a checkpoint of this repository.
        network: name of the network that the file records; empty if it records none.
        report: where the state dict was in its file.
    """

    state: StateDict
    attention: dict[str, Any] = field(default_factory=dict)
    network: str = ""
    report: LoadReport = LoadReport(0)

    @property
    def is_of_earlier_version(self) -> bool:
        """True if the file is a checkpoint from before attention became a child of the module that it follows."""
        return "start" in self.attention


class Fit(NamedTuple):
    """The names in which a state dict differs from a network.

    Attributes:
        missing: tensors of the network that the state dict does not have, except batch counters.
        unexpected: tensors of the state dict that the network does not have.
        reshaped: tensors of another shape.
    """

    missing: set[str]
    unexpected: set[str]
    reshaped: set[str]


def report(net: nn.Module) -> LoadReport | None:
    """Return the report of the start weights that a network was built with; None without start weights."""
    found: LoadReport | None = vars(net).get(_REPORT)
    return found


def set_report(net: nn.Module, done: LoadReport) -> None:
    """Keep the report of a network's start weights, and log it unless the file is simply the network's state dict."""
    vars(net)[_REPORT] = done
    if done != LoadReport(done.tensors, done.entry):
        log.info("Start weights: %s.", done)


def read(backbone: BackboneSpec, net: nn.Module, weights: str, key: str | None = None) -> StartWeights:
    """Return the weights for a published name or a file, as `with_own_names` does.

    Args:
        net: the network, whose names the weights have, possibly with a common prefix.
        key: entry of the file that contains the weights, as for `checkpoint_files.select`.

    Raises:
        ModelError: if the name is unknown, the file missing or unreadable, or published weights are unavailable.
    """
    if backbone.pretrained is not None and weights == "default":
        state = backbone.pretrained()
        return with_own_names(StartWeights(state, report=LoadReport(len(state))), net, backbone)
    entry = published_entry(backbone.name, weights)
    if entry is not None:
        return with_own_names(read_file(fetch(backbone.name, entry), net.state_dict()), net, backbone)
    if not Path(weights).is_file():
        known = "default" if backbone.pretrained else ", ".join(published(backbone.name)) or "none"
        raise ModelError(
            f"model.weights={weights} is neither a file nor published for {backbone.name}; published weights: {known}."
        )
    found = read_file(Path(weights), net.state_dict(), key)
    if found.network not in ("", backbone.name):
        log.warning(
            "%s has the weights of %s, not of %s. Where they fit, padding and normalization may still differ.",
            *(weights, found.network, backbone.name),
        )
    return with_own_names(found, net, backbone)


def with_own_names(weights: StartWeights, net: nn.Module, backbone: BackboneSpec) -> StartWeights:
    """Return weights under the network's own names, without a head for other classes."""
    state = _with_torchvision_names(net, weights.state)
    return replace(weights, state=_with_own_head(state, net.state_dict(), backbone.head_layers(net)))


def read_file(path: Path, own: Iterable[str], key: str | None = None) -> StartWeights:
    """Return the weights in a file.

    Args:
        own: names of the network's tensors.
        key: entry of the file that contains the weights, as for `checkpoint_files.select`.

    Raises:
        ModelError: if the file is missing or unreadable, or contains no state dict or several.
    """
    content = checkpoint_files.read(path)
    attention = recorded.attention(content)
    is_evaluated = bool(attention) and key is None  # in a run with an average, the others are those of the training
    chosen = checkpoint_files.select(content["model"] if is_evaluated else content, set(own), path, key)
    done = LoadReport(
        len(chosen.state),
        "model" if is_evaluated else chosen.entry,
        chosen.prefix,
        chosen.is_average,
        len(chosen.ignored),
    )
    return StartWeights(chosen.state, attention, recorded.network(content), done)


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


def load(net: nn.Module, backbone: BackboneSpec, weights: StartWeights, new_head: bool = True) -> StateDict:
    """Load weights into a network without attention, and initialize its head if they have none for its classes.

    Args:
        weights: result of `read`.
        new_head: whether to initialize the head anew in this case; otherwise it is an error.

    Returns:
        The tensors that the network does not have, such as those of attention.

    Raises:
        ModelError: if tensors are missing or of another shape; the error lists the first of each kind.
    """
    layers, own = backbone.head_layers(net), net.state_dict()
    state = weights.state
    fit = copy_tensors(net, state)
    auxiliary = _missing_auxiliary(own, layers[1:], fit.missing)
    new = tuple(name for name in layers if f"{name}.weight" in fit.missing and name.partition(".")[0] not in auxiliary)
    if new and not new_head:
        classes = own[f"{new[0]}.weight"].shape[0]
        raise ModelError(f"The weights do not fit {backbone.name}: they have no head ({new[0]}) for {classes} classes.")
    allowed = tuple(f"{name}." for name in (*new, *auxiliary))
    missing = {key for key in fit.missing if not key.startswith(allowed)}
    if missing or fit.reshaped:
        refuse(backbone.name, missing=missing, unexpected=fit.unexpected, reshaped=fit.reshaped)
    heads.initialize(net, new)
    taken = len(state) - len(fit.unexpected)
    std = heads.STD if new else None
    done = replace(weights.report, tensors=taken, new_head=new, new_head_std=std, new_auxiliary=auxiliary)
    set_report(net, done)
    return {key: state[key] for key in state if key in fit.unexpected}


def load_attention(net: nn.Module, backbone: BackboneSpec, weights: StartWeights, rest: StateDict) -> bool:
    """Load the weights of attention into a network after its insertion.

    Args:
        rest: result of `load`.

    Returns:
        True if `rest` contains the attention's parameters.

    Raises:
        ModelError: if `rest` contains other tensors, or a part of attention's only.
    """
    for name, module in net.named_modules():
        if isinstance(module, ScaledGate) and f"{name}.scale" in rest:
            module.set_scale_(rest[f"{name}.scale"].tolist())
    own = net.state_dict()
    plain = plain_state(net)
    added = [key for key in own if key not in plain]
    needed = {key for key in added if not key.endswith(_OPTIONAL)}
    if weights.is_of_earlier_version:
        rest = _with_current_names(rest, added, own)
    fitting = {key for key in rest if key in added and rest[key].shape == own[key].shape}
    missing = needed - rest.keys()
    refuse(
        backbone.name,
        missing=missing if missing < needed else set(),
        unexpected=rest.keys() - set(added),
        reshaped={key for key in rest if key in added} - fitting,
    )
    with torch.no_grad():
        for key, value in rest.items():
            own[key].copy_(value)
    return bool(needed) and not missing


def copy_tensors(net: nn.Module, state: StateDict) -> Fit:
    """Load a state dict by the network's own rules, which may rename its keys, and return the differences.

    Raises:
        ModelError: if a tensor that the network renames has another shape.
    """
    reshaped: set[str] = set()
    try:
        found = net.load_state_dict(_versioned(state, net), strict=False)
    except RuntimeError:  # for tensors of another shape, after loading the others
        own = net.state_dict()
        reshaped = {key for key, value in state.items() if key in own and value.shape != own[key].shape}
        try:
            found = net.load_state_dict(_versioned(without(state, reshaped), net), strict=False)
        except RuntimeError as error:
            raise ModelError(f"The weights do not fit {type(net).__name__}: {' '.join(str(error).split())}") from error
    missing = {key for key in found.missing_keys if not key.endswith(_OPTIONAL)}
    return Fit(missing - reshaped, set(found.unexpected_keys), reshaped)


def _versioned(state: StateDict, net: nn.Module) -> StateDict:
    """Return a copy of a state dict with its module versions; if it has none, with the network's own (for MNASNet)."""
    versioned = _like(state, state)
    if not hasattr(versioned, "_metadata"):
        setattr(versioned, "_metadata", {"": {"version": net._version}})  # noqa: B010 (unknown to mypy)
    return versioned


def _with_torchvision_names(net: nn.Module, state: StateDict) -> StateDict:
    """Rename the keys of torchvision's published DenseNets, which its constructor renames, not `load_state_dict`."""
    if not isinstance(net, densenet.DenseNet):
        return state
    renamed = _like(state, state)
    nothing = SimpleNamespace(load_state_dict=lambda _: None)
    densenet._load_state_dict(nothing, SimpleNamespace(get_state_dict=lambda **_: renamed), progress=False)
    return renamed


def _with_own_head(state: StateDict, own: StateDict, layers: Sequence[str]) -> StateDict:
    """Return a state dict without a head for other classes, and with a head of the same shape under the own name.

    The head may be nested (`fc.1.weight`) or not (`classifier.weight`) where the network's is the other way round.
    """
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias") if f"{layer}.{part}" in own]
    if any(name in state and state[name].shape != own[name].shape for name in names):
        return without(state, names)
    if not layers or f"{layers[0]}.weight" in state:
        return state
    main, container = layers[0], layers[0].rpartition(".")[0]
    around = (f"{main}.", f"{container}.") if container else (f"{main}.",)
    foreign = {key: value for key, value in state.items() if key not in own and key.startswith(around)}
    rest = {key: value for key, value in state.items() if key not in foreign}
    found = {f"{main}.{key.rpartition('.')[2]}": value for key, value in foreign.items()}
    wanted = {name: own[name].shape for name in names if name.startswith(f"{main}.")}
    if len(found) == len(foreign) and {name: value.shape for name, value in found.items()} == wanted:
        rest |= found
    return _like(rest, state)


def without(state: StateDict, keys: Collection[str]) -> StateDict:
    """Return a state dict without some keys, with its module versions."""
    return _like({key: value for key, value in state.items() if key not in keys}, state)


def _like(state: StateDict, source: StateDict) -> StateDict:
    """Return a state dict with the module versions of its source, if it has any."""
    copied: StateDict = OrderedDict(state)
    if hasattr(source, "_metadata"):
        setattr(copied, "_metadata", source._metadata)  # noqa: B010 (unknown to mypy)
    return copied


def _missing_auxiliary(own: StateDict, layers: Sequence[str], missing: Set[str]) -> tuple[str, ...]:
    """Return the auxiliary classifiers, given by their output layers, of which the weights have nothing."""
    names = dict.fromkeys(layer.partition(".")[0] for layer in layers)
    return tuple(
        name
        for name in names
        if all(key in missing for key in own if key.startswith(f"{name}.") and not key.endswith(_OPTIONAL))
    )


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
        raise ModelError(f"The weights do not fit {name}; {'; '.join(found)}. Build the network that they belong to.")


def _some(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
