"""Figures of this server, not of a model: kept per worker process, read as their sum.

The worker processes of one server share a page of memory, a row of float64 each, so that no
counter falls from one scrape to the next whichever worker answers. A worker that dies leaves its
row to the one that replaces it, with its counts.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import time as clock
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager

COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of commit durations, seconds."""
BATCH_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Upper bounds of events in a transaction."""
ERROR_KINDS = (
    *("busy", "full", "readonly", "corrupt", "foreign", "moved", "io"),
    *("unreachable", "timeout", "auth", "oom", "loading", "durability", "contended"),
    *("bug", "other"),
)
SINK_OUTCOMES = ("sent", "failed", "superseded", "dropped")
PUSH_OUTCOMES = ("pushed", "failed")
PARTS = ("committer", "sink", "pushgateway", "alerts", "models", "reply", "other")
"""Parts of the program whose unforeseen errors are counted."""
JOINS_OFF, OWN_TYPE, OTHER_TYPE = IGNORED_REASONS = ("joins_off", "own_type", "other_type")
"""Why an event was answered 202 and not counted."""

_COMMIT = 1
_COMMIT_SUM = _COMMIT + len(COMMIT_BUCKETS) + 1
_BATCH = _COMMIT_SUM + 1
_BATCH_SUM = _BATCH + len(BATCH_BUCKETS) + 1
_ERRORS = _BATCH_SUM + 1
_SUNK = _ERRORS + len(ERROR_KINDS)
_PUSHED = _SUNK + len(SINK_OUTCOMES)
_UNFORESEEN = _PUSHED + len(PUSH_OUTCOMES)
_OMITTED = _UNFORESEEN + len(PARTS)
_IGNORED = _OMITTED + 1
_WAITING = _IGNORED + len(IGNORED_REASONS)
_WIDTH = _WAITING + 1


class ServerStats:
    """One server's figures; made before its workers are, and claimed by each after it starts."""

    def __init__(self, workers: int = 1) -> None:
        self.started = clock.time()
        self._workers = workers
        self._row = 0
        self._file = tempfile.TemporaryFile() if workers > 1 else None  # noqa: SIM115
        size = workers * _WIDTH * 8
        if self._file is None:
            self._memory = mmap.mmap(-1, size)
        else:
            self._file.truncate(size)
            self._memory = mmap.mmap(self._file.fileno(), size)
        self._cells = memoryview(self._memory).cast("d")

    def claim(self) -> None:
        """Take a row that no living process writes; to be called once in each worker."""
        with self.alone():
            for row in range(self._workers):
                owner = int(self._cells[row * _WIDTH])
                if not owner or not _alive(owner):
                    self._cells[row * _WIDTH] = float(os.getpid())
                    self._row = row * _WIDTH
                    self.waiting(0)
                    return
        raise RuntimeError("more worker processes than rows")

    def committed(self, seconds: float, entries: int) -> None:
        """Count a transaction that succeeded."""
        cells, row = self._cells, self._row
        cells[row + _COMMIT + bisect_left(COMMIT_BUCKETS, seconds)] += 1
        cells[row + _COMMIT_SUM] += seconds
        cells[row + _BATCH + bisect_left(BATCH_BUCKETS, entries)] += 1
        cells[row + _BATCH_SUM] += entries

    def failed(self, kind: str) -> None:
        """Count a transaction that did not."""
        kind = kind if kind in ERROR_KINDS else "other"
        self._cells[self._row + _ERRORS + ERROR_KINDS.index(kind)] += 1

    def sunk(self, outcome: str) -> None:
        """Count a summary for the sink by what became of it."""
        self._cells[self._row + _SUNK + SINK_OUTCOMES.index(outcome)] += 1

    def pushed(self, outcome: str) -> None:
        """Count a push to the Pushgateway by what became of it."""
        self._cells[self._row + _PUSHED + PUSH_OUTCOMES.index(outcome)] += 1

    def unforeseen(self, part: str) -> None:
        """Count an error that nobody foresaw, and that a part of the program survived."""
        part = part if part in PARTS else "other"
        self._cells[self._row + _UNFORESEEN + PARTS.index(part)] += 1

    def omitted(self) -> None:
        """Count an answer that a model was left out of, since its state cannot be read."""
        self._cells[self._row + _OMITTED] += 1

    def ignored(self, reason: str) -> None:
        """Count an event that is none of the types that are taken."""
        self._cells[self._row + _IGNORED + IGNORED_REASONS.index(reason)] += 1

    def waiting(self, entries: int) -> None:
        """Note how many entries wait for a commit in this process."""
        self._cells[self._row + _WAITING] = entries

    def commit_seconds(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative buckets and sum of commit durations."""
        return self._histogram(_COMMIT, COMMIT_BUCKETS, _COMMIT_SUM)

    def batch_events(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative buckets and sum of events in a transaction."""
        return self._histogram(_BATCH, BATCH_BUCKETS, _BATCH_SUM)

    def errors(self) -> dict[str, float]:
        """Failed transactions by kind."""
        return {kind: self._sum(_ERRORS + at) for at, kind in enumerate(ERROR_KINDS)}

    def sink_events(self) -> dict[str, float]:
        """Summaries for the sink by what became of them."""
        return {outcome: self._sum(_SUNK + at) for at, outcome in enumerate(SINK_OUTCOMES)}

    def pushes(self) -> dict[str, float]:
        """Pushes to the Pushgateway by what became of them."""
        return {outcome: self._sum(_PUSHED + at) for at, outcome in enumerate(PUSH_OUTCOMES)}

    def internal_errors(self) -> dict[str, float]:
        """Unforeseen errors by the part of the program that survived them."""
        return {part: self._sum(_UNFORESEEN + at) for at, part in enumerate(PARTS)}

    def omissions(self) -> float:
        """Answers that a model was left out of."""
        return self._sum(_OMITTED)

    def ignored_events(self) -> dict[str, float]:
        """Ignored events by reason."""
        return {reason: self._sum(_IGNORED + at) for at, reason in enumerate(IGNORED_REASONS)}

    def commits(self) -> float:
        """Transactions that succeeded."""
        return self.batch_events()[0][-1][1]

    def queue(self) -> float:
        """Entries that wait for a commit."""
        return self._sum(_WAITING)

    def _sum(self, column: int) -> float:
        return sum(self._cells[row * _WIDTH + column] for row in range(self._workers))

    def _histogram(
        self, column: int, bounds: tuple[float, ...], total: int
    ) -> tuple[list[tuple[str, float]], float]:
        buckets = []
        seen = 0.0
        for at, bound in enumerate((*bounds, float("inf"))):
            seen += self._sum(column + at)
            buckets.append(("+Inf" if bound == float("inf") else str(bound), seen))
        return buckets, self._sum(total)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have no two workers inside at once."""
        if self._file is None:
            yield
            return
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
