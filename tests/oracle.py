"""What the tests of scores share: raw rows, the way they take into a store, and their oracles.

`ORACLES` has one row for each score that the package emits, by task: what scikit-learn (or, where
it has none, the literal definition) says of the same raw rows. Undefined is NaN there and absent
here. Averages are taken over the classes where a measure is defined, `zero_division=np.nan`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import isclose, isnan, nan
from typing import Any, NamedTuple

import numpy as np
import sklearn
from sklearn import metrics as sk

from metrics import payload
from metrics.counters import Vector, add
from metrics.errors import ConstantsDiffer
from metrics.evaluators import Known, evaluate
from metrics.model_settings import ModelSettings
from metrics.scores.view import Scored, naming, score_vector, task_of, vector_of
from metrics.state import Constants, Delta, Entry, Gauge, ModelState
from metrics.store import MemoryStore, Store
from metrics.windows import ALL_TIME, Pane, Window

MODEL = "namespace/deployment/predictor/model"
EXACT = 1e-9
"""Relative error that the order of float sums may make."""


@dataclass(frozen=True)
class Rows:
    """Raw rows of one model, the settings it is served with, and so what there is to know."""

    settings: ModelSettings
    truth: Any
    """(N,) columns, (N, L) zeros and ones, or (N,) or (N, outputs) numbers."""
    prediction: Any
    """Likewise; of a classifier what it decided."""
    probabilities: Any = None
    """(N, K), where there are any."""

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def task(self) -> str:
        """The model's task."""
        return self.settings.task

    @cached_property
    def counts(self) -> Any:
        """[[TN, FP], [FN, TP]] of each class that was seen, or of each label."""
        return sk.multilabel_confusion_matrix(self.truth, self.prediction)

    def part(self, chosen: Any) -> Rows:
        """The rows that a slice or an array of indices chooses."""
        probabilities = None if self.probabilities is None else self.probabilities[chosen]
        return Rows(self.settings, self.truth[chosen], self.prediction[chosen], probabilities)

    def chunks(self, sizes: Iterable[int]) -> Iterator[Rows]:
        """The rows cut into events of the given sizes, as many as are needed."""
        at = 0
        for size in sizes:
            if at >= len(self):
                return
            yield self.part(slice(at, at + size))
            at += size


def classifier(settings: ModelSettings, truth: Any, probabilities: Any) -> Rows:
    """Rows of a classifier that decides by its probabilities as the settings say."""
    if settings.task == "binary":
        positive = settings.positive
        hits = probabilities[:, positive] >= settings.threshold
        return Rows(settings, truth, np.where(hits, positive, 1 - positive), probabilities)
    return Rows(settings, truth, probabilities.argmax(axis=1), probabilities)


# --- the way into a store -------------------------------------------------------------------


def feedback(rows: Rows) -> payload.Feedback:
    """The feedback event that says `rows`."""
    truth, prediction = rows.truth.tolist(), rows.prediction.tolist()
    if rows.probabilities is not None:
        prediction = rows.probabilities.tolist()
        if rows.task == "binary" and len(rows) % 2:  # one number a row says it as well
            prediction = [pair[rows.settings.positive] for pair in prediction]
    elif rows.settings.classes:
        truth, prediction = (
            [rows.settings.classes[column] for column in side] for side in (truth, prediction)
        )
    return payload.parse(
        {"truth": {"data": {"ndarray": truth}}, "response": {"data": {"ndarray": prediction}}}
    )


def entry(
    rows: Rows,
    constants: Constants,
    panes: tuple[Pane, ...] = (ALL_TIME,),
    digest: bytes = b"",
    late: bool = False,
) -> Entry:
    """One event's contribution, evaluated under the constants that its server knows."""
    evaluation = evaluate(feedback(rows), rows.settings, Known(constants))
    if late:
        evaluation.vector()["late"] = {(): 1}
    return Entry(
        MODEL,
        digest,
        panes,
        evaluation.increment,
        {key: Gauge(value, 0.0) for key, value in evaluation.gauges.items()},
        evaluation.constants,
        again=lambda known: entry(rows, known, panes, digest, late),
    )


def by_pane(delta: Delta) -> dict[tuple[str, Pane], Vector]:
    """What a commit adds, by model and pane."""
    found: dict[tuple[str, Pane], Vector] = {}
    for (model, panes), vector in delta.groups.items():
        for pane in panes:
            add(found.setdefault((model, pane), {}), vector)
    return found


def commit(store: Store, entries: Sequence[Entry], now: float = 0.0) -> list[bool]:
    """Commit as the committer does: what presupposes other constants is evaluated again."""
    for _ in range(3):
        constants = dict(store.read().constants(MODEL))
        settled = []
        for each in entries:
            if any(constants.get(name, fact) != fact for name, fact in each.constants.items()):
                assert each.again is not None
                each = each.again(constants)
            constants.update(each.constants)
            settled.append(each)
        try:
            return store.commit(settled, now)
        except ConstantsDiffer:
            continue
    raise AssertionError("constants kept differing, although nobody else writes")


@dataclass
class Stream:
    """A model whose events come one after the other."""

    settings: ModelSettings
    store: MemoryStore = field(default_factory=lambda: MemoryStore(86400))

    def send(self, rows: Rows) -> None:
        """Count one event of `rows`."""
        commit(self.store, [entry(rows, self.store.read().constants(MODEL))])

    @property
    def state(self) -> ModelState:
        """All that is known of the model."""
        return self.store.read().models[MODEL]

    def scored(self, window: Window | None = None, now: float = 0.0) -> Scored:
        """What the model's counters of a window, or of all time, tell."""
        return scored(self.state, self.settings, vector_of(self.state, window, now))


def scored(state: ModelState, settings: ModelSettings, vector: Any) -> Scored:
    """What one vector of a model tells."""
    return score_vector(vector, task_of(state, settings), settings, naming(state, settings))


# --- the oracles ----------------------------------------------------------------------------


class Oracle(NamedTuple):
    """What a score has to be."""

    ask: Callable[[Rows], float]
    """The value of raw rows, NaN where it is undefined."""
    binned: bool = False
    """The score is read from bins: the value lies within its bounds."""


def _averages() -> dict[str, Oracle]:
    """Measures of a class, averaged."""
    calls: dict[str, Callable[..., float]] = {
        "precision": sk.precision_score,
        "recall": sk.recall_score,
        "f1": sk.f1_score,
    }
    table = {}
    for average in ("macro", "micro", "weighted"):
        for name, call in calls.items():
            table[f"{name}_{average}"] = Oracle(partial(_averaged, call, average))
        table[f"fbeta_{average}"] = Oracle(partial(_fbeta, average))
        table[f"jaccard_{average}"] = Oracle(partial(_jaccard, average))
        table[f"specificity_{average}"] = Oracle(partial(_specificity, average))
    return table


def _averaged(call: Callable[..., float], average: str, rows: Rows) -> float:
    return call(rows.truth, rows.prediction, average=average, zero_division=np.nan)


def _fbeta(average: str, rows: Rows) -> float:
    return _averaged(partial(sk.fbeta_score, beta=rows.settings.beta), average, rows)


def _jaccard(average: str, rows: Rows) -> float:
    """Of the classes that were seen, so that scikit-learn has nothing to replace."""
    seen = rows.counts[:, 0, 0] < len(rows)
    if not seen.any():
        return nan
    labels = None if rows.truth.ndim == 1 else np.flatnonzero(seen)
    return sk.jaccard_score(rows.truth, rows.prediction, average=average, labels=labels)


def _specificity(average: str, rows: Rows) -> float:
    """TN / (TN + FP); scikit-learn has its counts only."""
    counts = rows.counts
    if average == "micro":
        counts = counts.sum(axis=0, keepdims=True)
    negatives, support = counts[:, 0].sum(axis=1), counts[:, 1].sum(axis=1)
    defined = negatives > 0
    if not defined.any():
        return nan
    values = counts[defined, 0, 0] / negatives[defined]
    weights = support[defined] if average == "weighted" and support[defined].any() else None
    return float(np.average(values, weights=weights))


def _of_positive(call: Callable[..., float], rows: Rows) -> float:
    positive = rows.settings.positive
    return call(
        rows.truth == positive, rows.prediction == positive, average="binary", zero_division=np.nan
    )


def _positive_jaccard(rows: Rows) -> float:
    truth, prediction = (side == rows.settings.positive for side in (rows.truth, rows.prediction))
    return sk.jaccard_score(truth, prediction) if (truth | prediction).any() else nan


def _positive_specificity(rows: Rows) -> float:
    return _of_positive(
        sk.recall_score,
        Rows(rows.settings, 1 - rows.truth, 1 - rows.prediction),
    )


def _matthews(rows: Rows) -> float:
    if np.ptp(rows.truth) == 0 or np.ptp(rows.prediction) == 0:
        return nan  # scikit-learn says 0 of 0/0
    return sk.matthews_corrcoef(rows.truth, rows.prediction)


def _kappa(rows: Rows) -> float:
    if len({*rows.truth, *rows.prediction}) == 1:
        return nan
    return sk.cohen_kappa_score(rows.truth, rows.prediction)


def _columns(rows: Rows) -> range:
    return range(rows.probabilities.shape[1])


def _log_loss(rows: Rows) -> float:
    return sk.log_loss(rows.truth, rows.probabilities, labels=_columns(rows))


def _brier(rows: Rows) -> float:
    if len(_columns(rows)) == 2:
        return sk.brier_score_loss(rows.truth, rows.probabilities[:, 1], labels=[0, 1], pos_label=1)
    return sk.brier_score_loss(rows.truth, rows.probabilities, labels=_columns(rows))


def calibration_error(rows: Rows) -> float:
    """Literally Guo et al. 2017, 15 bins; scikit-learn has none."""
    confidence = rows.probabilities.max(axis=1)
    right = rows.probabilities.argmax(axis=1) == rows.truth
    total = 0.0
    for bin in range(15):
        inside = (confidence >= bin / 15) & (confidence < (bin + 1) / 15)
        if bin == 14:
            inside |= confidence == 1
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
    return total


def _top_k(rows: Rows) -> float:
    k, columns = rows.settings.k, _columns(rows)
    if len(columns) == 2:
        return sk.top_k_accuracy_score(rows.truth, rows.probabilities[:, 1], k=k, labels=[0, 1])
    return sk.top_k_accuracy_score(rows.truth, rows.probabilities, k=k, labels=columns)


def _scored_columns(rows: Rows) -> Sequence[int]:
    """Of two classes the positive one, else all."""
    if len(_columns(rows)) == 2:
        return [rows.settings.positive if rows.task == "binary" else 1]
    return _columns(rows)


def _roc_auc(average: str, rows: Rows) -> float:
    columns = _scored_columns(rows)
    if len(set(rows.truth)) == len(columns) > 2:
        return sk.roc_auc_score(rows.truth, rows.probabilities, multi_class="ovr", average=average)
    values, supports = [], []
    for column in columns:
        truth = rows.truth == column
        if 0 < truth.sum() < len(rows):
            values.append(sk.roc_auc_score(truth, rows.probabilities[:, column]))
            supports.append(truth.sum())
    if not values:
        return nan
    return float(np.average(values, weights=supports if average == "weighted" else None))


def _average_precision(rows: Rows) -> float:
    values = [
        sk.average_precision_score(rows.truth == column, rows.probabilities[:, column])
        for column in _scored_columns(rows)
        if (rows.truth == column).any()
    ]
    return float(np.mean(values)) if values else nan


def _where_probable(ask: Callable[[Rows], float], rows: Rows) -> float:
    return nan if rows.probabilities is None else ask(rows)


def _regressor(call: Callable[..., float], rows: Rows) -> float:
    return call(rows.truth, rows.prediction)


def _where_spread(call: Callable[..., float], rows: Rows) -> float:
    if len(rows) < 2 or (np.ptp(rows.truth, axis=0) == 0).any():
        return nan
    return call(rows.truth, rows.prediction)


def _percentage_error(rows: Rows) -> float:
    """Of rows whose truth is not 0: scikit-learn divides those by the smallest float there is."""
    values = []
    for truth, prediction in zip(_outputs(rows.truth), _outputs(rows.prediction), strict=True):
        if not truth.any():
            return nan
        values.append(sk.mean_absolute_percentage_error(truth[truth != 0], prediction[truth != 0]))
    return float(np.mean(values))


def _outputs(side: Any) -> Any:
    return np.atleast_2d(side.T)


_AGREEMENT = {
    "accuracy": Oracle(lambda rows: sk.accuracy_score(rows.truth, rows.prediction)),
    "balanced_accuracy": Oracle(
        lambda rows: sk.balanced_accuracy_score(rows.truth, rows.prediction)
    ),
    "matthews_corrcoef": Oracle(_matthews),
    "cohen_kappa": Oracle(_kappa),
}
_PROBABILITIES = {
    "log_loss": Oracle(partial(_where_probable, _log_loss)),
    "brier_score": Oracle(partial(_where_probable, _brier)),
    "expected_calibration_error": Oracle(partial(_where_probable, calibration_error)),
    "top_k_accuracy": Oracle(partial(_where_probable, _top_k)),
    "roc_auc_ovr": Oracle(partial(_where_probable, partial(_roc_auc, "macro")), binned=True),
    "average_precision": Oracle(partial(_where_probable, _average_precision), binned=True),
}
ORACLES: Mapping[str, Mapping[str, Oracle]] = {
    "multiclass": {
        **_AGREEMENT,
        **_averages(),
        **_PROBABILITIES,
        "roc_auc_ovr_weighted": Oracle(
            partial(_where_probable, partial(_roc_auc, "weighted")), binned=True
        ),
    },
    "binary": {
        **_AGREEMENT,
        **_averages(),
        **_PROBABILITIES,
        "precision": Oracle(partial(_of_positive, sk.precision_score)),
        "recall": Oracle(partial(_of_positive, sk.recall_score)),
        "f1": Oracle(partial(_of_positive, sk.f1_score)),
        "fbeta": Oracle(
            lambda rows: _of_positive(partial(sk.fbeta_score, beta=rows.settings.beta), rows)
        ),
        "jaccard": Oracle(_positive_jaccard),
        "specificity": Oracle(_positive_specificity),
    },
    "multilabel": {
        **_averages(),
        "subset_accuracy": Oracle(lambda rows: sk.accuracy_score(rows.truth, rows.prediction)),
        "hamming_loss": Oracle(lambda rows: sk.hamming_loss(rows.truth, rows.prediction)),
    },
    "regression": {
        "mean_absolute_error": Oracle(partial(_regressor, sk.mean_absolute_error)),
        "mean_squared_error": Oracle(partial(_regressor, sk.mean_squared_error)),
        "root_mean_squared_error": Oracle(partial(_regressor, sk.root_mean_squared_error)),
        "mean_error": Oracle(lambda rows: float(np.mean(rows.prediction - rows.truth))),
        "mean_absolute_percentage_error": Oracle(_percentage_error),
        "r2": Oracle(partial(_where_spread, sk.r2_score)),
        "explained_variance": Oracle(partial(_where_spread, sk.explained_variance_score)),
        "median_absolute_error": Oracle(partial(_regressor, sk.median_absolute_error), binned=True),
    },
}


# --- comparing ------------------------------------------------------------------------------


def differences(scored: Scored, rows: Rows) -> list[str]:
    """Where scores, their bounds and their intervals contradict the oracles on the same rows."""
    found = [f"{name} has no oracle" for name in scored.scores if name not in ORACLES[rows.task]]
    with (
        warnings.catch_warnings(),
        sklearn.config_context(skip_parameter_validation=True, assume_finite=True),  # faster
    ):
        warnings.simplefilter("ignore")  # scikit-learn's, of what is undefined
        for name, oracle in ORACLES[rows.task].items():
            value, expected = scored.scores.get(name, nan), float(oracle.ask(rows))
            if isnan(value) or isnan(expected):
                agrees = isnan(value) and isnan(expected)
            elif oracle.binned:
                low, high = scored.bounds[name]
                agrees = low - 1e-12 <= expected <= high + 1e-12 and low <= value <= high
            else:
                agrees = isclose(value, expected, rel_tol=EXACT, abs_tol=1e-12)
            if not agrees:
                bounds = scored.bounds.get(name, "")
                found.append(f"{name} is {value}, should be {expected} {bounds}")
    for name, (low, high) in scored.intervals.items():
        if not low <= scored.scores[name] <= high:
            found.append(f"{name} is {scored.scores[name]}, outside its interval {low} to {high}")
    return found


__all__ = ["MODEL", "ORACLES", "Oracle", "Rows", "Stream", "classifier", "commit", "differences"]
