"""Durations, panes, and sliding windows against brute force."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    "text",
    [
        *(
            "",
            " ",
            "0",
            "0s",
            "0h0m",
            "-5m",
            "+5m",
            "5x",
            "m",
            "1.5h",
            "5 m",
            "1h-",
            "٣m",
            "²",
            "5²",
        ),
        *("1e3", "nan", "inf", "5mm", "5M", "1h\n30m", "0x10", "1_0", "1_0s", "None", "5m,1h"),
        *("9" * 20, "9" * 20 + "w", "9" * 5000, "9" * 5000 + "s", "٣5m"),
    ],
)
def test_nonsense_is_no_duration(text: str) -> None:
    """Anything else is refused, and so is zero, and what no clock will see."""
    for read in (duration, window):
        with pytest.raises(ValueError, match="no duration"):
            read(text)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.text("0159smhdw .-+e٣", max_size=8) | st.text(max_size=5))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    """A duration is the sum of its parts; whatever else a person may type raises ValueError."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    total, digits = 0, ""
    for character in text.strip():
        if character in "0123456789":
            digits += character
        elif digits and character in units:
            total, digits = total + int(digits) * units[character], ""
        else:
            total, digits = 0, "x"
            break
    if digits and digits == text.strip():
        total, digits = int(digits), ""
    if total and not digits:
        assert duration(text) == total
    else:
        with pytest.raises(ValueError, match="no duration"):
            duration(text)


def test_a_duration_may_have_spaces_around_it() -> None:
    """A list such as `5m, 1h` is cut at its commas only."""
    assert duration(" 5m ") == 300
    assert window(" 5m ") == ("5m", 300, 5)


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


@pytest.mark.parametrize("seed", range(4))
def test_sliding_windows_are_brute_force_to_one_pane(seed: int) -> None:
    """Each window counts every row a pane younger than it, none that is older, and none twice."""
    chance = random.Random(seed)
    kept = [window(name) for name in ("30s", "1m", "59m", "60m", "1h")]
    counted: dict[Pane, int] = {}
    rows: list[tuple[float, int]] = []
    now = NOW
    for _ in range(600):
        now += chance.expovariate(1 / 7)
        time = now - chance.choice([0, 1, 20, 300, 4000]) * chance.random()
        time += chance.choice([0, 0, 0, 5000])  # a clock that is ahead
        number = chance.randint(1, 9)
        placed = place(time, now, kept)
        rows.append((min(time, now), number))
        assert len(set(placed.panes)) == len(placed.panes)
        for pane in placed.panes:
            counted[pane] = counted.get(pane, 0) + number
        if chance.random() < 0.2:
            for each in kept:
                found = sum(counted.get(pane, 0) for pane in panes_of(each, now))
                surely = sum(n for at, n in rows if at > now - each.seconds + each.width)
                perhaps = sum(n for at, n in rows if at > now - each.seconds)
                assert surely <= found <= perhaps
            counted = {pane: n for pane, n in counted.items() if not expired(pane, now)}
    assert counted[ALL_TIME] == sum(number for _, number in rows)


def test_a_window_has_about_sixty_panes() -> None:
    """The number of panes is bounded, and so is what a window costs to read."""
    for name in ("1m", "5m", "1h", "1d", "1w"):
        assert len(list(panes_of(window(name), NOW))) == 60
    for seconds in (1, 7, 59, 61, 299, 301, 3601):
        kept = window(str(seconds))
        assert 1 <= len(list(panes_of(kept, NOW))) <= 60
        assert kept.width * 60 >= seconds


def test_windows_of_one_width_share_their_panes() -> None:
    """Two windows that are cut alike hold an event once, not once each."""
    kept = [window("30s"), window("1m")]
    assert place(NOW, NOW, kept).panes == (ALL_TIME, Pane(1, int(NOW)))
    assert place(NOW - 40, NOW, kept).panes == (ALL_TIME, Pane(1, int(NOW) - 40))


def test_times_in_the_future_are_taken_as_the_arrival() -> None:
    """A clock that is ahead cannot put an event where no window looks yet."""
    kept = [window("5m")]
    for ahead in (0.001, 1, 9999, 1e12):
        assert place(NOW + ahead, NOW, kept) == place(NOW, NOW, kept)
    assert place(NOW - 7, NOW, kept) != place(NOW, NOW, kept)


def test_late_means_too_old_for_every_window() -> None:
    """An event counts in the windows that still reach it; late is one that none does."""
    kept = [window("5m"), window("1h")]
    assert [pane.width for pane in place(NOW - 10, NOW, kept).panes] == [0, 5, 60]
    assert [pane.width for pane in place(NOW - 400, NOW, kept).panes] == [0, 60]
    assert not place(NOW - 400, NOW, kept).late
    assert place(NOW - 4000, NOW, kept) == ((ALL_TIME,), True)
    assert place(NOW - 4000, NOW, []) == ((ALL_TIME,), False)


def test_late_begins_where_the_longest_window_ends() -> None:
    """To the second: an event as old as the longest window is late, a younger one is not."""
    for names in (["5m"], ["1h", "5m"], ["30s", "1d"]):
        kept = [window(name) for name in names]
        longest = max(each.seconds for each in kept)
        assert place(NOW - longest, NOW, kept) == ((ALL_TIME,), True)
        assert not place(NOW - longest + 1, NOW, kept).late
    assert place(-5.0, NOW, [window("5m")]) == ((ALL_TIME,), True)


@pytest.mark.parametrize("name", ["1s", "59s", "1h", "61m"])
@pytest.mark.parametrize("offset", [0, 0.5, 7])
def test_no_window_loses_a_pane_that_it_still_sums(name: str, offset: float) -> None:
    """Whatever a window reads at a moment has not expired at that moment."""
    kept = window(name)
    assert not any(expired(pane, NOW + offset) for pane in panes_of(kept, NOW + offset))


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
