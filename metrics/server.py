"""Our own host: an asynchronous server with the short path for `POST /`.

One thread reads, evaluates and answers; while the committer's thread commits, the next requests
gather. What is at hand is read first, then evaluated one after the other, then committed together:
by turns each of these would cost more, as it found the processor's caches full of the others.
Liveness and readiness are answered at once, since the kubelet asks before the first event. All else
goes to the Flask app, in a thread, which is made when first needed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Any
from urllib.parse import quote

import uvloop
from httptools import HttpParserInvalidURLError, parse_url

from .app import App, Finish
from .committer import Work
from .config import Settings
from .errors import ConfigurationError, NotFound, StoreUnavailable, TooLarge
from .host import build, collect_seldom
from .http1 import PATIENCE_SECONDS, Connection, Request
from .replies import Response, problem
from .server_stats import ServerStats
from .state import State
from .workers import end_by_signal, supervise

logger = logging.getLogger("metrics.server")

GATHER_SECONDS = 0.02
"""How long requests that keep coming put off their commit, at most."""
BACKLOG = 2048
ACCEPTED_AT_ONCE = 8
"""Connections that one look at the socket takes: other workers are to get some of them, too."""

_OK = Response(200, [("content-type", "text/plain")], b"OK")
_NOT_READY = problem(StoreUnavailable("other", "the store cannot commit"))


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then finish running requests, commit, and return.

    Raises ConfigurationError or StoreUnusable where no retry can help.
    """
    end_by_signal()
    listener = _bound(settings)
    stats = ServerStats(settings.workers)
    work = partial(_work, settings, stats, listener)
    if settings.workers > 1:
        build(settings).close()  # what no worker could mend must not be tried by all of them
        supervise(settings.workers, work)
    else:
        work()


def _bound(settings: Settings) -> socket.socket:
    """A socket at the address that is to be served. Raises ConfigurationError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        return listener
    except OSError as error:
        raise ConfigurationError(f"PORT: {settings.host}:{settings.port}: {error}") from None


def _work(settings: Settings, stats: ServerStats, listener: socket.socket) -> None:
    """Serve in this process."""
    stats.claim()
    service = Service(build(settings, stats))
    collect_seldom()
    uvloop.run(_until_signalled(service, listener))


async def _until_signalled(service: Service, listener: socket.socket) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await service.serve(listener, stopped)


class Service:
    """One worker: its app, its connections, and what hands commits' answers back to them."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._connections: set[Connection] = set()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="pages")
        self._told: deque[tuple[Connection, Finish]] = deque()
        self._arrived: list[tuple[Connection, Request]] = []
        self._gathering = False
        self._gathered_since = 0.0

    async def serve(self, listener: socket.socket, stopped: asyncio.Event) -> None:
        """Serve until `stopped`; return when all is answered, committed and closed."""
        self._loop = loop = asyncio.get_running_loop()
        self._app.committer.gathers = True
        if self._app.prepares:
            self._app.committer.ahead = self._ahead
        listener.setblocking(False)
        listener.listen(BACKLOG)
        loop.add_reader(listener, self._accept, listener)
        sweeping = loop.create_task(self._sweep())
        try:
            await stopped.wait()
        finally:
            loop.remove_reader(listener)
            listener.close()
        for connection in tuple(self._connections):
            connection.stop()
        while self._connections:
            await asyncio.sleep(0.01)
        sweeping.cancel()
        self._app.close()

    # --- connections -------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                logger.error("no more connections: %s", error)
                self._loop.remove_reader(listener)
                self._loop.call_later(1, self._accept_again, listener)
                return
            client.setblocking(False)
            limit = self._app.settings.max_body
            made = partial(Connection, self.handle, limit, self._connections)
            self._loop.create_task(self._loop.connect_accepted_socket(made, client))

    def _accept_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(PATIENCE_SECONDS)
            for connection in tuple(self._connections):
                connection.sweep()

    # --- requests ----------------------------------------------------------------------------

    def handle(self, connection: Connection, request: Request) -> None:
        """Have a request answered, now or later."""
        try:
            self._route(connection, request)
        except Exception as error:
            connection.answer(*problem(error))

    def _route(self, connection: Connection, request: Request) -> None:
        if request.method == "POST" and request.target == b"/":
            self._post(connection, request)
            return
        try:
            url = parse_url(request.target)
        except HttpParserInvalidURLError:
            connection.answer(*problem(NotFound("no such path")))
            return
        path = url.path or b"/"
        if request.method == "POST" and path == b"/":
            self._post(connection, request)
        elif path == b"/health/readiness":
            connection.answer(*(_OK if self._app.ready else _NOT_READY))
        elif path == b"/health/liveness":
            connection.answer(*_OK)
        else:
            page = partial(self._page, request, path, url.query or b"")
            self._aside(connection, page, self._threads)

    def _post(self, connection: Connection, request: Request) -> None:
        if self._app.may_post(request.headers):
            self._arrive(connection, request)
        else:
            denied = partial(self._app.denied, request.headers)
            self._aside(connection, denied, None, request)

    def _take(self, connection: Connection, request: Request) -> None:
        tell = partial(self._tell, connection)
        if request.size > self._app.settings.max_body:
            answer = self._app.refuse(_too_large(request, self._app), tell)
        else:
            answer = self._app.post(request.headers, request.body, tell)
        if answer is not None:
            connection.answer(*answer)

    def _aside(
        self,
        connection: Connection,
        work: Callable[[], Response | None],
        threads: ThreadPoolExecutor | None,
        then: Request | None = None,
    ) -> None:
        """Answer with what `work` makes in a thread; where that is None, go on with `then`."""

        def done(future: asyncio.Future[Response | None]) -> None:
            answer = future.result()
            if answer is not None:
                connection.answer(*answer)
            elif then is not None:
                self._arrive(connection, then)

        self._loop.run_in_executor(threads, work).add_done_callback(done)

    # --- commits -----------------------------------------------------------------------------

    def _arrive(self, connection: Connection, request: Request) -> None:
        self._arrived.append((connection, request))
        self._gather()

    def _gather(self) -> None:
        """Have what has arrived taken, and committed as soon as there is nothing more to read.

        While requests come in they are worth waiting for: the fewer commits, the less each costs.
        """
        if not self._gathering:
            self._gathering = True
            self._gathered_since = self._loop.time()
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Called once in each turn of the loop, before what that turn has read."""
        arrived, self._arrived = self._arrived, []
        for connection, request in arrived:
            try:
                self._take(connection, request)
            except Exception as error:
                connection.answer(*problem(error))
        room = not self._app.committer.full
        if arrived and room and self._loop.time() - self._gathered_since < GATHER_SECONDS:
            self._loop.call_soon(self._look)
        else:
            self._gathering = False
            self._app.committer.go()

    def _ahead(self, works: Sequence[Work], state: State) -> None:
        """Have the answers to a commit's requests made while it waits."""
        self._loop.call_soon_threadsafe(self._app.prepare, works, state)

    def _tell(self, connection: Connection, finish: Finish) -> None:
        """Have a request finished in the loop's thread: one wake-up for all of a commit's."""
        self._told.append((connection, finish))
        if len(self._told) == 1:
            self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        while self._told:
            connection, finish = self._told.popleft()
            answer = finish()
            if answer is not None:
                connection.answer(*answer)
        if self._app.committer.waiting:
            self._gather()

    # --- pages -------------------------------------------------------------------------------

    @cached_property
    def _flask(self) -> Any:
        from .host import flask_app

        return flask_app(self._app)

    def _page(self, request: Request, path: bytes, query: bytes) -> Response:
        from werkzeug.test import EnvironBuilder, run_wsgi_app

        try:
            if request.size > self._app.settings.max_body:
                return problem(_too_large(request, self._app))
            environ = EnvironBuilder(
                path=quote(path, safe=_URL),
                query_string=quote(query, safe=_URL),
                method=request.method,
                headers=list(request.headers.items()),
                data=request.body,
            ).get_environ()
            chunks, status, answered = run_wsgi_app(self._flask, environ, buffered=True)
            headers = [(name.lower(), text) for name, text in answered.items()]
            kept = [each for each in headers if each[0] not in _OF_THE_CONNECTION]
            return Response(int(status.partition(" ")[0]), kept, b"".join(chunks))
        except Exception as error:
            return problem(error)


_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_OF_THE_CONNECTION = ("connection", "content-length", "date")
_URL = "!#$%&'()*+,/:;=?@[]~"


def _too_large(request: Request, app: App) -> TooLarge:
    return TooLarge("data", f"{request.size} bytes; at most {app.settings.max_body} are taken")
