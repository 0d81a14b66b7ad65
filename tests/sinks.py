"""Sinks for tests: HTTP servers that keep what they took, and fail as they are told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Delivery(NamedTuple):
    """One request that a sink got."""

    at: float
    """`time.monotonic`."""
    status: int
    """What it was answered with."""
    attributes: dict[str, str]
    data: Any


class Receiver:
    """An HTTP/1.1 sink. `answer` gives the status for a request's attributes, and may block."""

    def __init__(self, port: int = 0) -> None:
        self.answer: Callable[[dict[str, str]], int] = lambda _: 202
        self.hang_up_after = False
        """Whether a connection is closed, without a word, once a request of it is answered."""
        self.lose_answer = False
        """Whether the next answer is not sent, but its connection closed."""
        self.headers: dict[str, str] = {}
        """Sent with each answer."""
        self.deliveries: list[Delivery] = []
        """All requests, in their order, with those that were refused."""
        self.connections = 0
        self._open: set[socket.socket] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver.connections += 1
                receiver._open.add(self.connection)

            def finish(self) -> None:
                receiver._open.discard(self.connection)
                super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                found = {name.lower(): text for name, text in self.headers.items()}
                named = {name[3:]: text for name, text in found.items() if name.startswith("ce-")}
                at = time.monotonic()
                status = receiver.answer(named)
                receiver.deliveries.append(Delivery(at, status, named, json.loads(body)))
                if receiver.lose_answer:
                    receiver.lose_answer = False
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, text in {"content-length": "0", **receiver.headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.close_connection = receiver.hang_up_after

            def log_message(self, *_: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def taken(self) -> list[Delivery]:
        """What was answered 2xx."""
        return [each for each in self.deliveries if each.status < 300]

    @property
    def bodies(self) -> list[Any]:
        """The data of what was answered 2xx."""
        return [each.data for each in self.taken]

    @property
    def alerts(self) -> list[dict[str, str]]:
        """The attributes of the alerts that were answered 2xx."""
        named = [each.attributes for each in self.taken]
        return [each for each in named if each["type"].endswith(".alert")]

    @property
    def open_connections(self) -> int:
        """Connections that are open."""
        return len(self._open)

    def hang_up(self) -> None:
        """Close all connections that are open now."""
        for each in tuple(self._open):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self.hang_up()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
