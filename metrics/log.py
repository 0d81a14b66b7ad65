"""The log on stderr: a line a message, whatever a sender's names hold, and few of one kind.

Much of what is logged names models, classes and reasons, which are others' input. So the handler,
not each caller, keeps a message to one line without control characters, and limits how often one
and the same message is written.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time as clock
from collections.abc import Callable

from .payload import one_line

LIMIT_SECONDS = 60.0
LIMIT_LINES = 10
"""Lines of one kind in LIMIT_SECONDS, warnings and worse; the next says how many were left out."""

MAX_LINE = 2000
"""Characters of a message."""

_MAX_KINDS = 1000
_DIRECTIONS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that turn the direction of what follows: fine in a name, not in a log."""


def configure(level: str) -> None:
    """Send the log to stderr, from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    handler.addFilter(Limit())
    logging.basicConfig(level=level, handlers=[handler], force=True)


class OneLine(logging.Formatter):
    """A record is a line; a traceback's lines are indented, so that none can pass for a record."""

    def __init__(self) -> None:
        super().__init__("[%(levelname).1s %(asctime)s %(name)s] %(message)s", "%y%m%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # its base's word
        """The line, without control characters, of MAX_LINE at most."""
        record.message = _shown(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802  # its base's word
        """The traceback, indented."""
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(f"  {_shown(line)}" for line in text.split("\n"))


def _shown(text: str) -> str:
    return _DIRECTIONS.sub("\N{REPLACEMENT CHARACTER}", one_line(text, MAX_LINE))


class Limit(logging.Filter):
    """Lets LIMIT_LINES of one kind pass in LIMIT_SECONDS, by the message before its arguments."""

    def __init__(self, now: Callable[[], float] = clock.monotonic) -> None:
        super().__init__()
        self._now = now
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, str], tuple[float, int]] = {}
        """When the time of a kind began, and how many lines of it there were since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.levelno < logging.WARNING:
            return True
        kind = record.name, str(record.msg)
        with self._lock:
            now = self._now()
            began, lines = self._kinds.get(kind, (now, 0))
            left_out = 0
            if now - began >= LIMIT_SECONDS:
                left_out = max(0, lines - LIMIT_LINES)
                began, lines = now, 0
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds.clear()
            self._kinds[kind] = began, lines + 1
        if lines >= LIMIT_LINES:
            return False
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} more of its kind were left out)"
            record.args = ()
        return True
