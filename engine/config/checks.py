"""Checks of configured values, each raising a UserError that names the key and its range."""

import math
import re
from collections.abc import Sequence

from engine.errors import UserError


def filled(key: str, value: str) -> None:
    if not value:
        raise UserError(f"{key} is empty; give it a path.")


def named(key: str, value: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", value):
        raise UserError(f"{key}={value!r} is not a valid folder name; use letters, digits, '_', '-' and '.'.")


def one_of(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value} is unknown; choose one of {', '.join(choices)}.")


def at_least(key: str, value: float, low: float) -> None:
    if not low <= value < math.inf:
        raise UserError(f"{key}={value} is out of range; it must be at least {low}.")


def above(key: str, value: float, low: float) -> None:
    if not low < value < math.inf:
        raise UserError(f"{key}={value} is out of range; it must be above {low}.")


def between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{key}={value} is out of range; it must be between {low} and {high}.")
