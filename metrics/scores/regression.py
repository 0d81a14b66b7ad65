"""Scores of regressors from exact sums and a log-bucket histogram of errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from ..bins import RELATIVE_ERROR, SMALLEST_ERROR, error_of
from ..counters import Labels, Number, Vector, value
from ..evaluators.regression import ZERO
from ..exact import from_units, mean, spread, units

QUANTILES = (0.5, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Output:
    """The sums of one output, in units; see `evaluators.regression` for what each is."""

    name: str
    rows: int
    absolute: int
    squared: int
    error: int
    offset: int
    offset_squared: int
    percentage: int
    percentage_rows: int
    bins: Mapping[int, int]
    """Absolute errors by bucket."""
    zeros: int
    """Absolute errors too small for a bucket."""

    def scores(self) -> dict[str, float | None]:
        """All scores of this output, None where undefined.

        R² and explained variance are undefined for fewer than 2 rows and for a constant truth; the
        percentage error leaves out rows whose truth is 0.
        """
        n = self.rows
        total = spread(n, self.offset, self.offset_squared) if n > 1 else 0.0
        mean_squared = mean(self.squared, n)
        explained = None
        if total > 0:
            explained = 1 - spread(n, self.error, self.squared) / total
        return {
            "mean_absolute_error": mean(self.absolute, n),
            "mean_squared_error": mean_squared,
            "root_mean_squared_error": None if mean_squared is None else sqrt(mean_squared),
            "mean_error": mean(self.error, n),
            "mean_absolute_percentage_error": mean(self.percentage, self.percentage_rows),
            "r2": 1 - from_units(self.squared) / total if total > 0 else None,
            "explained_variance": explained,
            "median_absolute_error": self.median(),
        }

    def median(self) -> float | None:
        """The median absolute error, within 1 % of the exact one; None without rows."""
        if not self.rows:
            return None
        ordered = sorted(self.bins.items())
        low, high = (self.rows - 1) // 2, self.rows // 2
        return (self._at(ordered, low) + self._at(ordered, high)) / 2

    def quantiles(self) -> dict[str, float]:
        """Quantiles of the absolute error, each within 1 % of the exact one; {} without rows."""
        ordered = sorted(self.bins.items())
        return {str(q): self._at(ordered, int(q * (self.rows - 1))) for q in QUANTILES if self.rows}

    def _at(self, ordered: list[tuple[int, int]], rank: int) -> float:
        """The absolute error with `rank` smaller ones before it."""
        seen = self.zeros
        if rank < seen:
            return 0.0
        for bin, count in ordered:
            seen += count
            if rank < seen:
                return error_of(bin)
        return error_of(ordered[-1][0]) if ordered else 0.0


def error_bounds(error: float) -> tuple[float, float]:
    """Certified bounds of an absolute error that was read from the buckets."""
    return error / (1 + RELATIVE_ERROR), error / (1 - RELATIVE_ERROR) + SMALLEST_ERROR


def outputs_of(vector: Vector) -> list[Output]:
    """The outputs in `vector`, in order; none where it holds no regression."""
    histograms: dict[str, dict[int, int]] = {}
    zeros: dict[str, int] = {}
    cells: Mapping[Labels, Number] = vector.get("absolute_errors", {})
    for (name, bin), count in cells.items():
        if bin == ZERO:
            zeros[name] = int(count)
        else:
            histograms.setdefault(name, {})[int(bin)] = int(count)
    return [
        Output(
            name,
            int(rows),
            max(0, units(vector, "absolute_error", name)),  # what floats took back left less than 0
            max(0, units(vector, "squared_error", name)),
            units(vector, "error", name),
            units(vector, "truth_offset", name),
            max(0, units(vector, "truth_offset_squared", name)),
            max(0, units(vector, "percentage_error", name)),
            int(value(vector, "percentage_rows", name)),
            histograms.get(name, {}),
            zeros.get(name, 0),
        )
        for (name,), rows in sorted(
            vector.get("targets", {}).items(), key=lambda item: int(item[0][0])
        )
    ]
