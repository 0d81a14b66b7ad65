"""Our own host: granian's asynchronous RSGI workers, with the short path for `POST /`.

The short path does no more than it must: read headers and body, `App.post`, answer. Liveness and
readiness are answered beside it, since the kubelet asks before the first event. All else goes to
the Flask app, in a thread, which is made when first needed.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any
from urllib.parse import quote

from .app import App, Response, problem
from .config import Settings
from .errors import (
    ConfigurationError,
    FeedbackMetricsError,
    Refused,
    StoreUnavailable,
    TooLarge,
)
from .host import build, configure_logging
from .server_stats import ServerStats

_OK = Response(200, [("content-type", "text/plain")], b"OK")


class Service:
    """One worker's RSGI application. Source: granian's RSGI specification, 1.5."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._limit = app.settings.max_body
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="pages")

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Commit and close once the requests under way are answered."""
        self._app.close()

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        if scope.proto != "http":
            return
        if scope.method == "POST" and scope.path == "/":
            response = await self._post(scope, protocol)
        elif scope.path == "/health/readiness":
            response = _OK if self._app.ready else _NOT_READY
        elif scope.path == "/health/liveness":
            response = _OK
        else:
            response = await self._page(scope, protocol)
        protocol.response_bytes(*response)

    async def _post(self, scope: Any, protocol: Any) -> Response:
        headers = dict(scope.headers.items())
        denied = await self._app.denied(headers) if self._app.identity else None
        body = await self._body(headers, protocol)
        if denied is not None:
            return denied
        if isinstance(body, TooLarge):
            return await self._app.refuse(body)
        if len(headers) < len(scope.headers):  # granian leaves out values that are not ASCII
            for name in scope.headers.keys() - headers.keys():
                if name.startswith("ce-"):
                    reason = "not ASCII; CloudEvents percent-encodes what is not"
                    return await self._app.refuse(Refused(name, reason))
        return await self._app.post(headers, body)

    async def _body(self, headers: dict[str, str], protocol: Any) -> bytes | TooLarge:
        """The request's body, or the error of one that is too large, which is never held."""
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) <= self._limit:
            body: bytes = await protocol()
            return body
        size = 0
        parts: list[bytes] = []
        async for part in protocol:
            size += len(part)
            if size <= self._limit:
                parts.append(part)
            else:
                parts.clear()  # read on to the end, so that the client gets to hear the answer
        if size > self._limit:
            return TooLarge("data", f"{size} bytes; at most {self._limit} are taken")
        return b"".join(parts)

    # --- pages ---------------------------------------------------------------------------------

    @cached_property
    def _flask(self) -> Any:
        from .host import flask_app

        return flask_app(self._app)

    async def _page(self, scope: Any, protocol: Any) -> Response:
        headers = dict(scope.headers.items())
        body = await self._body(headers, protocol)
        if isinstance(body, TooLarge):
            return problem(body)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._call_flask, scope, headers, body)

    def _call_flask(self, scope: Any, headers: dict[str, str], body: bytes) -> Response:
        from werkzeug.test import EnvironBuilder, run_wsgi_app

        try:
            environ = EnvironBuilder(
                path=quote(scope.path),
                query_string=scope.query_string,
                method=scope.method,
                headers=list(headers.items()),
                data=body,
            ).get_environ()
            chunks, status, answered = run_wsgi_app(self._flask, environ, buffered=True)
            lower = [(name.lower(), value) for name, value in answered.items()]
            return Response(int(status.partition(" ")[0]), lower, b"".join(chunks))
        except Exception as error:
            return problem(error)


_NOT_READY = problem(StoreUnavailable("other", "the store cannot commit"))


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then finish running requests, commit, and return.

    Raises ConfigurationError or StoreUnusable where no retry can help.
    """
    from granian.constants import Interfaces
    from granian.http import HTTP1Settings
    from granian.server import MPServer

    if settings.workers > 1:
        build(settings).close()  # what no worker could mend must not be respawned for ever
    multiprocessing.set_start_method("fork", force=True)  # workers share memory and a closure
    _let_signals_end_young_workers()
    stats = ServerStats(settings.workers)
    hopeless = mmap.mmap(-1, 1)  # set by a worker that no restart could mend

    def load() -> Service:
        configure_logging(settings.log_level)
        stats.claim()
        try:
            service = Service(build(settings, stats))
            gc.freeze()  # what was imported and restored lives as long as the process
            gc.set_threshold(20_000, 20, 50)  # events make no cycles: look for them seldom
            return service
        except FeedbackMetricsError as error:
            print(f"feedback-metrics: {error}", file=sys.stderr)
            hopeless[0] = 1
            sys.exit(2)

    server = MPServer(
        "metrics",
        address=settings.host,
        port=settings.port,
        interface=Interfaces.RSGI,
        workers=settings.workers,
        websockets=False,
        http1_settings=HTTP1Settings(pipeline_flush=False),
        respawn_failed_workers=settings.workers > 1,
        backpressure=4096,
        log_level="critical",  # type: ignore[arg-type]
    )
    try:
        server.serve(target_loader=load, wrap_loader=False)  # type: ignore[arg-type]
    except RuntimeError as error:  # granian's where it cannot bind: the reason, and a backtrace
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"PORT: {settings.host}:{settings.port}: {reason}") from None
    except SystemExit:
        sys.exit(2 if hopeless[0] else 1)


def _let_signals_end_young_workers() -> None:
    """Have a signal that finds a worker before it serves end it, as it has nothing to finish yet.

    A forked worker inherits granian's handlers of the parent, which would note the signal in the
    worker's copy of an event that nobody waits for: the parent would wait for that worker for ever.
    """
    ends = (signal.SIGINT, signal.SIGTERM)

    def in_child() -> None:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ends),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, ends),
        after_in_child=in_child,
    )
