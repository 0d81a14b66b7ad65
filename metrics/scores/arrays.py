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
    sums = np.empty((4, *n.shape))  # pairs won and tied, and precisions at least and at most
    np.multiply(p, false[:, -1:] - false, out=sums[0])
    np.multiply(p, n, out=sums[1])
    np.divide(p * true, np.maximum(true + false - n, 1), out=sums[3])
    np.minimum(sums[3], _precision_sums(true - p, p, false), out=sums[2])
    rows = np.concatenate((running[:, :, -1], sums.sum(axis=2).T), axis=1).tolist()
    ranked = zip(histograms.classes, rows, strict=True)
    return {key: _ranked(*numbers) for key, numbers in ranked if numbers[0] or numbers[1]}


def _precision_sums(true: Floats, positives: Floats, false: Floats) -> Floats:
    """See `ranking._precision_sum`."""
    ends = np.empty((2, *true.shape))  # both in one: at a few hundred numbers it is calls that cost
    np.add(true, false, out=ends[0])
    np.add(ends[0], positives, out=ends[1])
    harmonic = _HARMONIC[np.minimum(ends, _EXACT).astype(np.intp)]
    np.maximum(ends, _EXACT, out=ends)
    square = ends * ends
    remainders = ((1 / 120 - 1 / 252 / square) / square - 1 / 12) / square
    start, end = ends
    more = end - start
    difference: Floats = np.log1p(more / start) - more / (2 * start * end)
    difference += remainders[1] - remainders[0]  # each small, and so apart from the harmonics
    difference += harmonic[1] - harmonic[0]
    lost: Floats = false * difference
    return np.subtract(positives, lost, out=lost)


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
