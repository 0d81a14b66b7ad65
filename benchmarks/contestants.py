"""The servers that are measured: each started as a user would start it, and held to one core."""

from __future__ import annotations

import atexit
import http.client
import importlib.util
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers import free_port

from . import load
from .feedback import SINGLE, Shape, requests

ROOT = Path(__file__).parent.parent
FUNCTIONS = Path(__file__).parent / "functions"
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = {CORES[0]}, {CORES[-1]}
PARLIAMENTS_PORT = 8080
"""Hard-coded there."""
START_SECONDS = 60.0
STOP_SECONDS = 30.0
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def held_to(cores: set[int]) -> Iterator[None]:
    """Have processes that are started within run on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass
class Contestant:
    """A server under a name."""

    name: str
    command: list[str]
    port: int
    variables: dict[str, str] = field(default_factory=dict)
    directory: Path = ROOT
    replies: bool = True
    """Whether it answers events with a CloudEvent."""
    counts: bool = False
    """Whether it can tell how many events it counted."""
    accepted: int = 0
    """Events it answered with 2xx, by the load generator's count."""
    process: subprocess.Popen[bytes] | None = None
    runs: int = 0

    def start(self) -> float:
        """Start it; seconds from the start of its process to its first accepted event."""
        self._await_port()
        environ = {**os.environ, "LOG_LEVEL": "ERROR", **self.variables}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # images carry bytecode
        first = next(self._events(SINGLE))
        with held_to(SERVER_CORE):
            began = time.perf_counter()
            self.process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=environ,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        atexit.register(self.stop)
        while not self._accepts(first):
            if time.perf_counter() - began > START_SECONDS or self.process.poll() is not None:
                raise RuntimeError(f"{self.name} does not serve; try: {' '.join(self.command)}")
            time.sleep(0.001)
        self.accepted += 1
        return time.perf_counter() - began

    def stop(self) -> None:
        """End it in good order, if it runs."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @contextmanager
    def running(self) -> Iterator[Contestant]:
        """Start it, and stop it after a check that it lost nothing."""
        self.start()
        try:
            yield self
            self.check()
        finally:
            self.stop()

    def drive(
        self, seconds: float, shape: Shape = SINGLE, connections: int = 64, shedding: bool = False
    ) -> load.Seen:
        """Load it for so long with events that it never saw."""
        return self._load(self._events(shape), shape, connections, seconds, shedding)

    def send(self, shape: Shape, count: int) -> load.Seen:
        """Have it take so many requests."""
        return self._load(itertools.islice(self._events(shape), count), shape, 64, math.inf)

    def check(self) -> None:
        """Raises BadAnswerError where it counted another number of events than it accepted."""
        if self.counts:
            counted = sum(model["events"] for model in self.get("/v1/models")["models"])
            if counted != self.accepted:
                raise load.BadAnswerError(
                    f"{self.name} counted {counted} events and accepted {self.accepted}"
                )

    def get(self, path: str) -> Any:
        """A JSON document of its."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", path)
        found = json.loads(connection.getresponse().read())
        connection.close()
        return found

    def cpu(self) -> float:
        """Seconds of CPU time that its processes have used."""
        ticks = 0
        for process in self.processes():
            words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(words[11]) + int(words[12])
        return ticks / TICKS

    def memory(self) -> float:
        """Proportional set size of its processes, MiB."""
        kib = 0
        for process in self.processes():
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            kib += int(text.partition("\nPss:")[2].split()[0])
        return kib / 1024

    def processes(self) -> list[int]:
        """Its process and all below it."""
        assert self.process is not None
        found = [self.process.pid]
        for process in found:
            children = Path(f"/proc/{process}/task/{process}/children")
            found += map(int, children.read_text().split())
        return found

    def _events(self, shape: Shape) -> Iterator[bytes]:
        self.runs += 1
        return requests(shape, f"{os.getpid()}-{self.port}-{self.runs}")

    def _load(
        self,
        events: Iterator[bytes],
        shape: Shape,
        connections: int,
        seconds: float,
        shedding: bool = False,
    ) -> load.Seen:
        seen = load.drive(self.port, events, connections, seconds, self.replies, shedding, self.cpu)
        self.accepted += seen.accepted * shape.batch
        return seen

    def _accepts(self, event: bytes) -> bool:
        try:
            load.drive(self.port, iter([event]), 1, replies=self.replies)
        except (OSError, load.BadAnswerError):
            return False
        return True

    def _await_port(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)):
                    return
            time.sleep(0.2)
        raise RuntimeError(f"port {self.port} is taken; {self.name} needs it")


def parliament(name: str, function: str, replies: bool = True) -> Contestant:
    """A function of `functions/` under stock parliament."""
    directory = FUNCTIONS / function
    command = [sys.executable, "-m", "parliament", "."]
    return Contestant(name, command, PARLIAMENTS_PORT, directory=directory, replies=replies)


def no_op() -> Contestant:
    """The baseline."""
    return parliament("no-op", "noop", replies=False)


def peers() -> list[Contestant]:
    """What else a user might run; River only where it is installed."""
    found = [parliament("by hand", "by_hand")]
    if importlib.util.find_spec("river"):
        found.append(parliament("river", "river"))
    else:
        print("river: not installed, left out (pip install -r requirements-bench.txt)")
    return found


def ours(name: str, store: str, **variables: str) -> Contestant:
    """This function on a store, with its defaults but for `variables`."""
    port = free_port()
    return Contestant(
        name,
        [sys.executable, "-m", "metrics", "serve"],
        port,
        {"PORT": str(port), "HOST": "127.0.0.1", "FEEDBACK_STORE": store, **variables},
        counts=True,
    )


def trivial() -> Contestant:
    """A server that does not even read."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.trivial_server", str(port)]
    return Contestant("trivial", command, port)
