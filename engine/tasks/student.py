"""Student's t distribution for any degrees of freedom, and a root finder."""

import math
from collections.abc import Callable
from statistics import NormalDist

_NORMAL = NormalDist()
_SERIES_FROM = 300.0  # degrees of freedom from which the expansion is exact to 1e-8


def student_quantile(tail: float, freedom: float) -> float:
    """Return t with P(|T| > t) = tail.

    Args:
        tail: two-sided probability in (0, 1).
        freedom: degrees of freedom, at least 1, not necessarily an integer.
    """
    normal = -_NORMAL.inv_cdf(tail / 2)
    if freedom >= _SERIES_FROM:
        return _expansion(normal, freedom)
    if normal < 1e-8:
        return normal
    target = math.log(tail)
    cauchy = 1 / math.tan(math.pi * tail / 2)  # the quantile for 1 degree of freedom, the largest of all
    low, high = math.log(normal) - 0.01, math.log(cauchy) + 0.01
    return math.exp(root(lambda x: log_tail(math.exp(x), freedom) - target, low, high))


def _expansion(z: float, freedom: float) -> float:
    """Return the quantile from the normal one; Abramowitz and Stegun (1964), 26.7.5."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def log_tail(t: float, freedom: float) -> float:
    """Return log P(|T| > t) for t > 0, the regularized incomplete beta function I_x(freedom / 2, 1 / 2)."""
    a, b = freedom / 2, 0.5
    x = freedom / (freedom + t * t)
    complement = t * t / (freedom + t * t)
    front = a * math.log(x) + b * math.log(complement) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    if x < (a + 1) / (a + b + 2):
        return front + math.log(_continued_fraction(x, a, b) / a)
    return math.log1p(-math.exp(front) * _continued_fraction(complement, b, a) / b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """Return the continued fraction of the incomplete beta function by Lentz's method (Numerical Recipes, 6.4)."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d, c = 1 / (1 + step * d), 1 + step / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return fraction


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Return a root of a monotone function between two points where its signs differ (the Illinois method)."""
    at_low, at_high = function(low), function(high)
    middle = low
    for _ in range(200):
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = function(middle)
        if value * at_high < 0:
            low, at_low = high, at_high
        else:
            at_low /= 2
        high, at_high = middle, value
        if value == 0 or abs(high - low) <= 1e-14 * max(1.0, abs(middle)) or at_high == at_low:
            break
    return middle
