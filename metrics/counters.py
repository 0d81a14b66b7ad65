"""The sparse additive vector: all durable state is one, and one event is an increment of it.

A vector maps a family name to labels to a number: `{"tp": {("2",): 1}, "rows": {(): 1}}`.
`{}` is neutral, and adding is associative and commutative (integers exactly, floats to
rounding), so panes, batches, replicas, processes and restarts merge in any order.

Stored, a key is the compact JSON array of its family and labels, `["tp","2"]`: no separator
that a hostile label could contain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

import orjson

Number = int | float
Labels = tuple[str, ...]
Vector = dict[str, dict[Labels, Number]]
Increment = Mapping[str, Mapping[Labels, Number]]

NO_LABELS: Labels = ()
OTHER = "__other__"
"""The label into which everything past a cap on distinct labels is folded."""


def add(into: Vector, increment: Increment) -> None:
    """Add `increment` to `into`, in place; `increment` is left as it is."""
    for family, values in increment.items():
        cells = into.get(family)
        if cells is None:
            into[family] = dict(values)
            continue
        for labels, value in values.items():
            cells[labels] = cells.get(labels, 0) + value


def merge(vectors: Iterable[Increment]) -> Vector:
    """The sum of `vectors`; `{}` for none."""
    total: Vector = {}
    for vector in vectors:
        add(total, vector)
    return total


def value(vector: Increment, family: str, *labels: str) -> Number:
    """One number of `vector`; 0 where nothing was ever added."""
    cells = vector.get(family)
    return cells.get(labels, 0) if cells else 0


@lru_cache(maxsize=65536)
def encode_key(family: str, labels: Labels) -> str:
    """The stored form of a key; `decode_key` is its inverse."""
    return orjson.dumps((family, *labels)).decode()


def decode_key(text: str) -> tuple[str, Labels]:
    """The family and labels of a stored key."""
    family, *labels = orjson.loads(text)
    return family, tuple(labels)
