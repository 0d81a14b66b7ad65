"""The snapshot interval: works are acknowledged from memory, and flushed every so many seconds.

Which of their entries are new is asked of the store first, so that an event that comes again after
its flush is a duplicate for whoever is told. A crash loses what was not flushed.
"""

from __future__ import annotations

import logging
import time as clock
from collections import deque
from collections.abc import Sequence
from math import inf

from ..errors import StoreUnavailable
from ..state import Entry, RecordKey, home_of
from ..store import Store
from .transaction import Transactions, Verdict, Work, cut, release

logger = logging.getLogger("metrics.committer")


class Snapshot:
    """Acknowledged works that wait for the next flush. For one thread."""

    def __init__(self, store: Store, transactions: Transactions, interval: float) -> None:
        self._store = store
        self._transactions = transactions
        self._interval = interval
        self.works: deque[Work] = deque()
        self.entries = 0
        """Those of all works."""
        self._ids: set[RecordKey] = set()
        self._due = inf
        """When the next flush is due, monotonic seconds."""
        self.retry_at = 0.0
        """Before this there is none, whatever is due; monotonic seconds."""

    def acknowledge(self, works: Sequence[Work]) -> list[Verdict]:
        """One verdict for each of `works`, which is kept for the next flush."""
        ids = {_id(entry) for work in works for entry in work.entries if entry.digest}
        try:
            _, known = self._store.find((), ids - self._ids)
        except StoreUnavailable as error:
            self._transactions.failed(error)
            return [error] * len(works)
        known |= self._ids
        if not self.works:
            self._due = clock.monotonic() + self._interval
        verdicts: list[Verdict] = []
        for work in works:
            verdict = []
            for entry in work.entries:
                id = _id(entry)
                verdict.append(not entry.digest or id not in known)
                if entry.digest:
                    known.add(id)
                    self._ids.add(id)
            verdicts.append(verdict)
            self.works.append(work)
            self.entries += len(work.entries)
        return verdicts

    def seconds_left(self) -> float:
        """Until the next flush is due."""
        return max(0.0, max(self._due, self.retry_at) - clock.monotonic())

    def is_due(self, at_once: bool) -> bool:
        """Whether there is something to flush now; `at_once`: whatever the interval."""
        moment = clock.monotonic()
        due = at_once or moment >= self._due
        return bool(self.works) and due and moment >= self.retry_at

    def flush(self) -> bool:
        """Commit all works, in order. False where some could not be, and are kept."""
        while self.works:
            batch = cut(self.works)
            verdicts = self._transactions.commit(batch)
            kept: list[Work] = []
            for work, verdict in zip(batch, verdicts, strict=True):
                if isinstance(verdict, StoreUnavailable):
                    kept.append(work)
                    continue
                if isinstance(verdict, BaseException):
                    logger.error("an acknowledged event is not counted: %s", verdict)
                release(work)
                self.entries -= len(work.entries)
                self._ids.difference_update(map(_id, work.entries))
            self.works.extendleft(reversed(kept))
            if kept:
                return False
        self._due = inf
        return True

    def give_up(self) -> None:
        """Forget all works."""
        logger.critical("%d acknowledged events are lost", self.entries)
        for work in self.works:
            release(work)
        self.works.clear()
        self._ids.clear()
        self.entries = 0


def _id(entry: Entry) -> RecordKey:
    return RecordKey(home_of(entry.model), entry.digest)
