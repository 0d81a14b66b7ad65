"""Rules on a score: when it crosses a threshold, for how long, and what is told once of it.

Pure: a rule's status is a value, and `step` makes the next one of it. The status is constants of
the model in the store, replaced by compare-and-set, so that it is one for all replicas, survives
restarts, and every transition happens once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

OK, PENDING, FIRING, RESOLVED = "ok", "pending", "firing", "resolved"
REMEMBERED = 8
"""Transitions of a rule whose events are remembered, so that a redelivery is told the same."""

RARE = 4
"""Silences through which a score was beyond its bound, until the rule fires all the same."""
NOTED_SECONDS = 1.0
"""How often a pending rule's last row is noted in the store, at most."""

LATEST = 253402300800
"""Epoch seconds of the year 10000, which no text of a time can tell."""

_AVERAGED = ("precision", "recall", "f1", "jaccard", "specificity", "fbeta")
SCORES = frozenset(
    (
        *_AVERAGED,
        *(f"{name}_{average}" for name in _AVERAGED for average in ("macro", "micro", "weighted")),
        *("accuracy", "balanced_accuracy", "matthews_corrcoef", "cohen_kappa"),
        *("log_loss", "brier_score", "expected_calibration_error", "top_k_accuracy"),
        *("roc_auc_ovr", "roc_auc_ovr_weighted", "average_precision"),
        *("subset_accuracy", "hamming_loss"),
        *("mean_absolute_error", "mean_squared_error", "root_mean_squared_error", "r2"),
        *("explained_variance", "mean_error", "mean_absolute_percentage_error"),
        "median_absolute_error",
    )
)
"""The names that a model's scores can have."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A threshold that a score of a window should keep to."""

    name: str
    score: str
    window: str = "all"
    below: float | None = None
    """It fires where the score is below this one, or"""
    above: float | None = None
    """above this one."""
    rows: int = 1
    """Of fewer rows behind it the score says nothing."""
    seconds: int = 0
    """How long the score must have been there, while rows came."""

    @property
    def constant(self) -> str:
        """The name of the constant that holds its status."""
        return f"{PREFIX}{self.name}"

    @property
    def waiting(self) -> str:
        """The name of the constant that holds what it waits for while it is pending."""
        return f"{self.constant} waiting"

    def crossed(self, value: float) -> bool:
        """Whether a score of this value is where it should not be."""
        if self.below is not None:
            return value < self.below
        return self.above is not None and value > self.above


PREFIX = "alert "
"""Begins the names of constants that hold a status."""


class Transition(NamedTuple):
    """That a rule began to fire, or was resolved."""

    number: int
    """How many there were of the rule, this one included."""
    state: str
    value: float
    time: float
    """Epoch seconds."""
    digest: str
    """Of the event that was told so, in hexadecimal; empty where none was."""

    def id(self, model: str, rule: Rule) -> str:
        """The id of the event that tells it: the same whoever tells it, and how often."""
        said = f"{model}\0{rule.name}\0{self.number}\0{self.digest}"
        return blake2b(said.encode(), digest_size=16).hexdigest()


class Status(NamedTuple):
    """How a rule stands."""

    state: str = OK
    since: float = 0.0
    """Epoch seconds of the last change."""
    value: float | None = None
    """The score as of then."""
    transitions: int = 0
    recent: tuple[Transition, ...] = ()
    """The last few, the youngest last."""
    moment: float = 0.0
    """While it is pending: epoch seconds of the last new row,"""
    data: int | None = None
    """how many rows there had been then, and"""
    silences: int = 0
    """how many silences it has been through; `since` is later by as long as they were."""

    def constants(self, rule: Rule) -> dict[str, Any]:
        """As constants of the model hold it: what it waits for has one of its own.

        Replicas of older versions read the rule's, and refuse members of it that they do not know.
        """
        members = {**self._asdict(), "recent": [list(each) for each in self.recent]}
        wait = {name: members.pop(name) for name in _WAIT}
        if self.state == PENDING:
            return {rule.constant: members, rule.waiting: {"since": self.since, **wait}}
        return {rule.constant: members}


_WAIT = ("moment", "data", "silences")


def status_of(constants: Mapping[str, Any], rule: Rule) -> Status:
    """How a rule stands by its model's constants; as one never looked at where they are broken."""
    known = constants.get(rule.constant)
    if known is None:
        return Status()
    try:
        recent = tuple(Transition(*each) for each in known["recent"])
        status = Status(**{**known, "recent": recent})
        wait = constants.get(rule.waiting)
        if status.state == PENDING and wait is not None and wait["since"] == status.since:
            status = status._replace(**{name: wait[name] for name in _WAIT})
    except (TypeError, KeyError):
        return Status()
    return status if _is_sound(status) else Status()


def _is_sound(status: Status) -> bool:
    """Whether a stored status has the types of one."""
    return (
        status.state in (OK, PENDING, FIRING)
        and type(status.transitions) is int
        and type(status.silences) is int
        and all(type(each) in (int, float) for each in (status.value or 0.0, status.data or 0))
        and _is_time(status.since)
        and _is_time(status.moment)
        and all(
            type(each.number) is int
            and type(each.state) is type(each.digest) is str
            and type(each.value) in (int, float)
            and _is_time(each.time)
            for each in status.recent
        )
    )


def _is_time(seconds: Any) -> bool:
    """Whether these are epoch seconds that a calendar has."""
    return type(seconds) in (int, float) and 0 <= seconds < LATEST


def step(
    rule: Rule,
    status: Status,
    value: float | None,
    rows: int,
    now: float,
    digest: str = "",
    data: int | None = None,
) -> Status | None:
    """The status that follows where the score is `value`; None where nothing changes.

    An undefined score, or one of too few rows, changes nothing. `digest` is the event's that is to
    be told of a transition. `data` grows with every row behind the score, whatever its window;
    None: with every call. A rule's duration passes from one new row to the next. A gap as long as
    the duration is a silence, which does not count; after RARE silences the rule fires, too, or one
    whose rows are always so rare never would.
    """
    if value is None or rows < rule.rows:
        return None
    if not rule.crossed(value):
        if status.state == FIRING:
            return _transition(status, RESOLVED, OK, value, now, digest)
        if status.state == OK:
            return None
        return Status(OK, now, value, status.transitions, status.recent)
    if status.state == FIRING:
        return None
    if not rule.seconds:
        return _transition(status, FIRING, FIRING, value, now, digest)
    if status.state != PENDING:
        return status._replace(
            state=PENDING, since=now, value=value, moment=now, data=data, silences=0
        )
    if data is not None and data == status.data:
        return None
    since, silences = status.since, status.silences
    gap = now - (status.moment or since)
    if gap >= rule.seconds:
        since, silences = since + gap, silences + 1
    if now - since >= rule.seconds or silences >= RARE:
        return _transition(status, FIRING, FIRING, value, now, digest)
    if gap < NOTED_SECONDS:
        return None
    return status._replace(since=since, moment=now, data=data, silences=silences)


def _transition(
    status: Status, told: str, state: str, value: float, now: float, digest: str
) -> Status:
    number = status.transitions + 1
    recent = (*status.recent, Transition(number, told, value, now, digest))[-REMEMBERED:]
    return Status(state, now, value, number, recent)


def alerts_view(rules: Sequence[Rule], constants: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The view's member `alerts`: how each rule stands."""
    found = []
    for rule in rules:
        status = status_of(constants, rule)
        bound = {"below": rule.below} if rule.below is not None else {"above": rule.above}
        found.append(
            {
                "rule": rule.name,
                "score": rule.score,
                "window": rule.window,
                **bound,
                "state": status.state,
                "since": status.since or None,
                "value": status.value,
            }
        )
    return found
