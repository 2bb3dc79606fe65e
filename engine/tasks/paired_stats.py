"""The exact test of two networks with one seed, and the spread over seeds."""

import numpy as np


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
