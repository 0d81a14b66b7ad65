"""Histograms of scores as one array: what many rows add up in, and rankings are read off.

The cells of the family `scores`, `(class, bin, positive) -> rows`, as a dict has them, in a small
part of its memory and time. Imported where there are enough cells to pay for numpy.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bins import MAX_LOGIT_BIN
from .counters import Labels, Number, Packed

Integers = NDArray[np.signedinteger[Any]]
_WIDE = 1 << 31
"""Counts that may be as large take 8 bytes each, others 4."""
_MARGIN = 16
"""Bins that are added beyond those that are needed: the next ones will be near."""
_WORTH = 12
"""Numbers of an array that take the memory of a dict's cell."""
_SIDES = {"0": 0, "1": 1}
_BINS = {str(bin): bin for bin in range(-MAX_LOGIT_BIN, MAX_LOGIT_BIN + 1)}
_TEXTS = tuple(_BINS)
_SIDE_TEXTS = tuple(_SIDES)


class Histograms(Packed):
    """Cells of scores; equal to the dict of those that are not 0.

    `counts` is (K, 2, W): K classes, their negatives and positives, and columns of bins from the
    lowest score up: one for the outermost bin, those from `low` to `high`, the other outermost one.
    No count is larger than `most`.
    """

    __slots__ = ("classes", "counts", "low", "most")

    def __init__(self, classes: tuple[str, ...], low: int, counts: Integers, most: int) -> None:
        self.classes = classes
        self.low = low
        self.counts = counts
        self.most = most

    @property
    def high(self) -> int:
        """The last bin before the outermost one."""
        return self.low + int(self.counts.shape[2]) - 3

    # --- as a mapping ------------------------------------------------------------------------

    def plain(self) -> dict[Labels, Number]:
        """The same cells as a dict."""
        places = self.counts.nonzero()
        return self._labelled(*places, self.counts[places])

    def _labelled(self, *found: Any) -> dict[Labels, Number]:
        """Numbers by label, after the classes, sides and columns of their places."""
        classes, sides, columns, numbers = (each.tolist() for each in found)
        names, texts = self.classes, [_TEXTS[bin + MAX_LOGIT_BIN] for bin in self._bins().tolist()]
        labels = [
            (names[each], texts[column], _SIDE_TEXTS[side])
            for each, side, column in zip(classes, sides, columns, strict=True)
        ]
        return dict(zip(labels, numbers, strict=True))

    def __getitem__(self, labels: Labels) -> Number:
        place = self._place(*labels) if len(labels) == 3 else None
        number = int(self.counts[place]) if place else 0
        if not number:
            raise KeyError(labels)
        return number

    def __iter__(self) -> Iterator[Labels]:
        return iter(self.plain())

    def __len__(self) -> int:
        return int(np.count_nonzero(self.counts))

    @property
    def size(self) -> int:
        """Places of the array."""
        return int(self.counts.size)

    def items(self) -> ItemsView[Labels, Number]:
        """Labels and numbers, at once."""
        return self.plain().items()

    def values(self) -> ValuesView[Number]:
        """The numbers, at once."""
        return self.plain().values()

    def _place(self, key: str, text: str, side: str) -> tuple[int, int, int] | None:
        bin = _BINS.get(text)
        if bin is None or key not in self.classes or side not in _SIDES:
            return None
        if not self.low <= bin <= self.high and abs(bin) < MAX_LOGIT_BIN:
            return None
        return self.classes.index(key), _SIDES[side], int(self._columns(np.array(bin)))

    def _bins(self) -> NDArray[np.intp]:
        """(W,) the bin of each column."""
        inner = np.arange(self.low, self.high + 1)
        return np.concatenate(((-MAX_LOGIT_BIN,), inner, (MAX_LOGIT_BIN,)))

    def _columns(self, bins: NDArray[np.intp]) -> NDArray[np.intp]:
        """The column of each bin, for which there must be one."""
        columns: NDArray[np.intp] = np.maximum(bins, self.low - 1)
        columns = np.minimum(columns, self.high + 1)
        return columns - (self.low - 1)

    def parts(self) -> tuple[Any, ...]:
        """What `from_parts` makes them of again: the counts in as few bytes as will do, base64."""
        kind = np.min_scalar_type(int(self.counts.max(initial=0))).newbyteorder("<")
        return (
            self.classes,
            self.low,
            kind.str,
            b64encode(self.counts.astype(kind).tobytes()).decode(),
        )

    def turned(self, key: str) -> Histograms:
        """The scores of the other of two classes, `key`: one less this one's."""
        return Histograms((key,), -self.high, self.counts[:, ::-1, ::-1], self.most)

    # --- as a sum ----------------------------------------------------------------------------

    def copy(self) -> Histograms:
        """The same, to be added to."""
        return Histograms(self.classes, self.low, self.counts.copy(), self.most)

    def add(self, values: Mapping[Labels, Number]) -> None:
        """Add `values`, in place."""
        if not isinstance(values, Histograms):
            if values:
                self._add_plain(values)
            return
        low, high = values.low, values.high
        self._reach(values.classes, low, high)
        self._widen(values.most)
        rows: Any = slice(None)
        if values.classes != self.classes:
            rows = [self.classes.index(key) for key in values.classes]
        start = low - self.low + 1
        if low <= high:
            self.counts[rows, :, start : start + high - low + 1] += values.counts[:, :, 1:-1]
        self.counts[rows, :, 0] += values.counts[:, :, 0]
        self.counts[rows, :, -1] += values.counts[:, :, -1]

    def _add_plain(self, values: Mapping[Labels, Number]) -> None:
        keys, texts, sides = zip(*values, strict=True)
        bins = np.fromiter(map(_BINS.__getitem__, texts), np.intp, len(texts))
        self._reach(keys, *_inner(bins))
        place = {key: place for place, key in enumerate(self.classes)}
        classes = np.fromiter(map(place.__getitem__, keys), np.intp, len(keys))
        side = np.fromiter(map(_SIDES.__getitem__, sides), np.intp, len(sides))
        numbers = np.fromiter(values.values(), np.int64, len(keys))
        self._widen(int(numbers.max()))
        self.counts[classes, side, self._columns(bins)] += numbers  # all labels differ

    def _widen(self, more: int) -> None:
        """Have room for counts that are larger by so much."""
        self.most += more
        if self.most >= _WIDE and self.counts.dtype != np.int64:
            self.counts = self.counts.astype(np.int64)

    def _reach(self, classes: Sequence[str], low: int, high: int) -> None:
        """Have room for these classes, and for the bins from `low` to `high`, if that is any."""
        fresh = [key for key in dict.fromkeys(classes) if key not in self.classes]
        lacks = low <= high and (low < self.low or high > self.high)
        if not fresh and not lacks:
            return
        low = low - _MARGIN if lacks and low < self.low else self.low
        high = high + _MARGIN if lacks and high > self.high else self.high
        grown = empty((*self.classes, *fresh), low, high, self.most)
        known, start = grown.counts[: len(self.classes)], self.low - grown.low + 1
        known[:, :, start : start + self.counts.shape[2] - 2] = self.counts[:, :, 1:-1]
        known[:, :, 0], known[:, :, -1] = self.counts[:, :, 0], self.counts[:, :, -1]
        self.classes, self.low, self.counts = grown.classes, grown.low, grown.counts


def _inner(bins: NDArray[np.intp]) -> tuple[int, int]:
    """The lowest and the highest bin but for the outermost ones; (0, -1) where there is none."""
    low, high = int(bins.min()), int(bins.max())
    if low == -MAX_LOGIT_BIN or high == MAX_LOGIT_BIN:
        bins = bins[abs(bins) < MAX_LOGIT_BIN]
        low, high = (int(bins.min()), int(bins.max())) if bins.size else (0, -1)
    return low, high


def empty(classes: tuple[str, ...], low: int, high: int, most: int = 0) -> Histograms:
    """No rows yet, with room for the bins from `low` to `high`, and for counts up to `most`."""
    low, high = max(low, 1 - MAX_LOGIT_BIN), min(high, MAX_LOGIT_BIN - 1)
    kind = np.int64 if most >= _WIDE else np.int32
    counts: Integers = np.zeros((len(classes), 2, max(0, high - low + 1) + 2), kind)
    return Histograms(classes, low, counts, most)


def from_parts(classes: Sequence[str], low: int, kind: str, counts: str) -> Histograms:
    """The histograms of which these are the parts."""
    numbers = np.frombuffer(b64decode(counts), kind)
    most = int(numbers.max(initial=0))
    shaped = numbers.reshape(len(classes), 2, -1 if classes else 2)
    return Histograms(
        tuple(classes), low, shaped.astype(np.int64 if most >= _WIDE else np.int32), most
    )


def counted(
    classes: tuple[str, ...], bins: NDArray[np.intp], truth: NDArray[np.intp]
) -> Packed | dict[Labels, Number]:
    """(N, K) scores by their bins, in a column for each class; `truth`: (N,), or none of them."""
    low, high = int(bins.min()), int(bins.max())
    if has_outermost := low == -MAX_LOGIT_BIN or high == MAX_LOGIT_BIN:
        low, high = _inner(bins)
    found = empty(classes, low, high)
    shape, width = found.counts.shape, found.counts.shape[2]
    places = found._columns(bins) if has_outermost else bins - (low - 1)
    if len(classes) > 1:
        places += np.arange(0, 2 * width * len(classes), 2 * width)
        places.ravel()[np.arange(0, places.size, len(classes)) + truth] += width
    else:
        places[truth == 0] += width
    if found.counts.size <= _WORTH * bins.size:
        numbers = np.bincount(places.ravel(), minlength=found.counts.size)
        found.counts, found.most = numbers.astype(np.int32).reshape(shape), len(bins)
        return found
    used, numbers = np.unique(places, return_counts=True)
    return found._labelled(*np.unravel_index(used, shape), numbers)


def of(cells: Mapping[Labels, Number]) -> Histograms:
    """The same cells as an array. Raises ValueError where they are no cells of scores."""
    try:
        found = empty((), 0, -1)
        if cells:
            keys, texts, _ = zip(*cells, strict=True)
            bins = np.fromiter(map(_BINS.__getitem__, texts), np.intp, len(texts))
            found = empty(tuple(dict.fromkeys(keys)), *_inner(bins))
            found.add(cells)
        return found
    except KeyError as error:
        raise ValueError(f"{error} in a label of scores") from None


def packed(cells: Mapping[Labels, Number]) -> Histograms | None:
    """`cells` as an array; None where they are no cells of scores, or smaller as a dict."""
    try:
        found = of(cells)
    except ValueError:
        return None
    return found if found.counts.size <= _WORTH * len(cells) else None
