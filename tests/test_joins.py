"""Truth that comes late: every interleaving scores as if all had come together."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from math import isclose
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.app import App
from metrics.config import load
from metrics.counters import net, value
from metrics.events import format_time
from metrics.exact import real
from metrics.exposition import render
from metrics.joins import NO_TRUTH, SCORED, Case, Half, decode, prediction_of
from metrics.payload import parse
from metrics.replies import Response
from metrics.scores import model_view
from metrics.store import open_store
from metrics.windows import Pane
from tests.servers import RedisServer, lint_metrics
from tests.servers_http import OwnServer, series, until

NOW = 1_700_000_000.0
PREDICTION = "io.seldon.serving.inference.response"
KSERVE = "org.kubeflow.serving.inference.response"
FEEDBACK = "io.seldon.serving.feedback"
MODEL = "ns/iris/default/classifier"
IDENTITY = {
    "ce-namespace": "ns",
    "ce-inferenceservicename": "iris",
    "ce-endpoint": "default",
    "ce-modelid": "classifier",
}


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis for the module."""
    with RedisServer() as server:
        yield server


@dataclass
class Function:
    """Replicas of the function on one store, and a clock."""

    url: str
    variables: dict[str, str]
    now: float = NOW
    apps: list[App] = field(default_factory=list)

    def start(self, replicas: int = 1, **variables: str) -> App:
        """Start replicas; returns the first."""
        for _ in range(replicas):
            settings = load({"FEEDBACK_JOIN_TTL": "1h", **self.variables, **variables})
            store = open_store(self.url, settings.dedup_ttl)
            self.apps.append(App(settings, store, now=lambda: self.now))
        return self.apps[0]

    def stop(self) -> None:
        """Stop all replicas."""
        while self.apps:
            self.apps.pop().close()

    def restart(self) -> App:
        """Stop them, and start one with the same settings; memory would not survive it."""
        if self.url == "memory:":
            return self.apps[0]
        settings = self.apps[0].settings
        self.stop()
        store = open_store(self.url, settings.dedup_ttl)
        self.apps.append(App(settings, store, now=lambda: self.now))
        return self.apps[0]

    def view(self) -> Any:
        """The model's view."""
        return view(self.apps[0])


@pytest.fixture(params=["memory", "sqlite", "redis"])
def function(
    request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Function]:
    """A function on each kind of store; readers look at once."""
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/feedback.db"}.get(request.param)
    if url is None:
        server = request.getfixturevalue("server")
        server.ask("FLUSHALL")
        url = server.url
    function = Function(url, {})
    yield function
    function.stop()


ids = count()


def send(app: App, kind: str, data: Any, id: str = "", **extensions: str) -> Response:
    """POST one event in binary mode; its id is new where none is given."""
    headers = {
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": id or f"event-{next(ids)}",
        "ce-source": "/test",
        "ce-type": kind,
        **IDENTITY,
        **{f"ce-{name}": text for name, text in extensions.items()},
    }
    return app.post_sync(headers, json.dumps(data).encode())


def message(values: Any, **meta: Any) -> Any:
    """A Seldon message."""
    return {"data": {"ndarray": values}, **({"meta": meta} if meta else {})}


def predict(app: App, request: str, values: Any, **more: Any) -> Response:
    """Send a prediction as Seldon's logger does."""
    return send(app, PREDICTION, message(values), requestid=request, **more)


def tell(app: App, request: str, values: Any, **more: Any) -> Response:
    """Send a truth alone."""
    return send(app, FEEDBACK, {"truth": message(values)}, requestid=request, **more)


def read(app: App) -> Any:
    """What an app reads once it took in what the others committed."""
    app.committer.refresh(60)
    return app.read()


def view(app: App, window: str = "all") -> Any:
    """The model's view in a window."""
    state = read(app).models[MODEL]
    settings = app.models.of(MODEL)
    kept = {each.name: each for each in settings.windows}
    return model_view(MODEL, state, settings, app.now(), kept.get(window), segments=True)


def fates(app: App) -> tuple[Any, Any]:
    """What became of predictions and truths, the fates that are not 0."""
    found = read(app).models[MODEL].all_time
    return tuple(
        {fate: number for (fate,), number in found.get(family, {}).items()}
        for family in ("predictions", "truths")
    )


def same_scores(one: Any, other: Any) -> bool:
    """Whether two views tell the same of rows and scores: counts exactly, floats to 1e-9."""
    exact = ("events", "rows", "confusion_matrix")
    scores, others = one["scores"], other["scores"]
    return (
        all(one.get(name) == other.get(name) for name in exact)
        and scores.keys() == others.keys()
        and all(isclose(scores[name], others[name], abs_tol=1e-9) for name in scores)
    )


ROWS = [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]


# --- two halves ---------------------------------------------------------------------------------


def test_a_truth_meets_its_prediction(function: Function) -> None:
    """The prediction waits; its truth scores it, and is answered with the metrics."""
    app = function.start()
    waiting = predict(app, "r-1", ROWS)
    assert (waiting.status, waiting.body) == (202, b"")
    assert view(app)["rows"] == 0
    assert view(app)["join"]["waiting"] == 1
    answer = tell(app, "r-1", [2, 1])
    assert answer.status == 200
    data = json.loads(answer.body)
    assert (data["rows"], data["events"], data["scores"]["accuracy"]) == (2, 1, 0.5)
    assert data["join"]["coverage"] == 1
    assert fates(app) == ({"arrived": 1, "joined": 1}, {})
    assert app.store.held() == 0


def test_a_prediction_meets_its_truth(function: Function) -> None:
    """The other way round it is the same."""
    app = function.start()
    assert tell(app, "r-1", [2, 1]).status == 202
    function.now += 100
    answer = predict(app, "r-1", ROWS)
    assert answer.status == 200
    assert json.loads(answer.body)["scores"]["accuracy"] == 0.5
    assert fates(app) == ({"arrived": 1, "joined": 1}, {"arrived": 1, "joined": 1})
    assert app.store.held() == 0


@pytest.mark.parametrize("first", ["prediction", "truth"])
def test_both_in_one_batch(function: Function, first: str) -> None:
    """A batch of events may bring both halves, in any order."""
    app = function.start()

    def event(kind: str, data: Any) -> Any:
        extensions = {name.removeprefix("ce-"): text for name, text in IDENTITY.items()}
        return {
            "specversion": "1.0",
            "id": f"batched-{next(ids)}",
            "source": "/test",
            "type": kind,
            "requestid": "r",
            **extensions,
            "data": data,
        }

    events = [event(PREDICTION, message(ROWS)), event(FEEDBACK, {"truth": message([2, 1])})]
    if first == "truth":
        events.reverse()
    headers = {"content-type": "application/cloudevents-batch+json"}
    for _ in range(2):  # redelivered, it is two duplicates
        assert app.post_sync(headers, json.dumps(events).encode()).status == 200
    assert view(app)["rows"] == 2
    assert view(app)["join"]["joined"] == 1


def test_redelivered_halves_count_once(function: Function) -> None:
    """Whichever half comes again, before the other or after it."""
    app = function.start(replicas=1)
    for _ in range(2):
        assert predict(app, "r", ROWS, id="p").status == 202
    first = tell(app, "r", [2, 1], id="t")
    app = function.restart()
    again = tell(app, "r", [2, 1], id="t")
    assert (first.status, again.status) == (200, 200)
    assert dict(first.all_headers())["ce-id"] == dict(again.all_headers())["ce-id"]
    assert predict(app, "r", ROWS, id="p").status in (200, 202)
    assert view(app)["rows"] == 2
    assert fates(app) == ({"arrived": 1, "joined": 1}, {})
    assert view(app)["join"]["waiting"] == 0


def test_a_truth_names_only_its_deployment(function: Function) -> None:
    """Scored under the model that predicted, although the truth does not know it."""
    app = function.start()
    predict(app, "r", ROWS)
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "t",
        "ce-source": "/test",
        "ce-type": FEEDBACK,
        "ce-namespace": "ns",
        "ce-inferenceservicename": "iris",
        "ce-requestid": "r",
    }
    for _ in range(2):
        body = json.dumps({"truth": message([2, 1])}).encode()
        assert app.post_sync(headers, body).status in (200, 202)
    assert [model for model, state in read(app).models.items() if "rows" in state.all_time] == [
        MODEL
    ]
    assert view(app)["rows"] == 2


def test_kserves_events_and_puids(function: Function) -> None:
    """A request is named by an attribute, by a puid, or for KServe by the event's own id."""
    app = function.start()
    v2 = {"id": "two", "outputs": [{"name": "predict", "datatype": "INT64", "data": [2, 1]}]}
    assert send(app, KSERVE, {"predictions": [2, 1]}, id="one").status == 202
    assert send(app, KSERVE, v2).status == 202
    assert send(app, PREDICTION, message([2, 1], puid="three")).status == 202
    for request, data in (
        ("one", {"truth": message([2, 0], puid="one")}),
        ("two", {"truth": message([2, 0]), "meta": {"puid": "two"}}),
    ):
        assert send(app, FEEDBACK, data).status == 200, request
    assert tell(app, "three", [2, 0]).status == 200
    assert view(app)["confusion_matrix"]["matrix"] == [[0, 3, 0], [0, 0, 0], [0, 0, 3]] or (
        view(app)["scores"]["accuracy"] == 0.5
    )
    assert view(app)["rows"] == 6


def test_everything_that_feedback_says_is_joined(function: Function) -> None:
    """Reward, route, tags, names, segments and user metrics, whichever half has them."""
    app = function.start(FEEDBACK_SEGMENTS="country,device")
    named = {"data": {"names": ["a", "b", "c"], "ndarray": ROWS}}
    prediction = {**named, "meta": {"routing": {"router": 1}, "tags": {"country": "ch", "x": "y"}}}
    metrics = [{"key": "clicks", "type": "COUNTER", "value": 2}]
    told = {"truth": message(["c", "b"], metrics=metrics), "reward": 1.5}
    send(app, PREDICTION, prediction, requestid="r")
    assert send(app, FEEDBACK, told, requestid="r", device="phone").status == 200
    found = view(app)
    whole = {"response": prediction, **told}
    other = App(load({"FEEDBACK_SEGMENTS": "country,device"}), open_store("memory:", 10))
    other.now = app.now
    assert send(other, FEEDBACK, whole, device="phone").status == 200
    expected = view(other)
    other.close()
    found.pop("join")
    assert found == expected
    assert {each["value"] for each in found["segments"]} == {"ch", "phone"}


def test_it_counts_in_the_window_of_the_truth_or_of_the_prediction(function: Function) -> None:
    """As FEEDBACK_JOIN_TIME says; the delay is told either way."""
    app = function.start(FEEDBACK_WINDOWS="10m,1d")
    early = format_time(int(NOW - 3000))
    predict(app, "r", ROWS, time=early)
    tell(app, "r", [2, 1], time=format_time(int(NOW)))
    assert (view(app, "10m")["rows"], view(app, "1d")["rows"]) == (2, 2)
    assert view(app)["join"]["mean_delay_seconds"] == 3000
    assert read(app).models[MODEL].all_time["truth_delay_bucket"] == {("3600",): 1}
    function.stop()
    if function.url == "memory:":
        return
    app = function.start(FEEDBACK_WINDOWS="10m,1d", FEEDBACK_JOIN_TIME="prediction")
    predict(app, "s", ROWS, time=early)
    tell(app, "s", [2, 1], time=format_time(int(NOW)))
    assert (view(app, "10m")["rows"], view(app, "1d")["rows"]) == (2, 4)


# --- in vain --------------------------------------------------------------------------------------


def lapse(function: Function, app: App) -> None:
    """Have housekeeping look at what waits, now."""
    while True:
        entries = app._lapsed(function.now)
        if not entries:
            return
        app.store.commit(entries, function.now)


def test_halves_that_waited_in_vain_are_counted(function: Function) -> None:
    """After the time to live nothing waits, and nothing is silently gone."""
    app = function.start(FEEDBACK_WINDOWS="10s")
    for number in range(30):
        predict(app, f"p-{number}", ROWS)
        tell(app, f"t-{number}", [1, 2])
    function.now += 3000
    predict(app, "young", ROWS)
    tell(app, "p-3", [2, 2])
    lapse(function, app)
    assert fates(app)[0] == {"arrived": 31, "joined": 1}
    function.now += 600
    lapse(function, app)
    predictions, truths = fates(app)
    assert predictions == {"arrived": 31, "joined": 1, "unjoined": 29}
    assert truths == {"arrived": 30, "unjoined": 30}
    assert view(app)["join"]["waiting"] == 1
    assert tell(app, "young", [2, 2]).status == 200
    assert app.store.held() == 0
    assert tell(app, "p-4", [2, 2]).status == 202  # too late: it waits, for nobody


def test_what_waits_is_bounded_in_size(function: Function) -> None:
    """The oldest are dropped, and counted."""
    app = function.start(FEEDBACK_JOIN_MAX_BYTES="4KiB")
    for number in range(100):
        predict(app, f"p-{number}", ROWS)
        lapse(function, app)
        assert app.store.held() <= 4096
        function.now += 1
    dropped = view(app)["join"]["dropped"]
    waiting = view(app)["join"]["waiting"]
    assert dropped + waiting == 100
    assert 10 < waiting < 60
    assert tell(app, "p-0", [2, 2]).status == 202
    assert tell(app, "p-99", [2, 2]).status == 200
    assert predict(app, "huge", [[0.5] * 2000]).status == 400


def test_the_housekeeping_lapses_by_itself(function: Function) -> None:
    """The committer's thread does what is due, without any event."""
    app = function.start()
    predict(app, "r", ROWS)
    function.now += 4000
    until(lambda: fates(app)[0].get("unjoined") == 1)


# --- bad input ------------------------------------------------------------------------------------


def test_what_cannot_be_joined_is_refused(function: Function) -> None:
    """One line that names the field; nothing half stored."""
    app = function.start()
    predict(app, "r", ROWS)
    for answer, named in (
        (send(app, PREDICTION, message(ROWS)), "requestid"),
        (predict(app, "x" * 10_000, ROWS), "ce-requestid"),
        (predict(app, "x" * 300, ROWS), "requestid"),
        (send(app, PREDICTION, {"data": {"ndarray": [["a", 1]]}}, requestid="q"), "data.data"),
        (send(app, PREDICTION, [1, 2], requestid="q"), "data"),
        (send(app, FEEDBACK, {"truth": message([1])}), "requestid"),
        (tell(app, "r", [1, 2, 0]), "response"),
        (tell(app, "r", [[1, 2, 3], [1, 2]]), "truth"),
    ):
        assert answer.status == 400
        problem = json.loads(answer.body)
        assert problem["detail"].startswith(named), problem
        assert "\n" not in problem["detail"]
    assert fates(app) == ({"arrived": 1}, {})
    assert tell(app, "r", [1, 2]).status == 200
    assert view(app)["rows"] == 2


def test_without_joins_the_reason_names_the_setting() -> None:
    """A truth alone is refused, and predictions are no events of ours."""
    app = App(load({}), open_store("memory:", 10))
    answer = tell(app, "r", [1])
    assert answer.status == 400
    assert "FEEDBACK_JOIN_TTL" in json.loads(answer.body)["detail"]
    assert predict(app, "r", ROWS).status == 202
    assert MODEL not in read(app).models or "predictions" not in read(app).models[MODEL].all_time
    app.close()


# --- corrections ----------------------------------------------------------------------------------


def test_a_correction_replaces_the_truth(function: Function) -> None:
    """The old contribution is taken back, in the windows too, and no counter falls."""
    app = function.start(FEEDBACK_CORRECTIONS="on", FEEDBACK_WINDOWS="10m,1d")
    predict(app, "r", ROWS)
    tell(app, "r", [0, 0])
    predict(app, "s", ROWS)
    tell(app, "s", [2, 0])
    before = read(app).models[MODEL].all_time
    function.now += 3000
    answer = tell(app, "r", [2, 1], id="correction")
    assert answer.status == 200
    increment = json.loads(answer.body)["increment"]
    assert increment["corrected"] == 1
    assert "-log_loss" in increment  # histograms are left out, taken back or not
    assert not {"scores", "-scores", "-calibration_rows"} & increment.keys()
    assert tell(app, "r", [2, 1], id="correction").status == 200  # redelivered
    for name, rows in (("all", 4), ("10m", 0), ("1d", 4)):
        assert view(app, name)["rows"] == rows
        assert view(app, name)["events"] == rows / 2
    found = view(app, "1d")
    assert found["scores"]["accuracy"] == view(app)["scores"]["accuracy"] == 0.75
    assert view(app)["join"]["corrected"] == 1
    after = read(app).models[MODEL].all_time
    assert all(
        number <= after[family][labels]
        for family, cells in before.items()
        for labels, number in cells.items()
    )


def exposed(app: App) -> dict[str, float]:
    """Every series as Prometheus reads it."""
    return series(render(app, "")[0].decode())


def test_no_counter_falls(function: Function) -> None:
    """By a correction: what it takes back is counted apart, and the difference is the score's."""
    app = function.start(FEEDBACK_CORRECTIONS="on")
    predict(app, "r", ROWS)
    predict(app, "s", ROWS)
    tell(app, "t", [1, 1])
    function.now += 20
    tell(app, "r", [0, 1])
    tell(app, "s", [2, 0])
    before = exposed(app)
    tell(app, "r", [2, 1])
    tell(app, "s", [2, 0])
    after = exposed(app)
    names = ("_total", "_bucket", "_sum", "_count")
    counters = [name for name in before if name.partition("{")[0].endswith(names)]
    assert len(counters) > 40
    assert [name for name in counters if after[name] < before[name]] == []

    def total(name: str, *having: str) -> float:
        return sum(series_of(after, f"feedback_{name}{{", *having).values())

    assert total("corrected_events_total") == 2
    assert (total("rows_total"), total("superseded_rows_total")) == (8, 4)
    hits = total("true_positives_total") - total("superseded_true_positives_total")
    rows = total("rows_total") - total("superseded_rows_total")
    assert hits / rows == total("score", 'score="accuracy"', 'window="all"') == 0.75
    assert total("halves_arrived_total", 'half="prediction"') == 2
    assert total("halves_joined_total", 'half="prediction"') == 2
    assert total("halves_waiting", 'half="truth"') == 1
    assert total("truth_delay_seconds_bucket", 'le="10.0"') == 0
    assert total("truth_delay_seconds_bucket", 'le="60.0"') == 2
    assert total("truth_delay_seconds_sum") == 40


def series_of(found: dict[str, float], *having: str) -> dict[str, float]:
    """Those series that contain all of `having`."""
    return {name: number for name, number in found.items() if all(text in name for text in having)}


def test_promtool_takes_the_families_of_joins(function: Function) -> None:
    """Its lint finds nothing but what it finds in the ancestor's names."""
    app = function.start(FEEDBACK_CORRECTIONS="on")
    predict(app, "r", ROWS)
    tell(app, "r", [0, 1])
    tell(app, "r", [2, 1])
    lint = lint_metrics(render(app, "")[0].decode())
    assert [line for line in lint if "seldon_metric" not in line] == []


def test_whole_feedback_is_corrected_too(function: Function) -> None:
    """By a truth alone, or by whole feedback with another prediction; remembered for the TTL."""
    app = function.start(FEEDBACK_CORRECTIONS="on")
    whole = {"truth": message([0, 0]), "response": message(ROWS)}
    send(app, FEEDBACK, whole, requestid="r")
    assert view(app)["scores"]["accuracy"] == 0.5
    tell(app, "r", [2, 0])
    assert (view(app)["rows"], view(app)["scores"]["accuracy"]) == (2, 1.0)
    app = function.restart()
    other = {"truth": message([2, 0]), "response": message([[0.9, 0.1, 0.0]] * 2)}
    send(app, FEEDBACK, other, requestid="r")
    assert (view(app)["rows"], view(app)["scores"]["accuracy"]) == (2, 0.5)
    function.now += 4000
    lapse(function, app)
    assert app.store.held() == 0
    assert tell(app, "r", [0, 0]).status == 202
    assert view(app)["scores"]["accuracy"] == 0.5


@pytest.mark.parametrize("whole", [False, True])
def test_a_correction_leaves_what_it_does_not_say(function: Function, whole: bool) -> None:
    """Reward, route, tags, segment and metrics of the first truth; it replaces what it does say."""
    app = function.start(FEEDBACK_CORRECTIONS="on", FEEDBACK_SEGMENTS="country,tier")
    predict(app, "r", ROWS)
    meta = {
        "tags": {"tier": "gold"},
        "metrics": [{"key": "cost", "type": "COUNTER", "value": 3}],
    }
    first = {"truth": message([0, 0], **meta), "reward": 0.5}
    send(app, FEEDBACK, first, requestid="r", country="de")
    assert view(app)["reward"]["mean"] == 0.5

    def correct(truth: Any, **more: Any) -> None:
        response = {"response": message(ROWS)} if whole else {}
        extensions = {name: more.pop(name) for name in ("country",) if name in more}
        send(app, FEEDBACK, {**response, "truth": truth, **more}, requestid="r", **extensions)

    correct(message([2, 0]))
    after = view(app)
    assert after["scores"]["accuracy"] == 1.0
    assert (after["reward"]["count"], after["reward"]["sum"]) == (1, 0.5)
    assert segments_seen(app) == {"country=de": 1, "tier=gold": 1}
    assert counted_cost(app) == 3
    app = function.restart()
    correct(message([2, 1]), reward=0.25)
    assert (view(app)["reward"]["count"], view(app)["reward"]["sum"]) == (1, 0.25)
    assert view(app)["scores"]["accuracy"] == 0.5
    assert segments_seen(app) == {"country=de": 1, "tier=gold": 1}
    assert counted_cost(app) == 3


def counted_cost(app: App) -> Any:
    """The user metric `cost` less what corrections took back."""
    return real(net(read(app).models[MODEL].all_time), "user_counters", "cost")


def segments_seen(app: App) -> dict[str, Any]:
    """The events of each segment, less what corrections took back; all windows must agree."""
    found: dict[str, set[Any]] = {}
    for pane, vector in read(app).models[MODEL].panes.items():
        found.setdefault(pane.segment, set()).add(value(net(vector), "events"))
    found.pop("")
    assert all(len(each) == 1 for each in found.values()), found
    return {segment: each.pop() for segment, each in found.items() if each != {0}}


def test_a_correction_with_another_segment_moves_there(function: Function) -> None:
    """What was counted in the old one is taken back there, in every window, and back again."""
    replicas = 1 if function.url == "memory:" else 2
    app = function.start(replicas, FEEDBACK_CORRECTIONS="on", FEEDBACK_SEGMENTS="country,tier")
    predict(app, "r", ROWS)
    tell(app, "r", [2, 0], country="de")
    assert segments_seen(app) == {"country=de": 1}
    other = function.apps[-1]
    tell(other, "r", [0, 0], country="fr", tier="gold")
    assert segments_seen(app) == {"country=fr": 1, "tier=gold": 1}
    assert (view(app)["events"], view(app)["scores"]["accuracy"]) == (1, 0.5)
    french = model_view(
        MODEL, read(app).models[MODEL], app.models.of(MODEL), app.now(), None, "country=fr"
    )
    assert (french["events"], french["scores"]["accuracy"]) == (1, 0.5)
    tell(other, "r", [2, 0], country="de")
    tell(app, "r", [2, 1])
    assert segments_seen(other) == {"country=de": 1, "tier=gold": 1}
    assert view(other)["join"]["corrected"] == 3
    assert view(other)["events"] == 1
    app = function.restart()
    assert segments_seen(app) == {"country=de": 1, "tier=gold": 1}


def test_a_request_sent_again_counts_once(function: Function) -> None:
    """With FEEDBACK_DEDUP_BY=request a new event id with the same content is a duplicate."""
    app = function.start(FEEDBACK_DEDUP_BY="request")
    whole = {"truth": message([0, 0]), "response": message(ROWS)}
    first, again = (send(app, FEEDBACK, whole, requestid="r") for _ in range(2))
    assert dict(first.all_headers())["ce-id"] == dict(again.all_headers())["ce-id"]
    assert view(app)["events"] == 1
    send(app, FEEDBACK, {**whole, "reward": 1}, requestid="r")
    send(app, FEEDBACK, whole, requestid="s")
    assert view(app)["events"] == 3
    for _ in range(2):
        predict(app, "t", ROWS)
        tell(app, "t", [2, 0])
    assert view(app)["events"] == 4
    assert fates(app)[0] == {"arrived": 1, "joined": 1}


# --- against the table of all that is known -------------------------------------------------------


@dataclass
class Table:
    """What was said of each request, and so what must come out."""

    events: list[tuple[str, str, Any, str, float]] = field(default_factory=list)
    """(kind, request, values, event id, time)."""
    truths: dict[str, Any] = field(default_factory=dict)
    predictions: dict[str, Any] = field(default_factory=dict)


def table(chance: random.Random, requests: int, corrections: bool) -> Table:
    """Halves, whole feedback and corrections of some requests, in any order, with duplicates."""
    made = Table()
    later = []
    for number in range(requests):
        request, rows = f"r-{number}", chance.randint(1, 3)
        weights = [[chance.random() + 0.01 for _ in range(3)] for _ in range(rows)]
        values = [[each / sum(row) for each in row] for row in weights]
        truth = [chance.randrange(3) for _ in range(rows)]
        halves = [(PREDICTION, values), (FEEDBACK, truth)]
        chance.shuffle(halves)
        time = NOW - chance.randrange(4000)
        if chance.random() < 0.1:
            halves.pop()  # the other never comes
        for kind, said in halves:
            made.events.append((kind, request, said, f"{request}-{kind}", time))
        if len(halves) == 2:
            made.predictions[request], made.truths[request] = values, truth
            if corrections and chance.random() < 0.4:
                truth = [chance.randrange(3) for _ in range(rows)]
                later.append((FEEDBACK, request, truth, f"{request}-correction", time))
                made.truths[request] = truth
    chance.shuffle(made.events)
    made.events += chance.sample(made.events, len(made.events) // 4)  # redelivered later
    chance.shuffle(later)
    made.events += later + later[: len(later) // 2]
    return made


def expected(made: Table, corrections: bool) -> Any:
    """The view of a function that got every known row at once."""
    app = App(load({}), open_store("memory:", 10), now=lambda: NOW)
    for request, truth in made.truths.items():
        data = {"truth": message(truth), "response": message(made.predictions[request])}
        send(app, FEEDBACK, data)
    found = view(app)
    app.close()
    return found


@pytest.mark.parametrize("corrections", ["off", "on"])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_interleaving_equals_the_known_table(
    function: Function, corrections: str, seed: int
) -> None:
    """Over three replicas, with duplicates and a restart in the middle."""
    chance = random.Random(seed)
    made = table(chance, 60, corrections == "on")
    replicas = 1 if function.url == "memory:" else 3
    function.start(replicas, FEEDBACK_CORRECTIONS=corrections)
    half = len(made.events) // 2
    for at, (kind, request, values, id, _) in enumerate(made.events):
        if at == half and replicas > 1:
            function.stop()
            function.start(replicas, FEEDBACK_CORRECTIONS=corrections)
        app = chance.choice(function.apps)
        data = message(values) if kind == PREDICTION else {"truth": message(values)}
        assert send(app, kind, data, id=id, requestid=request).status in (200, 202)
    for app in function.apps:
        assert same_scores(view(app), expected(made, corrections == "on"))
        joined = read(app).models[MODEL].all_time["predictions"][("joined",)]
        assert joined == len(made.truths)


def test_replicas_under_load_meet_each_half_once(function: Function) -> None:
    """Many clients at once, halves and duplicates spread over three replicas: exact."""
    chance = random.Random(3)
    made = table(chance, 150, False)
    replicas = 1 if function.url == "memory:" else 3
    function.start(replicas)

    def post(event: Any) -> int:
        kind, request, values, id, _ = event
        data = message(values) if kind == PREDICTION else {"truth": message(values)}
        for _ in range(100):
            status = send(random.choice(function.apps), kind, data, id=id, requestid=request).status
            if status != 503:
                return status
        return status

    with ThreadPoolExecutor(16) as clients:
        assert set(clients.map(post, made.events)) <= {200, 202}
    for app in function.apps:
        assert same_scores(view(app), expected(made, False))
        predictions, truths = fates(app)
        assert predictions["joined"] == len(made.truths)
        waiting = app.store.held() > 0
        assert waiting == bool(view(app)["join"]["waiting"] or truths.get("arrived"))


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_halves_survive_kills(kind: str, tmp_path: Any, request: pytest.FixtureRequest) -> None:
    """SIGKILL at random moments under load; what was not acknowledged is sent again: exact."""
    chance = random.Random(7)
    made = table(chance, 300, True)
    variables = {"FEEDBACK_JOIN_TTL": "1h", "FEEDBACK_CORRECTIONS": "on"}
    if kind == "redis":
        server = request.getfixturevalue("server")
        server.ask("FLUSHALL")
        variables["FEEDBACK_STORE"] = server.url
    todo = {client: [] for client in range(6)}
    for event in made.events:
        todo[int(event[1][2:]) % len(todo)].append(event)  # a request's events stay in order
    with OwnServer(tmp_path, **variables) as function:

        def post(events: list[Any]) -> None:
            twin = function.twin()
            for event_kind, name, values, id, _ in events:
                said = message(values)
                identity = {name.removeprefix("ce-"): text for name, text in IDENTITY.items()}
                attributes = {
                    **identity,
                    "specversion": "1.0",
                    "id": id,
                    "source": "/test",
                    "type": event_kind,
                    "requestid": name,
                }
                data = said if event_kind == PREDICTION else {"truth": said}
                until(lambda data=data, to=attributes: posted(twin, data, to), 60)
            twin.hang_up()

        def posted(twin: Any, data: Any, attributes: Any) -> bool:
            try:
                status = twin.event(data, attributes).status
            except (OSError, http.client.HTTPException):
                return False
            assert status in (200, 202, 503)
            return status != 503

        with ThreadPoolExecutor(len(todo)) as clients:
            done = [clients.submit(post, events) for events in todo.values()]
            for _ in range(6):
                time.sleep(chance.uniform(0.05, 0.3))
                function.restart()
            for each in done:
                each.result()
        found = function.get(f"/v1/models/{MODEL}").json
    assert same_scores(found, expected(made, True))
    assert found["join"]["joined"] == len(made.truths)


# --- records --------------------------------------------------------------------------------------


@settings(max_examples=200, derandomize=True, deadline=None)
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6)
    | st.lists(st.integers(-5, 5) | st.booleans(), min_size=1, max_size=6)
    | st.lists(st.text(max_size=5).filter(str.isprintable), min_size=1, max_size=6),
    st.none() | st.floats(1e9, 2e9),
    st.sampled_from([SCORED, "prediction", "truth"]),
)
def test_a_record_says_what_was_written(values: Any, time: float | None, kind: str) -> None:
    """Floats to the bit, integers as integers, texts as they were; and all the rest."""
    app = App(load({"FEEDBACK_JOIN_TTL": "1h"}), open_store("memory:", 10))
    joins: Any = app.joins
    app.close()
    said = {"truth": message([1]), "reward": 0.0, "response": message(values)}
    feedback = parse(said) if kind != "prediction" else prediction_of(message(values))
    case = Case("a/b/c/d", b"", time, NOW, {"modelid": "d", "endpoint": "c"}, feedback)
    vector = {"x": {("é", "1"): 2, ("", "1"): 0.1}}
    half = Half(kind, case, NOW + 1, (Pane(5, 3, "k=v"),), vector)
    found = decode("a/b", b"12345678" + joins._encode(half))
    assert found.case.feedback.prediction is not None
    assert repr(found.case.feedback.prediction.flat) == repr(values)
    assert replace(found.case.feedback, prediction=None, truth=NO_TRUTH, raw={}) == replace(
        feedback, prediction=None, truth=NO_TRUTH, raw={}
    )
    assert (found.kind, found.written, found.panes) == (half.kind, half.written, half.panes)
    assert (found.case.time, found.case.arrival) == (time, NOW)
    assert found.contribution == vector
    assert found.case.extensions == case.extensions
    assert found.case.model == "a/b/c/d"


def test_what_corrections_took_back_is_subtracted() -> None:
    """Down to nothing, where nothing is left."""
    vector: Any = {"x": {("a",): 3, ("b",): 1}, "-x": {("b",): 1, ("a",): 1}, "-y": {(): 0.5}}
    vector["y"] = {(): 0.5}
    assert net(vector) == {"x": {("a",): 2}}
    plain: Any = {"x": {("a",): 3}}
    assert net(plain) is plain


def test_corrected_scores_are_those_of_the_final_truths(function: Function) -> None:
    """Regression, too: sums are taken back to rounding."""
    app = function.start(FEEDBACK_CORRECTIONS="on")
    chance = random.Random(5)
    final: dict[str, tuple[float, float]] = {}
    for step in range(200):
        request = f"r-{chance.randrange(40)}"
        truth, prediction = chance.gauss(1e6, 1), chance.gauss(1e6, 1)
        if request in final and step % 2:
            final[request] = (truth, final[request][1])
            tell(app, request, [truth])
        else:
            final[request] = (truth, prediction)
            whole = {"truth": message([truth]), "response": message([prediction])}
            send(app, FEEDBACK, whole, requestid=request)
    from sklearn.metrics import mean_absolute_error, r2_score

    truths, predictions = zip(*final.values(), strict=True)
    scores = view(app)["scores"]
    assert view(app)["rows"] == len(final)
    assert isclose(scores["r2"], r2_score(truths, predictions), rel_tol=1e-6)
    assert isclose(
        scores["mean_absolute_error"], mean_absolute_error(truths, predictions), rel_tol=1e-9
    )
