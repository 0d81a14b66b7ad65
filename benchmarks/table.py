"""Measures over rounds, and how they are told: medians, ratios of medians, spreads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Measures:
    """Values by (who, what), one a round; rounds of all contestants are interleaved."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, who: str, **measured: float) -> None:
        """Add one round's values of a contestant."""
        for what, value in measured.items():
            self.values.setdefault((who, what), []).append(value)

    def median(self, who: str, what: str) -> float:
        """The median over the rounds."""
        return median(self.values[who, what])

    def spread(self, who: str, what: str, scale: float = 1.0) -> str:
        """Median, least and greatest."""
        values = [scale * value for value in self.values[who, what]]
        return told(median(values), min(values), max(values))

    def ratio(self, who: str, base: str, what: str, to: str = "") -> tuple[float, str]:
        """The ratio of medians; and in words, with the spread of the rounds' own ratios.

        `to` is what it is compared with, where that is something else.
        """
        ours, theirs = self.values[who, what], self.values[base, to or what]
        each = [a / b for a, b in zip(ours, theirs, strict=True)]
        ratio = median(ours) / median(theirs)
        return ratio, told(ratio, min(each), max(each))

    def has(self, who: str, what: str) -> bool:
        """Whether there is a value."""
        return (who, what) in self.values


@dataclass(frozen=True)
class Reached:
    """One line of the Reach table: what is asked for, and what was measured."""

    what: str
    asked: str
    measured: str
    holds: bool


def at_least(what: str, limit: float, value: float, words: str, unit: str = "×") -> Reached:
    """A line that holds from `limit` upwards."""
    return Reached(what, f"≥ {number(limit)} {unit}", f"{words} {unit}", value >= limit)


def at_most(what: str, limit: float, value: float, words: str, unit: str = "×") -> Reached:
    """A line that holds up to `limit`."""
    return Reached(what, f"≤ {number(limit)} {unit}", f"{words} {unit}", value <= limit)


def told(middle: float, least: float, greatest: float) -> str:
    """A median with its spread."""
    return f"{number(middle)} ({number(least)}–{number(greatest)})"


def number(value: float) -> str:
    """Three digits, and thousands with their comma."""
    if abs(value) >= 1000:
        return f"{round(value, 3 - len(str(int(abs(value))))):,.0f}"
    return f"{value:.3g}"


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print Markdown, aligned so that it also reads well as text."""
    if title:
        print(f"\n{title}\n")
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    for row in (head, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
    print(flush=True)
