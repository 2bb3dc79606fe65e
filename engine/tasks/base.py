"""The seam between a task and everything around it.

The trainer, the validator, the record and the comparison know a task by this class alone. A task knows its loss, its
metrics, its predictions and its table; it knows nothing about optimizers, processes or run directories.
"""

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from engine import checkpoint
from engine.atomic_io import atomic_write
from engine.config import TrainConfig
from engine.data.boxes import BoxDataset
from engine.data.datasets import Dataset
from engine.data.loader import Batch, Samples
from engine.data.transforms import Preprocessing
from engine.data_config import DataConfig
from engine.errors import UserError
from engine.tasks.paired_stats import PairedDifference

# A network, compiled or parallel perhaps.
Model = Callable[..., Any]

AnyDataset = Dataset | BoxDataset


class Predictions(ABC):
    """Predictions of one model for every image of a split, in dataset order.

    Subclasses are dataclasses whose fields are numpy arrays: what is stored, and what the metrics are computed from.
    """

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Return the metrics by name, accuracies and precisions in %; `loss` among them if evaluation has one."""

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
    def load(cls, path: Path, sha256: str) -> Self:
        """Read predictions back.

        Raises:
            UserError: if the file cannot be read, or its digest is not `sha256`.
        """
        try:
            with np.load(path) as arrays:
                predictions = cls(**{name: arrays[name] for name in cls.names()})
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"The predictions {path} cannot be read ({error}); restore the file.") from error
        if predictions.sha256() != sha256:
            raise UserError(f"The predictions {path} do not match their recorded digest; restore the file.")
        return predictions


@dataclass(frozen=True)
class Column:
    """A column of the printed table.

    Attributes:
        title: with the unit.
        text: of a row of the table; empty where there is no value. A column without any text is left out.
    """

    title: str
    text: Callable[[Mapping[str, Any]], str]


class Task(ABC):
    """What is learned.

    Attributes:
        name: in configurations, records and tables.
        primary_metric: the metric that selects the best checkpoint; larger is better.
        predictions: the class of this task's predictions.
        metrics: of the predictions, without the loss.
        table_metrics: keys of `table_row`; networks are compared by the first.
        table_metric_label: of the first, with its unit, for the figure.
        columns: of the printed table.
        notes: below the table: how networks are compared.
        several_seeds_note: likewise, where a row has several seeds.
        paper_note: likewise, where the paper's numbers are in the table.
        view_note: how much of each image is evaluated.
        picture_title: of what `draw` returns.
        eval_batch_size: images at a time in evaluation; None for `runtime.eval_batch_size`.
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
    def open(self) -> AnyDataset:
        """Open the data set of the configuration.

        Raises:
            UserError: if it cannot be read.
        """

    @property
    @abstractmethod
    def training_metrics(self) -> Mapping[str, float]:
        """The name of each sum that `training_step` returns, with the factor from its mean over the images to its unit.

        The loss is the first; parts of it are named `loss_...`.
        """

    @abstractmethod
    def preprocessing(self, published: Any | None) -> Preprocessing:
        """Return the preprocessing of the images in evaluation.

        Args:
            published: torchvision's preprocessing of the start weights; None for weights that are not published.
        """

    @abstractmethod
    def published_preprocessing(self, published: Any) -> Preprocessing:
        """Return the preprocessing of the images for published weights as they are; arguments as above."""

    @abstractmethod
    def train_samples(self, split: Any, seed: int) -> Samples:
        """Return the augmented training samples of a split, by (epoch, index)."""

    @abstractmethod
    def eval_samples(self, split: Any, preprocessings: Sequence[Preprocessing]) -> Samples:
        """Return the evaluation samples of a split, by index."""

    @abstractmethod
    def inputs(self, views: Sequence[Tensor], preprocessings: Sequence[Preprocessing]) -> list[Tensor]:
        """Return the images of a batch as `predict` takes them, for each of the preprocessings of `eval_samples`."""

    @abstractmethod
    def training_step(self, model: Model, batch: Batch, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar averaged over the images, and the sums over the images behind `training_metrics`.

        The sums are float64 [len(training_metrics)] on the images' device; the first is the loss.
        """

    @abstractmethod
    def predict(self, model: Model, images: Tensor, targets: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the arrays of `predictions` for a batch, one entry per image.

        Args:
            model: in evaluation mode.
            images: as `inputs` returns them.
            targets: of the batch.
        """

    @abstractmethod
    def draw(
        self, model: nn.Module, gates: Mapping[str, nn.Module], data: Any, preprocessing: Preprocessing, count: int
    ) -> np.ndarray | None:
        """Draw `count` validation images, evenly spaced, with what the model makes of them.

        Returns:
            uint8 [height, width, 3]; None where a package that it needs is not installed.
        """

    @abstractmethod
    def describe(self, metrics: Mapping[str, float]) -> str:
        """Return the metrics, of training or validation, without the loss: `top-1 76.13%, top-5 92.86%`."""

    @classmethod
    @abstractmethod
    def table_row(cls, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Return the metrics as the table gives them, under the keys `table_metrics`; None for one without a value."""

    @classmethod
    @abstractmethod
    def paired(cls, predictions: Sequence[Any], baseline: Sequence[Any]) -> PairedDifference:
        """Compare a network with its baseline: predictions of each seed, for the same images.

        The difference is that of the first of `table_metrics`.
        """

    @abstractmethod
    def published(self, entry: Any, data: DataConfig, preprocessing: Preprocessing) -> float | None:
        """Return the first of `table_metrics` as published for weights, None where none is comparable.

        Args:
            entry: torchvision's entry of the weights.
            data: the data set that they are evaluated on.
            preprocessing: of the images.
        """
