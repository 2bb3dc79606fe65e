"""Trainable parts of a network and their learning rate factors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from engine.config.recipe import RecipeConfig
from engine.errors import UserError

# The trainable parts, by `recipe.train`.
_LEARNING = {"attention": ("attention",), "attention_and_head": ("attention", "head"), "head": ("head",)}


@dataclass(frozen=True)
class NetworkParts:
    """The modules of each part of a network, by name.

    Attributes:
        attention: the attention layers.
        head: the output layers.
        last_norms: the norms that attention follows, or would follow.
        stages: stage of each parameter outside attention, 0 nearest to the image; empty without layer decay.
    """

    attention: Sequence[str] = ()
    head: Sequence[str] = ()
    last_norms: Sequence[str] = ()
    stages: Mapping[str, int] = field(default_factory=dict)

    def contains(self, part: str, name: str) -> bool:
        """Return whether a parameter or module is in `attention`, `head` or `last_norms`."""
        return f"{name}.".startswith(tuple(f"{module}." for module in getattr(self, part)))

    def learning_rate_factor(self, name: str, recipe: RecipeConfig) -> float:
        """Return the learning rate factor of a parameter."""
        if self.contains("attention", name):
            return recipe.attention_lr_factor
        if self.contains("head", name):
            return recipe.head_lr_factor
        own = recipe.last_norms_lr_factor if self.contains("last_norms", name) else 1.0
        if not self.stages:
            return own
        return own * recipe.layer_decay ** (1 + max(self.stages.values()) - self.stages[name])

    def learning_rate_factors(self, names: Iterable[str], recipe: RecipeConfig) -> dict[str, float]:
        """Return the learning rate factor of each part with a factor other than 1: `attention`, `head`, `stage2`, ...

        Args:
            names: names of the trained parameters.
        """
        factors = {self._part(name): self.learning_rate_factor(name, recipe) for name in names}
        return {part: factor for part, factor in sorted(factors.items()) if factor != 1}

    def _part(self, name: str) -> str:
        for part in ("attention", "head", "last_norms"):
            if self.contains(part, name):
                return part
        return f"stage{self.stages[name]}" if self.stages else "backbone"


def freeze(model: nn.Module, parts: NetworkParts, recipe: RecipeConfig) -> list[nn.Module]:
    """Freeze, in place, all parameters that the recipe does not train.

    Returns:
        The frozen norms, which have to stay in evaluation mode to keep their running statistics.

    Raises:
        UserError: if the recipe treats the head or the last norms differently but the network has none that is known.
    """
    for key, is_set in (
        (f"train={recipe.train}", "head" in _LEARNING.get(recipe.train, ())),
        (f"head_lr_factor={recipe.head_lr_factor:g}", recipe.head_lr_factor != 1),
    ):
        if is_set and not parts.head:
            raise UserError(
                f"recipe.{key} needs the network's head, which was not found because no single linear layer produces "
                "the output; set model.head=NAME to the name of the layer with an output for each class."
            )
    if recipe.last_norms_lr_factor != 1 and not parts.last_norms:
        raise UserError(
            "recipe.last_norms_lr_factor is set, but there is no norm where attention would be; leave it out."
        )
    if recipe.train == "all":
        return []
    learning = _LEARNING[recipe.train]

    def learns(name: str) -> bool:
        return any(parts.contains(part, name) for part in learning)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(name))
    return [module for name, module in model.named_modules() if isinstance(module, _NormBase) and not learns(name)]
