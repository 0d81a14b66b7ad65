"""The documents agree with the code: settings, series, scores, views, events, statuses, links."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
import pytest

from examples import demo
from metrics import (
    alerts,
    config,
    connections,
    errors,
    exposition,
    http1,
    models_file,
    pages,
    payload,
    replies,
    server_stats,
)
from metrics.app import App
from metrics.cli import COMMANDS
from metrics.commands import export
from metrics.config import FEEDBACK_TYPE, PREDICTION_TYPE, SETTINGS
from metrics.scores import model_view
from metrics.scores.classification import averages
from metrics.series_cap import PARTS
from metrics.store import MemoryStore
from tests.servers_http import ROOT

REFERENCE = ROOT / "docs" / "reference"
NOW = 1_800_000_000.0
IDENTITY = {
    "namespace": "seldon",
    "inferenceservicename": "iris",
    "endpoint": "default",
}
MODEL_LABELS = {"deployment_namespace", "deployment_name", "predictor_name", "model_name"}
MODELS = """
models:
  "*/*/*/alarmed":
    alerts:
      - {name: accuracy-low, score: accuracy, below: 0.9}
      - {name: loss-high, score: log_loss, above: 1.2}
  "*/*/*/multilabel": {task: multilabel}
"""
OPEN_MEMBERS = frozenset(
    ("scores", "intervals", "bounds", "windows", "increment", "absolute_error_quantiles")
)
"""Members whose keys are names of scores, windows, families or quantiles."""


def _page(name: str) -> str:
    return (REFERENCE / name).read_text()


def _section(page: str, title: str) -> str:
    """What a page says under a heading, up to the next one of its level or above."""
    level, rest = re.split(rf"(?m)^(##+) {re.escape(title)}$", _page(page))[1:]
    return re.split(rf"(?m)^#{{2,{len(level)}}} ", rest)[0]


def _rows(text: str) -> Iterator[list[str]]:
    """The cells of all tables' rows, heads left out."""
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("| ") and not following.startswith("|--"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def _named(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def _first_column(text: str) -> list[str]:
    """All names in the first column of a text's tables, each of which has one place there."""
    names = [name for row in _rows(text) for name in _named(row[0])]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    return names


# --- a function that has met everything ---------------------------------------------------------


class Rich:
    """An app that has met every task and kind of event, and what it answered."""

    def __init__(self, models: Path, **variables: str) -> None:
        models.write_text(MODELS)
        settings = config.load(
            {
                "FEEDBACK_STORE": "memory:",
                "FEEDBACK_MODELS": str(models),
                "FEEDBACK_JOIN_TTL": "1h",
                "FEEDBACK_CORRECTIONS": "on",
                "FEEDBACK_SEGMENTS": "country",
                "FEEDBACK_TOP_K": "2",
                "FEEDBACK_BETA": "2",
                "FEEDBACK_REPLY_WINDOWS": "1h",
                **variables,
            }
        )
        self.app = App(settings, MemoryStore(86400), now=lambda: NOW)
        self.answers: list[replies.Response] = []
        self._tell_everything()

    def send(self, model: str, data: Any, type: str = FEEDBACK_TYPE, **extensions: str) -> None:
        """Post an event and keep its answer."""
        attributes = {
            "id": str(len(self.answers)),
            "source": "/test",
            "specversion": "1.0",
            "type": type,
            **IDENTITY,
            "modelid": model,
            **extensions,
        }
        headers = {f"ce-{name}": text for name, text in attributes.items()}
        answer = self.app.post_sync(headers, orjson.dumps(data))
        assert answer.status in (200, 202), answer.body
        self.answers.append(answer)

    def _tell_everything(self) -> None:
        rows = [[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.3, 0.3, 0.4]]
        self.send("classifier", _feedback([2, 0, 1], rows), country="nl")
        many = [f"c{at}" for at in range(120)]
        self.send("wide", _feedback(many, many[1:] + many[:1]))
        self.send("binary", _feedback([1, 0, 0], [0.9, 0.2, 0.7]))
        self.send("multilabel", _feedback([[1, 0, 1], [0, 1, 0]], [[0.9, 0.2, 0.7], [0.2, 1, 0]]))
        self.send("outputs", _feedback([[1.5, 2.5], [2.5, 3]], [[1, 3], [2, 4]]))
        self.send("regression", _feedback([1.5, 2.5], [1.25, 2.5]))
        for reward in (1, -1, 0.5):
            self.send("rewarded", {**_feedback([1], [1], routing={"router": 1}), "reward": reward})
        metrics = [
            {"key": "hits", "value": 1},
            {"key": "spent", "type": "TIMER", "value": 30, "tags": {"colour": "red"}},
            {"key": "level", "type": "GAUGE", "value": 3},
        ]
        self.send("custom", {"truth": _message([1], metrics=metrics), "response": _message([1])})
        self.send("joined", _message(rows[:1]), PREDICTION_TYPE, requestid="one")
        old = "2020-01-01T00:00:00Z"
        self.send("joined", {"truth": _message([2])}, requestid="one", time=old)
        self.send("joined", {"truth": _message([1])}, requestid="one")
        self.send("joined", {"truth": _message([1])}, requestid="two")
        self.send("joined", _message(rows[:1]), PREDICTION_TYPE, requestid="two")
        self.send("alarmed", _feedback([1], [0]))

    def views(self) -> Iterator[dict[str, Any]]:
        """The views of all models, whole and of a segment, as the API has them."""
        for model, state in self.app.read().models.items():
            settings = self.app.models.of(model)
            yield model_view(model, state, settings, NOW, segments=True, curves=True)
            yield model_view(model, state, settings, NOW, segment="country=nl")

    def events(self, kind: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
        """Attributes and data of the emitted events of a type."""
        found = [
            (
                {
                    "datacontenttype" if name == "content-type" else name.removeprefix("ce-"): text
                    for name, text in answer.all_headers()
                },
                orjson.loads(answer.body),
            )
            for answer in self.answers
            if answer.body
        ]
        return [each for each in found if each[0]["type"] == kind]


def _message(values: Any, **meta: Any) -> dict[str, Any]:
    return {"data": {"ndarray": values}, **({"meta": meta} if meta else {})}


def _feedback(truth: Any, response: Any, **meta: Any) -> dict[str, Any]:
    return {"truth": _message(truth), "response": _message(response, **meta)}


def _members(value: Any, path: str = "") -> Iterator[str]:
    """The paths of all members of a view: `classes[].support`."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            at = f"{path}.{name}" if path else name
            yield at
            if name not in OPEN_MEMBERS:
                yield from _members(inner, at)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            if isinstance(inner, Mapping):
                yield from _members(inner, f"{path}[]")


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rich]:
    """An app that has met everything."""
    rich = Rich(tmp_path_factory.mktemp("documents") / "models.yaml")
    yield rich
    rich.app.close()


@pytest.fixture
def small() -> Iterator[App]:
    """An app as it starts, but that truth may come late."""
    settings = config.load({"FEEDBACK_STORE": "memory:", "FEEDBACK_JOIN_TTL": "1h"})
    app = App(settings, MemoryStore(86400))
    yield app
    app.close()


# --- settings -----------------------------------------------------------------------------------


def test_every_setting_is_documented_with_its_default() -> None:
    """The table of settings is the one in the code, and nothing else."""
    page = _page("settings.md")
    for setting in SETTINGS:
        default = f"`{setting.default}`" if setting.default else "–"
        row = f"| `{setting.variable}` | `--{setting.flag}` | {default} |"
        assert row in page, setting.variable
    listed = re.findall(r"(?m)^\| `([A-Z_]+)` \| `--", page)
    assert sorted(listed) == sorted(setting.variable for setting in SETTINGS)


def test_every_variable_that_a_document_names_is_a_setting() -> None:
    """No document tells of a variable that is gone."""
    known = {setting.variable for setting in SETTINGS}
    for path in _documents():
        named = set(re.findall(r"\bFEEDBACK_[A-Z_]+\b", path.read_text()))
        assert named <= known, path.name


def test_the_keys_of_the_models_file_are_documented() -> None:
    """What FEEDBACK_MODELS may say, and what one of its rules may."""
    keys = _first_column(_section("settings.md", "The models file"))
    assert set(keys) == set(models_file._KEYS)
    assert set(_first_column(_page("alerts.md"))) == models_file._RULE


# --- scores -------------------------------------------------------------------------------------


def test_every_score_is_documented() -> None:
    """All names that rules can have, all averages, and no others."""
    table = _page("scores.md").partition("\n\n")[2].partition("\n\n")[0]
    named = {name for row in _rows(table) for name in _named(row[1])}
    assert named == alerts.SCORES
    assert set(averages([], 1.0)) <= named


# --- series -------------------------------------------------------------------------------------


def test_every_series_is_documented(rich: Rich, tmp_path: Path) -> None:
    """Families, their types and labels: those that are exposed are those in the tables."""
    documented: dict[str, tuple[str, frozenset[str]]] = {}
    for title, labels in (
        ("Of a model", MODEL_LABELS),
        ("Of the server", set()),
        ("Of Seldon's MetricsServer", set()),
    ):
        section = _section("series.md", title)
        assert _first_column(section)
        for names, kind, more, _ in _rows(section):
            for name in _named(names):
                documented[name] = kind, frozenset(labels | set(_named(more)))
    variables = {"K_SINK": "http://127.0.0.1:9", "FEEDBACK_PUSHGATEWAY_URL": "http://127.0.0.1:9"}
    settings = config.load({"FEEDBACK_STORE": "memory:", **variables})
    with_sink = App(settings, MemoryStore(86400))
    try:
        exposed = _exposed(with_sink) | _exposed(rich.app)
    finally:
        with_sink.close()
    assert exposed == documented


def _exposed(app: App) -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of each family of ours that is exposed."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for family in exposition.FeedbackCollector(app, created=False).collect():
        if family.name.startswith(("feedback_", "seldon_metric_")):
            name = family.name + "_total" * (family.type == "counter")
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            found[name] = family.type, frozenset(labels)
    return found


def test_the_values_of_closed_labels_are_documented() -> None:
    """Outcomes and reasons of the server's families, the parts of FEEDBACK_MAX_SERIES."""
    section = _section("series.md", "Of the server")
    closed = server_stats.SINK_OUTCOMES + server_stats.PUSH_OUTCOMES + server_stats.IGNORED_REASONS
    assert [value for value in closed if value not in section] == []
    order = _section("guarantees.md", "Limits on what is kept")
    words = {"totals": "totals", "user": "user's metrics", "ancestor": "Seldon families"}
    places = [order.index(words.get(part, part)) for part in PARTS]
    assert places


def test_every_kind_of_store_error_is_in_the_runbook() -> None:
    """The label `kind` of feedback_store_errors_total."""
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    paragraph = runbook.partition("## FeedbackStoreErrors")[2].partition("\n## ")[0]
    named = set(_named(paragraph))
    assert [kind for kind in server_stats.ERROR_KINDS if kind not in named] == []


# --- views and events ---------------------------------------------------------------------------


def test_every_member_of_the_view_is_documented(rich: Rich) -> None:
    """What the views of all tasks have is what the table has."""
    documented = _first_column(_section("view-and-events.md", "One model's view"))
    members = {member for view in rich.views() for member in _members(view)}
    assert members == set(documented)


def test_every_member_of_the_list_of_models_is_documented(rich: Rich) -> None:
    """What `GET /v1/models` has."""
    listed = orjson.loads(pages.model_list(rich.app))["models"]
    documented = _first_column(_section("view-and-events.md", "The list of models"))
    assert {tuple(model) for model in listed} == {tuple(documented)}


def test_everything_in_a_metrics_event_is_documented(rich: Rich) -> None:
    """Attributes, data, and the families of `increment`."""
    section = _section("view-and-events.md", "The metrics event")
    attributes, data, families = re.split(r"(?m)^\| (?:attribute|member|family) \|", section)[1:]
    emitted = rich.events(f"{FEEDBACK_TYPE}.metrics")
    met = set[str]().union(*(said for said, _ in emitted))
    assert met - {"requestid", "country"} == set(_first_column(attributes))  # those are carried
    view = set(_first_column(_section("view-and-events.md", "One model's view")))
    members = {member for _, found in emitted for member in found} - view
    assert members == set(_named("".join(row[0] for row in _rows(data.partition("\n\n")[0]))))
    named = {name for _, found in emitted for name in found["increment"]}
    assert {name for name in named if name[0] != "-"} == set(_first_column(families))


def test_every_counted_family_can_be_imported(rich: Rich) -> None:
    """A family that an evaluator counts is one that `import` knows."""
    state = rich.app.read()
    assert export.load(export.dump(state, "id", NOW)).models.keys() == state.models.keys()


def test_every_payload_form_is_documented() -> None:
    """Those of a message, and those of Seldon's data."""
    section = _section("view-and-events.md", "Requests")
    forms = {f"data.{name}" for name in payload._DATA_FORMS} | payload._MESSAGE_FORMS.keys()
    assert [form for form in forms - {"data"} if f"`{form}`" not in section] == []


def test_everything_in_an_alert_event_is_documented(rich: Rich) -> None:
    """Its attributes; its data is a view."""
    section = _section("view-and-events.md", "The alert event")
    ((attributes, data),) = rich.events(f"{FEEDBACK_TYPE}.metrics.alert")
    assert set(attributes) == set(_first_column(section))
    assert {"alerts", "increment"} <= set(data)


def test_every_status_is_documented() -> None:
    """Those of the tree of errors and of the parser of HTTP are in the table of answers."""
    rows = list(_rows(_section("view-and-events.md", "Answers")))
    source = inspect.getsource(http1) + inspect.getsource(connections)
    parsing = re.findall(r"(?:_refuse|give_up)\(HTTPStatus\.([A-Z_]+)\)", source)
    assert len(parsing) > 5
    statuses = {status for _, status, _ in errors._STATUSES}
    statuses |= {HTTPStatus[name].value for name in parsing}
    statuses |= {200, replies.EMPTY.status, HTTPStatus.METHOD_NOT_ALLOWED.value}
    assert [int(row[0]) for row in rows] == sorted(statuses)


def test_every_member_of_a_problem_is_documented() -> None:
    """`application/problem+json`."""
    answer = replies.problem(errors.Refused("truth", "missing"))
    documented = _first_column(_section("view-and-events.md", "Problems"))
    assert list(orjson.loads(answer.body)) == documented


def test_every_route_is_documented(rich: Rich) -> None:
    """What the host serves besides `POST /`."""
    flask = pytest.importorskip("flask").Flask("routes")
    pages.add_routes(flask, rich.app)
    routes = {rule.rule for rule in flask.url_map.iter_rules() if rule.endpoint != "static"}
    routes |= {"/", "/health/readiness", "/health/liveness"}
    section = _section("view-and-events.md", "Pages and queries")
    documented = {name.removeprefix("GET ") for name in _first_column(section)}
    assert documented == {route.replace("<", "{").replace(">", "}") for route in routes}


# --- the front door -----------------------------------------------------------------------------


def test_every_command_is_documented() -> None:
    """The commands of `python -m metrics`."""
    assert _first_column(_page("command-line.md")) == ["serve", *COMMANDS]


def test_the_readme_is_short_and_soon_at_a_call() -> None:
    """A stranger reaches a working curl within 60 lines."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 170
    assert any(line.startswith("curl -i localhost:8080/") for line in lines[:60])


def test_the_calls_of_documents_are_answered(small: App) -> None:
    """The events that it and the page of late truth show are taken, with their attributes."""
    for page in ("README.md", "docs/reference/late-truth.md"):
        text = (ROOT / page).read_text().replace("\\\n", "")
        calls = re.findall(r"(?m)^curl (?=.* -d )(.*)$", text)
        assert len(calls) == 2, page
        for call in calls:
            headers = dict(re.findall(r"-H '([a-z-]+): ([^']+)'", call))
            (data,) = re.findall(r"-d +'([^']+)'", call)
            answer = small.post_sync(headers, data.encode())
            waits = "inference.response" in headers.get("ce-type", "")
            assert answer.status == (202 if waits else 200), call


def test_the_annotated_event_is_answered(small: App) -> None:
    """The event that README explains line by line."""
    (block,) = re.findall(r"(?s)```jsonc\n(.*?)```", (ROOT / "README.md").read_text())
    head, _, body = block.partition("\n{")
    headers = dict(re.findall(r"(ce-[a-z]+): (\S+)", head))
    assert len(headers) == 8
    data = re.sub(r"//.*", "", "{" + body)
    assert small.post_sync(headers, data.encode()).status == 200


def test_the_readme_shows_what_the_demo_prints() -> None:
    """Models, scores and widths of the columns are the demo's."""
    text = (ROOT / "README.md").read_text()
    shown = re.findall(r"(?m)^([a-z_0-9]+) +\S+ 0\.\d{10} agrees +\S+ 0\.\d{10} agrees$", text)
    assert len(shown) > 3
    source = inspect.getsource(demo)
    assert all(f'"{score}"' in source or score in alerts.SCORES for score in shown)
    assert re.search(r"(?m)^score +iris answered scikit-learn +cancer answered scikit-learn$", text)


# --- documents and files ------------------------------------------------------------------------


def _documents() -> list[Path]:
    """All documents of the project."""
    paths = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted([*paths, ROOT / "knative" / "README.md", ROOT / "benchmarks" / "README.md"])


def _anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"(?s)```.*?```", "", path.read_text())
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"(?m)^#+ (.+)$", text)
    }


@pytest.mark.parametrize("path", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """Every relative link names a file that exists, and every anchor a heading of it."""
    text = re.sub(r"(?s)```.*?```", "", path.read_text())
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


@pytest.mark.parametrize("path", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_documents_name_exist(path: Path) -> None:
    """`metrics/x.py` and `tests/x.py` in a document are files; CHANGELOG tells of the past."""
    if path.name == "CHANGELOG.md":
        return
    named = re.findall(r"`((?:metrics|tests|docs|knative|examples)/[\w./-]+)`", path.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_reference_page_is_linked_from_the_readme() -> None:
    """Nothing is documented where nobody finds it."""
    readme = (ROOT / "README.md").read_text()
    for page in sorted(REFERENCE.glob("*.md")):
        assert f"(docs/reference/{page.name})" in readme, page.name
