"""The classes of a head: by name, a kept head is put into the order of a data set's classes, or initialized anew.

A head that has the right number of outputs would otherwise fit any data set, with each class at another one's output.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from models import checkpoint_files
from models.pretrained import published_entry
from models.registry import BackboneSpec

log = logging.getLogger(__name__)

KEY = "class_names"  # of a weights file, and of a run's record


@lru_cache
def imagenet_classes() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet-1K's classes in sorted order, which is that of published weights."""
    return tuple(Path(__file__).with_name("imagenet_classes.txt").read_text().split())


def trained_classes(backbone: BackboneSpec, weights: str) -> list[str] | None:
    """Return the names of the classes that weights were trained on, in the order of their outputs; None if unknown.

    Those of published weights are ImageNet-1K's, unless the head has another number of outputs.
    """
    is_published = published_entry(backbone.name, weights) is not None or not Path(weights).is_file()
    return list(imagenet_classes()) if is_published else named_in_file(Path(weights))


def named_in_file(file: Path) -> list[str] | None:
    """Return the class names in a weights file, or in the record of the run that it is a checkpoint of."""
    names: Any = None
    try:
        if file.suffix != ".safetensors":
            content = checkpoint_files.read(file)
            names = content.get(KEY) if isinstance(content, dict) else None
        if names is None and file.parent.name == "checkpoint":
            names = json.loads((file.parent.parent / "record.json").read_text(encoding="utf-8"))[KEY]
    except Exception:  # whatever is wrong with the file is reported when its weights are read
        return None
    return [str(name) for name in names] if isinstance(names, list | tuple) else None


def arrange(
    state: dict[str, Tensor],
    own: Mapping[str, Tensor],
    heads: Sequence[str],
    trained: Sequence[str] | None,
    classes: Sequence[str],
    name: str,
) -> None:
    """Put the heads of a state dict, in place, into the order of a data set's classes.

    Heads of other classes are removed. Heads for another number of classes are left as they are. `models.weights`
    initializes both anew.

    Args:
        state: state dict of the weights.
        own: state dict of the network.
        heads: names of the layers with an output for each class.
        trained: names of the weights' classes; None if they are unknown.
        classes: names of the data set's classes.
        name: name of the weights, for messages.
    """
    keys = [f"{head}.{part}" for head in heads for part in ("weight", "bias") if f"{head}.{part}" in state]
    if not keys or any(key not in own or state[key].shape != own[key].shape for key in keys):
        return
    if trained is None or len(trained) != len(classes):
        log.warning(
            "The head of %s is kept, but its %d classes are not known by name; they must be %s, in this order. Save "
            "the list of names in the file as %s, beside the state dict, to have them matched by name.",
            *(name, len(classes), _some(classes), KEY),
        )
        return
    order = _order(trained, classes)
    if order is None:
        log.warning(
            "The head is initialized anew: the classes of %s (%s) are not those of the data set (%s).",
            *(name, _some(trained), _some(classes)),
        )
        for key in keys:  # `models.weights` initializes a missing head
            del state[key]
    elif order != list(range(len(order))):
        log.info("The outputs of the head are put into the order of the data set's classes, by name.")
        state.update({key: state[key][order] for key in keys})


def _order(trained: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Return the output of each class; None if the weights do not have the same classes.

    Classes that are numbers are positions among the sorted names, as in copies of ImageNet with numbered folders.
    """
    if set(classes) == set(trained):
        return [trained.index(one) for one in classes]
    numbers = [int(one) if one.isdecimal() else -1 for one in classes]  # perhaps with leading zeros
    if sorted(numbers) != list(range(len(trained))):
        return None
    ranked = sorted(trained, key=int) if all(one.isdecimal() for one in trained) else sorted(trained)
    return [trained.index(ranked[number]) for number in numbers]


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])}, ... {names[-1]}"
