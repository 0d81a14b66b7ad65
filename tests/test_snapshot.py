"""The snapshot interval, as who is told of events sees it, on every store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from metrics.app import App
from metrics.config import load
from metrics.counters import value
from metrics.store import open_store
from tests.servers import RedisServer
from tests.servers_http import attributes, feedback, until

MODEL = "n/d/p/m"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis for the module."""
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """Each kind of store, empty."""
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("server")
        server.ask("FLUSHALL")
        return server.url
    return {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/feedback.db"}[request.param]


class Heard:
    """A sink that takes note of what it is told."""

    def __init__(self) -> None:
        self.events = 0

    def tell(self, model: str, told: Any, increment: Any) -> None:
        """One event is new."""
        self.events += 1

    def close(self) -> None:
        """Nothing to send."""


def send(app: App, id: str) -> int:
    """The status of one event's answer."""
    headers = {f"ce-{name}": text for name, text in attributes(id, MODEL).items()}
    headers["content-type"] = "application/json"
    return app.post_sync(headers, json.dumps(feedback()).encode()).status


def events(app: App) -> Any:
    """Events and duplicates in the store."""
    state = app.read().models.get(MODEL)
    vector = state.all_time if state else {}
    return value(vector, "events"), value(vector, "duplicates")


@pytest.mark.parametrize("interval", ["0", "0.05", "3600"])
def test_the_sink_hears_of_each_event_once(url: str, interval: str) -> None:
    """Also of one that comes again after its flush, or after a restart."""
    heard = Heard()

    def start() -> App:
        app = App(load({"FEEDBACK_SNAPSHOT_INTERVAL": interval}), open_store(url, 1000))
        app.sink = heard  # type: ignore[assignment]
        return app

    app = start()
    assert send(app, "1") == send(app, "1") == send(app, "2") == 202
    assert heard.events == 2
    if interval == "0.05":
        until(lambda: events(app) == (2, 1))
    assert send(app, "1") == 202
    assert heard.events == 2
    if url != "memory:":
        app.close()
        app = start()
        assert send(app, "2") == 202
        assert heard.events == 2
    app.close()
    assert events(app)[0] == 2


def test_the_signal_to_stop_makes_all_durable(url: str) -> None:
    """At once, before connections are drained and the app is closed."""
    app = App(load({"FEEDBACK_SNAPSHOT_INTERVAL": "3600"}), open_store(url, 1000))
    assert send(app, "1") // 100 == 2
    assert events(app) == (0, 0)
    app.committer.flush()
    until(lambda: events(app) == (1, 0))
    assert send(app, "2") // 100 == 2
    assert events(app) == (2, 0)
    app.close()
