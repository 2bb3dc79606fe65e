"""Entry points for torch.hub: every network, under its name in `models.build`.

torch.hub.load("OWNER/REPOSITORY", "resnet50_cbam", weights="checkpoint/last.pt")
"""

from collections.abc import Callable as _Callable
from functools import partial as _partial
from functools import update_wrapper as _update_wrapper
from pathlib import Path as _Path

from torch.nn import Module as _Module

import models as _models

dependencies = ["torch", "torchvision"]

if _Path(_models.__file__).resolve().parents[1] != _Path(__file__).resolve().parent:
    raise ImportError(
        f"Another package named `models` is already imported from {_models.__file__}; call torch.hub before importing "
        "it, or in a separate process."
    )


_SUFFIXES = ("", *(f"_{kind}" for kind in _models.ATTENTION_KINDS))


def __dir__() -> list[str]:
    return ["dependencies", *(f"{name}{suffix}" for name in _models.names() for suffix in _SUFFIXES)]


def __getattr__(name: str) -> _Callable[..., _Module]:
    """Return the entry point of a network: `models.build` with its name."""
    if name not in __dir__():
        raise AttributeError(name)
    return _update_wrapper(_partial(_models.build, name), _models.build)
