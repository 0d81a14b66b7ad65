"""Rules on scores, watched: after every commit, and, for a sink, every second.

The status of a rule is replaced in the store by compare-and-set, in a transaction of its own before
the events that led to it are answered: so of all replicas one tells a transition. In reply mode it
goes with an event, which remembers it by its digest, so that a redelivery is told the same. For a
sink it is put into the outbox by the same transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from . import background
from .alerts import Rule, Status, status_of, step
from .counters import superseded
from .errors import ConstantsDiffer, FeedbackMetricsError
from .model_settings import ModelSettings
from .outbox import Alert, Outbox, constant, with_one_more
from .scores.support import rows_behind
from .scores.view import Scored, naming, score_vector, task_of, vector_of
from .state import Entry, ModelState
from .store import Store

logger = logging.getLogger("metrics.alerts")

ATTEMPTS = 5
"""Tries of a transition while other replicas make theirs, besides one for each rule."""


class Watch:
    """Watches the rules of all models; with an `outbox`, no reply carries what is to be told."""

    def __init__(
        self,
        store: Store,
        settings_of: Callable[[str], ModelSettings],
        count: background.Count,
        outbox: Outbox | None = None,
    ) -> None:
        self._store = store
        self._settings_of = settings_of
        self._count = count
        self._outbox = outbox

    def after(self, entries: Sequence[Entry], now: float) -> None:
        """Watch the models of a commit; its events carry what is to be told, one each at most.

        What finds no event to go with waits for the next one.
        """
        if self._outbox is not None:
            self._outbox.settle(now)
        by_model: dict[str, list[Entry]] = {}
        for entry in entries:
            by_model.setdefault(entry.model, []).append(entry)
        for model, of_model in by_model.items():
            settings = self._settings_of(model)
            if not settings.alerts:
                continue
            state = self._store.read().models.get(model)
            if state is None:
                continue
            carriers = [
                entry for entry in of_model if entry.scored and self.told(entry, state) is None
            ]
            self._watch(model, settings, carriers, now)

    def tick(self, now: float) -> None:
        """Watch all models: time alone can bring a rule to fire, or to be resolved.

        With an outbox: what others left there is told.
        """
        if self._outbox is not None:
            self._outbox.settle(now)
        rules: dict[str, Sequence[Rule]] = {}
        for model in self._store.read().models:
            settings = self._settings_of(model)
            if settings.alerts:
                rules[model] = settings.alerts
                self._watch(model, settings, [], now)
        if self._outbox is not None:
            self._outbox.look(rules)

    def told(self, entry: Entry, state: ModelState | None = None) -> Alert | None:
        """The alert that went with an event, this time or when it came before."""
        if entry.alert is not None:
            alert: Alert = entry.alert
            return alert
        if not entry.digest:
            return None
        state = state or self._store.read().models.get(entry.model)
        if state is None:
            return None
        digest = entry.digest.hex()
        for rule in self._settings_of(entry.model).alerts:
            for transition in status_of(state.constants, rule).recent:
                if transition.digest == digest:
                    return Alert(entry.model, rule, transition)
        return None

    def _watch(
        self, model: str, settings: ModelSettings, carriers: list[Entry], now: float
    ) -> None:
        """Bring the rules of one model up to date; an unforeseen error stops no other's."""
        try:
            self._bring_up(model, settings, carriers, now)
        except FeedbackMetricsError:
            raise
        except Exception as error:
            background.report("alerts", error, self._count)

    def _bring_up(
        self, model: str, settings: ModelSettings, carriers: list[Entry], now: float
    ) -> None:
        for _ in range(ATTEMPTS + len(settings.alerts)):
            state = self._store.read().models.get(model)
            if state is None:
                return
            found = self._step(state, settings, carriers, now)
            if found is None:
                return
            rule, status, carrier = found
            before = status_of(state.constants, rule).transitions
            constants = status.constants(rule)
            if self._outbox is not None and status.transitions > before:
                constants[constant(rule)] = with_one_more(state.constants, rule, status.recent[-1])
            replaces = {name: state.constants.get(name) for name in constants}
            change = Entry(model, b"", (), {}, constants=constants, replaces=replaces)
            try:
                self._store.commit([change], now)
            except ConstantsDiffer:
                continue  # another replica was faster: see what is left to do
            if status.transitions > before:
                alert = Alert(model, rule, status.recent[-1])
                logger.warning(
                    "%s: %s %s: %s is %.6g",
                    model,
                    rule.name,
                    alert.transition.state,
                    rule.score,
                    status.value,
                )
                if self._outbox is not None:
                    self._outbox.hand(model, (rule,))
                elif carrier is not None:
                    carrier.alert = alert
                    carriers.remove(carrier)

    def _step(
        self, state: ModelState, settings: ModelSettings, carriers: Sequence[Entry], now: float
    ) -> tuple[Rule, Status, Entry | None] | None:
        """The next change of a rule that can be made now: its new status, and who tells it."""
        scored: dict[str, Scored] = {}
        for rule in settings.alerts:
            if rule.window not in scored:
                window = next((each for each in settings.windows if each.name == rule.window), None)
                scored[rule.window] = score_vector(
                    vector_of(state, window, now),
                    task_of(state, settings),
                    settings,
                    naming(state, settings),
                )
            of_window = scored[rule.window]
            value = of_window.scores.get(rule.score)
            carrier = carriers[-1] if carriers else None
            digest = carrier.digest.hex() if carrier and self._outbox is None else ""
            before = status_of(state.constants, rule)
            rows = rows_behind(of_window, rule.score)
            data = None
            if rule.seconds and value is not None and rule.crossed(value):
                ever, _ = superseded(state.all_time)
                data = rows_behind(of_window.of(ever), rule.score)
            status = step(rule, before, value, rows, now, digest, data)
            if status is None:
                continue
            if status.transitions > before.transitions and not carrier and self._outbox is None:
                continue  # nobody would hear of it
            return rule, status, carrier
        return None
