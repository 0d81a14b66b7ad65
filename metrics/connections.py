"""The connections of a worker: how many there may be, and what memory they may hold together.

Bodies: a connection may hold FREE_BODY bytes for itself. What is larger needs a share of one
budget, for the whole body, before more of it is read; shares are given in the order they are asked
for, and one body always fits, so that there is no deadlock. Who holds a share and sends slowly
loses it when others wait. Answers: who takes none is closed, the oldest first where too many bytes
wait in all. Connections: past the limit the one that is idle longest is closed; where none is, a
few more are accepted, so that probes are answered whatever clients do.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from .http1 import READ_SIZE, Connection, Request

BODIES = 4
"""Bodies of the largest size that may be held at once."""
MAX_UNSENT_BYTES = 1 << 26
"""Bytes of answers that wait to be taken, over all connections that do not keep up."""
SPARE = 16
"""Connections past the limit, in which only probes are answered."""
MIN_PROGRESS = 1 << 18
"""Bytes of a body that are to come from one sweep to the next, about a second later."""
MAX_LAGS = 2
"""Sweeps in a row that may find less before a body loses its share, while others wait for it.

Sweeps are counted, not seconds: a loop that was busy for long has read nothing, either.
"""
YOUNG_SECONDS = 2.0
"""How long a connection is not taken for idle, since its request may be on the way."""
SPARE_SECONDS = 5.0
"""How long a connection past the limit may last."""

Handle = Callable[[Request], None]
"""Has the request's `answer` called once, now or later, in the loop's thread."""


class Connections:
    """All open connections, and what they share."""

    def __init__(self, limit: int, most: int) -> None:
        self.limit = limit
        """Bytes of a body that are kept; larger ones are counted only."""
        self.most = most
        """Connections that are served; past it see `admit`."""
        self.budget = BODIES * limit
        self.now = 0.0
        """The clock of all deadlines: seconds, as of the last `sweep`."""
        self.buffer = memoryview(bytearray(READ_SIZE))
        """What is read goes here first; parsed at once, it can be shared."""
        self.stalled: dict[Connection, None] = {}
        """Connections whose clients do not take their answers, the longest stalled first."""
        self._open: dict[Connection, None] = {}
        self._opening: set[Connection] = set()
        self._spare: dict[Connection, float] = {}
        """Connections past the limit, and since when, the oldest first."""
        self._shares: dict[Connection, int] = {}
        self._claims: dict[Connection, int] = {}
        """Shares that are waited for, in order."""
        self._shared = 0
        self._granting = False

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> None:
        """Register a connection that is open now."""
        self._opening.discard(connection)
        self._open[connection] = None

    def remove(self, connection: Connection) -> None:
        """Unregister a connection that is closed; its share stays until its answer."""
        self._opening.discard(connection)
        self._open.pop(connection, None)
        self._spare.pop(connection, None)
        self.stalled.pop(connection, None)

    # --- the number of connections -----------------------------------------------------------

    def has_room(self) -> bool:
        """Whether one more connection is served as any other; closes an idle one for it."""
        if len(self._open) + len(self._opening) < self.most:
            return True
        idle = [
            (since, each)
            for each in self._open
            if (since := each.idle_since) is not None and self.now - since > YOUNG_SECONDS
        ]
        if not idle:
            return False
        _, longest = min(idle, key=lambda pair: pair[0])
        self.remove(longest)
        longest.abort()
        return True

    def admit(self, connection: Connection, spare: bool) -> None:
        """Count a connection that is about to open; `spare`: for probes only.

        The oldest of too many spare ones is closed.
        """
        self._opening.add(connection)
        if spare:
            if len(self._spare) >= SPARE:
                oldest = next(iter(self._spare))
                self.remove(oldest)
                oldest.abort()
            self._spare[connection] = self.now

    # --- bodies ------------------------------------------------------------------------------

    def claim(self, connection: Connection, size: int) -> bool:
        """Whether a share of so many bytes is granted now.

        Otherwise the connection's `granted` is called when it is, unless `release` comes first.
        """
        if not self._claims and self._shared + size <= self.budget:
            self._shares[connection] = size
            self._shared += size
            return True
        self._claims[connection] = size
        return False

    def shrink(self, connection: Connection, size: int) -> None:
        """Give back what a share has over `size` bytes."""
        self._shared -= self._shares[connection] - size
        self._shares[connection] = size
        self._grant()

    def release(self, connection: Connection) -> None:
        """Give a share back, or wait for it no longer."""
        self._claims.pop(connection, None)
        self._shared -= self._shares.pop(connection, 0)
        self._grant()

    def _grant(self) -> None:
        """Grant shares in order: a loop, since a body that goes on may give its share back."""
        if self._granting:
            return
        self._granting = True
        try:
            while self._claims:
                connection, size = next(iter(self._claims.items()))
                if self._shared + size > self.budget:
                    break
                del self._claims[connection]
                self._shares[connection] = size
                self._shared += size
                connection.granted(size)
        finally:
            self._granting = False

    # --- answers -----------------------------------------------------------------------------

    def stall(self, connection: Connection) -> None:
        """Note that a client does not keep up; close the longest stalled of too many."""
        self.stalled[connection] = None
        unsent = sum(each.unsent for each in self.stalled)
        while unsent > MAX_UNSENT_BYTES and len(self.stalled) > 1:
            oldest = next(iter(self.stalled))
            del self.stalled[oldest]
            unsent -= oldest.unsent
            oldest.abort()

    # --- time --------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Close what is past its deadline; to be called about once a second."""
        self.now = now
        for connection in tuple(self._open):
            connection.sweep(now)
        for connection, since in tuple(self._spare.items()):
            if now - since > SPARE_SECONDS:
                connection.abort()
        for connection in tuple(self._shares):
            if connection.lags(MIN_PROGRESS) >= MAX_LAGS and self._claims:
                connection.give_up(HTTPStatus.SERVICE_UNAVAILABLE)

    def stop(self) -> None:
        """Close each connection once what was read from it, or begun to be, is answered."""
        for connection in tuple(self._open):
            connection.stop()

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in tuple(self._open):
            connection.abort()
