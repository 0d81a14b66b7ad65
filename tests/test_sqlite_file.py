"""The file deleted, renamed, replaced or truncated under a store: noticed, told, never silent."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from metrics import sqlite_file, sqlite_store
from metrics.errors import StoreUnavailable
from metrics.sqlite_store import SQLiteStore
from tests.servers import read

from .servers_http import OwnServer, series, until
from .test_full_disk import MODEL, Sender
from .test_sqlite_store import NOW, TTL, connection, entries, events, kind

JOURNALS = ["wal", "truncate"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store may be."""
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "feedback.db"


@pytest.fixture(autouse=True)
def close_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files are looked at, at once, and every store that a test opened is closed after it."""
    monkeypatch.setattr(sqlite_store, "CONFIRM_SECONDS", -1.0)
    opened: list[SQLiteStore] = []
    made = SQLiteStore.__init__

    def remembered(store: SQLiteStore, *arguments: Any) -> None:
        opened.append(store)
        made(store, *arguments)

    monkeypatch.setattr(SQLiteStore, "__init__", remembered)
    yield
    for each in opened:
        each.close()


def unlink_all(path: Path) -> None:
    """Delete the file and those beside it."""
    for each in path.parent.iterdir():
        each.unlink()


def rename_all(path: Path) -> None:
    """Rename the file and those beside it."""
    for each in list(path.parent.iterdir()):
        each.rename(each.parent / f"old-{each.name}")


TAKEN_AWAY: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "all deleted": unlink_all,
    "renamed": lambda path: path.rename(path.parent / "elsewhere.db"),
    "all renamed": rename_all,
    "directory deleted": lambda path: shutil.rmtree(path.parent),
    "directory renamed": lambda path: path.parent.rename(path.parent.parent / "elsewhere"),
}


@pytest.mark.parametrize("journal", JOURNALS)
@pytest.mark.parametrize("how", TAKEN_AWAY)
def test_a_file_that_is_taken_away_is_written_again(
    how: str, journal: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole: counters, digests and all; it is logged and counted."""
    store = SQLiteStore(str(path), TTL, journal)
    store.commit(entries(*range(50)), NOW)
    store.housekeep(NOW)
    store.commit(entries(*range(50, 80)), NOW)
    created = read(store).models["m"].constants["created"]
    for time in (1, 2):
        TAKEN_AWAY[how](path)
        assert store.commit(entries(0, 79, 80 + time), NOW) == [False, False, True]
        assert store.losses == time
        assert caplog.text.count("deleted or renamed; it is written again") == time
        shutil.rmtree(path.parent.parent / "elsewhere", ignore_errors=True)
    other = SQLiteStore(str(path), TTL, journal)
    assert events(store) == events(other) == (82, 4)
    assert read(other).models["m"].constants["created"] == created
    assert other.commit(entries(0, 79, 82), NOW) == [False] * 3
    assert other.losses == 0


def test_under_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a commit follows another at once, it notices after it, and the next mends it."""
    monkeypatch.setattr(sqlite_store, "CONFIRM_SECONDS", 60.0)
    store = SQLiteStore(str(path), TTL)
    for id in range(0, 40, 2):
        store.commit(entries(id), NOW)
        list(TAKEN_AWAY.values())[id % 4](path)
        assert kind(store, entries(id + 1)) == "moved"
        assert store.commit(entries(id + 1), NOW) == [False]
    assert events(store) == events(SQLiteStore(str(path), TTL)) == (40, 20)
    assert store.losses == 20


@pytest.mark.parametrize("verb", ["refresh", "housekeep", "find", "held", "close"])
def test_every_verb_notices(verb: str, path: Path) -> None:
    """Not only a commit writes the file again."""
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1), NOW)
    unlink_all(path)
    arguments = {"refresh": (NOW,), "housekeep": (NOW,), "find": ((), ())}.get(verb, ())
    getattr(store, verb)(*arguments)
    assert store.losses == 1
    assert events(SQLiteStore(str(path), TTL)) == (1, 0)


@pytest.mark.parametrize("how", ["deleted", "all deleted", "renamed"])
def test_no_acknowledgement_follows_a_commit_into_a_file_that_is_gone(how: str, path: Path) -> None:
    """Taken away while it commits, it says so; the retry is a duplicate, once it is written."""
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1), NOW)
    with pytest.raises(StoreUnavailable) as caught:
        store.commit(entries(2), NOW, lambda _: TAKEN_AWAY[how](path) and None)
    assert caught.value.kind == "moved"
    assert store.commit(entries(2), NOW) == [False]
    assert events(store) == events(SQLiteStore(str(path), TTL)) == (2, 1)


@pytest.mark.parametrize("journal", JOURNALS)
def test_several_processes_lose_nothing_either(journal: str, path: Path) -> None:
    """One writes it again, the others take what it wrote; nothing is doubled or lost."""
    stores = [SQLiteStore(str(path), TTL, journal) for _ in range(3)]
    ids = iter(range(1000))
    for round in range(4):
        for store in stores:
            assert store.commit(entries(next(ids)), NOW) == [True]
        unlink_all(path)
        for store in stores[round % 3 :] + stores[: round % 3]:
            id = next(ids)
            try:
                assert store.commit(entries(id), NOW) == [True]
            except StoreUnavailable:
                assert store.commit(entries(id), NOW) in ([True], [False])
    count = next(ids)
    for store in [*stores, SQLiteStore(str(path), TTL, journal)]:
        assert events(store)[0] == count
        assert store.commit(entries(*range(count)), NOW) == [False] * count
    assert sum(store.losses for store in stores) == 4


def test_another_process_was_faster(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that write it again at once, the second takes what the first wrote."""
    one, other = SQLiteStore(str(path), TTL), SQLiteStore(str(path), TTL)
    one.commit(entries(1), NOW)
    assert events(other) == (1, 0)
    unlink_all(path)
    give = sqlite_file._give

    def late(copy: str, name: str) -> bool:
        monkeypatch.setattr(sqlite_file, "_give", give)
        assert other.commit(entries(2), NOW) == [True]
        return give(copy, name)

    monkeypatch.setattr(sqlite_file, "_give", late)
    assert one.commit(entries(3), NOW) == [True]
    assert events(one) == events(other) == events(SQLiteStore(str(path), TTL)) == (3, 0)
    assert (one.losses, other.losses) == (0, 1)
    assert sorted(each.name for each in path.parent.iterdir()) == [
        f"feedback.db{end}" for end in ("", "-shm", "-wal")
    ]


def test_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is renamed into its place, and never over another file."""

    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1), NOW)
    path.unlink()
    assert store.commit(entries(1), NOW) == [False]
    copy = path.parent / "copy"
    copy.write_bytes(b"mine")
    before = path.read_bytes()
    assert not sqlite_file._give(str(copy), str(path))
    assert path.read_bytes() == before


def test_a_symbolic_link(path: Path) -> None:
    """The path may be a link, and what it leads to be taken away."""
    real = path.parent.parent / "volume"
    real.mkdir()
    path.symlink_to(real / "real.db")
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1), NOW)
    unlink_all(real / "real.db")
    assert store.commit(entries(1, 2), NOW) == [False, True]
    assert (real / "real.db").exists()
    assert path.is_symlink()
    path.unlink()
    assert store.commit(entries(2, 3), NOW) == [False, True]
    assert events(store) == events(SQLiteStore(str(path), TTL)) == (3, 2)


def test_where_it_cannot_be_written_again_it_is_unavailable_until_it_can(path: Path) -> None:
    """Nothing is lost meanwhile, and nothing written into the file that is gone told as done."""
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1), NOW)
    directory = path.parent
    shutil.rmtree(directory)
    directory.write_text("a file where the directory was")
    for _ in range(3):
        assert kind(store, entries(2)) == "io"
    assert events(store) == (1, 0)
    directory.unlink()
    assert store.commit(entries(1, 2), NOW) == [False, True]
    assert events(store) == events(SQLiteStore(str(path), TTL)) == (2, 1)


# --- files that somebody put there -------------------------------------------------------------


def backup(path: Path) -> Path:
    """A copy of the file as it is now."""
    copy = path.parent / "backup"
    with sqlite3.connect(path) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()
    return copy


def test_an_older_copy_is_taken_as_it_is(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is a loss: logged, counted, with a new epoch and a new `created`, in all processes."""
    stores = [SQLiteStore(str(path), TTL) for _ in range(2)]
    stores[0].commit(entries(1, 2), NOW)
    stores[0].housekeep(NOW)
    copy = backup(path)
    stores[0].commit(entries(3), NOW)
    stores[1].commit(entries(4), NOW)
    created = read(stores[0]).models["m"].constants["created"]
    copy.rename(path)
    assert stores[0].commit(entries(2, 3), NOW) == [False, True]
    assert stores[1].commit(entries(3, 4), NOW) == [False, True]
    for store in [*stores, SQLiteStore(str(path), TTL)]:
        assert events(store) == (4, 2)
        assert read(store).models["m"].constants["created"] > created
    assert [store.losses for store in stores] == [1, 1]
    assert "lost commits" in caplog.text


def test_a_copy_that_has_all_of_it_is_no_loss(path: Path) -> None:
    """The same commits in another file."""
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1, 2), NOW)
    created = read(store).models["m"].constants["created"]
    backup(path).rename(path)
    assert store.commit(entries(2, 3), NOW) == [False, True]
    assert (store.losses, events(store)) == (0, (3, 1))
    assert read(store).models["m"].constants["created"] == created


def test_another_history_is_taken_as_it_is(path: Path) -> None:
    """A store that has more commits, but fewer of these events."""
    other = SQLiteStore(f"{path}-other", TTL)
    for id in range(9):
        other.commit(entries(id, model="other"), NOW)
    other.close()
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1, 2), NOW)
    Path(f"{path}-other").rename(path)
    assert store.commit(entries(1, 2), NOW) == [False, False]
    assert store.losses == 1
    assert set(read(store).models) >= {"other"}


@pytest.mark.parametrize("content", [b"not a database\n" * 500, b"SQLite format 3\0" + bytes(40)])
def test_a_file_that_is_no_store_is_left_alone(content: bytes, path: Path) -> None:
    """Unavailable until it is gone; then what was there before is written again."""
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1), NOW)
    unlink_all(path)
    path.write_bytes(content)
    for _ in range(3):
        assert kind(store, entries(2)) == "corrupt"
    assert path.read_bytes() == content
    assert events(store) == (1, 0)
    path.unlink()
    assert store.commit(entries(1, 2), NOW) == [False, True]
    assert events(store) == events(SQLiteStore(str(path), TTL)) == (2, 1)


# --- in place ----------------------------------------------------------------------------------


@pytest.mark.parametrize("journal", JOURNALS)
def test_truncated_to_nothing(journal: str, path: Path) -> None:
    """A file that is empty is begun anew: a loss, with a new `created`."""
    store = SQLiteStore(str(path), TTL, journal)
    store.commit(entries(*range(9)), NOW)
    connection(store).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.truncate(path, 0)
    until(lambda: _commits(store, 10))
    assert store.losses == 1
    assert events(store)[0] == events(SQLiteStore(str(path), TTL, journal))[0] == 1


def _commits(store: SQLiteStore, id: int) -> bool:
    try:
        store.commit(entries(id), NOW + 1)
    except StoreUnavailable:
        return False
    return True


@pytest.mark.parametrize("journal", JOURNALS)
def test_truncated_in_half(journal: str, path: Path) -> None:
    """What lacks pages is corrupt: nothing more is acknowledged, and nothing more written."""
    store = SQLiteStore(str(path), TTL, journal)
    for model in range(30):
        store.commit(entries(*range(100 * model, 100 * model + 100), model=f"m{model}"), NOW)
    store.housekeep(NOW)
    if journal == "wal":
        connection(store).execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store.commit(entries(7000), NOW)
    os.truncate(path, path.stat().st_size // 2)
    for id in range(8000, 8005):
        assert kind(store, entries(id)) == "corrupt"
    assert len(read(store).models) >= 30


@pytest.mark.parametrize("end", ["-wal", "-shm"])
def test_a_journal_that_is_deleted(end: str, path: Path) -> None:
    """What only the deleted journal has is brought to the file: nothing is lost."""
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1, 2), NOW)
    Path(f"{path}{end}").unlink()
    store.housekeep(NOW)
    assert store.commit(entries(2, 3), NOW) == [False, True]
    copy = path.parent / "copy.db"
    for each in ("", "-wal", "-shm"):
        shutil.copy(f"{path}{each}", f"{copy}{each}")
    assert events(store) == events(SQLiteStore(str(copy), TTL)) == (3, 1)
    assert store.losses == 0


def test_a_journal_that_is_truncated(path: Path) -> None:
    """What it had is lost: the file is as of its last checkpoint, and it is counted."""
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(1, 2), NOW)
    connection(store).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.commit(entries(3, 4), NOW)
    created = read(store).models["m"].constants["created"]
    os.truncate(f"{path}-wal", 0)
    assert store.commit(entries(2, 3), NOW + 5) == [False, True]
    assert store.losses == 1
    assert read(store).models["m"].constants["created"] > created
    assert events(store) == events(SQLiteStore(str(path), TTL)) == (3, 1)


@pytest.mark.parametrize("number", [1, 20, 400])
def test_a_journal_that_has_grown_since(
    number: int, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is noticed within a second: then all is there, or it is counted, or it is unavailable."""
    monkeypatch.setattr(sqlite_store, "CONFIRM_SECONDS", 60.0)
    store = SQLiteStore(str(path), TTL)
    for id in range(number):
        store.commit(entries(id, model=f"m{id % 7}"), NOW)
    store.housekeep(NOW)
    store.commit(entries(1000), NOW)
    os.truncate(f"{path}-wal", 0)
    store.commit(entries(1001), NOW)
    try:
        store.housekeep(NOW)
    except StoreUnavailable:
        assert kind(store, entries(1002)) == "corrupt"
    else:
        fresh = SQLiteStore(str(path), TTL)
        assert read(fresh).models == read(store).models
        assert store.losses == 1 or sum(fresh.commit(entries(*range(number), 1000), NOW)) == 0
    assert "-wal is truncated" in caplog.text


def test_a_checkpoint_by_hand_is_no_loss(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever backs the file up may truncate its journal in good order."""
    caplog.set_level(logging.WARNING)
    store = SQLiteStore(str(path), TTL)
    store.commit(entries(*range(500)), NOW)
    hand = sqlite3.connect(path)
    assert hand.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    hand.execute("VACUUM")
    hand.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    hand.close()
    assert store.commit(entries(1, 500), NOW) == [False, True]
    assert events(store) == events(SQLiteStore(str(path), TTL)) == (501, 1)
    assert store.losses == 0


# --- through the server ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["all deleted", "renamed", "directory deleted"])
@pytest.mark.parametrize("journal", JOURNALS)
def test_a_server_whose_file_is_taken_away(how: str, journal: str, tmp_path: Path) -> None:
    """It stays ready, and every acknowledged event is there after a kill, once."""
    path = tmp_path / "state" / "feedback.db"
    url = f"sqlite:///{path}?journal={journal}"
    with OwnServer(tmp_path, FEEDBACK_STORE=url) as server:
        sender = Sender(server)
        assert sender.send_new(50) == {200}
        TAKEN_AWAY[how](path)
        until(lambda: path.exists(), 10)  # without an event, too
        sender.send_new(50)
        until(lambda: not sender.refused or sender.send_refused() == {200})
        assert server.get("/health/readiness").status == 200
        assert sender.exact()
        assert "it is written again" in server.log()
        assert series(server.exposition())["feedback_store_losses_total"] == 1
        server.restart()
        assert sender.exact()
        assert server.feedback("0", MODEL).status == 200
        assert sender.exact()


def test_a_server_whose_file_is_replaced(tmp_path: Path) -> None:
    """By an older copy: that is served, as a reset, and counted."""
    path = tmp_path / "state" / "feedback.db"
    with OwnServer(tmp_path, FEEDBACK_STORE=f"sqlite:///{path}") as server:
        sender = Sender(server)
        assert sender.send_new(10) == {200}
        copy = backup(path)
        assert sender.send_new(10) == {200}
        before = _created(server)
        copy.rename(path)
        until(lambda: "lost commits" in server.log(), 10)
        assert series(server.exposition())["feedback_store_losses_total"] == 1
        assert server.get(f"/v1/models/{MODEL}").json["events"] == 10
        until(lambda: min(_created(server).values()) > max(before.values()), 10)
        assert _created(server).keys() == before.keys()


def _created(server: OwnServer) -> dict[str, float]:
    """When each counter of events began."""
    text = server.exposition(Accept="application/openmetrics-text")
    return series(text, "feedback_events_created", f'model_name="{MODEL.split("/")[3]}"')
