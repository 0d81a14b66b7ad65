"""Multiclass feedback: labels, one-hot rows or probabilities on either side."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from ..errors import Refused
from ..model_settings import ModelSettings
from ..payload import Feedback, Values
from . import one_row
from .classes import (
    COUNTED_AT_ONCE,
    REMEMBERED,
    TOLERANCE,
    Classes,
    agree,
    cap,
    count_pairs,
    pairs_by_parts,
)
from .classification import (
    VECTOR_ROWS,
    Tally,
    cap_confusions,
    count_outcomes,
    count_probabilities,
)
from .evaluation import Evaluation, Known


def evaluate(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation:
    """The increment of one event's rows. Raises Refused where a side cannot be read as classes."""
    return one_row.evaluate(feedback, settings, known) or evaluate_rows(feedback, settings, known)


def evaluate_rows(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation:
    """`evaluate` for rows in any form and number."""
    assert feedback.prediction is not None
    truth, prediction = agree(feedback.truth, feedback.prediction, settings.flat_rows)
    classes = Classes(feedback, settings, known)
    evaluation = Evaluation(rows=len(truth))
    if prediction.width:
        _rows(evaluation, truth, prediction, classes, settings, known)
    else:
        columns = classes.columns(truth) if truth.width else ()
        keys = column_keys(columns)
        true = [keys[at] for at in one_hot(truth)] if columns else _labels(truth, classes)
        predicted = _labels(prediction, classes, len(columns))
        if len(truth) > COUNTED_AT_ONCE:
            _count_many(evaluation, true, predicted, settings, known)
        else:
            _count(evaluation, count_pairs(true, predicted), settings, known)
    if truth.width or prediction.width:
        evaluation.gauges["columns", ()] = truth.width or prediction.width
    classes.fix(evaluation)
    return evaluation


def _rows(
    evaluation: Evaluation,
    truth: Values,
    prediction: Values,
    classes: Classes,
    settings: ModelSettings,
    known: Known,
) -> None:
    """Count predictions that are rows, in terms of their columns."""
    columns = classes.columns(prediction)
    keys = column_keys(columns)
    true = _true_columns(truth, classes, columns, keys)
    probabilities = as_probabilities(prediction, settings)
    best = argmax(prediction)
    if prediction.rows >= VECTOR_ROWS:
        from .rows import outcomes

        places = outcomes(true, best, len(keys))
    else:
        places = Counter(zip(true, best, strict=True))
    pairs = {(keys[at], keys[to]): n for (at, to), n in places.items()}
    _count(evaluation, pairs, settings, known)
    if probabilities is not None:
        count_probabilities(evaluation.increment, probabilities, keys, true, settings.k, best)


def _count(
    evaluation: Evaluation,
    pairs: dict[tuple[str, str], int],
    settings: ModelSettings,
    known: Known,
) -> None:
    keys = dict.fromkeys(key for pair in pairs for key in pair)  # in order: which are folded
    counted_as = cap(keys, known, settings.max_classes)
    count_outcomes(evaluation.increment, pairs, counted_as)
    cap_confusions(evaluation.increment, known.labels.get("confusion", ()))


def _count_many(
    evaluation: Evaluation,
    true: Collection[str],
    predicted: Collection[str],
    settings: ModelSettings,
    known: Known,
) -> None:
    """`_count` of very many rows, whose pairs are not held all at once."""
    keys = dict.fromkeys(chain.from_iterable(zip(true, predicted, strict=True)))
    counted_as = cap(keys, known, settings.max_classes)
    tally = Tally(counted_as, known.labels.get("confusion", ()))
    for pairs in pairs_by_parts(true, predicted):
        tally.add(pairs)
    tally.count(evaluation.increment)


def column_keys(columns: Sequence[int]) -> Sequence[str]:
    """The class keys of columns; those of very many are made as they are asked for."""
    return _keys_of(tuple(columns)) if len(columns) <= REMEMBERED else _Keys(columns)


class _Keys(Sequence[str]):
    """The keys of columns, none of them in memory: a row of a million takes few bytes each."""

    def __init__(self, columns: Sequence[int]) -> None:
        self._columns = columns

    def __getitem__(self, at: Any) -> Any:
        return str(self._columns[at])

    def __len__(self) -> int:
        return len(self._columns)


@lru_cache(maxsize=128)
def _keys_of(columns: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(map(str, columns))


def argmax(values: Values) -> Sequence[int]:
    """The column of each row's largest number; the lowest of equal ones."""
    if values.rows >= VECTOR_ROWS:
        best: Sequence[int] = values.matrix().argmax(axis=1)
        return best
    if values.rows == 1:
        return [values.flat.index(max(values.flat))]
    return [row.index(max(row)) for row in map(values.row, range(len(values)))]


def _true_columns(
    truth: Values, classes: Classes, columns: Sequence[int], keys: Sequence[str]
) -> Sequence[int]:
    """The prediction's column in which each row's truth stands."""
    if not truth.width:
        if truth.doubles is not None and classes.are_columns(columns):
            from .rows import as_columns

            plain = as_columns(truth, len(columns))
            if plain is not None:
                return plain
        true: Collection[str] = _labels(truth, classes, len(columns))
    else:
        best = one_hot(truth)
        own = classes.columns(truth) if truth.names else columns
        if own == columns:
            return best
        true = [str(own[column]) for column in best]
    if isinstance(columns, range):
        at = {key: int(key) for key in set(true) if key.isdecimal() and int(key) < len(columns)}
    else:
        at = {key: position for position, key in enumerate(keys)}
    try:
        return [at[key] for key in true]
    except KeyError as error:
        reason = f"class {error.args[0]} is none of the prediction's columns"
        raise Refused(truth.field, reason) from None


def _labels(values: Values, classes: Classes, width: int = 0) -> Collection[str]:
    """The class keys of (N,) labels beside rows of `width` columns, if any."""
    return classes.keys(
        values, width, fractions=classes.fractions and not width and values.rows == 1
    )


def one_hot(values: Values) -> Sequence[int]:
    """The column of the one in each row. Raises Refused for rows that are no distributions.

    A row of probabilities stands for the class it makes most likely.
    """
    if values.rows == 1:
        flat = values.flat
        if flat.count(1) == 1 and flat.count(0) == values.width - 1:
            return [flat.index(1)]
    best = argmax(values)
    bad = first_bad_row(values)
    if bad is not None:
        raise Refused(
            values.field,
            f"row {bad} is not one-hot (several labels a row: FEEDBACK_TASK=multilabel)",
        )
    return best


def as_probabilities(prediction: Values, settings: ModelSettings) -> Values | None:
    """The rows as probabilities; None where they are one-hot labels or mere scores.

    Raises Refused, unless the settings have other rows normalised or taken as scores.
    """
    bad = first_bad_row(prediction)
    if bad is None:
        one_hot_rows = set(prediction.first()) <= {0, 1} and prediction.whole()
        return None if one_hot_rows else prediction
    if settings.probabilities == "scores":
        return None
    numbers = prediction.row(bad)
    flat = prediction.flat
    if settings.probabilities == "normalise" and min(flat) >= 0:
        width = prediction.width
        sums = [sum(prediction.row(row)) for row in range(len(prediction))]
        if min(sums) > 0 and max(sums) < float("inf"):
            sums = [1.0 if abs(total - 1) <= TOLERANCE else total for total in sums]
            scaled = array("d", (number / sums[at // width] for at, number in enumerate(flat)))
            names = prediction.names
            if len(flat) > COUNTED_AT_ONCE:
                return Values.of_doubles(prediction.field, scaled.tobytes(), width, names)
            return Values(prediction.field, scaled.tolist(), width, True, names)
    raise Refused(
        prediction.field,
        f"row {bad} is no row of probabilities (it sums to {sum(numbers):.6g}, from "
        f"{min(numbers):.6g} to {max(numbers):.6g}); FEEDBACK_PROBABILITIES decides what becomes "
        "of such rows",
    )


def first_bad_row(values: Values) -> int | None:
    """The first row that is no distribution: a negative number, or a sum other than 1."""
    if values.rows >= VECTOR_ROWS:
        from .rows import first_bad

        return first_bad(values.matrix(), TOLERANCE)
    for row in range(values.rows):
        numbers = values.row(row)
        if min(numbers) < 0 or abs(sum(numbers) - 1) > TOLERANCE:
            return row
    return None
