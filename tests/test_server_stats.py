"""Figures of one server over its worker processes: real ones, forked."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from math import inf

import pytest

from metrics.server_stats import (
    BATCH_BUCKETS,
    COMMIT_BUCKETS,
    ERROR_KINDS,
    SINK_OUTCOMES,
    ServerStats,
)


class Worker:
    """A child process that does one thing to the figures and lives until it is let go."""

    def __init__(self, stats: ServerStats, action: Callable[[], None]) -> None:
        done, tell = os.pipe()
        self._wait, self._let_go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self._let_go)
                stats.claim()
                action()
                os.write(tell, b"x")
                os.read(self._wait, 1)
                status = 0
            finally:
                os._exit(status)
        os.close(tell)
        assert os.read(done, 1) == b"x", "the worker failed"
        os.close(done)

    def end(self, how: int = 0) -> None:
        """Let it end, or kill it; its process is gone when this returns."""
        if self.pid:
            os.kill(self.pid, how)
            os.write(self._let_go, b"x")
            os.waitpid(self.pid, 0)
            os.close(self._let_go)
            os.close(self._wait)
            self.pid = 0


Make = Callable[[int], ServerStats]
Start = Callable[[ServerStats, Callable[[], None]], Worker]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes figures of servers of several workers, and closes what workers share."""
    made: list[ServerStats] = []

    def make(workers: int) -> ServerStats:
        made.append(ServerStats(workers))
        return made[-1]

    yield make
    for stats in made:
        assert stats._file is not None
        stats._file.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts workers, and ends those that are left."""
    workers: list[Worker] = []

    def start(stats: ServerStats, action: Callable[[], None]) -> Worker:
        workers.append(Worker(stats, action))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()


def test_nothing_has_happened_yet() -> None:
    """All zeros, and every kind and outcome is there from the beginning."""
    stats = ServerStats()
    buckets, total = stats.commit_seconds()
    assert [bound for bound, _ in buckets] == [*map(str, COMMIT_BUCKETS), "+Inf"]
    assert {number for _, number in buckets} == {0.0}
    assert total == 0
    assert stats.errors() == dict.fromkeys(ERROR_KINDS, 0)
    assert stats.sink_events() == dict.fromkeys(SINK_OUTCOMES, 0)
    assert stats.queue() == 0


@pytest.mark.parametrize("seconds", [0.0, 0.0004, 0.0005, 0.00051, 0.01, 4.9, 5.0, 5.1, 1e9])
def test_a_duration_falls_into_the_buckets_at_or_above_it(seconds: float) -> None:
    """Bounds are inclusive, and the buckets cumulative."""
    stats = ServerStats()
    stats.committed(seconds, 1)
    buckets, total = stats.commit_seconds()
    bounds = (*COMMIT_BUCKETS, inf)
    assert [number for _, number in buckets] == [float(seconds <= bound) for bound in bounds]
    assert total == seconds


@pytest.mark.parametrize("entries", [0, 1, 2, 3, 1000, 1001])
def test_a_batch_falls_into_the_buckets_at_or_above_it(entries: int) -> None:
    """As durations do."""
    stats = ServerStats()
    stats.committed(0.1, entries)
    buckets, total = stats.batch_events()
    bounds = (*BATCH_BUCKETS, inf)
    assert [number for _, number in buckets] == [float(entries <= bound) for bound in bounds]
    assert total == entries


def test_sums_and_counts_add_up() -> None:
    """The last bucket counts all, the sum sums all."""
    stats = ServerStats()
    for seconds, entries in ((0.001, 3), (0.25, 40), (10.0, 5)):
        stats.committed(seconds, entries)
    buckets, total = stats.commit_seconds()
    assert (buckets[-1], total) == (("+Inf", 3.0), 10.251)
    assert stats.batch_events()[1] == 48


def test_every_kind_and_outcome_has_its_own_count() -> None:
    """No two share a cell, and an unknown kind is `other`."""
    stats = ServerStats()
    for times, kind in enumerate(ERROR_KINDS, 1):
        for _ in range(times):
            stats.failed(kind)
    for times, outcome in enumerate(SINK_OUTCOMES, 1):
        for _ in range(times):
            stats.sunk(outcome)
    stats.waiting(7)
    assert stats.errors() == {kind: times for times, kind in enumerate(ERROR_KINDS, 1)}
    assert stats.sink_events() == {outcome: times for times, outcome in enumerate(SINK_OUTCOMES, 1)}
    assert stats.queue() == 7
    stats.failed("a kind that nobody thought of")
    assert stats.errors()["other"] == len(ERROR_KINDS) + 1
    assert stats.commit_seconds()[1] == 0


def test_workers_are_read_as_their_sum(make: Make, start: Start) -> None:
    """Whichever process is asked, all are in it."""
    stats = make(3)

    def work() -> None:
        stats.committed(0.002, 5)
        stats.failed("busy")
        stats.sunk("sent")
        stats.waiting(2)

    for _ in range(3):
        start(stats, work)
    assert stats.commit_seconds()[0][-1] == ("+Inf", 3.0)
    assert stats.batch_events()[1] == 15
    assert stats.errors()["busy"] == 3
    assert stats.sink_events()["sent"] == 3
    assert stats.queue() == 6


@pytest.mark.parametrize("how", [signal.SIGKILL, 0])
def test_a_worker_that_replaces_a_dead_one_has_its_counts(
    make: Make, start: Start, how: int
) -> None:
    """No counter falls when a worker dies, and its row is used again."""
    stats = make(2)
    start(stats, lambda: stats.committed(0.1, 1))
    dead = start(stats, lambda: stats.committed(0.1, 2))
    dead.end(how)
    assert stats.batch_events()[1] == 3
    start(stats, lambda: stats.committed(0.1, 4))
    assert stats.batch_events()[1] == 7


def test_living_workers_keep_their_rows(make: Make, start: Start) -> None:
    """A worker too many finds none, rather than one that somebody writes."""
    stats = make(2)
    for _ in range(2):
        start(stats, lambda: stats.committed(0.1, 1))
    with pytest.raises(RuntimeError, match="more worker processes than rows"):
        stats.claim()


def test_servers_do_not_share(make: Make) -> None:
    """Each server has figures of its own."""
    one, other = make(2), make(2)
    one.claim()
    other.claim()
    one.committed(0.1, 1)
    assert other.batch_events()[1] == 0
