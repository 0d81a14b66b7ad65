"""The merge laws of the sparse vector, and its stored form."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.counters import add, decode_key, encode_key, merge, value
from metrics.exact import real, to_units

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
    assert merge([a, {}]) == merge([{}, a]) == a
    assert merge([]) == {}


@LAWS
@given(st.lists(VECTORS, max_size=8), st.randoms(use_true_random=False))
def test_any_partition_of_increments_has_the_same_sum(
    vectors: list[Any], chance: random.Random
) -> None:
    """However increments are shuffled and cut into batches, the integers are the same."""
    shuffled = chance.sample(vectors, len(vectors))
    cuts = sorted(chance.randint(0, len(vectors)) for _ in range(3))
    bounds = zip([0, *cuts], [*cuts, len(vectors)], strict=True)
    parts = [merge(shuffled[start:end]) for start, end in bounds]
    assert cells(merge(parts)) == cells(merge(vectors))
    assert {family: set(numbers) for family, numbers in merge(parts).items()} == {
        family: set(numbers) for family, numbers in merge(vectors).items()
    }


NUMBERS = st.floats(-1e60, 1e60).filter(lambda number: not number or abs(number) >= 2.0**-348)
"""All their bits are whole units."""


@LAWS
@given(
    st.lists(NUMBERS, min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_sums_of_real_numbers_are_exact_in_any_order(
    numbers: list[float], chance: random.Random
) -> None:
    """The sum is the rational one, whatever the order; read, it is the nearest double."""
    vectors = [{"log_loss": {(): to_units(number)}} for number in numbers]
    total = merge(chance.sample(vectors, len(vectors)))
    assert total == merge(vectors)
    assert real(total, "log_loss") == float(sum(map(Fraction, numbers)))


@LAWS
@given(VECTORS, VECTORS)
def test_adding_leaves_the_increment_alone(a: Any, b: Any) -> None:
    """The right-hand side of an addition is not changed, nor shared."""
    before = {family: dict(numbers) for family, numbers in b.items()}
    total = merge([b])
    add(total, a)
    assert b == before


HOSTILE = [
    *('","', '"', "\\", "\\u0000", "\0", "\n", "]", '["tp","2"]', "", " ", ",", "null", "\u2028"),
    *("tp\x1f2", "\ufeff", "é", "e\u0301", "👩\u200d👧", "\u202e", "a" * 10_000, "\U0010ffff"),
]


def test_hostile_labels_never_share_a_key() -> None:
    """Separators, escapes, look-alikes and the empty label each keep a key of their own."""
    keys = [("tp", ())]
    keys += [("tp", (label,)) for label in HOSTILE]
    keys += [("tp", (label, "")) for label in HOSTILE]
    keys += [("tp", ("", label)) for label in HOSTILE if label]
    stored = [encode_key(*key) for key in keys]
    assert [decode_key(text) for text in stored] == keys
    assert len(set(stored)) == len(keys)
    assert not any("\n" in text for text in stored)


@pytest.mark.parametrize("labels", [("a", "b"), ()])
def test_a_key_is_stored_as_the_format_says(labels: tuple[str, ...]) -> None:
    """The form in which stores hold keys is compact JSON, for good."""
    assert encode_key("tp", labels) == '["tp"' + "".join(f',"{label}"' for label in labels) + "]"


@LAWS
@given(st.text(min_size=1), LABELS)
def test_keys_survive_their_stored_form(family: str, labels: tuple[str, ...]) -> None:
    """No label can be mistaken for another, whatever characters it holds."""
    assert decode_key(encode_key(family, labels)) == (family, labels)


def test_what_was_never_added_is_zero() -> None:
    """`value` has an answer for every key."""
    assert value({"rows": {(): 2}}, "rows") == 2
    assert value({"rows": {(): 2}}, "rows", "x") == 0
    assert value({}, "rows") == 0
