"""The vector twin of `classification.count_probabilities`, for events of many rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bins import CALIBRATION_BINS, LOGITS_A_UNIT, MAX_LOGIT_BIN
from ..counters import NO_LABELS, Labels, Packed
from ..payload import Values

Floats = NDArray[np.float64]
_BINS = 2 * MAX_LOGIT_BIN + 1
_DENSE = 1 << 16
"""Counts that are kept as an array; a model of more columns has its cells sorted out at once."""


def count_probability_rows(
    vector: dict[str, Any], rows: Floats, keys: Sequence[str], truth: Sequence[int], k: int
) -> None:
    """Add what N rows of K probabilities tell; see `classification.count_probabilities`."""
    from .classification import CLIP, columns_scored

    true = np.asarray(truth, np.intp)
    n, width = rows.shape
    p = rows[np.arange(n), true]
    losses = -np.log(np.clip(p, CLIP, 1 - CLIP))
    distances = np.einsum("ij,ij->i", rows, rows) - 2 * p + 1
    if width == 2:
        distances /= 2
    vector["probability_rows"] = {NO_LABELS: n}
    vector["log_loss"] = {NO_LABELS: float(losses.sum())}
    vector["log_loss_squared"] = {NO_LABELS: float(losses @ losses)}
    vector["brier"] = {NO_LABELS: float(distances.sum())}
    vector["brier_squared"] = {NO_LABELS: float(distances @ distances)}

    best = rows.argmax(axis=1)
    confidence = rows[np.arange(n), best]
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1)
    sizes = np.bincount(bins, minlength=CALIBRATION_BINS)
    hits = np.bincount(bins[best == true], minlength=CALIBRATION_BINS)
    sums = np.bincount(bins, confidence, CALIBRATION_BINS)
    used = sizes.nonzero()[0].tolist()
    vector["calibration_rows"] = {(str(bin),): int(sizes[bin]) for bin in used}
    vector["calibration_hits"] = {(str(bin),): int(hits[bin]) for bin in used}
    vector["calibration_confidence"] = {(str(bin),): float(sums[bin]) for bin in used}

    scored = columns_scored(keys)
    if scored:
        first = scored[0]
        scores = np.minimum(rows[:, first:], 1.0)  # a row may sum to a little more than 1
        with np.errstate(divide="ignore"):
            logits = np.log(scores / (1 - scores)) * LOGITS_A_UNIT
        codes = np.clip(np.rint(logits), -MAX_LOGIT_BIN, MAX_LOGIT_BIN).astype(np.int64)
        positive = true[:, None] == np.arange(first, width)
        codes += MAX_LOGIT_BIN + _BINS * np.arange(width - first)
        places = (2 * codes + positive).ravel()
        size = 2 * _BINS * (width - first)
        if size <= _DENSE:
            dense = np.bincount(places, minlength=size)
            label = partial(_label, tuple(keys[first:]))
            vector["scores"] = Packed(dense, ("scores", *keys), label)
        else:
            vector["scores"] = {
                _label(keys[first:], place): number for place, number in _counted(places)
            }
    if k:
        score = p[:, None]
        later = np.arange(width) > true[:, None]
        beaten = (rows > score).sum(axis=1) + ((rows == score) & later).sum(axis=1)
        vector["top_k_rows"] = {(str(k),): n}
        vector["top_k_hits"] = {(str(k),): int((beaten < k).sum())}


def outcomes(true: Sequence[int], best: Sequence[int], width: int) -> dict[tuple[int, int], int]:
    """(column of the truth, column predicted) -> rows."""
    places = np.asarray(true, np.intp) * width + np.asarray(best, np.intp)
    return {divmod(place, width): number for place, number in _counted(places)}


def _counted(places: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    """Each distinct place, and how often it stands there."""
    used, numbers = np.unique(places, return_counts=True)
    return zip(used.tolist(), numbers.tolist(), strict=True)


def distributions(rows: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Which rows hold no negative number and sum to 1."""
    with np.errstate(over="ignore"):
        sums = rows.sum(axis=1)
    good: NDArray[np.bool_] = (abs(sums - 1) <= tolerance) & (rows.min(axis=1) >= 0)
    return good


def as_columns(labels: Values, width: int) -> Sequence[int] | None:
    """(N,) whole numbers as columns; None where one is none."""
    numbers = labels.matrix()[:, 0]
    if numbers.min() < 0 or numbers.max() >= width:
        return None
    columns = numbers.astype(np.intp)
    if (columns != numbers).any():
        return None
    plain: Sequence[int] = columns  # type: ignore[assignment]  # an array, read as a sequence
    return plain


def _label(keys: Sequence[str], place: int) -> Labels:
    """(class, bin, positive) of a place in the array of counts."""
    column, rest = divmod(place, 2 * _BINS)
    return keys[column], str((rest >> 1) - MAX_LOGIT_BIN), _SIDE[rest & 1]


_SIDE = ("0", "1")
