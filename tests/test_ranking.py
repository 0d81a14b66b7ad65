"""Rankings from bins: the exact value lies within the bounds, and the bounds are narrow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from math import fsum
from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

from metrics.bins import LOGITS_A_UNIT, MAX_LOGIT_BIN, logit_bin, score_of
from metrics.counters import Labels
from metrics.histograms import of
from metrics.model_settings import ModelSettings
from metrics.scores import model_view
from metrics.scores.arrays import _precision_sums, rank_all
from metrics.scores.ranking import (
    MAX_CURVE_POINTS,
    Bounded,
    Histogram,
    _precision_sum,
    average_precision,
    mean_bounded,
    rank,
    roc_auc,
    roc_curve,
    thinned,
)
from tests.oracle import MODEL, Rows, Stream, calibration_error, classifier

ROUNDING = 1e-12


def _histogram(truth: Any, scores: Any) -> Histogram:
    histogram: Histogram = defaultdict(lambda: [0, 0])
    for true, score in zip(truth.tolist(), scores.tolist(), strict=True):
        histogram[logit_bin(score)][true] += 1
    return dict(histogram)


def _cells(histograms: dict[str, Histogram]) -> dict[Labels, int]:
    """The family `scores` that these histograms are read from."""
    return {
        (key, str(bin), str(side)): number
        for key, histogram in histograms.items()
        for bin, sides in histogram.items()
        for side, number in enumerate(sides)
        if number
    }


# --- generated cases ------------------------------------------------------------------------


class Case(NamedTuple):
    """Truths (0 or 1) and scores of rows."""

    truth: Any
    scores: Any


def _expit(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits))


SHAPES: dict[str, Callable[[Any, Any], Any]] = {
    "spread": lambda rng, lift: _expit(rng.normal(0, 1.5, len(lift)) + lift),
    "skewed": lambda rng, lift: _expit(rng.normal(-9, 1, len(lift)) + lift),
    "very skewed": lambda rng, lift: _expit(rng.normal(-25, 5, len(lift)) + 4 * lift),
    "far apart": lambda rng, lift: _expit(rng.normal(0, 8, len(lift)) + 4 * lift),
    "close together": lambda rng, lift: 0.5 + 0.01 * rng.normal(0, 1, len(lift)) + 0.01 * lift,
    "ties": lambda rng, lift: np.round(_expit(rng.normal(0, 1.5, len(lift)) + lift), 1),
    "ties of close scores": lambda rng, lift: 0.5 + rng.integers(0, 4, len(lift)) / 1000,
    "only 0, 1 and between": lambda rng, lift: rng.choice([0.0, 1e-300, 0.5, 1.0], len(lift)),
    "all the same": lambda rng, lift: np.full(len(lift), 0.3),
}


def _case(rng: Any, shape: str, rows: int, prevalence: float) -> Case:
    """Rows of both kinds; positives score higher by a random lift."""
    truth = (rng.random(rows) < prevalence).astype(int)
    truth[:2] = 0, 1
    return Case(truth, SHAPES[shape](rng, rng.uniform(-0.5, 3) * truth))


def _cases(shape: str, number: int) -> Iterator[Case]:
    """Of 2 to 400 rows and one positive in two to one in two hundred."""
    rng = np.random.default_rng(list(SHAPES).index(shape))
    for _ in range(number):
        rows = int(2 * 200 ** rng.random())
        yield _case(rng, shape, rows, 0.5 * 100 ** -rng.random())


def _exact_auc(case: Case) -> float:
    """The share of pairs that are in order, ties counting half."""
    positive = np.sort(case.scores[case.truth == 1])
    negative = np.sort(case.scores[case.truth == 0])
    below = negative.searchsorted(positive, "left") + negative.searchsorted(positive, "right")
    return float(below.mean() / 2 / len(negative))


def _exact_precision(case: Case) -> float:
    """Σ of precision times the recall gained, over the distinct scores."""
    distinct, at = np.unique(-case.scores, return_inverse=True)
    positives = np.bincount(at, case.truth, len(distinct))
    rows = np.bincount(at, minlength=len(distinct))
    precision = positives.cumsum() / rows.cumsum()
    return float(positives @ precision / positives.sum())


def _assert_inside(bounded: Bounded | None, exact: float, case: Case) -> None:
    assert bounded is not None
    rows = f"of {len(case.truth)} rows, {case.truth.sum()} positive"
    assert bounded.low <= bounded.value <= bounded.high, rows
    assert bounded.low - ROUNDING <= exact <= bounded.high + ROUNDING, rows


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_values_lie_within_the_bounds(shape: str) -> None:
    """AUC and average precision of 400 generated cases of each shape, 3600 in all."""
    for case in _cases(shape, 400):
        ranked = rank(_histogram(*case))
        assert (ranked.positives, ranked.negatives) == (case.truth.sum(), (1 - case.truth).sum())
        _assert_inside(ranked.auc, _exact_auc(case), case)
        _assert_inside(ranked.precision, _exact_precision(case), case)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_values_are_scikit_learns(shape: str) -> None:
    """What the generated cases are held against is what scikit-learn says, ties included."""
    for case in islice(_cases(shape, 400), 25):
        assert _exact_auc(case) == pytest.approx(sk.roc_auc_score(*case), rel=1e-12)
        assert _exact_precision(case) == pytest.approx(sk.average_precision_score(*case), rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "tolerance"),
    [
        ("spread", 1e-3),
        ("skewed", 1e-3),
        ("very skewed", 1e-3),
        ("far apart", 1e-3),
        ("ties", 1e-12),
        ("close together", 3e-2),
    ],
)
def test_the_midpoint_is_near(shape: str, tolerance: float) -> None:
    """AUC's midpoint is within 1e-3 from 1000 rows and 100 of the rarer kind on.

    With fewer rows chance decides which of two in a bin comes first: of 200 the midpoint can be
    off by 2e-3, of 20 by 3e-2. Where nearly all scores share a few bins (a standard deviation of
    0.04 in logits) it is off by up to 3e-2, and the bounds say so; where only ties share a bin it
    is exact.
    """
    rng = np.random.default_rng(0)
    for _ in range(40):
        rows = int(rng.integers(1000, 4000))
        case = _case(rng, shape, rows, max(130 / rows, 0.5 * 10 ** -rng.random()))
        assert case.truth.sum() >= 100
        found = roc_auc(_histogram(*case))
        assert found is not None
        assert found.value == pytest.approx(_exact_auc(case), abs=tolerance)
        assert found.high - found.low <= (0.4 if shape == "close together" else 0.15)


def test_a_ranking_of_one_kind_of_rows() -> None:
    """Without negatives there is no AUC and the precision is 1; without positives is neither."""
    assert roc_auc({0: [0, 5]}) is None
    assert average_precision({0: [0, 5]}) == (1.0, 1.0, 1.0)
    assert roc_auc({0: [5, 0]}) is None
    assert average_precision({0: [5, 0]}) is None
    assert rank({}) == (0, 0, None, None)
    assert mean_bounded([]) is None


def test_the_mean_of_bounded_scores_is_bounded() -> None:
    """Each bound is the mean of its kind, plain or weighted."""
    two = [Bounded(0.5, 0.4, 0.6), Bounded(0.9, 0.8, 1.0)]
    assert mean_bounded(two) == pytest.approx((0.7, 0.6, 0.8))
    assert mean_bounded(two, [3, 1]) == pytest.approx((0.6, 0.5, 0.7))


def test_the_vector_twin_ranks_alike() -> None:
    """All classes at once or one by one: the same numbers, whatever is counted how often."""
    rng = np.random.default_rng(1)
    for most in (1, 10, 10**4, 10**9):
        histograms: dict[str, Histogram] = {}
        for key in range(12):
            bins = rng.choice(2 * MAX_LOGIT_BIN + 1, int(rng.integers(1, 300)), replace=False)
            numbers = rng.integers(0, most + 1, (len(bins), 2)) * rng.integers(0, 2, (len(bins), 2))
            numbers[0, int(rng.integers(0, 2))] += 1  # a class that was never scored has no cells
            histograms[str(key)] = {
                int(bin) - MAX_LOGIT_BIN: sides
                for bin, sides in zip(bins, numbers.tolist(), strict=True)
            }
        found = rank_all(of(_cells(histograms)))
        assert list(found) == list(histograms)
        for key, histogram in histograms.items():
            expected = rank(histogram)
            assert found[key][:2] == expected[:2]
            for one, other in zip(found[key][2:], expected[2:], strict=True):
                if one is None or other is None:
                    assert one is other
                else:
                    assert one == pytest.approx(other, rel=1e-12, abs=1e-15)
                    assert one.low <= one.value <= one.high


# --- the closed form ------------------------------------------------------------------------


@pytest.mark.parametrize("false", [0, 1, 7, 31, 32, 33, 1000, 10**6, 10**9, 10**12])
@pytest.mark.parametrize("true", [0, 1, 30, 10**5])
def test_precision_sums_are_those_of_brute_force(true: int, false: int) -> None:
    """Σ (true + i)/(true + i + false) to a rounding error of each term, however large it gets."""
    sizes = [1, 2, 5, 31, 32, 33, 64, 1000, 3000]
    at_once = _precision_sums(
        np.full(len(sizes), float(true)), np.array(sizes, float), np.full(len(sizes), float(false))
    )
    for positives, twin in zip(sizes, at_once.tolist(), strict=True):
        brute = fsum((true + i) / (true + i + false) for i in range(1, positives + 1))
        assert abs(_precision_sum(true, positives, false) - brute) <= 3e-14 * positives
        assert abs(twin - brute) <= 3e-14 * positives


# --- bins, curves ---------------------------------------------------------------------------


def test_logit_bins_keep_the_order_of_scores() -> None:
    """From 0 over the smallest floats to 1: a higher score never has a lower bin."""
    scores = [0.0, 5e-324, 1e-300, *_expit(np.linspace(-40, 40, 20_001)), 1 - 2**-53, 1.0]
    bins = [logit_bin(float(score)) for score in scores]
    assert bins == sorted(bins)
    assert (bins[0], bins[-1]) == (-MAX_LOGIT_BIN, MAX_LOGIT_BIN)
    assert len(set(bins)) == 2 * MAX_LOGIT_BIN + 1


def test_a_bins_score_lies_in_its_middle() -> None:
    """The score that stands for a bin is of it, and its neighbours' are a step of logits away."""
    for bin in range(-MAX_LOGIT_BIN + 1, 36 * LOGITS_A_UNIT, 7):
        if abs(bin) < MAX_LOGIT_BIN:
            assert logit_bin(score_of(bin)) == bin


@pytest.mark.parametrize("shape", SHAPES)
def test_the_curve_is_that_of_the_bins(shape: str) -> None:
    """Its points are scikit-learn's for the bins, its area is the AUC's midpoint."""
    for case in islice(_cases(shape, 400), 20):
        histogram = _histogram(*case)
        points = np.array(roc_curve(histogram))
        bins = np.array([logit_bin(score) for score in case.scores.tolist()])
        fpr, tpr, _ = sk.roc_curve(case.truth, bins, drop_intermediate=False)
        assert points == pytest.approx(np.column_stack([fpr, tpr]))
        found = roc_auc(histogram)
        assert found is not None
        assert sk.auc(*points.T) == pytest.approx(found.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_exact_curve_runs_between_neighbouring_points(shape: str) -> None:
    """Each point of the exact curve lies in a rectangle that two neighbours of ours span."""
    for case in islice(_cases(shape, 400), 20):
        points = np.array(roc_curve(_histogram(*case)))
        fpr, tpr, _ = sk.roc_curve(*case, drop_intermediate=False)
        low, high = points[:-1] - ROUNDING, points[1:] + ROUNDING
        for point in np.column_stack([fpr, tpr]):
            assert ((low <= point) & (point <= high)).all(axis=1).any()


def test_no_curve_of_one_kind_of_rows() -> None:
    """Without positives or without negatives a rate is undefined."""
    assert roc_curve({3: [4, 0]}) == []
    assert roc_curve({3: [0, 4]}) == []


@pytest.mark.parametrize("positive", ["0", "1"])
@pytest.mark.parametrize("rows", [2, 40, 5000])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_view_has_the_curve_in_few_points(shape: str, rows: int, positive: str) -> None:
    """They are scikit-learn's of the bins, and the exact curve of the rows runs between them."""
    settings = ModelSettings(task="binary", positive_class=positive)
    case = _case(np.random.default_rng(rows), shape, rows, 0.3)
    column = settings.positive
    pairs = np.column_stack([1 - case.scores, case.scores])
    stream = _sent(classifier(settings, case.truth, pairs), (rows,))
    view = model_view(MODEL, stream.state, settings, 0.0, curves=True)
    curve = view["roc_curve"]
    false, true = curve["false_positive_rate"], curve["true_positive_rate"]
    assert 2 <= len(false) == len(true) <= MAX_CURVE_POINTS
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    truth = case.truth == column
    sign = 1 if column else -1  # one less a score near 0 would be rounded
    binned = [sign * logit_bin(score) for score in case.scores.tolist()]
    ours = np.column_stack([false, true])
    points = np.column_stack(sk.roc_curve(truth, binned, drop_intermediate=False)[:2])
    distances = np.abs(ours[:, None] - points[None]).max(axis=2).min(axis=1)
    assert distances.max() < 1e-12
    x, y, _ = sk.roc_curve(truth, sign * case.scores, drop_intermediate=False)
    low, high = ours[:-1] - ROUNDING, ours[1:] + ROUNDING
    exact = np.column_stack([x, y])[:, None]
    assert ((low <= exact) & (exact <= high)).all(axis=2).any(axis=1).all()
    steps = np.diff(false)
    low_area, high_area = (float(steps @ each) for each in (true[:-1], true[1:]))
    assert low_area - ROUNDING <= sk.auc(x, y) <= high_area + ROUNDING


def test_a_long_curve_is_thinned_evenly() -> None:
    """No two neighbours are farther apart than the step, unless nothing was between them."""
    histogram: Histogram = {bin: [1, 1] for bin in range(-1000, 1000)}
    histogram[5] = [1000, 0]
    whole, thin = roc_curve(histogram), thinned(roc_curve(histogram))
    assert len(whole) == 2001
    assert 40 < len(thin) <= MAX_CURVE_POINTS
    assert set(thin) <= set(whole)
    for before, after in pairwise(thin):
        gap = sum(after) - sum(before)
        assert gap <= 4 / (MAX_CURVE_POINTS - 2) or whole.index(after) == whole.index(before) + 1


def test_no_other_view_has_a_curve() -> None:
    """Not one of an emitted event, of three classes, or of one kind of rows."""
    rng = np.random.default_rng(1)
    settings = ModelSettings(task="binary")
    binary = _sent(
        classifier(settings, np.arange(40) % 2, rng.dirichlet(np.ones(2), 40)), (40,)
    ).state
    assert "roc_curve" not in model_view(MODEL, binary, settings, 0.0)
    assert "roc_curve" in model_view(MODEL, binary, settings, 0.0, curves=True)
    one = _sent(classifier(settings, np.ones(9, int), rng.dirichlet(np.ones(2), 9)), (9,)).state
    assert "roc_curve" not in model_view(MODEL, one, settings, 0.0, curves=True)
    settings = ModelSettings(task="multiclass")
    three = _sent(
        classifier(settings, np.arange(30) % 3, rng.dirichlet(np.ones(3), 30)), (30,)
    ).state
    assert "roc_curve" not in model_view(MODEL, three, settings, 0.0, curves=True)


# --- calibration, top-k ---------------------------------------------------------------------


def _sent(rows: Rows, sizes: tuple[int, ...]) -> Stream:
    """A model that was told the rows in events of the given sizes."""
    stream = Stream(rows.settings)
    for chunk in rows.chunks(sizes):
        stream.send(chunk)
    return stream


def _probabilities(seed: int, rows: int, classes: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.5), rows)
    return rng.integers(0, classes, rows), probabilities


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_reliability_bins_are_scikit_learns(classes: int) -> None:
    """Mean confidence and accuracy of each bin, and from them the expected calibration error."""
    truth, probabilities = _probabilities(classes, 500, classes)
    rows = classifier(ModelSettings(task="multiclass"), truth, probabilities)
    stream = _sent(rows, (1,) * 30 + (470,))
    confidence = probabilities.max(axis=1)
    accuracy, means = calibration_curve(rows.prediction == truth, confidence, n_bins=15)
    shown = model_view(MODEL, stream.state, rows.settings, 0.0)["calibration"]
    assert [each["confidence"] for each in shown] == pytest.approx(means.tolist())
    assert [each["accuracy"] for each in shown] == pytest.approx(accuracy.tolist())
    edges = [(each["from"], each["to"]) for each in shown]
    sizes = [int(((confidence >= low) & (confidence < high)).sum()) for low, high in edges]
    assert [each["rows"] for each in shown] == sizes
    assert sum(sizes) == 500
    error = stream.scored().scores["expected_calibration_error"]
    assert error == pytest.approx(calibration_error(rows), rel=1e-12)
    gaps = np.abs(accuracy - means)
    assert error == pytest.approx(gaps @ sizes / 500, rel=1e-12)


def test_a_perfectly_calibrated_model_errs_little_and_an_arrogant_one_much() -> None:
    """Truths drawn from the probabilities: near 0; always certain and half of it wrong: 0.5."""
    rng = np.random.default_rng(2)
    p = rng.random(20_000)
    settings = ModelSettings(task="binary")
    pairs = np.column_stack([1 - p, p])
    fair = _sent(classifier(settings, (rng.random(20_000) < p).astype(int), pairs), (20_000,))
    assert fair.scored().scores["expected_calibration_error"] < 0.015
    certain = np.column_stack([np.zeros(100), np.ones(100)])
    arrogant = _sent(classifier(settings, np.arange(100) % 2, certain), (100,))
    assert arrogant.scored().scores["expected_calibration_error"] == pytest.approx(0.5)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("sizes", [(1,) * 60, (60,)])
def test_top_k_is_scikit_learns_even_where_probabilities_tie(
    k: int, sizes: tuple[int, ...]
) -> None:
    """Hits among the k most probable of five classes, in events of one row and of many."""
    rng = np.random.default_rng(k)
    for probabilities in (
        rng.dirichlet(np.full(5, 0.5), 60),
        rng.multinomial(5, np.full(5, 0.2), 60) / 5,  # fifths: many ties
    ):
        truth = rng.integers(0, 5, 60)
        rows = classifier(ModelSettings(task="multiclass", k=k), truth, probabilities)
        expected = sk.top_k_accuracy_score(truth, probabilities, k=k, labels=range(5))
        assert _sent(rows, sizes).scored().scores["top_k_accuracy"] == pytest.approx(expected)


def test_hits_of_another_k_are_not_shown() -> None:
    """After k is changed only rows that were counted with the new one tell of it."""
    truth, probabilities = _probabilities(0, 40, 4)
    two = classifier(ModelSettings(task="multiclass", k=2), truth, probabilities)
    three = classifier(ModelSettings(task="multiclass", k=3), truth, probabilities)
    stream = Stream(three.settings)
    stream.send(two.part(slice(0, 30)))
    assert "top_k_accuracy" not in stream.scored().scores
    stream.send(three.part(slice(30, 40)))
    expected = sk.top_k_accuracy_score(truth[30:], probabilities[30:], k=3, labels=range(4))
    assert stream.scored().scores["top_k_accuracy"] == pytest.approx(expected)
