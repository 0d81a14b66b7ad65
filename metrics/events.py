"""CloudEvents 1.0 over HTTP, in and out: the one place that knows their attributes.

In: binary mode (`ce-*` headers), structured JSON, batched JSON, or plain feedback JSON without
any attribute. Out: binary mode, or a batch. Written by hand because it is the hot path: the SDK's
`from_http` and `to_binary` cost more than counting the event does. Source: the CloudEvents
specification and its HTTP protocol binding, 1.0.2.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from hashlib import blake2b
from typing import Any
from urllib.parse import quote, unquote

import orjson

from .errors import Refused, TooLarge
from .payload import (
    MAX_LABEL,
    NO_BUDGET,
    Budget,
    Feedback,
    check_label,
    decode,
    load_json,
    one_line,
    parse,
)

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
JSON = "application/json"

MAX_BATCH = 10_000
"""Events of a batch: each takes some kilobytes until all of them are committed in one transaction,
however short it is."""

_REQUIRED = ("id", "source", "type", "specversion")
_UNUSED = ("subject", "datacontenttype", "dataschema")
_CORE = (*_REQUIRED, "time", *_UNUSED)
_NAME = re.compile(r"[a-z0-9]{1,64}")
_MAX_ATTRIBUTE = 2048
"""Characters of an attribute; the specification promises 64 KiB for a whole event, no more."""
_HEADER_SAFE = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(slots=True)
class Event:
    """One event as it came; `id` and `source` are empty for plain JSON."""

    id: str
    source: str
    type: str
    time: float | None
    """Epoch seconds."""
    extensions: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    data: Any = None
    """Decoded data of a structured event, where `body` is None."""
    shared: Budget = NO_BUDGET
    """What `data` may stand for, with that of all other events of the request."""

    @property
    def budget(self) -> Budget:
        """What its data may stand for beyond what it spells out."""
        return self.shared if self.body is None else Budget(len(self.body))

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for `(source, id)`; empty where the event has no id."""
        if not self.id:
            return b""
        return blake2b(orjson.dumps((self.source, self.id)), digest_size=16).digest()

    def feedback(self) -> Feedback:
        """What the event's data says. Raises Refused."""
        return decode(self.body) if self.body is not None else parse(self.data, self.shared)

    def json(self) -> Any:
        """The event's data. Raises Refused where it is no JSON."""
        return load_json(self.body, "data") if self.body is not None else self.data


def read_events(headers: Mapping[str, str], body: bytes) -> tuple[list[Event], bool]:
    """The events of a request, and whether it was a batch.

    `headers` have lower-case names. Raises Refused, which names the attribute at fault.
    """
    content_type = media_type(headers.get("content-type", ""))
    if content_type == STRUCTURED:
        return [structured(load_json(body, "data"), "", Budget(len(body)))], False
    if content_type == BATCH:
        return read_batch(body), True
    if content_type.startswith("application/cloudevents"):
        raise Refused("content-type", f"{one_line(content_type, 60)!r}: only JSON is read")
    attributes: dict[str, str] = {}
    for header, value in headers.items():
        name = _ATTRIBUTES.get(header)
        if name is not None:
            attributes[name] = value
        elif header[:3] == "ce-":
            attributes[_attribute(header)] = value
    if not attributes:
        return [Event("", "", "", None, body=body)], False
    text = "".join(attributes.values())
    if "%" in text or not text.isascii():
        for name, value in attributes.items():
            attributes[name] = _header_text(value, f"ce-{name}")
        text = "".join(attributes.values())
    return [_event(attributes, text, "ce-", body)], False


def read_batch(body: bytes) -> list[Event]:
    """The events of a batch. Raises Refused, which names the event and its attribute at fault."""
    batch = load_json(body, "data")
    if type(batch) is not list:
        raise Refused("data", "a batch must be a JSON array of events")
    if len(batch) > MAX_BATCH:
        raise TooLarge("data", f"{len(batch)} events; at most {MAX_BATCH} are taken in a batch")
    budget = Budget(len(body))
    return [structured(each, f"[{at}].", budget) for at, each in enumerate(batch)]


@lru_cache(maxsize=64)
def media_type(content_type: str) -> str:
    """The media type that a Content-Type header names, without its parameters."""
    return content_type.partition(";")[0].strip().lower()


_ATTRIBUTES = {f"ce-{name}": name for name in _CORE}
"""Headers and their attributes, as far as met: names that are one object are found at once."""
_MAX_ATTRIBUTES = 1024


def _attribute(header: str) -> str:
    """The attribute that a header holds. Raises Refused."""
    name = header[3:]
    _check_name(name, "ce-")
    if len(_ATTRIBUTES) < _MAX_ATTRIBUTES:
        _ATTRIBUTES[header] = name
    return name


def structured(value: Any, where: str, budget: Budget) -> Event:
    """A decoded event of structured mode; `where` goes before what is at fault. Raises Refused."""
    if type(value) is not dict:
        raise Refused(where.rstrip(".") or "data", "an event must be a JSON object")
    attributes: dict[str, str] = {}
    for name, text in value.items():
        if name in ("data", "data_base64") or text is None:
            continue
        if type(text) is bool:
            text = "true" if text else "false"
        elif type(text) is int:
            text = str(text)
        elif type(text) is not str:
            raise Refused(f"{where}{one_line(name, 64)}", "must be a string, integer or boolean")
        _check_name(name, where)
        attributes[name] = text
    event = _event(attributes, "".join(attributes.values()), where)
    if "data_base64" in value:
        if "data" in value or type(value["data_base64"]) is not str:
            raise Refused(f"{where}data_base64", "must be the only data, a base64 string")
        try:
            event.body = b64decode(value["data_base64"], validate=True)
        except ValueError:
            raise Refused(f"{where}data_base64", "not base64") from None
    else:
        event.data = value.get("data")
        event.shared = budget
    return event


def _event(
    attributes: dict[str, str], everything: str, where: str, body: bytes | None = None
) -> Event:
    """The event with these attributes, checked; takes those of its core out of `attributes`.

    `everything` is what they all say, in one.
    """
    if len(everything) > _MAX_ATTRIBUTE or not everything.isprintable():
        for name, text in attributes.items():
            if len(text) > _MAX_ATTRIBUTE:
                raise Refused(f"{where}{name}", f"{len(text)} characters; at most {_MAX_ATTRIBUTE}")
            _check_text(text, f"{where}{name}")
    take = attributes.pop
    id, source, type = take("id", ""), take("source", ""), take("type", "")
    version = take("specversion", "")
    if not (id and source and type and version):
        name = _REQUIRED[(id, source, type, version).index("")]
        raise Refused(f"{where}{name}", "missing: it is required of a CloudEvent")
    if version not in ("1.0", "0.3"):
        raise Refused(f"{where}specversion", "must be 1.0")
    time = take("time", None)
    for name in _UNUSED:
        take(name, None)
    moment = None if time is None else parse_time(time, f"{where}time")
    return Event(id, source, type, moment, attributes, body)


def _check_name(name: str, where: str) -> None:
    """Raises Refused for what is no name of an attribute."""
    if not _NAME.fullmatch(name):
        raise Refused(f"{where}{one_line(name, 64)}", "is no CloudEvents attribute name")


def _check_text(text: str, where: str) -> None:
    """Raises Refused for control characters and surrogates; other Unicode is fine."""
    for start in range(0, len(text), 256):
        check_label(text[start : start + 256], where)


def _header_text(value: str, name: str) -> str:
    """A header's text: percent-decoded, and as UTF-8 where raw bytes came as Latin-1."""
    if not value.isascii():
        try:
            value = value.encode("latin-1").decode()
        except UnicodeError:
            pass  # it was text already
    if "%" in value:
        try:
            value = unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise Refused(name, "percent-encodes something that is not UTF-8") from None
    return value


def parse_time(text: str, where: str) -> float:
    """Epoch seconds of an RFC 3339 time, 0 for one before 1970. Raises Refused, naming `where`.

    A clock that was never set says 1970, 1900 or 0001; such an event is too old for any window, but
    it happened. A leap second is the first of the next day, as in POSIX.
    """
    match = _TIME.fullmatch(text)
    if match:
        second, fraction, zone = match.groups()
        try:
            return _epoch(second, zone) + (float(fraction) if fraction else 0.0)
        except (ValueError, OverflowError):
            raise Refused(where, f"{text!r} is no moment") from None
    raise Refused(where, f"{one_line(text, 40)!r} is no RFC 3339 time")


@lru_cache(maxsize=1024)
def _epoch(second: str, zone: str) -> float:
    """Epoch seconds of `2026-01-31T12:00:00` in a zone such as `Z` or `+01:00`; 0 before 1970."""
    offset = "+00:00" if zone in "Zz" else zone
    is_leap = second[17:] == "60"
    if is_leap:
        second = f"{second[:17]}59"
    moment = datetime.fromisoformat(second.upper() + offset).timestamp() + is_leap
    if is_leap and moment % 86400:
        raise ValueError("a leap second ends a day")
    return max(0.0, moment)


@lru_cache(maxsize=1024)
def format_time(seconds: int) -> str:
    """RFC 3339, UTC, of epoch seconds."""
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat().replace("+00:00", "Z")


def shown_time(seconds: float) -> str | None:
    """`format_time`; None for what is no time that a calendar has."""
    try:
        return format_time(int(seconds))
    except (ValueError, OverflowError, OSError, TypeError):
        return None


# --- out --------------------------------------------------------------------------------------


def carried(extensions: Mapping[str, str]) -> dict[str, str]:
    """The extension attributes that an emitted event takes over from the one it answers."""
    return {name: text for name, text in extensions.items() if _is_carried(name)}


def _is_carried(name: str) -> bool:
    return name[:7] != "knative"


def binary_headers(attributes: Mapping[str, str]) -> list[tuple[str, str]]:
    """The headers of an event in binary mode whose data is JSON."""
    return [*_CONTENT, *[_header(name, text) for name, text in attributes.items()]]


_CONTENT = [("content-type", JSON), ("ce-specversion", "1.0")]


def _header(name: str, text: str) -> tuple[str, str]:
    """Space, quote, percent and all beyond printable ASCII are percent-encoded.

    Long texts are not cached: what clients send must not fill the memory.
    """
    made = _short_header if len(text) <= MAX_LABEL else _short_header.__wrapped__
    return made(name, text)


@lru_cache(maxsize=512)
def _short_header(name: str, text: str) -> tuple[str, str]:
    plain = text.isascii() and text.isalnum()
    return f"ce-{name}", text if plain else quote(text, safe=_HEADER_SAFE)


def lines_of(headers: Iterable[tuple[str, str]]) -> str:
    """Headers as they are sent."""
    return "".join([f"{name}: {text}\r\n" for name, text in headers])


def own_lines(id: str, time: int, extensions: Mapping[str, str], shared: Container[str]) -> str:
    """The headers, as they are sent, that an emitted event does not share with others.

    Its id, its time (epoch seconds), and the extensions it takes over that are not `shared`.
    """
    lines = f"ce-id: {id}\r\n{_time_line(time)}"
    for name, text in extensions.items():
        if name not in shared and _is_carried(name):
            lines += lines_of([_header(name, text)])
    return lines


@lru_cache(maxsize=64)
def _time_line(time: int) -> str:
    return lines_of([_header("time", format_time(time))])


def batch_body(events: Iterable[tuple[Mapping[str, str], bytes]]) -> bytes:
    """A batch of events whose data is JSON already."""
    parts = []
    for attributes, data in events:
        head = {"specversion": "1.0", **attributes, "datacontenttype": JSON}
        parts.append(orjson.dumps(head)[:-1] + b',"data":' + data + b"}")
    return b"[" + b",".join(parts) + b"]"
