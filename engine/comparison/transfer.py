"""Comparison of networks on a data set that they were not trained on, by the logits of its classes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.comparison.entry import TableEntry
from engine.config.data import DataConfig
from engine.data.datasets import Dataset
from engine.data.evaluation_sets import logits_of
from engine.errors import UserError
from engine.tasks.base import AnyDataset
from engine.tasks.classification import Classification

_IMAGENET_CLASSES = 1000  # outputs of networks that are evaluated without training on a set for ImageNet


def prepare(
    entries: Sequence[TableEntry], task: Classification, data: Dataset, published: Sequence[str]
) -> tuple[list[TableEntry], Classification]:
    """Return the entries without the metrics of their training data set, and the task for the one to evaluate.

    Args:
        published: names of the classes of published weights, in the order of their outputs.

    Raises:
        UserError: if the networks were trained on different data, or do not have the classes of this data set.
    """
    trained = _class_names(entries, task.data) or published
    if not all(entry.record for entry in entries) and logits_of(trained, published, "the runs") is not None:
        raise UserError("The runs and the published weights order their classes differently; compare them separately.")
    logits = logits_of(data.classes, trained, data.name)
    return [_elsewhere(entry, task) for entry in entries], replace(task, logits=logits)


def require_outputs_in_order(data: AnyDataset, published: Sequence[str]) -> None:
    """Require that published weights have the classes of a data set, in its order.

    Raises:
        UserError: if they have other classes, although as many.
    """
    if len(data.classes) == len(published) and logits_of(data.classes, published, data.name) is not None:
        raise UserError(
            f"The classes of {data.name} ({data.classes[0]}, {data.classes[1]}, ...) are not in the order of those of "
            f"published weights ({published[0]}, {published[1]}, ...); name the folders by WordNet id."
        )


def _elsewhere(entry: TableEntry, task: Classification) -> TableEntry:
    nothing = {"top1_error_start": None, "recorded": None, "published": None}
    preprocessing = entry.preprocessing
    if task.data.layout == "corruptions":  # because the images are already cropped
        preprocessing = replace(preprocessing, resize=preprocessing.crop)
    return replace(entry, row=entry.row | nothing, preprocessing=preprocessing)


def _class_names(entries: Sequence[TableEntry], data: DataConfig) -> list[str] | None:
    """Return the names of the classes of runs in the order of their logits, or those of the list; None without any."""
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


def trained_classes(data: DataConfig, data_classes: int) -> int:
    """Return the number of outputs of networks that are evaluated without training.

    Args:
        data_classes: number of classes of the data set.
    """
    if data.trained_on is None:
        return data_classes
    return _IMAGENET_CLASSES if data.class_list is None else len(_listed(data.class_list))


def _listed(file: str) -> list[str]:
    """Return the class ids in a file."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.class_list={file} cannot be read ({error}).") from error
    # The first word: Kaggle's LOC_synset_mapping.txt has descriptions after it.
    return [line.split()[0] for line in lines if line.strip()]
