"""Our own host: an asynchronous server with the short path for `POST /`.

One thread reads, evaluates and answers; while the committer's thread commits, the next requests
gather. What is at hand is read first, then evaluated one after the other, then committed together:
by turns each of these would cost more, as it found the processor's caches full of the others.
Liveness and readiness are answered at once, since the kubelet asks before the first event. All else
goes to the Flask app, in a thread, which is made when first needed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property, partial
from typing import Any
from urllib.parse import quote

import uvloop

from .app import App, Finish
from .background import report
from .committer import Work
from .config import Settings
from .connections import SPARE, Connections
from .errors import ConfigurationError, NotFound, Overloaded, StoreUnavailable, TooLarge
from .host import build, collect_seldom
from .http1 import Connection, Request
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

LARGE_BODY = 1 << 16
"""Bytes from which a body is decoded and evaluated in a thread, so that the loop goes on."""
DRAIN_SECONDS = 4.0
"""How long clients may take to end their requests once the server is told to stop."""
SWEEP_SECONDS = 1.0
"""Between two looks at the connections' deadlines."""
FINISH_SECONDS = 0.02
"""How long answers after a commit are made without a look at the sockets."""
WARN_SECONDS = 60.0
RESERVED_FILES = 128
"""File descriptors that connections leave to the store, the log, the pages and probes."""

_PAGES, _LARGE, _TOKENS = "pages", "large bodies", "tokens"

_OK = Response(200, [("content-type", "text/plain")], b"OK")
_NOT_READY = problem(StoreUnavailable("other", "the store cannot commit"))
_DEAD = problem(StoreUnavailable("other", "the thread that commits has ended"))
_NO_CONNECTION = problem(Overloaded("too many connections"))


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
    if any(thread.is_alive() for thread in threading.enumerate() if _is_of_a_pool(thread)):
        logging.shutdown()  # everything is committed; the interpreter would wait for threads
        os._exit(0)


def _is_of_a_pool(thread: threading.Thread) -> bool:
    """Whether a thread makes pages, evaluates large bodies, or verifies tokens."""
    return thread.name.startswith((_PAGES, _LARGE, _TOKENS))


async def _until_signalled(service: Service, listener: socket.socket) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await service.serve(listener, stopped)


class Service:
    """One worker: its app, its connections, and what hands commits' answers back to them."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._connections = Connections(app.settings.max_body, _most(app.settings.max_connections))
        self._threads = ThreadPoolExecutor(2, thread_name_prefix=_PAGES)
        self._large = ThreadPoolExecutor(1, thread_name_prefix=_LARGE)
        """Decodes and evaluates large bodies, one at a time."""
        self._tokens = ThreadPoolExecutor(4, thread_name_prefix=_TOKENS)
        """Verifies tokens, which may wait for their issuer: no page waits for that."""
        self._told: deque[tuple[Request, Finish]] = deque()
        self._waking = False
        """Whether `_finish` is scheduled and has not begun."""
        self._arrived: list[Request] = []
        self._gathering = False
        self._gathered_since = 0.0
        self._warned = 0.0

    async def serve(self, listener: socket.socket, stopped: asyncio.Event) -> None:
        """Serve until `stopped`; return when all is answered, committed and closed."""
        self._loop = loop = asyncio.get_running_loop()
        self._app.committer.gathers = True
        if self._app.prepares:
            self._app.committer.ahead = self._ahead
        self._app.aside = self._run_aside
        listener.setblocking(False)
        listener.listen(BACKLOG)
        loop.add_reader(listener, self._accept, listener)
        sweeping = loop.create_task(self._sweep(stopped))
        try:
            await stopped.wait()
        finally:
            loop.remove_reader(listener)
            listener.close()
        self._app.committer.flush()
        self._connections.stop()
        until = loop.time() + DRAIN_SECONDS
        while self._connections and loop.time() < until:
            await asyncio.sleep(0.01)
        if self._connections:
            logger.warning("%d connections are closed unanswered", len(self._connections))
        while self._connections:
            self._connections.abort()
            await asyncio.sleep(0)
        sweeping.cancel()
        for threads in (self._threads, self._large, self._tokens):
            threads.shutdown(wait=False, cancel_futures=True)
        self._app.close()

    # --- connections -------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                client, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._warn("no more connections: %s", error)
                self._loop.remove_reader(listener)
                self._loop.call_later(1, self._accept_again, listener)
                return
            client.setblocking(False)
            self._loop.create_task(self._connect(client))

    async def _connect(self, client: socket.socket) -> None:
        """Serve a client; where there is no room, answer its probes and close."""
        pool = self._connections
        served = pool.has_room()
        if not served:
            self._warn("%d connections are open; only probes are answered on more", pool.most)
        connection = Connection(pool, self.handle if served else self._probe)
        pool.admit(connection, spare=not served)
        try:
            await self._loop.connect_accepted_socket(lambda: connection, client)
        except Exception as error:
            client.close()
            pool.remove(connection)
            if not isinstance(error, OSError):  # else it is gone already
                report("host", error, self._app.stats.unforeseen)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)

    def _warn(self, message: str, *values: object) -> None:
        """Log what clients can cause at will, at most once in WARN_SECONDS."""
        now = self._loop.time()
        if now >= self._warned:
            self._warned = now + WARN_SECONDS
            logger.warning(message, *values)

    async def _sweep(self, stopped: asyncio.Event) -> None:
        """Hold clients to their deadlines; stop one worker of several that cannot commit.

        It is replaced then. Liveness is no help there: most probes reach the others.
        """
        while True:
            if self._app.settings.workers > 1 and not self._app.alive and not stopped.is_set():
                logger.critical("this worker cannot commit any more, and ends")
                stopped.set()
            try:
                self._connections.sweep(self._loop.time())
            except Exception as error:  # a bug; the next sweep is due all the same
                report("host", error, self._app.stats.unforeseen)
            await asyncio.sleep(SWEEP_SECONDS)

    # --- requests ----------------------------------------------------------------------------

    def handle(self, request: Request) -> None:
        """Have a request answered, now or later."""
        try:
            self._route(request)
        except Exception as error:
            request.answer(*problem(error))

    def _route(self, request: Request) -> None:
        if request.method == "POST" and request.target == b"/":
            self._post(request)
            return
        path, query = _split(request.target)
        if request.method == "POST" and path == b"/":
            self._post(request)
        elif path == b"/health/readiness":
            request.answer(*(_OK if self._app.ready else _NOT_READY))
        elif path == b"/health/liveness":
            request.answer(*(_OK if self._app.alive else _DEAD))
        else:
            self._aside(request, partial(self._page, request, path, query), self._threads)

    def _probe(self, request: Request) -> None:
        """Answer a request on a connection past the limit: only probes, and the last."""
        request.keep = False
        if request.target.startswith(b"/health/"):
            self.handle(request)
        else:
            request.answer(*_NO_CONNECTION)

    def _post(self, request: Request) -> None:
        if self._app.may_post(request.headers):
            self._arrive(request)
        else:
            denied = partial(self._app.denied, request.headers)
            self._aside(request, denied, self._tokens, self._arrive)

    def _take(self, request: Request) -> None:
        tell = partial(self._tell, request)
        if request.size > self._app.settings.max_body:
            answer = self._app.refuse(_too_large(request, self._app), tell)
        elif request.size > LARGE_BODY:
            post = partial(self._app.post, request.headers, request.body, tell)
            self._aside(request, post, self._large, lambda _: self._gather())
            return
        else:
            answer = self._app.post(request.headers, request.body, tell)
        if answer is not None:
            request.answer(*answer)

    def _aside(
        self,
        request: Request,
        work: Callable[[], Response | None],
        threads: ThreadPoolExecutor,
        then: Callable[[Request], None] | None = None,
    ) -> None:
        """Answer with what `work` returns in a thread; where that is None, go on with `then`."""

        def done(future: asyncio.Future[Response | None]) -> None:
            if future.cancelled():
                return  # the end: nobody is connected any more
            error = future.exception()
            answer = future.result() if error is None else problem(error)
            if answer is not None:
                request.answer(*answer)
            elif then is not None:
                then(request)

        self._loop.run_in_executor(threads, work).add_done_callback(done)

    # --- commits -----------------------------------------------------------------------------

    def _arrive(self, request: Request) -> None:
        self._arrived.append(request)
        self._gather()

    def _gather(self) -> None:
        """Schedule intake of what has arrived; commit when the sockets are drained.

        While requests come in they are worth waiting for: the fewer commits, the less each costs.
        """
        if not self._gathering:
            self._gathering = True
            self._gathered_since = self._loop.time()
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Called once in each turn of the loop, before what that turn has read."""
        arrived, self._arrived = self._arrived, []
        for request in arrived:
            try:
                self._take(request)
            except Exception as error:
                request.answer(*problem(error))
        room = not self._app.committer.full
        soon = self._loop.time() - self._gathered_since < GATHER_SECONDS
        if self._arrived or (arrived and room and soon):
            self._loop.call_soon(self._look)
        else:
            self._gathering = False
            self._app.committer.go()

    def _ahead(self, works: Sequence[Work], state: State) -> None:
        """Have the answers to a commit's requests made while it waits."""
        self._soon(self._app.prepare, works, state)

    def _tell(self, request: Request, finish: Finish) -> None:
        """Have a request finished in the loop's thread: one wake-up for all of a commit's."""
        self._told.append((request, finish))
        if not self._waking:
            self._waking = True
            self._soon(self._finish)

    def _run_aside(self, work: Callable[[], None]) -> None:
        """Do what takes long in a thread; late in the shutdown, not at all."""
        with suppress(RuntimeError):
            self._large.submit(work)

    def _soon(self, callback: Callable[..., object], *values: object) -> None:
        """Have a callback called in the loop's thread, if the loop still runs."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *values)

    def _finish(self) -> None:
        """Answer what was told, or some of it: the loop has other duties, too."""
        self._waking = False  # first: what is told from here on schedules another call
        until = self._loop.time() + FINISH_SECONDS
        while self._told:
            request, finish = self._told.popleft()
            try:
                answer = finish()
            except Exception as error:
                answer = problem(error)
            if answer is not None:
                request.connection.send(request, *answer)
            if not len(self._told) % 16 and self._told and self._loop.time() > until:
                self._waking = True
                self._loop.call_soon(self._finish)
                break
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


_SCHEMES = (b"http://", b"https://")
_OF_THE_CONNECTION = ("connection", "content-length", "date")
_URL = "!#$%&'()*+,/:;=?@[]~"


def _too_large(request: Request, app: App) -> TooLarge:
    return TooLarge("data", f"{request.size} bytes; at most {app.settings.max_body} are taken")


def _split(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request's target, as sent. Raises NotFound for what names no path."""
    if target.lower().startswith(_SCHEMES):  # absolute-form, as proxies are sent it
        _, slash, rest = target.partition(b"//")[2].partition(b"/")
        target = slash + rest or b"/"
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/") or path.startswith(b"//"):
        raise NotFound("no such path")
    return path, query


def _most(wanted: int) -> int:
    """Connections that may be open: `wanted`, or what the limit of open files allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE + RESERVED_FILES
    if soft < needed and soft != resource.RLIM_INFINITY:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return max(1, min(wanted, soft - SPARE - RESERVED_FILES))
    return wanted
