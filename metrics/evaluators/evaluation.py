"""What evaluators are told of a model (`Known`) and what they answer (`Evaluation`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..state import Gauge, GaugeKey


@dataclass(slots=True)
class Evaluation:
    """One event's contribution; `rows` predictions were compared with their truths."""

    rows: int
    increment: dict[str, Any] = field(default_factory=dict)
    gauges: dict[GaugeKey, float] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    """Facts the increment presupposes, fixed by the model's first event that needs them."""


@dataclass(slots=True)
class Known:
    """What is already fixed of a model: constants, and labels of its capped families."""

    constants: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, set[str]] = field(default_factory=dict)
    """Distinct labels by kind: `class`, `route`, `metric`."""


__all__ = ["Evaluation", "Gauge", "Known"]
