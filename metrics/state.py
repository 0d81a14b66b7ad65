"""A store's content in memory: what reading, scoring and exposition are answered from.

`Entry` is one event's contribution on its way into a store. `total` sums the entries of a
commit into a `Delta`, which stores write and the mirror applies. `Mirror.read` gives `State`,
a consistent copy: the mirror copies on write only what was read since.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from .counters import NO_LABELS, Cells, Compact, Increment, Labels, Packed, Vector, add
from .errors import ConstantsDiffer
from .windows import ALL_TIME, Pane, expiry

Constants = Mapping[str, Any]
"""A model's first-writer-wins facts (its task, its numeric origins), by name; JSON values."""


class Gauge(NamedTuple):
    """A last-write-wins number and the epoch seconds it was written for."""

    value: float
    time: float


GaugeKey = tuple[str, Labels]


class RecordKey(NamedTuple):
    """Where a store keeps what it remembers of one request, outside of memory."""

    home: str
    """The first two parts of the ids of its models: what a cluster keeps on one node."""
    id: bytes
    """16 bytes."""


TAG = 8
"""Bytes at the start of a record that no other record of its key shares."""


class Swap(NamedTuple):
    """One record put in the place of another, if that is still there."""

    key: RecordKey
    before: bytes
    """The tag of what the store must hold; empty: nothing."""
    after: bytes
    """What it holds then, tag and all; empty: nothing."""


@dataclass(slots=True)
class Entry:
    """One event's contribution: what a store adds, once, if it does not know `digest` yet."""

    model: str
    digest: bytes
    """16 bytes that stand for `(source, id)`; empty where the event has none: always new."""
    panes: tuple[Pane, ...]
    increment: Increment | Compact
    """What it adds to each of `panes`."""
    gauges: Mapping[GaugeKey, Gauge] = field(default_factory=dict)
    constants: Constants = field(default_factory=dict)
    """Presupposed by the increment: set where absent; where different, nothing is written."""
    replaces: Constants = field(default_factory=dict)
    """For some of `constants`, what the store must hold now (None: nothing), and then replaces."""
    again: Callable[[Constants], Entry] | None = None
    """The same event evaluated under other constants."""
    swap: Swap | None = None
    """What becomes of a record; where the store holds another one, nothing is written."""
    besides: Sequence[tuple[tuple[Pane, ...], Increment]] = ()
    """What it adds to other panes."""
    reserved: Any = None
    """What its labels hold of the caps until it is committed or refused; see `labels`."""
    alert: Any = None
    """What its reply is to tell besides, where a rule's state changed with it."""
    finds: RecordKey | None = None
    """The record without which the event cannot be evaluated."""
    resolve: Callable[[Callable[[str], Constants], bytes], Entry] | None = None
    """The event evaluated with that record (empty: none), given the constants of any model."""

    def release(self) -> None:
        """Let go of what its labels hold of the caps: it is committed, or never will be."""
        if self.reserved is not None:
            self.reserved.release()
            self.reserved = None

    @property
    def scored(self) -> bool:
        """Whether it adds to any score: half of feedback waits for the other half."""
        return type(self.increment) is not dict or "events" in self.increment


Home = tuple[str, tuple[Pane, ...]]
"""A model, and the panes in which a vector counts."""


@dataclass
class Delta:
    """What a commit adds, sets and fixes, summed over its entries."""

    groups: dict[Home, Vector] = field(default_factory=dict)
    """What is added, once for all the panes it is added to."""
    gauges: dict[str, dict[GaugeKey, Gauge]] = field(default_factory=dict)
    constants: dict[str, dict[str, Any]] = field(default_factory=dict)
    replaced: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Constants that take the place of another value, by model and name, with that value."""
    swaps: dict[RecordKey, Swap] = field(default_factory=dict)
    dropped: list[tuple[str, Pane]] = field(default_factory=list)
    """Panes that no window reaches any more, and that are forgotten."""

    @property
    def models(self) -> set[str]:
        """The models it touches."""
        return {model for model, _ in self.groups}


def total(entries: Iterable[Entry], duplicates: Iterable[Entry] = ()) -> Delta:
    """The sum of `entries`, plus one in the `duplicates` counter for each of `duplicates`.

    Entries of one model and the same panes are summed once, not once a pane. Raises
    ConstantsDiffer where an entry presupposes another record than the one before it leaves.
    """
    delta = Delta()
    compact: dict[Home, dict[type[Compact], list[Compact]]] = {}
    model, panes = "", None
    for entry in entries:
        if entry.panes is not panes or entry.model != model:  # they mostly are those of the last
            model, panes = home = entry.model, entry.panes
            group = delta.groups.setdefault(home, {})
            kinds = compact.setdefault(home, {})
            gauges = delta.gauges.setdefault(model, {})
        increment = entry.increment
        if isinstance(increment, Compact):
            kinds.setdefault(type(increment), []).append(increment)
        else:
            add(group, increment)
        for others, increment in entry.besides:
            add(delta.groups.setdefault((model, others), {}), increment)
        if entry.constants:
            delta.constants.setdefault(model, {}).update(entry.constants)
        if entry.replaces:
            delta.replaced.setdefault(model, {}).update(entry.replaces)
        if entry.swap is not None:
            _swap(delta.swaps, entry.swap)
        for key, gauge in entry.gauges.items():
            known = gauges.get(key)
            if known is None or gauge.time >= known.time:
                gauges[key] = gauge
    for home, kinds in compact.items():
        for kind, increments in kinds.items():
            vector = kind.total(increments)
            add(vector, delta.groups[home])
            delta.groups[home] = vector
    for entry in duplicates:
        home = (entry.model, (ALL_TIME,))
        add(delta.groups.setdefault(home, {}), {"duplicates": {NO_LABELS: 1}})
    return delta


def _swap(swaps: dict[RecordKey, Swap], swap: Swap) -> None:
    """Add one more swap after those that are there."""
    earlier = swaps.get(swap.key)
    if earlier is not None:
        if earlier.after[:TAG] != swap.before:
            raise ConstantsDiffer(f"a record of {swap.key.home}")
        swap = Swap(swap.key, earlier.before, swap.after)
    swaps[swap.key] = swap


def home_of(model: str) -> str:
    """The home of a model's records: its namespace and deployment."""
    return "/".join(model.split("/", 2)[:2])


class ModelState(NamedTuple):
    """Everything known of one model; to be read only."""

    panes: dict[Pane, Vector]
    gauges: dict[GaugeKey, Gauge]
    constants: dict[str, Any]

    @property
    def all_time(self) -> Vector:
        """The counters of all time."""
        return self.panes.get(ALL_TIME, {})


class State(NamedTuple):
    """A consistent copy of a store's content as of its commit number `sequence`."""

    models: Mapping[str, ModelState]
    sequence: int

    def constants(self, model: str) -> Constants:
        """The constants of `model`; empty where it is unknown."""
        known = self.models.get(model)
        return known.constants if known else {}


PACKED = "scores"
"""The family of many cells, kept as an array from MANY_CELLS on where that is smaller."""
MANY_CELLS = 256
_SEVERAL_CELLS = 32
"""Cells that are added to arrays as an array, too."""


@lru_cache(maxsize=65536)
def _shared(labels: Labels) -> Labels:
    """The same labels, as one object for all panes: most of them have the same cells."""
    return labels


class Mirror:
    """The content of a store as this process knows it. Not thread-safe: its store locks."""

    def __init__(self) -> None:
        self.sequence = 0
        self._models: dict[str, ModelState] = {}
        self.published = State({}, 0)
        """What readers are given, in any thread: replaced as a whole by `read`."""
        self._content: State | None = None
        """A copy of what there is now, if one was made."""
        self._owned: dict[tuple[str, Pane], set[str]] = {}
        """Panes that no reader holds, and which families of them none does."""
        self._owned_models: set[str] = set()
        self._loaded: set[tuple[str, Pane]] = set()
        """Panes that were loaded with many cells."""
        self._expiring: dict[int, dict[str, list[Pane]]] = {}
        """Panes by the second of their expiry, and by model; some of them may be gone."""

    def __contains__(self, model: str) -> bool:
        return model in self._models

    def read(self) -> State:
        """Publish what there is now; the same object until something changes."""
        self.published = self.foreseen()
        return self.published

    def foreseen(self) -> State:
        """A consistent copy of what there is now, whether it may be read already or not."""
        if self._content is None:
            self._content = State(dict(self._models), self.sequence)
            self._owned.clear()
            self._owned_models.clear()
        return self._content

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Publish what there is now, and what changes meanwhile once the block ends.

        If the block raises, nothing changed.
        """
        self.read()
        try:
            yield
        except BaseException:
            self.take_back()
            raise
        self.read()

    def take_back(self) -> None:
        """Forget what changed since something was published."""
        self._content = self.published
        self._models = dict(self._content.models)
        self.sequence = self._content.sequence
        self._owned.clear()
        self._owned_models.clear()

    def constants(self, model: str) -> Constants:
        """The constants of `model`; empty where it is unknown."""
        known = self._models.get(model)
        return known.constants if known else {}

    def gauges(self, model: str) -> Mapping[GaugeKey, Gauge]:
        """The gauges of `model`; empty where it is unknown."""
        known = self._models.get(model)
        return known.gauges if known else {}

    def vector(self, model: str, pane: Pane) -> Increment | None:
        """The counters of one pane; None where it has none, or has expired."""
        known = self._models.get(model)
        return known.panes.get(pane) if known else None

    def models(self) -> Sequence[str]:
        """The ids of all known models."""
        return list(self._models)

    def alike(self, home: Home, vector: Increment) -> Vector:
        """`vector` with its several cells as an array, where what they are added to is one."""
        vector = vector if isinstance(vector, dict) else dict(vector)
        cells = vector.get(PACKED, {})
        if type(cells) is not dict or len(cells) < _SEVERAL_CELLS:
            return vector
        model, panes = home
        known = [self.vector(model, pane) or {} for pane in panes]
        if not any(isinstance(each.get(PACKED), Packed) for each in known):
            return vector
        from .histograms import of

        return {**vector, PACKED: of(cells)}

    def spread(self, home: Home, vector: Increment) -> None:
        """Add `vector` to each pane of `home`."""
        vector = self.alike(home, vector)
        model, panes = home
        for pane in panes:
            self.add(model, pane, vector)

    def add(self, model: str, pane: Pane, vector: Increment) -> None:
        """Add `vector` to one pane of `model`."""
        into, owned = self._vector(model, pane)
        for family, values in vector.items():
            cells: Any = into.get(family)
            if family not in owned:  # a reader may still hold them
                owned.add(family)
                cells = into[family] = {} if cells is None else cells.copy()
            if family == PACKED and (type(cells) is not dict or type(values) is not dict):
                add(into, {family: values})
                continue
            before = len(cells)
            for labels, number in values.items():
                if labels in cells:
                    cells[labels] += number
                else:
                    cells[_shared(labels)] = number
            if family == PACKED and len(cells) >= MANY_CELLS:
                into[family] = self._packed(model, pane, cells, before)

    def set_gauge(self, model: str, key: GaugeKey, gauge: Gauge) -> None:
        """Keep `gauge` unless a younger one is known."""
        gauges = self._own(model).gauges
        known = gauges.get(key)
        if known is None or gauge.time >= known.time:
            gauges[key] = gauge

    def set_constants(
        self, model: str, constants: Constants, replaced: Container[str] = ()
    ) -> None:
        """Make the given constants of `model` known; what is known stays, unless `replaced`."""
        known = self._own(model).constants
        for name, constant in constants.items():
            if name in replaced or name not in known:
                known[name] = constant

    def replace_pane(self, model: str, pane: Pane, vector: Vector) -> None:
        """Forget what was known of one pane and take `vector` for it, without copying."""
        panes = self._own(model).panes
        if pane not in panes:
            self._await_expiry(model, pane)
        panes[pane] = vector
        self._owned[model, pane] = set(vector)
        if len(vector.get(PACKED, ())) >= MANY_CELLS:
            self._loaded.add((model, pane))

    def forget(self, model: str) -> None:
        """Drop all that is known of `model`."""
        known = self._models.get(model)
        for pane in tuple(known.panes) if known else ():
            self.drop(model, pane)
        self._change()
        self._models.pop(model, None)
        self._owned_models.discard(model)

    def drop(self, model: str, pane: Pane) -> None:
        """Drop one pane of `model`, if it is known."""
        if self.vector(model, pane) is not None:
            del self._own(model).panes[pane]
            self._owned.pop((model, pane), None)
            self._loaded.discard((model, pane))
        models = self._expiring.get(expiry(pane), {})
        awaited = models.get(model)
        if awaited is not None:
            while pane in awaited:  # it may have been taken back and made again
                awaited.remove(pane)
            if not awaited:
                del models[model]
                if not models:
                    del self._expiring[expiry(pane)]

    def clear(self) -> None:
        """Drop everything: the store's content is about to be read anew."""
        self._change()
        self._models.clear()
        self._owned.clear()
        self._owned_models.clear()
        self._loaded.clear()
        self._expiring.clear()

    def expired(self, now: float, number: int) -> list[tuple[str, Pane]]:
        """So many at most of the panes that no window reaches any more, each with its model.

        They come model by model: to drop one costs a copy of its model's map, the others nothing.
        """
        found: list[tuple[str, Pane]] = []
        for time in sorted(time for time in self._expiring if time <= now):
            for model, panes in self._expiring[time].items():
                found += [(model, pane) for pane in dict.fromkeys(reversed(panes))]
                if len(found) >= number:
                    return found[:number]
        return found

    def expire(self, now: float, number: int) -> int:
        """Drop so many at most of the panes that no window reaches; returns how many."""
        old = self.expired(now, number)
        for model, pane in old:
            self.drop(model, pane)
        return len(old)

    def _await_expiry(self, model: str, pane: Pane) -> None:
        """Take note of a new pane."""
        if pane.width:
            self._expiring.setdefault(expiry(pane), {}).setdefault(model, []).append(pane)

    def _change(self) -> None:
        """Let go of the copy that will not be true any more."""
        self._content = None

    def _own(self, model: str) -> ModelState:
        """The model's maps, copied first where a reader may still hold them."""
        self._change()
        state = self._models.get(model)
        if state is None:
            state = ModelState({}, {}, {})
        elif model in self._owned_models:
            return state
        else:
            state = ModelState(dict(state.panes), dict(state.gauges), dict(state.constants))
        self._models[model] = state
        self._owned_models.add(model)
        return state

    def _vector(self, model: str, pane: Pane) -> tuple[dict[str, Any], set[str]]:
        """The counters of one pane, and the families of it that no reader can hold."""
        panes = self._own(model).panes
        owned = self._owned.get((model, pane))
        if owned is None:
            owned = self._owned[model, pane] = set()
            known = panes.get(pane)
            if known is None:
                self._await_expiry(model, pane)
            panes[pane] = {} if known is None else dict(known)
        return panes[pane], owned

    def _packed(self, model: str, pane: Pane, cells: Cells, before: int) -> Cells:
        """Many cells as an array, if that is smaller: looked at whenever they have doubled."""
        home = (model, pane)
        if before.bit_length() == len(cells).bit_length() and home not in self._loaded:
            return cells
        from .histograms import packed  # its numpy is not for those who have few rows

        self._loaded.discard(home)
        return packed(cells) or cells
