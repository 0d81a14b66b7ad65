"""Measure every contestant in interleaved rounds and print the table; see benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import orjson

from metrics.config import load
from metrics.sqlite_store import SQLiteStore
from metrics.state import Entry
from metrics.windows import ALL_TIME, place
from tests.servers import RedisServer, free_port

from .contestants import BY_HAND, LOAD_CORE, NOOP, Contestant, ours, parliament
from .load import bodies

WINDOWS = load({}).windows


@dataclass
class Row:
    """One measure of one contestant, over the rounds."""

    values: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{median(self.values):10.4g}  ({low:.4g} to {high:.4g})"


class Table:
    """Measures by contestant and name, printed as ratios of medians."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Row] = {}

    def add(self, who: str, what: str, value: float) -> None:
        """Add one round's value."""
        self.rows.setdefault((what, who), Row()).values.append(value)

    def show(self, baseline: str) -> None:
        """Print every measure, and its ratio to the baseline's where that has it."""
        for (what, who), row in sorted(self.rows.items()):
            base = self.rows.get((what, baseline))
            ratio = ""
            if base is not None and who != baseline and median(base.values):
                ratio = f"  {median(row.values) / median(base.values):6.2f} × {baseline}"
            print(f"{what:34} {who:22} {row}{ratio}")


def load_process(port: int, **options: Any) -> dict[str, Any]:
    """Run the load generator on its own core; what it saw."""
    words = [sys.executable, "-m", "benchmarks.load", str(port)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    os.sched_setaffinity(process.pid, LOAD_CORE)
    output, _ = process.communicate(timeout=300)
    result: dict[str, Any] = json.loads(output)
    return result


def throughput(
    table: Table, contestant: Contestant, seconds: float, label: str = "", **options: Any
) -> None:
    """One round of load on a running contestant."""
    rows = int(options.get("rows", 1))
    before = contestant.cpu()
    seen = load_process(contestant.port, seconds=seconds, **options)
    cpu = contestant.cpu() - before
    bad = {status: n for status, n in seen["statuses"].items() if status != "200"}
    if seen["lost"] or (bad and set(bad) != {"503"}):
        raise RuntimeError(f"{contestant.name}: {seen}")
    table.add(contestant.name, f"{label}events/s", seen["rate"])
    table.add(contestant.name, f"{label}p50 ms", 1000 * seen["p50"])
    table.add(contestant.name, f"{label}p99 ms", 1000 * seen["p99"])
    table.add(contestant.name, f"{label}CPU µs an event", 1e6 * cpu / max(1, seen["requests"]))
    if rows > 1:
        table.add(contestant.name, f"{label}rows/s", rows * seen["rate"])
    if bad:
        table.add(contestant.name, f"{label}shed", sum(bad.values()) / seen["requests"])


def filled(path: Path, digests: int, cells: int) -> str:
    """A SQLite store with so many digests and counters; its URL."""
    store = SQLiteStore(str(path), 86400)
    now = time.time()
    panes = place(now, now, WINDOWS).panes
    for start in range(0, digests, 1000):
        store.commit(
            [
                Entry(
                    "seldon/iris/default/classifier",
                    os.urandom(16),
                    (ALL_TIME,) if start else panes,
                    {"padding": {(str(n % cells),): 1}},
                )
                for n in range(start, min(start + 1000, digests))
            ],
            now,
        )
        if start % 100_000 == 0:
            store.housekeep(now)
    store.close()
    return f"sqlite:///{path}"


def scraping(port: int, stop: threading.Event) -> threading.Thread:
    """Scrape /metrics once a second until told to stop."""

    def run() -> None:
        while not stop.wait(1.0):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def many_series(path: Path, models: int) -> str:
    """A SQLite store whose exposition has about 10,000 series; its URL."""
    store = SQLiteStore(str(path), 86400)
    now = time.time()
    classes = [str(n) for n in range(10)]
    increment = {
        "events": {(): 1},
        "rows": {(): 10},
        "true_positives": {(name,): 1 for name in classes},
    }
    entries = [
        Entry(f"seldon/other-{n}/default/model", b"", (ALL_TIME,), increment) for n in range(models)
    ]
    store.commit(entries, now)
    store.close()
    return f"sqlite:///{path}"


def handling_ratio() -> float:
    """Decoding and evaluating an event of 1000 rows × 3, over `orjson.loads` of its body."""
    import random

    from metrics.evaluators import Known, evaluate
    from metrics.model_settings import ModelSettings
    from metrics.payload import decode

    (body,) = bodies(1000, 1, random.Random(0))
    settings, known = ModelSettings(), Known({"task": "multiclass"})

    def cost(call: Any) -> float:
        best = []
        for _ in range(200):
            began = time.thread_time()
            call()
            best.append(time.thread_time() - began)
        return median(best)

    parse = cost(lambda: orjson.loads(body))
    return cost(lambda: evaluate(decode(body), settings, known)) / parse


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--quick", action="store_true", help="two rounds of one second")
    options = parser.parse_args()
    rounds, seconds = (2, 1.0) if options.quick else (options.rounds, options.seconds)
    print(f"{time.strftime('%Y-%m-%d')} {platform.platform()}, {os.cpu_count()} cores, ", end="")
    print(f"Python {platform.python_version()}; {rounds} rounds of {seconds:g} s")
    print(f"load average at the start: {os.getloadavg()[0]:.1f}", flush=True)

    table = Table()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        RedisServer(appendonly="yes", appendfsync="everysec") as redis,
    ):
        directory = Path(name)
        big = filled(directory / "big.db", 1_000_000 if not options.quick else 50_000, 10_000)
        peers = [
            parliament("no-op", NOOP),
            parliament("by hand", BY_HAND),
            ours("ours, SQLite", f"sqlite:///{directory}/f.db", free_port()),
            ours("ours, Redis", redis.url, free_port()),
            ours("ours, 1M ids", big, free_port()),
        ]
        series = ours("ours, 10k series", many_series(directory / "s.db", 120), free_port())
        for turn in range(rounds):
            for peer in peers:
                table.add(peer.name, "start to first event, s", peer.start())
                table.add(peer.name, "PSS after start, MiB", peer.memory())
                throughput(table, peer, seconds, seed=turn)
                if peer.name in ("ours, SQLite", "no-op"):
                    throughput(table, peer, seconds, "1000 rows: ", rows=1000, seed=100 + turn)
                    throughput(
                        table, peer, seconds, "256 conn.: ", connections=256, seed=200 + turn
                    )
                peer.stop()
            series.start()
            throughput(table, series, seconds, "unscraped: ", seed=turn)
            stop = threading.Event()
            thread = scraping(series.port, stop)
            throughput(table, series, seconds, "scraped: ", seed=300 + turn)
            stop.set()
            thread.join()
            series.stop()
            print(f"round {turn + 1} of {rounds}", flush=True)
        sweep = ours("ours, SQLite", f"sqlite:///{directory}/c.db", free_port())
        sweep.start()
        for connections in (1, 4, 16, 64, 256):
            label = f"{connections:3} connections: "
            throughput(table, sweep, seconds, label, connections=connections, seed=connections)
        sweep.stop()
    table.add("ours", "1000 rows: decode+evaluate / loads", handling_ratio())
    print()
    table.show("no-op")


if __name__ == "__main__":
    main()
