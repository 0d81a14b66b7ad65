"""Files of feedback -> records, each an event's data and attributes, or the line that is broken.

JSON lines, a JSON array, or CSV with a header. A record's JSON is feedback as the function takes
it, perhaps with `id` and `time` beside `truth`, or a structured CloudEvent. CSV has the columns
`truth`, `prediction` or one column a class, and perhaps `id`, `time`, `reward`; a line is a record.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain
from math import isfinite, nan
from typing import IO, Any, NamedTuple

import orjson

from ..config import FEEDBACK_TYPE
from ..errors import Refused
from ..events import STRUCTURED, parse_time, read_events
from ..payload import load_json, one_line, parse

FORMATS = ("auto", "jsonl", "json", "csv")
_BOM = b"\xef\xbb\xbf"
_COLUMN = re.compile(r"p(0|[1-9][0-9]*)")
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Record:
    """One event to be sent, and where it stood."""

    file: str
    line: int
    body: bytes
    attributes: dict[str, str] = field(default_factory=dict)
    """What the record itself says of its event: `id`, `time`, `requestid`."""
    structured: bool = False
    """Whether `body` is a whole CloudEvent."""


class Broken(NamedTuple):
    """A line that is no record."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Form:
    """How files are to be read."""

    format: str = "auto"
    probabilities: tuple[str, ...] = ()
    """Columns of probabilities in the order of the classes; they name the classes, too."""
    text: bool = False
    """Whether truths and predictions are names even where they look like numbers."""


def read_records(stream: IO[bytes], file: str, form: Form) -> Iterator[Record | Broken]:
    """The records of a file, in order. Lines are read as they come."""
    lines = enumerate(stream, 1)
    first = next(((at, line) for at, line in lines if line.removeprefix(_BOM).strip()), None)
    if first is None:
        return
    at, line = first
    line = line.removeprefix(_BOM)
    rest = chain(((at, line),), lines)
    kind = _kind(form.format, file, line)
    if kind == "csv":
        yield from _csv(rest, file, form)
    elif kind == "jsonl":
        for at, line in rest:
            if line.strip():
                yield _record(file, at, line.strip())
    else:
        yield from _json(b"".join(line for _, line in rest), file, at)


def _kind(format: str, file: str, line: bytes) -> str:
    """csv, jsonl, or json: an array, or one object over several lines."""
    suffix = file.rpartition(".")[2].lower() if format == "auto" else format
    if suffix in ("csv", "tsv"):
        return "csv"
    if suffix in ("jsonl", "ndjson"):
        return "jsonl"
    begin = line.lstrip()[:1]
    if begin == b"[":
        return "json"
    if suffix != "json":
        return "jsonl" if begin == b"{" else "csv"
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return "json"
    return "jsonl"


# --- JSON -------------------------------------------------------------------------------------


def _json(text: bytes, file: str, line: int) -> Iterator[Record | Broken]:
    """The elements of an array, or the one value there is; nothing follows a syntax error."""
    source = text.decode(errors="surrogateescape")
    seen = 0  # up to here newlines are counted
    try:
        for at, end in _values(source):
            line, seen = line + source.count("\n", seen, at), at
            yield _record(file, line, source[at:end].encode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        line += source.count("\n", seen, getattr(error, "pos", seen))
        reason = getattr(error, "msg", "nested too deeply")
        yield Broken(file, line, f"not JSON: {reason}; nothing after it is read")


def _values(source: str) -> Iterator[tuple[int, int]]:
    """Where each value begins and ends. Raises JSONDecodeError, RecursionError."""
    scan = json.JSONDecoder().raw_decode
    at = _skip(source, 0)
    if source[at] == "[":
        at = _skip(source, at + 1)
        while source[at : at + 1] != "]":
            _, end = scan(source, at)
            yield at, end
            at = _skip(source, end)
            if source[at : at + 1] == ",":
                at = _skip(source, at + 1)
            elif source[at : at + 1] != "]":
                raise json.JSONDecodeError("no ',' or ']'", source, at)
        end = at + 1
    else:
        _, end = scan(source, at)
        yield at, end
    if _skip(source, end) < len(source):
        raise json.JSONDecodeError("more after the end", source, _skip(source, end))


_SPACE = re.compile(r"[ \t\r\n]*")


def _skip(text: str, at: int) -> int:
    """The first place from `at` on that is no white space."""
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _record(file: str, line: int, body: bytes) -> Record | Broken:
    """The record that one JSON value is."""
    try:
        value = load_json(body, "")
        if type(value) is dict and "specversion" in value:
            return _cloud_event(file, line, body)
        parse(value)
        return Record(file, line, body, _attributes(value))
    except Refused as error:
        return Broken(file, line, str(error))


def _attributes(value: Mapping[str, Any]) -> dict[str, str]:
    """What a record says of its event. Raises Refused."""
    attributes = {}
    for name in ("id", "requestid"):
        text = value.get(name)
        if text not in (None, ""):
            if type(text) not in (str, int):
                raise Refused(name, "must be a text or an integer")
            attributes[name] = str(text)
    if value.get("time") not in (None, ""):
        attributes["time"] = _time(value["time"])
    return attributes


def _cloud_event(file: str, line: int, body: bytes) -> Record:
    """An event as it is, sent as it is. Raises Refused."""
    (event,), _ = read_events({"content-type": STRUCTURED}, body)
    if event.type == FEEDBACK_TYPE:
        event.feedback()
    return Record(file, line, body, structured=True)


def _time(value: Any) -> str:
    """RFC 3339 of a time, or of epoch seconds. Raises Refused."""
    if type(value) is str:
        value = value.strip()
        if not _FLOAT.fullmatch(value):
            parse_time(value, "time")
            return str(value)
        value = float(value)
    if type(value) not in (int, float) or not isfinite(value):
        raise Refused("time", "must be RFC 3339 or epoch seconds")
    try:
        moment = datetime.fromtimestamp(value, timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise Refused("time", f"{value!r} is no moment") from None
    return moment.isoformat().replace("+00:00", "Z")


# --- CSV --------------------------------------------------------------------------------------


def _csv(lines: Iterator[tuple[int, bytes]], file: str, form: Form) -> Iterator[Record | Broken]:
    """A record a line: no cell goes on in the next, so that a stray quote spoils its line only."""
    columns: Sequence[str] | None = None
    for at, line in lines:
        try:
            text = line.decode().rstrip("\r\n")
            if columns is None:
                delimiter = max(",;\t", key=text.count)
                names = [name.strip() for name in _cells(text, delimiter)]
                columns = _probabilities(names, form)
            elif text.strip():
                cells = [cell.strip() for cell in _cells(text, delimiter)]
                if len(cells) != len(names):
                    raise Refused("", f"{len(cells)} cells for {len(names)} columns")
                row = dict(zip(names, cells, strict=True))
                body = orjson.dumps(_feedback(row, columns, form))
                parse(load_json(body, ""))
                yield Record(file, at, body, _attributes(row))
        except (Refused, csv.Error, UnicodeDecodeError) as error:
            reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            if columns is None:
                yield Broken(file, at, f"{reason}; nothing is read")
                return
            yield Broken(file, at, reason)


def _cells(text: str, delimiter: str) -> list[str]:
    return next(csv.reader([text], delimiter=delimiter, strict=True), [])


def _probabilities(names: Sequence[str], form: Form) -> Sequence[str]:
    """The columns of probabilities in a header, by class. Raises Refused for one without sense."""
    count = sum(bool(_COLUMN.fullmatch(name)) for name in names)
    columns = form.probabilities or [f"p{at}" for at in range(count)]
    for name in ("truth", *columns):
        if names.count(name) != 1:
            found = one_line(", ".join(names), 80)
            raise Refused("", f"the header needs one column {one_line(name, 40)!r}: {found}")
    return columns


def _feedback(row: Mapping[str, str], columns: Sequence[str], form: Form) -> dict[str, Any]:
    """The feedback in one line. Raises Refused, naming the column."""
    feedback: dict[str, Any] = {"truth": _message(_label(row, "truth", form))}
    if columns:
        feedback["response"] = _message([_number(row, name) for name in columns])
        if form.probabilities:
            feedback["response"]["data"]["names"] = columns
    elif row.get("prediction"):
        feedback["response"] = _message(_label(row, "prediction", form))
    elif not row.get("reward") and not row.get("requestid"):
        raise Refused("", "neither a prediction nor a reward nor a requestid")
    if row.get("reward"):
        feedback["reward"] = _number(row, "reward")
    return feedback


def _message(value: Any) -> dict[str, Any]:
    return {"data": {"ndarray": [value]}}


def _label(row: Mapping[str, str], name: str, form: Form) -> str | int | float:
    """A name, an integer or a number; `007` and integers past 18 digits are names."""
    text = row[name]
    if not text:
        raise Refused(name, "empty")
    if form.text:
        return text
    if _INTEGER.fullmatch(text):
        return int(text)
    if text.lstrip("+-").isdigit() or not _FLOAT.fullmatch(text):
        return text
    return _number(row, name)


def _number(row: Mapping[str, str], name: str) -> float:
    text = row[name]
    number = float(text) if _FLOAT.fullmatch(text) else nan
    if not isfinite(number):
        raise Refused(name, f"{one_line(text, 40)!r} is no finite number")
    return number
