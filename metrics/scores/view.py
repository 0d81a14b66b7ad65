"""One model's counters -> all its scores, and the JSON view that every renderer starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from heapq import nsmallest
from typing import Any

from .. import exact
from ..alerts import alerts_view
from ..bins import CALIBRATION_BINS
from ..counters import NO_LABELS, OTHER, Labels, Number, Packed, Vector, merge, net, value
from ..evaluators.classification import MAX_SCORED_CLASSES
from ..model_settings import ModelSettings
from ..state import ModelState
from ..windows import ALL_TIME, Pane, Window, panes_of
from . import intervals as interval
from .classification import Counts, agreement, averages, of_positive
from .coverage import HALVES, coverage_view
from .ranges import Range, held, held_interval, plain, range_of
from .ranking import Bounded, Histogram, Ranked, mean_bounded, rank, roc_curve, thinned
from .ratio import mean, ratio
from .regression import Output, error_bounds, outputs_of

MAX_MATRIX = 50
"""Classes up to which a view holds the whole confusion matrix."""
MAX_CLASSES_SHOWN = 100
"""Classes a view lists; of more, those with the largest support."""
TOP_CONFUSIONS = 20
ALL = "all"
"""The name of the window that is all time."""


@dataclass(frozen=True)
class Naming:
    """Class keys -> the names shown, and which classes exist although no row was of them."""

    names: tuple[str, ...]
    columns: int

    def __call__(self, key: str) -> str:
        """The name of a class: its column's, or the label as written."""
        return self._names.get(key, key)

    def order(self, name: str) -> tuple[int, float, str]:
        """Sort key: columns first, then numbers, then words, the folded rest last."""
        if name == OTHER:
            return 3, 0, name
        column = self._columns.get(name)
        if column is not None:
            return 0, column, name
        try:
            return 1, float(name), name
        except ValueError:
            return 2, 0, name

    def known(self, most: int) -> Iterable[str]:
        """The names of the columns ever seen, of the first `most` of them."""
        return (self(str(column)) for column in range(min(self.columns, most)))

    @cached_property
    def _names(self) -> dict[str, str]:
        return {str(column): name for column, name in enumerate(self.names)}

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {name: column for column, name in enumerate(self.names)}


def naming(state: ModelState, settings: ModelSettings) -> Naming:
    """How the classes of a model are called: by its settings, else by what its events said."""
    names = settings.classes or tuple(state.constants.get("names", ()))
    columns = state.gauges.get(("columns", NO_LABELS))
    return Naming(names, max(int(columns.value) if columns else 0, len(names)))


def task_of(state: ModelState, settings: ModelSettings) -> str:
    """The task of a model: as set, else as its first events decided, else multiclass so far."""
    if settings.task != "auto":
        return settings.task
    return str(state.constants.get("task", "multiclass"))


@dataclass
class Scored:
    """What one vector (a model's all-time, window or segment counters) tells."""

    vector: Vector
    task: str
    settings: ModelSettings
    naming: Naming
    scores: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, vector: Vector) -> Scored:
        """The counts of another vector of the same model, without its scores."""
        return Scored(vector, self.task, self.settings, self.naming)

    @property
    def rows(self) -> int:
        """Rows compared with their truth."""
        return int(value(self.vector, "rows"))

    @property
    def events(self) -> int:
        """Events counted, each once."""
        return int(value(self.vector, "events"))

    @cached_property
    def classes(self) -> list[Counts]:
        """Every known class against the rest, in order; all labels of a multilabel model."""
        most = self.settings.max_classes if self.task == "multilabel" else MAX_CLASSES_SHOWN
        counts: dict[str, list[int]] = {name: [0, 0, 0] for name in self.naming.known(most)}
        families = ("true_positives", "false_negatives", "false_positives")
        for at, family in enumerate(families):
            for (key,), number in self.vector.get(family, {}).items():
                counts.setdefault(self.naming(key), [0, 0, 0])[at] += int(number)
        rows = self.rows
        if self.task != "multilabel":
            rows = sum(hits + misses for hits, misses, _ in counts.values())
        mixed = self._mixed
        rows_of = dict.fromkeys(counts, rows)
        if self.task == "multilabel" and OTHER in counts:  # a row has several such labels
            folded = int(value(self.vector, "cells", OTHER))
            rows_of[OTHER] = max(folded, sum(counts[OTHER]))  # of older versions: not counted
        return [
            Counts(name, hits, misses, alarms, rows_of[name], mixed.get(name, 0))
            for name, (hits, misses, alarms) in sorted(
                counts.items(), key=lambda item: self.naming.order(item[0])
            )
        ]

    @property
    def _mixed(self) -> dict[str, int]:
        """Class name -> rows whose truth and prediction are different classes of that name."""
        cells = self.vector.get("confusion")
        if not cells:
            return {}
        if not self._has_aliases:
            rows = int(cells.get((OTHER, OTHER), 0))
            return {OTHER: rows} if rows else {}
        mixed: dict[str, int] = {}
        for (truth, prediction), number in cells.items():
            name = self.naming(truth)
            if name == self.naming(prediction):
                mixed[name] = mixed.get(name, 0) + int(number)
        return mixed

    @property
    def positive(self) -> Counts:
        """A binary model's positive class, which no row may be of."""
        name = self.naming(str(self.settings.positive))
        rows = self.classes[0].rows if self.classes else 0
        unseen = Counts(name, 0, 0, 0, rows)
        return next((each for each in self.classes if each.name == name), unseen)

    def range_of(self, score: str) -> Range:
        """The range that a score of this model can have."""
        return range_of(score, 2 if self.task == "binary" else self.naming.columns)

    @cached_property
    def confusion(self) -> dict[tuple[str, str], int]:
        """(truth, prediction) -> rows; the cells that are not 0."""
        cells = {(each.name, each.name): each.hits for each in self.classes if each.hits}
        for (truth, prediction), number in self.vector.get("confusion", {}).items():
            cell = (self.naming(truth), self.naming(prediction))
            cells[cell] = cells.get(cell, 0) + int(number)
        return cells

    @property
    def _has_aliases(self) -> bool:
        """Whether a class was counted by its name before its column was known."""
        families = ("false_negatives", "false_positives")
        names = _as_labels(tuple(self.naming.names))
        return not all(names.isdisjoint(self.vector.get(family, ())) for family in families)

    def top_confusions(self, most: int) -> list[tuple[tuple[str, str], int]]:
        """The largest cells off the diagonal; of equal ones the first by name."""
        if self._has_aliases:
            named = self.confusion
        else:  # only what is as large as the smallest of them is worth a name
            cells = self.vector.get("confusion", {})
            least = min(sorted(cells.values())[-most - 1 :], default=0)
            named = {
                (self.naming(truth), self.naming(prediction)): int(number)
                for (truth, prediction), number in cells.items()
                if number >= least
            }
        wrong = (item for item in named.items() if item[0][0] != item[0][1])
        return nsmallest(most, wrong, key=lambda item: (-item[1], item[0]))

    @cached_property
    def histograms(self) -> dict[str, Histogram]:
        """Class name -> its histogram of scores; {} where none is kept."""
        histograms: dict[str, Histogram] = {}
        for (key, bin, positive), number in self._score_cells.items():
            cells = histograms.setdefault(self.naming(key), {}).setdefault(int(bin), [0, 0])
            cells[positive == "1"] += int(number)
        return histograms

    @cached_property
    def ranked(self) -> dict[str, Ranked]:
        """Class name -> what its histogram tells."""
        if isinstance(self._score_cells, Packed) and not self._has_aliases:
            from .arrays import rank_all

            ranked = rank_all(self._score_cells)
            return {self.naming(key): each for key, each in ranked.items()}
        return {name: rank(histogram) for name, histogram in self.histograms.items()}

    @cached_property
    def _score_cells(self) -> Mapping[Labels, Number]:
        """(class, bin, positive) -> rows; of two classes the positive one has them.

        That is the second, or the one that the settings name: its scores are one less the other's.
        """
        cells = self.vector.get("scores", {})
        if self.naming.columns > MAX_SCORED_CLASSES:
            return {}
        if self.task == "binary" and self.settings.positive == 0:
            if isinstance(cells, Packed):
                return cells.turned("0")
            return {
                ("0", str(-int(bin)), "0" if positive == "1" else "1"): number
                for (_, bin, positive), number in cells.items()
            }
        return cells

    @cached_property
    def outputs(self) -> list[Output]:
        """The outputs of a regression, in order."""
        return outputs_of(self.vector)


@lru_cache(maxsize=128)
def _as_labels(names: tuple[str, ...]) -> frozenset[Labels]:
    return frozenset((name,) for name in names)


def score_vector(vector: Vector, task: str, settings: ModelSettings, naming: Naming) -> Scored:
    """All scores of one vector; undefined ones are absent."""
    scored = Scored(vector, task, settings, naming)
    found: dict[str, float | None] = {}
    if task == "regression":
        _regression(scored, found)
    elif task == "multilabel":
        found.update(averages(scored.classes, settings.beta))
        rows = scored.rows
        found["subset_accuracy"] = ratio(value(vector, "subset_hits"), rows)
        errors = sum(each.misses + each.alarms for each in scored.classes)
        found["hamming_loss"] = ratio(errors, value(vector, "cells"))
        _keep(scored, "subset_accuracy", value(vector, "subset_hits"), rows)
        _keep(scored, "hamming_loss", errors, value(vector, "cells"))
    elif scored.classes:
        _classification(scored, found)
        _probabilities(scored, found)
    scored.scores = {  # all ranges hold what lies between 0 and 1
        name: number if 0 < number < 1 else held(number, scored.range_of(name))
        for name, number in found.items()
        if number is not None
    }
    for name, ends in scored.intervals.items():
        score = scored.scores.get(name)
        if score is None or not 0 < ends[0] <= score <= ends[1] < 1:
            scored.intervals[name] = held_interval(ends, score, scored.range_of(name))
    return scored


def _classification(scored: Scored, found: dict[str, float | None]) -> None:
    classes, level = [each for each in scored.classes if each.seen], scored.settings.confidence
    rows = scored.classes[0].rows
    hits = sum(each.hits for each in classes)
    found.update(agreement(classes, rows))
    found.update(averages(classes, scored.settings.beta))
    for name in ("accuracy", "precision_micro", "recall_micro", "f1_micro"):  # all the same
        _keep(scored, name, hits, rows)
    if scored.task != "binary":
        return
    positive = scored.positive
    found.update(of_positive(positive, scored.settings.beta))
    _keep(scored, "precision", positive.hits, positive.predicted)
    _keep(scored, "recall", positive.hits, positive.support)
    _keep(
        scored,
        "specificity",
        positive.rejections,
        positive.rejections + positive.alarms,
    )
    union = positive.hits + positive.misses + positive.alarms
    _keep(scored, "jaccard", positive.hits, union)
    _keep_interval(scored, "f1", interval.f1_interval(positive.hits, union - positive.hits, level))


def _probabilities(scored: Scored, found: dict[str, float | None]) -> None:
    vector, level = scored.vector, scored.settings.confidence
    n = int(value(vector, "probability_rows"))
    if not n:
        return
    for name, family in (("log_loss", "log_loss"), ("brier_score", "brier")):
        total = max(0, exact.units(vector, family))
        found[name] = exact.mean(total, n)
        squares = exact.units(vector, f"{family}_squared")
        _keep_interval(scored, name, interval.mean_interval(n, total, squares, level))
    sums, hits = vector.get("calibration_confidence", {}), vector.get("calibration_hits", {})
    gaps = [
        abs((int(hits.get(bin, 0)) << exact.BITS) - int(sums.get(bin, 0)))
        for bin in vector.get("calibration_rows", ())
    ]
    found["expected_calibration_error"] = exact.mean(sum(gaps), n)
    k = str(scored.settings.k)
    top_rows = int(value(vector, "top_k_rows", k))
    found["top_k_accuracy"] = ratio(value(vector, "top_k_hits", k), top_rows)
    _keep(scored, "top_k_accuracy", value(vector, "top_k_hits", k), top_rows)
    _ranking(scored, found)


def _ranking(scored: Scored, found: dict[str, float | None]) -> None:
    """Means over the classes where each is defined, as scikit-learn's one-vs-rest."""
    ranked = scored.ranked.values()
    aucs = [(each.auc, each.positives) for each in ranked if each.auc]
    precisions = [each.precision for each in ranked if each.precision]
    _keep_bounded(scored, found, "average_precision", mean_bounded(precisions))
    _keep_bounded(scored, found, "roc_auc_ovr", mean_bounded([auc for auc, _ in aucs]))
    if scored.task != "binary":
        weights = [positives for _, positives in aucs]
        weighted = mean_bounded([auc for auc, _ in aucs], weights)
        _keep_bounded(scored, found, "roc_auc_ovr_weighted", weighted)
    if len(ranked) == 1:
        (only,) = ranked
        if only.auc:
            level = scored.settings.confidence
            _keep_interval(
                scored,
                "roc_auc_ovr",
                interval.bounded_auc_interval(
                    (only.auc.low, only.auc.high), only.positives, only.negatives, level
                ),
            )


def _keep_bounded(
    scored: Scored, found: dict[str, float | None], name: str, bounded: Bounded | None
) -> None:
    if bounded:
        found[name] = bounded.value
        scored.bounds[name] = bounded.low, bounded.high


def _regression(scored: Scored, found: dict[str, float | None]) -> None:
    """Each score averaged over the outputs, as scikit-learn's `uniform_average`."""
    outputs, level = scored.outputs, scored.settings.confidence
    if not outputs:
        return
    each = [output.scores() for output in outputs]
    for name in each[0]:
        values = [scores[name] for scores in each]
        found[name] = None if None in values else mean(values)
    median = found["median_absolute_error"]
    if median is not None:
        scored.bounds["median_absolute_error"] = error_bounds(median)
    if len(outputs) > 1:
        return
    (only,) = outputs
    for name, total in (("mean_absolute_error", only.absolute), ("mean_error", only.error)):
        _keep_interval(scored, name, interval.mean_interval(only.rows, total, only.squared, level))


def _keep(scored: Scored, name: str, hits: float, n: float) -> None:
    _keep_interval(scored, name, interval.wilson(hits, n, scored.settings.confidence))


def _keep_interval(scored: Scored, name: str, found: tuple[float, float] | None) -> None:
    if found is not None:
        scored.intervals[name] = found


# --- windows and segments -------------------------------------------------------------------


def vector_of(state: ModelState, window: Window | None, now: float, segment: str = "") -> Vector:
    """The counters of a window at `now` (epoch seconds), or of all time where it is None."""
    if window is None:
        return net(state.panes.get(Pane(0, 0, segment), {}) if segment else state.all_time)
    panes = state.panes
    return net(merge(panes[pane] for pane in panes_of(window, now, segment) if pane in panes))


def segments_of(state: ModelState) -> list[str]:
    """The segments (`key=value`) a model has counters of, sorted."""
    return sorted({pane.segment for pane in state.panes if pane.width == 0 and pane.segment})


# --- the view -------------------------------------------------------------------------------


def model_view(
    model: str,
    state: ModelState,
    settings: ModelSettings,
    now: float,
    window: Window | None = None,
    segment: str = "",
    segments: bool = False,
    curves: bool = False,
) -> dict[str, Any]:
    """One model as JSON, for the API and the emitted event; see docs/reference/view-and-events.md.

    With `curves` it has the ROC curve of a model of two classes, which emitted events leave out.
    """
    names = naming(state, settings)
    task = task_of(state, settings)
    scored = score_vector(vector_of(state, window, now, segment), task, settings, names)
    view: dict[str, Any] = {"id": model}
    view.update(
        zip(("namespace", "deployment", "predictor", "model"), model.split("/"), strict=True)
    )
    view.update(
        task=task,
        window=window.name if window else ALL,
        events=scored.events,
        rows=scored.rows,
        scores=scored.scores,
        intervals=scored.intervals,
        bounds=scored.bounds,
    )
    if segment:
        view["segment"] = segment
    view.update(_details(scored))
    if curves:
        view.update(_curve(scored))
    if not HALVES.isdisjoint(state.all_time):
        view["join"] = coverage_view(state.all_time)
    if settings.alerts:
        view["alerts"] = alerts_view(settings.alerts, state.constants)
    if segments:
        view["segments"] = [
            _segment(each, vector_of(state, window, now, each), task, settings, names)
            for each in segments_of(state)
        ]
    return view


def _segment(
    segment: str, vector: Vector, task: str, settings: ModelSettings, names: Naming
) -> dict[str, Any]:
    scored = score_vector(vector, task, settings, names)
    key, _, label = segment.partition("=")
    return {
        "segment": key,
        "value": label,
        "events": scored.events,
        "rows": scored.rows,
        "scores": scored.scores,
        "intervals": scored.intervals,
    }


def _details(scored: Scored) -> dict[str, Any]:
    details: dict[str, Any] = {}
    if scored.task == "regression":
        details["outputs"] = [_output(output) for output in scored.outputs]
    elif scored.classes:
        shown = _largest(scored.classes, MAX_CLASSES_SHOWN)
        details["classes"] = [_class(scored, each) for each in shown]
        if len(shown) < len(scored.classes):
            details["classes_omitted"] = len(scored.classes) - len(shown)
        if scored.task != "multilabel":
            details.update(_confusions(scored))
        if scored.vector.get("calibration_rows"):
            details["calibration"] = _calibration(scored.vector)
    if scored.vector.get("rewards"):
        details["reward"] = reward_view(scored.vector, NO_LABELS, scored.settings.confidence)
        routes = sorted(labels for labels in scored.vector["rewards"] if labels)
        if routes:
            details["reward"]["routes"] = [
                {"route": labels[0]}
                | reward_view(scored.vector, labels, scored.settings.confidence)
                for labels in routes
            ]
    return details


def _largest(classes: Sequence[Counts], most: int) -> Sequence[Counts]:
    if len(classes) <= most:
        return classes
    kept = set(sorted(classes, key=lambda each: -each.support)[:most])
    return [each for each in classes if each in kept]


def _class(scored: Scored, each: Counts) -> dict[str, Any]:
    measures: dict[str, float | None] = {
        "precision": each.precision(),
        "recall": each.recall(),
        "f1": each.f1(),
        "specificity": each.specificity(),
        "jaccard": each.jaccard(),
    }
    if scored.settings.beta:
        measures["fbeta"] = each.fbeta(scored.settings.beta)
    view: dict[str, Any] = {"class": each.name, "support": each.support}
    ranked = scored.ranked.get(each.name)
    if ranked:
        measures["roc_auc"] = ranked.auc.value if ranked.auc else None
        measures["average_precision"] = ranked.precision.value if ranked.precision else None
    view.update((name, number) for name, number in measures.items() if number is not None)
    return view


def _confusions(scored: Scored) -> dict[str, Any]:
    """The matrix (rows: truth, columns: prediction), or past MAX_MATRIX the largest confusions."""
    labels = [each.name for each in scored.classes]
    if len(labels) > MAX_MATRIX:
        return {
            "top_confusions": [
                {"truth": truth, "prediction": prediction, "count": n}
                for (truth, prediction), n in scored.top_confusions(TOP_CONFUSIONS)
            ]
        }
    cells = scored.confusion
    return {
        "confusion_matrix": {
            "labels": labels,
            "matrix": [
                [cells.get((truth, prediction), 0) for prediction in labels] for truth in labels
            ],
        }
    }


def _calibration(vector: Vector) -> list[dict[str, Any]]:
    """The reliability bins that hold rows: mean confidence against accuracy."""
    families = ("calibration_rows", "calibration_confidence", "calibration_hits")
    counts, confidences, hits = [vector.get(family, {}) for family in families]
    bins = []
    for bin in range(CALIBRATION_BINS):
        labels = (str(bin),)
        rows = int(counts.get(labels, 0))
        if rows:
            bins.append(
                {
                    "from": bin / CALIBRATION_BINS,
                    "to": (bin + 1) / CALIBRATION_BINS,
                    "rows": rows,
                    "confidence": exact.mean(int(confidences.get(labels, 0)), rows),
                    "accuracy": hits.get(labels, 0) / rows,
                }
            )
    return bins


def _curve(scored: Scored) -> dict[str, Any]:
    """The ROC curve where one histogram tells it; see `ranking.roc_curve`."""
    if scored.task not in ("binary", "multiclass") or len(scored.histograms) != 1:
        return {}
    (histogram,) = scored.histograms.values()
    points = thinned(roc_curve(histogram))
    if not points:
        return {}
    false, true = zip(*points, strict=True)
    return {"roc_curve": {"false_positive_rate": false, "true_positive_rate": true}}


def _output(output: Output) -> dict[str, Any]:
    scores = {
        name: held(number, range_of(name))
        for name, number in output.scores().items()
        if number is not None
    }
    return {
        "output": output.name,
        "rows": output.rows,
        "scores": scores,
        "absolute_error_quantiles": output.quantiles(),
    }


def reward_view(
    vector: Mapping[str, Mapping[Labels, Number]], labels: Labels, level: float
) -> dict[str, Any]:
    """Count, sum, mean, variance and interval of the rewards under `labels`."""
    n = int(value(vector, "rewards", *labels))
    positive, negative, offset, squares = [
        exact.units(vector, f"reward_{each}", *labels)
        for each in ("positive", "negative", "offset", "offset_squared")
    ]
    total = positive - negative
    view: dict[str, Any] = {"count": n, "sum": exact.from_units(total)}
    average = exact.mean(total, n)
    if average is not None:
        view["mean"] = plain(average)
    variance = interval.sample_variance(n, offset, squares)
    about = interval.mean_interval(n, offset, squares, level)
    if variance is not None and about is not None and average is not None:
        shift = exact.from_units(total - offset) / n  # the origin
        view["variance"] = variance
        view["interval"] = [plain(about[0] + shift), plain(about[1] + shift)]
    return view


__all__ = ["ALL", "ALL_TIME", "Naming", "Scored", "model_view", "naming", "score_vector"]
