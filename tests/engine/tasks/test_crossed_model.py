"""The crossed model against scipy, known variances and simulated comparisons."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from engine.tasks.classification import ClassPredictions
from engine.tasks.crossed_model import CrossedDifference, holm
from tests.conftest import script_module


def classified(hits: np.ndarray) -> ClassPredictions:
    """Predictions of two classes that are correct where `hits` is true."""
    labels = np.zeros(len(hits), np.int64)
    return ClassPredictions(labels, np.where(hits, 0, 1)[:, None], np.zeros(len(hits), np.float32))


def compared(hits: np.ndarray, baseline: np.ndarray, groups: np.ndarray | None = None) -> CrossedDifference:
    """Compare networks by hits [seeds, images]."""
    ours, theirs = ([classified(one).outcome(groups) for one in seeds] for seeds in (hits, baseline))
    return CrossedDifference.of(ours, theirs)


def some_hits(seed: int, seeds: int = 3, images: int = 400) -> Sequence[np.ndarray]:
    random = np.random.default_rng(seed)
    difficulty, favor = random.random(images), random.normal(-0.08, 0.3, images)
    return [random.random((seeds, images)) > 0.7 * difficulty + shift for shift in (favor, 0.0)]


def test_parts_are_the_covariance_of_the_seeds_over_images() -> None:
    ours, theirs = some_hits(0)
    said = compared(ours, theirs)
    errors = 100.0 * (theirs.astype(int) - ours.astype(int))
    covariance = np.cov(errors) / errors.shape[1]
    common = np.mean(covariance[~np.eye(3, dtype=bool)])
    assert said.per_seed == pytest.approx(errors.mean(axis=1))
    assert (said.common, said.common + said.residual) == pytest.approx((common, np.trace(covariance) / 3))
    assert said.units == 400


def test_one_seed_has_the_normal_interval_over_images() -> None:
    ours, theirs = some_hits(1, seeds=1)
    said = compared(ours, theirs)
    errors = 100.0 * (theirs.astype(int) - ours.astype(int))[0]
    assert said.half_width() == pytest.approx(1.9659 * errors.std(ddof=1) / 20, rel=1e-4)  # t with 399 degrees


def test_p_value_inverts_the_interval() -> None:
    said = compared(*some_hits(2))
    assert 1e-6 < said.p_value < 0.9
    assert said.half_width(said.p_value) == pytest.approx(abs(said.difference), rel=1e-9)
    margin = abs(said.difference) + 2
    assert said.half_width(2 * said.equivalence_p_value(margin)) == pytest.approx(2, rel=1e-9)
    assert said.equivalence_p_value(abs(said.difference)) == 1


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_interval_widens_with_confidence(seeds: int) -> None:
    """Without this, the p-value would not be the inverse of the interval."""
    random = np.random.default_rng(seeds)
    for _ in range(40):
        spread, common, residual = random.exponential(1, 3) * random.integers(0, 2, 3)
        said = CrossedDifference(tuple(spread * random.standard_normal(seeds)), common, residual, 200)
        widths = [said.half_width(tail) for tail in np.geomspace(1e-12, 0.99, 30)]
        assert all(wide >= narrow for wide, narrow in itertools.pairwise(widths))


def test_equal_networks_do_not_differ() -> None:
    ours, _ = some_hits(3)
    said = compared(ours, ours)
    assert (said.difference, said.half_width(), said.p_value) == (0.0, 0.0, 1.0)


def test_copies_of_a_group_carry_no_information() -> None:
    ours, theirs = some_hits(4)
    single = compared(ours, theirs)
    copied = [np.repeat(hits, 5, axis=1) for hits in (ours, theirs)]
    grouped = compared(copied[0], copied[1], np.repeat(np.arange(400), 5))
    assert grouped.units == 400
    assert (grouped.common, grouped.residual) == pytest.approx((single.common, single.residual))
    assert compared(copied[0], copied[1]).common < single.common / 4


def test_holm_multiplies_by_the_number_of_remaining_contrasts() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_detectable_difference_is_found_with_80_percent_power() -> None:
    simulation = script_module("simulate_verdict")
    cell = simulation.Cell(5_000, 0.08, 0.3, 5, 0.3, 0.0)
    found = simulation.simulate(cell, 400, np.random.default_rng(0))
    detectable = np.mean(
        [
            CrossedDifference(_seeds_with(v, 5), c, w, 5_000).detectable
            for v, c, w in zip(found.seed_variance, found.common, found.residual, strict=True)
        ]
    )
    power = simulation.claims_and_coverage(
        simulation.Cell(5_000, 0.08, 0.3, 5, 0.3, float(detectable)), 4_000, np.random.default_rng(1)
    )["crossed"][0]
    assert 0.7 < power < 0.9


def _seeds_with(variance: float, seeds: int) -> tuple[float, ...]:
    values = np.arange(seeds, dtype=float)
    return tuple(values * np.sqrt(variance / values.var(ddof=1)))


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_false_claims_and_power(spread: float) -> None:
    """A small part of results/verdict: the rule claims at most 6% of null differences, and finds more than before."""
    simulation = script_module("simulate_verdict")
    null = simulation.claims_and_coverage(
        simulation.Cell(50_000, 0.12, 0.3, 3, spread, 0.0), 10_000, np.random.default_rng(0)
    )
    claims, coverage = null["crossed"]
    assert claims < 0.065
    assert claims == pytest.approx(1 - coverage)
    found = simulation.claims_and_coverage(
        simulation.Cell(50_000, 0.12, 0.3, 3, 0.1, 0.3), 4_000, np.random.default_rng(1)
    )
    assert found["crossed"][0] > 1.35 * found["version 0.1"][0]


def test_simulated_estimates_are_those_of_single_images() -> None:
    """The simulation counts images; the same outcomes, image by image, give the same estimates."""
    simulation = script_module("simulate_verdict")
    random = np.random.default_rng(5)
    differences = random.choice([-1, 0, 1], size=(3, 500), p=[0.1, 0.8, 0.1])
    sums, per_image = differences.sum(axis=1), differences.sum(axis=0)
    cell = simulation.Cell(500, 0.2, 0.0, 3, 0.0, 0.0)
    found = simulation._estimates(
        cell,
        sums[None].astype(float),
        np.array([(differences**2).sum()]),
        np.array([(per_image**2).sum()]),
        np.array([(per_image < 0).sum()]),
        np.array([(per_image > 0).sum()]),
    )
    said = compared(differences < 0, differences > 0)
    assert (found.common[0], found.residual[0]) == pytest.approx((said.common, said.residual))
    assert (found.difference[0], found.seed_variance[0]) == pytest.approx((said.difference, said.seed_variance))
