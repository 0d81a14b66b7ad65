"""The sparse additive vector: all durable state is one, and one event is an increment of it.

A vector maps a family name to labels to a number: `{"tp": {("2",): 1}, "rows": {(): 1}}`.
`{}` is neutral, and adding is associative and commutative, so panes, batches, replicas, processes
and restarts merge in any order. All numbers are ints: real ones are counted in units (`exact`).

Stored, a key is the compact JSON array of its family and labels, `["tp","2"]`: no separator
that a hostile label could contain.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import ItemsView, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

Number = int | float
Labels = tuple[str, ...]
Cells = Mapping[Labels, Number]
Vector = dict[str, Cells]
Increment = Mapping[str, Mapping[Labels, Number]]

NO_LABELS: Labels = ()
LARGEST = 1e150
"""What one event may add to a sum: below it no number of events adds up to infinity."""
MAX_ROOT = LARGEST**0.5
"""How far from its origin may be what is squared."""
OTHER = "__other__"
UNREADABLE = ""
"""The family of what is stored under a key that cannot be read."""
"""The label into which everything past a cap on distinct labels is folded."""
SUPERSEDED = "-"
"""Begins the family of what corrections took back of another: no counter ever falls."""


class Packed(Mapping[Labels, Number]):
    """Cells of one family that are kept as an array; those that are 0 are not among them."""

    __slots__ = ()

    @property
    @abstractmethod
    def size(self) -> int:
        """Places of the array: an upper bound of the number of cells, without a count."""

    @abstractmethod
    def copy(self) -> Packed:
        """The same, to be added to."""

    @abstractmethod
    def add(self, values: Mapping[Labels, Number]) -> None:
        """Add `values`, in place."""

    @abstractmethod
    def plain(self) -> dict[Labels, Number]:
        """The same cells as a dict."""

    @abstractmethod
    def parts(self) -> tuple[Any, ...]:
        """What `histograms.from_parts` makes them of again; JSON values."""

    @abstractmethod
    def turned(self, key: str) -> Packed:
        """The scores of the other of two classes, `key`: one less this one's."""


class Compact:
    """An increment in short, of a kind that many are summed of at once.

    What most events add is never looked at cell by cell, but summed and shown. No ABC: what every
    event is asked must not take the way of their `isinstance`.
    """

    __slots__ = ()

    @staticmethod
    def total(increments: Sequence[Any]) -> Vector:
        """The sum of some of this kind."""
        raise NotImplementedError

    def shown(self) -> dict[str, Any]:
        """As JSON: a number for each family, or objects by label; histograms are left out."""
        raise NotImplementedError

    def classes(self) -> set[str]:
        """The labels of classes in it."""
        raise NotImplementedError

    def plain(self) -> Vector:
        """The same increment as a vector."""
        return self.total((self,))

    def items(self) -> ItemsView[str, Cells]:
        """Families and cells, as a vector has them."""
        return self.plain().items()


def add(into: dict[str, Any], increment: Increment | Compact) -> None:
    """Add `increment` to `into`, in place; `increment` is left as it is."""
    for family, values in increment.items():
        cells = into.get(family)
        if cells is None:
            into[family] = values.copy() if type(values) is dict else _copy(values)
        elif type(cells) is dict and type(values) is dict:
            for labels, value in values.items():
                cells[labels] = cells.get(labels, 0) + value
        elif isinstance(cells, Packed):
            cells.add(values)
        else:
            into[family] = _copy(values)
            add(into, {family: cells})


def unpack(vector: Increment | Compact) -> dict[str, dict[Labels, Number]]:
    """The same numbers with every family as a dict; not to be written."""
    return {family: _dict(cells) for family, cells in vector.items()}


def _copy(cells: Mapping[Labels, Number]) -> Cells:
    return cells.copy() if isinstance(cells, Packed) else dict(cells)


def _dict(cells: Mapping[Labels, Number]) -> dict[Labels, Number]:
    return cells.plain() if isinstance(cells, Packed) else dict(cells)


def merge(vectors: Iterable[Increment | Compact]) -> Vector:
    """The sum of `vectors`; `{}` for none."""
    total: dict[str, Any] = {}
    for vector in vectors:
        add(total, vector)
    return total


def net(vector: Vector) -> Vector:
    """`vector` less what corrections took back; itself where they took nothing.

    Raises ValueError where a stored key could not be read: then no number of it is to be trusted.
    """
    _check_readable(vector)
    taken = [family for family in vector if family[0] == SUPERSEDED]
    if not taken:
        return vector
    left = {family: _dict(cells) for family, cells in vector.items() if family not in taken}
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
    """What was ever added, and what corrections took back of it: both only grow.

    Raises ValueError as `net` does.
    """
    _check_readable(vector)
    added: Vector = {}
    taken: Vector = {}
    for family, cells in vector.items():
        if family[0] == SUPERSEDED:
            taken[family[1:]] = cells
        else:
            added[family] = cells
    return added, taken


def _check_readable(vector: Vector) -> None:
    if UNREADABLE in vector:
        raise ValueError(f"no key of counters: {next(iter(vector[UNREADABLE]))}")


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


@lru_cache(maxsize=65536)
def known_key(text: str) -> tuple[str, Labels]:
    """`decode_key`; a key that is none is one of the family UNREADABLE."""
    try:
        family, labels = decode_key(text)
    except (ValueError, TypeError):
        return UNREADABLE, (text,)
    return (family, labels) if _are_texts(family, *labels) else (UNREADABLE, (text,))


def _are_texts(*parts: Any) -> bool:
    return all(type(part) is str for part in parts)
