"""How much of what a model predicted has met its truth: the halves that wait, and their fate."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import exact
from ..counters import Vector, value
from .ratio import ratio

HALVES = frozenset(("predictions", "truths", "corrected"))
"""Families that only a model has whose truth comes late."""


class Halves(NamedTuple):
    """Predictions that came by themselves, or truths that came before their predictions."""

    arrived: int
    joined: int
    unjoined: int
    """Whose time was over before the other half came."""
    dropped: int
    """That were forgotten sooner, for want of room."""
    replaced: int
    """In whose place another came, of the same request."""

    @property
    def waiting(self) -> int:
        """How many still wait; those that came before a reset are not known."""
        gone = self.joined + self.unjoined + self.dropped + self.replaced
        return max(0, self.arrived - gone)


def halves(vector: Vector, family: str) -> Halves:
    """The `predictions` or the `truths` in a model's counters of all time."""
    return Halves(*(int(value(vector, family, fate)) for fate in Halves._fields))


def coverage_view(vector: Vector) -> dict[str, Any]:
    """The view's member `join`; `coverage`, a ratio, is absent without any prediction."""
    predictions, truths = halves(vector, "predictions"), halves(vector, "truths")
    view: dict[str, Any] = {
        "predictions": predictions.arrived,
        "joined": predictions.joined,
        "waiting": predictions.waiting,
        "unjoined": predictions.unjoined,
        "dropped": predictions.dropped,
        "truths": {
            "waiting": truths.waiting,
            "joined": truths.joined,
            "unjoined": truths.unjoined,
            "dropped": truths.dropped,
        },
        "corrected": int(value(vector, "corrected")),
    }
    coverage = ratio(predictions.joined, predictions.arrived)
    if coverage is not None:
        view["coverage"] = coverage
    delays = sum(vector.get("truth_delay_bucket", {}).values())
    if delays:
        view["mean_delay_seconds"] = exact.mean(exact.units(vector, "truth_delay_sum"), int(delays))
    return view
