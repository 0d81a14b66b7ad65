"""Scores of classifiers from true positives, false negatives and false positives by class.

All take a number of steps linear in the classes, whatever the history and however many cells the
confusion matrix has.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from .ratio import mean, ratio, weighted_mean


class Counts(NamedTuple):
    """One class against the rest of `rows` rows."""

    name: str
    hits: int
    """True positives."""
    misses: int
    """False negatives."""
    alarms: int
    """False positives."""
    rows: int
    mixed: int = 0
    """Rows whose truth and prediction differ and both count as this class: misses and alarms."""

    @property
    def support(self) -> int:
        """Rows whose truth is this class."""
        return self.hits + self.misses

    @property
    def predicted(self) -> int:
        """Rows predicted as this class."""
        return self.hits + self.alarms

    @property
    def rejections(self) -> int:
        """True negatives."""
        return self.rows - self.hits - self.misses - self.alarms + self.mixed

    @property
    def seen(self) -> bool:
        """Whether any truth or prediction was of this class."""
        return bool(self.hits or self.misses or self.alarms)

    def precision(self) -> float | None:
        """TP / (TP + FP); undefined where the class was never predicted."""
        return ratio(self.hits, self.hits + self.alarms)

    def recall(self) -> float | None:
        """TP / (TP + FN); undefined where the class was never the truth."""
        return ratio(self.hits, self.hits + self.misses)

    def specificity(self) -> float | None:
        """TN / (TN + FP); undefined where every truth was of this class."""
        return ratio(self.rejections, self.rows - self.support)

    def f1(self) -> float | None:
        """2 TP / (2 TP + FP + FN); undefined where the class was never seen."""
        return ratio(2 * self.hits, 2 * self.hits + self.alarms + self.misses)

    def fbeta(self, beta: float) -> float | None:
        """(1 + β²) TP / ((1 + β²) TP + FP + β² FN); undefined where the class was never seen."""
        square = beta * beta
        weighed = (1 + square) * self.hits
        return ratio(weighed, weighed + self.alarms + square * self.misses)

    def jaccard(self) -> float | None:
        """TP / (TP + FP + FN); undefined where the class was never seen."""
        return ratio(self.hits, self.hits + self.alarms + self.misses)


def averages(classes: Sequence[Counts], beta: float) -> dict[str, float | None]:
    """Precision, recall, F1, Jaccard (and F-beta) as macro, micro and weighted averages.

    Over the classes where each is defined: scikit-learn with `zero_division=np.nan`. A class of
    which no row is says nothing, so `classes` should leave it out.
    """
    measures = {
        "precision": [each.precision() for each in classes],
        "recall": [each.recall() for each in classes],
        "f1": [each.f1() for each in classes],
        "jaccard": [each.jaccard() for each in classes],
        "specificity": [each.specificity() for each in classes],
    }
    if beta:
        measures["fbeta"] = [each.fbeta(beta) for each in classes]
    supports = [each.support for each in classes]
    scores: dict[str, float | None] = {}
    for name, values in measures.items():
        scores[f"{name}_macro"] = mean(values)
        scores[f"{name}_weighted"] = weighted_mean(values, supports)
    pooled = pool(classes)
    scores["precision_micro"] = pooled.precision()
    scores["recall_micro"] = pooled.recall()
    scores["f1_micro"] = pooled.f1()
    scores["jaccard_micro"] = pooled.jaccard()
    scores["specificity_micro"] = pooled.specificity()
    if beta:
        scores["fbeta_micro"] = pooled.fbeta(beta)
    return scores


def pool(classes: Sequence[Counts]) -> Counts:
    """All classes' counts as one, for micro averages."""
    return Counts(
        "",
        sum(each.hits for each in classes),
        sum(each.misses for each in classes),
        sum(each.alarms for each in classes),
        sum(each.rows for each in classes),
        sum(each.mixed for each in classes),
    )


def of_positive(positive: Counts, beta: float) -> dict[str, float | None]:
    """A binary model's scores of its positive class."""
    scores = {
        "precision": positive.precision(),
        "recall": positive.recall(),
        "f1": positive.f1(),
        "jaccard": positive.jaccard(),
        "specificity": positive.specificity(),
    }
    if beta:
        scores["fbeta"] = positive.fbeta(beta)
    return scores


def _geometric_mean(one: int, other: int) -> float:
    """The root of the product; exact where both are the same, so of a classifier without errors."""
    return one if one == other else sqrt(one * other)


def agreement(classes: Sequence[Counts], rows: int) -> dict[str, float | None]:
    """Accuracy, balanced accuracy, Matthews' correlation and Cohen's kappa.

    Exact integers up to the last division. Sources: scikit-learn; Gorodkin 2004 for more than two
    classes. The correlation is undefined where truth or prediction has one class only, kappa where
    both have but the same one. Both are undefined, too, where classes that count as one were mixed
    up: how often these would agree by chance is not known.
    """
    hits = sum(each.hits for each in classes)
    totals = [(each.support, each.predicted) for each in classes]
    chance = sum(support * predicted for support, predicted in totals)
    truths = rows * rows - sum(support * support for support, _ in totals)
    predictions = rows * rows - sum(predicted * predicted for _, predicted in totals)
    scores = {
        "accuracy": ratio(hits, rows),
        "balanced_accuracy": mean(each.recall() for each in classes),
    }
    if any(each.mixed for each in classes):
        return {**scores, "matthews_corrcoef": None, "cohen_kappa": None}
    return {
        **scores,
        "matthews_corrcoef": ratio(hits * rows - chance, _geometric_mean(truths, predictions)),
        "cohen_kappa": ratio(hits * rows - chance, rows * rows - chance),
    }
