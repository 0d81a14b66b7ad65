"""HTTP/1.1 over asyncio: requests out of a connection's bytes, and answers back in their order.

llhttp (Node's parser, by httptools) reads; what is written here is only what hosts between a parser
and a loop do. It exists because it is the hot path: a coroutine, a task and a queue for each
request cost more than counting it does. Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import asyncio
import time as clock
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import httptools

MAX_HEAD = 1 << 16
"""Bytes of a request's line and headers."""
MAX_WAITING = 16
"""Requests of one connection that are read before the first of them is answered."""
PATIENCE_SECONDS = 20.0
"""How long a head may take to arrive, or the next part of a body."""


@dataclass(slots=True)
class Request:
    """One request; headers have lower-case names, and the last of equal ones counts."""

    method: str
    target: bytes
    headers: dict[str, str]
    body: bytes
    """Empty where `size` is more than was to be held."""
    size: int
    keep: bool
    """Whether the connection stays open."""


Handle = Callable[["Connection", Request], None]
"""Has the connection's `answer` called once, now or later, in the loop's thread."""


class Connection(asyncio.Protocol):
    """One client's connection: hands on a request at a time."""

    def __init__(self, handle: Handle, limit: int, all: set[Connection]) -> None:
        self._handle = handle
        self._limit = limit
        self._all = all
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._under_way: Request | None = None
        self._done = False
        """Whether nothing more is read."""
        self._stopping = False
        """Whether nothing is read after the request whose first bytes are there."""
        self._late = False
        """Whether what is being read was already so at the last look; see `sweep`."""
        self._head = 0
        self._reading = False
        self._begin()

    # --- asyncio.Protocol --------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Take note of the client."""
        self._transport = transport
        self._all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, and nobody waits for answers any more."""
        self._all.discard(self)
        self._waiting.clear()

    def eof_received(self) -> bool:
        """The client sends no more, but may wait for answers yet."""
        self._done = True
        return self._under_way is not None

    def data_received(self, data: bytes) -> None:
        """Read what came; whole requests are handed on."""
        if self._done:
            return
        if not self._reading:
            self._head += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._give_up(HTTPStatus.BAD_REQUEST)
        if self._head > MAX_HEAD and not self._reading:
            self._give_up(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    # --- llhttp's callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._head += 1
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading:
            return  # a trailer
        known = _NAMES.get(name)
        self._headers[_name(name) if known is None else known] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._reading = True
        self._head = 0
        headers = self._headers
        expected = "expect" in headers and headers["expect"].lower() == "100-continue"
        if expected and not self._under_way:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._late = False
        self._size += len(part)
        if self._size <= self._limit:
            self._parts.append(part)
        else:
            self._parts.clear()  # read on to the end, so that the client gets to hear the answer

    def on_message_complete(self) -> None:
        parts, parser = self._parts, self._parser
        if parser.should_upgrade():
            return  # llhttp stops at the end of the head; see `_decline`
        self._reading = self._late = False
        keep = parser.should_keep_alive() and not self._stopping
        request = Request(
            parser.get_method().decode(),
            self._target,
            self._headers,
            parts[0] if len(parts) == 1 else b"".join(parts),
            self._size,
            keep,
        )
        if self._done:
            return
        self._done = not keep
        if self._under_way is None:
            self._under_way = request
            self._handle(self, request)
            return
        self._waiting.append(request)
        if len(self._waiting) == MAX_WAITING:
            self._transport.pause_reading()

    def _decline(self, rest: bytes) -> None:
        """Read a request that offers another protocol as if it did not, as JDK's client expects."""
        if self._parser.get_method() == b"CONNECT":
            self._give_up(HTTPStatus.BAD_REQUEST)
            return
        method, headers = self._parser.get_method().decode(), self._headers
        kept = [f"{name}: {text}" for name, text in headers.items() if name not in _OFFERS]
        head = "\r\n".join([f"{method} {self._target.decode('latin-1')} HTTP/1.1", *kept, "", ""])
        self._parser = httptools.HttpRequestParser(self)
        self._reading = False
        self.data_received(head.encode("latin-1") + rest)

    def _begin(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._size = 0

    # --- answers -----------------------------------------------------------------------------

    def answer(
        self, status: int, headers: Iterable[tuple[str, str]], body: bytes, lines: str = ""
    ) -> None:
        """Answer the request that was handed on last; `lines` are more headers, ready to be sent.

        Each of them ends as lines of HTTP do.
        """
        request, self._under_way = self._under_way, None
        assert request is not None
        if self._transport.is_closing():
            return
        keep = request.keep and not (self._done and not self._waiting)
        self._transport.write(_encoded(status, headers, body, lines, request, keep))
        if not keep:
            self._transport.close()
        elif self._waiting:
            if len(self._waiting) == MAX_WAITING:
                self._transport.resume_reading()
            self._under_way = self._waiting.popleft()
            self._handle(self, self._under_way)

    def stop(self) -> None:
        """Close the connection once what was read, or begun to be read, is answered."""
        if self._head or self._reading:
            self._stopping = True
        else:
            self._done = True
            if self._under_way is None:
                self._transport.close()

    def sweep(self) -> None:
        """Close the connection of a client that takes too long to send, or to take its last answer.

        To be called every PATIENCE_SECONDS.
        """
        closing = self._transport.is_closing()
        if self._late and closing:
            self._transport.abort()
        elif self._late:
            self._give_up(HTTPStatus.REQUEST_TIMEOUT)
        self._late = bool(closing or self._head or self._reading)

    def _give_up(self, status: HTTPStatus) -> None:
        """Answer what is no request, and close: nobody knows where the next one would begin."""
        self._done = True
        if self._under_way is None and not self._transport.is_closing():
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\n"
            self._transport.write(f"{head}content-length: 0\r\n\r\n".encode())
            self._transport.close()


_OFFERS = ("connection", "upgrade", "http2-settings", "expect")
_NAMES: dict[bytes, str] = {}
"""Names of headers as they came, and as they are known, as far as met."""
_MAX_NAMES = 1024


def _name(raw: bytes) -> str:
    name = raw.lower().decode("latin-1")
    if len(_NAMES) < _MAX_NAMES:
        _NAMES[raw] = name
    return name


def _encoded(
    status: int,
    headers: Iterable[tuple[str, str]],
    body: bytes,
    lines: str,
    request: Request,
    keep: bool,
) -> bytes:
    """An answer's bytes."""
    head = f"{_begun(status, int(clock.time()))}{lines}"
    for name, text in headers:
        head += f"{name}: {text}\r\n"
    if not keep:
        head += "connection: close\r\n"
    elif "connection" in request.headers:  # as HTTP/1.0 clients have to ask for it
        head += "connection: keep-alive\r\n"
    if request.method == "HEAD" or status in _WITHOUT_BODY:
        body = b""
    else:
        head += f"content-length: {len(body)}\r\n"
    return f"{head}\r\n".encode("latin-1", "replace") + body


_WITHOUT_BODY = (HTTPStatus.NO_CONTENT.value, HTTPStatus.NOT_MODIFIED.value)


@lru_cache(maxsize=64)
def _begun(status: int, second: int) -> str:
    """The lines that all answers of a status begin with in a second (of the epoch)."""
    date = formatdate(second, usegmt=True)
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ndate: {date}\r\n"
