"""The vector twins of `exact`: for each row the same numbers to the bit, and their exact sums.

Numbers are cut into whole multiples of powers of two, each of so few bits that the sums of many,
and of many products of two, stay below 2**53: then adding doubles is exact, in whatever order.
"""

from __future__ import annotations

from operator import mul

import numpy as np
from numpy.typing import NDArray

from ..exact import (
    CLIP,
    EVEN,
    FINE,
    FINE_ONE,
    HALF_ROOT,
    LN2,
    LN2_REST,
    ODD,
    of_fine,
    of_fine_squared,
    to_units,
)

Floats = NDArray[np.float64]

_HALVES = 2.0**27 + 1
"""A double times this splits it into two of 26 bits each (Dekker 1971)."""
FEW = 200
"""Rows below which Python's own ints are faster."""
_AT_ONCE = 2048
"""Rows whose products of two parts can be added: 2**11 times 2**42."""
_MANY_COLUMNS = 64
"""From as many columns one pass over them all is faster than one of each."""


def _constant(number: float) -> Floats:
    return np.array(number)  # as an operand in half the time of a float


_ODD, _EVEN = [tuple(map(_constant, each)) for each in (ODD, EVEN)]
_LN2, _LN2_REST = map(_constant, (LN2, LN2_REST))
_FINE_SQUARED = FINE_ONE * FINE_ONE
_LOW, _HIGH, _FINE, _UNFINE = map(_constant, (CLIP, 1 - CLIP, FINE_ONE, 1 / FINE_ONE))
_HALF_ROOT, _EXPONENT = np.array(HALF_ROOT).view(np.int64), np.array(52)
_HALF, _ONE, _TWO = map(_constant, (0.5, 1.0, 2.0))
_GRIDS = [_constant(1.5 * 2.0 ** (52 - places)) for places in (15, 36)]
"""Adding one and subtracting it again rounds to so many binary places; what is left has 21 more."""
_CONFIDENCE_GRIDS = [_constant(1.5 * 2.0 ** (52 - places)) for places in (30, FINE)]


def log_losses(probabilities: Floats) -> Floats:
    """`exact.log_loss` of each."""
    clipped = np.minimum(np.maximum(probabilities, _LOW), _HIGH)
    bits = clipped.view(np.int64)
    exponents = bits - _HALF_ROOT
    exponents >>= _EXPONENT
    k = exponents.astype(np.float64)
    exponents <<= _EXPONENT
    f = (bits - exponents).view(np.float64) - _ONE
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


def to_fine(numbers: Floats) -> Floats:
    """`exact.fine` of each, as numbers of the same size."""
    whole = np.rint(numbers * _FINE)
    whole *= _UNFINE
    return whole


def squares(numbers: Floats) -> tuple[Floats, Floats]:
    """The squares, and what rounding left of them: the sums of both are exact (Dekker 1971)."""
    high = _HALVES * numbers
    high -= high - numbers
    low = numbers - high
    square = numbers * numbers
    return square, ((high * high - square) + 2 * high * low) + low * low


def exact_sums(rows: Floats) -> list[int]:
    """The exact sum of each row of (R, N) numbers, in units; changes them."""
    totals = [0] * len(rows)
    bits = 52 - rows.shape[1].bit_length()
    while True:
        largest = np.abs(rows).max(axis=1)
        if not largest.any():
            return totals
        far = np.ldexp(1.5, np.frexp(largest)[1] + (52 - bits))[:, None]
        part = rows + far
        part -= far
        rows -= part
        totals = [
            total + to_units(sum)
            for total, sum in zip(totals, part.sum(axis=1).tolist(), strict=True)
        ]


def sums_and_squares(numbers: Floats) -> list[tuple[int, int]]:
    """The exact sum of each row of (R, N) numbers as `to_fine` gives them, and of its squares.

    In units; the numbers are at most 64.
    """
    if numbers.shape[1] < FEW:
        each = (numbers * _FINE).astype(np.int64).tolist()
        return [(of_fine(sum(row)), of_fine_squared(sum(map(mul, row, row)))) for row in each]
    return [_sum_and_square(row) for row in numbers]


def _sum_and_square(numbers: Floats) -> tuple[int, int]:
    total = square = 0
    for start in range(0, len(numbers), _AT_ONCE):
        rest = numbers[start : start + _AT_ONCE]
        high = rest + _GRIDS[0]
        high -= _GRIDS[0]
        rest = rest - high
        middle = rest + _GRIDS[1]
        middle -= _GRIDS[1]
        rest -= middle
        ones = np.ones(len(rest))
        for part in (high, middle, rest):
            total += int(part.dot(ones) * FINE_ONE)
            square += int(part.dot(part) * _FINE_SQUARED)
        for one, other in ((high, middle), (high, rest), (middle, rest)):
            square += 2 * int(one.dot(other) * _FINE_SQUARED)
    return of_fine(total), of_fine_squared(square)


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
