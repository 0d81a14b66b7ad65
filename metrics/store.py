"""The contract of a store, and its memory twin.

Every backend has the same verbs: `commit` (atomic, and durable when it returns), `refresh` (take
in what other processes committed), `read` (what is known, from memory), `close`. One test suite
runs over all of them. A server calls a store from its committer's thread only, but for `read`,
`seen`, `losses` and `hasten`, which never wait and do no I/O.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Any, Protocol

import orjson

from .counters import Increment, Number, value
from .errors import ConfigurationError, ConstantsDiffer
from .state import TAG, Delta, Entry, Mirror, RecordKey, State, total
from .urls import redacted

JOURNALS = ("auto", "wal", "truncate", "delete")
"""What `?journal=` of a SQLite URL may say."""
PANES_AT_ONCE = 1000
"""Expired panes that one step of housekeeping forgets, at most."""


Ahead = Callable[[State], None]
"""Is told what `read` will give if a commit succeeds that is about to wait for that."""


def read_constant(text: str | bytes) -> Any:
    """The value of a stored constant; its text where that cannot be read."""
    try:
        return orjson.loads(text)
    except ValueError:
        return text if isinstance(text, str) else text.decode(errors="replace")


def events_in(vector: Increment) -> Number:
    """How many events a vector has; 0 where what is stored is no number."""
    number = value(vector, "events")
    return number if isinstance(number, (int, float)) else 0


def unheeded(_: State) -> None:
    """What `ahead` is for those who need not know."""


class Store(Protocol):
    """Where counters are durable. Two processes may hold the same store open at once."""

    losses: int
    """How often this process found commits lost, or where they were kept gone."""

    def commit(self, batch: Sequence[Entry], now: float, ahead: Ahead = unheeded) -> list[bool]:
        """Atomically and durably add what is new of `batch`; tells which entries were new.

        An entry whose digest is known, or stands earlier in the batch, adds one to its model's
        `duplicates` and nothing else; an entry without a digest is always new. An empty batch
        writes a probe, and so tells whether the store can commit. `now` (epoch seconds) dates
        the digests. `ahead` is told before a wait, and where that was in vain perhaps again.
        Raises ConstantsDiffer, with nothing written and `read` up to date, where an
        entry presupposes a constant that another writer fixed otherwise, or a record that is not
        there; StoreUnavailable where a retry can succeed.
        """

    def refresh(self, now: float) -> None:
        """Take in what other processes committed: `read` shows it then. Raises StoreUnavailable."""

    def read(self) -> State:
        """A consistent copy as of the last commit, or `refresh`. Never waits, does no I/O."""

    def find(
        self, keys: Collection[RecordKey], ids: Collection[RecordKey]
    ) -> tuple[dict[RecordKey, bytes], set[RecordKey]]:
        """The records there are of `keys`, and which of `ids` are known: digests, with homes.

        Both as of now; a commit that presupposes them may find them changed. `read` shows what
        was counted with those records. Raises StoreUnavailable.
        """

    def oldest(self, limit: int) -> list[tuple[RecordKey, bytes]]:
        """The records that were written first, about `limit` of them of each home at most."""

    def held(self) -> int:
        """Bytes of all records, about."""

    def housekeep(self, now: float) -> bool:
        """Forget, in a small step, panes that no window reaches and digests past their time.

        True where more is due at once: then it is to be called again before long.
        """

    def seen(self) -> int:
        """How many digests are remembered, about. Never waits, does no I/O."""

    def reset(self, model: str) -> bool:
        """Forget all of one model but its digests; tells whether there was any."""

    def hasten(self) -> None:
        """Have housekeeping, which commits do not need, end soon. Never waits."""

    def close(self) -> None:
        """Release the store; what was committed is durable already."""


def split(batch: Sequence[Entry], fresh: set[bytes]) -> tuple[list[Entry], list[Entry], list[bool]]:
    """New entries, duplicates, and which were new, given the digests that are new to the store.

    Takes from `fresh` what it used, so that a digest's second entry in a batch is a duplicate.
    """
    new: list[Entry] = []
    duplicates: list[Entry] = []
    verdicts: list[bool] = []
    for entry in batch:
        is_new = not entry.digest or entry.digest in fresh
        fresh.discard(entry.digest)
        (new if is_new else duplicates).append(entry)
        verdicts.append(is_new)
    return new, duplicates, verdicts


def check_constants(mirror: Mirror, delta: Delta) -> None:
    """Raises ConstantsDiffer where `delta` presupposes other constants than the mirror's."""
    for model, constants in delta.constants.items():
        known = mirror.constants(model)
        replaced = delta.replaced.get(model, {})
        for name, presupposed in constants.items():
            if name in replaced:
                presupposed = replaced[name]
            elif name not in known:
                continue
            if known.get(name) != presupposed:
                raise ConstantsDiffer(f"{model}: {name}")


def with_created(mirror: Mirror, delta: Delta, now: float) -> None:
    """Have every model's first commit fix the constant `created`, epoch seconds."""
    for model in delta.models:
        if "created" not in mirror.constants(model):
            delta.constants.setdefault(model, {}).setdefault("created", now)


class MemoryStore:
    """The twin for tests, and for people who want no durability: `memory:`."""

    def __init__(self, dedup_ttl: int) -> None:
        self._ttl = dedup_ttl
        self._lock = threading.Lock()
        self._mirror = Mirror()
        self._seen: dict[bytes, float] = {}
        self._records: dict[RecordKey, bytes] = {}
        self._held = 0
        self.losses = 0

    def commit(self, batch: Sequence[Entry], now: float, ahead: Ahead = unheeded) -> list[bool]:
        """Atomically add what is new of `batch`; durable for as long as the process lives."""
        with self._lock:
            fresh = {entry.digest for entry in batch if entry.digest not in self._seen}
            new, duplicates, verdicts = split(batch, fresh)
            delta = total(new, duplicates)
            check_constants(self._mirror, delta)
            for key, swap in delta.swaps.items():
                if self._records.get(key, b"")[:TAG] != swap.before:
                    raise ConstantsDiffer(f"a record of {key.home}")
            with_created(self._mirror, delta, now)
            for home, vector in delta.groups.items():
                self._mirror.spread(home, vector)
            for key, swap in delta.swaps.items():
                self._held += len(swap.after) - len(self._records.pop(key, b""))
                if swap.after:
                    self._records[key] = swap.after
            apply_rest(self._mirror, delta)
            self._seen.update((entry.digest, now) for entry in new if entry.digest)
            self._mirror.sequence += 1
            self._mirror.read()
            return verdicts

    def refresh(self, now: float) -> None:
        """Nothing: there is no other process."""

    def read(self) -> State:
        """A consistent copy."""
        return self._mirror.published

    def find(
        self, keys: Collection[RecordKey], ids: Collection[RecordKey]
    ) -> tuple[dict[RecordKey, bytes], set[RecordKey]]:
        """The records there are of `keys`, and which of `ids` are known."""
        with self._lock:
            records = {key: self._records[key] for key in keys if key in self._records}
            return records, {each for each in ids if each.id in self._seen}

    def oldest(self, limit: int) -> list[tuple[RecordKey, bytes]]:
        """The records that were written first."""
        with self._lock:
            return list(islice(self._records.items(), limit))

    def held(self) -> int:
        """Bytes of all records."""
        return self._held

    def housekeep(self, now: float) -> bool:
        """Forget expired panes, and up to 1000 digests past their time."""
        with self._lock:
            more = self._mirror.expire(now, PANES_AT_ONCE) == PANES_AT_ONCE
            self._mirror.read()
            for digest, time in list(islice(self._seen.items(), 1000)):  # the oldest come first
                if now - self._ttl < time <= now:
                    return more
                del self._seen[digest]
                if time > now:  # the clock was set back
                    self._seen[digest] = now
            return more or len(self._seen) > 0

    def seen(self) -> int:
        """How many digests are remembered."""
        return len(self._seen)

    def reset(self, model: str) -> bool:
        """Forget all of one model but its digests."""
        with self._lock:
            known = model in self._mirror
            self._mirror.forget(model)
            self._mirror.read()
            return known

    def hasten(self) -> None:
        """Nothing takes long."""

    def close(self) -> None:
        """Nothing to release."""


def apply_rest(mirror: Mirror, delta: Delta) -> None:
    """Apply a delta's gauges and constants; the counters are the store's business."""
    for model, gauges in delta.gauges.items():
        for key, gauge in gauges.items():
            mirror.set_gauge(model, key, gauge)
    for model, constants in delta.constants.items():
        mirror.set_constants(model, constants, delta.replaced.get(model, ()))


def open_store(url: str, dedup_ttl: int, durability: str = "none") -> Store:
    """The store at `url`. Raises ConfigurationError or StoreUnusable where no retry can help."""
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        return MemoryStore(dedup_ttl)
    if scheme == "sqlite":
        from .sqlite_store import SQLiteStore

        path, _, query = rest.partition("?")
        journal = query.removeprefix("journal=") or "auto"
        if not path.startswith("///") or len(path) < 4 or journal not in JOURNALS:
            raise ConfigurationError(
                f"FEEDBACK_STORE: {redacted(url)}: use sqlite:///relative/path or "
                f"sqlite:////absolute/path, perhaps with ?journal={'|'.join(JOURNALS)}"
            )
        return SQLiteStore(path[3:], dedup_ttl, journal)
    if scheme in ("redis", "rediss"):
        from .redis_store import RedisStore

        return RedisStore(url, dedup_ttl, durability)
    raise ConfigurationError(
        f"FEEDBACK_STORE: {redacted(url)} is no store (sqlite:///…, redis://…, rediss://…, memory:)"
    )
