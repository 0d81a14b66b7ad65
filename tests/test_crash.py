"""Kills and several processes: every acknowledged event counts exactly once."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from .servers import RedisServer
from .servers_http import until
from .soak import Function, Traffic, crash, judge


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A fresh SQLite file."""
    return f"sqlite:///{tmp_path}/feedback.db"


def _until_acknowledged(traffic: Traffic, more: int) -> None:
    target = traffic.acknowledged + more
    until(lambda: traffic.acknowledged >= target, 120)


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
        _all_exact_under_load(server.url, 3, 400)


def test_two_servers_on_one_file_are_exact_under_load(store: str) -> None:
    """Two processes commit to one file at once, duplicates spread over both."""
    _all_exact_under_load(store, 2, 600)


def _all_exact_under_load(store: str, servers: int, events: int) -> None:
    """Each sees the others' commits, and all tell the same, right numbers."""
    with ExitStack() as stack:
        functions = [stack.enter_context(Function(store)) for _ in range(servers)]
        for function in functions:
            function.start()
        ports = [function.port for function in functions]
        traffic = stack.enter_context(Traffic(ports, duplicates=0.3))
        _until_acknowledged(traffic, events)
        traffic.stop()
        for function in functions:
            until(partial(_exact, function, traffic))


def _exact(function: Function, traffic: Traffic) -> bool:
    return judge(function, traffic, 0).exact


def test_worker_processes_share_one_file_exactly(store: str) -> None:
    """Several workers of one server count exactly, through a kill of them all."""
    verdict = crash(store, cycles=3, seed=12, WEB_CONCURRENCY="3")
    assert verdict.exact, verdict


def test_sigterm_under_load_keeps_every_acknowledged_event(store: str) -> None:
    """SIGTERM finishes running requests, commits and closes, again and again."""
    with Function(store) as function:
        function.start()
        with Traffic([function.port]) as traffic:
            for _ in range(4):
                _until_acknowledged(traffic, 50)
                function.terminate()
                assert function.wait() == 0
                function.start()
            traffic.stop()
        verdict = judge(function, traffic, 4)
        assert verdict.exact, verdict


def test_snapshot_mode_flushes_everything_on_sigterm(store: str) -> None:
    """With an interval longer than the run, SIGTERM is the only flush, and it is complete."""
    with Function(store, FEEDBACK_SNAPSHOT_INTERVAL="3600") as function:
        function.start()
        with Traffic([function.port], duplicates=0.0) as traffic:
            _until_acknowledged(traffic, 100)
            traffic.stop()
        function.terminate()
        assert function.wait() == 0
        function.start()
        verdict = judge(function, traffic, 0)
        assert verdict.exact, verdict
