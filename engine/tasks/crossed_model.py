"""The crossed model: the difference of two networks over seeds and images, with one interval and one p-value.

Seeds are crossed with images, as readers are with cases in the analysis of multi-reader multi-case studies (Obuchowski
and Rockette 1995; Hillis 2007). For S seeds, the variance of the mean difference has three parts: the seeds' own, the
images' part that all seeds share (`common`), and the images' part of each seed alone (`residual`). The sample variance
over seeds contains the first and the third; the images show the second and the third.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.tasks.student import root, student_quantile

CONFIDENCE = 0.95
POWER = 0.8

# Chosen by simulation (results/verdict): the most power with at most 6% false claims in every cell.
_SATTERTHWAITE = {2: 0.2}  # by the number of seeds
_WAIVED = {2: 0.0}
_SATTERTHWAITE_OTHERWISE, _WAIVED_OTHERWISE = 0.4, 0.15

_SMALLEST_P = 1e-30

Quantile = Callable[[Any], Any]


@dataclass(frozen=True)
class Outcome:
    """A network's metric on a set of images, and the contribution of each independent unit to its error.

    A unit is an image, or a group of images that are not independent.

    Attributes:
        value: the metric, in points.
        deviations: [M] float64, in points. The sum of the products of two networks' deviations is the covariance of
            their values over samples of images.
        units: number of independent units.
    """

    value: float
    deviations: np.ndarray
    units: int


@dataclass(frozen=True)
class CrossedDifference:
    """A network's metric minus another's, over the same seeds and the same images.

    Attributes:
        per_seed: [S], difference of each seed, in points.
        common: variance of the differences over images that all seeds share, in points squared.
        residual: variance of one seed's difference over images that is its own. With one seed, all of the variance is
            in `common`.
        units: number of independent units of images.
    """

    per_seed: tuple[float, ...]
    common: float
    residual: float
    units: int

    @classmethod
    def of(cls, networks: Sequence[Outcome], others: Sequence[Outcome]) -> "CrossedDifference":
        """Compare a network with another, given the outcome of each seed."""
        pairs = list(zip(networks, others, strict=True))
        deviations = np.stack([one.deviations - other.deviations for one, other in pairs])
        common, residual = variance_parts(deviations @ deviations.T)
        return cls(tuple(one.value - other.value for one, other in pairs), common, residual, pairs[0][0].units)

    @property
    def seeds(self) -> int:
        return len(self.per_seed)

    @property
    def difference(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.per_seed))

    @property
    def seed_variance(self) -> float:
        """The sample variance over seeds; 0 for one seed."""
        return float(np.var(self.per_seed, ddof=1)) if self.seeds > 1 else 0.0

    def half_width(self, tail: float = 1 - CONFIDENCE) -> float:
        """Return the half-width of the interval that misses the true difference with probability `tail`.

        For one seed, it is the interval over images alone: it does not contain the variation between runs.
        """

        def quantile(freedom: float) -> float:
            return student_quantile(tail, freedom)

        if self.seeds == 1:
            return float(quantile(self.units - 1) * np.sqrt(self.common))
        parts = self.seed_variance, self.common, self.residual
        return float(np.sqrt(squared_half_width(*parts, self.seeds, self.units, quantile)))

    @property
    def p_value(self) -> float:
        """The two-sided p-value: the tail for which the interval ends at 0."""
        return self.tail_beyond(abs(self.difference))

    def tail_beyond(self, distance: float) -> float:
        """Return the tail for which the half-width equals a distance, at least 1e-30."""
        nearly_all = 1 - 1e-12
        if distance <= self.half_width(nearly_all):
            return 1.0
        if distance >= self.half_width(_SMALLEST_P):
            return _SMALLEST_P
        low, high = np.log(_SMALLEST_P), np.log(nearly_all)
        return float(np.exp(root(lambda x: np.log(self.half_width(np.exp(x)) / distance), low, high)))

    def equivalence_p_value(self, margin: float) -> float:
        """Return the p-value of two one-sided tests (Schuirmann 1987) that the difference is within +- `margin`."""
        inside = margin - abs(self.difference)
        return 1.0 if inside <= 0 else self.tail_beyond(inside) / 2

    @property
    def detectable(self) -> float:
        """The true difference that would be found with 80% power, in points."""
        return self.half_width() + self.half_width(2 * (1 - POWER))


def variance_parts(covariance: np.ndarray) -> tuple[float, float]:
    """Return the common and the residual variance from the covariance [S, S] of the seeds' differences over images."""
    seeds = len(covariance)
    diagonal = float(np.trace(covariance)) / seeds
    if seeds == 1:
        return diagonal, 0.0
    common = max(0.0, (float(covariance.sum()) - seeds * diagonal) / (seeds * (seeds - 1)))
    return common, max(0.0, diagonal - common)


def squared_half_width(
    seed_variance: Any, common: Any, residual: Any, seeds: int, units: int, quantile: Quantile
) -> Any:
    """Return the squared half-width of the interval of a mean difference over at least two seeds.

    It combines what is known of three simpler rules. Adding Student's half-width over seeds and the half-width over the
    common part in quadrature is conservative if both matter; one quantile for their sum, with Satterthwaite's degrees
    of freedom, is liberal. The rule is between them. The residual part bounds the seeds' variance from below, so part
    of Student's penalty for estimating that variance is waived, down to the half-width that the images alone require.

    Args:
        seed_variance: sample variance of the differences over seeds. This and the next two are floats or arrays.
        common, residual: as in `CrossedDifference`.
        seeds: number of seeds.
        units: number of independent units of images.
        quantile: function of the degrees of freedom that returns the quantile of Student's distribution.
    """
    over_seeds, over_units = quantile(seeds - 1) ** 2, quantile(units - 1) ** 2
    quadrature = over_seeds * seed_variance / seeds + over_units * common
    of_seeds = np.maximum(seed_variance, residual) / seeds
    freedom = _satterthwaite(of_seeds, seeds - 1, common, units - 1)
    satterthwaite = quantile(freedom) ** 2 * (of_seeds + common)
    share = _SATTERTHWAITE.get(seeds, _SATTERTHWAITE_OTHERWISE)
    waived = _WAIVED.get(seeds, _WAIVED_OTHERWISE) * (over_seeds - over_units) * residual / seeds
    between = (1 - share) * quadrature + share * np.minimum(quadrature, satterthwaite) - waived
    return np.maximum(between, over_units * (common + residual / seeds))


def _satterthwaite(first: Any, first_freedom: int, second: Any, second_freedom: int) -> Any:
    """Return the degrees of freedom of the sum of two estimated variances."""
    smallest = np.finfo(float).tiny  # the degrees of freedom of two zeros do not matter
    inverse = first**2 / first_freedom + second**2 / second_freedom
    return np.maximum((first + second) ** 2, smallest) / np.maximum(inverse, smallest)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number (Holm 1979), in the same order."""
    count = len(p_values)
    adjusted, largest = [1.0] * count, 0.0
    for rank, position in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[position]))
        adjusted[position] = largest
    return adjusted
