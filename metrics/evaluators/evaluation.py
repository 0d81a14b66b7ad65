"""What evaluators are told of a model (`Known`) and what they answer (`Evaluation`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..counters import Compact
from ..state import Gauge, GaugeKey


@dataclass(slots=True)
class Evaluation:
    """One event's contribution; `rows` predictions were compared with their truths."""

    rows: int
    increment: Any = field(default_factory=dict)
    """A vector, or something in short that stands for one."""
    gauges: dict[GaugeKey, float] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    """Facts the increment presupposes, fixed by the model's first event that needs them."""

    def vector(self) -> dict[str, Any]:
        """The increment as a dict, to be added to."""
        if isinstance(self.increment, Compact):
            self.increment = self.increment.plain()
        vector: dict[str, Any] = self.increment
        return vector


@dataclass(slots=True)
class Known:
    """What is already fixed of a model: constants, and labels of its capped families."""

    constants: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, set[str]] = field(default_factory=dict)
    """Distinct labels by kind: `class`, `route`, `metric`."""


__all__ = ["Evaluation", "Gauge", "Known"]
