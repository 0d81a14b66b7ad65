"""Vectors as readers see them: what is counted in exact units as floats."""

from __future__ import annotations

from typing import Any

from metrics.counters import unpack
from metrics.exact import REALS, shown, to_units


def floats(increment: Any) -> dict[str, dict[Any, Any]]:
    """The same numbers, those of real families as floats."""
    return {
        family: {labels: shown(family, number) for labels, number in cells.items()}
        for family, cells in unpack(increment).items()
    }


def exactly(vector: Any) -> dict[str, dict[Any, Any]]:
    """`floats` undone: the vector that says the given floats."""
    return {
        family: {
            labels: to_units(number) if family in REALS else number
            for labels, number in cells.items()
        }
        for family, cells in vector.items()
    }
