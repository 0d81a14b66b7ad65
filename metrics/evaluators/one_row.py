"""One row of probabilities against the index of its class: what most events are, straight through.

Equal to what the general way adds, which takes all that is left: `multiclass` asks here first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from math import fsum, log
from typing import Any

from ..bins import CALIBRATION_BINS, calibration_bin, logit_bin
from ..counters import NO_LABELS, Compact, Labels, Vector
from ..model_settings import ModelSettings
from ..payload import Feedback
from .classes import TOLERANCE, Classes
from .classification import CLIP, MAX_SCORED_CLASSES, rank
from .evaluation import Evaluation, Known

_KEYS = tuple(map(str, range(MAX_SCORED_CLASSES)))
_CONFIDENCES = tuple((str(bin),) for bin in range(CALIBRATION_BINS))


class Row(Compact):
    """What one row adds."""

    __slots__ = ("best", "confidence", "distance", "k", "loss", "row", "true")

    def __init__(self, row: Sequence[float], true: int, best: int, k: int) -> None:
        self.row = row
        self.true = true
        self.best = best
        self.k = k
        self.confidence = row[best]
        p = row[true]
        self.loss = -log(min(max(p, CLIP), 1 - CLIP))
        distance = sum([x * x for x in row]) - 2 * p + 1
        self.distance = distance / 2 if len(row) == 2 else distance

    @staticmethod
    def total(increments: Sequence[Row]) -> Vector:
        """The sum of some rows."""
        n = {NO_LABELS: len(increments)}
        losses = [each.loss for each in increments]
        distances = [each.distance for each in increments]
        vector: Vector = _outcomes(Counter([(each.true, each.best) for each in increments]))
        vector |= {
            "events": n,
            "rows": n.copy(),
            "probability_rows": n.copy(),
            "log_loss": {NO_LABELS: fsum(losses)},
            "log_loss_squared": {NO_LABELS: fsum([x * x for x in losses])},
            "brier": {NO_LABELS: fsum(distances)},
            "brier_squared": {NO_LABELS: fsum([x * x for x in distances])},
            "scores": _scores(increments),
        }
        _calibrate(vector, increments)
        top = [each for each in increments if each.k]
        if top:
            hits: Counter[Labels] = Counter()
            for each in top:
                hits[str(each.k),] += each.top_k_hit
            vector["top_k_rows"] = dict(Counter([(str(each.k),) for each in top]))
            vector["top_k_hits"] = dict(hits)
        return vector

    def shown(self) -> dict[str, Any]:
        """The row's contribution as JSON."""
        true, best = _KEYS[self.true], _KEYS[self.best]
        loss, distance = self.loss, self.distance
        shown: dict[str, Any] = {
            "events": 1,
            "rows": 1,
            "probability_rows": 1,
            "log_loss": loss,
            "log_loss_squared": loss * loss,
            "brier": distance,
            "brier_squared": distance * distance,
        }
        if true is best:
            shown["true_positives"] = {true: 1}
        else:
            shown["false_negatives"] = {true: 1}
            shown["false_positives"] = {best: 1}
            shown["confusion"] = {true: {best: 1}}
        if self.k:
            k = str(self.k)
            shown["top_k_rows"] = {k: 1}
            shown["top_k_hits"] = {k: int(self.top_k_hit)}
        return shown

    def classes(self) -> Collection[str]:
        """The true class and the predicted one."""
        return _KEYS[self.true], _KEYS[self.best]

    @property
    def top_k_hit(self) -> bool:
        """Whether the truth is among the k most probable classes."""
        return rank(self.row, self.true) < self.k


def evaluate(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation | None:
    """The increment of an event of this form; None for any other, right or wrong."""
    truth, prediction = feedback.truth, feedback.prediction
    if prediction is None or truth.width or truth.rows != 1 or prediction.rows != 1:
        return None
    width = prediction.width
    true = truth.flat[0]
    if not 2 <= width <= MAX_SCORED_CLASSES or type(true) is not int or not 0 <= true < width:
        return None
    row = prediction.flat
    confidence = max(row)
    if confidence >= 1 or min(row) < 0 or abs(sum(row) - 1) > TOLERANCE:
        return None  # among them one-hot labels
    if prediction.names or truth.names or settings.classes or "names" in known.constants:
        classes = Classes(feedback, settings, known)
        if classes.proposed or len(classes.names) != width:
            return None
        if prediction.names not in (None, classes.names):
            return None
        if not classes.are_columns(list(range(width))):
            return None
    best = row.index(confidence)
    labels = known.labels.get("class", ())
    admitted = _KEYS[true] in labels and _KEYS[best] in labels
    if not admitted and len(labels) + 2 > settings.max_classes:
        return None  # one of them may have to be folded
    return Evaluation(1, Row(row, true, best, settings.k), {("columns", NO_LABELS): width})


def _outcomes(pairs: Counter[tuple[int, int]]) -> Vector:
    """The counters of outcomes of (true, predicted) classes."""
    hits: Counter[Labels] = Counter()
    misses: Counter[Labels] = Counter()
    alarms: Counter[Labels] = Counter()
    wrong: dict[Labels, int] = {}
    for (true, best), n in pairs.items():
        if true == best:
            hits[_KEYS[true],] = n
        else:
            misses[_KEYS[true],] += n
            alarms[_KEYS[best],] += n
            wrong[_KEYS[true], _KEYS[best]] = n
    found = {
        "true_positives": hits,
        "false_negatives": misses,
        "false_positives": alarms,
        "confusion": wrong,
    }
    return {family: dict(cells) for family, cells in found.items() if cells}


def _calibrate(vector: Vector, rows: Iterable[Row]) -> None:
    """Add what the rows' confidences tell."""
    sizes: dict[Labels, int] = {}
    hits: dict[Labels, int] = {}
    confidences: dict[Labels, float] = {}
    for row in rows:
        confidence = row.confidence
        bin = _CONFIDENCES[calibration_bin(confidence)]
        sizes[bin] = sizes.get(bin, 0) + 1
        hits[bin] = hits.get(bin, 0) + (row.true == row.best)
        confidences[bin] = confidences.get(bin, 0.0) + confidence
    vector["calibration_rows"] = sizes
    vector["calibration_hits"] = hits
    vector["calibration_confidence"] = confidences


def _scores(rows: Iterable[Row]) -> dict[Labels, int]:
    """The histograms' cells of the rows."""
    places: list[tuple[int, int, int]] = []
    for row in rows:
        true, numbers = row.true, row.row
        if len(numbers) == 2:
            places.append((1, logit_bin(numbers[1]), true))
        else:
            places += [(at, logit_bin(x), at == true) for at, x in enumerate(numbers)]
    return {_cell(*place): n for place, n in Counter(places).items()}


@lru_cache(maxsize=4096)
def _cell(at: int, bin: int, positive: int) -> Labels:
    return _KEYS[at], str(bin), _KEYS[positive]
