"""One model whose stored state cannot be read takes no other with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from flask import Flask
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from metrics.alerts import Rule, Status, status_of
from metrics.commands.show import Stored
from metrics.counters import NO_LABELS
from metrics.errors import NotFound, Unreadable
from metrics.exact import to_units
from metrics.exposition import FeedbackCollector
from metrics.isolation import LOG_LINES, LOG_SECONDS, Isolation
from metrics.pages import add_routes, front
from metrics.pushgateway import lasting
from metrics.state import Entry, Gauge
from metrics.store import open_store
from metrics.windows import ALL_TIME
from tests.servers_http import OwnServer, attributes, feedback, series
from tests.test_exposition import OPENMETRICS, Fixed

BROKEN = "ns/dep/pred/broken"
SOUND = "seldon/iris/default/classifier"
CAUSES: dict[str, Entry] = {
    "names: 5": Entry(BROKEN, b"", (ALL_TIME,), {"events": {(): 1}}, constants={"names": 5}),
    "labels missing": Entry(
        BROKEN, b"", (ALL_TIME,), {"events": {(): 1}, "true_positives": {(): 1}}
    ),
    "labels too many": Entry(
        BROKEN, b"", (ALL_TIME,), {"events": {(): 1}, "true_positives": {("a", "b"): 1}}
    ),
    "columns: 1e999": Entry(
        BROKEN,
        b"",
        (ALL_TIME,),
        {"events": {(): 1}},
        {("columns", NO_LABELS): Gauge(float("inf"), 0.0)},
    ),
    "created: a list": Entry(
        BROKEN, b"", (ALL_TIME,), {"events": {(): 1}}, constants={"created": []}
    ),
    "outputs that are no numbers": Entry(
        BROKEN,
        b"",
        (ALL_TIME,),
        {"events": {(): 1}, "targets": {("x",): 1}},
        constants={"task": "regression"},
    ),
    "a negative sum of squares": Entry(
        BROKEN,
        b"",
        (ALL_TIME,),
        {"events": {(): 1}, "targets": {("0",): 1}, "squared_error": {("0",): to_units(-1.0)}},
        constants={"task": "regression"},
    ),
    "a counter that is text": Entry(
        BROKEN,
        b"",
        (ALL_TIME,),
        {"events": {(): "many"}, "true_positives": {("a",): 1}},  # type: ignore[dict-item]
    ),
    "an id of one part": Entry(
        "broken", b"", (ALL_TIME,), {"events": {(): 1}, "true_positives": {("a",): 1}}
    ),
    "an integer of 70 bits": Entry(
        BROKEN, b"", (ALL_TIME,), {"events": {(): 1 << 70}, "rows": {(): 1 << 70}}
    ),
}


class Asked:
    """A Flask client of an app: what its paths answer."""

    def __init__(self, fixed: Fixed) -> None:
        flask = Flask("test")
        flask.get("/")(lambda: front(fixed.app, _request()))
        add_routes(flask, fixed.app)
        self._client = flask.test_client()

    def __call__(self, path: str, **headers: str) -> tuple[int, str]:
        """Status and text."""
        answer = self._client.get(path, headers=headers)
        return answer.status_code, answer.get_data(as_text=True)


def _request() -> Any:
    from flask import request

    return request


@pytest.fixture(params=list(CAUSES))
def broken(request: pytest.FixtureRequest) -> Iterator[tuple[Fixed, str]]:
    """An app with a sound model and a broken one, and that one's id."""
    fixed = Fixed()
    fixed.send([2], [[0.1, 0.2, 0.7]])
    entry = CAUSES[request.param]
    fixed.app.store.commit([entry], fixed.now)
    yield fixed, entry.model
    fixed.app.close()


def test_a_broken_model_is_left_out_of_every_scrape(
    broken: tuple[Fixed, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Both formats, what is pushed, and the collector: the sound model is whole, in all."""
    fixed, _ = broken
    alone = Fixed()
    alone.send([2], [[0.1, 0.2, 0.7]])

    def of_sound(text: str) -> list[str]:
        return [line for line in text.splitlines() if 'model_name="classifier"' in line]

    for accept, parse in (("", prometheus), (OPENMETRICS, openmetrics)):
        text = fixed.text(accept)
        assert sorted(of_sound(text)) == sorted(of_sound(alone.text(accept))) != []
        samples = {sample.name: sample.value for family in parse(text) for sample in family.samples}
        if 'model_name="broken"' not in text:  # an integer of 70 bits is fine for Prometheus
            assert samples["feedback_models_unavailable_total"] >= 1
            assert "is left out: its state cannot be read" in caplog.text
    assert of_sound(lasting(fixed.text().encode()).decode()) != []
    families = list(FeedbackCollector(fixed.app, False).collect())
    assert any(family.name == "feedback_score" for family in families)
    alone.app.close()


def test_a_broken_model_is_left_out_of_every_list(broken: tuple[Fixed, str]) -> None:
    """`/v1/models`, `/` and `?format=json` are 200; its own page is 500 and tells nothing."""
    fixed, model = broken
    ask = Asked(fixed)
    for path in ("/v1/models", "/?format=json", "/?format=prometheus", "/metrics", "/v1/metrics"):
        status, text = ask(path)
        assert status == 200, path
        assert "iris" in text, path
    listed = [each["id"] for each in orjson.loads(ask("/v1/models")[1])["models"]]
    assert SOUND in listed
    status, page = ask("/")
    assert status == 200
    assert f'data-model="{SOUND}"' in page
    for path in (f"/?model={SOUND}", f"/?model={SOUND}&format=json", f"/v1/models/{SOUND}"):
        assert ask(path)[0] == 200
    html = f"/?model={model}"
    for path in (html, f"/?model={model}&format=json", f"/v1/models/{model}"):
        status, text = ask(path)
        if model not in listed and (path != html or status != 200):  # HTML shows any integer
            assert status == 500 or (model == "broken" and status == 404), path
            assert "Traceback" not in text
            if status == 500:
                assert "the stored state of this model cannot be read" in text


@pytest.mark.parametrize("time", [1e18, -1e18, float("nan"), float("inf"), -62135600400.0])
def test_a_time_that_no_calendar_has_is_shown_as_none(time: float) -> None:
    """The model of such a last event is listed, and everything else of it is shown."""
    fixed = Fixed()
    fixed.send([2], [[0.1, 0.2, 0.7]])
    gauges = {("last_event", NO_LABELS): Gauge(time, 2e9)}
    fixed.app.store.commit([Entry(SOUND, b"", (ALL_TIME,), {}, gauges)], fixed.now)
    ask = Asked(fixed)
    (listed,) = orjson.loads(ask("/v1/models")[1])["models"]
    assert (listed["events"], listed["last_event"]) == (1, None)
    for path in ("/", f"/?model={SOUND}", f"/v1/models/{SOUND}", "/metrics"):
        assert ask(path)[0] == 200, path
    assert "feedback_models_unavailable_total 0.0" in fixed.text()
    assert [each["last_event"] for each in Stored(fixed.app.store).models()] == [None]
    fixed.app.close()


def test_events_of_a_broken_model_are_counted_and_have_no_reply() -> None:
    """The event is committed before its reply is made: it is not answered as if it were not."""
    fixed = Fixed()
    fixed.send([2], [[0.1, 0.2, 0.7]])
    broken = {"true_positives": {("a", "b"): 1}}
    fixed.app.store.commit([Entry(SOUND, b"", (ALL_TIME,), broken)], fixed.now)
    named = attributes("again", SOUND)
    headers = {f"ce-{name}": text for name, text in named.items()}
    body = orjson.dumps(feedback([[0.1, 0.2, 0.7]], [2]))
    for _ in range(2):
        answer = fixed.app.post_sync(headers, body)
        assert (answer.status, answer.body) == (202, b"")
    counted = fixed.app.read().models[SOUND].all_time
    assert (counted["events"][()], counted["duplicates"][()]) == (2, 1)
    fixed.app.close()


def test_a_batch_has_the_replies_of_its_sound_models() -> None:
    """Of several models of a request only the broken one has no metrics event."""
    fixed = Fixed()
    fixed.send([2], [[0.1, 0.2, 0.7]])
    fixed.app.store.commit([CAUSES["labels too many"]], fixed.now)
    events = [
        {**attributes(str(number), model), "specversion": "1.0", "data": feedback(1, 1)}
        for number, model in enumerate((BROKEN, SOUND))
    ]
    answer = fixed.app.post_sync(
        {"content-type": "application/cloudevents-batch+json"}, orjson.dumps(events)
    )
    assert answer.status == 200
    assert [each["subject"] for each in orjson.loads(answer.body)] == [SOUND]
    fixed.app.close()


def test_a_stored_status_of_a_rule_that_is_none_is_that_of_a_new_rule() -> None:
    """Whatever stands in the constant, it is read as a status or as none."""
    rule = Rule("low", "accuracy", below=0.5)
    sound = Status("firing", 1.0, 0.4, 1).constants(rule)[rule.constant]
    assert status_of({rule.constant: sound}, rule).state == "firing"
    recent: Any
    for recent in (
        [[1]],
        [5],
        [[1, "firing", "x", 1.0, ""]],
        [["1", "firing", 0.1, 1.0, ""]],
        [[1, "firing", 0.1, 1e18, ""]],
    ):
        assert status_of({rule.constant: {**sound, "recent": recent}}, rule) == Status()
    broken: Any
    for broken in (
        5,
        [],
        "firing",
        {},
        {**sound, "state": "odd"},
        {**sound, "since": "x"},
        {**sound, "since": 1e18},
    ):
        assert status_of({rule.constant: broken}, rule) == Status()


def test_lines_about_models_left_out_are_few(caplog: pytest.LogCaptureFixture) -> None:
    """One line a model and LOG_LINES in LOG_SECONDS, however often it is asked; all are counted."""
    omitted: list[int] = []
    now = [0.0]
    isolation = Isolation(lambda: omitted.append(1), lambda: now[0])
    models = [(f"model-{number}\nforged", number) for number in range(100)]
    with caplog.at_level(logging.ERROR, "metrics.isolation"):
        for turn in range(3):
            assert list(isolation.each(models, _failing)) == [("model-0\nforged", 0)]
            assert len(caplog.records) == LOG_LINES, turn
        now[0] += LOG_SECONDS
        assert list(isolation.each(models, _failing)) == [("model-0\nforged", 0)]
    assert len(caplog.records) == 2 * LOG_LINES
    assert len(omitted) == 4 * 99
    assert all("\n" not in record.getMessage() for record in caplog.records)


def _failing(model: str, number: int) -> int:
    return 0 // (number == 0)


def test_what_is_foreseen_passes_as_it_is() -> None:
    """One model that does not exist is not one that cannot be read."""
    isolation = Isolation(lambda: None)

    def missing() -> str:
        raise NotFound("no such model")

    with pytest.raises(NotFound):
        isolation.one("m", missing)
    with pytest.raises(Unreadable):
        isolation.one("m", lambda: str(1 // 0))


def test_a_store_with_broken_values_is_served(tmp_path: Path) -> None:
    """A real server on a file that holds several broken models: the sound one is all there."""
    url = f"sqlite:///{tmp_path}/feedback.db"
    store = open_store(url, 86400)
    for number, cause in enumerate(CAUSES):
        if cause not in ("an integer of 70 bits", "columns: 1e999"):  # no file can hold them
            model = CAUSES[cause].model.replace("broken", f"broken-{number}")
            store.commit([replace(CAUSES[cause], model=model)], 1.8e9)
    store.close()
    with OwnServer(tmp_path, FEEDBACK_STORE=url) as server:
        data = feedback([[0.1, 0.2, 0.7]], [2])
        assert server.event(data, attributes("1", SOUND)).status == 200
        assert server.event(data, attributes("2", "ns/dep/pred/broken-0")).status != 200
        for route in ("/metrics", "/v1/metrics", "/v1/models", "/", "/?format=json"):
            answer = server.get(route)
            assert answer.status == 200, route
            assert "iris" in answer.text, route
        text = server.exposition(accept=OPENMETRICS)
        (omitted,) = series(text, "feedback_models_unavailable_total").values()
        assert omitted > 10
        assert server.get(f"/v1/models/{SOUND}").status == 200
        assert server.get("/v1/models/ns/dep/pred/broken-0").status == 500
        assert "is left out: its state cannot be read" in server.log()
