"""Group commit: the requests that wait while one transaction runs share the next one.

One thread takes what has gathered, commits it, and tells each waiter. The queue is bounded: full,
it raises Overloaded at once. With a snapshot interval waiters are told at once and the same
thread flushes every so many seconds and at `close`; there is no second flush path.
"""

from __future__ import annotations

import logging
import threading
import time as clock
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from .errors import ConstantsDiffer, Overloaded, StoreUnavailable
from .state import Entry, RecordKey, State
from .store import Store, unheeded

logger = logging.getLogger("metrics.committer")

MAX_BATCH = 1024
"""Entries of one transaction, about: a request is never divided."""
PROBE_SECONDS = 1.0
"""How often a store that failed is tried again while no request tries it."""
MORE_SECONDS = 0.002
"""How long the thread rests between two steps of housekeeping where more is due."""
HOUSEKEEPING_SECONDS = 1.0
"""How often panes and digests past their time are looked for."""
FLUSH_SECONDS = 0.1
"""Between two flushes once the server is told to stop."""
FLUSH_ATTEMPTS = 3
"""Tries of the last flush at `close`, with a snapshot interval."""


class Work(Protocol):
    """The entries of one request: committed together, or not at all."""

    entries: list[Entry]

    def done(self, verdict: list[bool] | BaseException) -> None:
        """Told once, from the committer's thread: which entries were new, or what went wrong."""


class Tally(Protocol):
    """What the committer reports of each transaction, for the operational families."""

    def committed(self, seconds: float, entries: int) -> None:
        """A transaction succeeded."""

    def failed(self, kind: str) -> None:
        """A transaction did not."""

    def waiting(self, entries: int) -> None:
        """So many entries are in the queue now."""


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
        self._interval = interval
        self._pause = interval
        """Seconds between two flushes."""
        self._now = now
        self._lapsed = lapsed
        """Tells what need not be remembered any more; looked at with the other housekeeping."""
        self._after = after
        """Called with the entries of a commit before their waiters are told."""
        self._tick = tick
        """Called with the other housekeeping."""
        self._queue: deque[Work] = deque()
        self._waiting = 0
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._closing = False
        self._ready = False
        """Whether what is queued is to be committed now."""
        self.gathers = False
        """Whether the host calls `go` when no more requests are at hand, and so after answers."""
        self.ahead: Callable[[Sequence[Work], State], None] | None = None
        """Told of a commit that is about to wait, and of the state it will leave if it succeeds."""
        self._healthy = True
        self._pending_digests: set[bytes] = set()
        self._attempts = FLUSH_ATTEMPTS
        self._housekept = 0.0
        self._more = False
        """Whether the store has more housekeeping to do at once."""
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._probe()
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether the last transaction, or the last probe, succeeded. Never waits."""
        return self._healthy

    def check(self, more: int = 1) -> None:
        """Raises Overloaded where the queue has no room for more: best asked before they are read.

        There is always room for one request, however large.
        """
        if self._waiting and self._waiting + more > self._max_queue:
            raise Overloaded(f"{self._waiting} events wait for a commit")

    def submit(self, work: Work) -> None:
        """Queue `work`; its `done` is told when the entries are durable.

        With a snapshot interval it is told before this returns, by this process's knowledge of
        which are new. Raises Overloaded where the queue is full.
        """
        verdicts = None
        with self._lock:
            if self._closing:
                raise Overloaded("shutting down")
            self.check(len(work.entries))
            if self._interval:
                verdicts = self._take(work)
            self._queue.append(work)
            self._waiting += len(work.entries)
            if not self.gathers or self._waiting * 2 > self._max_queue:
                self._go()
        if verdicts is not None:
            work.done(verdicts)

    @property
    def waiting(self) -> int:
        """Entries in the queue."""
        return self._waiting

    @property
    def full(self) -> bool:
        """Whether the queue has no room."""
        return self._waiting >= self._max_queue

    def go(self) -> None:
        """Commit what is queued, as soon as the last commit is done."""
        with self._lock:
            self._go()

    def _go(self) -> None:
        self._tally.waiting(self._waiting)
        if not self._interval or self._waiting * 2 > self._max_queue:
            self._ready = True
            self._wake.notify()

    @property
    def alive(self) -> bool:
        """Whether the thread that commits runs. Never waits."""
        return self._thread.is_alive()

    def flush(self) -> None:
        """Have what is acknowledged flushed now, and from now on at once: the end is near.

        Housekeeping does not delay commits any more.
        """
        self._store.hasten()
        with self._lock:
            self._pause = min(self._pause, FLUSH_SECONDS)
            self._wake.notify()

    def close(self) -> None:
        """Commit what is queued and stop the thread; further work is refused."""
        with self._lock:
            self._closing = True
            self._wake.notify()
        self._store.hasten()
        self._thread.join()

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            batch = self._gather()
            if batch is None:
                return
            if batch:
                self._commit(batch)
            elif not self._healthy:
                self._probe()
            if not self._closing:
                self._housekeep()

    def _gather(self) -> list[Work] | None:
        """What to commit next; [] when there is time for other duties, None at the end."""
        with self._lock:
            if self._interval:
                full = self._waiting * 2 > self._max_queue and self._healthy
                if not self._closing and not full:
                    until = self._pause if self._healthy else PROBE_SECONDS
                    self._wake.wait(min(until, self._pause))
            elif not (self._queue and self._ready) and not self._closing:
                more = MORE_SECONDS if self._more else HOUSEKEEPING_SECONDS
                self._wake.wait(more if self._healthy else PROBE_SECONDS)
            if not self._queue:
                return None if self._closing else []
            batch: list[Work] = []
            size = 0
            requests: set[RecordKey] = set()
            while self._queue and (not batch or size + len(self._queue[0].entries) <= MAX_BATCH):
                wanted = [entry.finds for entry in self._queue[0].entries if entry.finds]
                if wanted:
                    if not requests.isdisjoint(wanted):
                        break  # what becomes of that record is known after this commit
                    requests.update(wanted)
                work = self._queue.popleft()
                size += len(work.entries)
                batch.append(work)
            self._count(-size)
            self._ready = self._ready and bool(self._queue)
            return batch

    def _count(self, more: int) -> None:
        """Note that so many more entries are in the queue."""
        self._waiting += more
        self._tally.waiting(self._waiting)

    def _commit(self, batch: list[Work]) -> None:
        """Commit `batch` in one transaction and tell its waiters."""
        try:
            batch, verdicts = self._transact(batch)
        except StoreUnavailable as error:
            self._fail(batch, error)
        except Exception as error:  # a bug, or an entry no store can take
            logger.exception("commit failed")
            self._tally.failed("bug")
            if len(batch) == 1:
                self._tell(batch, [error])
            else:
                for work in batch:  # only the one at fault shall suffer
                    self._commit([work])
        else:
            self._recovered()
            if self._after is not None:
                entries = [entry for work in batch for entry in work.entries]
                self._aside(partial(self._after, entries))
            self._tell(batch, verdicts)

    def _transact(self, batch: list[Work]) -> tuple[list[Work], list[Any]]:
        """Commit all of `batch` that constants allow; the rest are told why not."""
        for _ in range(10):
            batch = self._settle(batch)
            entries = [entry for work in batch for entry in work.entries]
            started = clock.perf_counter()
            try:
                ahead = partial(self.ahead, batch) if self.ahead else unheeded
                flat = self._store.commit(entries, self._now(), ahead)
            except ConstantsDiffer:
                continue  # another writer fixed a constant first: evaluate under it
            self._tally.committed(clock.perf_counter() - started, len(entries))
            verdicts = []
            at = 0
            for work in batch:
                verdicts.append(flat[at : at + len(work.entries)])
                at += len(work.entries)
            return batch, verdicts
        raise StoreUnavailable("contended", "other writers kept fixing constants first")

    def _settle(self, batch: list[Work]) -> list[Work]:
        """`batch` with every entry evaluated under the constants that will be in force.

        So are those that need the record of a request, but for duplicates. Work that contradicts
        what it meets is told so and left out.
        """
        wanting = [entry for work in batch for entry in work.entries if entry.finds]
        records: dict[RecordKey, bytes] = {}
        known_digests: set[bytes] = set()
        if wanting:
            keys = {entry.finds for entry in wanting if entry.finds}
            digests = {entry.digest for entry in wanting if entry.digest}
            records, known_digests = self._store.find(keys, digests)
        state = self._store.read()
        in_force: dict[str, dict[str, Any]] = {}

        def constants_of(model: str) -> dict[str, Any]:
            known = in_force.get(model)
            if known is None:
                known = in_force[model] = dict(state.constants(model))
            return known

        settled: list[Work] = []
        for work in batch:
            try:
                for at, entry in enumerate(work.entries):
                    if entry.finds and entry.resolve:
                        if entry.digest in known_digests:
                            continue
                        entry = entry.resolve(constants_of, records.get(entry.finds, b""))
                        if entry.swap:
                            records[entry.swap.key] = entry.swap.after
                        if entry.digest:
                            known_digests.add(entry.digest)
                    elif entry.constants:
                        entry = _under(entry, constants_of(entry.model))
                    work.entries[at] = entry
                    if entry.constants:
                        known = constants_of(entry.model)
                        for name, value in entry.constants.items():
                            known.setdefault(name, value)
            except Exception as error:
                if self._interval:
                    logger.error("an acknowledged event is not counted: %s", error)
                self._tell([work], [error])
            else:
                settled.append(work)
        return settled

    def _fail(self, batch: list[Work], error: StoreUnavailable) -> None:
        if self._healthy:
            logger.error("store cannot commit (%s): %s", error.kind, error)
        self._healthy = False
        self._tally.failed(error.kind)
        if not self._interval:
            self._tell(batch, [error] * len(batch))
            return
        entries = sum(len(work.entries) for work in batch)
        if self._closing:
            self._attempts -= 1
            if not self._attempts:
                logger.critical("%d acknowledged events are lost: %s", entries, error)
                self._tell(batch, [])
                self._attempts = 1
                return
            clock.sleep(PROBE_SECONDS)
        with self._lock:  # already acknowledged: keep it, in order, for the next flush
            self._queue.extendleft(reversed(batch))
            self._count(entries)

    def _probe(self) -> None:
        try:
            self._store.commit([], self._now())
        except StoreUnavailable as error:
            if self._healthy:
                logger.error("store cannot commit (%s): %s", error.kind, error)
            self._healthy = False
            self._tally.failed(error.kind)
        else:
            self._recovered()

    def _recovered(self) -> None:
        if not self._healthy:
            logger.info("store commits again")
        self._healthy = True

    def _housekeep(self) -> None:
        due = clock.monotonic() - self._housekept >= HOUSEKEEPING_SECONDS
        if not self._healthy or not (due or self._more):
            return
        if due:
            self._housekept = clock.monotonic()
            if self._tick is not None:
                self._aside(self._tick)
        self._more = False
        try:
            now = self._now()
            self._more = self._store.housekeep(now)
            while self._more and self._pause and not (self._closing or self._waiting > MAX_BATCH):
                self._more = self._store.housekeep(now)  # nobody waits for the next flush
            if due and self._lapsed is not None:
                entries = self._lapsed(now)
                if entries:
                    self._store.commit(entries, now)
                    self._housekept = 0.0  # there may be more
        except ConstantsDiffer:
            pass  # another process was faster
        except StoreUnavailable as error:
            logger.warning("housekeeping failed (%s): %s", error.kind, error)
        except Exception:  # a bug; commits go on
            logger.exception("housekeeping failed")
            self._tally.failed("bug")

    def _aside(self, duty: Callable[[float], None]) -> None:
        """Do what no commit and no answer depends on."""
        try:
            duty(self._now())
        except StoreUnavailable as error:
            logger.warning("put off (%s): %s", error.kind, error)
        except Exception:  # a bug; commits go on
            logger.exception("unforeseen")
            self._tally.failed("bug")

    def _tell(self, batch: Sequence[Work], verdicts: Sequence[Any]) -> None:
        """Tell every waiter of `batch`."""
        if self._interval:
            for work in batch:
                self._pending_digests.difference_update(entry.digest for entry in work.entries)
            return
        if self.gathers:
            with self._lock:
                self._ready = False  # it is again, once these are answered
        for work, verdict in zip(batch, verdicts, strict=True):
            work.done(verdict)

    def _take(self, work: Work) -> list[bool]:
        """Which entries are new, as far as this process's unflushed ones tell."""
        verdicts = []
        for entry in work.entries:
            verdicts.append(entry.digest not in self._pending_digests)
            if entry.digest:
                self._pending_digests.add(entry.digest)
        return verdicts


def _under(entry: Entry, constants: dict[str, Any]) -> Entry:
    """`entry`, evaluated again where it presupposes other constants than those in force."""
    for name, presupposed in entry.constants.items():
        if constants.get(name, presupposed) != presupposed:
            if entry.again is None:
                raise ConstantsDiffer(f"{entry.model}: {name}")
            return entry.again(constants)
    return entry
