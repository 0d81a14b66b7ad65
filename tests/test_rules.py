"""Recorded rules against brute force over the rows that were sent, in a real Prometheus.

Over cold starts, corrections, sleep, replicas that end, many classes, and a task guessed wrongly.
"""

from __future__ import annotations

import copy
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from .prometheus import DASHBOARDS, RULES, Prometheus, queries, substituted
from .servers_http import OwnServer, attributes, message, until

COLD, CORRECTED, REGRESSION, BINARY, LABELS, FEW, LATE = (
    f"seldon/rules/default/{name}"
    for name in ("cold", "corrected", "regression", "binary", "labels", "few", "late")
)
PREDICTION = "io.seldon.serving.inference.response"
HOUR = 3600
Values = dict[tuple[str, str], float]
"""(model, class or empty) -> value of one rule."""


def scaled(hour: int) -> Any:
    """The rules with another hour, for Prometheus that scrapes every 0.2 s."""
    rules = copy.deepcopy(RULES)
    for group in rules["groups"]:
        for rule in group["rules"]:
            text = re.sub(r"(\[|offset )1h\b", rf"\g<1>{hour}s", rule["expr"])
            text = text.replace("> time() - 3720", f"> time() - {hour + 120 * hour // HOUR + 2}")
            rule["expr"] = text.replace("[5m]", "[2s]")
            if "for" in rule:
                rule["for"] = "1s"
    return rules


class Row(NamedTuple):
    """One row that was compared, or taken back (sign -1)."""

    time: float
    model: str
    truth: Any
    prediction: Any
    sign: int
    late: bool


class Sender:
    """Sends feedback, and knows what rules should make of it."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.random = random.Random(14)
        self._ids = 0
        self._truths: dict[str, tuple[str, Any, Any]] = {}

    def send(self, server: OwnServer, model: str, truth: Any, prediction: Any, **more: str) -> None:
        """One event of one row."""
        answer = server.feedback(self._id(), model, [prediction], [truth], **more)
        assert answer.status == 200, answer
        self._note(model, truth, prediction, late="time" in more)

    def predict(self, server: OwnServer, model: str, request: str, prediction: Any) -> None:
        """A prediction that waits for its truth."""
        more = {"type": PREDICTION, "requestid": request}
        body = message([prediction])
        assert server.event(body, attributes(self._id(), model, **more)).status == 202
        self._truths[request] = (model, prediction, None)

    def tell(self, server: OwnServer, request: str, truth: Any) -> None:
        """A truth, which takes the place of the one before."""
        model, prediction, before = self._truths[request]
        body = {"truth": message([truth])}
        answer = server.event(body, attributes(self._id(), model, requestid=request))
        assert answer.status == 200, answer
        if before is not None:
            self._note(model, before, prediction, -1)
        self._note(model, truth, prediction)
        self._truths[request] = (model, prediction, truth)

    def _id(self) -> str:
        self._ids += 1
        return str(self._ids)

    def _note(
        self, model: str, truth: Any, prediction: Any, sign: int = 1, late: bool = False
    ) -> None:
        self.rows.append(Row(time.time(), model, truth, prediction, sign, late))

    def expected(self, begin: float, end: float) -> dict[str, Values]:
        """What each rule says of the time from `begin` to `end`, by name without its suffix."""
        found: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in COUNTED}
        events: Counter[str] = Counter()
        for row in self.rows:
            if row.time > end:
                continue
            model, sign = row.model.split("/")[3], row.sign * (row.time > begin)
            found["rows"][model, ""] += sign
            found["late_events"][model, ""] += row.late * sign
            events[model] += max(sign, 0)
            if row.model == REGRESSION:
                continue
            pairs = [(row.truth, row.prediction)]
            if row.model == LABELS:
                pairs = [(n * t, n * p) for n, t, p in zip((1, 2, 3), *pairs[0], strict=True)]
            else:
                found["correct_rows"][model, ""] += sign * (row.truth == row.prediction)
            for truth, prediction in pairs:
                for name, label, holds in (
                    ("true_positives", truth, truth == prediction),
                    ("false_negatives", truth, truth != prediction),
                    ("false_positives", prediction, truth != prediction),
                ):
                    for known in (truth, prediction):  # a class is a series of each, if of zeros
                        if row.model != LABELS or known:
                            found[name][model, self._class(row.model, known)] += 0
                    if row.model != LABELS or label:
                        found[name][model, self._class(row.model, label)] += sign * holds
        values = {name: {at: float(n) for at, n in cells.items()} for name, cells in found.items()}
        hits = values["true_positives"]
        ratios = {
            "accuracy": (values["correct_rows"], values["rows"]),
            "precision": (hits, _sums(hits, values["false_positives"])),
            "recall": (hits, _sums(hits, values["false_negatives"])),
            "late_events_share": (
                values["late_events"],
                {(model, ""): float(number) for model, number in events.items()},
            ),
        }
        for name, (above, below) in ratios.items():
            values[name] = {
                at: number / below[at] for at, number in above.items() if below[at] >= 30
            }
        return values

    @staticmethod
    def _class(model: str, label: Any) -> str:
        return str(label - 1 if model == LABELS else label)


def _sums(one: Values, other: Values) -> Values:
    return {at: one[at] + other[at] for at in one}


COUNTED = (
    *("rows", "correct_rows", "true_positives", "false_positives", "false_negatives"),
    "late_events",
)
NETS = {name: f"feedback:{name}:net" for name in COUNTED[:-1]}
DELTAS = {name: f"feedback:{name}:delta1h" for name in COUNTED}
SHARES = {
    "accuracy": "feedback:accuracy:ratio1h",
    "precision": "feedback:precision:ratio1h",
    "recall": "feedback:recall:ratio1h",
    "late_events_share": "feedback:late_events:ratio1h",
}


def place(metric: dict[str, str]) -> tuple[str, str]:
    """The model and class of a series."""
    return metric["model_name"], metric.get("class", "")


def differences(prometheus: Prometheus, sender: Sender) -> list[Any]:
    """Where rules are not what brute force says: (rule, said, expected)."""
    wrong = []
    expected = sender.expected(0.0, time.time())
    for name, rule in (*NETS.items(), *DELTAS.items(), *SHARES.items()):
        said = {place(each["metric"]): float(each["value"][1]) for each in prometheus.ask(rule)}
        if said != pytest.approx(expected[name], abs=1e-12):
            wrong.append((rule, said, expected[name]))
    return wrong


def agree(prometheus: Prometheus, sender: Sender) -> None:
    """Waits until all rules and panels are what brute force says; fails with what differs."""
    for differing in (differences, panel_differences):
        end = time.monotonic() + 30
        while (wrong := differing(prometheus, sender)) and time.monotonic() < end:
            time.sleep(0.3)
        assert wrong == []


@contextmanager
def running(directory: Path, hour: int) -> Iterator[Prometheus]:
    """A Prometheus with scaled rules."""
    prometheus = Prometheus(directory, scaled(hour))
    try:
        yield prometheus
    finally:
        prometheus.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    """A server that joins, corrects, and knows which model is of what task."""
    models = {BINARY: {"task": "binary"}, LABELS: {"task": "multilabel"}}
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    with OwnServer(
        tmp_path,
        FEEDBACK_MODELS=str(path),
        FEEDBACK_JOIN_TTL="1h",
        FEEDBACK_CORRECTIONS="on",
        FEEDBACK_WINDOWS="5m,1d",  # no 1h
    ) as server:
        yield server


def some(sender: Sender, server: OwnServer, number: int) -> None:
    """A turn of each model."""
    draw = sender.random
    for _ in range(number):
        truth = draw.randrange(40)
        sender.send(server, COLD, truth, truth if draw.random() < 0.93 else draw.randrange(40))
        request = f"request-{len(sender.rows)}"
        sender.predict(server, CORRECTED, request, draw.randrange(3))
        sender.tell(server, request, draw.randrange(3))
        if draw.random() < 0.7:
            sender.tell(server, request, draw.randrange(3))
        sender.send(server, REGRESSION, draw.random() * 9, draw.random() * 9)
        old = {"time": "2020-01-01T00:00:00Z"} if draw.random() < 0.3 else {}
        sender.send(server, LATE, draw.choice("ab"), "a", **old)
        rows = [[draw.randrange(2) for _ in range(3)] for _ in range(2)]
        sender.send(server, LABELS, *rows)
    sender.send(server, FEW, "x", "y")


def panel(prometheus: Prometheus, name: str, model: str) -> list[dict[str, Any]]:
    """The series of a panel of the dashboard, of one model, over all the time of a test."""
    (path,) = (path for path in DASHBOARDS if path.stem == "feedback-metrics")
    query = queries(path)[name].replace("$model", model.split("/")[3])
    return prometheus.ask(substituted(query))


def panel_differences(prometheus: Prometheus, sender: Sender) -> list[Any]:
    """Where a panel does not show what brute force says: (panel, model, shown, expected)."""
    wrong = []
    for model in (COLD, CORRECTED, LATE):
        rows = [row for row in sender.rows if row.model == model]
        cells: Counter[tuple[str, ...]] = Counter()
        support: Counter[tuple[str, ...]] = Counter()
        for row in rows:
            cells[str(row.truth), str(row.prediction)] += row.sign
            support[str(row.truth),] += row.sign
        expected = {
            "Rows over the range shown A": {(): sum(row.sign for row in rows)},
            "Too late for every window A": {(): sum(row.late * row.sign for row in rows)},
            "By class support": support,
            "Confusion, rows over the range shown A": cells,
        }
        if model == COLD:  # of too many classes: what it was until then
            del expected["Confusion, rows over the range shown A"]
        for name, numbers in expected.items():
            shown = {
                tuple(
                    each["metric"][label]
                    for label in ("class", "truth", "prediction")
                    if label in each["metric"]
                ): float(each["value"][1])
                for each in panel(prometheus, name, model)
            }
            if +Counter(shown) != +Counter(numbers):
                wrong.append((name, model, shown, numbers))
    return wrong


def firing(prometheus: Prometheus, alert: str) -> set[str]:
    """The models for which an alert fires."""
    found = prometheus.ask(f'ALERTS{{alertname="{alert}",alertstate="firing"}}')
    return {each["metric"]["model_name"] for each in found}


@pytest.mark.timeout(240)
def test_rules_are_what_brute_force_says(server: OwnServer, tmp_path: Path) -> None:
    """Whatever happens in an hour: to the row, and no rule of a model that it does not fit."""
    sender = Sender()
    with running(tmp_path, HOUR) as prometheus:
        for number in range(40):  # before it is scraped for the first time
            sender.send(server, COLD, number % 3, number % 3)
        for label in (0, 1, 1):  # taken for classes, until a fraction comes
            sender.send(server, REGRESSION, label, 1)
        prometheus.scrape(one=server.port)
        until(lambda: prometheus.ask("feedback:true_positives:net"))
        for _ in range(12):
            some(sender, server, 10)
            time.sleep(0.2)
        agree(prometheus, sender)

        assert server.terminate() == 0
        prometheus.scrape()
        until(lambda: prometheus.ask("feedback:asleep:timestamp"), 30)
        agree(prometheus, sender)
        assert not prometheus.ask("feedback_rows_total")

        server.start()  # and woken by events that come before a scrape
        some(sender, server, 20)
        ours = {name: text for name, text in server.variables.items() if name != "PORT"}
        with OwnServer(tmp_path, **ours) as second:
            prometheus.scrape(two=server.port, three=second.port)
            until(lambda: prometheus.number("count(feedback_store_ready)") == 2, 60)
            agree(prometheus, sender)
            some(sender, second, 20)
            prometheus.scrape(two=server.port)  # the one that was ahead ends
            agree(prometheus, sender)
        assert prometheus.number("sum(resets(feedback:events:max[10m]))") == 0
        late = sender.expected(0.0, time.time())["late_events_share"]
        until(lambda: "corrected" in firing(prometheus, "FeedbackScoreLow"))
        assert firing(prometheus, "FeedbackScoreLow") == {"corrected", "late"}
        assert firing(prometheus, "FeedbackLate") == {at[0] for at in late if late[at] > 0.1}
        assert firing(prometheus, "FeedbackStateFell") == set()
        by_hand = "sum(increase((max without (pod, instance) ({})) [10m:1s]))"
        families = (
            f'feedback_{name}_total{{model_name="cold"}}' for name in ("correct_rows", "rows")
        )
        ratio = " / ".join(by_hand.format(family) for family in families)
        accuracy = sender.expected(0.0, time.time())["accuracy"]["cold", ""]
        assert prometheus.number(ratio) == pytest.approx(accuracy, abs=0.02)


@pytest.mark.timeout(240)
def test_rules_look_back_an_hour_and_no_further(server: OwnServer, tmp_path: Path) -> None:
    """At every moment at which nothing is under way, through sleep and waking."""
    hour, sender = 14, Sender()
    begin = time.time()
    busy: list[tuple[float, float]] = []

    def feed(pod: str) -> None:
        """Send some, which are scraped at the end at the latest."""
        start = time.time()
        some(sender, server, 40)
        prometheus.scrape(**{pod: server.port})
        until(lambda: prometheus.ask(f'up{{pod="{pod}"}} == 1'))
        busy.append((start, time.time()))

    def quiet(at: float) -> bool:
        return not any(start - 1.5 < at < end + 4 for start, end in busy)

    with running(tmp_path, hour) as prometheus:
        feed("one")
        time.sleep(7)
        assert server.terminate() == 0
        prometheus.scrape()
        time.sleep(hour + 4)  # asleep for longer than the window
        server.start()
        for _ in range(3):
            feed("two")
            time.sleep(7)
        end = time.time()
        times = [at for at in range(int(begin), int(end)) if quiet(at) and quiet(at - hour)]
        assert len(times) > 8
        seen = set()
        for name, rule in {**DELTAS, **SHARES}.items():
            said: dict[float, Values] = {}
            for each in prometheus.range(rule, int(begin), int(end), 1.0):
                for at, number in each["values"]:
                    said.setdefault(at, {})[place(each["metric"])] = float(number)
            for at in times:
                expected = sender.expected(at - hour, at)[name]
                assert said.get(at, {}) == pytest.approx(expected, abs=1e-12), (rule, at - begin)
                seen |= {number for number in expected.values() if name == "rows"}
        assert {0.0, 40.0} <= seen
