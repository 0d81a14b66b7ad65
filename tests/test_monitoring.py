"""Rules, alerts and dashboards, against promtool and a real Prometheus that scrapes our server.

The rules are read from the PrometheusRule and the queries from the dashboards, as they are applied.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .prometheus import (
    DASHBOARDS,
    RULES,
    SUBSTITUTES,
    Prometheus,
    promtool,
    queries,
    substituted,
)
from .servers import lint_metrics
from .servers_http import ROOT, OwnServer, until

ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
CASES = Path(__file__).parent / "alert_rules.yaml"
IRIS = "seldon/iris/default/classifier"


# --- rules ------------------------------------------------------------------------------------


def test_rules_are_valid(tmp_path: Path) -> None:
    """`promtool check rules` takes all of them."""
    number = sum(len(group["rules"]) for group in RULES["groups"])
    assert f"{number} rules found" in promtool(tmp_path, "check", "rules", "rules.json")


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """`promtool test rules`: replicas, sleep, few rows, recovery."""
    shutil.copy(CASES, tmp_path)
    promtool(tmp_path, "test", "rules", CASES.name)


def test_totals_of_a_model_that_is_gone_end(tmp_path: Path) -> None:
    """They are recorded for a week (here an hour) after anybody exposed it."""
    text = json.dumps(RULES)
    assert text.count("> time() - 604800") == 1
    series = {
        f'feedback_{name}model_name="m",pod="a"}}': "7x9 stale"
        for name in ('events_total{outcome="accepted",', "rows_total{")
    }
    at = {"59m": [{"labels": 'feedback:rows:net{model_name="m"}', "value": 7}], "75m": []}
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": "feedback:rows:net", "eval_time": time, "exp_samples": samples}
            for time, samples in at.items()
        ],
    }
    tests = {"rule_files": ["rules.json"], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "tests.json").write_text(json.dumps(tests))
    shorter = json.loads(text.replace("604800", "3600"))
    promtool(tmp_path, "test", "rules", "tests.json", rules=shorter)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_is_tried_and_explained(alert: dict[str, Any]) -> None:
    """There is a case in which it fires and one in which it does not, and a runbook paragraph."""
    name = alert["alert"]
    cases = [
        bool(case.get("exp_alerts"))
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == name
    ]
    assert set(cases) == {True, False}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook"].endswith(f"docs/runbook.md, {name}.")
    assert f"\n## {name}\n" in (ROOT / "docs" / "runbook.md").read_text()
    assert alert["labels"]["severity"] in ("warning", "critical")


# --- dashboards -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_can_be_imported(path: Path) -> None:
    """No id of an installation, data sources by variable, panels that do not overlap."""
    dashboard = json.loads(path.read_text())
    assert "id" not in dashboard
    assert dashboard["uid"] == path.stem
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert not variables.keys() - SUBSTITUTES.keys() - {"datasource"}
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert cells.isdisjoint(taken), panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        for each in (panel, *panel.get("targets", ())):
            if each.get("type") != "row":
                assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_model_and_window_are_variables() -> None:
    """The large dashboard is about the models chosen above it."""
    (path,) = (path for path in DASHBOARDS if path.stem == "feedback-metrics")
    names = {each["name"] for each in json.loads(path.read_text())["templating"]["list"]}
    assert names >= {"datasource", "deployment", "model", "window"}
    for query in queries(path).values():
        if "feedback_score" in query or "_total{" in query:
            assert 'model_name=~"$model"' in query


def test_what_corrections_took_back_is_subtracted() -> None:
    """Wherever rows are counted; and no panel asks for a window that may not be kept."""
    (path,) = (path for path in DASHBOARDS if path.stem == "feedback-metrics")
    counted = r"(rows|correct_rows|confusion|(true|false)_(positives|negatives))_total\{"
    for name, query in queries(path).items():
        added = Counter(found[0] for found in re.findall(rf"feedback_{counted}", query))
        taken = Counter(found[0] for found in re.findall(rf"feedback_superseded_{counted}", query))
        assert added == {family: 2 * number for family, number in taken.items()}, name  # - and or
        assert not re.search(r'window="', query), name


def test_the_ancestors_queries_are_unchanged() -> None:
    """The small dashboard asks what docs/migrating-from-seldon.md names as asked before."""
    text = (ROOT / "docs" / "migrating-from-seldon.md").read_text()
    (path,) = (path for path in DASHBOARDS if path.stem == "seldon-metrics")
    asked = queries(path)
    before = {
        title.strip(): re.search(r"`([^`]+)`", cell)
        for title, cell in re.findall(r"(?m)^\| ([^|]+) \| ([^|]*seldon_metric_[^|]*) \|", text)
    }
    named = {title: found[1] for title, found in before.items() if found and "/" in found[1]}
    assert len(named) >= 2
    for title, query in named.items():
        if f"{title} A" in asked:
            assert asked[f"{title} A"] == query
    assert {f"{title} A" for title in named} <= asked.keys()
    assert not any("feedback_" in query for query in asked.values())


# --- a real Prometheus ------------------------------------------------------------------------


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    """A running Prometheus."""
    prometheus = Prometheus(tmp_path)
    yield prometheus
    prometheus.close()


EVERY_QUERY = {
    f"{path.stem}: {name}": substituted(query)
    for path in DASHBOARDS
    for name, query in queries(path).items()
}
TOTAL = 'max without (pod, instance) (feedback_events_total{outcome="accepted"})'
COUNTERS = '{__name__=~"(feedback|seldon_metric)_.+_total",deployment_name!=""}[10m]'


class Feedback:
    """Sends rows and knows how many it sent."""

    def __init__(self) -> None:
        self.sent = 0

    def send(self, server: OwnServer, events: int) -> None:
        """Post events of two rows each, two thirds of which are right, and each fifth one twice."""
        for _ in range(events):
            id = self.sent
            truth = [id % 3, (id + 1) % 3]
            for _ in range(2 if id % 5 == 0 else 1):
                answer = server.feedback(str(id), IRIS, [id % 3, (id + id % 3) % 3], truth)
                assert answer.status == 200, answer
            self.sent += 1


def empty(prometheus: Prometheus, sleeping: bool = False) -> list[str]:
    """The panels that have nothing to show; of a sleeping function, those that look back."""
    names = [name for name, query in EVERY_QUERY.items() if not sleeping or "[10m" in query]
    return [
        name
        for name in names
        if not any(each["value"][1] != "NaN" for each in prometheus.ask(EVERY_QUERY[name]))
    ]


def fed(prometheus: Prometheus, server: OwnServer, feedback: Feedback) -> bool:
    """Send some more; whether all panels show something."""
    feedback.send(server, 5)
    time.sleep(0.3)
    return not empty(prometheus)


def support(prometheus: Prometheus) -> dict[str, float]:
    """Support by class, as a panel shows it."""
    found = prometheus.ask(EVERY_QUERY["feedback-metrics: By class support"])
    return {each["metric"]["class"]: float(each["value"][1]) for each in found}


def headline(prometheus: Prometheus) -> float:
    """The accuracy that the panel of headline scores shows."""
    query = EVERY_QUERY["feedback-metrics: Headline scores A"]
    (shown,) = (
        float(each["value"][1])
        for each in prometheus.ask(query)
        if each["metric"]["score"] == "accuracy"
    )
    return shown


@pytest.mark.timeout(240)
def test_panels_and_counters_over_restart_sleep_and_replicas(
    prometheus: Prometheus, tmp_path: Path
) -> None:
    """Every panel shows data throughout, and no counter ever falls or is counted twice."""
    feedback = Feedback()
    with OwnServer(tmp_path) as first:
        prometheus.scrape(one=first.port)
        feedback.send(first, 10)
        until(lambda: fed(prometheus, first, feedback), 60)
        assert [each for each in lint_metrics(first.exposition()) if "seldon_" not in each] == []
        until(lambda: prometheus.number(TOTAL) == feedback.sent, 30)

        first.restart()  # SIGKILL, and the same pod's container again
        until(lambda: fed(prometheus, first, feedback), 60)

        last = f"last_over_time(({TOTAL})[10m:1s])"
        until(lambda: prometheus.number(last) == feedback.sent, 30)
        assert first.terminate() == 0  # scaled to zero: the target is gone
        prometheus.scrape()
        until(lambda: not prometheus.ask(TOTAL), 60)
        assert empty(prometheus, sleeping=True) == []
        assert prometheus.number(last) == feedback.sent

        first.start()
        store = first.variables["FEEDBACK_STORE"]
        with OwnServer(tmp_path, FEEDBACK_STORE=store) as second:  # two, of other names
            prometheus.scrape(two=first.port, three=second.port)
            until(lambda: prometheus.number("count(feedback_store_ready)") == 2, 60)
            until(lambda: fed(prometheus, first, feedback), 60)
            until(lambda: fed(prometheus, second, feedback), 60)
            until(lambda: prometheus.number(TOTAL) == feedback.sent, 30)

            view = second.get(f"/v1/models/{IRIS}").json
            supports = {each["class"]: each["support"] for each in view["classes"]}
            until(lambda: support(prometheus) == supports, 30)
            until(lambda: headline(prometheus) == pytest.approx(view["scores"]["accuracy"]), 30)

        kept = prometheus.ask(COUNTERS)
        assert {each["metric"]["pod"] for each in kept} == {"one", "two", "three"}
        for each in kept:
            numbers = [float(number) for _, number in each["values"]]
            assert numbers == sorted(numbers), each["metric"]
        recorded = 'feedback:events:max{outcome="accepted"}'
        until(lambda: prometheus.number(recorded) == feedback.sent, 30)
        assert prometheus.number(f"sum(resets({recorded}[10m]))") == 0
        assert prometheus.number(f"increase({recorded}[10m])") <= 1.1 * feedback.sent
