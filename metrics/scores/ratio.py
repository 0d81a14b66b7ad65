"""The one policy for 0/0, and means over what is defined, equal to the bit in any order."""

from __future__ import annotations

from collections.abc import Iterable
from math import fsum


def ratio(numerator: float, denominator: float) -> float | None:
    """The quotient; None, for undefined, where the denominator is 0."""
    return numerator / denominator if denominator else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the defined `values`; None where there is none.

    scikit-learn averages so with `zero_division=np.nan`.
    """
    defined = [value for value in values if value is not None]
    return ratio(fsum(defined), len(defined))


def weighted_mean(values: Iterable[float | None], weights: Iterable[float]) -> float | None:
    """The mean of the defined `values` under their weights; their mean where all weights are 0.

    scikit-learn averages so with `zero_division=np.nan`.
    """
    defined = [
        (value, weight) for value, weight in zip(values, weights, strict=True) if value is not None
    ]
    total = fsum([weight for _, weight in defined])
    if not total:
        return mean([value for value, _ in defined])
    return fsum([value * weight for value, weight in defined]) / total
