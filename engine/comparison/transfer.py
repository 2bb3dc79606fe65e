"""Comparison of networks on a data set that they were not trained on, by the logits of its classes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.comparison.entry import TableEntry
from engine.config.data import DataConfig
from engine.data.datasets import Dataset
from engine.data.evaluation_sets import logits_of
from engine.errors import UserError
from engine.tasks.classification import Classification

_IMAGENET_CLASSES = 1000  # of published weights, in the order of the sorted ids


def prepare(
    entries: Sequence[TableEntry], task: Classification, data: Dataset
) -> tuple[list[TableEntry], Classification]:
    """Return the entries without the metrics of their training data set, and the task for the one to evaluate.

    Raises:
        UserError: if the networks were trained on different data, or do not have the classes of this data set.
    """
    trained = _class_names(entries, task.data)
    if trained is None and len(data.classes) != _IMAGENET_CLASSES:
        raise UserError(
            f"Published weights do not contain class ids, so the classes of {data.name} cannot be found among their "
            f"{_IMAGENET_CLASSES:,} classes; add a run trained on ImageNet, or set data.class_list=FILE to a list of "
            "class ids."
        )
    logits = logits_of(data.classes, trained or data.classes, data.name)
    return [_elsewhere(entry, task) for entry in entries], replace(task, logits=logits)


def _elsewhere(entry: TableEntry, task: Classification) -> TableEntry:
    nothing = {"top1_error_start": None, "recorded": None, "published": None}
    preprocessing = entry.preprocessing
    if task.data.layout == "corruptions":  # because the images are already cropped
        preprocessing = replace(preprocessing, resize=preprocessing.crop)
    return replace(entry, row=entry.row | nothing, preprocessing=preprocessing)


def _class_names(entries: Sequence[TableEntry], data: DataConfig) -> list[str] | None:
    """Return the names of the networks' classes in the order of their logits; None if they are unknown."""
    runs = [entry for entry in entries if entry.record]
    for run in runs:
        for key in ("class_names", "data_fingerprint"):
            if run.record[key] != runs[0].record[key]:
                raise UserError(
                    f"{run.row['source']} and {runs[0].row['source']} were trained on different data ({key}); compare "
                    "networks that were trained on the same images."
                )
    if data.class_list is not None:
        return _listed(data.class_list)
    return list(runs[0].record["class_names"]) if runs else None


def trained_classes(data: DataConfig) -> int:
    """Return the number of outputs of networks that are evaluated without training."""
    if data.trained_on is None:
        return data.num_classes
    return _IMAGENET_CLASSES if data.class_list is None else len(_listed(data.class_list))


def _listed(file: str) -> list[str]:
    """Return the class ids in a file."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.class_list={file} cannot be read ({error}).") from error
    # The first word: Kaggle's LOC_synset_mapping.txt has descriptions after it.
    return [line.split()[0] for line in lines if line.strip()]
