"""The statistics against answers known beforehand."""

import numpy as np
import pytest

from engine.tasks.paired_stats import (
    bootstrap_interval,
    interval_across_seeds,
    paired_difference,
    sign_test,
    standard_deviation,
    student_quantile,
)


@pytest.mark.parametrize(
    ("won", "lost", "p_value"),
    [
        (0, 0, 1.0),  # nothing but ties
        (1, 1, 1.0),
        (5, 5, 1.0),
        (0, 1, 1.0),  # 2 * 1/2
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
        (3, 15, 2 * (1 + 18 + 153 + 816) / 262144),
    ],
)
def test_mcnemar_equals_binomial_tails(won: int, lost: int, p_value: float) -> None:
    assert sign_test(won, lost) == pytest.approx(p_value, rel=1e-15)


def test_mcnemar_agrees_with_the_normal_approximation() -> None:
    # With continuity correction: z = (5200 - 4800 - 1) / 100 = 3.99, so p = 6.607e-5.
    assert sign_test(4800, 5200) == pytest.approx(6.607e-5, rel=0.01)
    assert sign_test(0, 50_000) == 0.0


def pairs(random: np.random.Generator, images: int, seeds: int, image_spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Hits of a network and its baseline [seeds, images]; images differ in how hard they are, and for whom."""
    difficulty = random.normal(0.0, 1.0, images)
    favor = random.normal(0.1, image_spread, images)
    network = random.normal(0.8, 0.5, (seeds, images)) > difficulty - favor
    baseline = random.normal(0.8, 0.5, (seeds, images)) > difficulty
    return network, baseline


@pytest.mark.parametrize("seeds", [1, 3])
def test_interval_coverage_is_95_percent(seeds: int) -> None:
    random = np.random.default_rng(0)
    large = pairs(random, images=2_000_000, seeds=1, image_spread=0.5)
    truth = 100 * float((large[1].astype(int) - large[0].astype(int)).mean())
    results = [paired_difference(*pairs(random, 1000, seeds, image_spread=0.5)) for _ in range(300)]
    covered = np.mean([said.difference_low <= truth <= said.difference_high for said in results])
    assert 0.90 <= covered <= 0.98


def test_false_claims_are_at_most_5_percent() -> None:
    random = np.random.default_rng(1)
    claims = [paired_difference(*(random.random((2, 1, 1000)) < 0.7)).distinguishable for _ in range(300)]
    assert np.mean(claims) < 0.07


def test_interval_equals_the_bootstrap() -> None:
    values = np.random.default_rng(2).choice([-1, 0, 1], size=500, p=[0.12, 0.8, 0.08])
    random = np.random.default_rng(3)
    means = [random.choice(values, size=500).mean() for _ in range(10_000)]
    assert bootstrap_interval(values) == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.002)
    assert bootstrap_interval(values) == bootstrap_interval(values[::-1])


def test_a_clear_difference() -> None:
    baseline = np.zeros((1, 1000), bool)
    network = baseline.copy()
    network[0, :100] = True
    said = paired_difference(network, baseline)
    assert (said.difference, said.won, said.lost) == (-10.0, 100, 0)
    assert said.difference_low == pytest.approx(-11.9, abs=0.2)  # 10 +- 1.96 * sqrt(0.1 * 0.9 / 1000) * 100
    assert said.difference_high == pytest.approx(-8.1, abs=0.2)
    assert said.distinguishable


def test_ties_alone_are_no_difference() -> None:
    hits = np.random.default_rng(4).random((2, 300)) < 0.5
    said = paired_difference(hits, hits)
    assert (said.difference, said.difference_low, said.difference_high) == (0.0, 0.0, 0.0)
    assert (said.won, said.lost, said.p_value, said.distinguishable) == (0, 0, 1.0, False)


def test_several_seeds_are_pooled_image_by_image() -> None:
    network = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1]], bool)
    baseline = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]], bool)
    said = paired_difference(network, baseline)
    # Differences by seed: -25, 0 and -25 points. Images: won in 2 seeds, lost in 1, lost in 2, won in 3.
    assert said.difference == pytest.approx(-50 / 3)
    assert said.difference_sd == pytest.approx(25 / np.sqrt(3))
    assert (said.won, said.lost) == (2, 2)


def test_repeated_seed_does_not_narrow_intervals() -> None:
    network, baseline = np.random.default_rng(5).random((2, 1, 1000)) < 0.6
    once = paired_difference(network, baseline)
    thrice = paired_difference(np.repeat(network, 3, axis=0), np.repeat(baseline, 3, axis=0))
    assert (thrice.difference_low, thrice.difference_high) == pytest.approx((once.difference_low, once.difference_high))
    assert thrice.p_value == once.p_value


def test_seeds_that_disagree_in_sign_support_nothing() -> None:
    baseline = np.zeros((2, 1000), bool)
    network = baseline.copy()
    network[0, :200] = True
    baseline[1, 900:910] = True
    said = paired_difference(network, baseline)
    assert said.difference_high < 0
    assert said.p_value < 0.05
    assert not said.distinguishable


def test_the_spread_over_seeds_is_that_of_a_sample() -> None:
    assert standard_deviation(np.array([29.0, 30.0, 31.0])) == 1.0
    assert standard_deviation(np.array([29.0])) is None


def claims(random: np.random.Generator, seeds: int, effect: float, spread: float, repetitions: int) -> float:
    """Return the share of comparisons that claim a difference.

    Args:
        effect: true difference of the networks, points of top-1 error.
        spread: standard deviation over seeds of what one training's difference deviates from it, points.
    """
    images, changed = 50_000, 0.08
    found = []
    for _ in range(repetitions):
        shift = random.normal(effect, spread, (seeds, 1)) / 100
        draw = random.random((seeds, images))
        found.append(paired_difference(draw < (changed - shift) / 2, draw > 1 - (changed + shift) / 2).distinguishable)
    return float(np.mean(found))


def test_three_seeds_do_not_claim_seed_variation() -> None:
    random = np.random.default_rng(4)
    false = [claims(random, 3, effect=0.0, spread=spread, repetitions=100) for spread in (0.0, 0.1, 0.15, 0.3)]
    assert np.mean(false) <= 0.06
    assert claims(random, 3, effect=-0.5, spread=0.1, repetitions=50) > 0.7  # the power against half a point


def test_one_seed_speaks_of_two_trainings_only() -> None:
    """With a spread of 0.15 points a fifth of the comparisons claim a difference, which these two trainings do have."""
    random = np.random.default_rng(5)
    assert 0.1 < claims(random, 1, effect=0.0, spread=0.15, repetitions=100) < 0.3


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (30, 2.0423)])
def test_students_t_meets_the_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=1e-4)


def test_image_and_seed_intervals_add_in_quadrature() -> None:
    seeds = 4.302653 * np.std([0.1, 0.2, 0.6], ddof=1) / 3**0.5
    low, high = interval_across_seeds(np.array([0.1, 0.2, 0.6]), 0.3 - 0.3, 0.3 + 0.4) or (0, 0)
    assert (low, high) == pytest.approx((0.3 - np.hypot(0.3, seeds), 0.3 + np.hypot(0.4, seeds)))
    assert interval_across_seeds(np.array([0.1]), 0.0, 0.2) is None
