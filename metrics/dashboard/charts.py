"""Numbers -> SVG geometry: text of attributes, nothing else. Templates put it on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from ..scores.headline import Moment
from ..scores.intervals import wilson

SIDE = 240
"""Length of the axes of a square chart."""
LEVELS = 10
"""Shades of a heat map."""


class Bar(NamedTuple):
    """A rectangle."""

    x: str
    y: str
    width: str
    height: str


@dataclass(frozen=True)
class Line:
    """A score over time in a box of `width` × `height`, with a bar for the rows of each moment."""

    width: int
    height: int
    low: float
    """The value at the lower edge."""
    high: float
    lowest: float
    """The least value that was drawn."""
    highest: float
    path: str
    dots: Sequence[tuple[str, str]]
    """Moments without a defined neighbour, which no stroke would show, and the last one."""
    bars: Sequence[Bar]
    filled: int
    """Moments that hold rows."""
    moments: int
    most_rows: int


def line(moments: Sequence[Moment], width: int, height: int, bars: int = 0) -> Line | None:
    """`moments` from left to right, `bars` units at the bottom for rows; None without any value."""
    values = [each.value for each in moments if each.value is not None]
    if not values:
        return None
    lowest, highest = min(values), max(values)
    low, high = _range(lowest, highest)
    step = width / len(moments)
    room = height - bars

    def place(at: int, value: float) -> tuple[str, str]:
        y = 2 + (room - 4) * (1 - (value - low) / (high - low))
        return _text((at + 0.5) * step), _text(y)

    runs: list[list[tuple[str, str]]] = [[]]
    for at, moment in enumerate(moments):
        if moment.value is None:
            runs.append([])
        else:
            runs[-1].append(place(at, moment.value))
    runs = [run for run in runs if run]
    most = max(each.rows for each in moments)
    return Line(
        width=width,
        height=height,
        low=low,
        high=high,
        lowest=lowest,
        highest=highest,
        path=" ".join("M" + "L".join(map(" ".join, run)) for run in runs if len(run) > 1),
        dots=[run[0] for run in runs[:-1] if len(run) == 1] + [runs[-1][-1]],
        bars=[
            _bar(at * step + step * 0.1, height, step * 0.8, bars * each.rows / most)
            for at, each in enumerate(moments)
            if bars and each.rows
        ],
        filled=sum(each.rows > 0 for each in moments),
        moments=len(moments),
        most_rows=most,
    )


def _range(low: float, high: float) -> tuple[float, float]:
    """An axis a little longer than the values', never so short that noise fills it."""
    is_share = low >= 0 and high <= 1
    least = 0.1 if is_share else 0.05 * max(abs(low), abs(high))
    spare = max(least - (high - low), (high - low) * 0.1) / 2
    below, above = low - spare, high + spare
    if is_share:
        return max(0.0, below), min(1.0, above)
    return (max(0.0, below) if low >= 0 else below), above


def _bar(x: float, bottom: float, width: float, height: float) -> Bar:
    return Bar(_text(x), _text(bottom - height), _text(width), _text(height))


class Calibrated(NamedTuple):
    """One reliability bin: its point, and its interval as a vertical stroke."""

    x: str
    y: str
    low: str
    high: str
    bar: Bar
    """Its share of the rows, at the bottom."""
    few: bool
    view: Mapping[str, Any]


def reliability(bins: Sequence[Mapping[str, Any]], level: float, few: int) -> list[Calibrated]:
    """The view's `calibration` on a square of SIDE; fewer than `few` rows are marked."""
    most = max((each["rows"] for each in bins), default=1)
    found = []
    for each in bins:
        hits = each["accuracy"] * each["rows"]
        low, high = wilson(hits, each["rows"], level) or (0.0, 1.0)
        found.append(
            Calibrated(
                _text(SIDE * each["confidence"]),
                _up(each["accuracy"]),
                _up(low),
                _up(high),
                _bar(
                    SIDE * each["from"] + 1,
                    SIDE,
                    SIDE * (each["to"] - each["from"]) - 2,
                    SIDE / 5 * each["rows"] / most,
                ),
                each["rows"] < few,
                each,
            )
        )
    return found


class Roc(NamedTuple):
    """A ROC curve on a square of SIDE, and the area in which the exact one certainly runs."""

    path: str
    bounds: str


def roc(curve: Mapping[str, Sequence[float]]) -> Roc:
    """The view's `roc_curve`."""
    points = list(zip(curve["false_positive_rate"], curve["true_positive_rate"], strict=True))
    upper, lower = [points[0]], [points[0]]
    for before, after in pairwise(points):
        upper += [(before[0], after[1]), after]
        lower += [(after[0], before[1]), after]
    return Roc(_path(points), _path([*upper, *reversed(lower)]) + "Z")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_text(SIDE * x)} {_up(y)}" for x, y in points)


def _up(rate: float) -> str:
    """A rate on the vertical axis, which SVG counts from above."""
    return _text(SIDE * (1 - rate))


def shade(share: float) -> int:
    """0 for nothing, else 1 to LEVELS: anything at all can be seen."""
    return min(LEVELS, 1 + int(share * LEVELS)) if share > 0 else 0


def _text(number: float) -> str:
    text = f"{number:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
