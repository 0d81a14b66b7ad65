"""Caps on labels and models: they hold whatever fails, and what is not counted uses up nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from metrics.app import App
from metrics.config import load
from metrics.counters import OTHER
from metrics.errors import StoreUnavailable
from metrics.labels import MAX_SEGMENT_VALUES
from metrics.replies import Response
from metrics.state import Entry
from metrics.store import Ahead, MemoryStore, Store, open_store, unheeded
from tests.servers_http import BATCH, FEEDBACK, attributes, message

MODEL = "n/d/p/m"
ids = count()


class Failing(MemoryStore):
    """A memory store whose commits fail, or wait, as they are told."""

    def __init__(self) -> None:
        super().__init__(1000)
        self.down = False
        self.gate = Event()
        self.gate.set()

    def commit(self, batch: Sequence[Entry], now: float, ahead: Ahead = unheeded) -> list[bool]:
        """Commit, as told."""
        assert self.gate.wait(60)
        if batch and self.down:
            raise StoreUnavailable("io", "broken")
        return super().commit(batch, now, ahead)


@pytest.fixture
def store() -> Failing:
    """A store that does as it is told."""
    return Failing()


def started(store: Store, **variables: str) -> App:
    """An app on the store."""
    defaults = {"FEEDBACK_MAX_CLASSES": "5", "FEEDBACK_SEGMENTS": "country"}
    return App(load({**defaults, "FEEDBACK_MAX_MODELS": "5", **variables}), store)


@pytest.fixture
def app(store: Failing) -> Iterator[App]:
    """An app with small caps."""
    app = started(store)
    yield app
    store.gate.set()
    app.close()
    assert_nothing_is_held(app)


def assert_nothing_is_held(app: App) -> None:
    """Every reservation was let go of."""
    for known in app.labels._known.values():
        assert (known.reservations, known.reserved) == (0, {})


def headers(model: str = MODEL, **extensions: str) -> dict[str, str]:
    """The headers of a new event."""
    told = {**attributes(str(next(ids)), model), **extensions}
    return {
        "content-type": "application/json",
        **{f"ce-{name}": each for name, each in told.items()},
    }


def data(label: str = "a", **more: Any) -> dict[str, Any]:
    """Feedback of one row of one class."""
    return {
        "response": message([label]),
        "truth": {**message([label]), **more.pop("truth", {})},
        **more,
    }


def send(app: App, body: Any, model: str = MODEL, **extensions: str) -> Response:
    """Post one event."""
    return app.post_sync(headers(model, **extensions), json.dumps(body).encode())


def classes(app: App, model: str = MODEL) -> set[str]:
    """The classes that were counted."""
    vector = app.read().models[model].all_time
    families = ("true_positives", "false_positives", "false_negatives")
    return {labels[0] for family in families for labels in vector.get(family, ())}


def segments(app: App) -> set[str]:
    """The segments that were counted."""
    return {pane.segment for pane in app.read().models[MODEL].panes if pane.segment}


def metric(key: str, kind: str = "COUNTER") -> dict[str, Any]:
    """A user metric in a truth."""
    return {"truth": {"meta": {"metrics": [{"key": key, "type": kind, "value": 1}]}}}


@pytest.mark.parametrize("known", [False, True])
def test_classes_of_events_that_failed_use_up_nothing(
    app: App, store: Failing, known: bool
) -> None:
    """They were answered 503: others have their place, as if they had never come."""
    if known:
        assert send(app, data("a")).status == 200
    store.down = True
    for number in range(20):
        assert send(app, data(f"lost-{number}")).status == 503
    store.down = False
    for label in "abcde":
        assert send(app, data(label)).status == 200
    assert classes(app) == set("abcde")
    assert send(app, data("f")).status == 200
    assert classes(app) == {*"abcde", OTHER}


def test_segments_of_events_that_failed_use_up_nothing(app: App, store: Failing) -> None:
    """As classes."""
    assert send(app, data(), country="de").status == 200
    store.down = True
    for number in range(MAX_SEGMENT_VALUES + 10):
        assert send(app, data(), country=f"lost-{number}").status == 503
    store.down = False
    for number in range(MAX_SEGMENT_VALUES - 1):
        assert send(app, data(), country=str(number)).status == 200
    assert segments(app) == {f"country={each}" for each in ("de", *range(MAX_SEGMENT_VALUES - 1))}
    assert send(app, data(), country="more").status == 200
    assert f"country={OTHER}" in segments(app)


def test_models_of_events_that_failed_use_up_nothing(app: App, store: Failing) -> None:
    """As classes; a model too many is refused, not folded."""
    store.down = True
    for number in range(20):
        assert send(app, data(), f"n/d/p/lost-{number}").status == 503
    store.down = False
    for number in range(5):
        assert send(app, data(), f"n/d/p/{number}").status == 200
    assert send(app, data(), "n/d/p/more").status == 400
    assert app.labels._known.keys() == {f"n/d/p/{number}" for number in range(5)}


@pytest.mark.parametrize("kind", ["COUNTER", "GAUGE", "TIMER"])
def test_user_metrics_of_events_that_failed_use_up_nothing(
    app: App, store: Failing, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As classes; one series too many is refused. Gauges count as the others do."""
    monkeypatch.setattr("metrics.evaluators.user_metrics.MAX_SERIES", 5)
    store.down = True
    for number in range(20):
        assert send(app, data(**metric(f"lost_{number}", kind))).status == 503
    store.down = False
    for number in range(5):
        assert send(app, data(**metric(f"kept_{number}", kind))).status == 200
    assert send(app, data(**metric("more", kind))).status == 400
    assert send(app, data(**metric("kept_0", kind))).status == 200


def test_events_that_are_refused_use_up_nothing(app: App) -> None:
    """Alone, and in a batch whose last event cannot be counted."""
    for number in range(10):
        batch = [
            {**attributes(str(next(ids)), MODEL), "data": data(f"lost-{number}")},
            {**attributes(str(next(ids)), MODEL), "data": {"truth": 1}},
        ]
        answer = app.post_sync({"content-type": BATCH}, json.dumps(batch).encode())
        assert answer.status == 400
    for label in "abcde":
        assert send(app, data(label)).status == 200
    assert classes(app) == set("abcde")


def test_events_past_a_full_queue_use_up_nothing(store: Failing) -> None:
    """As those that failed."""
    app = started(store, FEEDBACK_MAX_QUEUE="1")
    store.gate.clear()
    answers: list[Any] = []
    for number in range(20):
        body = json.dumps(data(f"lost-{number}")).encode()
        answers.append(app.post(headers(), body, lambda finish: None))
    assert {answer.status for answer in answers if answer} == {503}
    store.gate.set()
    app.close()
    assert_nothing_is_held(app)


@pytest.mark.parametrize("interval", ["0", "3600"])
def test_caps_hold_for_what_is_not_committed_yet(store: Failing, interval: str) -> None:
    """However many events wait, and whatever else is refused meanwhile."""
    app = started(store, FEEDBACK_SNAPSHOT_INTERVAL=interval)
    store.gate.clear()
    finishes: list[Any] = []
    for number in range(60):
        bodies: list[Any] = [data(f"class-{number}", reward=1.0)]
        bodies[0]["response"]["meta"] = {"routing": {"router": number}}
        assert (
            app.post(headers(country=str(number)), json.dumps(bodies[0]).encode(), finishes.append)
            is None
        )
        batch = [
            {**attributes(str(next(ids)), MODEL), "data": data(f"other-{number}")},
            {**attributes(str(next(ids)), MODEL), "data": {"truth": 1}},
        ]
        app.post({"content-type": BATCH}, json.dumps(batch).encode(), finishes.append)
    store.gate.set()
    app.close()
    assert len(classes(app)) == 6
    assert OTHER in classes(app)
    assert len(segments(app)) == MAX_SEGMENT_VALUES + 1
    assert app.read().models[MODEL].all_time["events"] == {(): 60}
    assert_nothing_is_held(app)


@pytest.mark.parametrize("url", ["memory:", "sqlite"])
def test_caps_hold_over_processes(url: str, tmp_path: Path) -> None:
    """What another one committed is in use here, too, as soon as it is seen."""
    url = f"sqlite:///{tmp_path}/feedback.db" if url == "sqlite" else url
    one = started(open_store(url, 1000))
    other = started(open_store(url, 1000)) if url != "memory:" else one
    for number in range(10):
        for app in (one, other):
            app.committer.refresh(60)
            assert send(app, data(f"{number} {app is one}")).status == 200
    one.committer.refresh(60)
    assert len(classes(one)) == 6
    for app in {one, other}:
        app.close()
        assert_nothing_is_held(app)


def test_labels_of_a_model_that_was_reset_are_free(app: App, store: Failing) -> None:
    """They are derived from what the store holds now."""
    for label in "abcde":
        assert send(app, data(label)).status == 200
    store.reset(MODEL)
    for label in "vwxyz":
        assert send(app, data(label)).status == 200
    assert classes(app) == set("vwxyz")


def test_a_half_that_waits_holds_its_model_only_until_it_is_committed(store: Failing) -> None:
    """Predictions of models that are not known yet, while the store is down."""
    app = started(store, FEEDBACK_JOIN_TTL="1h", FEEDBACK_CORRECTIONS="on")
    kind = app.settings.prediction_types[0]

    def predict(model: str) -> int:
        more = {"type": kind, "requestid": str(next(ids))}
        return app.post_sync(headers(model, **more), json.dumps(message(["a"])).encode()).status

    store.down = True
    for number in range(20):
        assert predict(f"n/d/p/lost-{number}") == 503
    store.down = False
    assert [predict(f"n/d/p/{number}") for number in range(6)] == [202] * 5 + [400]
    for number in range(20):
        extensions = {"requestid": str(number), "type": FEEDBACK}
        assert send(app, data(f"{number}"), "n/d/p/0", **extensions).status in (200, 202)
    assert len(classes(app, "n/d/p/0")) == 6
    app.close()
    assert_nothing_is_held(app)
