"""The sparse additive vector: all durable state is one, and one event is an increment of it.

A vector maps a family name to labels to a number: `{"tp": {("2",): 1}, "rows": {(): 1}}`.
`{}` is neutral, and adding is associative and commutative (integers exactly, floats to
rounding), so panes, batches, replicas, processes and restarts merge in any order.

Stored, a key is the compact JSON array of its family and labels, `["tp","2"]`: no separator
that a hostile label could contain.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import orjson

Number = int | float
Labels = tuple[str, ...]
Cells = dict[Labels, Number]
Vector = dict[str, Cells]
Increment = Mapping[str, Mapping[Labels, Number]]

NO_LABELS: Labels = ()
LARGEST = 1e150
"""What one event may add to a sum: below it no number of events adds up to infinity."""
OTHER = "__other__"
"""The label into which everything past a cap on distinct labels is folded."""
SUPERSEDED = "-"
"""Begins the family of what corrections took back of another: no counter ever falls."""


class Packed(Mapping[Labels, Number]):
    """A family's cells as one array of counts: many rows add up before any label is made.

    `counts` is a one-dimensional integer array, and `label` tells the labels of a place in it.
    Two of one `layout` have the same length and labels, and add up array to array. Immutable.
    """

    __slots__ = ("_cells", "_label", "counts", "layout")

    def __init__(self, counts: Any, layout: Hashable, label: Callable[[int], Labels]) -> None:
        self.counts = counts
        self.layout = layout
        self._label = label
        self._cells: dict[Labels, Number] | None = None

    @property
    def cells(self) -> dict[Labels, Number]:
        """The cells that are not 0, by label; not to be written."""
        if self._cells is None:
            used = self.counts.nonzero()[0]
            label = self._label
            self._cells = {
                label(place): count
                for place, count in zip(used.tolist(), self.counts[used].tolist(), strict=True)
            }
        return self._cells

    def __add__(self, other: Packed) -> Packed:
        return Packed(self.counts + other.counts, self.layout, self._label)

    def __getitem__(self, labels: Labels) -> Number:
        return self.cells[labels]

    def __iter__(self) -> Iterator[Labels]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)


def add(into: dict[str, Any], increment: Increment) -> None:
    """Add `increment` to `into`, in place; `increment` is left as it is.

    Packed cells stay packed while they meet their like only; `unpack` makes a Vector of the sum.
    """
    for family, values in increment.items():
        cells = into.get(family)
        if cells is None:
            into[family] = values if type(values) is Packed else dict(values)
            continue
        if type(cells) is Packed:
            if type(values) is Packed and values.layout == cells.layout:
                into[family] = cells + values
                continue
            cells = into[family] = dict(cells.cells)
        if type(values) is Packed:
            values = values.cells
        for labels, value in values.items():
            cells[labels] = cells.get(labels, 0) + value


def unpack(sums: Mapping[str, Any]) -> Vector:
    """The same numbers with every family as plain cells; not to be written."""
    return {
        family: cells.cells if type(cells) is Packed else cells for family, cells in sums.items()
    }


def merge(vectors: Iterable[Increment]) -> Vector:
    """The sum of `vectors`; `{}` for none."""
    total: dict[str, Any] = {}
    for vector in vectors:
        add(total, vector)
    return unpack(total)


def net(vector: Vector) -> Vector:
    """`vector` less what corrections took back; itself where they took nothing."""
    taken = [family for family in vector if family[0] == SUPERSEDED]
    if not taken:
        return vector
    left = {family: dict(cells) for family, cells in vector.items() if family not in taken}
    for family in taken:
        cells = left.setdefault(family[1:], {})
        for labels, number in vector[family].items():
            rest = cells.get(labels, 0) - number
            if rest:
                cells[labels] = rest
            else:
                cells.pop(labels, None)
    return {family: cells for family, cells in left.items() if cells}


def superseded(vector: Vector) -> tuple[Vector, Vector]:
    """What was ever added, and what corrections took back of it: both only grow."""
    added: Vector = {}
    taken: Vector = {}
    for family, cells in vector.items():
        if family[0] == SUPERSEDED:
            taken[family[1:]] = cells
        else:
            added[family] = cells
    return added, taken


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
