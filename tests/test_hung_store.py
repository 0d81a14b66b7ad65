"""A store that hangs: probes and pages answer at once meanwhile, and all is well afterwards."""

from __future__ import annotations

import json
import signal
import threading
import time as clock
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from metrics import committer as committer_module
from metrics.app import App
from metrics.config import load
from metrics.exposition import render
from metrics.state import Entry
from metrics.store import Ahead, MemoryStore, Store, open_store, unheeded
from tests.servers import RedisServer
from tests.servers_http import Fleet, Server, attributes, feedback, outcomes, series, until

QUICK = 2.0
"""Seconds within which what needs no store is answered, on a machine that others use, too; a call
of a store that hangs takes five."""
PATIENCE = 60.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The module's servers."""
    fleet = Fleet(tmp_path_factory.mktemp("servers"))
    yield fleet
    fleet.close()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A server of a test's own, to be stopped."""
    with RedisServer() as redis:
        yield redis


def seconds_of(asked: Any) -> float:
    """Seconds that a call took."""
    began = clock.monotonic()
    asked()
    return clock.monotonic() - began


@pytest.mark.parametrize("kind", ["own", "parliament"])
def test_a_redis_that_hangs_blocks_nobody_but_who_posts(
    fleet: Fleet, redis: RedisServer, kind: str
) -> None:
    """Liveness and pages answer from memory, posts get 503, and each event is counted once."""
    server: Server = fleet.special(kind, FEEDBACK_STORE=redis.url).start()
    assert server.feedback("1").status == 200
    assert redis.process is not None
    poster = server.twin()
    clock.sleep(0.7)  # what was read is old enough to be looked at again
    redis.process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            posted = pool.submit(poster.feedback, "2")
            slow = []
            end = clock.monotonic() + 7
            while clock.monotonic() < end:
                for path in ("/health/liveness", "/?format=prometheus", "/?format=json", "/"):
                    seconds = seconds_of(lambda path=path: server.get(path))  # type: ignore[misc]
                    if seconds > QUICK:
                        slow.append((path, seconds))
                clock.sleep(0.1)
            assert slow == []
            assert server.get("/health/liveness").status == 200
            assert outcomes(server.exposition())["accepted"] == 1
            until(lambda: series(server.exposition())["feedback_store_ready"] == 0)
            if kind == "own":  # stock parliament's probe knows nothing of the function
                assert server.get("/health/readiness").status == 503
            assert posted.result(PATIENCE).status == 503
    finally:
        poster.hang_up()
        redis.process.send_signal(signal.SIGCONT)
    until(lambda: series(server.exposition())["feedback_store_ready"])
    until(lambda: server.feedback("2").status == 200)
    assert server.feedback("3").status == 200
    until(lambda: outcomes(server.exposition())["accepted"] == 3)
    fleet.close_special()


def test_an_idle_server_notices_a_redis_that_hangs(fleet: Fleet, redis: RedisServer) -> None:
    """Without any request, in the time that one call may take."""
    server = fleet.special("own", FEEDBACK_STORE=f"{redis.url}?socket_timeout=1").start()
    assert redis.process is not None
    redis.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: server.get("/health/readiness").status == 503)
    finally:
        redis.process.send_signal(signal.SIGCONT)
    until(lambda: server.get("/health/readiness").status == 200)
    fleet.close_special()


class Hung(MemoryStore):
    """A store on a disk that hangs while `gate` is closed."""

    def __init__(self) -> None:
        super().__init__(1000)
        self.gate = threading.Event()
        self.gate.set()

    def commit(self, batch: Sequence[Entry], now: float, ahead: Ahead = unheeded) -> list[bool]:
        """Commit once the disk answers."""
        assert self.gate.wait(PATIENCE)
        return super().commit(batch, now, ahead)


def test_a_disk_that_hangs_makes_it_unready_and_answers_questions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What waits for it waits; it is not ready after a while, and ready again after that."""
    monkeypatch.setattr(committer_module, "STALL_SECONDS", 0.1)
    store = Hung()
    app = App(load({}), store)
    headers = {"content-type": "application/json"}
    headers |= {f"ce-{name}": text for name, text in attributes("1").items()}
    body = json.dumps(feedback()).encode()
    assert app.post_sync(headers, body).status == 200
    store.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(app.post_sync, {**headers, "ce-id": "2"}, body)
        until(lambda: not app.ready)
        assert app.alive
        assert seconds_of(lambda: render(app, "")) < QUICK
        assert outcomes(render(app, "")[0].decode())["accepted"] == 1
        assert not posted.done()
        store.gate.set()
        assert posted.result(PATIENCE).status == 200
    until(lambda: app.ready)
    app.close()


def test_closing_does_not_wait_for_a_disk_that_hangs_for_good(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It gives up after a while, and leaves the store alone."""
    monkeypatch.setattr(committer_module, "CLOSE_SECONDS", 0.1)
    store = Hung()
    app = App(load({}), store)
    store.gate.clear()
    headers = {"content-type": "application/json"}
    headers |= {f"ce-{name}": text for name, text in attributes("1").items()}
    with ThreadPoolExecutor(1) as pool:
        posted = pool.submit(app.post_sync, headers, b'{"reward":1}')
        monkeypatch.setattr(store, "close", lambda: pytest.fail("closed while it is in use"))
        until(lambda: app.committer._in_hand or posted.done())
        app.close()
        assert "the store did not answer" in caplog.text
        store.gate.set()
        assert posted.result(PATIENCE).status


def test_two_servers_see_each_other_within_a_second(
    fleet: Fleet, redis: RedisServer, tmp_path: Path
) -> None:
    """What one commits the other exposes, though its readers ask no store."""
    for url in (redis.url, f"sqlite:///{tmp_path}/feedback.db"):
        one = fleet.special("own", FEEDBACK_STORE=url).start()
        other = fleet.special("own", FEEDBACK_STORE=url).start()
        for number in range(3):
            assert one.feedback(str(number)).status == 200
            until(partial(_has_accepted, other, number + 1), 10)
        fleet.close_special()


def _has_accepted(server: Server, events: int) -> bool:
    return outcomes(server.exposition())["accepted"] == events


def test_commands_see_what_servers_committed(redis: RedisServer) -> None:
    """A command has no committer: it refreshes by itself."""
    from metrics.commands.stores import current

    server: Store = open_store(redis.url, 1000)
    command: Store = open_store(redis.url, 1000)
    server.commit([Entry("a/b/c/d", b"", (), {})], clock.time())
    assert set(current(command).models) == {"a/b/c/d"}
    server.close()
    command.close()
