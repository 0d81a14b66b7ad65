"""Everything but `POST /`: what people, Prometheus and the kubelet ask, as routes on a Flask app.

The Flask app is the one that parliament builds, so that its routes answer too; ours are added.
It is made when the first such request comes: the first event must not wait for its imports.
"""

from __future__ import annotations

from typing import Any

import orjson
from flask import Flask, Request, Response, request
from werkzeug.datastructures import Accept
from werkzeug.exceptions import HTTPException

from .app import App
from .config import PROTOCOL
from .counters import net, value
from .errors import FeedbackMetricsError, NotFound, Refused, status_of
from .payload import one_line
from .replies import MAX_DETAIL, problem
from .replies import Response as Answer
from .scores import model_view
from .scores.coverage import HALVES
from .scores.view import ALL, segments_of, task_of
from .state import ModelState
from .windows import Window

FORMATS = ("html", "json", "prometheus")
_OFFERED = {
    "text/html": "html",
    "application/json": "json",
    "application/openmetrics-text": "prometheus",
    "text/plain": "prometheus",
}


def add_routes(flask: Flask, app: App) -> None:
    """Add our routes to `flask`; whatever they raise becomes `application/problem+json`."""

    def on_error(error: Exception) -> Response:
        return as_flask(problem(error))

    def on_http_error(error: HTTPException) -> Response:
        status = error.code or 500
        body = {"type": "about:blank", "title": error.name, "status": status}
        body["detail"] = one_line(f"{request.method} {request.path}: {error.name}", MAX_DETAIL)
        return Response(orjson.dumps(body), status, mimetype="application/problem+json")

    flask.register_error_handler(Exception, on_error)
    flask.register_error_handler(HTTPException, on_http_error)

    @flask.get("/metrics")
    @flask.get("/v1/metrics")
    def metrics() -> Response:
        return _prometheus(app)

    @flask.get("/v1/models")
    def models() -> Response:
        return _json(model_list(app))

    @flask.get("/v1/models/<namespace>/<deployment>/<predictor>/<model>")
    def model(namespace: str, deployment: str, predictor: str, model: str) -> Response:
        id = f"{namespace}/{deployment}/{predictor}/{model}"
        return _json(model_json(app, id, request))

    @flask.get("/protocol")
    def protocol() -> Response:
        return Response(PROTOCOL, mimetype="text/plain")


def front(app: App, request: Request) -> Response:
    """`GET /`: the page, JSON or Prometheus, by `?format=` or `Accept`; `?model=` names a model."""
    wanted = request.args.get("format")
    if wanted is None:
        wanted = _preferred(request.accept_mimetypes)
    if wanted == "prometheus":
        return _prometheus(app)
    model = request.args.get("model")
    if wanted == "json":
        return _json(model_json(app, model, request) if model else model_list(app))
    if wanted == "html":
        return _html(app, request)
    raise Refused("format", f"must be one of {', '.join(FORMATS)}")


def _preferred(accept: Accept) -> str:
    """The offered format that is accepted most, whatever version it names; else HTML."""
    best, most = "html", 0.0
    for kind, quality in accept:
        offered = _OFFERED.get(kind.partition(";")[0].strip().lower())
        if offered and quality > most:
            best, most = offered, quality
    return best


def model_list(app: App) -> bytes:
    """What is served, by id, as JSON; see `summary`. Models that cannot be shown are left out."""

    def render(model: str, state: ModelState) -> bytes:
        return orjson.dumps(summary(app, model, state))

    found = app.isolation.each(known_models(app), render)
    return b'{"models":[%b]}' % b",".join(text for _, text in found)


def model_json(app: App, model: str, request: Request) -> bytes:
    """`one_model` as JSON. Raises what that does, and Unreadable."""
    return app.isolation.one(model, lambda: orjson.dumps(one_model(app, model, request)))


def known_models(app: App) -> list[tuple[str, ModelState]]:
    """The models that counted events, by id."""
    return [each for each in sorted(app.read().models.items()) if _is_known(each[1])]


def summary(app: App, model: str, state: ModelState) -> dict[str, Any]:
    """A model's identity, task, events, rows and time of the youngest event."""
    from .events import shown_time

    vector = net(state.all_time)
    last = state.gauges.get(("last_event", ()))
    namespace, deployment, predictor, name = model.split("/")
    return {
        "id": model,
        "namespace": namespace,
        "deployment": deployment,
        "predictor": predictor,
        "model": name,
        "task": task_of(state, app.models.of(model)),
        "events": value(vector, "events"),
        "rows": value(vector, "rows"),
        "last_event": shown_time(last.value) if last else None,
    }


def one_model(app: App, model: str, request: Request) -> dict[str, Any]:
    """One model's view, perhaps of one segment.

    Raises NotFound for an unknown model or value, Refused for a window or a key that is not kept.
    """
    state = known_model(app, model)
    settings = app.models.of(model)
    window = window_called(request.args.get("window", ALL), settings.windows)
    segment = request.args.get("segment", "")
    if segment:
        key = segment.partition("=")[0]
        if key not in settings.segments:
            kept = ", ".join(settings.segments) or "no key is; see FEEDBACK_SEGMENTS"
            raise Refused("segment", f"the key {key[:40]!r} is not kept ({kept})")
        if segment not in segments_of(state):
            raise NotFound(f"no feedback for the segment {segment!r} of {model!r}")
        return model_view(model, state, settings, app.now(), window, segment, curves=True)
    slices = bool(settings.segments)
    return model_view(model, state, settings, app.now(), window, segments=slices, curves=True)


def known_model(app: App, model: str) -> ModelState:
    """The state of a model that counted events. Raises NotFound."""
    state = app.read().models.get(model)
    if state is None or not _is_known(state):
        raise NotFound(f"no feedback for the model {model!r}")
    return state


def _is_known(state: ModelState) -> bool:
    """Whether anything but refusals was counted of a model."""
    return "events" in state.all_time or not HALVES.isdisjoint(state.all_time)


def window_called(name: str, windows: tuple[Window, ...]) -> Window | None:
    """The kept window of this name; None for `all`. Raises Refused."""
    for window in windows:
        if window.name == name:
            return window
    if name != ALL:
        kept = ", ".join((ALL, *(window.name for window in windows)))
        raise Refused("window", f"{name[:40]!r} is not kept; one of {kept}")
    return None


def as_flask(answer: Answer) -> Response:
    """The same answer in Flask's words."""
    response = Response(answer.body, answer.status)
    response.headers.clear()
    response.headers.extend(answer.all_headers())
    return response


def _json(body: bytes) -> Response:
    return Response(body, mimetype="application/json")


def _prometheus(app: App) -> Response:
    from .exposition import render

    body, content_type = render(app, request.headers.get("accept", ""))
    return Response(body, content_type=content_type)


def _html(app: App, request: Request) -> Response:
    from .dashboard import HEADERS, error_page, page

    status = 200
    try:
        text = page(app, request)
    except FeedbackMetricsError as error:
        status, title = status_of(error)
        text = error_page(app, title, one_line(str(error), MAX_DETAIL))
    response = Response(text, status, mimetype="text/html")
    response.headers.update(HEADERS)
    return response
