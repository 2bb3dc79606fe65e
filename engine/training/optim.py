"""Optimizer, and the learning rate as a pure function of the step."""

import math
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from engine.config.recipe import RecipeConfig
from engine.training.param_groups import NetworkParts


def learning_rate(recipe: RecipeConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one step, counted from 0 over the whole training.

    It rises linearly over `warmup_epochs` and is above 0 in the first step. Then it follows a cosine that reaches 0
    after the last step, or is multiplied by `step_factor` every `step_epochs` or at each of the `milestones`, counted
    from the start of training.
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    if recipe.schedule == "step":
        return recipe.lr * recipe.step_factor ** (step // steps_per_epoch // recipe.step_epochs)
    if recipe.schedule == "milestones":
        return recipe.lr * recipe.step_factor ** sum(step >= epoch * steps_per_epoch for epoch in recipe.milestones)
    progress = (step - warmup) / (recipe.epochs * steps_per_epoch - warmup)
    return recipe.lr * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("lr_factor", 1.0)  # checkpoints of earlier versions have no factor


def build_optimizer(
    model: nn.Module, recipe: RecipeConfig, fused: bool, parts: NetworkParts | None = None
) -> Optimizer:
    """Return SGD or AdamW over the trainable parameters.

    Args:
        fused: use one kernel. A GradScaler launches it even for a skipped step, so the momentum of a skipped first
            step would be uninitialized memory.
        parts: parts of the model, whose learning rates the recipe can multiply.
    """
    groups = parameter_groups(model, recipe, parts or NetworkParts())
    common: dict[str, Any] = {
        "lr": recipe.lr,
        "weight_decay": recipe.weight_decay,
        "fused": fused or None,
    }  # None: torch's choice
    if recipe.optimizer == "adamw":
        return AdamW(groups, **common)
    return SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov, **common)


def parameter_groups(model: nn.Module, recipe: RecipeConfig, parts: NetworkParts) -> list[dict[str, Any]]:
    """Return the trainable parameters, grouped by weight decay and learning rate factor.

    Groups with weight decay are first.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = _decays(name, parameter, recipe, parts), parts.learning_rate_factor(name, recipe)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        return [{"params": []}]  # no trainable parameters
    return [
        {"params": parameters, "lr_factor": factor} | ({} if decays else {"weight_decay": 0.0})
        for (decays, factor), parameters in sorted(groups.items(), key=lambda group: not group[0][0])
    ]


def _decays(name: str, parameter: nn.Parameter, recipe: RecipeConfig, parts: NetworkParts) -> bool:
    """Return whether weight decay applies; one-dimensional weights are norms and biases, whatever their names."""
    if not recipe.decay_attention and parts.contains("attention", name):
        return False
    return recipe.decay_norms_and_biases or parameter.ndim > 1
