"""The store in a SQLite file (standard library): the default, for a laptop and for a volume.

A commit appends: one row of the log holds its digests and its summed increment. Once a second, and
before the log grows long, it is folded into the tables of counters and digests. What is known is
always the tables plus the log since the last fold, so a commit costs one row however many panes
it counts in, and no writer ever overwrites what another added.

Format, version 3 (PRAGMA user_version; application_id marks the file as ours):

    meta(epoch, folded, pruned, seen)    one row. epoch: a random number, new whenever something
                                         was taken away other than by age; folded: the last commit
                                         that is in the tables; pruned: the last that is no more
                                         in the log; seen: digests in both tables
    commits(sequence, time, digests, delta)  the log, one row a commit: its number; epoch seconds;
                                         16 bytes for each (source, id); JSON:
                                         {"counters": [[model, [[width, start, segment], …],
                                                        {key: number},
                                                        {"scores": [[class, …], low, type, counts]}
                                                        if that is an array], …],
                                          "gauges": {model: {key: [number, time]}},
                                          "constants": {model: {name: value}},
                                          "replaced": {model: {name: value before}},
                                          "dropped": [[model, [width, start, segment]], …]}
    panes(id, model, width, start, segment)
    counters(pane, key, value)           key: JSON [family, labels…]; an integer, or the text of an
                                         exact number (`exact`), as in the log
    arrays(pane, family, body)           a family that is an array; JSON, as in the log
    gauges(pane, key, value, time)       last write wins; at the pane of all time
    constants(pane, name, value)         first writer wins, unless replaced; JSON; at the pane of
                                         all time
    young(digest, time)                  digests of folded commits; a stretch of them at a time goes
    seen(digest, time)                   to where the others are, so that many go to one page
    sweep(digest, time, moved)           one row. digest: up to where the purge of digests has come;
                                         time: until when, epoch seconds, it has done what is due;
                                         moved: the last stretch that went from `young` to `seen`
    records(id, home, body)              what is remembered of a request until its truth, or its
                                         prediction, comes; rows in the order of their writing
    held(bytes)                          one row: bytes of all records

In version 2 the log was called `log`, and what is an exact number now was a float: such floats are
read as they are, and written as exact numbers when they change. The log's other name makes every
transaction of a process of an older version fail that has the file open still.

Every transaction that writes is `BEGIN IMMEDIATE`, and first reads the log's rows that it does not
know. All processes so add the same numbers in the same order, and the fold writes the sums they
all have: memory and file are equal to the bit. `refresh` asks `PRAGMA data_version`. Rows stay in
the log for RETAIN_SECONDS after their fold, by the monotonic clock, and are deleted in their order,
so that the log never has a gap. A process that looks less often than that reads the tables anew.

A file that is deleted or renamed while it is open is written again, whole: SQLite still has all of
it. Another one that somebody put there is taken as it is, if it is a store; so is what is left of
one that was truncated. Where commits are missing then, they are lost: this is counted, logged, and
gives all models a new `created`, so that whoever scrapes their counters sees a reset and no jump.

The journal is a write-ahead log on a local or block file system, and a rollback journal on a
network file system, where processes cannot share the log's memory; `?journal=` decides otherwise.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import threading
import time as clock
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any

import orjson

from .counters import UNREADABLE, Labels, Packed, encode_key, known_key
from .errors import ConstantsDiffer, StoreUnavailable, StoreUnusable
from .exact import read_back, stored
from .sqlite_file import Change, Files, abandon, identity, write_again
from .state import (
    TAG,
    Delta,
    Entry,
    Gauge,
    GaugeKey,
    Home,
    Mirror,
    RecordKey,
    State,
    Swap,
    total,
)
from .store import (
    PANES_AT_ONCE,
    Ahead,
    apply_rest,
    check_constants,
    events_in,
    read_constant,
    split,
    unheeded,
    with_created,
)
from .windows import ALL_TIME, Pane

logger = logging.getLogger("metrics.store")

APPLICATION_ID = 0x66646D74  # "fdmt"
VERSION = 3
BUSY_SECONDS = 5.0
"""How long a commit waits for another process's transaction before it answers 503."""
BUSY_TRY_SECONDS = 0.02
"""How long SQLite itself waits: its pauses grow, so that whoever waits long would wait longer."""
HOUSEKEEPING_SECONDS = 1.0
"""How often the log is folded while other housekeeping goes on."""
RETAIN_SECONDS = 5
"""How long a folded commit stays in the log for others to read."""
HASTE_SECONDS = 1.0
"""How long a fold may go on while the process ends."""
MAX_LOG = 2000
"""Commits after which the log is folded even if nobody keeps house."""
MAX_RECENT = 4096
"""Digests of commits in memory after which it is, too, so that no rate fills the memory."""
SLICE_SECONDS = (0.005, 0.05)
"""How long a step of housekeeping may drop expired panes, at least and at most; in between, half as
long as was left for commits since the last, so that it keeps up however many there are."""
SWEEP_DIGESTS = 2000
"""Digests that one step of housekeeping looks at, in each table."""
SWEEP_SHARE = 0.01
"""Of all digests, what is due at least before a step is made."""
CONFIRM_SECONDS = 0.05
"""How long after a commit the next does not look for the file beforehand."""
CACHE_KIBIBYTES = 500
"""Of SQLite's own; the kernel's has the rest, and more was measured to gain nothing."""
STRETCHES = 10
"""Folds after which a digest is in the table of all."""
SWEEPS = 8
"""Passes of the purge over all digests within one time to live."""

_SCHEMA = f"""
CREATE TABLE meta(epoch INTEGER NOT NULL, folded INTEGER NOT NULL, pruned INTEGER NOT NULL,
  seen INTEGER NOT NULL);
CREATE TABLE log(sequence INTEGER PRIMARY KEY, time INTEGER NOT NULL, digests BLOB NOT NULL,
  delta TEXT NOT NULL);
CREATE TABLE panes(id INTEGER PRIMARY KEY, model TEXT NOT NULL, width INTEGER NOT NULL,
  start INTEGER NOT NULL, segment TEXT NOT NULL, UNIQUE(model, width, start, segment));
CREATE TABLE counters(pane INTEGER NOT NULL, key TEXT NOT NULL, value NOT NULL,
  PRIMARY KEY(pane, key)) WITHOUT ROWID;
CREATE TABLE gauges(pane INTEGER NOT NULL, key TEXT NOT NULL, value NOT NULL, time REAL NOT NULL,
  PRIMARY KEY(pane, key)) WITHOUT ROWID;
CREATE TABLE constants(pane INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY(pane, name)) WITHOUT ROWID;
CREATE TABLE seen(digest BLOB PRIMARY KEY, time INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE records(row INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,
  home TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE held(bytes INTEGER NOT NULL);
INSERT INTO held VALUES (0);
PRAGMA application_id = {APPLICATION_ID};
"""

_SINCE_1 = """
CREATE TABLE arrays(pane INTEGER NOT NULL, family TEXT NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY(pane, family)) WITHOUT ROWID;
CREATE TABLE young(digest BLOB PRIMARY KEY, time INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 2;
"""
"""What makes a file of version 2 of one of version 1."""

_SINCE_2 = f"""
ALTER TABLE log RENAME TO commits;
DROP INDEX IF EXISTS expiry;
CREATE TABLE IF NOT EXISTS sweep(digest BLOB NOT NULL, time REAL NOT NULL, moved INTEGER NOT NULL);
INSERT INTO sweep SELECT x'', 0, 0 WHERE NOT EXISTS (SELECT * FROM sweep);
PRAGMA user_version = {VERSION};
"""
"""What makes a file of version 3 of one of version 2."""

_META = """
SELECT epoch, folded, pruned, seen, coalesce((SELECT max(sequence) FROM commits), folded)
FROM meta"""

_IDS = "SELECT substr(?1, 16 * value + 1, 16) FROM json_each(?2)"

_SEEN = f"""
SELECT digest FROM young WHERE digest IN ({_IDS})
UNION ALL SELECT digest FROM seen WHERE digest IN ({_IDS})"""

_RECORDS = f"SELECT id, body FROM records WHERE id IN ({_IDS})"

_REMEMBER = """
INSERT OR IGNORE INTO young(digest, time)
SELECT substr(?1, 16 * value + 1, 16), ?2 FROM json_each(?3)"""

_MOVE = """
INSERT OR IGNORE INTO seen SELECT digest, time FROM young WHERE digest >= ? AND digest < ?"""

_PANE = "SELECT id FROM panes WHERE model = ? AND width = ? AND start = ? AND segment = ?"

_DELETE_PANE = (
    "DELETE FROM counters WHERE pane = ?",
    "DELETE FROM arrays WHERE pane = ?",
    "DELETE FROM panes WHERE id = ?",
)

_SET = """
INSERT INTO counters(pane, key, value) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET value = excluded.value"""

_SET_ARRAY = "INSERT OR REPLACE INTO arrays(pane, family, body) VALUES (?, ?, ?)"

_UNSET = "DELETE FROM counters WHERE pane = ? AND key >= ? AND key < ?"

_SET_GAUGE = """
INSERT INTO gauges(pane, key, value, time) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET value = excluded.value, time = excluded.time"""

_SET_CONSTANT = """
INSERT INTO constants(pane, name, value) VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET value = excluded.value"""


class Touched:
    """What commits touched, whatever they added: the fold writes the mirror's numbers for it."""

    def __init__(self) -> None:
        self._homes: dict[Home, dict[str, set[Labels]]] = {}
        self.gauges: dict[str, set[GaugeKey]] = {}
        self.constants: dict[str, set[str]] = {}

    def add(self, delta: Delta) -> None:
        """Take note of one commit."""
        for home, vector in delta.groups.items():
            known = self._homes.setdefault(home, {})
            for family, cells in vector.items():
                labels = known.setdefault(family, set())
                if type(cells) is dict:  # an array is written as a whole
                    labels.update(cells)
        for model, gauges in delta.gauges.items():
            self.gauges.setdefault(model, set()).update(gauges)
        for model, constants in delta.constants.items():
            self.constants.setdefault(model, set()).update(constants)

    def panes(self) -> dict[tuple[str, Pane], dict[str, set[Labels]]]:
        """The labels of touched cells by family, by model and pane."""
        found: dict[tuple[str, Pane], dict[str, set[Labels]]] = {}
        for (model, panes), families in self._homes.items():
            for pane in panes:
                known = found.setdefault((model, pane), {})
                for family, cells in families.items():
                    known.setdefault(family, set()).update(cells)
        return found


class SQLiteStore:
    """Counters in a file; several processes may hold it open and commit at once."""

    def __init__(self, path: str, dedup_ttl: int, journal: str = "auto") -> None:
        if sqlite3.sqlite_version_info < (3, 24):
            raise StoreUnusable(f"SQLite 3.24 or newer is needed, not {sqlite3.sqlite_version}")
        self._path = path
        self._ttl = dedup_ttl
        self._journal = journal
        self._lock = threading.Lock()
        self._mirror = Mirror()
        self._recent: dict[bytes, int] = {}  # digests that may not be in the table yet -> commit
        self._touched = Touched()  # by the commits that may not be in the tables yet
        self._ids: dict[tuple[str, Pane], int] = {}
        self._epoch = -1
        self._folded = 0
        self._folds: deque[tuple[float, int]] = deque()
        """When, by the monotonic clock, this process folded up to which commit."""
        self._deadline = inf
        """When a fold is to be given up; see `hasten`."""
        self._seen = 0
        self._data_version = -1
        self._housekept = -inf
        """When, by the monotonic clock, the last step of housekeeping ended."""
        self._folded_at = -inf
        self._more = False
        """Whether that step left something to be done."""
        self._connection: sqlite3.Connection | None = None
        self._files: Files | None = None
        """Those that were opened last."""
        self._confirmed = 0.0
        """When, by the monotonic clock, they were seen to be at their paths."""
        self._doubted = False
        """Whether the file was truncated, and not checked since."""
        self._before: State | None = None
        """What was known before the file was opened, until what it holds was compared with it."""
        self._fell = False
        """Whether counters fell, and no new epoch has begun since."""
        self.losses = 0
        """How often the file was gone, or lacked commits that this process knew."""
        self._served = False
        try:
            with self._lock, self._guard():
                self._open()
        except StoreUnavailable:
            pass  # time may mend it: not ready, and every commit tries to open again
        self._served = True

    # --- the contract ------------------------------------------------------------------------

    def commit(self, batch: Sequence[Entry], now: float, ahead: Ahead = unheeded) -> list[bool]:
        """Atomically and durably add what is new of `batch`; see `store.Store.commit`."""
        with self._lock, self._guard():
            connection = self._open()
            _patiently(connection, "BEGIN IMMEDIATE")
            self._catch_up(connection)
            fresh = self._unknown(connection, batch)
            new, duplicates, verdicts = split(batch, fresh)
            delta = total(new, duplicates)
            check_constants(self._mirror, delta)
            with_created(self._mirror, delta, now)
            for home, vector in delta.groups.items():
                delta.groups[home] = self._mirror.alike(home, vector)
            sequence = self._mirror.sequence + 1
            digests = [entry.digest for entry in new if entry.digest]
            self._append(connection, sequence, now, b"".join(digests), delta)
            if delta.swaps:
                _swap(connection, delta.swaps.values())
            with self._mirror.ahead():
                self._add(sequence, delta)
                foreseen = self._mirror.foreseen()
                ahead(foreseen)
                _patiently(connection, "COMMIT")
                self._confirm()
            self._touched.add(delta)
            self._recent.update(dict.fromkeys(digests, sequence))
            if sequence - self._folded >= MAX_LOG or len(self._recent) >= MAX_RECENT:
                self._try_to_fold(connection)
            return verdicts

    def refresh(self, now: float) -> None:
        """Take in what other processes committed."""
        with self._lock, self._guard():
            self._look(self._open())

    def read(self) -> State:
        """A consistent copy as of the last commit, or `refresh`; from memory."""
        return self._mirror.published

    def find(
        self, keys: Collection[RecordKey], ids: Collection[RecordKey]
    ) -> tuple[dict[RecordKey, bytes], set[RecordKey]]:
        """The records there are of `keys`, and which of `ids` are known; as of now."""
        with self._lock, self._guard():
            connection = self._open()
            self._look(connection)
            new = self._new(connection, {each.id for each in ids})
            known = {each for each in ids if each.id not in new}
            homes = {key.id: key for key in keys}
            rows = _select(connection, _RECORDS, homes) if homes else []
            return {homes[id]: body for id, body in rows}, known

    def oldest(self, limit: int) -> list[tuple[RecordKey, bytes]]:
        """The records that were written first."""
        with self._lock, self._guard():
            rows = self._open().execute(
                "SELECT home, id, body FROM records ORDER BY row LIMIT ?", (limit,)
            )
            return [(RecordKey(home, id), body) for home, id, body in rows]

    def held(self) -> int:
        """Bytes of all records."""
        with self._lock, self._guard():
            (held,) = self._open().execute("SELECT bytes FROM held").fetchone()
            return int(held)

    def housekeep(self, now: float) -> bool:
        """Fold the log, and forget, in a small step, expired panes and digests past their time.

        Within an eighth of the time to live every digest is looked at. How far that has come is
        in the file, so it goes on where another process stopped, and catches up after a pause.
        """
        with self._lock, self._guard():
            began = clock.monotonic()
            connection = self._open(check=True)
            if not self._more or began - self._folded_at > HOUSEKEEPING_SECONDS:
                self._fold(connection)
                self._folded_at = began
            _patiently(connection, "BEGIN IMMEDIATE")
            self._catch_up(connection)
            purged, behind = self._sweep(connection, now)
            if not self._more:
                self._move(connection)
            delta, left = self._drop(connection, now)
            sequence = self._mirror.sequence + 1
            if delta.dropped:
                self._append(connection, sequence, now, b"", delta)
            _patiently(connection, "COMMIT")
            self._seen -= purged
            if delta.dropped:
                self._apply(sequence, b"", delta)
                self._mirror.read()
            self._more = behind or left
            self._housekept = clock.monotonic()
            return self._more

    def seen(self) -> int:
        """How many digests are remembered, as far as this process knows."""
        return self._seen + len(self._recent)

    def reset(self, model: str) -> bool:
        """Forget all of one model but its digests; other processes notice by the epoch."""
        with self._lock, self._guard():
            connection = self._open()
            self._fold(connection)
            _patiently(connection, "BEGIN IMMEDIATE")
            self._catch_up(connection)
            self._fold_rows(connection)
            ids = connection.execute("SELECT id FROM panes WHERE model = ?", (model,)).fetchall()
            for table in ("counters", "arrays", "gauges", "constants"):
                connection.executemany(f"DELETE FROM {table} WHERE pane = ?", ids)
            connection.execute("DELETE FROM panes WHERE model = ?", (model,))
            connection.execute("UPDATE meta SET epoch = ?", (random.getrandbits(62),))
            _patiently(connection, "COMMIT")
            self._data_version = -1  # SQLite does not tell a connection of its own commits
            self._look(connection)
            return bool(ids)

    def hasten(self) -> None:
        """Give up folds that take long: the log is as durable as the tables."""
        self._deadline = min(self._deadline, clock.monotonic() + HASTE_SECONDS)

    def close(self) -> None:
        """Fold the log and close the file; the last process to do so folds the journal, too."""
        with self._lock:
            if self._connection is None:
                return
            try:
                with self._guard():
                    self._fold(self._open())
            except StoreUnavailable:
                pass  # the log is as durable as the tables
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # --- one commit --------------------------------------------------------------------------

    def _unknown(self, connection: sqlite3.Connection, batch: Sequence[Entry]) -> set[bytes]:
        """The digests of `batch` that are in no commit yet."""
        return self._new(connection, {entry.digest for entry in batch if entry.digest})

    def _new(self, connection: sqlite3.Connection, digests: set[bytes]) -> set[bytes]:
        """Those of `digests` that are in no commit yet."""
        unknown = digests.difference(self._recent)
        return unknown.difference(digest for (digest,) in _select(connection, _SEEN, unknown))

    def _confirm(self) -> None:
        """Raises StoreUnavailable where a restart would not find what was just committed."""
        change = self._files.moved() if self._files else None
        if change is not None:
            raise StoreUnavailable("moved", f"{change} since it was opened")
        self._confirmed = clock.monotonic()

    def _append(
        self,
        connection: sqlite3.Connection,
        sequence: int,
        now: float,
        digests: bytes,
        delta: Delta,
    ) -> None:
        """Append one row to the log, within the transaction that is open."""
        row = (sequence, int(now), digests, _encode(delta))
        connection.execute("INSERT INTO commits VALUES (?, ?, ?, ?)", row)

    def _sweep(self, connection: sqlite3.Connection, now: float) -> tuple[int, bool]:
        """Delete digests past their time in the next stretch; how many, and whether more is due."""
        if not self._seen:
            return 0, False
        digest, time = connection.execute("SELECT digest, time FROM sweep").fetchone()
        period = max(1.0, self._ttl / SWEEPS)
        due = min((now - time) / period, 1.0)  # passes
        if 0 <= due < SWEEP_SHARE:
            return 0, False
        due = max(due, 0.0)  # a clock was ahead
        place = _place_of(digest)
        ends = [_digest_at(place + due)]
        for table in ("young", "seen"):
            ends += (
                connection.execute(
                    f"SELECT digest FROM {table} WHERE digest >= ? ORDER BY digest "
                    f"LIMIT 1 OFFSET {SWEEP_DIGESTS}",
                    (digest,),
                ).fetchone()
                or ()
            )
        end = max(digest, min(ends))
        purged = sum(
            connection.execute(
                f"DELETE FROM {table} WHERE digest >= ? AND digest < ? AND time < ?",
                (digest, end, int(now - self._ttl)),
            ).rowcount
            for table in ("young", "seen")
        )
        left = max(0.0, due - (_place_of(end) - place))
        connection.execute(
            "UPDATE sweep SET digest = ?, time = ?",
            (end if end < _END else b"", now - left * period),
        )
        if purged:
            connection.execute("UPDATE meta SET seen = seen - ?", (purged,))
        return purged, left >= SWEEP_SHARE

    def _move(self, connection: sqlite3.Connection) -> None:
        """Bring the next stretch of young digests to the others.

        These are in the order of their hashes, and to put each of a second's among a million of
        them where it belongs would write nearly every page.
        """
        if connection.execute("SELECT 1 FROM young LIMIT 1").fetchone() is None:
            return
        (moved,) = connection.execute("SELECT moved FROM sweep").fetchone()
        moved = (moved + 1) % STRETCHES
        stretch = [_digest_at((moved + end) / STRETCHES) for end in (0, 1)]
        if connection.execute(_MOVE, stretch).rowcount:
            connection.execute("DELETE FROM young WHERE digest >= ? AND digest < ?", stretch)
        connection.execute("UPDATE sweep SET moved = ?", (moved,))

    def _drop(self, connection: sqlite3.Connection, now: float) -> tuple[Delta, bool]:
        """Delete panes that no window reaches, for a while, and tell whether some are left.

        Every process drops them at this commit.
        """
        began = clock.monotonic()
        least, most = SLICE_SECONDS
        end = began + min(max(least, (began - self._housekept) / 2), most)
        old = self._mirror.expired(now, PANES_AT_ONCE)
        dropped: list[tuple[str, Pane]] = []
        for model, pane in old:
            home = (model, pane.width, pane.index, pane.segment)
            found = connection.execute(_PANE, home).fetchone()
            if found is not None:  # else it is in the log only
                for statement in _DELETE_PANE:
                    connection.execute(statement, found)
            dropped.append((model, pane))
            if clock.monotonic() > end:
                break
        left = len(dropped) < len(old) or len(old) == PANES_AT_ONCE
        return Delta(dropped=dropped), left

    def _apply(self, sequence: int, digests: bytes, delta: Delta) -> None:
        """Take in one commit that is in the log; in every process in its order."""
        for model, pane in delta.dropped:
            self._mirror.drop(model, pane)
            self._ids.pop((model, pane), None)
        self._add(sequence, delta)
        self._touched.add(delta)
        self._recent.update(dict.fromkeys(_divided(digests), sequence))

    def _add(self, sequence: int, delta: Delta) -> None:
        """Add what one commit adds to the mirror."""
        for home, vector in delta.groups.items():
            self._mirror.spread(home, vector)
        apply_rest(self._mirror, delta)
        self._mirror.sequence = sequence

    # --- catching up -------------------------------------------------------------------------

    def _look(self, connection: sqlite3.Connection) -> None:
        """Take in what other processes committed, if SQLite says that any did."""
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            connection.execute("BEGIN")
            self._catch_up(connection)
            connection.execute("COMMIT")
            self._data_version = version

    def _catch_up(self, connection: sqlite3.Connection) -> None:
        """Make the mirror equal the file, within the transaction that is open."""
        epoch, folded, pruned, seen, sequence = connection.execute(_META).fetchone()
        if epoch == self._epoch and sequence == self._mirror.sequence and folded == self._folded:
            return
        if epoch != self._epoch or not pruned <= self._mirror.sequence <= sequence:
            self._load(connection)
            self._epoch, self._mirror.sequence = epoch, folded
        elif folded != self._folded:
            self._touched = Touched()  # whoever folded knew no less than this process did
            self._recent = {
                digest: commit for digest, commit in self._recent.items() if commit > folded
            }
        self._folded, self._seen = folded, seen
        if self._replay(connection) < sequence:
            self._load(connection)
            self._mirror.sequence = folded
            if self._replay(connection) < sequence:
                self._epoch = -1  # nothing is to be added to what was read so far
                raise StoreUnavailable("corrupt", f"{self._path}: its log has a gap")
        self._mirror.read()

    def _replay(self, connection: sqlite3.Connection) -> int:
        """Apply the log's rows that the mirror lacks, up to a gap; the number of the last."""
        for sequence, digests, delta in connection.execute(
            "SELECT sequence, digests, delta FROM commits WHERE sequence > ? ORDER BY sequence",
            (self._mirror.sequence,),
        ):
            if sequence != self._mirror.sequence + 1:
                break
            self._apply(sequence, digests, _decode(delta))
        return self._mirror.sequence

    def _load(self, connection: sqlite3.Connection) -> None:
        """Forget everything and take the tables, which are as of the last fold."""
        panes, counters, arrays, gauges, constants = [
            connection.execute(f"SELECT * FROM {table}").fetchall()
            for table in ("panes", "counters", "arrays", "gauges", "constants")
        ]  # all of them, before anything is forgotten: reading can fail
        homes = {id: (model, Pane(*pane)) for id, model, *pane in panes}
        vectors: dict[int, dict[str, Any]] = {id: {} for id in homes}
        for id, key, number in counters:
            family, labels = known_key(key)
            vectors[id].setdefault(family, {})[labels] = read_back(family, number)
        for id, family, body in arrays:
            try:
                vectors[id][family] = _array(orjson.loads(body))
            except (ValueError, TypeError, KeyError):
                vectors[id].setdefault(UNREADABLE, {})[str(body),] = 0
        self._mirror.clear()
        self._recent.clear()
        self._folds.clear()
        self._touched = Touched()
        self._ids.clear()
        for id, vector in vectors.items():
            self._ids[homes[id]] = id
            self._mirror.replace_pane(*homes[id], vector)
        for id, key, number, time in gauges:
            self._mirror.set_gauge(homes[id][0], known_key(key), Gauge(number, time))
        for id, name, text in constants:
            self._mirror.set_constants(homes[id][0], {name: read_constant(text)})

    # --- the fold ----------------------------------------------------------------------------

    def _fold(self, connection: sqlite3.Connection) -> None:
        """Bring the log into the tables, in a transaction of its own; nothing where it is short."""
        if self._mirror.sequence == self._folded:
            return
        _patiently(connection, "BEGIN IMMEDIATE")
        self._catch_up(connection)
        self._fold_rows(connection)
        _patiently(connection, "COMMIT")
        self._folded = self._mirror.sequence
        self._recent.clear()
        self._touched = Touched()
        (self._seen,) = connection.execute("SELECT seen FROM meta").fetchone()

    def _try_to_fold(self, connection: sqlite3.Connection) -> None:
        """Fold, or leave it to the next one: the log is as durable as the tables."""
        try:
            with self._guard():
                self._fold(connection)
        except StoreUnavailable:
            pass

    def _fold_rows(self, connection: sqlite3.Connection) -> None:
        """Write the sums that the log's rows touched, and their digests; prune the log."""
        fresh: dict[int, list[bytes]] = {}
        for time, digests in connection.execute(
            "SELECT time, digests FROM commits WHERE sequence > ?", (self._folded,)
        ):
            fresh.setdefault(time, []).extend(_divided(digests))
        remembered = 0
        for time, new in fresh.items():  # sorted, neighbours share pages
            row = (b"".join(sorted(new)), time, orjson.dumps(list(range(len(new)))).decode())
            remembered += connection.execute(_REMEMBER, row).rowcount
        self._write(connection)
        sequence = self._mirror.sequence
        pruned = min(self._old_fold(), sequence)
        connection.execute("DELETE FROM commits WHERE sequence <= ?", (pruned,))
        connection.execute(
            "UPDATE meta SET folded = ?, seen = seen + ?, pruned = max(pruned, ?)",
            (sequence, remembered, pruned),
        )

    def _old_fold(self) -> int:
        """The last commit of this process's last fold that is RETAIN_SECONDS old; 0 for none."""
        now = clock.monotonic()
        self._folds.append((now, self._mirror.sequence))
        while len(self._folds) > 1 and self._folds[1][0] <= now - RETAIN_SECONDS:
            self._folds.popleft()
        began, sequence = self._folds[0]
        return sequence if began <= now - RETAIN_SECONDS else 0

    def _write(self, connection: sqlite3.Connection) -> None:
        """Write the mirror's numbers for all that was touched."""
        touched = self._touched
        ids = {
            model: self._id(connection, model, ALL_TIME)
            for model in touched.gauges.keys() | touched.constants.keys()
        }
        rows: list[tuple[int, str, Any]] = []
        for (model, pane), families in touched.panes().items():
            self._check_time()
            vector = self._mirror.vector(model, pane)
            if vector is None:
                continue  # expired since
            id = self._id(connection, model, pane)
            for family, cells in families.items():
                numbers = vector.get(family, {})  # expired, and begun anew
                if isinstance(numbers, Packed):
                    body = orjson.dumps(numbers.parts()).decode()
                    connection.execute(_SET_ARRAY, (id, family, body))
                    first = encode_key(family, ())[:-1]
                    connection.execute(_UNSET, (id, f"{first},", f"{first}-"))
                else:
                    there = {labels: numbers[labels] for labels in cells if labels in numbers}
                    rows += [
                        (id, encode_key(family, labels), number)
                        for labels, number in stored(family, there).items()
                    ]
        connection.executemany(_SET, self._in_time(rows))
        for model, gauges in touched.gauges.items():
            known = self._mirror.gauges(model)
            connection.executemany(
                _SET_GAUGE, [(ids[model], encode_key(*key), *known[key]) for key in gauges]
            )
        for model, constants in touched.constants.items():
            in_force = self._mirror.constants(model)
            connection.executemany(
                _SET_CONSTANT,
                [(ids[model], name, orjson.dumps(in_force[name]).decode()) for name in constants],
            )

    def _in_time(self, rows: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """The rows of a fold; raises StoreUnavailable where `hasten` leaves no time for all."""
        for at, row in enumerate(rows):
            if at % 1024 == 1023:
                self._check_time()
            yield row

    def _check_time(self) -> None:
        if clock.monotonic() > self._deadline:
            raise StoreUnavailable("other", "the log is not folded: there is no time left")

    def _id(self, connection: sqlite3.Connection, model: str, pane: Pane) -> int:
        """The number of a pane in the file, which has it after this."""
        id = self._ids.get((model, pane))
        home = (model, pane.width, pane.index, pane.segment)
        if id is not None:
            (there,) = connection.execute(
                "SELECT count(*) FROM panes WHERE id = ? AND model = ? AND width = ? "
                "AND start = ? AND segment = ?",
                (id, *home),
            ).fetchone()
            if there:
                return id
        connection.execute(
            "INSERT OR IGNORE INTO panes(model, width, start, segment) VALUES (?, ?, ?, ?)", home
        )
        (id,) = connection.execute(_PANE, home).fetchone()
        return int(id)

    # --- the file ----------------------------------------------------------------------------

    def _open(self, check: bool = False) -> sqlite3.Connection:
        """The connection to what is at the path, opened and checked where it is not yet."""
        connection = self._connection
        if connection is not None and self._files is not None:
            due = clock.monotonic() - self._confirmed > CONFIRM_SECONDS
            change = self._files.change() if due or check else None
            if change is not None:
                connection = self._leave(connection, change)
        if connection is None:
            connection = self._connect()
        if self._fell:
            self._begin_anew(connection)
        return connection

    def _connect(self) -> sqlite3.Connection:
        """A new connection, once the mirror is as what is at the path."""
        directory = os.path.dirname(os.path.abspath(self._path))
        try:
            os.makedirs(directory, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise StoreUnusable(f"FEEDBACK_STORE: {self._path}: {error}") from None
        if os.path.isdir(self._path):
            raise StoreUnusable(f"FEEDBACK_STORE: {self._path} is a directory")
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection, self._path, self._journal)
            if self._doubted:
                self._check(connection)
            main = identity(self._path)
            moved = self._files is not None and self._files.main != main
            if self._before is None:
                self._before = self._mirror.read()
            self._data_version = -1
            self._epoch = -1 if moved else self._epoch
            self._look(connection)
            (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
            files = Files(self._path, journal == "wal")
            if files.main != main:
                raise StoreUnavailable("moved", f"{self._path} was replaced while it was opened")
        except BaseException:
            self._epoch = -1  # whatever was read of it, all of it is read again
            connection.close()
            raise
        self._files = files
        self._connection = connection
        self._compare(self._before, moved)
        self._before = None
        return connection

    def _leave(self, connection: sqlite3.Connection, change: Change) -> sqlite3.Connection | None:
        """Let go of files that are not at their paths any more; the connection to those that are.

        What SQLite still has of a file that is gone is written again. A file that somebody put
        there is never overwritten: it is taken as it is, and the old one kept until it can be.
        """
        if change.what != "truncated":
            self._checkpoint(connection)  # a file that was renamed is whole then
        if change.path == self._path and change.what != "truncated":
            if change.what == "gone":
                self._write_again(connection)
            elif self._files is not None:
                self._files.unlink_beside()
            try:
                fresh = self._connect()
            except sqlite3.Error as error:
                raise StoreUnavailable(_kind(error), f"{self._path}: {error}") from error
            connection.close()  # as its file has moved, SQLite deletes nothing at its path
            return fresh
        logger.error("%s; the file is opened anew", change)
        self._doubted = change.what == "truncated"
        self._connection = None
        if self._doubted and change.path != self._path:
            abandon(connection)
        else:
            connection.close()
        return None

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Bring all that the write-ahead log has to the file that is open, if that can be."""
        try:
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        except sqlite3.Error:
            return  # its disk may be gone; what is known of it is compared in any case
        if busy:
            raise StoreUnavailable("busy", f"{self._path}: its log is in use")

    def _write_again(self, connection: sqlite3.Connection) -> None:
        try:
            written = write_again(connection, self._path, random.getrandbits(62))
        except (sqlite3.Error, OSError) as error:
            reason = f"{self._path} is gone, and cannot be written again: {error}"
            raise StoreUnavailable(_kind(error), reason) from error
        if written:  # no other process was faster
            self.losses += 1
            logger.error("%s was deleted or renamed; it is written again, whole", self._path)

    def _check(self, connection: sqlite3.Connection) -> None:
        """Raises StoreUnavailable where a file lacks pages after it or its log was truncated."""
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise StoreUnavailable("corrupt", f"{self._path}: {verdict}; it is left as it is")
        self._doubted = False

    def _compare(self, before: State, moved: bool) -> None:
        """Note it where the file that was opened lacks commits that this process knew."""
        after = self._mirror.read()
        if before.models and (
            after.sequence < before.sequence or (moved and _has_fewer_events(after, before))
        ):
            self._fell = True
            self.losses += 1
            logger.error(
                "%s lost commits: it had %d, now it has %d",
                self._path,
                before.sequence,
                after.sequence,
            )

    def _begin_anew(self, connection: sqlite3.Connection) -> None:
        """Begin a new epoch, and give all models a new `created`, as their counters fell."""
        _patiently(connection, "BEGIN IMMEDIATE")
        self._catch_up(connection)
        self._fold_rows(connection)
        created = orjson.dumps(clock.time()).decode()
        connection.execute("UPDATE constants SET value = ? WHERE name = 'created'", (created,))
        connection.execute("UPDATE meta SET epoch = ?", (random.getrandbits(62),))
        _patiently(connection, "COMMIT")
        self._fell = False
        self._data_version = -1  # SQLite does not tell a connection of its own commits
        self._look(connection)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Roll back whatever is raised, and raise SQLite's own errors as StoreUnavailable."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._roll_back(reopen=not isinstance(error, sqlite3.OperationalError))
            raise StoreUnavailable(_kind(error), f"{self._path}: {error}") from error
        except StoreUnusable as error:
            self._roll_back(reopen=False)
            if not self._served:
                raise
            raise StoreUnavailable("foreign", str(error)) from error
        except BaseException:
            self._roll_back(reopen=False)
            raise

    def _roll_back(self, reopen: bool) -> None:
        self._confirmed = 0.0
        connection = self._connection
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            reopen = True
        if reopen:
            connection.close()
            self._connection = None
            self._data_version = -1


def _has_fewer_events(after: State, before: State) -> bool:
    """Whether any model of `before` has fewer events in `after`."""
    return any(_events(after, model) < _events(before, model) for model in before.models)


def _events(state: State, model: str) -> float:
    """The events of a model; -1 where it is unknown, 0 where no number is stored."""
    if model not in state.models:
        return -1
    return events_in(state.models[model].all_time)


def _select(
    connection: sqlite3.Connection, statement: str, ids: Collection[bytes]
) -> list[tuple[Any, ...]]:
    """The rows of a statement that looks up 16-byte ids, all at once."""
    places = orjson.dumps(list(range(len(ids)))).decode()
    return connection.execute(statement, (b"".join(ids), places)).fetchall()


def _divided(digests: bytes) -> list[bytes]:
    """Each of the digests that are one after the other."""
    return [digests[at : at + 16] for at in range(0, len(digests), 16)]


def _swap(connection: sqlite3.Connection, swaps: Collection[Swap]) -> None:
    """Swap records. Raises ConstantsDiffer where another one is there."""
    replaced = [swap for swap in swaps if swap.before]
    there = dict(_select(connection, _RECORDS, [swap.key.id for swap in swaps]))
    for swap in swaps:
        if there.get(swap.key.id, b"")[:TAG] != swap.before:
            raise ConstantsDiffer(f"a record of {swap.key.home}")
    connection.executemany(
        "DELETE FROM records WHERE id = ?", [(swap.key.id,) for swap in replaced]
    )
    connection.executemany(
        "INSERT INTO records(id, home, body) VALUES (?, ?, ?)",
        [(swap.key.id, swap.key.home, swap.after) for swap in swaps if swap.after],
    )
    grown = sum(len(swap.after) for swap in swaps) - sum(map(len, there.values()))
    connection.execute("UPDATE held SET bytes = bytes + ?", (grown,))


def _digest_at(place: float) -> bytes:
    """The digest at a place in 0 to 1 of all digests."""
    return int(place * (1 << 64)).to_bytes(9, "big")[1:] + bytes(8) if place < 1 else _END


def _place_of(digest: bytes) -> float:
    """The place in 0 to 1 of a digest among all."""
    return int.from_bytes(digest[:8].ljust(8, b"\0"), "big") / (1 << 64) if digest < _END else 1.0


_END = b"\xff" * 17
"""After all digests."""


def _encode(delta: Delta) -> str:
    """A delta as the log holds it."""
    return orjson.dumps(
        {
            "counters": [
                (
                    model,
                    list(map(tuple, panes)),
                    {
                        encode_key(family, labels): number
                        for family, cells in vector.items()
                        if type(cells) is dict
                        for labels, number in stored(family, cells).items()
                    },
                    *_encode_packed(vector),
                )
                for (model, panes), vector in delta.groups.items()
            ],
            "gauges": {
                model: {encode_key(*key): tuple(gauge) for key, gauge in gauges.items()}
                for model, gauges in delta.gauges.items()
            },
            "constants": delta.constants,
            "replaced": delta.replaced,
            "dropped": [(model, tuple(pane)) for model, pane in delta.dropped],
        }
    ).decode()


def _encode_packed(vector: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One object with the families that are arrays, if there are any."""
    arrays = {family: cells for family, cells in vector.items() if type(cells) is not dict}
    if arrays:
        yield {family: cells.parts() for family, cells in arrays.items()}


def _decode(text: str) -> Delta:
    """The delta in a row of the log."""
    stored = orjson.loads(text)
    delta = Delta(constants=stored["constants"], replaced=stored["replaced"])
    for model, panes, numbers, *arrays in stored["counters"]:
        vector: dict[str, Any] = {}
        for families in arrays:
            vector.update({family: _array(parts) for family, parts in families.items()})
        for key, number in numbers.items():
            family, labels = known_key(key)
            vector.setdefault(family, {})[labels] = read_back(family, number)
        delta.groups[model, tuple(Pane(*pane) for pane in panes)] = vector
    delta.dropped = [(model, Pane(*pane)) for model, pane in stored["dropped"]]
    for model, gauges in stored["gauges"].items():
        delta.gauges[model] = {known_key(key): Gauge(*gauge) for key, gauge in gauges.items()}
    return delta


def _array(parts: Sequence[Any]) -> Packed:
    """The array of a family that was stored as one."""
    from .histograms import from_parts

    return from_parts(*parts)


def _prepare(connection: sqlite3.Connection, path: str, journal: str) -> None:
    """Make or check the schema; a file that is not ours, or corrupt, is left as it is.

    Raises StoreUnusable for a format this version cannot read.
    """
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.DatabaseError as error:
        if _kind(error) == "corrupt":
            raise StoreUnavailable("corrupt", f"{path}: {error}; it is left as it is") from None
        raise
    if tables and application != APPLICATION_ID:
        raise StoreUnavailable("foreign", f"{path} holds another program's data")
    if tables and not 1 <= version <= VERSION:
        raise StoreUnusable(
            f"FEEDBACK_STORE: {path} has format {version}; this version reads {VERSION}"
        )
    if journal == "auto":
        journal = "truncate" if _on_network(path) else "wal"
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = {-CACHE_KIBIBYTES}")
    if not tables or version < VERSION:
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            _execute(connection, _SCHEMA)
            connection.execute("INSERT INTO meta VALUES (?, 0, 0, 0)", (random.getrandbits(62),))
        for older, script in ((1, _SINCE_1), (2, _SINCE_2)):
            if connection.execute("PRAGMA user_version").fetchone()[0] <= older:
                _execute(connection, script)
        connection.execute("COMMIT")
    connection.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_TRY_SECONDS)}")


def _execute(connection: sqlite3.Connection, script: str) -> None:
    """Execute statements within the transaction that is open, as `executescript` would not."""
    for statement in script.split(";"):
        connection.execute(statement)


def _patiently(connection: sqlite3.Connection, statement: str) -> None:
    """Execute what has to wait for other processes' transactions, with even chances for all."""
    end = clock.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if _kind(error) != "busy" or clock.monotonic() >= end:
                raise
        clock.sleep(random.uniform(0.0002, 0.002))


def _on_network(path: str) -> bool:
    """Whether `path` lies on a network file system, where a write-ahead log cannot be shared."""
    path = os.path.realpath(path)
    best, kind = "", ""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                _, point, name, *_ = line.split(" ")
                inside = point == "/" or path == point or path.startswith(point + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, name
    except OSError:
        return False
    return kind.startswith(_NETWORK_FILE_SYSTEMS)


_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "ceph", "glusterfs", "lustre", "fuse.")


def _kind(error: BaseException) -> str:
    """A label of few values for what went wrong."""
    text = str(error).lower()
    for kind, signs in _KINDS:
        if any(sign in text for sign in signs):
            return kind
    return "io" if isinstance(error, OSError) else "other"


_KINDS = (
    ("busy", ("locked", "busy")),
    ("full", ("full", "no space")),
    ("readonly", ("readonly", "read-only", "permission", "unable to open")),
    ("corrupt", ("malformed", "not a database", "corrupt")),
    ("io", ("i/o",)),
)
