"""The scalars of a truth or a prediction, and texts that are fit to be labels.

`Values` holds (N,) labels or numbers, or (N, K) rows of numbers, read from nested lists or laid out
as a shape says. What cannot be laid out raises `Refused`, which names the field.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite, prod
from struct import pack, unpack_from
from typing import TYPE_CHECKING, Any

from .errors import Refused
from .large_arrays import LargeArray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_LABEL = 256
"""Characters of a class label, a class name or any other text that becomes a label."""

PART = 1 << 16
"""Scalars that are looked at together, so that intermediate results stay small."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NUMBERS = frozenset({int, float, bool})


@dataclass(slots=True, init=False)
class Values:
    """Truths or predictions: `flat` holds N scalars (`width` 0) or N rows of `width` numbers."""

    field: str
    """Where they stood in the event, for error messages."""
    flat: Any
    """A list, or an array where they are very many."""
    width: int
    numeric: bool
    """Whether no scalar is a string."""
    names: tuple[str, ...] | None
    """`data.names`, one for each column."""
    doubles: bytes | bytearray | None
    """The scalars as doubles, where they are many numbers: what numpy reads without a copy."""
    rows: int

    def __init__(  # by hand: every event has two of them
        self,
        field: str,
        flat: Any,
        width: int,
        numeric: bool,
        names: tuple[str, ...] | None = None,
        doubles: bytes | bytearray | None = None,
    ) -> None:
        self.field = field
        self.flat = flat
        self.width = width
        self.numeric = numeric
        self.names = names
        self.doubles = doubles
        self.rows = len(flat) // width if width else len(flat)

    @classmethod
    def of_doubles(
        cls,
        field: str,
        doubles: bytes | bytearray,
        width: int,
        names: tuple[str, ...] | None = None,
    ) -> Values:
        """Very many numbers that are no labels: no object is made of each."""
        values = cls(field, [], width, True, names, doubles)
        values.rows = len(doubles) // 8 // (width or 1)
        values.forget()
        return values

    def __len__(self) -> int:
        return self.rows

    def __getattr__(self, name: str) -> Any:
        """`flat` of many rows that `forget` left as doubles."""
        if name != "flat" or self.doubles is None:
            raise AttributeError(name)
        numbers = array("d")
        numbers.frombytes(self.doubles)
        self.flat = numbers if len(numbers) > PART else numbers.tolist()
        return self.flat

    def __getstate__(self) -> dict[str, Any]:
        """All but what `forget` left out."""
        state = {name: getattr(self, name) for name in self.__slots__ if name != "flat"}
        with suppress(AttributeError):
            state["flat"] = object.__getattribute__(self, "flat")
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def forget(self) -> None:
        """Let go of the scalars but for their doubles: many events wait for one commit."""
        del self.flat

    def among(self, few: set[Any]) -> bool:
        """Whether every scalar is one of a few."""
        flat: Sequence[Any] = self.flat
        return all(set(flat[at : at + PART]) <= few for at in range(0, len(flat), PART))

    def row(self, index: int) -> Sequence[Any]:
        """The numbers of one row; only where `width` > 0."""
        row: Sequence[Any] = self.flat[index * self.width : (index + 1) * self.width]
        return row

    def first(self) -> Sequence[Any]:
        """The numbers of the first row; only where `width` > 0."""
        return self.row(0) if self.doubles is None else unpack_from(f"{self.width}d", self.doubles)

    def whole(self) -> bool:
        """Whether every number was written without a fraction: labels, never probabilities."""
        return self.numeric and float not in set(map(type, self.flat))

    def integral(self) -> bool:
        """Whether no number has a fraction, however it is written; only where `numeric`."""
        if self.doubles is None:
            return all(type(number) is not float or number.is_integer() for number in self.flat)
        numbers = self.matrix().ravel()
        parts = (numbers[at : at + PART] for at in range(0, len(numbers), PART))
        return all(bool((part == part.round()).all()) for part in parts)

    def as_one_row(self) -> Values:
        """The same scalars read as a single row (the ancestor's flat one-hot lists)."""
        return Values(self.field, self.flat, len(self.flat), self.numeric, self.names, self.doubles)

    def matrix(self) -> NDArray[np.float64]:
        """(N, K) float64; only where `numeric`. Imports numpy, which one row need not wait for."""
        import numpy as np

        if self.doubles is not None:
            numbers = np.frombuffer(self.doubles, np.float64)
        elif isinstance(self.flat, array):
            numbers = np.array(self.flat, np.float64)
        else:
            numbers = np.frombuffer(_doubles(self.flat), np.float64)
        return numbers.reshape(len(self), self.width or 1)

    def finite(self) -> bool:
        """Whether no number is NaN or infinite; like `matrix` only where `numeric`, with numpy."""
        import numpy as np

        numbers = self.matrix().ravel()
        if len(numbers) <= PART:
            return bool(np.isfinite(numbers).all())
        parts = (numbers[at : at + PART] for at in range(0, len(numbers), PART))
        return all(bool(np.isfinite(part).all()) for part in parts)


class Budget:
    """What the events of one request may stand for beyond what they spell out.

    Whatever is short for more numbers takes them from here. A body of N bytes has a budget of N
    numbers, so what a request costs is bounded by its size.
    """

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, numbers: int, where: str) -> None:
        """Spend so many numbers. Raises Refused, naming `where`, for more than are left."""
        if numbers > self._left:
            raise Refused(where, f"is filled up with more numbers than are allowed ({self._left})")
        self._left -= numbers


NO_BUDGET = Budget(0)
"""For events that spell out all of their numbers."""


def one_line(text: str, limit: int = 200) -> str:
    """`text` without control characters, cut to `limit` characters: fit for a reason or a log."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_label(text: str, where: str) -> str:
    """`text`, fit to be a label: no control characters, at most MAX_LABEL long. Raises Refused."""
    if len(text) > MAX_LABEL:
        raise Refused(where, f"a label of {len(text)} characters; at most {MAX_LABEL} are taken")
    if _CONTROL.search(text):
        raise Refused(where, f"control characters in the label {one_line(text, 40)!r}")
    return text


# --- arrays ---------------------------------------------------------------------------------


def read_array(value: Any, where: str, _: Budget = NO_BUDGET) -> Values:
    """(N,) scalars, (N, K) rows, or a bare scalar as one row; a single column is (N,)."""
    if type(value) is not list:
        return _large(value, where) if type(value) is LargeArray else flat_values([value], where)
    if not value:
        raise Refused(where, "has no rows")
    first = value[0]
    if type(first) is not list:
        return flat_values(value, where)
    if len(value) == 1 and len(first) > 1:
        return flat_values(first, where, len(first))
    # of many rows of several columns only strings and objects pass as rows; `flat_values` tells
    if (len(value) < _MANY or len(value[0]) == 1) and set(map(type, value)) != {list}:
        raise Refused(where, "mixes rows and scalars")
    try:
        widths = list(map(len, value))
    except TypeError:
        raise Refused(where, "mixes rows and scalars") from None
    width = widths[0]
    if widths.count(width) != len(widths):
        raise Refused(where, f"ragged: rows of {min(widths)} to {max(widths)} values")
    if width == 0:
        raise Refused(where, "has empty rows")
    flat: list[Any] = []
    deque(map(flat.extend, value), maxlen=0)
    values = flat_values(flat, where, 0 if width == 1 else width)
    if width > 1 and values.doubles is not None and not set(first) <= {0, 1}:
        values.forget()  # no labels, which are told by their types
    return values


def _large(long: LargeArray, where: str) -> Values:
    if long.doubles is None:
        return Values(where, long.flat, long.width, long.numeric)
    if long.flat is None:
        values = Values.of_doubles(where, long.doubles, long.width)
    else:
        values = Values(where, long.flat, long.width, long.numeric, None, long.doubles)
    if not values.finite():
        raise Refused(where, "has a number that is not finite")
    return values


_MANY = 64
"""Scalars from which it pays to read them as doubles at once."""


def _doubles(numbers: list[Any]) -> bytes:
    """Numbers as doubles. Raises struct.error or OverflowError for what is none."""
    return pack(f"{len(numbers)}d", *numbers)  # in half the time of `array.array`


def flat_values(flat: list[Any], where: str, width: int = 0) -> Values:
    """Scalars, or rows of `width` numbers one after the other. Raises Refused for other values."""
    if len(flat) >= _MANY:
        try:
            doubles = _doubles(flat)
        except (struct.error, OverflowError):
            pass  # not numbers alone: told apart below
        else:
            values = Values(where, flat, width, True, None, doubles)
            if not values.finite():
                raise Refused(where, "has a number that is not finite")
            return values
    kinds = set(map(type, flat))
    numeric = kinds <= _NUMBERS
    if numeric:
        if float in kinds and not isfinite(sum(flat)) and not all(map(isfinite, flat)):
            raise Refused(where, "has a number that is not finite")
    elif not kinds <= _NUMBERS | {str}:
        if list in kinds:
            raise Refused(where, "has more than two dimensions, or mixes rows and scalars")
        raise Refused(where, "may hold numbers and strings only")
    elif width:
        raise Refused(where, "has strings in rows of several columns")
    return Values(where, flat, width, numeric)


def shaped(flat: list[Any], dims: Sequence[int], where: str) -> Values:
    """`flat` laid out as `dims`; dimensions of 1 beyond the first are dropped. Raises Refused."""
    return flat_values(flat, where, _width(len(flat), dims, where))


def reshaped(values: Values, dims: Sequence[int], where: str) -> Values:
    """`values` laid out as `shaped` lays out a list. Raises Refused."""
    if values.doubles is None:
        return shaped(list(values.flat), dims, where)
    width = _width(len(values.doubles) // 8, dims, where)
    values.width = width
    values.rows = len(values.doubles) // 8 // (width or 1)
    return values


def _width(size: int, dims: Sequence[int], where: str) -> int:
    """The width of rows of so many scalars in all; 0 for no rows. Raises Refused."""
    if prod(dims) != size:
        shape = one_line("×".join(map(str, dims)), 60) or "a scalar"
        raise Refused(where, f"{size} values for the shape {shape}")
    if not size:
        raise Refused(where, "has no rows")
    rest = [each for each in dims[1:] if each != 1]
    if len(rest) > 1:
        raise Refused(where, f"has {len(dims)} dimensions; rows and columns are taken")
    return rest[0] if rest else 0


def shape_of(shape: Any, where: str) -> list[int]:
    """The sizes of a shape. Raises Refused for what is none."""
    if type(shape) is not list or any(type(size) is not int or size < 0 for size in shape):
        raise Refused(where, "must be a list of sizes, each 0 or more")
    if len(shape) > _MAX_DIMENSIONS:
        raise Refused(where, f"has {len(shape)} dimensions")
    return shape


_MAX_DIMENSIONS = 32
"""Sizes that are multiplied at all: the product of a million would take hours."""
