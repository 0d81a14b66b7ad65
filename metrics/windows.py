"""Event time -> panes, and panes -> a sliding window.

A window of `seconds` is cut into about 60 panes of whole seconds. An event counts in the pane
of its time for every window, and in the pane of all time. A window is the sum of its youngest
panes, so it is off by at most one pane. A pane expires by its own age: no setting is needed
to know that it can go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from math import inf
from typing import NamedTuple

PANES = 60
"""Panes a window is cut into, at most."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")


class Pane(NamedTuple):
    """A stretch of time of one model, perhaps of one segment of its events."""

    width: int = 0
    """Seconds; 0 for all time."""
    index: int = 0  # type: ignore[assignment]  # the field's word, not the tuple's method
    """Start of the stretch, in widths since the epoch."""
    segment: str = ""
    """`key=value`, or empty for all events."""


ALL_TIME = Pane()


class Window(NamedTuple):
    """A sliding window: its name as configured (`1h`), its length and its panes' width, seconds."""

    name: str
    seconds: int
    width: int


def duration(text: str) -> int:
    """Seconds of `90s`, `5m`, `1h`, `1d`, `1w` or a sum such as `1h30m`; plain digits are seconds.

    Raises ValueError for anything else, and for zero.
    """
    text = text.strip()
    seconds = (
        int(text)
        if text.isascii() and text.isdigit() and len(text) <= 9
        else sum(int(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
    )
    if seconds <= 0 or not (text.isdigit() or _DURATION.sub("", text) == ""):
        raise ValueError(f"{text!r} is no duration (use 90s, 5m, 1h, 1d or a sum such as 1h30m)")
    return seconds


def window(name: str) -> Window:
    """The window called `name`, e.g. `5m`. Raises ValueError where `duration` does."""
    seconds = duration(name)
    return Window(name.strip(), seconds, -(-seconds // PANES))


class Placement(NamedTuple):
    """Where an event counts: its panes (all time first), and whether it came too late for any."""

    panes: tuple[Pane, ...]
    late: bool


def place(time: float, arrival: float, windows: Sequence[Window]) -> Placement:
    """The panes of an event that happened at `time` and arrived at `arrival` (epoch seconds).

    A time in the future is taken as `arrival`. A window whose oldest pane is younger than the
    event is left out; `late` says that every window was.
    """
    global _latest
    time = min(time, arrival)
    second, known, shortest, placement = _latest
    if second == int(time) and known is windows and arrival - time < shortest:
        return placement
    reached = tuple(each for each in windows if time > arrival - each.seconds)
    placement = Placement(_panes_at(int(time), reached), not reached and bool(windows))
    if len(reached) == len(windows):
        shortest = min((each.seconds for each in windows), default=inf)
        _latest = int(time), windows, shortest, placement
    return placement


_latest: tuple[int, Sequence[Window], float, Placement] = -1, (), 0.0, Placement((), False)
"""The last second of which an event counted in all windows, these, the shortest, and where."""


@lru_cache(maxsize=1024)
def _panes_at(second: int, windows: tuple[Window, ...]) -> tuple[Pane, ...]:
    """All time, and the pane of each window in which an event of this second counts."""
    widths = dict.fromkeys(each.width for each in windows)  # windows of one width share panes
    return ALL_TIME, *(Pane(width, second // width) for width in widths)


def in_segments(panes: Iterable[Pane], segments: Iterable[str]) -> Iterator[Pane]:
    """`panes`, and each of them again for each of `segments`."""
    panes = tuple(panes)
    yield from panes
    for segment in segments:
        for width, index, _ in panes:
            yield Pane(width, index, segment)


def panes_of(window: Window, now: float, segment: str = "") -> Iterator[Pane]:
    """The panes whose sum is `window` at `now` (epoch seconds), oldest first."""
    last = int(now // window.width)
    first = int((now - window.seconds) // window.width) + 1
    for index in range(first, last + 1):
        yield Pane(window.width, index, segment)


def expired(pane: Pane, now: float) -> bool:
    """Whether no window that is cut into panes of this width can still reach `pane`."""
    return pane.width > 0 and expiry(pane) <= now


def expiry(pane: Pane) -> int:
    """The epoch second at which no window that is cut into panes of this width reaches `pane`."""
    return (pane.index + PANES + 2) * pane.width
