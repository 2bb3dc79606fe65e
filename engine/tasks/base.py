"""The interface between a task and the rest of the engine.

The trainer, the validator, the record and the comparison use a task only through this class (except
`comparison.transfer`, which is for classification). A task defines its loss, metrics, predictions and table; it does
not depend on optimizers, processes or run directories.
"""

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from engine.config.data import DataConfig
from engine.config.schemas import TrainConfig
from engine.data.boxes import BoxDataset
from engine.data.datasets import Dataset
from engine.data.loader import Batch, Samples
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.runs import checkpoint
from engine.runs.atomic_io import atomic_write
from engine.tasks.paired_stats import PairedDifference

# A network, possibly compiled or wrapped in DDP.
Model = Callable[..., Any]

AnyDataset = Dataset | BoxDataset


class Predictions(ABC):
    """Predictions of one model for every image of a split, in dataset order.

    Subclasses are dataclasses of numpy arrays, which are stored and from which the metrics are computed.
    """

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Return the metrics by name, accuracies and precisions in %, and `loss` if evaluation has one."""

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the arrays."""
        return [field.name for field in fields(cls)]  # type: ignore[arg-type]  # subclasses are dataclasses

    def sha256(self) -> str:
        """Return a digest of the arrays, independent of the file format."""
        return checkpoint.sha256({name: torch.from_numpy(array) for name, array in vars(self).items()})

    def save(self, path: Path) -> None:
        """Write the arrays as a compressed .npz file, atomically."""
        atomic_write(path, lambda file: np.savez_compressed(file, **vars(self)))

    @classmethod
    def load(cls, path: Path, sha256: str, advice: str = "Restore the file.") -> Self:
        """Read predictions back.

        Args:
            advice: a sentence on what to do about a damaged file.

        Raises:
            UserError: if the file cannot be read, or its digest differs from `sha256`.
        """
        try:
            with np.load(path) as arrays:
                predictions = cls(**{name: arrays[name] for name in cls.names()})
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"The predictions {path} cannot be read ({error}). {advice}") from error
        if predictions.sha256() != sha256:
            raise UserError(f"The predictions {path} do not match their recorded digest. {advice}")
        return predictions


@dataclass(frozen=True)
class Column:
    """A column of the printed table.

    Attributes:
        title: title with the unit.
        text: function that formats a row's cell; empty if there is no value. Empty columns are omitted.
        in_summary: whether the column is also in the summary for the terminal.
    """

    title: str
    text: Callable[[Mapping[str, Any]], str]
    in_summary: bool = False


class Task(ABC):
    """Base class of tasks.

    Attributes:
        name: name in configurations (`data.task`) and in table.json.
        primary_metric: the metric that selects the best checkpoint; larger is better.
        predictions: the class of this task's predictions.
        metrics: names of the metrics, without the loss.
        table_metrics: keys of `table_row`; networks are compared by the first.
        table_metric_label: label of the first, with its unit, for the figure.
        columns: columns of the printed table.
        notes: notes below the table on the comparison of networks.
        several_seeds_note: the note for rows with several seeds.
        paper_note: the note for tables with the paper's numbers.
        view_note: the note on the evaluated part of each image.
        picture_title: title of the picture from `draw`.
        eval_batch_size: batch size in evaluation; None for `runtime.eval_batch_size`.
    """

    name: ClassVar[str]
    primary_metric: ClassVar[str]
    predictions: ClassVar[type[Predictions]]
    metrics: ClassVar[Sequence[str]]
    table_metrics: ClassVar[Sequence[str]]
    table_metric_label: ClassVar[str]
    columns: ClassVar[Sequence[Column]]
    notes: ClassVar[Sequence[str]]
    several_seeds_note: ClassVar[str]
    paper_note: ClassVar[str]
    view_note: ClassVar[str]
    picture_title: ClassVar[str]
    eval_batch_size: ClassVar[int | None] = None

    @classmethod
    @abstractmethod
    def from_config(cls, config: TrainConfig) -> Self:
        """Return the task of a training run."""

    @classmethod
    @abstractmethod
    def of_data(cls, data: DataConfig) -> Self:
        """Return the task of an evaluation."""

    @abstractmethod
    def open(self, needs_training_images: bool = True) -> AnyDataset:
        """Open the data set of the configuration.

        Args:
            needs_training_images: if not, a classification data set may consist of validation images alone.

        Raises:
            UserError: if it cannot be read.
        """

    def for_training(self, data: Any) -> Self:  # noqa: ARG002
        """Return the task with what its loss needs of the training images."""
        return self

    @property
    @abstractmethod
    def training_metrics(self) -> Mapping[str, float]:
        """The names of `training_step`'s sums, with the factor from the mean over images to the unit.

        The loss is first; its parts are named `loss_...`.
        """

    @abstractmethod
    def preprocessing(self, published: Any | None) -> Preprocessing:
        """Return the preprocessing of the images in evaluation.

        Args:
            published: torchvision's preprocessing for the start weights; None for weights that are not published.
        """

    @abstractmethod
    def published_preprocessing(self, published: Any) -> Preprocessing:
        """Return the preprocessing of the images for unmodified published weights; arguments as above."""

    @abstractmethod
    def train_samples(self, split: Any, seed: int) -> Samples:
        """Return the augmented training samples of a split, by (epoch, index)."""

    @abstractmethod
    def eval_samples(self, split: Any, preprocessings: Sequence[Preprocessing]) -> Samples:
        """Return the evaluation samples of a split, by index."""

    @abstractmethod
    def inputs(self, views: Sequence[Tensor], preprocessings: Sequence[Preprocessing]) -> list[Tensor]:
        """Return a batch's images as `predict` takes them, once for each preprocessing given to `eval_samples`."""

    @abstractmethod
    def training_step(self, model: Model, batch: Batch, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar averaged over the images, and the sums over the images for `training_metrics`.

        The sums are float64 [len(training_metrics)] on the images' device; the first is the loss.
        """

    @abstractmethod
    def predict(self, model: Model, images: Tensor, targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the `predictions` arrays for a batch, one entry per image.

        Args:
            model: model in evaluation mode.
            images: images from `inputs`.
            targets: targets of the batch.
        """

    @abstractmethod
    def draw(
        self,
        model: nn.Module,
        gates: Mapping[str, nn.Module],
        data: Any,
        preprocessing: Preprocessing,
        count: int,
        title: str,
    ) -> np.ndarray | None:
        """Draw `count` evenly spaced validation images with the model's outputs, below a title.

        Returns:
            uint8 [height, width, 3]; None if a required package is not installed.
        """

    def shown(self, metrics: Iterable[str]) -> list[str]:
        """Return the names of the metrics that are worth a curve."""
        return list(metrics)

    @abstractmethod
    def describe(self, metrics: Mapping[str, float]) -> str:
        """Format training or validation metrics without the loss, e.g. `top-1 76.13%, top-5 92.86%`."""

    @classmethod
    @abstractmethod
    def table_row(cls, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Return the table's metrics under the keys `table_metrics`; None for missing values."""

    @classmethod
    @abstractmethod
    def paired(cls, predictions: Sequence[Any], baseline: Sequence[Any]) -> PairedDifference:
        """Compare a network with its baseline, given the predictions of each seed for the same images.

        The comparison uses the first of `table_metrics`.
        """

    @abstractmethod
    def published(self, entry: Any, data: DataConfig, preprocessing: Preprocessing) -> float | None:
        """Return the published value of the first of `table_metrics`; None if none is comparable.

        Args:
            entry: torchvision's entry for the weights.
            data: the data set of the evaluation.
            preprocessing: preprocessing of the images.
        """
