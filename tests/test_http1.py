"""HTTP/1.1 as our own host speaks it: a real server process, and raw bytes on real sockets."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metrics import http1
from metrics.connections import Connections
from metrics.http1 import Connection, Request
from tests.servers_http import Answer, OwnServer, attributes, environment, feedback, until

BODY = json.dumps(feedback()).encode()
LIMIT = 4096


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """One server for all tests that leave it running."""
    with OwnServer(tmp_path_factory.mktemp("http1"), FEEDBACK_MAX_BODY=str(LIMIT)) as server:
        yield server


class Line:
    """A connection on which bytes go out as they are given."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Send each part by itself."""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            self.socket.sendall(part)

    def answer(self, method: str = "GET") -> Answer:
        """The next answer; fails where its length or its date is not told."""
        head: list[bytes] = []
        while not head or head[-1] != b"\r\n":
            head.append(self._file.readline())
            assert head[-1], f"closed after {head}"
        first, *lines = [line.decode("latin-1").rstrip("\r\n") for line in head[:-1]]
        pairs = [tuple(line.split(": ", 1)) for line in lines]
        headers: dict[str, str] = dict(pairs)  # type: ignore[arg-type]
        assert len(headers) == len(pairs), "a header came twice"
        status = int(re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", first)[1])  # type: ignore[index]
        length = int(headers["content-length"]) if method != "HEAD" else 0
        if status not in (400, 408, 431):
            time.strptime(headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
        return Answer(status, headers, self._file.read(length))

    def closed(self) -> bool:
        """Whether the server closes the connection now, and sends no more."""
        return self._file.read() == b""


def post(id: str, *more: str, body: bytes = BODY, version: str = "1.1") -> bytes:
    """A feedback event as bytes."""
    named = [f"ce-{name}: {text}" for name, text in attributes(id, "h/t/t/p").items()]
    lines = [f"POST / HTTP/{version}", "Host: x", "Content-Type: application/json", *named, *more]
    if not any(line.lower().startswith("transfer-encoding") for line in more):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str, *more: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *more, "", ""]).encode()


def counted(server: OwnServer) -> int:
    """Events that were counted for these tests' model."""
    model = server.models().get("h/t/t/p")
    return int(model["events"]) if model else 0


# --- requests and their answers -----------------------------------------------------------------


def test_requests_in_one_packet_are_answered_in_their_order(server: OwnServer) -> None:
    """Also those that need not wait, behind one that waits for its commit; however many."""
    before, many = counted(server), 3 * http1.MAX_WAITING
    with Line(server.port) as line:
        line.send(b"".join(post(f"many-{n}") + get("/health/liveness") for n in range(many)))
        for n in range(many):
            event = line.answer()
            assert (event.status, event.headers["ce-subject"]) == (200, "h/t/t/p"), n
            assert (line.answer().body, n) == (b"OK", n)
    assert counted(server) == before + many


def test_a_request_may_come_byte_by_byte(server: OwnServer) -> None:
    """Nothing depends on how the network cuts it."""
    text = post("bytewise") + get("/protocol")
    with Line(server.port) as line:
        line.send(*[text[at : at + 1] for at in range(len(text))])
        assert line.answer().status == 200
        assert line.answer().body == b"seldonfeedback.http"


@pytest.mark.parametrize(
    ("version", "header", "stays"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close", False),
        ("1.1", "Connection: keep-alive", True),
        ("1.0", "", False),
        ("1.0", "Connection: keep-alive", True),
    ],
)
def test_a_connection_stays_as_long_as_both_want(
    server: OwnServer, version: str, header: str, stays: bool
) -> None:
    """And the answer says what the client cannot know."""
    with Line(server.port) as line:
        for _ in range(2):
            line.send(get("/health/liveness", *([header] if header else []), version=version))
            answer = line.answer()
            said = answer.headers.get("connection")
            assert said == ("close" if not stays else "keep-alive" if header else None)
            if not stays:
                assert line.closed()
                break


def test_head_has_no_body(server: OwnServer) -> None:
    """And the next answer is found where it begins."""
    with Line(server.port) as line:
        line.send(get("/metrics", method="HEAD") + get("/health/liveness"))
        assert line.answer("HEAD").status == 200
        assert line.answer().body == b"OK"


def test_expect_continue_is_told_to_go_on(server: OwnServer) -> None:
    """As curl asks for it before it sends a large body."""
    with Line(server.port) as line:
        text = post("expects", "Expect: 100-continue")
        line.send(text[: -len(BODY)])
        assert line.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.send(BODY)
        assert line.answer().status == 200


def test_an_old_client_is_not_told_to_continue(server: OwnServer) -> None:
    """HTTP/1.0 knows no answer before the answer: it would be taken for it."""
    with Line(server.port) as line:
        text = post("old", "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        line.send(text[: -len(BODY)])
        line.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            line.socket.recv(100)
        line.socket.settimeout(30)
        line.send(BODY)
        assert line.answer().status == 200


def test_chunks_and_their_trailers(server: OwnServer) -> None:
    """A body in chunks of one byte is read, and no trailer becomes an attribute."""
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY)
    chunks += b"0\r\nce-modelid: another\r\nce-id: another\r\n\r\n"
    with Line(server.port) as line:
        line.send(post("chunked", "Transfer-Encoding: chunked", body=chunks))
        answer = line.answer()
        assert (answer.status, answer.headers["ce-subject"]) == (200, "h/t/t/p")
        line.send(post("chunked"))
        assert line.answer().headers["ce-id"] == answer.headers["ce-id"]  # a duplicate


def test_names_of_headers_in_any_case(server: OwnServer) -> None:
    """They are the same header."""
    with Line(server.port) as line:
        line.send(post("case").replace(b"ce-", b"Ce-").replace(b"Content", b"CONTENT"))
        assert line.answer().headers["ce-subject"] == "h/t/t/p"


def test_targets_in_all_their_forms(server: OwnServer) -> None:
    """Absolute, with a query, with what has to be encoded; and those that name nothing."""
    with Line(server.port) as line:
        line.send(post("absolute").replace(b"POST / ", b"POST http://x/ "))
        assert line.answer().status == 200
        line.send(post("query").replace(b"POST / ", b"POST /?x=1 "))
        assert line.answer().status == 200
        for path, status in (
            ("/v1/models/h/t/t/p?window=all", 200),
            ("/v1/models/h%2Ft/t/p/x", 404),
            ("/v1/models/%E2%98%83/t/t/p", 404),
            ("/nothing", 404),
        ):
            line.send(get(path))
            assert line.answer().status == status, path
        line.send(get("*", method="OPTIONS"))
        assert line.answer().status in (200, 404)
        line.send(get("/health/liveness"))
        assert line.answer().status == 200


def test_an_upgrade_is_not_taken(server: OwnServer) -> None:
    """The request is answered as HTTP/1.1, as is the next one."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    with Line(server.port) as line:
        line.send(get("/health/readiness", *upgrade))
        assert line.answer().body == b"OK"
        text = post("upgrade", *upgrade)
        line.send(text)
        assert line.answer().status == 200
        line.send(text[:150], text[150:-20], text[-20:])
        assert line.answer().status == 200
        chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
        line.send(post("upgrade", *upgrade, "Transfer-Encoding: chunked", body=chunks))
        assert line.answer().status == 200
        line.send(get("/health/liveness"))
        assert line.answer().status == 200


# --- what is no request, or too much of one ------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_400(server: OwnServer, text: bytes) -> None:
    """And the connection ends, for nobody knows where the next request would begin."""
    with Line(server.port) as line:
        line.send(get("/health/liveness") + text)
        assert line.answer().status == 200
        assert line.answer().status == 400
        assert line.closed()


def test_a_head_without_end_is_a_431(server: OwnServer) -> None:
    """A client cannot fill the memory with headers."""
    with Line(server.port) as line:
        line.send(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (http1.MAX_HEAD // 6 + 1))
        assert line.answer().status == 431
        assert line.closed()


def test_a_body_past_the_limit_is_read_on_and_refused(server: OwnServer) -> None:
    """However it is sent; and the connection goes on."""
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    with Line(server.port) as line:
        for text in (
            post("large", body=b"x" * (LIMIT + 1)),
            post("large", "Transfer-Encoding: chunked", body=5 * chunk + b"0\r\n\r\n"),
            post("large", "Expect: 100-continue", body=b"x" * (LIMIT + 1)),
        ):
            head, body = text.split(b"\r\n\r\n", 1)
            line.send(head + b"\r\n\r\n")
            if b"Expect" in text:
                assert line.socket.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            line.send(body)
            answer = line.answer()
            assert (answer.status, "at most 4096" in answer.detail) == (413, True)
        line.send(post("not so large"))
        assert line.answer().status == 200


def test_half_a_connection_is_enough_for_an_answer(server: OwnServer) -> None:
    """A client that has sent all it will send still hears what became of it."""
    with Line(server.port) as line:
        line.send(post("half"))
        line.socket.shutdown(socket.SHUT_WR)
        assert line.answer().status == 200
        assert line.closed()
    with Line(server.port) as line:
        line.send(post("half of it")[:-5])
        line.socket.shutdown(socket.SHUT_WR)
        assert line.closed()


def test_who_leaves_early_is_counted_all_the_same(server: OwnServer) -> None:
    """The event came whole; nobody else is harmed."""
    before = counted(server)
    for n in range(20):
        with Line(server.port) as line:
            line.send(post(f"early-{n}"))
    until(lambda: counted(server) == before + 20)
    assert "Traceback" not in server.log()


# --- the end ------------------------------------------------------------------------------------


def test_a_server_that_stops_answers_what_was_begun(tmp_path: Any) -> None:
    """Idle connections end at once; a request half read is read, answered, and its last."""
    with OwnServer(tmp_path) as server:
        with Line(server.port) as idle, Line(server.port) as busy:
            idle.send(get("/health/liveness"))
            assert idle.answer().status == 200
            text = post("at the end")
            busy.send(text[:-5])
            until(lambda: _queued(server.port))
            process = server._process
            assert process is not None
            process.terminate()
            assert idle.closed()
            assert process.poll() is None
            busy.send(text[-5:])
            answer = busy.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert busy.closed()
        assert process.wait(30) == 0
        server.start()
        assert counted(server) == 1


def _queued(port: int) -> bool:
    """Whether the server has read all that was sent to it, so that it knows of each request."""
    local = f":{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return all(row[4].endswith(":00000000") for row in rows if row[1].endswith(local))


def test_a_worker_that_is_killed_is_replaced(tmp_path: Any) -> None:
    """The port never stops answering, and nothing is lost."""
    with OwnServer(tmp_path, WEB_CONCURRENCY="3") as server:
        parent, *workers = server.pids
        assert len(workers) == 3
        assert server.feedback("1").status == 200
        server.hang_up()
        os.kill(workers[0], signal.SIGKILL)
        for n in range(20):
            server.hang_up()
            try:
                assert server.feedback(f"more-{n}").status == 200
            except (ConnectionError, http.client.HTTPException):
                continue  # it was the one that died: its clients try again
        until(lambda: len(server.pids) == 4 and workers[0] not in server.pids)
        assert server.pids[0] == parent
        assert server.feedback("1").status == 200
        assert server.terminate() == 0


def test_a_port_that_is_taken_is_one_line_and_status_2(server: OwnServer, tmp_path: Any) -> None:
    """A mistake of the user's, told at once."""
    second = subprocess.run(
        [sys.executable, "-m", "metrics", "serve"],
        env=environment(PORT=str(server.port), HOST="127.0.0.1", FEEDBACK_STORE="memory:"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert line.startswith(f"feedback-metrics: PORT: 127.0.0.1:{server.port}: ")


# --- patience, in this process -------------------------------------------------------------------


class Transport:
    """Takes note of what a connection does to its socket."""

    def __init__(self) -> None:
        self.sent = b""
        self.state = "open"
        self.reading = True
        self.unsent = 0

    def set_write_buffer_limits(self, high: int) -> None:
        """Take note of nothing."""

    def write(self, data: bytes) -> None:
        """Take what is sent."""
        self.sent += data

    def get_write_buffer_size(self) -> int:
        """What was not taken."""
        return self.unsent

    def pause_reading(self) -> None:
        """Read no more."""
        self.reading = False

    def resume_reading(self) -> None:
        """Read again."""
        self.reading = True

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.state != "open"

    def close(self) -> None:
        """Close once all is sent, which it never is here."""
        self.state = "closing"

    def abort(self) -> None:
        """Close at once."""
        self.state = "aborted"


class Client:
    """A connection in this process, whose requests nobody answers unless told to."""

    def __init__(self, pool: Connections | None = None, handle: Any = None) -> None:
        self.requests: list[Request] = []
        self.pool = Connections(1000, 10) if pool is None else pool
        self.transport = Transport()
        self.connection = Connection(self.pool, handle or self.requests.append)
        self.connection.connection_made(self.transport)

    def send(self, data: bytes) -> None:
        """Have the server read this, as far as it reads."""
        for at in range(0, len(data), http1.READ_SIZE):
            piece = data[at : at + http1.READ_SIZE]
            self.connection.get_buffer(-1)[: len(piece)] = piece
            self.connection.buffer_updated(len(piece))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.pool.sweep(self.pool.now + seconds)


@pytest.mark.parametrize(
    ("begun", "seconds"),
    [
        (b"GET / HT", http1.HEAD_SECONDS),
        (post("x")[:60], http1.HEAD_SECONDS),
        (post("x")[:-1], http1.BODY_SECONDS),
    ],
)
def test_a_client_that_stalls_is_given_up(begun: bytes, seconds: float) -> None:
    """In its head or its body."""
    client = Client()
    client.send(begun)
    client.wait(seconds)
    assert client.transport.state == "open"
    client.wait(1)
    assert client.transport.sent.startswith(b"HTTP/1.1 408 ")
    assert client.transport.state == "closing"
    client.send(post("x"))
    assert not client.requests
    client.wait(0)
    client.wait(http1.TAKE_SECONDS + 1)
    assert client.transport.state == "aborted"  # it does not even take its last answer


def test_a_client_that_is_slow_but_goes_on_is_waited_for() -> None:
    """As long as its body moves, up to the deadline of a whole request; so are idle ones."""
    client = Client()
    client.wait(http1.IDLE_SECONDS - 1)
    text = post("x")
    client.send(text[:-20])
    for at in range(20, 17, -1):
        client.wait(http1.BODY_SECONDS - 1)
        client.send(text[-at : 1 - at])
    client.send(text[-17:])
    assert client.transport.state == "open"
    assert [request.body for request in client.requests] == [BODY]
    client.wait(1000)  # it waits for us now
    client.requests[0].answer(200, [], b"")
    assert client.transport.state == "open"


def test_a_whole_request_has_a_deadline() -> None:
    """However steadily its bytes come."""
    client = Client()
    client.send(post("x")[: -len(BODY)])
    for at in range(http1.REQUEST_SECONDS.__trunc__() + 2):
        client.send(BODY[at : at + 1])
        client.wait(1)
    assert client.transport.sent.startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed_in_the_end() -> None:
    """Later than Go's clients close theirs, so that no request meets the end."""
    client = Client()
    client.wait(http1.IDLE_SECONDS)
    assert client.transport.state == "open"
    client.wait(1)
    assert (client.transport.state, client.transport.sent) == ("closing", b"")


def test_two_clients_share_nothing() -> None:
    """Each connection has its own parser."""
    pool = Connections(1000, 10)
    one, other = Client(pool), Client(pool)
    text = post("x")
    one.send(text[:50])
    other.send(text)
    one.send(text[50:])
    found = one.requests + other.requests
    assert [request.headers["ce-id"] for request in found] == ["x", "x"]
