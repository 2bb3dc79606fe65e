"""What paired predictions say of the difference between two networks, and how far to believe it."""

from dataclasses import dataclass

import numpy as np

from engine.determinism import RngPurpose, rng

RESAMPLES = 10_000
CONFIDENCE = 0.95
_SEED = 51  # of the resampling: every table draws the same


@dataclass(frozen=True)
class PairedDifference:
    """A network's top-1 error minus its baseline's, over the same images and the same seeds.

    Attributes:
        difference: mean over images and seeds, in percentage points; negative is better.
        difference_low, difference_high: its 95% bootstrap interval over images.
        difference_sd: standard deviation over seeds, points; None for one seed.
        seeds_low, seeds_high: the difference's 95% interval over seeds, by Student's t; None for one seed.
        won, lost: images that the network gets right in more, or in fewer, of the seeds than its baseline does.
        p_value: exact two-sided sign test of won against lost; for one seed this is McNemar's test.
        distinguishable: whether the data support a difference: both intervals and the test exclude zero. For one
            seed there is no interval over seeds: it speaks of these two trainings only.
    """

    difference: float
    difference_low: float
    difference_high: float
    difference_sd: float | None
    seeds_low: float | None
    seeds_high: float | None
    won: int
    lost: int
    p_value: float
    distinguishable: bool


def paired_difference(hits: np.ndarray, baseline_hits: np.ndarray) -> PairedDifference:
    """Compare a network with its baseline.

    Args:
        hits: [S, N] bool, whether the network of each seed is right on each image.
        baseline_hits: [S, N] bool, the same for the baseline of the same seed.
    """
    seeds = len(hits)
    lost_minus_won = baseline_hits.astype(np.int64) - hits.astype(np.int64)
    per_seed = 100 * lost_minus_won.mean(axis=1)
    # An image is one draw from the population however many seeds look at it: its outcomes stay together.
    per_image = lost_minus_won.sum(axis=0)
    low, high = (100 * bound / seeds for bound in bootstrap_interval(per_image))
    won, lost = int((per_image < 0).sum()), int((per_image > 0).sum())
    p_value = sign_test(won, lost)
    seeds_low, seeds_high = seed_interval(per_seed)
    seeds_agree = seeds_low is None or seeds_high is None or not seeds_low <= 0 <= seeds_high
    return PairedDifference(
        difference=float(per_seed.mean()),
        difference_low=low,
        difference_high=high,
        difference_sd=standard_deviation(per_seed),
        seeds_low=seeds_low,
        seeds_high=seeds_high,
        won=won,
        lost=lost,
        p_value=p_value,
        distinguishable=seeds_agree and not low <= 0 <= high and p_value < 1 - CONFIDENCE,
    )


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of values drawn from a few integers.

    Drawing N images with replacement and counting each value is one draw from a multinomial distribution, so the
    resampling is exact without touching single images (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: [N] int.
    """
    support, counts = np.unique(values, return_counts=True)
    resampled = rng(_SEED, RngPurpose.BOOTSTRAP).multinomial(len(values), counts / len(values), size=RESAMPLES)
    means = resampled @ support / len(values)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(low), float(high)


def seed_interval(values: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Return the 95% interval of the mean of normally distributed values, by Student's t; None for one value.

    It says how far the mean of as many other seeds may lie from zero: resampled images say nothing about that.
    """
    spread = standard_deviation(values)
    if spread is None:
        return None, None
    mean, half = float(values.mean()), t_quantile(len(values) - 1) * spread / len(values) ** 0.5
    return mean - half, mean + half


def t_quantile(freedom: int) -> float:
    """Return the 97.5% quantile of Student's t distribution: tabulated, above 10 degrees by its expansion in 1 / n.

    Abramowitz and Stegun 1964, table 26.10 and formula 26.7.5.
    """
    if freedom <= len(_T_QUANTILES):
        return _T_QUANTILES[freedom - 1]
    z = 1.959964
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


_T_QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def sign_test(won: int, lost: int) -> float:
    """Exact two-sided p-value of `won` against `lost` under equal chances; McNemar's exact test (1947).

    Ties carry no information and are left out. Integers of any size, so exact for any count.
    """
    trials = won + lost
    term = tail = 1
    for i in range(min(won, lost)):
        term = term * (trials - i) // (i + 1)  # binomial coefficient of i + 1
        tail += term
    return min(1.0, 2 * tail / 2**trials)


def standard_deviation(values: np.ndarray) -> float | None:
    """Of a sample, with n - 1; None for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
