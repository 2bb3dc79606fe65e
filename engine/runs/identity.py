"""The part of a configuration that determines a run's result."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from engine.config.attention import foreign_options, schema
from engine.config.schemas import RENAMED_KEYS, TrainConfig, renamed

# Keys that do not identify a run: where it is computed (its record names the hardware), and what it writes on the way.
_NOT_RESULT = (
    *("run.", "recipe.name", "data.root", "data.groups"),
    *("runtime.device", "runtime.workers", "runtime.cache_images"),
)

# Without attention, keys that have no effect are set to their defaults.
_WITHOUT_ATTENTION = {"recipe.attention_lr_factor": 1.0, "recipe.decay_attention": True}


def result_config(config: TrainConfig) -> dict[str, Any]:
    """Return the keys that determine the result of a run, with dots: {"recipe.lr": 0.01, ...}."""
    flat: dict[str, Any] = {}
    for section, values in dataclasses.asdict(config).items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
        else:
            flat[section] = values
    flat["attention.calibrate"] = config.calibration_images
    if config.model.attention == "none":
        flat |= _WITHOUT_ATTENTION
    return {key: value for key, value in flat.items() if not key.startswith(_NOT_RESULT)}


def mismatches(state: dict[str, Any], config: TrainConfig) -> list[str]:
    """Return the keys in which a checkpoint's configuration differs from this one.

    A key that the checkpoint lacks had its default when the checkpoint was written.
    """
    expected = result_config(config)
    # Earlier checkpoints lack this key too, whatever its value was.
    default = result_config(TrainConfig(attention=schema(config.attention.kind)()))
    default["runtime.eval_batch_size"] = config.runtime.eval_batch_size
    identity = renamed(state.get("identity", {}))
    foreign = {f"attention.{key}" for key in foreign_options(identity.get("model.attention", "none"))}
    written = default | {key: value for key, value in identity.items() if key not in foreign}
    return sorted(key for key in written.keys() | expected.keys() if written.get(key) != expected.get(key))


def recorded_label(record: Mapping[str, Any], config: TrainConfig) -> str:
    """Return the attention label of a run's record, as this version writes it."""
    label = current_label(record["attention"])
    is_of_earlier_version = "calibration_images" not in record
    configured = config.attention_label
    return configured if is_of_earlier_version and configured.replace("-calibrate.0", "") == label else label


def current_label(attention: str) -> str:
    """Return an attention label recorded by an earlier version, as this version writes it."""
    return attention.replace("start=", "init=").replace("=", ".")


def with_current_keys(stored: Any) -> Any:
    """Return a configuration that an earlier version wrote with the keys that this version has."""
    for old, new in RENAMED_KEYS.items():
        section, key = old.split(".")
        if key in stored.get(section, {}):
            stored[section][new.split(".")[1]] = stored[section].pop(key)
    stored.setdefault("attention", {}).setdefault("calibrate", 0)  # earlier versions did not calibrate
    for key in foreign_options(stored.get("model", {}).get("attention", "none")):
        stored.get("attention", {}).pop(key, None)
    return stored
