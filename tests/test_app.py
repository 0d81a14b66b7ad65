"""The public contract through real server processes: our own, and stock parliament.

What is asked of `function` and `special` is answered alike by both; `own` has the further routes.
"""

from __future__ import annotations

import http.client
import json
import socket
import sqlite3
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import pytest

from tests.servers_http import (
    BATCH,
    FEEDBACK,
    STRUCTURED,
    Answer,
    Fleet,
    Server,
    attributes,
    counters,
    feedback,
    message,
    of_model,
    outcomes,
    series,
    until,
)

EMITTED = f"{FEEDBACK}.metrics"
DEFAULT = "default/default/default/default"
PROBABILITIES = [[0.1, 0.2, 0.7]]
LIMIT = 16 << 20
HUGE = 100_000_000

Special = Callable[..., Server]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The module's servers."""
    fleet = Fleet(tmp_path_factory.mktemp("servers"))
    yield fleet
    fleet.close()


@pytest.fixture(params=["own", "parliament"])
def kind(request: pytest.FixtureRequest) -> str:
    """Our own server, and stock parliament."""
    kind: str = request.param
    return kind


@pytest.fixture
def function(fleet: Fleet, kind: str) -> Server:
    """A function with default settings, shared with other tests: each uses models of its own."""
    return fleet.shared(kind)


@pytest.fixture
def own(fleet: Fleet) -> Server:
    """Our own server with default settings."""
    return fleet.shared("own")


@pytest.fixture
def special(fleet: Fleet, kind: str) -> Iterator[Special]:
    """Starts functions of the test's own, with the variables it is given."""

    def start(
        ready: bool = True, before: Callable[[Server], object] | None = None, **variables: str
    ) -> Server:
        server = fleet.special(kind, **variables)
        if before is not None:
            before(server)
        started: Server = server.start(ready)
        return started

    yield start
    fleet.close_special()


def in_batch(id: str, model: str, response: Any = 1, truth: Any = 1, **more: str) -> dict[str, Any]:
    """A whole event as it stands in a batch."""
    return {**attributes(id, model, **more), "data": feedback(response, truth)}


def counted(server: Server, model: str) -> tuple[int, int]:
    """Events and rows of a model."""
    found = server.models().get(model, {})
    return found.get("events", 0), found.get("rows", 0)


def outcomes_of(server: Server, model: str) -> dict[str, float]:
    """A model's events by outcome."""
    return outcomes(server.exposition(), *of_model(model))


def is_empty(answer: Answer) -> bool:
    """Whether brokers take an answer as accepted without a reply: 202 and not one byte."""
    return answer.status == 202 and answer.body == b"" and not answer.attributes


# --- the reply ----------------------------------------------------------------------------------


def send(server: Server, mode: str, data: Any, attributes: Mapping[str, str]) -> Answer:
    """POST an event in binary or structured mode, or as the one event of a batch."""
    if mode == "binary":
        return server.event(data, attributes)
    if mode == "structured":
        return server.structured(data, attributes)
    return server.batch({**attributes, "data": data})


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_an_event_is_answered_with_its_metrics_event(function: Server, mode: str) -> None:
    """Whatever mode it came in, the reply is a metrics event in binary mode."""
    model = f"reply/{mode}/p/m"
    before = datetime.now(timezone.utc).replace(microsecond=0)
    answer = send(function, mode, feedback(PROBABILITIES, [[0, 0, 1]]), attributes("1", model))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    told = answer.attributes
    assert "datacontenttype" not in told  # binary mode says it by content-type
    moment = datetime.fromisoformat(told.pop("time").replace("Z", "+00:00"))
    assert timedelta(0) <= moment - before < timedelta(seconds=60)
    assert len(told.pop("id")) == 32
    assert told == {
        "specversion": "1.0",
        "type": EMITTED,
        "source": FEEDBACK,
        "subject": model,
        "namespace": "reply",
        "inferenceservicename": mode,
        "endpoint": "p",
        "modelid": "m",
    }
    view = answer.json
    assert view["id"] == model
    assert [view[name] for name in ("namespace", "deployment", "predictor", "model")] == [
        "reply",
        mode,
        "p",
        "m",
    ]
    assert (view["task"], view["window"], view["events"], view["rows"]) == (
        "multiclass",
        "all",
        1,
        1,
    )
    assert view["scores"]["accuracy"] == 1.0
    assert view["intervals"]["accuracy"][1] == 1.0
    assert view["confusion_matrix"] == {
        "labels": ["0", "1", "2"],
        "matrix": [[0, 0, 0], [0, 0, 0], [0, 0, 1]],
    }
    assert view["increment"]["rows"] == 1
    assert view["increment"]["true_positives"] == {"2": 1}


def test_plain_json_is_an_event_without_dedup(function: Server) -> None:
    """Feedback that a person posts with curl counts each time, and each reply has an id."""
    body = json.dumps(feedback()).encode()
    before = counted(function, DEFAULT)
    answers = [function.post(body, content_type="application/json") for _ in range(2)]
    answers.append(function.post(body))  # no content type at all
    assert [answer.status for answer in answers] == [200] * 3
    assert {answer.attributes["subject"] for answer in answers} == {DEFAULT}
    assert len({answer.attributes["id"] for answer in answers}) == 3
    assert counted(function, DEFAULT) == (before[0] + 3, before[1] + 3)


def test_content_types_are_read_as_http_has_them(function: Server) -> None:
    """Case and parameters of a content type do not matter."""
    body = json.dumps({**attributes("1", "ct/d/p/m"), "data": feedback()}).encode()
    types = ("Application/CloudEvents+JSON; charset=utf-8", f"{STRUCTURED};charset=UTF-8")
    answers = [function.post(body, content_type=each) for each in types]
    batch = function.post(b"[" + body + b"]", content_type=f"{BATCH}; charset=utf-8")
    assert [answer.status for answer in (*answers, batch)] == [200, 200, 200]
    assert counted(function, "ct/d/p/m") == (1, 1)


def test_base64_data_of_a_structured_event_is_read(function: Server) -> None:
    """`data_base64` holds the JSON's bytes."""
    body = {
        **attributes("1", "b64/d/p/m"),
        "data_base64": b64encode(json.dumps(feedback()).encode()).decode(),
    }
    answer = function.post(json.dumps(body).encode(), content_type=STRUCTURED)
    assert answer.status == 200
    assert counted(function, "b64/d/p/m") == (1, 1)


@pytest.mark.parametrize("mode", ["binary", "structured", "batch"])
def test_a_redelivery_gets_the_same_id_and_counts_nothing(function: Server, mode: str) -> None:
    """(source, id) alone decide: other attributes, mode and data may differ between attempts."""
    model = f"again/{mode}/p/m"
    event = attributes("same", model, traceparent="00-a")
    first = send(function, mode, feedback(), event)
    again = attributes("same", model, traceparent="00-b", knativearrivaltime="later")
    second = send(function, mode, feedback(2, 3), again)
    assert (first.status, second.status) == (200, 200)
    told = [each.json[0] if mode == "batch" else each.attributes for each in (first, second)]
    assert told[0]["id"] == told[1]["id"]
    assert told[0]["subject"] == told[1]["subject"] == model
    assert [each["traceparent"] for each in told] == ["00-a", "00-b"]
    views = [each.json[0]["data"] if mode == "batch" else each.json for each in (first, second)]
    assert [view["rows"] for view in views] == [1, 1]
    assert counted(function, model) == (1, 1)
    assert outcomes_of(function, model) == {"accepted": 1, "duplicate": 1, "rejected": 0}


def test_a_redelivery_is_answered_as_of_then(function: Server) -> None:
    """With the id and increment of the first answer, and the totals of the second."""
    model = "again/later/p/m"
    event = attributes("first", model)
    first = function.event(feedback(1, 1), event)
    function.event(feedback(1, 0), attributes("second", model))
    again = function.event(feedback(1, 1), event)
    assert again.attributes["id"] == first.attributes["id"]
    assert again.json["increment"] == first.json["increment"]
    assert [each.json["rows"] for each in (first, again)] == [1, 2]
    assert [each.json["scores"]["accuracy"] for each in (first, again)] == [1.0, 0.5]


def test_an_emitted_id_is_derived_from_source_and_id_only(function: Server) -> None:
    """Model and mode do not matter to it; source and id do, and where one ends the other begins."""

    def emitted(id: str, source: str, model: str = "ids/d/p/m", mode: str = "binary") -> str:
        event = attributes(id, model, source=source)
        answer = send(function, mode, feedback(), event)
        assert answer.status == 200
        return answer.attributes["id"]

    one = emitted("bc", "/a")
    assert emitted("bc", "/a", model="ids/d/p/other") == one
    assert emitted("bc", "/a", mode="structured") == one
    others = [emitted("c", "/ab"), emitted("bc", "/b"), emitted("cb", "/a"), emitted("/abc", "b")]
    assert len({one, *others}) == 5


TEXTS = {
    "ascii": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "unicode": "é✓ 日本 \N{PILE OF POO}",
    "percent": "100% %41 %zz",
    "quotes": "a \"b\" 'c' \\d",
    "url": "https://x.y/z?a=b&c=d#e",
}


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_extension_attributes_are_carried_over(function: Server, mode: str) -> None:
    """Any text comes back as it went in, percent-encoded to printable ASCII in the headers."""
    model = f"carried/{mode}/p/m"
    sent = {f"ext{name}": text for name, text in TEXTS.items()}
    sent |= {"requestid": "puid-1", "traceparent": TEXTS["ascii"]}
    answer = send(function, mode, feedback(), attributes("1", model, **sent))
    assert answer.status == 200
    for name, text in sent.items():
        header = answer.attributes[name]
        assert header.isascii()
        assert header.isprintable()
        assert not set(header) & set(' "')
        assert unquote(header, errors="strict") == text


def test_core_and_knative_attributes_are_not_carried_over(function: Server) -> None:
    """Time, subject, schema and what the broker added for this delivery belong to the request."""
    event = attributes(
        "1",
        "notcarried/d/p/m",
        subject="theirs",
        dataschema="http://schema",
        time="2020-01-01T00:00:00Z",
        knativearrivaltime="2020-01-01T00:00:00Z",
    )
    told = function.event(feedback(), event).attributes
    assert told["subject"] == "notcarried/d/p/m"
    assert not told["time"].startswith("2020")
    assert not {"dataschema", "knativearrivaltime"} & told.keys()


def test_raw_unicode_in_a_header_is_read(function: Server) -> None:
    """An attribute that is not percent-encoded never counts an event for another model."""
    before = counted(function, DEFAULT)
    body = json.dumps(feedback()).encode()
    with socket.create_connection(("127.0.0.1", function.port), 10) as connection:
        head = (
            f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
            "ce-specversion: 1.0\r\nce-id: raw\r\nce-source: /raw\r\nce-namespace: raw\r\n"
            f"ce-type: {FEEDBACK}\r\nce-modelid: modèle✓\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        response = http.client.HTTPResponse(connection)
        response.begin()
        answer = json.loads(response.read())
    assert (response.status, answer["id"]) == (200, "raw/default/default/modèle✓")
    assert counted(function, DEFAULT) == before


# --- batches ------------------------------------------------------------------------------------


def test_a_batch_is_answered_with_one_event_a_model(function: Server) -> None:
    """One metrics event for each model touched, in order, with the sum of its increments."""
    answer = function.batch(
        in_batch("1", "batch/two/p/b"),
        in_batch("2", "batch/one/p/a", 0, 1),
        in_batch("3", "batch/two/p/b", 0, 1),
        in_batch("4", "batch/two/p/b", type="another.type"),
    )
    assert answer.status == 200
    assert answer.headers["content-type"] == BATCH
    events = answer.json
    assert [event["subject"] for event in events] == ["batch/two/p/b", "batch/one/p/a"]
    for event in events:
        assert event["specversion"] == "1.0"
        assert event["type"] == EMITTED
        assert event["source"] == FEEDBACK
        assert event["datacontenttype"] == "application/json"
        assert event["data"]["id"] == event["subject"]
    assert [event["data"]["events"] for event in events] == [2, 1]
    assert [event["data"]["increment"]["rows"] for event in events] == [2, 1]
    assert [event["modelid"] for event in events] == ["b", "a"]
    assert len({event["id"] for event in events}) == 2


def test_an_event_twice_in_one_batch_counts_once(function: Server) -> None:
    """Deduplication sees the batch itself."""
    answer = function.batch(in_batch("1", "twice/d/p/m"), in_batch("1", "twice/d/p/m"))
    assert answer.status == 200
    assert outcomes_of(function, "twice/d/p/m") == {"accepted": 1, "duplicate": 1, "rejected": 0}


def test_a_batch_with_one_bad_event_is_refused_whole(function: Server) -> None:
    """Nothing of it counts, the reason says which event, and its good ones may come again."""
    good = in_batch("1", "whole/d/p/m")
    answer = function.batch(good, {**in_batch("2", "whole/d/p/m"), "data": {"truth": message([1])}})
    assert answer.status == 400
    assert answer.json["field"] == "response"
    assert counted(function, "whole/d/p/m") == (0, 0)
    bad = {name: text for name, text in good.items() if name != "id"}
    answer = function.batch(good, bad)
    assert answer.detail.startswith("[1].id: ")
    assert function.batch(good).status == 200
    assert counted(function, "whole/d/p/m") == (1, 1)


# --- 202 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", [EMITTED, "another.type", f"{FEEDBACK}.other"])
@pytest.mark.parametrize("mode", ["binary", "structured", "batch"])
def test_other_types_are_accepted_with_an_empty_body(
    function: Server, type: str, mode: str
) -> None:
    """Also our own type, and whatever their data is: no reply, no loop, counted as ignored only."""
    before = counters(function.exposition())
    assert is_empty(
        send(function, mode, {"not": "feedback"}, attributes("1", "t/d/p/m", type=type))
    )
    reason = "own_type" if type == EMITTED else "other_type"
    ignored = f'feedback_ignored_events_total{{reason="{reason}"}}'
    assert counters(function.exposition()) == {**before, ignored: before[ignored] + 1}


def test_an_empty_batch_is_accepted_with_an_empty_body(function: Server) -> None:
    """A batch of nothing is a batch."""
    assert is_empty(function.batch())


# --- 413 ----------------------------------------------------------------------------------------


def padded(size: int) -> bytes:
    """Feedback of exactly so many bytes."""
    body = json.dumps(feedback()).encode()
    return body + b" " * (size - len(body))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb_is_refused_and_not_held(
    function: Server, kind: str, chunked: bool
) -> None:
    """413 with the reason, counted as rejected, whether its length is told or not."""
    pids = function.pids
    before, memory = outcomes(function.exposition()), _peak_memory(pids)
    part = b" " * (1 << 20)
    body = (part for _ in range(HUGE // len(part) + 1)) if chunked else b" " * HUGE
    answer = function.request("POST", "/", {"content-type": "application/json"}, body)
    assert answer.status == 413
    assert answer.detail.startswith("data: 10")
    assert "16777216" in answer.detail
    after = outcomes(function.exposition())
    assert after == {**before, "rejected": before["rejected"] + 1}
    assert function.pids == pids
    if kind == "own":  # parliament itself reads every body before it calls a function
        assert _peak_memory(pids) - memory < HUGE // 2


def _peak_memory(pids: list[int]) -> int:
    """Bytes of resident memory that processes had at most."""
    lines = [Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2] for pid in pids]
    return sum(int(line.split()[0]) * 1024 for line in lines)


@pytest.mark.parametrize("chunked", [False, True])
def test_the_limit_of_a_body_is_inclusive(function: Server, chunked: bool) -> None:
    """A body of the limit is taken, one more byte is not."""
    statuses = []
    for size in (LIMIT, LIMIT + 1):
        body = padded(size)
        parts = iter([body[: size // 2], body[size // 2 :]])
        headers = {"content-type": "application/json"}
        answer = function.request("POST", "/", headers, parts if chunked else body)
        statuses.append(answer.status)
    assert statuses == [200, 413]


# --- 400 ----------------------------------------------------------------------------------------


class Bad(NamedTuple):
    """A request that can never be counted, and the field that the answer must name."""

    field: str
    data: Any = None
    """The event's data; bytes as they are, else as JSON."""
    attributes: Mapping[str, str | None] = {}
    """Differences from a good event's attributes; None: missing."""
    headers: Mapping[str, str] | None = None
    """All headers, instead of an event in binary mode."""

    def sent_to(self, server: Server) -> Answer:
        """The answer to it."""
        body = self.data if isinstance(self.data, bytes) else json.dumps(self.data).encode()
        if self.headers is not None:
            return server.request("POST", "/", self.headers, body)
        event = {**attributes("1", "bad/d/p/m"), **self.attributes}
        return server.event(body, {name: text for name, text in event.items() if text is not None})


def _whole(**differences: Any) -> bytes:
    """A structured event with differences from a good one; None: missing."""
    event = {**attributes("1", "bad/d/p/m"), "data": feedback(), **differences}
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()


def _against(truth: Any, response: Any, form: str = "ndarray") -> dict[str, Any]:
    return {"response": {"data": {form: response}}, "truth": {"data": {form: truth}}}


def _tf(**tensor: Any) -> dict[str, Any]:
    return {"response": {"data": {"tftensor": tensor}}, "truth": message([1])}


ONE_HOT = [[0, 0, 1]]
IS_STRUCTURED = {"content-type": STRUCTURED}
IS_BATCH = {"content-type": BATCH}

BAD = {
    # no JSON, or none of feedback
    "malformed JSON": Bad("data", b'{"truth":'),
    "bytes": Bad("data", b"\x00\xff\xfe\x80"),
    "truncated UTF-8": Bad("data", b'{"truth": "\xc3"}'),
    "empty body": Bad("data", b""),
    "an array": Bad("data", [feedback()]),
    "a string": Bad("data", "feedback"),
    "null": Bad("data", None),
    "deep nesting": Bad("data", b"[" * 100_000),
    "deep nesting in truth": Bad(
        "data", b'{"truth":{"data":{"ndarray":' + b"[" * 50_000 + b"]" * 50_000 + b"}}}"
    ),
    "nesting": Bad(
        "truth.data.ndarray",
        b'{"truth":{"data":{"ndarray":' + b"[" * 500 + b"1" + b"]" * 500 + b"}}}",
    ),
    # parts missing or of an unknown kind
    "no truth": Bad("truth", {"response": message([1])}),
    "truth is null": Bad("truth", {"response": message([1]), "truth": None}),
    "truth is empty": Bad("truth", {"response": message([1]), "truth": {}}),
    "truth is a list": Bad("truth", {"response": message([1]), "truth": [1]}),
    "no response": Bad("response", {"truth": message([1])}),
    "response is null": Bad("response", {"truth": message([1]), "response": None}),
    "unknown payload": Bad("truth", {"response": message([1]), "truth": {"xmlData": "<x/>"}}),
    "unknown data": Bad("truth.data", _against([1], [1], form="sparse")),
    "unknown payload of the response": Bad(
        "response", {"response": {"x": 1}, "truth": message([1])}
    ),
    "strData is no string": Bad(
        "truth.strData", {"truth": {"strData": 1}, "response": message([1])}
    ),
    "binData is no base64": Bad(
        "truth.binData", {"truth": {"binData": "%"}, "response": message([1])}
    ),
    "V2 without datatype": Bad(
        "response.outputs[0].datatype",
        {
            "truth": message([1]),
            "response": {"outputs": [{"name": "x", "shape": [1], "data": [1]}]},
        },
    ),
    # shapes
    "ragged": Bad("response.data.ndarray", _against([[1, 0]], [[0.5, 0.5], [1.0]])),
    "rows and scalars": Bad("response.data.ndarray", _against([0, 1], [[0.5, 0.5], 1])),
    "empty": Bad("truth.data.ndarray", _against([], [1])),
    "empty rows": Bad("truth.data.ndarray", _against([[]], [1])),
    "N disagrees": Bad("response.data.ndarray", _against([1, 2, 3], [1, 2])),
    "K disagrees": Bad("response.data.ndarray", _against(ONE_HOT, [[0.5, 0.5]])),
    "tensor's shape": Bad(
        "truth.data.tensor.values", _against({"shape": [2, 2], "values": [1, 2, 3]}, [1], "tensor")
    ),
    "tensor of gigabytes": Bad(
        "response.data.tftensor.int_val",
        _tf(dtype="DT_INT32", tensor_shape={"dim": [{"size": 1 << 40}]}, int_val=[1]),
    ),
    # numbers
    "NaN": Bad("data", b'{"truth":{"data":{"ndarray":[NaN]}},"response":{"data":{"ndarray":[1]}}}'),
    "Infinity": Bad("data", b'{"truth":{"data":{"ndarray":[Infinity]}},"response":{"data":{}}}'),
    "reward is NaN": Bad("data", b'{"reward":NaN}'),
    "a number past double": Bad("data", b'{"truth":{"data":{"ndarray":[1e999]}}}'),
    "NaN in bytes": Bad(
        "response.data.tftensor",
        _tf(
            dtype="DT_DOUBLE",
            tensor_shape={"dim": [{"size": 1}]},
            tensor_content=b64encode(b"\0\0\0\0\0\0\xf8\x7f").decode(),
        ),
    ),
    "reward is a string": Bad("reward", {**feedback(), "reward": "1"}),
    "reward is a boolean": Bad("reward", {**feedback(), "reward": True}),
    "null in an array": Bad("truth.data.ndarray", _against([None], [1])),
    "probabilities past 1": Bad("response.data.ndarray", _against(ONE_HOT, [[0.1, 0.2, 0.9]])),
    "a negative probability": Bad("response.data.ndarray", _against(ONE_HOT, [[-0.1, 0.4, 0.7]])),
    "truth is not one-hot": Bad("truth.data.ndarray", _against([[1, 0, 1]], [[0.1, 0.2, 0.7]])),
    "a label past the vector": Bad("truth.data.ndarray", _against([3], [[0.1, 0.2, 0.7]])),
    "a negative label": Bad("truth.data.ndarray", _against([-1], [[0.1, 0.2, 0.7]])),
    "an unknown word": Bad("truth.data.ndarray", _against(["cat"], [[0.1, 0.2, 0.7]])),
    # labels
    "control characters": Bad("truth.data.ndarray", _against(["a\nb"], ["a"])),
    "a NUL": Bad("response.data.ndarray", _against(["a"], ["a\0"])),
    "a lone surrogate": Bad("data", b'{"truth":{"data":{"ndarray":["\\ud800"]}}}'),
    "10 kB class name": Bad("truth.data.ndarray", _against(["x" * 10_000], ["a"])),
    "10 kB column name": Bad(
        "response.data.names",
        {
            "response": {"data": {"names": ["x" * 10_000, "b"], "ndarray": [[0.5, 0.5]]}},
            "truth": message([[0, 1]]),
        },
    ),
    # meta
    "meta is a list": Bad(
        "truth.meta", {"response": message([1]), "truth": {**message([1]), "meta": [1]}}
    ),
    "a metric without a name": Bad(
        "truth.meta.metrics[0].key",
        {
            "response": message([1]),
            "truth": {**message([1]), "meta": {"metrics": [{"key": "a b", "value": 1}]}},
        },
    ),
    "a metric of ours": Bad(
        "truth.meta.metrics[0].key",
        {
            "response": message([1]),
            "truth": {**message([1]), "meta": {"metrics": [{"key": "feedback_rows", "value": 1}]}},
        },
    ),
    "a metric whose name is a suffix": Bad(
        "truth.meta.metrics[0].key",
        {
            "response": message([1]),
            "truth": {**message([1]), "meta": {"metrics": [{"key": "_total", "value": 1}]}},
        },
    ),
    # attributes in headers
    **{
        f"no {name}": Bad(f"ce-{name}", feedback(), {name: None})
        for name in ("id", "source", "type", "specversion")
    },
    "specversion": Bad("ce-specversion", feedback(), {"specversion": "9.9"}),
    "time": Bad("ce-time", feedback(), {"time": "yesterday"}),
    "no such day": Bad("ce-time", feedback(), {"time": "2026-02-30T00:00:00Z"}),
    "a slash": Bad("ce-modelid", feedback(), {"modelid": "a/b"}),
    "a slash that makes up for another": Bad("ce-namespace", feedback(), {"namespace": "a/b"}),
    "a newline": Bad("ce-modelid", feedback(), {"modelid": "a\r\nb"}),
    "a NUL in an extension": Bad("ce-x", feedback(), {"x": "\0"}),
    "10 kB extension": Bad("ce-x", feedback(), {"x": "x" * 10_000}),
    "a long model": Bad("ce-modelid", feedback(), {"modelid": "m" * 257}),
    "an attribute's name": Bad("ce-a-b", feedback(), {"a-b": "x"}),
    "bytes that are no UTF-8": Bad(
        "ce-x",
        feedback(),
        headers={f"ce-{name}": text for name, text in attributes("1").items()} | {"ce-x": "%ff"},
    ),
    "another format": Bad(
        "content-type", b"<x/>", headers={"content-type": "application/cloudevents+xml"}
    ),
    # structured and batch
    "structured: malformed": Bad("data", b"{", headers=IS_STRUCTURED),
    "structured: a list": Bad("data", b"[]", headers=IS_STRUCTURED),
    "structured: no id": Bad("id", _whole(id=None), headers=IS_STRUCTURED),
    "structured: id is a list": Bad("id", _whole(id=[1]), headers=IS_STRUCTURED),
    "structured: an attribute's name": Bad("A-b", _whole(**{"A-b": "x"}), headers=IS_STRUCTURED),
    "structured: control characters": Bad("x", _whole(x="\u0007"), headers=IS_STRUCTURED),
    "structured: a slash": Bad("ce-endpoint", _whole(endpoint="a/b"), headers=IS_STRUCTURED),
    "structured: no data": Bad("data", _whole(data=None), headers=IS_STRUCTURED),
    "structured: two data": Bad("data_base64", _whole(data_base64="e30="), headers=IS_STRUCTURED),
    "structured: no base64": Bad(
        "data_base64",
        json.dumps({**attributes("1"), "data_base64": "%"}).encode(),
        headers=IS_STRUCTURED,
    ),
    "structured: data is a string": Bad("data", _whole(data="{}"), headers=IS_STRUCTURED),
    "batch: one event": Bad("data", _whole(), headers=IS_BATCH),
    "batch: a number": Bad("[0]", b"[1]", headers=IS_BATCH),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_and_counts_nothing(function: Server, bad: Bad) -> None:
    """400, one line that begins with the field, nothing counted but a rejection, no harm done."""
    before = counters(function.exposition())
    answer = bad.sent_to(function)
    assert answer.status == 400, answer
    assert answer.detail.startswith(f"{bad.field}: ") or answer.detail.startswith(f"{bad.field}.")
    assert answer.json["field"].startswith(bad.field)
    assert answer.detail.isprintable()
    assert len(answer.detail) <= 160
    assert len(b64encode(answer.body)) <= 1024  # what a broker tells the dead letter's reader
    after = counters(function.exposition())
    ((name, number),) = after.items() - before.items()
    assert name.startswith("feedback_events_total{")
    assert 'outcome="rejected"' in name
    assert number == before.get(name, 0) + 1


def test_the_process_is_unharmed_by_all_of_it(function: Server) -> None:
    """After every row above the same process answers, on the same connection, and is ready."""
    pids = function.pids
    assert {bad.sent_to(function).status for bad in BAD.values()} == {400}
    assert function.feedback("1", "unharmed/d/p/m").status == 200
    assert function.pids == pids
    assert function.get("/health/readiness").status == 200


def test_a_refused_event_is_counted_at_its_model(function: Server) -> None:
    """Binary, structured or in a batch; and at none where its model has no events."""
    known, unknown = "rejected/d/p/modèle", "rejected/d/p/nobody"
    assert function.feedback("1", known).status == 200
    for model in (known, unknown):
        for mode in ("binary", "structured", "batch"):
            assert send(function, mode, {"truth": 1}, attributes("2", model)).status == 400
    assert outcomes_of(function, known) == {"accepted": 1, "duplicate": 0, "rejected": 3}
    assert not series(function.exposition(), *of_model(unknown))


def test_feedback_that_contradicts_its_model_is_refused(function: Server) -> None:
    """The task that its first events decided stays; the reason says what decides otherwise."""
    assert function.feedback("1", "contra/d/p/m", 1.5, 2.5).status == 200
    answer = function.feedback("2", "contra/d/p/m", ["cat"], ["dog"])
    assert answer.status == 400
    assert "FEEDBACK_TASK" in answer.detail
    assert counted(function, "contra/d/p/m") == (1, 1)


# --- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "accept", "content_type"),
    [
        ("/", "text/html,application/xhtml+xml,*/*;q=0.8", "text/html"),
        ("/", "*/*", "text/html"),
        ("/", "", "text/html"),
        ("/", "application/json", "application/json"),
        ("/", "application/json;q=0.5, text/html", "text/html"),
        ("/", "application/json, text/html;q=0.5, */*;q=0.1", "application/json"),
        ("/", "text/plain;version=0.0.4", "text/plain"),
        ("/", "application/openmetrics-text;version=1.0.0", "application/openmetrics-text"),
        ("/?format=html", "application/json", "text/html"),
        ("/?format=json", "text/html", "application/json"),
        ("/?format=prometheus", "text/html", "text/plain"),
        ("/?format=prometheus", "application/openmetrics-text", "application/openmetrics-text"),
    ],
)
def test_the_front_negotiates(function: Server, path: str, accept: str, content_type: str) -> None:
    """HTML, JSON, Prometheus text or OpenMetrics, by `?format=` or else by Accept."""
    function.feedback("1", "front/d/p/m")
    answer = function.get(path, accept=accept)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith(content_type)
    if content_type == "text/html":
        assert "front" in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    elif content_type == "application/json":
        assert "front/d/p/m" in [model["id"] for model in answer.json["models"]]
    else:
        assert "feedback_events_total{" in answer.text
        assert answer.text.endswith("# EOF\n") == ("openmetrics" in content_type)


def test_an_unknown_format_is_refused(function: Server) -> None:
    """`?format=` must be one of three."""
    answer = function.get("/?format=xml")
    assert answer.status == 400
    assert answer.detail.startswith("format: ")


def test_a_hostile_name_is_harmless_on_the_page(function: Server) -> None:
    """Names of models are text on the page, never markup."""
    assert function.feedback("1", "<script>alert(1)<b>/d/p/m").status == 200
    page = function.get("/", accept="text/html").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;b&gt;" in page


@pytest.mark.parametrize("path", ["/health/liveness", "/health/readiness"])
def test_health_answers(function: Server, path: str) -> None:
    """Both probes are 200 on a function that can commit."""
    assert function.get(path).status == 200


@pytest.mark.parametrize("path", ["/metrics", "/v1/metrics"])
@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0",
            "application/openmetrics-text; version=1.0.0",
        ),
        ("application/openmetrics-text;version=x.y", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_metrics_in_either_format(own: Server, path: str, accept: str, content_type: str) -> None:
    """Both paths give Prometheus text, or OpenMetrics where it is accepted."""
    own.feedback("1", "formats/d/p/m")
    answer = own.get(path, accept=accept)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith(content_type)
    assert 'deployment_namespace="formats"' in answer.text


def test_protocol(own: Server) -> None:
    """The ancestor's route says what it speaks."""
    answer = own.get("/protocol")
    assert (answer.status, answer.text) == (200, "seldonfeedback.http")


def test_the_list_of_models(own: Server) -> None:
    """Identity, task, events, rows and the time of the youngest event."""
    own.feedback("1", "list/d/p/m", [1, 2, 3], [1, 2, 2], time="2026-01-02T03:04:05Z")
    own.feedback("2", "list/d/p/m", time="2026-01-02T03:04:04Z")
    assert own.get("/v1/models").json["models"] == own.get("/?format=json").json["models"]
    assert own.models()["list/d/p/m"] == {
        "id": "list/d/p/m",
        "namespace": "list",
        "deployment": "d",
        "predictor": "p",
        "model": "m",
        "task": "multiclass",
        "events": 2,
        "rows": 4,
        "last_event": "2026-01-02T03:04:05Z",
    }


def test_the_view_of_a_model_in_each_window(own: Server) -> None:
    """`window=` slides over event time; without it the view is of all time."""
    now = datetime.now(timezone.utc)
    for id, age in (("1", 0), ("2", 30), ("3", 600), ("4", 3 * 3600), ("5", 3 * 86400)):
        time = (now - timedelta(seconds=age)).isoformat()
        assert own.feedback(id, "windows/d/p/m", time=time).status == 200
    path = "/v1/models/windows/d/p/m"
    found = {}
    for window in ("all", "5m", "1h", "1d"):
        view = own.get(f"{path}?window={window}").json
        assert view["window"] == window
        found[window] = view["events"]
    assert found == {"all": 5, "5m": 2, "1h": 3, "1d": 4}
    assert own.get(path).json == own.get(f"{path}?window=all").json
    assert "increment" not in own.get(path).json


@pytest.mark.parametrize("model", ["modèle ✓", "what?#frag", "100%41", "a+b&c=d", "..", "a\\b;c"])
def test_a_model_of_any_name_has_its_view(own: Server, model: str) -> None:
    """Any name that an event may have is found under its percent-encoded path."""
    assert own.feedback("1", f"names/d/p/{model}").status == 200
    encoded = quote(model, safe="").replace("..", "%2E%2E")
    answer = own.get(f"/v1/models/names/d/p/{encoded}")
    assert answer.status == 200
    assert answer.json["id"] == f"names/d/p/{model}"


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("GET", "/v1/models/no/such/model/here", 404, "Not Found"),
        ("GET", "/v1/models/only/three/parts", 404, "Not Found"),
        ("GET", "/nothing", 404, "Not Found"),
        ("POST", "/nothing", 404, "Not Found"),
        ("POST", "/metrics", 405, "Method Not Allowed"),
        ("DELETE", "/v1/models", 405, "Method Not Allowed"),
        ("PUT", "/", 405, "Method Not Allowed"),
    ],
)
def test_what_is_not_there(own: Server, method: str, path: str, status: int, title: str) -> None:
    """Unknown paths, models and methods are problems whose body agrees with the status."""
    answer = own.request(method, path, {}, b"" if method != "GET" else None)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json["status"], answer.json["title"]) == (status, title)
    assert answer.detail


def test_refused_events_alone_make_no_model(own: Server) -> None:
    """What stands for models that nobody knows is no model on the pages."""
    assert own.post(b"{}").status == 400
    assert "unknown/unknown/unknown/unknown" not in own.models()
    assert own.get("/v1/models/unknown/unknown/unknown/unknown").status == 404


def test_a_window_that_is_not_kept_is_refused(own: Server) -> None:
    """400, and the reason lists those that are."""
    own.feedback("1", "window/d/p/m")
    answer = own.get("/v1/models/window/d/p/m?window=7m")
    assert answer.status == 400
    assert answer.detail == "window: '7m' is not kept; one of all, 5m, 1h, 1d"


# --- settings of the function's own -------------------------------------------------------------


def test_reply_off_is_an_empty_202(special: Special) -> None:
    """Events count, and no mode is answered with a body; duplicates neither."""
    function = special(FEEDBACK_REPLY="off")
    event = attributes("1", "off/d/p/m")
    for mode in ("binary", "structured", "batch", "binary"):
        assert is_empty(send(function, mode, feedback(), event))
    assert is_empty(function.post(json.dumps(feedback()).encode()))
    assert counted(function, "off/d/p/m") == (1, 1)
    assert counted(function, DEFAULT) == (1, 1)
    assert outcomes(function.exposition()) == {"accepted": 2, "duplicate": 3, "rejected": 0}


def test_identity_from_variables_and_limits_of_models_and_classes(special: Special) -> None:
    """Variables name what an event does not; caps refuse models and fold classes."""
    function = special(
        SELDON_DEPLOYMENT_NAMESPACE="prod",
        SELDON_DEPLOYMENT_ID="fraud",
        PREDICTOR_ID="canary",
        PREDICTIVE_UNIT_ID="net",
        FEEDBACK_MAX_MODELS="2",
        FEEDBACK_MAX_CLASSES="3",
        FEEDBACK_EVENT_TYPE="my.type",
        FEEDBACK_EVENT_SOURCE="/my/source",
        FEEDBACK_ACCEPT_TYPES="a.type, b.type",
    )
    answer = function.feedback("1", type="a.type")
    assert answer.attributes["subject"] == "prod/fraud/canary/net"
    assert answer.attributes["type"] == "my.type"
    assert answer.attributes["source"] == "/my/source"
    assert is_empty(function.feedback("1b"))  # the usual type is not among the accepted ones
    answer = function.feedback("2", type="b.type", endpoint="main", modelid="")
    assert answer.json["id"] == "prod/fraud/main/net"

    answer = function.feedback("3", type="a.type", endpoint="third")
    assert answer.status == 400
    assert answer.detail == "ce-modelid: FEEDBACK_MAX_MODELS models are served already"
    assert function.models().keys() == {"prod/fraud/canary/net", "prod/fraud/main/net"}
    assert "past FEEDBACK_MAX_MODELS" in function.log()
    assert outcomes(function.exposition())["rejected"] == 1

    labels = ["a", "b", "c", "d", "e"]
    event = attributes("4", type="a.type", endpoint="main")
    refused = function.batch(
        {**event, "data": feedback(["phantom"], ["ghost"])}, {**event, "id": "5", "data": {}}
    )
    assert refused.status == 400  # and its classes take nobody's place
    for number, label in enumerate(labels):
        assert (
            function.feedback(
                f"c{number}", type="a.type", endpoint="main", response=[label], truth=["a"]
            ).status
            == 200
        )
    view = function.feedback("6", type="a.type", endpoint="main", response=["e"], truth=["e"]).json
    assert [each["class"] for each in view["classes"]] == ["1", "a", "b", "__other__"]
    other = view["classes"][-1]
    assert other["support"] == 1
    assert view["scores"]["accuracy"] == 3 / 7
    assert "count as __other__" in function.log()


def test_a_bug_is_a_500_that_tells_nothing(special: Special, tmp_path: Path) -> None:
    """A user's class that raises: constant text, the traceback in the log only, no harm done."""
    (tmp_path / "mymetrics.py").write_text(
        "class Metric:\n"
        "    def __init__(self, metrics): self.metrics = metrics\n"
        "class Custom:\n"
        "    def transform(self, truth, response, request=None):\n"
        "        if truth == [13]:\n"
        "            raise RuntimeError('secret 42')\n"
        "        return Metric([{'key': 'hits', 'type': 'COUNTER', 'value': 1}])\n"
    )
    root = str(Path(__file__).parent.parent)
    function = special(FEEDBACK_TASK="mymetrics.Custom", PYTHONPATH=f"{root}:{tmp_path}")
    assert function.feedback("1", "bug/d/p/m").status == 200
    before = counters(function.exposition())
    for answer in (
        function.feedback("2", "bug/d/p/m", 1, 13),
        function.batch(in_batch("3", "bug/d/p/m"), in_batch("4", "bug/d/p/m", 1, 13)),
    ):
        assert answer.status == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert "secret" not in answer.text
        assert answer.json == {
            "type": "about:blank",
            "title": "Internal Server Error",
            "status": 500,
            "detail": "internal error; the log has more",
        }
    assert counters(function.exposition()) == before
    assert "RuntimeError: secret 42" in function.log()
    assert "Traceback" in function.log()
    assert function.feedback("3", "bug/d/p/m").status == 200
    assert counted(function, "bug/d/p/m") == (2, 2)


def test_a_store_that_cannot_commit_is_a_503_and_recovers(special: Special) -> None:
    """A full disk: 503 with Retry-After, not ready, answers from memory; then all is well."""
    function = special()
    assert function.feedback("1", "disk/d/p/m").status == 200
    function.limit_files(4096)
    for answer in (
        function.feedback("2", "disk/d/p/m"),
        function.batch(in_batch("3", "disk/d/p/m")),
        function.post(json.dumps(feedback()).encode()),
    ):
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.detail
    assert function.event({"truth": 1}, attributes("4", "disk/d/p/m")).status == 400
    if function.kind == "own":  # stock parliament's own probes always answer
        assert function.get("/health/readiness").status == 503
    assert function.get("/health/liveness").status == 200
    assert counted(function, "disk/d/p/m") == (1, 1)
    assert series(function.exposition())["feedback_store_ready"] == 0
    function.limit_files(None)
    until(lambda: series(function.exposition())["feedback_store_ready"])
    assert function.get("/health/readiness").status == 200
    assert function.feedback("2", "disk/d/p/m").status == 200
    assert counted(function, "disk/d/p/m") == (2, 2)
    log = function.log()
    assert log.count("store cannot commit") == 1
    assert "store commits again" in log
    function.restart()
    assert counted(function, "disk/d/p/m") == (2, 2)


def test_a_corrupt_file_is_left_alone_until_it_is_gone(special: Special) -> None:
    """Started on a file that is no database: 503 until somebody moves it, never overwritten."""
    garbage = b"not a database, " * 512
    function = special(ready=False, before=lambda server: server.file.write_bytes(garbage))
    assert function.feedback("1", "corrupt/d/p/m").status == 503
    if function.kind == "own":
        assert function.get("/health/readiness").status == 503
    assert function.models() == {}
    assert "store cannot commit (corrupt)" in function.log()
    assert function.file.read_bytes() == garbage
    function.file.unlink()
    until(lambda: function.feedback("1", "corrupt/d/p/m").status == 200)
    assert counted(function, "corrupt/d/p/m") == (1, 1)


def test_a_full_queue_is_a_503_for_those_that_do_not_fit(special: Special) -> None:
    """While a commit waits for another process's lock, one event waits; the others come again."""
    function = special(FEEDBACK_MAX_QUEUE="1")
    function.feedback("0", "queue/d/p/m")
    answers: list[Answer] = []

    def send(id: str) -> None:
        twin = function.twin()
        answers.append(twin.feedback(id, "queue/d/p/m"))
        twin.hang_up()

    ids = [str(number) for number in range(1, 5)]
    other = sqlite3.connect(function.file, isolation_level=None)
    try:
        with ThreadPoolExecutor(len(ids)) as pool:
            other.execute("BEGIN IMMEDIATE")
            done = [pool.submit(send, id) for id in ids]
            until(lambda: len(answers) >= 2)  # of four one may be in a commit, and one wait
            assert {answer.status for answer in answers} == {503}
            assert counted(function, "queue/d/p/m") == (1, 1)  # questions wait for no lock
            assert function.get("/health/readiness").status in (200, 503)
            other.execute("ROLLBACK")
            for each in done:
                each.result()
    finally:
        other.close()
    refused = [answer for answer in answers if answer.status == 503]
    assert all(answer.headers["retry-after"] for answer in refused)
    taken = [answer for answer in answers if answer.status == 200]
    assert taken
    assert len(taken) + len(refused) == 4
    assert counted(function, "queue/d/p/m") == (1 + len(taken), 1 + len(taken))


# --- restarts -----------------------------------------------------------------------------------


def test_sigterm_flushes_what_was_acknowledged(special: Special) -> None:
    """With an interval nothing is shown before it is durable, and SIGTERM makes it so."""
    function = special(FEEDBACK_SNAPSHOT_INTERVAL="3600")
    for id in ("1", "2", "2", "3"):
        answer = function.feedback(id, "flush/d/p/m")
        assert (answer.status, answer.json["events"]) == (200, 0)
    assert counted(function, "flush/d/p/m") == (0, 0)
    function.terminate()
    function.start()
    assert counted(function, "flush/d/p/m") == (3, 3)
    assert outcomes_of(function, "flush/d/p/m") == {"accepted": 3, "duplicate": 1, "rejected": 0}


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_restart_restores_everything(special: Special, how: str) -> None:
    """Models of every task, duplicates, rejections, rewards, user metrics: the same to the bit."""
    function = special(FEEDBACK_SEGMENTS="country")
    metrics = [
        {"key": "hits", "type": "COUNTER", "value": 2, "tags": {"a": 'é"\\'}},
        {"key": "load", "type": "GAUGE", "value": 0.1},
        {"key": "took", "type": "TIMER", "value": 20.2},
    ]
    names = {"names": ["cat", "dog"], "ndarray": [[0.3, 0.7]]}
    sent: list[tuple[Any, dict[str, str]]] = [
        ({**feedback([[0.1, 0.2, 0.7]], [[0, 0, 1]]), "reward": 0.1}, attributes("1", "r/a/p/m")),
        (
            {**feedback([[0.6, 0.3, 0.1]], [1]), "reward": -0.7},
            attributes("2", "r/a/p/m", country="nl"),
        ),
        (feedback([0.1, 2.2, 3.3], [0.5, 2.1, 3.7]), attributes("3", "r/regression/p/m")),
        (feedback([0.1, 0.9], [0, 0]), attributes("4", "r/binary/p/m")),
        ({"response": {"data": names}, "truth": message(["dog"])}, attributes("5", "r/named/p/m")),
        (
            {"response": message([1]), "truth": {**message([1]), "meta": {"metrics": metrics}}},
            attributes("6", "r/user/p/m"),
        ),
    ]
    for data, event in sent:
        assert function.event(data, event).status == 200, data
    assert function.event(*sent[0]).status == 200  # a duplicate
    assert function.event({}, sent[0][1]).status == 400
    first = function.event(*sent[1])

    before = _state(function)
    getattr(function, how)()
    function.start()
    assert _state(function) == before
    again = function.event(*sent[1])
    assert again.attributes["id"] == first.attributes["id"]
    assert again.json == first.json
    assert outcomes(function.exposition()) == {"accepted": 6, "duplicate": 3, "rejected": 1}


def _state(function: Server) -> tuple[Any, ...]:
    """All that a function tells of its models but what a sliding window holds at the moment."""
    lines = function.exposition().splitlines()
    own = (
        "feedback_commit_",
        "feedback_state_",
        "feedback_store_",
        "feedback_queue_",
        "feedback_seen_",
    )
    kept = [line for line in lines if not line.startswith(own) and 'window="' not in line]
    return function.models(), [line for line in kept if not line.startswith("#")]


def test_worker_processes_answer_as_one(fleet: Fleet) -> None:
    """With several workers every scrape shows the same totals, whichever worker answers."""
    server = fleet.special("own", WEB_CONCURRENCY="2").start()
    try:
        assert len(server.pids) == 3
        for number in range(24):
            server.hang_up()  # a new connection each time, so that both workers get some
            assert server.feedback(str(number % 12), "workers/d/p/m").status == 200
        expected = {"accepted": 12.0, "duplicate": 12.0, "rejected": 0.0}

        def settled() -> bool:
            server.hang_up()
            return outcomes(server.exposition()) == expected

        until(settled)
        totals = []
        until(lambda: all(settled() for _ in range(8)))
        for _ in range(8):
            server.hang_up()
            found = series(server.exposition())
            totals.append(found["feedback_commit_batch_events_sum"])
        assert totals == [24.0] * 8
    finally:
        fleet.close_special()
