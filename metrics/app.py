"""The one flow: decode -> evaluate -> commit (durable when it returns) -> reply.

`App` knows HTTP's and CloudEvents' words but no transport: `post` is `intake` and the committer,
and what it hands back after the commit makes the answer, in whichever thread the host likes.
`post_sync` waits for it. Every error leaves through `problem`.
"""

from __future__ import annotations

import logging
import time as clock
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from os import urandom
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from .committer import Committer, Work
from .config import KSERVE_PREDICTION_TYPE, Settings
from .counters import OTHER, Compact, Increment, merge
from .errors import (
    ConfigurationError,
    FeedbackMetricsError,
    Overloaded,
    Refused,
    TooLarge,
    Unauthorized,
    Unavailable,
    status_of,
)
from .evaluators import Known, evaluate
from .evaluators.user_metrics import load_class
from .events import (
    BATCH,
    Event,
    batch_body,
    binary_headers,
    carried,
    format_time,
    lines_of,
    own_lines,
    read_events,
)
from .joins import IDENTITY, PREDICTION, TRUTH, WHOLE, Case, Joins, prediction_of
from .model_settings import ModelSettings
from .models_file import ModelsFile
from .payload import Feedback, check_label, one_line
from .scores import model_view
from .server_stats import ServerStats
from .state import TAG, Constants, Entry, Gauge, GaugeKey, ModelState, State, home_of
from .store import Store
from .watch import Alert, Watch
from .windows import ALL_TIME, in_segments, place

if TYPE_CHECKING:
    from .identity import Identity
    from .sink import Sink

logger = logging.getLogger("metrics.app")

UNKNOWN = "unknown/unknown/unknown/unknown"
"""Stands for the model of refused events that name none that is known."""

MAX_DETAIL = 160
"""Characters of a problem's reason. With its quotes and non-ASCII the body stays below 768 bytes,
past which base64 overruns the 1024 bytes that eventing's dispatcher has for it."""

LAPSE_RECORDS = 1000
"""Records that one step of housekeeping forgets, about."""

MAX_ORIGINS = 4096
"""Origins of events that are remembered."""

MAX_SEGMENT_VALUES = 50
"""Values of one segment key; further ones count as `__other__`."""

_NAMESPACE, _DEPLOYMENT, _PREDICTOR, _MODEL = IDENTITY
_SHARED = frozenset(IDENTITY)
_LAST_EVENT: GaugeKey = ("last_event", ())
_HIDDEN = frozenset(
    {"scores", "calibration_rows", "calibration_hits", "calibration_confidence", "absolute_errors"}
)
"""Families of histograms, which an emitted event's `increment` leaves out."""


class Origin(NamedTuple):
    """What the extensions that name an event's model say."""

    model: str
    unnamed: list[str]
    """The parts of the model's id that neither they nor a variable name."""
    lines: str
    """The headers that all replies to such events share."""


class Response(NamedTuple):
    """What a host sends back; headers have lower-case names."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    lines: str = ""
    """More headers, ready to be sent."""

    def all_headers(self) -> list[tuple[str, str]]:
        """The headers, and those that are lines."""
        parts = [line.partition(": ") for line in self.lines.splitlines()]
        return [*self.headers, *[(name, text) for name, _, text in parts]]


EMPTY = Response(202, [], b"")

Finish = Callable[[], "Response | None"]
"""Makes an answer after a commit; None where that takes one more commit first."""
Tell = Callable[[Finish], None]
"""Is told how to finish a request, from the committer's thread."""


@dataclass(slots=True)
class Request:
    """The events of one request that are to be committed together, and what each adds."""

    app: App
    tell: Tell
    events: list[Event]
    entries: list[Entry]
    """As they are committed, once they are: the committer may have evaluated some again."""
    batch: bool = False
    answer: Response | None = None
    """The answer, where it is known before."""
    prepared: tuple[Entry, ModelState | None, Response] | None = None
    """The answer to this entry, if its commit leaves this state of its model."""
    verdict: Sequence[bool] | BaseException = ()

    def done(self, verdict: list[bool] | BaseException) -> None:
        """Have it finished: it is committed, or cannot be."""
        self.verdict = verdict
        self.tell(self.finish)

    def finish(self) -> Response | None:
        """The answer; None where that takes one more commit first."""
        return self.answer or self.app.finish(self)


class App:
    """One function: settings, a store, and the flow between them."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        stats: ServerStats | None = None,
        now: Callable[[], float] = clock.time,
    ) -> None:
        self.settings = settings
        self.store = store
        if "." in settings.task:
            load_class(settings.task)
        if settings.corrections and not settings.join_ttl:
            raise ConfigurationError("FEEDBACK_CORRECTIONS: needs FEEDBACK_JOIN_TTL")
        self.models = ModelsFile(settings.models_file, settings.model_settings())
        self.stats = stats or ServerStats()
        self.now = now
        self.joins = self._make_joins() if settings.join_ttl else None
        self.sink = self._open_sink()
        self.identity = self._open_identity()
        self.watch: Watch | None = None
        if settings.models_file:  # the only place that can have rules
            self.watch = Watch(store, self.models.of, self._sink_alert if self.sink else None)
        self.committer = Committer(
            store,
            settings.max_queue,
            self.stats,
            settings.snapshot_interval,
            now,
            self._lapsed if self.joins else None,
            self.watch.after if self.watch else None,
            self.watch.tick if self.watch and settings.sink else None,
        )
        self._defaults = (
            settings.namespace,
            settings.deployment,
            settings.predictor,
            settings.model,
        )
        self._labels: dict[str, dict[str, set[str]]] = {}
        self._origins: dict[tuple[str | None, ...], Origin] = {}
        self._accepted = settings.accept_types
        if self.joins:
            self._accepted += settings.prediction_types
        at_once = settings.sink or settings.snapshot_interval
        self._prepares = settings.reply == "event" and not (at_once or self.watch)
        self._views: dict[str, tuple[ModelState, ModelSettings, bytes]] = {}
        self.before_closing: list[Callable[[], None]] = []
        """Called in `close` when all is committed and the store can still be read."""
        self._processed = 0
        self._logged = 0.0

    def close(self) -> None:
        """Commit what is queued, send the last summaries, and release the store."""
        self.committer.close()
        for each in self.before_closing:
            each()
        if self.sink is not None:
            self.sink.close()
        self.store.close()

    @property
    def ready(self) -> bool:
        """Whether the store can commit. Never waits."""
        return self.committer.healthy

    def read(self) -> State:
        """The state all questions are answered from; refused events of no model are kept apart."""
        return self.store.read()

    def _open_sink(self) -> Sink | None:
        if not self.settings.sink:
            return None
        from .sink import Sink  # its HTTP client is not for those who have no sink

        return Sink(
            self.settings.sink,
            self.settings.sink_interval,
            self.settings.ce_overrides,
            self._summary,
            self.stats,
        )

    def _open_identity(self) -> Identity | None:
        if not self.settings.oidc_audience:
            return None
        from .identity import Identity  # its cryptography is not for those who do not ask

        return Identity(self.settings.oidc_audience, self.settings.oidc_issuer)

    # --- POST / ------------------------------------------------------------------------------

    def may_post(self, headers: Mapping[str, str]) -> bool:
        """Whether who sends these may post events, as far as is known. Never waits."""
        return self.identity is None or self.identity.knows(headers.get("authorization", ""))

    def denied(self, headers: Mapping[str, str]) -> Response | None:
        """The answer to who may not post events; None for who may. May wait for the issuer."""
        try:
            if self.identity is not None:
                self.identity.verify(headers.get("authorization", ""))
        except Exception as error:
            return problem(error)
        return None

    def post(self, headers: Mapping[str, str], body: bytes, tell: Tell) -> Response | None:
        """The answer to `POST /`, or None: then `tell` is told once how to finish it."""
        try:
            request = self.intake(headers, body, tell)
            if not request.entries:
                return EMPTY
            self.committer.submit(request)
            return None
        except Refused as error:
            return self.refuse(error, tell)
        except Exception as error:
            return problem(error)

    def refuse(self, error: Refused, tell: Tell) -> Response | None:
        """As `post`, the answer to an event that can never be counted, which is counted first."""
        answer = problem(error)
        try:
            rejected = [self._rejection(error)]
            self.committer.submit(Request(self, tell, [], rejected, answer=answer))
            return None
        except Unavailable:
            return answer  # no retry can mend the event

    def post_sync(self, headers: Mapping[str, str], body: bytes) -> Response:
        """The answer to `POST /`, for a host that gives each request a thread."""
        return _waited(partial(self.post, headers, body))

    def refuse_sync(self, error: Refused) -> Response:
        """`refuse`, for a host that gives each request a thread."""
        return _waited(partial(self.refuse, error))

    def prepare(self, requests: Sequence[Work], state: State) -> None:
        """Make the answers to requests for the case that their commit leaves this state."""
        if not self._prepares:
            return
        for request in requests:
            assert isinstance(request, Request)
            if not request.batch and request.entries[0].scored:
                (event,), (entry,) = request.events, request.entries
                known = state.models.get(entry.model)
                request.prepared = entry, known, self._reply(event, entry, known)

    def finish(self, request: Request) -> Response | None:
        """The answer once the commit told its verdict."""
        try:
            return self.answer(request, request.verdict)
        except Refused as error:
            return self.refuse(error, request.tell)
        except Exception as error:
            return problem(error)

    def intake(self, headers: Mapping[str, str], body: bytes, tell: Tell) -> Request:
        """Decode and evaluate a request. Raises Refused; nothing is counted yet.

        A batch is taken whole or refused whole; events of types that are not feedback are left
        out.
        """
        if len(body) > self.settings.max_body:
            raise TooLarge("data", f"{len(body)} bytes; at most {self.settings.max_body} are taken")
        events, is_batch = read_events(headers, body)
        request = Request(self, tell, [], [], is_batch)
        arrival = self.now()
        try:
            for event in events:
                if event.type and event.type not in self._accepted:
                    continue
                entry = self._entry(event, arrival)
                request.events.append(event)
                request.entries.append(entry)
        except Refused:
            for entry in request.entries:  # labels of theirs are not in use after all
                self._labels.pop(entry.model, None)
            raise
        return request

    def answer(self, request: Request, verdict: Any) -> Response:
        """The answer once the commit told its verdict. Raises what that is, if it is an error."""
        events, entries = request.events, request.entries
        if isinstance(verdict, BaseException):
            if isinstance(verdict, Refused):
                verdict.model = verdict.model or entries[0].model
            raise verdict
        self._log_processing(len(entries))
        if self.sink is not None:
            for event, entry, new in zip(events, entries, verdict, strict=True):
                if new and entry.scored:
                    self.sink.tell(entry.model, self._attributes(event, entry), entry.increment)
            return EMPTY
        if self.settings.reply == "off":
            return EMPTY
        if request.batch:
            emitted = batch_body(self._emitted_batch(events, entries))
            return Response(200, [("content-type", BATCH)], emitted)
        (event,), (entry,) = events, entries
        state = self._state(entry.model)
        if request.prepared is not None:
            for_entry, for_state, response = request.prepared
            if for_entry is entry and for_state is state:
                return response
        if entry.scored or self._is_joined(entry, verdict[0]):
            return self._reply(event, entry, state)
        return EMPTY

    # --- one event ---------------------------------------------------------------------------

    def _entry(self, event: Event, arrival: float) -> Entry:
        """Decode and evaluate one event under the constants that are known now."""
        model = self._origin(event.extensions).model
        try:
            is_feedback = not event.type or event.type in self.settings.accept_types
            feedback = event.feedback() if is_feedback else prediction_of(event.json())
            request = event.extensions.get("requestid") or feedback.puid
            digest = event.digest
            if request and self.settings.dedup_by == "request":
                digest = _digest(model, request, is_feedback, feedback)
            case = Case(model, digest, event.time, arrival, event.extensions, feedback)
            if self.joins is not None:
                if not request and event.type == KSERVE_PREDICTION_TYPE:
                    request = event.id
                if request and not is_feedback:
                    return self.joins.entry(PREDICTION, case, request, digest[:TAG])
                if request:
                    kind = WHOLE if feedback.prediction else TRUTH
                    return self.joins.entry(kind, case, request, digest[:TAG] or urandom(TAG))
                if not is_feedback or feedback.prediction is None:
                    raise Refused("requestid", "missing; half of feedback is joined by it")
            return self._evaluated(case, self.store.read().constants(model))
        except Refused as error:
            error.model = model
            raise

    def _evaluated(self, case: Case, constants: Constants) -> Entry:
        """What a case adds, under these constants. Raises Refused."""
        model, digest, time, arrival, extensions, feedback = case
        settings = self.models.of(model)
        labels = self._known_labels(model)
        evaluation = evaluate(feedback, settings, Known(constants, labels))
        time = arrival if time is None else min(time, arrival)
        placement = place(time, arrival, settings.windows)
        if placement.late:
            evaluation.vector()["late"] = {(): 1}
        increment = evaluation.increment
        panes = placement.panes
        if settings.segments:
            segments = _segments(extensions, feedback, settings, labels)
            panes = tuple(in_segments(panes, segments))
        self._admit(model, labels, increment)
        unnamed = constants.get("unnamed") or self._origin(extensions).unnamed
        if unnamed:
            evaluation.constants["unnamed"] = unnamed
        gauges = {_LAST_EVENT: Gauge(time, time)}
        for key, value in evaluation.gauges.items():
            gauges[key] = Gauge(value, arrival)
        return Entry(
            model,
            digest,
            panes,
            increment,
            gauges,
            evaluation.constants,
            again=partial(self._evaluated, case),
        )

    def _make_joins(self) -> Joins:
        """What meets the halves of feedback."""
        settings = self.settings
        return Joins(
            settings.join_ttl,
            settings.join_max_bytes,
            settings.join_time == "truth",
            settings.corrections,
            lambda model: self.models.of(model).segments,
            lambda model: "." in self.models.of(model).task,
            self._evaluated,
            lambda model: self._admit(model, self._known_labels(model), {}),
        )

    def _lapsed(self, now: float) -> list[Entry]:
        """What the store need not remember any more; looks at one record if all are young."""
        assert self.joins is not None
        held = self.store.held()
        if not held or not self.joins.lapsed(self.store.oldest(1), held, now):
            return []
        return self.joins.lapsed(self.store.oldest(LAPSE_RECORDS), held, now)

    def _is_joined(self, entry: Entry, new: bool) -> bool:
        """Whether an event without a share in any score is a duplicate of one that has."""
        state = self._state(entry.model)
        return not new and state is not None and "events" in state.all_time

    def _origin(self, extensions: Mapping[str, str]) -> Origin:
        """What an event's extensions say of its model. Raises Refused for an unusable id."""
        get = extensions.get
        given = get(_NAMESPACE), get(_DEPLOYMENT), get(_PREDICTOR), get(_MODEL)
        origin = self._origins.get(given)
        if origin is None:
            parts = [text or default for text, default in zip(given, self._defaults, strict=True)]
            for name, text in zip(IDENTITY, parts, strict=True):
                if "/" in text:
                    raise Refused(f"ce-{name}", f"{one_line(text, 40)!r} has a slash")
                check_label(text, f"ce-{name}")
            model = "/".join(parts)
            unset = zip(IDENTITY, given, self.settings.unset_identity, strict=True)
            unnamed = [name for name, text, variable in unset if variable and not text]
            said = {name: text for name, text in extensions.items() if name in IDENTITY}
            lines = lines_of(binary_headers({**self._shared_attributes(model), **said}))
            if len(self._origins) >= MAX_ORIGINS:
                self._origins.clear()
            origin = self._origins[given] = Origin(model, unnamed, lines)
        return origin

    def _known_labels(self, model: str) -> dict[str, set[str]]:
        """The labels in use of a model's capped families, by kind."""
        labels = self._labels.get(model)
        if labels is None:
            state = self.store.read().models.get(model)
            labels = _labels_in(state.all_time) if state else {}
            if state:
                labels["segment"] = {pane.segment for pane in state.panes if pane.segment}
                for family, key in state.gauges:
                    if family == "user_gauges":
                        labels.setdefault("metric", set()).add("\0".join(key))
        return labels

    def _admit(
        self, model: str, labels: dict[str, set[str]], increment: Increment | Compact
    ) -> None:
        """Take note of new labels, and of a new model. Raises Refused for a model too many."""
        if model not in self._labels:
            if len(self._labels) >= self.settings.max_models:
                known = self.store.read().models
                for gone in [name for name in tuple(self._labels) if name not in known]:
                    del self._labels[gone]
                if len({*self._labels, *known} - {UNKNOWN}) >= self.settings.max_models:
                    logger.warning("a model past FEEDBACK_MAX_MODELS is refused: %s", model)
                    raise Refused("ce-modelid", "FEEDBACK_MAX_MODELS models are served already")
            self._labels[model] = labels
        if isinstance(increment, Compact) and increment.classes() <= labels.setdefault(
            "class", set()
        ):
            return
        for kind, fresh in _labels_in(increment).items():
            known_labels = labels.setdefault(kind, set())
            if kind == "class" and OTHER in fresh and OTHER not in known_labels:
                logger.warning("%s: classes past FEEDBACK_MAX_CLASSES count as __other__", model)
            known_labels |= fresh

    def _rejection(self, error: Refused) -> Entry:
        """An entry that counts a refused event, at its model where that is known."""
        model = error.model if error.model in self.store.read().models else UNKNOWN
        return Entry(model, b"", (ALL_TIME,), {"rejected": {(): 1}})

    def _log_processing(self, events: int) -> None:
        """The ancestor's greppable line, at most once a second."""
        self._processed += events
        moment = clock.monotonic()
        if moment - self._logged >= 1:
            self._logged = moment
            logger.info("PROCESSING Feedback Event. (%d since the last line)", self._processed)
            self._processed = 0

    # --- the emitted event -------------------------------------------------------------------

    def _reply(self, event: Event, entry: Entry, state: ModelState | None) -> Response:
        """The event that answers one event, in binary mode."""
        origin = self._origin(event.extensions)
        if origin.model != entry.model or (self.watch and self.watch.told(entry)):
            attributes, data = self._emitted(event, entry, state)
            return Response(200, binary_headers(attributes), data)
        id = entry.digest.hex() or urandom(16).hex()
        own = own_lines(id, int(self.now()), event.extensions, _SHARED)
        data = self._data(entry.model, entry.increment, state)
        return Response(200, [], data, origin.lines + own)

    def _emitted(
        self, event: Event, entry: Entry, state: ModelState | None
    ) -> tuple[dict[str, str], bytes]:
        """Attributes and data of the event that answers one event: its metrics, or an alert."""
        attributes = self._attributes(event, entry)
        alert = self.watch.told(entry) if self.watch else None
        if alert is not None:
            attributes |= self._alert_attributes(alert)
        return attributes, self._data(entry.model, entry.increment, state)

    def _alert_attributes(self, alert: Alert) -> dict[str, str]:
        """What sets an alert's event apart from a metrics event."""
        return {"id": alert.id, "type": f"{self.settings.event_type}.alert", **alert.attributes}

    def _sink_alert(self, alert: Alert) -> None:
        """Hand an alert to the sink."""
        assert self.sink is not None
        attributes = {
            "source": self.settings.event_source,
            "subject": alert.model,
            "time": format_time(int(alert.transition.time)),
            **dict(zip(IDENTITY, alert.model.split("/"), strict=False)),
            **self._alert_attributes(alert),
        }
        self.sink.alert(alert.id, attributes, self._summary(alert.model, {}))

    def _attributes(self, event: Event, entry: Entry) -> dict[str, str]:
        """Attributes of the metrics event; its id follows from the request's (source, id) only."""
        return {
            "id": entry.digest.hex() or urandom(16).hex(),
            "time": format_time(int(self.now())),
            **self._shared_attributes(entry.model),
            **carried(event.extensions),
        }

    def _shared_attributes(self, model: str) -> dict[str, str]:
        """Those that all events of a model have."""
        source, type = self.settings.event_source, self.settings.event_type
        return {"source": source, "type": type, "subject": model}

    def _emitted_batch(
        self, events: Sequence[Event], entries: Sequence[Entry]
    ) -> list[tuple[dict[str, str], bytes]]:
        """One metrics event per model touched, in the order of their first events."""
        by_model: dict[str, list[tuple[Event, Entry]]] = {}
        for event, entry in zip(events, entries, strict=True):
            if entry.scored:
                by_model.setdefault(entry.model, []).append((event, entry))
        emitted = []
        for model, parts in by_model.items():
            attributes = self._attributes(*parts[0])
            digests = b"".join(entry.digest for _, entry in parts)
            attributes["id"] = blake2b(digests, digest_size=16).hexdigest()
            increment = merge(entry.increment for _, entry in parts)
            emitted.append((attributes, self._data(model, increment, self._state(model))))
            emitted += [
                self._emitted(*part, self._state(model))
                for part in parts
                if self.watch and self.watch.told(part[1])
            ]
        return emitted

    def _state(self, model: str) -> ModelState | None:
        """What is known of a model as of its last commit."""
        return self.store.read().models.get(model)

    def _summary(self, model: str, increment: Increment) -> bytes:
        """The data of an event to the sink."""
        return self._data(model, increment, self._state(model))

    def _data(self, model: str, increment: Increment | Compact, state: ModelState | None) -> bytes:
        """The model's view, which its events share while they find it so, and `increment`."""
        settings = self.models.of(model)
        cached = self._views.get(model)
        if state is None:  # with a snapshot interval, before the first flush
            state = ModelState({}, {}, {})
        if cached is None or cached[0] is not state or cached[1] is not settings:
            now = self.now()
            view = model_view(model, state, settings, now)
            if self.settings.reply_windows:
                view["windows"] = {
                    window.name: model_view(model, state, settings, now, window)
                    for window in settings.windows
                    if window.name in self.settings.reply_windows
                }
            cached = self._views[model] = (state, settings, orjson.dumps(view)[:-1])
        return cached[2] + b',"increment":%b}' % orjson.dumps(readable(increment))


def _waited(begin: Callable[[Tell], Response | None]) -> Response:
    """The answer to what may have to wait for a commit, or two."""
    told: SimpleQueue[Finish] = SimpleQueue()
    answer = begin(told.put)
    while answer is None:
        answer = told.get()()
    return answer


def problem(error: BaseException) -> Response:
    """The answer to a request that failed: `application/problem+json` with a one-line reason.

    Anything unforeseen is a constant text; its traceback goes to the log only.
    """
    status, title = status_of(error)
    headers = [("content-type", "application/problem+json")]
    if status == 500:
        logger.error("unforeseen", exc_info=error)
        detail = "internal error; the log has more"
    else:
        detail = one_line(str(error), MAX_DETAIL)
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": status}
    body["detail"] = detail
    if isinstance(error, Refused) and error.field:
        body["field"] = error.field
    if isinstance(error, Unauthorized):
        headers.append(("www-authenticate", "Bearer"))
    if isinstance(error, Unavailable):
        headers.append(("retry-after", str(error.retry_after)))
    return Response(status, headers, orjson.dumps(body))


def _digest(model: str, request: str, is_feedback: bool, feedback: Feedback) -> bytes:
    """16 bytes that stand for a request and what was said of it, whatever the event's id."""
    said = orjson.dumps(dict(feedback.raw), option=orjson.OPT_SORT_KEYS)
    head = orjson.dumps((home_of(model), request, is_feedback))
    return blake2b(head + said, digest_size=16).digest()


def _segments(
    extensions: Mapping[str, str],
    feedback: Feedback,
    settings: ModelSettings,
    labels: dict[str, set[str]],
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


def _labels_in(vector: Increment | Compact) -> dict[str, set[str]]:
    """The labels of capped families in a vector, by kind."""
    if isinstance(vector, Compact):
        return {"class": vector.classes()}
    found: dict[str, set[str]] = {}
    for family in ("true_positives", "false_negatives", "false_positives"):
        cells = vector.get(family)
        if cells:
            found.setdefault("class", set()).update([labels[0] for labels in cells])
    if "rewards" in vector:
        found["route"] = {labels[0] for labels in vector["rewards"] if labels}
    for family in ("user_counters", "user_timers_sum"):
        if family in vector:
            found.setdefault("metric", set()).update("\0".join(key) for key in vector[family])
    return found


def readable(increment: Increment | Compact) -> dict[str, Any]:
    """An increment as JSON: a number, or objects nested by label; histograms are left out."""
    if isinstance(increment, Compact):
        return increment.shown()
    readable: dict[str, Any] = {}
    for family, cells in increment.items():
        if family in _HIDDEN:
            continue
        for labels, value in cells.items():
            if not labels:
                readable[family] = value
                continue
            at = readable.setdefault(family, {})
            if not isinstance(at, dict):
                at = readable[family] = {"": at}
            for label in labels[:-1]:
                at = at.setdefault(label, {})
            at[labels[-1]] = value
    return readable


__all__ = ["App", "FeedbackMetricsError", "Overloaded", "Response", "problem"]
