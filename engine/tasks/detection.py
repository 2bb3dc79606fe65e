"""Object detection with torchvision's losses, and average precision by COCO's rule and the VOC devkit's."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from engine.config.data import DataConfig
from engine.config.detector import DetectorConfig
from engine.config.schemas import TrainConfig
from engine.data import box_transforms
from engine.data.box_datasets import open_boxes
from engine.data.box_samples import PADDING, BoxEvalSamples, BoxTrainSamples, EvalTargets, TrainTargets, images_of
from engine.data.boxes import BoxDataset, BoxSplit
from engine.data.loader import Batch, Samples
from engine.data.transforms import Preprocessing
from engine.tasks import box_predictions
from engine.tasks.base import Model, Task
from engine.tasks.box_predictions import BoxPredictions, VocPredictions

# torchvision's loss names for each architecture.
LOSSES = {
    "faster_rcnn": ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"),
    "ssd": ("classification", "bbox_regression"),
    "ssdlite": ("classification", "bbox_regression"),
}


@dataclass(frozen=True)
class Detection(Task):
    """Object detection with COCO's metric.

    Attributes:
        data: the data set.
        detector: the detector, whose sizes determine those of the training images.
        box_augment: augmentation of the training images.
    """

    data: DataConfig
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    box_augment: str = "flip"

    predictions: ClassVar = BoxPredictions
    metrics: ClassVar[Sequence[str]] = ("ap", "ap50", "ap75")
    eval_batch_size: ClassVar = 1  # `predict` runs the detector on one image at a time

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        return cls(config.data, config.detector, config.recipe.box_augment)

    def open(self, needs_training_images: bool = True) -> BoxDataset:  # noqa: ARG002
        return open_boxes(self.data)

    @property
    def losses(self) -> tuple[str, ...]:
        """torchvision's names for the detector's losses."""
        return LOSSES[self.detector.architecture]

    @property
    def training_metrics(self) -> dict[str, float]:
        return {"loss": 1.0} | {f"loss_{name.removeprefix('loss_')}": 1.0 for name in self.losses}

    def preprocessing(self, published: Any | None, unmodified: bool = False) -> Preprocessing:  # noqa: ARG002
        # The detector resizes and normalizes its images itself.
        return Preprocessing(self.detector.image_size, self.detector.image_size)

    def train_samples(self, split: BoxSplit, seed: int) -> Samples:
        detector = self.detector
        square = detector.architecture != "faster_rcnn"
        transform = box_transforms.training(self.box_augment, detector.image_size, detector.max_size, square)
        return BoxTrainSamples(split, seed, transform, detector.image_size if square else detector.max_size)

    def eval_samples(self, split: BoxSplit, preprocessings: Sequence[Preprocessing]) -> Samples:  # noqa: ARG002
        return BoxEvalSamples(split)

    def inputs(self, views: Sequence[Tensor], preprocessings: Sequence[Preprocessing]) -> list[Tensor]:
        (images,) = views
        return [images] * len(preprocessings)

    def training_step(
        self,
        model: Model,
        batch: Batch,
        preprocessing: Preprocessing,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        (view,), targets = batch.views, TrainTargets(*batch.targets)
        boxes = [
            {"boxes": own[labels != PADDING], "labels": labels[labels != PADDING]}
            for own, labels in zip(targets.boxes, targets.labels, strict=True)
        ]
        losses = model(images_of(view, targets.size), boxes)
        loss = torch.stack([losses[name] for name in self.losses]).sum()
        sums = torch.stack([loss.detach(), *(losses[name].detach() for name in self.losses)]) * len(boxes)
        return loss, sums.double()

    def predict(self, model: Model, images: Tensor, targets: Sequence[Tensor]) -> dict[str, Tensor]:
        boxes = EvalTargets(*targets)
        results = [model([image])[0] for image in images_of(images, boxes.size)]
        return box_predictions.predictions_of(results, boxes)


class VocDetection(Detection):
    """Object detection with the VOC devkit's metric."""

    predictions: ClassVar = VocPredictions
    metrics: ClassVar = ("ap_11_points", "ap_area", "ap", "ap50", "ap75")
