"""The vector twin of `classification.count_probabilities`, for events of many rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bins import CALIBRATION_BINS, LOGITS_A_UNIT, MAX_LOGIT_BIN, logit_bin
from ..counters import NO_LABELS, merge
from ..histograms import counted
from ..payload import Values
from .exact_rows import FEW, log_losses, sum_of_columns, sums_and_squares, sums_by, to_fine

Floats = NDArray[np.float64]

PART = 1 << 15
"""Rows that are looked at together, so that intermediate results stay small."""


def count_probability_rows(
    vector: dict[str, Any],
    rows: Floats,
    keys: Sequence[str],
    truth: Sequence[int],
    k: int,
    best: Sequence[int] | None = None,
) -> list[tuple[float, float]]:
    """Add what N rows of K probabilities tell; see `classification.count_probabilities`."""
    from .classification import columns_scored

    if len(rows) > PART:
        parts: list[dict[str, Any]] = []
        for at in range(0, len(rows), PART):
            to = at + PART
            some = None if best is None else best[at:to]
            parts.append({})
            count_probability_rows(parts[-1], rows[at:to], keys, truth[at:to], k, some)
        vector.update(merge(parts))
        return []
    true = np.asarray(truth, np.intp)
    chosen = rows.argmax(axis=1) if best is None else np.asarray(best, np.intp)
    n, width = rows.shape
    starts = np.arange(0, n * width, width)
    flat = rows.ravel()
    places = starts + true
    p = flat.take(places)
    distances = rows.copy()
    distances.ravel()[places] = p - 1
    distances *= distances
    measures: Floats = np.empty((2, n))
    measures[0] = log_losses(p)
    sum_of_columns(distances, measures[1])
    if width == 2:
        measures[1] /= 2
    measures = to_fine(measures)
    (losses, loss_squares), (briers, brier_squares) = sums_and_squares(measures)
    vector["probability_rows"] = {NO_LABELS: n}
    vector["log_loss"] = {NO_LABELS: losses}
    vector["log_loss_squared"] = {NO_LABELS: loss_squares}
    vector["brier"] = {NO_LABELS: briers}
    vector["brier_squared"] = {NO_LABELS: brier_squares}

    confidence = flat.take(starts + chosen)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1)
    sizes = np.bincount(bins, minlength=CALIBRATION_BINS)
    hits = np.bincount(bins[chosen == true], minlength=CALIBRATION_BINS).tolist()
    sums = sums_by(confidence, bins, CALIBRATION_BINS)
    used = sizes.nonzero()[0].tolist()
    vector["calibration_rows"] = {(str(bin),): int(sizes[bin]) for bin in used}
    vector["calibration_hits"] = {(str(bin),): hits[bin] for bin in used}
    vector["calibration_confidence"] = {(str(bin),): sums[bin] for bin in used}

    scored = columns_scored(keys)
    if scored:
        first = scored[0]
        logits = _between(rows[:, first:], _OUTERMOST, 1 - _OUTERMOST)
        logits /= 1 - logits
        np.log(logits, out=logits)
        logits *= LOGITS_A_UNIT
        nearest = np.rint(logits)
        logits -= nearest
        if np.abs(logits, out=logits).max() > _HALF_WAY:  # another logarithm may round otherwise
            for row, column in np.argwhere(logits > _HALF_WAY):
                nearest[row, column] = logit_bin(float(rows[row, first + column]))
        nearest = _between(nearest, -MAX_LOGIT_BIN, MAX_LOGIT_BIN)
        vector["scores"] = counted(tuple(keys[first:]), nearest.astype(np.intp), true - first)
    if k:
        score = p[:, None]
        later = np.arange(width) > true[:, None]
        beaten = (rows > score).sum(axis=1) + ((rows == score) & later).sum(axis=1)
        vector["top_k_rows"] = {(str(k),): n}
        vector["top_k_hits"] = {(str(k),): int((beaten < k).sum())}
    return list(zip(*measures.tolist(), strict=True)) if n < FEW else []


_HALF_WAY = 0.5 - 1e-9
_OUTERMOST = 1e-15
"""A score that is in the outermost bin, as all smaller ones are."""


def _between(numbers: Floats, low: float, high: float) -> Floats:
    """`numbers`, none of them beyond `low` or `high`; few ones in half the time of `clip`."""
    found = np.maximum(numbers, low)
    return np.minimum(found, high, out=found)


def outcomes(true: Sequence[int], best: Sequence[int], width: int) -> dict[tuple[int, int], int]:
    """(column of the truth, column predicted) -> rows."""
    places = np.asarray(true, np.intp) * width + np.asarray(best, np.intp)
    if width * width <= len(places):
        numbers = np.bincount(places)
        used = numbers.nonzero()[0]
        numbers = numbers[used]
    else:
        used, numbers = np.unique(places, return_counts=True)
    return {
        divmod(place, width): number
        for place, number in zip(used.tolist(), numbers.tolist(), strict=True)
    }


def first_bad(rows: Floats, tolerance: float) -> int | None:
    """The first row that holds a negative number or does not sum to 1; None where all do."""
    with np.errstate(over="ignore"):
        off = abs(rows @ np.ones(rows.shape[1]) - 1) > tolerance
    if rows.min() < 0:
        off |= rows.min(axis=1) < 0
    return int(off.argmax()) if off.any() else None


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
