"""No exception ends a background thread, and none turns a counted event's reply into a 500."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from metrics import background, server
from metrics.app import App
from metrics.config import load
from metrics.events import BATCH
from metrics.models_file import ModelsFile
from metrics.replies import readable
from metrics.store import open_store
from tests.servers_http import OwnServer, attributes, feedback, series, until
from tests.sinks import Receiver

MODEL = "ns/iris/default/classifier"


# --- the mechanism --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests logged limits nothing here."""
    monkeypatch.setattr(background, "_logged", {})
    monkeypatch.setattr(background, "_suppressed", {})
    monkeypatch.setattr(background, "MAX_PAUSE_SECONDS", 0.01)


def test_a_step_that_raises_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    """Each error is counted; one traceback a minute is logged for each type."""
    counted: Counter[str] = Counter()
    turns = iter([ValueError("one"), True, KeyError("two"), ValueError("three"), False])

    def step() -> bool:
        turn = next(turns)
        if isinstance(turn, Exception):
            raise turn
        return bool(turn)

    background.start("sink", step, lambda part: counted.update([part])).join(10)
    assert list(turns) == []
    assert counted == {"sink": 3}
    logged = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info[1]) for record in logged if record.exc_info] == ["one", "'two'"]


def test_suppressed_tracebacks_are_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next traceback says how many there were since the last."""

    def fail(text: str) -> None:
        try:
            raise ValueError(text)
        except ValueError as error:
            background.report("reply", error)

    for _ in range(5):
        fail("again")
    try:
        raise ValueError("at another place")
    except ValueError as error:
        background.report("reply", error)
    monkeypatch.setattr(background, "LOG_SECONDS", 0.0)
    fail("later")
    assert len(caplog.records) == 3
    assert "4 more since the last" in caplog.records[2].getMessage()


# --- user metrics with and without tags -----------------------------------------------------------


def with_metrics(*metrics: dict[str, Any]) -> dict[str, Any]:
    """A feedback with user metrics."""
    body = feedback()
    body["truth"]["meta"] = {"metrics": list(metrics)}
    return body


def hits(value: float, **tags: str) -> dict[str, Any]:
    """A counter of the user's."""
    return {"key": "hits", "type": "COUNTER", "value": value, **({"tags": tags} if tags else {})}


BARE_FIRST = with_metrics(hits(1), hits(2, colour="red"), hits(4, colour="red", size="l"))
BARE_LAST = with_metrics(hits(4, colour="red", size="l"), hits(2, colour="red"), hits(1))
SHOWN = {"hits": {"": 1.0, "colour": {"red": {"": 2.0, "size": {"l": 4.0}}}}}


def test_a_reply_shows_series_with_and_without_tags(tmp_path: Path) -> None:
    """Whatever comes first, nothing is left out; the number without more labels stands under ''."""
    with OwnServer(tmp_path) as running:
        for number, body in enumerate((BARE_FIRST, BARE_LAST)):
            answer = running.event(body, attributes(str(number), MODEL))
            assert answer.status == 200, answer
            assert answer.json["increment"]["user_counters"] == SHOWN
        again = running.event(BARE_LAST, attributes("1", MODEL))
        assert (again.status, again.json["increment"]["user_counters"]) == (200, SHOWN)
        events = [
            {**attributes(f"b{number}", MODEL), "data": body}
            for number, body in enumerate((BARE_FIRST, BARE_LAST))
        ]
        (of_batch,) = running.batch(*events).json
        assert of_batch["data"]["increment"]["user_counters"]["hits"][""] == 2.0
        for path in ("/", f"/?model={MODEL}", f"/?model={MODEL}&format=json", "/metrics"):
            assert running.get(path).status == 200
        shown = series(running.exposition(), "hits_total{")
        assert sorted(shown.values()) == [4.0, 8.0, 16.0]
        timers = with_metrics(
            {"key": "wait", "type": "TIMER", "value": 1},
            {"key": "wait", "type": "TIMER", "value": 1, "tags": {"at": "db"}},
        )
        increment = running.event(timers, attributes("timers", MODEL)).json["increment"]
        assert increment["user_timers_bucket"] == {
            "wait": {"0.005": {"": 1, "at": {"db": 1}}},
        }


def test_a_sink_gets_series_with_and_without_tags(tmp_path: Path) -> None:
    """And what comes after them."""
    with Receiver() as receiver, OwnServer(tmp_path, K_SINK=receiver.url) as running:
        assert running.event(BARE_FIRST, attributes("1", MODEL)).status == 202
        until(lambda: receiver.bodies)
        assert receiver.bodies[0]["increment"]["user_counters"] == SHOWN
        assert running.event(BARE_LAST, attributes("2", MODEL)).status == 202
        until(lambda: len(receiver.bodies) > 1)


def test_readable_keeps_every_number() -> None:
    """Labels of any depth, in any order: as many numbers are shown as there are."""
    cells = {
        ("a",): 1,
        ("a", "b", "c"): 2,
        (): 4,
        ("a", "b", "c", "d", "e"): 8,
        ("a", "f", "g"): 16,
    }
    shown = {"": 4, "a": {"": 1, "b": {"c": {"": 2, "d": {"e": 8}}}, "f": {"g": 16}}}
    for order in (list(cells), list(reversed(cells))):
        assert readable({"family": {labels: cells[labels] for labels in order}}) == {
            "family": shown
        }


# --- replies --------------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path) -> Any:
    """An app on a file."""
    settings = load({"FEEDBACK_STORE": f"sqlite:///{tmp_path}/feedback.db"})
    app = App(settings, open_store(settings.store, settings.dedup_ttl))
    yield app
    app.close()


@pytest.mark.parametrize("batch", [False, True])
def test_a_counted_event_is_never_answered_500(
    app: App, batch: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where its reply cannot be made it is an empty 202, at each delivery, and counted as a bug."""

    def fail(*_: Any) -> None:
        raise RecursionError("a bug")

    monkeypatch.setattr(app.replies, "batch" if batch else "reply", fail)
    named = attributes("1", MODEL)
    headers = {f"ce-{name}": text for name, text in named.items()}
    headers["content-type"] = "application/json"
    body = json.dumps(feedback()).encode()
    if batch:
        headers, body = (
            {"content-type": BATCH},
            json.dumps([{**named, "data": feedback()}]).encode(),
        )
    for _ in range(3):
        answer = app.post_sync(headers, body)
        assert (answer.status, answer.body) == (202, b"")
    assert app.read().models[MODEL].all_time["events"] == {(): 1}
    assert app.read().models[MODEL].all_time["duplicates"] == {(): 2}
    assert app.stats.internal_errors()["reply"] == 3
    assert sum(bool(record.exc_info) for record in caplog.records) == 1


def test_prepared_replies_that_fail_harm_nobody(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made ahead of the commit, for the answer to be ready: an error there is the answer's."""

    def fail(*_: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(app.replies, "reply", fail)
    app.committer.ahead = app.prepare
    assert (
        app.post_sync(
            {f"ce-{name}": text for name, text in attributes("1", MODEL).items()}
            | {"content-type": "application/json"},
            b'{"response":{"data":{"ndarray":[1]}},"truth":{"data":{"ndarray":[1]}}}',
        ).status
        == 202
    )
    assert app.stats.internal_errors()["reply"] >= 1
    assert app.stats.errors()["bug"] == 0


def test_the_exposition_has_internal_errors(tmp_path: Path) -> None:
    """At 0 from the start."""
    with OwnServer(tmp_path) as running:
        found = series(running.exposition(), "feedback_internal_errors_total{")
    assert 'feedback_internal_errors_total{part="sink"}' in found
    assert set(found.values()) == {0.0}


def test_the_sweep_of_connections_goes_on(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in it ends neither deadlines nor the server."""
    monkeypatch.setattr(server, "SWEEP_SECONDS", 0.01)
    service = server.Service(app)
    calls: list[float] = []

    def sweep(now: float) -> None:
        calls.append(now)
        raise KeyError("a bug")

    monkeypatch.setattr(service._connections, "sweep", sweep)

    async def run() -> None:
        service._loop = asyncio.get_running_loop()
        sweeping = asyncio.ensure_future(service._sweep(asyncio.Event()))
        while len(calls) < 3 and not sweeping.done():
            await asyncio.sleep(0.01)
        assert not sweeping.done()
        sweeping.cancel()

    asyncio.run(run())
    assert app.stats.internal_errors()["other"] >= 3


# --- the models file ------------------------------------------------------------------------------


def test_a_models_file_that_breaks_its_parser_keeps_the_version_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A reload happens while an event is evaluated: whatever it raises is not the event's."""
    monkeypatch.setattr("metrics.models_file.RELOAD_SECONDS", -1.0)
    path = tmp_path / "models.yaml"
    path.write_text('models: {"*": {threshold: 0.25}}')
    models = ModelsFile(str(path), load({}).model_settings())
    assert models.of(MODEL).threshold == 0.25
    path.write_text("[" * 100_000)
    assert models.of(MODEL).threshold == 0.25
    assert any(record.levelno == logging.ERROR for record in caplog.records)
    path.write_text('models: {"*": {threshold: 0.75}}')
    assert models.of(MODEL).threshold == 0.75
