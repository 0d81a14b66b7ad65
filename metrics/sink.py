"""Metric events to a sink (`K_SINK`): coalesced per model, never in the way of intake.

A model's events gather into one summary, which a thread posts at most once an interval, in binary
mode. What cannot be delivered stays, takes in what comes after it, and is tried again with
backoff and jitter: superseded by the next summary, so that the memory held is one summary per
model whatever the sink does. Source: Knative's SinkBinding contract (K_SINK, K_CE_OVERRIDES).
"""

from __future__ import annotations

import logging
import random
import threading
import time as clock
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Protocol
from urllib.parse import urlsplit

from .counters import Compact, Increment, Vector, add
from .events import binary_headers
from .server_stats import SINK_OUTCOMES

logger = logging.getLogger("metrics.sink")

TIMEOUT_SECONDS = 5.0
"""How long one delivery may take."""
FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 30.0
LAST_SECONDS = 5.0
"""How long `close` tries to deliver what is left."""
MAX_PENDING = 100_000
"""Summaries and alerts that may wait; alerts beyond them are dropped."""
RETRIED = frozenset({404, 408, 409, 429})
"""Statuses below 500 that a retry may mend, as Knative sees it."""

SENT, FAILED, SUPERSEDED, DROPPED = SINK_OUTCOMES


class Tally(Protocol):
    """What the sink reports, for the operational families."""

    def sunk(self, outcome: str) -> None:
        """A summary met one of SINK_OUTCOMES."""


@dataclass(slots=True)
class Summary:
    """What is to be told of one model: the attributes of its last event, all increments since."""

    attributes: dict[str, str]
    increment: Vector
    failed: bool = False
    data: bytes = b""
    """What is posted, where it is fixed: an alert is an event of its own."""


class Sink:
    """Posts summaries to one address from a thread of its own."""

    def __init__(
        self,
        address: str,
        interval: float,
        overrides: Mapping[str, str],
        data: Callable[[str, Increment], bytes],
        tally: Tally,
    ) -> None:
        self._address = urlsplit(address)
        self._interval = interval
        self._overrides = dict(overrides)
        self._data = data
        self._tally = tally
        self._pending: dict[str, Summary] = {}
        self._due: dict[str, float] = {}
        self._failures = 0
        self._wake = threading.Condition()
        self._closing = False
        self._connection: HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run, name="sink", daemon=True)
        self._thread.start()

    def tell(
        self, model: str, attributes: Mapping[str, str], increment: Increment | Compact
    ) -> None:
        """Have the sink hear of one event, soon. Never waits, never raises."""
        with self._wake:
            summary = self._pending.get(model)
            if summary is None:
                summary = self._pending[model] = Summary({}, {})
                self._wake.notify()
            elif summary.failed:
                summary.failed = False
                self._tally.sunk(SUPERSEDED)
            summary.attributes = {**attributes, **self._overrides}
            add(summary.increment, increment)

    def alert(self, id: str, attributes: Mapping[str, str], data: bytes) -> None:
        """Have the sink hear of an alert, by itself. Never waits, never raises."""
        with self._wake:
            if len(self._pending) >= MAX_PENDING:
                self._tally.sunk(DROPPED)
                return
            self._pending[f"alert {id}"] = Summary(
                {**attributes, **self._overrides}, {}, False, data
            )
            self._wake.notify()

    def close(self) -> None:
        """Send the last summaries, within LAST_SECONDS, and stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(LAST_SECONDS + TIMEOUT_SECONDS)

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        last_chance = float("inf")
        while True:
            with self._wake:
                if self._closing and last_chance == float("inf"):
                    last_chance = clock.monotonic() + LAST_SECONDS
                if self._closing and (not self._pending or clock.monotonic() > last_chance):
                    if self._pending:
                        logger.error("%d last summaries are not sent", len(self._pending))
                    self._disconnect()
                    return
                model, wait = self._next()
                if model is None:
                    self._wake.wait(wait)
                    continue
                summary = self._pending.pop(model)
            self._deliver(model, summary)

    def _next(self) -> tuple[str | None, float | None]:
        """A model that is due, or how long to wait, seconds; None for until something happens."""
        now = clock.monotonic()
        if not self._pending:
            return None, None
        if self._closing and not self._failures:
            return next(iter(self._pending)), 0.0
        model = min(self._pending, key=lambda each: self._due.get(each, 0.0))
        wait = self._due.get(model, 0.0) - now
        return (model, 0.0) if wait <= 0 else (None, wait)

    def _deliver(self, model: str, summary: Summary) -> None:
        try:
            data = summary.data or self._data(model, summary.increment)
            status = self._post(summary, data)
        except (OSError, HTTPException) as error:
            self._disconnect()
            self._postpone(model, summary, str(error) or type(error).__name__)
            return
        if status >= 500 or status in RETRIED:
            self._postpone(model, summary, f"HTTP {status}")
            return
        if self._failures:
            logger.info("the sink answers again")
        self._failures = 0
        if summary.data:
            self._due.pop(model, None)
        else:
            self._due[model] = clock.monotonic() + self._interval
        if status >= 300:
            logger.warning("the sink refuses events of %s: HTTP %d", model, status)
        self._tally.sunk(SENT if status < 300 else DROPPED)

    def _postpone(self, model: str, summary: Summary, reason: str) -> None:
        """Keep a summary that was not delivered, under what has come in the meantime."""
        if not self._failures:
            logger.warning("the sink does not take events: %s", reason)
        self._tally.sunk(FAILED)
        backoff = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(self._failures, 20))
        self._failures += 1
        due = clock.monotonic() + backoff * random.uniform(0.5, 1.0)
        with self._wake:
            summary.failed = True
            newer = self._pending.pop(model, None)
            if newer is not None:
                add(summary.increment, newer.increment)
                summary.attributes = newer.attributes
                summary.failed = False
                self._tally.sunk(SUPERSEDED)
            self._pending[model] = summary
            for each in self._pending:  # the sink is down for all of them
                self._due[each] = max(due, self._due.get(each, 0.0))

    def _post(self, summary: Summary, data: bytes) -> int:
        """Post one event; returns the status."""
        if self._connection is None:
            kind = HTTPSConnection if self._address.scheme == "https" else HTTPConnection
            self._connection = kind(
                self._address.hostname or "", self._address.port, timeout=TIMEOUT_SECONDS
            )
        path = self._address.path or "/"
        if self._address.query:
            path += f"?{self._address.query}"
        self._connection.request("POST", path, data, dict(binary_headers(summary.attributes)))
        response = self._connection.getresponse()
        response.read(1 << 20)
        if response.will_close or not response.isclosed():
            self._disconnect()
        return response.status

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
