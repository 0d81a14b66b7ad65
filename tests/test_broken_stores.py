"""What somebody broke in a store: one model is unavailable by it, and all others are served."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from .servers import RedisServer
from .servers_http import OwnServer, attributes, feedback, series

SOUND, BROKEN = "ns/sound/default/model", "ns/broken/default/model"
IN_SQLITE = {
    "a key that is no JSON": "UPDATE counters SET key = '{{' WHERE key = '[\"rows\"]'",
    "a key of other types": "UPDATE counters SET key = '[[1], 2]' WHERE key = '[\"rows\"]'",
    "a constant that is no JSON": "UPDATE constants SET value = '{' WHERE name = 'created'",
    "an array that is none": "INSERT INTO arrays VALUES(pane, 'scores', '[')",
    "events that are no number": "UPDATE counters SET value = 'x' WHERE key = '[\"events\"]'",
}
HOME = "{fdmt:ns/broken}/default/model"
IN_REDIS = {
    "a key that is no JSON": (f"{HOME}:pane:0:0:", "{{", "5"),
    "a key of other types": (f"{HOME}:pane:0:0:", "[[1],2]", "5"),
    "a constant that is no JSON": (f"{HOME}:constants", "created", "{"),
    "events that are no number": (f"{HOME}:pane:0:0:", '["events"]', "x"),
}
GAUGE = (f"{HOME}:gauges", '["last_event"]', "none")


def send(server: OwnServer, id: str, model: str) -> int:
    """Send one event; the status of the answer."""
    return server.event(feedback([[0.1, 0.2, 0.7]], [2]), attributes(id, model)).status


def judge(server: OwnServer) -> None:
    """All but one model is served, and counts on."""
    assert server.get("/health/readiness").status == 200
    for number in range(20):
        assert send(server, f"later-{number}", SOUND) == 200
        send(server, f"broken-{number}", BROKEN)
    for route in ("/metrics", "/v1/models", "/"):
        answer = server.get(route)
        assert answer.status == 200, route
        assert "sound" in answer.text, route
    text = server.exposition()
    events = series(text, "feedback_events_total")
    assert sum(number for labels, number in events.items() if "sound" in str(labels)) == 21
    assert not [labels for labels in events if "broken" in str(labels)]
    assert "is left out: its state cannot be read" in server.log()


def begin(server: OwnServer) -> None:
    """Count an event of each model."""
    assert send(server, "sound", SOUND) == 200
    assert send(server, "broken", BROKEN) == 200


@pytest.mark.parametrize("broken", IN_SQLITE)
def test_a_broken_file_is_served(tmp_path: Path, broken: str) -> None:
    """Whatever a cell holds."""
    with OwnServer(tmp_path) as server:
        begin(server)
        assert server.terminate() == 0
        with sqlite3.connect(server.variables["FEEDBACK_STORE"].removeprefix("sqlite:///")) as file:
            (pane,) = file.execute(
                "SELECT id FROM panes WHERE model = ? AND width = 0 AND segment = ''", (BROKEN,)
            ).fetchone()
            change = IN_SQLITE[broken].replace("(pane", f"({pane}")
            if "WHERE" in change:
                change += f" AND pane = {pane}"
            assert file.execute(change).rowcount == 1
        file.close()
        server.start()
        judge(server)


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """A server."""
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize("broken", IN_REDIS)
def test_a_broken_redis_is_served(tmp_path: Path, redis: RedisServer, broken: str) -> None:
    """Whatever a hash holds; also after commits, and with a look for what was lost."""
    redis.ask("FLUSHALL")
    with OwnServer(tmp_path, FEEDBACK_STORE=redis.url) as server:
        begin(server)
        assert server.terminate() == 0
        key, field, text = IN_REDIS[broken]
        redis.ask("HSET", key, field, text)
        redis.ask("HSET", *GAUGE)
        server.start()
        judge(server)
