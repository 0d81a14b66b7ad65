"""Our own host against clients that do as they like: flow control, limits, deadlines, the end.

Through a real server process where memory, time or signals matter; else through a connection or a
`Service` in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from metrics import connections, http1
from metrics.connections import Connections
from metrics.http1 import Request
from metrics.replies import Response
from metrics.server import DRAIN_SECONDS, Service
from tests.servers_http import OwnServer, attributes, feedback, outcomes, until
from tests.test_http1 import BODY, Client, Line, get, post

PROBE = get("/health/liveness")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """One server for all tests that leave it running."""
    with OwnServer(tmp_path_factory.mktemp("flow")) as server:
        yield server


def memory(server: OwnServer) -> int:
    """Resident bytes of a server of one process."""
    (pid,) = server.pids
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def end(server: OwnServer) -> float:
    """Seconds from SIGTERM to a good end without a traceback."""
    began = time.monotonic()
    assert server.terminate() == 0
    assert "Traceback" not in server.log()
    return time.monotonic() - began


# --- many requests in one packet -----------------------------------------------------------------


def test_hundreds_of_requests_in_one_packet(tmp_path: Path) -> None:
    """They are answered in a loop: no recursion, and the server goes on and ends in good order."""
    with OwnServer(tmp_path) as server:
        with Line(server.port) as line:
            line.send(post("first") + 340 * PROBE)
            assert line.answer().status == 200
            for _ in range(340):
                assert line.answer().body == b"OK"
            line.send(3000 * PROBE)
            for _ in range(3000):
                assert line.answer().body == b"OK"
        assert server.feedback("another").status == 200
        assert end(server) < 20


def test_upgrades_in_one_packet(shared: OwnServer) -> None:
    """Each is read as a plain request, in a loop."""
    with Line(shared.port) as line:
        line.send(3000 * get("/health/liveness", "Connection: Upgrade", "Upgrade: h2c"))
        for _ in range(3000):
            assert line.answer().body == b"OK"
        line.send(PROBE)
        assert line.answer().status == 200


def test_what_follows_an_answer_that_needs_no_commit_is_not_forgotten(shared: OwnServer) -> None:
    """On a quiet server nobody else would wake it."""
    data = f'"data": [{",".join(["{}"] * 2_000_000)}]'  # takes longer than commits are put off
    event = f'{{"specversion": "1.0", "id": "x", "source": "x", "type": "other", {data}}}'.encode()
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(event)}\r\n"
    ignored = head.encode() + b"Content-Type: application/cloudevents+json\r\n\r\n" + event
    with Line(shared.port) as line:
        line.send(ignored + post("after it"))
        assert line.answer().status == 202
        assert line.answer().status == 200


# --- one answer for each request -----------------------------------------------------------------


def test_a_second_answer_is_not_the_answer_to_the_next_request() -> None:
    """It is bound to its request, and dropped."""
    client = Client()
    client.send(2 * post("x"))
    (first,) = client.requests
    first.answer(200, [], b"first")
    first.answer(500, [], b"again")
    _, second = client.requests
    first.answer(500, [], b"again")
    second.answer(200, [], b"second")
    assert client.transport.sent.count(b"HTTP/1.1") == 2
    assert client.transport.sent.endswith(b"second")
    assert b"again" not in client.transport.sent


def test_an_answer_that_cannot_be_sent_harms_its_connection_only() -> None:
    """Whatever a handler makes of it."""
    pool = Connections(1000, 10)
    broken, other = Client(pool), Client(pool)
    broken.send(post("x"))
    other.send(post("x"))
    broken.requests[0].answer(999, [], b"")
    assert (broken.transport.state, broken.transport.sent) == ("aborted", b"")
    other.requests[0].answer(200, [], b"")
    assert other.transport.sent.startswith(b"HTTP/1.1 200 ")


class App:
    """Stands for an app: `post` and what it tells are the test's."""

    ready = alive = True
    prepares = False

    def __init__(self, post: Callable[..., Any]) -> None:
        self.post = post
        self.may_post = lambda _: True
        self.settings = SimpleNamespace(max_body=1000, max_connections=100, workers=1)
        self.committer = SimpleNamespace(
            go=lambda: None, flush=lambda: None, full=False, waiting=0, gathers=False
        )

    def close(self) -> None:
        """Nothing is kept."""


@contextlib.contextmanager
def hosted(app: App) -> Iterator[int]:
    """The port on which a `Service` of this process serves an app."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    began = threading.Event()
    ends: list[Callable[[], None]] = []

    async def serve() -> None:
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(stopped.set) and None)
        loop.call_later(0.05, began.set)
        await Service(app).serve(listener, stopped)  # type: ignore[arg-type]

    thread = threading.Thread(target=lambda: uvloop.run(serve()), daemon=True)
    thread.start()
    assert began.wait(20)
    try:
        yield port
    finally:
        ends[0]()
        thread.join(20)
        assert not thread.is_alive()


def test_a_wake_up_survives_answers_that_fail() -> None:
    """One that raises is a 500; those told with it and after it are answered, each once."""
    told: list[Callable[[Any], None]] = []

    def fail() -> Response:
        raise LookupError

    def post_(_: Any, body: bytes, tell: Callable[[Any], None]) -> None:
        told.append(tell)
        if len(told) < 3:
            return
        for each in told:
            each(fail if each is told[0] else lambda: Response(200, [], b"right"))
            each(lambda: Response(500, [], b"second verdict"))
        del told[:]

    with hosted(App(post_)) as port:
        lines = [Line(port) for _ in range(3)]
        for _ in range(3):
            for line in lines:
                line.socket.settimeout(10)
                line.send(post("x"))
            found = sorted(line.answer().status for line in lines)
            assert found == [200, 200, 500]
        for line in lines:
            line.__exit__()


# --- clients that do not take their answers ------------------------------------------------------


def test_answers_that_are_not_taken_hold_back_further_requests(shared: OwnServer) -> None:
    """The server's memory does not grow; and a client that reads in the end gets them all."""
    events = [attributes(f"unread-{n}", f"a/b/c/model-{n}") for n in range(300)]
    shared.batch(*[{**each, "data": feedback()} for each in events])
    shared.exposition()
    before = memory(shared)
    with Line(shared.port) as line:
        line.socket.setblocking(False)
        text, sent = 3000 * get("/metrics"), 0
        deadline = time.monotonic() + 5
        while sent < len(text) and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                sent += line.socket.send(text[sent : sent + 65536])
            time.sleep(0.001)
        time.sleep(5)
        assert shared.get("/health/liveness").status == 200
        assert memory(shared) - before < 20 << 20
        line.socket.setblocking(True)
        for _ in range(20):
            assert line.answer().status == 200


def test_who_takes_no_answer_is_closed() -> None:
    """After a time without any progress."""
    client = Client()
    client.send(3 * post("x"))
    client.transport.unsent = 1 << 20
    client.connection.pause_writing()
    client.requests[0].answer(200, [], b"")
    assert len(client.requests) == 1  # no further one is handed on
    assert not client.transport.reading
    client.transport.unsent -= 1
    client.wait(http1.TAKE_SECONDS)
    client.wait(http1.TAKE_SECONDS)
    assert client.transport.state == "open"
    client.connection.resume_writing()
    assert len(client.requests) == 2
    assert client.transport.reading
    client.connection.pause_writing()
    client.wait(http1.TAKE_SECONDS + 1)
    assert client.transport.state == "aborted"


def test_the_longest_stalled_client_is_closed_first() -> None:
    """Where many hold too much together; the last may hold what it was sent."""
    pool = Connections(1000, 10)
    clients = [Client(pool) for _ in range(4)]
    for client in clients:
        client.transport.unsent = connections.MAX_UNSENT_BYTES // 2
        client.connection.pause_writing()
    assert [each.transport.state for each in clients] == ["aborted", "aborted", "open", "open"]


def test_requests_of_one_connection_wait_unparsed() -> None:
    """A read of many requests does not become as many objects."""
    client = Client()
    client.send((2 * http1.READ_SIZE // len(PROBE)) * PROBE)
    waiting = len(client.connection._waiting)
    assert waiting <= http1.MAX_WAITING + http1.SLICE // len(PROBE)
    assert not client.transport.reading
    answered = 0
    while len(client.requests) > answered:
        client.requests[answered].answer(200, [], b"")
        answered += 1
    assert answered == 2 * http1.READ_SIZE // len(PROBE)
    assert client.transport.reading


# --- heads and trailers --------------------------------------------------------------------------


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("cut", [http1.READ_SIZE, 1000])
def test_the_limit_of_a_head_is_exact(more: int, cut: int) -> None:
    """However it is cut."""
    client = Client()
    start = b"GET / HTTP/1.1\r\nHost: x\r\na: "
    text = start + b"y" * (http1.MAX_HEAD - len(start) - 4 + more) + b"\r\n\r\n"
    for at in range(0, len(text), cut):
        client.send(text[at : at + cut])
    assert len(client.requests) == 1 - more
    assert client.transport.sent.startswith(b"HTTP/1.1 431 ") == bool(more)


@pytest.mark.parametrize("more", [0, 1])
def test_the_number_of_headers_is_limited(more: int) -> None:
    """A head of many small ones is much larger in memory."""
    client = Client()
    lines = [f"h{n}: x" for n in range(http1.MAX_HEADERS - 1 + more)]
    client.send(get("/", *lines))
    assert len(client.requests) == 1 - more
    assert client.transport.sent.startswith(b"HTTP/1.1 431 ") == bool(more)


def test_large_heads_and_trailers_leave_nothing(shared: OwnServer) -> None:
    """A head of 256 kB and endless trailers are refused; names of headers are not kept."""
    with Line(shared.port) as line:
        line.send(b"GET / HTTP/1.1\r\nHost: x\r\na: " + b"y" * 60_000 + b"\r\n")
        with contextlib.suppress(OSError):
            line.send(b"".join(b"a%d: %b\r\n" % (n, b"y" * 60_000) for n in range(3)) + b"\r\n")
        assert line.answer().status == 431
    before = memory(shared)
    chunked = post("trailers", "Transfer-Encoding: chunked", body=b"1\r\n{\r\n0\r\n")
    with Line(shared.port) as line:
        with contextlib.suppress(OSError):
            line.send(chunked, *[b"t%d: x\r\n" % n for n in range(20_000)])
        assert line.answer().status == 400
    with Line(shared.port) as line:
        for n in range(1024):
            name = f"x{n}".ljust(60_000, "y")
            line.send(get("/health/liveness", f"{name}: 1"))
            assert line.answer().status == 200
    assert memory(shared) - before < 20 << 20


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"GET /health/liveness HTTP/1.1\r\n\r\n", 400),
        (b"GET /health/liveness HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET /health/liveness HTTP/1.1\r\nhOsT: a\r\nHost: a\r\n\r\n", 400),
        (b"GET /health/liveness HTTP/1.1\r\nHost:\r\n\r\n", 200),
        (b"GET /health/liveness HTTP/1.0\r\n\r\n", 200),
        (get("//[x"), 404),
        (get("//host/metrics"), 404),
        (get("//health/liveness"), 404),
        (get("http://host/health/liveness"), 200),
        (get("HTTP://host"), 200),
        (get("/metrics?x=//y"), 200),
        (get("*", method="OPTIONS"), 404),
    ],
)
def test_hosts_and_targets(shared: OwnServer, text: bytes, status: int) -> None:
    """A target is a path as it was sent, without an authority; HTTP/1.1 names its host once."""
    with Line(shared.port) as line:
        line.send(text)
        assert line.answer().status == status


def test_head_of_the_page_is_no_event(shared: OwnServer) -> None:
    """Monitors ask so; nothing was rejected."""
    before = outcomes(shared.exposition())
    with Line(shared.port) as line:
        line.send(get("/", method="HEAD") + get("/?format=json", method="HEAD"))
        assert line.answer("HEAD").status == 200
        assert line.answer("HEAD").headers["content-type"] == "application/json"
    assert outcomes(shared.exposition()) == before


# --- many connections ----------------------------------------------------------------------------


def test_idle_connections_make_room(tmp_path: Path) -> None:
    """The one that is idle longest is closed for a new one."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(OwnServer(tmp_path, FEEDBACK_MAX_CONNECTIONS="20"))
        lines = []
        for burst in (19, 10):
            lines += [stack.enter_context(Line(server.port)) for _ in range(burst)]
            for line in lines[-10:]:
                line.send(post("x"))
                assert line.answer().status == 200
            time.sleep(connections.YOUNG_SECONDS + 2)
        for line in lines[:9]:
            with contextlib.suppress(ConnectionResetError):
                assert line.closed()
        lines[-1].send(post("y"))
        assert lines[-1].answer().status == 200


def test_probes_are_answered_however_many_are_busy(tmp_path: Path) -> None:
    """Also with few file descriptors; all else on top is a 503, which senders try again."""
    server = OwnServer(tmp_path, FEEDBACK_MAX_CONNECTIONS="100000")
    command = ["prlimit", "--nofile=400:400", *server.command()]
    server.command = lambda: command  # type: ignore[method-assign]
    with server:
        server.hang_up()
        with contextlib.ExitStack() as stack:
            for _ in range(420):
                stack.enter_context(Line(server.port)).send(b"GET /slow HTTP/1.1\r\n")
            for _ in range(20):
                with Line(server.port) as line:
                    line.send(PROBE)
                    assert line.answer().status == 200
                    assert line.closed()
            with Line(server.port) as line:
                line.send(post("x"))
                answer = line.answer()
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")


# --- bodies --------------------------------------------------------------------------------------


def test_bodies_share_a_budget(tmp_path: Path) -> None:
    """Clients that hold back the last byte hold little together, and lose to who sends."""
    size = 1 << 20
    with OwnServer(tmp_path, FEEDBACK_MAX_BODY="1MiB") as server:
        before = memory(server)
        with contextlib.ExitStack() as stack:
            for n in range(40):
                line = stack.enter_context(Line(server.port))
                line.socket.settimeout(0.5)
                with contextlib.suppress(OSError):
                    line.send(post(f"held-{n}", body=b" " * size)[:-1])
            assert memory(server) - before < 16 << 20
            began = time.monotonic()
            body = BODY + b" " * (size - len(BODY))
            with Line(server.port) as line:
                line.send(PROBE)
                assert line.answer().status == 200
                line.send(post("honest", body=body))
                line.socket.settimeout(http1.REQUEST_SECONDS)
                assert line.answer().status == 200
            assert time.monotonic() - began < http1.REQUEST_SECONDS


def test_shares_of_the_budget_are_granted_in_order() -> None:
    """A body waits for its share unread, and goes on when another is answered."""
    limit = 1 << 20
    pool = Connections(limit, 100)
    clients = [Client(pool) for _ in range(connections.BODIES + 2)]
    for n, client in enumerate(clients):
        client.send(post(f"{n}", body=b" " * limit)[:-1])
    reading = [client.transport.reading for client in clients]
    assert reading == [True] * connections.BODIES + [False, False]
    clients[0].send(b" ")
    (request,) = clients[0].requests
    assert not clients[-2].requests
    request.answer(202, [], b"")
    assert [clients[-2].transport.reading, clients[-1].transport.reading] == [True, False]
    clients[1].connection.connection_lost(None)
    assert clients[-1].transport.reading


def test_a_slow_body_loses_its_share_to_who_waits() -> None:
    """With a 503, since a retry can succeed; without anybody waiting it may be slow."""
    limit = 1 << 20
    pool = Connections(limit, 100)
    slow = [Client(pool) for _ in range(connections.BODIES)]
    for client in slow:
        client.send(post("slow", body=b" " * limit)[: 1 << 17])
    for _ in range(5):
        slow[0].wait(1)
    assert [client.transport.state for client in slow] == ["open"] * len(slow)
    honest = Client(pool)
    honest.send(post("honest", body=b" " * limit)[: 1 << 17])
    assert not honest.transport.reading
    slow[0].wait(1)
    assert honest.transport.reading
    assert slow[0].transport.sent.startswith(b"HTTP/1.1 503 ")


def test_a_body_that_stops_just_before_its_end_loses_its_share() -> None:
    """However fast it came so far."""
    limit = 4 << 20
    pool = Connections(limit, 100)
    holding = [Client(pool) for _ in range(connections.BODIES)]
    for client in holding:
        client.send(post("holding", body=b" " * limit)[:-1])
    honest = Client(pool)
    honest.send(post("honest", body=b" " * limit)[: 1 << 17])
    assert not honest.transport.reading
    for _ in range(connections.MAX_LAGS + 1):
        honest.wait(1)
    assert honest.transport.reading
    states = sorted(client.transport.state for client in holding)
    assert states == ["closing"] + ["open"] * (len(holding) - 1)  # nobody waits for the others'
    assert honest.transport.state == "open"


def test_a_body_that_had_to_wait_is_not_slow_for_that() -> None:
    """Its time begins with its share, and a loop that was busy counts against nobody."""
    limit = 4 << 20
    pool = Connections(limit, 100)
    clients = [Client(pool) for _ in range(connections.BODIES + 2)]
    for client in clients:
        client.send(post("x", body=b" " * limit)[: 1 << 17])
    first, waited, other = clients[0], clients[-2], clients[-1]
    for _ in range(6):
        for client in clients[: connections.BODIES]:
            client.send(b" " * (1 << 19))
        first.wait(1)
    first.connection.connection_lost(None)
    assert (waited.transport.reading, other.transport.reading) == (True, False)
    first.wait(9)
    assert waited.transport.state == "open"


def test_tiny_chunks_are_one_body() -> None:
    """A million parts of a body are no million objects."""
    requests: list[Request] = []
    client = Client(Connections(1 << 20, 10), requests.append)
    client.send(post("x", "Transfer-Encoding: chunked", body=b"2\r\nxx\r\n" * 5000 + b"0\r\n\r\n"))
    assert [request.body for request in requests] == [b"xx" * 5000]


def test_a_large_body_leaves_the_loop_free(tmp_path: Path) -> None:
    """Probes are answered while it is decoded, evaluated and shown, and SIGTERM ends it soon."""
    truths = ",".join(str(n % 997) for n in range(400_000))
    labels = ",".join(str((n * n + n // 997) % 997) for n in range(400_000))
    truth, response = (f'{{"data":{{"ndarray":[{each}]}}}}' for each in (truths, labels))
    body = f'{{"truth":{truth},"response":{response}}}'.encode()
    slowest = 0.0
    with OwnServer(tmp_path) as server, Line(server.port) as busy:
        busy.send(post("large", body=body))
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(busy.answer().status))
        asking.start()
        while not answers:
            began = time.monotonic()
            assert server.get("/health/liveness").status == 200
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.01)
        asking.join()
        assert answers == [200]
        assert slowest < 1
        busy.send(post("again", body=body))
        time.sleep(0.2)
        assert end(server) < 20


# --- the end -------------------------------------------------------------------------------------


def test_slow_clients_do_not_delay_the_end(tmp_path: Path) -> None:
    """The drain has a deadline."""
    with OwnServer(tmp_path) as server, Line(server.port) as slow:
        slow.send(post("slow")[:-5])
        time.sleep(0.2)
        assert end(server) < 3 * DRAIN_SECONDS


def test_what_is_acknowledged_is_flushed_at_the_signal(tmp_path: Path) -> None:
    """Not after the last slow client: the kubelet's SIGKILL may come before."""
    with OwnServer(tmp_path, FEEDBACK_SNAPSHOT_INTERVAL="3600") as server:
        assert server.feedback("1", "a/b/c/d").status == 200
        with Line(server.port) as slow:
            slow.send(post("slow")[:-5])
            time.sleep(0.2)
            os.kill(server.pids[0], signal.SIGTERM)
            time.sleep(1.5)
            server.restart()
        assert server.models()["a/b/c/d"]["events"] == 1


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """However it dies; else they would hold the port and the store."""
    with OwnServer(tmp_path, WEB_CONCURRENCY="2") as server:
        parent, *workers = server.pids
        server.hang_up()
        os.kill(parent, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), 20)


_WITH_A_BUG = """
import runpy
from metrics.committer.transaction import Transactions

commit = Transactions.commit

def fail(self, works, ahead=None):
    if any(entry.model.endswith("/fatal") for work in works for entry in work.entries):
        raise SystemExit
    return commit(self, works, ahead)

Transactions.commit = fail
runpy.run_module("metrics", run_name="__main__")
"""


class FragileServer(OwnServer):
    """A server in which an event of one model ends the committer's thread."""

    def command(self) -> list[str]:
        """What is run."""
        return [sys.executable, "-c", _WITH_A_BUG, "serve"]


def test_a_worker_that_cannot_commit_any_more_is_replaced(tmp_path: Path) -> None:
    """Probes would find the others alive, and half of all events be refused for ever."""
    with FragileServer(tmp_path, WEB_CONCURRENCY="2") as server:
        workers = server.pids[1:]
        assert server.feedback("1", "a/b/c/fatal").status == 503
        server.hang_up()
        until(lambda: len(server.pids) == 3 and server.pids[1:] != workers, 20)
        until(lambda: server.get("/health/readiness").status == 200)
        for number in range(40):
            server.hang_up()
            assert server.feedback(str(number), "a/b/c/d").status == 200
        assert server.terminate() == 0


def test_liveness_fails_without_the_committers_thread() -> None:
    """So that the platform replaces a process that can never answer an event again."""
    app = App(lambda *_: None)
    with hosted(app) as port:
        for alive, status in ((True, 200), (False, 503)):
            app.alive = alive
            with Line(port) as line:
                line.send(PROBE)
                assert line.answer().status == status
