"""Object detection with torchvision's losses, and average precision by COCO's rule and the VOC devkit's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from engine.analysis import box_pictures
from engine.config.data import DataConfig
from engine.config.detector import DetectorConfig
from engine.config.schemas import TrainConfig
from engine.data import box_transforms
from engine.data.box_datasets import open_boxes
from engine.data.box_samples import PADDING, BoxEvalSamples, BoxTrainSamples, EvalTargets, TrainTargets, images_of
from engine.data.boxes import BoxDataset, BoxSplit
from engine.data.loader import Batch, Samples
from engine.data.transforms import Preprocessing
from engine.tasks import box_predictions, columns
from engine.tasks.base import Column, Model, Task
from engine.tasks.box_predictions import BoxPredictions, VocPredictions
from engine.tasks.paired_stats import PairedDifference

# torchvision's loss names for each architecture.
LOSSES = {
    "faster_rcnn": ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"),
    "ssd": ("classification", "bbox_regression"),
    "ssdlite": ("classification", "bbox_regression"),
}


def _column(title: str, key: str, in_summary: bool = False) -> Column:
    return Column(title, lambda row: columns.mean(row, key), in_summary)


_NAME, *_NETWORK = columns.NETWORK
_DETECTOR = (_NAME, Column("Detector", lambda row: row["detector"], in_summary=True), *_NETWORK)
_SPEED = Column("Images/s", lambda row: columns.number(row["images_per_second"], ".1f"))


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

    name: ClassVar = "detection"
    primary_metric: ClassVar = "ap"
    predictions: ClassVar = BoxPredictions
    metrics: ClassVar[Sequence[str]] = ("ap", "ap50", "ap75")
    table_metrics: ClassVar[Sequence[str]] = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    table_metric_label: ClassVar = "AP (%)"
    columns: ClassVar = (
        *_DETECTOR,
        _column("AP (%)", "ap", in_summary=True),
        _column("AP50 (%)", "ap50"),
        _column("AP75 (%)", "ap75"),
        _column("AP small (%)", "ap_small"),
        _column("AP medium (%)", "ap_medium"),
        _column("AP large (%)", "ap_large"),
        Column("Difference in AP (points) [95% interval]", columns.difference, in_summary=True),
        columns.ACROSS_SEEDS,
        _SPEED,
        Column("Start weights: published AP (%)", columns.published),
        Column("Paper: AP (%)", lambda row: columns.number(row["paper_ap"], ".1f")),
        Column("Paper: AP50 (%)", lambda row: columns.number(row["paper_ap50"], ".1f")),
        Column("Paper: AP75 (%)", lambda row: columns.number(row["paper_ap75"], ".1f")),
    )
    notes: ClassVar = (
        "AP, AP50 and AP75 are COCO's: means over classes, 101 recall levels and, for AP, IoU thresholds from 0.5 to "
        "0.95.",
        "The difference is relative to the same detector and backbone without attention, trained with the same "
        "recipe, seed and images; positive is better. Its interval is from a paired bootstrap over the validation "
        "images (1,000 resamples, percentiles): it reflects the sampling of images, not the variation between "
        "training runs. With one seed, a difference holds for these two training runs only.",
        "GFLOPs of a detector are for one square black image; in the second stage they depend on its proposals.",
    )
    several_seeds_note: ClassVar = (
        "With several seeds, values are mean ± standard deviation over seeds. Each bootstrap resample uses the same "
        "images for all seeds. A difference is supported only if its 95% interval over images and seeds also "
        "excludes 0."
    )
    paper_note: ClassVar = (
        "The paper's values are from Table 6 of arXiv 1807.06521v2: Faster R-CNN without a feature pyramid, trained "
        "for 490,000 iterations on train2014 and most of val2014."
    )
    view_note: ClassVar = "once, alone and uncropped"
    picture_title: ClassVar = "ground truth (left) and detections (right)"
    eval_batch_size: ClassVar = 1  # `predict` runs the detector on one image at a time

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        return cls(config.data, config.detector, config.recipe.box_augment)

    @classmethod
    def of_data(cls, data: DataConfig) -> Self:
        return cls(data)

    def open(self, needs_training_images: bool = True) -> BoxDataset:  # noqa: ARG002
        return open_boxes(self.data)

    @property
    def losses(self) -> tuple[str, ...]:
        """torchvision's names for the detector's losses."""
        return LOSSES[self.detector.architecture]

    @property
    def training_metrics(self) -> dict[str, float]:
        return {"loss": 1.0} | {f"loss_{name.removeprefix('loss_')}": 1.0 for name in self.losses}

    def preprocessing(self, published: Any | None) -> Preprocessing:  # noqa: ARG002
        # The detector resizes and normalizes its images itself.
        return Preprocessing(self.detector.image_size, self.detector.image_size)

    def published_preprocessing(self, published: Any) -> Preprocessing:
        return self.preprocessing(published)

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

    def draw(
        self,
        model: nn.Module,
        gates: Mapping[str, nn.Module],  # noqa: ARG002
        data: BoxDataset,
        preprocessing: Preprocessing,  # noqa: ARG002
        count: int,
        title: str,
    ) -> np.ndarray | None:
        device = next(model.parameters()).device
        chosen = np.linspace(0, len(data.val) - 1, count).astype(int).tolist()
        return box_pictures.truth_and_detections(model.eval(), data.val, chosen, data.classes, device, title)

    def describe(self, metrics: Mapping[str, float]) -> str:
        if self.primary_metric not in metrics:
            parts = [f"{name.removeprefix('loss_')} {value:.3f}" for name, value in metrics.items() if name != "loss"]
            return ", ".join(parts)
        return f"AP {metrics['ap']:.2f}%, AP50 {metrics['ap50']:.2f}%, AP75 {metrics['ap75']:.2f}%"

    @classmethod
    def table_row(cls, metrics: Mapping[str, float]) -> dict[str, Any]:
        return {name: metrics.get(name) for name in cls.table_metrics}

    @classmethod
    def paired(cls, predictions: Sequence[BoxPredictions], baseline: Sequence[BoxPredictions]) -> PairedDifference:
        return box_predictions.paired_difference(predictions, baseline, box_predictions.COCO_AP)

    def published(self, entry: Any, data: DataConfig, preprocessing: Preprocessing) -> float | None:  # noqa: ARG002
        # An entry of a backbone has no AP.
        ap = entry.meta["_metrics"].get("COCO-val2017", {}).get("box_map")
        return None if ap is None or data.name != "coco" else float(ap)


class VocDetection(Detection):
    """Object detection with the VOC devkit's metric."""

    name: ClassVar = "voc_detection"
    primary_metric: ClassVar = "ap_11_points"
    predictions: ClassVar = VocPredictions
    metrics: ClassVar = ("ap_11_points", "ap_area", "ap", "ap50", "ap75")
    table_metrics: ClassVar = metrics
    table_metric_label: ClassVar = "VOC 2007 mAP (%)"
    columns: ClassVar = (
        *_DETECTOR,
        _column("mAP, 11 points (%)", "ap_11_points", in_summary=True),
        _column("mAP, area (%)", "ap_area"),
        _column("AP (%)", "ap"),
        _column("AP50 (%)", "ap50"),
        _column("AP75 (%)", "ap75"),
        Column("Difference in 11-point mAP (points) [95% interval]", columns.difference, in_summary=True),
        columns.ACROSS_SEEDS,
        _SPEED,
        Column("Paper: mAP (%)", lambda row: columns.number(row["paper_ap_11_points"], ".1f")),
    )
    notes: ClassVar = (
        "mAP is the VOC devkit's at IoU 0.5: the mean over 11 recall levels as in VOC 2007, and the area under the "
        "curve as in VOC 2010 and later. AP, AP50 and AP75 are COCO's; difficult objects are treated as crowds.",
        *Detection.notes[1:],
    )
    paper_note: ClassVar = (
        "The paper's values are from Table 7 of arXiv 1807.06521v2, where its authors reproduced the detectors."
    )

    def describe(self, metrics: Mapping[str, float]) -> str:
        described = super().describe(metrics)
        mean = metrics.get(self.primary_metric)
        return described if mean is None else f"mAP {mean:.2f}% (11 points), {described}"

    @classmethod
    def paired(cls, predictions: Sequence[BoxPredictions], baseline: Sequence[BoxPredictions]) -> PairedDifference:
        return box_predictions.paired_difference(predictions, baseline, box_predictions.VOC_AP)

    def published(self, entry: Any, data: DataConfig, preprocessing: Preprocessing) -> float | None:  # noqa: ARG002
        return None
