"""The crash supervisor: feedback at full rate, duplicates injected, SIGKILL at random moments.

`python -m tests.soak` prints one line: cycles, events, lost, double counted; `--store redis` keeps
state in Redis, `--kill redis` kills that instead of the function. A short run is in `make test`
(tests/test_crash.py). Every event is sent until it is acknowledged, some again after that, and at
the end every cell of the confusion matrix must hold exactly its events.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .servers import RedisServer, free_port

ROOT = Path(__file__).parent.parent
LABELS = 30
MODEL = "/v1/models/soak/soak/soak/soak"
HEADERS = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-type": "io.seldon.serving.feedback",
    "ce-source": "/soak",
    "ce-namespace": "soak",
    "ce-inferenceservicename": "soak",
    "ce-endpoint": "soak",
    "ce-modelid": "soak",
}


class Function:
    """One function process on a port of its own, started and killed as often as asked."""

    def __init__(self, store: str, port: int | None = None, **variables: str) -> None:
        self.port = port or free_port()
        self._environ = {
            **os.environ,
            "PORT": str(self.port),
            "HOST": "127.0.0.1",
            "FEEDBACK_STORE": store,
            "LOG_LEVEL": "ERROR",
            **variables,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; does not wait until it serves."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "metrics", "serve"],
            cwd=ROOT,
            env=self._environ,
            start_new_session=True,
        )

    def __enter__(self) -> Function:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def terminate(self) -> None:
        """Send SIGTERM, as the kubelet does."""
        assert self._process is not None
        self._process.terminate()

    def kill(self) -> None:
        """End all its processes at once, if any are left, and wait until it is gone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait(self) -> int:
        """Wait until it ends; its exit status."""
        assert self._process is not None
        return self._process.wait(60)

    def running(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def get(self, path: str) -> tuple[int, bytes]:
        """GET a path, trying until it serves."""
        deadline = time.monotonic() + 60
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            finally:
                connection.close()


@dataclass
class Traffic:
    """Clients that post distinct events, each until it is acknowledged, to one of some ports."""

    ports: list[int]
    connections: int = 8
    duplicates: float = 0.1
    seed: int = 0
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    acknowledged: int = 0
    repeated: int = 0
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._given_up = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._client, args=(n,), daemon=True)
            for n in range(self.connections)
        ]

    def start(self) -> None:
        """Start the clients."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Have every client finish the event it is about: acknowledged, all of them."""
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
            if thread.is_alive():
                self.errors.append("a client never got its last event acknowledged")

    def __enter__(self) -> Traffic:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Have every client give up."""
        self._stop.set()
        self._given_up.set()

    def _client(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        links: dict[int, http.client.HTTPConnection] = {}
        while not self._stop.is_set():
            event = next(self._numbers)
            truth, prediction = str(event % LABELS), str(event // LABELS % LABELS)
            body = json.dumps(
                {
                    "truth": {"data": {"ndarray": [truth]}},
                    "response": {"data": {"ndarray": [prediction]}},
                }
            )
            self._post(chance, links, event, body)
            with self._lock:
                self.sent[truth, prediction] += 1
                self.acknowledged += 1
            if chance.random() < self.duplicates:
                self._post(chance, links, event, body)
                with self._lock:
                    self.repeated += 1
        for link in links.values():
            link.close()

    def _post(
        self,
        chance: random.Random,
        links: dict[int, http.client.HTTPConnection],
        event: int,
        body: str,
    ) -> None:
        """Post one event until it is acknowledged, as a broker does."""
        headers = {**HEADERS, "ce-id": f"{self.seed}-{event}"}
        while not self._given_up.is_set():
            port = chance.choice(self.ports)
            link = links.get(port)
            if link is None:
                link = links[port] = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                link.request("POST", "/", body, headers)
                answer = link.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                link.close()
                time.sleep(0.01)
                continue
            if answer.status == 200:
                return
            if answer.status != 503:
                self.errors.append(f"HTTP {answer.status}")
                return
            time.sleep(0.01)


@dataclass(frozen=True)
class Verdict:
    """What a run showed."""

    cycles: int
    events: int
    repeated: int
    lost: int
    double_counted: int
    errors: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"cycles={self.cycles} events={self.events} sent_again={self.repeated} "
            f"lost={self.lost} double_counted={self.double_counted} errors={len(self.errors)}"
        )

    @property
    def exact(self) -> bool:
        """Whether every acknowledged event counted exactly once."""
        return not (self.lost or self.double_counted or self.errors)


def judge(function: Function, traffic: Traffic, cycles: int) -> Verdict:
    """Compare what the function says, after a fresh start, with what was sent."""
    _, body = function.get(MODEL)
    view = json.loads(body)
    matrix = view["confusion_matrix"]
    counted = Counter(
        {
            (truth, prediction): rows
            for truth, row in zip(matrix["labels"], matrix["matrix"], strict=True)
            for prediction, rows in zip(matrix["labels"], row, strict=True)
            if rows
        }
    )
    errors = list(traffic.errors)
    if view["events"] != sum(counted.values()):
        errors.append(f"{view['events']} events, but {sum(counted.values())} rows in the matrix")
    return Verdict(
        cycles,
        traffic.acknowledged,
        traffic.repeated,
        (traffic.sent - counted).total(),
        (counted - traffic.sent).total(),
        tuple(errors),
    )


def crash(
    store: str,
    cycles: int,
    seed: int = 0,
    progress: bool = False,
    redis: RedisServer | None = None,
    **variables: str,
) -> Verdict:
    """Kill the function, or `redis`, `cycles` times under load at random moments."""
    chance = random.Random(seed)
    with Function(store, **variables) as function:
        function.start()
        with Traffic([function.port], seed=seed) as traffic:
            for cycle in range(cycles):
                before = traffic.acknowledged
                deadline = time.monotonic() + 60
                while traffic.acknowledged == before and time.monotonic() < deadline:
                    time.sleep(0.002)
                if traffic.acknowledged == before:
                    traffic.errors.append("nothing was acknowledged for a minute")
                    break
                time.sleep(chance.uniform(0, 0.1))
                if not function.running():
                    traffic.errors.append("the function ended by itself")
                if redis is None:
                    function.kill()
                    function.start()
                else:
                    redis.restart()
                if progress and cycle % 100 == 99:
                    print(f"{cycle + 1} cycles, {traffic.acknowledged} events", flush=True)
            traffic.stop()
        function.terminate()
        function.wait()
        function.start()
        return judge(function, traffic, cycles)


def main() -> int:
    """Run the supervisor from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--store", choices=("sqlite", "redis"), default="sqlite")
    parser.add_argument("--kill", choices=("function", "redis"), default="function")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    server = None
    with contextlib.ExitStack() as stack:
        if options.store == "redis":
            server = stack.enter_context(RedisServer(appendonly="yes", appendfsync="always"))
            store = server.url
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-"))
            store = f"sqlite:///{directory}/feedback.db"
        print(f"store={options.store} kill={options.kill} seed={options.seed}", flush=True)
        verdict = crash(
            store,
            options.cycles,
            options.seed,
            True,
            server if options.kill == "redis" else None,
            WEB_CONCURRENCY=str(options.workers),
        )
    print(verdict)
    for error in verdict.errors[:20]:
        print(f"  {error}")
    return 0 if verdict.exact else 1


if __name__ == "__main__":
    sys.exit(main())
