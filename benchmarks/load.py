"""The load generator: keep-alive connections in one epoll loop, a request on each at all times.

Requests come as bytes, answers are checked and timed one by one, and there is no framework
between: the `ceiling` experiment shows how far it is from being what is measured.
"""

from __future__ import annotations

import itertools
import math
import select
import socket
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

WARM_UP = 0.3
"""Seconds of load before the clock starts."""
PATIENCE = 30.0
"""Seconds without any answer after which a run fails."""


class BadAnswerError(Exception):
    """The server did not do what the benchmark measures."""


@dataclass
class Seen:
    """What a run saw while its clock ran, and `accepted` from the first event to the last."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: array[float] = field(default_factory=lambda: array("d"))
    """Seconds, of accepted requests only."""
    accepted: int = 0
    server_cpu: float = 0.0
    own_cpu: float = 0.0

    @property
    def requests(self) -> int:
        """All answers, shed ones included."""
        return self.statuses.total()

    @property
    def rate(self) -> float:
        """Accepted requests a second."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """A quantile of the latencies, seconds."""
        return sorted(self.latencies)[int(share * len(self.latencies))]


@dataclass(slots=True)
class _Client:
    """One connection, and the answer it has so far."""

    socket: socket.socket
    sent: float = 0.0
    answer: bytes = b""


def drive(
    port: int,
    requests: Iterator[bytes],
    connections: int = 64,
    seconds: float = math.inf,
    replies: bool = True,
    shedding: bool = False,
    cpu: Callable[[], float] = lambda: 0.0,
) -> Seen:
    """Load a server for so many seconds after a warm-up, or until there are no more requests.

    `replies`: every 200 must carry a CloudEvent, or else none may. `shedding`: 503 with
    Retry-After is no failure. `cpu` tells the seconds of CPU time that the server has used.
    Raises BadAnswerError.
    """
    clock = time.perf_counter
    seen = Seen()
    poll = select.epoll()
    clients: dict[int, _Client] = {}
    for request in itertools.islice(requests, connections):
        opened = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(opened, select.EPOLLIN)
        clients[opened.fileno()] = _Client(opened, clock())
        opened.sendall(request)
    waiting = len(clients)
    measuring, end = False, clock() + (WARM_UP if seconds < math.inf else 0.0)
    while waiting:
        ready = poll.poll(PATIENCE)
        if not ready:
            raise BadAnswerError(f"no answer for {PATIENCE:g} s")
        for number, _ in ready:
            client = clients[number]
            answer = client.answer + client.socket.recv(1 << 18)
            status = _status(answer, replies, shedding)
            if not status:
                client.answer = answer
                continue
            client.answer = b""
            now = clock()
            seen.accepted += status != 503
            if measuring:
                seen.statuses[status] += 1
                if status != 503:
                    seen.latencies.append(now - client.sent)
            request = next(requests, None)
            if request is None:
                waiting -= 1
            else:
                client.sent = now
                client.socket.sendall(request)
        now = clock()
        if now >= end and not measuring and not seen.seconds:
            measuring, began, end = True, now, now + seconds
            seen.server_cpu, seen.own_cpu = -cpu(), -time.process_time()
        elif measuring and (now >= end or not waiting):
            measuring, seen.seconds = False, now - began
            seen.server_cpu += cpu()
            seen.own_cpu += time.process_time()
            requests = iter(())  # what is under way is still answered, and not measured
    poll.close()
    for client in clients.values():
        client.socket.close()
    return seen


def _status(data: bytes, replies: bool, shedding: bool) -> int:
    """The status of a whole answer; 0 where more is to come. Raises BadAnswerError."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if not data:
            raise BadAnswerError("the server closed the connection")
        return 0
    head = data[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    length = int(head[at + 17 : head.find(b"\r\n", at + 17) % (end + 1)])
    if len(data) < end + 4 + length:
        return 0
    status = int(head[9:12])
    if status == 503 and shedding and b"\r\nretry-after:" in head:
        return status
    if status != 200 or replies != bool(length and _is_event(head)):
        raise BadAnswerError(data[:1000].decode(errors="replace"))
    return status


def _is_event(head: bytes) -> bool:
    return b"\r\nce-id:" in head or b"\r\ncontent-type: application/cloudevents" in head
