"""Events of types that are not taken: answered 202, counted by why, and logged where it matters."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from metrics.config import load
from metrics.ignored import LOG_SECONDS, Ignored
from tests.servers_http import BATCH, OwnServer, attributes, feedback, message, series

PREDICTION = "io.seldon.serving.inference.response"
METRICS = "io.seldon.serving.feedback.metrics"


def reasons(server: OwnServer) -> dict[str, float]:
    """Ignored events by reason."""
    found = series(server.exposition(), "feedback_ignored_events_total")
    return {name.split('"')[1]: number for name, number in found.items()}


def test_a_prediction_without_joins_is_counted_as_ignored(tmp_path: Path) -> None:
    """It is answered 202 as before, but no more without a word."""
    with OwnServer(tmp_path) as server:
        assert reasons(server) == {"joins_off": 0, "own_type": 0, "other_type": 0}
        for id, kind in enumerate((PREDICTION, PREDICTION, METRICS, f"{METRICS}.alert", "x")):
            answer = server.event(message([1]), attributes(str(id), "a/a/a/a", type=kind))
            assert (answer.status, answer.body) == (202, b"")
        assert reasons(server) == {"joins_off": 2, "own_type": 2, "other_type": 1}
        (line,) = [line for line in server.log().splitlines() if "FEEDBACK_JOIN_TTL" in line]
        assert f"1 predictions were ignored, the last of type {PREDICTION}" in line
        assert server.feedback("1", "a/a/a/a").status == 200
        assert reasons(server)["joins_off"] == 2
        mixed = [
            {**attributes("2", "a/a/a/a", type=kind), "data": data}
            for kind, data in ((PREDICTION, message([1])), (attributes("")["type"], feedback()))
        ]
        assert server.batch(*mixed).status == 200
        assert reasons(server)["joins_off"] == 3
        refused = server.post(json.dumps([*mixed, {}]).encode(), content_type=BATCH)
        assert refused.status == 400
        assert reasons(server)["joins_off"] == 3


def test_with_joins_predictions_are_not_ignored(tmp_path: Path) -> None:
    """They wait for their truths."""
    with OwnServer(tmp_path, FEEDBACK_JOIN_TTL="1h") as server:
        about = attributes("1", "a/a/a/a", type=PREDICTION, requestid="1")
        assert server.event(message([1]), about).status == 202
        assert reasons(server)["joins_off"] == 0
        assert "ignored" not in server.log()


def test_it_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """With how many there were; what no setting would count is not logged."""
    caplog.set_level(logging.INFO)
    now, counted = 0.0, []
    ignored = Ignored(load({}), counted.append, lambda: now)
    ignored.note(["x", METRICS])
    ignored.note([PREDICTION])
    ignored.note([PREDICTION, "x", PREDICTION])
    assert [record.args for record in caplog.records] == [(1, PREDICTION)]
    now = LOG_SECONDS
    ignored.note(["x"])
    assert [record.args for record in caplog.records] == [(1, PREDICTION), (2, PREDICTION)]
    assert counted.count("joins_off") == 3
