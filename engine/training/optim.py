"""The learning rate as a pure function of the step, and which parameters decay."""

import math
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer

from engine.config import RecipeConfig


def learning_rate(recipe: RecipeConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one step, counted from 0 over the whole training.

    It rises linearly over `warmup_epochs`, its first step above 0; then it follows a cosine that reaches 0 after
    the last step, or is multiplied by `step_factor` every `step_epochs`, or at each of the `milestones`, counted from
    the start of training.
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
        group["lr"] = value


def build_optimizer(model: nn.Module, recipe: RecipeConfig, fused: bool) -> SGD:
    """SGD over two groups: what weight decay is applied to, and the rest.

    Args:
        fused: by one kernel, which a GradScaler starts even where it skips the step: the momentum of a first step that
            is skipped would then be memory that nobody has written.
    """
    decayed, rest = param_groups_weight_decay(model, recipe.decay_norms_and_biases)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    return SGD(
        [group for group in groups if group["params"]],
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=fused or None,  # None: as torch chooses
    )


def param_groups_weight_decay(model: nn.Module, everything: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(decayed, not decayed): weights of one dimension are those of norms and biases, whatever their name."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if everything:
        return parameters, []
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
