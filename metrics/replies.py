"""What is answered: the events that answer events, and the problems of those that cannot be.

A metrics event tells its model's view, which all events of a commit share, and what the one event
it answers has added. Its id follows from that event's. The answer to a redelivery has the same id
and increment; its time and totals are those of the second answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from os import urandom
from typing import Any, NamedTuple

import orjson

from .background import report
from .config import Settings
from .counters import SUPERSEDED, Compact, Increment, merge
from .errors import Refused, Unauthorized, Unavailable, Unreadable, status_of
from .events import (
    BATCH,
    Event,
    batch_body,
    binary_headers,
    carried,
    format_time,
    lines_of,
    own_lines,
)
from .exact import REALS, shown
from .isolation import Isolation
from .joins import IDENTITY
from .model_settings import ModelSettings
from .models_file import ModelsFile
from .outbox import Alert
from .payload import check_label, one_line
from .scores import model_view
from .state import Entry, ModelState
from .store import Store

MAX_DETAIL = 160
"""Characters of a problem's reason. With its quotes and non-ASCII the body stays below 768 bytes,
past which base64 overruns the 1024 bytes that eventing's dispatcher has for it."""

MAX_ORIGINS = 4096
"""Origins of events that are remembered."""

_NAMESPACE, _DEPLOYMENT, _PREDICTOR, _MODEL = IDENTITY
_SHARED = frozenset(IDENTITY)
_HISTOGRAMS = ("scores", "calibration_rows", "calibration_hits", "calibration_confidence")
_HIDDEN = frozenset(
    prefix + family for prefix in ("", SUPERSEDED) for family in (*_HISTOGRAMS, "absolute_errors")
)
"""Families of histograms, which an emitted event's `increment` leaves out."""


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

Emitted = tuple[dict[str, str], bytes]
"""Attributes and data of an event."""


class Origin(NamedTuple):
    """What the extensions that name an event's model say."""

    model: str
    unnamed: list[str]
    """The parts of the model's id that neither they nor a variable name."""
    lines: str
    """The headers that all replies to such events share."""


class Replies:
    """Makes the events that answer events."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        models: ModelsFile,
        now: Callable[[], float],
        isolation: Isolation,
    ) -> None:
        self._settings = settings
        self._store = store
        self._models = models
        self._now = now
        self._isolation = isolation
        self._defaults = (
            settings.namespace,
            settings.deployment,
            settings.predictor,
            settings.model,
        )
        self._origins: dict[tuple[str | None, ...], Origin] = {}
        self._views: dict[str, tuple[ModelState, ModelSettings, bytes]] = {}

    def origin(self, extensions: Mapping[str, str]) -> Origin:
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
            unset = zip(IDENTITY, given, self._settings.unset_identity, strict=True)
            unnamed = [name for name, text, variable in unset if variable and not text]
            said = {name: text for name, text in extensions.items() if name in IDENTITY}
            lines = lines_of(binary_headers({**self._shared_attributes(model), **said}))
            if len(self._origins) >= MAX_ORIGINS:
                self._origins.clear()
            origin = self._origins[given] = Origin(model, unnamed, lines)
        return origin

    def reply(
        self, event: Event, entry: Entry, state: ModelState | None, alert: Alert | None = None
    ) -> Response:
        """The event that answers one event, in binary mode: its metrics, or an alert.

        An event of a model whose state cannot be shown is counted and has no reply.
        """
        try:
            origin = self.origin(event.extensions)
            if origin.model != entry.model or alert is not None:
                attributes, data = self._emitted(event, entry, state, alert)
                return Response(200, binary_headers(attributes), data)
            id = entry.digest.hex() or urandom(16).hex()
            own = own_lines(id, int(self._now()), event.extensions, _SHARED)
            data = self._data(entry.model, entry.increment, state)
            return Response(200, [], data, origin.lines + own)
        except Exception as error:
            self._isolation.leave_out(entry.model, error)
            return EMPTY

    def batch(
        self,
        events: Sequence[Event],
        entries: Sequence[Entry],
        told: Callable[[Entry], Alert | None],
    ) -> Response:
        """One metrics event per model touched, in the order of their first events, and alerts.

        Models whose state cannot be shown have none.
        """
        by_model: dict[str, list[tuple[Event, Entry]]] = {}
        for event, entry in zip(events, entries, strict=True):
            if entry.scored:
                by_model.setdefault(entry.model, []).append((event, entry))

        def of_model(model: str, parts: list[tuple[Event, Entry]]) -> list[Emitted]:
            attributes = self.attributes(*parts[0])
            digests = b"".join(entry.digest for _, entry in parts)
            attributes["id"] = blake2b(digests, digest_size=16).hexdigest()
            increment = merge(entry.increment for _, entry in parts)
            emitted = [(attributes, self.summary(model, increment))]
            state = self._store.read().models.get(model)
            for event, entry in parts:
                alert = told(entry)
                if alert is not None:
                    emitted.append(self._emitted(event, entry, state, alert))
            return emitted

        found = self._isolation.each(by_model.items(), of_model)
        emitted = [each for _, of_one in found for each in of_one]
        return Response(200, [("content-type", BATCH)], batch_body(emitted))

    def attributes(self, event: Event, entry: Entry) -> dict[str, str]:
        """Attributes of the metrics event; its id follows from the request's (source, id) only."""
        return {
            "id": entry.digest.hex() or urandom(16).hex(),
            "time": format_time(int(self._now())),
            **self._shared_attributes(entry.model),
            **carried(event.extensions),
        }

    def summary(self, model: str, increment: Increment) -> bytes:
        """The data of an event about a model as of its last commit."""
        return self._data(model, increment, self._store.read().models.get(model))

    def alert(self, alert: Alert) -> dict[str, str]:
        """Attributes of the event that tells of an alert and answers none."""
        return {
            "source": self._settings.event_source,
            "subject": alert.model,
            "time": format_time(int(alert.transition.time)),
            **dict(zip(IDENTITY, alert.model.split("/"), strict=False)),
            **self._alert_attributes(alert),
        }

    def _emitted(
        self, event: Event, entry: Entry, state: ModelState | None, alert: Alert | None
    ) -> tuple[dict[str, str], bytes]:
        """Attributes and data of the event that answers one event: its metrics, or an alert."""
        attributes = self.attributes(event, entry)
        if alert is not None:
            attributes |= self._alert_attributes(alert)
        return attributes, self._data(entry.model, entry.increment, state)

    def _alert_attributes(self, alert: Alert) -> dict[str, str]:
        """What sets an alert's event apart from a metrics event."""
        return {"id": alert.id, "type": f"{self._settings.event_type}.alert", **alert.attributes}

    def _shared_attributes(self, model: str) -> dict[str, str]:
        """Those that all events of a model have."""
        source, type = self._settings.event_source, self._settings.event_type
        return {"source": source, "type": type, "subject": model}

    def _data(self, model: str, increment: Increment | Compact, state: ModelState | None) -> bytes:
        """The model's view, which its events share while they find it so, and `increment`."""
        settings = self._models.of(model)
        cached = self._views.get(model)
        if state is None:  # with a snapshot interval, before the first flush
            state = ModelState({}, {}, {})
        if cached is None or cached[0] is not state or cached[1] is not settings:
            now = self._now()
            view = model_view(model, state, settings, now)
            if self._settings.reply_windows:
                view["windows"] = {
                    window.name: model_view(model, state, settings, now, window)
                    for window in settings.windows
                    if window.name in self._settings.reply_windows
                }
            cached = self._views[model] = (state, settings, orjson.dumps(view)[:-1])
        return cached[2] + b',"increment":%b}' % orjson.dumps(readable(increment))


def problem(error: BaseException) -> Response:
    """The answer to a request that failed: `application/problem+json` with a one-line reason.

    Anything unforeseen is a constant text; its traceback goes to the log only.
    """
    status, title = status_of(error)
    headers = [("content-type", "application/problem+json")]
    if status == 500 and not isinstance(error, Unreadable):
        report("a request", error)
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


def readable(increment: Increment | Compact) -> dict[str, Any]:
    """An increment as JSON: a number, or objects nested by label; histograms are left out.

    Where labels have a number and further labels after them, as a user's metric with and without
    tags has, the number stands under the empty text in their object.
    """
    if isinstance(increment, Compact):
        return increment.shown()
    readable: dict[str, Any] = {}
    for family, cells in increment.items():
        if family in _HIDDEN:
            continue
        if family in REALS:
            cells = {labels: shown(family, number) for labels, number in cells.items()}
        if set(map(len, cells)) == {1}:
            readable[family] = {label: value for (label,), value in cells.items()}
            continue
        for labels, value in cells.items():
            at, last = readable, family
            for label in labels:
                below = at.setdefault(last, {})
                if not isinstance(below, dict):
                    below = at[last] = {"": below}
                at, last = below, label
            below = at.get(last)
            if isinstance(below, dict):
                below[""] = value
            else:
                at[last] = value
    return readable
