"""Models apart: one whose state cannot be shown is left out, and takes no other with it.

Whatever makes something of every model (a scrape, a list, a page, a push) does so through
`Isolation.each`, and what makes something of one model through `Isolation.one`. State comes from a
store, so it may be anything: of other versions, imported, or edited by hand.
"""

from __future__ import annotations

import logging
import threading
import time as clock
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .errors import FeedbackMetricsError, Unreadable
from .payload import one_line

logger = logging.getLogger("metrics.isolation")

LOG_SECONDS = 60.0
LOG_LINES = 5
"""Lines about models that are left out, in LOG_SECONDS at most; one a model."""

Found = TypeVar("Found")
Made = TypeVar("Made")


class Isolation:
    """Renders models one by one; `omitted` is called whenever one is left out. Thread-safe.

    Without `traces` the log has the error without where it came from.
    """

    def __init__(
        self,
        omitted: Callable[[], None],
        now: Callable[[], float] = clock.monotonic,
        traces: bool = True,
    ) -> None:
        self._omitted = omitted
        self._now = now
        self._traces = traces
        self._lock = threading.Lock()
        self._logged: set[str] = set()
        self._since = float("-inf")

    def each(
        self,
        models: Iterable[tuple[str, Found]],
        render: Callable[[str, Found], Made],
    ) -> Iterator[tuple[str, Made]]:
        """Each model's id and what `render` makes of it and of what is known of it.

        Models it raises for are left out.

        What `render` returns must be final: text or bytes, not what may raise when it is encoded.
        """
        for model, found in models:
            try:
                made = render(model, found)
            except Exception as error:
                self.leave_out(model, error)
            else:
                yield model, made

    def one(self, model: str, render: Callable[[], Made]) -> Made:
        """What `render` makes of one model.

        Raises Unreadable where it raises anything unforeseen, else what it raises.
        """
        try:
            return render()
        except FeedbackMetricsError:
            raise
        except Exception as error:
            self.leave_out(model, error)
            raise Unreadable from error

    def leave_out(self, model: str, error: Exception) -> None:
        """Count a model that is left out of an answer, and log why, with a limit on lines."""
        self._omitted()
        with self._lock:
            now = self._now()
            if now - self._since >= LOG_SECONDS:
                self._since = now
                self._logged.clear()
            if model in self._logged or len(self._logged) >= LOG_LINES:
                return
            self._logged.add(model)
        logger.error(
            "%s is left out: its state cannot be read: %s",
            one_line(model),
            one_line(f"{type(error).__name__}: {error}"),
            exc_info=error if self._traces else None,
        )
