"""The presets of `configs/`, and the composed configuration as typed dataclasses."""

import dataclasses
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from engine.config import attention
from engine.config.detector import DetectorConfig
from engine.config.recipe import RecipeConfig
from engine.config.schemas import CheckDataConfig, EvaluateConfig, ExportConfig, TrainConfig
from engine.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
NETWORKS = CONFIGS / "networks.yaml"


def detector_preset(architecture: str) -> DetectorConfig:
    """Return the preset with torchvision's sizes, which published weights of an architecture need."""
    name = {"faster_rcnn": "faster_rcnn", "ssd": "ssd300", "ssdlite": "ssdlite320"}[architecture]
    values = OmegaConf.load(CONFIGS / "detector" / f"{name}.yaml")
    preset: Any = OmegaConf.to_object(OmegaConf.merge(DetectorConfig, values))
    return preset


def changed_recipe_keys(recipe: RecipeConfig) -> dict[str, Any]:
    """Return the keys that differ from the recipe's preset; empty if the recipe has no preset."""
    file = CONFIGS / "recipe" / f"{recipe.name}.yaml"
    if not file.is_file():
        return {}
    stored: Any = OmegaConf.to_container(OmegaConf.load(file))
    preset: Any = OmegaConf.to_object(OmegaConf.merge(RecipeConfig, stored.get("recipe", stored)))
    return {key: value for key, value in vars(recipe).items() if value != getattr(preset, key)}


@cache
def default_weights() -> dict[str, str | None]:
    """Return the default start weights of each backbone."""
    return {str(name): weights for name, weights in OmegaConf.load(NETWORKS).items()}


def register(arguments: Sequence[str] = ()) -> None:
    """Register with Hydra the schemas of the files in `configs/`, and the groups `attention` and `model`.

    Each kind of `configs/attention_kinds.yaml` is selected by attention=KIND. Each backbone of `configs/networks.yaml`
    is selected by model=NAME, and with attention by model=NAME_KIND. Of the last, only those that the arguments select
    are registered: all of them would take a second.
    """
    _register_groups()
    store, backbones = ConfigStore.instance(), default_weights()
    for name in {name for argument in arguments for name in _selected_models(argument)}:
        backbone, _, kind = name.rpartition("_")
        if backbone in backbones and kind in attention.kinds() and kind != "none":
            defaults = [f"{backbone}@model", {"override /attention": kind}]
            store.store(group="model", name=name, package="_global_", node={"defaults": defaults})


def _selected_models(argument: str) -> list[str]:
    """Return the names in `model=NAME,NAME`; all of them for a glob."""
    key, _, names = argument.partition("=")
    if key.lstrip("+") != "model":
        return []
    if "glob(" in names:
        return models_with_attention()
    return re.findall(r"\w+", names)


def models_with_attention() -> list[str]:
    """Return every NAME_KIND that `model` accepts."""
    return [f"{name}_{kind}" for name in default_weights() for kind in attention.kinds() if kind != "none"]


@cache
def _register_groups() -> None:
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="export_schema", node=ExportConfig)
    store.store(name="check_data_schema", node=CheckDataConfig)
    store.store(group="model", name="timm", node={"library": "timm", "weights": "default"})
    store.store(group="model", name="custom", node={"library": "custom", "name": "custom"})
    for kind in attention.kinds():
        keys = OmegaConf.create({"model": {"attention": kind}, "attention": attention.node(kind)})
        store.store(group="attention", name=kind, package="_global_", node=keys)
    for name, weights in default_weights().items():
        store.store(group="model", name=name, node={"name": name, "weights": weights})


def compose(primary: str, arguments: Sequence[str]) -> DictConfig:
    """Return the configuration of `configs/PRIMARY.yaml` with the arguments, inside `hydra.initialize_config_dir`."""
    register(arguments)
    return hydra.compose(primary, list(arguments))


def with_usual_presets(arguments: Sequence[str]) -> list[str]:
    """Add the detector that a data set names, and the recipe that a detector names, unless the arguments choose one.

    Hydra's own way, an override in the data set's preset, would need both groups in the evaluation too.
    """
    chosen = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    usual = []
    for group, wanted in (("data", "detector"), ("detector", "recipe")):
        file = CONFIGS / group / f"{chosen.get(group)}.yaml"
        preset = OmegaConf.select(OmegaConf.load(file), wanted) if file.is_file() else None
        if preset is not None and wanted not in chosen:
            chosen[wanted] = preset
            usual.append(f"{wanted}={preset}")
    return [*arguments, *usual]


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
