"""The vector twin of `classification.count_probabilities`, for events of many rows."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bins import CALIBRATION_BINS, LOGITS_A_UNIT, MAX_LOGIT_BIN
from ..counters import NO_LABELS, Vector

Floats = NDArray[np.float64]
_BINS = 2 * MAX_LOGIT_BIN + 1


def matrix(flat: Sequence[Any], width: int) -> Floats:
    """(N, K) float64 of N·K numbers; `array` reads a list several times faster than numpy."""
    return np.frombuffer(array("d", flat), np.float64).reshape(-1, width)


def count_probability_rows(
    vector: Vector, flat: Sequence[float], keys: Sequence[str], truth: Sequence[int], k: int
) -> None:
    """Add what N rows of K probabilities tell; see `classification.count_probabilities`."""
    from .classification import CLIP, columns_scored

    rows = matrix(flat, len(keys))
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
        with np.errstate(divide="ignore"):
            logits = np.log(rows[:, first:] / (1 - rows[:, first:])) * LOGITS_A_UNIT
        codes = np.clip(np.rint(logits), -MAX_LOGIT_BIN, MAX_LOGIT_BIN).astype(np.int64)
        positive = true[:, None] == np.arange(first, width)
        codes += MAX_LOGIT_BIN + _BINS * np.arange(width - first)
        cells, counts = np.unique(2 * codes + positive, return_counts=True)
        vector["scores"] = {
            (
                keys[first + (cell >> 1) // _BINS],
                str((cell >> 1) % _BINS - MAX_LOGIT_BIN),
                _SIDE[cell & 1],
            ): count
            for cell, count in zip(cells.tolist(), counts.tolist(), strict=True)
        }
    if k:
        score = p[:, None]
        later = np.arange(width) > true[:, None]
        beaten = (rows > score).sum(axis=1) + ((rows == score) & later).sum(axis=1)
        vector["top_k_rows"] = {(str(k),): n}
        vector["top_k_hits"] = {(str(k),): int((beaten < k).sum())}


_SIDE = ("0", "1")
