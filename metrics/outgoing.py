"""HTTP to others that ends in time, whatever the peer does.

The timeout of `http.client` and `urllib` is for each read of a socket: a peer that sends a byte now
and then holds its caller for ever. Here it is for the whole exchange, once a connection is made.
"""

from __future__ import annotations

import time as clock
from base64 import b64encode
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from io import BufferedReader, RawIOBase
from socket import SocketIO
from ssl import SSLContext
from typing import Any, cast
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import HTTPHandler, HTTPSHandler, OpenerDirector, Request, build_opener

LEAST_SECONDS = 0.001


class _Reader(RawIOBase):
    """Reads a socket until a deadline; past it, reading raises TimeoutError."""

    def __init__(self, sock: Any, raw: SocketIO) -> None:
        self._sock = sock
        self._raw = raw
        timeout = sock.gettimeout()
        self._deadline = None if timeout is None else clock.monotonic() + timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline is not None:
            left = self._deadline - clock.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        super().close()
        self._raw.close()


class _Response(HTTPResponse):
    """A response that is read until the deadline which the socket's timeout sets at its begin."""

    def __init__(self, sock: Any, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        raw = cast(SocketIO, self.fp.detach())
        self.fp = BufferedReader(_Reader(sock, raw))


class Connection(HTTPConnection):
    """A connection whose `timeout` is for a request with its response, as a whole."""

    response_class = _Response

    def request(self, *args: Any, **more: Any) -> None:
        """As HTTPConnection's."""
        timeout = cast(float, self.timeout)
        self._ends = clock.monotonic() + timeout
        if self.sock is not None:
            self.sock.settimeout(timeout)
        super().request(*args, **more)

    def getresponse(self) -> HTTPResponse:
        """As HTTPConnection's."""
        if self.sock is not None:
            self.sock.settimeout(max(LEAST_SECONDS, self._ends - clock.monotonic()))
        return super().getresponse()


class SecureConnection(Connection, HTTPSConnection):
    """The same over TLS."""


class _Handler(HTTPHandler):
    def http_open(self, request: Request) -> HTTPResponse:
        return self.do_open(Connection, request)


class _SecureHandler(HTTPSHandler):
    def __init__(self, context: SSLContext | None) -> None:
        super().__init__(context=context)
        self._ours = context

    def https_open(self, request: Request) -> HTTPResponse:
        return self.do_open(SecureConnection, request, context=self._ours)


def without_user(url: str) -> tuple[str, dict[str, str]]:
    """`url` without user and password, which no message is to show, and the header that has them.

    Raises ValueError for what is no URL.
    """
    parts = urlsplit(url)
    user, at, place = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    said = b64encode(unquote_to_bytes(user)).decode()
    return parts._replace(netloc=place).geturl(), {"authorization": f"Basic {said}"}


def opener(context: SSLContext | None = None) -> OpenerDirector:
    """What opens requests as `urlopen` does, but within `timeout` each as a whole."""
    return build_opener(_Handler(), _SecureHandler(context))
