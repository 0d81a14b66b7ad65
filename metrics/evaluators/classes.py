"""Labels and columns -> class keys.

A class's key is its column's index ("2") wherever names or columns tell it, else the label as
written. Names are looked up when scores are shown, so an event with names, one without, and one
whose columns come in another order all count in the same class.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from ..counters import OTHER
from ..errors import Refused
from ..model_settings import ModelSettings
from ..payload import Feedback, Values, check_label
from .evaluation import Evaluation, Known

TOLERANCE = 1e-3 + 1e-9
"""How far a row of probabilities may sum from 1, and what its decimals may add to that."""


COUNTED_AT_ONCE = 1 << 16
"""Pairs that are counted in one call, which no other thread interrupts."""
REMEMBERED = 1000
"""Columns of a row whose keys and names are cached; a few very wide ones would fill the memory."""


def count_pairs(true: Collection[Any], predicted: Collection[Any]) -> Counter[Any]:
    """(truth, prediction) -> rows. Raises ValueError where one has more than the other."""
    parts = pairs_by_parts(true, predicted)
    found = next(parts)
    for part in parts:
        found.update(part)
    return found


def pairs_by_parts(true: Collection[Any], predicted: Collection[Any]) -> Iterator[Counter[Any]]:
    """`count_pairs` of COUNTED_AT_ONCE rows after the other, in order."""
    pairs = zip(true, predicted, strict=True)
    for _ in range(0, len(true) + 1, COUNTED_AT_ONCE):
        yield Counter(islice(pairs, COUNTED_AT_ONCE))


_INDEX = re.compile("0|[1-9][0-9]{0,8}")


def label(value: Any) -> str:
    """A label as written: 2, 2.0 and "2" are one class, `2`; true is 1."""
    if type(value) is str:
        return value
    if type(value) is float and not value.is_integer():
        return repr(value)
    return str(int(value))


def agree(
    truth: Values, prediction: Values, flat_rows: bool = False, scalars: bool = False
) -> tuple[Values, Values]:
    """Both sides with the same number of rows. Raises Refused where they cannot have it.

    A flat list against a single row of the same width is that row in short; with `flat_rows`
    every flat list of several numbers is (the ancestor's one-hot form), and with `scalars` two
    flat lists never are.
    """
    if not truth.width and not prediction.width:
        if scalars:
            pass
        elif (flat_rows or len(truth) == 1 or _fractions(prediction)) and _is_row(prediction):
            one_row = (flat_rows and truth.numeric) or _one_hot(truth.flat)
            if len(truth) == len(prediction) and one_row:
                truth = truth.as_one_row()
            if truth.width or len(truth) == 1:
                prediction = prediction.as_one_row()
    elif not truth.width and len(prediction) == 1 and len(truth) == prediction.width:
        truth = truth.as_one_row() if truth.numeric else truth
    elif not prediction.width and len(truth) == 1 and len(prediction) == truth.width:
        prediction = prediction.as_one_row() if prediction.numeric else prediction
    if len(truth) != len(prediction):
        raise Refused(
            prediction.field, f"{len(prediction)} rows, but {truth.field} has {len(truth)}"
        )
    if truth.width and prediction.width and truth.width != prediction.width:
        raise Refused(
            prediction.field,
            f"rows of {prediction.width} values, but {truth.field} has rows of {truth.width}",
        )
    return truth, prediction


def _is_row(values: Values) -> bool:
    return values.numeric and values.rows > 1


def _fractions(values: Values) -> bool:
    return values.numeric and not values.integral()


def _one_hot(row: Sequence[Any]) -> bool:
    return row.count(1) == 1 and row.count(0) == len(row) - 1


class Classes:
    """The classes of one event: names in column order, and how labels find their keys."""

    def __init__(self, feedback: Feedback, settings: ModelSettings, known: Known) -> None:
        self.proposed: tuple[str, ...] | None = None
        self.names: tuple[str, ...] = ()
        self._index: Mapping[str, str] = {}
        fixed = settings.classes or known.constants.get("names")
        if fixed:
            self.names, self._index = _fixed(fixed)
        else:
            for side in (feedback.prediction, feedback.truth):
                if side is not None and side.names:
                    self.proposed = self.names = _few(side, settings.max_classes)
                    self._index = _index_of(self.names)
                    break
        self.configured = bool(settings.classes)
        self.fractions = settings.task != "auto"
        """Whether a lone fraction may be a label as written, as it was to the ancestor."""

    def fix(self, evaluation: Evaluation) -> None:
        """Propose the event's names as the model's, where it has none yet."""
        if self.proposed:
            evaluation.constants["names"] = list(self.proposed)

    def are_columns(self, columns: Sequence[int]) -> bool:
        """Whether a whole number is the index of its column: no order, no name says otherwise."""
        if len(self.names) > REMEMBERED or columns != range(len(columns)):
            return False
        return not _has_numeral(self.names)

    def keys(self, values: Values, width: int = 0, fractions: bool = True) -> Collection[str]:
        """The class keys of (N,) labels; `width` is the number of columns of the other side.

        Raises Refused for a label that is no column, no configured class, or unfit for a label.
        """
        find = self._finder(values, width)
        distinct = set(values.flat)
        if not fractions:
            for value in distinct:
                if type(value) is float and not value.is_integer():
                    raise Refused(values.field, f"{value!r} is no class label")
        keys = {value: find(value) for value in distinct}
        if len(values.flat) > COUNTED_AT_ONCE:
            return Keys(keys, values.flat)
        return [keys[value] for value in values.flat]

    def _finder(self, values: Values, width: int) -> Callable[[Any], str]:
        def find(value: Any) -> str:
            text = label(value)
            key = self._index.get(text)
            if key is not None:
                return key
            limit = width or (len(self.names) if self.configured else 0)
            if limit:
                if _INDEX.fullmatch(text) and int(text) < limit:
                    return text
                classes = ", ".join(self.names[:5]) or f"0 to {limit - 1}"
                raise Refused(values.field, f"{text[:40]!r} is none of the classes ({classes})")
            return check_label(text, values.field)

        return find

    def columns(self, values: Values) -> Sequence[int]:
        """The class index of each column of (N, K) values; a range where they are in order.

        Raises Refused for an unknown name.
        """
        if self.configured and len(self.names) != values.width:
            raise Refused(
                values.field, f"rows of {values.width} values for {len(self.names)} classes"
            )
        if values.names and values.names != self.names[: values.width]:
            try:
                return [int(self._index[name]) for name in values.names]
            except KeyError as error:
                if not self.configured:
                    return range(values.width)
                raise Refused(values.field, f"{error.args[0]!r} is no configured class") from None
        return range(values.width)


class Keys(Collection[str]):
    """The class keys of very many labels, made as they are asked for."""

    def __init__(self, keys: Mapping[Any, str], flat: Sequence[Any]) -> None:
        self._keys = keys
        self._flat = flat

    def __iter__(self) -> Iterator[str]:
        return map(self._keys.__getitem__, self._flat)

    def __len__(self) -> int:
        return len(self._flat)

    def __contains__(self, key: object) -> bool:
        return key in self._keys.values()


_Fixed = tuple[Sequence[str], tuple[str, ...], Mapping[str, str]]
_FIXED: dict[int, _Fixed] = {}
"""What is known of lists of names, by the identity of the list: they may be long."""


def _fixed(names: Sequence[str]) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """A model's names as a tuple, and their keys; each event of a model brings the same list."""
    found = _FIXED.get(id(names))
    if found is None or found[0] is not names:
        if len(_FIXED) >= 256:
            _FIXED.clear()
        as_tuple = tuple(names)
        found = _FIXED[id(names)] = names, as_tuple, _index_of(as_tuple)
    return found[1:]


def check_names(half: Values, settings: ModelSettings, known: Known) -> None:
    """Raises Refused where the names of half of feedback are more than the model may have.

    That is known before the other half comes, whose sender could not help it.
    """
    if not settings.classes and "names" not in known.constants:
        _few(half, settings.max_classes)


def _few(values: Values, most: int) -> tuple[str, ...]:
    """The names of `values`. Raises Refused for more than a model may have classes."""
    names = values.names or ()
    if len(names) > most:
        where = values.field.partition(".data")[0] + ".data.names"
        raise Refused(where, f"{len(names)} names; FEEDBACK_MAX_CLASSES is {most}")
    return names


def _index_of(names: tuple[str, ...]) -> dict[str, str]:
    return (_keys_of if len(names) <= REMEMBERED else _keys_of.__wrapped__)(names)


@lru_cache(maxsize=256)
def _keys_of(names: tuple[str, ...]) -> dict[str, str]:
    return {name: str(index) for index, name in enumerate(names)}


@lru_cache(maxsize=256)
def _has_numeral(names: tuple[str, ...]) -> bool:
    return any(name.isdigit() for name in names)


def cap(keys: Collection[str], known: Known, limit: int) -> dict[str, str]:
    """Where each distinct key counts: itself, or `__other__` past `limit` known classes."""
    classes = known.labels.get("class", set())
    fresh = limit - len(classes)
    if len(keys) <= fresh:
        return {key: key for key in keys}
    taken: dict[str, str] = {}
    for key in keys:
        if key not in taken:
            if key not in classes and fresh <= 0:
                taken[key] = OTHER
            else:
                fresh -= key not in classes
                taken[key] = key
    return taken
