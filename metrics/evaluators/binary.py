"""Binary feedback: a 0/1 label or a probability of the positive class, against a 0/1 truth."""

from __future__ import annotations

from ..errors import Refused
from ..model_settings import ModelSettings
from ..payload import Feedback, Values
from .classes import Classes, agree
from .classification import count_outcomes, count_probabilities
from .evaluation import Evaluation, Known
from .multiclass import one_hot, positions

_KEYS = ("0", "1")


def evaluate(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation:
    """The increment of one event's rows. Raises Refused for what is neither 0, 1 nor between."""
    assert feedback.prediction is not None
    truth, prediction = agree(feedback.truth, feedback.prediction, flat_rows=False)
    classes = Classes(feedback, settings, known)
    evaluation = Evaluation(rows=len(truth))
    for side in (truth, prediction):
        if side.width not in (0, 2):
            raise Refused(side.field, f"rows of {side.width} values; a binary model has two")
    columns = classes.columns(prediction) if prediction.width else [0, 1]
    truth_keys = _truth_keys(truth, classes)
    positive = settings.positive
    flat = _probabilities(prediction, positive, columns)
    if flat is None:
        prediction_keys = _truth_keys(prediction, classes)
    else:
        predicted = (str(1 - positive), str(positive))
        prediction_keys = [
            predicted[flat[at + positive] >= settings.threshold] for at in range(0, len(flat), 2)
        ]
        count_probabilities(
            evaluation.increment, flat, _KEYS, positions(truth_keys, (0, 1)), settings.k
        )
    count_outcomes(evaluation.increment, truth_keys, prediction_keys, {key: key for key in _KEYS})
    evaluation.gauges["columns", ()] = 2
    classes.fix(evaluation)
    return evaluation


def _truth_keys(values: Values, classes: Classes) -> list[str]:
    if values.width:
        own = classes.columns(values) if values.names else [0, 1]
        return [str(own[column]) for column in one_hot(values)]
    for value in values.flat:
        if type(value) is float and not value.is_integer():
            raise Refused(values.field, f"{value!r} is neither 0 nor 1")
    return classes.keys(values, 2)


def _probabilities(prediction: Values, positive: int, columns: list[int]) -> list[float] | None:
    """N rows of two probabilities, class 0 first; None where the predictions are labels."""
    flat = prediction.flat
    if not prediction.numeric or (prediction.whole() and set(flat) <= {0, 1}):
        return None
    if prediction.width:
        pairs = [(flat[at], flat[at + 1]) for at in range(0, len(flat), 2)]
        for row, (first, second) in enumerate(pairs):
            if min(first, second) < 0 or abs(first + second - 1) > 1e-3 + 1e-9:
                raise Refused(prediction.field, f"row {row} is no pair of probabilities")
        swap = columns == [1, 0]
        return [
            p for first, second in pairs for p in ((second, first) if swap else (first, second))
        ]
    for row, p in enumerate(flat):
        if not 0 <= p <= 1:
            raise Refused(prediction.field, f"row {row} is {p!r}; a probability lies in 0 to 1")
    if positive:
        return [value for p in flat for value in (1 - p, p)]
    return [value for p in flat for value in (p, 1 - p)]
