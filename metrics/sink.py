"""Metric events to a sink (`K_SINK`): coalesced per model, never in the way of intake.

A model's events gather into one summary, which a thread posts at most once an interval, in binary
mode. What cannot be delivered stays, takes in what comes after it, and is tried again with
backoff and jitter: superseded by the next summary. Where it is not known whether the sink took a
summary, since its answer got lost, that one is posted again as it is, under the same id, and what
comes after it waits: a sink that ignores ids it knows counts each event once. So the memory held is
two summaries per model whatever the sink does. Alerts are posted one by one, each rule's in their
order.
Source: Knative's SinkBinding contract (K_SINK, K_CE_OVERRIDES).
"""

from __future__ import annotations

import logging
import random
import threading
import time as clock
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Protocol
from urllib.parse import urlsplit

from . import background
from .counters import Compact, Increment, Vector, add
from .errors import Unavailable
from .events import binary_headers
from .outgoing import Connection, SecureConnection, without_user
from .server_stats import SINK_OUTCOMES

logger = logging.getLogger("metrics.sink")

TIMEOUT_SECONDS = 5.0
"""How long one delivery may take."""
FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 300.0
"""How long a sink may have us wait by Retry-After."""
LAST_SECONDS = 3.0
"""How long `close` tries to deliver what is left, and waits for a delivery that hangs."""
MAX_ALERTS = 1000
"""Alerts that may wait; further ones are not taken, nor"""
MAX_OF_RULE = 8
"""more of one rule."""
MAX_ANSWER = 1 << 20
"""Bytes of an answer that are read so that its connection can be used again."""
RETRIED = frozenset({404, 408, 409, 429})
"""Statuses below 500 that a retry may mend, as Knative sees it."""

SENT, FAILED, SUPERSEDED, DROPPED = SINK_OUTCOMES


class Tally(Protocol):
    """What the sink reports, for the operational families."""

    def sunk(self, outcome: str) -> None:
        """A summary or an alert met one of SINK_OUTCOMES."""

    def unforeseen(self, part: str) -> None:
        """An error that nobody foresaw was survived."""


@dataclass(slots=True)
class Message:
    """A model's summary: the attributes of its last event, all increments since. Or an alert."""

    model: str
    attributes: Mapping[str, str]
    increment: Vector = field(default_factory=dict)
    failed: bool = False
    fixed: bool = False
    """Whether nothing may be added any more: the sink may have taken it under its id."""
    settled: Callable[[], None] | None = None
    """An alert's: called once the sink took it, or refused it for good."""


@dataclass(slots=True)
class Line:
    """What waits of one model or one rule, in its order; of a model two summaries at most."""

    name: str
    messages: deque[Message] = field(default_factory=deque)
    due: float = 0.0
    """When the next may be posted, `time.monotonic`."""
    failures: int = 0
    """Deliveries that failed since one succeeded."""
    refused: int = 0
    """The status of the last refusal, where none was taken since."""


class Sink:
    """Posts summaries and alerts to one address from a thread of its own."""

    def __init__(
        self,
        address: str,
        interval: float,
        overrides: Mapping[str, str],
        data: Callable[[str, Increment], bytes],
        tally: Tally,
    ) -> None:
        address, self._headers = without_user(address)
        parts = urlsplit(address)
        self._kind = SecureConnection if parts.scheme == "https" else Connection
        self._host, self._port = parts.hostname or "", parts.port
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._interval = interval
        self._overrides = dict(overrides)
        self._data = data
        self._tally = tally
        self._summaries: dict[str, Line] = {}
        """By model."""
        self._alerts: dict[str, Line] = {}
        """By rule, those that have some."""
        self._waiting_alerts = 0
        self._delivering = False
        self._posting = False
        """Whether the message being delivered was posted, or a part of it."""
        self._failures = 0
        """Deliveries that failed since one succeeded, whatever they were of."""
        self._due = 0.0
        """When the sink may be tried again."""
        self._wake = threading.Condition()
        self._last_chance: float | None = None
        """When `close` gives up."""
        self._connection: Connection | None = None
        self._thread = background.start("sink", self._turn, tally.unforeseen)

    def tell(
        self, model: str, attributes: Mapping[str, str], increment: Increment | Compact
    ) -> None:
        """Have the sink hear of one event, soon. Never waits, never raises."""
        with self._wake:
            line = self._summaries.get(model)
            if line is None:
                line = self._summaries[model] = Line(model)
            if line.messages and not line.messages[-1].fixed:
                message = line.messages[-1]
                if message.failed:
                    message.failed = False
                    self._tally.sunk(SUPERSEDED)
            else:
                message = Message(model, {})
                line.messages.append(message)
                self._wake.notify()
            message.attributes = {**attributes, **self._overrides}
            add(message.increment, increment)

    def alert(
        self, rule: str, model: str, attributes: Mapping[str, str], settled: Callable[[], None]
    ) -> bool:
        """Have the sink hear of an alert, after those of the same rule; tells whether it will.

        `rule` is the model's and the rule's. `settled` is called, from the sink's thread, once it
        was taken or refused for good. Never waits, never raises.
        """
        with self._wake:
            line = self._alerts.get(rule) or Line(rule)
            full = self._waiting_alerts >= MAX_ALERTS or len(line.messages) >= MAX_OF_RULE
            if full or self._last_chance is not None:
                return False
            self._waiting_alerts += 1
            self._alerts[rule] = line
            line.messages.append(Message(model, {**attributes, **self._overrides}, settled=settled))
            self._wake.notify()
            return True

    def close(self) -> None:
        """Send what is left, within LAST_SECONDS, and stop."""
        with self._wake:
            self._last_chance = clock.monotonic() + LAST_SECONDS
            for line in self._lines():
                if not line.failures:
                    line.due = 0.0
            self._wake.notify()
        self._thread.join(LAST_SECONDS)
        with self._wake:
            left = sum(len(line.messages) for line in self._lines()) + self._delivering
        if left:
            logger.error("%d last metrics events and alerts are not sent", left)

    # --- the thread --------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Deliver one message, or wait for one; tells whether there is more to be done."""
        with self._wake:
            now = clock.monotonic()
            line = min(
                (each for each in self._lines() if each.messages),
                key=lambda each: each.due,
                default=None,
            )
            over = self._last_chance is not None and now >= self._last_chance
            if over or (line is None and self._last_chance is not None):
                self._disconnect()
                return False
            if line is None:
                self._wake.wait()
                return True
            due = max(line.due, self._due)
            if due > now:
                end = due if self._last_chance is None else min(due, self._last_chance)
                self._wake.wait(end - now)
                return True
            message = line.messages.popleft()
            self._delivering = True
        try:
            self._deliver(line, message)
        finally:
            self._delivering = False
        return True

    def _lines(self) -> list[Line]:
        return [*self._summaries.values(), *self._alerts.values()]

    def _deliver(self, line: Line, message: Message) -> None:
        self._posting = False
        try:
            data = self._data(message.model, message.increment)
            status, wait = self._post(message, data)
        except (OSError, HTTPException, Unavailable) as error:
            self._disconnect()
            message.fixed |= self._posting
            self._postpone(line, message, str(error) or type(error).__name__)
            return
        except Exception as error:  # a bug: no further try would mend it
            background.report("sink", error, self._tally.unforeseen)
            self._disconnect()
            self._done(line, message, DROPPED)
            return
        if status >= 500 or status in RETRIED:
            self._postpone(line, message, f"HTTP {status}", wait)
            return
        if self._failures:
            logger.info("the sink answers again")
        self._failures = line.failures = 0
        if status >= 300 and status != line.refused:
            logger.warning("the sink refuses events of %s: HTTP %d", line.name, status)
        line.refused = status if status >= 300 else 0
        self._done(line, message, SENT if status < 300 else DROPPED)
        if message.settled is not None:
            message.settled()

    def _done(self, line: Line, message: Message, outcome: str) -> None:
        """Have no more to do with a message."""
        self._tally.sunk(outcome)
        with self._wake:
            if message.settled is not None:
                self._waiting_alerts -= 1
                if not line.messages:
                    self._alerts.pop(line.name, None)
            elif self._last_chance is None:
                line.due = clock.monotonic() + self._interval

    def _postpone(self, line: Line, message: Message, reason: str, wait: float = 0.0) -> None:
        """Keep a message that was not delivered, with what a summary has taken in meanwhile."""
        if not self._failures:
            logger.warning("the sink does not take events: %s", reason)
        self._tally.sunk(FAILED)
        now = clock.monotonic()
        with self._wake:
            # The sink may be down for all, or have something against this one only.
            self._due = now + max(wait, _backoff(self._failures))
            line.due = now + max(wait, _backoff(line.failures))
            self._failures += 1
            line.failures += 1
            message.failed = True
            if line.messages and message.settled is None and not message.fixed:
                newer = line.messages.popleft()
                add(message.increment, newer.increment)
                message.attributes = newer.attributes
                message.failed = False
                self._tally.sunk(SUPERSEDED)
            line.messages.appendleft(message)

    def _post(self, message: Message, data: bytes) -> tuple[int, float]:
        """Post one event; returns the status, and how long the sink would have us wait, seconds."""
        headers = {**self._headers, **dict(binary_headers(message.attributes))}
        used = self._connection is not None
        try:
            return self._exchange(headers, data)
        except OSError as error:
            self._disconnect()
            if not used or isinstance(error, TimeoutError):
                raise
        # The peer closed an idle connection, most likely before the event came to it.
        message.fixed = True
        return self._exchange(headers, data)

    def _exchange(self, headers: dict[str, str], data: bytes) -> tuple[int, float]:
        timeout = TIMEOUT_SECONDS
        if self._last_chance is not None:
            timeout = min(timeout, max(0.1, self._last_chance - clock.monotonic()))
        if self._connection is None:
            self._connection = self._kind(self._host, self._port, timeout=timeout)
            self._connection.connect()
        self._connection.timeout = timeout
        self._posting = True
        self._connection.request("POST", self._path, data, headers)
        response = self._connection.getresponse()
        response.read(MAX_ANSWER)
        if response.will_close or not response.isclosed():
            self._disconnect()
        return response.status, _seconds(response.getheader("retry-after", ""))

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _backoff(failures: int) -> float:
    """How long to wait after so many failures and one more, seconds: up to half of it is chance."""
    backoff = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 20))
    return backoff * random.uniform(0.5, 1.0)


def _seconds(text: str) -> float:
    """What a Retry-After says in seconds; 0 where it says nothing that is understood."""
    text = text.strip()
    return min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isascii() and text.isdigit() else 0.0
