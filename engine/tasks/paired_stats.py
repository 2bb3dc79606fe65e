"""Paired statistics of the difference between two networks, with intervals and a significance test."""

import math
from dataclasses import dataclass

import numpy as np

from engine.processes.determinism import RngPurpose, rng

RESAMPLES = 10_000
CONFIDENCE = 0.95
_SEED = 51  # of the resampling, the same for every table


@dataclass(frozen=True)
class PairedDifference:
    """A network's metric minus its baseline's, over the same images and the same seeds.

    Attributes:
        difference: mean over seeds, in percentage points.
        difference_low, difference_high: 95% bootstrap interval over images.
        difference_sd: standard deviation over seeds, points; None for one seed.
        across_seeds_low, across_seeds_high: 95% interval over images and seeds; None for one seed.
        won, lost: images that the network classifies correctly in more, or in fewer, of the seeds than its baseline;
            None if the metric is not defined per image.
        p_value: exact two-sided sign test of won against lost; for one seed, this is McNemar's test. None without them.
        distinguishable: whether both intervals exclude zero and the test, if there is one, is significant. One seed has
            no interval over seeds, so the result applies only to these two runs.
    """

    difference: float
    difference_low: float
    difference_high: float
    difference_sd: float | None
    across_seeds_low: float | None
    across_seeds_high: float | None
    won: int | None
    lost: int | None
    p_value: float | None
    distinguishable: bool

    @classmethod
    def of_seeds(
        cls,
        per_seed: np.ndarray,
        low: float,
        high: float,
        won: int | None = None,
        lost: int | None = None,
        p_value: float | None = None,
    ) -> "PairedDifference":
        """Return the mean difference over seeds with its verdict.

        It is distinguishable from 0 only if 0 is outside the interval over images and the interval over images and
        seeds, and the test, if any, agrees.

        Args:
            per_seed: [S], each seed's difference.
            low, high: the mean's interval over images.
            won, lost, p_value: the test over images; None without one.
        """
        across = interval_across_seeds(per_seed, low, high)
        seeds_agree = across is None or not across[0] <= 0 <= across[1]
        test_agrees = p_value is None or p_value < 1 - CONFIDENCE
        return cls(
            difference=float(per_seed.mean()),
            difference_low=low,
            difference_high=high,
            difference_sd=standard_deviation(per_seed),
            across_seeds_low=None if across is None else across[0],
            across_seeds_high=None if across is None else across[1],
            won=won,
            lost=lost,
            p_value=p_value,
            distinguishable=seeds_agree and test_agrees and not low <= 0 <= high,
        )


def paired_difference(hits: np.ndarray, baseline_hits: np.ndarray) -> PairedDifference:
    """Compare a network's top-1 error with its baseline's; negative is better.

    Args:
        hits: [S, N] bool, whether the network of each seed is correct on each image.
        baseline_hits: [S, N] bool, the same for the baseline of the same seed.
    """
    seeds = len(hits)
    lost_minus_won = baseline_hits.astype(np.int64) - hits.astype(np.int64)
    per_seed = 100 * lost_minus_won.mean(axis=1)
    # An image is one draw from the population, regardless of the number of seeds, so its outcomes stay together.
    per_image = lost_minus_won.sum(axis=0)
    low, high = (100 * bound / seeds for bound in bootstrap_interval(per_image))
    won, lost = int((per_image < 0).sum()), int((per_image > 0).sum())
    return PairedDifference.of_seeds(per_seed, low, high, won, lost, sign_test(won, lost))


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of the mean of integers with few distinct values.

    Drawing N images with replacement and counting each value is one draw from a multinomial distribution, so the
    resampling is exact without drawing single images (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: [N] int.
    """
    support, counts = np.unique(values, return_counts=True)
    resampled = rng(_SEED, RngPurpose.BOOTSTRAP).multinomial(len(values), counts / len(values), size=RESAMPLES)
    means = resampled @ support / len(values)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def interval_across_seeds(per_seed: np.ndarray, low: float, high: float) -> tuple[float, float] | None:
    """Return the 95% interval of the mean difference over images and seeds; None for one seed.

    The bootstrap over images ignores the variation between runs. Student's t interval over seeds ignores that all seeds
    are evaluated on the same images. Their half-widths are added in quadrature.

    Args:
        per_seed: [S], each seed's difference.
        low: lower bound of the mean's interval over images.
        high: upper bound.
    """
    spread = standard_deviation(per_seed)
    if spread is None:
        return None
    mean = float(per_seed.mean())
    half_width = student_quantile(len(per_seed) - 1) * spread / math.sqrt(len(per_seed))
    return mean - math.hypot(mean - low, half_width), mean + math.hypot(high - mean, half_width)


def student_quantile(freedom: int) -> float:
    """Return t with P(|T| < t) = 95% for T of Student's distribution.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # bisection to the precision of a float
        middle = (low + high) / 2
        low, high = (middle, high) if _student_mass(middle, freedom) < CONFIDENCE else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _student_mass(angle: float, freedom: int) -> float:
    """Return the probability of |T| < sqrt(freedom) * tan(angle); Abramowitz and Stegun (1964), 26.7.3 and 26.7.4."""
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    series = 0.0
    for k in range(freedom // 2):
        series += term
        term *= math.cos(angle) ** 2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    series *= math.sin(angle)
    return 2 / math.pi * (angle + series) if odd else series


def sign_test(won: int, lost: int) -> float:
    """Return the exact two-sided p-value of `won` against `lost` under equal chances: McNemar's exact test (1947).

    Ties carry no information and are omitted. Integer arithmetic makes the result exact for any count.
    """
    trials = won + lost
    term = tail = 1
    for i in range(min(won, lost)):
        term = term * (trials - i) // (i + 1)  # binomial coefficient for i + 1
        tail += term
    return min(1.0, 2 * tail / 2**trials)


def standard_deviation(values: np.ndarray) -> float | None:
    """Return the sample standard deviation, with n - 1; None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
