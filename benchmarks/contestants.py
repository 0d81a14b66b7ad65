"""The servers that are measured, each started as a user would start it, pinned to a core."""

from __future__ import annotations

import atexit
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
SERVER_CORE = {0}
LOAD_CORE = {1}

FIRST = (
    b'{"response": {"data": {"ndarray": [[0.1, 0.2, 0.7]]}}, "truth": {"data": {"ndarray": [2]}}}'
)
HEADERS = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-id": "first",
    "ce-modelid": "classifier",
    "ce-source": "/bench",
    "ce-type": "io.seldon.serving.feedback",
}

NOOP = """
import parliament
def main(context):
    return "", 200
"""

BY_HAND = """
import parliament
from cloudevents.http import CloudEvent
from prometheus_client import Counter
RIGHT = Counter("right", "Right rows.", ["model", "label"])
WRONG = Counter("wrong", "Wrong rows.", ["model", "truth", "prediction"])
def main(context):
    event = context.cloud_event
    data = event.data
    for row, truth in zip(data["response"]["data"]["ndarray"], data["truth"]["data"]["ndarray"]):
        prediction = max(range(len(row)), key=row.__getitem__)
        if prediction == truth:
            RIGHT.labels(event["modelid"], truth).inc()
        else:
            WRONG.labels(event["modelid"], truth, prediction).inc()
    attributes = {"type": "metrics", "source": "/function", "datacontenttype": "application/json"}
    return CloudEvent(attributes, {"right": True})
"""


class Contestant:
    """A server under a name; `start` gives seconds from the process's start to its first 2xx."""

    def __init__(
        self, name: str, command: list[str], port: int, directory: Path, **variables: str
    ) -> None:
        self.name = name
        self.port = port
        self._command = command
        self._directory = directory
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.stop)

    def start(self) -> float:
        """Start it and have it take one event. Raises RuntimeError where another has its port."""
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", self.port)):
                raise RuntimeError(f"port {self.port} is taken; {self.name} needs it")
        began = time.perf_counter()
        self._process = subprocess.Popen(
            self._command,
            cwd=self._directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "LOG_LEVEL": "ERROR", **self._variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.sched_setaffinity(self._process.pid, SERVER_CORE)
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("POST", "/", FIRST, HEADERS)
                answer = connection.getresponse()
                answer.read()
                if answer.status < 300:
                    return time.perf_counter() - began
            except OSError:
                pass
            finally:
                connection.close()
            if time.perf_counter() - began > 30 or self._process.poll() is not None:
                raise RuntimeError(f"{self.name} does not serve on port {self.port}")
            time.sleep(0.002)

    def stop(self) -> None:
        """End it, if it runs."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """All its processes."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [self._process.pid, *map(int, children.read_text().split())]

    def cpu(self) -> float:
        """Seconds of CPU time its processes have used."""
        ticks = 0
        for process in self.processes():
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Proportional set size of its processes, MiB."""
        kib = 0
        for process in self.processes():
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            kib += int(text.partition("\nPss:")[2].split()[0])
        return kib / 1024


def parliament(name: str, source: str) -> Contestant:
    """A function under stock parliament, which has port 8080 hard-coded."""
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    (directory / "func.py").write_text(source)
    return Contestant(name, [sys.executable, "-m", "parliament", str(directory)], 8080, directory)


def ours(name: str, store: str, port: int) -> Contestant:
    """This function on a store, with its defaults."""
    return Contestant(
        name,
        [sys.executable, "-m", "metrics", "serve"],
        port,
        ROOT,
        PORT=str(port),
        HOST="127.0.0.1",
        FEEDBACK_STORE=store,
    )
