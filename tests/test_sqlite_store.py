"""The SQLite store among other processes, broken files, full disks and failing statements."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time as clock
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from metrics import sqlite_store
from metrics.errors import StoreUnavailable, StoreUnusable
from metrics.histograms import of
from metrics.sqlite_store import SQLiteStore
from metrics.state import Entry
from metrics.windows import ALL_TIME, Pane
from tests.servers import read

NOW = 1_700_000_000.0
TTL = 800
PANE = Pane(5, 340000000)


@pytest.fixture(autouse=True)
def close_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every connection that a test opened is closed after it, as Python 3.13 insists on."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remembered(*arguments: Any, **more: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, **more))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", remembered)
    yield
    for each in opened:
        each.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store may be."""
    return tmp_path / "feedback.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    """A store that holds one event, numbered 0."""
    store = SQLiteStore(str(path), TTL)
    assert store.commit(entries(0), NOW) == [True]
    yield store
    store.close()


def entries(*ids: int, model: str = "m") -> list[Entry]:
    """One entry an id, each in two panes."""
    increment = {"events": {(): 1}, "loss": {(): 0.5}}
    return [Entry(model, id.to_bytes(16, "big"), (ALL_TIME, PANE), increment) for id in ids]


def events(store: SQLiteStore) -> Any:
    """The events and duplicates that the store reads."""
    vector = read(store).models["m"].all_time
    return vector["events"][()], vector.get("duplicates", {}).get((), 0)


def kind(store: SQLiteStore, batch: Sequence[Entry] = ()) -> str:
    """The kind of error with which a commit fails."""
    with pytest.raises(StoreUnavailable) as caught:
        store.commit(batch, NOW)
    return caught.value.kind


def connection(store: SQLiteStore) -> sqlite3.Connection:
    """The connection of a store that is open."""
    assert store._connection is not None
    return store._connection


# --- what time can mend ------------------------------------------------------------------------


def test_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind another's transaction a commit is unavailable after a while, and a read is not."""
    monkeypatch.setattr(sqlite_store, "BUSY_SECONDS", 0.1)
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(0), NOW)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = clock.monotonic()
    assert kind(store, entries(1)) == "busy"
    assert clock.monotonic() - began >= 0.1
    assert events(store) == (1, 0)
    other.execute("ROLLBACK")
    other.close()
    assert store.commit(entries(1), NOW) == [True]
    store.close()


def test_waits_for_another(store: SQLiteStore, path: Path) -> None:
    """A commit waits out another's short transaction."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, other.execute, ["ROLLBACK"])
    timer.start()
    assert store.commit(entries(1), NOW) == [True]
    timer.join()
    other.close()


def test_full(store: SQLiteStore, path: Path) -> None:
    """On a full disk a commit is unavailable, and counted once when there is room again."""
    many = entries(*range(5000))
    (pages,) = connection(store).execute("PRAGMA page_count").fetchone()
    connection(store).execute(f"PRAGMA max_page_count = {pages}")
    assert kind(store, many) == "full"
    assert kind(store, many) == "full"
    assert events(store) == (1, 0)
    connection(store).execute("PRAGMA max_page_count = 1000000")
    assert sum(store.commit(many, NOW)) == 4999
    assert events(store) == events(SQLiteStore(str(path), TTL)) == (5000, 1)


def test_read_only(store: SQLiteStore) -> None:
    """On a volume that became read-only a commit is unavailable, and a read answers."""
    connection(store).execute("PRAGMA query_only = ON")
    assert kind(store) == "readonly"
    assert kind(store, entries(1)) == "readonly"
    assert events(store) == (1, 0)
    connection(store).execute("PRAGMA query_only = OFF")
    assert store.commit(entries(1), NOW) == [True]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a directory where root cannot write")
def test_place_that_cannot_be_written() -> None:
    """A store where no file can be made opens, and is not ready."""
    store = SQLiteStore("/proc/self/feedback.db", TTL)
    assert kind(store) == "readonly"
    assert dict(read(store).models) == {}
    store.close()


def test_place_that_is_no_file(tmp_path: Path) -> None:
    """A directory, or a path through a file, is unusable."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "feedback.db"):
        with pytest.raises(StoreUnusable):
            SQLiteStore(str(path), TTL)


# --- files that are not ours -------------------------------------------------------------------


def _foreign(path: Path) -> None:
    other = sqlite3.connect(path)
    other.executescript(
        "CREATE TABLE counters(pane, key, value); INSERT INTO counters VALUES(1,2,3)"
    )
    other.close()


FILES = {
    "corrupt": lambda path: path.write_bytes(random.Random(1).randbytes(9000)),
    "short": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(40)),
    "text": lambda path: path.write_text("not a database\n" * 500),
    "foreign": _foreign,
}


@pytest.mark.parametrize("name", FILES)
def test_file_of_another_kind(name: str, path: Path) -> None:
    """A corrupt or foreign file makes the store unavailable, and not a byte of it is changed."""
    FILES[name](path)
    before = path.read_bytes()
    store = SQLiteStore(str(path), TTL)
    expected = "foreign" if name == "foreign" else "corrupt"
    assert kind(store, entries(1)) == kind(store) == expected
    with pytest.raises(StoreUnavailable):
        store.housekeep(NOW)
    assert dict(read(store).models) == {}
    assert path.read_bytes() == before
    path.unlink()
    assert store.commit(entries(1), NOW) == [True]
    store.close()
    assert path.read_bytes() != before


def test_damaged_while_serving(path: Path) -> None:
    """A file that was damaged is left as it is; reads answer from memory."""
    store = SQLiteStore(str(path), TTL, "delete")
    store.commit(entries(*range(500)), NOW)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[4096:] = random.Random(1).randbytes(len(content) - 4096)
    damaged[24:28] = b"\xff" * 4  # the counter of changes, so that no cached page is used
    path.write_bytes(damaged)
    assert kind(store, entries(501)) == "corrupt"
    assert kind(store, entries(501)) == "corrupt"
    assert events(store) == (500, 0)
    assert path.read_bytes() == damaged
    path.write_bytes(content)
    assert store.commit(entries(1, 501), NOW) == [False, True]
    assert events(store) == (501, 1)
    store.close()


def test_older_format(path: Path) -> None:
    """A file of version 1 is taken as it is, and is of this version then."""
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1, 2), NOW)
    store.housekeep(NOW)
    for _ in range(sqlite_store.STRETCHES):
        store.housekeep(NOW)
    store.close()
    old = sqlite3.connect(path)
    for statement in (
        "DROP TABLE arrays",
        "DROP TABLE young",
        "DROP TABLE sweep",
        "ALTER TABLE commits RENAME TO log",
        "PRAGMA user_version = 1",
    ):
        old.execute(statement)
    old.close()
    for _ in range(2):
        store = SQLiteStore(str(path), TTL)
        assert store.commit(entries(2), NOW) == [False]
        store.housekeep(NOW)
        assert read(store).models["m"].all_time["events"] == {(): 2}
        store.close()
    with sqlite3.connect(path) as new:
        assert new.execute("PRAGMA user_version").fetchone() == (sqlite_store.VERSION,)
    new.close()


def test_newer_format(store: SQLiteStore, path: Path) -> None:
    """A newer format is unusable at start, unavailable later, and left as it is."""
    store.close()
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA user_version = {sqlite_store.VERSION + 1}")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match=f"format {sqlite_store.VERSION + 1}"):
        SQLiteStore(str(path), TTL)
    assert kind(store, entries(1)) == "foreign"
    assert path.read_bytes() == before


def test_file_taken_away(store: SQLiteStore, path: Path) -> None:
    """A file that vanishes between two opens is made again; nothing of the old one is read."""
    store.close()
    for file in path.parent.iterdir():
        file.unlink()
    assert store.commit(entries(1), NOW) == [True]
    assert events(store) == events(SQLiteStore(str(path), TTL)) == (1, 0)


# --- several at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("journal", ["wal", "truncate", "delete"])
def test_journals(journal: str, path: Path) -> None:
    """Two instances that commit at once lose and double nothing, whatever the journal."""
    stores = [SQLiteStore(str(path), TTL, journal) for _ in range(2)]
    assert connection(stores[0]).execute("PRAGMA journal_mode").fetchone() == (journal,)
    verdicts: list[bool] = []

    def work(store: SQLiteStore, first: int) -> None:
        for id in range(first, first + 60, 2):
            verdicts.extend(store.commit(entries(id, id + 1), NOW))
            read(store)

    threads = [threading.Thread(target=work, args=(stores[n], 30 * n)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(verdicts), sum(verdicts)) == (120, 90)
    for store in [*stores, SQLiteStore(str(path), TTL)]:
        assert events(store) == (90, 30)
        store.close()


def test_a_process_that_ends_does_not_wait_for_a_large_fold(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is as durable as the tables: the next process folds it."""
    monkeypatch.setattr(sqlite_store, "HASTE_SECONDS", 0.0)
    cells = {(str(n), str(m)): 1 for n in range(100) for m in range(100)}
    store = SQLiteStore(path, 1000)
    store.commit([Entry("m", b"1" * 16, (ALL_TIME,), {"confusion": cells})], 0.0)
    store.hasten()
    with pytest.raises(StoreUnavailable, match="not folded"):
        store.housekeep(0.0)
    assert store.commit([Entry("m", b"2" * 16, (ALL_TIME,), {"confusion": cells})], 0.0) == [True]
    store.close()
    again = SQLiteStore(path, 1000)
    again.housekeep(0.0)
    counted = again.read().models["m"].all_time["confusion"]
    assert dict(counted) == dict.fromkeys(cells, 2)
    assert again.commit([Entry("m", b"1" * 16, (ALL_TIME,), {})], 0.0) == [False]


def test_identity_of_panes(path: Path) -> None:
    """A pane that another instance let expire is never taken for the one made after it."""
    one, other = SQLiteStore(str(path), TTL), SQLiteStore(str(path), TTL)
    one.commit(entries(1), NOW)
    assert events(other) == (1, 0)
    one.housekeep(NOW + 400)
    young = Pane(5, PANE.index + 80)
    one.commit([Entry("n", bytes(16), (ALL_TIME, young), {"events": {(): 1}})], NOW + 400)
    other.commit(entries(2), NOW + 400)  # late, for the pane that expired
    for store in (one, other, SQLiteStore(str(path), TTL)):
        assert read(store).models["n"].panes[young] == {"events": {(): 1}}
        assert events(store) == (2, 0)


@pytest.mark.parametrize("step", [-3600, 0, 3600])
def test_a_clock_that_is_set_while_another_process_lags(
    path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lags finds every commit in the log, or reads the tables anew; nothing is lost."""
    monkeypatch.setattr(sqlite_store, "RETAIN_SECONDS", -60)
    one, other = SQLiteStore(str(path), TTL), SQLiteStore(str(path), TTL)
    one.commit(entries(*range(100)), NOW)
    other.commit(entries(*range(100, 150)), NOW)
    for id in range(150, 160):
        one.commit(entries(id), NOW + step)
        one.housekeep(NOW + step + 1)
    assert other.commit(entries(160), NOW + step + 2) == [True]
    other.housekeep(NOW + step + 3)
    for store in (one, other, SQLiteStore(str(path), TTL)):
        assert events(store) == (161, 0)


def test_only_a_prefix_of_the_log_goes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the times in it are ordered; `pruned` is the last that went."""
    store = SQLiteStore(str(path), TTL)
    chance = random.Random(28)
    for id in range(60):
        now = NOW + chance.choice([-86400, -20, 0, 20, 86400])
        store.commit(entries(id), now)
        if id % 3 == 0:
            monkeypatch.setattr(sqlite_store, "RETAIN_SECONDS", chance.choice([-1, 5]))
            store.housekeep(now)
        left = [row for (row,) in connection(store).execute("SELECT sequence FROM commits")]
        (pruned,) = connection(store).execute("SELECT pruned FROM meta").fetchone()
        assert left == list(range(pruned + 1, store.read().sequence + 1))
    assert pruned > 0


def test_the_log_is_kept_for_those_who_look_often_enough(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that jumps does not shorten the time in which others can read a commit."""
    one, other = SQLiteStore(str(path), TTL), SQLiteStore(str(path), TTL)
    one.commit(entries(1), NOW)
    assert events(other) == (1, 0)
    loads: list[object] = []
    monkeypatch.setattr(other, "_load", loads.append)
    one.commit(entries(2), NOW)
    one.housekeep(NOW + 86400)
    one.commit(entries(3), NOW + 86400)
    one.housekeep(NOW + 2 * 86400)
    assert events(other) == (3, 0)
    assert loads == []


def test_a_log_with_a_gap_is_not_added_up(path: Path) -> None:
    """A commit that is missing in the log is read from the tables; where it is in neither, no
    commit is made on top of that.
    """
    one, other = SQLiteStore(str(path), TTL), SQLiteStore(str(path), TTL)
    for id in range(3):
        one.commit(entries(id), NOW)
    one.housekeep(NOW)
    one.commit(entries(3), NOW)
    with sqlite3.connect(path) as hand:
        hand.execute("DELETE FROM commits WHERE sequence = 2")
    hand.close()
    assert events(other) == (4, 0)
    one.commit(entries(4, 5), NOW)
    one.commit(entries(6), NOW)
    with sqlite3.connect(path) as hand:
        hand.execute("DELETE FROM commits WHERE sequence = 5")
    hand.close()
    assert kind(other, entries(7)) == "corrupt"
    assert events(other) == (4, 0)


def test_nights(path: Path) -> None:
    """A process that is woken for minutes each night forgets as one does that runs on."""
    chance = random.Random(10)
    for night in range(8):
        store = SQLiteStore(str(path), 86400)
        woken = NOW + night * 86400
        batch = [Entry("m", chance.randbytes(16), (ALL_TIME,), {}) for _ in range(60)]
        store.commit(batch, woken)
        for second in range(300):
            store.housekeep(woken + second)
        assert store.seen() <= 120
        store.close()


def test_seconds(path: Path) -> None:
    """Nor does it take minutes: what is due is done at once, in small steps."""
    chance = random.Random(11)
    number = 30 * sqlite_store.SWEEP_DIGESTS
    most = 0
    for night in range(3):
        store = SQLiteStore(str(path), 86400)
        woken = NOW + 2 * night * 86400
        batch = [Entry("m", chance.randbytes(16), (ALL_TIME,), {}) for _ in range(number)]
        store.commit(batch, woken)
        seen = store.seen()
        while store.housekeep(woken):
            most = max(most, seen - store.seen())
            seen = store.seen()
        assert store.seen() <= 1.02 * number
        store.close()
    assert most <= 2 * sqlite_store.SWEEP_DIGESTS


def test_a_sweep_goes_on_where_the_last_process_stopped(path: Path) -> None:
    """Woken for one step at a time, it reaches every digest."""
    chance = random.Random(12)
    number = 10 * sqlite_store.SWEEP_DIGESTS
    store = SQLiteStore(str(path), 86400)
    store.commit([Entry("m", chance.randbytes(16), (ALL_TIME,), {}) for _ in range(number)], NOW)
    store.close()
    for wake in range(30):
        store = SQLiteStore(str(path), 86400)
        store.housekeep(NOW + 2 * 86400 + wake * 86400)
        store.close()
    assert SQLiteStore(str(path), 86400).seen() == 0


def test_a_sweep_survives_a_clock_that_was_ahead(path: Path) -> None:
    """A clock that was years ahead does not stop it for years."""
    chance = random.Random(13)
    store = SQLiteStore(str(path), 800)
    store.commit([Entry("m", chance.randbytes(16), (ALL_TIME,), {}) for _ in range(50)], NOW)
    store.housekeep(NOW + 1e9)
    store.commit([Entry("m", chance.randbytes(16), (ALL_TIME,), {}) for _ in range(50)], NOW)
    for second in range(1000):
        store.housekeep(NOW + second)
    assert store.seen() == 0


def test_an_idle_store_is_not_written_to(path: Path) -> None:
    """Housekeeping that has nothing to do leaves the file as it is, but for a step now and then."""
    store = SQLiteStore(str(path), 86400)
    store.commit(entries(*range(100)), NOW)
    for second in range(20):
        store.housekeep(NOW + second)
    other = sqlite3.connect(path)
    writes = 0
    version = other.execute("PRAGMA data_version").fetchone()
    for second in range(20, 620):
        store.housekeep(NOW + second)
        before, version = version, other.execute("PRAGMA data_version").fetchone()
        writes += version != before
    other.close()
    assert writes <= 8


@pytest.mark.parametrize("ttl", [1, 30, 600, 86400])
def test_sweep_reaches_every_digest(path: Path, ttl: int) -> None:
    """Within two passes, of two hundred calls or one a second, all old digests are gone."""
    store = SQLiteStore(str(path), ttl)
    chance = random.Random(ttl)
    batch = [Entry("m", chance.randbytes(16), (ALL_TIME,), {}) for _ in range(300)]
    edges = [Entry("m", digest * 16, (ALL_TIME,), {}) for digest in (b"\0", b"\xff")]
    store.commit(batch + edges, NOW)
    period = max(1.0, ttl / sqlite_store.SWEEPS)
    for step in range(400):
        store.housekeep(NOW + ttl + 1 + step * max(1.0, period / 200) * 0.999)
    assert store.seen() == 0
    store.close()


def test_a_digest_is_known_wherever_it_lies(path: Path) -> None:
    """In the log, among the young ones, and among all, where it is ten folds later."""
    store = SQLiteStore(str(path), TTL)
    other = SQLiteStore(str(path), TTL)
    chance = random.Random(1)
    edges = [b"\0" * 16, b"\xff" * 16]
    digests = edges + [chance.randbytes(16) for _ in range(200)]
    batch = [Entry("m", digest, (ALL_TIME,), {"events": {(): 1}}) for digest in digests]
    assert all(store.commit(batch, NOW))
    young = []
    for _ in range(sqlite_store.STRETCHES + 1):
        assert not any(other.commit(batch, NOW))
        store.housekeep(NOW)
        ((left,),) = connection(store).execute("SELECT count(*) FROM young").fetchall()
        young.append(left)
    assert young[0] > young[1] > young[-1] == 0
    assert connection(store).execute("SELECT count(*) FROM seen").fetchall() == [(202,)]
    assert store.seen() == 202
    for each in (store, other):
        each.close()


@pytest.mark.parametrize("rows", [30, 3000])
def test_arrays_survive_what_dicts_do(path: Path, rows: int) -> None:
    """The log, the fold, and a restart; another process, and one that expires; the same cells."""
    chance = random.Random(rows)
    scores: dict[Any, int] = {}
    for _ in range(rows):
        labels = (chance.choice("ab"), str(chance.randint(-300, 300)), chance.choice("01"))
        scores[labels] = scores.get(labels, 0) + 1
    one, other = SQLiteStore(str(path), TTL), SQLiteStore(str(path), TTL)
    panes = (ALL_TIME, PANE)

    def equal(times: int) -> None:
        expected = {labels: times * number for labels, number in scores.items()}
        for store in (one, other, SQLiteStore(str(path), TTL)):
            model = read(store).models["m"]
            assert [model.panes[pane]["scores"] for pane in panes] == [expected] * 2

    for step in range(1, 7):
        added: Any = {"scores": of(scores) if step % 2 else dict(scores)}
        (one, other)[step % 3 == 0].commit([Entry("m", b"", panes, added)], NOW)
        equal(step)
        if step % 2:
            one.housekeep(NOW)
            equal(step)
    query = "SELECT count(*) FROM {} WHERE {}"
    (arrays,) = connection(one).execute(query.format("arrays", "family = 'scores'")).fetchone()
    cells = query.format("counters", "key LIKE '[\"scores\"%'")
    assert arrays == 2
    assert connection(one).execute(cells).fetchone() == (0,)
    one.housekeep(NOW + 86400)
    assert connection(one).execute("SELECT count(*) FROM arrays").fetchone() == (1,)
    assert one.reset("m")
    assert connection(one).execute("SELECT count(*) FROM arrays").fetchone() == (0,)
    assert "m" not in read(other).models


# --- faults ------------------------------------------------------------------------------------


class Faulty(sqlite3.Connection):
    """A connection whose k-th statement fails, before or after it was executed."""

    countdown = 0
    late = False
    error: sqlite3.Error = sqlite3.OperationalError("disk I/O error")

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """Execute, or fail."""
        return self._fail_or(super().execute, arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        """Execute, or fail."""
        return self._fail_or(super().executemany, arguments)

    @classmethod
    def _fail_or(cls, method: Any, arguments: Any) -> sqlite3.Cursor:
        cls.countdown -= 1
        if cls.countdown == 0 and not cls.late:
            raise cls.error
        cursor: sqlite3.Cursor = method(*arguments)
        if cls.countdown == 0:
            cursor.close()
            raise cls.error
        return cursor


ERRORS = {
    "io": sqlite3.OperationalError("disk I/O error"),
    "full": sqlite3.OperationalError("database or disk is full"),
    "corrupt": sqlite3.DatabaseError("database disk image is malformed"),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("journal", ["wal", "truncate"])
def test_every_statement_can_fail(
    kind: str, late: bool, journal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever statement fails, no verdict is wrong, and the totals are exact afterwards."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Faulty, **k))
    monkeypatch.setattr(Faulty, "late", late)
    monkeypatch.setattr(Faulty, "error", ERRORS[kind])
    faults = 0
    for k in range(1, 200):
        path = str(tmp_path / f"{k}.db")
        monkeypatch.setattr(Faulty, "countdown", 0)
        store = SQLiteStore(path, TTL, journal)
        other = SQLiteStore(path, TTL, journal)
        store.commit(entries(1, 2), NOW)
        store.commit(entries(9, model="gone"), NOW)
        other.commit(entries(2, 3), NOW)
        if k % 2:
            other.reset("gone")
        monkeypatch.setattr(Faulty, "countdown", k)
        new, failed = _use(store, entries(3, 4, 5))
        over = Faulty.countdown > 0
        monkeypatch.setattr(Faulty, "countdown", 0)
        faults += failed
        assert events(store)[0] in (3, 5)
        again, _ = _use(store, entries(3, 4, 5))
        if new:
            assert (new, again) == ([False, True, True], [False] * 3)
        elif again[1:] == [False, False]:
            assert late  # committed, but its answer was lost
        else:
            assert again == [False, True, True]
        fresh = SQLiteStore(path, TTL, journal)
        assert read(fresh).models == read(store).models
        assert events(fresh)[0] == 5
        assert ("gone" in read(fresh).models) == (k % 2 == 0)
        for each in (store, other, fresh):
            each.close()
        if over:
            break
    assert faults >= 10
    assert over


def _use(store: SQLiteStore, batch: list[Entry]) -> tuple[list[bool], int]:
    """The verdicts of a commit, if it gave any, and how much of all that a store does failed."""
    verdicts: list[bool] = []
    failed = 0
    for use in (
        store.read,
        lambda: verdicts.extend(store.commit(batch, NOW)),
        lambda: store.housekeep(NOW),
        store.seen,
        store.read,
    ):
        try:
            use()
        except StoreUnavailable:
            failed += 1
        known = store._mirror.read().models["m"].all_time["events"][()]
        assert known in (2, 3, 5)  # what memory answers is some whole commit, never less
    return verdicts, failed


CHILD = """
import sys
from metrics.sqlite_store import SQLiteStore
from tests.test_sqlite_store import NOW, TTL, entries
store = SQLiteStore(sys.argv[1], TTL, sys.argv[2])
for batch in range(int(sys.argv[3]), 10**6):
    store.commit(entries(*range(5 * batch, 5 * batch + 5)), NOW)
    print(batch, flush=True)
"""


@pytest.mark.parametrize("journal", ["wal", "truncate"])
def test_kill(journal: str, path: Path) -> None:
    """A process that is killed leaves each commit whole, and those that it told of."""
    chance = random.Random(journal)
    told = -1
    for _ in range(4):
        words = [sys.executable, "-c", CHILD, str(path), journal, str(told + 1)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            told = int(child.stdout.readline())
            clock.sleep(chance.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            for line in child.stdout:
                told = int(line) if line.endswith("\n") else told
        store = SQLiteStore(str(path), TTL, journal)
        total, duplicates = events(store)
        assert total % 5 == 0
        assert total - 5 * (told + 1) in (0, 5)
        assert read(store).models["m"].panes[PANE]["events"][()] == total
        verdicts = store.commit(entries(*range(5 * told + 10)), NOW)
        assert verdicts == [False] * total + [True] * (5 * told + 10 - total)
        told += 1
        assert events(store) == (5 * told + 5, duplicates + total)
        store.close()
