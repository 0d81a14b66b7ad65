"""The sum of entries, and the mirror's copy on write."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.counters import merge
from metrics.histograms import Histograms, of
from metrics.state import Entry, Gauge, Mirror, total
from metrics.windows import ALL_TIME, Pane
from tests.oracle import by_pane

YOUNG = Pane(5, 10**9)


def entry(**increment: int) -> Entry:
    """An entry of one model in two panes."""
    counters = {family: {(): number} for family, number in increment.items()}
    return Entry("m", b"", (ALL_TIME, YOUNG), counters)


def test_total_sums_entries_by_model_and_pane() -> None:
    """Entries add up in each of their panes; duplicates count themselves and nothing else."""
    delta = total([entry(rows=1), entry(rows=2, late=1)], [entry(rows=9)])
    assert by_pane(delta) == {
        ("m", ALL_TIME): {"rows": {(): 3}, "late": {(): 1}, "duplicates": {(): 1}},
        ("m", YOUNG): {"rows": {(): 3}, "late": {(): 1}},
    }


SHARED_PANES = [(ALL_TIME,), (ALL_TIME, YOUNG), (ALL_TIME, Pane(60, 10**8), YOUNG)]
ENTRIES = st.lists(
    st.builds(
        Entry,
        st.sampled_from(["m", "n"]),
        st.just(b""),
        st.sampled_from(SHARED_PANES),
        st.dictionaries(
            st.sampled_from(["rows", "confusion"]),
            st.dictionaries(st.sampled_from([(), ("a",), ("b",)]), st.integers(0, 10**20)),
        ),
    ),
    max_size=8,
)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(ENTRIES, ENTRIES, st.randoms(use_true_random=False))
def test_any_batching_of_entries_has_the_same_sum(
    entries: list[Entry], duplicates: list[Entry], chance: random.Random
) -> None:
    """In one commit or in several, in any order, the mirror ends with the same numbers."""

    def applied(*batches: list[Entry]) -> dict[Any, int]:
        mirror = Mirror()
        for batch in batches:
            again = [each for each in batch if any(each is other for other in duplicates)]
            delta = total([each for each in batch if each not in again], again)
            for (model, pane), vector in by_pane(delta).items():
                mirror.add(model, pane, vector)
        return {
            (model, pane, family, labels): number
            for model, state in mirror.read().models.items()
            for pane, vector in state.panes.items()
            for family, cells in vector.items()
            for labels, number in cells.items()
            if number
        }

    duplicates = [copy.copy(each) for each in duplicates if each not in entries]
    everything = [*entries, *duplicates]
    before = copy.deepcopy(everything)
    shuffled = chance.sample(everything, len(everything))
    cut = chance.randint(0, len(shuffled))
    expected: dict[Any, int] = {}
    for each in everything:
        late = any(each is other for other in duplicates)
        increment: Any = {"duplicates": {(): 1}} if late else each.increment
        for pane in (ALL_TIME,) if late else each.panes:
            for family, cells in increment.items():
                for labels, number in cells.items():
                    key = (each.model, pane, family, labels)
                    expected[key] = expected.get(key, 0) + number
    expected = {key: number for key, number in expected.items() if number}
    assert applied(everything) == applied(shuffled[:cut], shuffled[cut:]) == expected
    assert everything == before


def test_total_adds_packed_cells_and_leaves_them_alone() -> None:
    """A batch of many-row events sums array to array; the events' own increments stay."""

    def packed() -> Histograms:
        return of({("a", "-7", "0"): 1, ("a", "5", "1"): 2})

    entries = [Entry("m", b"", (ALL_TIME, YOUNG), {"scores": packed()}) for _ in range(3)]
    mirror = Mirror()
    for _ in range(2):
        for (model, pane), vector in by_pane(total(entries)).items():
            mirror.add(model, pane, vector)
    for pane in (ALL_TIME, YOUNG):
        assert mirror.vector("m", pane) == {"scores": {("a", "-7", "0"): 6, ("a", "5", "1"): 12}}
    assert all(entry.increment == {"scores": packed()} for entry in entries)


def test_total_of_nothing_is_nothing() -> None:
    """A commit without entries writes nothing, and names no model."""
    delta = total([])
    assert (by_pane(delta), delta.gauges, delta.constants, delta.models) == ({}, {}, {}, set())


def test_total_names_its_models_and_keeps_their_constants_apart() -> None:
    """A duplicate touches its model too, but brings neither constants nor gauges."""
    first = Entry("m", b"", (ALL_TIME,), {"rows": {(): 1}}, {}, {"task": "binary"})
    second = Entry("n", b"", (ALL_TIME,), {"rows": {(): 1}}, {}, {"task": "regression"})
    key = ("last_event", ())
    again = Entry("o", b"", (ALL_TIME,), {}, {key: Gauge(1, 1)}, {"task": "multilabel"})
    delta = total([first, second], [again])
    assert delta.models == {"m", "n", "o"}
    assert delta.constants == {"m": {"task": "binary"}, "n": {"task": "regression"}}
    assert not any(delta.gauges.values())


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


class Plain:
    """What a mirror should tell: nested dictionaries, copied whole at each reading."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[dict[Any, Any], dict[Any, Any], dict[str, Any]]] = {}

    def of(self, model: str) -> tuple[dict[Any, Any], dict[Any, Any], dict[str, Any]]:
        """The panes, gauges and constants of one model."""
        return self.models.setdefault(model, ({}, {}, {}))


@pytest.mark.parametrize("seed", range(6))
def test_the_mirror_tells_what_was_written_and_what_was_read_never_changes(seed: int) -> None:
    """Beside plain dictionaries: equal at every reading, and each State stays as it was read."""
    chance = random.Random(seed)
    mirror, plain = Mirror(), Plain()
    snapshots: list[tuple[Any, Any]] = []
    for step in range(400):
        model, pane = chance.choice("ab"), chance.choice([ALL_TIME, YOUNG, Pane(5, step)])
        family, labels = chance.choice("xyz"), (chance.choice("pq"),)
        action = chance.choice(["add"] * 6 + ["gauge", "constant", "replace"])
        if chance.random() < 0.08:
            action = chance.choice(["forget", "drop", "drop", "expire", "clear"])
        if action == "add":
            mirror.add(model, pane, {family: {labels: step}})
            cells = plain.of(model)[0].setdefault(pane, {}).setdefault(family, {})
            cells[labels] = cells.get(labels, 0) + step
        elif action == "gauge":
            gauge = Gauge(step, chance.randrange(step + 1))
            mirror.set_gauge(model, (family, labels), gauge)
            known = plain.of(model)[1].get((family, labels))
            if known is None or gauge.time >= known.time:
                plain.of(model)[1][family, labels] = gauge
        elif action == "constant":
            mirror.set_constants(model, {family: step})
            plain.of(model)[2].setdefault(family, step)
        elif action == "replace":
            mirror.replace_pane(model, pane, {family: {labels: step}})
            plain.of(model)[0][pane] = {family: {labels: step}}
        elif action == "forget":
            mirror.forget(model)
            plain.models.pop(model, None)
        elif action == "drop":
            mirror.drop(model, pane)
            if model in plain.models:
                plain.of(model)[0].pop(pane, None)
        elif action == "expire":
            now = 5.0 * (step + 60)
            gone = [
                (name, each)
                for name, (panes, _, _) in plain.models.items()
                for each in panes
                if each.width == 5 and each.index + 62 <= now // 5
            ]
            assert mirror.expire(now, 1000) == len(gone)
            for name, each in gone:
                del plain.of(name)[0][each]
        else:
            mirror.clear()
            plain.models.clear()
        assert mirror.vector(model, pane) == plain.models.get(model, ({},))[0].get(pane)
        if chance.random() < 0.4:
            state = mirror.read()
            assert state is mirror.read()
            assert state.models == plain.models
            snapshots.append((state, copy.deepcopy(plain.models)))
    assert all(state.models == before for state, before in snapshots)
    assert len({repr(before) for _, before in snapshots}) > 50


def test_writing_costs_no_copy_of_what_was_not_read() -> None:
    """Only the first write after a reading copies, and only the family that it writes."""
    mirror = Mirror()
    mirror.add("m", ALL_TIME, {"x": {(): 1}, "y": {(): 1}})
    before = mirror.read().models["m"].panes[ALL_TIME]
    mirror.add("m", ALL_TIME, {"x": {(): 1}})
    after = mirror.read().models["m"].panes[ALL_TIME]
    assert after["x"] is not before["x"]
    assert after["y"] is before["y"]
    mirror.add("m", ALL_TIME, {"x": {(): 1}})
    owned = mirror.vector("m", ALL_TIME)
    mirror.add("m", ALL_TIME, {"x": {(): 1}})
    assert mirror.vector("m", ALL_TIME) is owned


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
    third = second
    key = ("last_event", ())
    for change in (
        lambda: mirror.add("m", ALL_TIME, {"rows": {(): 5}}),
        lambda: mirror.set_gauge("m", key, Gauge(1, 1)),
        lambda: mirror.set_constants("m", {"task": "binary"}),
        lambda: mirror.replace_pane("m", YOUNG, {}),
        lambda: mirror.drop("m", YOUNG),
        lambda: mirror.forget("n"),
        mirror.clear,
    ):
        change()
        assert mirror.read() is not third
        third = mirror.read()
        assert mirror.read() is third


def test_what_changes_nothing_is_no_change() -> None:
    """Dropping what is not there, or expiring nothing, keeps the same State."""
    mirror = Mirror()
    mirror.add("m", ALL_TIME, {"rows": {(): 1}})
    state = mirror.read()
    mirror.drop("m", YOUNG)
    mirror.drop("unknown", ALL_TIME)
    assert mirror.expire(1e12, 1000) == 0
    assert mirror.read() is state


def test_an_unknown_model_is_empty() -> None:
    """Whoever asks about a model that never was gets nothing, and makes nothing."""
    mirror = Mirror()
    assert "m" not in mirror
    assert mirror.vector("m", ALL_TIME) is None
    assert (mirror.gauges("m"), mirror.constants("m"), mirror.models()) == ({}, {}, [])
    assert mirror.read().constants("m") == {}
    mirror.set_constants("m", {"task": "binary"})
    assert "m" in mirror
    assert mirror.read().models["m"].all_time == {}
    assert mirror.read().constants("m") == {"task": "binary"}


def test_a_window_of_panes_that_were_read_stays_addable() -> None:
    """Summing the panes of a State writes into none of them."""
    mirror = Mirror()
    for index in range(3):
        mirror.add("m", Pane(5, index), {"rows": {(): 1}, "x": {("a",): index}})
    panes = mirror.read().models["m"].panes
    before = copy.deepcopy(panes)
    for _ in range(2):
        assert merge(panes.values()) == {"rows": {(): 3}, "x": {("a",): 3}}
    assert panes == before


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
    assert mirror.expire(5.0 * 10**9, 1000) == 1
    assert set(mirror.read().models["m"].panes) == {ALL_TIME, YOUNG}


def test_few_at_a_time_the_earliest_first_model_by_model() -> None:
    """Whatever was forgotten, replaced or taken back in between, each expires once."""
    mirror = Mirror()
    panes = [Pane(5, index, segment) for index in (3, 2) for segment in ("", "a=b")]
    for pane in panes:
        for model in ("m", "n"):
            mirror.add(model, pane, {"rows": {(): 1}})
    mirror.forget("n")
    mirror.replace_pane("m", panes[0], {"rows": {(): 2}})
    with mirror.ahead():
        mirror.add("n", panes[0], {"rows": {(): 1}})
        mirror.take_back()
    mirror.add("n", panes[0], {"rows": {(): 1}})
    assert mirror.expired(5 * 64 - 0.1, 9) == []
    assert mirror.expired(5 * 64, 9) == [("m", panes[3]), ("m", panes[2])]
    assert mirror.expire(1e9, 3) == 3
    assert sorted(mirror.read().models["m"].panes) == [Pane(5, 3, "")]
    assert mirror.expire(1e9, 3) == 2
    assert mirror.expire(1e9, 3) == 0
    assert mirror.expired(1e9, 3) == []
