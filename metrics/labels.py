"""Labels in use, model by model: what the caps on their number are held against.

Whatever clients may say without end, names of classes, segments, models, would fill a memory and a
Prometheus; so each kind has a cap, and what is past it is folded together or refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from .counters import OTHER, Compact, Increment
from .errors import Refused
from .evaluators.classification import cell
from .model_settings import ModelSettings
from .payload import Feedback, check_label
from .state import GaugeKey
from .store import Store

logger = logging.getLogger("metrics.labels")

UNKNOWN = "unknown/unknown/unknown/unknown"
"""Stands for the model of refused events that name none that is known."""

MAX_SEGMENT_VALUES = 50
"""Values of one segment key; further ones count as `__other__`."""

Kinds = dict[str, set[str]]
"""The labels of a model in use, by kind: `class`, `confusion`, `route`, `metric`, `segment`."""


class LabelsInUse:
    """The labels that this process knows to be in use, or that its uncommitted events bring."""

    def __init__(self, store: Store, max_models: int) -> None:
        self._store = store
        self._max_models = max_models
        self._known: dict[str, Kinds] = {}

    def of(self, model: str) -> Kinds:
        """Those of a model; its own once it is admitted."""
        labels = self._known.get(model)
        if labels is None:
            state = self._store.read().models.get(model)
            labels = _labels_in(state.all_time) if state else {}
            if state:
                labels["segment"] = {pane.segment for pane in state.panes if pane.segment}
                for family, key in state.gauges:
                    if family == "user_gauges":
                        labels.setdefault("metric", set()).add("\0".join(key))
        return labels

    def admit(
        self,
        model: str,
        labels: Kinds,
        increment: Increment | Compact,
        gauges: Iterable[GaugeKey] = (),
    ) -> None:
        """Take note of new labels, and of a new model. Raises Refused for a model too many."""
        if model not in self._known:
            if len(self._known) >= self._max_models:
                known = self._store.read().models
                for gone in [name for name in tuple(self._known) if name not in known]:
                    del self._known[gone]
                if len({*self._known, *known} - {UNKNOWN}) >= self._max_models:
                    logger.warning("a model past FEEDBACK_MAX_MODELS is refused: %s", model)
                    raise Refused("ce-modelid", "FEEDBACK_MAX_MODELS models are served already")
            self._known[model] = labels
        for family, key in gauges:
            if family == "user_gauges":
                labels.setdefault("metric", set()).add("\0".join(key))
        if isinstance(increment, Compact) and increment.classes() <= labels.setdefault(
            "class", set()
        ):
            return
        for kind, fresh in _labels_in(increment).items():
            known_labels = labels.setdefault(kind, set())
            if kind == "class" and OTHER in fresh and OTHER not in known_labels:
                logger.warning("%s: classes past FEEDBACK_MAX_CLASSES count as __other__", model)
            known_labels |= fresh

    def forget(self, models: Iterable[str]) -> None:
        """Let go of what events brought that are not counted after all."""
        for model in models:
            self._known.pop(model, None)


def segments_of(
    extensions: Mapping[str, str],
    feedback: Feedback,
    settings: ModelSettings,
    labels: Kinds,
) -> list[str]:
    """The segments of an event, `key=value`. Raises Refused for values that are no scalars."""
    found = []
    known = labels.setdefault("segment", set())
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
            known.add(segment)
        found.append(segment)
    return found


def _labels_in(vector: Increment | Compact) -> Kinds:
    """The labels of capped families in a vector, by kind."""
    if isinstance(vector, Compact):
        return {"class": vector.classes()}
    found: Kinds = {}
    for family in ("true_positives", "false_negatives", "false_positives"):
        cells = vector.get(family)
        if cells:
            found.setdefault("class", set()).update([labels[0] for labels in cells])
    if "confusion" in vector:
        found["confusion"] = {cell(*labels) for labels in vector["confusion"]}
    if "rewards" in vector:
        found["route"] = {labels[0] for labels in vector["rewards"] if labels}
    for family in ("user_counters", "user_timers_sum"):
        if family in vector:
            found.setdefault("metric", set()).update("\0".join(key) for key in vector[family])
    return found
