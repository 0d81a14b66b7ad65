"""The one flow: decode -> evaluate -> commit (durable when it returns) -> reply.

`App` knows HTTP's and CloudEvents' words but no transport: `post` is `intake` and the committer,
and what it hands back after the commit makes the answer, in whichever thread the host likes.
`post_sync` waits for it. Every error leaves through `replies.problem`.
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
from typing import TYPE_CHECKING

import orjson

from .background import report
from .committer import Committer, Work
from .config import KSERVE_PREDICTION_TYPE, Settings
from .counters import Packed
from .errors import ConfigurationError, Refused, TooLarge, Unavailable
from .evaluators import Known, evaluate
from .evaluators.classes import check_names
from .evaluators.user_metrics import load_class
from .events import Event, read_events
from .ignored import Ignored
from .isolation import Isolation
from .joins import PREDICTION, TRUTH, WHOLE, Case, Joins, prediction_of
from .labels import UNKNOWN, LabelsInUse, segments_of
from .large_bodies import MIN_BODY, LargeBodies, LargeEvent, LargeFeedback
from .models_file import ModelsFile
from .outbox import Alert, Outbox
from .payload import dump_json
from .replies import EMPTY, Replies, Response, problem
from .server_stats import ServerStats
from .state import TAG, Constants, Entry, Gauge, GaugeKey, ModelState, State, home_of
from .store import Store
from .watch import Watch
from .windows import ALL_TIME, in_segments, place

if TYPE_CHECKING:
    from .identity import Identity
    from .sink import Sink

logger = logging.getLogger("metrics.app")

LAPSE_RECORDS = 1000
"""Records that one step of housekeeping forgets, about."""

PLACES_A_CELL = 8
"""Places of an array that take about as long as one cell."""
WIDE_CELLS = 4096
"""Counters of a model above which its view is made in a thread: about 10 ms."""

MANY_REPLIES = 200
"""Events of a batch whose replies are made in a thread: about 10 ms."""

_LAST_EVENT: GaugeKey = ("last_event", ())

Finish = Callable[[], "Response | None"]
"""Makes an answer after a commit; None where one more will be told: after a commit, or later."""
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
        self.stats = stats or ServerStats()
        self.models = ModelsFile(
            settings.models_file, settings.model_settings(), self.stats.unforeseen
        )
        self.now = now
        self.isolation = Isolation(self.stats.omitted)
        self.labels = LabelsInUse(store, settings.max_models)
        self.replies = Replies(settings, store, self.models, now, self.isolation)
        self.joins = self._make_joins() if settings.join_ttl else None
        self.sink = self._open_sink()
        self.identity = self._open_identity()
        self.outbox: Outbox | None = None
        self.watch: Watch | None = None
        if settings.models_file:  # the only place that can have rules
            if self.sink is not None:
                self.outbox = Outbox(store, self._sink_alert, self.stats.unforeseen)
            self.watch = Watch(store, self.models.of, self.stats.unforeseen, self.outbox)
        self.committer = Committer(
            store,
            settings.max_queue,
            self.stats,
            settings.snapshot_interval,
            now,
            self._lapsed if self.joins else None,
            self.watch.after if self.watch else None,
            self.watch.tick if self.outbox and self.watch else None,
        )
        self.large_bodies = LargeBodies()
        self._ignored = Ignored(settings, self.stats.ignored)
        self._accepted = settings.accept_types
        if self.joins:
            self._accepted += settings.prediction_types
        at_once = settings.sink or settings.snapshot_interval
        self.prepares = settings.reply == "event" and not (at_once or self.watch)
        """Whether answers depend on nothing but the commit, so that `prepare` may make them."""
        self.before_closing: list[Callable[[], None]] = []
        """Called in `close` when all is committed and the store can still be read."""
        self.aside: Callable[[Callable[[], None]], None] | None = None
        """Runs something in a thread, where the host has one for what takes long."""
        self._wide: dict[str, tuple[ModelState | None, bool]] = {}
        self._processed = 0
        self._logged = 0.0

    def close(self) -> None:
        """Commit what is queued, send the last summaries, and release the store."""
        self.large_bodies.interrupt()  # what it does now, nobody waits for any more
        committed = self.committer.close()
        self.large_bodies.close()
        for each in self.before_closing:
            each()
        if self.sink is not None:
            self.sink.close()
        if self.outbox is not None and committed:
            self.outbox.close(self.now())
        if committed:  # else a call of the store is under way that does not return
            self.store.close()

    @property
    def ready(self) -> bool:
        """Whether events are committed: false where the store cannot, or hangs. Never waits."""
        return self.committer.healthy

    @property
    def alive(self) -> bool:
        """Whether events can be committed ever again by this process. Never waits."""
        return self.committer.alive

    def read(self) -> State:
        """The state all questions are answered from; refused events of no model are kept apart.

        Never waits.
        """
        return self.store.read()

    def _open_sink(self) -> Sink | None:
        if not self.settings.sink:
            return None
        from .sink import Sink  # its HTTP client is not for those who have no sink

        return Sink(
            self.settings.sink,
            self.settings.sink_interval,
            self.settings.ce_overrides,
            self.replies.summary,
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
            self.committer.check()
            request = self.intake(headers, body, tell)
            if not request.entries:
                return EMPTY
            try:
                self.committer.submit(request)
            except Exception:
                _release(request.entries)
                raise
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
        for request in requests:
            assert isinstance(request, Request)
            if not request.batch and request.entries[0].scored:
                (event,), (entry,) = request.events, request.entries
                known = state.models.get(entry.model)
                if self.aside is not None and self._is_wide(entry.model, known):
                    continue
                try:
                    request.prepared = entry, known, self.replies.reply(event, entry, known)
                except Exception as error:
                    report("reply", error, self.stats.unforeseen)

    def finish(self, request: Request) -> Response | None:
        """The answer once the commit told its verdict.

        What is counted is never answered with an error that has its sender try again for ever:
        where its reply cannot be made the answer is an empty 202.
        """
        verdict = request.verdict
        if isinstance(verdict, BaseException):
            if not isinstance(verdict, Refused):
                return problem(verdict)
            verdict.model = verdict.model or request.entries[0].model
            return self.refuse(verdict, request.tell)
        if self.aside is not None and request.prepared is None and self._shows_wide(request):
            self.aside(partial(self._finish_aside, request, verdict))
            return None
        return self._answered(request, verdict)

    def _finish_aside(self, request: Request, verdict: Sequence[bool]) -> None:
        """Make an answer that takes long, in a thread of the host's."""
        response = self._answered(request, verdict)
        request.tell(lambda: response)

    def _shows_wide(self, request: Request) -> bool:
        """Whether the answer shows a model of many cells, or very many events."""
        if self.sink is not None or self.settings.reply == "off":
            return False
        if len(request.entries) > MANY_REPLIES:
            return True
        models = self.store.read().models
        return any(self._is_wide(entry.model, models.get(entry.model)) for entry in request.entries)

    def _is_wide(self, model: str, state: ModelState | None) -> bool:
        """Whether a view of this state takes so long that the loop should not wait for it."""
        known = self._wide.get(model)
        if known is None or known[0] is not state:
            known = self._wide[model] = (state, state is not None and _cells(state) > WIDE_CELLS)
        return known[1]

    def _answered(self, request: Request, verdict: Sequence[bool]) -> Response:
        """`answer`; where that fails, the event being counted, an empty 202."""
        try:
            return self.answer(request, verdict)
        except Unavailable as error:
            return problem(error)
        except Exception as error:
            report("reply", error, self.stats.unforeseen)
            return EMPTY

    def intake(self, headers: Mapping[str, str], body: bytes, tell: Tell) -> Request:
        """Decode and evaluate a request. Raises Refused; nothing is counted yet.

        A batch is taken whole or refused whole; events of types that are not feedback are left
        out.
        """
        if len(body) > self.settings.max_body:
            raise TooLarge("data", f"{len(body)} bytes; at most {self.settings.max_body} are taken")
        if len(body) < MIN_BODY:
            return self._taken(*read_events(headers, body), tell)
        with self.large_bodies.reading(headers, body, self.joins is not None) as (events, is_batch):
            return self._taken(events, is_batch, tell)

    def _taken(self, events: Sequence[Event], is_batch: bool, tell: Tell) -> Request:
        """The events of a request, evaluated. Raises Refused."""
        request = Request(self, tell, [], [], is_batch)
        arrival = self.now()
        ignored = []
        try:
            for event in events:
                if event.type and event.type not in self._accepted:
                    ignored.append(event.type)
                    continue
                entry = self._entry(event, arrival)
                request.events.append(event)
                request.entries.append(entry)
        except Exception:
            _release(request.entries)
            raise
        if ignored:
            self._ignored.note(ignored)
        return request

    def answer(self, request: Request, verdict: Sequence[bool]) -> Response:
        """The answer to what is committed; `verdict` tells which entries were new."""
        events, entries = request.events, request.entries
        self._log_processing(len(entries))
        if self.sink is not None:
            for event, entry, new in zip(events, entries, verdict, strict=True):
                if new and entry.scored:
                    self.sink.tell(
                        entry.model, self.replies.attributes(event, entry), entry.increment
                    )
            return EMPTY
        if self.settings.reply == "off":
            return EMPTY
        if request.batch:
            return self.replies.batch(events, entries, self._told)
        (event,), (entry,) = events, entries
        state = self.store.read().models.get(entry.model)
        if request.prepared is not None:
            for_entry, for_state, response = request.prepared
            if for_entry is entry and for_state is state:
                return response
        if entry.scored or self._is_joined(entry, verdict[0]):
            return self.replies.reply(event, entry, state, self._told(entry))
        return EMPTY

    # --- one event ---------------------------------------------------------------------------

    def _entry(self, event: Event, arrival: float) -> Entry:
        """Decode and evaluate one event under the constants that are known now."""
        model = self.replies.origin(event.extensions).model
        try:
            is_feedback = not event.type or event.type in self.settings.accept_types
            if is_feedback:
                feedback = event.feedback()
            else:
                feedback = prediction_of(event.json(), event.budget)
                if isinstance(event, LargeEvent):
                    feedback.raw = event.place.raw("response")
            request = event.extensions.get("requestid") or feedback.puid
            digest = event.digest
            if request and self.settings.dedup_by == "request":
                if isinstance(event, LargeEvent):
                    said = event.said()
                else:
                    said = dump_json(dict(feedback.raw), "data", orjson.OPT_SORT_KEYS)
                digest = _digest(model, request, is_feedback, said)
            case = Case(model, digest, event.time, arrival, event.extensions, feedback)
            if self.joins is not None:
                half = feedback.prediction or feedback.truth
                if half.names:
                    known = Known(self.store.read().constants(model))
                    check_names(half, self.models.of(model), known)
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
        labels = self.labels.of(model)
        known = Known(constants, labels)
        if type(feedback) is LargeFeedback:
            evaluation = feedback.evaluate(settings, known)
        else:
            evaluation = evaluate(feedback, settings, known)
        time = arrival if time is None else min(time, arrival)
        placement = place(time, arrival, settings.windows)
        if placement.late:
            evaluation.vector()["late"] = {(): 1}
        increment = evaluation.increment
        panes = placement.panes
        segments: Sequence[str] = ()
        if settings.segments:
            segments = segments_of(extensions, feedback, settings, labels)
            panes = tuple(in_segments(panes, segments))
        reserved = self.labels.admit(model, labels, increment, segments, evaluation.gauges)
        unnamed = constants.get("unnamed") or self.replies.origin(extensions).unnamed
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
            reserved=reserved,
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
            lambda model: self.labels.admit(model, self.labels.of(model), {}),
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
        state = self.store.read().models.get(entry.model)
        return not new and state is not None and "events" in state.all_time

    def _told(self, entry: Entry) -> Alert | None:
        """The alert that the reply to an event is to tell, if any."""
        return self.watch.told(entry) if self.watch else None

    def _sink_alert(self, alert: Alert) -> bool:
        """Hand an alert to the sink; tells whether it has room for it."""
        assert self.sink is not None
        assert self.outbox is not None
        line = f"{alert.model} {alert.rule.name}"
        settled = partial(self.outbox.settled, alert)
        return self.sink.alert(line, alert.model, self.replies.alert(alert), settled)

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


def _release(entries: Sequence[Entry]) -> None:
    """Let go of what the labels of events that are not committed hold of the caps."""
    for entry in entries:
        entry.release()


def _cells(state: ModelState) -> int:
    """How many cells a view is made of, about; places of arrays count as a fraction of one."""
    return sum(
        cells.size // PLACES_A_CELL if isinstance(cells, Packed) else len(cells)
        for cells in state.all_time.values()
    )


def _waited(begin: Callable[[Tell], Response | None]) -> Response:
    """The answer to what may have to wait for a commit, or two."""
    told: SimpleQueue[Finish] = SimpleQueue()
    answer = begin(told.put)
    while answer is None:
        answer = told.get()()
    return answer


def _digest(model: str, request: str, is_feedback: bool, said: bytes) -> bytes:
    """16 bytes that stand for a request and what was `said` of it, whatever the event's id."""
    head = orjson.dumps((home_of(model), request, is_feedback))
    return blake2b(head + said, digest_size=16).digest()
