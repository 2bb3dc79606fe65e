"""The description of a kind of attention."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cbam import AttentionLayer
from models.errors import ModelError


@dataclass(frozen=True)
class Kind:
    """A kind of attention.

    Attributes:
        name: of `attention=NAME`, and of the networks `BACKBONE_NAME`.
        make: function of the number of channels and the options that returns a randomly initialized layer, which has
            the gates and the identity start.
        options: names of the options, each with its default. Its type is the type of the option.
    """

    name: str
    make: Callable[..., AttentionLayer]
    options: Mapping[str, Any]

    def layer(self, channels: int, options: Mapping[str, Any]) -> AttentionLayer:
        """Return a randomly initialized layer.

        Raises:
            ModelError: if an option is unknown or out of range, or the kind needs a package that is not installed.
        """
        unknown = [key for key in options if key not in self.options]
        if unknown:
            known = f"it has {', '.join(self.options)}" if self.options else "it has none"
            raise ModelError(f"Attention '{self.name}' has no option '{unknown[0]}'; {known}.")
        try:
            return self.make(channels, **{**self.options, **options})
        except ModelError:
            raise
        except (TypeError, ValueError) as error:
            raise ModelError(f"Attention '{self.name}' cannot be built: {error}") from error


def defaults(function: Callable[..., object]) -> dict[str, Any]:
    """Return the parameters of a function or class that have a default, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}
