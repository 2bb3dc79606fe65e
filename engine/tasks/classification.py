"""Image classification: cross-entropy, top-1 and top-5 accuracy, square crops."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.analysis import grad_cam
from engine.config.data import DataConfig
from engine.config.schemas import TrainConfig
from engine.data import transforms
from engine.data.augmentation import NO_AUGMENTATION, Augmentation
from engine.data.datasets import Dataset, Split, open_dataset
from engine.data.loader import Batch, Sample, Samples
from engine.data.mixing import partners
from engine.data.transforms import Preprocessing, normalize
from engine.processes.determinism import RngPurpose, rng
from engine.tasks import columns
from engine.tasks.base import Column, Model, Predictions, Task
from engine.tasks.paired_stats import PairedDifference, paired_difference

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

    name: ClassVar = "classification"
    primary_metric: ClassVar = "top1"
    predictions: ClassVar = ClassPredictions
    metrics: ClassVar = ("top1", "top5")
    table_metrics: ClassVar = ("top1_error", "top5_error")
    table_metric_label: ClassVar = "Top-1 error (%)"
    columns: ClassVar = (
        *columns.NETWORK,
        Column("Top-1 error at start (%)", lambda row: columns.mean(row, "top1_error_start")),
        Column("Top-1 error (%)", lambda row: columns.mean(row, "top1_error"), in_summary=True),
        Column("Top-5 error (%)", lambda row: columns.mean(row, "top5_error")),
        Column("Difference in top-1 error (points) [95% interval]", columns.difference, in_summary=True),
        columns.ACROSS_SEEDS,
        Column("Won : lost (images)", lambda row: "" if row["baseline"] is None else f"{row['won']} : {row['lost']}"),
        Column("p", columns.p_value),
        Column("Images/s", lambda row: columns.number(row["images_per_second"], ".0f")),
        Column("Paper: top-1 error (%)", lambda row: columns.number(row["paper_top1_error"], ".2f")),
        Column("Paper: top-5 error (%)", lambda row: columns.number(row["paper_top5_error"], ".2f")),
        Column("Start weights: published top-1 error (%)", columns.published),
    )
    notes: ClassVar = (
        "The difference is relative to the same backbone without attention, with the same recipe, seed and images; "
        "negative is better. Its interval is from a paired bootstrap over the validation images (10,000 resamples, "
        "percentiles): it reflects the sampling of images, not the variation between training runs. The difference "
        "is not distinguishable from 0 unless the interval excludes 0 and the test is significant (p < 0.05). With "
        "one seed, it holds for these two training runs only.",
        "An image is won if the network with attention classifies it correctly and its baseline does not, and lost in "
        "the opposite case. p is from the exact two-sided sign test on these images; with one seed, this is McNemar's "
        "test.",
    )
    several_seeds_note: ClassVar = (
        "With several seeds, values are mean ± standard deviation over seeds. The bootstrap resamples the outcomes of "
        "an image for all seeds together, and an image is won if attention is correct with more seeds than the "
        "baseline. A difference is supported only if its 95% interval over images and seeds also excludes 0."
    )
    paper_note: ClassVar = (
        "The paper's values are from Tables 4 and 5 of arXiv 1807.06521v2. Its authors trained ResNets from "
        "scratch for 90 epochs; compare these values only with rows of that recipe."
    )
    view_note: ClassVar = "once, with one crop"
    picture_title: ClassVar = "Grad-CAM and spatial gates"

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

    @classmethod
    def of_data(cls, data: DataConfig) -> "Classification":
        return cls(data)

    def open(self, needs_training_images: bool = True) -> Dataset:
        return open_dataset(self.data, needs_training_images)

    def for_training(self, data: Dataset) -> Self:
        counted = replace(self.data, total_classes=self.data.total_classes or len(data.classes))
        if not self.balances:
            return replace(self, data=counted)
        counts = np.bincount(data.train.labels, minlength=len(data.classes))
        return replace(self, data=counted, class_weights=tuple((len(data.train) / (len(counts) * counts)).tolist()))

    @property
    def training_metrics(self) -> dict[str, float]:
        return {"loss": 1.0, "top1": 100.0, "top5": 100.0}

    def preprocessing(self, published: Any | None) -> Preprocessing:
        return Preprocessing.choose(self.data, published, self.resize_ratio)

    def published_preprocessing(self, published: Any) -> Preprocessing:
        # Networks for image sizes other than ImageNet's usual one are evaluated at their own size.
        is_default = self.data.resize is None and self.data.image_size == 224
        return Preprocessing.published(published) if is_default else self.preprocessing(published)

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

    def draw(
        self,
        model: nn.Module,
        gates: Mapping[str, nn.Module],
        data: Dataset,
        preprocessing: Preprocessing,
        count: int,
        title: str,
    ) -> np.ndarray | None:
        if not grad_cam.can_draw():
            return None
        samples = EvalSamples(data.val, (preprocessing,))
        chosen = [samples[int(index)] for index in np.linspace(0, len(samples) - 1, count)]
        images = torch.stack([views[0] for views, _, _ in chosen])
        labels = [label for _, (label,), _ in chosen]
        device = next(model.parameters()).device
        maps = grad_cam.compute_maps(
            model, gates, images.to(device), torch.tensor(labels, device=device), preprocessing
        )
        return grad_cam.pixels(grad_cam.draw(images, labels, data.classes, {"prediction": maps}, True, title))

    def shown(self, metrics: Iterable[str]) -> list[str]:
        # With 5 classes or fewer, top-5 accuracy is always 100%.
        is_trivial = 0 < self.data.num_classes <= TOP_K
        return [name for name in metrics if not (is_trivial and name.endswith("top5"))]

    def describe(self, metrics: Mapping[str, float]) -> str:
        names = {"top1": "top-1", "top5": "top-5"}
        return ", ".join(f"{names[name]} {metrics[name]:.2f}%" for name in self.shown(names))

    @classmethod
    def table_row(cls, metrics: Mapping[str, float]) -> dict[str, float]:
        return {"top1_error": 100 - metrics["top1"], "top5_error": 100 - metrics["top5"]}

    @classmethod
    def paired(cls, predictions: Sequence[ClassPredictions], baseline: Sequence[ClassPredictions]) -> PairedDifference:
        return paired_difference(*(np.stack([p.hits() for p in seeds]) for seeds in (predictions, baseline)))

    def published(self, entry: Any, data: DataConfig, preprocessing: Preprocessing) -> float | None:
        if not data.is_imagenet_1k or preprocessing != Preprocessing.published(entry.transforms()):
            return None
        return 100 - float(entry.meta["_metrics"]["ImageNet-1K"]["acc@1"])


@dataclass(frozen=True)
class MixedClassification(Classification):
    """Classification trained on mixed images.

    Its training accuracy is measured on mixtures, against the label of the larger share.
    """

    training_metrics: ClassVar = {"loss": 1.0, "mixed_top1": 100.0, "mixed_top5": 100.0}

    def describe(self, metrics: Mapping[str, float]) -> str:
        if "mixed_top1" not in metrics:
            return super().describe(metrics)
        own = {"top1": metrics["mixed_top1"], "top5": metrics["mixed_top5"]}
        return f"on mixed images, against the label of the larger share: {super().describe(own)}"
