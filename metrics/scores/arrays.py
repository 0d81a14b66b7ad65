"""The vector twin of `ranking.rank`, for histograms of many cells: all classes at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

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
    layout = _layout_of(cells)
    sides = np.zeros((2, len(layout.group)))
    sides.ravel()[layout.places] = np.fromiter(cells.values(), np.float64, len(cells))
    first, group = layout.first, layout.group
    sums = np.add.reduceat(sides, first, axis=1)
    running = sides.cumsum(axis=1)
    running -= (running[:, first] - sides[:, first])[:, group]
    (n, p), (false, true) = sides, running
    high = p * true / np.maximum(true + false - n, 1)
    low = np.minimum(high, _precision_sums(true - p, p, false))
    each = np.stack((p * (sums[0, group] - false), p * n, low, high))
    columns = np.concatenate((sums, np.add.reduceat(each, first, axis=1))).T.tolist()
    return {key: _ranked(*numbers) for key, numbers in zip(layout.keys, columns, strict=True)}


class _Layout(NamedTuple):
    """Where cells are counted: on either side, the bins of a class from the highest score down."""

    labels: tuple[Labels, ...]
    """Of the cells, in their order."""
    keys: list[str]
    """The classes, in the order of their bins."""
    first: NDArray[np.intp]
    """Where the bins of each class begin."""
    group: NDArray[np.intp]
    """The place among `keys` of each bin's class."""
    places: NDArray[np.intp]
    """The place of each cell among the negatives of all bins, and then the positives of all."""


_layouts: dict[tuple[int, Labels, Labels], _Layout] = {}
_MAX_LAYOUTS = 64


def _layout_of(cells: Mapping[Labels, Number]) -> _Layout:
    """How `cells` are laid out; a model's hardly change once it has seen some rows."""
    labels = tuple(cells)
    hint = len(labels), labels[0], labels[-1]  # to hash all of them would cost more than the rest
    layout = _layouts.get(hint)
    if layout is None or layout.labels != labels:
        if len(_layouts) >= _MAX_LAYOUTS:
            _layouts.clear()
        layout = _layouts[hint] = _lay_out(labels)
    return layout


def _lay_out(labels: tuple[Labels, ...]) -> _Layout:
    classes, bins, sides = zip(*labels, strict=True)
    keys = list(dict.fromkeys(classes))
    start = {key: _BINS * index for index, key in enumerate(keys)}
    wanted = _looked_up(start, classes) + _looked_up(_PLACE, bins)
    used, place = np.unique(wanted, return_inverse=True)
    group = used // _BINS
    first = np.flatnonzero(np.diff(group, prepend=-1))
    places = place + _looked_up({"0": 0, "1": len(used)}, sides)
    return _Layout(labels, keys, first, group, places)


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
