"""In place of Seldon's MetricsServer: its flags, variables, families, rule and payloads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from .servers_http import OwnServer, free_port, series, until

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
        Thread(target=self.serve_forever, daemon=True).start()


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
