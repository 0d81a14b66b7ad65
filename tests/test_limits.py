"""What one request may cost: its size bounds it, whatever a short body claims to stand for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import large_arrays
from metrics.app import App
from metrics.config import load
from metrics.errors import Refused
from metrics.evaluators.user_metrics import MAX_SERIES
from metrics.events import BATCH, MAX_BATCH, STRUCTURED, read_events
from metrics.replies import Response
from metrics.store import open_store
from tests.servers_http import OwnServer, attributes, feedback, message

MODEL = "ns/iris/default/limits"


@pytest.fixture
def app() -> Iterator[App]:
    """The function with default settings and a store in memory."""
    app = App(load({}), open_store("memory:", 60))
    yield app
    app.close()


def post(app: App, data: Any, id: str = "1", **extensions: str) -> Response:
    """POST one event in binary mode."""
    headers = {f"ce-{name}": text for name, text in attributes(id, MODEL, **extensions).items()}
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return app.post_sync({"content-type": "application/json", **headers}, body)


def batch(app: App, *data: Any, model: str = MODEL) -> Response:
    """POST events as a batch."""
    events = [{**attributes(str(at), model), "data": each} for at, each in enumerate(data)]
    return app.post_sync({"content-type": BATCH}, json.dumps(events).encode())


def field(response: Response) -> str:
    """The field that a refusal names."""
    assert response.status == 400, response
    named: str = json.loads(response.body)["field"]
    return named


def splat(size: int) -> dict[str, Any]:
    """A tensor of one value that stands for many."""
    shape = {"dim": [{"size": size}]}
    return {"data": {"tftensor": {"dtype": "DT_INT32", "tensor_shape": shape, "int_val": [1]}}}


def splats(size: int) -> dict[str, Any]:
    """Feedback of which both halves stand for many numbers."""
    return {"truth": splat(size), "response": splat(size)}


# --- what is short for more ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [500, 10**6, 10**15, 1 << 63])
def test_a_body_stands_for_no_more_numbers_than_it_has_bytes(app: App, size: int) -> None:
    """A tensor of one value is filled up for as long as the body has bytes, and no further."""
    body = json.dumps(splats(size)).encode()
    assert len(body) < 300
    assert field(post(app, body)) == "truth.data.tftensor.int_val"
    assert post(app, splats(100), "2").status == 200
    assert app.read().models[MODEL].all_time["rows"] == {(): 100}


def test_both_halves_share_what_the_body_allows(app: App) -> None:
    """What the truth has used is not there for the response."""
    assert field(post(app, splats(200))) == "response.data.tftensor.int_val"


def test_the_events_of_a_batch_share_what_its_body_allows(app: App) -> None:
    """Many short events do not multiply it."""
    assert batch(app, *[splats(20)] * 9).status == 200
    large = {"request": "x" * 4000, **splats(3000)}
    assert batch(app, large, {"request": "x" * 4000, **feedback()}).status == 200
    assert field(batch(app, large, large)) == "truth.data.tftensor.int_val"


def test_a_server_pays_for_the_bytes_of_a_batch_only(tmp_path: Path) -> None:
    """20 kB that claim seventy million numbers take no memory, and no time of the loop."""
    with OwnServer(tmp_path) as server:

        def peak() -> int:
            status = "".join(Path(f"/proc/{pid}/status").read_text() for pid in server.pids)
            return sum(int(part.split()[0]) for part in status.split("VmHWM:")[1:])

        many = [[0.25, 0.75]] * 50
        warm = server.event(feedback(many, [1] * 50), attributes("1", MODEL))  # imports numpy
        assert warm.status == 200
        before = peak()
        claims = {"truth": splat(999_999), "response": splat(999_999)}
        events = [{**attributes(str(at), MODEL), "data": claims} for at in range(50)]
        assert len(json.dumps(events)) < 25_000
        refused = server.batch(*events)
        assert (refused.status, refused.json["field"]) == (400, "truth.data.tftensor.int_val")
        assert peak() - before < 32 << 10
        assert server.get("/health/liveness").status == 200


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_decoded_is_bounded_by_what_was_sent(data: st.DataObject) -> None:
    """Over any batch of tensors, refused or not, no more numbers than twice the bytes appear."""
    sizes = st.integers(0, 5000)
    number = st.sampled_from(["1", 1, 7, -1])
    tensors = st.builds(
        lambda dims, values, kind: {
            "data": {
                "tftensor": {
                    "dtype": kind[0],
                    "tensor_shape": {"dim": [{"size": size} for size in dims]},
                    kind[1]: values,
                }
            }
        },
        st.lists(sizes, max_size=3),
        st.lists(number, max_size=4),
        st.sampled_from([("DT_INT64", "int64_val"), ("DT_INT32", "int_val")]),
    )
    halves = data.draw(st.lists(st.tuples(tensors, tensors), max_size=12))
    events = [
        {**attributes("1"), "data": {"truth": one, "response": other}} for one, other in halves
    ]
    body = json.dumps(events).encode()
    numbers = 0
    for event in read_events({"content-type": BATCH}, body)[0]:
        try:
            read = event.feedback()
        except Refused:
            continue
        assert read.prediction is not None
        numbers += len(read.truth.flat) + len(read.prediction.flat)
    assert numbers <= 2 * len(body)


@pytest.mark.parametrize("begin", [b'"data":[', b'"data":[[', b'"ndarray":[ [', b'"data":[1,'])
@pytest.mark.parametrize("end", [b"]", b"]]", b"] ]", b""])
def test_no_byte_of_a_body_is_searched_again_and_again(
    begin: bytes, end: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many arrays seem to begin in it: large arrays are looked for in one pass."""
    searched = 0
    look = large_arrays._Reader._end

    def counted(self: Any, start: int, stop: int) -> int:
        nonlocal searched
        found = look(self, start, stop)
        searched += (found if found >= 0 else min(stop, len(self._body))) - start
        return found

    monkeypatch.setattr(large_arrays._Reader, "_end", counted)
    block = begin * (60_000 // len(begin)) + end
    body = block * ((1 << 20) // len(block))
    assert large_arrays.load(body) is None
    assert searched <= 3 * len(body)


# --- names ----------------------------------------------------------------------------------------


def named(count: int) -> dict[str, Any]:
    """Feedback with that many named columns."""
    data = {"names": [f"n{at}" for at in range(count)], "ndarray": [[1] + [0] * (count - 1)]}
    return {"truth": message([0]), "response": {"data": data}}


def test_names_are_held_against_the_cap_on_classes(app: App) -> None:
    """A model has no more class names than it may have classes; later events cost nothing more."""
    assert field(post(app, named(1001))) == "response.data.names"
    assert "names" not in app.read().constants(MODEL)
    truth = {"truth": named(1001)["response"], "response": message([0])}
    assert field(post(app, truth)) == "truth.data.names"
    assert post(app, named(1000), "2").status == 200
    assert len(app.read().constants(MODEL)["names"]) == 1000


@pytest.mark.parametrize("half", ["prediction", "truth"])
def test_names_of_a_half_are_held_against_the_cap_before_the_other_comes(half: str) -> None:
    """Whoever sends the other half is not refused for them."""
    app = App(load({"FEEDBACK_JOIN_TTL": "1h"}), open_store("memory:", 60))
    try:
        many, few = named(1001)["response"], named(3)["response"]
        for names, status in ((many, 400), (few, 202)):
            if half == "truth":
                answer = post(app, {"truth": names}, "1", requestid="1")
            else:
                kind = "io.seldon.serving.inference.response"
                answer = post(app, names, "1", requestid="1", type=kind)
            assert answer.status == status, answer
    finally:
        app.close()


def test_names_of_a_model_are_read_once(app: App) -> None:
    """However many names a store holds, an event of few bytes does not go through them all."""
    from metrics.evaluators import Known, evaluate
    from metrics.evaluators.classes import _FIXED
    from metrics.payload import parse

    class Names(list[str]):
        reads = 0

        def __iter__(self) -> Iterator[str]:
            Names.reads += 1
            return super().__iter__()

    known = Known({"names": Names(f"n{at}" for at in range(100_000))})
    for _ in range(5):
        evaluate(parse(feedback("n7", "n8")), app.models.of(MODEL), known)
    assert Names.reads == 1
    _FIXED.clear()


# --- series ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["COUNTER", "GAUGE", "TIMER"])
def test_user_metrics_of_every_kind_are_capped_over_all_events(app: App, kind: str) -> None:
    """A model has so many series of them, however many events bring them; known ones stay open."""

    def told(names: range) -> Response:
        metrics = [{"key": f"m{name}", "value": 1, "type": kind} for name in names]
        data = feedback() | {"truth": {**message([1]), "meta": {"metrics": metrics}}}
        return post(app, data, id=str(names))  # a duplicate would bring nothing

    size = MAX_SERIES // 2
    for begin in (0, size):
        assert told(range(begin, begin + size)).status == 200
    assert field(told(range(MAX_SERIES, MAX_SERIES + 1))) == "truth.meta.metrics[0]"
    assert told(range(MAX_SERIES)).status == 200


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_has_a_limited_number_of_events(app: App) -> None:
    """Events of few bytes are refused by their number, before any of them is looked at."""
    events = b"[" + b",".join([b"{}"] * (MAX_BATCH + 1)) + b"]"
    refused = app.post_sync({"content-type": BATCH}, events)
    assert (refused.status, json.loads(refused.body)["field"]) == (413, "data")
    assert field(app.post_sync({"content-type": BATCH}, events[:-4] + b"]")) == "[0].id"


# --- depth ----------------------------------------------------------------------------------------


DEEPER = "…"
"""Stands for a list in a list in a list."""


DEEP: dict[str, tuple[dict[str, str], Any]] = {
    "a request's content": (
        {"FEEDBACK_DEDUP_BY": "request"},
        feedback() | {"request": DEEPER},
    ),
    "the event for a class of the user's": (
        {"FEEDBACK_JOIN_TTL": "1h", "FEEDBACK_TASK": "tests.test_limits.Custom"},
        {"truth": message([1]), "request": DEEPER},
    ),
    "metrics of a truth that waits": (
        {"FEEDBACK_JOIN_TTL": "1h"},
        {"truth": {**message([1]), "meta": {"metrics": DEEPER}}},
    ),
    "a tag of a truth that waits": (
        {"FEEDBACK_JOIN_TTL": "1h", "FEEDBACK_SEGMENTS": "plan"},
        {"truth": {**message([1]), "meta": {"tags": {"plan": DEEPER}}}},
    ),
    "what is kept for corrections": (
        {
            "FEEDBACK_JOIN_TTL": "1h",
            "FEEDBACK_CORRECTIONS": "on",
            "FEEDBACK_TASK": "tests.test_limits.Custom",
        },
        feedback() | {"request": DEEPER},
    ),
}


class Custom:
    """A class of the user's."""

    def transform(self, truth: Any, response: Any, request: Any = None) -> Custom:
        """No metrics."""
        return self

    metrics = ()


@pytest.mark.parametrize(("variables", "data"), DEEP.values(), ids=DEEP.keys())
@pytest.mark.parametrize("interval", ["0", "0.05"])
def test_what_is_nested_deeper_than_can_be_written_is_refused(
    variables: dict[str, str], data: Any, interval: str, tmp_path: Path, caplog: Any
) -> None:
    """Wherever what came is written again, a 400 says so; what is less deep is remembered."""
    settings = load({**variables, "FEEDBACK_SNAPSHOT_INTERVAL": interval})
    app = App(settings, open_store(f"sqlite:///{tmp_path}/feedback.db", 60))
    try:
        for levels, status in ((100, {200, 202}), (260, {400}), (1000, {400})):
            nested = "[" * levels + "]" * levels
            body = json.dumps(data, ensure_ascii=False).replace(f'"{DEEPER}"', nested).encode()
            response = post(app, body, str(levels), requestid=str(levels))
            assert response.status in status, (levels, response)
            if response.status == 400:
                assert field(response) == "data"
                assert b"nested too deeply" in response.body
        assert post(app, feedback(), "after", requestid="after").status in (200, 202)
    finally:
        app.close()
    assert "not counted" not in caplog.text


# --- the whole ----------------------------------------------------------------------------------


def test_a_structured_event_has_the_budget_of_its_body(app: App) -> None:
    """In structured mode as in binary mode."""
    for size, status in ((40, 200), (10**6, 400)):
        event = {**attributes(str(size), MODEL), "data": splats(size)}
        answer = app.post_sync({"content-type": STRUCTURED}, json.dumps(event).encode())
        assert answer.status == status
