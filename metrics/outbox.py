"""Alerts that the sink has not been told of yet, kept in the store until it has.

A transition and its place in the outbox are one transaction; it leaves the outbox by
compare-and-set once the sink took its event, or refused it for good. So a kill between the two
has it told after the restart, or by another replica, under the same id: at least once. The
outbox of a rule is a constant beside its status; it holds the youngest transitions only, where a
sink is away for long.

Only the committer's thread calls this, but for `settled`.
"""

from __future__ import annotations

import logging
import time as clock
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from . import background
from .alerts import REMEMBERED, Rule, Transition
from .errors import ConstantsDiffer, StoreUnavailable
from .state import Entry
from .store import Store

logger = logging.getLogger("metrics.alerts")

ABANDONED_SECONDS = 5.0
"""How long another process's alert is seen to wait before this one tells it."""
ATTEMPTS = 5
"""Tries of a change while other replicas make theirs."""


class Alert(NamedTuple):
    """A transition of a model's rule, to be told."""

    model: str
    rule: Rule
    transition: Transition

    @property
    def id(self) -> str:
        """The id of its event."""
        return self.transition.id(self.model, self.rule)

    @property
    def attributes(self) -> dict[str, str]:
        """What a Trigger can filter on."""
        return {
            "score": self.rule.score,
            "state": self.transition.state,
            "rule": self.rule.name,
        }


class Outbox:
    """Hands alerts to a sink: at once those that happen here, later those that others left."""

    def __init__(
        self,
        store: Store,
        tell: Callable[[Alert], bool],
        count: background.Count,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        self._store = store
        self._tell = tell
        """Hands an alert to the sink; False where that has no room."""
        self._count = count
        self._now = now
        self._handed: set[str] = set()
        """Ids of alerts that the sink has, or of which it is not known yet in the store."""
        self._settled: deque[Alert] = deque()
        self._seen: dict[str, float] = {}
        """Since when alerts of others have been seen to wait, by id."""

    def settled(self, alert: Alert) -> None:
        """Have an alert leave the outbox soon: the sink needs it no more. Called by any thread."""
        self._settled.append(alert)

    def hand(self, model: str, rules: Sequence[Rule]) -> None:
        """Have the sink hear of what happened to these rules, after what others left of them."""
        state = self._store.read().models.get(model)
        for rule in rules:
            for transition in untold(state.constants if state else {}, rule):
                if not self._hand(Alert(model, rule, transition)):
                    break  # none of a rule overtakes another

    def look(self, rules: Mapping[str, Sequence[Rule]]) -> None:
        """Take over what nobody has told for long, of the rules of these models."""
        now = self._now()
        models = self._store.read().models
        seen: dict[str, float] = {}
        for model, of_model in rules.items():
            for rule in of_model:
                left = untold(models[model].constants, rule) if model in models else ()
                waiting = [each.id(model, rule) for each in left]
                seen |= {id: self._seen.get(id, now) for id in waiting if id not in self._handed}
                if any(now - seen.get(id, now) >= ABANDONED_SECONDS for id in waiting):
                    self.hand(model, (rule,))
        self._seen = seen

    def settle(self, now: float) -> None:
        """Take from the outbox what the sink needs no more. Raises StoreUnavailable."""
        while self._settled:
            alert = self._settled.popleft()
            try:
                self._remove(alert, now)
            except StoreUnavailable:
                self._settled.appendleft(alert)
                raise
            except Exception as error:  # a bug; the alert is told again after a restart
                background.report("alerts", error, self._count)

    def _remove(self, alert: Alert, now: float) -> None:
        name = constant(alert.rule)
        for _ in range(ATTEMPTS):
            state = self._store.read().models.get(alert.model)
            constants = state.constants if state else {}
            known = untold(constants, alert.rule)
            left = [list(each) for each in known if each.number != alert.transition.number]
            if len(left) == len(known):
                break
            change = Entry(
                *(alert.model, b"", (), {}),
                constants={name: left},
                replaces={name: constants.get(name)},
            )
            try:
                self._store.commit([change], now)
                break
            except ConstantsDiffer:
                continue  # another replica was faster
        else:
            raise StoreUnavailable("contended", "other replicas kept changing the outbox")
        self._handed.discard(alert.id)

    def close(self, now: float) -> None:
        """`settle` for the last time, when the committer's thread has ended."""
        try:
            self.settle(now)
        except StoreUnavailable as error:
            logger.warning("%d alerts will be told again: %s", len(self._settled), error)

    def _hand(self, alert: Alert) -> bool:
        """Hand an alert to the sink unless it has it; tells whether it has."""
        if alert.id in self._handed:
            return True
        try:
            taken = self._tell(alert)
        except Exception as error:  # a bug; it stays in the outbox
            background.report("alerts", error, self._count)
            return False
        if taken:
            self._handed.add(alert.id)
        return taken


def constant(rule: Rule) -> str:
    """The name of the constant that is the outbox of a rule."""
    return f"{rule.constant} untold"


def untold(constants: Mapping[str, Any], rule: Rule) -> tuple[Transition, ...]:
    """The transitions of a rule in the outbox, the oldest first; none where it is broken."""
    try:
        found = tuple(Transition(*each) for each in constants.get(constant(rule)) or ())
    except TypeError:
        return ()
    return tuple(each for each in found if type(each.number) is int and type(each.digest) is str)


def with_one_more(constants: Mapping[str, Any], rule: Rule, transition: Transition) -> list[Any]:
    """The outbox of a rule, as its constant holds it, once it has this transition, too."""
    return [list(each) for each in (*untold(constants, rule), transition)][-REMEMBERED:]
