"""User metrics that a store holds under names of others: none of them is exposed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from metrics.exact import to_units
from metrics.pushgateway import lasting
from metrics.state import Entry, Gauge
from metrics.windows import ALL_TIME
from tests.servers import lint_metrics
from tests.test_exposition import OPENMETRICS, Fixed

MODEL = "seldon/iris/default/classifier"
FOREIGN = [
    *("up", "ALERTS", "ALERTS_FOR_STATE", "scrape_duration_seconds", "scrape_samples_scraped"),
    *("feedback_queue_events", "feedback_rows", "feedback_score", "feedback_build_info"),
    *("seldon_metric_true_positive", "process_cpu_seconds", "python_info", "__name__"),
    *("", "a b", "a-b", "1st", "été", 'x"} 1\nup', "colon:name"),
]


def stored(*series: tuple[str, tuple[Any, ...]], value: float = 1.0) -> Fixed:
    """An app with a model whose store holds these counters, gauges and timers of users."""
    fixed = Fixed()
    fixed.send([2], [[0.1, 0.2, 0.7]])
    vector: dict[str, Any] = {}
    gauges: dict[Any, Gauge] = {}
    for kind, key in series:
        if kind == "GAUGE":
            gauges["user_gauges", key] = Gauge(value, fixed.now)
        elif kind == "COUNTER":
            vector.setdefault("user_counters", {})[key] = to_units(value)
        else:
            name, *tags = key
            vector.setdefault("user_timers_sum", {})[key] = to_units(value)
            vector.setdefault("user_timers_bucket", {})[(name, "+Inf", *tags)] = 1
    fixed.app.store.commit([Entry(MODEL, b"", (ALL_TIME,), vector, gauges)], fixed.now)
    return fixed


def families(fixed: Fixed) -> dict[str, str]:
    """Name and type of all families, after strict parsers of both formats took all of it."""
    list(openmetrics(fixed.text(OPENMETRICS)))
    series = Counter(
        (sample.name, *sorted(sample.labels.items()))
        for family in prometheus(fixed.text())
        for sample in family.samples
    )
    assert max(series.values()) == 1
    return {family.name: family.type for family in prometheus(fixed.text())}


@pytest.mark.parametrize("kind", ["COUNTER", "GAUGE", "TIMER"])
def test_no_name_of_others_is_exposed(kind: str) -> None:
    """Neither ours nor Prometheus' own, nor what is no name at all; the model itself is whole."""
    own = families(stored())
    fixed = stored(*((kind, (name,)) for name in FOREIGN), (kind, ("mine",)))
    assert families(fixed).keys() - own.keys() == {"mine"}
    assert own.items() <= families(fixed).items()
    assert "feedback_models_unavailable_total 0.0" in fixed.text()
    assert lint_metrics(fixed.text()) is not None


@pytest.mark.parametrize(
    "name", ["mine_bucket", "mine_sum", "mine_count", "mine_created", "mine_info", "mine_total"]
)
def test_suffixes_of_other_types_are_for_counters_only(name: str) -> None:
    """A gauge or a timer so called looks like a part of another family."""
    own = families(stored())
    for kind in ("GAUGE", "TIMER"):
        assert families(stored((kind, (name,)))) == own
    both = families(stored(("COUNTER", (name,)), ("TIMER", ("mine",)))).keys() - own.keys()
    assert len(both) == (2 if name in ("mine_info", "mine_total") else 1)


@pytest.mark.parametrize(
    "tags",
    [
        ("model_name", "other"),
        ("le", "1"),
        ("__name__", "up"),
        ('a="b",c', "d"),
        ("a",),
        ("b", "1", "a", "2"),
        ("a", "1", "a", "2"),
        ("a", "x\ny"),
    ],
)
def test_broken_tags_are_not_exposed(tags: tuple[Any, ...]) -> None:
    """Labels of ours, labels that are none, tags without values or out of order."""
    own = families(stored())
    for kind in ("COUNTER", "GAUGE", "TIMER"):
        assert families(stored((kind, ("mine", *tags)))) == own


def test_a_tag_without_a_value_is_none() -> None:
    """Series of earlier versions that are one to Prometheus are exposed as one."""
    for kind, name, value in (
        ("COUNTER", "mine_total", 4.0),
        ("GAUGE", "mine", 2.0),
        ("TIMER", "mine_sum", 4.0),
        ("TIMER", "mine_count", 2.0),
    ):
        fixed = stored((kind, ("mine",)), (kind, ("mine", "a", "")), value=2.0)
        families(fixed)
        (line,) = [line for line in fixed.text().splitlines() if line.startswith(f"{name}{{")]
        assert float(line.rpartition(" ")[2]) == value, kind
        fixed.app.close()


def test_a_carriage_return_in_a_label_ends_no_line_that_is_pushed() -> None:
    """A stored class with one: the lines that are pushed are the lines that are exposed."""
    fixed = Fixed()
    vector = {"events": {(): 1}, "true_positives": {('a\rb{c="d"} 1',): 1}}
    fixed.app.store.commit([Entry(MODEL, b"", (ALL_TIME,), vector)], fixed.now)
    text = fixed.text().encode()
    pushed = lasting(text)
    assert b"a\rb" in pushed
    assert set(pushed.split(b"\n")) <= set(text.split(b"\n"))
    fixed.app.close()
