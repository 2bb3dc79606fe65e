"""The metric of each class, and the confusion matrix of a classifier, from the stored predictions."""

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.comparison.columns import attention, network
from engine.comparison.pictures import rendered
from engine.comparison.view import VIEWS
from engine.tasks.base import Predictions
from engine.tasks.classification import ClassPredictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Table = dict[str, Any]

_LABELED = 30  # most classes whose names are written beside a confusion matrix
_PANELS, _COLUMNS = 6, 3  # most matrices in a picture, and in a line of it
_NUMBERED = 5  # most classes for which the shares are written into the matrix


def files(table: Table, predictions: Sequence[Predictions | None]) -> dict[str, bytes]:
    """Return the contents of classes.csv and, for classification, confusion.csv and confusion.png.

    A row of the table whose predictions are incomplete is left out. There is no picture without matplotlib.

    Args:
        predictions: predictions of each run; None if missing.
    """
    rows = [(row, _own(row, predictions)) for row in table["rows"]]
    complete = [(row, own) for row, own in rows if own is not None]
    contents = {"classes.csv": _per_class(complete, table).encode()}
    matrices = [
        (row, confusion([one for one in own if isinstance(one, ClassPredictions)], table["data"]["classes"]))
        for row, own in complete
        if isinstance(own[0], ClassPredictions)
    ]
    if matrices:
        contents["confusion.csv"] = _confusions(matrices, table["data"]["class_names"]).encode()
        shown = sorted(matrices, key=lambda one: one[0]["attention"] != "none")[:_PANELS]  # baselines first
        size = 3.2 * min(_COLUMNS, len(shown)), 0.3 + 3.3 * math.ceil(len(shown) / _COLUMNS)
        pictures = rendered(size, lambda figure: _draw(figure, shown, len(matrices), table), forms=("png",))
        contents |= {f"confusion.{form}": content for form, content in pictures.items()}
    return contents


def confusion(predictions: Sequence[ClassPredictions], classes: int) -> np.ndarray:
    """Return the number of images by true and predicted class, [classes, classes], summed over runs."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    for one in predictions:
        np.add.at(matrix, (one.labels, one.ranked[:, 0]), 1)
    return matrix


def _own(row: Row, predictions: Sequence[Predictions | None]) -> list[Predictions] | None:
    own = [predictions[i] for i in row["runs"]]
    found = [one for one in own if one is not None]
    return found if len(found) == len(own) else None


def _per_class(rows: Sequence[tuple[Row, list[Predictions]]], table: Table) -> str:
    """Return one line per network and class: the mean of the metric over seeds."""
    names, key = table["data"]["class_names"], VIEWS[table["task"]].keys[0]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "attention", "class", "count", key])
    for row, own in rows:
        found = [one.per_class() for one in own]
        for label, (count, _) in found[0].items():
            value = np.mean([one[label][1] for one in found])
            writer.writerow([row["model"], attention(row), names[label], count, f"{value:.4f}"])
    return text.getvalue()


def _confusions(matrices: Sequence[tuple[Row, np.ndarray]], names: Sequence[str]) -> str:
    """Return one line per network, true and predicted class with at least one image, summed over seeds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "attention", "true", "predicted", "images"])
    for row, matrix in matrices:
        for true, predicted in zip(*np.nonzero(matrix), strict=True):
            images = matrix[true, predicted]
            writer.writerow([row["model"], attention(row), names[true], names[predicted], images])
    return text.getvalue()


def _draw(figure: "Figure", matrices: Sequence[tuple[Row, np.ndarray]], count: int, table: Table) -> None:
    """Draw matrices, the first of a number of them."""
    columns = min(_COLUMNS, len(matrices))
    panels = figure.subplots(math.ceil(len(matrices) / columns), columns, squeeze=False).flat
    for number, axes in enumerate(panels):
        if number < len(matrices):
            _draw_matrix(axes, *matrices[number], table["data"]["class_names"])
        else:
            axes.set_axis_off()
    left_out = count - len(matrices)
    rest = f"; {left_out} more in confusion.csv" if left_out else ""
    figure.suptitle(f"{table['data']['name']}: share of a class's images (%), over all seeds{rest}", fontsize=9)


def _draw_matrix(axes: "Axes", row: Row, matrix: np.ndarray, names: Sequence[str]) -> None:
    shares = 100 * matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    axes.imshow(shares, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
    axes.set_title(network(row), fontsize=8)
    axes.set_xlabel("predicted", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    if len(names) > _LABELED:
        axes.tick_params(labelsize=6)
        return
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_yticks(range(len(names)), names, fontsize=6)
    if len(names) <= _NUMBERED:
        for true, predicted in np.ndindex(*shares.shape):
            color = "white" if shares[true, predicted] > 60 else "black"
            text = f"{shares[true, predicted]:.0f}"
            axes.text(predicted, true, text, ha="center", va="center", fontsize=7, color=color)
