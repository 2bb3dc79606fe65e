"""The number of seeds that a comparison needs, from the variances in a pilot's table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.comparison.columns import is_static, lr_factor
from engine.comparison.compare import SCHEMA
from engine.errors import UserError
from engine.tasks.crossed_model import CONFIDENCE, squared_half_width
from engine.tasks.student import student_quantile

Row = dict[str, Any]

MOST_SEEDS = 50
_DRAWS = 20_000  # simulated comparisons for each number of seeds
_SEED = 51  # of the simulation


@dataclass(frozen=True)
class Contrast:
    """A network of a pilot and the baseline.

    Attributes:
        model, attention: labels of the network.
        lr_factor: factor of its attention's learning rate, as text.
        difference: mean over seeds, in points.
        deviation: standard deviation over seeds, in points.
    """

    model: str
    attention: str
    lr_factor: str
    difference: float
    deviation: float


@dataclass(frozen=True)
class Pilot:
    """The variances of a difference on a set of images, pooled over the contrasts of a table.

    Attributes:
        common, residual: as in `CrossedDifference`, in points squared.
        excess: variance over seeds of the true difference, beyond `residual`, in points squared.
        images: number of images.
        units: number of independent units of images.
        contrasts: contrasts of the pilot.
        seeds: smallest number of seeds of a contrast.
        hours: training time of both networks for one seed; None if the records do not have it.
        of_errors: whether the differences are of top-1 errors.
    """

    common: float
    residual: float
    excess: float
    images: int
    units: int
    contrasts: tuple[Contrast, ...]
    seeds: int
    hours: float | None
    of_errors: bool = True

    @property
    def fixed_share(self) -> float:
        """The part of the variance over images that all seeds share."""
        return self.common / max(self.common + self.residual, np.finfo(float).tiny)

    @property
    def discordance(self) -> float:
        """For top-1 errors, about the share of images that one network of a pair classifies correctly alone."""
        return (self.common + self.residual) * self.images / 100**2

    def on(self, images: int) -> "Pilot":
        """Return the variances on another number of images of the same kind."""
        scale = self.images / images
        units = max(2, round(self.units / scale))
        common, residual = self.common * scale, self.residual * scale
        return replace(self, common=common, residual=residual, images=images, units=units)


def read_pilot(directory: Path, attention: str | None) -> Pilot:
    """Return the variances of a table's contrasts with the baseline.

    Args:
        directory: folder with table.json.
        attention: label of the attention whose contrasts are used; None for all but the controls with static gates.

    Raises:
        UserError: if there is no such table, it has no such contrast with at least two seeds, or all differences are 0.
    """
    file = directory / "table.json"
    tables = sorted(str(below.parent) for below in directory.glob("*/table.json"))
    if tables and not file.is_file():
        raise UserError(f"{directory} contains {len(tables)} tables; give one of them: {', '.join(tables)}.")
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The table {file} cannot be read ({error}); run evaluate.py.") from error
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise UserError(f"{file} is not a table of this version; run python scripts/render_table.py {directory}.")
    rows = _chosen([row for row in table["rows"] if row.get("detectable") is not None], attention, file)
    # Clipped for each contrast, so that a contrast whose few seeds agree by chance does not offset another.
    excess = [max(0.0, row["difference_sd"] ** 2 - row["residual_variance"]) for row in rows]
    return Pilot(
        common=float(np.mean([row["common_variance"] for row in rows])),
        residual=float(np.mean([row["residual_variance"] for row in rows])),
        excess=float(np.mean(excess)),
        images=table["data"]["val_images"],
        units=rows[0]["units"],
        contrasts=tuple(
            Contrast(row["model"], row["attention"], lr_factor(row), row["difference"], row["difference_sd"])
            for row in rows
        ),
        seeds=min(len(row["contrast_seeds"]) for row in rows),
        hours=_hours(rows, table, directory),
        of_errors=table["task"] == "classification",
    )


def _chosen(contrasts: Sequence[Row], attention: str | None, file: Path) -> list[Row]:
    """Return the contrasts of an attention; errors as in `read_pilot`."""
    rows = [row for row in contrasts if (not is_static(row) if attention is None else row["attention"] == attention)]
    if not contrasts or (not rows and attention is None):
        raise UserError(
            f"{file} has no difference over at least two seeds, so the variation between seeds is unknown; train a "
            "second seed of both networks."
        )
    if not rows:
        known = ", ".join(sorted({row["attention"] for row in contrasts}))
        raise UserError(f"{file} has no difference of attention={attention} over at least two seeds; it has {known}.")
    if all(row["difference"] == row["difference_sd"] == 0 for row in rows):
        raise UserError(
            f"Every difference of the pilot {file} is 0, in every seed, so it has no variation to plan with. Its "
            "networks may have learned nothing; train them longer or with a higher rate."
        )
    return rows


def _hours(rows: Sequence[Row], table: Row, directory: Path) -> float | None:
    """Return the mean training time of a pair of runs; None if a record has none."""
    pairs = [(run, table["runs"][run]["baseline"]) for row in rows for run in row["runs"]]
    seconds = []
    for pair in pairs:
        for run in pair:
            record = directory / f"{table['runs'][run]['raw']}.json" if run is not None else None
            if record is None or not record.is_file():
                return None
            seconds.append(json.loads(record.read_text(encoding="utf-8")).get("train_seconds"))
    return None if None in seconds else sum(seconds) / len(pairs) / 3600


@dataclass(frozen=True)
class Plan:
    """Simulated comparisons with a number of seeds, under the normal distribution.

    Attributes:
        pilot: the variances on the planned number of images.
        seeds: number of seeds, at least 2.
    """

    pilot: Pilot
    seeds: int

    @cached_property
    def _draws(self) -> tuple[np.ndarray, np.ndarray]:
        """The error of the mean difference, and the half-width of its interval, for each comparison."""
        pilot, random = self.pilot, np.random.default_rng([_SEED, self.seeds])
        of_seed = pilot.residual + pilot.excess
        errors = np.sqrt(pilot.common + of_seed / self.seeds) * random.standard_normal(_DRAWS)
        variances = of_seed * random.chisquare(self.seeds - 1, _DRAWS) / (self.seeds - 1)
        parts = variances, pilot.common, pilot.residual
        squared = squared_half_width(*parts, self.seeds, pilot.units, _quantile)
        return errors, np.sqrt(squared)

    def power(self, difference: float) -> float:
        """Return the probability that a true difference is found, without adjustment for other contrasts."""
        errors, half_widths = self._draws
        return float((np.abs(difference + errors) > half_widths).mean())

    def detectable(self, power: float) -> float:
        """Return the true difference that is found with a probability, in points."""
        low, high = 0.0, 1.0
        while self.power(high) < power:
            high *= 2
        for _ in range(25):
            middle = (low + high) / 2
            low, high = (middle, high) if self.power(middle) < power else (low, middle)
        return high


def seeds_needed(pilot: Pilot, difference: float, power: float) -> int | None:
    """Return the smallest number of seeds that finds a difference; None if it is more than `MOST_SEEDS`."""
    counts = range(2, MOST_SEEDS + 1)
    return next((seeds for seeds in counts if Plan(pilot, seeds).power(difference) >= power), None)


@cache
def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Return log degrees of freedom, and Student's quantile for each."""
    freedom = np.geomspace(1, 1e6, 600)
    return np.log(freedom), np.array([student_quantile(1 - CONFIDENCE, one) for one in freedom])


def _quantile(freedom: Any) -> Any:
    """Return Student's quantile for an array of degrees of freedom, interpolated to 1e-4."""
    return np.interp(np.log(np.clip(freedom, 1, 1e6)), *_grid())
