"""The keys of `data`: the images and their task."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from engine.config.checks import at_least, between, filled, named, one_of
from engine.errors import UserError

TRAINING_LAYOUTS = ("folders", "tiny_imagenet", "shapes")
EVALUATION_LAYOUTS = ("class_folders", "index_folders", "corruptions")


@dataclass
class DataConfig:
    """The images, their task and their crops."""

    name: str = MISSING  # in run directories and tables
    # folders: train/CLASS and val/CLASS | tiny_imagenet: as published | shapes: generated
    # with boxes: coco | voc | voc2007: 2007 and 2012 trainval, 2007 test | shapes_boxes: generated
    # evaluation only: class_folders: CLASS | index_folders: 0, 1, ... | corruptions: CORRUPTION/SEVERITY/CLASS
    layout: str = "folders"
    root: str = MISSING  # folder of the data set
    # Classes in the whole data set; 0: as many as there are class folders. With boxes, the annotations or `classes`
    # name them.
    total_classes: int = 0
    # Number of classes to use, the first by id; null: all. For layout=voc: the names of the classes.
    classes: Any = None
    # For layout=folders: fraction of each class's images to hold out for validation from a folder of class folders
    # without train/ and val/, by a hash of the file names; 0: the folder has train/ and val/.
    val_fraction: float = 0.0
    image_size: int = 0  # side of the crops, pixels; images with boxes use the detector's size
    resize: int | None = None  # shorter side before the center crop in evaluation, pixels; null: automatic
    crop_scale: float = 0.08  # smallest area of a training crop, as a fraction of the image's
    # Whether EXIF orientations turn the images of a classification data set upright. torchvision's published accuracies
    # were measured without them. Images with boxes are always turned, as annotation tools show them.
    exif_orientation: bool = False
    skip_other_formats: bool = False  # leave out images with extensions that are not read; false: an error
    task: str = "classification"  # classification | detection: COCO's metric | voc_detection: the VOC devkit's
    detector: str | None = None  # default detector preset, used unless detector=NAME is given
    train_list: str = "train"  # for layout=voc: the file in ImageSets/Main that lists the training images
    val_list: str = "val"  # the same, for the validation images
    first_pixel: int = 1  # for layout=voc: the coordinate of the first pixel, 1 as in VOC, or 0
    trained_on: str | None = None  # evaluation only: the data set that the networks were trained on; null: this one
    # Evaluation only: CSV file with a line `image,group` for each validation image, with its path below root. Images of
    # one group (a patient, a photograph) are not independent. null: every image is.
    groups: str | None = None
    class_list: str | None = None  # file with the class ids of those networks, one per line; null: those of the runs

    def check(self) -> None:
        named("data.name", self.name)
        filled("data.root", self.root)
        one_of("data.task", self.task, ("classification", "detection", "voc_detection"))
        if self.task != "classification":
            self._check_boxes()
            return
        one_of("data.layout", self.layout, TRAINING_LAYOUTS if self.trained_on is None else EVALUATION_LAYOUTS)
        # Only the folders of class names can be counted.
        at_least("data.total_classes", self.total_classes, 0 if self.layout == "folders" else 1)
        if self.classes is not None:
            if not isinstance(self.classes, int):
                raise UserError(f"data.classes={self.classes} is not a valid number of classes.")
            between("data.classes", self.classes, 1, self.total_classes or 2**31)
        between("data.val_fraction", self.val_fraction, 0.0, 0.9)
        if self.val_fraction and self.layout != "folders":
            raise UserError(f"data.val_fraction is for data.layout=folders, not {self.layout}; leave it out.")
        between("data.image_size", self.image_size, 8, 4096)
        if self.resize is not None:
            if self.resize < self.image_size:
                raise UserError(
                    f"data.image_size={self.image_size} is larger than data.resize={self.resize}, the side before the "
                    f"crop, which may be the preset's. Set both, for example data.resize={self.image_size}."
                )
            between("data.resize", self.resize, 1, 8192)
        between("data.crop_scale", self.crop_scale, 0.0, 1.0)

    def _check_boxes(self) -> None:
        one_of("data.layout", self.layout, ("coco", "voc", "voc2007", "shapes_boxes"))
        if self.trained_on is not None:
            raise UserError(f"data.trained_on={self.trained_on} is for classification only; leave it out.")
        one_of("data.first_pixel", str(self.first_pixel), ("0", "1"))
        is_named = isinstance(self.classes, list) and all(isinstance(name, str) for name in self.classes)
        if self.layout == "voc" and not (is_named and self.classes):
            raise UserError("data.classes must list the classes of a data set in VOC's layout: data.classes=[a,b].")
        if self.layout != "voc" and self.classes is not None:
            raise UserError(
                f"data.classes cannot be set for data.layout={self.layout}, which has its own classes; leave it out."
            )

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 if the annotations or the folders define it."""
        if isinstance(self.classes, list):
            return len(self.classes)
        return self.total_classes if self.classes is None else int(self.classes)

    @property
    def is_imagenet_1k(self) -> bool:
        """True if accuracies measured here are comparable with those published for ImageNet-1K."""
        return self.name == "imagenet" and self.num_classes == self.total_classes == 1000

    @property
    def label(self) -> str:
        """The data set's name, with the number of classes if not all are used: `tiny_imagenet_20`."""
        is_part = isinstance(self.classes, int) and self.classes != self.total_classes
        return f"{self.name}_{self.classes}" if is_part else self.name
