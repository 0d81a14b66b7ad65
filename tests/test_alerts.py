"""Rules on scores: each crossing is told once, by one replica, and again to a redelivery."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.alerts import (
    FIRING,
    OK,
    PENDING,
    RARE,
    REMEMBERED,
    RESOLVED,
    SCORES,
    Rule,
    Status,
    status_of,
    step,
)
from metrics.app import App
from metrics.config import load
from metrics.exposition import render
from metrics.model_settings import ModelSettings
from metrics.replies import Response
from metrics.scores import model_view
from metrics.scores.support import rows_behind
from metrics.scores.view import Naming, score_vector
from metrics.store import open_store
from tests.oracle import ORACLES, Rows, Stream
from tests.servers import RedisServer, lint_metrics
from tests.servers_http import OwnServer, ParliamentServer, attributes, feedback, series, until

NOW = 1_700_000_000.0
MODEL = "ns/iris/default/classifier"
METRICS = "io.seldon.serving.feedback.metrics"
LOW = Rule("low", "accuracy", below=0.5, rows=2)
RULES = """
models:
  "ns/iris/*/*":
    windows: [10m]
    alerts:
      - {name: low, score: accuracy, below: 0.5, rows: 4}
      - {name: recent, score: accuracy, window: 10m, below: 0.5, rows: 4, for: 60s}
"""


# --- one rule -------------------------------------------------------------------------------------


def walk(rule: Rule, *moments: tuple[float | None, int, float]) -> list[Status]:
    """The statuses that a rule goes through as (value, rows, seconds) come."""
    status, found = Status(), []
    for value, rows, seconds in moments:
        status = step(rule, status, value, rows, NOW + seconds, "d") or status
        found.append(status)
    return found


def test_it_fires_and_is_resolved() -> None:
    """At once, where no duration is set; each change once."""
    statuses = walk(LOW, (0.9, 9, 0), (0.4, 9, 1), (0.3, 9, 2), (0.5, 9, 3), (0.6, 9, 4))
    assert [each.state for each in statuses] == [OK, FIRING, FIRING, OK, OK]
    assert [each.transitions for each in statuses] == [0, 1, 1, 2, 2]
    assert (statuses[2].since, statuses[2].value) == (NOW + 1, 0.4)
    assert [(each.state, each.number) for each in statuses[-1].recent] == [
        (FIRING, 1),
        (RESOLVED, 2),
    ]


def test_it_waits_for_its_duration() -> None:
    """It must have been there all the time."""
    rule = Rule("low", "accuracy", above=0.5, seconds=60)
    statuses = walk(
        rule, (0.9, 1, 0), (0.8, 1, 59), (0.5, 1, 60), (0.6, 1, 70), (0.7, 1, 129), (0.7, 1, 130)
    )
    states = [each.state for each in statuses]
    assert states == [PENDING, PENDING, OK, PENDING, PENDING, FIRING]
    assert [each.since - NOW for each in statuses] == [0, 0, 60, 70, 70, 130]
    assert statuses[-1].transitions == 1


def test_a_silence_is_no_part_of_the_duration() -> None:
    """Neither ticks without a new row nor the gap that ends with one count; what is before does."""
    rule = Rule("low", "accuracy", below=0.5, seconds=60)
    found, data = Status(), 0
    states = []
    for seconds, rows in (
        *((0, 1), (30, 1), (31, 0), (89, 0), (95, 0), (5000, 0)),
        *((9000, 1), (9010, 1), (9029, 1), (9035, 0), (9500, 0), (9501, 1), (9502, 1)),
    ):
        data += rows
        found = step(rule, found, 0.1, 9, NOW + seconds, "d", data) or found
        states.append((seconds, found.state))
    assert [each for each in states if each[1] == FIRING] == [(9502, FIRING)]
    assert found.transitions == 1


def test_a_rule_of_rare_rows_fires_after_some_silences() -> None:
    """Rows that come more rarely than its duration do not keep it from firing for ever."""
    rule = Rule("low", "accuracy", below=0.5, seconds=60)
    found = Status()
    for hour in range(RARE + 1):
        assert found.state != FIRING
        found = step(rule, found, 0.1, 9, NOW + 3600 * hour, "d", hour) or found
    assert found.state == FIRING
    ended = step(rule, found, 0.9, 9, NOW + 1e6, "d", 99)
    assert ended is not None
    again = step(rule, ended, 0.1, 9, NOW + 2e6, "d", 100)
    assert again is not None
    assert (again.state, again.silences) == (PENDING, 0)


def test_a_status_of_an_earlier_version_goes_on() -> None:
    """One that was pending without knowing of rows."""
    rule = Rule("low", "accuracy", below=0.5, seconds=60)
    stored = {"state": PENDING, "since": NOW, "value": 0.1, "transitions": 0, "recent": []}
    known = status_of({rule.constant: stored}, rule)
    assert known.state == PENDING
    noted = step(rule, known, 0.1, 9, NOW + 30, "d", 5)
    assert noted is not None
    fired = step(rule, noted, 0.1, 9, NOW + 60, "d", 6)
    assert fired is not None
    assert fired.state == FIRING


def test_what_says_nothing_changes_nothing() -> None:
    """An undefined score, or one of too few rows, neither fires nor resolves."""
    assert step(LOW, Status(), None, 9, NOW) is None
    assert step(LOW, Status(), 0.1, 1, NOW) is None
    (fired,) = walk(LOW, (0.1, 2, 0))
    assert step(LOW, fired, None, 9, NOW) is None
    assert step(LOW, fired, 0.9, 1, NOW) is None


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | st.floats(0, 1), st.integers(0, 4), st.integers(0, 90)), max_size=40
    ),
    st.sampled_from([0, 60]),
)
def test_any_walk_alternates(moments: Any, seconds: int) -> None:
    """Firing, resolved, firing …; what is remembered is bounded and survives JSON."""
    rule = Rule("low", "accuracy", below=0.5, rows=2, seconds=seconds)
    moments = sorted(moments, key=lambda moment: moment[2])
    statuses = walk(rule, *moments)
    told: dict[int, str] = {}
    for status in statuses:
        assert len(status.recent) <= REMEMBERED
        told.update({each.number: each.state for each in status.recent})
        constants = json.loads(json.dumps(status.constants(rule)))
        assert status_of(constants, rule) == status
        assert (status.state == FIRING) == (status.transitions % 2 == 1)
    assert told == {number: (RESOLVED, FIRING)[number % 2] for number in told}
    assert sorted(told) == list(range(1, len(told) + 1))


def test_a_replica_of_an_older_version_reads_a_status() -> None:
    """It knows these members only, and raises on others; what a pending rule waits for is apart."""
    rule = Rule("low", "accuracy", below=0.5, rows=2, seconds=60)
    pending = step(rule, Status(), 0.4, 2, NOW, "d", 7)
    assert pending is not None
    known = {"state", "since", "value", "transitions", "recent"}
    for status in (Status(), pending, Status(FIRING, NOW, 0.4, 1)):
        assert status.constants(rule)[rule.constant].keys() == known
    of_model = json.loads(json.dumps(pending.constants(rule)))
    assert status_of(of_model, rule) == pending
    of_model[rule.constant] |= {"since": NOW + 9}  # by a replica that leaves the other alone
    assert status_of(of_model, rule) == Status(PENDING, NOW + 9, 0.4)
    of_model[rule.waiting] = "none"
    assert status_of(of_model, rule) == Status()


def test_every_score_can_have_a_rule() -> None:
    """The names that are taken are those that the oracles know, and no others."""
    named = {score for scores in ORACLES.values() for score in scores}
    assert named <= SCORES
    assert {name for name in SCORES - named if not name.startswith("fbeta")} == set()


def test_the_rows_behind_a_score_are_its_own() -> None:
    """Rows with probabilities, of the positive class, predicted as it, whose truth is not 0."""
    rng = np.random.default_rng(5)
    p, truth = rng.random(300), rng.integers(0, 2, 300)
    asked = ModelSettings(task="binary", k=1, beta=2)
    stream = Stream(asked)
    stream.send(Rows(asked, truth[:200], (p >= 0.5)[:200], np.column_stack([1 - p, p])[:200]))
    stream.send(Rows(asked, truth[200:], (p >= 0.5)[200:].astype(int), None))
    scored, guess = stream.scored(), p >= 0.5
    rows = {score: rows_behind(scored, score) for score in scored.scores}
    for score in ("log_loss", "brier_score", "roc_auc_ovr", "average_precision", "top_k_accuracy"):
        assert rows.pop(score) == 200, score
    assert rows.pop("expected_calibration_error") == 200
    assert rows.pop("precision") == guess.sum()
    assert rows.pop("recall") == truth.sum()
    assert rows.pop("specificity") == (truth == 0).sum()
    for score in ("f1", "jaccard", "fbeta"):
        assert rows.pop(score) == (guess | (truth == 1)).sum(), score
    assert set(rows.values()) == {300}
    assert len(rows) > 15

    asked = ModelSettings(task="regression")
    stream = Stream(asked)
    stream.send(Rows(asked, np.array([0.0, 0.0, 1.5, 2.5]), np.array([1.0, 0.5, 1.5, 2.0])))
    scored = stream.scored()
    assert rows_behind(scored, "mean_absolute_percentage_error") == 2
    assert {rows_behind(scored, score) for score in ("r2", "mean_error")} == {4}

    asked = ModelSettings(task="multilabel")
    stream = Stream(asked)
    labels = rng.integers(0, 2, (50, 4))
    stream.send(Rows(asked, labels, labels))
    assert {rows_behind(stream.scored(), score) for score in stream.scored().scores} == {50}
    for task in ("binary", "multiclass", "multilabel", "regression"):
        nothing = Stream(ModelSettings(task=task))
        empty = score_vector({}, task, nothing.settings, Naming((), 0))
        assert {rows_behind(empty, score) for score in SCORES} == {0}, task


# --- a function with rules ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis for the module."""
    with RedisServer() as server:
        yield server


class Function:
    """Replicas on one store with one file of rules, and a clock."""

    def __init__(self, url: str, rules: Path) -> None:
        self.url = url
        self.rules = rules
        self.now = NOW
        self.apps: list[App] = []

    def start(self, **variables: str) -> App:
        """One more replica."""
        settings = load({"FEEDBACK_MODELS": str(self.rules), **variables})
        store = open_store(self.url, settings.dedup_ttl)
        self.apps.append(App(settings, store, now=lambda: self.now))
        return self.apps[-1]

    def stop(self) -> None:
        """Stop them all."""
        while self.apps:
            self.apps.pop().close()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def function(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Function]:
    """A function on each kind of store; readers look at once."""
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/feedback.db"}.get(request.param)
    if url is None:
        server = request.getfixturevalue("server")
        server.ask("FLUSHALL")
        url = server.url
    rules = tmp_path / "models.yaml"
    rules.write_text(RULES)
    function = Function(url, rules)
    yield function
    function.stop()


ids = count()


def send(app: App, right: bool, id: str = "") -> Response:
    """One event of one row, right or wrong."""
    named = attributes(id or f"event-{next(ids)}", MODEL)
    headers = {f"ce-{name}": text for name, text in named.items()}
    headers["content-type"] = "application/json"
    return app.post_sync(headers, json.dumps(feedback(1, 1 if right else 0)).encode())


def told(answer: Response) -> tuple[str, str, str]:
    """The type of a reply, and of an alert its rule and state."""
    assert answer.status == 200, answer
    headers = dict(answer.all_headers())
    return headers["ce-type"], headers.get("ce-rule", ""), headers.get("ce-state", "")


PLAIN = (METRICS, "", "")
FIRED = (f"{METRICS}.alert", "low", FIRING)


def test_the_reply_to_the_event_that_crossed_is_the_alert(function: Function) -> None:
    """Only that one; a redelivery is told the same again, also after a restart."""
    app = function.start()
    for right in (True, False, False):
        assert told(send(app, right)) == PLAIN
    crossing = send(app, False, id="crossing")
    assert told(crossing) == FIRED
    headers = dict(crossing.all_headers())
    assert (headers["ce-score"], headers["ce-subject"]) == ("accuracy", MODEL)
    data = json.loads(crossing.body)
    assert data["scores"]["accuracy"] == 0.25
    assert data["alerts"][0]["state"] == FIRING
    assert data["increment"]["events"] == 1
    if function.url != "memory:":
        function.stop()
        app = function.start()
    assert told(send(app, False)) == PLAIN
    again = send(app, False, id="crossing")
    assert (told(again), dict(again.all_headers())["ce-id"]) == (FIRED, headers["ce-id"])
    for _ in range(2):
        assert told(send(app, True)) == PLAIN
    resolved = send(app, True)
    assert told(resolved) == (f"{METRICS}.alert", "low", RESOLVED)
    assert dict(resolved.all_headers())["ce-id"] != headers["ce-id"]
    assert told(send(app, False, id="crossing")) == FIRED
    assert told(send(app, True)) == PLAIN
    state = app.read().models[MODEL]
    view = model_view(MODEL, state, app.models.of(MODEL), app.now())
    assert (view["events"], view["alerts"][0]["state"]) == (9, OK)


def test_rows_that_say_nothing_of_a_score_fire_no_rule(function: Function) -> None:
    """One bad probability beside many labels is one row of a log loss."""
    rule = "{name: loss, score: log_loss, above: 0.1, rows: 3}"
    function.rules.write_text(f'models:\n  "*/*/*/*": {{alerts: [{rule}]}}\n')
    app = function.start()
    for _ in range(10):
        assert told(send(app, True)) == PLAIN
    answers = []
    for _ in range(3):
        headers = {f"ce-{name}": text for name, text in attributes(str(next(ids)), MODEL).items()}
        headers["content-type"] = "application/json"
        body = json.dumps(feedback([[0.5, 0.5]], [1]))
        answers.append(told(app.post_sync(headers, body.encode())))
    assert answers == [PLAIN, PLAIN, (f"{METRICS}.alert", "loss", FIRING)]


def test_a_window_and_a_duration(function: Function) -> None:
    """The second rule looks at ten minutes, and waits for one."""
    app = function.start()
    for _ in range(100):
        send(app, True)
    function.now += 900
    assert [told(send(app, False)) for _ in range(5)] == [PLAIN] * 5
    function.now += 59
    assert told(send(app, False)) == PLAIN
    function.now += 1
    assert told(send(app, False)) == (f"{METRICS}.alert", "recent", FIRING)
    function.now += 700
    assert told(send(app, True)) == PLAIN  # one row says nothing
    answers = [told(send(app, True)) for _ in range(4)]
    assert answers.count((f"{METRICS}.alert", "recent", RESOLVED)) == 1


def test_replicas_tell_a_crossing_once(function: Function) -> None:
    """All at once over several replicas: each transition goes with one event."""
    if function.url == "memory:":
        pytest.skip("memory has one replica")
    for _ in range(3):
        function.start()
    for _ in range(4):
        send(function.apps[0], True)
    for right, state in ((False, FIRING), (True, RESOLVED)):
        answers: list[Response] = []

        def client(app: App, right: bool = right, answers: list[Response] = answers) -> None:
            answers.extend([send(app, right) for _ in range(20)])

        clients = [threading.Thread(target=client, args=(app,)) for app in function.apps]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert {answer.status for answer in answers} == {200}
        rules = [answer for answer in answers if told(answer) != PLAIN]
        assert [told(answer)[1:] for answer in rules] == [("low", state)]


def test_a_batch_has_its_alerts_besides(function: Function) -> None:
    """One metrics event per model, and one event for each alert."""
    app = function.start()
    events = [{**attributes(f"b-{number}", MODEL), "data": feedback(1, 0)} for number in range(6)]
    headers = {"content-type": "application/cloudevents-batch+json"}
    replies = json.loads(app.post_sync(headers, json.dumps(events).encode()).body)
    assert [reply["type"] for reply in replies] == [METRICS, f"{METRICS}.alert"]
    assert (replies[1]["rule"], replies[1]["state"]) == ("low", FIRING)
    again = json.loads(app.post_sync(headers, json.dumps(events).encode()).body)
    assert [reply["id"] for reply in again] == [reply["id"] for reply in replies]


def test_prometheus_sees_how_rules_stand(function: Function) -> None:
    """One gauge, 0 or 1, that promtool finds nothing wrong with."""
    app = function.start()
    for number in range(5):
        send(app, bool(number > 3))
        found = series(render(app, "")[0].decode(), "feedback_alert_firing{", 'rule="low"')
        assert list(found.values()) == [float(number >= 3)]
    ((name, _),) = found.items()
    assert 'score="accuracy"' in name
    assert 'window="all"' in name
    lint = lint_metrics(render(app, "")[0].decode())
    assert [line for line in lint if "feedback_alert" in line] == []


def test_a_changed_rule_goes_on_from_its_state(function: Function) -> None:
    """Another threshold resolves what fires; a rule that is gone does no harm."""
    app = function.start()
    for _ in range(4):
        send(app, False)
    function.stop()
    if function.url == "memory:":
        return
    function.rules.write_text(
        RULES.replace("accuracy, below: 0.5, rows", "log_loss, above: 9, rows")
    )
    app = function.start()
    assert told(send(app, False)) == PLAIN
    function.stop()
    function.rules.write_text(RULES.replace("below: 0.5, rows: 4}", "above: 0.9, rows: 1}", 1))
    app = function.start()
    assert told(send(app, False)) == (f"{METRICS}.alert", "low", RESOLVED)


# --- a sink ---------------------------------------------------------------------------------------


class Receiver:
    """An HTTP sink that fails as often as it is told, and keeps what it took."""

    def __init__(self) -> None:
        self.taken: list[dict[str, str]] = []
        self.bodies: list[Any] = []
        self.failures = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if receiver.failures:
                    receiver.failures -= 1
                    self.send_response(503)
                else:
                    receiver.bodies.append(json.loads(body))
                    receiver.taken.append(
                        {name.lower(): text for name, text in self.headers.items()}
                    )
                    self.send_response(202)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def alerts(self) -> list[dict[str, str]]:
        """The alerts that came."""
        return [each for each in self.taken if each["ce-type"].endswith(".alert")]

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A sink of one's own."""
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_a_sink_gets_alerts_by_themselves(function: Function, receiver: Receiver) -> None:
    """Not coalesced with metrics, tried until taken, one from all replicas."""
    function.start(K_SINK=receiver.url, FEEDBACK_SINK_INTERVAL="0")
    if function.url != "memory:":
        function.start(K_SINK=receiver.url, FEEDBACK_SINK_INTERVAL="0")
    receiver.failures = 3
    for number in range(6):
        assert send(function.apps[number % len(function.apps)], False).status == 202
    until(receiver.alerts)
    for number in range(8):
        assert send(function.apps[number % len(function.apps)], True).status == 202
    until(lambda: len(receiver.alerts()) > 1)
    assert [each["ce-state"] for each in receiver.alerts()] == [FIRING, RESOLVED]
    (fired, resolved) = receiver.alerts()
    assert fired["ce-id"] != resolved["ce-id"]
    assert (fired["ce-subject"], fired["ce-rule"], fired["ce-score"]) == (MODEL, "low", "accuracy")
    data = receiver.bodies[receiver.taken.index(fired)]
    assert data["alerts"][0]["state"] == FIRING


def test_a_duration_does_not_end_in_silence(function: Function, receiver: Receiver) -> None:
    """A sink's rules are looked at every second, and yet time without rows does not count."""
    app = function.start(K_SINK=receiver.url)
    for _ in range(100):
        send(app, True)
    function.now += 900
    for _ in range(5):
        send(app, False)
    until(lambda: status(app, "recent").state == PENDING)
    began = status(app, "recent").since
    function.now += 61
    time.sleep(2.5)  # two looks at least
    assert status(app, "recent").state == PENDING
    send(app, False)
    until(lambda: status(app, "recent").silences == 1)
    assert status(app, "recent").since == began + 61
    for _ in range(2):
        assert not receiver.alerts()
        function.now += 30
        send(app, False)
    until(receiver.alerts)
    assert [(each["ce-rule"], each["ce-state"]) for each in receiver.alerts()] == [
        ("recent", FIRING)
    ]


def test_time_alone_can_fire_for_a_sink(function: Function, receiver: Receiver) -> None:
    """Without a duration: what was right leaves the window, and what was wrong is left in it."""
    function.rules.write_text(RULES.replace(", for: 60s", ""))
    app = function.start(K_SINK=receiver.url)
    for _ in range(10):
        send(app, True)
    function.now += 300
    for _ in range(5):
        send(app, False)
    function.now += 450
    until(receiver.alerts)
    assert [(each["ce-rule"], each["ce-state"]) for each in receiver.alerts()] == [
        ("recent", FIRING)
    ]


def status(app: App, rule: str) -> Status:
    """How a rule stands in the store."""
    constants = app.read().constants(MODEL)
    return status_of(constants, Rule(rule, "accuracy"))


# --- over HTTP ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OwnServer, ParliamentServer])
def test_over_http(kind: Any, tmp_path: Path) -> None:
    """The whole way, under our server and stock parliament; on the page and in JSON as well."""
    rules = tmp_path / "models.yaml"
    rules.write_text(RULES)
    with kind(tmp_path, FEEDBACK_MODELS=str(rules)) as server:
        answers = [server.feedback(f"e-{number}", MODEL, truth=0) for number in range(5)]
        types = [answer.attributes["type"] for answer in answers]
        assert types == [METRICS, METRICS, METRICS, f"{METRICS}.alert", METRICS]
        again = server.feedback("e-3", MODEL, truth=0).attributes
        assert {**again, "time": ""} == {**answers[3].attributes, "time": ""}
        view = server.get(f"/?model={MODEL}&format=json").json
        assert [each["state"] for each in view["alerts"]] == [FIRING, PENDING]
        page = server.get(f"/?model={MODEL}&format=html").text
        assert '<span class="state firing">firing</span>' in page


def test_broken_rules_end_the_start(tmp_path: Path) -> None:
    """One line that names file, line and key, and a status that says not to try again."""
    rules = tmp_path / "models.yaml"
    rules.write_text(RULES.replace("0.5", "low", 1))
    server = OwnServer(tmp_path, FEEDBACK_MODELS=str(rules))
    with pytest.raises(AssertionError):
        server.start()
    assert f"FEEDBACK_MODELS: {rules}:6: ns/iris/*/*: alerts: low: must be a number" in server.log()
