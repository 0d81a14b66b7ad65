"""Clients that do as they like, and a store that fails, all at once, beside honest clients.

    python -m tests.chaos --seconds 300 --seed 1

Five minutes of it are in `make soak`, some seconds in `make test` (tests/test_chaos.py).

Everything random follows from the seed, but for the threads' timing. Honest clients send each
event until it is answered 200 (soak.Traffic); in the end every one must be counted exactly once,
the server live, ready, of bounded memory, its log without a traceback, and SIGTERM must end it.
What is wrong is listed in `Verdict.errors`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .servers import RedisServer
from .servers_http import OwnServer, attributes, feedback, until
from .soak import Traffic, judge

STORES = ("memory", "sqlite", "redis")
ANSWER_SECONDS = 30.0
"""After which a request without an answer counts as hanging; disturbances of stores are shorter."""
END_SECONDS = 10.0
MAX_MEMORY = 512 << 20
"""Bytes: the limit of the shipped manifests."""
MODELS = 100
"""Models that first events contradict each other about."""


@dataclass
class Verdict:
    """What a run showed."""

    store: str
    events: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    liveness: float = 0.0
    """The slowest probe, seconds."""
    memory: int = 0
    """The most that the server had resident, bytes."""
    end: float = 0.0
    """Seconds from SIGTERM to the end."""
    errors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = " ".join(f"{kind}={number}" for kind, number in sorted(self.requests.items()))
        return (
            f"store={self.store} events={self.events} liveness={self.liveness * 1000:.0f}ms "
            f"memory={self.memory >> 20}MiB end={self.end:.1f}s errors={len(self.errors)} {kinds}"
        )


class Wire:
    """A raw connection whose answers are read one by one."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self.socket.close()

    def reset(self) -> None:
        """Close with a RST instead of a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def answer(self) -> tuple[int, dict[str, str], bytes] | None:
        """Status, headers and body of the next answer; None where the server has closed."""
        first = self._file.readline()
        if not first:
            return None
        headers = {}
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, text = line.decode("latin-1").partition(": ")
            headers[name] = text.strip()
        return int(first.split()[1]), headers, self._file.read(int(headers["content-length"]))


class Chaos:
    """One run against one server process."""

    def __init__(self, store: str, seconds: float, seed: int, idle: int) -> None:
        self.seconds = seconds
        self.seed = seed
        self.idle = idle
        self.verdict = Verdict(store)
        self._stop = threading.Event()
        self._ids = iter(range(1 << 60))

    # --- the run -----------------------------------------------------------------------------

    def run(self, directory: Path, **variables: str) -> Verdict:
        """Start a server on the store, disturb it, and judge."""
        verdict = self.verdict
        with contextlib.ExitStack() as stack:
            if verdict.store == "redis":
                self.redis = stack.enter_context(RedisServer(appendonly="yes"))
                variables["FEEDBACK_STORE"] = self.redis.url
            elif verdict.store == "memory":
                variables["FEEDBACK_STORE"] = "memory:"
            self.server = stack.enter_context(OwnServer(directory, LOG_LEVEL="INFO", **variables))
            self.port = self.server.port
            (self._pid,) = self.server.pids
            disturb = {
                "memory": None,
                "sqlite": self._lock_or_fill,
                "redis": self._suspend,
            }[verdict.store]
            parts: list[Callable[[random.Random], None]] = [*self._CLIENTS(), *self._CLIENTS()]
            parts += [self._watch] + ([disturb] if disturb else [])
            threads = [
                threading.Thread(target=self._repeat, args=(part, number), daemon=True)
                for number, part in enumerate(parts)
            ]
            with Traffic([self.port], seed=self.seed) as traffic:
                for thread in threads:
                    thread.start()
                time.sleep(self.seconds)
                self._stop.set()
                for thread in threads:
                    thread.join(3 * ANSWER_SECONDS)
                    if thread.is_alive():
                        verdict.errors.append("a client hangs")
                traffic.stop()
                self._judge(traffic)
        return verdict

    def _judge(self, traffic: Traffic) -> None:
        server, verdict = self.server, self.verdict
        server.hang_up()  # the server may have closed it
        verdict.events = traffic.acknowledged
        status = Path(f"/proc/{self._pid}/status").read_text()
        (peak,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
        verdict.memory = int(peak) << 10
        if verdict.memory > MAX_MEMORY:
            verdict.errors.append(f"{verdict.memory} bytes of memory")
        try:
            until(lambda: server.get("/health/readiness").status == 200, 20)
        except (AssertionError, OSError) as error:
            verdict.errors.append(f"not ready in the end: {error!r}")
        self._count(traffic)
        began = time.monotonic()
        if (code := server.terminate()) != 0:
            verdict.errors.append(f"exit status {code}")
        verdict.end = time.monotonic() - began
        if verdict.end > END_SECONDS:
            verdict.errors.append(f"SIGTERM took {verdict.end:.1f} s")
        if "Traceback" in server.log():
            at = server.log().index("Traceback")
            verdict.errors.append(f"a traceback: {server.log()[max(0, at - 200) : at + 2000]}")
        if verdict.store != "memory":
            server.start()
            self._count(traffic)

    def _count(self, traffic: Traffic) -> None:
        get: Any = SimpleNamespace(get=lambda path: self.server.get(path)[::2])
        counted = judge(get, traffic, 0)
        if not counted.exact:
            self.verdict.errors.append(str(counted))
            self.verdict.errors += counted.errors[:5]

    def _repeat(self, part: Callable[[random.Random], None], number: int) -> None:
        """Repeat a part until the end; what it finds wrong is noted."""
        chance = random.Random(self.seed * 1000 + number)
        while not self._stop.is_set():
            try:
                part(chance)
                self.verdict.requests[part.__name__.strip("_")] += 1
            except TimeoutError:
                self.verdict.errors.append(f"{part.__name__}: no answer")
            except OSError:
                self._stop.wait(0.01)  # the server may close on who misbehaves
            except Exception as error:
                self.verdict.errors.append(f"{part.__name__}: {error!r}")
            self._stop.wait(chance.uniform(0, 0.1))

    # --- requests ----------------------------------------------------------------------------

    def _event(self, model: str, truth: Any = "1", *more: str, pad: int = 0) -> bytes:
        """A feedback event that nobody else sends."""
        body = json.dumps(feedback(truth, truth)).encode() + b" " * pad
        id = f"{self.seed}-{next(self._ids)}"
        lines = [f"ce-{name}: {text}" for name, text in attributes(id, model).items()]
        lines += ["content-type: application/json", f"content-length: {len(body)}", *more]
        return "\r\n".join(["POST / HTTP/1.1", "host: x", *lines, "", ""]).encode() + body

    def _get(self, path: str, *more: str) -> bytes:
        return "\r\n".join([f"GET {path} HTTP/1.1", "host: x", *more, "", ""]).encode()

    def _mixed(self, chance: random.Random) -> tuple[bytes, Callable[[int, bytes], bool]]:
        """A request, and whether an answer can be its own."""
        kind = chance.randrange(7)
        if kind == 0:
            return self._get("/protocol"), lambda status, body: body == b"seldonfeedback.http"
        if kind == 1:
            text = self._get("/nothing")
            return text, lambda status, _: status == 404
        if kind == 2:
            text = self._event("c/h/a/os").replace(b"serving.feedback", b"serving.other")
            return text, lambda status, body: (status, body) == (202, b"")
        if kind == 3:
            body = b"{}" + b" " * chance.randrange(100)
            text = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            return text, lambda status, _: status in (400, 503)
        if kind == 4:
            text = self._event("c/h/a/os", str(chance.randrange(5)))
            return text, lambda status, body: status == 503 or b'"increment"' in body
        offer = ("connection: upgrade", "upgrade: h2c") if kind == 5 else ()
        return self._get("/health/liveness", *offer), lambda status, body: body == b"OK"

    # --- clients -----------------------------------------------------------------------------

    def _CLIENTS(self) -> list[Callable[[random.Random], None]]:  # noqa: N802
        return [
            self._pipeline,
            self._half_close,
            self._read_nothing,
            self._dawdle,
            self._break_off,
            self._talk_nonsense,
            self._contradict,
            self._send_large,
            self._crowd,
            self._scrape,
        ]

    def _pipeline(self, chance: random.Random) -> None:
        """Many requests in few packets; each answer must be that of its request."""
        pairs = [self._mixed(chance) for _ in range(chance.choice((2, 17, 100, 400)))]
        with Wire(self.port) as wire:
            sending = threading.Thread(
                target=self._cut, args=(wire, b"".join(text for text, _ in pairs), chance)
            )
            sending.start()
            for at, (text, fits) in enumerate(pairs):
                answer = wire.answer()
                if answer is None:
                    break  # the server makes room, or ends
                status, _, body = answer
                if not fits(status, body):
                    raise AssertionError(f"answer {at}: {status} {body[:200]!r} to {text[:60]!r}")
            sending.join()

    def _cut(self, wire: Wire, text: bytes, chance: random.Random) -> None:
        """Send in pieces."""
        cuts = random.Random(chance.random())
        with contextlib.suppress(OSError):
            while text:
                size = cuts.choice((100, 5000, 100_000))
                wire.socket.sendall(text[:size])
                text = text[size:]

    def _half_close(self, chance: random.Random) -> None:
        """Send all there is, close that half, and read what becomes of it."""
        with Wire(self.port) as wire:
            pairs = [self._mixed(chance) for _ in range(chance.randrange(1, 9))]
            wire.socket.sendall(b"".join(text for text, _ in pairs))
            wire.socket.shutdown(socket.SHUT_WR)
            for _, fits in pairs:
                answer = wire.answer()
                if answer is None:
                    return
                if not fits(answer[0], answer[2]):
                    raise AssertionError(f"{answer[0]} {answer[2][:200]!r}")

    def _read_nothing(self, chance: random.Random) -> None:
        """Ask for much and take none of it."""
        with Wire(self.port) as wire:
            wire.socket.settimeout(1)
            with contextlib.suppress(TimeoutError):
                wire.socket.sendall(500 * self._get(chance.choice(("/metrics", "/?format=json"))))
            self._stop.wait(chance.uniform(0, 5))
            if chance.random() < 0.5:
                wire.reset()

    def _dawdle(self, chance: random.Random) -> None:
        """Send byte by byte, and perhaps never to the end."""
        text = self._event("c/h/a/os")
        length = chance.choice((20, len(text) - 5, len(text)))
        with Wire(self.port) as wire:
            for at in range(length):
                wire.socket.sendall(text[at : at + 1])
                if at % 40 == 0 and self._stop.wait(chance.uniform(0, 0.3)):
                    return
            if length == len(text) and (answer := wire.answer()) and answer[0] not in (200, 503):
                raise AssertionError(f"{answer}")

    def _break_off(self, chance: random.Random) -> None:
        """Reset the connection in the middle, or just after the last byte."""
        text = b"".join(self._mixed(chance)[0] for _ in range(chance.randrange(1, 30)))
        with Wire(self.port) as wire:
            wire.socket.sendall(text[: chance.choice((len(text), chance.randrange(len(text))))])
            wire.reset()

    def _talk_nonsense(self, chance: random.Random) -> None:
        """What is no HTTP, or too much of it: an answer or an end, but soon."""
        text = chance.choice(
            (
                chance.randbytes(chance.randrange(1, 5000)) + b"\r\n\r\n",
                self._get("/", "x: " + "y" * chance.choice((60_000, 300_000))),
                self._get("/", *[f"h{n}: x" for n in range(chance.choice((200, 5000)))]),
                self._get("/") + b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
                self._get("//[x") + self._get("//host/metrics") + b"GET / HTTP/1.1\r\n\r\n",
                300 * self._get("/health/liveness", "connection: upgrade", "upgrade: h2c"),
                b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
                + b"a: b\r\n" * chance.choice((10, 10_000))
                + b"\r\n",
            )
        )
        with Wire(self.port) as wire:
            wire.socket.sendall(text)
            wire.socket.shutdown(socket.SHUT_WR)
            while wire.socket.recv(65536):
                pass

    def _contradict(self, chance: random.Random) -> None:
        """Two first events of a model at once that cannot both be right."""
        model = f"c/h/a/{chance.randrange(MODELS)}"
        with Wire(self.port) as one, Wire(self.port) as other:
            one.socket.sendall(self._event(model, 0.5) + self._get("/protocol"))
            other.socket.sendall(self._event(model, "cat") + self._get("/protocol"))
            for wire in (one, other):
                answers = [wire.answer(), wire.answer()]
                if None in answers:
                    return
                (first, _, _), (_, _, second) = answers  # type: ignore[misc]
                if first not in (200, 400, 503) or second != b"seldonfeedback.http":
                    raise AssertionError(f"{answers}")

    def _send_large(self, chance: random.Random) -> None:
        """A body of megabytes, whole or without its last byte."""
        text = self._event("c/h/a/os", pad=chance.choice((100_000, 2_000_000, 10_000_000)))
        with Wire(self.port) as wire:
            whole = chance.random() < 0.5
            wire.socket.settimeout(3 * ANSWER_SECONDS)  # it may have to wait for others
            wire.socket.sendall(text if whole else text[:-1])
            if not whole:
                self._stop.wait(chance.uniform(0, 8))
            elif (answer := wire.answer()) and answer[0] not in (200, 503):
                raise AssertionError(f"{answer}")

    def _crowd(self, chance: random.Random) -> None:
        """Connections that idle."""
        with contextlib.ExitStack() as stack:
            for _ in range(self.idle // 2):
                stack.enter_context(Wire(self.port))
                if self._stop.is_set():
                    return
            self._stop.wait(chance.uniform(0, 10))

    def _scrape(self, chance: random.Random) -> None:
        """Ask what people and Prometheus ask."""
        path = chance.choice(("/metrics", "/", "/v1/models", "/?format=json", "/health/readiness"))
        with Wire(self.port) as wire:
            wire.socket.sendall(self._get(path))
            answer = wire.answer()
            if answer and answer[0] not in (200, 503):
                raise AssertionError(f"{path}: {answer[0]} {answer[2][:200]!r}")

    def _watch(self, chance: random.Random) -> None:
        """Probe as the kubelet does."""
        began = time.monotonic()
        with Wire(self.port) as wire:
            wire.socket.sendall(self._get("/health/liveness"))
            answer = wire.answer()
        self.verdict.liveness = max(self.verdict.liveness, time.monotonic() - began)
        if answer is None or answer[0] != 200:
            raise AssertionError(f"not live: {answer}")

    # --- stores ------------------------------------------------------------------------------

    def _lock_or_fill(self, chance: random.Random) -> None:
        """Another process has the file's lock; or the disk is full."""
        self._stop.wait(chance.uniform(0, 3))
        if chance.random() < 0.5:
            self.server.limit_files(chance.choice((0, 100_000)))
            try:
                self._stop.wait(chance.uniform(0, 2))
            finally:
                self.server.limit_files(None)
            return
        database = sqlite3.connect(self.server.file, timeout=5)
        with contextlib.closing(database), contextlib.suppress(sqlite3.OperationalError):
            database.execute("BEGIN IMMEDIATE")
            self._stop.wait(chance.uniform(0, 7))
            database.rollback()

    def _suspend(self, chance: random.Random) -> None:
        """Redis hangs."""
        assert self.redis.process is not None
        self._stop.wait(chance.uniform(0, 3))
        os.kill(self.redis.process.pid, signal.SIGSTOP)
        try:
            self._stop.wait(chance.uniform(0, 7))
        finally:
            os.kill(self.redis.process.pid, signal.SIGCONT)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    parser.add_argument("--store", choices=(*STORES, "all"), default="all")
    parser.add_argument("--idle", type=int, default=2000)
    options = parser.parse_args()
    stores = STORES if options.store == "all" else (options.store,)
    failed = False
    for store in stores:
        print(f"seed={options.seed}", end=" ", flush=True)
        with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
            chaos = Chaos(store, options.seconds / len(stores), options.seed, options.idle)
            verdict = chaos.run(Path(directory))
        print(verdict, flush=True)
        for error in verdict.errors[:20]:
            print(f"  {error}")
        failed = failed or bool(verdict.errors)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
