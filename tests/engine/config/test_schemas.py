"""Checks of configured values."""

from dataclasses import replace
from typing import Any

import pytest
from hydra import initialize_config_dir

import models
from engine.config import presets
from engine.config.attention import CALIBRATED
from engine.config.near_keys import near_keys
from engine.config.preprocessing import PreprocessingConfig
from engine.config.recipe import RecipeConfig
from engine.config.schemas import TableConfig, TrainConfig
from engine.errors import UserError


def test_a_crop_above_the_presets_resize_names_both_keys() -> None:
    data = compose("data=tiny_imagenet").data
    with pytest.raises(UserError, match=r"data.image_size=96 is larger than data.resize=64, .*for example data.resize"):
        replace(data, image_size=96).check()
    replace(data, image_size=96, resize=None).check()


def test_calibration_is_a_key_of_kinds_whose_gates_have_a_scale() -> None:
    for kind in models.ATTENTION_KINDS:
        if kind != "custom":
            net = models.build("mobilenet_v3_small", kind, start="identity", image_size=64)
            assert bool(models.gates_at_start(net)) == (kind in CALIBRATED), kind
    config = compose("model=resnet18_coord")
    assert config.attention_label == "coord"
    assert replace(config, attention=replace(config.attention, calibrate=0)).attention_label == "coord"
    with pytest.raises(UserError, match=r"attention.calibrate=0 has no effect on attention=coord; leave it out"):
        compose("model=resnet18_coord", "attention.calibrate=0")
    assert compose("model=resnet18_eca", "attention.calibrate=0").attention_label == "eca-calibrate.0"


def compose(*arguments: str) -> TrainConfig:
    presets.register(arguments)
    with initialize_config_dir(str(presets.CONFIGS), version_base="1.3"):
        config: TrainConfig = presets.parse(presets.compose("train", arguments))
    return config


@pytest.mark.parametrize(
    ("key", "section", "expected"),
    [
        ("epoch", RecipeConfig, ["epochs"]),
        ("learning_rate", RecipeConfig, ["lr"]),
        ("wd", RecipeConfig, ["weight_decay"]),
        ("epochs", TrainConfig, ["recipe.epochs"]),
        ("recpie", TrainConfig, ["recipe"]),
        ("colour", RecipeConfig, []),
    ],
)
def test_near_keys_are_those_that_may_be_meant(key: str, section: type, expected: list[str]) -> None:
    assert near_keys(key, section)[:1] == expected


def test_an_empty_table_folder_is_refused() -> None:
    with pytest.raises(UserError, match=r"table\.dir is empty"):
        TableConfig(dir="").check()


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"mean": [0.5]}, r"preprocessing\.mean=\[0\.5\] must have a value for each of the 3 channels"),
        ({"mean": [127.5] * 3}, r"preprocessing\.mean=127\.5 is out of range; it must be between 0\.0 and 1\.0"),
        ({"std": [0.5, 0.0, 0.5]}, r"preprocessing\.std=0\.0 is out of range; it must be above 0"),
        ({"interpolation": "cubic"}, r"preprocessing\.interpolation=cubic is unknown; choose one of bilinear, bicubic"),
        ({"crop_ratio": 1.5}, r"preprocessing\.crop_ratio=1\.5 is out of range"),
    ],
)
def test_a_preprocessing_out_of_range_is_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        PreprocessingConfig(**values).check()
