"""Exponential moving average of the weights, with the schedule of torchvision's reference training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.config.recipe import RecipeConfig


def effective_decay(recipe: RecipeConfig) -> float:
    """Return the decay of one update: `ema_decay` adjusted to the images between updates and the training length.

    As in torchvision's references/classification, 1 - ema_decay is multiplied by batch_size * ema_every_steps / epochs
    and limited to 1.
    """
    assert recipe.ema_decay is not None
    share = (1 - recipe.ema_decay) * recipe.batch_size * recipe.ema_every_steps / recipe.epochs
    return 1 - min(1.0, share)


def _update_function(decay: float) -> Callable[..., None]:
    """Return torch's update of an average, except that integers are copied.

    torch truncates their average, so that 3 can become 2. A detector's class indices are such buffers.
    """
    average = get_ema_multi_avg_fn(decay)

    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], updates: torch.Tensor) -> None:
        if averaged[0].is_floating_point():  # torch passes one list for each dtype
            average(averaged, current, updates)
        else:
            torch._foreach_copy_(averaged, current)

    return update


class WeightAverage:
    """The average of a model's parameters and buffers.

    Attributes:
        model: model with the averaged weights; integers, such as counters, are the latest.
    """

    def __init__(self, model: nn.Module, recipe: RecipeConfig) -> None:
        self.recipe = recipe
        update = _update_function(effective_decay(recipe))
        self._averaged = AveragedModel(model, multi_avg_fn=update, use_buffers=True).requires_grad_(False)

    @property
    def model(self) -> nn.Module:
        return self._averaged.module

    def update(self, model: nn.Module, epoch: int, step: int) -> None:
        """Update the average after a step, if an update is due.

        Args:
            epoch: completed epochs; during warm-up, the average is a copy of the weights.
            step: step of the epoch, counted from 0.
        """
        if step % self.recipe.ema_every_steps == 0:
            self._averaged.update_parameters(model)
            if epoch < self.recipe.warmup_epochs:
                self._averaged.n_averaged.fill_(0)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": int(self._averaged.n_averaged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._averaged.n_averaged.fill_(state["updates"])
