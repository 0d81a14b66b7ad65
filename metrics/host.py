"""Puts the parts together: settings, store and app; and parliament's way of calling them."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import config, log
from .app import App
from .config import Settings
from .errors import TooLarge
from .server_stats import ServerStats
from .store import open_store

if TYPE_CHECKING:
    from flask import Flask, Response
    from parliament import Context


def build(settings: Settings, stats: ServerStats | None = None) -> App:
    """An app on the store that the settings name.

    Raises ConfigurationError or StoreUnusable where no retry can help.
    """
    store = open_store(settings.store, settings.dedup_ttl, settings.redis_durability)
    app = App(settings, store, stats)
    if settings.pushgateway:
        from .pushgateway import Pusher

        pusher = Pusher(
            app, settings.pushgateway, settings.pushgateway_job, settings.pushgateway_interval
        )
        app.before_closing.append(pusher.close)
    return app


def collect_seldom() -> None:
    """Have garbage be looked for as seldom as a process needs that has all it lives with."""
    gc.freeze()  # what was imported and restored lives as long as the process
    gc.set_threshold(20_000, 20, 50)  # events make no cycles


def build_from_environment(environ: Mapping[str, str] = os.environ) -> App:
    """The app as the variables say; exits with status 2 and one line where they make no sense."""
    from .errors import FeedbackMetricsError

    try:
        settings = config.load(environ)
        log.configure(settings.log_level)
        return build(settings)
    except FeedbackMetricsError as error:
        print(f"feedback-metrics: {error}", file=sys.stderr)
        sys.exit(2)


def answer(app: App, context: Context) -> Response:
    """The answer to a request on parliament's one route, `GET` or `POST /`."""
    from .pages import as_flask, front
    from .replies import problem

    request = context.request
    if request.method in ("GET", "HEAD"):
        try:
            return front(app, request)
        except Exception as error:  # parliament would send its text to the caller
            return as_flask(problem(error))
    headers = {name.lower(): value for name, value in request.headers.items()}
    denied = app.denied(headers)
    if denied is not None:
        return as_flask(denied)
    limit = app.settings.max_body
    if (request.content_length or 0) > limit:
        reason = f"{request.content_length} bytes; at most {limit} are taken"
        return as_flask(app.refuse_sync(TooLarge("data", reason)))
    return as_flask(app.post_sync(headers, request.get_data()))


class Function:
    """What parliament calls: a module-like object with `main`."""

    def __init__(self, app: App) -> None:
        self._app = app

    def main(self, context: Context) -> Any:
        """Answer one request."""
        return answer(self._app, context)


def flask_app(app: App) -> Flask:
    """The Flask app that parliament builds, with our routes added."""
    from flask import Response
    from parliament import server

    from .errors import StoreUnavailable
    from .pages import add_routes, as_flask
    from .replies import problem

    flask: Flask = server.create(Function(app))
    add_routes(flask, app)

    def ready() -> Response:
        if app.ready:
            return Response("OK", mimetype="text/plain")
        return as_flask(problem(StoreUnavailable("other", "the store cannot commit")))

    flask.view_functions["readiness"] = ready
    return flask
