"""Multilabel feedback: rows of zeros and ones, or of probabilities, each column a label.

Families: true_positives|false_negatives|false_positives(label), subset_hits, cells (rows times
labels; of those that count as `__other__` also by themselves).
"""

from __future__ import annotations

from ..counters import NO_LABELS, OTHER, Labels, Number
from ..errors import Refused
from ..model_settings import ModelSettings
from ..payload import Feedback, Values
from .classes import Classes, agree, cap
from .evaluation import Evaluation, Known


def evaluate(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation:
    """The increment of one event's rows. Raises Refused for values outside 0 to 1."""
    assert feedback.prediction is not None
    truth, prediction = agree(feedback.truth, feedback.prediction, flat_rows=True)
    for side in (truth, prediction):
        if not side.numeric or not side.width:
            raise Refused(side.field, "must be rows of several numbers: the task is multilabel")
    _check(truth, prediction)
    classes = Classes(feedback, settings, known)
    columns = classes.columns(prediction)
    own = classes.columns(truth) if truth.names else columns
    if own != columns and sorted(own) != sorted(columns):
        raise Refused(truth.field, f"names other labels than {prediction.field}")
    place = {column: position for position, column in enumerate(own)}
    aligned = [place[column] for column in columns]
    counted_as = cap(list(map(str, columns)), known, settings.max_classes)
    keys = list(counted_as.values())
    width = truth.width
    hits: dict[Labels, Number] = {}
    misses: dict[Labels, Number] = {}
    alarms: dict[Labels, Number] = {}
    subset = 0
    outcomes = {(True, True): hits, (True, False): misses, (False, True): alarms}
    for start in range(0, len(truth.flat), width):
        wrong = False
        for column in range(width):
            true = truth.flat[start + aligned[column]] == 1
            predicted = prediction.flat[start + column] >= settings.threshold
            wrong = wrong or true != predicted
            if true or predicted:
                cell = outcomes[true, predicted]
                cell[keys[column],] = cell.get((keys[column],), 0) + 1
        subset += not wrong
    evaluation = Evaluation(rows=len(truth))
    evaluation.increment["subset_hits"] = {NO_LABELS: subset}
    cells_of: dict[Labels, Number] = {NO_LABELS: len(truth.flat)}
    if folded := keys.count(OTHER):
        cells_of[OTHER,] = folded * len(truth)
    evaluation.increment["cells"] = cells_of
    for family, cells in (
        ("true_positives", hits),
        ("false_negatives", misses),
        ("false_positives", alarms),
    ):
        if cells:
            evaluation.increment[family] = cells
    evaluation.gauges["columns", ()] = width
    classes.fix(evaluation)
    return evaluation


def _check(truth: Values, prediction: Values) -> None:
    if not truth.among({0, 1}):
        raise Refused(truth.field, "must be zeros and ones: the model's task is multilabel")
    if min(prediction.flat) < 0 or max(prediction.flat) > 1:
        raise Refused(prediction.field, "must lie between 0 and 1: the model's task is multilabel")
