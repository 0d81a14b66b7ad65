"""Background threads that no exception ends, and the one way to report an unforeseen error.

An exception that nobody foresaw is a bug: its traceback is logged, at most once a minute for each
place in the code that raises, it is counted, and the part goes on with its next task.
"""

from __future__ import annotations

import logging
import threading
import time as clock
from collections.abc import Callable

logger = logging.getLogger("metrics.background")

LOG_SECONDS = 60.0
"""Between two tracebacks of one part of the program, type of exception and place in the code."""
FIRST_PAUSE_SECONDS = 0.01
MAX_PAUSE_SECONDS = 1.0

Count = Callable[[str], None]
"""Counts one unforeseen error of the part with this name: `ServerStats.unforeseen`."""

_lock = threading.Lock()
_logged: dict[tuple[object, ...], float] = {}
_suppressed: dict[tuple[object, ...], int] = {}


def report(part: str, error: BaseException, count: Count | None = None) -> None:
    """Log an unforeseen error with its traceback, rate-limited, and count it. Never raises."""
    if count is not None:
        count(part)
    kind = part, type(error), *_place(error)
    now = clock.monotonic()
    with _lock:
        if kind in _logged and now - _logged[kind] < LOG_SECONDS:
            _suppressed[kind] = _suppressed.get(kind, 0) + 1
            return
        _logged[kind] = now
        suppressed = _suppressed.pop(kind, 0)
    more = f" ({suppressed} more since the last traceback)" if suppressed else ""
    logger.error("unforeseen error in %s%s", part, more, exc_info=error)


def _place(error: BaseException) -> tuple[object, ...]:
    """The line that raised an error."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return (at.tb_frame.f_code, at.tb_lineno) if at is not None else ()


def repeat(part: str, step: Callable[[], bool], count: Count) -> None:
    """Call `step` until it returns False. After an exception: report, pause, call it again."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            if not step():
                return
            pause = FIRST_PAUSE_SECONDS
        except Exception as error:
            report(part, error, count)
            clock.sleep(pause)
            pause = min(MAX_PAUSE_SECONDS, pause * 2)


def start(part: str, step: Callable[[], bool], count: Count) -> threading.Thread:
    """A running daemon thread that repeats `step` until it returns False."""
    thread = threading.Thread(target=repeat, args=(part, step, count), name=part, daemon=True)
    thread.start()
    return thread
