"""The one score of a model that is shown before all others, and its trend.

It is a quotient of two sums, so it is told of a pane without any other score, and of a window
without merging its panes: what a list of many models costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..counters import Vector, net, value
from ..exact import BITS
from ..state import ModelState
from ..windows import ALL_TIME, Pane, Window, panes_of
from .intervals import Interval, mean_interval, wilson
from .ranges import held, held_interval, range_of
from .ratio import ratio

FEW_ROWS = 30
"""Below as many rows a score can still be anything."""
POOLS = (1, 2, 3, 5)
"""Panes that a moment of a trend may be made of."""


class Headline(NamedTuple):
    """A score, its interval where it has one, and the rows it was counted of."""

    score: str
    value: float | None
    interval: Interval | None
    rows: int


class Moment(NamedTuple):
    """One pane or several: the start in epoch seconds, the rows, and the score if defined."""

    start: int
    rows: int
    value: float | None


def headline_score(task: str) -> str:
    """The name of the task's headline score."""
    return HEADLINES.get(task, "accuracy")


def headline(
    state: ModelState, window: Window | None, now: float, task: str, level: float
) -> Headline:
    """The headline score over `window` at `now`, or over all time; as the model's view has it."""
    score = headline_score(task)
    panes = (ALL_TIME,) if window is None else panes_of(window, now)
    vectors = [net(state.panes[pane]) for pane in panes if pane in state.panes]
    above, below = _added(map(_PARTS[score], vectors))
    rows = sum(int(value(vector, "rows")) for vector in vectors)
    interval = None
    if score != "mean_absolute_error":
        interval = wilson(above, below, level)
    elif below == rows << BITS:  # one output
        squares = sum(_sum(vector, "squared_error") for vector in vectors)
        interval = mean_interval(rows, above, squares, level)
    value_of = ratio(above, below)
    within = range_of(score)
    if value_of is not None:
        value_of = held(value_of, within)
    if interval is not None:
        interval = held_interval(interval, value_of, within)
    return Headline(score, value_of, interval, rows)


def trend(state: ModelState, window: Window, now: float, task: str) -> list[Moment]:
    """The headline score over `window` at `now`, oldest first.

    A moment is as few panes as give it FEW_ROWS rows on average, or as many as may be: with fewer
    a trend is mostly noise.
    """
    parts = _PARTS[headline_score(task)]
    panes = list(panes_of(window, now))
    vectors = [net(state.panes.get(pane, {})) for pane in panes]
    rows = [int(value(vector, "rows")) for vector in vectors]
    filled = sum(each > 0 for each in rows)
    pool = next((each for each in POOLS if each * sum(rows) >= FEW_ROWS * filled), POOLS[-1])
    moments = []
    for end in range(len(panes), 0, -pool):
        start = max(0, end - pool)
        score = ratio(*_added(map(parts, vectors[start:end])))
        moments.append(Moment(_start(panes[start]), sum(rows[start:end]), score))
    return moments[::-1]


def _start(pane: Pane) -> int:
    return pane.index * pane.width


def _added(sums: Iterable[tuple[int, int]]) -> tuple[int, int]:
    above = below = 0
    for one, other in sums:
        above += one
        below += other
    return above, below


def _sum(vector: Vector, family: str) -> int:
    return int(sum(vector.get(family, {}).values()))


def _accuracy(vector: Vector) -> tuple[int, int]:
    hits = _sum(vector, "true_positives")
    return hits, hits + _sum(vector, "false_negatives")


HEADLINES = {
    "binary": "accuracy",
    "multiclass": "accuracy",
    "multilabel": "subset_accuracy",
    "regression": "mean_absolute_error",
}
"""Task -> the score that is shown first."""
_PARTS: dict[str, Callable[[Vector], tuple[int, int]]] = {
    "accuracy": _accuracy,
    "subset_accuracy": lambda vector: (_sum(vector, "subset_hits"), _sum(vector, "rows")),
    "mean_absolute_error": lambda vector: (
        max(0, _sum(vector, "absolute_error")),
        _sum(vector, "targets") << BITS,
    ),
}
"""Score -> the sums it is the quotient of."""
