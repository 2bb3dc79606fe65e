"""Warnings about the settings and the result of a run."""

from typing import Any

import numpy as np
import pytest

from engine.analysis.gate_movement import GateMovement
from engine.config.recipe import RecipeConfig
from engine.config.schemas import TrainConfig
from engine.logging import log
from engine.tasks.classification import ClassPredictions
from engine.training import advice
from engine.training.validation import Validation

RECIPE = RecipeConfig(epochs=1, batch_size=4, lr=0.1, weight_decay=0.0)
BALANCED = RecipeConfig(epochs=1, batch_size=4, lr=0.1, weight_decay=0.0, class_weights="balanced")


def record(*images: int) -> dict[str, Any]:
    names = ["glass", "paper", "trash"]
    return {"class_names": names, "class_images": [*images], "train_images": sum(images), "val_images": 4}


def warnings_at_end(predicted: list[int], labels: list[int], recipe: RecipeConfig, facts: dict[str, Any]) -> list[str]:
    ranked = np.array([[label, (label + 1) % 3] for label in predicted])
    predictions = ClassPredictions(np.array(labels), ranked, np.zeros(len(labels), np.float32))
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "warning", lines.append)
        advice.warn_at_end(Validation(predictions, GateMovement({}, {}, {}, {})), recipe, facts)
    return lines


def warnings_at_start(recipe: RecipeConfig, facts: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "warning", lines.append)
        advice.warn_at_start(TrainConfig(recipe=recipe), facts)
    return lines


def test_unbalanced_classes_are_named_from_five_times_as_many_images() -> None:
    (line,) = warnings_at_start(RECIPE, record(12, 1_200, 4))
    assert line == (
        "warning: the classes are unbalanced: 'trash' has 4 training images, 'paper' 1,200. "
        "recipe.class_weights=balanced gives each class the same weight in the loss."
    )
    assert warnings_at_start(RECIPE, record(12, 60, 20))
    assert not warnings_at_start(RECIPE, record(13, 60, 20))
    assert not warnings_at_start(BALANCED, record(12, 60, 4))


def test_boxes_have_no_balance_of_images() -> None:
    assert not warnings_at_start(RECIPE, {"class_names": ["cell"], "train_images": 90})


def test_a_network_that_predicts_one_class_is_told() -> None:
    (line,) = warnings_at_end([1, 1, 1, 1], [0, 1, 1, 2], RECIPE, record(20, 60, 16))
    assert line == (
        "warning: the network predicts 'paper' for all 4 validation images; it has not learned to tell the classes "
        "apart. Train it longer (recipe.epochs) or with a higher rate (recipe.lr)."
    )


def test_it_advises_class_weights_if_the_classes_are_unbalanced() -> None:
    (line,) = warnings_at_end([1, 1, 1, 1], [0, 1, 1, 2], RECIPE, record(12, 60, 4))
    assert line.endswith("(recipe.lr), or weight its classes with recipe.class_weights=balanced.")
    (line,) = warnings_at_end([1, 1, 1, 1], [0, 1, 1, 2], BALANCED, record(12, 60, 4))
    assert "class_weights" not in line


@pytest.mark.parametrize(("predicted", "labels"), [([1, 1, 1, 0], [0, 1, 1, 2]), ([1, 1], [1, 1])])
def test_two_predicted_classes_or_images_of_one_class_are_no_reason(predicted: list[int], labels: list[int]) -> None:
    assert not warnings_at_end(predicted, labels, RECIPE, record(12, 60, 4))
