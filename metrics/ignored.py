"""Events that are answered 202 and counted nowhere, since their type is none that is taken.

A Trigger may deliver any type. That nothing becomes of an event must be seen somewhere: each is
counted by its reason, and those that a setting would have counted are logged.
"""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Callable, Sequence

from .config import Settings
from .server_stats import JOINS_OFF, OTHER_TYPE, OWN_TYPE

logger = logging.getLogger("metrics.ignored")

LOG_SECONDS = 60.0


class Ignored:
    """Counts ignored events by reason; `count` is told of each."""

    def __init__(
        self,
        settings: Settings,
        count: Callable[[str], None],
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        own = settings.event_type
        self._reasons = {
            **dict.fromkeys(settings.prediction_types, JOINS_OFF),
            **dict.fromkeys((own, f"{own}.alert"), OWN_TYPE),
        }
        self._count = count
        self._now = now
        self._unlogged = 0
        self._last = ""
        self._logged = float("-inf")

    def note(self, types: Sequence[str]) -> None:
        """Take note of events of these types, none of which is taken."""
        for type in types:
            reason = self._reasons.get(type, OTHER_TYPE)
            self._count(reason)
            if reason == JOINS_OFF:
                self._unlogged += 1
                self._last = type
        if self._unlogged and self._now() - self._logged >= LOG_SECONDS:
            self._logged = self._now()
            logger.warning(
                "%d predictions were ignored, the last of type %s: FEEDBACK_JOIN_TTL is not set",
                self._unlogged,
                self._last,
            )
            self._unlogged = 0
