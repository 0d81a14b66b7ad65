"""Feedback -> increment: tasks, forms on either side, refusals, and the vector twin."""

from __future__ import annotations

import copy
import random
from math import isclose
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.counters import merge, unpack
from metrics.errors import Refused
from metrics.evaluators import Known, evaluate, infer
from metrics.evaluators.classification import VECTOR_ROWS
from metrics.evaluators.evaluation import Evaluation
from metrics.model_settings import ModelSettings
from metrics.payload import parse


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
    return evaluate(feedback(truth, response, **more), ModelSettings(**options), known)


def outcomes(evaluation: Evaluation) -> dict[str, Any]:
    """Hits by class, and wrong cells."""
    counters = evaluation.increment
    return {
        **{labels[0]: n for labels, n in counters.get("true_positives", {}).items()},
        **counters.get("confusion", {}),
    }


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
]


@pytest.mark.parametrize(("truth", "response", "task", "decided"), TASKS)
def test_shapes_and_types_decide_the_task(
    truth: Any, response: Any, task: str, decided: bool
) -> None:
    """The task is what the data speaks for, fixed only where it rules out the others."""
    event = feedback(truth, response)
    assert infer(event.truth, event.prediction) == (task, decided)
    assert run(truth, response).constants.get("task") == (task if decided else None)


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


def test_a_flat_list_is_one_row_for_the_ancestors_one_hot_class() -> None:
    """`[0.1, 0.2, 0.7]` is one row of three scores there, as it is against a row."""
    one_hot = {"task": "multiclass", "flat_rows": True, "probabilities": "scores"}
    assert outcomes(run([0, 0, 1], [0.1, 0.2, 0.7], **one_hot)) == {"2": 1}
    assert outcomes(run([0, 0, 1], [3.0, 0.2, 0.7], **one_hot)) == {("2", "0"): 1}
    assert outcomes(run([[0, 0, 1]], [0.1, 0.2, 0.7])) == {"2": 1}
    assert outcomes(run([0, 0, 1], [[0.1, 0.2, 0.7]])) == {"2": 1}


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


def test_configured_names_win_and_unknown_labels_are_refused() -> None:
    """A label that is no configured class never makes a new one."""
    assert outcomes(run(["y"], [1], classes=("x", "y"))) == {"1": 1}
    with pytest.raises(Refused, match="none of the classes") as refused:
        run(["z"], ["x"], classes=("x", "y"))
    assert refused.value.field == "truth.data.ndarray"


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
]


@pytest.mark.parametrize(("truth", "response", "options", "side"), REFUSED)
def test_what_does_not_fit_is_refused_by_field(
    truth: Any, response: Any, options: Any, side: str
) -> None:
    """Every contradiction names the side it is on, in one line."""
    with pytest.raises(Refused) as refused:
        run(truth, response, **options)
    assert refused.value.field.startswith(side)
    assert "\n" not in str(refused.value)


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


def test_classes_past_the_cap_fold_after_right_and_wrong_are_told_apart() -> None:
    """Two classes that both count as `__other__` are not one class."""
    labels = {"class": {"a", "b"}}
    counters = run(["c", "d", "a"], ["d", "d", "a"], max_classes=2, labels=labels).increment
    assert counters["true_positives"] == {("a",): 1, ("__other__",): 1}
    assert counters["confusion"] == {("__other__", "__other__"): 1}


def test_multilabel_counts_each_column() -> None:
    """Labels are 0/1 or probabilities against the threshold; a row is right as a whole or not."""
    counters = run([[1, 0, 1], [0, 0, 0]], [[0.9, 0.6, 0.1], [0, 0, 0]], task="multilabel")
    assert counters.increment["true_positives"] == {("0",): 1}
    assert counters.increment["false_positives"] == {("1",): 1}
    assert counters.increment["false_negatives"] == {("2",): 1}
    assert counters.increment["subset_hits"] == {(): 1}
    assert counters.increment["cells"] == {(): 6}


def test_regression_sums_about_the_first_truth() -> None:
    """The origin is fixed by the first event, and later events presuppose it."""
    first = run([[1.5, 10.0]], [[2.0, 9.0]], task="regression")
    assert first.constants["origins"] == [1.5, 10.0]
    second = run([[2.5, 10.0]], [[2.0, 9.0]], {"origins": [1.5, 10.0]}, task="regression")
    assert second.increment["truth_offset"] == {("0",): 1.0, ("1",): 0.0}
    assert second.increment["error"] == {("0",): -0.5, ("1",): -1.0}
    assert second.increment["absolute_error"] == {("0",): 0.5, ("1",): 1.0}
    zero = run([0.0, 2.0], [1.0, 1.0], task="regression")
    assert zero.increment["percentage_rows"] == {("0",): 1}


def test_rewards_of_zero_and_below_count_and_routes_have_their_own() -> None:
    """A signed sum is never one counter."""
    meta = {"meta": {"routing": {"ab": 1}}}
    counters = run([1], [1], more={"reward": -2, **meta}).increment
    assert counters["rewards"] == {(): 1, ("ab=1",): 1}
    assert counters["reward_negative"] == {(): 2.0, ("ab=1",): 2.0}
    assert run([1], [1], more={"reward": 0}).increment["rewards"] == {(): 1}
    assert "rewards" not in run([1], [1]).increment


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
]


def with_metrics(*metrics: Any, **options: Any) -> Evaluation:
    """Evaluate feedback that brings its own metrics."""
    truth = {"data": {"ndarray": [1]}, "meta": {"metrics": list(metrics)}}
    return run(truth, [1], **options)


@pytest.mark.parametrize("metric", BAD_METRICS)
def test_bad_user_metrics_are_refused_by_entry(metric: Any) -> None:
    """One bad entry refuses the whole event, and says which it is."""
    with pytest.raises(Refused) as refused:
        with_metrics(METRIC, metric)
    assert refused.value.field.startswith("truth.meta.metrics[1]")


def test_user_metrics_add_up_and_gauges_are_last_writes() -> None:
    """Counters and timers are increments; a timer's milliseconds are kept in seconds."""
    found = with_metrics(
        METRIC,
        {**METRIC, "key": "m_total", "value": 2, "tags": {"b": True, "a": 1}},
        {"key": "t", "type": "TIMER", "value": 30},
        {"key": "g", "type": "GAUGE", "value": -4},
    )
    assert found.increment["user_counters"] == {("m",): 1.0, ("m", "a", "1", "b", "true"): 2.0}
    assert found.increment["user_timers_sum"] == {("t",): 0.03}
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
    assert found.increment["user_counters"] == {("m", "kind", "x"): 2.0}
    assert found.rows == 2


def rows_of(chance: random.Random, rows: int, width: int) -> tuple[Any, Any]:
    """Random truths and rows of probabilities."""
    scores = [[chance.random() ** 3 for _ in range(width)] for _ in range(rows)]
    probabilities = [[score / sum(row) for score in row] for row in scores]
    return [chance.randrange(width) for _ in range(rows)], probabilities


@pytest.mark.parametrize("width", [2, 3, 40])
@pytest.mark.parametrize("rows", [VECTOR_ROWS - 1, VECTOR_ROWS, 200])
def test_any_split_of_rows_sums_to_the_whole(rows: int, width: int) -> None:
    """Row by row in Python or all at once in numpy: equal counts, and sums to rounding."""
    truth, probabilities = rows_of(random.Random(rows * width), rows, width)
    for truths in (truth, [[int(n == each) for n in range(width)] for each in truth]):
        whole = unpack(run(truths, probabilities, k=2).increment)
        parts = merge(
            run([each], [row], k=2).increment
            for each, row in zip(truths, probabilities, strict=True)
        )
        assert parts.pop("events") == {(): rows}
        assert whole.pop("events") == {(): 1}
        assert whole.keys() == parts.keys()
        for family, cells in whole.items():
            assert cells.keys() == parts[family].keys(), family
            for labels, number in cells.items():
                other = parts[family][labels]
                exact = isinstance(number, int)
                assert number == other if exact else isclose(number, other, rel_tol=1e-9), family


def test_evaluation_is_pure() -> None:
    """The same feedback gives the same increment again, and is not changed."""
    event = feedback([2, 0], [[0.1, 0.2, 0.7], [0.2, 0.5, 0.3]], reward=1)
    before = copy.deepcopy(event)
    first = evaluate(event, ModelSettings(), Known())
    assert evaluate(event, ModelSettings(), Known()) == first
    assert event == before


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
