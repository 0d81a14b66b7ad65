"""Numbers, times and labels as people read them."""

from __future__ import annotations

from datetime import datetime, timezone
from unicodedata import category

from ..scores.ranges import fixed, plain

LABEL = 28
"""Characters of a label that are shown; its title has the rest."""


def figure(number: float) -> str:
    """A number in a few digits: whole ones whole, small and large ones in powers of ten."""
    if isinstance(number, int):
        return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    size = abs(number)
    if size == 0 or 0.001 <= size < 10:
        return fixed(number, 4)
    if 10 <= size < 100_000:
        return f"{number:#.5g}".rstrip(".")
    return f"{number:.3e}"


def brief(number: float) -> str:
    """A number in fewer digits than `figure`: the end of an axis or of an interval."""
    return fixed(number, 3) if 0.01 <= abs(number) < 10 or number == 0 else figure(number)


def percent(share: float) -> str:
    """A share of 1 in percent, with a digit behind the point where it is small or nearly all.

    Neither 0 nor 100 percent are told of a share that is not.
    """
    size = 100 * share
    if 0 < size < 0.05:
        return "<0.1 %"
    if 99.5 <= size < 100:
        return f"{min(size, 99.9):.1f} %"
    return f"{size:.1f} %" if 0 < size < 10 else f"{plain(size):.0f} %"


def cut(label: str, most: int = LABEL) -> str:
    """`label` in at most `most` characters, its middle left out: its ends tell it from others.

    What would be invisible, or turn the direction of what follows, is shown as �.
    """
    label = "".join(
        "\N{REPLACEMENT CHARACTER}" if category(each) == "Cf" and each not in _JOINERS else each
        for each in label
    )
    if not label.strip():
        return "(blank)"
    if len(label) <= most:
        return label
    tail = (most - 1) // 3
    return f"{label[: most - 1 - tail]}…{label[-tail:]}"


_JOINERS = "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}"
"""Parts of emoji and of Persian or Indic words."""


def title(score: str) -> str:
    """A score's name without its underscores; what is an abbreviation in capitals."""
    words = [_CAPITALS.get(word, word) for word in score.split("_")]
    return " ".join(words)


_CAPITALS = {"roc": "ROC", "auc": "AUC", "r2": "R²", "f1": "F1", "ovr": "OvR", "fbeta": "Fβ"}


def clock(time: str | float) -> str:
    """A moment (epoch seconds, RFC 3339) to the second, in UTC; other text as it is."""
    moment = _instant(time)
    return str(time) if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(time: str | float, now: float) -> str:
    """How long before `now` a moment was, in its largest unit; text that is no moment as it is."""
    moment = _instant(time)
    if moment is None:
        return str(time)
    seconds = max(0, int(now - moment.timestamp()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _instant(time: str | float) -> datetime | None:
    try:
        if isinstance(time, str):
            return datetime.fromisoformat(time.replace("Z", "+00:00")).astimezone(timezone.utc)
        return datetime.fromtimestamp(time, timezone.utc)
    except (ValueError, OverflowError, OSError):
        return None
