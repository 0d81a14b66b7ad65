"""State -> Prometheus: a collector (client_python's custom collectors), never instrumentation.

Families are listed in docs/reference/series.md. The ancestor's are last: they keep its labels and
its counting rule, in which a correct multiclass row is also a true negative of its own class.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from . import __version__
from .alerts import FIRING, status_of
from .counters import Labels, Number, Vector, superseded, value
from .evaluators.user_metrics import BUCKETS, is_exposed
from .exact import real, shown
from .families import Blocks, Families, Part, append, blocks_of
from .joins import DELAYS
from .model_settings import ModelSettings
from .scores.classification import Counts
from .scores.coverage import HALVES, halves
from .scores.view import ALL, Scored, naming, score_vector, segments_of, task_of, vector_of
from .series_cap import (
    ANCESTOR,
    CLASSES,
    CONFUSION,
    OUTPUTS,
    PARTS,
    ROUTES,
    SEGMENTS,
    TOTALS,
    USER,
    Sizes,
    choose,
    sizes,
)
from .state import ModelState
from .windows import Window

if TYPE_CHECKING:
    from .app import App

logger = logging.getLogger("metrics.exposition")

MODEL_LABELS = ("deployment_namespace", "deployment_name", "predictor_name", "model_name")
UNKNOWN_LABEL = "NOT_IMPLEMENTED"
"""What the ancestor's labels read where nothing is known."""

_SUMS = (
    ("log_loss", "log_loss", "Sum over rows of the log loss, natural logarithm."),
    ("brier", "brier_score", "Sum over rows of the Brier score."),
    ("probability_rows", "probability_rows", "Rows whose prediction was a probability."),
    ("subset_hits", "subset_hits", "Rows whose labels were all right (multilabel)."),
)
_OUTPUT_SUMS = (
    ("targets", "targets", "Numbers predicted (regression): rows, for each output."),
    ("absolute_error", "absolute_error", "Sum over rows of the absolute error."),
    ("squared_error", "squared_error", "Sum over rows of the squared error."),
)


class FeedbackCollector(Collector):
    """Yields every family of one app; `created` adds the series' birth times (OpenMetrics)."""

    def __init__(self, app: App, created: bool) -> None:
        self._app = app
        self._created = created

    def describe(self) -> Iterable[Metric]:
        """Nothing: families are not known before they are collected."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families as of now; models whose state cannot be shown are left out."""
        app, now = self._app, self._app.now()
        models, omitted = _chosen(app, app.read().models)

        def render(model: str, found: tuple[ModelState, Parts]) -> Families:
            own = Families(self._created)
            _add_model(own, app, model, *found, now)
            return own

        families = Families(self._created)
        for _, own in app.isolation.each(models.items(), render):
            families.merge(own)
        _add_server(families, app, omitted)
        yield from families


def _add_model(
    families: Families, app: App, model: str, state: ModelState, parts: Parts, now: float
) -> None:
    labels = dict(zip(MODEL_LABELS, model.split("/"), strict=False))
    settings = app.models.of(model)
    scored = score(state, settings, None, now)
    created = _created(state)
    vector = state.all_time
    if TOTALS not in parts:
        return

    def count(name: str, help: str, number: Number, **more: str) -> None:
        families.counter(f"feedback_{name}", help, {**labels, **more}, number, created)

    help = "Feedback events by what became of them; a duplicate counts nothing else."
    for outcome, family in (
        ("accepted", "events"),
        ("duplicate", "duplicates"),
        ("rejected", "rejected"),
    ):
        count("events", help, value(vector, family), outcome=outcome)
    if created:
        help = "Time of the model's first event, since which its counters count."
        families.gauge("feedback_model_created_timestamp_seconds", help, labels, created)
    for rule in settings.alerts:
        families.gauge(
            "feedback_alert_firing",
            "Whether a rule of the model's fires.",
            {**labels, "rule": rule.name, "score": rule.score, "window": rule.window},
            float(status_of(state.constants, rule).state == FIRING),
        )
    if not HALVES.isdisjoint(vector):
        _add_halves(families, count, labels, vector)
        if not scored.events:  # zeros, so that `increase` sees the first rows
            _add_rows(count, scored)
    if not scored.events:
        return
    added, taken = superseded(vector)
    scored_ever = scored.of(added) if taken else scored
    if taken or app.settings.corrections:
        _add_counts(count, "superseded_", scored_ever, scored.of(taken), parts)
    _add_counts(count, "", scored_ever, scored_ever, parts)
    segments = segments_of(state) if SEGMENTS in parts else ()
    _add_scores(families, labels, state, settings, scored, segments, now)
    last = state.gauges.get(("last_event", ()))
    if last is not None:
        families.gauge(
            "feedback_last_event_timestamp_seconds",
            "Time of the youngest event.",
            labels,
            last.value,
        )
    if USER in parts:
        _add_user_metrics(families, labels, state, created)
    if ANCESTOR in parts:
        _add_ancestors(families, app, model, state, scored_ever, created)


def _add_halves(families: Families, count: Any, labels: dict[str, str], vector: Vector) -> None:
    """Predictions and truths that came by themselves, and how long the truths took."""
    for family in ("predictions", "truths"):
        half = halves(vector, family)
        more = {"half": family[:-1]}
        for fate, help in (
            ("arrived", "Halves of feedback that came by themselves, to be joined."),
            ("joined", "Halves of feedback that met the other one."),
            ("unjoined", "Halves of feedback whose time was over before the other one came."),
            ("dropped", "Halves of feedback forgotten before their time, for want of room."),
            ("replaced", "Halves of feedback in whose place another of the request came."),
        ):
            count(f"halves_{fate}", help, getattr(half, fate), **more)
        help = "Halves of feedback that wait for the other one."
        families.gauge("feedback_halves_waiting", help, labels | more, half.waiting)
    count(
        "corrected_events", "Events whose truth took another's place.", value(vector, "corrected")
    )
    seen = 0.0
    buckets = []
    for bound in (*map(str, DELAYS), "+Inf"):
        seen += value(vector, "truth_delay_bucket", bound)
        buckets.append((bound if bound == "+Inf" else f"{bound}.0", seen))
    total = real(vector, "truth_delay_sum")
    help = "Seconds from a prediction to its truth."
    families.histogram("feedback_truth_delay_seconds", help, labels, buckets, total)


def _add_rows(count: Any, scored: Scored) -> None:
    count("rows", "Rows compared with their truth.", scored.rows)
    count("late_events", "Events too old for every window.", value(scored.vector, "late"))


def _add_counts(count: Any, prefix: str, known: Scored, scored: Scored, parts: Parts) -> None:
    """What ratios are made of; with a prefix, of what corrections took back.

    `known` says which series there are, `scored` has the numbers: what nothing was taken back of
    is exposed as 0, so that `increase` sees the first correction.
    """
    vector = scored.vector
    again = " Of what corrections took back." if prefix else ""

    def add(name: str, help: str, number: Number, **more: str) -> None:
        count(prefix + name, help + again, number, **more)

    _add_rows(add, scored)
    _add_sums(add, known.vector, vector, len(known.outputs), parts)
    if known.task == "regression":  # its first rows may have been counted as classes
        return
    if known.task in ("binary", "multiclass"):
        help = "Rows whose predicted class was the true one."
        add("correct_rows", help, sum(vector.get("true_positives", {}).values()))
    counts = {each.name: each for each in scored.classes}
    classes = [each.name for each in known.classes] if {CLASSES, CONFUSION} & parts else []
    for label in classes if CLASSES in parts else ():
        each = counts.get(label) or Counts(label, 0, 0, 0, scored.rows)
        for name, number in (
            ("true_positives", each.hits),
            ("false_positives", each.alarms),
            ("false_negatives", each.misses),
            ("true_negatives", each.rejections),
        ):
            kind = name.replace("_", " ").capitalize()
            add(name, f"{kind} of the class against the rest.", number, **{"class": label})
    if CONFUSION in parts:
        for truth in classes:
            for prediction in classes:
                add(
                    "confusion",
                    "Rows by truth and prediction.",
                    scored.confusion.get((truth, prediction), 0),
                    truth=truth,
                    prediction=prediction,
                )


def _add_sums(count: Any, known: Vector, vector: Vector, outputs: int, parts: Parts) -> None:
    """Sums from which PromQL can make ratios; those in `known`, with their numbers in `vector`."""
    for family, name, help in _SUMS:
        if family in known:
            count(name, help, shown(family, value(vector, family)))
    for family, name, help in _OUTPUT_SUMS:
        if outputs > 1 and OUTPUTS not in parts:
            break
        for labels in sorted(known.get(family, {})):
            more = {"output": labels[0]} if outputs > 1 else {}
            count(name, help, shown(family, value(vector, family, *labels)), **more)
    for labels in sorted(known.get("rewards", {})):
        if labels and ROUTES not in parts:
            continue
        more = {"route": labels[0]} if labels else {}
        name = "route_reward" if labels else "reward"
        of = "a route's rewards" if labels else "rewards"
        count(f"{name}s", f"Number of {of}.", value(vector, "rewards", *labels), **more)
        count(
            f"{name}_positive",
            f"Sum of {of} above 0.",
            real(vector, "reward_positive", *labels),
            **more,
        )
        count(
            f"{name}_negative",
            f"Sum of the magnitudes of {of} below 0.",
            real(vector, "reward_negative", *labels),
            **more,
        )


def _add_scores(
    families: Families,
    labels: dict[str, str],
    state: ModelState,
    settings: ModelSettings,
    scored: Scored,
    segments: Iterable[str],
    now: float,
) -> None:
    help = "A score of the model over a window; derived, so do not rate() it."

    def add(scored: Scored, window: str, more: dict[str, str]) -> None:
        for name, number in scored.scores.items():
            sample = {**labels, "score": name, "window": window, **more}
            families.gauge("feedback_score", help, sample, number)
        families.gauge(
            "feedback_score_rows",
            "Rows behind the scores of a window.",
            {**labels, "window": window, **more},
            scored.rows,
        )

    for segment in ("", *segments):
        more = {"segment": segment} if segment else {}
        whole = score(state, settings, None, now, segment) if segment else scored
        add(whole, ALL, more)
        for window in settings.windows:
            add(score(state, settings, window, now, segment), window.name, more)


def score(
    state: ModelState,
    settings: ModelSettings,
    window: Window | None,
    now: float,
    segment: str = "",
) -> Scored:
    """The scores of one model over one window, or of all time where it is None."""
    vector = vector_of(state, window, now, segment)
    return score_vector(vector, task_of(state, settings), settings, naming(state, settings))


def _add_user_metrics(
    families: Families, labels: dict[str, str], state: ModelState, created: float
) -> None:
    vector = state.all_time
    help = "A metric of the user's, from truth.meta.metrics or a custom class."
    for name, tags, number in _user_series(vector.get("user_counters", {}), "COUNTER"):
        families.counter(name, help, labels | tags, shown("user_counters", number), created)
    gauges = {key: gauge for (family, key), gauge in state.gauges.items() if family == USER_GAUGES}
    by_age = {key: gauges[key].value for key in sorted(gauges, key=lambda key: gauges[key].time)}
    for name, tags, number in _user_series(by_age, "GAUGE"):
        families.gauge(name, help, labels | tags, number)
    cells: dict[Labels, Number] = {}
    for (name, bound, *flat), number in vector.get("user_timers_bucket", {}).items():
        key = (name, bound, *_said(flat))
        cells[key] = cells.get(key, 0) + number
    for name, tags, total in _user_series(vector.get("user_timers_sum", {}), "TIMER"):
        seen = 0.0
        buckets: list[tuple[str, float]] = []
        flat = [text for pair in tags.items() for text in pair]
        for bound in (*map(repr, BUCKETS), "+Inf"):
            seen += cells.get((name, bound, *flat), 0)
            buckets.append((bound, seen))
        families.histogram(name, help, labels | tags, buckets, shown("user_timers_sum", total))


USER_GAUGES = "user_gauges"


def _user_series(
    cells: Mapping[Labels, Number], kind: str
) -> Iterator[tuple[str, dict[str, str], Number]]:
    """Name, tags and number of each series that may be exposed, in order.

    To Prometheus a tag without a value is none: series that differ in such tags only are one, whose
    number is the sum of theirs, and of gauges the last.
    """
    found: dict[Labels, Number] = {}
    for (name, *flat), number in cells.items():
        key = (name, *_said(flat))
        if is_exposed(name, kind, key[1:]):
            found[key] = number if kind == "GAUGE" else found.get(key, 0) + number
    for (name, *flat), number in sorted(found.items()):
        yield name, dict(zip(flat[::2], flat[1::2], strict=True)), number


def _said(flat: list[str]) -> list[str]:
    """Tags and values in turn, without those that have none."""
    if len(flat) % 2:
        return flat
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return [text for tag, value in pairs if value for text in (tag, value)]


def _add_ancestors(
    families: Families,
    app: App,
    model: str,
    state: ModelState,
    scored: Scored,
    created: float,
) -> None:
    """The ancestor's four families, by its rule; HELP says how they differ from ours."""
    parts = dict(
        zip(
            ("namespace", "inferenceservicename", "endpoint", "modelid"),
            model.split("/"),
            strict=True,
        )
    )
    parts.update(dict.fromkeys(state.constants.get("unnamed", ()), UNKNOWN_LABEL))
    image, _, version = app.settings.model_image.rpartition(":")
    image, version = (image, version) if image else (version, "")
    labels = {
        "deployment_name": parts["inferenceservicename"],
        "model_name": parts["modelid"],
        "model_image": image or UNKNOWN_LABEL,
        "model_version": version or UNKNOWN_LABEL,
        "predictor_name": parts["endpoint"],
        "predictor_version": UNKNOWN_LABEL,
        "seldon_deployment_name": parts["inferenceservicename"],
        "image_name": image or UNKNOWN_LABEL,
        "image_version": version or UNKNOWN_LABEL,
        "seldon_deployment_namespace": parts["namespace"],
        "method": app.settings.event_type,
    }
    vector = state.all_time
    cells: dict[str, list[tuple[dict[str, str], Number]]]
    if scored.task == "binary":
        positive = str(app.models.of(model).positive)
        negative = str(1 - int(positive))
        cells = {
            "true_positive": [({}, value(vector, "true_positives", positive))],
            "true_negative": [({}, value(vector, "true_positives", negative))],
            "false_positive": [({}, value(vector, "false_positives", positive))],
            "false_negative": [({}, value(vector, "false_negatives", positive))],
        }
    else:
        keys = sorted(
            {
                key
                for family in ("true_positives", "false_negatives", "false_positives")
                for (key,) in vector.get(family, {})
            },
            key=scored.naming.order,
        )
        cells = {
            name: [({"class": f"CLASS_{key}"}, value(vector, family, key)) for key in keys]
            for name, family in (
                ("true_positive", "true_positives"),
                ("true_negative", "true_positives"),
                ("false_positive", "false_positives"),
                ("false_negative", "false_negatives"),
            )
        }
    for name, samples in cells.items():
        for more, number in samples:
            families.counter(
                f"seldon_metric_{name}",
                "Seldon's counting rule: a right row of several classes adds to true positive and "
                "true negative of its class. Right for every class: feedback_true_positives_total.",
                {**more, **labels},
                number,
                created,
            )


def _created(state: ModelState) -> float:
    """When the model came to be, epoch seconds."""
    return float(state.constants.get("created", 0.0))


def _add_server(families: Families, app: App, omitted: Mapping[str, int]) -> None:
    stats = app.stats
    families.histogram(
        "feedback_commit_seconds",
        "Duration of a commit to the store.",
        {},
        *stats.commit_seconds(),
    )
    families.histogram(
        "feedback_commit_batch_events",
        "Events that shared a commit.",
        {},
        *stats.batch_events(),
    )
    families.gauge("feedback_queue_events", "Events that wait for a commit.", {}, stats.queue())
    families.gauge("feedback_store_ready", "1 while the store can commit.", {}, float(app.ready))
    for kind, number in stats.errors().items():
        families.counter(
            "feedback_store_errors",
            "Commits that failed, by kind.",
            {"kind": kind},
            number,
            stats.started,
        )
    for part, number in stats.internal_errors().items():
        families.counter(
            "feedback_internal_errors",
            "Unforeseen errors that were logged and survived, by part of the program.",
            {"part": part},
            number,
            stats.started,
        )
    for reason, number in stats.ignored_events().items():
        families.counter(
            "feedback_ignored_events",
            "Events that were answered 202 and not counted, by why their type is not taken.",
            {"reason": reason},
            number,
            stats.started,
        )
    if app.sink is not None:
        for outcome, number in stats.sink_events().items():
            families.counter(
                "feedback_sink_events",
                "Metrics events for the sink, by what became of them.",
                {"outcome": outcome},
                number,
                stats.started,
            )
    if app.settings.pushgateway:
        for outcome, number in stats.pushes().items():
            families.counter(
                "feedback_pushes",
                "Pushes to the Pushgateway, by what became of them.",
                {"outcome": outcome},
                number,
                stats.started,
            )
    families.counter(
        "feedback_store_losses",
        "Times the store was found to have lost commits, or its file to be gone.",
        {},
        app.store.losses,
        stats.started,
    )
    families.counter(
        "feedback_models_unavailable",
        "Answers that a model was left out of, since its stored state cannot be read.",
        {},
        stats.omissions(),
        stats.started,
    )
    for part in PARTS:
        families.gauge(
            "feedback_series_omitted",
            "Series of models that are not exposed, for FEEDBACK_MAX_SERIES; at most.",
            {"part": part},
            float(omitted.get(part, 0)),
        )
    families.gauge(
        "feedback_seen_ids", "Event ids remembered for deduplication.", {}, app.store.seen()
    )
    families.gauge(
        "feedback_state_restored_timestamp_seconds",
        "Time this server read its state from the store.",
        {},
        stats.started,
    )
    families.gauge("feedback_build_info", "The version that serves.", {"version": __version__}, 1.0)


def render(app: App, accept: str) -> tuple[bytes, str]:
    """The exposition and its content type: Prometheus text, or OpenMetrics where accepted.

    The same text as client_python makes of `FeedbackCollector`. Each model is encoded by itself
    and kept until it changes, so that a scrape costs what has changed and not what there is.
    """
    created = prefers_openmetrics(accept)
    encode, content_type = choose_encoder(OPENMETRICS if created else "")
    now = app.now()
    kept = _kept_of(app)
    known = kept.encoded[created]
    blocks: dict[bytes, list[bytes]] = {}  # HELP and TYPE of a family -> samples
    taken: set[bytes] = set()
    models, omitted = _chosen(app, app.read().models)
    for gone in known.keys() - models.keys():
        known.pop(gone, None)  # another thread may have been first

    def of_model(model: str, found: tuple[ModelState, Parts]) -> Blocks:
        state, parts = found
        settings = app.models.of(model)
        panes = tuple(int(now // window.width) for window in settings.windows)
        entry = known.get(model)
        if entry is None or entry[0] is not state or entry[1:4] != (settings, panes, parts):
            families = Families(created)
            _add_model(families, app, model, state, parts, now)
            text = blocks_of(encode(Part(families)))
            entry = known[model] = (state, settings, panes, parts, text)
        return entry[4]

    for _, found in app.isolation.each(models.items(), of_model):
        append(blocks, taken, found)
    families = Families(created)
    _add_server(families, app, omitted)
    append(blocks, taken, blocks_of(encode(Part(families))))
    parts = [part for head, bodies in blocks.items() for part in (head, *bodies)]
    if created:
        parts.append(b"# EOF\n")
    return b"".join(parts), content_type


Parts = frozenset[str]


@dataclass
class _Kept:
    """What is kept of an app's exposition from one scrape to the next, by model."""

    encoded: dict[
        bool, dict[str, tuple[ModelState, ModelSettings, tuple[int, ...], Parts, Blocks]]
    ] = field(default_factory=lambda: {False: {}, True: {}})
    """By format: there are two, whatever versions and parameters clients ask for."""
    sizes: dict[str, tuple[ModelState, ModelSettings, Sizes]] = field(default_factory=dict)
    warned: bool = False
    """Whether it was logged that series are omitted."""


_kept: WeakKeyDictionary[App, _Kept] = WeakKeyDictionary()


def _kept_of(app: App) -> _Kept:
    return _kept.setdefault(app, _Kept())


def _chosen(
    app: App, states: Mapping[str, ModelState]
) -> tuple[dict[str, tuple[ModelState, Parts]], Mapping[str, int]]:
    """The models by id with what is exposed of them, and how many series are not, by part.

    Models whose state cannot be read are left out.
    """
    kept = _kept_of(app)
    for gone in kept.sizes.keys() - states.keys():
        kept.sizes.pop(gone, None)

    def of_model(model: str, state: ModelState) -> tuple[float, Sizes]:
        settings = app.models.of(model)
        entry = kept.sizes.get(model)
        if entry is None or entry[0] is not state or entry[1] != settings:
            confusion = app.settings.confusion_classes
            found = sizes(model, state, settings, confusion, app.settings.corrections)
            entry = kept.sizes[model] = (state, settings, found)
        return _created(state), entry[2]

    known = dict(app.isolation.each(sorted(states.items()), of_model))
    parts, omitted = choose(known, app.settings.max_series)
    if omitted and not kept.warned:
        logger.warning(
            "%d series are not exposed; FEEDBACK_MAX_SERIES is %d",
            sum(omitted.values()),
            app.settings.max_series,
        )
    kept.warned = bool(omitted)
    return {model: (states[model], parts[model]) for model in known}, omitted


OPENMETRICS = "application/openmetrics-text; version=1.0.0"
_VERSION = re.compile(r"1\.[0-9]{1,3}(\.[0-9]{1,3})?")


def prefers_openmetrics(accept: str) -> bool:
    """Whether an Accept header asks for OpenMetrics 1.x at least as much as for plain text."""
    most = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for accepted in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in accepted.split(";"))
        if kind not in most:
            continue
        said = dict(each.split("=", 1) for each in parameters if "=" in each)
        if kind != "text/plain" and not _VERSION.fullmatch(said.get("version", "1.0.0")):
            continue
        try:
            quality = float(said.get("q", 1.0))
        except ValueError:
            continue
        most[kind] = max(most[kind], quality)
    return most["application/openmetrics-text"] > 0.0 and (
        most["application/openmetrics-text"] >= most["text/plain"]
    )
