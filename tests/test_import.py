"""What an import refuses: an export is checked whole, so that no store breaks its server."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.app import App
from metrics.commands.export import dump, load, merge_into
from metrics.config import load as configuration
from metrics.errors import Refused
from metrics.host import flask_app
from metrics.payload import one_line
from metrics.state import Entry
from metrics.store import open_store
from metrics.windows import ALL_TIME
from tests.servers_http import OwnServer, attributes, feedback, message
from tests.test_commands import fails

NOW = 1_700_000_000.0
PREDICTION = "io.seldon.serving.inference.response"
MODELS = ("ns/iris/default/multiclass", "ns/price/default/regression", "ns/a/default/labels")
METRICS = [
    {"key": "clicks", "value": 1, "tags": {"page": "a", "zone": "b"}},
    {"key": "temperature", "type": "GAUGE", "value": -4.5},
    {"key": "took", "type": "TIMER", "value": 20, "tags": {"page": "a"}},
]


def make_app(**variables: str) -> App:
    """A function with a store in memory."""
    return App(configuration(variables), open_store("memory:", 60), now=lambda: NOW)


def post(app: App, model: str, id: str, data: Any, **more: str) -> None:
    """POST one event that must be counted."""
    about = attributes(id, model, **more)
    headers = {"content-type": "application/json", **{f"ce-{n}": t for n, t in about.items()}}
    response = app.post_sync(headers, json.dumps(data).encode())
    assert response.status in (200, 202), response


def fill(app: App) -> None:
    """Events of every kind of family."""
    multiclass, regression, labels = MODELS
    named = {"data": {"names": ["x", "y", "z"], "ndarray": [[0.1, 0.2, 0.7]] * 30}}
    truth = {**message([2] * 29 + [0]), "meta": {"metrics": METRICS}}
    more = {"reward": -0.5, "response": {**named, "meta": {"routing": {"ab": 1}}}, "truth": truth}
    post(app, multiclass, "1", more, requestid="1", country="nl")
    post(app, multiclass, "2", {**more, "reward": 2}, requestid="1", country="nl")
    post(app, multiclass, "2", {**more, "reward": 2}, requestid="1", country="nl")
    post(app, multiclass, "3", message([[0.1, 0.2, 0.7]]), requestid="2", type=PREDICTION)
    post(app, multiclass, "4", {"truth": message([1])}, requestid="2")
    post(app, multiclass, "5", {"truth": message([1])}, requestid="3")
    old = "2001-01-01T00:00:00Z"
    post(app, regression, "1", feedback([1.5, 0, 1e-20], [2.5, 0, 0]), time=old, requestid="1")
    post(app, regression, "2", feedback([1.5, 0.25], [2.25, 0]), requestid="2")
    post(app, labels, "1", feedback("cat", "dog"), requestid="1")
    bad = app.post_sync({"content-type": "application/json"}, b"{}")
    assert bad.status == 400


def exported() -> Any:
    """An export with every kind of family, as JSON."""
    app = make_app(
        FEEDBACK_JOIN_TTL="1h",
        FEEDBACK_CORRECTIONS="on",
        FEEDBACK_SEGMENTS="country",
        FEEDBACK_TOP_K="2",
    )
    try:
        fill(app)
        return json.loads(dump(app.read(), "0" * 32, NOW))
    finally:
        app.close()


EXPORT = exported()


@pytest.fixture
def app() -> Iterator[App]:
    """A function that counts something already."""
    app = make_app()
    post(app, "other/other/other/other", "1", feedback())
    yield app
    app.close()


def answers(app: App) -> dict[str, int]:
    """The statuses of all that is made of every model."""
    client: FlaskClient = flask_app(app).test_client()
    paths = ["/metrics", "/v1/models", "/?format=html", "/?format=json"]
    return {path: client.get(path).status_code for path in paths}


def test_every_family_that_is_counted_is_known_to_the_import(app: App) -> None:
    """What the function counts can be imported, and all that is shown of it."""
    families = {
        json.loads(key)[0].removeprefix("-")
        for model in EXPORT["models"].values()
        for pane in model["panes"]
        for key in pane["counters"]
    }
    assert {"truth_delay_sum", "scores", "top_k_hits", "absolute_errors", "late"} <= families
    assert {"user_timers_bucket", "rejected", "reward_offset", "corrected"} <= families
    assert merge_into(app.store, load(json.dumps(EXPORT).encode())) == 4
    assert set(answers(app).values()) == {200}


# --- what was seen to break a server --------------------------------------------------------------


def constant(name: str, value: Any) -> Any:
    """A change of an export: a constant of its first model."""

    def change(model: Any) -> None:
        model["constants"][name] = value

    return change


def cell(key: list[str], number: Any) -> Any:
    """A change of an export: a counter of its first model."""

    def change(model: Any) -> None:
        model["panes"][0]["counters"][json.dumps(key, separators=(",", ":"))] = number

    return change


def gauge(key: list[str], number: Any, time: Any = NOW) -> Any:
    """A change of an export: a gauge of its first model."""

    def change(model: Any) -> None:
        model["gauges"][json.dumps(key, separators=(",", ":"))] = [number, time]

    return change


def pane(**changes: Any) -> Any:
    """A change of an export: the first pane of its first model."""
    return lambda model: model["panes"][0].update(changes)


BROKEN = {
    "a class as a task": (constant("task", "os.abort"), "constants.task: os.abort"),
    "a task of another type": (constant("task", ["binary"]), "constants.task"),
    "names that are a number": (constant("names", 5), "constants.names: 5"),
    "names that are no texts": (constant("names", ["a", 5]), "constants.names"),
    "a name twice": (constant("names", ["a", "a"]), "constants.names"),
    "a name that is no label": (constant("names", ["a\n", "b"]), "constants.names"),
    "an origin that is none": (constant("origins", [None]), "constants.origins"),
    "no origins": (constant("origins", []), "constants.origins"),
    "a huge origin": (constant("origins", [1e300]), "constants.origins"),
    "a reward's origin": (constant("reward_origin", "1"), "constants.reward_origin"),
    "unnamed parts": (constant("unnamed", ["x"]), "constants.unnamed"),
    "a birth past all time": (constant("created", 1e18), "constants.created"),
    "a metric of no kind": (constant("metric clicks", "SUMMARY"), "constants.metric clicks"),
    "a metric of no name": (constant("metric a b", "GAUGE"), "constants.metric a b"),
    "a rule's state": (constant("alert x", {}), "constants.alert x"),
    "an unknown constant": (constant("x", {}), "constants.x"),
    "a last event past all time": (gauge(["last_event"], 1e18), "gauges[last_event]"),
    "a last event before all time": (gauge(["last_event"], -1), "gauges[last_event]"),
    "columns past all memory": (gauge(["columns"], 1e18), "gauges[columns]"),
    "half a column": (gauge(["columns"], 1.5), "gauges[columns]"),
    "a gauge of another time": (gauge(["columns"], 3, 1e18), "gauges[columns]: 1e+18 is no time"),
    "an unknown gauge": (gauge(["x"], 1), "gauges[x]"),
    "a user gauge of no name": (gauge(["user_gauges"], 1), "gauges[user_gauges]"),
    "a tag without a value": (gauge(["user_gauges", "a", "b"], 1), "gauges[user_gauges, a, b]"),
    "a huge user gauge": (gauge(["user_gauges", "a"], 1e300), "gauges[user_gauges, a]"),
    "an unknown family": (cell(["x"], 1), "counters[x]: no such family"),
    "a missing label": (cell(["true_positives"], 1), "labels that the family does not have"),
    "a label too many": (cell(["rows", "a"], 1), "labels that the family does not have"),
    "a long label": (cell(["true_positives", "a" * 300], 1), "labels that the family"),
    "a control character": (cell(["true_positives", "\u0000"], 1), "labels that the family"),
    "a bin that is none": (cell(["scores", "1", "x", "1"], 1), "labels that the family"),
    "a bin out of range": (cell(["calibration_rows", "15"], 1), "labels that the family"),
    "an output of no number": (cell(["targets", "x"], 1), "labels that the family"),
    "a timer's odd bound": (cell(["user_timers_bucket", "a", "7"], 1), "labels that the family"),
    "a metric that is ours": (cell(["user_counters", "feedback_x"], 1), "labels that the family"),
    "a tag that is ours": (
        cell(["user_counters", "a", "model_name", "b"], 1),
        "labels that the family",
    ),
    "tags in disorder": (
        cell(["user_counters", "a", "z", "1", "b", "1"], 1),
        "labels that the family",
    ),
    "fewer than none": (cell(["rows"], -1), "-1 is no number of that family"),
    "half a row": (cell(["rows"], 0.5), "0.5 is no number of that family"),
    "more rows than can be counted": (cell(["rows"], 1 << 60), "is no number of that family"),
    "a negative sum": (cell(["log_loss"], -1.5), "-1.5 is no number of that family"),
    "a huge sum": (cell(["squared_error", "0"], 1e170), "is no number of that family"),
    "a sum past all numbers": (
        cell(["squared_error", "0"], 1e300),
        "is no number of squared_error",
    ),
    "a counter that is text": (cell(["rows"], "1"), "is no number"),
    "taken back, never counted": (cell(["-rows"], 1 << 50), "more is taken back"),
    "a segment that is none": (pane(segment="x"), "the segment is no key=value"),
    "a segment of any length": (pane(segment="x=" + "y" * 999), "the segment is no key=value"),
    "a pane past all time": (pane(width=60, start=1 << 39), "starts past the year 9999"),
}


@pytest.mark.parametrize(("change", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_what_the_function_never_counts_is_refused_by_name(
    app: App, change: Any, said: str
) -> None:
    """The place in the export is named, and nothing of it is added, of no model."""
    export = copy.deepcopy(EXPORT)
    change(export["models"][MODELS[0]])
    before = app.read().models
    with pytest.raises(Refused) as refused:
        merge_into(app.store, load(json.dumps(export).encode()))
    text = str(refused.value)
    assert text.startswith(f"models.{MODELS[0]}"), text
    assert said in text
    assert one_line(text, 1000) == text
    assert app.read().models == before


def test_what_older_versions_rounded_is_taken(app: App) -> None:
    """Their sums of doubles may have taken back a little more than was counted; not much more."""
    for taken, fits in ((0.30000000000000004, True), (0.31, False)):
        export = copy.deepcopy(EXPORT) | {"version": 1, "id": str(taken)}
        model = export["models"][MODELS[1]]
        for family in ("squared_error", "absolute_error", "truth_offset_squared"):
            cell([family, "0"], 0.3)(model)
            cell([f"-{family}", "0"], taken)(model)
        if fits:
            assert merge_into(app.store, load(json.dumps(export).encode())) == 4
            assert set(answers(app).values()) == {200}
        else:
            with pytest.raises(Refused, match="more is taken back than was counted"):
                load(json.dumps(export).encode())


def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    """The broken model is the last one, and no other is added; there is not even a file."""
    export = copy.deepcopy(EXPORT)
    constant("task", "os.abort")(export["models"][max(export["models"])])
    store = f"sqlite:///{tmp_path}/x.db"
    said = fails("import", "--store", store, "-", input=json.dumps(export), status=1)
    assert "constants.task: os.abort is no such constant" in said
    assert not (tmp_path / "x.db").exists()


def test_a_task_in_a_store_is_never_imported(tmp_path: Path) -> None:
    """A dotted task counts where settings name it; elsewhere events are counted by their form."""
    with OwnServer(tmp_path) as server:
        assert server.terminate() == 0
        store = open_store(f"sqlite:///{server.file}", 60)
        constants = {"task": "os.abort"}
        store.commit([Entry(MODELS[0], b"", (ALL_TIME,), {}, constants=constants)], NOW)
        store.close()
        server.start()
        assert server.feedback("1", MODELS[0], 2, 2).status == 200
        assert server.get("/health/liveness").status == 200
        assert server.get("/metrics").status == 200
        assert server.models()[MODELS[0]]["rows"] == 1


# --- any change at all ----------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, -1, 0.0, 1e-300, 1e18, 1e149, 1e300, 253402300799, "os.abort", ""]),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.lists(st.sampled_from(["a", 1, None, 0.5]), max_size=3),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    found = [path] if path else []
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for at, each in items:
        found += places(each, (*path, at))
    return found


PLACES = [path for path in places(EXPORT) if path[0] == "models" and len(path) > 1]


def mutate(export: Any, draw: Any) -> None:
    """Change, rename, double or delete something in it."""
    *path, last = draw(st.sampled_from(PLACES))
    holder = export
    try:
        for at in path:
            holder = holder[at]
        holder[last]
    except (IndexError, KeyError, TypeError):
        return  # gone by an earlier change
    if not isinstance(holder, (dict, list)):
        return
    how = draw(st.sampled_from(["change", "change", "change", "rename", "double", "delete"]))
    if how == "change":
        holder[last] = draw(VALUES)
    elif how == "rename" and isinstance(holder, dict):
        other = draw(st.one_of(st.text(max_size=5), st.sampled_from(PLACES).map(lambda p: p[-1])))
        holder[str(other)] = holder.pop(last)
    elif how == "double" and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[last]))
    else:
        holder.pop(last)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_changed_export_is_refused_or_can_be_shown(data: st.DataObject) -> None:
    """Whatever is changed in it, the server answers all of its pages afterwards."""
    export = copy.deepcopy(EXPORT)
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(export, data.draw)
    app = make_app()
    try:
        post(app, "other/other/other/other", "1", feedback())
        before = app.read().models
        refused = ""
        try:
            merge_into(app.store, load(json.dumps(export).encode()))
        except Refused as error:
            refused = str(error)
        assert one_line(refused, 1000) == refused
        assert not refused or app.read().models == before
        assert set(answers(app).values()) == {200}
    finally:
        app.close()
