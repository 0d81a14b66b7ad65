"""The merge laws of the sparse vector, and its stored form."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.counters import Packed, add, decode_key, encode_key, merge, unpack, value

LABELS = st.tuples(st.text(max_size=6)) | st.tuples() | st.tuples(st.text(max_size=3), st.text())
VECTORS = st.dictionaries(
    st.sampled_from(["rows", "confusion", "scores"]),
    st.dictionaries(LABELS, st.integers(-(10**30), 10**30), max_size=5),
    max_size=3,
)
LAWS = settings(max_examples=150, derandomize=True, deadline=None)


def cells(vector: dict[str, Any]) -> dict[Any, int]:
    """The numbers that are not 0, flat."""
    return {
        (family, labels): number
        for family, numbers in vector.items()
        for labels, number in numbers.items()
        if number
    }


@LAWS
@given(VECTORS, VECTORS, VECTORS)
def test_adding_is_associative_and_commutative_and_has_a_zero(a: Any, b: Any, c: Any) -> None:
    """Integers come out the same in every order and grouping; `{}` changes nothing."""
    assert cells(merge([merge([a, b]), c])) == cells(merge([a, merge([b, c])]))
    assert cells(merge([a, b])) == cells(merge([b, a]))
    assert merge([a, {}]) == merge([a])


@LAWS
@given(st.lists(VECTORS, max_size=8), st.randoms(use_true_random=False))
def test_any_partition_of_increments_has_the_same_sum(
    vectors: list[Any], chance: random.Random
) -> None:
    """However increments are shuffled and cut into batches, the integers are the same."""
    shuffled = chance.sample(vectors, len(vectors))
    cut = chance.randint(0, len(vectors))
    parts = [merge(shuffled[:cut]), merge(shuffled[cut:])]
    assert cells(merge(parts)) == cells(merge(vectors))


@LAWS
@given(VECTORS, VECTORS)
def test_adding_leaves_the_increment_alone(a: Any, b: Any) -> None:
    """The right-hand side of an addition is not changed, nor shared."""
    before = {family: dict(numbers) for family, numbers in b.items()}
    total = merge([b])
    add(total, a)
    assert b == before


@LAWS
@given(st.text(min_size=1), LABELS)
def test_keys_survive_their_stored_form(family: str, labels: tuple[str, ...]) -> None:
    """No label can be mistaken for another, whatever characters it holds."""
    assert decode_key(encode_key(family, labels)) == (family, labels)


def test_packed_cells_add_up_as_plain_ones_do() -> None:
    """An array of counts and the cells it stands for have the same sums."""

    def packed(*counts: int) -> Packed:
        return Packed(np.array(counts), "layout", lambda place: (str(place),))

    plain = {"scores": {("0",): 1, ("2",): 3}}
    other = Packed(np.array([1]), "other layout", lambda place: (f"other {place}",))
    sums: dict[str, Any] = {}
    for values in (packed(1, 0, 2), packed(0, 5, 0)):
        add(sums, {"scores": values})
    assert unpack(sums) == {"scores": {("0",): 1, ("1",): 5, ("2",): 2}}
    add(sums, plain)
    add(sums, {"scores": other})
    assert unpack(sums) == {"scores": {("0",): 2, ("1",): 5, ("2",): 5, ("other 0",): 1}}


def test_what_was_never_added_is_zero() -> None:
    """`value` has an answer for every key."""
    assert value({"rows": {(): 2}}, "rows") == 2
    assert value({"rows": {(): 2}}, "rows", "x") == 0
    assert value({}, "rows") == 0
