"""The interface between a task and the rest of the engine.

The trainer, the validator, the record and the comparison use a task only through this class (except
`comparison.transfer`, which is for classification). A task defines its loss, metrics and predictions; it does not
depend on optimizers, processes or run directories. Texts, tables and pictures belong to `training` and `comparison`.
"""

import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from engine.config.schemas import TrainConfig
from engine.data.boxes import BoxDataset
from engine.data.datasets import Dataset
from engine.data.loader import Batch, Samples
from engine.data.transforms import Preprocessing
from engine.errors import UserError
from engine.runs import checkpoint
from engine.runs.atomic_io import atomic_write
from engine.tasks.crossed_model import Outcome

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

    @abstractmethod
    def outcome(self, groups: np.ndarray | None = None) -> Outcome:
        """Return the metric by which networks are compared, with its error over images.

        Args:
            groups: [N] int64, 0 to G - 1: images of the same group are not independent. None: all images are.
        """

    @abstractmethod
    def per_class(self) -> dict[int, tuple[int, float]]:
        """Return, for each class with images or objects, their number and the class's metric in %."""

    def exact_test(self, baseline: Self) -> dict[str, Any]:  # noqa: ARG002
        """Return the values of an exact test of two networks with one seed, if the metric has one."""
        return {}

    def only_class(self) -> int | None:
        """Return the class that is predicted for every image, if the images are of several classes; otherwise None."""
        return None

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


class Task(ABC):
    """Base class of tasks: the loss, the predictions and their metrics.

    Subclasses are dataclasses whose first field is the data configuration. The rest have defaults, so that `cls(data)`
    is the task of an evaluation.

    Attributes:
        predictions: the class of this task's predictions.
        metrics: names of the metrics, without the loss. The first selects the best checkpoint; larger is better.
        eval_batch_size: batch size in evaluation; None for `runtime.eval_batch_size`.
    """

    predictions: ClassVar[type[Predictions]]
    metrics: ClassVar[Sequence[str]]
    eval_batch_size: ClassVar[int | None] = None

    @classmethod
    @abstractmethod
    def from_config(cls, config: TrainConfig) -> Self:
        """Return the task of a training run."""

    @abstractmethod
    def open(self, needs_training_images: bool = True) -> AnyDataset:
        """Open the data set of the configuration.

        Args:
            needs_training_images: if not, a classification data set may consist of validation images alone.

        Raises:
            UserError: if it cannot be read.
        """

    @property
    @abstractmethod
    def training_metrics(self) -> Mapping[str, float]:
        """The names of `training_step`'s sums, with the factor from the mean over images to the unit.

        The loss is first; its parts are named `loss_...`.
        """

    @abstractmethod
    def preprocessing(self, published: Any | None, unmodified: bool = False) -> Preprocessing:
        """Return the preprocessing of the images in evaluation.

        Args:
            published: torchvision's preprocessing for the start weights; None for weights that are not published.
            unmodified: whether the network has these weights unchanged, without training.
        """

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
