"""The vector twins of `exact`: for each row the same numbers to the bit, and their exact sums.

Numbers are cut into whole multiples of powers of two, each of so few bits that the sums of many,
and of many products of two, stay below 2**53: then adding doubles is exact, in whatever order.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_ONES = np.ones(_AT_ONCE)
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
_GRIDS = [_constant(1.5 * 2.0 ** (52 - places)) for places in (15, 36, FINE)]
"""Adding one and subtracting it again rounds to so many binary places: 21 more each time."""
_CONFIDENCE_GRIDS = [_constant(1.5 * 2.0 ** (52 - places)) for places in (30, FINE)]


def log_losses(probabilities: Floats) -> Floats:
    """`exact.log_loss` of each."""
    f = np.maximum(probabilities, _LOW)
    np.minimum(f, _HIGH, out=f)
    bits = f.view(np.int64)
    exponents = bits - _HALF_ROOT
    exponents >>= _EXPONENT
    k = exponents.astype(np.float64)
    exponents <<= _EXPONENT
    bits -= exponents
    f -= _ONE
    s = f + _TWO
    np.divide(f, s, out=s)
    z = s * s
    w = z * z
    r = _polynomial(_ODD, w)
    r *= z
    w *= _polynomial(_EVEN, w)
    r += w
    half = _HALF * f
    half *= f
    r += half
    s *= r
    s += k * _LN2_REST
    half -= s
    half -= f
    k *= _LN2
    half -= k
    return half


def _polynomial(coefficients: Sequence[Floats], w: Floats) -> Floats:
    found: Floats = w * coefficients[-1]
    for each in coefficients[-2:0:-1]:
        found += each
        found *= w
    found += coefficients[0]
    return found


def sum_of_columns(rows: Floats, into: Floats) -> None:
    """The sum of each row, its columns added from the first to the last."""
    if rows.shape[1] >= _MANY_COLUMNS:
        into[:] = np.cumsum(rows, axis=1)[:, -1]  # one after the other, unlike `sum`
        return
    np.add(rows[:, 0], rows[:, 1], out=into)
    for column in range(2, rows.shape[1]):
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
    """The sum of `exact.fine` of each row of (R, N) numbers, and of the squares of these.

    In units; the numbers are below 64, and fewer than FEW of them as `to_fine` gives them.
    """
    if numbers.shape[1] < FEW:
        each = (numbers * _FINE).astype(np.int64).tolist()
        return [(of_fine(sum(row)), of_fine_squared(sum(map(mul, row, row)))) for row in each]
    if numbers.shape[1] > _AT_ONCE:
        halves = map(sums_and_squares, np.array_split(numbers, 2, axis=1))
        return [(a + c, b + d) for (a, b), (c, d) in zip(*halves, strict=True)]
    ones = _ONES[: numbers.shape[1]]
    found = []
    for high, middle, rest in zip(*_parts(numbers), strict=True):
        sums = high.dot(ones), middle.dot(ones), rest.dot(ones)
        squares = high.dot(high), middle.dot(middle), rest.dot(rest)
        products = high.dot(middle), high.dot(rest), middle.dot(rest)
        total = sum([int(each * FINE_ONE) for each in sums])
        square = sum([int(each * _FINE_SQUARED) for each in squares])
        square += 2 * sum([int(each * _FINE_SQUARED) for each in products])
        found.append((of_fine(total), of_fine_squared(square)))
    return found


def _parts(numbers: Floats) -> tuple[Floats, Floats, Floats]:
    """What `to_fine` gives of numbers below 64, in three parts of 21 bits each."""
    high = numbers + _GRIDS[0]
    high -= _GRIDS[0]
    rest = numbers - high
    middle = rest + _GRIDS[1]
    middle -= _GRIDS[1]
    rest -= middle
    rest += _GRIDS[2]
    rest -= _GRIDS[2]
    return high, middle, rest


def sums_by(numbers: Floats, bins: NDArray[np.intp], most: int) -> list[int]:
    """The sum of `exact.fine` of numbers of up to 2, by bin, in units; exact for 2**22 rows."""
    coarse, fine = _CONFIDENCE_GRIDS
    high = numbers + coarse
    high -= coarse
    low = numbers - high
    low += fine
    low -= fine
    sums = [(np.bincount(bins, part, most) * _FINE).tolist() for part in (high, low)]
    return [of_fine(int(high) + int(low)) for high, low in zip(*sums, strict=True)]
