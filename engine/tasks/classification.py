"""Exact accuracy: every image once, its predictions kept; several models in one pass over the images."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine import checkpoint
from engine.data.loader import EvalLoader
from engine.data.transforms import Preprocessing, normalize
from engine.distributed import ProcessGroup
from engine.errors import UserError

CANDIDATES = 5


@dataclass(frozen=True)
class Predictions:
    """What a model said of each image, in the order of the split.

    Attributes:
        labels: [N] int64, the true classes.
        ranked: [N, min(5, classes)] int64, the most probable classes, best first.
        loss: [N] float32, cross entropy in nats.
    """

    labels: np.ndarray
    ranked: np.ndarray
    loss: np.ndarray

    def hits(self, candidates: int = 1) -> np.ndarray:
        """[N] bool: whether the true class is among so many best."""
        hits: np.ndarray = (self.ranked[:, :candidates] == self.labels[:, None]).any(axis=1)
        return hits

    @property
    def top1(self) -> float:
        """Accuracy in %."""
        return 100 * float(self.hits().mean())

    @property
    def top5(self) -> float:
        """Accuracy in %."""
        return 100 * float(self.hits(CANDIDATES).mean())

    @property
    def mean_loss(self) -> float:
        return float(self.loss.astype(np.float64).mean())

    def sha256(self) -> str:
        """Digest of the arrays, whatever file holds them."""
        return checkpoint.sha256({name: torch.from_numpy(array) for name, array in vars(self).items()})

    def save(self, path: Path) -> None:
        checkpoint.atomic_write(path, lambda file: np.savez_compressed(file, **vars(self)))

    @classmethod
    def load(cls, path: Path, sha256: str) -> "Predictions":
        """Predictions as they were saved.

        Raises:
            UserError: if the file cannot be read, or its digest is not `sha256`.
        """
        try:
            with np.load(path) as arrays:
                predictions = cls(arrays["labels"], arrays["ranked"], arrays["loss"])
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"The predictions {path} cannot be read ({error}); restore the file.") from error
        if predictions.sha256() != sha256:
            raise UserError(f"The predictions {path} are not those that were recorded; restore the file.")
        return predictions


@dataclass(frozen=True)
class EvalModel:
    """A model to evaluate and the preprocessing it is evaluated with."""

    model: nn.Module
    preprocessing: Preprocessing


def evaluate(
    candidates: Sequence[EvalModel],
    loader: EvalLoader,
    precision: torch.dtype,
    group: ProcessGroup,
) -> list[Predictions]:
    """Predictions of each candidate for every image of the loader's split, on every process.

    Args:
        candidates: on the loader's device; their preprocessings are among the loader's.
        loader: this process's images.
        precision: float32, or the dtype to autocast to.
        group: the processes that share the images between them.

    Raises:
        RuntimeError: if an image came twice or not at all.
    """
    ways = loader.samples.preprocessings
    batches: list[list[Tensor]] = []  # of each: indices, labels, then ranked classes and losses by each candidate
    for candidate in candidates:
        candidate.model.eval()
    with torch.inference_mode():
        for images, truth, indices in loader:
            inputs = [normalize(cut, way) for cut, way in zip(images, ways, strict=True)]
            batch = [indices, truth]
            for candidate in candidates:
                batch += _predict(candidate.model, inputs[ways.index(candidate.preprocessing)], truth, precision)
            batches.append(batch)
    own = [[column.cpu() for column in batch] for batch in batches]
    everyones = [batch for part in group.all_gather_object(own) for batch in part]
    seen, *columns = (torch.cat(column) for column in zip(*everyones, strict=True))
    order = seen.argsort()
    if not torch.equal(seen[order], torch.arange(len(loader.samples))):
        raise RuntimeError("the evaluation did not see each image exactly once")
    labels, *said = (column[order].numpy() for column in columns)
    return [Predictions(labels, *pair) for pair in zip(said[::2], said[1::2], strict=True)]


def _predict(model: nn.Module, images: Tensor, labels: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
    with torch.autocast(images.device.type, precision, enabled=precision != torch.float32):
        logits = model(images).float()
    ranked = logits.topk(min(CANDIDATES, logits.shape[1]), dim=1).indices
    return ranked, F.cross_entropy(logits, labels, reduction="none")
