"""Confidence intervals: Wilson, Student's t, Hanley and McNeil."""

from __future__ import annotations

from functools import lru_cache
from math import cos, expm1, pi, sin, sqrt
from statistics import NormalDist

from .. import exact

Interval = tuple[float, float]


@lru_cache(maxsize=64)
def normal_quantile(level: float) -> float:
    """z such that a standard normal variable lies within ±z with probability `level`."""
    return NormalDist().inv_cdf((1 + level) / 2)


@lru_cache(maxsize=64)
def student_quantile(freedom: int, level: float) -> float:
    """t such that Student's variable lies within ±t with probability `level`.

    Relative error below 1e-5; exact for 1 and 2 degrees of freedom. Source: Hill 1970, Algorithm
    396.
    """
    tail = 1 - level
    if freedom == 1:
        return cos(tail * pi / 2) / sin(tail * pi / 2)
    if freedom == 2:
        return sqrt(2 / (tail * (2 - tail)) - 2)
    n = float(freedom)
    a = 1 / (n - 0.5)
    b = (48 / a) / a
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * sqrt(a * pi / 2) * n
    x = d * tail
    y = x ** (2 / n)
    if y > a + 0.05:
        x = -normal_quantile(level)
        y = x * x
        if freedom < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = expm1(a * y * y)
    else:
        y = (
            (1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1
        ) * (n + 1) / (n + 2) + 1 / y
    return sqrt(n * y)


def wilson(hits: float, n: float, level: float) -> Interval | None:
    """Wilson's score interval of the proportion hits/n; None where n is 0. Source: Wilson 1927."""
    if not n:
        return None
    z = normal_quantile(level)
    p = hits / n
    centre = p + z * z / (2 * n)
    spread = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
    return min(low, p), max(high, p)  # rounding must not leave out a share of 0 or 1


def f1_interval(hits: float, errors: float, level: float) -> Interval | None:
    """Interval of F1 from TP and FP + FN: F1 = 2J/(1+J) rises with J, a proportion."""
    jaccard = wilson(hits, hits + errors, level)
    if jaccard is None:
        return None
    low, high = (2 * bound / (1 + bound) for bound in jaccard)
    return low, high


def mean_interval(n: int, total: int, squares: int, level: float) -> Interval | None:
    """Student's t interval of a mean from (n, Σx, Σx²), sums in units; None for fewer than 2."""
    variance = sample_variance(n, total, squares)
    if variance is None:
        return None
    centre = exact.from_units(total) / n
    spread = student_quantile(n - 1, level) * sqrt(variance / n)
    return centre - spread, centre + spread


def sample_variance(n: int, total: int, squares: int) -> float | None:
    """The unbiased variance from (n, Σx, Σx²), sums in units; None for fewer than 2 values.

    Never negative, and 0 exactly where all values are equal.
    """
    return exact.spread(n, total, squares) / (n - 1) if n > 1 else None


def auc_interval(auc: float, positives: int, negatives: int, level: float) -> Interval | None:
    """Interval of a ROC AUC; None without rows of both kinds. Source: Hanley and McNeil 1982.

    Their variance of an AUC of 0 or 1 is 0. Then the interval reaches to the farthest AUC that is
    within z of its own standard errors, as Wilson's does.
    """
    if not positives or not negatives:
        return None
    z = normal_quantile(level)
    spread = z * _auc_error(auc, positives, negatives)
    if spread:
        return max(0.0, auc - spread), min(1.0, auc + spread)
    within, beyond = auc, 1 - auc
    for _ in range(40):
        middle = (within + beyond) / 2
        if abs(auc - middle) <= z * _auc_error(middle, positives, negatives):
            within = middle
        else:
            beyond = middle
    return min(auc, within), max(auc, within)


def bounded_auc_interval(
    bounds: Interval, positives: int, negatives: int, level: float
) -> Interval | None:
    """Interval of a ROC AUC that is known to lie within certified bounds.

    It holds the interval of every AUC that the bounds allow: `auc_interval` rises with the AUC but
    for its ends, where it is wider.
    """
    ends = [auc_interval(auc, positives, negatives, level) for auc in bounds]
    found = [end for end in ends if end is not None]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def _auc_error(auc: float, positives: int, negatives: int) -> float:
    """The standard error of a ROC AUC."""
    q1 = auc / (2 - auc)
    q2 = 2 * auc * auc / (1 + auc)
    variance = (
        auc * (1 - auc) + (positives - 1) * (q1 - auc * auc) + (negatives - 1) * (q2 - auc * auc)
    ) / (positives * negatives)
    return sqrt(max(0.0, variance))
