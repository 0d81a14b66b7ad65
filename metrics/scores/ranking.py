"""ROC AUC and average precision from sparse histograms of scores, with certified bounds.

A histogram maps a bin to (positives, negatives). Bins are monotone in the score, so order
between bins is known and only order within one is not: every pair decided between bins counts,
pairs within a bin make the bounds. Source: Bouckaert 2006.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import log1p
from typing import NamedTuple

from .ratio import mean, weighted_mean

Histogram = dict[int, list[int]]
"""bin -> [negatives, positives]"""

MAX_CURVE_POINTS = 128
_CURVE_STEP = 4 / (MAX_CURVE_POINTS - 2)
"""Every second point that is left is farther on than this, of 2 from end to end."""


class Bounded(NamedTuple):
    """A score between certified bounds; the value is their midpoint."""

    value: float
    low: float
    high: float


class Ranked(NamedTuple):
    """What the histogram of one class against the rest tells."""

    positives: int
    negatives: int
    auc: Bounded | None
    precision: Bounded | None
    """Average precision."""


def rank(histogram: Histogram) -> Ranked:
    """All that is shown of `histogram`."""
    return Ranked(
        sum(positives for _, positives in histogram.values()),
        sum(negatives for negatives, _ in histogram.values()),
        roc_auc(histogram),
        average_precision(histogram),
    )


def mean_bounded(
    values: Sequence[Bounded], weights: Sequence[float] | None = None
) -> Bounded | None:
    """The mean of bounded scores, under weights if any; None where there is none."""
    means = [
        mean(part) if weights is None else weighted_mean(part, weights)
        for part in zip(*values, strict=True)
    ]
    return Bounded(*(each for each in means if each is not None)) if means else None


def roc_auc(histogram: Histogram) -> Bounded | None:
    """The ROC AUC; undefined without rows of both kinds. The exact one lies within the bounds."""
    below = wins = ties = positives = 0
    for bin in sorted(histogram):
        n, p = histogram[bin]
        wins += p * below
        ties += p * n
        below += n
        positives += p
    pairs = positives * below
    if not pairs:
        return None
    return Bounded((wins + ties / 2) / pairs, wins / pairs, (wins + ties) / pairs)


def average_precision(histogram: Histogram) -> Bounded | None:
    """The average precision; undefined without positives. The exact one lies within the bounds.

    Within a bin precision is highest when its positives come first, at one and the same score
    (scikit-learn gives each of them the precision of the last), and lowest when they come last,
    one by one.
    """
    low = high = 0.0
    true = false = 0
    for bin in sorted(histogram, reverse=True):
        n, p = histogram[bin]
        if p:
            best = p * (true + p) / (true + p + false)
            high += best
            low += min(best, _precision_sum(true, p, false + n))
        true += p
        false += n
    if not true:
        return None
    return Bounded((low + high) / 2 / true, low / true, high / true)


def roc_curve(histogram: Histogram) -> list[tuple[float, float]]:
    """(false positive rate, true positive rate) at each bin's lower edge, from (0, 0) to (1, 1).

    Empty where undefined. The exact curve runs inside the rectangles between neighbouring points.
    """
    negatives = sum(n for n, _ in histogram.values())
    positives = sum(p for _, p in histogram.values())
    if not negatives or not positives:
        return []
    points = [(0.0, 0.0)]
    true = false = 0
    for bin in sorted(histogram, reverse=True):
        n, p = histogram[bin]
        true += p
        false += n
        points.append((false / negatives, true / positives))
    return points


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MAX_CURVE_POINTS of a curve's `points`, its ends among them.

    What holds between neighbours of the whole curve holds between those that are left. Two
    neighbours are no more than _CURVE_STEP apart (both rates together), or were neighbours before.
    """
    kept = list(points[:1])
    for before, point in pairwise(points[1:]):
        if sum(point) - sum(kept[-1]) > _CURVE_STEP:
            kept.append(before)
    return kept + list(points[1:][-1:])


def _precision_sum(true: int, positives: int, false: int) -> float:
    """Σ over i = 1…positives of (true + i) / (true + i + false)."""
    if not false:
        return float(positives)
    start = true + false
    return positives - false * _harmonic_difference(start, start + positives)


def _harmonic_difference(start: int, end: int) -> float:
    """1/(start+1) + … + 1/end, in constant time."""
    exact = HARMONIC[min(end, _EXACT)] - HARMONIC[min(start, _EXACT)]
    if end <= _EXACT:
        return exact
    start = max(start, _EXACT)
    # the logarithm of the quotient: that of two large numbers' logarithms cancels
    logarithm = log1p((end - start) / start)
    return exact + (
        logarithm - (end - start) / (2 * start * end) + _remainder(end) - _remainder(start)
    )


def _remainder(n: int) -> float:
    """The n-th harmonic number less log(n), 1/2n and Euler's constant; from 32 on to 1e-14."""
    square = n * n
    return ((1 / 120 - 1 / 252 / square) / square - 1 / 12) / square


HARMONIC = tuple(accumulate((1 / n for n in range(1, 33)), initial=0.0))
"""The first harmonic numbers, from the 0th."""
_EXACT = len(HARMONIC) - 1
