"""Bodies of many megabytes: no probe waits, memory is in proportion, and every row counts."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metrics.app import App
from metrics.config import load
from metrics.events import BATCH, JSON
from metrics.exact import to_units
from metrics.large_bodies import MIN_BODY
from metrics.large_bodies.batches import split, without_data
from metrics.payload import Again
from metrics.replies import Response
from metrics.store import open_store
from tests.large_shapes import MODEL, SHAPES, cost
from tests.servers_http import Answer, OwnServer, attributes, feedback, message, until

SIZE = 4 << 20
PROCESS = 80 << 20
"""What an interpreter with numpy takes, and what a body of any size may."""
ROWS = 1000
LARGE = MIN_BODY + (1 << 17)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """A function with default settings."""
    with OwnServer(tmp_path_factory.mktemp("large")) as server:
        yield server


@pytest.fixture
def app() -> Iterator[App]:
    """The function with default settings and a store in memory."""
    app = App(load({}), open_store("memory:", 60))
    yield app
    app.close()


def post(app: App, body: bytes, id: str = "1", model: str = MODEL, **more: str) -> Response:
    """POST one event in binary mode."""
    headers = {f"ce-{name}": text for name, text in attributes(id, model, **more).items()}
    return app.post_sync({"content-type": JSON, **headers}, body)


# --- what they cost -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_no_body_stops_the_server_or_takes_memory_out_of_proportion(
    server: OwnServer, name: str
) -> None:
    """Whatever is in it: it is counted, or refused, and probes are answered all the while."""
    found = cost(server, SHAPES[name], SIZE, name)
    assert found.answer.status == SHAPES[name].status, found.answer
    assert found.liveness < 1
    assert found.peak < 8 * SIZE + PROCESS


def in_a_thread(server: OwnServer, body: bytes, answers: list[Answer]) -> threading.Thread:
    """Post a body, and add the answer to `answers`, if one comes."""
    twin = server.twin()

    def send() -> None:
        with suppress(OSError, HTTPException):
            answers.append(twin.event(body, attributes("1", MODEL)))
        twin.hang_up()

    sender = threading.Thread(target=send)
    sender.start()
    return sender


def test_sigterm_does_not_wait_for_a_large_body(tmp_path: Path) -> None:
    """Nothing of it was acknowledged: the server ends, and the other process with it."""
    with OwnServer(tmp_path) as server:
        (pid,) = server.pids
        body = SHAPES["pairs of 1,000 classes"].make(16 << 20)
        answers: list[Answer] = []

        sender = in_a_thread(server, body, answers)
        until(lambda: len(server.all_pids) == 2)
        (other,) = set(server.all_pids) - {pid}
        time.sleep(1)
        began = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - began < 10
        sender.join()
        until(lambda: not Path(f"/proc/{other}").exists(), 5)
        server.start()
        counted = server.models().get(MODEL, {}).get("events", 0)
        assert counted == sum(answer.status == 200 for answer in answers)


def test_a_body_whose_process_dies_can_be_sent_again(tmp_path: Path) -> None:
    """It is answered 503, as nobody knows why; the next one has a process of its own."""
    with OwnServer(tmp_path) as server:
        (pid,) = server.pids
        body = SHAPES["pairs of 1,000 classes"].make(16 << 20)
        answers: list[Answer] = []
        sender = in_a_thread(server, body, answers)
        until(lambda: len(server.all_pids) == 2)
        time.sleep(0.5)
        for other in set(server.all_pids) - {pid}:
            os.kill(other, signal.SIGKILL)
        sender.join()
        assert answers[0].status == 503
        again = SHAPES["names"].make(LARGE)
        assert server.event(again, attributes("1", MODEL)).status == 200
        assert server.event(again, attributes("1", MODEL)).status == 200
        assert server.models()[MODEL]["events"] == 1


# --- that they count ----------------------------------------------------------------------------


def by_parts(body: bytes) -> Iterator[bytes]:
    """The same rows in small events."""
    event = json.loads(body)
    truth, response = (event[side]["data"]["ndarray"] for side in ("truth", "response"))
    for at in range(0, len(truth), ROWS):
        yield json.dumps(feedback(response[at : at + ROWS], truth[at : at + ROWS])).encode()


def counters(app: App, model: str = MODEL) -> dict[str, Any]:
    """All that rows add up to."""
    vector = app.read().models[model].all_time
    return {
        family: dict(cells.items())
        for family, cells in vector.items()
        if family not in ("events", "duplicates")
    }


@pytest.mark.parametrize("task", ["auto", "binary", "multilabel", "regression", "multiclass"])
@pytest.mark.parametrize(
    "name",
    [
        "three probabilities a row",
        "100 probabilities a row",
        "regression",
        "17 digits",
        "columns of one",
        "labels of two bytes",
        "0 and 1 as fractions",
        "pairs of 1,000 classes",
        "pairs of 1,000 names",
        "names",
        "one-hot rows",
        "rows of regression",
    ],
)
def test_the_same_rows_in_small_events_add_up_to_the_same(name: str, task: str) -> None:
    """To the bit, whatever the task; and what the one refuses the others refuse."""
    body = SHAPES[name].make(LARGE)
    assert len(body) >= MIN_BODY
    if task == "multilabel" and "rows" not in name:
        pytest.skip("a flat list is one row, and a part of it another")
    app = App(load({"FEEDBACK_TASK": task}), open_store("memory:", 60))
    try:
        status = post(app, body, model="a/b/c/large").status
        statuses = {
            post(app, part, f"part {at}", "a/b/c/small").status
            for at, part in enumerate(by_parts(body))
        }
        assert statuses == {status}
        if status == 200:
            assert counters(app, "a/b/c/large") == counters(app, "a/b/c/small")
        else:
            assert task != "auto"
    finally:
        app.close()


@pytest.mark.parametrize(
    "name", ["V2 with a shape", "tensor", "tensor_content", "float_val", "binData"]
)
def test_every_form_of_array_counts_as_plain_rows_do(app: App, name: str) -> None:
    """A body just below the size at which another process reads it says the same per row."""
    large, small = SHAPES[name].make(LARGE), SHAPES[name].make(MIN_BODY // 8)
    assert post(app, large, model="a/b/c/large").status == 200
    assert post(app, small, model="a/b/c/small").status == 200
    of_large, of_small = counters(app, "a/b/c/large"), counters(app, "a/b/c/small")
    assert set(of_large) == set(of_small)
    rows = of_large["rows"][()], of_small["rows"][()]
    for family, cells in of_small.items():  # all rows are alike
        scaled = {labels: number * rows[0] // rows[1] for labels, number in cells.items()}
        assert of_large[family] == scaled, family


def test_an_event_of_a_large_body_is_evaluated_again_under_other_constants(app: App) -> None:
    """After its request has ended: the other process is asked once more."""
    body = SHAPES["three probabilities a row"].make(LARGE)
    headers = {f"ce-{name}": text for name, text in attributes("1", MODEL).items()}
    (entry,) = app.intake({"content-type": JSON, **headers}, body, lambda _: None).entries
    assert entry.again is not None
    again = entry.again({"task": "multiclass", "names": ["a", "b", "c"]})
    assert dict(again.increment) == dict(entry.increment)
    for each in (entry, again):
        each.release()


def test_the_events_of_a_large_batch_count_each(app: App) -> None:
    """Small and large ones, base64, and other types; what is at fault is named."""
    large = json.loads(SHAPES["names"].make(LARGE))
    coded = {**attributes("c", MODEL), "data_base64": "eyJ0cnV0aCI6eyJzdHJEYXRhIjoiY2F0In0s"
             "InJlc3BvbnNlIjp7InN0ckRhdGEiOiJjYXQifX0="}  # fmt: skip
    events = [
        {**attributes("a", MODEL), "data": feedback("cat", "dog")},
        {**attributes("b", MODEL), "data": large},
        coded,
        {**attributes("d", MODEL), "type": "other", "data": 'a text with ]} and \\" in it'},
    ]
    rows = len(large["truth"]["data"]["ndarray"])
    answer = app.post_sync({"content-type": BATCH}, json.dumps(events).encode())
    assert answer.status == 200, answer
    vector = app.read().models[MODEL].all_time
    assert (vector["events"][()], vector["rows"][()]) == (3, rows + 2)
    events[1]["data"] = {"truth": large["truth"], "response": message([{}])}
    refused = app.post_sync({"content-type": BATCH}, json.dumps(events).encode())
    assert refused.status == 400
    assert json.loads(refused.body)["field"] == "response.data.ndarray"
    assert app.read().models[MODEL].all_time["events"][()] == 3


def test_a_request_is_known_by_what_was_said() -> None:
    """The same feedback under other ids is counted once, with one number changed it is not."""
    app = App(load({"FEEDBACK_DEDUP_BY": "request"}), open_store("memory:", 60))
    try:
        body = SHAPES["regression"].make(LARGE)
        other = body[:-20] + body[-20:].replace(b"2.25", b"2.26")
        assert other != body
        for at, each in enumerate((body, body, other, body)):
            assert post(app, each, str(at), requestid="r").status == 200
        vector = app.read().models[MODEL].all_time
        assert (vector["events"][()], vector["duplicates"][()]) == (2, 2)
    finally:
        app.close()


def test_large_halves_are_joined() -> None:
    """As small ones are."""
    app = App(load({"FEEDBACK_JOIN_TTL": "1h"}), open_store("memory:", 60))
    try:
        whole = json.loads(SHAPES["labels of two bytes"].make(2 * LARGE))
        rows = len(whole["truth"]["data"]["ndarray"])
        truth = json.dumps({"truth": whole["truth"]}).replace(" ", "").encode()
        assert len(truth) > MIN_BODY
        assert post(app, truth, "1", requestid="r").status < 300
        both = json.dumps(whole).replace(" ", "").encode()
        assert post(app, both, "2", requestid="r").status < 300
        assert app.read().models[MODEL].all_time["rows"][()] == rows
    finally:
        app.close()


class Sum:
    """A class of a user's: what it is called with, counted."""

    calls = 0

    def transform(self, truth: Any, response: Any, request: Any = None) -> Any:
        """The rows, the sum of the truth, and what the request says, as counters."""
        type(self).calls += 1
        numbers = {"own_rows": len(response), "own_truth": sum(truth), "own_request": request["x"]}
        metrics = [{"type": "COUNTER", "key": key, "value": n} for key, n in numbers.items()]
        return SimpleNamespace(metrics=metrics)


def test_a_class_of_the_users_gets_values_and_request() -> None:
    """In the server's process, where it may keep something."""
    app = App(load({"FEEDBACK_TASK": f"{__name__}.Sum"}), open_store("memory:", 60))
    try:
        calls = Sum.calls
        whole = json.loads(SHAPES["labels of two bytes"].make(LARGE))
        whole["request"] = {"x": 5}
        rows = len(whole["truth"]["data"]["ndarray"])
        assert post(app, json.dumps(whole, separators=(",", ":")).encode()).status == 200
        counted = app.read().models[MODEL].all_time["user_counters"]
        numbers = {"own_rows": rows, "own_truth": rows, "own_request": 5}
        assert counted == {(name,): to_units(n) for name, n in numbers.items()}
        assert Sum.calls > calls
    finally:
        app.close()


# --- batches that are cut -----------------------------------------------------------------------


def test_a_batch_is_cut_into_its_events() -> None:
    """Whatever they hold and however they are written; what is no array of objects is not cut."""
    chance = random.Random(20)
    texts = ['"', "\\", "}", "]", "{", ",", "é", "a", '\\"', "\n"]

    def value(depth: int) -> Any:
        kind = chance.randrange(6 if depth else 3)
        if kind == 0:
            return chance.choice([1, -2.5, True, None])
        if kind < 3:
            return "".join(chance.choices(texts, k=chance.randrange(5)))
        if kind == 3:
            return [value(depth - 1) for _ in range(chance.randrange(4))]
        return {chance.choice(texts) + str(n): value(depth - 1) for n in range(chance.randrange(4))}

    for _ in range(300):
        events = [{"a": value(3)} for _ in range(chance.randrange(1, 5))]
        indent = chance.choice([None, 1])
        body = json.dumps(events, indent=indent, ensure_ascii=chance.random() < 0.5).encode()
        spans = split(body, 10)
        assert spans is not None
        assert [json.loads(body[start:end]) for start, end in spans] == events
        assert split(body, len(events) - 1) != spans
        for broken in (body[:-1], body + b"]", body[1:], body + b"x"):
            found = split(broken.strip(), 10)
            assert found is None
    for body in (
        b"",
        b"[",
        b"[]",
        b"{}",
        b"[1]",
        b"[{},]",
        b"[{}{}]",
        b'[{"a]',
        b'[{"\\',
        b"[{}],",
    ):
        assert split(body, 10) is None


def test_the_data_of_an_event_is_left_out_without_decoding_it() -> None:
    """Wherever it stands; and what is no event is left as it is."""
    for data in ({"a": ['"]}']}, [1, {}], 'x\\"', 1.5e3, None):
        event = {"id": "a", "n": -1, "deep": {"data": 1}, "data": data, "type": "b"}
        rest = without_data(json.dumps(event).encode())
        assert rest is not None
        assert json.loads(rest) == {**event, "data": None}
    for text in (b"", b"[]", b"{}", b'{"a"}', b'{"data":', b'{"data":[', b'{"a":1}', b'{"a":"'):
        assert without_data(text) is None


def test_what_is_read_again_is_the_data() -> None:
    """Of plain bodies, of structured events, and of answers that stand for a response."""
    assert dict(Again(b'{"a":1}')) == {"a": 1}
    assert dict(Again(b'{"data":{"a":1}}', True)) == {"a": 1}
    assert dict(Again(b'{"data_base64":"eyJhIjoxfQ=="}', True)) == {"a": 1}
    assert dict(Again(b'{"data":{"a":1}}', True, "response")) == {"response": {"a": 1}}
