"""Binary feedback: a 0/1 label or a probability of the positive class, against a 0/1 truth."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence

from ..errors import Refused
from ..model_settings import ModelSettings
from ..payload import Feedback, Values
from .classes import COUNTED_AT_ONCE, Classes, Keys, agree, count_pairs
from .classification import count_outcomes, count_probabilities
from .evaluation import Evaluation, Known
from .multiclass import first_bad_row, one_hot

KEYS = ("0", "1")


def evaluate(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation:
    """The increment of one event's rows. Raises Refused for what is neither 0, 1 nor between."""
    assert feedback.prediction is not None
    truth, prediction = agree(feedback.truth, feedback.prediction, scalars=True)
    classes = Classes(feedback, settings, known)
    evaluation = Evaluation(rows=len(truth))
    for side in (truth, prediction):
        if side.width not in (0, 2):
            raise Refused(side.field, f"rows of {side.width} values; a binary model has two")
    true = _labels(truth, classes)
    positive = settings.positive
    rows = _probabilities(prediction, positive, classes)
    predicted: Collection[str]
    if rows is None:
        predicted = _labels(prediction, classes)
    else:
        of = (str(1 - positive), str(positive))
        if rows.rows > COUNTED_AT_ONCE:
            at_least = rows.matrix()[:, positive] >= settings.threshold
            predicted = Keys({0: of[0], 1: of[1]}, array("B", at_least.tobytes()))
            columns: Sequence[int] = array("B", map(int, true))
        else:
            predicted = [of[p >= settings.threshold] for p in rows.flat[positive::2]]
            columns = [int(key) for key in true]
        count_probabilities(evaluation.increment, rows, KEYS, columns, settings.k)
    outcomes = count_pairs(true, predicted)
    count_outcomes(evaluation.increment, outcomes, {key: key for key in KEYS})
    evaluation.gauges["columns", ()] = 2
    classes.fix(evaluation)
    return evaluation


def _labels(values: Values, classes: Classes) -> Collection[str]:
    if values.width:
        own = _columns(values, classes) if values.names else [0, 1]
        return [str(own[column]) for column in one_hot(values)]
    for value in values.flat:
        if type(value) is float and not value.is_integer():
            raise Refused(values.field, f"{value!r} is neither 0 nor 1")
    keys = classes.keys(values, 2)
    if not set(keys) <= set(KEYS):
        raise Refused(values.field, "holds a class that is none of the model's first two")
    return keys


def _columns(values: Values, classes: Classes) -> list[int]:
    """The class of each of the two columns."""
    columns = list(classes.columns(values))
    if sorted(columns) != [0, 1]:
        raise Refused(values.field, "names a class that is none of the model's first two")
    return columns


def _probabilities(prediction: Values, positive: int, classes: Classes) -> Values | None:
    """(N, 2) probabilities, class 0 first; None where the predictions are labels."""
    flat = prediction.flat
    if not prediction.numeric:
        return None
    if prediction.among({0, 1}) and prediction.whole():
        return None
    if prediction.width:
        bad = first_bad_row(prediction)
        if bad is not None:
            raise Refused(prediction.field, f"row {bad} is no pair of probabilities")
        if _columns(prediction, classes) == [0, 1]:
            return prediction
        swapped = [p for at in range(0, len(flat), 2) for p in (flat[at + 1], flat[at])]
        return Values(prediction.field, swapped, 2, True)
    for row, p in enumerate(flat):
        if not 0 <= p <= 1:
            raise Refused(prediction.field, f"row {row} is {p!r}; a probability lies in 0 to 1")
    if prediction.rows > COUNTED_AT_ONCE:
        numbers = prediction.matrix()
        both = numbers.repeat(2, axis=1)
        both[:, 1 - positive] = 1 - both[:, positive]
        return Values.of_doubles(prediction.field, both.tobytes(), 2)
    pairs = [q for p in flat for q in ((1 - p, p) if positive else (p, 1 - p))]
    return Values(prediction.field, pairs, 2, True)
