"""JSON with large arrays, read slice by slice: less memory, and no long call that holds the GIL.

orjson makes an object of every number and list of a body before any of them can be looked at: up
to thirty times the body's bytes, in one call. `load` cuts long arrays of scalars or of rows out of
the body, reads them by slices of SLICE bytes, and keeps numbers as doubles. Whatever is not of that
form is not read here: `load` returns None, and the caller reads the body as a whole, with the same
result or its proper error.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from itertools import chain
from struct import error, pack, unpack_from
from typing import Any

import orjson

MIN_BODY = 1 << 18
"""Bytes from which a body is worth it."""
SLICE = 1 << 17
_MIN_ARRAY = 1 << 16
_MAX_SHARED = 10_000
"""Distinct scalars of an array that are made one object each."""

_STARTS = re.compile(rb'"(?:ndarray|predictions|data|values|[a-z0-9]+(?:_v|V)al)"\s*:\s*\[')
_ROWS_END = re.compile(rb"\]\s*\]")
_BLANK = b" \t\r\n"
_MARK = "\0large array "
_KINDS = {int, float}
_NUMBERS = ({int}, {float}, _KINDS)


Loads = Callable[[bytes], Any]
"""Decodes JSON as `orjson.loads` does."""


class LargeArray:
    """An array of N scalars (`width` 0), or of N rows of `width` scalars."""

    __slots__ = ("doubles", "flat", "is_rows", "numeric", "width")

    def __init__(self) -> None:
        self.width = 0
        self.is_rows = False
        """Whether each scalar, or some of them, are a list of their own."""
        self.flat: list[Any] | array[int] | None = None
        """The scalars; None where it is enough to know them as doubles.

        Whole numbers that are not too large are an array.
        """
        self.doubles: bytes | bytearray | None = None
        """The scalars as doubles, where all are numbers; None for whole ones that may be labels."""
        self.numeric = True

    def scalars(self) -> Any:
        """The scalars, as far as types matter: a list or an array."""
        if self.flat is not None:
            return self.flat
        numbers = array("d")
        numbers.frombytes(self.doubles or b"")
        return numbers


class _OtherForm(Exception):
    """Raised within this module where a body must be read as a whole."""


def load(body: bytes, loads: Loads = orjson.loads) -> Any:
    """The JSON value in `body` with long arrays as `LargeArray`; None where that cannot be told."""
    arrays: list[LargeArray] = []
    parts: list[bytes] = []
    end = 0
    try:
        while (match := _STARTS.search(body, end)) is not None:
            at = match.end()
            array = _Reader(body, at)
            short = array.short_end()
            if short is not None:  # no long one begins within it, so no byte is searched twice
                parts.append(body[end:short])
                end = short
                continue
            parts += (body[end : at - 1], b'"\\u0000large array %d"' % len(arrays))
            end = array.read()
            arrays.append(array.result)
        if not arrays:
            return None
        value = loads(b"".join([*parts, body[end:]]))
        missing = dict(enumerate(arrays))
        _fill(value, missing)
        return None if missing else value
    except (_OtherForm, ValueError, error, OverflowError, RecursionError):
        return None


def _fill(value: Any, missing: dict[int, LargeArray]) -> None:
    """Put each array in its place, which is a value of an object, and only there."""
    for key, inner in value.items() if type(value) is dict else enumerate(value):
        if type(inner) is str and inner.startswith(_MARK):
            number = inner[len(_MARK) :]
            array = missing.pop(int(number), None) if number.isdecimal() else None
            if array is None or type(value) is not dict:
                raise _OtherForm  # a text of the body's own
            value[key] = array
        elif type(inner) in (dict, list):
            _fill(inner, missing)


class _Reader:
    """Reads one array from just after its bracket on."""

    def __init__(self, body: bytes, at: int) -> None:
        self._body = body
        self._at = at
        self.result = LargeArray()
        head = body[at : at + 64].lstrip(_BLANK)
        self._rows = head.startswith(b"[")
        self.result.is_rows = self._rows
        self._doubles = bytearray()
        self._width = 0
        self._kinds: set[type] = set()
        self._is_typed = True
        """Whether it matters how numbers are written: they may be labels."""
        self._known: dict[type, dict[Any, Any]] = {}

    def short_end(self) -> int | None:
        """Where an array of at most _MIN_ARRAY bytes, or the body, ends; None for a longer one."""
        end = self._end(self._at, self._at + _MIN_ARRAY)
        if end >= 0:
            return end
        return None if self._at + _MIN_ARRAY < len(self._body) else len(self._body)

    def _end(self, start: int, stop: int) -> int:
        """Where the last item within the array ends, if that is before `stop`; else -1."""
        if not self._rows:
            return self._body.find(b"]", start, stop)
        match = _ROWS_END.search(self._body, start, stop)
        return match.start() + 1 if match else -1

    def read(self) -> int:
        """Where the body goes on after the array."""
        body, at = self._body, self._at
        separator = b"]" if self._rows else b","
        while True:
            end = self._end(at, at + SLICE)
            last = end >= 0
            if not last:
                end = body.rfind(separator, at, at + SLICE) + self._rows
                if end <= at:
                    raise _OtherForm
            self._take(orjson.loads(b"[%b]" % body[at:end]))
            if last:
                break
            at = self._skip(end, b",")
        self._close()
        return self._skip(end, b"]")

    def _skip(self, at: int, wanted: bytes) -> int:
        """Where the body goes on after this character, which must come next."""
        while (byte := self._body[at : at + 1]) in (b" ", b"\t", b"\r", b"\n"):
            at += 1
        if byte != wanted:
            raise _OtherForm
        return at + 1

    def _take(self, items: list[Any]) -> None:
        """Add the items of one slice."""
        result = self.result
        if not items:
            raise _OtherForm
        if self._rows:
            if set(map(type, items)) != {list}:
                raise _OtherForm
            self._width = self._width or len(items[0])
            if set(map(len, items)) != {self._width}:
                raise _OtherForm
            if not self._kinds and self._width > 1:
                result.width = self._width
                self._is_typed = set(map(type, items[0])) <= _KINDS and set(items[0]) <= {0, 1}
            items = list(chain.from_iterable(items))
        self._kinds |= set(map(type, items))
        if self._kinds == {str} and not self._rows:
            result.numeric = False
        elif self._kinds == {int} and self._is_typed:
            pass  # labels, as a rule: no need of doubles yet
        elif self._kinds in _NUMBERS:
            if self.result.flat is not None and not self._doubles:
                self._doubles += pack(f"{len(self.result.flat)}d", *self.result.flat)
            self._doubles += pack(f"{len(items)}d", *items)
        else:
            raise _OtherForm
        if self._is_typed and self._kinds != {float}:
            if result.flat is None:  # whatever came before are floats
                count = max(0, len(self._doubles) // 8 - len(items))
                before = unpack_from(f"{count}d", self._doubles)
                result.flat = list(before) if before else array("B")
            if isinstance(result.flat, array) and self._kinds == {int}:
                result.flat = _longer(result.flat, items)
            else:
                if isinstance(result.flat, array):
                    result.flat = result.flat.tolist()
                result.flat.extend(self._shared(items))

    def _shared(self, items: list[Any]) -> list[Any]:
        """The items, equal ones as one object where there are few distinct ones."""
        kind = type(items[0])
        known = self._known.setdefault(kind, {})
        if len(known) > _MAX_SHARED or set(map(type, items)) != {kind}:
            return items
        return list(map(known.setdefault, items, items))

    def _close(self) -> None:
        """Settle what is kept."""
        if self.result.numeric and self._doubles:
            self.result.doubles = self._doubles


def _longer(numbers: array[int], items: list[int]) -> array[int] | list[int]:
    """An array with more whole numbers, or a list where one is too large."""
    try:
        more = array(numbers.typecode, items)
    except OverflowError:
        if numbers.typecode == "B":
            return _longer(array("i", numbers), items)
        return [*numbers, *items]
    numbers.extend(more)
    return numbers
