"""Every key of the configuration, typed, with its unit and its range. `configs/` holds the values."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from engine.errors import UserError


@dataclass
class ModelConfig:
    """The network and what it starts from."""

    name: str = MISSING  # a backbone: `resnet50`; models.names() lists them
    attention: str = "none"  # none | cbam | se
    weights: str | None = None  # a published name, the path of a file, or null for random ones


@dataclass
class AttentionConfig:
    """Options of the attention module; squeeze-and-excitation has `ratio`, `init`, `after` and `at` alone."""

    ratio: int = 16  # reduction of the channel gate's MLP
    kernel_size: int = 7  # side of the spatial gate's convolution, odd
    pooling: str = "both"  # of the channel gate: avg | max | both
    mlp_bias: bool = False  # biases in the channel gate's MLP
    spatial_pooling: str = "mean_max"  # of the spatial gate: mean_max | conv: a 1x1 convolution to one plane
    spatial_norm: bool = False  # BatchNorm after the spatial gate's convolution
    order: str = "channel_spatial"  # channel_spatial | spatial_channel | parallel | channel | spatial
    output: str = "refined"  # refined: F''; residual: F'' + F
    after: str | None = None  # the modules that attention follows, a regular expression; null: those of the family
    init: str | None = None  # identity | random; null: identity with start weights, random without
    at: str = "backbone"  # of a detector: backbone | heads: on each feature map before its prediction head | both

    def options(self, kind: str) -> dict[str, Any]:
        """The keyword arguments of `models.build` for attention of this kind.

        Raises:
            UserError: naming an option that is set and that this kind does not have.
        """
        options = dataclasses.asdict(self)
        known = {"none": ("init",), "se": ("ratio", "init", "after", "at")}.get(kind, tuple(options))
        for key in self.changed():
            if key not in known:
                advice = "add attention=cbam, or " if kind == "none" else ""
                raise UserError(f"attention.{key} is no option of attention={kind}; {advice}leave it out.")
        return {"start" if key == "init" else key: options[key] for key in known if key != "at"}

    def changed(self) -> dict[str, Any]:
        """The options that differ from the defaults."""
        default = AttentionConfig()
        return {key: value for key, value in vars(self).items() if value != getattr(default, key)}


@dataclass
class DataConfig:
    """The images, what is learned from them, and how they are cut."""

    name: str = MISSING  # in run directories and tables
    # folders: train/CLASS and val/CLASS | tiny_imagenet: as published | shapes: generated
    # with boxes: coco | voc | voc2007: 2007 and 2012 trainval, 2007 test | shapes_boxes: generated
    layout: str = "folders"
    root: str = MISSING  # folder of the data set
    total_classes: int = 0  # classes in the whole data set; those of boxes are named by the annotations or by `classes`
    # Take only the first so many classes by id; null: all. Of layout=voc: the names of its classes.
    classes: Any = None
    image_size: int = 0  # side of the crops, pixels; images with boxes have their detector's size
    resize: int | None = None  # shorter side before the centre crop in evaluation, pixels; null: the weights' own
    crop_scale: float = 0.08  # smallest area of a training crop, as a share of the image's
    task: str = "classification"  # classification | detection: COCO's metric | voc_detection: the VOC devkit's
    detector: str | None = None  # preset of the detector that is trained unless detector=NAME is given
    train_list: str = "train"  # of layout=voc: the file of ImageSets/Main that lists the training images
    val_list: str = "val"  # likewise, the validation images

    def check(self) -> None:
        _name("data.name", self.name)
        _filled("data.root", self.root)
        _one_of("data.task", self.task, ("classification", "detection", "voc_detection"))
        if self.task != "classification":
            self._check_boxes()
            return
        _one_of("data.layout", self.layout, ("folders", "tiny_imagenet", "shapes"))
        _at_least("data.total_classes", self.total_classes, 1)
        if self.classes is not None:
            if not isinstance(self.classes, int):
                raise UserError(f"data.classes={self.classes} is no number of classes to take.")
            _between("data.classes", self.classes, 1, self.total_classes)
        _between("data.image_size", self.image_size, 8, 4096)
        if self.resize is not None:
            _between("data.resize", self.resize, self.image_size, 8192)
        _between("data.crop_scale", self.crop_scale, 0.0, 1.0)

    def _check_boxes(self) -> None:
        _one_of("data.layout", self.layout, ("coco", "voc", "voc2007", "shapes_boxes"))
        is_named = isinstance(self.classes, list) and all(isinstance(name, str) for name in self.classes)
        if self.layout == "voc" and not (is_named and self.classes):
            raise UserError("data.classes has to name the classes of a data set in VOC's layout: data.classes=[a,b].")
        if self.layout != "voc" and self.classes is not None:
            raise UserError(f"data.classes is no key of data.layout={self.layout}, whose annotations name the classes.")

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 where the annotations tell it."""
        if isinstance(self.classes, list):
            return len(self.classes)
        return self.total_classes if self.classes is None else int(self.classes)

    @property
    def is_imagenet_1k(self) -> bool:
        """Whether accuracies published for ImageNet-1K may stand beside those measured here."""
        return self.name == "imagenet" and self.num_classes == self.total_classes == 1000

    @property
    def label(self) -> str:
        """`tiny_imagenet`, or `tiny_imagenet_20` where not all classes are taken."""
        is_part = isinstance(self.classes, int) and self.classes != self.total_classes
        return f"{self.name}_{self.classes}" if is_part else self.name


@dataclass
class DetectorConfig:
    """torchvision's detector around the backbone, where boxes are learned. The values are in configs/detector."""

    name: str = "none"  # in run directories and tables
    architecture: str = "none"  # faster_rcnn: with a feature pyramid | ssd: SSD300 | ssdlite; none for classification
    recipe: str | None = None  # preset of the recipe that it is trained by unless recipe=NAME is given
    weights: str | None = None  # of the whole detector, instead of the backbone's: a published name, or a file's path
    image_size: int = 800  # shorter side of the images, or both sides for SSD, pixels
    max_size: int = 1333  # limit of the longer side, pixels
    channels: int = 256  # of the feature pyramid
    rois: int = 512  # regions per image that the second stage is trained on
    train_proposals: int = 2000  # regions per image that the first stage proposes in training
    test_proposals: int = 1000  # likewise, in evaluation
    detections: int = 100  # per image, at most
    trainable_layers: int = 5  # stages of the backbone that are trained, from its output, if it has start weights
    frozen_norms: bool = False  # whether the backbone's BatchNorms are fixed, if it has start weights

    def check(self) -> None:
        _name("detector.name", self.name)
        _one_of("detector.architecture", self.architecture, ("none", "faster_rcnn", "ssd", "ssdlite"))
        _between("detector.image_size", self.image_size, 32, 4096)
        _between("detector.max_size", self.max_size, self.image_size, 8192)
        for key in ("channels", "rois", "train_proposals", "test_proposals"):
            _at_least(f"detector.{key}", getattr(self, key), 1)
        _between("detector.detections", self.detections, 1, 300)
        _between("detector.trainable_layers", self.trainable_layers, 0, 5)

    @property
    def options(self) -> dict[str, Any]:
        """The fields of `models.DetectorSpec`."""
        return {key: value for key, value in vars(self).items() if key not in ("name", "recipe")}


@dataclass
class RecipeConfig:
    """How the network is trained: SGD with momentum."""

    epochs: int = MISSING
    batch_size: int = MISSING  # images per optimizer step, all devices and accumulation together
    accumulation_steps: int = (
        1  # parts that each batch is worked through in, to save memory; norms see one part at a time
    )
    lr: float = MISSING  # peak learning rate, for the whole batch
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = MISSING
    decay_norms_and_biases: bool = False  # whether weight decay is applied to them too
    warmup_epochs: float = 0.0  # linear, from 0
    # After the warm-up: cosine to 0 | step: times step_factor every step_epochs | milestones: at those epochs.
    schedule: str = "cosine"
    step_epochs: int = 30
    step_factor: float = 0.1
    milestones: list[int] = field(default_factory=list)  # epochs after which the learning rate falls by step_factor
    label_smoothing: float = 0.0
    box_augment: str = "flip"  # of images with boxes: flip | multi_scale | ssd | ssdlite, as engine.data.box_transforms

    def check(self) -> None:
        _at_least("recipe.epochs", self.epochs, 1)
        _at_least("recipe.batch_size", self.batch_size, 1)
        _at_least("recipe.accumulation_steps", self.accumulation_steps, 1)
        self.check_parts(1)
        _at_least("recipe.lr", self.lr, 0.0)
        _between("recipe.momentum", self.momentum, 0.0, 1.0)
        if self.nesterov and self.momentum == 0:
            raise UserError("recipe.nesterov=true needs a recipe.momentum above 0.")
        _at_least("recipe.weight_decay", self.weight_decay, 0.0)
        _between("recipe.warmup_epochs", self.warmup_epochs, 0.0, float(self.epochs))
        _one_of("recipe.schedule", self.schedule, ("cosine", "step", "milestones"))
        _one_of("recipe.box_augment", self.box_augment, ("flip", "multi_scale", "ssd", "ssdlite"))
        _at_least("recipe.step_epochs", self.step_epochs, 1)
        _between("recipe.step_factor", self.step_factor, 0.0, 1.0)
        _between("recipe.label_smoothing", self.label_smoothing, 0.0, 1.0)

    def check_parts(self, processes: int) -> None:
        """Whether the batch divides among so many processes, and each one's share into its parts."""
        parts = processes * self.accumulation_steps
        divisor = f"recipe.accumulation_steps={self.accumulation_steps}" + (
            f" times {processes} processes" if processes > 1 else ""
        )
        if self.batch_size % parts:
            raise UserError(f"recipe.batch_size={self.batch_size} does not divide by {divisor}.")
        if self.batch_size // parts < 2:
            raise UserError(
                f"recipe.batch_size={self.batch_size} divided by {divisor} is 1; "
                "batch normalisation needs at least 2 images."
            )


@dataclass
class RuntimeConfig:
    """How it is computed."""

    device: str = "auto"  # auto | cpu | cuda
    precision: str = "fp32"  # fp32, or autocast to bf16 | fp16
    workers: int | None = (
        None  # processes that read images for each that trains; 0: none; null: one per processor, 8 at most
    )
    cache_images: bool = False  # training keeps decoded images in memory, each process its own: for small data sets
    deterministic: bool = True  # the same bits again; false is faster on CUDA
    channels_last: bool = True  # memory format of the weights, and of the images in training
    compile: bool = False  # torch.compile
    fused_cbam: bool = False  # train CBAM by Triton kernels, on CUDA; nothing changes for other attention
    sync_batchnorm: bool = False  # batch norms see the images of all processes; false: each those of its own
    eval_batch_size: int = 256  # images at a time, on each process

    def check(self) -> None:
        _one_of("runtime.device", self.device, ("auto", "cpu", "cuda"))
        _one_of("runtime.precision", self.precision, ("fp32", "bf16", "fp16"))
        if self.workers is not None:
            _between("runtime.workers", self.workers, 0, 1024)
        _between("runtime.eval_batch_size", self.eval_batch_size, 1, 65536)


@dataclass
class RunConfig:
    """Where a run is kept."""

    root: str = "runs"  # folder of all runs
    dir: str | None = None  # null: ROOT/DATA/MODEL/seedSEED
    checkpoint_every_steps: int | None = None  # besides the ends of epochs; null: not by steps
    checkpoint_every_minutes: float | None = 15.0  # likewise, by the clock
    log_every_steps: int = 50  # loss and learning rate to TensorBoard
    pictures: int = 4  # validation images to draw after each epoch, with where the network looks; needs matplotlib

    def check(self) -> None:
        _filled("run.root", self.root)
        if self.checkpoint_every_steps is not None:
            _at_least("run.checkpoint_every_steps", self.checkpoint_every_steps, 1)
        if self.checkpoint_every_minutes is not None:
            _at_least("run.checkpoint_every_minutes", self.checkpoint_every_minutes, 0.0)
        _at_least("run.log_every_steps", self.log_every_steps, 1)
        _between("run.pictures", self.pictures, 0, 64)


@dataclass
class RunsConfig:
    """Where finished runs are found."""

    root: str = "runs"  # folder of all runs


@dataclass
class TrainConfig:
    """One training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    run: RunConfig = field(default_factory=RunConfig)
    seed: int = 51

    def check(self) -> None:
        for part in (self.data, self.detector, self.recipe, self.runtime, self.run):
            part.check()
        self._check_detector()
        self.attention.options(self.model.attention)
        _between("seed", self.seed, 0, 2**63 - 1)

    def _check_detector(self) -> None:
        """Require a detector if and only if boxes are learned."""
        _one_of("attention.at", self.attention.at, ("backbone", "heads", "both"))
        detects, label = self.data.task != "classification", self.data.label
        if detects and self.detector.architecture == "none":
            raise UserError(f"{label} has boxes; add detector=faster_rcnn or another of configs/detector.")
        if not detects and self.detector.architecture != "none":
            raise UserError(f"{label} has no boxes; leave out detector={self.detector.name}.")
        if self.recipe.box_augment == "multi_scale" and self.detector.architecture in ("ssd", "ssdlite"):
            raise UserError("recipe.box_augment=multi_scale needs detector=faster_rcnn; SSD has images of one size.")
        if not detects and self.attention.at != "backbone":
            raise UserError(f"attention.at={self.attention.at} needs a detector; {label} has no boxes.")

    @property
    def start_weights(self) -> str | None:
        """What the network starts from; None for random weights."""
        return self.detector.weights or self.model.weights

    @property
    def attention_label(self) -> str:
        """`none`, `cbam`, or with the options that differ from the defaults: `cbam-ratio.8-spatial_norm`."""
        if self.model.attention == "none":
            return "none"
        changed = self.attention.changed().items()
        texts = {key: re.sub(r"[^\w.]+", "_", str(value)).strip("_") for key, value in changed}
        return "-".join(
            [self.model.attention, *(key if text == "True" else f"{key}.{text}" for key, text in texts.items())]
        )

    @property
    def attention_options(self) -> dict[str, Any]:
        """The keyword arguments of `models.build` for the attention."""
        return self.attention.options(self.model.attention)

    @property
    def model_label(self) -> str:
        """`resnet50`, `resnet50_cbam`, `resnet50_cbam-ratio.8`, `faster_rcnn-resnet50_cbam`."""
        detector = "" if self.detector.architecture == "none" else f"{self.detector.name}-"
        attention = "" if self.model.attention == "none" else f"_{self.attention_label}"
        return f"{detector}{self.model.name}{attention}"

    @property
    def run_directory(self) -> str:
        return self.run.dir or f"{self.run.root}/{self.data.label}/{self.model_label}/seed{self.seed}"


@dataclass
class ExportConfig:
    """One network as a file for other runtimes."""

    model: ModelConfig = field(default_factory=ModelConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    classes: int = 1000  # outputs of the head
    image_size: int = 224  # side of the images, pixels
    file: str = MISSING  # where to: NAME.onnx, or NAME.pt2 for torch.export

    def check(self) -> None:
        _at_least("image_size", self.image_size, 1)
        if not self.file.endswith((".onnx", ".pt2")):
            raise UserError(f"file={self.file} has to end in .onnx or .pt2.")


@dataclass
class TableConfig:
    """Where the table goes, and what it holds besides errors."""

    dir: str | None = None  # null: results/DATA
    throughput_batch_size: int | None = None  # images per batch to measure images/s at; null: not measured
    allow_mixed: bool = False  # take runs of several recipes, and mark those that differ from the first run's

    def check(self) -> None:
        if self.throughput_batch_size is not None:
            _at_least("table.throughput_batch_size", self.throughput_batch_size, 1)


@dataclass
class EvaluateConfig:
    """One comparison table."""

    data: DataConfig = field(default_factory=DataConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    table: TableConfig = field(default_factory=TableConfig)
    run: RunsConfig = field(default_factory=RunsConfig)
    runs: list[str] | None = None  # run directories; null: every finished run under ROOT/DATA
    published: list[str] = field(default_factory=list)  # backbones evaluated with their published weights, as they are
    weights: str = "IMAGENET1K_V1"  # which published weights

    def check(self) -> None:
        for part in (self.data, self.runtime, self.table):
            part.check()


# Keys of earlier versions.
RENAMED_KEYS = {"recipe.accumulate": "recipe.accumulation_steps", "attention.start": "attention.init"}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of dotted keys under the keys' current names."""
    return {RENAMED_KEYS.get(key, key): value for key, value in values.items()}


def register(networks: Mapping[str, str | None]) -> None:
    """Give Hydra the schemas that the files in `configs/` are checked against, and the group `model`.

    Args:
        networks: the weights that each backbone starts from by default. Each is selected by its name, and with
            attention by NAME_cbam and NAME_se.
    """
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="export_schema", node=ExportConfig)
    for name, weights in networks.items():
        store.store(group="model", name=name, node={"name": name, "weights": weights})
        for attention in ("cbam", "se"):
            defaults = [f"{name}@model", {"override /attention": attention}]
            store.store(group="model", name=f"{name}_{attention}", package="_global_", node={"defaults": defaults})


def parse(config: DictConfig) -> Any:
    """The composed configuration as the dataclass of its schema, its values checked.

    Raises:
        UserError: naming the first key that is missing or out of range.
    """
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise UserError(f"No value for {', '.join(sorted(missing))}; give it as KEY=VALUE.")
    parsed: Any = OmegaConf.to_object(config)
    _refuse_unknown_keys(parsed)
    parsed.check()
    return parsed


def _refuse_unknown_keys(section: Any, prefix: str = "") -> None:
    """Hydra lets `+key=value` add to a schema; such a key would be ignored."""
    known = {item.name for item in dataclasses.fields(section)}
    for key, value in vars(section).items():
        if key not in known:
            raise UserError(f"There is no key {prefix}{key}; known are {', '.join(sorted(known))}.")
        if dataclasses.is_dataclass(value):
            _refuse_unknown_keys(value, f"{prefix}{key}.")


def _filled(key: str, value: str) -> None:
    if not value:
        raise UserError(f"{key} is empty; give it a path.")


def _name(key: str, value: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", value):
        raise UserError(f"{key}={value!r} is no name for a folder; use letters, digits, '_', '-' and '.'.")


def _one_of(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value} is not known; it is one of {', '.join(choices)}.")


def _at_least(key: str, value: float, low: float) -> None:
    if not low <= value < math.inf:
        raise UserError(f"{key}={value} is out of range; it is at least {low}.")


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{key}={value} is out of range; it is between {low} and {high}.")
