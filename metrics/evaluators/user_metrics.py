"""The user's own metrics: `truth.meta.metrics`, and custom metric classes that return such a list.

`{"key", "type": COUNTER | GAUGE | TIMER, "value", "tags"?}`. Families, labels (name, tag, value,
tag, value, …): user_counters; user_timers_sum, and user_timers_bucket with the bucket's bound
(seconds) after the name. Counters and sums are in units (`exact`). Gauges are the one state that is
not a sum: the last write wins.
"""

from __future__ import annotations

import importlib
import re
from bisect import bisect_left
from functools import cache
from math import isfinite
from typing import Any

from ..counters import LARGEST, Labels
from ..errors import ConfigurationError, Refused
from ..exact import to_units
from ..model_settings import ModelSettings
from ..payload import Feedback, Values, check_label, one_line
from ..urls import shown
from .evaluation import Evaluation, Known

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of a timer's histogram, seconds; the last bucket is +Inf."""

MAX_SERIES = 200
"""Series of user metrics a model may have."""

MAX_TAGS = 10

KINDS = ("COUNTER", "GAUGE", "TIMER")

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,199}")
_RESERVED_NAMES = ("feedback_", "seldon_metric_", "python_", "process_", "__")
_PROMETHEUS_NAMES = ("up", "ALERTS", "ALERTS_FOR_STATE")
_PROMETHEUS_PREFIX = "scrape_"
"""What Prometheus itself stores under these names would be mixed with a sender's numbers."""
_RESERVED_SUFFIXES = ("_bucket", "_sum", "_count", "_created", "_info")
_RESERVED_TAGS = frozenset(
    {
        *("deployment_namespace", "deployment_name", "predictor_name", "model_name"),
        *("le", "quantile"),
        *("exported_job", "exported_instance"),  # what Prometheus makes of job and instance
    }
)


def evaluate(metrics: Any, where: str, evaluation: Evaluation, known: Known) -> None:
    """Add a list of user metrics to `evaluation`. Raises Refused, naming the entry at fault."""
    if not isinstance(metrics, list):
        raise Refused(where, "must be a list of metrics")
    series = known.labels.get("metric", set())
    fresh: set[str] = set()
    for index, metric in enumerate(metrics):
        at = f"{where}[{index}]"
        if not isinstance(metric, dict):
            raise Refused(at, "must be a JSON object with key, type and value")
        kind = metric.get("type", "COUNTER")
        name = _name(metric.get("key"), kind, at)
        tags = _tags(metric.get("tags"), f"{at}.tags")
        number = metric.get("value")
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise Refused(f"{at}.value", "must be a finite number")
        value = float(number)
        if not isfinite(value):
            raise Refused(f"{at}.value", "must be a finite number")
        fact = f"metric {name}"
        known_kind = known.constants.get(fact) or evaluation.constants.setdefault(fact, kind)
        if known_kind != kind:
            raise Refused(f"{at}.type", f"{name} is a {known_kind}, by its first event")
        identity = "\0".join((name, *tags))
        if identity not in series:
            fresh.add(identity)
            if len(series) + len(fresh) > MAX_SERIES:
                raise Refused(at, f"this model has {MAX_SERIES} series of user metrics already")
        _add(evaluation, kind, name, tags, value, at)


def _add(evaluation: Evaluation, kind: str, name: str, tags: Labels, value: float, at: str) -> None:
    if kind == "GAUGE":
        evaluation.gauges["user_gauges", (name, *tags)] = value
        return
    if value < 0:
        raise Refused(f"{at}.value", f"a {kind} must not be negative")
    if not value < LARGEST:
        raise Refused(f"{at}.value", "too large to be added up")
    if kind == "COUNTER":
        _count(evaluation, "user_counters", (name, *tags), to_units(value))
        return
    seconds = value / 1000
    bucket = bisect_left(BUCKETS, seconds)
    bound = repr(BUCKETS[bucket]) if bucket < len(BUCKETS) else "+Inf"
    _count(evaluation, "user_timers_sum", (name, *tags), to_units(seconds))
    _count(evaluation, "user_timers_bucket", (name, bound, *tags), 1)


def _count(evaluation: Evaluation, family: str, labels: Labels, value: int) -> None:
    cells = evaluation.vector().setdefault(family, {})
    cells[labels] = cells.get(labels, 0) + value


def _name(name: Any, kind: Any, at: str) -> str:
    if kind not in KINDS:
        raise Refused(f"{at}.type", "must be COUNTER, GAUGE or TIMER")
    if type(name) is not str:
        raise Refused(f"{at}.key", "must be a string")
    if not _NAME.fullmatch(name):
        raise Refused(f"{at}.key", f"{one_line(name, 40)!r} is no metric name")
    bare: str = name.removesuffix("_total")
    if _is_reserved(name, bare, kind):
        raise Refused(f"{at}.key", f"{name!r} is reserved")
    if not bare:
        raise Refused(f"{at}.key", "'_total' is no metric name")
    return bare


def _is_reserved(name: str, bare: str, kind: str) -> bool:
    """Whether a metric called so, `bare` without _total, is ours or Prometheus', or looks so."""
    return (
        bare in _PROMETHEUS_NAMES
        or name.startswith((*_RESERVED_NAMES, _PROMETHEUS_PREFIX))
        or (kind != "COUNTER" and name.endswith((*_RESERVED_SUFFIXES, "_total")))
    )


def _tags(tags: Any, at: str) -> Labels:
    """(tag, value, tag, value, …), sorted by tag; to Prometheus an empty value is no tag."""
    if not tags:
        return ()
    if type(tags) is not dict or len(tags) > MAX_TAGS:
        raise Refused(at, f"must be a JSON object of at most {MAX_TAGS} tags")
    pairs: list[str] = []
    for tag in sorted(tags):
        if not _is_tag(tag):
            raise Refused(at, f"{one_line(tag, 40)!r} is no label name, or a reserved one")
        value = tags[tag]
        if type(value) not in (str, int, float, bool):
            raise Refused(f"{at}.{tag}", "must be a string, a number or a boolean")
        text = value if type(value) is str else _text(value)
        if text:
            pairs += (tag, check_label(text, f"{at}.{tag}"))
    return tuple(pairs)


def _is_tag(tag: str) -> bool:
    return bool(_NAME.fullmatch(tag)) and not tag.startswith("__") and tag not in _RESERVED_TAGS


def _text(value: Any) -> str:
    return str(value).lower() if type(value) is bool else repr(value)


# --- what a store may hold ------------------------------------------------------------------


def is_stored_name(name: str) -> bool:
    """Whether a name is one of those under which metrics are kept, now or by earlier versions."""
    return bool(_NAME.fullmatch(name)) and not name.startswith(_RESERVED_NAMES)


def is_exposed(name: str, kind: str, tags: Labels) -> bool:
    """Whether a series that a store holds may be exposed: well formed, and nobody else's.

    A store may hold more than is taken today: of earlier versions, imported, or edited by hand.
    """
    try:
        fits = is_stored_name(name) and not _is_reserved(name, name, kind)
        return fits and are_stored_tags(tags)
    except TypeError:  # what is no text at all
        return False


def are_stored_tags(flat: Labels) -> bool:
    """Whether these are tags as they are kept: tag, value, tag, value, …, sorted by tag."""
    tags = flat[::2]
    try:
        return (
            len(flat) == 2 * len(tags)
            and list(tags) == sorted(set(tags))
            and all(_is_tag(tag) for tag in tags)
            and all(check_label(text, "") == text for text in flat[1::2])
        )
    except Refused:
        return False


# --- custom metric classes ------------------------------------------------------------------


@cache
def load_class(path: str) -> Any:
    """An instance of the class at a dotted path. Raises ConfigurationError; never unpickles."""
    if not all(part.isidentifier() for part in path.split(".")):
        raise ConfigurationError(f"task: {shown(path)!r} is no dotted path of a class")
    module, _, name = path.rpartition(".")
    try:
        instance = getattr(importlib.import_module(module), name)()
    except Exception as error:  # whatever the user's module does when it is imported
        raise ConfigurationError(f"task: cannot load the class {path!r}: {error}") from None
    if not callable(getattr(instance, "transform", None)):
        raise ConfigurationError(f"task: {path!r} has no method transform(truth, response)")
    return instance


def evaluate_custom(feedback: Feedback, settings: ModelSettings, known: Known) -> Evaluation:
    """What a class of the user's makes of the event: its metrics, and nothing else.

    Which class that is, settings alone say: a store and an export are others' input.

    The class is called as the ancestor called it: `transform(truth, response, request=None)`
    with nested lists, and returns an object whose `.metrics` is a list of user metrics.
    """
    assert feedback.prediction is not None
    result = load_class(settings.task).transform(
        nested(feedback.truth), nested(feedback.prediction), feedback.raw.get("request")
    )
    evaluation = Evaluation(rows=len(feedback.truth))
    evaluate(getattr(result, "metrics", None) or [], "metrics", evaluation, known)
    return evaluation


def nested(values: Values) -> list[Any]:
    """The values as nested lists, as they came."""
    if not values.width:
        return list(values.flat)
    return [list(values.row(row)) for row in range(len(values))]
