"""Which series are exposed where FEEDBACK_MAX_SERIES are too few for all of them.

A model's series fall into parts, which are exposed whole or not at all. The totals and scores of
all models come first, then the other parts, one after the other; of one part the models with the
fewest series come first, so that a sender that invents labels loses its own series and nobody
else's. All of it follows from the state alone, not from the time or the process: series do not
come and go between scrapes, and replicas expose the same ones.

Series are counted before any is made, by their most: a score that is undefined now counts too.
One whose line is long counts as several, so that the cap is one on bytes as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .counters import NO_LABELS, SUPERSEDED, Vector
from .evaluators.user_metrics import BUCKETS
from .model_settings import ModelSettings
from .scores.coverage import HALVES
from .scores.view import MAX_CLASSES_SHOWN, naming, segments_of, task_of
from .state import ModelState

TOTALS, CLASSES, USER, ANCESTOR = "totals", "classes", "user", "ancestor"
OUTPUTS, ROUTES, SEGMENTS, CONFUSION = "outputs", "routes", "segments", "confusion"
PARTS = (TOTALS, CLASSES, USER, ROUTES, OUTPUTS, ANCESTOR, SEGMENTS, CONFUSION)
"""In the order in which they are admitted."""

LINE_BYTES = 256
"""Length of a line from which a series counts as more than one."""
_LABELS, _ANCESTORS_LABELS = 180, 420
"""Bytes of a line besides what clients name."""
_SCORES = {"regression": 8, "multilabel": 20, "binary": 34, "multiclass": 29}
"""Scores that a task has at most."""
_TOTALS, _HALVES = 18, 40
"""Series of a model besides its scores and rules, and those of halves that are joined."""
_TIMER = len(BUCKETS) + 3

Sizes = Mapping[str, int]
"""Part -> how many series it counts as; parts of none are absent."""


def sizes(
    model: str,
    state: ModelState,
    settings: ModelSettings,
    confusion_classes: int,
    corrections: bool = False,
) -> dict[str, int]:
    """How many series each part of a model counts as; at least as many as it has.

    What corrections took back is exposed, too, where there are any or can be.
    """
    vector, task = state.all_time, task_of(state, settings)
    names = naming(state, settings)
    id = len(model.encode())
    taken = any(family[0] == SUPERSEDED for family in vector)
    twice = 2 if taken or corrections else 1
    windows = 1 + len(settings.windows)
    scores = windows * (_SCORES.get(task, 0) + 1)
    totals = _TOTALS * twice + scores + len(settings.alerts)
    totals += 0 if HALVES.isdisjoint(vector) else _HALVES
    keys = _classes(vector)
    most = settings.max_classes if task == "multilabel" else MAX_CLASSES_SHOWN
    known = {names(key) for key in keys}.union(names.known(most)) if task != "regression" else set()
    length = sum(len(name.encode()) for name in known)
    outputs = len(vector.get("targets", {}))
    routes = [labels[0] for labels in vector.get("rewards", {}) if labels != NO_LABELS]
    segments = segments_of(state)
    found = {
        TOTALS: _weight(totals, totals * id),
        CLASSES: _weight(4 * twice * len(known), 4 * twice * (length + id * len(known))),
        USER: _user(state, id),
        ROUTES: _weight(3 * twice * len(routes), 3 * twice * _bytes(routes, id)),
        OUTPUTS: _weight(3 * twice * outputs, 3 * twice * outputs * id) if outputs > 1 else 0,
        SEGMENTS: _weight(scores * len(segments), scores * _bytes(segments, id)),
    }
    if task == "binary":
        found[ANCESTOR] = _weight(4, 8 * id, _ANCESTORS_LABELS)
    elif task == "multiclass":
        n = 4 * len(keys)
        found[ANCESTOR] = _weight(n, 4 * _bytes(keys, 2 * id), _ANCESTORS_LABELS)
    if task in ("binary", "multiclass") and len(known) <= confusion_classes:
        n = twice * len(known) ** 2
        found[CONFUSION] = _weight(n, n * id + 2 * twice * length * len(known))
    return {part: number for part, number in found.items() if number}


def choose(
    models: Mapping[str, tuple[float, Sizes]], most: int
) -> tuple[dict[str, frozenset[str]], dict[str, int]]:
    """The parts of each model that are exposed, and how many series of each part are not.

    `models` has when each came to be, epoch seconds, and its sizes.
    """
    total = sum(sum(each.values()) for _, each in models.values())
    if total <= most:
        return {model: frozenset(each) for model, (_, each) in models.items()}, {}
    chosen: dict[str, set[str]] = {model: set() for model in models}
    left, omitted = most, dict.fromkeys(PARTS, 0)
    for part in PARTS:
        having = [
            (each[part], created, model)
            for model, (created, each) in models.items()
            if part in each
        ]
        for size, _, model in sorted(having):
            if size <= left and (part == TOTALS or TOTALS in chosen[model]):
                left -= size
                chosen[model].add(part)
            else:
                omitted[part] += size
    return {model: frozenset(parts) for model, parts in chosen.items()}, omitted


def _weight(n: int, said: int, rest: int = _LABELS) -> int:
    """What `n` series count as whose labels hold `said` bytes that clients named."""
    return max(n, (n * rest + said) // LINE_BYTES)


def _bytes(texts: Iterable[str], more: int) -> int:
    return sum(len(text.encode()) + more for text in texts)


def _classes(vector: Vector) -> set[str]:
    """The keys of all classes that were ever counted."""
    families = ("true_positives", "false_negatives", "false_positives")
    return {key for family in families for (key,) in vector.get(family, {})}


def _user(state: ModelState, id: int) -> int:
    """Series of the user's own metrics."""
    vector, n, said = state.all_time, 0, 0
    gauges = [key for family, key in state.gauges if family == "user_gauges"]
    for keys, lines in (
        (vector.get("user_counters", {}), 1),
        (gauges, 1),
        (vector.get("user_timers_sum", {}), _TIMER),
    ):
        n += lines * len(keys)
        said += lines * sum(_bytes(key, 4) + id for key in keys)
    return _weight(n, said)
