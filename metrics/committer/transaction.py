"""Transactions of many works: each work gets exactly one verdict, whatever fails.

`Transactions.commit` returns as many verdicts as it was given works and raises nothing but what
ends a thread. So there is one place that decides, and whoever called it tells each work once.
"""

from __future__ import annotations

import logging
import time as clock
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from ..errors import ConstantsDiffer, StoreUnavailable
from ..state import Entry, RecordKey, State
from ..store import Store, unheeded

logger = logging.getLogger("metrics.committer")

MAX_BATCH = 1024
"""Entries of one transaction, about: a request is never divided."""
ATTEMPTS = 10
"""Tries of one transaction while other writers fix constants, or swap records, first."""

Verdict = list[bool] | BaseException
"""Which entries of a work were new, or what went wrong."""


class Work(Protocol):
    """The entries of one request: committed together, or not at all."""

    entries: list[Entry]

    def done(self, verdict: Verdict) -> None:
        """Told once, from the committer's thread."""


class Tally(Protocol):
    """What the committer reports of each transaction, for the operational families."""

    def committed(self, seconds: float, entries: int) -> None:
        """A transaction succeeded."""

    def failed(self, kind: str) -> None:
        """A transaction did not."""

    def waiting(self, entries: int) -> None:
        """So many entries are in the queue now."""


Ahead = Callable[[Sequence[Work], State], None]
"""Receives the works of a commit that is about to wait, and the state it leaves on success."""


def cut(queue: deque[Work]) -> list[Work]:
    """Take from `queue` the works of the next transaction: at least one, in order.

    What becomes of a record is known after a commit, so no two works of one record share one.
    """
    batch: list[Work] = []
    size = 0
    records: set[RecordKey] = set()
    while queue and (not batch or size + len(queue[0].entries) <= MAX_BATCH):
        wanted = [entry.finds for entry in queue[0].entries if entry.finds]
        if wanted:
            if not records.isdisjoint(wanted):
                break
            records.update(wanted)
        work = queue.popleft()
        size += len(work.entries)
        batch.append(work)
    return batch


def release(work: Work) -> None:
    """Let go of what a work that is decided on holds of the caps."""
    for entry in work.entries:
        if entry.reserved is not None:
            entry.release()


class Transactions:
    """Commits works to a store, and knows whether that can commit. For one thread."""

    def __init__(
        self,
        store: Store,
        tally: Tally,
        now: Callable[[], float],
        after: Callable[[Sequence[Entry], float], None] | None = None,
    ) -> None:
        self._store = store
        self._tally = tally
        self._now = now
        self._after = after
        self.healthy = True
        """Whether the last transaction, or the last probe, succeeded."""
        self.moved = clock.monotonic()
        """When the store answered last, monotonic seconds."""

    def commit(self, works: Sequence[Work], ahead: Ahead | None = None) -> list[Verdict]:
        """One verdict for each of `works`, in order: they share a transaction where they can."""
        verdicts: list[Verdict | None] = [None] * len(works)
        self._commit(works, list(range(len(works))), verdicts, ahead)
        return [_UNKNOWN if verdict is None else verdict for verdict in verdicts]

    def _commit(
        self,
        works: Sequence[Work],
        places: list[int],
        verdicts: list[Verdict | None],
        ahead: Ahead | None,
    ) -> None:
        """Decide on the works at these `places`."""
        try:
            for _ in range(ATTEMPTS):
                places = self._settle(works, places, verdicts)
                if not places:
                    return
                try:
                    self._transact(works, places, verdicts, ahead)
                    return
                except ConstantsDiffer:
                    self.moved = clock.monotonic()  # evaluate under what another writer fixed
            raise StoreUnavailable("contended", "other writers kept fixing constants first")
        except StoreUnavailable as error:
            self.failed(error)
            for at in places:
                verdicts[at] = error
        except Exception as error:  # a bug, or an entry no store can take
            logger.exception("commit failed")
            self._tally.failed("bug")
            if len(places) == 1:
                verdicts[places[0]] = error
                return
            for at in places:  # only the one at fault shall suffer
                self._commit(works, [at], verdicts, ahead)

    def _transact(
        self,
        works: Sequence[Work],
        places: Sequence[int],
        verdicts: list[Verdict | None],
        ahead: Ahead | None,
    ) -> None:
        """Commit the works at `places` in one transaction, and note which entries were new."""
        entries = [entry for at in places for entry in works[at].entries]
        foresee = partial(_foresee, ahead, [works[at] for at in places]) if ahead else unheeded
        started = clock.perf_counter()
        flat = self._store.commit(entries, self._now(), foresee)
        self._tally.committed(clock.perf_counter() - started, len(entries))
        self.recovered()
        begin = 0
        for at in places:
            end = begin + len(works[at].entries)
            verdicts[at] = flat[begin:end]
            begin = end
        if self._after is not None:
            self.aside(partial(self._after, entries))

    def _settle(
        self, works: Sequence[Work], places: Sequence[int], verdicts: list[Verdict | None]
    ) -> list[int]:
        """Evaluate every entry under the constants that will be in force.

        So are those that need the record of a request, but for duplicates. Work that contradicts
        what it meets has its error as its verdict; returns the places of the others.
        """
        wanting = [
            (entry.finds, entry.digest)
            for at in places
            for entry in works[at].entries
            if entry.finds
        ]
        records: dict[RecordKey, bytes] = {}
        known_ids: set[RecordKey] = set()
        if wanting:
            records, known_ids = self._store.find(
                {key for key, _ in wanting},
                {RecordKey(key.home, digest) for key, digest in wanting if digest},
            )
        state = self._store.read()
        in_force: dict[str, dict[str, Any]] = {}

        def constants_of(model: str) -> dict[str, Any]:
            known = in_force.get(model)
            if known is None:
                known = in_force[model] = dict(state.constants(model))
            return known

        settled: list[int] = []
        for place in places:
            entries = works[place].entries
            undo: list[Callable[[], object]] = []  # of what a refused work told those after it
            try:
                for at, entry in enumerate(entries):
                    if entry.finds and entry.resolve:
                        id = RecordKey(entry.finds.home, entry.digest)
                        if id in known_ids:
                            continue
                        before = records.get(entry.finds, b"")
                        entry = entry.resolve(constants_of, before)
                        if entry.swap:
                            records[entry.swap.key] = entry.swap.after
                            undo.append(partial(records.__setitem__, entry.swap.key, before))
                        if entry.digest:
                            known_ids.add(id)
                            undo.append(partial(known_ids.discard, id))
                    elif entry.constants:
                        entry = _under(entry, constants_of(entry.model))
                    if entry is not entries[at]:
                        entries[at].release()
                        entries[at] = entry
                    if entry.constants:
                        known = constants_of(entry.model)
                        for name in entry.constants.keys() - known.keys():
                            known[name] = entry.constants[name]
                            undo.append(partial(known.pop, name))
            except Exception as error:
                verdicts[place] = error
                for each in reversed(undo):
                    each()
            else:
                settled.append(place)
        return settled

    # --- whether the store can commit ----------------------------------------------------------

    def probe(self) -> None:
        """Find out whether the store can commit."""
        try:
            self._store.commit([], self._now())
        except StoreUnavailable as error:
            self.failed(error)
        else:
            self.recovered()

    def failed(self, error: StoreUnavailable) -> None:
        """Take note of a store that cannot commit."""
        if self.healthy:
            logger.error("store cannot commit (%s): %s", error.kind, error)
        self.healthy = False
        self.moved = clock.monotonic()
        self._tally.failed(error.kind)

    def recovered(self) -> None:
        """Take note of a store that has committed."""
        if not self.healthy:
            logger.info("store commits again")
        self.healthy = True
        self.moved = clock.monotonic()

    def aside(self, duty: Callable[[float], object], name: str = "put off") -> None:
        """Run a best-effort task; its failures are logged."""
        try:
            duty(self._now())
        except ConstantsDiffer:
            pass  # another process was faster
        except StoreUnavailable as error:
            logger.warning("%s (%s): %s", name, error.kind, error)
        except Exception:  # a bug; commits go on
            logger.exception(name)
            self._tally.failed("bug")
        self.moved = clock.monotonic()


_UNKNOWN = StoreUnavailable("other", "nothing is known of this commit")
"""Stands for a verdict that is missing, which no path leaves so."""


def _foresee(ahead: Ahead, works: Sequence[Work], state: State) -> None:
    """Call `ahead`: what it raises must not fail the commit."""
    try:
        ahead(works, state)
    except Exception:
        logger.exception("a commit goes on without its answers prepared")


def _under(entry: Entry, constants: dict[str, Any]) -> Entry:
    """`entry`, evaluated again where it presupposes other constants than those in force."""
    for name, presupposed in entry.constants.items():
        if constants.get(name, presupposed) != presupposed:
            if entry.again is None:
                raise ConstantsDiffer(f"{entry.model}: {name}")
            return entry.again(constants)
    return entry
