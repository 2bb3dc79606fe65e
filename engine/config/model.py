"""The keys of `model`: the network and its start weights."""

import re
from dataclasses import dataclass

from omegaconf import MISSING

from engine.config.checks import one_of
from engine.errors import UserError


@dataclass
class ModelConfig:
    """The network and its start weights."""

    name: str = MISSING  # backbone, e.g. `resnet50`: see models.names(), or timm.list_models() for library=timm
    library: str = "torchvision"  # torchvision: models.names() | timm | custom: model.factory
    factory: str | None = None  # for library=custom: package.module:function, which takes num_classes
    attention: str = "none"  # set by attention=KIND: a kind of configs/attention_kinds.yaml
    weights: str | None = None  # published name (`default` for timm), path of a file, or null for random weights
    # Entry of the file that contains the weights, or their prefix; null: found, a moving average if there is one.
    weights_key: str | None = None
    head: str | None = None  # name of the layer with an output for each class; null: found

    def check(self) -> None:
        one_of("model.library", self.library, ("torchvision", "timm", "custom"))
        if self.library == "custom" and not re.fullmatch(r"[\w.]+:\w+", self.factory or ""):
            raise UserError(f"model=custom needs model.factory=package.module:function; got {self.factory or 'none'}.")
        if self.library != "custom" and self.factory is not None:
            raise UserError(f"model.factory={self.factory} needs model=custom.")
        if self.weights_key is not None and self.weights is None:
            raise UserError(f"model.weights_key={self.weights_key} needs model.weights=FILE.")

    @property
    def network(self) -> str:
        """The name for `models.build`: `resnet50`, `timm/convnext_atto`, `package.module:function`."""
        return self.factory or (f"timm/{self.name}" if self.library == "timm" else self.name)

    @property
    def label(self) -> str:
        """The network's name in records, tables and run directories: `timm.convnext_atto`."""
        return label(self.network)


def label(network: str) -> str:
    """Return the name for records and tables of a name for `models.build`."""
    return re.sub(r"[/:]", ".", network)
