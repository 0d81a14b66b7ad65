"""A window's scores are those of the raw rows in it, whenever and how often they arrived."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from metrics.model_settings import ModelSettings
from metrics.scores import model_view
from metrics.scores.view import segments_of, vector_of
from metrics.state import Entry, ModelState
from metrics.store import MemoryStore
from metrics.windows import Window, expired, in_segments, panes_of, place, window
from tests.oracle import MODEL, Rows, classifier, commit, differences, entry, scored

START = 1_700_000_000.0
WINDOWS = tuple(window(name) for name in ("90s", "3m", "5m", "1h"))
SPAN = 5400
"""Seconds over which events happen: more than the longest window."""


class Sent(NamedTuple):
    """One delivery of one event."""

    event: int
    time: float
    arrival: float
    rows: Rows


def _classifier(rng: Any, rows: int) -> Rows:
    probabilities = rng.dirichlet(np.ones(3), rows)
    truth = (probabilities.cumsum(axis=1) > rng.random((rows, 1))).argmax(axis=1)
    return classifier(ModelSettings(task="multiclass", k=2, beta=0.5), truth, probabilities)


def _binary(rng: Any, rows: int) -> Rows:
    p = 1 / (1 + np.exp(-rng.normal(-2, 2, rows)))
    settings = ModelSettings(task="binary", k=1, beta=2.0, threshold=0.3)
    truth = (rng.random(rows) < p).astype(int)
    return classifier(settings, truth, np.column_stack([1 - p, p]))


def _regressor(rng: Any, rows: int) -> Rows:
    truth = rng.normal(1e6, 1, rows)
    settings = ModelSettings(task="regression")
    return Rows(settings, truth, truth + rng.normal(0.1, 0.3, rows))


def _multilabel(rng: Any, rows: int) -> Rows:
    truth, prediction = (rng.integers(0, 2, (rows, 4)) for _ in range(2))
    return Rows(ModelSettings(task="multilabel", beta=1.0), truth, prediction)


TASKS = {
    "multiclass": _classifier,
    "binary": _binary,
    "regression": _regressor,
    "multilabel": _multilabel,
}


def _deliveries(rows: Rows, seed: int) -> list[Sent]:
    """Events in the order of their arrival.

    Most arrive at once; some seconds, minutes or hours late; some claim a time in the future; one
    in five is delivered again later.
    """
    rng = np.random.default_rng(seed)
    deliveries = []
    sizes = iter(lambda: int(rng.choice([1, 1, 1, 2, 25])), None)
    for event, chunk in enumerate(rows.chunks(sizes)):
        time = START + float(rng.uniform(0, SPAN))
        delay = float(rng.choice([0, 0, 0, 0.5, 20, 200, 2000, 8000, -40])) * float(rng.random())
        deliveries.append(Sent(event, time, time + delay, chunk))
        while rng.random() < 0.2:
            again = deliveries[-1].arrival + float(rng.exponential(300))
            deliveries.append(Sent(event, time, again, chunk))
    return sorted(deliveries, key=lambda each: each.arrival)


def _happened(each: Sent) -> float:
    """When an event counts: at its own time, but never later than it arrived."""
    return min(each.time, each.arrival)


def _entry(each: Sent, store: MemoryStore, segments: tuple[str, ...] = ()) -> Entry:
    placement = place(each.time, each.arrival, WINDOWS)
    panes = tuple(in_segments(placement.panes, segments))
    digest = each.event.to_bytes(16, "big")
    return entry(each.rows, store.read().constants(MODEL), panes, digest, placement.late)


def _pick(rows: list[Rows]) -> Rows | None:
    """Events' rows as one."""
    if not rows:
        return None
    probabilities = None
    if rows[0].probabilities is not None:
        probabilities = np.concatenate([each.probabilities for each in rows])
    return Rows(
        rows[0].settings,
        np.concatenate([each.truth for each in rows]),
        np.concatenate([each.prediction for each in rows]),
        probabilities,
    )


def _assert_holds(state: ModelState, among: Window, now: float, arrived: list[Sent]) -> int:
    """A window's scores are those of the rows of its panes by brute force; returns how many."""
    settings = arrived[0].rows.settings
    found = scored(state, settings, vector_of(state, among, now))
    start = (int(now - among.seconds) // among.width + 1) * among.width
    inside = [each for each in arrived if _happened(each) >= start]
    expected = _pick([each.rows for each in inside])
    assert found.events == len(inside)
    assert found.rows == (len(expected) if expected else 0)
    if expected is None:
        assert found.scores == {}
        return 0
    assert not differences(found, expected), (among.name, now - START)
    return len(expected)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("task", TASKS)
def test_windows_hold_what_brute_force_finds_in_the_raw_rows(task: str, seed: int) -> None:
    """Late, duplicate, future and out-of-order events, while old panes are swept away."""
    rng = np.random.default_rng(seed)
    deliveries = _deliveries(TASKS[task](rng, 2500), seed)
    store = MemoryStore(86400)
    first: dict[int, Sent] = {}
    late = duplicates = at = 0
    most = dict.fromkeys(WINDOWS, 0)
    stops = {*np.linspace(60, len(deliveries), 4, dtype=int).tolist()}
    while at < len(deliveries):
        batch = deliveries[at : at + int(rng.choice([1, 5, 40]))]
        at += len(batch)
        now = batch[-1].arrival
        verdicts = commit(store, [_entry(each, store) for each in batch], now)
        for each, is_new in zip(batch, verdicts, strict=True):
            assert is_new == (each.event not in first)
            duplicates += not is_new
            if is_new:
                first[each.event] = each
                late += all(each.time <= each.arrival - among.seconds for among in WINDOWS)
        if rng.random() < 0.5:
            store.housekeep(now)
        if any(at - len(batch) < stop <= at for stop in stops):
            state = store.read().models[MODEL]
            later = now + float(rng.choice([0, 1, 45, 1000]))
            for among in WINDOWS:
                for moment in (now, later):
                    held = _assert_holds(state, among, moment, list(first.values()))
                    most[among] = max(most[among], held)
    state = store.read().models[MODEL]
    everything = _pick([each.rows for each in first.values()])
    assert everything is not None
    whole = scored(state, everything.settings, state.all_time)
    assert not differences(whole, everything)
    assert state.all_time["late"] == {(): late}
    assert state.all_time["duplicates"] == {(): duplicates}
    assert min(late, duplicates, *most.values()) > 5


@pytest.mark.parametrize("among", WINDOWS, ids=lambda each: each.name)
def test_a_window_is_off_by_at_most_one_pane(among: Window) -> None:
    """It holds all of its last seconds but one pane's, and nothing older than they are."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        now = START + float(rng.uniform(0, SPAN))
        panes = {pane.index for pane in panes_of(among, now)}
        age = float(rng.uniform(0, 1.2 * among.seconds))
        (_, pane) = place(now - age, now, [among]).panes if age < among.seconds else (None, None)
        if age < among.seconds - among.width:
            assert pane is not None
            assert pane.index in panes
        if pane is None or pane.index not in panes:
            assert age > among.seconds - among.width
    assert among.width <= max(1, among.seconds / 30)


def test_windows_that_are_cut_alike_count_an_event_once() -> None:
    """90 seconds and 2 minutes both have panes of 2 seconds: one and the same pane."""
    panes = place(START, START, [window("90s"), window("2m")]).panes
    assert len(panes) == len(set(panes))


def test_no_pane_expires_that_a_window_reaches() -> None:
    """Whatever the clock says, sweeping leaves every pane of every window alone."""
    rng = np.random.default_rng(1)
    for _ in range(2000):
        now = START + float(rng.uniform(0, SPAN))
        for among in WINDOWS:
            assert not any(expired(pane, now) for pane in panes_of(among, now))
            oldest = next(panes_of(among, now))
            assert expired(oldest, now + 2 * among.seconds + 3 * among.width)


def test_a_segment_is_a_window_of_its_own_events() -> None:
    """Scores by segment are those of the segment's raw rows, over all time and in a window."""
    rng = np.random.default_rng(3)
    deliveries = _deliveries(_classifier(rng, 600), 3)
    store = MemoryStore(86400)
    first: dict[int, Sent] = {}
    now = START + SPAN
    for each in deliveries:
        if each.arrival > now:
            break
        segments = (f"site={each.event % 3}",)
        if commit(store, [_entry(each, store, segments)], each.arrival) == [True]:
            first[each.event] = each
    state = store.read().models[MODEL]
    settings = deliveries[0].rows.settings
    hour = WINDOWS[-1]
    start = (int(now - hour.seconds) // hour.width + 1) * hour.width
    assert segments_of(state) == ["site=0", "site=1", "site=2"]
    for among, since in ((None, 0.0), (hour, start)):
        shown = model_view(MODEL, state, settings, now, among, segments=True)["segments"]
        for branch, view in enumerate(shown):
            rows = _pick(
                [
                    each.rows
                    for each in first.values()
                    if each.event % 3 == branch and _happened(each) >= since
                ]
            )
            assert rows is not None
            assert (view["segment"], view["value"]) == ("site", str(branch))
            assert view["rows"] == len(rows)
            segment = scored(state, settings, vector_of(state, among, now, f"site={branch}"))
            assert view["scores"] == segment.scores
            assert not differences(segment, rows)
