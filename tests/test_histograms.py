"""Arrays of scores against the dicts they stand for."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.bins import MAX_LOGIT_BIN
from metrics.counters import merge, net, unpack, value
from metrics.histograms import Histograms, counted, from_parts, of, packed
from metrics.state import MANY_CELLS, Mirror
from metrics.windows import ALL_TIME

LAWS = settings(max_examples=200, derandomize=True, deadline=None)
BINS = st.integers(-40, 40) | st.sampled_from(
    [-MAX_LOGIT_BIN, 1 - MAX_LOGIT_BIN, MAX_LOGIT_BIN - 1, MAX_LOGIT_BIN]
)
LABELS = st.tuples(st.sampled_from("abc"), BINS.map(str), st.sampled_from("01"))
CELLS = st.dictionaries(LABELS, st.integers(1, 1 << 40), max_size=12)


@LAWS
@given(CELLS)
def test_an_array_reads_as_the_dict_it_was_made_of(cells: dict[Any, int]) -> None:
    """Whoever looks up, iterates, counts or copies sees the same."""
    found = of(cells)
    assert found == cells == found.plain() == found.copy()
    assert dict(found.items()) == cells
    assert sorted(found.values()) == sorted(cells.values())
    assert len(found) == len(cells)
    assert {type(number) for number in found.values()} <= {int}
    assert all(found[labels] == number for labels, number in cells.items())
    for labels in (("d", "0", "0"), ("a", "2000", "0"), ("a", "77", "1"), ("a", "0", "2"), ()):
        assert labels not in found


@LAWS
@given(st.lists(st.tuples(CELLS, st.booleans()), max_size=6))
def test_arrays_and_dicts_mix_in_any_order(parts: list[tuple[dict[Any, int], bool]]) -> None:
    """Their sum is that of dicts, and no summand is changed."""
    plain = [{"scores": cells} for cells, _ in parts]
    mixed = [{"scores": of(cells) if array else cells} for cells, array in parts]
    assert unpack(merge(mixed)) == merge(plain)
    assert [each["scores"] for each in mixed] == [cells for cells, _ in parts]


@LAWS
@given(CELLS)
def test_parts_make_the_same_again(cells: dict[Any, int]) -> None:
    """Through JSON, as a store has them; and those of what was turned, too."""
    one = {labels: number for labels, number in cells.items() if labels[0] == "a"}
    for found in (of(cells), *([of(one).turned("b")] if one else [])):
        assert from_parts(*orjson.loads(orjson.dumps(found.parts()))) == found


def test_the_other_of_two_classes_has_the_scores_turned() -> None:
    """A score of 0.9 for the one is one of 0.1 for the other, and its positives are negatives."""
    cells = {("1", "-1024", "0"): 1, ("1", "-3", "1"): 2, ("1", "9", "0"): 4, ("1", "1024", "1"): 8}
    turned = {
        ("0", "1024", "1"): 1,
        ("0", "3", "0"): 2,
        ("0", "-9", "1"): 4,
        ("0", "-1024", "0"): 8,
    }
    assert of(cells).turned("0") == turned


@pytest.mark.parametrize("rows", [2, 400])
@pytest.mark.parametrize("spread", [5, 3000])
def test_scores_are_counted_as_an_array_where_that_is_smaller(rows: int, spread: int) -> None:
    """And as a dict otherwise; with the same cells."""
    chance = random.Random(f"{rows} {spread}")
    bins = [
        [max(-MAX_LOGIT_BIN, min(MAX_LOGIT_BIN, chance.randint(-spread, spread))) for _ in "abc"]
        for _ in range(rows)
    ]
    truth = [chance.randrange(3) for _ in range(rows)]
    expected: dict[Any, int] = {}
    for row, true in zip(bins, truth, strict=True):
        for column, bin in enumerate(row):
            labels = ("abc"[column], str(bin), "1" if column == true else "0")
            expected[labels] = expected.get(labels, 0) + 1
    found = counted(("a", "b", "c"), np.array(bins), np.array(truth))
    assert found == expected
    assert isinstance(found, Histograms) == ((rows, spread) != (2, 3000))


def test_what_are_no_scores_stay_a_dict() -> None:
    """Whatever an import brings."""
    for labels in ((), ("a",), ("a", "x", "1"), ("a", "1", "2"), ("a", "1.5", "1")):
        assert packed({("a", "1", "1"): 1, labels: 1}) is None


def test_a_store_keeps_many_cells_as_an_array() -> None:
    """From so many on, read or written since or not; a reader's copy stays as it was."""
    mirror, cells = Mirror(), {}
    for bin in range(MANY_CELLS):
        labels = ("a", str(bin), "1")
        cells[labels] = 1
        mirror.add("m", ALL_TIME, {"scores": {labels: 1}})
        if bin % 50 == 0:
            mirror.read()
    (found,) = mirror.read().models["m"].panes.values()
    assert isinstance(found["scores"], Histograms)
    assert found["scores"] == cells
    mirror.add("m", ALL_TIME, {"scores": {("a", "900", "0"): 7}})
    assert found["scores"] == cells
    now = mirror.vector("m", ALL_TIME)
    assert now is not None
    assert now["scores"] == {**cells, ("a", "900", "0"): 7}


def test_few_cells_far_apart_stay_a_dict() -> None:
    """An array of them would be larger."""
    cells = {(f"{key}", f"{bin}", "1"): 1 for key in range(64) for bin in range(-1000, 1000, 250)}
    mirror = Mirror()
    mirror.add("m", ALL_TIME, {"scores": cells})
    assert type(mirror.read().models["m"].all_time["scores"]) is dict


def test_many_loaded_cells_become_an_array_when_they_grow() -> None:
    """Not before: reading a file need not wait for numpy."""
    cells = {("a", f"{bin}", "1"): 1 for bin in range(MANY_CELLS + 5)}
    mirror = Mirror()
    mirror.replace_pane("m", ALL_TIME, {"scores": dict(cells)})
    assert type(mirror.read().models["m"].all_time["scores"]) is dict
    mirror.add("m", ALL_TIME, {"scores": {("a", "0", "1"): 1}})
    found = mirror.read().models["m"].all_time["scores"]
    assert isinstance(found, Histograms)
    assert found == {**cells, ("a", "0", "1"): 2}


def test_what_corrections_took_back_is_subtracted_from_arrays() -> None:
    """As from dicts."""
    cells = {("a", "1", "1"): 5, ("a", "2", "0"): 1}
    left = net({"scores": of(cells), "-scores": {("a", "1", "1"): 2, ("a", "2", "0"): 1}})
    assert left == {"scores": {("a", "1", "1"): 3}}
    assert value({"scores": of(cells)}, "scores", "a", "1", "1") == 5
