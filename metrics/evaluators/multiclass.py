"""Multiclass feedback: labels, one-hot rows or probabilities on either side."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Any

from ..errors import Refused
from ..model_settings import ModelSettings
from ..payload import Feedback, Values
from .classes import TOLERANCE, Classes, agree, cap
from .classification import count_outcomes, count_probabilities
from .evaluation import Evaluation, Known


def evaluate(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation:
    """The increment of one event's rows. Raises Refused where a side cannot be read as classes."""
    assert feedback.prediction is not None
    truth, prediction = agree(feedback.truth, feedback.prediction, settings.flat_rows)
    classes = Classes(feedback, settings, known)
    evaluation = Evaluation(rows=len(truth))
    width = truth.width or prediction.width

    columns = classes.columns(prediction if prediction.width else truth) if width else []
    truth_keys, truth_columns = _truth(truth, classes, columns)
    probabilities: Sequence[float] | None = None
    if prediction.width:
        probabilities = _probabilities(prediction, settings)
        best = argmax(prediction.flat, prediction.width)
        prediction_keys = [str(columns[column]) for column in best]
    else:
        prediction_keys = _labels(prediction, classes, truth.width)

    taken = cap(dict.fromkeys((*truth_keys, *prediction_keys)), known, settings.max_classes)
    count_outcomes(evaluation.increment, truth_keys, prediction_keys, taken)
    if probabilities is not None:
        count_probabilities(
            evaluation.increment,
            probabilities,
            [str(column) for column in columns],
            truth_columns or positions(truth_keys, columns),
            settings.k,
        )
    if width:
        evaluation.gauges["columns", ()] = width
    classes.fix(evaluation)
    return evaluation


def argmax(flat: Sequence[float], width: int) -> list[int]:
    """The column of each row's largest number; the lowest of equal ones."""
    rows = len(flat) // width
    if rows < 24:
        return [
            max(range(width), key=flat[start : start + width].__getitem__)
            for start in range(0, len(flat), width)
        ]
    from .rows import matrix

    best: list[int] = matrix(flat, width).argmax(axis=1).tolist()
    return best


def positions(keys: Sequence[str], columns: Sequence[int]) -> list[int]:
    """The column in the event that holds each key's class."""
    at = {str(column): position for position, column in enumerate(columns)}
    return [at[key] for key in keys]


def _truth(
    truth: Values, classes: Classes, columns: list[int]
) -> tuple[list[str], list[int] | None]:
    """Class keys of the truths, and their columns where the rows themselves tell."""
    if not truth.width:
        return _labels(truth, classes, len(columns)), None
    own = classes.columns(truth) if truth.names else columns
    best = one_hot(truth)
    keys = [str(own[column]) for column in best]
    return keys, best if own == columns else None


def _labels(values: Values, classes: Classes, width: int) -> list[str]:
    for value in values.flat:
        if type(value) is float and not value.is_integer() and (width or len(values) > 1):
            raise Refused(values.field, f"{value!r} is no class label")
    return classes.keys(values, width)


def one_hot(values: Values) -> list[int]:
    """The column of the one in each row. Raises Refused for rows that are no distributions."""
    flat, width = values.flat, values.width
    best = argmax(flat, width)
    ones = flat.count(1) == len(best) and flat.count(0) == len(flat) - len(best)
    if ones and all(flat[row * width + column] == 1 for row, column in enumerate(best)):
        return best
    for row in range(len(best)):
        numbers = values.row(row)
        if min(numbers) < 0 or abs(fsum(numbers) - 1) > TOLERANCE:
            raise Refused(
                values.field,
                f"row {row} is not one-hot (several labels a row: FEEDBACK_TASK=multilabel)",
            )
    return best


def _probabilities(prediction: Values, settings: ModelSettings) -> Sequence[float] | None:
    """The rows as probabilities; None where they are one-hot labels or mere scores."""
    flat: Sequence[Any] = prediction.flat
    if prediction.whole() and flat.count(1) == len(prediction) == len(flat) - flat.count(0):
        return None
    bad = _first_bad_row(prediction)
    if bad is None:
        return flat
    if settings.probabilities == "scores":
        return None
    numbers = prediction.row(bad)
    if settings.probabilities == "normalise" and min(prediction.flat) >= 0:
        width = prediction.width
        sums = [fsum(prediction.row(row)) for row in range(len(prediction))]
        if min(sums) > 0:
            return [number / sums[at // width] for at, number in enumerate(flat)]
    raise Refused(
        prediction.field,
        f"row {bad} is no row of probabilities (it sums to {fsum(numbers):.6g}, from "
        f"{min(numbers):.6g} to {max(numbers):.6g}); FEEDBACK_PROBABILITIES decides what becomes "
        "of such rows",
    )


def _first_bad_row(values: Values) -> int | None:
    if len(values) >= 24:
        import numpy as np

        from .rows import matrix

        rows = matrix(values.flat, values.width)
        good = (abs(rows.sum(axis=1) - 1) <= TOLERANCE + 1e-9) & (rows >= 0).all(axis=1)
        return None if good.all() else int(np.argmin(good))
    for row in range(len(values)):
        numbers = values.row(row)
        if min(numbers) < 0 or abs(fsum(numbers) - 1) > TOLERANCE + 1e-9:
            return row
    return None
