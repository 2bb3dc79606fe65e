"""Student's distribution against published tables and scipy."""

import math

import pytest

from engine.tasks.student import log_tail, root, student_quantile


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (30, 2.0423)])
def test_quantiles_meet_the_tables(freedom: int, quantile: float) -> None:
    assert student_quantile(0.05, freedom) == pytest.approx(quantile, abs=1e-4)


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 2.7, 9, 25.5, 299, 301, 49_999])
@pytest.mark.parametrize("tail", [0.9, 0.4, 0.05, 1e-3, 1e-9])
def test_quantiles_meet_scipy(freedom: float, tail: float) -> None:
    scipy_stats = pytest.importorskip("scipy.stats", reason="needs scipy")
    quantile = student_quantile(tail, freedom)
    assert quantile == pytest.approx(scipy_stats.t.isf(tail / 2, freedom), rel=1e-7)
    assert log_tail(quantile, freedom) == pytest.approx(math.log(tail), abs=1e-5)


def test_root_of_a_steep_function() -> None:
    assert root(lambda x: math.expm1(20 * (x - 0.3)), -5, 5) == pytest.approx(0.3, abs=1e-9)
