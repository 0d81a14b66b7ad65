"""Every score is what scikit-learn says of the same raw rows, however they came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain, cycle, repeat
from math import isclose
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import datasets
from sklearn import metrics as sk
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.multioutput import MultiOutputClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from metrics.counters import Vector, merge
from metrics.evaluators import Known, evaluate
from metrics.model_settings import ModelSettings
from metrics.payload import parse
from metrics.scores import model_view, score_vector
from metrics.scores.classification import Counts, agreement
from metrics.scores.ranking import Bounded
from metrics.scores.ratio import mean, ratio, weighted_mean
from metrics.scores.view import MAX_CLASSES_SHOWN, MAX_MATRIX, TOP_CONFUSIONS, Naming
from metrics.state import Entry, ModelState, total
from metrics.store import MemoryStore
from metrics.windows import ALL_TIME
from tests.oracle import (
    EXACT,
    MODEL,
    ORACLES,
    Rows,
    Stream,
    by_pane,
    classifier,
    commit,
    differences,
    entry,
    scored,
)

SIZES = (1, 2, 30, 5, 1, 60, 23, 24, 200)
"""Rows of one event after the other: few, which plain Python counts, and many, which numpy does."""


def _multiclass(**settings: Any) -> ModelSettings:
    return ModelSettings(task="multiclass", beta=0.5, **{"k": 2, **settings})


def _binary(**settings: Any) -> ModelSettings:
    return ModelSettings(task="binary", k=1, beta=2.0, **settings)


MULTILABEL = ModelSettings(task="multilabel", beta=2.0)
REGRESSION = ModelSettings(task="regression")


# --- real data: models trained on one half, rows of the other -------------------------------


def _held_out(data: Any, model: Any, share: float = 0.5) -> tuple[Any, Any]:
    """What a model says of rows that it did not see, and what is true of them."""
    fitted, held, targets, held_targets = train_test_split(
        data.data, data.target, test_size=share, random_state=7
    )
    model.fit(fitted, targets)
    return model.predict_proba(held), held_targets


def _logistic(strength: float = 1.0) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500))


def _iris() -> Rows:
    probabilities, truth = _held_out(datasets.load_iris(), _logistic(), 0.3)
    return classifier(_multiclass(), truth, probabilities)


def _iris_labels() -> Rows:
    """The same, told by the classes' names and without probabilities."""
    rows = _iris().part(slice(0, 40))
    settings = _multiclass(classes=("setosa", "versicolor", "virginica"))
    return Rows(settings, rows.truth, rows.prediction)


def _digits() -> Rows:
    probabilities, truth = _held_out(datasets.load_digits(), _logistic(0.01), 0.7)
    return classifier(_multiclass(k=3), truth, probabilities)


def _digits_overconfident() -> Rows:
    """Naive Bayes: many probabilities of exactly 0 or 1, and many that are wrong."""
    probabilities, truth = _held_out(datasets.load_digits(), GaussianNB(var_smoothing=1e-3))
    return classifier(_multiclass(), truth, probabilities)


def _cancer(settings: ModelSettings) -> Rows:
    probabilities, truth = _held_out(datasets.load_breast_cancer(), _logistic(0.05))
    return classifier(settings, truth, probabilities)


def _digits_traits() -> Rows:
    """Multilabel: whether a digit is even, large, prime, and whether it is a tenth one."""
    digits = datasets.load_digits()
    even, large = digits.target % 2 == 0, digits.target >= 5
    prime = np.isin(digits.target, (2, 3, 5, 7))
    traits = np.column_stack([even, large, prime, np.arange(len(even)) < 2]).astype(int)
    fitted, held, targets, truth = train_test_split(
        digits.data, traits, test_size=0.5, random_state=11
    )
    model = MultiOutputClassifier(_logistic(0.001)).fit(fitted, targets)
    return Rows(MULTILABEL, truth, model.predict(held))


def _regressor(data: Any) -> Rows:
    fitted, held, targets, truth = train_test_split(
        data.data, data.target, test_size=0.5, random_state=3
    )
    return Rows(REGRESSION, truth, LinearRegression().fit(fitted, targets).predict(held))


# --- synthetic data: what real data lack ----------------------------------------------------


def _drawn(settings: ModelSettings, seed: int, rows: int, classes: int) -> Rows:
    """A classifier whose truths are drawn from its own probabilities."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.7), rows)
    truth = (probabilities.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return classifier(settings, truth, probabilities)


def _tied() -> Rows:
    """Probabilities in quarters: ties between rows, and within a row."""
    rng = np.random.default_rng(5)
    probabilities = rng.multinomial(4, [0.4, 0.3, 0.2, 0.1], 30) / 4
    return classifier(_multiclass(), rng.integers(0, 4, 30), probabilities)


def _labels(truth: Sequence[int], prediction: Sequence[int]) -> Rows:
    """Rows of three classes told by their names only."""
    settings = _multiclass(classes=("a", "b", "c"))
    return Rows(settings, np.array(truth), np.array(prediction))


def _never_predicted() -> Rows:
    rows = _drawn(_multiclass(), 1, 24, 4)
    probabilities = rows.probabilities[:, [0, 1, 2]]
    probabilities = np.column_stack(
        [probabilities / probabilities.sum(axis=1)[:, None], np.zeros(len(rows))]
    )
    return classifier(_multiclass(), rows.truth, probabilities)


def _never_true() -> Rows:
    rows = _drawn(_multiclass(), 2, 24, 4)
    return classifier(_multiclass(), np.where(rows.truth == 3, 0, rows.truth), rows.probabilities)


def _one_true_class(settings: ModelSettings, column: int, classes: int) -> Rows:
    probabilities = _drawn(settings, 3, 20, classes).probabilities
    if classes == 2:
        probabilities = _pairs(probabilities[:, 1])
    return classifier(settings, np.full(20, column), probabilities)


def _skewed() -> Rows:
    """Fraud or clicks: scores near 1e-4, one truth in some thousand."""
    rng = np.random.default_rng(4)
    p = 1 / (1 + np.exp(-rng.normal(-9, 1.5, 16_000)))
    settings = ModelSettings(task="binary", k=1, beta=2.0, threshold=1e-3)
    return classifier(settings, (rng.random(16_000) < p * 5).astype(int), _pairs(p))


def _pairs(p: Any, positive: int = 1) -> Any:
    return np.column_stack([1 - p, p] if positive else [p, 1 - p])


def _cancer_of_the_first_class() -> Rows:
    """The positive class is the first, and one row in three lies at the threshold."""
    rows = _cancer(_binary())
    p = rows.probabilities[:, 0].copy()
    p[::3] = 0.25
    settings = _binary(positive_class="0", threshold=0.25)
    return classifier(settings, rows.truth, _pairs(p, positive=0))


def _binary_labels() -> Rows:
    rows = _cancer(_binary(threshold=0.9))
    return Rows(_binary(), rows.truth, rows.prediction)


def _traits_never_seen() -> Rows:
    rng = np.random.default_rng(6)
    truth, prediction = (rng.random((40, 5)) < (0.5, 0.1, 0.0, 0.3, 0.0) for _ in range(2))
    prediction[:, 4] = rng.random(40) < 0.1
    truth[:3] = prediction[:3] = False
    return Rows(MULTILABEL, truth.astype(int), prediction.astype(int))


def _numbers(seed: int, rows: int, offset: float = 0.0, outputs: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    shape = (rows, outputs) if outputs else (rows,)
    truth = offset + rng.normal(size=shape)
    return Rows(REGRESSION, truth, truth + rng.normal(0.1, 0.3, size=shape))


def _zeros_among_numbers() -> Rows:
    rows = _numbers(8, 40, outputs=2)
    truth = np.where(np.arange(80).reshape(40, 2) % 3 == 0, 0.0, rows.truth)
    return Rows(REGRESSION, truth, rows.prediction)


def _constant(value: float, error: float) -> Rows:
    truth = np.full(30, value)
    return Rows(REGRESSION, truth, truth + error)


CLASSIFIERS: dict[str, Callable[[], Rows]] = {
    "iris": _iris,
    "iris, labels": _iris_labels,
    "digits": _digits,
    "digits, overconfident": _digits_overconfident,
    "breast cancer": lambda: _cancer(_binary()),
    "breast cancer, labels": _binary_labels,
    "breast cancer, first class": _cancer_of_the_first_class,
    "breast cancer, two columns": lambda: _cancer(_multiclass(k=1)),
    "drawn, four classes": lambda: _drawn(_multiclass(), 0, 24, 4),
    "ties": _tied,
    "a class never predicted": _never_predicted,
    "a class never true": _never_true,
    "one class only": lambda: _labels([1] * 5, [1] * 5),
    "one true class only": lambda: _one_true_class(_multiclass(), 2, 3),
    "one predicted class only": lambda: _labels([0, 1, 2, 1, 0, 0], [1] * 6),
    "nothing right": lambda: _labels([0, 0, 0, 2], [1, 1, 1, 1]),
    "all positive": lambda: _one_true_class(_binary(), 1, 2),
    "all negative": lambda: _one_true_class(_binary(), 0, 2),
    "skewed": _skewed,
}
MULTILABEL_MODELS: dict[str, Callable[[], Rows]] = {
    "traits of digits": _digits_traits,
    "labels never seen": _traits_never_seen,
}
REGRESSORS: dict[str, Callable[[], Rows]] = {
    "diabetes": lambda: _regressor(datasets.load_diabetes()),
    "linnerud, three outputs": lambda: _regressor(datasets.load_linnerud()),
    "zeros among numbers": _zeros_among_numbers,
    "numbers near 1e8": lambda: _numbers(9, 60, 1e8),
    "a constant": lambda: _constant(0.1, 0.5),
    "no error": lambda: Rows(REGRESSION, np.arange(9.0), np.arange(9.0)),
    "the same error always": lambda: Rows(REGRESSION, np.arange(9.0), np.arange(9.0) + 0.1),
}
CASES = {**CLASSIFIERS, **MULTILABEL_MODELS, **REGRESSORS}


@cache
def rows_of(case: str) -> Rows:
    """The rows of a case; to be read only."""
    return CASES[case]()


def _events(rows: Rows) -> Iterator[tuple[Rows, bool]]:
    """Events, and whether to compare after it: a short stream has one row each and compares all.

    A long one does so at its beginning; later its events have many rows and some are compared.
    """
    step = max(1, len(rows) // 8)
    sizes = repeat(1) if len(rows) <= 80 else chain(repeat(1, 8), cycle([*SIZES, step]))
    seen = 0
    compared = 0
    for chunk in rows.chunks(sizes):
        seen += len(chunk)
        compare = len(rows) <= 80 or seen <= 8 or seen - compared >= step or seen == len(rows)
        compared = seen if compare else compared
        yield chunk, compare


@pytest.mark.parametrize("case", CASES)
def test_every_score_is_its_oracles_at_every_prefix(case: str) -> None:
    """After each event all scores are those of scikit-learn on the rows so far."""
    rows = rows_of(case)
    stream = Stream(rows.settings)
    seen = 0
    for chunk, compare in _events(rows):
        stream.send(chunk)
        seen += len(chunk)
        if compare:
            found = differences(stream.scored(), rows.part(slice(0, seen)))
            assert not found, f"after {seen} rows: " + "; ".join(found)
    assert stream.scored().rows == seen == len(rows)


def _whole(case: str) -> Stream:
    """The model of a case after all its rows."""
    rows = rows_of(case)
    stream = Stream(rows.settings)
    for chunk in rows.chunks(cycle(SIZES)):
        stream.send(chunk)
    return stream


def test_the_table_has_every_score_and_the_cases_show_each() -> None:
    """A score that is emitted without an oracle, or an oracle that no case asks, fails here."""
    emitted: dict[str, set[str]] = {task: set() for task in ORACLES}
    for case in CASES:
        stream = _whole(case)
        emitted[stream.settings.task] |= set(stream.scored().scores)
    assert emitted == {task: set(oracles) for task, oracles in ORACLES.items()}


def test_the_contracts_names_are_emitted() -> None:
    """Names that users rely on cannot go, oracle and all."""
    averages = ("macro", "micro", "weighted")
    averaged = {f"{name}_{how}" for name in ("precision", "recall", "f1") for how in averages}
    classifiers = averaged | {
        *("accuracy", "balanced_accuracy", "matthews_corrcoef", "cohen_kappa", "log_loss"),
        *("brier_score", "roc_auc_ovr", "average_precision", "top_k_accuracy"),
        "expected_calibration_error",
    }
    assert classifiers <= set(ORACLES["multiclass"])
    assert classifiers <= set(ORACLES["binary"])
    assert averaged | {"subset_accuracy", "hamming_loss"} <= set(ORACLES["multilabel"])
    assert set(ORACLES["regression"]) == {
        *("mean_absolute_error", "mean_squared_error", "root_mean_squared_error", "r2"),
        *("explained_variance", "mean_absolute_percentage_error", "median_absolute_error"),
        "mean_error",
    }


@pytest.mark.parametrize("case", ["iris", "breast cancer", "traits of digits"])
def test_what_was_not_asked_for_is_not_shown(case: str) -> None:
    """Without k and beta there is no top-k accuracy and no F-beta, and nothing else is missing."""
    rows = rows_of(case)
    plain = ModelSettings(task=rows.task)
    stream = Stream(plain)
    stream.send(Rows(plain, rows.truth, rows.prediction, rows.probabilities))
    missing = set(ORACLES[rows.task]) - set(stream.scored().scores)
    assert missing == {name for name in ORACLES[rows.task] if name.startswith(("top_k", "fbeta"))}


@pytest.mark.parametrize("task", ORACLES)
def test_nothing_counted_scores_nothing(task: str) -> None:
    """A model's empty window has no score, no interval and no bounds, and raises nothing."""
    empty = score_vector({}, task, ModelSettings(task=task, k=1, beta=1), Naming(("a", "b"), 2))
    assert (empty.scores, empty.intervals, empty.bounds) == ({}, {}, {})


# --- each class, each output ----------------------------------------------------------------


def _class_oracle(rows: Rows, column: int) -> dict[str, float]:
    """scikit-learn's view of one class or label against the rest; undefined measures are absent."""
    truth, prediction = (
        side == column if side.ndim == 1 else side[:, column] == 1
        for side in (rows.truth, rows.prediction)
    )
    tn, fp, fn, tp = sk.confusion_matrix(truth, prediction, labels=[False, True]).ravel()
    found = {"support": tp + fn}
    if tp + fp:
        found["precision"] = sk.precision_score(truth, prediction)
    if tp + fn:
        found["recall"] = sk.recall_score(truth, prediction)
    if tp + fp + fn:
        found["f1"] = sk.f1_score(truth, prediction)
        found["fbeta"] = sk.fbeta_score(truth, prediction, beta=rows.settings.beta)
        found["jaccard"] = sk.jaccard_score(truth, prediction)
    if tn + fp:
        found["specificity"] = sk.recall_score(~truth, ~prediction)
    return found


@pytest.mark.parametrize("case", [*CLASSIFIERS, *MULTILABEL_MODELS])
def test_each_class_is_its_oracles(case: str) -> None:
    """Every class's counts, measures and rankings are scikit-learn's of that class alone."""
    rows, stream = rows_of(case), _whole(case)
    classes = model_view(MODEL, stream.state, rows.settings, 0.0)["classes"]
    ranked = stream.scored().ranked
    ranked_columns = set()
    for column, shown in enumerate(classes):
        name = shown.pop("class")
        assert name == (rows.settings.classes[column] if rows.settings.classes else str(column))
        auc, precision = shown.pop("roc_auc", None), shown.pop("average_precision", None)
        expected = _class_oracle(rows, column)
        assert set(shown) == set(expected)
        for measure, number in expected.items():
            assert isclose(shown[measure], number, rel_tol=EXACT), (name, measure)
        if name in ranked:
            ranked_columns.add(column)
            truth, scores = rows.truth == column, rows.probabilities[:, column]
            area = sk.roc_auc_score(truth, scores) if 0 < truth.sum() < len(rows) else None
            _assert_midpoint(ranked[name].auc, auc, area)
            area = sk.average_precision_score(truth, scores) if truth.any() else None
            _assert_midpoint(ranked[name].precision, precision, area)
    if rows.probabilities is None:
        assert ranked_columns == set()
    elif rows.task == "binary":
        assert ranked_columns == {rows.settings.positive}
    else:
        assert ranked_columns == ({1} if len(classes) == 2 else set(range(len(classes))))


def _assert_midpoint(bounded: Bounded | None, shown: float | None, expected: float | None) -> None:
    """The shown value is the midpoint of the bounds, the expected one lies between them."""
    if bounded is None:
        assert (shown, expected) == (None, None)
        return
    assert shown == bounded.value == pytest.approx((bounded.low + bounded.high) / 2, abs=1e-15)
    assert expected is not None
    assert bounded.low - 1e-12 <= expected <= bounded.high + 1e-12


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_the_confusion_matrix_is_the_oracles(case: str) -> None:
    """Rows are truths, columns predictions, classes that no row was of included."""
    rows = rows_of(case)
    shown = model_view(MODEL, _whole(case).state, rows.settings, 0.0)["confusion_matrix"]
    columns = range(len(shown["labels"]))
    expected = sk.confusion_matrix(rows.truth, rows.prediction, labels=columns)
    assert shown["matrix"] == expected.tolist()


@pytest.mark.parametrize("case", REGRESSORS)
def test_each_output_is_its_oracles(case: str) -> None:
    """Every output of a regression has the scores that it would have alone."""
    rows = rows_of(case)
    shown = model_view(MODEL, _whole(case).state, rows.settings, 0.0)["outputs"]
    truths, predictions = np.atleast_2d(rows.truth.T), np.atleast_2d(rows.prediction.T)
    assert [each["output"] for each in shown] == [str(output) for output in range(len(truths))]
    for each, truth, prediction in zip(shown, truths, predictions, strict=True):
        alone = Stream(rows.settings)
        alone.send(Rows(rows.settings, truth, prediction))
        assert not differences(alone.scored(), Rows(rows.settings, truth, prediction))
        for name, number in alone.scored().scores.items():
            assert isclose(each["scores"][name], number, rel_tol=EXACT, abs_tol=1e-12), name
        assert set(each["scores"]) == set(alone.scored().scores)


# --- large and sparse -----------------------------------------------------------------------


def _confused(classes: int, cells: int, seed: int) -> tuple[Vector, dict[tuple[str, str], int]]:
    """A vector of many classes and few confusions, and these."""
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, classes, (cells, 2)).tolist()
    wrong = {(str(t), str(p)): int(1 + 500 * rng.random() ** 6) for t, p in pairs if t != p}
    vector: Vector = {"true_positives": {(str(column),): column + 1 for column in range(classes)}}
    for (truth, prediction), number in wrong.items():
        more: Vector = {
            "false_negatives": {(truth,): number},
            "false_positives": {(prediction,): number},
            "confusion": {(truth, prediction): number},
        }
        vector = merge([vector, more])
    return vector, wrong


def test_past_a_cap_the_largest_confusions_stand_for_the_matrix() -> None:
    """The view of a model of many classes stays small, and shows what matters most."""
    classes = MAX_CLASSES_SHOWN + 50
    vector, wrong = _confused(classes, 400, 0)
    view = model_view(MODEL, ModelState({ALL_TIME: vector}, {}, {}), ModelSettings(), 0.0)
    assert classes > MAX_MATRIX
    assert "confusion_matrix" not in view
    largest = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:TOP_CONFUSIONS]
    assert view["top_confusions"] == [
        {"truth": truth, "prediction": prediction, "count": n} for (truth, prediction), n in largest
    ]
    assert view["classes_omitted"] == 50
    supports = [each["support"] for each in view["classes"]]
    truths = {str(column): column + 1 for column in range(classes)}
    for (truth, _), number in wrong.items():
        truths[truth] += number
    assert sorted(supports, reverse=True) == sorted(truths.values(), reverse=True)[:100]


def test_the_largest_confusions_of_folded_and_of_late_named_classes() -> None:
    """Confusions within the folded rest have no name; those counted by name and by column sum."""
    names = tuple(f"class {column}" for column in range(60))
    vector: Vector = {
        "false_negatives": {("1",): 5, ("class 1",): 4, ("__other__",): 9},
        "false_positives": {("2",): 5, ("class 2",): 4, ("__other__",): 9},
        "confusion": {("1", "2"): 5, ("class 1", "class 2"): 4, ("__other__", "__other__"): 9},
    }
    state = ModelState({ALL_TIME: vector}, {}, {"names": list(names)})
    view = model_view(MODEL, state, ModelSettings(), 0.0)
    assert view["top_confusions"] == [{"truth": "class 1", "prediction": "class 2", "count": 9}]


def test_names_that_are_numerals_are_not_taken_for_columns() -> None:
    """Classes called 1, 2, 3, …: the name 1 is column 0's, and never looked up twice."""
    settings = ModelSettings(classes=tuple(str(column + 1) for column in range(60)))
    vector: Vector = {
        "false_negatives": {("0",): 3},
        "false_positives": {("1",): 3},
        "confusion": {("0", "1"): 3},
    }
    view = model_view(MODEL, ModelState({ALL_TIME: vector}, {}, {}), settings, 0.0)
    assert view["top_confusions"] == [{"truth": "1", "prediction": "2", "count": 3}]


def test_agreement_is_exact_where_products_overflow_64_bits() -> None:
    """Correlation and kappa of counts near 1e10 are those of the same shares of few rows."""
    scale = 3_000_000_019
    few = [Counts("a", 3, 1, 2, 0), Counts("b", 2, 2, 1, 0)]
    many = [
        Counts(each.name, each.hits * scale, each.misses * scale, each.alarms * scale, 0)
        for each in few
    ]
    expected = agreement(few, 8)
    truth, prediction = [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 0, 0]
    assert expected["matthews_corrcoef"] == pytest.approx(
        sk.matthews_corrcoef(truth, prediction), rel=1e-14
    )
    assert agreement(many, 8 * scale) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("counts", [(1, 1), (1, 3), (5, 2, 9), (10**12, 3), (7,) * 30])
def test_a_classifier_without_errors_correlates_by_exactly_one(counts: tuple[int, ...]) -> None:
    """And one of two classes that is always wrong by -1: rounding would show 0.9999."""
    rows = sum(counts)
    right = [Counts(str(at), n, 0, 0, rows) for at, n in enumerate(counts)]
    assert agreement(right, rows)["matthews_corrcoef"] == 1
    assert agreement(right, rows)["cohen_kappa"] == 1
    if len(counts) == 2:
        first, second = counts
        wrong = [Counts("a", 0, first, second, rows), Counts("b", 0, second, first, rows)]
        assert agreement(wrong, rows)["matthews_corrcoef"] == -1


def test_means_leave_out_what_is_undefined() -> None:
    """None is left out, not counted as 0; without any weight all weigh the same."""
    assert ratio(0, 0) is None
    assert ratio(0, 2) == 0.0
    assert mean([None, 0.5, 1.0]) == 0.75
    assert mean([None]) is None
    assert weighted_mean([None, 0.5, 1.0], [5, 3, 1]) == 0.625
    assert weighted_mean([None, 0.5, 1.0], [5, 0, 0]) == 0.75
    assert weighted_mean([None], [1]) is None


# --- order and partition --------------------------------------------------------------------


def _scattered(rows: Rows, seed: int) -> tuple[ModelState, Vector]:
    """The rows in random order and events, over three replicas that know little of each other.

    Returns their common store's state, and the sum of what each of them counted.
    """
    rng = np.random.default_rng(seed)
    store = MemoryStore(86400)
    knows = [dict(store.read().constants(MODEL)) for _ in range(3)]
    shuffled = rows.part(rng.permutation(len(rows)))
    pending: list[list[Any]] = [[], [], []]
    counted: list[Any] = [[], [], []]
    for chunk in shuffled.chunks(iter(lambda: int(rng.choice([1, 1, 3, 20, 24, 100])), None)):
        replica = int(rng.integers(0, 3))
        pending[replica].append(entry(chunk, knows[replica]))
        counted[replica].append(entry(chunk, {}))
        if rng.random() < 0.3:
            commit(store, pending[replica])
            pending[replica] = []
            knows[replica] = dict(store.read().constants(MODEL))
    for rest in pending:
        commit(store, rest)
    sums = [by_pane(total(entries)).get((MODEL, ALL_TIME), {}) for entries in counted]
    return store.read().models[MODEL], merge(sums)


def _counts(vector: Any) -> dict[Any, int]:
    """The numbers of a vector; events depend on how rows are cut."""
    return {
        (family, labels): number
        for family, cells in vector.items()
        for labels, number in cells.items()
        if family != "events"
    }


@pytest.mark.parametrize("case", CASES)
def test_order_and_partition_change_no_count_and_no_score(case: str) -> None:
    """Any order, any cut into events, any spread over replicas: the same state, the same scores."""
    rows = rows_of(case).part(slice(0, 3000))
    stream = Stream(rows.settings)
    for row in rows.part(slice(0, 300)).chunks(repeat(1)):
        stream.send(row)
    if len(rows) > 300:
        stream.send(rows.part(slice(300, 3000)))
    expected = stream.scored().scores
    assert len(_counts(stream.state.all_time)) >= 2
    for seed in range(3):
        state, summed = _scattered(rows, seed)
        assert _counts(state.all_time) == _counts(stream.state.all_time)
        assert _counts(summed) == _counts(stream.state.all_time)
        found = scored(state, rows.settings, state.all_time).scores
        assert found == pytest.approx(expected, rel=EXACT, abs=1e-11)


# --- regression: large offsets, quantiles ---------------------------------------------------


def _two_pass(truth: Any, prediction: Any) -> tuple[float, float]:
    """R² and explained variance from two passes over exact differences."""
    mean_truth = float(np.mean(truth - truth[0])) + truth[0]
    residuals = prediction - truth
    spread = np.sum((truth - mean_truth) ** 2)
    r2 = 1 - np.sum(residuals**2) / spread
    return r2, 1 - np.sum((residuals - residuals.mean()) ** 2) / spread


@pytest.mark.parametrize("seed", range(6))
def test_r2_is_stable_at_large_offsets(seed: int) -> None:
    """Within 1e-9 of the two-pass value at mean 1e8 and standard deviation 1, however it came."""
    rows = _numbers(seed, 2000, 1e8)
    r2, explained = _two_pass(rows.truth, rows.prediction)
    assert 0.8 < r2 < explained < 0.95
    state, _ = _scattered(rows, seed)
    scores = scored(state, rows.settings, state.all_time).scores
    assert scores["r2"] == pytest.approx(r2, abs=1e-9)
    assert scores["explained_variance"] == pytest.approx(explained, abs=1e-9)


def _later(first: float, truth: Any, prediction: Any) -> dict[str, float]:
    """Scores of rows whose model's origin is the truth of an earlier row, outside the window."""
    constants = {"origins": [first]}
    rows = Rows(REGRESSION, np.asarray(truth), np.asarray(prediction))
    vector = merge(entry(row, constants).increment for row in rows.chunks(repeat(1)))
    return score_vector(vector, "regression", REGRESSION, Naming((), 0)).scores


@pytest.mark.parametrize("rows", [2, 10, 1000, 5000])
def test_a_constant_truth_has_no_r2_whatever_the_origin(rows: int) -> None:
    """A spread of 0 is none to divide by."""
    for constant in (0.1, 1 / 3, 1e8 + 0.7):
        found = _later(0.0, np.full(rows, constant), np.full(rows, constant + 0.5))
        assert "r2" not in found
        assert "explained_variance" not in found
        assert found["mean_absolute_error"] == pytest.approx(0.5)


@pytest.mark.parametrize("error", [0.1, -1 / 3, 1e6 + 0.1])
def test_what_a_constant_error_leaves_unexplained_is_not_negative(error: float) -> None:
    """Explained variance is 1 then, and never more, however the squares are rounded."""
    for rows in range(2, 60):
        truth = np.arange(float(rows))
        explained = _later(0.0, truth, truth + error)["explained_variance"]
        assert 1 - 1e-12 * max(1, error * error) <= explained <= 1


def test_no_spread_is_drowned_by_rounding() -> None:
    """R² is right from an origin any number of standard deviations off, and after any first row."""
    rows = _numbers(1, 500)
    for origin in (0.0, 1000.0, 1e8, -1e15):
        found = _later(origin, rows.truth, rows.prediction)["r2"]
        assert found == pytest.approx(sk.r2_score(rows.truth, rows.prediction), abs=1e-12)
    for first, level in ((0.5, 1e7), (1e8, 1e8), (-1e9, 1e12)):
        truth = np.array([first, *([level - 1, level + 1] * 50)])
        prediction = truth + np.array([0.25, -0.5] * 50 + [0.125])
        for start in (0, 1):
            found = _later(0.0, truth[start:], prediction[start:])
            r2, explained = _two_pass(truth[start:], prediction[start:])
            assert found["r2"] == pytest.approx(r2, abs=1e-9)
            assert found["explained_variance"] == pytest.approx(explained, abs=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_error_quantiles_are_within_one_percent(seed: int) -> None:
    """Over twenty decades, of odd and even numbers of rows, with errors of exactly 0."""
    rng = np.random.default_rng(seed)
    errors = 10 ** rng.uniform(-9, 11, int(rng.integers(1, 400)))
    errors[rng.random(len(errors)) < 0.05 * (seed % 5)] = 0.0
    rows = Rows(REGRESSION, np.zeros(len(errors)), errors * rng.choice([-1, 1], len(errors)))
    stream = Stream(REGRESSION)
    for chunk in rows.chunks(cycle(SIZES)):
        stream.send(chunk)
    low, high = stream.scored().bounds["median_absolute_error"]
    assert low <= np.median(errors) <= high
    assert stream.scored().scores["median_absolute_error"] == pytest.approx(
        np.median(errors), rel=0.01 + 1e-12
    )
    (output,) = stream.scored().outputs
    for q, shown in output.quantiles().items():
        exact = np.quantile(errors, float(q), method="lower")
        assert shown == pytest.approx(exact, rel=0.01 + 1e-12), q


def test_errors_too_small_for_a_bucket_lie_within_the_bounds() -> None:
    """Errors below 1e-12 count as 0, and the bounds say by how much that can be wrong."""
    stream = Stream(REGRESSION)
    stream.send(Rows(REGRESSION, np.zeros(3), np.array([1e-13, 5e-13, 1.0])))
    low, high = stream.scored().bounds["median_absolute_error"]
    assert stream.scored().scores["median_absolute_error"] == 0.0
    assert low <= 5e-13 <= high < 1e-11


# --- forms of the same rows -----------------------------------------------------------------


def _told(task: str, truth: list[Any], prediction: list[Any]) -> dict[str, float]:
    """The scores of one event that says the given arrays."""
    settings = ModelSettings(task=task)
    event = {"truth": {"data": {"ndarray": truth}}, "response": {"data": {"ndarray": prediction}}}
    told = evaluate(parse(event), settings, Known())
    return score_vector(merge([told.increment]), task, settings, Naming((), 0)).scores


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize("truth", [[0, 1], [0, 0, 1, 0]])
def test_a_flat_list_with_a_single_one_is_as_many_rows(task: str, truth: list[int]) -> None:
    """Where the task is set to binary or regression, no list of numbers is a one-hot row."""
    prediction = [0.3, 0.7, 0.6, 0.1][: len(truth)]
    one_by_one = merge(
        evaluate(
            parse({"truth": {"data": {"ndarray": [t]}}, "response": {"data": {"ndarray": [p]}}}),
            ModelSettings(task=task),
            Known({"origins": [0.0]} if task == "regression" else {}),
        ).increment
        for t, p in zip(truth, prediction, strict=True)
    )
    expected = score_vector(one_by_one, task, ModelSettings(task=task), Naming((), 0)).scores
    assert _told(task, truth, prediction) == pytest.approx(expected)


def test_a_probability_a_little_above_1_counts_as_1_in_many_rows_as_in_few() -> None:
    """Rows may sum to 1 ± 1e-3, so that one of their probabilities may exceed 1."""
    row = [1.0005, 0.0, 0.0]
    many = _told("multiclass", [0] * 30, [row] * 30)
    assert many == pytest.approx(_told("multiclass", [0] * 3, [row] * 3), abs=EXACT)


# --- rewards --------------------------------------------------------------------------------


def test_rewards_are_numpys_over_all_and_by_route() -> None:
    """Count, sum, mean and variance of rewards of both signs at a large offset, and by route."""
    rng = np.random.default_rng(0)
    rewards = np.round(rng.normal(1e6, 1, 300), 6)
    rewards[::7] *= -1
    rewards[::11] = 0.0
    store = MemoryStore(86400)
    for at, reward in enumerate(rewards.tolist()):
        event = {
            "truth": {"strData": "a"},
            "response": {"strData": "a", "meta": {"routing": {"ab": at % 3}}},
            "reward": reward,
        }
        known = Known(store.read().constants(MODEL))
        told = evaluate(parse(event), ModelSettings(), known)
        commit(store, [Entry(MODEL, b"", (ALL_TIME,), told.increment, {}, told.constants)])
    view = model_view(MODEL, store.read().models[MODEL], ModelSettings(), 0.0)["reward"]
    routes = {route["route"]: route for route in view.pop("routes")}
    parts = {f"ab={branch}": rewards[branch::3] for branch in range(3)}
    assert set(routes) == set(parts)
    for shown, part in [(view, rewards), *((routes[name], parts[name]) for name in parts)]:
        assert shown["count"] == len(part)
        assert shown["sum"] == pytest.approx(part.sum(), rel=EXACT)
        assert shown["mean"] == pytest.approx(part.mean(), rel=EXACT)
        assert shown["variance"] == pytest.approx(part.var(ddof=1), rel=EXACT)
        error = stats.sem(part)
        expected = stats.t.interval(0.95, len(part) - 1, loc=part.mean(), scale=error)
        assert shown["interval"] == pytest.approx(list(expected), rel=1e-6)
