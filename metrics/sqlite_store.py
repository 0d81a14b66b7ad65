"""The store in a SQLite file (standard library): the default, for a laptop and for a volume.

Format, version 1 (PRAGMA user_version; application_id marks the file as ours):

    meta(name, value)                    sequence: number of commits; epoch: a random number,
                                         new whenever rows were taken away other than by age
    panes(id, model, width, start, segment, version)
                                         a vector's home; version: the last commit to touch it
    counters(pane, key, value)           key: JSON [family, labels…]; integers stay integers
    gauges(pane, key, value, time)       last write wins; at the pane of all time
    constants(pane, name, value)         first writer wins; JSON; at the pane of all time
    seen(digest, time)                   16 bytes for (source, id); seconds since the epoch

A commit is one `BEGIN IMMEDIATE` transaction: catch up with other writers, remember the digests,
add, count the commit. Adding is `value = value + excluded.value`, so no writer overwrites
another, and the sums it RETURNs are what the mirror takes: memory and file are equal to the bit.
Readers ask `PRAGMA data_version`, and load the panes whose version is younger than theirs.

The journal is a write-ahead log on a local or block file system, and a rollback journal on a
network file system, where processes cannot share the log's memory; `?journal=` decides otherwise.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time as clock
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from .counters import NO_LABELS, Vector, decode_key, encode_key
from .errors import StoreUnavailable, StoreUnusable
from .state import Delta, Entry, Gauge, Mirror, State, total
from .store import apply_rest, check_constants, split, with_created
from .windows import ALL_TIME, PANES, Pane

APPLICATION_ID = 0x66646D74  # "fdmt"
VERSION = 1
BUSY_SECONDS = 5.0
"""How long a commit waits for another process's transaction before it answers 503."""
CATCH_UP_SECONDS = 0.5
"""How old a reader's view may be before it looks for other processes' commits."""
SWEEPS = 8
"""Passes of the purge over all digests within one time to live."""

_SCHEMA = f"""
CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE panes(id INTEGER PRIMARY KEY, model TEXT NOT NULL, width INTEGER NOT NULL,
  start INTEGER NOT NULL, segment TEXT NOT NULL, version INTEGER NOT NULL,
  UNIQUE(model, width, start, segment));
CREATE INDEX panes_by_version ON panes(version);
CREATE TABLE counters(pane INTEGER NOT NULL, key TEXT NOT NULL, value NOT NULL,
  PRIMARY KEY(pane, key)) WITHOUT ROWID;
CREATE TABLE gauges(pane INTEGER NOT NULL, key TEXT NOT NULL, value NOT NULL, time REAL NOT NULL,
  PRIMARY KEY(pane, key)) WITHOUT ROWID;
CREATE TABLE constants(pane INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY(pane, name)) WITHOUT ROWID;
CREATE TABLE seen(digest BLOB PRIMARY KEY, time INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
PRAGMA application_id = {APPLICATION_ID};
"""

_REMEMBER = """
INSERT INTO seen(digest, time) SELECT substr(?1, 16 * value + 1, 16), ?2 FROM json_each(?3)
WHERE true ON CONFLICT DO NOTHING RETURNING digest"""

_TOUCH = """
UPDATE panes SET version = ?1 WHERE id IN (SELECT value FROM json_each(?2)) RETURNING id"""

_ADD = """
INSERT INTO counters(pane, key, value)
SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?) WHERE true
ON CONFLICT DO UPDATE SET value = value + excluded.value RETURNING pane, key, value"""

_ADD_OLD_JSON = _ADD.replace("value ->> 0", "json_extract(value, '$[0]')").replace(
    "value ->> 1, value ->> 2", "json_extract(value, '$[1]'), json_extract(value, '$[2]')"
)

_GAUGE = """
INSERT INTO gauges(pane, key, value, time) VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET value = excluded.value, time = excluded.time
WHERE excluded.time >= time"""


class SQLiteStore:
    """Counters in a file; several processes may hold it open and commit at once."""

    def __init__(self, path: str, dedup_ttl: int, journal: str = "auto") -> None:
        if sqlite3.sqlite_version_info < (3, 35):
            raise StoreUnusable(f"SQLite 3.35 or newer is needed, not {sqlite3.sqlite_version}")
        self._path = path
        self._ttl = dedup_ttl
        self._journal = journal
        self._lock = threading.Lock()
        self._mirror_lock = threading.Lock()
        self._mirror = Mirror()
        self._ids: dict[tuple[str, Pane], int] = {}
        self._homes: dict[int, tuple[str, Pane]] = {}
        self._epoch: Any = None
        self._data_version = -1
        self._looked = 0.0
        self._swept = -1.0
        self._connection: sqlite3.Connection | None = None
        self._served = False
        self._add = _ADD if sqlite3.sqlite_version_info >= (3, 38) else _ADD_OLD_JSON
        try:
            with self._lock, self._guard():
                self._open()
        except StoreUnavailable:
            pass  # time may mend it: not ready, and every commit tries to open again
        self._served = True

    # --- the contract ------------------------------------------------------------------------

    def commit(self, batch: Sequence[Entry], now: float) -> list[bool]:
        """Atomically and durably add what is new of `batch`; see `store.Store.commit`."""
        with self._lock, self._guard():
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            self._catch_up(connection)
            fresh = self._remember(connection, batch, now)
            new, duplicates, verdicts = split(batch, fresh)
            delta = total(new, duplicates)
            check_constants(self._mirror, delta)
            with_created(self._mirror, delta, now)
            sequence = self._mirror.sequence + 1
            ids = self._touch(connection, delta, sequence)
            sums = self._add_counters(connection, delta, ids)
            self._set_rest(connection, delta, ids)
            connection.execute("UPDATE meta SET value = ? WHERE name = 'sequence'", (sequence,))
            connection.execute("COMMIT")
            with self._mirror_lock:
                self._apply(delta, sums, ids, sequence)
            self._looked = clock.monotonic()
            return verdicts

    def read(self) -> State:
        """A consistent copy; sees commits of other processes within a second.

        Where the file cannot be read it answers from memory, and where a commit is under way it
        does not wait for it.
        """
        if clock.monotonic() - self._looked > CATCH_UP_SECONDS and self._lock.acquire(False):
            try:
                self._looked = clock.monotonic()
                with self._guard():
                    self._look(self._open())
            except StoreUnavailable:
                pass
            finally:
                self._lock.release()
        with self._mirror_lock:
            return self._mirror.read()

    def housekeep(self, now: float) -> None:
        """Forget expired panes, and the digests past their time in one small stretch of all.

        The stretch follows the clock over the space of digests, so that within an eighth of the
        time to live every digest was looked at, and no step is large.
        """
        with self._lock, self._guard():
            connection = self._open()
            begin, end = self._stretch(now)
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "DELETE FROM seen WHERE digest >= ? AND digest < ? AND time < ?",
                (begin, end, int(now - self._ttl)),
            )
            old = connection.execute(
                f"SELECT id FROM panes WHERE width > 0 AND (start + {PANES + 2}) * width <= ? "
                "LIMIT 500",
                (now,),
            ).fetchall()
            for table, column in (("counters", "pane"), ("panes", "id")):
                connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", old)
            connection.execute("COMMIT")
            for (id,) in old:
                home = self._homes.pop(id, None)
                if home:
                    self._ids.pop(home, None)
            with self._mirror_lock:
                self._mirror.expire(now)

    def seen(self) -> int:
        """How many digests are remembered."""
        if not self._lock.acquire(False):
            return self._seen
        try:
            with self._guard():
                (self._seen,) = self._open().execute("SELECT count(*) FROM seen").fetchone()
        except StoreUnavailable:
            pass
        finally:
            self._lock.release()
        return self._seen

    _seen = 0

    def reset(self, model: str) -> bool:
        """Forget all of one model but its digests; other processes notice by the epoch."""
        with self._lock, self._guard():
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            ids = connection.execute("SELECT id FROM panes WHERE model = ?", (model,)).fetchall()
            for table in ("counters", "gauges", "constants"):
                connection.executemany(f"DELETE FROM {table} WHERE pane = ?", ids)
            connection.execute("DELETE FROM panes WHERE model = ?", (model,))
            _set_epoch(connection)
            connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'sequence'")
            connection.execute("COMMIT")
            self._look(connection)
            return bool(ids)

    def close(self) -> None:
        """Close the file; the last process to do so folds the log into it."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # --- one commit --------------------------------------------------------------------------

    def _remember(
        self, connection: sqlite3.Connection, batch: Sequence[Entry], now: float
    ) -> set[bytes]:
        """Remember the digests of `batch`; returns those that were new."""
        digests = b"".join(entry.digest for entry in batch)
        places = orjson.dumps(list(range(len(digests) // 16))).decode()
        rows = connection.execute(_REMEMBER, (digests, int(now), places)).fetchall()
        return {digest for (digest,) in rows}

    def _touch(
        self, connection: sqlite3.Connection, delta: Delta, sequence: int
    ) -> dict[tuple[str, Pane], int]:
        """Date the panes of `delta` with this commit, making those that are new; their ids."""
        homes = set(delta.counters)
        homes.update((model, ALL_TIME) for model in (*delta.gauges, *delta.constants))
        ids = {home: self._ids[home] for home in homes if home in self._ids}
        if ids:
            touched = connection.execute(
                _TOUCH, (sequence, orjson.dumps(list(ids.values())).decode())
            ).fetchall()
            if len(touched) < len(ids):  # another process let a pane expire
                alive = {id for (id,) in touched}
                ids = {home: id for home, id in ids.items() if id in alive}
        for model, pane in homes - ids.keys():
            cursor = connection.execute(
                "INSERT INTO panes(model, width, start, segment, version) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET version = excluded.version RETURNING id",
                (model, pane.width, pane.index, pane.segment, sequence),
            )
            ((ids[model, pane],),) = cursor.fetchall()
        return ids

    def _add_counters(
        self, connection: sqlite3.Connection, delta: Delta, ids: dict[tuple[str, Pane], int]
    ) -> list[tuple[int, str, Any]]:
        """Add the vectors of `delta`; returns the rows as they are now."""
        rows = [
            (ids[home], encode_key(family, labels), value)
            for home, vector in delta.counters.items()
            for family, cells in vector.items()
            for labels, value in cells.items()
        ]
        if not rows:
            return []
        return connection.execute(self._add, (orjson.dumps(rows).decode(),)).fetchall()

    def _set_rest(
        self, connection: sqlite3.Connection, delta: Delta, ids: dict[tuple[str, Pane], int]
    ) -> None:
        for model, gauges in delta.gauges.items():
            pane = ids[model, ALL_TIME]
            connection.executemany(
                _GAUGE,
                [
                    (pane, encode_key(family, labels), gauge.value, gauge.time)
                    for (family, labels), gauge in gauges.items()
                ],
            )
        for model, constants in delta.constants.items():
            known = self._mirror.constants(model)
            fresh = [
                (ids[model, ALL_TIME], name, orjson.dumps(value).decode())
                for name, value in constants.items()
                if name not in known
            ]
            if fresh:
                connection.executemany("INSERT INTO constants VALUES (?, ?, ?)", fresh)

    def _apply(
        self,
        delta: Delta,
        sums: list[tuple[int, str, Any]],
        ids: dict[tuple[str, Pane], int],
        sequence: int,
    ) -> None:
        """Take what was committed into the mirror."""
        for home, id in ids.items():
            self._ids[home] = id
            self._homes[id] = home
        for id, key, value in sums:
            model, pane = self._homes[id]
            family, labels = _decode(key)
            self._mirror.set(model, pane, family, labels, value)
        apply_rest(self._mirror, delta)
        self._mirror.sequence = sequence

    # --- catching up -------------------------------------------------------------------------

    def _look(self, connection: sqlite3.Connection) -> None:
        """Load what other processes committed, if SQLite says that any did."""
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            connection.execute("BEGIN")
            self._catch_up(connection)
            connection.execute("COMMIT")
            self._data_version = version

    def _catch_up(self, connection: sqlite3.Connection) -> None:
        """Make the mirror equal the file, within the transaction that is open."""
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        with self._mirror_lock:
            if meta["epoch"] != self._epoch or meta["sequence"] < self._mirror.sequence:
                self._mirror.clear()
                self._mirror.sequence = -1
                self._ids.clear()
                self._homes.clear()
                self._epoch = meta["epoch"]
            if meta["sequence"] == self._mirror.sequence:
                return
            self._load(connection, self._mirror.sequence)
            self._mirror.sequence = meta["sequence"]

    def _load(self, connection: sqlite3.Connection, since: int) -> None:
        """Load the panes that a commit younger than `since` touched."""
        which = "pane IN (SELECT id FROM panes WHERE version > ?)"
        vectors: dict[int, Vector] = {}
        for id, model, width, start, segment in connection.execute(
            "SELECT id, model, width, start, segment FROM panes WHERE version > ?", (since,)
        ):
            home = (model, Pane(width, start, segment))
            self._ids[home], self._homes[id] = id, home
            vectors[id] = {}
        for id, key, value in connection.execute(
            f"SELECT pane, key, value FROM counters WHERE {which}", (since,)
        ):
            family, labels = _decode(key)
            vectors[id].setdefault(family, {})[labels] = value
        for id, vector in vectors.items():
            self._mirror.replace_pane(*self._homes[id], vector)
        for id, key, value, time in connection.execute(
            f"SELECT pane, key, value, time FROM gauges WHERE {which}", (since,)
        ):
            self._mirror.set_gauge(self._homes[id][0], _decode(key), Gauge(value, time))
        for id, name, value in connection.execute(
            f"SELECT pane, name, value FROM constants WHERE {which}", (since,)
        ):
            self._mirror.set_constants(self._homes[id][0], {name: orjson.loads(value)})

    # --- the file ----------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        """The connection, opened and checked where it is not yet."""
        if self._connection is not None:
            return self._connection
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
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._look(connection)
        return connection

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Roll back whatever is raised, and raise SQLite's own errors as StoreUnavailable."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self._roll_back(reopen=not isinstance(error, sqlite3.OperationalError))
            raise StoreUnavailable(_kind(error), f"{self._path}: {error}") from error
        except StoreUnusable as error:
            self._roll_back(reopen=True)
            if not self._served:
                raise
            raise StoreUnavailable("foreign", str(error)) from error
        except BaseException:
            self._roll_back(reopen=False)
            raise

    def _roll_back(self, reopen: bool) -> None:
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

    def _stretch(self, now: float) -> tuple[bytes, bytes]:
        """The digests to sweep since the last call: at most a hundredth of all of them."""
        period = max(1.0, self._ttl / SWEEPS)
        place = (now % period) / period
        begin = self._swept if 0 <= place - self._swept <= 0.01 else max(0.0, place - 0.01)
        self._swept = place
        return _digest_at(begin), _digest_at(place)


def _digest_at(place: float) -> bytes:
    """The digest at a place in 0 to 1 of all digests."""
    return int(place * (1 << 64)).to_bytes(9, "big")[1:] + bytes(8) if place < 1 else b"\xff" * 17


def _decode(key: str) -> Any:
    decoded = _DECODED.get(key)
    if decoded is None:
        if len(_DECODED) > 100_000:
            _DECODED.clear()
        decoded = _DECODED[key] = decode_key(key)
    return decoded


_DECODED: dict[str, Any] = {encode_key("rows", NO_LABELS): ("rows", NO_LABELS)}


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
    if tables and version != VERSION:
        raise StoreUnusable(
            f"FEEDBACK_STORE: {path} has format {version}; this version reads {VERSION}"
        )
    if journal == "auto":
        journal = "truncate" if _on_network(path) else "wal"
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = -8000")
    if not tables:
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute("INSERT INTO meta VALUES ('sequence', 0)")
            _set_epoch(connection)
        connection.execute("COMMIT")


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


def _set_epoch(connection: sqlite3.Connection) -> None:
    connection.execute(
        "INSERT INTO meta VALUES ('epoch', ?1) ON CONFLICT DO UPDATE SET value = ?1",
        (random.getrandbits(62),),
    )


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
