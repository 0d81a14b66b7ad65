"""Function processes for tests: our own server, and stock parliament, asked over real HTTP.

    with OwnServer(tmp_path, FEEDBACK_REPLY="off") as server:
        assert server.feedback(id="1").status == 202

Both kinds answer the same questions by the same methods. Stock parliament has no route but `/` and
`/health/*`, so `models` and `exposition` ask `GET /`, which negotiates. Its port is always 8080:
who starts one holds a lock for as long, and the test is skipped where something else has the port.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar
from urllib.parse import quote

import pytest

from .servers import free_port

ROOT = Path(__file__).parent.parent
START_SECONDS = 60.0
LOCK_SECONDS = 120.0
"""How long a test waits for others that have stock parliament's port."""
FEEDBACK = "io.seldon.serving.feedback"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
IDENTITY = ("namespace", "inferenceservicename", "endpoint", "modelid")

_OURS = ("FEEDBACK_", "SELDON_", "PREDICT", "K_", "PORT", "HOST", "WEB_CONCURRENCY", "LOG_LEVEL")

T = TypeVar("T")


def until(condition: Callable[[], T], seconds: float = 60.0) -> T:
    """The first truthy value of `condition`; fails when there is none in time."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return found


def environment(**variables: str) -> dict[str, str]:
    """This process's variables without any that is a setting of ours, and `variables`."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


def message(rows: Any) -> dict[str, Any]:
    """A Seldon message of an ndarray."""
    return {"data": {"ndarray": rows}}


def feedback(response: Any = 1, truth: Any = 1, **more: Any) -> dict[str, Any]:
    """A feedback object: one label against one label, unless told otherwise."""
    response, truth = ([each] if not isinstance(each, list) else each for each in (response, truth))
    return {"response": message(response), "truth": message(truth), **more}


def attributes(id: str, model: str = "", **more: str) -> dict[str, str]:
    """A feedback event's attributes; `model` is the id of four parts, or nothing.

    Each model has a source of its own, so that tests that share a server share no ids.
    """
    named = dict(zip(IDENTITY, model.split("/"), strict=True)) if model else {}
    core = {"specversion": "1.0", "id": id, "source": f"/test/{model}", "type": FEEDBACK}
    return {**core, **named, **more}


class Answer(NamedTuple):
    """A response; headers have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()

    @property
    def detail(self) -> str:
        """The one line that a problem tells."""
        assert self.headers["content-type"] == "application/problem+json", self
        detail: str = self.json["detail"]
        return detail

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of an event in binary mode, as they stand in the headers."""
        return {name[3:]: text for name, text in self.headers.items() if name.startswith("ce-")}


def series(exposition: str, *having: str) -> dict[str, float]:
    """Series as written (Prometheus text) -> value, of those that contain all of `having`."""
    found = {}
    for line in exposition.splitlines():
        name, _, number = line.rpartition(" ")
        if not line.startswith("#") and all(text in name for text in having):
            found[name] = float(number)
    return found


def counters(exposition: str) -> dict[str, float]:
    """All counters."""
    return series(exposition, "_total")


def outcomes(exposition: str, *having: str) -> dict[str, float]:
    """Events by outcome, summed over the series that contain all of `having`."""
    events = series(exposition, "feedback_events_total{", *having)
    return {
        outcome: sum(number for name, number in events.items() if f'outcome="{outcome}"' in name)
        for outcome in ("accepted", "duplicate", "rejected")
    }


def of_model(id: str) -> tuple[str, ...]:
    """What the series of a model contain."""
    labels = ("deployment_namespace", "deployment_name", "predictor_name", "model_name")
    return tuple(f'{label}="{part}"' for label, part in zip(labels, id.split("/"), strict=True))


class Server:
    """A server process in a session of its own, and a connection that is kept alive."""

    kind = ""

    def __init__(self, directory: Path, flags: Sequence[str] = (), **variables: str) -> None:
        self.directory = Path(tempfile.mkdtemp(dir=directory))
        self.file = self.directory / "feedback.db"
        self.flags = list(flags)
        self.variables = {"FEEDBACK_STORE": f"sqlite:///{self.file}", **variables}
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Any:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the process ---------------------------------------------------------------------------

    def command(self) -> list[str]:
        """What is run."""
        raise NotImplementedError

    def start(self, ready: bool = True) -> Any:
        """Start it and wait until it serves; with `ready`, until it is ready."""
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                env=environment(**self.variables),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        path = "/health/readiness" if ready else "/health/liveness"
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                if self.get(path).status == 200:
                    return self
            except (OSError, http.client.HTTPException):
                pass
            if self._process.poll() is not None or time.monotonic() > end:
                self.close()
                raise AssertionError(f"it does not serve:\n{self.log()}")
            time.sleep(0.01)

    @property
    def pids(self) -> list[int]:
        """Its processes, but for the one that reads large bodies, which comes and goes."""
        commands = [(pid, _command_of(pid)) for pid in self.all_pids]
        return [pid for pid, command in commands if command and b"large_bodies" not in command]

    @property
    def all_pids(self) -> list[int]:
        """Its processes, and theirs."""
        assert self._process is not None
        found, todo = [], [self._process.pid]
        while todo:
            found.append(todo[0])
            for task in Path(f"/proc/{todo.pop(0)}/task").glob("*/children"):
                with contextlib.suppress(OSError):  # it has ended
                    todo += map(int, task.read_text().split())
        return found

    def terminate(self) -> int:
        """SIGTERM, as the kubelet sends it; its exit status."""
        assert self._process is not None
        self.hang_up()
        self._process.terminate()
        return self._process.wait(60)

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        assert self._process is not None
        self.hang_up()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended
        self._process.wait(30)

    def restart(self) -> None:
        """Kill it, and start it again on what it kept."""
        self.kill()
        self.start()

    def close(self) -> None:
        """End it for good."""
        if self._process is not None:
            self.kill()
            self._process = None

    def limit_files(self, size: int | None) -> None:
        """Have its writes past `size` bytes of a file fail, as on a full disk; None: no more."""
        soft = resource.RLIM_INFINITY if size is None else size
        for pid in self.pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    def log(self) -> str:
        """What it wrote to stdout and stderr."""
        return (self.directory / "log").read_text()

    # --- HTTP ----------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Iterable[bytes] | None = None,
    ) -> Answer:
        """One request on the connection; an iterable body goes out chunked."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        chunked = body is not None and not isinstance(body, bytes)
        try:
            self._connection.request(
                method, path, body, dict(headers or {}), encode_chunked=chunked
            )
            response = self._connection.getresponse()
            headers = {name.lower(): text for name, text in response.getheaders()}
            answer = Answer(response.status, headers, response.read())
        except BaseException:
            self.hang_up()
            raise
        if response.will_close:
            self.hang_up()
        return answer

    def get(self, path: str, **headers: str) -> Answer:
        """GET a path."""
        return self.request("GET", path, headers)

    def post(self, body: bytes, **headers: str) -> Answer:
        """POST a body to `/`; `_` in a header's name stands for `-`."""
        return self.request(
            "POST", "/", {name.replace("_", "-"): text for name, text in headers.items()}, body
        )

    def event(self, body: Any, attributes: Mapping[str, str]) -> Answer:
        """POST an event in binary mode."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {f"ce-{name}": quote(text, safe="/:;,=+") for name, text in attributes.items()}
        return self.request("POST", "/", {"content-type": "application/json", **headers}, data)

    def feedback(
        self, id: str, model: str = "", response: Any = 1, truth: Any = 1, **more: str
    ) -> Answer:
        """POST a feedback event in binary mode; `more` are attributes."""
        return self.event(feedback(response, truth), attributes(id, model, **more))

    def structured(self, data: Any, attributes: Mapping[str, Any]) -> Answer:
        """POST an event in structured mode."""
        body = json.dumps({**attributes, "data": data}).encode()
        return self.post(body, content_type=STRUCTURED)

    def batch(self, *events: Any) -> Answer:
        """POST events, each a whole structured one, as a batch."""
        return self.post(json.dumps(events).encode(), content_type=BATCH)

    def models(self) -> dict[str, dict[str, Any]]:
        """The list of models, by id."""
        found = self.get("/?format=json").json["models"]
        return {each["id"]: each for each in found}

    def exposition(self, **headers: str) -> str:
        """What Prometheus reads."""
        answer = self.get("/?format=prometheus", **headers)
        assert answer.status == 200, answer
        return answer.text

    def twin(self) -> Any:
        """The same process by a connection of one's own, e.g. for another thread."""
        twin = copy.copy(self)
        twin._process = twin._connection = None
        return twin

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _command_of(pid: int) -> bytes:
    """What a process runs; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class OwnServer(Server):
    """`python -m metrics serve`."""

    kind = "own"

    def command(self) -> list[str]:
        """What is run."""
        return [sys.executable, "-m", "metrics", "serve", *self.flags]

    def start(self, ready: bool = True) -> Any:
        """Start it on a port of its own and wait until it serves; with `ready`, until ready."""
        if not self.port:
            self.port = free_port()
            self.variables = {"PORT": str(self.port), "HOST": "127.0.0.1", **self.variables}
        return super().start(ready)


class ParliamentServer(Server):
    """Stock `python -m parliament .` on the same code."""

    kind = "parliament"
    _lock: IO[str] | None = None

    def command(self) -> list[str]:
        """What is run."""
        return [sys.executable, "-m", "parliament", str(ROOT)]

    def start(self, ready: bool = True) -> Any:
        """Start it once no other test has one; skips the test where port 8080 is taken."""
        self.port = 8080
        if self._lock is None:
            path = Path(tempfile.gettempdir(), f"feedback-metrics-8080.{os.getuid()}.lock")
            self._lock = open(path, "w")  # noqa: SIM115
            try:
                until(self._take_turns, LOCK_SECONDS)
            except AssertionError:
                self.close()
                pytest.skip("stock parliament needs port 8080, which other tests have")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("0.0.0.0", self.port))
                except OSError:
                    self.close()
                    pytest.skip("stock parliament needs port 8080, which is taken")
        return super().start(ready)

    def _take_turns(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """End it for good and leave the port to the next."""
        super().close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


KINDS: dict[str, type[Server]] = {"own": OwnServer, "parliament": ParliamentServer}


class Fleet:
    """Servers that tests share: one of each kind, and whatever a test needs for itself."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._shared: dict[str, Server] = {}
        self._special: list[Server] = []

    def shared(self, kind: str) -> Server:
        """A running server with default settings."""
        server = self._shared.get(kind)
        if server is None:
            server = self._shared[kind] = KINDS[kind](self._directory)
            try:
                server.start()
            except BaseException:
                del self._shared[kind]
                raise
        return server

    def special(self, kind: str, flags: Sequence[str] = (), **variables: str) -> Server:
        """A server of a test's own, not started; stock parliament's port is freed for it."""
        if kind == "parliament" and kind in self._shared:
            self._shared.pop(kind).close()
        server = KINDS[kind](self._directory, flags, **variables)
        self._special.append(server)
        return server

    def close_special(self) -> None:
        """End the servers of one test."""
        while self._special:
            self._special.pop().close()

    def close(self) -> None:
        """End all servers."""
        self.close_special()
        while self._shared:
            self._shared.popitem()[1].close()
