"""The range that each score can have: intervals end there, and no rounded text reaches its ends."""

from __future__ import annotations

from math import inf, log
from sys import float_info

Range = tuple[float, float]

_SHARE: Range = (0.0, 1.0)
_AVERAGED = ("precision", "recall", "f1", "jaccard", "specificity", "fbeta")
RANGES: dict[str, Range] = {
    **dict.fromkeys(_AVERAGED, _SHARE),
    **{f"{name}_{how}": _SHARE for name in _AVERAGED for how in ("macro", "micro", "weighted")},
    **dict.fromkeys(("accuracy", "balanced_accuracy", "top_k_accuracy"), _SHARE),
    **dict.fromkeys(("roc_auc_ovr", "roc_auc_ovr_weighted", "average_precision"), _SHARE),
    **dict.fromkeys(("subset_accuracy", "hamming_loss", "expected_calibration_error"), _SHARE),
    **dict.fromkeys(("matthews_corrcoef", "cohen_kappa"), (-1.0, 1.0)),
    "log_loss": (0.0, -log(float_info.epsilon)),
    "brier_score": (0.0, 2.0),
    **dict.fromkeys(("mean_absolute_error", "median_absolute_error"), (0.0, inf)),
    **dict.fromkeys(("mean_squared_error", "root_mean_squared_error"), (0.0, inf)),
    "mean_absolute_percentage_error": (0.0, inf),
    **dict.fromkeys(("r2", "explained_variance"), (-inf, 1.0)),
    "mean_error": (-inf, inf),
}
"""Score -> the least and the greatest value it can have; log loss is clipped, as it is counted."""

ROUNDING = 1e-9
"""How far a score can be out of its range by the rounding of its sums."""


def range_of(score: str, columns: int = 0) -> Range:
    """The range of a score; the Brier score of two columns is halved."""
    if score == "brier_score" and columns == 2:
        return _SHARE
    return RANGES.get(score, (-inf, inf))


def plain(number: float) -> float:
    """`number`; 0.0 for the negative zero, which no reader should meet."""
    return number + 0.0


def held(number: float, within: Range) -> float:
    """`number`, moved into its range where only rounding took it out; never the negative zero."""
    low, high = within
    if low - ROUNDING <= number < low:
        number = low
    elif high < number <= high + ROUNDING:
        number = high
    return plain(number)


def held_interval(interval: Range, value: float | None, within: Range) -> Range:
    """An interval cut to the range of its score; the score itself always lies within."""
    low, high = (plain(min(max(end, within[0]), within[1])) for end in interval)
    return (low, high) if value is None else (min(low, value), max(high, value))


def fixed(number: float, digits: int) -> str:
    """`number` with so many digits behind the point, rounded.

    Rounding reaches no whole number that was not reached: 0.99996 is 0.9999 and not 1.0000, and
    what would be 0 is written in powers of ten.
    """
    text = f"{number:.{digits}f}"
    rounded = float(text)
    if not rounded:
        return f"{number:.{max(digits - 1, 0)}e}" if number else text.lstrip("-")
    if rounded.is_integer() and abs(rounded) > abs(number):
        step = 10.0**-digits
        text = f"{rounded - step if rounded > 0 else rounded + step:.{digits}f}"
    return text
