"""The sum of entries, and the mirror's copy on write."""

from __future__ import annotations

import random
from typing import Any

from metrics.state import Entry, Gauge, Mirror, total
from metrics.windows import ALL_TIME, Pane

YOUNG = Pane(5, 10**9)


def entry(**increment: int) -> Entry:
    """An entry of one model in two panes."""
    counters = {family: {(): number} for family, number in increment.items()}
    return Entry("m", b"", (ALL_TIME, YOUNG), counters)


def test_total_sums_entries_by_model_and_pane() -> None:
    """Entries add up in each of their panes; duplicates count themselves and nothing else."""
    delta = total([entry(rows=1), entry(rows=2, late=1)], [entry(rows=9)])
    assert delta.counters == {
        ("m", ALL_TIME): {"rows": {(): 3}, "late": {(): 1}, "duplicates": {(): 1}},
        ("m", YOUNG): {"rows": {(): 3}, "late": {(): 1}},
    }


def test_the_youngest_gauge_wins_in_a_batch_and_in_the_mirror() -> None:
    """The last write by time is kept, in whatever order writes come."""
    key = ("last_event", ())
    gauges = [Gauge(value, value) for value in (2.0, 3.0, 1.0)]
    entries = [Entry("m", b"", (ALL_TIME,), {}, {key: gauge}) for gauge in gauges]
    assert total(entries).gauges == {"m": {key: Gauge(3.0, 3.0)}}
    mirror = Mirror()
    for gauge in gauges:
        mirror.set_gauge("m", key, gauge)
    assert mirror.gauges("m") == {key: Gauge(3.0, 3.0)}


def test_what_was_read_never_changes() -> None:
    """A State is a snapshot: whatever happens later, it tells what it told."""
    chance = random.Random(5)
    mirror = Mirror()
    snapshots: list[tuple[Any, Any]] = []
    for step in range(400):
        model, pane = chance.choice("ab"), chance.choice([ALL_TIME, YOUNG])
        family, labels = chance.choice("xyz"), (chance.choice("pq"),)
        action = chance.randrange(8)
        if action < 4:
            mirror.add(model, pane, {family: {labels: 1}})
        elif action == 4:
            mirror.set_gauge(model, (family, labels), Gauge(step, step))
        elif action == 5:
            mirror.set_constants(model, {f"{family}{step}": step})
        elif action == 6:
            mirror.forget(model)
        else:
            mirror.drop(model, pane)
        if chance.random() < 0.3:
            state = mirror.read()
            snapshots.append((state, repr(state)))
    assert all(repr(state) == before for state, before in snapshots)
    assert len({before for _, before in snapshots}) > 50


def test_reading_again_gives_the_same_object_until_something_changes() -> None:
    """A reader that finds nothing new pays nothing."""
    mirror = Mirror()
    mirror.add("m", ALL_TIME, {"rows": {(): 1}})
    first = mirror.read()
    assert mirror.read() is first
    mirror.add("n", ALL_TIME, {"rows": {(): 1}})
    second = mirror.read()
    assert second is not first
    assert second.models["m"] is first.models["m"]


def test_constants_that_are_known_stay() -> None:
    """The first writer wins."""
    mirror = Mirror()
    mirror.set_constants("m", {"task": "binary"})
    mirror.set_constants("m", {"task": "regression", "created": 1.0})
    assert mirror.constants("m") == {"task": "binary", "created": 1.0}
    assert mirror.constants("unknown") == {}


def test_expired_panes_go_and_all_time_stays() -> None:
    """Only panes that no window reaches are dropped."""
    mirror = Mirror()
    mirror.add("m", ALL_TIME, {"rows": {(): 1}})
    mirror.add("m", YOUNG, {"rows": {(): 1}})
    mirror.add("m", Pane(5, 1), {"rows": {(): 1}})
    assert mirror.expire(5.0 * 10**9) == 1
    assert set(mirror.read().models["m"].panes) == {ALL_TIME, YOUNG}
