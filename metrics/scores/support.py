"""How many rows stand behind one score: what a rule's `rows` are held against."""

from __future__ import annotations

from collections.abc import Callable

from ..counters import value
from .classification import Counts
from .view import Scored

_OF_PROBABILITIES = frozenset(
    (
        *("log_loss", "brier_score", "expected_calibration_error"),
        *("roc_auc_ovr", "roc_auc_ovr_weighted", "average_precision"),
    )
)
_OF_POSITIVE: dict[str, Callable[[Counts], int]] = {
    "precision": lambda positive: positive.predicted,
    "recall": lambda positive: positive.support,
    "specificity": lambda positive: positive.rows - positive.support,
    **dict.fromkeys(
        ("f1", "jaccard", "fbeta"), lambda positive: positive.predicted + positive.misses
    ),
}
"""Score of a binary model's positive class -> the rows that it is a share of."""


def rows_behind(scored: Scored, score: str) -> int:
    """The rows that a score was counted of; of several outputs, those of the one with the fewest.

    A row without a probability does not stand behind a log loss, nor one whose truth is 0 behind a
    percentage error. Averages over classes stand on all rows.
    """
    vector = scored.vector
    if scored.task == "regression":
        percentage = score == "mean_absolute_percentage_error"
        rows = [each.percentage_rows if percentage else each.rows for each in scored.outputs]
        return min(rows, default=0)
    if scored.task == "multilabel":
        return scored.rows
    if score in _OF_PROBABILITIES:
        return int(value(vector, "probability_rows"))
    if score == "top_k_accuracy":
        return int(value(vector, "top_k_rows", str(scored.settings.k)))
    if scored.task == "binary" and score in _OF_POSITIVE:
        return _OF_POSITIVE[score](scored.positive)
    return scored.classes[0].rows if scored.classes else 0
