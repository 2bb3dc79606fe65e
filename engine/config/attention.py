"""The keys of `attention`. Each kind of attention has its own options, in `configs/attention_kinds.yaml`."""

import dataclasses
import re
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

from omegaconf import DictConfig, OmegaConf

from engine.errors import UserError

KINDS_FILE = Path(__file__).resolve().parents[2] / "configs" / "attention_kinds.yaml"

CALIBRATION_IMAGES = 128  # training images on which the scales are measured by default
# Kinds whose gates can have a scale.
CALIBRATED = ("cbam", "se", "ese", "eca", "ecam", "ceca", "ge", "scoord", "custom")


@dataclass
class AttentionConfig:
    """The keys of every kind of attention. `schema` adds the options of one kind."""

    kind: ClassVar[str] = "none"

    after: str | None = None  # regular expression for the modules that attention follows; null: the family's default
    init: str | None = None  # identity | random; null: identity with start weights, random without
    at: str = "backbone"  # for detectors: backbone | heads: on each feature map before its prediction head | both
    calibrate: int | None = None  # training images that measure the gates' scales at the identity start; 0: none;
    # null: CALIBRATION_IMAGES if the start is the identity with start weights, else 0

    def check(self) -> None:
        """Reject values that would fail only when the network is built.

        Raises:
            UserError: if a value is out of range, or has no effect on a network without attention.
        """
        if self.kind == "none" and self.after is not None:
            raise UserError("attention.after is not an option of attention=none; add attention=cbam, or leave it out.")
        if self.kind == "custom" and not re.fullmatch(r"[\w.]+:\w+", self.own_options()["factory"] or ""):
            factory = self.own_options()["factory"] or "none"
            raise UserError(f"attention=custom needs attention.factory=package.module:Class; got {factory}.")

    def own_options(self) -> dict[str, Any]:
        """Return the options of the kind, which the other kinds do not have."""
        return {key: value for key, value in vars(self).items() if key not in COMMON_KEYS}

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `models.build` for the attention."""
        if self.kind == "none":
            return {"start": self.init}
        return {"start": self.init, "after": self.after, **self.own_options()}

    def overrides(self) -> dict[str, Any]:
        """Return the keys of the command line, with their values, except the keys of the start."""
        values = {**self.own_options(), **{key: getattr(self, key) for key in ("after", "at")}}
        nested = {f"options.{key}": value for key, value in values.pop("options", {}).items()}
        return {f"attention.{key}": value for key, value in (values | nested).items()}

    @property
    def name(self) -> str:
        """The kind's name in labels; for attention=custom, that of its class: `package.module.Class`."""
        return self.own_options()["factory"].replace(":", ".") if self.kind == "custom" else self.kind

    def changed(self) -> dict[str, Any]:
        """Return the options that differ from the kind's defaults, then the common keys that differ from theirs."""
        own, defaults = self.own_options(), kinds()[self.kind]
        if self.kind == "custom":
            own, defaults = own["options"], {}
        common = {key: getattr(self, key) for key in COMMON_KEYS}
        defaults = defaults | {key: getattr(AttentionConfig, key) for key in COMMON_KEYS}
        return {key: value for key, value in (own | common).items() if value != defaults.get(key)}


COMMON_KEYS = tuple(item.name for item in dataclasses.fields(AttentionConfig))


@cache
def kinds() -> dict[str, dict[str, Any]]:
    """Return the kinds of attention, each with its options and their defaults; the first is `none`."""
    values: Any = OmegaConf.to_container(OmegaConf.load(KINDS_FILE))
    return values


@cache
def schema(kind: str) -> type[AttentionConfig]:
    """Return the dataclass of a kind's keys. The type of an option is the type of its default.

    Raises:
        UserError: if there is no such kind.
    """
    if kind not in kinds():
        raise UserError(f"There is no attention={kind}; choose one of {', '.join(kinds())}.")
    options = [_field(name, default) for name, default in kinds()[kind].items()]
    return make_dataclass(f"{kind}_attention", options, bases=(AttentionConfig,), namespace={"kind": kind})


def is_schema(found: object) -> TypeGuard[type[AttentionConfig]]:
    """Return whether an object is the dataclass of a kind's keys."""
    return isinstance(found, type) and issubclass(found, AttentionConfig)


def _field(name: str, default: object) -> tuple[str, Any, Any]:
    if default is None:
        return name, str | None, field(default=None)
    if default == {}:
        return name, dict[str, Any], field(default_factory=dict)
    return name, type(default), field(default=default)


def node(kind: str) -> DictConfig:
    """Return the keys of a kind with their defaults, for OmegaConf."""
    keys: DictConfig = OmegaConf.structured(schema(kind))
    for key, default in kinds()[kind].items():
        if default == {}:
            OmegaConf.set_struct(keys[key], False)  # accepts any name, under Hydra too
    return keys


def foreign_options(kind: str) -> set[str]:
    """Return the options that a kind does not have, but has in the files of earlier versions, with CBAM's defaults."""
    return kinds()["cbam"].keys() - kinds().get(kind, {}).keys()
