"""Image classification: cross-entropy, top-1 and top-5 accuracy, square crops."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.config.data import DataConfig
from engine.config.schemas import TrainConfig
from engine.data import transforms
from engine.data.augmentation import NO_AUGMENTATION, Augmentation
from engine.data.datasets import Dataset, Split, open_dataset
from engine.data.loader import Batch, Sample, Samples
from engine.data.mixing import partners
from engine.data.transforms import Preprocessing, normalize
from engine.processes.determinism import RngPurpose, rng
from engine.tasks.base import Model, Predictions, Task
from engine.tasks.crossed_model import Outcome
from engine.tasks.paired_stats import sign_test

TOP_K = 5

_IMAGES_AT_ONCE = 8  # decoded images that a worker keeps in memory

# Weights of auxiliary classifiers' losses, by torchvision's type of training outputs: section 5 of Szegedy et al., CVPR
# 2015, and PyTorch's tutorial on fine-tuning Inception v3.
AUXILIARY_WEIGHTS = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}


@dataclass(frozen=True)
class ClassPredictions(Predictions):
    """Predicted classes for every image, in dataset order.

    Attributes:
        labels: [N] int64, the true classes.
        ranked: [N, min(5, classes)] int64, the most probable classes, best first.
        loss: [N] float32, cross-entropy in nats.
    """

    labels: np.ndarray
    ranked: np.ndarray
    loss: np.ndarray

    def hits(self, k: int = 1) -> np.ndarray:
        """Return [N] bool, True if the true class is among the k most probable ones."""
        hits: np.ndarray = (self.ranked[:, :k] == self.labels[:, None]).any(axis=1)
        return hits

    def metrics(self) -> dict[str, float]:
        return {
            "loss": float(self.loss.astype(np.float64).mean()),
            "top1": 100 * float(self.hits().mean()),
            "top5": 100 * float(self.hits(TOP_K).mean()),
        }

    def outcome(self, groups: np.ndarray | None = None) -> Outcome:
        """Return the top-1 error in %."""
        errors = 100.0 * ~self.hits()
        deviations = errors - errors.mean()
        if groups is not None:
            deviations = np.bincount(groups, deviations)
        units = len(deviations)
        scale = math.sqrt(units / max(1, units - 1)) / len(errors)
        return Outcome(float(errors.mean()), scale * deviations, units)

    def per_class(self) -> dict[int, tuple[int, float]]:
        """Return the number of images and the top-1 error of each class."""
        missed = np.bincount(self.labels, ~self.hits())
        return {
            label: (int(count), 100 * float(missed[label] / count))
            for label, count in enumerate(np.bincount(self.labels))
            if count
        }

    def only_class(self) -> int | None:
        first = self.ranked[:, 0]
        is_only = len(np.unique(self.labels)) > 1 and (first == first[0]).all()
        return int(first[0]) if is_only else None

    def exact_test(self, baseline: Self) -> dict[str, Any]:
        """Return McNemar's exact test.

        An image is won if this network classifies it correctly and its baseline does not, and lost in the opposite
        case.
        """
        ours, theirs = self.hits(), baseline.hits()
        won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        return {"won": won, "lost": lost, "mcnemar_p": sign_test(won, lost)}


@dataclass(frozen=True)
class TrainSamples:
    """Augmented square crops of a split's images, by (epoch, index)."""

    split: Split
    seed: int
    size: int
    crop_scale: float
    augmentation: Augmentation = NO_AUGMENTATION

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(self.size, self.size)]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        """Return several samples. The DataLoader calls this for a batch."""
        parts = [keys[start : start + _IMAGES_AT_ONCE] for start in range(0, len(keys), _IMAGES_AT_ONCE)]
        return [sample for part in parts for sample in self._part(part)]

    def _part(self, keys: Sequence[tuple[int, int]]) -> list[Sample]:
        """Run each step for all images before the next step, so that its code stays in the processor's cache."""
        randoms = [rng(self.seed, RngPurpose.SAMPLE, epoch, index) for epoch, index in keys]
        decoded = [self.split.image(index) for _, index in keys]
        crops = transforms.augment(decoded, self.size, self.crop_scale, randoms)
        images = [self.augmentation(crop, random) for crop, random in zip(crops, randoms, strict=True)]
        indices = [index for _, index in keys]
        return [([image], (int(self.split.labels[i]),), i) for image, i in zip(images, indices, strict=True)]


@dataclass(frozen=True)
class EvalSamples:
    """Center crops of a split's images, by index. Each image is decoded once and has one view per preprocessing."""

    split: Split
    preprocessings: tuple[Preprocessing, ...]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(preprocessing.crop, preprocessing.crop) for preprocessing in self.preprocessings]

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        image = self.split.image(index)
        views = [preprocessing.apply(image) for preprocessing in self.preprocessings]
        return views, (int(self.split.labels[index]),), index


@dataclass(frozen=True)
class Classification(Task):
    """Image classification with one class per image.

    Attributes:
        data: the data configuration, which defines the crops.
        label_smoothing: label smoothing of the training loss.
        memory_format: memory format of the images in training.
        augmentation: augmentation of a training crop after its flip.
        train_size_ratio: side of the training crops divided by that of the evaluation crops.
        resize_ratio: shorter side divided by crop in evaluation, if neither data nor weights define it.
        balances: whether the training loss weights the classes inversely to their numbers of images.
        class_weights: these weights, once the training images are known; None for equal weights.
        logits: position of each class of the data among the network's classes; None if they are the same.
    """

    data: DataConfig
    label_smoothing: float = 0.0
    memory_format: torch.memory_format = torch.channels_last
    augmentation: Augmentation = NO_AUGMENTATION
    train_size_ratio: float = 1.0
    resize_ratio: float = 256 / 224
    logits: tuple[int, ...] | None = None
    balances: bool = False
    class_weights: tuple[float, ...] | None = None

    predictions: ClassVar = ClassPredictions
    metrics: ClassVar = ("top1", "top5")

    @classmethod
    def from_config(cls, config: TrainConfig) -> "Classification":
        """Return the task of a training run."""
        recipe = config.recipe
        return (MixedClassification if recipe.mixes else cls)(
            config.data,
            recipe.label_smoothing,
            torch.channels_last if config.runtime.channels_last else torch.contiguous_format,
            Augmentation(recipe.augment, recipe.erase),
            recipe.train_size_ratio,
            recipe.resize_ratio,
            balances=recipe.class_weights == "balanced",
        )

    def open(self, needs_training_images: bool = True) -> Dataset:
        return open_dataset(self.data, needs_training_images)

    def for_training(self, data: Dataset) -> Self:
        """Return the task with the number of classes and the class weights of a data set."""
        counted = replace(self.data, total_classes=self.data.total_classes or len(data.classes))
        if not self.balances:
            return replace(self, data=counted)
        counts = np.bincount(data.train.labels, minlength=len(data.classes))
        return replace(self, data=counted, class_weights=tuple((len(data.train) / (len(counts) * counts)).tolist()))

    @property
    def training_metrics(self) -> dict[str, float]:
        return {"loss": 1.0, "top1": 100.0, "top5": 100.0}

    def preprocessing(self, published: Any | None, unmodified: bool = False) -> Preprocessing:
        # Networks for image sizes other than ImageNet's usual one are evaluated at their own size.
        if unmodified and published is not None and self.data.resize is None and self.data.image_size == 224:
            return Preprocessing.published(published)
        return Preprocessing.choose(self.data, published, self.resize_ratio)

    def train_samples(self, split: Split, seed: int) -> Samples:
        size = round(self.data.image_size * self.train_size_ratio)
        return TrainSamples(split, seed, size, self.data.crop_scale, self.augmentation)

    def eval_samples(self, split: Split, preprocessings: Sequence[Preprocessing]) -> Samples:
        return EvalSamples(split, tuple(preprocessings))

    def inputs(self, views: Sequence[Tensor], preprocessings: Sequence[Preprocessing]) -> list[Tensor]:
        return [normalize(view, one) for view, one in zip(views, preprocessings, strict=True)]

    def training_step(self, model: Model, batch: Batch, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
        (images,), (labels,) = batch.views, batch.targets
        images = normalize(images, preprocessing, self.memory_format)
        targets = [(1.0, labels)]
        if batch.mixing:
            images = batch.mixing.images(images)
            targets = [(batch.mixing.share, labels), (1 - batch.mixing.share, partners(labels))]
        outputs = model(images)
        logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        logits = logits.float()
        loss = self._loss(logits, targets)
        for other in auxiliary:
            loss = loss + AUXILIARY_WEIGHTS[type(outputs).__name__] * self._loss(other.float(), targets)
        _, dominant = max(targets, key=lambda target: target[0])
        hits = logits.detach().topk(min(TOP_K, logits.shape[1]), dim=1).indices == dominant[:, None]
        sums = torch.stack([loss.detach() * len(labels), hits[:, 0].sum(), hits.sum()]).double()
        return loss, sums

    def _loss(self, logits: Tensor, targets: Sequence[tuple[float, Tensor]]) -> Tensor:
        """Return the cross-entropy against labels, weighted by their shares."""
        (share, labels), *others = targets
        if self.class_weights is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        else:
            # Each image counts with its class's weight. torch's `weight` would divide by the sum over a micro-batch, so
            # that the loss would depend on how a batch is split.
            each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
            loss = (logits.new_tensor(self.class_weights)[labels] * each).mean()
        if not others:
            return loss
        return share * loss + sum(part * self._loss(logits, [(1.0, label)]) for part, label in others)

    def predict(self, model: Model, images: Tensor, targets: Sequence[Tensor]) -> dict[str, Tensor]:
        (labels,) = targets
        logits = model(images).float()
        if self.logits is not None:
            logits = logits[:, self.logits]
        ranked = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices
        return {"labels": labels, "ranked": ranked, "loss": F.cross_entropy(logits, labels, reduction="none")}


@dataclass(frozen=True)
class MixedClassification(Classification):
    """Classification trained on mixed images.

    Its training accuracy is measured on mixtures, against the label of the larger share.
    """

    training_metrics: ClassVar = {"loss": 1.0, "mixed_top1": 100.0, "mixed_top5": 100.0}
