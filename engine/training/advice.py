"""Warnings about the settings and the result of a run, each with what to do."""

from collections.abc import Mapping
from typing import Any

from engine.analysis.gate_movement import GateMovement
from engine.config.recipe import RecipeConfig
from engine.config.schemas import TrainConfig
from engine.data.loader import FEW_STEPS, small_batch
from engine.logging import log
from engine.tasks.base import Predictions
from engine.training.validation import Validation

# Recipes whose learning rate or frozen parts assume a trained network.
FINE_TUNING = ("finetune", "finetune_modern", "convnext_finetune", "attention_only")

UNBALANCED = 5  # times as many training images in the largest class as in the smallest


def warn_at_start(config: TrainConfig, record: Mapping[str, Any]) -> None:
    """Log warnings about the settings of a run."""
    recipe = config.recipe
    if config.start_weights is None and recipe.name in FINE_TUNING:
        log.warning(
            f"warning: recipe={recipe.name} is for pretrained networks, but this one has random weights. Set "
            "model.weights, or train from scratch with recipe=scratch or recipe=paper."
        )
    _warn_of_few_steps(recipe, record["train_images"])
    _warn_of_unbalanced_classes(recipe, record)


def warn_at_end(validation: Validation, recipe: RecipeConfig, record: Mapping[str, Any]) -> None:
    """Log warnings about a trained network."""
    _warn_of_one_class(validation.predictions, recipe, record)
    _warn_of_saturated_gates(validation.movement)


def _warn_of_few_steps(recipe: RecipeConfig, images: int) -> None:
    steps, smaller = images // recipe.batch_size, small_batch(images)
    if 0 < steps < FEW_STEPS and smaller < recipe.batch_size:
        log.warning(
            f"warning: {images:,} training images and recipe.batch_size={recipe.batch_size} are {steps} "
            f"step{'' if steps == 1 else 's'} per epoch, {steps * recipe.epochs} in all. If training ends too "
            f"early, set recipe.batch_size={smaller} and scale recipe.lr with it, or raise recipe.epochs."
        )


def _warn_of_unbalanced_classes(recipe: RecipeConfig, record: Mapping[str, Any]) -> None:
    if recipe.class_weights == "none" and _is_unbalanced(record):
        images, names = record["class_images"], record["class_names"]
        least, most = min(images), max(images)
        log.warning(
            f"warning: the classes are unbalanced: '{names[images.index(least)]}' has {least:,} training "
            f"image{'' if least == 1 else 's'}, '{names[images.index(most)]}' {most:,}. "
            "recipe.class_weights=balanced gives each class the same weight in the loss."
        )


def _warn_of_one_class(predictions: Predictions, recipe: RecipeConfig, record: Mapping[str, Any]) -> None:
    """Warn of a network that predicts the same class for every validation image."""
    label = predictions.only_class()
    if label is not None:
        is_unweighted = recipe.class_weights == "none" and _is_unbalanced(record)
        balancing = ", or weight its classes with recipe.class_weights=balanced" if is_unweighted else ""
        log.warning(
            f"warning: the network predicts '{record['class_names'][label]}' for all {record['val_images']:,} "
            "validation images; it has not learned to tell the classes apart. Train it longer (recipe.epochs) or with "
            f"a higher rate (recipe.lr){balancing}."
        )


def _warn_of_saturated_gates(movement: GateMovement) -> None:
    saturated = movement.saturated()
    if saturated:
        log.warning(
            f"{len(saturated)} of {len(movement.saturation)} gates are saturated (first: {saturated[0]}): more than "
            "half of their values are below 0.02 or above 0.98. They are a fixed mask and no longer learn. Lower "
            "recipe.attention_lr_factor, and leave attention.calibrate at its default."
        )


def _is_unbalanced(record: Mapping[str, Any]) -> bool:
    images = record.get("class_images", [1])  # missing in detection
    return bool(max(images) >= UNBALANCED * min(images))
