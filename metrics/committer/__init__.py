"""Group commit: the requests that wait while one transaction runs share the next one.

One thread takes what has gathered, commits it, and tells each waiter; nobody else touches the
store. Between commits, and twice a second while idle, it takes in what other processes committed,
so that `Store.read` never waits. The queue is bounded: full, it raises Overloaded at once. With a
snapshot interval waiters are told before their works are durable; see `snapshot`.
"""

from __future__ import annotations

import logging
import threading
import time as clock
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from functools import partial

from ..errors import Overloaded, StoreUnavailable
from ..state import Entry
from ..store import Store
from .snapshot import Snapshot
from .transaction import Ahead, Tally, Transactions, Verdict, Work, cut, release

__all__ = ["Committer", "Tally", "Verdict", "Work"]

logger = logging.getLogger("metrics.committer")

PROBE_SECONDS = 1.0
"""How often a store that failed is tried again while no request tries it."""
REFRESH_SECONDS = 0.5
"""How often other processes' commits are taken in."""
RECOVER_SECONDS = 5.0
"""How long a store is left alone where they could not be, unless it commits."""
MORE_SECONDS = 0.002
"""How long the thread rests between two steps of housekeeping where more is due."""
HOUSEKEEPING_SECONDS = 1.0
"""How often panes and digests past their time are looked for."""
ANSWER_SECONDS = 0.05
"""How long a commit waits for requests that follow answers, where nobody calls `go`."""
STALL_SECONDS = 10.0
"""How long one call of the store may take before the committer counts as stalled."""
DEAD_SECONDS = 300.0
"""How long it may take before the process had better be replaced."""
CLOSE_SECONDS = 15.0
"""How long `close` waits for the thread: with all else at the end less than the kubelet's 30 s."""
FLUSH_ATTEMPTS = 3
"""Tries of the last flush at `close`, with a snapshot interval."""


class Committer:
    """Hands the entries of many requests to a store, many to a transaction."""

    def __init__(
        self,
        store: Store,
        max_queue: int,
        tally: Tally,
        interval: float = 0.0,
        now: Callable[[], float] = clock.time,
        lapsed: Callable[[float], list[Entry]] | None = None,
        after: Callable[[Sequence[Entry], float], None] | None = None,
        tick: Callable[[float], None] | None = None,
    ) -> None:
        self._store = store
        self._max_queue = max_queue
        self._tally = tally
        self._now = now
        self._lapsed = lapsed
        """Tells what need not be remembered any more; looked at with the other housekeeping."""
        self._tick = tick
        """Called with the other housekeeping."""
        self._transactions = Transactions(store, tally, now, after)
        self._snapshot = Snapshot(store, self._transactions, interval) if interval else None
        self._queue: deque[Work] = deque()
        self._waiting = 0
        self._unflushed = 0
        """Entries that were acknowledged and are not durable yet."""
        self._queued = 0
        """Works that were ever queued."""
        self._taken = 0
        """Works that were ever taken from the queue."""
        self._asked = 0
        """Works up to this one are to be committed as soon as the thread is free."""
        self._held_until = 0.0
        """Monotonic seconds; until then a commit waits for those who were just answered."""
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._closing = False
        self._draining = False
        self.gathers = False
        """Whether the host calls `go` when no more requests are at hand, and so after answers."""
        self.ahead: Ahead | None = None
        """Receives the works of a commit that is about to wait, and the state it will leave."""
        self._in_hand: deque[Work] = deque()
        """Works that were taken from the queue, and are owed a verdict."""
        self._busy_since = 0.0
        """Since when the thread has not waited for work, monotonic seconds; 0: it waits."""
        self._housekept = 0.0
        self._more = False
        """Whether the store has more housekeeping to do at once."""
        self._refresh_at = 0.0
        self._refresh_failed = False
        self._asked_to_refresh: list[Future[None]] = []
        self._attempts = FLUSH_ATTEMPTS
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._transactions.probe()
        self._thread.start()

    # --- what hosts ask: none of it waits ------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether the last transaction, or the last probe, succeeded, and commits go on."""
        return self._transactions.healthy and not self._stalled(STALL_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether the thread runs, and is not stuck for good."""
        return self._thread.is_alive() and not self._stalled(DEAD_SECONDS)

    def _stalled(self, seconds: float) -> bool:
        """Whether the thread is dead, or has been in one call of the store for so long."""
        if not self._thread.is_alive():
            return True
        since = self._busy_since
        if not since:
            return False
        return clock.monotonic() - max(since, self._transactions.moved) > seconds

    def check(self, more: int = 1) -> None:
        """Raises Overloaded where the queue has no room for more: best asked before they are read.

        There is always room for one request, however large.
        """
        load = self._waiting + self._unflushed
        if load and load + more > self._max_queue:
            raise Overloaded(f"{load} events wait for a commit")

    def submit(self, work: Work) -> None:
        """Queue `work`; its `done` is told once, when the entries are durable.

        With a snapshot interval it is told when it is known which are new. Raises Overloaded
        where the queue is full.
        """
        with self._lock:
            if self._closing:
                raise Overloaded("shutting down")
            self.check(len(work.entries))
            self._queue.append(work)
            self._queued += 1
            self._waiting += len(work.entries)
            if not self.gathers or self._is_half_full():
                self._go()

    def _is_half_full(self) -> bool:
        return (self._waiting + self._unflushed) * 2 > self._max_queue

    @property
    def waiting(self) -> int:
        """Entries in the queue."""
        return self._waiting

    @property
    def full(self) -> bool:
        """Whether the queue has no room."""
        return self._waiting + self._unflushed >= self._max_queue

    def go(self) -> None:
        """Commit what is queued, as soon as the last commit is done."""
        with self._lock:
            self._go()

    def _go(self) -> None:
        self._tally.waiting(self._waiting + self._unflushed)
        self._asked = self._queued
        self._held_until = 0.0
        if self._queue:
            self._wake.notify()

    def refresh(self, seconds: float) -> None:
        """Return when `Store.read` shows what any process had committed before this was called.

        Raises StoreUnavailable, also where that takes longer than `seconds`.
        """
        asked: Future[None] = Future()
        with self._lock:
            ended = self._closing
            if not ended:
                self._asked_to_refresh.append(asked)
                self._wake.notify()
        if ended:
            self._thread.join(seconds)
            if self._thread.is_alive():
                raise StoreUnavailable("timeout", "the committer is busy")
            self._store.refresh(self._now())
            return
        try:
            asked.result(seconds)
        except TookTooLong:
            raise StoreUnavailable("timeout", "the committer is busy") from None

    def flush(self) -> None:
        """Flush what was acknowledged, and from now on acknowledge only what is durable.

        Called at the signal to stop, before connections are drained. Housekeeping does not delay
        commits any more. Never waits.
        """
        self._store.hasten()
        with self._lock:
            self._draining = True
            self._wake.notify()

    def close(self) -> bool:
        """Commit what is queued and stop the thread; further work is refused.

        False where the thread is stuck in a call of the store.
        """
        self._store.hasten()
        with self._lock:
            self._closing = self._draining = True
            self._wake.notify()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.critical("the store did not answer within %d seconds", CLOSE_SECONDS)
            return False
        return True

    # --- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (batch := self._gather()) is not None:
                if batch:
                    self._commit(batch)
                self._do_duties(idle=not batch)
            self._end()
        except BaseException:
            logger.critical("no more commits in this process: a bug", exc_info=True)
            self._tally.failed("bug")
            self._end()

    def _gather(self) -> list[Work] | None:
        """What to commit next; [] when there is time for other duties, None at the end."""
        with self._lock:
            if not self._is_due():
                self._busy_since = 0.0
                self._wake.wait(self._patience())
                self._busy_since = clock.monotonic()
            if not self._queue:
                ended = self._closing and not (self._snapshot and self._snapshot.works)
                return None if ended else []
            batch = cut(self._queue)
            self._taken += len(batch)
            self._count(-sum(len(work.entries) for work in batch))
            self._in_hand.extend(batch)
            return batch

    def _is_due(self) -> bool:
        """Whether there is something to do at once."""
        if self._asked_to_refresh:
            return True
        if self._draining and self._snapshot and self._snapshot.works:
            return bool(self._closing and self._queue) or self._snapshot.is_due(at_once=True)
        if self._closing:
            return True
        return self._taken < self._asked and clock.monotonic() >= self._held_until

    def _patience(self) -> float:
        """How long to wait for work, seconds."""
        if self._taken < self._asked:
            return max(0.0, self._held_until - clock.monotonic())
        if not self._transactions.healthy:
            return PROBE_SECONDS
        patience = MORE_SECONDS if self._more else min(REFRESH_SECONDS, HOUSEKEEPING_SECONDS)
        return min(patience, self._snapshot.seconds_left()) if self._snapshot else patience

    def _count(self, more: int) -> None:
        """Note that so many more entries are in the queue."""
        self._waiting += more
        self._tally.waiting(self._waiting + self._unflushed)

    def _commit(self, batch: list[Work]) -> None:
        """Decide on `batch`, and tell its waiters."""
        verdicts, kept = self._decide(batch)
        self._tell(verdicts, kept)
        if self._closing and not self._transactions.healthy:
            with self._lock:  # each further try could take as long as this one
                works = list(self._queue)
                self._queue.clear()
                self._count(-self._waiting)
            self._in_hand.extend(works)
            self._tell([StoreUnavailable("other", "shutting down")] * len(works))

    def _decide(self, batch: list[Work]) -> tuple[list[Verdict], bool]:
        """One verdict for each work, and whether they wait for a flush with it."""
        snapshot = self._snapshot
        if snapshot is None:
            return self._transactions.commit(batch, self.ahead), False
        if not self._draining:
            verdicts = snapshot.acknowledge(batch)
            self._unflushed = snapshot.entries
            self._tally.waiting(self._waiting + self._unflushed)
            return verdicts, not isinstance(verdicts[0], BaseException)
        if snapshot.works and not self._flushed(snapshot):
            return [StoreUnavailable("other", "shutting down")] * len(batch), False
        return self._transactions.commit(batch), False

    def _tell(self, verdicts: Sequence[Verdict], kept: bool = False) -> None:
        """Tell the works in hand, each once; one that fails at it harms no other."""
        if self.gathers and verdicts:
            self._held_until = clock.monotonic() + ANSWER_SECONDS
        for verdict in verdicts:
            work = self._in_hand.popleft()
            if not kept:
                release(work)
            try:
                work.done(verdict)
            except Exception:
                logger.exception("an answer failed")
                self._tally.failed("bug")

    def _end(self) -> None:
        """Refuse what comes, and tell whoever waits, that there are no more commits."""
        with self._lock:
            self._closing = True
            self._in_hand.extend(self._queue)
            self._queue.clear()
            self._count(-self._waiting)
        error = StoreUnavailable("other", "no more commits in this process")
        self._tell([error] * len(self._in_hand))
        for asked in self._asked_to_refresh:
            asked.set_exception(error)
        if self._snapshot and self._snapshot.works:
            self._snapshot.give_up()

    # --- duties --------------------------------------------------------------------------------

    def _do_duties(self, idle: bool) -> None:
        """Whatever is due besides commits."""
        flushed = self._snapshot is not None and self._flush(self._snapshot)
        if idle and not flushed and not self._transactions.healthy:
            self._transactions.probe()
        moment = clock.monotonic()
        if self._refresh_failed and self._transactions.healthy:
            self._refresh_failed = False
            self._refresh_at = moment
        if moment >= self._refresh_at or self._asked_to_refresh:
            self._refresh_at = moment + REFRESH_SECONDS
            self._refresh()
        due = moment - self._housekept >= HOUSEKEEPING_SECONDS
        if (due or self._more) and self._transactions.healthy and not self._closing:
            if due:
                self._housekept = moment
                if self._tick is not None:
                    self._transactions.aside(self._tick)
            self._more = False
            self._transactions.aside(partial(self._housekeep, due), "housekeeping failed")

    def _refresh(self) -> None:
        """Take in what other processes committed."""
        with self._lock:
            asked, self._asked_to_refresh = self._asked_to_refresh, []
        error: Exception | None = None
        try:
            self._store.refresh(self._now())
        except StoreUnavailable as unavailable:
            error = unavailable
            if unavailable.kind != "busy":  # else a commit would wait, and may succeed
                self._refresh_failed = True
                self._refresh_at = clock.monotonic() + RECOVER_SECONDS
                self._transactions.failed(unavailable)
        except Exception as bug:
            error = bug
            self._refresh_at = clock.monotonic() + RECOVER_SECONDS
            logger.exception("what other processes committed is not seen")
            self._tally.failed("bug")
        else:
            self._transactions.moved = clock.monotonic()
        for each in asked:
            if error is None:
                each.set_result(None)
            else:
                each.set_exception(error)

    def _flush(self, snapshot: Snapshot) -> bool:
        """Commit the works that were acknowledged, where that is due; tells whether it was."""
        if not snapshot.is_due(self._draining or self._is_half_full()):
            return False
        if self._flushed(snapshot):
            self._attempts = FLUSH_ATTEMPTS
        elif self._closing:
            self._attempts -= 1
            if self._attempts:
                clock.sleep(PROBE_SECONDS)
            else:
                snapshot.give_up()
        return True

    def _flushed(self, snapshot: Snapshot) -> bool:
        """Whether all that was acknowledged is durable now."""
        done = snapshot.flush()
        if not done:
            snapshot.retry_at = clock.monotonic() + PROBE_SECONDS
        self._unflushed = snapshot.entries
        self._tally.waiting(self._waiting + self._unflushed)
        return done

    def _housekeep(self, due: bool, now: float) -> None:
        self._more = self._store.housekeep(now)
        if due and self._lapsed is not None:
            entries = self._lapsed(now)
            if entries:
                self._store.commit(entries, now)
                self._housekept = 0.0  # there may be more
