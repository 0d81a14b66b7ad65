"""The vector twin of `ranking.rank`, for histograms of many cells: all classes at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..bins import MAX_LOGIT_BIN
from ..counters import Labels, Number
from .ranking import HARMONIC, Bounded, Ranked

Floats = NDArray[np.float64]
_BINS = 2 * MAX_LOGIT_BIN + 1
_PLACE = {str(bin): MAX_LOGIT_BIN - bin for bin in range(-MAX_LOGIT_BIN, MAX_LOGIT_BIN + 1)}
"""Where a bin is counted: the highest score first."""
_HARMONIC = np.array(HARMONIC)
_EXACT = len(HARMONIC) - 1


def rank_all(cells: Mapping[Labels, Number]) -> dict[str, Ranked]:
    """Class key -> what its cells of the family `scores` tell; see `ranking.rank`."""
    keys, places = _places(tuple(cells))
    counts = np.zeros(2 * _BINS * len(keys), np.int64)
    counts[places] = np.fromiter(cells.values(), np.int64, len(cells))
    sides = counts.reshape(2, -1)
    used = np.flatnonzero(sides[0] | sides[1])
    n, p = sides[:, used].astype(np.float64)
    first = np.flatnonzero(np.diff(used // _BINS, prepend=-1))

    def by_class(values: Floats) -> Floats:
        sums: Floats = np.add.reduceat(values, first)
        return sums

    def in_class(sums: Floats) -> Floats:
        return sums.repeat(np.diff(first, append=len(used)))

    negatives, positives = by_class(n), by_class(p)
    false = n.cumsum() - in_class(negatives.cumsum() - negatives)
    true = p.cumsum() - in_class(positives.cumsum() - positives)
    wins = by_class(p * (in_class(negatives) - false))
    ties = by_class(p * n)

    some = p > 0
    low, high = np.zeros_like(p), np.zeros_like(p)
    before, after = (false - n)[some], false[some]
    high[some] = p[some] * true[some] / (true[some] + before)
    low[some] = np.minimum(high[some], _precision_sums((true - p)[some], p[some], after))
    columns = (negatives, positives, wins, ties, by_class(low), by_class(high))
    return {
        keys[place // _BINS]: _ranked(*numbers)
        for place, *numbers in zip(
            used[first].tolist(), *(column.tolist() for column in columns), strict=True
        )
    }


@lru_cache(maxsize=16)
def _places(labels: tuple[Labels, ...]) -> tuple[tuple[str, ...], NDArray[np.intp]]:
    """The classes, and where each cell is counted: by side, class and bin.

    A model's cells hardly change once it has seen some rows, so they are told apart once.
    """
    classes, bins, sides = zip(*labels, strict=True)
    keys = tuple(dict.fromkeys(classes))
    start = {key: _BINS * index for index, key in enumerate(keys)}
    side = {"0": 0, "1": _BINS * len(keys)}
    return keys, _looked_up(start, classes) + _looked_up(_PLACE, bins) + _looked_up(side, sides)


def _looked_up(table: dict[str, int], texts: Iterable[str]) -> NDArray[np.intp]:
    return np.fromiter(map(table.__getitem__, texts), np.intp)


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
