"""Reading of checkpoint files, of this and other programs, without running code.

`torch.load(weights_only=True)` builds tensors and plain values only. The checkpoints of common programs contain a few
other objects beside the weights: command-line arguments, NumPy scalars, paths. Those on an allow-list are replaced by
inert stand-ins; any other object is an error that names it.
"""

import re
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError

StateDict = dict[str, Tensor]


class _StandIn:
    """A stand-in for an object of a checkpoint. It accepts and ignores all arguments and attributes."""

    def __new__(cls, *_args: object, **_options: object) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_options: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


# Objects beside the weights, by module.
_IGNORED = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "datetime": "datetime date timedelta",
    "collections": "defaultdict deque",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "numpy": "dtype ndarray bool_ float64 float32 int64",
    "numpy.core.multiarray": "scalar _reconstruct",
    "numpy._core.multiarray": "scalar _reconstruct",
    "typing": "Any",
    "builtins": "dict list tuple int float str bool",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode",
    "torch.torch_version": "TorchVersion",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "lightning.fabric.utilities.data": "AttributeDict",
    "lightning_fabric.utilities.data": "AttributeDict",
    "pytorch_lightning.utilities.parsing": "AttributeDict",
}
_STAND_INS: list[Any] = [(_StandIn, f"{module}.{name}") for module, names in _IGNORED.items() for name in names.split()]

# Names of a moving average of the weights; `teacher` is that of self-distillation (DINO).
_AVERAGED = re.compile(r"(^|[._])(ema|avg|averaged?|swa|teacher)($|[._])")
# Buffers that thop's profiler adds to every module.
_COUNTERS = (".total_ops", ".total_params")
_DEEPEST = 3  # nesting of a state dict in a checkpoint


@dataclass(frozen=True)
class Selected:
    """The weights of a network in a checkpoint.

    Attributes:
        state: the tensors, under the names that they have without the prefix.
        entry: path of the state dict in the checkpoint, with dots; empty if the file is a state dict.
        prefix: prefix that was removed from the names, with its last dot.
        ignored: keys of the entry that do not have the prefix.
        found: number of the network's tensors among them.
    """

    state: StateDict
    entry: str
    prefix: str
    ignored: tuple[str, ...]
    found: int

    @property
    def label(self) -> str:
        return ".".join(part for part in (self.entry, self.prefix.rstrip(".")) if part)

    @property
    def is_average(self) -> bool:
        """True for a moving average of the weights, by its name or by the counter of torch's `AveragedModel`."""
        return _AVERAGED.search(self.label) is not None or "n_averaged" in self.ignored


def read(path: Path) -> Any:
    """Return the content of a file of torch or safetensors, on the CPU.

    Raises:
        ModelError: if the file is missing or unreadable, or contains an object that is not on the allow-list.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ModelError(f"{path} needs the package safetensors: pip install safetensors.") from error
    except Exception as error:  # torch.load raises many kinds of exceptions for foreign files
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise ModelError(
                f"The weights file {path} contains an object of {found[1]}, which is not loaded because that could run "
                "code. In the program that wrote the file, save the state dict alone: "
                "torch.save(net.state_dict(), FILE)."
            ) from error
        raise ModelError(
            f"The weights file {path} cannot be read: it is damaged, or contains something other than tensors and "
            "plain values."
        ) from error


def select(content: Any, own: Collection[str], path: Path, key: str | None = None) -> Selected:
    """Return the state dict of a network from the content of a file.

    It is the one with the most of the network's names, with or without a common prefix; among equals, a moving average
    of the weights.

    Args:
        own: names of the network's tensors.
        path: the file, for messages.
        key: entry of the file, prefix, or both (`state_dict`, `state_dict.module`); None for the choice above.

    Raises:
        ModelError: if there is no state dict of the network, or there are several equally good ones.
    """
    found = [chosen for entry, state in _state_dicts(content) for chosen in _selections(entry, state, own)]
    if not found:
        raise ModelError(f"The weights file {path} does not contain a state dict of tensors{_listing(content)}.")
    if key is not None:
        labels = ", ".join(dict.fromkeys(chosen.label or "(the file itself)" for chosen in found))
        found = [chosen for chosen in found if key in (chosen.entry, chosen.prefix.rstrip("."), chosen.label)]
        if not found:
            raise ModelError(f"weights_key={key} is not in the weights file {path}; it contains {labels}.")
    most = max(chosen.found for chosen in found)
    best = [chosen for chosen in found if chosen.found == most]
    if 2 * most < len(own):  # the weights of another network; the largest, for the message that lists its names
        best = [max(best, key=lambda chosen: len(chosen.state))]
    best = [chosen for chosen in best if chosen.is_average] or best
    best = [chosen for chosen in best if not chosen.prefix] or best
    if len(best) > 1:
        labels = " and ".join(chosen.label for chosen in best)
        raise ModelError(
            f"The weights file {path} contains several networks: {labels}; choose one with model.weights_key."
        )
    chosen = best[0]
    for name, value in chosen.state.items():
        if value.is_complex() or value.layout != torch.strided or value.is_meta:
            raise ModelError(f"{name} in the weights file {path} is not an ordinary tensor of real numbers.")
    return chosen


def _state_dicts(content: Any, entry: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the dictionaries that contain tensors, with their paths."""
    if not isinstance(content, dict) or depth > _DEEPEST:
        return
    if any(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield entry, content
    for key, value in content.items():
        if isinstance(key, str):
            yield from _state_dicts(value, f"{entry}.{key}".lstrip("."), depth + 1)


def _selections(entry: str, content: Mapping[str, Any], own: Collection[str]) -> Iterator[Selected]:
    """Yield the selections with the most of the network's names: one for each prefix under which they are found."""
    tensors = {
        key.replace("_orig_mod.", ""): value  # of torch.compile, of the network or of its parts
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor) and not key.endswith(_COUNTERS)
    }
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    counts = {"": 0}
    for key in tensors:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in needed:
                prefix = "".join(f"{part}." for part in parts[:start])
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values())
    for prefix, count in counts.items():
        if count == most:
            state = OrderedDict((k.removeprefix(prefix), v) for k, v in tensors.items() if k.startswith(prefix))
            versions = getattr(content, "_metadata", None)
            if versions is not None:
                setattr(state, "_metadata", _without_prefix(versions, prefix))  # noqa: B010 (unknown to mypy)
            ignored = tuple(key for key in tensors if not key.startswith(prefix))
            yield Selected(state, entry, prefix, ignored, count)


def _without_prefix(versions: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the versions of a state dict's modules, by the modules' names without the prefix."""
    plain = {re.sub(r"(^|\.)_orig_mod(?=\.|$)", "", module).lstrip("."): value for module, value in versions.items()}
    dotted = {f"{module}." if module else "": value for module, value in plain.items()}
    return {name.removeprefix(prefix).rstrip("."): v for name, v in dotted.items() if name.startswith(prefix)}


def _listing(content: Any) -> str:
    keys = [str(key) for key in content][:8] if isinstance(content, dict) else []
    return f"; its keys are {', '.join(keys)}" if keys else ""
