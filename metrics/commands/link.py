"""A server as commands reach it: its address, and what it answers."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigurationError, NotFound, Refused, Unavailable
from ..payload import one_line
from ..urls import shown

DEFAULT_URL = "http://localhost:8080"
MAX_ANSWER = 256 << 20
"""Bytes of an answer that are read at all."""


class Server:
    """The function at a URL; a path in it is where events are posted and pages begin."""

    def __init__(self, url: str) -> None:
        """Raises ConfigurationError for what is no http(s) address."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
            parts.path.encode("ascii")
            (parts.hostname or "").encode("idna")
            sound = parts.scheme in ("http", "https") and parts.hostname and port != 0
        except ValueError:
            sound = False
        if not sound:
            raise ConfigurationError(f"--url: {shown(url)!r} is no http:// or https:// address")
        self.url = shown(url)
        """For messages."""
        self.path = parts.path or "/"
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", port

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """A connection, which opens with its first request."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=timeout)

    def get(self, path: str, accept: str = "application/json", timeout: float = 30.0) -> bytes:
        """The body of a page. Raises NotFound, Refused or Unavailable, with the server's reason."""
        connection = self.connect(timeout)
        try:
            connection.request("GET", self.path.rstrip("/") + path, headers={"accept": accept})
            answer = connection.getresponse()
            body = answer.read(MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{self.url}: {reason_of(error)}") from None
        finally:
            connection.close()
        if answer.status == 200:
            return body
        detail = detail_of(body) or f"HTTP {answer.status}"
        if answer.status == 404:
            raise NotFound(detail)
        if answer.status < 500:
            raise Refused("", detail)
        raise Unavailable(f"{self.url}: {detail}")

    def get_json(self, path: str) -> Any:
        """The JSON value of a page. Raises as `get` does."""
        body = self.get(path)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise Unavailable(f"{self.url}{path}: the answer is not JSON") from None


def detail_of(body: bytes) -> str:
    """The one-line reason in an answer: a problem's `detail`, else the beginning of its text."""
    try:
        problem = json.loads(body)
        detail = problem.get("detail") if isinstance(problem, dict) else None
    except (ValueError, RecursionError):
        detail = None
    text = detail if isinstance(detail, str) else body[:400].decode("utf-8", "replace").strip()
    return one_line(text, 200)


def reason_of(error: BaseException) -> str:
    """Why there was no answer, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return one_line(text, 200)
