"""A lean load generator: keep-alive connections on one event loop, each request written by hand.

Run as a process of its own (`python -m benchmarks.load`), so that it can be pinned to a core.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import time
from typing import Any

HEAD = (
    "POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nce-specversion: 1.0\r\n"
    "ce-type: io.seldon.serving.feedback\r\nce-source: /bench\r\nce-namespace: seldon\r\n"
    "ce-inferenceservicename: iris\r\nce-endpoint: default\r\nce-modelid: classifier\r\n"
    "ce-requestid: 0123456789\r\nce-id: {id}\r\ncontent-length: {length}\r\n\r\n"
)


def bodies(rows: int, count: int, chance: random.Random) -> list[bytes]:
    """Feedback of `rows` rows of three probabilities each, labels as the truth."""
    found = []
    for _ in range(count):
        scores, truths = [], []
        for _ in range(rows):
            parts = [chance.random() for _ in range(3)]
            scores.append([part / sum(parts) for part in parts])
            truths.append(chance.randrange(3))
        data = {
            "response": {"data": {"ndarray": scores}},
            "truth": {"data": {"ndarray": truths}},
        }
        found.append(json.dumps(data).encode())
    return found


class Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = bytearray()
        self._missing = 0
        self._began = 0.0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Take in an answer, perhaps in parts, and go on."""
        if not self._missing:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            self._run.answered(int(head[9:12]), time.perf_counter() - self._began)
            self._missing = length - (len(self._buffer) - end - 4)
            self._buffer.clear()
        else:
            self._missing -= len(data)
        if not self._missing:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        """The run is over, or the server closed the connection, which is counted."""
        if not self._run.over:
            self._run.lost += 1

    def _send(self) -> None:
        if self._run.over:
            self._transport.close()
            return
        self._began = time.perf_counter()
        self._transport.write(self._run.request())


class Run:
    """One measurement."""

    def __init__(self, rows: int, seed: int) -> None:
        chance = random.Random(seed)
        self._salt = f"{chance.getrandbits(64):x}"
        self._numbers = itertools.count()
        self._bodies = itertools.cycle(bodies(rows, 2000 // rows + 1, chance))
        self.statuses: dict[int, int] = {}
        self.latencies: list[float] = []
        self.lost = 0
        self.over = False

    def request(self) -> bytes:
        """The next request: an event of its own id."""
        body = next(self._bodies)
        head = HEAD.format(id=f"{self._salt}-{next(self._numbers)}", length=len(body))
        return head.encode() + body

    def answered(self, status: int, seconds: float) -> None:
        """Note an answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.latencies.append(seconds)

    async def measure(self, port: int, connections: int, seconds: float) -> dict[str, Any]:
        """Load for `seconds`; what was seen."""
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        for _ in range(connections):
            await loop.create_connection(lambda: Connection(self), "127.0.0.1", port)
        await asyncio.sleep(seconds)
        self.over = True
        elapsed = time.perf_counter() - began
        latencies = sorted(self.latencies) or [0.0]
        return {
            "requests": len(self.latencies),
            "statuses": self.statuses,
            "lost": self.lost,
            "rate": self.statuses.get(200, 0) / elapsed,
            "p50": latencies[len(latencies) // 2],
            "p99": latencies[int(len(latencies) * 0.99)],
        }


def main() -> None:
    """Measure as the command line says and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run = Run(options.rows, options.seed)
    print(json.dumps(asyncio.run(run.measure(options.port, options.connections, options.seconds))))


if __name__ == "__main__":
    main()
