"""The vector twin of `ranking.rank`: all classes of an array at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..counters import Packed
from ..histograms import Histograms
from .ranking import HARMONIC, Bounded, Ranked

Floats = NDArray[np.float64]
_HARMONIC = np.array(HARMONIC)
_EXACT = len(HARMONIC) - 1


def rank_all(histograms: Packed) -> dict[str, Ranked]:
    """Class key -> what its histogram tells, for classes of which there are rows."""
    assert isinstance(histograms, Histograms)
    counts = histograms.counts[:, :, ::-1]  # the highest score first
    sides = counts[:, :, counts.any(axis=(0, 1))].astype(np.float64)
    running = sides.cumsum(axis=2)
    n, p = sides[:, 0], sides[:, 1]
    false, true = running[:, 0], running[:, 1]
    negatives, positives = false[:, -1:], true[:, -1:]
    high = p * true / np.maximum(true + false - n, 1)
    low = np.minimum(high, _precision_sums(true - p, p, false))
    each = (p * (negatives - false), p * n, low, high)
    columns = [negatives[:, 0], positives[:, 0], *(values.sum(axis=1) for values in each)]
    rows = np.array(columns).T.tolist()
    ranked = zip(histograms.classes, rows, strict=True)
    return {key: _ranked(*numbers) for key, numbers in ranked if numbers[0] or numbers[1]}


def _precision_sums(true: Floats, positives: Floats, false: Floats) -> Floats:
    """See `ranking._precision_sum`."""
    start = true + false
    end = start + positives
    exact = _HARMONIC[np.minimum(end, _EXACT).astype(np.intp)]
    exact -= _HARMONIC[np.minimum(start, _EXACT).astype(np.intp)]
    start, end = np.maximum(start, _EXACT), np.maximum(end, _EXACT)
    difference = np.log1p((end - start) / start) - (end - start) / (2 * start * end)
    difference += _remainders(end) - _remainders(start)
    return positives - false * (exact + difference)


def _remainders(n: Floats) -> Floats:
    square = n * n
    return ((1 / 120 - 1 / 252 / square) / square - 1 / 12) / square


def _ranked(
    negatives: float, positives: float, wins: float, ties: float, low: float, high: float
) -> Ranked:
    pairs = positives * negatives
    return Ranked(
        int(positives),
        int(negatives),
        Bounded((wins + ties / 2) / pairs, wins / pairs, (wins + ties) / pairs) if pairs else None,
        Bounded((low + high) / 2 / positives, low / positives, high / positives)
        if positives
        else None,
    )
