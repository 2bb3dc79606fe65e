"""The statistics against answers known beforehand."""

import numpy as np
import pytest

from engine.tasks.paired_stats import sign_test, standard_deviation


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


def test_the_spread_over_seeds_is_that_of_a_sample() -> None:
    assert standard_deviation(np.array([29.0, 30.0, 31.0])) == 1.0
    assert standard_deviation(np.array([29.0])) is None
