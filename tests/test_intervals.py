"""Intervals are those of the literature, and hold the truth as often as they say."""

from __future__ import annotations

from collections.abc import Callable
from math import copysign, erf, inf, nextafter, sqrt, ulp
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from metrics.alerts import SCORES
from metrics.exact import squared, to_units
from metrics.model_settings import ModelSettings
from metrics.scores.intervals import (
    Interval,
    auc_interval,
    f1_interval,
    mean_interval,
    normal_quantile,
    sample_variance,
    student_quantile,
    wilson,
)
from metrics.scores.ranges import RANGES, fixed, held, held_interval, range_of
from tests.oracle import Rows, Stream

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)
NOMINAL = 0.95


@pytest.mark.parametrize("level", LEVELS)
def test_the_normal_quantile_is_scipys(level: float) -> None:
    """z of each level to the last digits."""
    assert normal_quantile(level) == pytest.approx(stats.norm.ppf((1 + level) / 2), rel=1e-12)


@pytest.mark.parametrize("level", [0.01, 0.1, *LEVELS, 0.999999])
def test_students_quantile_is_scipys(level: float) -> None:
    """t of 1 to 1000 and of a billion degrees of freedom to 1e-5, and to 1e-9 from 30 on."""
    freedoms = np.array([*range(1, 1001), 10**9])
    found = np.array([student_quantile(int(freedom), level) for freedom in freedoms])
    errors = np.abs(found / stats.t.ppf((1 + level) / 2, freedoms) - 1)
    assert errors.max() < 1e-5
    assert errors[29:].max() < (1e-9 if level < 0.9999 else 2e-8)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", [1, 2, 7, 50, 1000])
def test_wilsons_bounds_solve_its_equation(n: int, level: float) -> None:
    """(p - hits/n)² = z² p(1 - p)/n at both bounds, which scipy finds as well."""
    z = stats.norm.ppf((1 + level) / 2)
    for hits in {0, 1, n // 3, n - 1, n}:
        found = wilson(hits, n, level)
        share = hits / n
        solved = np.sort(np.roots([1 + z * z / n, -(2 * share + z * z / n), share * share]))
        assert found == pytest.approx(tuple(solved), abs=1e-12)
        theirs = stats.binomtest(hits, n).proportion_ci(level, "wilson")
        assert found == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilsons_interval_holds_the_share_itself() -> None:
    """Rounding never leaves out the estimate, not even a share of 0 or 1; of nothing is none."""
    for n in range(1, 200):
        for hits in (0, 1, n - 1, n):
            low, high = _found(wilson(hits, n, NOMINAL))
            assert 0 <= low <= hits / n <= high <= 1
    assert wilson(0, 0, NOMINAL) is None


@pytest.mark.parametrize(("hits", "errors"), [(0, 5), (1, 0), (5, 5), (90, 17), (3, 1000)])
def test_the_f1_interval_is_wilsons_of_jaccard_mapped(hits: int, errors: int) -> None:
    """The bounds of F1, mapped back by F/(2 - F), are Wilson's of J = TP/(TP + FP + FN)."""
    theirs = stats.binomtest(hits, hits + errors).proportion_ci(NOMINAL, "wilson")
    low, high = _found(f1_interval(hits, errors, NOMINAL))
    assert (low / (2 - low), high / (2 - high)) == pytest.approx((theirs.low, theirs.high))
    assert low <= 2 * hits / (2 * hits + errors) <= high
    assert f1_interval(0, 0, NOMINAL) is None


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("n", [2, 3, 10, 500])
def test_the_interval_of_a_mean_is_scipys(n: int, level: float) -> None:
    """From (n, Σ, Σ²) as from the values themselves; of fewer than two there is none."""
    values = np.random.default_rng(n).gamma(2.0, size=n)
    total, squares = _sums(values)
    found = mean_interval(n, total, squares, level)
    theirs = stats.t.interval(level, n - 1, loc=values.mean(), scale=stats.sem(values))
    assert found == pytest.approx(theirs, rel=2e-5)
    assert sample_variance(n, total, squares) == pytest.approx(values.var(ddof=1), rel=1e-12)
    assert mean_interval(1, *_sums([1.0]), level) is None
    assert mean_interval(0, 0, 0, level) is None


def _sums(values: Any) -> tuple[int, int]:
    """Σx and Σx², in units."""
    each = [to_units(value) for value in values]
    return sum(each), sum(map(squared, each))


def test_a_variance_is_0_where_all_values_are_equal_and_else_positive() -> None:
    """However large they are beside their differences."""
    for x in (0.1, 1 / 3, 1e8 + 0.1, -1e70):
        for n in (2, 3, 7, 1000):
            assert sample_variance(n, *_sums([x] * n)) == 0
            variance = sample_variance(n, *_sums([*[x] * (n - 1), nextafter(x, inf)]))
            assert variance == pytest.approx(ulp(x) ** 2 / n, rel=1e-12)


def _hanley_mcneil(theta: float, abnormal: int, normal: int) -> float:
    """Standard error, formula 2 of Hanley and McNeil 1982 letter by letter."""
    q1 = theta / (2 - theta)
    q2 = 2 * theta**2 / (1 + theta)
    return sqrt(
        (theta * (1 - theta) + (abnormal - 1) * (q1 - theta**2) + (normal - 1) * (q2 - theta**2))
        / (abnormal * normal)
    )


@pytest.mark.parametrize("theta", [0.5, 0.7, 0.893, 0.99])
@pytest.mark.parametrize(("abnormal", "normal"), [(51, 58), (10, 1000), (1000, 10)])
def test_the_auc_interval_is_hanley_and_mcneils(theta: float, abnormal: int, normal: int) -> None:
    """z standard errors to both sides, cut at 0 and 1."""
    low, high = _found(auc_interval(theta, abnormal, normal, NOMINAL))
    spread = stats.norm.ppf(0.975) * _hanley_mcneil(theta, abnormal, normal)
    assert low == pytest.approx(theta - spread)
    assert high == pytest.approx(min(1, theta + spread))


@pytest.mark.parametrize(("abnormal", "normal"), [(1, 1), (5, 5), (51, 58), (10, 1000), (1000, 10)])
def test_the_interval_of_a_perfect_auc_is_no_point(abnormal: int, normal: int) -> None:
    """It ends where the perfect AUC is z standard errors away; with one pair it is Wilson's."""
    low, high = _found(auc_interval(1.0, abnormal, normal, NOMINAL))
    z = stats.norm.ppf((1 + NOMINAL) / 2)
    assert high == 1
    assert 0 < low < 1
    assert 1 - low == pytest.approx(z * _hanley_mcneil(low, abnormal, normal))
    nearer = (1 + low) / 2
    assert 1 - nearer < z * _hanley_mcneil(nearer, abnormal, normal)
    if abnormal * normal == 1:
        assert low == pytest.approx(_found(wilson(1, 1, NOMINAL))[0])
    low, high = _found(auc_interval(0.0, abnormal, normal, NOMINAL))
    assert low == 0
    assert high == pytest.approx(z * _hanley_mcneil(high, abnormal, normal))


def test_an_auc_of_one_kind_of_rows_has_no_interval() -> None:
    """Without positives or without negatives there is nothing to rank."""
    assert auc_interval(0.5, 0, 10, NOMINAL) is None
    assert auc_interval(0.5, 10, 0, NOMINAL) is None


# --- coverage: how often the interval holds the truth ---------------------------------------


def _found(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


def _coverage(intervals: list[Interval | None], truth: float) -> float:
    """The share of samples whose interval holds the truth; a sample without one counts as not."""
    return float(np.mean([each is not None and each[0] <= truth <= each[1] for each in intervals]))


@pytest.mark.parametrize(
    ("n", "least", "most"), [(10, 0.90, 0.995), (30, 0.91, 0.985), (100, 0.925, 0.97)]
)
def test_wilsons_coverage(n: int, least: float, most: float) -> None:
    """95 % on average over shares of 2 to 98 %, and for each of them within the stated band."""
    rng = np.random.default_rng(n)
    intervals = np.array([wilson(hits, n, NOMINAL) for hits in range(n + 1)])
    shares = np.linspace(0.02, 0.98, 49)
    coverages = []
    for share in shares:
        low, high = intervals[rng.binomial(n, share, 4000)].T
        coverages.append(np.mean((low <= share) & (share <= high)))
    assert np.mean(coverages) == pytest.approx(NOMINAL, abs=0.01)
    assert least <= min(coverages) <= max(coverages) <= most


NORMAL = (lambda rng, n: rng.normal(3.0, 2.0, n), 3.0)
SKEWED = (lambda rng, n: rng.exponential(1.0, n), 1.0)


@pytest.mark.parametrize(
    ("population", "n", "least", "most"),
    [
        (NORMAL, 2, 0.935, 0.965),
        (NORMAL, 10, 0.935, 0.965),
        (NORMAL, 100, 0.935, 0.965),
        (SKEWED, 30, 0.91, 0.95),
        (SKEWED, 200, 0.93, 0.96),
    ],
)
def test_students_coverage(population: Any, n: int, least: float, most: float) -> None:
    """95 % of means of normal values; of very skewed ones a little less until there are many."""
    draw, truth = population
    rng = np.random.default_rng(n)
    samples = [draw(rng, n) for _ in range(3000)]
    intervals = [mean_interval(n, *_sums(x), NOMINAL) for x in samples]
    assert least <= _coverage(intervals, truth) <= most


@pytest.mark.parametrize("n", [50, 300])
@pytest.mark.parametrize(("prevalence", "recall"), [(0.1, 0.6), (0.5, 0.8)])
def test_f1_coverage(n: int, prevalence: float, recall: float) -> None:
    """The F1 of the population lies in 93.5 to 97 % of the intervals of its samples."""
    rng = np.random.default_rng(n)
    tp, fn, fp = prevalence * recall, prevalence * (1 - recall), 0.1 * (1 - prevalence)
    samples = rng.multinomial(n, [tp, fn, fp, 1 - tp - fn - fp], 3000).tolist()
    intervals = [f1_interval(hits, fn + fp, NOMINAL) for hits, fn, fp, _ in samples]
    assert 0.935 <= _coverage(intervals, 2 * tp / (2 * tp + fn + fp)) <= 0.97


@pytest.mark.parametrize(
    ("positives", "negatives", "least", "most"),
    [(20, 20, 0.89, 0.95), (100, 100, 0.935, 0.975), (30, 300, 0.94, 0.995)],
)
@pytest.mark.parametrize("separation", [0.5, 1.2, 2.0])
def test_auc_coverage(
    positives: int, negatives: int, least: float, most: float, separation: float
) -> None:
    """Near 95 % for normal scores; Hanley and McNeil err to the safe side where negatives abound.

    With 20 of each kind it is 90 % and more.
    """
    rng = np.random.default_rng(positives)
    truth = 0.5 * (1 + erf(separation / 2))
    intervals = []
    for _ in range(1500):
        ranks = np.sort(rng.normal(0, 1, negatives)).searchsorted(
            rng.normal(separation, 1, positives)
        )
        auc = ranks.sum() / (positives * negatives)
        intervals.append(auc_interval(auc, positives, negatives, NOMINAL))
    assert least <= _coverage(intervals, truth) <= most


# --- the intervals that scores are shown with -----------------------------------------------


def _shown(settings: ModelSettings, truth: Any, prediction: Any, probabilities: Any = None) -> Any:
    stream = Stream(settings)
    stream.send(Rows(settings, np.asarray(truth), np.asarray(prediction), probabilities))
    return stream.scored().intervals


def _wilson(hits: int, n: int, level: float) -> Any:
    theirs = stats.binomtest(hits, n).proportion_ci(level, "wilson")
    return pytest.approx((theirs.low, theirs.high))


def test_a_classifiers_intervals() -> None:
    """Each proportion's n is its own denominator; micro averages of labels are the accuracy."""
    settings = ModelSettings(task="binary", confidence=0.9)
    truth, prediction = [1] * 12 + [0] * 28, [1] * 8 + [0] * 4 + [1] * 6 + [0] * 22
    shown = _shown(settings, truth, prediction)
    assert shown["accuracy"] == _wilson(30, 40, 0.9)
    for name in ("precision_micro", "recall_micro", "f1_micro"):
        assert shown[name] == shown["accuracy"]
    assert shown["precision"] == _wilson(8, 14, 0.9)
    assert shown["recall"] == _wilson(8, 12, 0.9)
    assert shown["specificity"] == _wilson(22, 28, 0.9)
    assert shown["jaccard"] == _wilson(8, 18, 0.9)
    assert shown["f1"] == f1_interval(8, 10, 0.9)


def test_the_intervals_of_probabilities() -> None:
    """Log-loss and Brier score are means of rows: Student's t; the AUC has Hanley and McNeil's."""
    rng = np.random.default_rng(0)
    p = rng.random(60)
    truth = (rng.random(60) < p).astype(int)
    settings = ModelSettings(task="binary", k=1)
    shown = _shown(settings, truth, p >= 0.5, np.column_stack([1 - p, p]))
    for name, each in (
        ("log_loss", -np.log(np.where(truth == 1, p, 1 - p))),
        ("brier_score", (truth - p) ** 2),
    ):
        theirs = stats.t.interval(0.95, 59, loc=each.mean(), scale=stats.sem(each))
        assert shown[name] == pytest.approx(theirs, rel=1e-6), name
    assert shown["top_k_accuracy"] == shown["accuracy"]
    low, high = shown["roc_auc_ovr"]
    positives = int(truth.sum())
    auc = roc_auc_score(truth, p)
    spread = stats.norm.ppf(0.975) * _hanley_mcneil(auc, positives, 60 - positives)
    assert low <= auc - spread
    assert high >= min(1, auc + spread)
    assert high - low <= 2 * spread + 0.02  # and no wider than its bounds make it


@pytest.mark.parametrize("seed", range(40))
def test_an_aucs_interval_is_one_of_every_auc_that_its_bounds_allow(seed: int) -> None:
    """Where few bins tell the scores apart, too: it holds the interval of the exact AUC."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 400))
    truth = (rng.random(n) < rng.choice([0.1, 0.5])).astype(int)
    truth[:2] = 0, 1
    spread = rng.choice([0.001, 0.05, 1.0])  # of logits; a bin is 1/32
    p = 1 / (1 + np.exp(-(spread * rng.normal(size=n) + spread * rng.integers(0, 3) * truth)))
    settings = ModelSettings(task="binary")
    stream = Stream(settings)
    stream.send(Rows(settings, truth, p >= 0.5, np.column_stack([1 - p, p])))
    scored = stream.scored()
    low, high = scored.intervals["roc_auc_ovr"]
    auc, positives = roc_auc_score(truth, p), int(truth.sum())
    own = _found(auc_interval(auc, positives, n - positives, 0.95))
    assert low <= own[0] + 1e-12
    assert own[1] <= high + 1e-12
    bounds = scored.bounds["roc_auc_ovr"]
    for end in np.linspace(*bounds, 50):
        own = _found(auc_interval(end, positives, n - positives, 0.95))
        assert low <= own[0] + 1e-12, end
        assert own[1] <= high + 1e-12, end


def test_scores_of_one_bin_say_nothing_of_the_auc() -> None:
    """Twenty thousand rows in perfect order within one bin: the bounds are all there is."""
    p = np.linspace(0.5, 0.5002, 20_000)
    truth = (np.arange(20_000) >= 10_000).astype(int)
    shown = _shown(ModelSettings(task="binary"), truth, p >= 0.5, np.column_stack([1 - p, p]))
    assert shown["roc_auc_ovr"] == (0, 1)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("rows", [2, 3, 10])
def test_intervals_stay_in_the_range_of_their_scores(columns: int, rows: int) -> None:
    """Few rows, one of them surely wrong: no loss below 0, no Brier score above what it can be."""
    p = np.full((rows, columns), 0.0)
    p[:, 0] = 1.0
    p[0] = np.eye(columns)[1]
    p[1] = np.full(columns, 1 / columns)
    truth = np.zeros(rows, int)
    settings = ModelSettings(task="multiclass")
    stream = Stream(settings)
    stream.send(Rows(settings, truth, p.argmax(axis=1), p))
    scored = stream.scored()
    most = 1 if columns == 2 else 2
    for name, end in (("brier_score", most), ("log_loss", -np.log(np.finfo(float).eps))):
        low, high = scored.intervals[name]
        assert 0 <= low <= scored.scores[name] <= high <= end, name
    low, high = scored.intervals["brier_score"]
    assert (low, high) == (0, most) or rows == 10
    shown = _shown(ModelSettings(task="regression"), [0.0, 0.0], [0.0, 1.0])
    assert shown["mean_absolute_error"][0] == 0
    assert shown["mean_error"][0] < -5


def test_every_score_has_a_range() -> None:
    """One table: a score without a range would have neither its interval cut nor its rounding."""
    assert set(RANGES) == SCORES


@given(st.sampled_from(sorted(RANGES)), st.floats(-40, 40), st.floats(0, 40))
def test_what_is_held_is_in_range(score: str, low: float, length: float) -> None:
    """Ends are moved into the range and around the score; no end is the negative zero."""
    least, most = range_of(score)
    value = min(max(low, least), most)
    found = held_interval((low, low + length), value, (least, most))
    assert least <= found[0] <= value <= found[1] <= most
    assert copysign(1, held(-0.0, (least, most))) == 1
    assert all(copysign(1, end) == 1 for end in held_interval((-0.0, -0.0), 0.0, (-1, 1)))


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        (0.99996, 4, "0.9999"),
        (1 - 1e-16, 6, "0.999999"),
        (-0.99999, 3, "-0.999"),
        (1.99996, 4, "1.9999"),
        (1.00004, 4, "1.0000"),
        (1.0, 4, "1.0000"),
        (0.00004, 4, "4.000e-05"),
        (-1e-300, 6, "-1.00000e-300"),
        (-0.0, 4, "0.0000"),
        (0.0, 3, "0.000"),
        (0.5, 0, "5e-01"),
        (12.3456, 2, "12.35"),
    ],
)
def test_rounding_reaches_no_bound(number: float, digits: int, text: str) -> None:
    """Neither 0 nor 1 nor 2 are told of a score that is not."""
    assert fixed(number, digits) == text


@pytest.mark.parametrize(
    ("name", "of"), [("mean_absolute_error", np.abs), ("mean_error", lambda error: error)]
)
def test_a_regressors_intervals(name: str, of: Callable[[Any], Any]) -> None:
    """Mean absolute error and bias are means of rows."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=50)
    prediction = truth + rng.normal(0.2, 0.5, 50)
    each = of(prediction - truth)
    theirs = stats.t.interval(0.95, 49, loc=each.mean(), scale=stats.sem(each))
    shown = _shown(ModelSettings(task="regression"), truth, prediction)
    assert shown[name] == pytest.approx(theirs, rel=1e-6)


def test_a_multilabel_models_intervals() -> None:
    """Subset accuracy is a share of rows, Hamming loss one of cells."""
    truth, prediction = [[1, 0], [1, 1], [0, 0], [0, 1]], [[1, 0], [0, 1], [0, 0], [1, 0]]
    shown = _shown(ModelSettings(task="multilabel"), truth, prediction)
    assert shown["subset_accuracy"] == _wilson(2, 4, 0.95)
    assert shown["hamming_loss"] == _wilson(3, 8, 0.95)
