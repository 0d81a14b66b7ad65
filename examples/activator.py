"""Scale to zero and back, for one process on this machine.

Give it to `examples.broker.Broker(..., activators=[...])`: a delivery to its `url` starts the
process and waits for it, as Knative's activator does; after a while without deliveries it gets
SIGTERM, as from the kubelet when a revision scales to zero.
"""

from __future__ import annotations

import http.client
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress


class Activator:
    """Owner of a process that serves on 127.0.0.1:`port` and lives only while it is called.

    It counts as ready when `ready`, a path, answers 200. `idle` seconds after the last call it
    gets SIGTERM, and SIGKILL after `grace` more. `starts` and `exit_codes` tell its history.
    """

    def __init__(
        self,
        port: int,
        command: Sequence[str],
        *,
        ready: str = "/health/readiness",
        idle: float = 30,
        grace: float = 30,
        start_timeout: float = 30,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.origin = f"127.0.0.1:{port}"
        self.url = f"http://{self.origin}/"
        self.starts = 0
        self.exit_codes: list[int] = []
        self._command, self._env, self._ready_path = list(command), env, ready
        self._idle, self._grace, self._start_timeout = idle, grace, start_timeout
        self._changed = threading.Condition()
        self._in_flight, self._last_call = 0, time.monotonic()
        self._ready = self._closed = False
        self._failed_starts = 0
        self._owner = threading.Thread(target=self._live, daemon=True)
        self._owner.start()

    @contextmanager
    def awake(self, timeout: float | None = None) -> Iterator[None]:
        """Holds the process up and ready. Raises OSError, perhaps TimeoutError, if it is not."""
        with self._changed:
            self._in_flight += 1
            self._changed.notify_all()
        try:
            with self._changed:
                failed = self._failed_starts
                if not self._changed.wait_for(
                    lambda: self._ready or self._closed or self._failed_starts > failed, timeout
                ):
                    raise TimeoutError("not ready in time")
                if not self._ready:
                    raise ConnectionRefusedError(f"{self._command[0]} did not become ready")
            yield
        finally:
            with self._changed:
                self._in_flight -= 1
                self._last_call = time.monotonic()
                self._changed.notify_all()

    def wait_for_zero(self, timeout: float) -> bool:
        """Whether every process started so far is gone within `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.exit_codes) == self.starts, timeout)

    def close(self) -> None:
        """Stops the process for good, and returns when it is gone."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._owner.join()

    def _live(self) -> None:
        """Zero, up, idle, and zero again, until closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._in_flight > 0)
                if self._closed:
                    return
            try:
                process = subprocess.Popen(self._command, env=self._env)
            except OSError:
                self._tell(failed_start=True)
                continue
            self.starts += 1
            became_ready = self._becomes_ready(process)
            if became_ready:
                self._stays_up(process)
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._grace)
            process.kill()
            self.exit_codes.append(process.wait())
            self._tell(failed_start=not became_ready)

    def _tell(self, failed_start: bool) -> None:
        with self._changed:
            self._failed_starts += failed_start
            self._changed.notify_all()

    def _becomes_ready(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + self._start_timeout
        while time.monotonic() < deadline and process.poll() is None and not self._closed:
            connection = http.client.HTTPConnection(self.origin, timeout=1)
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", self._ready_path)
                if connection.getresponse().status == 200:
                    connection.close()
                    return True
            connection.close()
            time.sleep(0.05)  # as often as queue-proxy asks
        return False

    def _stays_up(self, process: subprocess.Popen[bytes]) -> None:
        with self._changed:
            self._ready = True
            self._changed.notify_all()
            while not self._closed and process.poll() is None:
                rest = self._last_call + self._idle - time.monotonic()
                if rest <= 0 and not self._in_flight:
                    break
                self._changed.wait(min(rest, 0.1) if rest > 0 else 0.1)
            # Before SIGTERM: a call that comes from now on waits for the next process.
            self._ready = False
