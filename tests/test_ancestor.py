"""In place of Seldon's MetricsServer: its flags, variables, families, rule and payloads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from .servers_http import Answer, OwnServer, Server, feedback, free_port, message, series, until

TUTORIAL = {
    "response": {
        "data": {"ndarray": [[0.0006985194531162841, 0.003668039039435755, 0.9956334415074478]]}
    },
    "truth": {"data": {"ndarray": [[0, 0, 1]]}},
}
VARIABLES = {
    "SELDON_DEPLOYMENT_ID": "multiclass-model",
    "PREDICTIVE_UNIT_ID": "classifier",
    "PREDICTIVE_UNIT_IMAGE": "alibi-detect-server:1.6.0-dev",
    "PREDICTOR_ID": "default",
}
DEPLOYMENT = """
        args:
        - --model_name
        - multiclassserver
        - --http_port
        - '8080'
        - --protocol
        - seldonfeedback.http
        - --storage_uri
        - "adserver.cm_models.multiclass_one_hot.MulticlassOneHot"
        - --reply_url
        - http://message-dumper.default
        - --event_type
        - io.seldon.serving.feedback.metrics
        - --event_source
        - io.seldon.serving.feedback
        - MetricsServer
        env:
        - name: "SELDON_DEPLOYMENT_ID"
          value: "multiclass-model"
        - name: "PREDICTIVE_UNIT_ID"
          value: "classifier"
        - name: "PREDICTIVE_UNIT_IMAGE"
          value: "alibi-detect-server:1.6.0-dev"
        - name: "PREDICTOR_ID"
          value: "default"
"""
"""The container of the tutorial's Deployment, to the letter."""
LABELS = {
    "deployment_name": "multiclass-model",
    "model_name": "classifier",
    "model_image": "alibi-detect-server",
    "model_version": "1.6.0-dev",
    "predictor_name": "default",
    "predictor_version": "NOT_IMPLEMENTED",
    "seldon_deployment_name": "multiclass-model",
    "image_name": "alibi-detect-server",
    "image_version": "1.6.0-dev",
    "seldon_deployment_namespace": "NOT_IMPLEMENTED",
    "method": "io.seldon.serving.feedback.metrics",
}


class Dumper(ThreadingHTTPServer):
    """The tutorial's message-dumper: keeps what is posted to it."""

    def __init__(self) -> None:
        self.events: list[tuple[dict[str, str], Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:  # noqa: N805
                body = handler.rfile.read(int(handler.headers["content-length"]))
                headers = {name.lower(): value for name, value in handler.headers.items()}
                self.events.append((headers, json.loads(body)))
                handler.send_response(202)
                handler.send_header("content-length", "0")
                handler.end_headers()

            def log_message(handler, *_: Any) -> None:  # noqa: N805
                pass

        super().__init__(("127.0.0.1", free_port()), Handler)
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def dumper() -> Iterator[Dumper]:
    """A running message dumper."""
    dumper = Dumper()
    yield dumper
    dumper.shutdown()
    dumper.server_close()


def flags(storage_uri: str, reply_url: str) -> list[str]:
    """The arguments of the tutorial's Deployment; the port and the reply's address are ours."""
    return [
        *("--model_name", "multiclassserver", "--protocol", "seldonfeedback.http"),
        *("--storage_uri", f"adserver.cm_models.{storage_uri}", "--reply_url", reply_url),
        *("--event_type", "io.seldon.serving.feedback.metrics"),
        *("--event_source", "io.seldon.serving.feedback", "MetricsServer"),
    ]


def started(tmp_path: Path, dumper: Dumper, storage_uri: str) -> OwnServer:
    """A server with the tutorial's arguments and variables."""
    address = f"http://127.0.0.1:{dumper.server_address[1]}"
    return OwnServer(tmp_path, flags(storage_uri, address), **VARIABLES)


def ancestors(server: OwnServer) -> dict[str, float]:
    """The ancestor's series, by name and class."""
    found = {}
    for name, value in series(server.get("/v1/metrics").text, "seldon_metric_").items():
        family, _, labels = name.partition("{")
        for label, text in LABELS.items():
            assert f'{label}="{text}"' in labels, name
        assert "worker_id" not in labels
        of_class = labels.partition('class="')[2].partition('"')[0]
        short = family.removeprefix("seldon_metric_").removesuffix("_total")
        found[f"{short} {of_class}".strip()] = value
    return found


ROWS: list[tuple[str, str, Any, dict[str, float]]] = [
    (
        "the tutorial's payload",
        "multiclass_one_hot.MulticlassOneHot",
        TUTORIAL,
        {"true_positive CLASS_2": 1, "true_negative CLASS_2": 1},
    ),
    (
        "a flat list is one row",
        "multiclass_one_hot.MulticlassOneHot",
        {
            "response": {"data": {"ndarray": [0.1, 0.2, 0.7]}},
            "truth": {"data": {"ndarray": [0, 1, 0]}},
        },
        {"false_negative CLASS_1": 1, "false_positive CLASS_2": 1},
    ),
    (
        "scores that are no probabilities",
        "multiclass_one_hot.MulticlassOneHot",
        {
            "response": {"data": {"ndarray": [[3.0, 9.0]]}},
            "truth": {"data": {"ndarray": [[0, 1]]}},
        },
        {"true_positive CLASS_1": 1, "true_negative CLASS_1": 1},
    ),
    (
        "numeric labels, as a column and as floats",
        "multiclass_numeric.MultiClassNumeric",
        {"response": {"data": {"ndarray": [[2.0]]}}, "truth": {"data": {"ndarray": [2]}}},
        {"true_positive CLASS_2": 1, "true_negative CLASS_2": 1},
    ),
    (
        "every row of a batch",
        "multiclass_numeric.MultiClassNumeric",
        {"response": {"data": {"ndarray": [0, 1, 1]}}, "truth": {"data": {"ndarray": [0, 1, 0]}}},
        {
            "true_positive CLASS_0": 1,
            "true_negative CLASS_0": 1,
            "false_negative CLASS_0": 1,
            "true_positive CLASS_1": 1,
            "true_negative CLASS_1": 1,
            "false_positive CLASS_1": 1,
        },
    ),
    (
        "binary: one of the four, by truth",
        "binary_metrics.BinaryMetrics",
        {
            "response": {"data": {"ndarray": [1, 0, 1, 0, 0.9]}},
            "truth": {"data": {"ndarray": [1, 0, 0, 1, 1]}},
        },
        {"true_positive": 2, "true_negative": 1, "false_positive": 1, "false_negative": 1},
    ),
]


@pytest.mark.parametrize(
    ("storage_uri", "payload", "expected"),
    [row[1:] for row in ROWS],
    ids=[row[0] for row in ROWS],
)
def test_its_counting_rule_holds_in_its_families(
    tmp_path: Path, dumper: Dumper, storage_uri: str, payload: Any, expected: dict[str, float]
) -> None:
    """With its arguments and variables its families tell what its dashboards were built on."""
    with started(tmp_path, dumper, storage_uri) as server:
        headers = {"ce-id": "1", "ce-source": "/seldon", "ce-specversion": "1.0"}
        headers["ce-type"] = "io.seldon.serving.feedback"
        answer = server.post(json.dumps(payload).encode(), **headers)
        assert (answer.status, answer.body) == (202, b"")
        found = ancestors(server)
        assert {name: value for name, value in found.items() if value} == expected
        assert server.get("/protocol").text == "seldonfeedback.http"
        assert "PROCESSING Feedback Event." in server.log()
        (sent, data) = until(lambda: dumper.events and dumper.events[0])
        assert sent["ce-type"] == "io.seldon.serving.feedback.metrics"
        assert sent["ce-source"] == "io.seldon.serving.feedback"
        assert sent["ce-id"] != "1"
        assert data["model"] == "classifier"
        assert data["events"] == 1


def test_labels_follow_the_event_where_it_names_its_model(tmp_path: Path, dumper: Dumper) -> None:
    """One server has the families of any number of models."""
    with started(tmp_path, dumper, "multiclass_one_hot.MulticlassOneHot") as server:
        headers = {"ce-id": "1", "ce-source": "/seldon", "ce-specversion": "1.0"}
        headers |= {"ce-type": "io.seldon.serving.feedback", "ce-modelid": "other"}
        headers |= {"ce-namespace": "production"}
        assert server.post(json.dumps(TUTORIAL).encode(), **headers).status == 202
        (name, _), *_ = series(server.get("/metrics").text, "seldon_metric_").items()
        assert 'model_name="other"' in name
        assert 'seldon_deployment_namespace="production"' in name
        assert 'deployment_name="multiclass-model"' in name


def test_plain_json_from_a_person_counts_as_in_the_tutorial(tmp_path: Path) -> None:
    """The tutorial's body posted with curl is answered with the model's metrics."""
    with OwnServer(tmp_path, **VARIABLES) as server:
        answer = server.post(json.dumps(TUTORIAL).encode(), **{"content-type": "application/json"})
        assert answer.status == 200
        assert answer.json["id"] == "default/multiclass-model/default/classifier"
        assert answer.json["scores"]["accuracy"] == 1.0


# --- the tutorial, to the letter ----------------------------------------------------------------


class Tutorial(OwnServer):
    """The tutorial's container: its arguments and variables, but for the port and the reply's."""

    def __init__(self, directory: Path, dumper: Dumper) -> None:
        container = yaml.safe_load(DEPLOYMENT)
        port = free_port()
        other = {
            "8080": str(port),
            "http://message-dumper.default": f"http://127.0.0.1:{dumper.server_address[1]}",
        }
        super().__init__(directory, [other.get(word, word) for word in container["args"]])
        self.variables = {each["name"]: each["value"] for each in container["env"]}
        self.port = port

    def executor(self, id: str, body: Any = TUTORIAL, **more: str) -> Answer:
        """POST feedback as Seldon's executor does: binary, a fresh id, its attributes."""
        attributes = {
            "specversion": "1.0",
            "id": id,
            "source": "http://localhost:8000",
            "type": "io.seldon.serving.feedback",
            "requestid": f"puid-{id}",
            "modelid": "classifier",
            "inferenceservicename": "multiclass-model",
            "namespace": "seldon",
            "endpoint": "default",
            **more,
        }
        return self.event(body, attributes)


@pytest.fixture
def tutorial(tmp_path: Path, dumper: Dumper) -> Iterator[Tutorial]:
    """The tutorial's server, running."""
    with Tutorial(tmp_path, dumper) as server:
        yield server


def totals(server: Server, *having: str) -> dict[str, float]:
    """The ancestor's series of a scrape as the annotations of the Deployment ask for it."""
    found = {}
    for name, number in series(server.get("/v1/metrics").text, "seldon_metric_", *having).items():
        family = name.partition("_total{")[0].removeprefix("seldon_metric_")
        label = name.partition('class="')[2].partition('"')[0]
        found[f"{family} {label}".strip()] = number
    return found


def test_the_tutorial(tutorial: Tutorial, dumper: Dumper) -> None:
    """Its feedback three times, once redelivered: numbers, labels, log line and event are right."""
    for id in ("a", "b", "c", "c"):
        answer = tutorial.executor(id)
        assert (answer.status, answer.body) == (202, b"")
    expected = {
        "true_positive CLASS_2": 3,
        "true_negative CLASS_2": 3,
        "false_positive CLASS_2": 0,
        "false_negative CLASS_2": 0,
    }
    assert totals(tutorial) == expected
    assert totals(tutorial, 'seldon_deployment_namespace="seldon"') == expected
    assert len(
        [line for line in tutorial.log().splitlines() if "PROCESSING Feedback Event." in line]
    )
    sent, data = until(lambda: [each for each in dumper.events if each[1]["events"] == 3][-1:])[0]
    assert sent["ce-type"] == "io.seldon.serving.feedback.metrics"
    assert sent["ce-source"] == "io.seldon.serving.feedback"
    assert sent["ce-modelid"] == "classifier"
    assert sent["ce-subject"] == data["id"] == "seldon/multiclass-model/default/classifier"
    assert data["scores"]["accuracy"] == 1.0

    tutorial.kill()  # what the ancestor forgot, stays: by default in the working directory
    assert (tutorial.directory / "state" / "feedback.db").exists()
    tutorial.start()
    assert totals(tutorial) == expected
    assert tutorial.executor("c").status == 202
    assert totals(tutorial) == expected


def test_it_is_better_where_the_ancestor_was_wrong(tutorial: Tutorial) -> None:
    """All rows of a batch; rewards of any sign; hopeless events refused once, never a 500."""
    batch = feedback([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]], [[0, 0, 1], [0, 1, 0]], reward=-0.5)
    assert tutorial.executor("1", batch).status == 202
    assert tutorial.executor("2", {**TUTORIAL, "reward": 0}).status == 202
    ours = series(tutorial.exposition(), 'model_name="classifier"')
    found = {name.partition("{")[0]: number for name, number in ours.items()}
    assert found["feedback_rows_total"] == 3
    assert found["feedback_rewards_total"] == 2
    assert found["feedback_reward_negative_total"] == 0.5
    assert found["feedback_reward_positive_total"] == 0
    negatives = {
        name.partition('class="')[2][0]: number
        for name, number in ours.items()
        if name.startswith("feedback_true_negatives_total")
    }
    assert negatives == {"0": 2, "1": 2, "2": 1}  # of three rows, right for every class
    before = totals(tutorial)
    for number, body in enumerate(
        (
            {"truth": TUTORIAL["truth"]},
            {"response": TUTORIAL["response"]},
            {"response": {"x": 1}, "truth": {"x": 1}},
            feedback([[0.5, 0.5]], [[0, 0, 1]]),
            b'{"response": {"data": {"ndarray": [[NaN]]}}, "truth": {"data": {"ndarray": [[1]]}}}',
        )
    ):
        assert tutorial.executor(f"bad {number}", body).status == 400
    no_id = tutorial.event(TUTORIAL, {"specversion": "1.0", "type": "io.seldon.serving.feedback"})
    assert no_id.status == 400
    assert totals(tutorial) == before


def test_its_own_event_fed_back_does_not_loop(tutorial: Tutorial, dumper: Dumper) -> None:
    """The type it emits is accepted without a reply and counted nowhere."""
    answer = tutorial.executor("1", {}, type="io.seldon.serving.feedback.metrics")
    assert (answer.status, answer.body) == (202, b"")
    assert totals(tutorial) == {}
    assert dumper.events == []


def test_user_metrics_are_in_the_exposition(tutorial: Tutorial) -> None:
    """`truth.meta.metrics`: counters add up, gauges are last, timers are seconds."""
    metrics = [
        {"key": "my_counter", "type": "COUNTER", "value": 2, "tags": {"tag": "a"}},
        {"key": "my_gauge", "type": "GAUGE", "value": 7},
        {"key": "my_timer", "type": "TIMER", "value": 30},
    ]
    for id in ("1", "2"):
        truth = {**message([[0, 0, 1]]), "meta": {"metrics": metrics}}
        assert tutorial.executor(id, {**TUTORIAL, "truth": truth}).status == 202
    labels = (
        'deployment_name="multiclass-model",deployment_namespace="seldon",'
        'model_name="classifier",predictor_name="default"'
    )
    found = series(tutorial.get("/v1/metrics").text, "my_")
    assert found[f'my_counter_total{{{labels},tag="a"}}'] == 4
    assert found[f"my_gauge{{{labels}}}"] == 7
    assert found[f"my_timer_sum{{{labels}}}"] == 0.06
    assert found[f"my_timer_count{{{labels}}}"] == 2
