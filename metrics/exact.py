"""Exact sums of real numbers: ints in units of 2**-400, so that a correction takes back exactly.

Adding ints is exact: a sum is the same in every order and grouping, and what is subtracted again
leaves no trace, however large it was beside the rest. A double of at least 2**-348 in magnitude is
a whole number of units; of a smaller one the bits below a unit are dropped, row by row. Which
families hold units is told by `REALS`; all others count whole things.

Stored and exported, a number of units is a text: the hexadecimal mantissa, "p", and the power of
two of its last digit, a multiple of 40: "1p0" is 1, "-8000000000p-40" is -0.5. Equal numbers have
equal texts. Where a float stands in its place, that double is meant: older versions wrote those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import frexp
from sys import float_info
from typing import Any

from .counters import SUPERSEDED, Labels, Number

BITS = 400
_SCALE = 2.0**BITS
_ONE = 1 << BITS
_BAND = 40
"""Bits of the ten hexadecimal digits that a script of Redis adds at a time."""

REALS = frozenset(
    prefix + family
    for prefix in ("", SUPERSEDED)
    for family in (
        *("log_loss", "log_loss_squared", "brier", "brier_squared", "calibration_confidence"),
        *("absolute_error", "squared_error", "error", "percentage_error"),
        *("truth_offset", "truth_offset_squared"),
        *("reward_positive", "reward_negative", "reward_offset", "reward_offset_squared"),
        *("user_counters", "user_timers_sum", "truth_delay_sum"),
    )
)
"""The families whose numbers are units, and those of what corrections took back of them."""

_MOST_BITS = BITS + 1000
"""Of a number of units: it can be read as a float."""
_TEXT = re.compile(r"(-?[0-9a-f]{1,700})p(-?[0-9]{1,4})")


def to_units(number: float) -> int:
    """The units of a number; what is less than one is dropped. Raises OverflowError past 1e187."""
    return int(number * _SCALE)


def from_units(units: int) -> float:
    """The double nearest to a number of units; never -0.0."""
    return units / _ONE


def squared(units: int) -> int:
    """The square of a number of units; what is less than a unit is dropped."""
    return units * units >> BITS


def mean(total: int, count: int) -> float | None:
    """The mean of `count` numbers whose sum is `total` units, rounded once; None of none."""
    return total / (count << BITS) if count else None


def spread(count: int, total: int, squares: int) -> float:
    """Σ(x - mean)² from Σx and Σx² in units: never negative, and 0 where all are equal."""
    return max(0, (count * squares << BITS) - total * total) / (count << 2 * BITS)


def real(vector: Mapping[str, Mapping[Labels, Number]], family: str, *labels: str) -> float:
    """One number of a family of `REALS` as a float; 0 where nothing was ever added."""
    return from_units(units(vector, family, *labels))


def units(vector: Mapping[str, Mapping[Labels, Number]], family: str, *labels: str) -> int:
    """The units of one number of a family of `REALS`; 0 where nothing was ever added."""
    cells = vector.get(family)
    return cells.get(labels, 0) if cells else 0  # type: ignore[return-value]


def shown(family: str, number: Number) -> Number:
    """A number of `family` for readers: a float where the family is real."""
    return from_units(number) if family in REALS else number  # type: ignore[arg-type]


# --- stored -----------------------------------------------------------------------------------


def stored(family: str, cells: Mapping[Labels, Number]) -> Mapping[Labels, Any]:
    """The cells of a family with their numbers as they are stored."""
    if family not in REALS:
        return cells
    return {labels: encode(units) for labels, units in cells.items()}  # type: ignore[arg-type]


def restored(family: str, number: Any) -> Number:
    """A number of `family` that was stored. Raises ValueError for what cannot be one."""
    if type(number) is str:
        if family not in REALS:
            raise ValueError(f"{number[:40]!r} is no number of {family}")
        return decode(number)
    if family in REALS:
        try:
            return to_units(number)
        except (OverflowError, TypeError):
            raise ValueError(f"{number!r} is no number of {family}") from None
    whole: Number = number
    return whole


def read_back(family: str, number: Any) -> Number:
    """`restored`; what cannot be a number of `family` as it is.

    Whoever renders a model that holds it raises, and leaves out that model only.
    """
    try:
        return restored(family, number)
    except ValueError:
        broken: Number = number
        return broken


def encode(units: int) -> str:
    """The text of a number of units."""
    if not units:
        return "0p0"
    band = ((units & -units).bit_length() - 1) // _BAND
    return f"{units >> _BAND * band:x}p{_BAND * band - BITS}"


def decode(text: str) -> int:
    """The units in a text. Raises ValueError for any other."""
    found = _TEXT.fullmatch(text)
    shift = int(found[2]) + BITS if found else -1
    if found and 0 <= shift <= _MOST_BITS and not shift % _BAND:
        units = int(found[1], 16) << shift
        if units.bit_length() <= _MOST_BITS:
            return units
    raise ValueError(f"{text[:40]!r} is no exact number")


# --- a row's probabilities --------------------------------------------------------------------

FINE = 57
"""Binary places to which what a row's probabilities tell is counted; their own are 53 near 1."""
FINE_ONE = 2.0**FINE
CLIP = float_info.epsilon
"""Probabilities are clipped to [CLIP, 1 - CLIP] before their logarithm, as scikit-learn does."""
HALF_ROOT = 0.5**0.5
LN2, LN2_REST = 6.93147180369123816490e-01, 1.90821492927058770002e-10
ODD = (
    *(6.666666666666735130e-01, 2.857142874366239149e-01),
    *(1.818357216161805012e-01, 1.479819860511658591e-01),
)
_O1, _O3, _O5, _O7 = ODD
EVEN = (3.999999999940941908e-01, 2.222219843214978396e-01, 1.531383769920937332e-01)
_E2, _E4, _E6 = EVEN


def fine(number: float) -> int:
    """The multiples of 2**-FINE nearest to a number."""
    return round(number * FINE_ONE)


def of_fine(sum: int) -> int:
    """The units of a sum of what `fine` gives."""
    return sum << BITS - FINE


def of_fine_squared(sum: int) -> int:
    """The units of a sum of squares of what `fine` gives."""
    return sum << BITS - 2 * FINE


def log_loss(probability: float) -> float:
    """-ln of a clipped probability, within an ulp: the same double for one row and among many.

    Basic operations, in the order of `evaluators.exact_rows.log_losses`, are prescribed to the bit
    by IEEE 754; the logarithms of C libraries, of numpy and of processors differ in the last one.
    Source: FreeBSD's e_log.c (Sun 1993).
    """
    m, k = frexp(min(max(probability, CLIP), 1 - CLIP))
    if m < HALF_ROOT:
        m += m
        k -= 1
    f = m - 1
    s = f / (f + 2)
    z = s * s
    w = z * z
    r = z * (_O1 + w * (_O3 + w * (_O5 + w * _O7))) + w * (_E2 + w * (_E4 + w * _E6))
    h = 0.5 * f * f
    return ((h - (s * (h + r) + k * LN2_REST)) - f) - k * LN2
