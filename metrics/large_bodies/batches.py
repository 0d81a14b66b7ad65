"""A batch cut into its events without decoding them: each is decoded alone, most of them small."""

from __future__ import annotations

import re

Span = tuple[int, int]
"""Where an event begins and ends in the body of its batch."""

_SIGN = re.compile(rb'["{}\[\]]')
_IN_TEXT = re.compile(rb'["\\]')
_SCALAR = re.compile(rb"[-+.\w]+")
_BLANKS = re.compile(rb"[ \t\r\n]*")


def split(body: bytes, most: int) -> list[Span] | None:
    """Where each event of a batch stands, up to `most`; None for what is no array of objects.

    That brackets are of the right kind is not checked: decoding an event does.
    """
    spans: list[Span] = []
    at = _after(body, 0, b"[")
    while at is not None:
        if len(spans) == most:
            return spans
        start = _blank(body, at)
        end = _end(body, start)
        if end is None or body[start : start + 1] != b"{":
            return None
        spans.append((start, end))
        at = _after(body, end, b",")
        if at is None:
            last = _after(body, end, b"]")
            return spans if last is not None and _blank(body, last) == len(body) else None
    return None


def without_data(event: bytes) -> bytes | None:
    """A structured event with null for its data; None where that cannot be told."""
    at = _after(event, 0, b"{")
    while at is not None:
        start = _blank(event, at)
        key_end = _text_end(event, start + 1) if event[start : start + 1] == b'"' else None
        colon = None if key_end is None else _after(event, key_end, b":")
        if colon is None:
            return None
        value = _blank(event, colon)
        end = _value_end(event, value)
        if end is None:
            return None
        if event[start:key_end] == b'"data"':
            return event[:value] + b"null" + event[end:]
        at = _after(event, end, b",")
    return None


def _value_end(body: bytes, at: int) -> int | None:
    """The end of the value at a place."""
    sign = body[at : at + 1]
    if sign == b'"':
        return _text_end(body, at + 1)
    if sign in (b"{", b"["):
        return _end(body, at)
    match = _SCALAR.match(body, at)
    return match.end() if match else None


def _blank(body: bytes, at: int) -> int:
    """The end of the white space at a place."""
    match = _BLANKS.match(body, at)
    return match.end() if match else at


def _after(body: bytes, at: int, sign: bytes) -> int | None:
    """The place after this sign, if it comes next."""
    at = _blank(body, at)
    return at + 1 if body[at : at + 1] == sign else None


def _end(body: bytes, at: int) -> int | None:
    """The end of the object or array at a place; None where none begins or ends."""
    if body[at : at + 1] not in (b"{", b"["):
        return None
    depth = 0
    while (match := _SIGN.search(body, at)) is not None:
        at = match.end()
        sign = match[0]
        if sign == b'"':
            closed = _text_end(body, at)
            if closed is None:
                return None
            at = closed
        elif sign in b"{[":
            depth += 1
        else:
            depth -= 1
            if not depth:
                return at
    return None


def _text_end(body: bytes, at: int) -> int | None:
    """The end of the string whose quote stands before a place."""
    while (match := _IN_TEXT.search(body, at)) is not None:
        at = match.end()
        if match[0] == b'"':
            return at
        at += 1  # what is escaped
    return None
