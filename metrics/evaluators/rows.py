"""The vector twin of `classification.count_probabilities`, for events of many rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bins import CALIBRATION_BINS, LOGITS_A_UNIT, MAX_LOGIT_BIN, logit_bin, score_of
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
    if n < FEW:
        measures = to_fine(measures)
    (losses, loss_squares), (briers, brier_squares) = sums_and_squares(measures)
    vector["probability_rows"] = {NO_LABELS: n}
    vector["log_loss"] = {NO_LABELS: losses}
    vector["log_loss_squared"] = {NO_LABELS: loss_squares}
    vector["brier"] = {NO_LABELS: briers}
    vector["brier_squared"] = {NO_LABELS: brier_squares}

    confidence = flat.take(starts + chosen)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1)
    wrong_or_right = np.bincount(2 * bins + (chosen == true), minlength=2 * CALIBRATION_BINS)
    sums = sums_by(confidence, bins, CALIBRATION_BINS)
    found = zip(_BIN_LABELS, wrong_or_right.reshape(-1, 2).tolist(), sums, strict=True)
    used = [
        (bin, wrong + right, right, sum) for bin, (wrong, right), sum in found if wrong or right
    ]
    vector["calibration_rows"] = {bin: size for bin, size, _, _ in used}
    vector["calibration_hits"] = {bin: hits for bin, _, hits, _ in used}
    vector["calibration_confidence"] = {bin: sum for bin, _, _, sum in used}

    scored = columns_scored(keys)
    if scored:
        first = scored[0]
        logits = np.maximum(rows[:, first:], _OUTERMOST)
        np.minimum(logits, 1 - _OUTERMOST, out=logits)
        nearest = 1 - logits
        logits /= nearest
        np.log(logits, out=logits)
        logits *= LOGITS_A_UNIT
        np.rint(logits, out=nearest)
        logits -= nearest
        if np.abs(logits, out=logits).max() > _HALF_WAY:  # another logarithm may round otherwise
            for row, column in np.argwhere(logits > _HALF_WAY):
                nearest[row, column] = logit_bin(float(rows[row, first + column]))
        vector["scores"] = counted(tuple(keys[first:]), nearest.astype(np.intp), true - first)
    if k:
        score = p[:, None]
        later = np.arange(width) > true[:, None]
        beaten = (rows > score).sum(axis=1) + ((rows == score) & later).sum(axis=1)
        vector["top_k_rows"] = {(str(k),): n}
        vector["top_k_hits"] = {(str(k),): int((beaten < k).sum())}
    return list(zip(*measures.tolist(), strict=True)) if n < FEW else []


_BIN_LABELS = [(str(bin),) for bin in range(CALIBRATION_BINS)]
_HALF_WAY = 0.5 - 1e-9
_OUTERMOST = score_of(-MAX_LOGIT_BIN)
"""A score in the middle of the outermost bin, which all smaller ones are in."""


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
        off = rows.dot(np.ones(rows.shape[1]))
    off -= 1
    np.abs(off, out=off)
    if off.max() <= tolerance and rows.min() >= 0:
        return None
    bad = off > tolerance
    bad |= rows.min(axis=1) < 0
    return int(bad.argmax())


def as_columns(labels: Values, width: int) -> Sequence[int] | None:
    """(N,) whole numbers as columns; None where one is none."""
    numbers = labels.matrix()[:, 0]
    if numbers.min() < 0 or numbers.max() >= width:
        return None
    columns = numbers.astype(np.intp)
    if np.count_nonzero(columns != numbers):
        return None
    plain: Sequence[int] = columns  # type: ignore[assignment]  # an array, read as a sequence
    return plain
