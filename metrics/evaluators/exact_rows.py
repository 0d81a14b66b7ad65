"""The vector twins of `exact`: for each row the same numbers to the bit, and their exact sums.

Numbers are cut into whole multiples of powers of two, each of so few bits that the sums of many,
and of many products of two, stay below 2**53: then adding doubles is exact, in whatever order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..exact import (
    CLIP,
    EVEN,
    FINE,
    HALF_ROOT,
    LN2,
    LN2_REST,
    ODD,
    of_fine,
    of_fine_squared,
)

Floats = NDArray[np.float64]

_CUT = 21
"""Bits of a part; the highest one's are those before the point and 15 after it."""
_SHIFTS = (2 * _CUT, _CUT, 0)
_AT_ONCE = 4096
"""Rows whose products of two parts can be added: 2**12 times 2**41."""
_MANY_COLUMNS = 64
"""From as many columns one pass over them all is faster than one of each."""


def _constant(number: float) -> Floats:
    return np.array(number)  # as an operand in half the time of a float


_ODD, _EVEN = [tuple(map(_constant, each)) for each in (ODD, EVEN)]
_LN2, _LN2_REST = map(_constant, (LN2, LN2_REST))
_LOW, _HIGH, _HALF_ROOT = map(_constant, (CLIP, 1 - CLIP, HALF_ROOT))
_HALF, _ONE, _TWO = map(_constant, (0.5, 1.0, 2.0))
_GRIDS = [_constant(1.5 * 2.0 ** (52 - FINE + shift)) for shift in _SHIFTS]
"""Adding one and subtracting it again rounds to a multiple of a part's last bit."""
_SCALES = np.array([[2.0 ** (FINE - shift)] for shift in _SHIFTS])
_CONFIDENCE_GRIDS = [_constant(1.5 * 2.0 ** (52 - places)) for places in (30, FINE)]


def log_losses(probabilities: Floats) -> Floats:
    """`exact.log_loss` of each."""
    clipped = np.minimum(np.maximum(probabilities, _LOW), _HIGH)
    mantissas, exponents = np.frexp(clipped)
    low = mantissas < _HALF_ROOT
    mantissas += mantissas * low
    f = mantissas - _ONE
    k = (exponents - low).astype(np.float64)
    s = f / (f + _TWO)
    z = s * s
    w = z * z
    odd, even, half = _ODD[3], _EVEN[2], _HALF * f * f
    for each in _ODD[2::-1]:
        odd = each + w * odd
    for each in _EVEN[1::-1]:
        even = each + w * even
    r = z * odd + w * even
    losses: Floats = ((half - (s * (half + r) + k * _LN2_REST)) - f) - k * _LN2
    return losses


def sum_of_columns(rows: Floats, into: Floats) -> None:
    """The sum of each row, its columns added from the first to the last."""
    if rows.shape[1] >= _MANY_COLUMNS:
        into[:] = np.cumsum(rows, axis=1)[:, -1]  # one after the other, unlike `sum`
        return
    into[:] = rows[:, 0]
    for column in range(1, rows.shape[1]):
        into += rows[:, column]


def sums_and_squares(numbers: Floats) -> list[tuple[int, int]]:
    """The sum of `exact.fine` of each row of (R, N) numbers below 64, and of its square, in units.

    Exact.
    """
    count, n = numbers.shape
    sums, squares = [0] * count, [0] * count
    for start in range(0, n, _AT_ONCE):
        rest = numbers[:, start : start + _AT_ONCE]
        parts = np.empty((count, 3, rest.shape[1]))
        for place, grid in enumerate(_GRIDS):
            part = np.add(rest, grid, out=parts[:, place])
            part -= grid
            if place < 2:
                rest = rest - part
        parts *= _SCALES
        totals = parts.sum(axis=2).tolist()
        products = (parts @ parts.transpose(0, 2, 1)).tolist()
        for row in range(count):
            for place, shift in enumerate(_SHIFTS):
                sums[row] += int(totals[row][place]) << shift
                for other, more in enumerate(_SHIFTS):
                    squares[row] += int(products[row][place][other]) << shift + more
    return [
        (of_fine(sum), of_fine_squared(square)) for sum, square in zip(sums, squares, strict=True)
    ]


def sums_by(numbers: Floats, bins: NDArray[np.intp], most: int) -> list[int]:
    """The sum of `exact.fine` of numbers of up to 2, by bin, in units; exact for 2**22 rows."""
    coarse, fine = _CONFIDENCE_GRIDS
    high = numbers + coarse
    high -= coarse
    low = numbers - high
    low += fine
    low -= fine
    highs, lows = np.bincount(bins, high, most).tolist(), np.bincount(bins, low, most).tolist()
    scale = 2.0**FINE
    return [
        of_fine(int(high * scale) + int(low * scale)) for high, low in zip(highs, lows, strict=True)
    ]
