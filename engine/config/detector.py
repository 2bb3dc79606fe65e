"""The keys of `detector`."""

from dataclasses import dataclass
from typing import Any

from engine.config.checks import at_least, between, named, one_of


@dataclass
class DetectorConfig:
    """torchvision's detector around the backbone, for detection tasks. The values are in configs/detector."""

    name: str = "none"  # in run directories and tables
    architecture: str = "none"  # faster_rcnn: with a feature pyramid | ssd: SSD300 | ssdlite | none: classification
    recipe: str | None = None  # default recipe preset, used unless recipe=NAME is given
    weights: str | None = None  # of the whole detector, instead of the backbone's: published name, or path of a file
    image_size: int = 800  # shorter side of the images, or both sides for SSD, pixels
    max_size: int = 1333  # limit of the longer side, pixels
    channels: int = 256  # of the feature pyramid
    rois: int = 512  # regions per image used to train the second stage
    train_proposals: int = 2000  # regions per image that the first stage proposes in training
    test_proposals: int = 1000  # the same, in evaluation
    detections: int = 100  # per image, at most
    trainable_layers: int = 5  # trained backbone stages, counted from its output, if it has start weights
    frozen_norms: bool = False  # freeze the backbone's BatchNorms, if it has start weights

    def check(self) -> None:
        named("detector.name", self.name)
        one_of("detector.architecture", self.architecture, ("none", "faster_rcnn", "ssd", "ssdlite"))
        between("detector.image_size", self.image_size, 32, 4096)
        between("detector.max_size", self.max_size, self.image_size, 8192)
        for key in ("channels", "rois", "train_proposals", "test_proposals"):
            at_least(f"detector.{key}", getattr(self, key), 1)
        between("detector.detections", self.detections, 1, 300)
        between("detector.trainable_layers", self.trainable_layers, 0, 5)

    @property
    def options(self) -> dict[str, Any]:
        """The fields of `models.DetectorSpec`."""
        return {key: value for key, value in vars(self).items() if key not in ("name", "recipe")}
