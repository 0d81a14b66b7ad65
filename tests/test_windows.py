"""Durations, panes, and sliding windows against brute force."""

from __future__ import annotations

import random

import pytest

from metrics.windows import (
    ALL_TIME,
    Pane,
    duration,
    expired,
    in_segments,
    panes_of,
    place,
    window,
)

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h", 3600), ("1d", 86400), ("1w", 604800), ("1h30m", 5400)],
)
def test_durations_are_read(text: str, seconds: int) -> None:
    """Units and sums of units are seconds; so are plain digits."""
    assert duration(text) == duration(str(seconds)) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-5m", "5x", "m", "1.5h", "5 m", "1h-", "٣m", "1e3", "nan", "5mm"]
)
def test_nonsense_is_no_duration(text: str) -> None:
    """Anything else is refused, and so is zero."""
    with pytest.raises(ValueError, match="no duration"):
        duration(text)


@pytest.mark.parametrize("name", ["1s", "59s", "5m", "7m", "1h", "1d", "1w"])
def test_a_window_is_off_by_at_most_one_pane(name: str) -> None:
    """All events a pane younger than the window count in it, and none that is older."""
    kept = window(name)
    chance = random.Random(1)
    for _ in range(300):
        now = NOW + chance.uniform(0, 1e6)
        age = chance.uniform(0, 1.2 * kept.seconds)
        panes = place(now - age, now - age, [kept]).panes
        counted = panes[1] in set(panes_of(kept, now))
        if age < kept.seconds - kept.width:
            assert counted
        if age >= kept.seconds:
            assert not counted


def test_a_window_has_about_sixty_panes() -> None:
    """The number of panes is bounded, and so is what a window costs to read."""
    for name in ("1m", "5m", "1h", "1d", "1w"):
        assert len(list(panes_of(window(name), NOW))) == 60


def test_times_in_the_future_are_taken_as_the_arrival() -> None:
    """A clock that is ahead cannot put an event where no window looks yet."""
    kept = [window("5m")]
    assert place(NOW + 9999, NOW, kept) == place(NOW, NOW, kept)


def test_late_means_too_old_for_every_window() -> None:
    """An event counts in the windows that still reach it; late is one that none does."""
    kept = [window("5m"), window("1h")]
    assert [pane.width for pane in place(NOW - 10, NOW, kept).panes] == [0, 5, 60]
    assert [pane.width for pane in place(NOW - 400, NOW, kept).panes] == [0, 60]
    assert not place(NOW - 400, NOW, kept).late
    assert place(NOW - 4000, NOW, kept) == ((ALL_TIME,), True)
    assert place(NOW - 4000, NOW, []) == ((ALL_TIME,), False)


def test_a_pane_expires_when_no_window_reaches_it() -> None:
    """Whatever a window sums is kept, and what it left is dropped soon after."""
    kept = window("1h")
    (_, pane) = place(NOW, NOW, [kept]).panes
    for later in range(0, 3 * kept.seconds, kept.width):
        now = NOW + later
        if pane in set(panes_of(kept, now)):
            assert not expired(pane, now)
        if later > kept.seconds + 3 * kept.width:
            assert expired(pane, now)
    assert not expired(ALL_TIME, NOW * 9)


def test_segments_have_panes_of_their_own() -> None:
    """Each pane stands once for all events and once for each segment."""
    panes = (ALL_TIME, Pane(5, 7))
    assert list(in_segments(panes, ["a=b"])) == [*panes, Pane(0, 0, "a=b"), Pane(5, 7, "a=b")]
