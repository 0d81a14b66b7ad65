"""HTTP/1.1 over asyncio: parses a connection's bytes into requests, writes answers in order.

llhttp (Node's parser, by httptools) parses; this module adds flow control, limits and deadlines.
It exists because it is the hot path: a coroutine, a task and a queue for each request cost more
than counting it does. Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import asyncio
import logging
import time as clock
from collections import deque
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httptools

if TYPE_CHECKING:
    from .connections import Connections, Handle

logger = logging.getLogger("metrics.http1")

MAX_HEAD = 1 << 16
"""Bytes of a request's line and headers; larger: 431."""
MAX_HEADERS = 256
"""Distinct headers of a request; more: 431."""
MAX_FRAMING = 1 << 14
"""Bytes of chunk extensions or trailers without a byte of the body between them; more: 400."""
MAX_WAITING = 16
"""Parsed requests of a connection that wait for an answer; then parsing stops.

One slice may exceed it by as many requests as SLICE bytes hold (227 of the shortest).
"""
READ_SIZE = 1 << 15
"""Bytes of one read, and so the most that is kept unparsed."""
SLICE = 1 << 12
"""Bytes that llhttp parses in one call: it cannot be paused within one."""
FREE_BODY = 1 << 15
"""Bytes of bodies that a connection may hold without a share of the budget; see `Connections`."""
MAX_UNSENT = 1 << 14
"""Bytes of answers in the transport's buffer above which no further request is handed on."""

HEAD_SECONDS = 20.0
"""How long a head may take to arrive."""
BODY_SECONDS = 20.0
"""How long the next part of a body may take to arrive."""
REQUEST_SECONDS = 60.0
"""How long a whole request may take to arrive."""
IDLE_SECONDS = 120.0
"""How long a connection may be idle: longer than Go's clients keep one (90 s)."""
TAKE_SECONDS = 20.0
"""How long a client may take no byte of its answers."""

_DONE = 1
"""Nothing more is parsed."""
_CHOKED = 2
"""The client does not take its answers as fast as they come."""
_STARVED = 4
"""The body's next bytes wait for a share of the budget."""
_FULL = 8
"""Bodies that wait for their answers hold as much as a connection may."""
_PAUSED = 16
"""Reading is paused."""
_EXPECTING = 32
"""The client waits for `100 Continue` before it sends the body."""
_NO_PARSING = _DONE | _CHOKED | _STARVED | _FULL


class Request:
    """One request; headers have lower-case names, and the last of equal ones counts."""

    __slots__ = (
        "body",
        "connection",
        "headers",
        "keep",
        "method",
        "size",
        "target",
    )

    def __init__(
        self,
        connection: Connection,
        method: str,
        target: bytes,
        headers: dict[str, str],
        body: bytes,
        size: int,
        keep: bool,
    ) -> None:
        self.connection = connection
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        """Empty where `size` is more than the limit."""
        self.size = size
        self.keep = keep
        """Whether the connection stays open."""

    def answer(
        self, status: int, headers: Iterable[tuple[str, str]], body: bytes, lines: str = ""
    ) -> None:
        """Send the answer; `lines` are more headers, each ended as HTTP's lines are.

        In the loop's thread. Only the first answer is sent: a second one is logged and dropped.
        """
        self.connection.send(self, status, headers, body, lines)


class Connection(asyncio.BufferedProtocol):
    """One client's connection: hands on one request at a time, the next after its answer."""

    def __init__(self, pool: Connections, handle: Handle) -> None:
        self._pool = pool
        self._handle = handle
        self._transport: Any = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._current: Request | None = None
        self._rest = b""
        """Bytes that are read, but not parsed yet."""
        self._pumping = False
        self._begun = False
        """Whether a part of a request is there."""
        self._reading = False
        """Whether its head is complete."""
        self._flags = 0
        self._spent = 0
        """Bytes of this head so far, about; of a body those since its last part."""
        self._stopping = False
        """Whether nothing is read after the request whose first bytes are there."""
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: bytes | bytearray = b""
        """A bytearray once there is more than one part."""
        self._size = 0
        self._discarding = False
        """Whether the body is too large to be kept."""
        self._refusal: HTTPStatus | None = None
        """What to answer, after the requests before it, to what is no acceptable request."""
        self._held = 0
        """Bytes of bodies of more than a slice that are not answered yet."""
        self._granted = FREE_BODY
        """Bytes that the body under way may have."""
        self._seen = self._lags = 0
        """See `lags`."""
        self._sharing: Request | None = None
        """The request that has a share of the budget until its answer."""
        self._unsent = 0
        self._began = self._moved = self._idle = self._stalled = pool.now
        self._closing = 0.0

    # --- asyncio.BufferedProtocol ------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Register the connection."""
        self._transport = transport
        if self._flags & _DONE:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=MAX_UNSENT)
        self._pool.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what was not handed on; the request under way is finished all the same."""
        self._flags |= _DONE
        self._rest = b""
        self._drop()
        self._pool.remove(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to; shared, since what is read is parsed or copied at once."""
        return self._pool.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what came and hand requests on."""
        if self._rest:  # was read before the pause took effect
            self._rest += bytes(self._pool.buffer[:nbytes])
        elif not self._flags & _DONE:
            self._pump(self._pool.buffer[:nbytes])

    def eof_received(self) -> bool:
        """Stay open while the client, which sends no more, waits for answers."""
        self._flags |= _DONE
        return self._current is not None or bool(self._waiting)

    def pause_writing(self) -> None:
        """Hand on and read nothing until the client has taken its answers."""
        self._flags |= _CHOKED
        self._unsent = self._transport.get_write_buffer_size()
        self._stalled = self._pool.now
        self._pool.stall(self)

    def resume_writing(self) -> None:
        """Go on with the requests that are there."""
        self._flags &= ~_CHOKED
        self._pool.stalled.pop(self, None)
        if not self._pumping:
            self._pump(self._rest)

    # --- the loop ----------------------------------------------------------------------------

    def _pump(self, data: bytes | memoryview) -> None:
        """Parse `data` and hand on requests until there is none, or the client must wait.

        A loop, never recursion: a handler may answer before it returns.
        """
        self._pumping = True
        waiting = self._waiting
        try:
            while True:
                while waiting and self._current is None and not self._flags & _CHOKED:
                    self._current = request = waiting.popleft()
                    self._handle(request)
                if not data or self._flags & _NO_PARSING or len(waiting) >= MAX_WAITING:
                    break
                if len(data) <= SLICE:
                    data = self._parse(data, b"")
                else:
                    data = self._parse(data[:SLICE], data[SLICE:])
        except Exception:  # a bug harms this connection only
            logger.exception("a connection is aborted")
            self._flags |= _DONE
            self._transport.abort()
        finally:
            self._pumping = False
        if data or self._flags:
            self._settle(data)
        else:
            self._rest = b""

    def _settle(self, data: bytes | memoryview) -> None:
        """Keep what is not parsed; close, or pause or resume reading."""
        flags = self._flags
        self._rest = b"" if flags & _DONE or not data else bytes(data)
        if flags & _DONE:
            if self._current is None and not self._waiting:
                self._end()
            return
        if self._rest or flags & (_CHOKED | _STARVED):
            self._flags |= _PAUSED
            self._transport.pause_reading()
        elif flags & _PAUSED:
            self._flags &= ~_PAUSED
            self._transport.resume_reading()
        if flags & _EXPECTING and self._current is None:
            self._flags &= ~_EXPECTING
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _parse(self, piece: bytes | memoryview, rest: bytes | memoryview) -> bytes | memoryview:
        """Parse one slice; what is to be parsed next of it and of the rest."""
        known = (self._headers, self._size) if self._begun else None
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade(bytes(piece[upgrade.args[0] :]) + bytes(rest))
        except httptools.HttpParserCallbackError:
            raise  # a bug
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST)
        if self._begun:
            self._measure(len(piece), known)
        return rest

    def _measure(self, parsed: int, known: tuple[object, int] | None) -> None:
        """Hold what is read of a request to the limits, after so many bytes more.

        `known` is what was read of the request under way before: its headers, and a size.
        """
        same = known is not None and known[0] is self._headers
        if not self._reading:
            if same or (known is None and not self._waiting):  # they all belong to this head
                self._spent += parsed
            if self._spent > MAX_HEAD or len(self._headers) > MAX_HEADERS:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif known is not None and same:
            self._spent = 0 if self._size != known[1] else self._spent + parsed
            if self._spent > MAX_FRAMING:
                self._refuse(HTTPStatus.BAD_REQUEST)

    # --- llhttp's callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._begun = True
        self._spent = 0
        self._began = self._pool.now
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._reading:
            return  # a trailer
        key = _NAMES.get(name)
        if key is None:
            key = _named(name)
        if key is _HOST and _HOST in self._headers:
            self._refuse(HTTPStatus.BAD_REQUEST)
        self._headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._reading = True
        self._moved = self._began
        headers = self._headers
        if "host" not in headers and self._parser.get_http_version() == "1.1":
            self._refuse(HTTPStatus.BAD_REQUEST)
        if len(headers) > MAX_HEADERS or (self._spent and self._head_size() > MAX_HEAD):
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        self._spent = 0
        if "expect" in headers and headers["expect"].lower() == "100-continue":
            old = self._parser.get_http_version() == "1.0"  # would take it for the answer
            self._flags |= 0 if old else _EXPECTING

    def on_body(self, part: bytes) -> None:
        self._moved = self._pool.now
        size = self._size
        self._size = size + len(part)
        if self._discarding:
            return  # read to its end all the same, so that the client gets to hear the answer
        if not size:
            self._body = part
            self._flags &= ~_EXPECTING
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += part
        if self._size > self._pool.limit:
            self._discard()
        elif self._size > self._granted and not self._flags & _STARVED:
            self._claim()

    def on_message_complete(self) -> None:
        parser = self._parser
        if parser.should_upgrade():
            return  # llhttp stops at the end of the head; see `_without_upgrade`
        self._begun = self._reading = False
        if self._flags & _DONE:
            return
        keep = parser.should_keep_alive() and not self._stopping
        body, size, method = bytes(self._body), self._size, parser.get_method().decode()
        request = Request(self, method, self._target, self._headers, body, size, keep)
        if size > SLICE:
            self._complete(request)
        self._waiting.append(request)
        if not keep:
            self._flags |= _DONE

    def _without_upgrade(self, rest: bytes) -> bytes:
        """The request that offers another protocol as one that does not, and what follows it.

        The offer is ignored (RFC 9110, 7.8): the JDK's client makes it with every request.
        """
        method, headers = self._parser.get_method(), self._headers
        if method == b"CONNECT" or self._flags & _DONE:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return b""
        lines = [f"{name}: {text}" for name, text in headers.items() if name not in _OFFERS]
        if "close" in headers.get("connection", "").lower():
            lines.append("connection: close")
        head = "\r\n".join(["", *lines, "", ""]).encode("latin-1")
        self._parser = httptools.HttpRequestParser(self)
        self._begun = self._reading = False
        return method + b" " + self._target + b" HTTP/1.1" + head + rest

    def _begin(self) -> None:
        self._target = b""
        self._headers = {}
        self._body = b""
        self._size = 0
        self._discarding = False

    def _head_size(self) -> int:
        """Bytes of the head as it is usually written."""
        lines = sum(len(name) + len(text) + 4 for name, text in self._headers.items())
        return len(self._parser.get_method()) + len(self._target) + 12 + lines + 2

    # --- the budget of bodies ----------------------------------------------------------------

    def _claim(self) -> None:
        """Ask for a share of the budget that holds the whole body, or wait for it."""
        told = self._headers.get("content-length", "")
        size = int(told) if told.isdigit() else self._pool.limit
        if size > self._pool.limit:
            self._discard()
        elif self._pool.claim(self, size):
            self._granted = size
            self._seen, self._lags = self._size, 0
        else:
            self._flags |= _STARVED

    def granted(self, size: int) -> None:
        """Go on with a body that waited for its share of the budget."""
        self._flags &= ~_STARVED
        self._granted = size
        self._moved = self._pool.now
        self._seen, self._lags = self._size, 0
        if not self._pumping:
            self._pump(self._rest)

    def _discard(self) -> None:
        """Keep nothing of a body that is too large."""
        self._body = b""
        self._discarding = True
        self._release()

    def _complete(self, request: Request) -> None:
        """Hold a body of more than a slice, and its share of the budget, until its answer."""
        self._body = b""
        self._held += len(request.body)
        if self._held > FREE_BODY:
            self._flags |= _FULL
        if self._flags & _STARVED:
            self._release()
        elif self._granted > FREE_BODY:
            self._sharing = request
            self._pool.shrink(self, request.size)
            self._granted = FREE_BODY

    def _let_go(self, request: Request) -> None:
        """Give back what an answered request held."""
        self._held -= len(request.body)
        if self._held <= FREE_BODY:
            self._flags &= ~_FULL
        if request is self._sharing:
            self._sharing = None
            self._pool.release(self)

    def _release(self) -> None:
        """Give the share of the body under way back."""
        if self._flags & _STARVED or self._granted > FREE_BODY:
            self._flags &= ~_STARVED
            self._granted = FREE_BODY
            self._pool.release(self)

    def _drop(self) -> None:
        """Forget the requests that were not handed on, and what was read of the next one."""
        while self._waiting:
            self._let_go(self._waiting.popleft())
        self._release()
        self._begin()

    def lags(self, least: int) -> int:
        """How many looks in a row found fewer than `least` more bytes of the body under way.

        To be called at each look; the first comes after the body got its share of the budget.
        """
        if not self._reading:
            return 0
        self._lags = 0 if self._size - self._seen >= least else self._lags + 1
        self._seen = self._size
        return self._lags

    # --- answers -----------------------------------------------------------------------------

    def send(
        self,
        request: Request,
        status: int,
        headers: Iterable[tuple[str, str]],
        body: bytes,
        lines: str = "",
    ) -> None:
        """Write the answer to the request that was handed on last, then go on with the next."""
        if request is not self._current:
            logger.warning("a second answer to one request is dropped (status %d)", status)
            return
        self._current = None
        self._idle = self._pool.now
        if request.size > SLICE:
            self._let_go(request)
        transport = self._transport
        if not transport.is_closing():
            last = self._flags & _DONE and not self._waiting and self._refusal is None
            keep = request.keep and not last
            length = len(body)
            if request.method == "HEAD" or status in _WITHOUT_BODY:
                body, length = b"", -1
            try:
                head = _head(status, headers, length, lines, request, keep)
            except Exception:
                logger.exception("an answer cannot be encoded; its connection is aborted")
                transport.abort()
                return
            if length > MAX_UNSENT:
                transport.write(head)
                transport.write(body)  # which others may share
            else:
                transport.write(head + body)
            if not keep:
                self._flags |= _DONE
                self._drop()
                transport.close()
                return
        if not self._pumping and (self._waiting or self._rest or self._flags):
            self._pump(self._rest)

    def _refuse(self, status: HTTPStatus) -> None:
        """Parse nothing more: nobody knows where the next request would begin."""
        if not self._flags & _DONE:
            self._refusal = status
            self._flags |= _DONE

    def _end(self) -> None:
        """Close, all requests being answered; first answer what was refused."""
        if self._transport.is_closing():
            return
        status, self._refusal = self._refusal, None
        if status is not None:
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\nconnection: close\r\n"
            if status == HTTPStatus.SERVICE_UNAVAILABLE:
                head += "retry-after: 1\r\n"
            self._transport.write(f"{head}content-length: 0\r\n\r\n".encode())
        self._transport.close()

    # --- deadlines ---------------------------------------------------------------------------

    @property
    def idle_since(self) -> float | None:
        """When the last answer was sent; None while there is a request, or a part of one."""
        if self._current or self._waiting or self._begun or self._rest:
            return None
        return self._idle

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client has not taken."""
        size: int = self._transport.get_write_buffer_size()
        return size

    def stop(self) -> None:
        """Close the connection once what was read, or begun to be read, is answered."""
        if self._begun or self._rest:
            self._stopping = True
        else:
            self._flags |= _DONE
            if self._current is None and not self._waiting:
                self._end()

    def abort(self) -> None:
        """Close at once."""
        self._flags |= _DONE
        if self._transport is not None:
            self._transport.abort()

    def give_up(self, status: HTTPStatus) -> None:
        """Refuse the request that is being read; those before it are still answered."""
        self._refuse(status)
        self._release()
        self._begin()
        if self._current is None and not self._waiting:
            self._end()

    def sweep(self, now: float) -> None:
        """Hold the client to the deadlines; to be called about once a second."""
        if self._transport.is_closing():
            self._closing = self._closing or now
            if now - self._closing > TAKE_SECONDS:
                self._transport.abort()
        elif self._flags & _CHOKED:
            unsent = self.unsent
            if unsent < self._unsent:
                self._unsent, self._stalled = unsent, now
            elif now - self._stalled > TAKE_SECONDS:
                self._transport.abort()
        elif self._flags & _STARVED:
            if now - self._began > REQUEST_SECONDS:
                self.give_up(HTTPStatus.SERVICE_UNAVAILABLE)
        elif self._begun and not self._flags & _DONE:
            if self._rest:  # parsing waits for our answers
                self._began = self._moved = now
            elif self._is_late(now):
                self.give_up(HTTPStatus.REQUEST_TIMEOUT)
        else:
            idle = self.idle_since
            if idle is not None and now - idle > IDLE_SECONDS:
                self._end()

    def _is_late(self, now: float) -> bool:
        if not self._reading:
            return now - self._began > HEAD_SECONDS
        return now - self._began > REQUEST_SECONDS or now - self._moved > BODY_SECONDS


_OFFERS = ("connection", "upgrade", "http2-settings", "expect")


def _spellings() -> dict[bytes, str]:
    """Usual names of headers as clients write them -> lower case; a fixed table, not a cache."""
    names = (
        "accept accept-encoding accept-language authorization cache-control connection",
        "content-encoding content-length content-type expect forwarded host kn-namespace",
        "k-proxy-request prefer transfer-encoding traceparent tracestate upgrade user-agent",
        "x-b3-parentspanid x-b3-sampled x-b3-spanid x-b3-traceid x-forwarded-for",
        "x-forwarded-host x-forwarded-proto x-request-id",
        "ce-annotations ce-component ce-dataschema ce-endpoint ce-id ce-inferenceservicename",
        "ce-knativearrivaltime ce-metadata ce-modelid ce-namespace ce-protocol ce-recordedtime",
        "ce-requestid ce-source ce-specversion ce-subject ce-time ce-traceparent ce-type",
    )
    forms = (str.lower, str.title, str.upper)
    return {form(name).encode(): name for name in " ".join(names).split() for form in forms}


_NAMES = _spellings()
_HOST = _NAMES[b"host"]


def _named(name: bytes) -> str:
    """A header's name in an unusual spelling, or an unusual one."""
    lower = name.lower()
    return _NAMES.get(lower) or lower.decode("latin-1")


def _head(
    status: int,
    headers: Iterable[tuple[str, str]],
    length: int,
    lines: str,
    request: Request,
    keep: bool,
) -> bytes:
    """An answer's head; a negative length is not told."""
    head = f"{_begun(status, int(clock.time()))}{lines}"
    for name, text in headers:
        head += f"{name}: {text}\r\n"
    if not keep:
        head += "connection: close\r\n"
    elif "connection" in request.headers:  # as HTTP/1.0 clients have to ask for it
        head += "connection: keep-alive\r\n"
    if length >= 0:
        head += f"content-length: {length}\r\n"
    return f"{head}\r\n".encode("latin-1", "replace")


_WITHOUT_BODY = (HTTPStatus.NO_CONTENT.value, HTTPStatus.NOT_MODIFIED.value)


@lru_cache(maxsize=64)
def _begun(status: int, second: int) -> str:
    """The lines that all answers of a status begin with in a second (of the epoch)."""
    date = formatdate(second, usegmt=True)
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ndate: {date}\r\n"
