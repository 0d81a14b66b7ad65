"""Labels in use, model by model: what the caps on their number are held against.

Whatever clients may say without end, names of classes, segments, models, would fill a memory and a
Prometheus; so each kind has a cap, and what is past it is folded together or refused.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .counters import OTHER, Compact, Increment
from .errors import Refused
from .evaluators.classification import cell
from .model_settings import ModelSettings
from .payload import Feedback, check_label
from .state import GaugeKey, ModelState
from .store import Store

logger = logging.getLogger("metrics.labels")

UNKNOWN = "unknown/unknown/unknown/unknown"
"""Stands for the model of refused events that name none that is known."""

MAX_SEGMENT_VALUES = 50
"""Values of one segment key; further ones count as `__other__`."""

_CLASSES = ("true_positives", "false_negatives", "false_positives")
_METRICS = ("user_counters", "user_timers_sum")
_CAPPED = (*_CLASSES, "confusion", "rewards", *_METRICS)
"""Families whose labels are capped, besides gauges and panes."""

Kinds = dict[str, set[str]]
"""The labels of a model in use, by kind: `class`, `confusion`, `route`, `metric`, `segment`."""


@dataclass(slots=True)
class _Model:
    """What is known of one model's labels."""

    kinds: Kinds = field(default_factory=dict)
    """Those in the store, and those that are reserved."""
    state: ModelState | None = None
    """What `kinds` was derived from."""
    shape: Any = None
    """What can only change with the labels of `state`; None where `kinds` is to be derived."""
    reserved: dict[tuple[str, str], int] = field(default_factory=dict)
    """Kind and label -> how many reservations hold it."""
    reservations: int = 0


@dataclass(slots=True)
class Reservation:
    """The labels of one event that may not be in the store yet, held until it is decided on."""

    _labels: LabelsInUse
    model: str
    held: list[tuple[str, str]]

    def release(self) -> None:
        """Let go of them: they are in the store now, or never will be."""
        self._labels._release(self)


class LabelsInUse:
    """The labels in the store, and those that uncommitted events bring: caps hold for both.

    May be used from several threads.
    """

    def __init__(self, store: Store, max_models: int) -> None:
        self._store = store
        self._max_models = max_models
        self._lock = threading.Lock()
        self._known: dict[str, _Model] = {}

    def of(self, model: str) -> Kinds:
        """Those of a model; not to be changed."""
        state = self._store.read().models.get(model)
        known = self._known.get(model)
        if known is not None and known.state is state and known.shape is not None:
            return known.kinds
        with self._lock:
            return self._derived(model, state).kinds

    def admit(
        self,
        model: str,
        labels: Kinds,
        increment: Increment | Compact,
        segments: Collection[str] = (),
        gauges: Collection[GaugeKey] = (),
    ) -> Reservation | None:
        """Hold the labels of an event, and its model, that are not in the store yet.

        None where all of them are; else what is to be released once the event is committed or
        refused. `labels` is what `of` gave for it. Raises Refused for a model too many.
        """
        known = self._known.get(model)
        settled = known is not None and known.kinds is labels and known.state and not known.reserved
        metrics = _metrics_in(gauges)
        plain = settled and not (segments or metrics) and isinstance(increment, Compact)
        if plain and increment.classes() <= labels.get("class", _NONE):  # type: ignore[union-attr]
            return None  # as of most events
        found = _labels_in(increment)
        if segments:
            found["segment"] = set(segments)
        if metrics:
            found.setdefault("metric", set()).update(metrics)
        if settled:
            for kind, fresh in found.items():
                if not fresh <= labels.get(kind, _NONE):
                    break
            else:
                return None
        with self._lock:
            state = self._store.read().models.get(model)
            known = self._derived(model, state)
            if state is None and not known.reservations:
                self._check_room(model)
            held = [
                (kind, label)
                for kind, fresh in found.items()
                for label in fresh
                if label not in known.kinds.get(kind, _NONE) or (kind, label) in known.reserved
            ]
            if state is not None and not held:
                return None
            self._known[model] = known
            known.reservations += 1
            for kind, label in held:
                known.reserved[kind, label] = known.reserved.get((kind, label), 0) + 1
                in_use = known.kinds.setdefault(kind, set())
                if kind == "class" and label == OTHER and OTHER not in in_use:
                    logger.warning(
                        "%s: classes past FEEDBACK_MAX_CLASSES count as __other__", model
                    )
                in_use.add(label)
        return Reservation(self, model, held)

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            known = self._known[reservation.model]
            known.reservations -= 1
            for each in reservation.held:
                known.reserved[each] -= 1
                if not known.reserved[each]:
                    del known.reserved[each]
                    known.shape = None
            if not known.reservations:
                self._derived(reservation.model, self._store.read().models.get(reservation.model))

    def _derived(self, model: str, state: ModelState | None) -> _Model:
        """What is known of a model in this state; remembered while there is a reason to."""
        known = self._known.get(model) or _Model()
        shape = _shape(state)
        if known.shape is None or shape[:-1] != known.shape[:-1]:
            kinds = _labels_of(state)
            for kind, label in known.reserved:
                kinds.setdefault(kind, set()).add(label)
            known.kinds, known.shape = kinds, shape
        elif state is not None and shape != known.shape:  # panes come and go every few seconds
            held = {label for kind, label in known.reserved if kind == "segment"}
            known.kinds["segment"] = _segments_of(state) | held
            known.shape = shape
        known.state = state
        if state is not None or known.reservations:
            self._known[model] = known
        else:
            self._known.pop(model, None)
        return known

    def _check_room(self, model: str) -> None:
        """Raises Refused where there is no room for one more model."""
        waiting = [name for name, known in self._known.items() if known.reservations]
        if len({*self._store.read().models, *waiting} - {UNKNOWN}) >= self._max_models:
            logger.warning("a model past FEEDBACK_MAX_MODELS is refused: %s", model)
            raise Refused("ce-modelid", "FEEDBACK_MAX_MODELS models are served already")


def segments_of(
    extensions: Mapping[str, str],
    feedback: Feedback,
    settings: ModelSettings,
    labels: Kinds,
) -> list[str]:
    """The segments of an event, `key=value`. Raises Refused for values that are no scalars."""
    found = []
    known = labels.get("segment", _NONE)
    for key in settings.segments:
        value = extensions.get(key)
        where = f"ce-{key}"
        if value is None:
            value, where = feedback.tags.get(key), f"meta.tags.{key}"
        if value is None:
            continue
        if type(value) not in (str, int, float, bool):
            raise Refused(where, "must be a string, a number or a boolean to be a segment")
        text = check_label(value if type(value) is str else str(value).lower(), where)
        segment = f"{key}={text}"
        if segment not in known:
            values = sum(each.startswith(f"{key}=") for each in tuple(known))
            segment = f"{key}={OTHER}" if values >= MAX_SEGMENT_VALUES else segment
        found.append(segment)
    return found


_NONE: frozenset[str] = frozenset()


def _labels_of(state: ModelState | None) -> Kinds:
    """The labels of capped kinds in a model's state."""
    if state is None:
        return {}
    labels = _labels_in(state.all_time)
    labels["segment"] = _segments_of(state)
    labels.setdefault("metric", set()).update(_metrics_in(state.gauges))
    return labels


def _segments_of(state: ModelState) -> set[str]:
    return {pane.segment for pane in state.panes if pane.segment}


def _shape(state: ModelState | None) -> tuple[Any, ...]:
    """Numbers that change with the labels of capped kinds in a model's state."""
    if state is None:
        return ()
    vector = state.all_time
    return (
        *(len(vector.get(family, ())) for family in _CAPPED),
        len(state.gauges),
        state.constants.get("created"),
        len(state.panes),
    )


def _metrics_in(gauges: Iterable[GaugeKey]) -> Collection[str]:
    for family, _ in gauges:
        if family == "user_gauges":
            return {"\0".join(key) for family, key in gauges if family == "user_gauges"}
    return ()


def _labels_in(vector: Increment | Compact) -> Kinds:
    """The labels of capped families in a vector, by kind."""
    if isinstance(vector, Compact):
        return {"class": vector.classes()}
    found: Kinds = {}
    for family in _CLASSES:
        cells = vector.get(family)
        if cells:
            found.setdefault("class", set()).update([labels[0] for labels in cells])
    if "confusion" in vector:
        found["confusion"] = {cell(*labels) for labels in vector["confusion"]}
    if "rewards" in vector:
        found["route"] = {labels[0] for labels in vector["rewards"] if labels}
    for family in _METRICS:
        if family in vector:
            found.setdefault("metric", set()).update("\0".join(key) for key in vector[family])
    return found
