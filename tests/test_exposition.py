"""The exposition: golden text, parsers, promtool, labels, caching, restarts."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from metrics import config, exposition
from metrics.app import App
from metrics.commands.show import view_table
from metrics.scores import model_view
from metrics.store import MemoryStore
from tests.servers import lint_metrics
from tests.servers_http import message

GOLDEN = Path(__file__).parent / "golden" / "exposition.txt"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
NOW = 1_800_000_000.0
HOSTILE = 'a"b\\c{d="e"}, 雪'


class Fixed:
    """An app on a memory store whose clock stands still."""

    def __init__(self, **variables: str) -> None:
        settings = config.load({"FEEDBACK_STORE": "memory:", **variables})
        self.now = NOW
        self.app = App(settings, MemoryStore(86400), now=lambda: self.now)
        self.app.stats.started = NOW
        self._number = 0

    def send(
        self,
        truth: Any,
        response: Any,
        model: str = "classifier",
        metrics: Any = (),
        **more: Any,
    ) -> None:
        """Count one event, with metrics of the user's."""
        self._number += 1
        headers = {
            "ce-id": str(self._number),
            "ce-source": "/test",
            "ce-specversion": "1.0",
            "ce-type": config.FEEDBACK_TYPE,
            "ce-namespace": "seldon",
            "ce-inferenceservicename": "iris",
            "ce-endpoint": "default",
            "ce-modelid": model,
        }
        body = {
            "truth": {"data": {"ndarray": truth}, "meta": {"metrics": metrics}},
            "response": response if isinstance(response, dict) else message(response),
        }
        answer = self.app.post_sync(headers, orjson.dumps({**body, **more}))
        assert answer.status == 200, answer.body

    def text(self, accept: str = "") -> str:
        """The exposition."""
        body, _ = exposition.render(self.app, accept)
        return body.decode()


@pytest.fixture
def fixed() -> Iterator[Fixed]:
    """An app with a classifier, a binary model, a regressor and hostile labels."""
    fixed = Fixed()
    fixed.send([2], [[0.1, 0.2, 0.7]])
    fixed.send([2], [[0.6, 0.2, 0.2]], reward=-1)
    fixed.send([1], [0.9], "binary")
    fixed.send([1.5, 2.5], [1.0, 3.0], "regressor")
    fixed.send([HOSTILE], ["b"], "hostile")
    metrics = [
        {"key": "my_counter", "type": "COUNTER", "value": 2, "tags": {"tag": HOSTILE}},
        {"key": "my_timer", "type": "TIMER", "value": 30},
        {"key": "my_gauge", "type": "GAUGE", "value": -1},
    ]
    fixed.send(["b"], ["b"], "hostile", metrics)
    yield fixed
    fixed.app.close()


def _of_models(text: str) -> str:
    """The lines that a fixed clock and store make the same on every machine."""
    own = ("feedback_commit_", "feedback_build_info", "feedback_store_errors")
    return "".join(
        line
        for line in text.splitlines(keepends=True)
        if not line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(own)
    )


def test_the_text_is_the_golden_one(fixed: Fixed) -> None:
    """A fixed state has a fixed exposition; `GOLDEN=write` renews the file, for review."""
    text = _of_models(fixed.text())
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_both_formats_parse_and_tell_the_same(fixed: Fixed) -> None:
    """client_python's strict parsers accept both, and the counters agree."""

    def counters(families: Any) -> dict[Any, float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
            if sample.name.endswith("_total")
        }

    plain = counters(prometheus(fixed.text()))
    assert len(plain) > 50
    assert counters(openmetrics(fixed.text(OPENMETRICS))) == plain


def test_the_kept_text_is_what_client_python_makes_at_once(fixed: Fixed) -> None:
    """Encoding models apart and keeping their text changes no byte."""
    for accept in ("", OPENMETRICS):
        encode, content_type = choose_encoder(accept)
        collector = exposition.FeedbackCollector(fixed.app, "openmetrics" in content_type)
        for _ in range(2):
            assert fixed.text(accept) == encode(collector).decode()
        fixed.send([0], [[0.6, 0.2, 0.2]])
        assert fixed.text(accept) == encode(collector).decode()
        fixed.now += 400  # the windows move on without an event
        assert fixed.text(accept) == encode(collector).decode()


def test_a_name_that_two_models_use_for_two_kinds_is_exposed_once() -> None:
    """The second kind is left out rather than breaking every scrape."""
    fixed = Fixed()
    for model, kind in (("a", "COUNTER"), ("b", "GAUGE")):
        fixed.send([1], [1], model, [{"key": "mine", "type": kind, "value": 1}])
    text = fixed.text(OPENMETRICS)
    assert text.count("# TYPE mine ") == 1
    assert len(list(openmetrics(text))) > 10
    assert len(list(prometheus(fixed.text()))) > 10
    fixed.app.close()


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/plain;version=x.y", False),
        ("text/plain; version=99999999999999999999.1.1; escaping=x", False),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text ; Version=1.0.0", True),
        ("application/openmetrics-text;version=1.0.1;q=0.5", True),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;version=x.y", False),
        ("application/openmetrics-text;version=", False),
        ("application/openmetrics-text;version=1.0.0;q=0", False),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.9", False),
        ("application/openmetrics-text;q=x.y", False),
        ("application/openmetrics-text;q=nan", False),
        (",;=,;;", False),
        (PROMETHEUS_3, True),
    ],
)
def test_two_formats_are_negotiated(fixed: Fixed, accept: str, openmetrics: bool) -> None:
    """Whatever parameters a client names, it gets one of the two, and says so."""
    body, content_type = exposition.render(fixed.app, accept)
    assert body.endswith(b"# EOF\n") is openmetrics
    kind = "application/openmetrics-text; version=1.0.0" if openmetrics else "text/plain; version="
    assert content_type.startswith(kind)


def test_what_clients_accept_is_not_kept(fixed: Fixed) -> None:
    """Hundreds of versions and parameters add nothing to what is held in memory."""
    fixed.text()
    fixed.text(OPENMETRICS)
    held = exposition._kept[fixed.app].encoded
    gc.collect()
    before = sys.getsizeof(held), len(held), len(gc.get_objects())
    for number in range(300):
        fixed.text(f"application/openmetrics-text;version=1.{number}.0;escaping=e{number}")
        fixed.text(f"text/plain;version={number + 1}.0.0;escaping=e{number}")
    gc.collect()
    assert (sys.getsizeof(held), len(held)) == before[:2]
    assert len(gc.get_objects()) - before[2] < 1000


def test_no_reader_meets_the_negative_zero() -> None:
    """Scores, intervals, sums and the user's own gauges: in both formats, JSON and on pages."""
    fixed = Fixed()
    gauge = [{"key": "mine", "type": "GAUGE", "value": -0.0}]
    for _ in range(2):
        fixed.send([-0.0], [-0.0], "regressor", gauge, reward=-0.0)
        fixed.send([1], [0.9], "binary", reward=0.0)
    texts = [fixed.text(), fixed.text(OPENMETRICS)]
    for model, state in fixed.app.read().models.items():
        view = model_view(model, state, fixed.app.models.of(model), NOW, curves=True)
        texts.append(orjson.dumps(view).decode())
        texts.append(view_table(view))
    for text in texts:
        assert not re.search(r"-0(\.0*)?(?![.0-9])", text)
    fixed.app.close()


LABELS = {
    *exposition.MODEL_LABELS,
    *("outcome", "class", "truth", "prediction", "score", "window", "segment", "route", "output"),
    *("le", "kind", "part", "version", "tag", "reason"),
    *("model_image", "model_version", "predictor_version", "image_name", "image_version"),
    *("seldon_deployment_name", "seldon_deployment_namespace", "method"),
}
"""All labels there are: the models', what families add, the ancestor's, and the test's own."""


def test_no_label_tells_a_pod_a_process_or_an_event(fixed: Fixed) -> None:
    """A series is the same one whoever exposes it, and whichever event changed it."""
    names = {
        label
        for family in prometheus(fixed.text())
        for sample in family.samples
        for label in sample.labels
    }
    assert names - LABELS == set()
    assert len(names) > 15


def test_hostile_labels_come_back_as_they_went_in() -> None:
    """Classes, models and tags of any text, in both formats, through strict parsers."""
    fixed = Fixed(FEEDBACK_SEGMENTS="country")
    texts = [
        HOSTILE,
        "\\",
        '"',
        "{}",
        "a,b=c",
        " ",
        "\\n",
        "é",
        "\N{PILE OF POO}",
        "# EOF",
        "# HELP x y",
        "x\\n# HELP x y",
        "NaN",
    ]
    for text in texts:
        metrics = [{"key": "mine", "value": 1, "tags": {"tag": text}}]
        meta = {"tags": {"country": text}}
        fixed.send([text], ["b"], text.replace("/", ""), metrics, meta=meta)
    for families in (prometheus(fixed.text()), openmetrics(fixed.text(OPENMETRICS))):
        found: dict[str, set[str]] = {}
        for family in families:
            for sample in family.samples:
                for label, value in sample.labels.items():
                    found.setdefault(label, set()).add(value)
        assert found["class"] >= {*texts, *(f"CLASS_{text}" for text in texts)}
        assert found["model_name"] == set(texts)
        assert found["tag"] == set(texts)
        assert found["segment"] == {f"country={text}" for text in texts}
    fixed.app.close()


def test_each_family_stands_once_with_its_help(fixed: Fixed) -> None:
    """HELP, then TYPE, then all samples of all models: what strict parsers ask for."""
    for text in (fixed.text(), fixed.text(OPENMETRICS)):
        heads = [line.split()[:3] for line in text.splitlines() if line.startswith("# ")]
        names = [head[2] for head in heads if head[1] == "HELP"]
        assert len(set(names)) == len(names)
        assert [head[1] for head in heads if head[1] != "EOF"] == ["HELP", "TYPE"] * len(names)
        assert all(len(line.split(None, 3)) == 4 for line in text.splitlines() if "# HELP" in line)


def test_openmetrics_tells_when_a_counter_began(fixed: Fixed) -> None:
    """A model's counters with its first event, this server's with the server."""
    fixed.now += 1000
    fixed.send([1], [1], "younger")
    fixed.app.stats.started = NOW + 500
    created = {
        (sample.name, sample.labels.get("model_name")): sample.value
        for family in openmetrics(fixed.text(OPENMETRICS))
        for sample in family.samples
        if sample.name.endswith("_created")
    }
    assert created["feedback_rows_created", "classifier"] == NOW
    assert created["feedback_rows_created", "younger"] == NOW + 1000
    assert created["seldon_metric_true_positive_created", "classifier"] == NOW
    assert created["my_counter_created", "hostile"] == NOW
    assert created["feedback_store_errors_created", None] == NOW + 500


@pytest.mark.parametrize(
    "names",
    [
        ("COUNTER hits", "COUNTER hits_created"),
        ("TIMER took", "COUNTER took_count"),
        ("COUNTER took_bucket", "TIMER took"),
        ("GAUGE load", "COUNTER load"),
        ("COUNTER x", "COUNTER x_total_total"),
    ],
)
def test_user_metrics_whose_names_clash_break_no_scrape(names: tuple[str, str]) -> None:
    """One of the families is left out; the rest of the exposition stays readable and complete."""
    fixed = Fixed()
    for number, name in enumerate(names):
        kind, _, key = name.partition(" ")
        fixed.send([1], [1], f"model{number}", [{"key": key, "type": kind, "value": 1}])
    for families in (prometheus(fixed.text()), openmetrics(fixed.text(OPENMETRICS))):
        found = list(families)
        assert sum("of the user's" in family.documentation for family in found) == 1
        assert "feedback_build_info" in [family.name for family in found]
    fixed.app.close()


def test_known_classes_are_exposed_with_zeros_at_once(fixed: Fixed) -> None:
    """`increase` needs a first sample: a class of a known column has all four series."""
    text = fixed.text()
    for name in ("true_positives", "false_positives", "false_negatives", "true_negatives"):
        for label in "012":
            start = f'feedback_{name}_total{{class="{label}",deployment_name="iris"'
            assert any(line.startswith(start) for line in text.splitlines()), (name, label)


def test_what_nothing_was_taken_back_of_is_exposed_with_zeros() -> None:
    """With corrections on each counter of rows has its counterpart from the start."""
    fixed = Fixed(FEEDBACK_JOIN_TTL="1h", FEEDBACK_CORRECTIONS="on")
    fixed.send(["a"], ["b"], reward=1)
    fixed.send([0.5], [0.25], "regression")
    fixed.send([[0, 0, 1]], [[0.1, 0.2, 0.7]], "columns")
    counters = {
        line.rpartition(" ")[0].removeprefix("feedback_"): float(line.rpartition(" ")[2])
        for line in fixed.text().splitlines()
        if line.startswith("feedback_") and "_total{" in line and "model_name=" in line
    }
    taken = {name for name in counters if name.startswith("superseded_")}
    own = ("events_", "corrected_events_", "halves_")
    assert {name.removeprefix("superseded_") for name in taken} == {
        name for name in counters.keys() - taken if not name.startswith(own)
    }
    assert len(taken) > 40
    assert not any(counters[name] for name in taken)
    fixed.app.close()


def test_right_rows_are_one_counter_of_classifiers() -> None:
    """So the first right row of each class is seen; a regression has no series of classes."""
    fixed = Fixed()
    for number in range(150):
        fixed.send([f"class {number}"], [f"class {number % 140}"])
    fixed.send([1], [1], "turned")
    assert _values(fixed, "feedback_correct_rows_total{") == [140, 1]
    fixed.send([0.5], [0.25], "turned")
    assert _values(fixed, "feedback_correct_rows_total{") == [140]
    found = [line for line in fixed.text().splitlines() if 'model_name="turned"' in line]
    assert not any("positives" in line or "confusion" in line for line in found)
    assert _values(fixed, "feedback_model_created_timestamp_seconds{") == [NOW, NOW]
    fixed.app.close()


def _values(fixed: Fixed, start: str) -> list[float]:
    lines = fixed.text().splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(start)]


def test_true_negatives_are_right_for_every_class(fixed: Fixed) -> None:
    """Ours are one against the rest; the ancestor's keep its rule beside them."""
    values = {
        (sample.name, sample.labels["class"]): sample.value
        for family in prometheus(fixed.text())
        for sample in family.samples
        if sample.labels.get("model_name") == "classifier" and "class" in sample.labels
    }
    assert [values["feedback_true_negatives_total", label] for label in "012"] == [1, 2, 0]
    assert values["seldon_metric_true_negative_total", "CLASS_2"] == 1


def test_confusion_is_exposed_up_to_the_cap_only() -> None:
    """A matrix of many classes stays out of the exposition."""
    for classes, exposed in (("2", False), ("3", True)):
        fixed = Fixed(FEEDBACK_CONFUSION_CLASSES=classes)
        fixed.send([2], [[0.1, 0.2, 0.7]])
        assert ("feedback_confusion_total" in fixed.text()) is exposed
        fixed.app.close()


def test_promtool_finds_fault_with_the_ancestors_names_at_most(fixed: Fixed) -> None:
    """`promtool check metrics` passes; lint speaks of no name of ours."""
    lint = lint_metrics(fixed.text())
    assert [line for line in lint if not line.startswith(("seldon_metric_", "my_"))] == []
