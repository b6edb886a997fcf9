"""Paired statistics of differences, one per case.

Interval: bootstrap over the cases, percentiles of the mean of resampled differences (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993, section 13.3). Test: signed ranks (Wilcoxon, Biometrics Bulletin 1, 1945;
differences of zero are left out, as there), corrected for many tests by Holm (Scandinavian Journal of Statistics 6,
1979).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

RESAMPLES = 10_000
BOOTSTRAP_SEED = 0
CONFIDENCE = 0.95

Array = NDArray[np.float64]


@lru_cache(maxsize=4)  # all tests on the same number of cases draw the same ones
def resampled(n: int) -> NDArray[np.int32]:
    """Return the cases that each bootstrap resample draws with replacement: int32, (10 000, n), in [0, n)."""
    return np.random.default_rng(BOOTSTRAP_SEED).integers(n, size=(RESAMPLES, n), dtype=np.int32)


def bootstrap_interval(differences: Array) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean, resampled over cases.

    Args:
        differences: float64, (n,), n at least 1, no NaN.
    """
    means = differences[resampled(len(differences))].mean(axis=1)
    low, high = np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def signed_rank_p(differences: Array) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test without the differences of zero; 1 if all are zero.

    Args:
        differences: float64, (n,), no NaN.
    """
    nonzero = differences[differences != 0]
    return float(wilcoxon(nonzero).pvalue) if len(nonzero) else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Return p values corrected by Holm's step-down procedure, in the order given, at most 1."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, (len(p) - rank) * p[i])
        corrected[i] = min(1.0, largest)
    return corrected
