"""Typed configuration keys with their units and ranges. The values are in `configs/`."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from engine.checks import at_least, between, filled, named, one_of
from engine.data_config import DataConfig
from engine.errors import UserError
from engine.recipe_config import CLASSIFICATION_KEYS, RecipeConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NETWORKS = CONFIGS / "networks.yaml"


@dataclass
class ModelConfig:
    """The network and its start weights."""

    name: str = MISSING  # backbone, e.g. `resnet50`: see models.names(), or timm.list_models() for library=timm
    library: str = "torchvision"  # torchvision: models.names() | timm | custom: model.factory
    factory: str | None = None  # for library=custom: package.module:function, which takes num_classes
    attention: str = "none"  # none | cbam | se
    weights: str | None = None  # published name (`default` for timm), path of a file, or null for random weights

    def check(self) -> None:
        one_of("model.library", self.library, ("torchvision", "timm", "custom"))
        if self.library == "custom" and not re.fullmatch(r"[\w.]+:\w+", self.factory or ""):
            raise UserError(f"model=custom needs model.factory=package.module:function; got {self.factory or 'none'}.")
        if self.library != "custom" and self.factory is not None:
            raise UserError(f"model.factory={self.factory} needs model=custom.")

    @property
    def network(self) -> str:
        """The name for `models.build`: `resnet50`, `timm/convnext_atto`, `package.module:function`."""
        return self.factory or (f"timm/{self.name}" if self.library == "timm" else self.name)

    @property
    def label(self) -> str:
        """The network's name in records, tables and run directories: `timm.convnext_atto`."""
        return re.sub(r"[/:]", ".", self.network)


@dataclass
class AttentionConfig:
    """Options of the attention module; squeeze-and-excitation has only `ratio`, `init`, `after` and `at`."""

    ratio: int = 16  # reduction of the channel gate's MLP
    kernel_size: int = 7  # side of the spatial gate's convolution, odd
    pooling: str = "both"  # of the channel gate: avg | max | both
    mlp_bias: bool = False  # biases in the channel gate's MLP
    spatial_pooling: str = "mean_max"  # of the spatial gate: mean_max | conv: a 1x1 convolution to one plane
    spatial_norm: bool = False  # BatchNorm after the spatial gate's convolution
    order: str = "channel_spatial"  # channel_spatial | spatial_channel | parallel | channel | spatial
    output: str = "refined"  # refined: F''; residual: F'' + F
    after: str | None = None  # regular expression for the modules that attention follows; null: the family's default
    init: str | None = None  # identity | random; null: identity with start weights, random without
    at: str = "backbone"  # for detectors: backbone | heads: on each feature map before its prediction head | both

    def options(self, kind: str) -> dict[str, Any]:
        """Return the keyword arguments of `models.build` for attention of this kind.

        Raises:
            UserError: if an option is set that this kind does not have; the error names it.
        """
        options = dataclasses.asdict(self)
        known = {"none": ("init",), "se": ("ratio", "init", "after", "at")}.get(kind, tuple(options))
        for key in self.changed():
            if key not in known:
                advice = "add attention=cbam, or " if kind == "none" else ""
                raise UserError(f"attention.{key} is not an option of attention={kind}; {advice}leave it out.")
        return {"start" if key == "init" else key: options[key] for key in known if key != "at"}

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from the defaults."""
        default = AttentionConfig()
        return {key: value for key, value in vars(self).items() if value != getattr(default, key)}


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


@dataclass
class RuntimeConfig:
    """Settings of the computation: device, precision, workers and determinism."""

    device: str = "auto"  # auto | cpu | cuda
    precision: str = "fp32"  # fp32, or autocast to bf16 | fp16
    workers: int | None = None  # worker processes per data loader; 0: none; null: one per processor, at most 8
    cache_images: bool = False  # each training process keeps its decoded images in memory; for small data sets
    deterministic: bool = True  # bit-identical reruns; false is faster on CUDA
    channels_last: bool = True  # memory format of the weights, and of the images in training
    compile: bool = False  # torch.compile
    fused_cbam: bool = False  # train CBAM with Triton kernels, on CUDA; no effect on other attention
    sync_batchnorm: bool = False  # compute batch statistics over all processes; false: over each process's images
    eval_batch_size: int = 256  # images per batch and process

    def check(self) -> None:
        one_of("runtime.device", self.device, ("auto", "cpu", "cuda"))
        one_of("runtime.precision", self.precision, ("fp32", "bf16", "fp16"))
        if self.workers is not None:
            between("runtime.workers", self.workers, 0, 1024)
        between("runtime.eval_batch_size", self.eval_batch_size, 1, 65536)


@dataclass
class RunConfig:
    """Run directory, checkpoints and logging."""

    root: str = "runs"  # folder of all runs
    dir: str | None = None  # null: ROOT/DATA/MODEL/seedSEED
    checkpoint_every_steps: int | None = None  # in addition to the end of each epoch; null: disabled
    checkpoint_every_minutes: float | None = 15.0  # the same, by wall-clock time; null: disabled
    log_every_steps: int = 50  # TensorBoard interval of loss and learning rate
    pictures: int = 4  # validation images to visualize after each epoch; 0: none; classification needs matplotlib

    def check(self) -> None:
        filled("run.root", self.root)
        if self.dir is not None:
            filled("run.dir", self.dir)
        if self.checkpoint_every_steps is not None:
            at_least("run.checkpoint_every_steps", self.checkpoint_every_steps, 1)
        if self.checkpoint_every_minutes is not None:
            at_least("run.checkpoint_every_minutes", self.checkpoint_every_minutes, 0.0)
        at_least("run.log_every_steps", self.log_every_steps, 1)
        between("run.pictures", self.pictures, 0, 64)


@dataclass
class RunsConfig:
    """Location of finished runs."""

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
        for part in (self.model, self.data, self.detector, self.recipe, self.runtime, self.run):
            part.check()
        self._check_detector()
        self.attention.options(self.model.attention)
        between("seed", self.seed, 0, 2**63 - 1)

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
        if not detects and self.attention.at != "backbone":
            raise UserError(f"attention.at={self.attention.at} needs a detector; {label} has no boxes.")

    @property
    def start_weights(self) -> str | None:
        """The start weights; None for random weights."""
        return self.detector.weights or self.model.weights

    @property
    def attention_label(self) -> str:
        """The attention with its non-default options: `none`, `cbam`, `cbam-ratio.8-spatial_norm`.

        It includes the learning rate factor of the last norms unless it is 1, so that such a run has its own row in a
        table.
        """
        changed = [] if self.model.attention == "none" else [*self.attention.changed().items()]
        if self.recipe.last_norms_lr_factor != 1:
            changed.append(("last_norms_lr", f"{self.recipe.last_norms_lr_factor:g}"))
        texts = {key: _file_name(str(value)) for key, value in changed}
        return "-".join(
            [self.model.attention, *(key if text == "True" else f"{key}.{text}" for key, text in texts.items())]
        )

    @property
    def attention_lr_factor(self) -> float:
        """The learning rate factor of attention; 1 for a network without attention."""
        return 1.0 if self.model.attention == "none" else self.recipe.attention_lr_factor

    @property
    def attention_options(self) -> dict[str, Any]:
        """The keyword arguments of `models.build` for the attention."""
        return self.attention.options(self.model.attention)

    @property
    def model_label(self) -> str:
        """The model's name in paths: `resnet50`, `resnet50_cbam-ratio.8`, `faster_rcnn-resnet50_cbam`."""
        detector = "" if self.detector.architecture == "none" else f"{self.detector.name}-"
        attention = "" if self.attention_label == "none" else f"_{self.attention_label}"
        return f"{detector}{self.model.label}{attention}"

    @property
    def run_directory(self) -> str:
        return self.run.dir or f"{self.run.root}/{self.data.label}/{self.model_label}/seed{self.seed}"


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
        at_least("image_size", self.image_size, 1)
        if not self.file.endswith((".onnx", ".pt2")):
            raise UserError(f"file={self.file} must end in .onnx or .pt2.")


@dataclass
class TableConfig:
    """Location and contents of the comparison table."""

    dir: str | None = None  # null: results/DATA
    throughput_batch_size: int | None = None  # batch size for measuring images/s; null: not measured
    allow_mixed: bool = False  # accept runs of several recipes, and mark those that differ from the first run's

    def check(self) -> None:
        if self.dir is not None:
            filled("table.dir", self.dir)
        if self.throughput_batch_size is not None:
            at_least("table.throughput_batch_size", self.throughput_batch_size, 1)


@dataclass
class EvaluateConfig:
    """One comparison table."""

    data: DataConfig = field(default_factory=DataConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    table: TableConfig = field(default_factory=TableConfig)
    run: RunsConfig = field(default_factory=RunsConfig)
    runs: list[str] | None = None  # run directories; null: all finished runs on this data set, or on its trained_on
    published: list[str] = field(default_factory=list)  # backbones to evaluate with their unmodified published weights
    weights: str | None = None  # name of the published weights; null: IMAGENET1K_V1, or COCO_V1 for detectors

    def check(self) -> None:
        for part in (self.data, self.runtime, self.table):
            part.check()


# Keys of earlier versions.
RENAMED_KEYS = {"recipe.accumulate": "recipe.accumulation_steps", "attention.start": "attention.init"}


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of dotted keys under the keys' current names."""
    return {RENAMED_KEYS.get(key, key): value for key, value in values.items()}


def detector_preset(architecture: str) -> DetectorConfig:
    """Return the preset with torchvision's sizes, which published weights of an architecture need."""
    name = {"faster_rcnn": "faster_rcnn", "ssd": "ssd300", "ssdlite": "ssdlite320"}[architecture]
    values = OmegaConf.load(CONFIGS / "detector" / f"{name}.yaml")
    preset: Any = OmegaConf.to_object(OmegaConf.merge(DetectorConfig, values))
    return preset


def default_weights() -> dict[str, str | None]:
    """Return the default start weights of each backbone."""
    return {str(name): weights for name, weights in OmegaConf.load(NETWORKS).items()}


def register() -> None:
    """Register with Hydra the schemas of the files in `configs/`, and the group `model`.

    Each backbone of `configs/networks.yaml` is selected by NAME, and with attention by NAME_cbam or NAME_se.
    """
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="export_schema", node=ExportConfig)
    store.store(group="model", name="timm", node={"library": "timm", "weights": "default"})
    store.store(group="model", name="custom", node={"library": "custom", "name": "custom"})
    for name, weights in default_weights().items():
        store.store(group="model", name=name, node={"name": name, "weights": weights})
        for attention in ("cbam", "se"):
            defaults = [f"{name}@model", {"override /attention": attention}]
            store.store(group="model", name=f"{name}_{attention}", package="_global_", node={"defaults": defaults})


def parse(config: DictConfig) -> Any:
    """Return the composed configuration as the dataclass of its schema, with checked values.

    Raises:
        UserError: if keys are missing, or a key is out of range; the error names all missing keys, or the first that is
            out of range.
    """
    missing = OmegaConf.missing_keys(config)
    if missing:
        raise UserError(f"Missing value for {', '.join(sorted(missing))}; set it with KEY=VALUE.")
    parsed: Any = OmegaConf.to_object(config)
    _refuse_unknown_keys(parsed)
    parsed.check()
    return parsed


def _refuse_unknown_keys(section: Any, prefix: str = "") -> None:
    """Reject keys that Hydra's `+key=value` added to a schema, which would be ignored."""
    known = {item.name for item in dataclasses.fields(section)}
    for key, value in vars(section).items():
        if key not in known:
            raise UserError(f"There is no key {prefix}{key}; known keys: {', '.join(sorted(known))}.")
        if dataclasses.is_dataclass(value):
            _refuse_unknown_keys(value, f"{prefix}{key}.")


def _file_name(text: str) -> str:
    """Return a string without special characters. If any were removed, append a digest to keep names unique."""
    name = re.sub(r"[^\w.]+", "_", text).strip("_")
    return name if name == text else f"{name[:60]}.{hashlib.sha256(text.encode()).hexdigest()[:6]}"
