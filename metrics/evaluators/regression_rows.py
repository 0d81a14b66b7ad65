"""The vector twin of `regression.row_by_row`, for many rows: the same sums to the bit."""

from __future__ import annotations

import numpy as np

from ..bins import LOG_GAMMA, SMALLEST_ERROR, error_bin
from ..exact import BITS, squared, to_units
from .exact_rows import Floats, exact_sums, squares

PART = 1 << 16
"""Rows that are looked at together."""
SMALLEST, LARGEST = 2.0**-140, 2.0**200
"""Of numbers between these in magnitude the squares are whole units, and no sum is too large."""


def many_rows(
    truth: Floats, prediction: Floats, origin: float
) -> tuple[list[int], int, dict[int | None, int]] | None:
    """The sums of `REAL_FAMILIES`, the rows whose truth is not 0, and absolute errors by bin.

    None where a number is so small or so large that rows must be looked at one by one.
    """
    found = _part(truth[:PART], prediction[:PART], origin)
    for at in range(PART, len(truth), PART):
        more = _part(truth[at : at + PART], prediction[at : at + PART], origin)
        if found is None or more is None:
            return None
        sums, nonzero, bins = found
        for bin, number in more[2].items():
            bins[bin] = bins.get(bin, 0) + number
        sums = [one + other for one, other in zip(sums, more[0], strict=True)]
        found = sums, nonzero + more[1], bins
    return found


def _part(
    truth: Floats, prediction: Floats, origin: float
) -> tuple[list[int], int, dict[int | None, int]] | None:
    """`many_rows` of so few that their intermediate results are small."""
    with np.errstate(over="ignore"):
        residual = prediction - truth
    size = np.abs(residual)
    level = np.abs(truth)
    for each in (size, level, np.array([abs(origin)])):
        if each.max() > LARGEST or ((each < SMALLEST) & (each > 0)).any():
            return None
    nonzero = level > 0
    share = np.divide(size, level, out=np.zeros_like(size), where=nonzero)
    values = np.concatenate(((size, residual, truth, share), squares(residual), squares(truth)))
    absolute, error, true, percentage, *parts = exact_sums(values)
    n, about = len(truth), to_units(origin)
    offset = true - n * about
    offset_squares = parts[2] + parts[3]
    if about:  # Σ(t - o)² = Σt² - 2oΣt + no²
        offset_squares += n * squared(about) - (2 * about * true >> BITS)
    sums = [absolute, parts[0] + parts[1], error, offset, offset_squares, percentage]
    return sums, int(nonzero.sum()), _bins(size)


def _bins(size: Floats) -> dict[int | None, int]:
    """Absolute errors by `error_bin`."""
    large = size[size > SMALLEST_ERROR]
    places = np.log(large) / LOG_GAMMA
    near = np.abs(places - np.rint(places)) < 1e-6  # another logarithm may round otherwise
    bins: dict[int | None, int] = {}
    for numbers, exactly in ((np.ceil(places[~near]), False), (large[near], True)):
        found, counts = np.unique(numbers, return_counts=True)
        for number, count in zip(found.tolist(), counts.tolist(), strict=True):
            bin = error_bin(number) if exactly else int(number)
            bins[bin] = bins.get(bin, 0) + count
    if len(large) < len(size):
        bins[None] = len(size) - len(large)
    return bins
