"""Feedback -> increment: tasks, forms on either side, refusals, and the vector twin."""

from __future__ import annotations

import copy
import random
import warnings
from itertools import pairwise
from math import inf, isclose, isfinite, log
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.bins import (
    CALIBRATION_BINS,
    RELATIVE_ERROR,
    calibration_bin,
    error_bin,
    error_of,
    logit_bin,
)
from metrics.counters import LARGEST, OTHER, merge, unpack
from metrics.errors import ConfigurationError, Refused
from metrics.evaluators import Known, evaluate, infer, multiclass, one_row
from metrics.evaluators.classification import MAX_SCORED_CLASSES, VECTOR_ROWS
from metrics.evaluators.evaluation import Evaluation
from metrics.evaluators.multiclass import column_keys
from metrics.evaluators.regression import MAX_OUTPUTS, ZERO
from metrics.evaluators.reward import MAX_ROUTES
from metrics.evaluators.user_metrics import MAX_SERIES, load_class
from metrics.exact import CLIP
from metrics.model_settings import ModelSettings
from metrics.payload import parse
from metrics.replies import readable
from metrics.scores.view import reward_view
from tests.floats import exactly, floats
from tests.test_payload import JSON, hostile_events, is_one_short_line


def feedback(truth: Any, response: Any, **more: Any) -> Any:
    """Feedback whose messages are `ndarray`s, or whole messages where they are objects."""
    messages = {"truth": truth, "response": response}
    event = {
        name: each if isinstance(each, dict) else {"data": {"ndarray": each}}
        for name, each in messages.items()
    }
    return parse({**event, **more})


def run(truth: Any, response: Any, constants: Any = None, **options: Any) -> Evaluation:
    """Evaluate under the given settings and constants."""
    more = options.pop("more", {})
    known = Known(constants or {}, options.pop("labels", {}))
    evaluation = evaluate(feedback(truth, response, **more), ModelSettings(**options), known)
    evaluation.vector()
    return evaluation


def outcomes(evaluation: Evaluation) -> dict[str, Any]:
    """Hits by class, and wrong cells."""
    counters = evaluation.increment
    return {
        **{labels[0]: n for labels, n in counters.get("true_positives", {}).items()},
        **counters.get("confusion", {}),
    }


def same(one: Any, other: Any) -> None:
    """Fail unless two vectors have the same cells: integers exactly, floats to 1e-9."""
    one, other = floats(merge([one])), floats(merge([other]))
    assert one.keys() == other.keys()
    for family, cells in one.items():
        assert cells.keys() == other[family].keys(), family
        for labels, number in cells.items():
            there = other[family][labels]
            assert isinstance(number, int) == isinstance(there, int), family
            if isinstance(number, int):
                assert number == there, (family, labels)
            else:
                assert isclose(number, there, rel_tol=1e-9, abs_tol=1e-12), (family, labels)


TASKS = [
    ([1], [1], "multiclass", False),
    ([0, 1], [1, 1.0], "multiclass", False),
    ([True], [False], "multiclass", False),
    ([2], [1], "multiclass", True),
    (["cat"], ["dog"], "multiclass", True),
    ([[0, 0, 1]], [[0.1, 0.2, 0.7]], "multiclass", True),
    ([2], [[0.1, 0.2, 0.7]], "multiclass", True),
    ([[0, 0, 1]], [2], "multiclass", True),
    ([2], [0.1, 0.2, 0.7], "multiclass", True),
    ([1], [0.9], "binary", True),
    ([0, 1], [0.2, 1.0], "binary", True),
    ([1], [1.5], "regression", True),
    ([3], [2.7], "regression", True),
    ([2.5], [3], "regression", True),
    ([[1.5, 2.5]], [[1, 2]], "regression", True),
    ([1.0], [0.0], "multiclass", False),
    ([0, 0], [0, 0], "multiclass", False),
    ([True, 0], [1.0, 0], "multiclass", False),
    ([1, 2], [2, 1], "multiclass", True),
    ([2.0], [1.0], "multiclass", True),
    ([-1], [1], "multiclass", True),
    ([1], ["cat"], "multiclass", True),
    (["cat"], [1], "multiclass", True),
    ([[0.3, 0.7]], [[0.4, 0.6]], "multiclass", True),
    ([[0, 1]], [[0, 1]], "multiclass", True),
    ([[0, 1], [1, 0]], [1, 0], "multiclass", True),
    ([0], [[0.5, 0.5]], "multiclass", True),
    ([0, 1], [[0.5, 0.5], [0.1, 0.9]], "multiclass", True),
    ([0], [0.3, 0.7], "multiclass", True),
    ([0, 1, 1], [0.2, 0.7, 1], "binary", True),
    ([True], [0.9], "binary", True),
    ([0], [0.1], "binary", True),
    ([0], [-0.1], "regression", True),
    ([0, 1], [0.5, 1.5], "regression", True),
    ([0.5], [1], "regression", True),
    ([0.5], [0.5], "regression", True),
    ([1.5, 2.0], [1, 2], "regression", True),
    ([[1.5, 2.5], [3.5, 4.5]], [[1, 2], [3, 4]], "regression", True),
]


@pytest.mark.parametrize(("truth", "response", "task", "decided"), TASKS)
def test_shapes_and_types_decide_the_task(
    truth: Any, response: Any, task: str, decided: bool
) -> None:
    """The task is what the data speaks for, fixed only where it rules out the others."""
    event = feedback(truth, response)
    assert infer(event.truth, event.prediction) == (task, decided)
    assert run(truth, response).constants.get("task") == (task if decided else None)


def test_the_decided_task_stays() -> None:
    """Once fixed, the same data is read as the model's task and proposes nothing."""
    for task, truth, response in (
        ("regression", [1], [0]),
        ("binary", [1], [0]),
        ("multilabel", [[1, 0]], [[1, 0]]),
        ("multiclass", [2], [1]),
    ):
        evaluation = run(truth, response, {"task": task})
        assert "task" not in evaluation.constants
        assert set(evaluation.increment) == set(run(truth, response, task=task).increment)
    assert "targets" in run([1], [0], {"task": "regression"}).increment
    assert "cells" in run([[1, 0]], [[1, 0]], {"task": "multilabel"}).increment


def test_what_decides_nothing_is_counted_all_the_same() -> None:
    """Zeros and ones count as labels until something tells more."""
    counters = run([1, 0, 1], [1, 1, 0]).increment
    assert counters["true_positives"] == {("1",): 1}
    assert counters["confusion"] == {("0", "1"): 1, ("1", "0"): 1}


def test_zeros_and_ones_leave_the_task_open() -> None:
    """After 0/1 labels a probability is binary feedback, and counts in the same classes."""
    first, second = run([1, 0], [1, 1]), run([1, 0], [0.9, 0.7])
    assert outcomes(first) == outcomes(second) == {"1": 1, ("0", "1"): 1}


def test_what_contradicts_the_decided_task_is_refused_with_the_setting() -> None:
    """The reason names the field, and the setting that decides."""
    for task, truth, response in (
        ("multiclass", [1], [0.7]),
        ("binary", [2], [0.7]),
        ("regression", ["a"], ["b"]),
    ):
        with pytest.raises(Refused, match="FEEDBACK_TASK") as refused:
            run(truth, response, {"task": task})
        assert refused.value.field


FORMS = [
    ([2, 0], [[0.1, 0.2, 0.7], [0.2, 0.5, 0.3]]),
    ([[0, 0, 1], [1, 0, 0]], [[0.1, 0.2, 0.7], [0.2, 0.5, 0.3]]),
    ([[0, 0, 1], [1, 0, 0]], [2, 1]),
    ([2, 0], [[0, 0, 1], [0, 1, 0]]),
    ([[2], [0]], [[2.0], [1]]),
    (["2", "0"], [2, 1]),
    ([2, 0], ["2", "1"]),
    ([2.0, 0.0], [[0.1, 0.2, 0.7], [0.2, 0.5, 0.3]]),
    (["2", "0"], [[0.1, 0.2, 0.7], [0.2, 0.5, 0.3]]),
    ([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [[0.1, 0.2, 0.7], [0.2, 0.5, 0.3]]),
    ([[0.1, 0.1, 0.8], [0.9, 0.1, 0]], [[0, 0, 1], [0, 1, 0]]),
    ([[0.1, 0.1, 0.8], [0.9, 0.1, 0]], ["2", "1"]),
    ({"predictions": [2, 0]}, {"predictions": [[0.1, 0.2, 0.7], [0.2, 0.5, 0.3]]}),
    ({"jsonData": [2, 0]}, {"data": {"tensor": {"shape": [2, 1], "values": [2, 1]}}}),
]


@pytest.mark.parametrize(("truth", "response"), FORMS)
def test_truth_and_prediction_need_not_have_one_form(truth: Any, response: Any) -> None:
    """Labels, one-hot rows and probabilities on either side say the same."""
    evaluation = run(truth, response)
    assert outcomes(evaluation) == {"2": 1, ("0", "1"): 1}
    assert evaluation.rows == 2


def test_one_hot_predictions_are_labels_and_fractions_are_probabilities() -> None:
    """Log loss and its kin are counted only where probabilities are given."""
    assert "log_loss" not in run([2], [[0, 0, 1]]).increment
    assert "log_loss" in run([2], [[0.0, 0.0, 1.0]]).increment
    assert "log_loss" not in run([1], [1], task="binary").increment
    assert "log_loss" in run([1], [0.9], task="binary").increment


def test_ties_go_to_the_lowest_index() -> None:
    """As the ancestor's argmax did."""
    assert outcomes(run([1], [[0.25, 0.25, 0.25, 0.25]])) == {("1", "0"): 1}
    many = VECTOR_ROWS + 1
    assert outcomes(run([1] * many, [[0.25] * 4] * many)) == {("1", "0"): many}
    assert outcomes(run([[0.25] * 4] * many, [1] * many)) == {("0", "1"): many}


def test_a_flat_list_is_one_row_for_the_ancestors_one_hot_class() -> None:
    """`[0.1, 0.2, 0.7]` is one row of three scores there, as it is against a row."""
    one_hot = {"task": "multiclass", "flat_rows": True, "probabilities": "scores"}
    assert outcomes(run([0, 0, 1], [0.1, 0.2, 0.7], **one_hot)) == {"2": 1}
    assert outcomes(run([0, 0, 1], [3.0, 0.2, 0.7], **one_hot)) == {("2", "0"): 1}
    assert outcomes(run([[0, 0, 1]], [0.1, 0.2, 0.7])) == {"2": 1}
    assert outcomes(run([0, 0, 1], [[0.1, 0.2, 0.7]])) == {"2": 1}
    assert outcomes(run([2], [0.1, 0.2, 0.7])) == {"2": 1}
    assert outcomes(run([0, 0, 1], [0.1, 0.2, 0.7], task="multiclass")) == {"2": 1}
    assert outcomes(run([2], [2], **one_hot)) == {"2": 1}
    assert outcomes(run([[2], [1]], [[2], [0]], task="multiclass")) == {"2": 1, ("1", "0"): 1}
    assert run([0, 0, 1], [0.1, 0.2, 0.7]).rows == 3  # a scalar each, to any other task
    with pytest.raises(Refused):
        run(["a", "b"], [0.3, 0.7], **one_hot)


NAMED = {"data": {"names": ["a", "b", "c"], "ndarray": [[0.1, 0.2, 0.7]]}}
PERMUTED = {"data": {"names": ["c", "a", "b"], "ndarray": [[0.7, 0.1, 0.2]]}}


def test_names_absent_present_and_permuted_count_in_the_same_class() -> None:
    """A class's key is its column in the model's first names, however an event orders them."""
    first = run(["c"], NAMED)
    assert first.constants["names"] == ["a", "b", "c"]
    known = {"task": "multiclass", "names": ["a", "b", "c"]}
    for truth, response in (
        (["c"], PERMUTED),
        ([2], [[0.1, 0.2, 0.7]]),
        (["c"], ["c"]),
        ([[0, 0, 1]], NAMED),
        ({"data": {"names": ["c", "b", "a"], "ndarray": [[1, 0, 0]]}}, NAMED),
    ):
        assert outcomes(run(truth, response, known)) == outcomes(first) == {"2": 1}
    scores = run(["c"], PERMUTED, known).increment["scores"]
    assert scores == first.increment["scores"]


@pytest.mark.parametrize("rows", [1, VECTOR_ROWS - 1, VECTOR_ROWS, 70])
@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_columns_in_any_order_count_the_same(task: str, rows: int) -> None:
    """Named columns, permuted on either side, add what they add in the model's order."""
    chance = random.Random(rows)
    names = ["no", "yes"] if task == "binary" else ["a", "b", "c", "d"]
    width = len(names)
    classes = [chance.randrange(width) for _ in range(rows)]
    scores = rows_of(chance, rows, width)[1]
    hot = [[int(column == each) for column in range(width)] for each in classes]
    if task == "multilabel":
        hot = [[chance.randrange(2) for _ in names] for _ in classes]

    def message(table: Any, order: list[int]) -> Any:
        return {
            "data": {
                "names": [names[column] for column in order],
                "ndarray": [[row[column] for column in order] for row in table],
            }
        }

    known = {"task": task, "names": names}
    plain = run(hot, scores, known).increment
    for _ in range(4):
        one, other = chance.sample(range(width), width), chance.sample(range(width), width)
        same(run(message(hot, one), message(scores, other), known).increment, plain)
        same(run(message(hot, one), scores, known).increment, plain)
        if task != "multilabel":
            labels = [names[each] for each in classes]
            same(run(labels, message(scores, other), known).increment, plain)
            there = message(hot, other), message(hot, one)
            back = run(hot, hot, known).increment
            same(run(*there, known).increment, back)


def test_names_fixed_by_the_first_event_outlive_others() -> None:
    """Names that the model does not know are those of its columns, in their order."""
    known = {"task": "multiclass", "names": ["a", "b", "c"]}
    others = {"data": {"names": ["x", "y", "z"], "ndarray": [[0.1, 0.2, 0.7]]}}
    evaluation = run([2], others, known)
    assert outcomes(evaluation) == {"2": 1}
    assert "names" not in evaluation.constants
    assert "names" not in run(["c"], NAMED, classes=("a", "b", "c")).constants
    truth = {"data": {"names": ["a", "b", "c"], "ndarray": [[0, 0, 1]]}}
    assert run(truth, [[0.1, 0.2, 0.7]]).constants["names"] == ["a", "b", "c"]


STRAY = [
    ("multiclass", "abc", ["c"], [[0.5, 0.5]]),
    ("multiclass", "abc", [1], {"data": {"names": ["c", "a"], "ndarray": [[0.5, 0.5]]}}),
    (
        "multiclass",
        "abcd",
        {"data": {"names": ["b", "c", "d"], "ndarray": [[0, 0, 1]]}},
        {"data": {"names": ["a", "b", "c"], "ndarray": [[0.2, 0.3, 0.5]]}},
    ),
    ("binary", "abc", ["c"], [0.5]),
    ("binary", "abc", [1], ["c"]),
    ("binary", "abc", [1], {"data": {"names": ["b", "c"], "ndarray": [[0.2, 0.8]]}}),
    ("binary", "abc", [1], {"data": {"names": ["c", "a"], "ndarray": [[0, 1]]}}),
    ("binary", "abc", {"data": {"names": ["b", "c"], "ndarray": [[0, 1]]}}, [0.5]),
    (
        "multilabel",
        "abc",
        {"data": {"names": ["b", "c"], "ndarray": [[0, 1]]}},
        {"data": {"names": ["a", "b"], "ndarray": [[0, 1]]}},
    ),
]


@pytest.mark.parametrize(("task", "names", "truth", "response"), STRAY)
@pytest.mark.parametrize("times", [1, 70])
def test_a_known_class_without_a_column_is_refused(
    task: str, names: str, truth: Any, response: Any, times: int
) -> None:
    """A name that the model knows, but this event's columns do not have, is no bug of ours."""

    def repeat(side: Any) -> Any:
        if not isinstance(side, dict):
            return side * times
        return {"data": {**side["data"], "ndarray": side["data"]["ndarray"] * times}}

    with pytest.raises(Refused) as refused:
        run(repeat(truth), repeat(response), {"task": task, "names": list(names)})
    assert is_one_short_line(refused.value)


def test_configured_names_win_and_unknown_labels_are_refused() -> None:
    """A label that is no configured class never makes a new one."""
    assert outcomes(run(["y"], [1], classes=("x", "y"))) == {"1": 1}
    with pytest.raises(Refused, match="none of the classes") as refused:
        run(["z"], ["x"], classes=("x", "y"))
    assert refused.value.field == "truth.data.ndarray"
    swapped = {"data": {"names": ["y", "x"], "ndarray": [[0.9, 0.1]]}}
    assert outcomes(run(["y"], swapped, classes=("x", "y"))) == {"1": 1}
    unknown = {"data": {"names": ["y", "z"], "ndarray": [[0.9, 0.1]]}}
    with pytest.raises(Refused, match="no configured class"):
        run(["y"], unknown, classes=("x", "y"))
    with pytest.raises(Refused, match="for 2 classes"):
        run([1], [[0.1, 0.2, 0.7]], classes=("x", "y"))
    with pytest.raises(Refused, match="none of the classes"):
        run([2], [1], classes=("x", "y"))


def test_names_that_are_numerals_are_names_first() -> None:
    """Where a model calls its first column `1`, a label of 1 means that column."""
    for times in (1, 70):
        many = {"data": {"names": ["1", "0"], "ndarray": [[0.9, 0.1]] * times}}
        assert outcomes(run([1] * times, many)) == {"0": times}
        assert outcomes(run(["1"] * times, many)) == {"0": times}


REFUSED = [
    ([3], [[0.1, 0.2, 0.7]], {}, "truth"),
    (["cat"], [[0.1, 0.2, 0.7]], {}, "truth"),
    ([-1], [[0.1, 0.2, 0.7]], {}, "truth"),
    ([1, 2], [[0.1, 0.2, 0.7]], {}, "response"),
    ([[0, 1]], [[0.1, 0.2, 0.7]], {}, "response"),
    ([[1, 1, 0]], [[0.1, 0.2, 0.7]], {}, "truth"),
    ([2], [[0.1, 0.2, 0.8]], {}, "response"),
    ([2], [[-0.1, 0.3, 0.8]], {}, "response"),
    ([2], [[1.2, -0.1, -0.1]], {}, "response"),
    ([1], [1.5], {"task": "binary"}, "response"),
    ([1], [-0.5], {"task": "binary"}, "response"),
    ([0.5], [0.5], {"task": "binary"}, "truth"),
    ([[0, 0, 1]], [[0.1, 0.2, 0.7]], {"task": "binary"}, "truth"),
    ([["a"]], [[1]], {"task": "regression"}, "truth"),
    ([1.0], [[1.0, 2.0]], {"task": "regression"}, "response"),
    ([1e200], [-1e200], {"task": "regression"}, "truth"),
    ([[0, 2, 1]], [[0, 1, 1]], {"task": "multilabel"}, "truth"),
    ([[0, 1, 1]], [[0, 1, 1.5]], {"task": "multilabel"}, "response"),
    (["00"], [[0.1, 0.2, 0.7]], {}, "truth"),
    (["01"], [0.5], {"task": "binary"}, "truth"),
    (["9" * 5000], [[0.1, 0.2, 0.7]], {}, "truth"),
    (["9" * 5000], [1], {}, "truth"),
    (["a\n"], ["b"], {}, "truth"),
    (["b"], ["a\u2028"], {}, "response"),
    ([1.5], [[0.1, 0.2, 0.7]], {}, "truth"),
    ([1e300] * 70, [[0.5, 0.5]] * 70, {}, "truth"),
    ([-1] * 70, [[0.5, 0.5]] * 70, {}, "truth"),
    ([0.5] * 70, [[0.5, 0.5]] * 70, {"task": "multiclass"}, "truth"),
    ([2] * 70, [[0.5, 0.5]] * 70, {}, "truth"),
    ([0, 0], [[1, 1, 0], [0, 0, 0]], {}, "response"),
    ([0, 0], [[1, 0, 0], [1, 1, 0]], {}, "response"),
    ([[1, 1, 0], [0, 0, 0]], [0, 0], {}, "truth"),
    ([0], [[1e308, 1e308]], {}, "response"),
    ([0] * 70, [[1e308, 1e308]] * 70, {}, "response"),
    ([0], [[1e308, 1e308]], {"probabilities": "normalise"}, "response"),
    ([0], [[0.0, 0.0]], {"probabilities": "normalise"}, "response"),
    ([0], [[-1.0, 3.0]], {"probabilities": "normalise"}, "response"),
    ([0, 1], [[0.1, 0.2, 0.7]] * 3, {}, "response"),
    ([[0, 1, 0]], [[0.5, 0.5]], {}, "response"),
    ([0] * 30, [[0.5, 0.5]] * 29 + [[0.5, 0.6]], {}, "response"),
    ([2], [1], {"task": "binary"}, "truth"),
    ([1], [2], {"task": "binary"}, "response"),
    ([1], [-1], {"task": "binary"}, "response"),
    (["yes"], [0.5], {"task": "binary"}, "truth"),
    ([1], [[0.1, 0.2, 0.7]], {"task": "binary"}, "response"),
    ([1], [[0.5, 0.6]], {"task": "binary"}, "response"),
    ([1, 0], [0.5], {"task": "binary"}, "response"),
    ([1.5], ["a"], {"task": "regression"}, "response"),
    ([1.0, 2.0], [1.0], {"task": "regression"}, "response"),
    ([1e308], [-1e308], {"task": "regression"}, "truth"),
    ([1.1e75], [0], {"task": "regression"}, "truth"),
    ([1e-300], [1e7], {"task": "regression"}, "truth"),
    ([[1.5] * (MAX_OUTPUTS + 1)], [[1.5] * (MAX_OUTPUTS + 1)], {"task": "regression"}, "truth"),
    ([1], [1], {"task": "multilabel"}, "truth"),
    ([["a"]], [[1]], {"task": "multilabel"}, "truth"),
    ([[0, 1]], [[0, 1, 1]], {"task": "multilabel"}, "response"),
    ([[0, 1]], [[0, 1]] * 2, {"task": "multilabel"}, "response"),
    ([[0, 0.5]], [[0, 1]], {"task": "multilabel"}, "truth"),
    ([[0, 1]], [[0, -0.5]], {"task": "multilabel"}, "response"),
]


@pytest.mark.parametrize(("truth", "response", "options", "side"), REFUSED)
def test_what_does_not_fit_is_refused_by_field(
    truth: Any, response: Any, options: Any, side: str
) -> None:
    """Every contradiction names the side it is on, in one line."""
    with pytest.raises(Refused) as refused:
        run(truth, response, **options)
    assert refused.value.field.startswith(side)
    assert is_one_short_line(refused.value)


def test_a_label_is_a_column_only_as_its_number_is_written() -> None:
    """`2`, `2.0` and `"2"` are column 2; a text with zeros before it is another label."""
    for truth in ([2], [2.0], ["2"]):
        assert outcomes(run(truth, [[0.1, 0.2, 0.7]])) == {"2": 1}
    assert outcomes(run([True], [[0.1, 0.9]])) == {"1": 1}
    assert outcomes(run([-0.0], [[0.9, 0.1]])) == {"0": 1}
    assert outcomes(run(["02"], ["2"])) == {("02", "2"): 1}
    assert outcomes(run(["é"], ["é"])) == {"é": 1}


def test_a_lone_fraction_is_a_label_to_whoever_sets_the_task() -> None:
    """As the ancestor's MultiClassNumeric took it; `auto` takes no fraction for a class."""
    assert outcomes(run([1.5], [1.5], task="multiclass")) == {"1.5": 1}
    with pytest.raises(Refused, match="no class label"):
        run([1], [1.5], {"task": "multiclass"})


def test_a_missing_response_is_refused_with_the_setting_that_would_take_it() -> None:
    """Without a join there is nothing to compare the truth with."""
    with pytest.raises(Refused, match="FEEDBACK_JOIN_TTL") as refused:
        evaluate(parse({"truth": {"data": {"ndarray": [1]}}}), ModelSettings(), Known())
    assert refused.value.field == "response"


def test_rows_that_are_no_probabilities_follow_the_setting() -> None:
    """Refused by default; normalised; or taken as scores, whose argmax counts and no more."""
    row = [[1.0, 1.0, 2.0]]
    normalised = run([2], row, probabilities="normalise").increment
    assert normalised["log_loss"] == run([2], [[0.25, 0.25, 0.5]]).increment["log_loss"]
    scores = run([2], row, probabilities="scores").increment
    assert scores["true_positives"] == {("2",): 1}
    assert "log_loss" not in scores
    assert run([2], [[0.1, 0.2, 0.7009]]).increment["log_loss"]
    with pytest.raises(Refused, match="FEEDBACK_PROBABILITIES"):
        run([2], [[0.1, 0.2, 0.702]])


@pytest.mark.parametrize("rows", [3, VECTOR_ROWS + 1])
def test_normalising_leaves_probabilities_as_they_are(rows: int) -> None:
    """A row within the tolerance adds the same beside one that must be scaled, or alone."""
    table = [[0.6, 0.4005]] * (rows - 1) + [[3.0, 1.0]]
    whole = run([0] * rows, table, probabilities="normalise").increment
    good = run([0] * (rows - 1), table[:-1]).increment
    scaled = run([0], [[0.75, 0.25]]).increment
    parts = merge([good, scaled])
    same({**whole, "events": parts["events"]}, parts)


@pytest.mark.parametrize("rows", [1, VECTOR_ROWS])
def test_a_row_may_sum_to_a_little_more_than_one(rows: int) -> None:
    """Within the tolerance a probability may even exceed 1; its bins are the last."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counters = unpack(run([0] * rows, [[1.0005, 0.0, 0.0]] * rows).increment)
    assert counters["scores"]["0", "1024", "1"] == rows
    assert counters["calibration_rows"] == {(str(CALIBRATION_BINS - 1),): rows}


@pytest.mark.parametrize("rows", [1, VECTOR_ROWS])
def test_scores_of_any_size_are_ranked(rows: int) -> None:
    """Logits need not sum to anything; only the largest counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for row in ([1e308, -1e308, 1e307], [1e308, 1e308, 0], [-3, -4, -5.5], [7, 0, 0]):
            counters = run([0] * rows, [row] * rows, probabilities="scores").increment
            assert counters["true_positives"] == {("0",): rows}
            assert "probability_rows" not in counters


def test_the_threshold_and_the_positive_class_decide_binary_predictions() -> None:
    """At or above the threshold is positive; the scalar is the positive class's probability."""
    assert outcomes(run([1], [0.9], task="binary")) == {"1": 1}
    assert outcomes(run([1], [0.2], task="binary", threshold=0.2)) == {"1": 1}
    assert outcomes(run([1], [0.19], task="binary", threshold=0.2)) == {("1", "0"): 1}
    assert outcomes(run([0], [0.9], task="binary", positive_class="0")) == {"0": 1}
    assert outcomes(run([1], [[0.2, 0.8]], task="binary")) == {"1": 1}
    named = {"task": "binary", "classes": ("no", "yes")}
    assert outcomes(run(["yes"], [0.9], **named)) == {"1": 1}
    assert outcomes(run(["yes"], ["no"], **named)) == {("1", "0"): 1}
    first = {**named, "positive_class": "no"}
    assert outcomes(run(["no"], [0.9], **first)) == {"0": 1}
    assert outcomes(run(["no"], [0.5], **first)) == {"0": 1}
    assert outcomes(run(["yes"], [[0.4, 0.6]], **first, threshold=0.4)) == {("1", "0"): 1}


@pytest.mark.parametrize("positive", ["0", "1"])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_binary_feedback_is_what_its_definition_says(positive: str, threshold: float) -> None:
    """In each form, a row counts by its truth and by its probability against the threshold."""
    chance = random.Random(threshold)
    options = {"task": "binary", "threshold": threshold, "positive_class": positive}
    for rows in (1, VECTOR_ROWS + 5, 70):
        truth = [chance.randrange(2) for _ in range(rows)]
        p = [chance.choice([0.0, threshold, 1.0, chance.random()]) for _ in range(rows)]
        at = int(positive)
        pairs = [[1 - each, each] if at else [each, 1 - each] for each in p]
        expected: dict[Any, int] = {}
        loss = 0.0
        for true, each in zip(truth, p, strict=True):
            predicted = at if each >= threshold else 1 - at
            key: Any = str(true) if true == predicted else (str(true), str(predicted))
            expected[key] = expected.get(key, 0) + 1
            right = each if true == at else 1 - each
            loss -= log(min(max(right, CLIP), 1 - CLIP))
        forms: list[Any] = [truth, [[int(not true), int(true)] for true in truth]]
        forms += [list(map(str, truth)), list(map(bool, truth)), list(map(float, truth))]
        for form in forms:
            for response in (p, pairs):
                counters = run(form, response, **options)
                assert outcomes(counters) == expected
                assert isclose(floats(counters.increment)["log_loss"][()], loss, rel_tol=1e-9)


def test_classes_past_the_cap_fold_after_right_and_wrong_are_told_apart() -> None:
    """Two classes that both count as `__other__` are not one class."""
    labels: Any = {"class": {"a", "b"}}
    counters = run(["c", "d", "a"], ["d", "d", "a"], max_classes=2, labels=labels).increment
    assert counters["true_positives"] == {("a",): 1, ("__other__",): 1}
    assert counters["confusion"] == {("__other__", "__other__"): 1}
    classes = [f"class {number}" for number in range(40)]
    counters = run(classes, classes, max_classes=30, labels={"class": {"class 35"}}).increment
    first = {(name,): 1 for name in [*classes[:29], "class 35"]}
    assert counters["true_positives"] == {**first, (OTHER,): 10}
    wide = run([[1] * 40], [[1] * 40], task="multilabel", max_classes=30).increment
    assert wide["true_positives"] == {**{(str(n),): 1 for n in range(30)}, (OTHER,): 10}
    assert wide["cells"] == {(): 40, (OTHER,): 10}


def test_multilabel_counts_each_column() -> None:
    """Labels are 0/1 or probabilities against the threshold; a row is right as a whole or not."""
    counters = run([[1, 0, 1], [0, 0, 0]], [[0.9, 0.6, 0.1], [0, 0, 0]], task="multilabel")
    assert counters.increment["true_positives"] == {("0",): 1}
    assert counters.increment["false_positives"] == {("1",): 1}
    assert counters.increment["false_negatives"] == {("2",): 1}
    assert counters.increment["subset_hits"] == {(): 1}
    assert counters.increment["cells"] == {(): 6}


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_multilabel_is_what_its_definition_says(rows: int, threshold: float) -> None:
    """Each cell counts by itself, and each row as a whole."""
    chance = random.Random(rows)
    width = 5
    truth = [[chance.randrange(2) for _ in range(width)] for _ in range(rows)]
    scores = [[chance.choice([0, 1, threshold, chance.random()]) for _ in row] for row in truth]
    predicted = [[int(score >= threshold) for score in row] for row in scores]
    cells = {family: [0] * width for family in ("tp", "fn", "fp")}
    for row, guess in zip(truth, predicted, strict=True):
        for column, pair in enumerate(zip(row, guess, strict=True)):
            family = {(1, 1): "tp", (1, 0): "fn", (0, 1): "fp"}.get(pair)
            if family:
                cells[family][column] += 1
    hits = sum(row == guess for row, guess in zip(truth, predicted, strict=True))
    for response in (scores, predicted):
        counters = run(truth, response, task="multilabel", threshold=threshold).increment
        for family, short in (
            ("true_positives", "tp"),
            ("false_negatives", "fn"),
            ("false_positives", "fp"),
        ):
            found = counters.get(family, {})
            assert [found.get((str(n),), 0) for n in range(width)] == cells[short]
        assert counters["subset_hits"] == {(): hits}
        assert counters["cells"] == {(): rows * width}
    if rows == 1:
        flat = run(truth[0], scores[0], task="multilabel", threshold=threshold)
        same(flat.increment, run(truth, scores, task="multilabel", threshold=threshold).increment)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_regression_is_what_its_definition_says(rows: int, outputs: int) -> None:
    """Every sum is numpy's, by output, and every error lies in its bucket."""
    generator = np.random.default_rng(rows * outputs)
    truth = generator.normal(1e4, 3, (rows, outputs))
    predicted = truth + generator.normal(0, 2, (rows, outputs))
    predicted[0] = truth[0]
    truth[-1, -1] = 0.0
    origins = [1e4] * outputs
    squeeze = (lambda table: table[:, 0].tolist()) if outputs == 1 else np.ndarray.tolist
    known = {"task": "regression", "origins": origins}
    counters = floats(run(squeeze(truth), squeeze(predicted), known).increment)
    error, offset = predicted - truth, truth - origins
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(truth == 0, 0, abs(error) / abs(truth))
    for family, table in (
        ("targets", np.ones_like(truth)),
        ("absolute_error", abs(error)),
        ("squared_error", error**2),
        ("error", error),
        ("truth_offset", offset),
        ("truth_offset_squared", offset**2),
        ("percentage_error", share),
        ("percentage_rows", truth != 0),
    ):
        for output in range(outputs):
            there = float(table[:, output].sum())
            found = counters[family][str(output),]
            assert isclose(found, there, rel_tol=1e-9, abs_tol=1e-9), family
    bins: dict[Any, int] = {}
    for output in range(outputs):
        for size in abs(error[:, output]).tolist():
            bin = error_bin(size)
            assert bin is None or abs(error_of(bin) - size) <= RELATIVE_ERROR * size * (1 + 1e-9)
            key = (str(output), ZERO if bin is None else str(bin))
            bins[key] = bins.get(key, 0) + 1
    assert counters["absolute_errors"] == bins


def test_no_number_of_accepted_events_adds_up_to_infinity() -> None:
    """What one event may bring is bounded far below the largest double, and bounded is counted."""
    largest = 0.99e75
    event = run([0.0], [largest], task="regression")
    reward = run([1], [1], {"reward_origin": 0.0}, more={"reward": -largest})
    truth = {"data": {"ndarray": [1]}, "meta": {"metrics": [{**METRIC, "value": 0.99 * LARGEST}]}}
    for counters in (event.increment, reward.increment, run(truth, [1]).increment):
        for cells in floats(counters).values():
            assert all(abs(number) * 1e12 < inf for number in cells.values())
            assert all((number * 1e-75) ** 2 < inf for number in cells.values())
    for bad in (1e200, -1e200, 1e308, -1e308):
        for origin in (0.0, 1.0, -bad):
            with pytest.raises(Refused) as refused:
                run([1], [1], {"reward_origin": origin}, more={"reward": bad})
            assert refused.value.field == "reward"
    with pytest.raises(Refused, match="too large"):
        run([1], [1], more={"reward": 1e200})


def test_regression_sums_about_the_models_origin() -> None:
    """It is 0, but for models of older versions, whose sums are about their first truth."""
    first = run([[1.5, 10.0]], [[2.0, 9.0]], task="regression")
    assert first.constants["origins"] == [0.0, 0.0]
    assert floats(first.increment)["truth_offset"] == {("0",): 1.5, ("1",): 10.0}
    older = run([[2.5, 10.0]], [[2.0, 9.0]], {"origins": [1.5, 10.0]}, task="regression")
    second = floats(older.increment)
    assert second["truth_offset"] == {("0",): 1.0, ("1",): 0.0}
    assert second["error"] == {("0",): -0.5, ("1",): -1.0}
    assert second["absolute_error"] == {("0",): 0.5, ("1",): 1.0}
    zero = run([0.0, 2.0], [1.0, 1.0], task="regression")
    assert zero.increment["percentage_rows"] == {("0",): 1}
    with pytest.raises(Refused, match="this model has 2"):
        run([1.5], [2.0], {"origins": [1.5, 10.0]}, task="regression")
    flat = run([1.5, 10.0], [[2.0, 9.0]], task="regression")
    assert flat.increment == first.increment


def test_rewards_of_zero_and_below_count_and_routes_have_their_own() -> None:
    """A signed sum is never one counter."""
    meta = {"meta": {"routing": {"ab": 1}}}
    counters = floats(run([1], [1], more={"reward": -2, **meta}).increment)
    assert counters["rewards"] == {(): 1, ("ab=1",): 1}
    assert counters["reward_negative"] == {(): 2.0, ("ab=1",): 2.0}
    assert run([1], [1], more={"reward": 0}).increment["rewards"] == {(): 1}
    assert "rewards" not in run([1], [1]).increment
    assert counters["reward_positive"] == {(): 0.0, ("ab=1",): 0.0}
    free = floats(run([1], [1], {"reward_origin": 5.0}, more={"reward": 0}).increment)
    assert (free["reward_positive"], free["reward_negative"]) == ({(): 0.0}, {(): 0.0})
    assert free["reward_offset"] == {(): -5.0}
    assert free["reward_offset_squared"] == {(): 25.0}


def test_rewards_by_route_are_what_their_definition_says() -> None:
    """Count, sum, and variance come out as from the plain list."""
    chance = random.Random(3)
    sent = [
        (chance.choice("abc"), chance.choice([0, 1, -1, chance.gauss(1e6, 1)])) for _ in "x" * 99
    ]
    constants: dict[str, Any] = {}
    increments = []
    for route, reward in sent:
        more = {"reward": reward, "meta": {"routing": {"r": route}}}
        evaluation = run([1], [1], constants, more=more)
        constants = {**evaluation.constants, **constants}
        increments.append(evaluation.increment)
    total = floats(merge(increments))
    for route in (None, "a", "b", "c"):
        rewards = [reward for each, reward in sent if route in (None, each)]
        key = (f"r={route}",) if route else ()
        n = total["rewards"][key]
        offset, squared = total["reward_offset"][key], total["reward_offset_squared"][key]
        assert n == len(rewards)
        signed = total["reward_positive"][key] - total["reward_negative"][key]
        assert isclose(signed, sum(rewards), rel_tol=1e-9)
        assert constants["reward_origin"] == 0
        assert isclose(offset, sum(rewards), rel_tol=1e-9)
        assert isclose(squared, np.dot(rewards, rewards), rel_tol=1e-9)
        shown = reward_view(merge(increments), key, 0.95)
        assert isclose(shown["mean"], np.mean(rewards), rel_tol=1e-9)
        assert isclose(shown["variance"], np.var(rewards, ddof=1), rel_tol=1e-6)


def test_routes_past_the_cap_share_one_label() -> None:
    """A sender of random routes cannot grow the state; known routes stay themselves."""
    routes = {f"r={number}" for number in range(MAX_ROUTES)}
    for branch, label in ((5, "r=5"), (MAX_ROUTES, OTHER)):
        more = {"reward": 1, "meta": {"routing": {"r": branch}}}
        counters = run([1], [1], more=more, labels={"route": routes}).increment
        assert counters["rewards"] == {(): 1, (label,): 1}


METRIC = {"key": "m", "type": "COUNTER", "value": 1}

BAD_METRICS = [
    1,
    {**METRIC, "key": "9m"},
    {**METRIC, "key": "feedback_rows"},
    {**METRIC, "key": None},
    {**METRIC, "type": "SUMMARY"},
    {**METRIC, "value": "1"},
    {**METRIC, "value": -1},
    {**METRIC, "type": "TIMER", "value": -1},
    {**METRIC, "type": "GAUGE", "key": "m_bucket"},
    {**METRIC, "tags": {"le": "1"}},
    {**METRIC, "tags": {"a-b": "1"}},
    {**METRIC, "tags": {"a": [1]}},
    {**METRIC, "tags": {"a": "\n"}},
    {**METRIC, "tags": {f"t{n}": 1 for n in range(11)}},
    *(None, [], "m", True),
    {"type": "COUNTER", "value": 1},
    {"key": "m", "type": "COUNTER"},
    *({**METRIC, "key": key} for key in ("", "m-n", "m n", "é", "m\n", "a" * 201, "m:n", "_total")),
    *({**METRIC, "key": key} for key in ("feedback_x", "seldon_metric_x", "python_x", "__x")),
    *({**METRIC, "key": key} for key in (1, [], {}, True, ["m"], "process_cpu")),
    *(
        {**METRIC, "key": key, "type": kind}
        for kind in ("COUNTER", "GAUGE", "TIMER")
        for key in ("up", "ALERTS", "ALERTS_FOR_STATE", "scrape_duration_seconds", "scrape_")
    ),
    *({**METRIC, "key": key} for key in ("up_total", "scrape_x_total", "ALERTS_total")),
    *({**METRIC, "type": kind} for kind in ("counter", "", None, [], {}, 1)),
    *({**METRIC, "value": value} for value in (None, True, [], {}, "", 1e308, LARGEST)),
    *(
        {**METRIC, "type": "GAUGE", "key": f"x{end}"}
        for end in ("_sum", "_count", "_total", "_info")
    ),
    {**METRIC, "type": "TIMER", "key": "x_created"},
    *(
        {**METRIC, "tags": {tag: "1"}}
        for tag in ("quantile", "exported_job", "model_name", "__x", "", "1a", "a\n")
    ),
    *({**METRIC, "tags": tags} for tags in ([1], "a", 1, True)),
    *({**METRIC, "tags": {"a": value}} for value in (None, {}, "a" * 257, "\u2028", "\x85")),
]
DEEP: list[Any] = []
for _ in range(2000):
    DEEP = [DEEP]
BAD_METRICS += [{**METRIC, "key": DEEP}, {**METRIC, "type": DEEP}, {**METRIC, "value": DEEP}]


def with_metrics(*metrics: Any, **options: Any) -> Evaluation:
    """Evaluate feedback that brings its own metrics."""
    truth = {"data": {"ndarray": [1]}, "meta": {"metrics": list(metrics)}}
    return run(truth, [1], **options)


@pytest.mark.parametrize("number", range(len(BAD_METRICS)))
def test_bad_user_metrics_are_refused_by_entry(number: int) -> None:
    """One bad entry refuses the whole event, and says which it is."""
    with pytest.raises(Refused) as refused:
        with_metrics(METRIC, BAD_METRICS[number])
    assert refused.value.field.startswith("truth.meta.metrics[1]")
    assert is_one_short_line(refused.value)


def test_one_name_is_one_kind_of_metric() -> None:
    """Within an event as between events, with or without a counter's suffix."""
    for first, second in (
        (METRIC, {**METRIC, "type": "GAUGE"}),
        ({**METRIC, "type": "GAUGE"}, METRIC),
        ({**METRIC, "key": "m_total"}, {**METRIC, "type": "TIMER"}),
    ):
        with pytest.raises(Refused, match="by its first event") as refused:
            with_metrics(first, second)
        assert refused.value.field == "truth.meta.metrics[1].type"
    assert floats(with_metrics(METRIC, METRIC).increment)["user_counters"] == {("m",): 2.0}
    assert with_metrics(METRIC).constants["metric m"] == "COUNTER"


def test_tags_are_sorted_texts() -> None:
    """However tags come, they are one series; a number and its text, empty and absent are, too."""
    tags = {"b": True, "a": 1, "c": 1.5, "d": "é", "e": ""}
    series = ("m", "a", "1", "b", "true", "c", "1.5", "d", "é")
    for order in (tags, dict(reversed(tags.items())), {**tags, "a": "1"}):
        found = with_metrics({**METRIC, "tags": order})
        assert floats(found.increment)["user_counters"] == {series: 1.0}
    for nothing in (None, {}, [], {"a": ""}):
        found = with_metrics({**METRIC, "tags": nothing})
        assert floats(found.increment)["user_counters"] == {("m",): 1.0}
    ten = {f"t{number}": 1 for number in range(10)}
    assert len(with_metrics({**METRIC, "tags": ten}).increment["user_counters"]) == 1


def test_timers_fall_into_buckets_by_upper_bound() -> None:
    """A bound belongs to its bucket; what is above all of them is in the last."""
    for milliseconds, bound in ((0, "0.005"), (5, "0.005"), (5.1, "0.01"), (1e4, "10.0")):
        found = with_metrics({"key": "t", "type": "TIMER", "value": milliseconds})
        assert found.increment["user_timers_bucket"] == {("t", bound): 1}
    found = with_metrics({"key": "t", "type": "TIMER", "value": 10_001, "tags": {"a": "b"}})
    assert found.increment["user_timers_bucket"] == {("t", "+Inf", "a", "b"): 1}
    assert floats(found.increment)["user_timers_sum"] == {("t", "a", "b"): 10.001}


def test_series_are_capped_and_known_ones_are_not() -> None:
    """A sender of random tags cannot grow the state, nor keep a model's own series out."""
    known = {f"m\0a\0{number}" for number in range(MAX_SERIES)}
    old = {**METRIC, "tags": {"a": 7}}
    assert with_metrics(old, old, labels={"metric": known}).increment["user_counters"]
    for kind in ("COUNTER", "GAUGE", "TIMER"):
        with pytest.raises(Refused, match="series"):
            with_metrics({"key": "n", "type": kind, "value": 1}, labels={"metric": known})
    fresh = [{**METRIC, "tags": {"a": number}} for number in range(MAX_SERIES + 1)]
    assert len(with_metrics(*fresh[:-1]).increment["user_counters"]) == MAX_SERIES
    with pytest.raises(Refused) as refused:
        with_metrics(*fresh)
    assert refused.value.field == f"truth.meta.metrics[{MAX_SERIES}]"


def test_user_metrics_add_up_and_gauges_are_last_writes() -> None:
    """Counters and timers are increments; a timer's milliseconds are kept in seconds."""
    found = with_metrics(
        METRIC,
        {**METRIC, "key": "m_total", "value": 2, "tags": {"b": True, "a": 1}},
        {"key": "t", "type": "TIMER", "value": 30},
        {"key": "g", "type": "GAUGE", "value": -4},
    )
    added = floats(found.increment)
    assert added["user_counters"] == {("m",): 1.0, ("m", "a", "1", "b", "true"): 2.0}
    assert added["user_timers_sum"] == {("t",): 0.03}
    assert found.increment["user_timers_bucket"] == {("t", "0.05"): 1}
    assert found.gauges["user_gauges", ("g",)] == -4.0
    with pytest.raises(Refused, match="COUNTER"):
        with_metrics({**METRIC, "type": "GAUGE"}, constants={"metric m": "COUNTER"})
    with pytest.raises(Refused, match="series"):
        with_metrics(METRIC, labels={"metric": {str(n) for n in range(200)}})


class Custom:
    """A metric class of a user's."""

    def transform(self, truth: Any, response: Any, request: Any = None) -> Any:
        """Count by what was asked."""
        kind = request["kind"] if request else "none"
        self.metrics = [{**METRIC, "value": len(truth), "tags": {"kind": kind}}]
        return self


def test_a_custom_class_counts_what_it_returns() -> None:
    """The class is called as the ancestor called it, and its metrics add up."""
    task = f"{__name__}.Custom"
    found = run([[1, 2], [3, 4]], [[1, 2], [3, 4]], task=task, more={"request": {"kind": "x"}})
    assert floats(found.increment)["user_counters"] == {("m", "kind", "x"): 2.0}
    assert found.rows == 2
    assert found.increment["events"] == {(): 1}
    assert "true_positives" not in found.increment
    with_reward = run([1], [1], task=task, more={"reward": 2})
    assert with_reward.increment["rewards"] == {(): 1}
    assert floats(with_reward.increment)["user_counters"] == {("m", "kind", "none"): 1.0}


class Seen:
    """A metric class that returns what it is told to, and keeps what it was called with."""

    calls: list[Any] = []  # noqa: RUF012  shared with the test, as is the instance
    metrics: Any = None

    def transform(self, truth: Any, response: Any, request: Any = None) -> Any:
        """Nothing of its own."""
        self.calls.append((truth, response, request))
        return self


def test_a_custom_class_sees_what_was_sent() -> None:
    """Rows as nested lists, labels as a list, and no metrics where it returns none."""
    task = f"{__name__}.Seen"
    for metrics in (None, []):
        Seen.metrics = metrics
        found = run([["a"], ["b"]], [[0.5, 0.5], [0.1, 0.9]], task=task)
        assert Seen.calls.pop() == (["a", "b"], [[0.5, 0.5], [0.1, 0.9]], None)
        assert set(found.increment) == {"events", "rows"}
    for metrics in ({}, [1], [{**METRIC, "key": "feedback_x"}]):
        Seen.metrics = metrics
        if metrics:
            with pytest.raises(Refused) as refused:
                run([1], [1], task=task)
            assert refused.value.field.startswith("metrics")


@pytest.mark.parametrize(
    "path",
    [
        *("no.such.module", f"{__name__}.NoSuchClass", f"{__name__}.run", f"{__name__}.METRIC"),
        *(f"{__name__}.Evaluation", "builtins.object", ".", "a.", ".a", "os.path"),
    ],
)
def test_a_custom_class_that_cannot_be_loaded_is_a_wrong_setting(path: str) -> None:
    """Whatever goes wrong while it is imported and made, the setting is named."""
    with pytest.raises(ConfigurationError, match=r"^task: "):
        load_class(path)


def rows_of(chance: random.Random, rows: int, width: int) -> tuple[Any, Any]:
    """Random truths and rows of probabilities."""
    scores = [[chance.random() ** 3 for _ in range(width)] for _ in range(rows)]
    probabilities = [[score / sum(row) for score in row] for row in scores]
    return [chance.randrange(width) for _ in range(rows)], probabilities


def table_of(chance: random.Random, rows: int, width: int) -> tuple[list[int], list[list[float]]]:
    """Truths and rows of probabilities with ties, zeros, ones, and sums at the tolerance."""
    truth, table = rows_of(chance, rows, width)
    for row in table:
        kind = chance.randrange(6)
        at = chance.randrange(width)
        if kind == 0:
            row[:] = [1 / width] * width
        elif kind == 1:
            row[:] = [float(column == at) for column in range(width)]
        elif kind == 2:
            row[:] = [0.0] * width
            row[at] = row[chance.randrange(width)] = 0.5
            row[at] += 1 - sum(row)
        elif kind == 3:
            row[at] += 0.0009
    return truth, table


ROWS = [1, 2, VECTOR_ROWS - 1, VECTOR_ROWS, VECTOR_ROWS + 1, 63, 64, 65]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [2, 3, 15, 16, 17, MAX_SCORED_CLASSES, MAX_SCORED_CLASSES + 1])
def test_rows_of_probabilities_count_by_definition(rows: int, width: int) -> None:
    """Every family against its definition, on both sides of each switch to numpy."""
    truth, table = table_of(random.Random(rows * width), rows, width)
    counters = run(truth, table, task="multiclass", k=2).increment
    best = [row.index(max(row)) for row in table]
    expected: dict[str, dict[Any, Any]] = {}

    def count(family: str, *labels: object, by: float = 1) -> None:
        cells = expected.setdefault(family, {})
        key = tuple(map(str, labels))
        cells[key] = cells.get(key, 0) + by

    count("events")
    for true, row, guess in zip(truth, table, best, strict=True):
        count("rows")
        count("probability_rows")
        count("top_k_rows", 2)
        if true == guess:
            count("true_positives", true)
        else:
            count("false_negatives", true)
            count("false_positives", guess)
            count("confusion", true, guess)
        loss = -log(min(max(row[true], CLIP), 1 - CLIP))
        count("log_loss", by=loss)
        count("log_loss_squared", by=loss**2)
        square = sum((p - (column == true)) ** 2 for column, p in enumerate(row))
        square = square / 2 if width == 2 else square
        count("brier", by=square)
        count("brier_squared", by=square**2)
        bin = calibration_bin(max(row))
        count("calibration_rows", bin)
        count("calibration_hits", bin, by=int(true == guess))
        count("calibration_confidence", bin, by=max(row))
        order = sorted(range(width), key=lambda column: (-row[column], -column))
        count("top_k_hits", 2, by=int(true in order[:2]))
        if width <= MAX_SCORED_CLASSES:
            for column in range(1 if width == 2 else 0, width):
                count("scores", column, logit_bin(row[column]), int(column == true))
    same(counters, exactly(expected))


def test_the_straight_path_adds_what_the_general_one_adds() -> None:
    chance = random.Random("one row")
    names = [None] * 4 + [("a", "b", "c"), ("2", "0", "1")]
    taken = named = 0
    for _ in range(4000):
        width = chance.choice([1, 2, 3, 3, 3, 4, MAX_SCORED_CLASSES, MAX_SCORED_CLASSES + 1])
        row: list[Any] = [chance.choice([0, 1e-17, *[chance.random()] * 6]) for _ in range(width)]
        total = sum(row) or 1
        row = [number / total for number in row] + chance.choice([[], [], [-1e-9], [0]])
        truth = chance.choice([*[chance.randrange(width)] * 6, width, 1.0, "1", "a", True, -1])
        sent, fixed, configured = (chance.choice(names) for _ in range(3))
        said = parse(
            {
                "truth": {
                    "data": {"ndarray": chance.choice([[truth], [truth], [[truth]], [truth, 0]])}
                },
                "response": {"data": {"ndarray": [row], "names": list(sent or ())}},
            }
        )
        options = ModelSettings(
            classes=configured or (), k=chance.choice([0, 2]), max_classes=chance.choice([3, 1000])
        )
        known = Known(
            {"task": "multiclass"} | ({"names": list(fixed)} if fixed else {}),
            {"class": {"0", "1"}} if chance.random() < 0.5 else {},
        )
        straight = one_row.evaluate(said, options, known)
        if straight is not None:
            taken += 1
            named += bool(fixed or configured)
            general = multiclass.evaluate_rows(said, options, known)
            general.increment |= {"events": {(): 1}, "rows": {(): 1}}
            shown, classes = straight.increment.shown(), straight.increment.classes()
            straight.vector()
            assert straight == general
            assert shown == readable(general.increment)
            outcomes = ("true_positives", "false_negatives", "false_positives")
            assert set(classes) == {
                key for family in outcomes for (key,) in general.increment.get(family, {})
            }
    assert taken > 200
    assert named > 20


def test_no_probability_is_written_as_numpy_types() -> None:
    """Stores and JSON get Python's own numbers and texts."""
    truth, table = table_of(random.Random(1), 70, 3)
    for task, response in (("multiclass", table), ("binary", [row[0] / 2 for row in table])):
        truths = [min(true, 1) for true in truth] if task == "binary" else truth
        for cells in unpack(run(truths, response, task=task, k=1).increment).values():
            for labels, number in cells.items():
                assert type(number) is int
                assert all(type(label) is str for label in labels)


SPLITS = [
    ("multiclass labels", {}),
    ("multiclass strings", {}),
    ("multiclass one-hot", {}),
    ("multiclass probabilities", {"k": 2}),
    ("multiclass probabilities", {"probabilities": "normalise"}),
    ("multiclass columns", {}),
    ("binary labels", {}),
    ("binary probabilities", {"k": 1}),
    ("binary pairs", {"positive_class": "0"}),
    ("multilabel", {"threshold": 0.3}),
    ("regression", {}),
    ("regression outputs", {}),
]


@pytest.mark.parametrize(("kind", "options"), SPLITS)
@pytest.mark.parametrize("rows", [5, VECTOR_ROWS + 3, 130])
def test_any_split_of_an_events_rows_sums_to_the_whole(kind: str, options: Any, rows: int) -> None:
    """Cut into any events, rows add the same integers, and the same sums to rounding."""
    chance = random.Random(f"{kind}{rows}")
    task = kind.split()[0]
    classes, scores = table_of(chance, rows, 4)
    hot = [[int(column == each) for column in range(4)] for each in classes]
    truth: Any = classes
    response: Any = scores
    if kind == "multiclass labels":
        response = chance.sample(classes, rows)
    elif kind == "multiclass strings":
        truth = [f"class {each}" for each in classes]
        response = chance.sample(truth, rows)
    elif kind == "multiclass one-hot":
        truth, response = hot, chance.sample(hot, rows)
    elif kind == "multiclass columns":
        truth, response = hot, chance.sample(classes, rows)
    elif task == "binary":
        truth = [each % 2 for each in classes]
        p = [max(0.001, min(0.999, row[0])) for row in scores]
        response = [[1 - each, each] for each in p] if kind == "binary pairs" else p
        if kind == "binary labels":
            response = chance.sample(truth, rows)
    elif task == "multilabel":
        truth = [[chance.randrange(2) for _ in row] for row in scores]
    elif task == "regression":
        truth = [[chance.gauss(1e8, 1), chance.gauss(0, 1)] for _ in range(rows)]
        response = [[each + chance.gauss(0, 1) for each in row] for row in truth]
        if kind == "regression":
            truth, response = [row[0] for row in truth], [row[0] for row in response]
    if options.get("probabilities") == "normalise":
        response[1::2] = [[2 * p for p in row] for row in response[1::2]]
    whole = run(truth, response, task=task, **options)
    for pieces in (2, 3, rows):
        cuts = [0, *sorted(chance.sample(range(1, rows), pieces - 1)), rows]
        parts = [
            run(truth[start:end], response[start:end], whole.constants, task=task, **options)
            for start, end in pairwise(cuts)
        ]
        assert sum(part.rows for part in parts) == rows
        total = merge(chance.sample([part.increment for part in parts], pieces))
        assert total.pop("events") == {(): pieces}
        same(total, {name: each for name, each in whole.increment.items() if name != "events"})


def test_bins_are_monotone_and_cover_all_scores() -> None:
    """The order of bins is the order of scores, from 0 to 1, and above where rows sum to more."""
    scores = [0.0, 5e-324, 1e-300, 1e-15, 1e-4, 0.3, 0.5, 0.7, 1 - 1e-4, 1 - 1e-15, 1.0, 1.0009]
    bins = list(map(logit_bin, scores))
    assert bins == sorted(bins)
    assert (bins[0], bins[6], bins[-1]) == (-1024, 0, 1024)
    confidences = list(map(calibration_bin, scores))
    assert confidences == sorted(confidences)
    assert (confidences[0], confidences[-1]) == (0, CALIBRATION_BINS - 1)
    sizes = [1e-12, 1.1e-12, 1e-6, 1, 1e6, 1e300]
    assert [error_bin(size) is None for size in sizes] == [True] + [False] * 5


def test_very_wide_rows_leave_nothing_behind() -> None:
    """Keys of a few columns are remembered, those of a hundred thousand are not."""
    assert column_keys(range(3)) is column_keys([0, 1, 2])
    wide = range(100_000)
    assert column_keys(wide) is not column_keys(wide)
    row = [0.0] * 100_000
    row[7] = 1.0
    assert outcomes(run([7], [row])) == {"7": 1}
    names = [f"class {number}" for number in wide]
    named = {"data": {"names": names, "ndarray": [row] * 2}}
    assert outcomes(run(["class 7", 8], named, max_classes=100_000)) == {"7": 1, ("8", "7"): 1}


PURE = [
    ("auto", [2, 0], [[0.1, 0.2, 0.7], [0.2, 0.5, 0.3]]),
    ("auto", ["a", "b"], ["b", "b"]),
    ("auto", [1, 0], [1, 1]),
    ("multiclass", {**NAMED}, {**PERMUTED}),
    ("multiclass", [0, 0, 1], [0.1, 0.2, 0.7]),
    ("binary", [1] * 70, [0.9] * 70),
    ("binary", [1], [[0.1, 0.9]]),
    ("multilabel", [[1, 0]], [[0.1, 0.9]]),
    ("regression", [[1.5, 2.5]] * 2, [[1, 2]] * 2),
    (f"{__name__}.Custom", [1], [1]),
]


@pytest.mark.parametrize(("task", "truth", "response"), PURE)
def test_evaluation_is_pure(task: str, truth: Any, response: Any) -> None:
    """The same feedback gives the same increment again, and nothing it is given is changed."""
    event = feedback(truth, response, reward=1, meta={"routing": {"a": 1}})
    event.metrics = [METRIC, {"key": "g", "type": "GAUGE", "value": 1}]
    known = Known({"names": ["a", "b", "c"]}, {"class": {"x"}, "route": set(), "metric": set()})
    before = copy.deepcopy((event, known))
    first = evaluate(event, ModelSettings(task=task), known)
    kept = copy.deepcopy((unpack(first.increment), first.gauges, first.constants))
    second = evaluate(event, ModelSettings(task=task), known)
    assert second == first
    assert (event, known) == before
    merge([first.increment, second.increment, first.increment])
    assert (unpack(first.increment), first.gauges, first.constants) == kept


NUMBERS = st.integers(-3, 3) | st.floats(-2, 2) | st.booleans() | st.text(max_size=2)
ARRAYS = st.lists(NUMBERS, min_size=1, max_size=4) | st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1)
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    ARRAYS,
    ARRAYS,
    st.sampled_from(["auto", "multiclass", "binary", "multilabel", "regression"]),
    st.booleans(),
)
def test_any_arrays_are_counted_or_refused(
    truth: Any, response: Any, task: str, flat_rows: bool
) -> None:
    """Under every task, feedback counts all of its rows or is refused, and nothing else."""
    try:
        evaluation = run(truth, response, task=task, flat_rows=flat_rows)
    except Refused:
        return
    assert evaluation.increment["rows"] == {(): evaluation.rows}
    assert evaluation.rows >= 1


ALL_TASKS = ["auto", "multiclass", "binary", "multilabel", "regression", f"{__name__}.Custom"]
KNOWN = [
    {},
    {"names": ["a", "b", "c"], "task": "multiclass"},
    {"names": ["a", "b"], "task": "binary", "reward_origin": 0.0, "metric m": "GAUGE"},
    {"origins": [0.0], "task": "regression", "reward_origin": -1e60},
    {"task": "multilabel"},
]
OPTIONS: list[Any] = [
    {},
    {"flat_rows": True, "probabilities": "scores", "k": 1},
    {"probabilities": "normalise", "max_classes": 2},
    {"classes": ("a", "b"), "positive_class": "a", "k": 3},
]


def is_sound(evaluation: Evaluation) -> bool:
    """Whether an increment can be stored, added and read for ever."""
    counters = unpack(evaluation.increment)
    numbers = [number for cells in floats(counters).values() for number in cells.values()]
    labels = [label for cells in counters.values() for key in cells for label in key]
    return (
        counters["rows"] == {(): evaluation.rows}
        and evaluation.rows >= 1
        and counters["events"] == {(): 1}
        and all(type(number) is int for cells in counters.values() for number in cells.values())
        and all(abs(number) <= LARGEST for number in numbers)
        and all(type(label) is str and len(label) <= 256 for label in labels)
        and all(isfinite(number) for number in evaluation.gauges.values())
    )


@pytest.mark.parametrize("seed", range(4))
def test_whatever_was_read_is_counted_or_refused(seed: int) -> None:
    """Hostile events under every task, known names and settings: sound, or refused in one line."""
    chance = random.Random(seed)
    counted = refused = 0
    for event in hostile_events(900, seed + 100):
        if not seed % 2 and type(event) is dict:  # both sides alike pass further
            event["response"] = event.get("truth")
        try:
            read = parse(event)
        except Refused:
            continue
        for task in ALL_TASKS:
            known = Known(chance.choice(KNOWN), {"class": {"a", "b"}})
            try:
                options = ModelSettings(task=task, **chance.choice(OPTIONS))
                assert is_sound(evaluate(read, options, known)), event
                counted += 1
            except Refused as error:
                assert is_one_short_line(error), repr(str(error)[:500])  # noqa: PT017
                refused += 1
    assert min(counted, refused) > 100


@settings(max_examples=150, derandomize=True, deadline=None)
@given(JSON, JSON, st.sampled_from(ALL_TASKS), st.sampled_from(KNOWN), st.sampled_from(OPTIONS))
def test_any_json_on_either_side_is_counted_or_refused(
    truth: Any, response: Any, task: str, known: Any, options: Any
) -> None:
    """Any JSON as the array of either side, under all tasks: counted, or refused in one line."""
    try:
        evaluation = run({"jsonData": truth}, {"jsonData": response}, known, task=task, **options)
    except Refused as error:
        assert is_one_short_line(error)  # noqa: PT017  either is right
    else:
        assert is_sound(evaluation)
