"""The whole configuration of each entry point. The values are in `configs/`."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from engine.config.attention import CALIBRATED, CALIBRATION_IMAGES, AttentionConfig, node
from engine.config.checks import at_least, between, filled, one_of
from engine.config.data import DataConfig
from engine.config.detector import DetectorConfig
from engine.config.model import ModelConfig
from engine.config.preprocessing import PreprocessingConfig
from engine.config.recipe import CLASSIFICATION_KEYS, RecipeConfig
from engine.config.runtime import RunConfig, RunsConfig, RuntimeConfig
from engine.errors import UserError


@dataclass
class TrainConfig:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 51

    def check(self) -> None:
        parts = (self.model, self.data, self.detector, self.preprocessing, self.recipe, self.runtime, self.run)
        for part in parts:
            part.check()
        self._check_detector()
        self._check_attention()
        between("seed", self.seed, 0, 2**63 - 1)

    def _check_attention(self) -> None:
        kind = self.model.attention
        if kind != self.attention.kind:
            raise UserError(f"model.attention={kind} has no effect on the options; use attention={kind} instead.")
        self.attention.check()
        images = self.attention.calibrate or 0
        at_least("attention.calibrate", images, 0)
        if self.attention.calibrate is not None and kind not in ("none", *CALIBRATED):
            raise UserError(f"attention.calibrate={images} has no effect on attention={kind}; leave it out.")
        if images and kind != "none" and self._start != "identity":
            raise UserError(
                f"attention.calibrate={images} needs the identity start; set attention.init=identity or leave it out."
            )

    def _check_detector(self) -> None:
        """Require a detector if and only if the task is detection."""
        one_of("attention.at", self.attention.at, ("backbone", "heads", "both"))
        detects, label = self.data.task != "classification", self.data.label
        if detects and self.detector.architecture == "none":
            raise UserError(f"{label} has boxes; add detector=faster_rcnn or another of configs/detector.")
        if not detects and self.detector.architecture != "none":
            raise UserError(f"{label} has no boxes; leave out detector={self.detector.name}.")
        for key in CLASSIFICATION_KEYS if detects else ():
            value = getattr(self.recipe, key)
            if value != getattr(RecipeConfig, key):
                raise UserError(
                    f"recipe.{key}={value} is for classification only; leave it out, or select a recipe for detection, "
                    "such as recipe=detection_1x."
                )
        if self.recipe.box_augment == "multi_scale" and self.detector.architecture in ("ssd", "ssdlite"):
            raise UserError("recipe.box_augment=multi_scale needs detector=faster_rcnn; SSD has one image size.")
        if detects and not self.preprocessing.is_default:
            raise UserError(f"The keys of preprocessing are for classification only; {label} has boxes.")
        if not detects and self.attention.at != "backbone":
            raise UserError(f"attention.at={self.attention.at} needs a detector; {label} has no boxes.")

    @property
    def start_weights(self) -> str | None:
        """The start weights; None for random weights."""
        return self.detector.weights or self.model.weights

    @property
    def _start(self) -> str:
        return self.attention.init or ("identity" if self.start_weights else "random")

    @property
    def calibration_images(self) -> int:
        """The training images on which attention is calibrated; 0 without attention."""
        if self.model.attention == "none" or self.attention.calibrate is None:
            return self._default_calibration_images
        return self.attention.calibrate

    @property
    def _default_calibration_images(self) -> int:
        # The features of random weights do not have the scale that they will have.
        has_start = self.start_weights is not None and self._start == "identity"
        return CALIBRATION_IMAGES if has_start and self.model.attention != "none" else 0

    @property
    def attention_label(self) -> str:
        """The attention with the options that differ from its kind's defaults: `none`, `cbam-ratio.8-spatial_norm`.

        It includes the learning rate factor of the last norms unless it is 1, and the number of calibration images
        unless it is the default, so that such a run has its own row in a table.
        """
        changed = [] if self.attention.kind == "none" else [*self.attention.changed().items()]
        changed = [(key, value) for key, value in changed if key != "calibrate"]
        if self.recipe.last_norms_lr_factor != 1:
            changed.append(("last_norms_lr", f"{self.recipe.last_norms_lr_factor:g}"))
        if self.calibration_images != self._default_calibration_images and self.attention.kind in CALIBRATED:
            changed.append(("calibrate", self.calibration_images))
        texts = {key: _file_name(str(value)) for key, value in changed}
        return "-".join(
            [self.attention.name, *(key if text == "True" else f"{key}.{text}" for key, text in texts.items())]
        )

    @property
    def attention_lr_factor(self) -> float:
        """The learning rate factor of attention; 1 for a network without attention."""
        return 1.0 if self.model.attention == "none" else self.recipe.attention_lr_factor

    @property
    def attention_options(self) -> dict[str, Any]:
        """The keyword arguments of `models.build` for the attention."""
        return self.attention.arguments()

    @property
    def model_label(self) -> str:
        """The model's name in paths: `resnet50`, `resnet50_cbam-ratio.8`, `faster_rcnn-resnet50_cbam`."""
        detector = "" if self.detector.architecture == "none" else f"{self.detector.name}-"
        attention = "" if self.attention_label == "none" else f"_{self.attention_label}"
        return f"{detector}{self.model.label}{attention}"

    @property
    def run_directory(self) -> str:
        return self.run.dir or f"{self.run.root}/{self.data.label}/{self.model_label}/seed{self.seed}"


def train_node(attention: str) -> DictConfig:
    """Return the keys of a training run with their defaults, for a kind of attention."""
    keys: DictConfig = OmegaConf.structured(TrainConfig)
    keys.attention = node(attention)
    return keys


@dataclass
class ExportConfig:
    """The export of one network for other runtimes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    classes: int = 1000  # outputs of the head
    image_size: int = 224  # side of the images, pixels
    file: str = MISSING  # output: NAME.onnx, or NAME.pt2 for torch.export

    def check(self) -> None:
        self.model.check()
        self.attention.check()
        at_least("image_size", self.image_size, 1)
        if not self.file.endswith((".onnx", ".pt2")):
            raise UserError(f"file={self.file} must end in .onnx or .pt2.")


@dataclass
class CheckDataConfig:
    """The check of one data set."""

    data: DataConfig = field(default_factory=DataConfig)
    workers: int | None = None  # processes; null: one per processor

    def check(self) -> None:
        self.data.check()
        if self.workers is not None:
            between("workers", self.workers, 1, 1024)


@dataclass
class TableConfig:
    """Location and contents of the comparison table."""

    dir: str | None = None  # null: results/DATA
    # Measure latency, images/s and memory in evaluation, of one image and of a batch (runtime.eval_batch_size), and add
    # the speed and memory of training from the records.
    speed: bool = False
    static_gates: bool = False  # add each network with gates once more, with its gates replaced by their means
    allow_mixed: bool = False  # accept runs of several recipes, and mark those that differ from the first run's
    margin: float | None = None  # points: test whether differences are within +- this margin; null: no such test
    # Direct contrasts by attention label: [cbam/se]. null: each pair of kinds on the same backbone; []: none
    contrasts: list[str] | None = None

    def check(self) -> None:
        if self.dir is not None:
            filled("table.dir", self.dir)
        if self.margin is not None and not self.margin > 0:
            raise UserError(f"table.margin={self.margin} must be positive.")


@dataclass
class EvaluateConfig:
    """One comparison table."""

    data: DataConfig = field(default_factory=DataConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)  # of `published` networks
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    table: TableConfig = field(default_factory=TableConfig)
    run: RunsConfig = field(default_factory=RunsConfig)
    runs: list[str] | None = None  # run directories; null: all finished runs on this data set, or on its trained_on
    # Networks to evaluate without training: resnet50, timm/NAME or package.module:function.
    published: list[str] = field(default_factory=list)
    # Their weights: a published name or a file; null: IMAGENET1K_V1, `default` for timm, or COCO_V1 for detectors.
    weights: str | None = None
    weights_key: str | None = None  # entry of the file, as for model.weights_key

    def check(self) -> None:
        for part in (self.data, self.preprocessing, self.runtime, self.table):
            part.check()
        if self.table.static_gates and (self.data.task != "classification" or self.data.trained_on is not None):
            raise UserError("table.static_gates=true needs images of one size and a training set to take means over.")


# Keys of earlier versions.
RENAMED_KEYS = {
    "recipe.accumulate": "recipe.accumulation_steps",
    "attention.start": "attention.init",
    "table.throughput_batch_size": "table.speed=true, with batches of runtime.eval_batch_size",
}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of dotted keys under the keys' current names."""
    return {RENAMED_KEYS.get(key, key): value for key, value in values.items()}


def _file_name(text: str) -> str:
    """Return a string without special characters. If any were removed, append a digest to keep names unique."""
    name = re.sub(r"[^\w.]+", "_", text).strip("_")
    return name if name == text else f"{name[:60]}.{hashlib.sha256(text.encode()).hexdigest()[:6]}"
