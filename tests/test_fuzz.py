"""Anything as a request: it is refused by name or counted, and costs what its size allows."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.app import App
from metrics.config import load
from metrics.errors import Refused
from metrics.evaluators import Evaluation, Known, evaluate
from metrics.events import BATCH, JSON, STRUCTURED, read_events
from metrics.joins import prediction_of
from metrics.model_settings import TASKS, ModelSettings
from metrics.payload import Feedback
from metrics.store import open_store
from tests.servers_http import FEEDBACK, attributes, feedback, message
from tests.test_import import METRICS, PREDICTION
from tests.test_payload import GOOD

MODEL = "ns/iris/default/fuzz"
META = {
    "puid": "p",
    "tags": {"country": "nl"},
    "routing": {"ab": 1},
    "requestPath": {"a": "b"},
    "metrics": METRICS,
}
NAMED = {"data": {"names": ["a", "b"], "ndarray": [[0.25, 0.75], [1, 0]]}, "meta": META}
MESSAGES = [NAMED, message([1, 0]), message(["a", "b"]), *[form for form, _, _ in GOOD.values()]]

KEYS = st.sampled_from(
    [
        *("truth", "response", "request", "reward", "meta", "data", "names", "ndarray", "tensor"),
        *("tftensor", "dtype", "tensor_shape", "dim", "size", "int_val", "float_val", "shape"),
        *("values", "jsonData", "strData", "binData", "predictions", "outputs", "datatype"),
        *("tags", "metrics", "key", "type", "value", "puid", "routing", "id", "time", "source"),
        *("specversion", "data_base64", "requestid", "modelid", "x", ""),
    ]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, -0.0, 0.5, 1e-320, 1e300, 1 << 62, 1e18, "DT_HALF", "INT64", "BYTES"]),
    st.sampled_from(["", "\u0000", "0001-01-01T00:00:00+01:00", "AAAA", "up", "é" * 300]),
    st.text(max_size=5),
)
JSON_VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value; of long lists, the first few."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, each in value.items():
            found += places(each, (*path, key))
    elif isinstance(value, list):
        for at, each in enumerate(value[:4]):
            found += places(each, (*path, at))
    return found


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """A JSON value with something in it replaced, doubled, or deleted."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, 2))):
        where = places(value)
        if not where:
            break
        *path, last = draw(st.sampled_from(where))
        holder = value
        for at in path:
            holder = holder[at]
        how = draw(st.sampled_from(["replace", "replace", "double", "delete", "add"]))
        if how == "replace":
            holder[last] = draw(JSON_VALUES)
        elif how == "delete":
            holder.pop(last)
        elif isinstance(holder, dict):
            holder[draw(KEYS)] = draw(JSON_VALUES)
        else:
            holder.extend(copy.deepcopy(holder) * draw(st.sampled_from([1, 40])))
    return value


halves = st.sampled_from(MESSAGES)
data = st.one_of(
    st.builds(lambda one, other: {"truth": one, "response": other}, halves, halves),
    st.builds(
        lambda one, reward: {"truth": {**one, "meta": META}, "response": one, "reward": reward},
        halves,
        st.sampled_from([1, -0.5, 1e149]),
    ),
    st.builds(lambda one: {"truth": one}, halves),
    halves,
).flatmap(changed)


def event_of(data: Any, type: str, id: str) -> dict[str, Any]:
    """A structured event."""
    return {**attributes(id, MODEL, type=type, requestid=id, country="nl"), "data": data}


types = st.sampled_from([FEEDBACK, FEEDBACK, FEEDBACK, PREDICTION])
events = st.builds(event_of, data, types, st.sampled_from("abc")).flatmap(changed)


def text(value: Any) -> bytes:
    """A JSON value as a body; what only Python can write is replaced."""
    return json.dumps(value).encode("utf-8", "replace")


requests = st.one_of(
    data.map(lambda value: ({"content-type": JSON}, text(value))),
    events.map(lambda value: ({"content-type": STRUCTURED}, text(value))),
    st.lists(events, max_size=4).map(lambda value: ({"content-type": BATCH}, text(value))),
    st.builds(
        lambda about, value: (
            {"content-type": JSON, **{f"ce-{name}": str(each) for name, each in about.items()}},
            text(value),
        ),
        changed(attributes("1", MODEL)).filter(lambda about: isinstance(about, dict)),
        data,
    ),
    st.binary(max_size=50).map(lambda body: ({"content-type": JSON}, body)),
)


def size(value: Any) -> int:
    """The scalars in an evaluation's counters, constants and gauges."""
    if isinstance(value, dict):
        return sum(map(size, value.values())) + len(value)
    return sum(map(size, value)) if isinstance(value, list) else 1


def cost(read: Feedback, found: Evaluation | None) -> int:
    """The numbers that an event stands for."""
    sides = [side for side in (read.truth, read.prediction) if side is not None]
    numbers = sum(len(side.flat) for side in sides)
    return numbers if found is None else numbers + size(found.vector()) + size(found.constants)


@given(requests, st.sampled_from(TASKS))
@settings(max_examples=400, deadline=None)
def test_reading_and_evaluating_raises_nothing_but_refused(
    request: tuple[dict[str, str], bytes], task: str
) -> None:
    """And what comes of a body is no more than a multiple of its bytes."""
    headers, body = request
    model = ModelSettings(task=task, k=2)
    total = 0
    try:
        for event in read_events(headers, body)[0]:
            if event.type == PREDICTION:
                total += cost(prediction_of(event.json(), event.budget), None)
                continue
            read = event.feedback()
            total += cost(read, evaluate(read, model, Known()) if read.prediction else None)
    except Refused:
        pass  # as it should be
    assert total <= 10 * len(body) + 100


@pytest.fixture(params=["auto", "joins"])
def app(request: pytest.FixtureRequest) -> Iterator[App]:
    """The function as it is set by default, and with all that remembers what came."""
    more = {
        "FEEDBACK_DEDUP_BY": "request",
        "FEEDBACK_JOIN_TTL": "1h",
        "FEEDBACK_CORRECTIONS": "on",
        "FEEDBACK_SEGMENTS": "country,puid",
        "FEEDBACK_TOP_K": "2",
    }
    app = App(load(more if request.param == "joins" else {}), open_store("memory:", 60))
    yield app
    app.close()


def test_no_request_is_answered_500(app: App) -> None:
    """One server takes them all, one after the other, and shows what it counted."""
    from metrics.host import flask_app

    counted = 0

    @given(requests)
    @settings(max_examples=400, deadline=None, database=None)
    def ask(request: tuple[dict[str, str], bytes]) -> None:
        nonlocal counted
        response = app.post_sync(*request)
        assert response.status in (200, 202, 400), response
        counted += response.status != 400

    ask()
    assert app.post_sync({"content-type": JSON}, text(feedback())).status in (200, 400)
    assert counted > 20
    client: Any = flask_app(app).test_client()
    for path in ("/metrics", "/v1/models", "/?format=html"):
        assert client.get(path).status_code == 200
