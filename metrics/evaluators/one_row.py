"""One row of probabilities against the index of its class: what most events are, straight through.

Equal to what the general way adds, which takes all that is left: `multiclass` asks here first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..counters import NO_LABELS, Compact, Vector, merge
from ..exact import FINE_ONE, fine, log_loss
from ..model_settings import ModelSettings
from ..payload import Feedback, Values
from ..state import GaugeKey
from .classes import TOLERANCE, Classes
from .classification import MAX_SCORED_CLASSES, brier, count_outcomes, count_probabilities, rank
from .evaluation import Evaluation, Known

_COLUMNS: GaugeKey = ("columns", NO_LABELS)
_KEYS = tuple(map(str, range(MAX_SCORED_CLASSES)))


class Row(Compact):
    """What one row adds: the rows of a commit are counted together, like those of one event."""

    __slots__ = ("best", "k", "measures", "row", "true")

    def __init__(self, row: Sequence[float], true: int, best: int, k: int) -> None:
        self.row = row
        self.true = true
        self.best = best
        self.k = k
        self.measures: tuple[float, float] | None = None
        """Its log loss and Brier score, once it was counted."""

    @staticmethod
    def total(increments: Sequence[Row]) -> Vector:
        """The sum of some rows."""
        alike: dict[tuple[int, int], list[Row]] = {}
        for each in increments:
            alike.setdefault((len(each.row), each.k), []).append(each)
        vector, *rest = [_counted(rows, *shape) for shape, rows in alike.items()]
        return merge((vector, *rest)) if rest else vector

    def shown(self) -> dict[str, Any]:
        """The row's contribution as JSON."""
        row, true, best = self.row, _KEYS[self.true], _KEYS[self.best]
        loss, distance = self.measures or (
            fine(log_loss(row[self.true])) / FINE_ONE,
            fine(brier(row, self.true)) / FINE_ONE,
        )
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
            shown["top_k_hits"] = {k: int(rank(row, self.true) < self.k)}
        return shown

    def classes(self) -> set[str]:
        """The true class and the predicted one."""
        return {_KEYS[self.true], _KEYS[self.best]}


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
        if not classes.are_columns(range(width)):
            return None
    best = row.index(confidence)
    labels = known.labels.get("class", ())
    admitted = _KEYS[true] in labels and _KEYS[best] in labels
    if not admitted and len(labels) + 2 > settings.max_classes:
        return None  # one of them may have to be folded
    return Evaluation(1, Row(row, true, best, settings.k), {_COLUMNS: width})


def _counted(rows: Sequence[Row], width: int, k: int) -> Vector:
    """What rows of one width add."""
    n, keys = len(rows), _KEYS[:width]
    flat: list[float] = []
    for each in rows:
        flat += each.row
    true, best = [each.true for each in rows], [each.best for each in rows]
    vector: Vector = {"events": {NO_LABELS: n}, "rows": {NO_LABELS: n}}
    pairs = {
        (keys[at], keys[to]): n for (at, to), n in Counter(zip(true, best, strict=True)).items()
    }
    count_outcomes(vector, pairs, dict(zip(keys, keys, strict=True)))
    values = Values("response", flat, width, True)
    measures = count_probabilities(vector, values, keys, true, k, best)
    for each, found in zip(rows, measures, strict=False):
        each.measures = found
    return vector
