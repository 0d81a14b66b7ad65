"""Kills, roll-outs and several processes: every acknowledged event counts exactly once."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from .servers import RedisServer
from .soak import Function, Traffic, crash, judge


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A fresh SQLite file."""
    return f"sqlite:///{tmp_path}/feedback.db"


def _until_acknowledged(traffic: Traffic, more: int) -> None:
    target = traffic.acknowledged + more
    deadline = time.monotonic() + 60
    while traffic.acknowledged < target and time.monotonic() < deadline:
        time.sleep(0.01)
    assert traffic.acknowledged >= target


def _all_exact(functions: list[Function], traffic: Traffic) -> None:
    """Each sees the others' commits within a second, and all tell the same, right numbers."""
    deadline = time.monotonic() + 5
    verdicts = [judge(function, traffic, 0) for function in functions]
    while not all(verdict.exact for verdict in verdicts) and time.monotonic() < deadline:
        time.sleep(0.1)
        verdicts = [judge(function, traffic, 0) for function in functions]
    assert all(verdict.exact for verdict in verdicts), verdicts


def test_sigkill_at_random_moments_loses_and_doubles_nothing(store: str) -> None:
    """A short run of the soak: `make soak` runs thousands of cycles."""
    verdict = crash(store, cycles=10, seed=11)
    assert verdict.exact, verdict
    assert verdict.events > 50
    assert verdict.repeated > 0


def test_sigkill_of_the_function_on_redis_loses_and_doubles_nothing() -> None:
    """The same with the state in Redis."""
    with RedisServer(appendonly="yes", appendfsync="everysec") as server:
        verdict = crash(server.url, cycles=6, seed=21)
    assert verdict.exact, verdict


def test_sigkill_of_redis_that_fsyncs_always_loses_and_doubles_nothing() -> None:
    """Redis itself is killed: what it acknowledged was in its log."""
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        verdict = crash(server.url, cycles=6, seed=22, redis=server)
    assert verdict.exact, verdict


def test_three_servers_on_one_redis_are_exact_under_load() -> None:
    """Three replicas share one Redis, duplicates spread over all of them."""
    with RedisServer() as server:
        functions = [Function(server.url) for _ in range(3)]
        traffic = Traffic([function.port for function in functions], duplicates=0.3)
        try:
            for function in functions:
                function.start()
            traffic.start()
            _until_acknowledged(traffic, 400)
            traffic.stop()
            _all_exact(functions, traffic)
        finally:
            for function in functions:
                function.signal(signal.SIGKILL)


def test_two_servers_on_one_file_are_exact_under_load(store: str) -> None:
    """Two processes commit to one file at once, duplicates spread over both."""
    first, second = Function(store), Function(store)
    traffic = Traffic([first.port, second.port], duplicates=0.3)
    try:
        first.start()
        second.start()
        traffic.start()
        _until_acknowledged(traffic, 600)
        traffic.stop()
        _all_exact([first, second], traffic)
    finally:
        first.signal(signal.SIGKILL)
        second.signal(signal.SIGKILL)


def test_worker_processes_share_one_file_exactly(store: str) -> None:
    """Several workers of one server count exactly, through a kill of them all."""
    verdict = crash(store, cycles=3, seed=12, WEB_CONCURRENCY="3")
    assert verdict.exact, verdict


def test_an_old_pod_that_drains_beside_its_successor_undoes_nothing(store: str) -> None:
    """A roll-out: old and new serve together, then the old one gets SIGTERM under load."""
    old, new = Function(store), Function(store)
    traffic = Traffic([old.port, new.port])
    try:
        old.start()
        old.get("/health/readiness")
        new.start()
        new.get("/health/readiness")
        traffic.start()
        _until_acknowledged(traffic, 200)
        traffic.ports.remove(old.port)
        _until_acknowledged(traffic, 100)  # the successor is ahead of what the old one knows
        old.signal(signal.SIGTERM)
        assert old.wait() == 0
        _until_acknowledged(traffic, 100)
        traffic.stop()
        new.signal(signal.SIGTERM)
        assert new.wait() == 0
        new.start()
        verdict = judge(new, traffic, 0)
        assert verdict.exact, verdict
    finally:
        new.signal(signal.SIGKILL)
        if old.running():
            old.signal(signal.SIGKILL)


def test_sigterm_under_load_keeps_every_acknowledged_event(store: str) -> None:
    """SIGTERM finishes running requests, commits and closes, again and again."""
    function = Function(store)
    traffic = Traffic([function.port])
    function.start()
    traffic.start()
    try:
        for _ in range(4):
            _until_acknowledged(traffic, 50)
            function.signal(signal.SIGTERM)
            assert function.wait() == 0
            function.start()
        traffic.stop()
        verdict = judge(function, traffic, 4)
        assert verdict.exact, verdict
    finally:
        function.signal(signal.SIGKILL)


def test_snapshot_mode_flushes_everything_on_sigterm(store: str) -> None:
    """With an interval longer than the run, SIGTERM is the only flush, and it is complete."""
    function = Function(store, FEEDBACK_SNAPSHOT_INTERVAL="3600")
    traffic = Traffic([function.port], duplicates=0.0)
    function.start()
    traffic.start()
    try:
        _until_acknowledged(traffic, 100)
        traffic.stop()
        function.signal(signal.SIGTERM)
        assert function.wait() == 0
        function.start()
        verdict = judge(function, traffic, 0)
        assert verdict.exact, verdict
    finally:
        function.signal(signal.SIGKILL)
