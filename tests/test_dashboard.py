"""What the page is drawn from: headline and trend by definition, geometry, numbers as words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Request
from werkzeug.test import EnvironBuilder

from metrics import config, pages
from metrics.app import App
from metrics.dashboard import page
from metrics.dashboard.charts import LEVELS, SIDE, line, reliability, roc, shade
from metrics.dashboard.words import ago, brief, clock, cut, figure, percent, title
from metrics.model_settings import ModelSettings
from metrics.scores.headline import FEW_ROWS, HEADLINES, Moment, headline, trend
from metrics.scores.view import vector_of
from metrics.store import open_store
from metrics.windows import place, window
from tests.oracle import MODEL, Rows, Stream, classifier, commit, entry, scored
from tests.servers_http import feedback

NOW = 1_700_003_000.0
HOUR = window("1h")


def _rows(task: str, rows: int, rng: Any) -> Rows:
    if task == "multilabel":
        return Rows(ModelSettings(task=task), *(rng.integers(0, 2, (rows, 2)) for _ in "tp"))
    if task == "regression":
        return Rows(ModelSettings(task=task), *(rng.normal(0, 1, rows) for _ in "tp"))
    classes = 2 if task == "binary" else 3
    probabilities = rng.dirichlet(np.ones(classes), rows)
    return classifier(ModelSettings(task=task), rng.integers(0, classes, rows), probabilities)


def _sent(task: str, rows: int, events: int) -> Stream:
    """Events over two hours, of which the window holds one; half an hour is without any."""
    rng = np.random.default_rng(rows + events)
    stream = Stream(ModelSettings(task=task))
    for at in range(events):
        time = NOW - 7200 + 7200 * at / events
        if NOW - 3000 < time < NOW - 1200:
            continue
        panes = place(time, time, (HOUR,)).panes
        constants = stream.store.read().constants(MODEL)
        commit(stream.store, [entry(_rows(task, rows, rng), constants, panes)])
    return stream


@pytest.mark.parametrize("over", [None, HOUR], ids=["all", "1h"])
@pytest.mark.parametrize("task", HEADLINES)
def test_a_headline_is_the_view_s(task: str, over: Any) -> None:
    """The same score, interval and rows that all the scores of the window tell."""
    stream = _sent(task, 3, 60)
    found = headline(stream.state, over, NOW, task, 0.95)
    whole = stream.scored(over, NOW)
    assert found.value == pytest.approx(whole.scores[found.score], rel=1e-12)
    assert found.interval == pytest.approx(whole.intervals[found.score], rel=1e-9)
    assert 0 < found.rows == whole.rows


def test_a_headline_without_rows_is_undefined() -> None:
    """Nothing is 0/0."""
    stream = _sent("multiclass", 1, 10)
    found = headline(stream.state, HOUR, NOW + 1e6, "multiclass", 0.95)
    assert found == ("accuracy", None, None, 0)
    assert headline(stream.state, HOUR, NOW + 1e6, "regression", 0.95)[1:] == (None, None, 0)


@pytest.mark.parametrize("task", HEADLINES)
@pytest.mark.parametrize(("rows", "pool"), [(40, 1), (9, 3), (1, 5)])
def test_a_trend_is_the_score_of_each_stretch(task: str, rows: int, pool: int) -> None:
    """By the scores of a window that ends with it; the fewer rows, the longer the stretches."""
    stream = _sent(task, rows, 200)
    moments = trend(stream.state, HOUR, NOW, task)
    assert len(moments) == 60 / pool
    width = 60 * pool
    for before, after in pairwise(moments):
        assert after.start - before.start == width
    score = HEADLINES[task]
    stretch = window(f"{width}s")._replace(width=HOUR.width)
    for moment in moments:
        vector = vector_of(stream.state, stretch, moment.start + width - 1)
        whole = scored(stream.state, stream.settings, vector)
        assert moment.rows == whole.rows
        assert moment.value == (
            pytest.approx(whole.scores[score], rel=1e-12) if whole.rows else None
        )
    assert any(moment.value is None for moment in moments)
    assert sum(moment.rows for moment in moments) == stream.scored(HOUR, NOW).rows


def test_rows_of_several_outputs_count_once() -> None:
    """The score is the mean over the outputs; it has no interval, as in the view."""
    rng = np.random.default_rng(1)
    settings = ModelSettings(task="regression")
    stream = Stream(settings)
    rows = Rows(settings, *(rng.normal(0, 1, (50, 3)) for _ in "tp"))
    commit(stream.store, [entry(rows, {}, place(NOW, NOW, (HOUR,)).panes)])
    whole = stream.scored(HOUR, NOW)
    found = headline(stream.state, HOUR, NOW, "regression", 0.95)
    assert found.value == pytest.approx(whole.scores["mean_absolute_error"], rel=1e-12)
    assert (found.interval, found.rows) == (None, 50)
    assert "mean_absolute_error" not in whole.intervals
    assert trend(stream.state, HOUR, NOW, "regression")[-1].rows == 50


# --- geometry -----------------------------------------------------------------------------------


def _numbers(path: str) -> list[float]:
    return [float(each) for each in re.findall(r"-?[0-9.]+", path)]


def test_a_line_stops_where_nothing_is_known() -> None:
    """Gaps are gaps, a lone value is a dot, the last value is marked, rows are bars."""
    values = [0.5, 0.7, None, 0.9, None, 0.6, 0.8]
    moments = [Moment(at, 0 if each is None else 10 + at, each) for at, each in enumerate(values)]
    drawn = line(moments, 70, 40, bars=10)
    assert drawn is not None
    assert drawn.path.count("M") == 2
    points = _numbers(drawn.path)
    assert points[0::2] == [5, 15, 55, 65]
    assert [dot[0] for dot in drawn.dots] == ["35", "65"]
    heights = dict(zip((0.5, 0.7, 0.6, 0.8), points[1::2], strict=True))
    assert heights[0.8] < heights[0.7] < heights[0.6] < heights[0.5] <= 30
    assert (drawn.filled, drawn.moments, drawn.most_rows) == (5, 7, 16)
    assert [float(bar.height) for bar in drawn.bars] == [6.25, 6.88, 8.12, 9.38, 10]
    assert (drawn.lowest, drawn.highest) == (0.5, 0.9)
    assert line([Moment(0, 0, None)], 70, 40) is None


@pytest.mark.parametrize(
    "values", [(0.0, 0.0), (1.0, 1.0), (0.97, 0.971), (5e9, 5e9), (-3.0, -3.0), (0.2, 40.0), (1, 0)]
)
def test_an_axis_holds_its_values_and_has_a_length(values: tuple[float, float]) -> None:
    """Shares stay within 0 and 1, what is never negative stays so, and noise does not fill it."""
    drawn = line([Moment(0, 1, values[0]), Moment(1, 1, values[1])], 10, 30)
    assert drawn is not None
    assert drawn.low <= min(values) <= max(values) <= drawn.high
    assert drawn.high > drawn.low
    if min(values) >= 0:
        assert drawn.low >= 0
    if min(values) >= 0 and max(values) <= 1:
        assert drawn.high <= 1
    assert all(0 <= y <= 30 for y in _numbers(drawn.path)[1::2])


def test_the_band_of_a_curve_is_the_rectangles_between_its_points() -> None:
    """Its area is the difference of the certified bounds of the area under the curve."""
    false, true = [0, 0.1, 0.5, 1], [0, 0.4, 0.9, 1]
    drawn = roc({"false_positive_rate": false, "true_positive_rate": true})
    assert _numbers(drawn.path) == [0, 240, 24, 144, 120, 24, 240, 0]
    corners = np.array(_numbers(drawn.bounds)).reshape(-1, 2)
    x, y = corners.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2 / SIDE**2
    assert area == pytest.approx(np.diff(false) @ np.diff(true))


def test_a_reliability_bin_is_at_its_confidence_and_accuracy() -> None:
    """With Wilson's interval as a stroke, and hollow where rows are few."""
    bins = [
        {"from": 0.4, "to": 0.5, "rows": 5, "confidence": 0.45, "accuracy": 0.4},
        {"from": 0.9, "to": 1.0, "rows": 100, "confidence": 0.95, "accuracy": 0.9},
    ]
    first, second = reliability(bins, 0.95, FEW_ROWS)
    assert (float(second.x), float(second.y)) == (SIDE * 0.95, pytest.approx(SIDE * 0.1))
    assert float(second.high) < float(second.y) < float(second.low)
    assert float(first.low) - float(first.high) > float(second.low) - float(second.high)
    assert (first.few, second.few) == (True, False)


def test_any_share_at_all_has_a_shade() -> None:
    """0 has none; the scale ends at 1."""
    assert [shade(each) for each in (0, 1e-9, 0.1, 0.55, 0.999, 1)] == [0, 1, 2, 6, LEVELS, LEVELS]


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0.0, "0.0000"),
        (-0.0, "0.0000"),
        (0.99996, "0.9999"),
        (-0.99996, "-0.9999"),
        (1.0, "1.0000"),
        (0.00000001, "1.000e-08"),
        (0.97333333, "0.9733"),
        (-0.5, "-0.5000"),
        (15.52, "15.520"),
        (99999.4, "99999"),
        (3e8, "3.000e+08"),
        (0.00012, "1.200e-04"),
        (7, "7"),
        (1258000, "1\N{NARROW NO-BREAK SPACE}258\N{NARROW NO-BREAK SPACE}000"),
    ],
)
def test_figures(number: float, shown: str) -> None:
    """In a few digits, whatever the size."""
    assert figure(number) == shown
    assert float(shown.replace("\N{NARROW NO-BREAK SPACE}", "")) == pytest.approx(number, rel=1e-4)


def test_words() -> None:
    """Shares, names of scores, axes, moments."""
    assert [percent(each) for each in (0.0004, 0.995, 0.99996, 1.0, 0.999, -0.0)] == [
        *("<0.1 %", "99.5 %", "99.9 %", "100 %", "99.9 %", "0 %")
    ]
    assert (brief(0.9997), brief(-0.0), brief(0.0100001)) == ("0.999", "0.000", "0.010")
    assert (percent(0.0123), percent(0.5), percent(0.0)) == ("1.2 %", "50 %", "0 %")
    assert (title("roc_auc_ovr"), title("f1")) == ("ROC AUC OvR", "F1")
    assert (brief(0.25), brief(0.001), brief(1234.5)) == ("0.250", "0.0010", "1234.5")
    assert clock("2026-01-02T03:04:05Z") == clock(1767323045) == "2026-01-02 03:04:05 UTC"
    seconds = (5, 70, 7300, 200_000, -50)
    assert [ago(NOW - each, NOW) for each in seconds] == [
        "5 s ago",
        "1 min ago",
        "2 h ago",
        "2 d ago",
        "0 s ago",
    ]
    assert (ago("soon", NOW), clock("soon")) == ("soon", "soon")


def test_a_long_label_keeps_both_ends() -> None:
    """So that labels that begin alike can be told apart."""
    label = "a" * 50 + "end"
    assert len(cut(label)) == 28
    assert cut(label).startswith("aaa")
    assert cut(label).endswith("end")
    assert cut("short") == "short"
    assert cut("\N{NO-BREAK SPACE} ") == "(blank)"


def test_what_cannot_be_seen_in_a_label_is_shown() -> None:
    """Nor can a label turn itself around; emoji that are joined stay whole."""
    assert cut("a\N{ZERO WIDTH SPACE}") == "a\N{REPLACEMENT CHARACTER}"
    assert cut("\N{RIGHT-TO-LEFT OVERRIDE}txt.exe") == "\N{REPLACEMENT CHARACTER}txt.exe"
    family = "👩\N{ZERO WIDTH JOINER}👧"
    assert cut(family) == family


# --- parts of the view that come and go -----------------------------------------------------------


@pytest.fixture
def app() -> Iterator[App]:
    """An app that was told of one model."""
    settings = config.load({"FEEDBACK_STORE": "memory:"})
    app = App(settings, open_store("memory:", 60))
    try:
        body = json.dumps(feedback(1, 0)).encode()
        assert app.post_sync({"content-type": "application/json"}, body).status == 200
        yield app
    finally:
        app.close()


def test_alerts_are_shown_where_the_view_has_them(app: App, monkeypatch: Any) -> None:
    """Rule, score, window, state, value and how long since; whatever they hold stays text."""
    model = "default/default/default/default"
    request = Request(EnvironBuilder(query_string={"model": model}).get_environ())
    assert '<h2 id="alerts">' not in page(app, request)
    rule = {"rule": "<b>low", "score": "accuracy", "window": "1h", "state": "firing"}
    alerts = [
        {**rule, "since": app.now() - 120, "value": 0.25},
        {**rule, "rule": "quiet", "state": "ok", "since": None, "value": None},
    ]
    one_model = pages.one_model
    monkeypatch.setattr(pages, "one_model", lambda *of: {**one_model(*of), "alerts": alerts})
    shown = page(app, request)
    assert '<h2 id="alerts">Alerts</h2>' in shown
    assert "&lt;b&gt;low" in shown
    assert '<span class="state firing">firing</span>' in shown
    assert '<data value="0.25">0.2500</data>' in shown
    assert "2 min ago" in shown


def test_style_and_script_are_part_of_the_package() -> None:
    """What a page needs is installed with it."""
    pyproject = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert '"metrics.dashboard"' in pyproject
    assert '"static/*"' in pyproject
