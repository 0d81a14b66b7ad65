"""Each experiment measures some lines of the table: contestants in turn, round after round."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

import orjson

from metrics.app import Finish, Tell
from metrics.config import load as settings_of
from metrics.evaluators import Known, evaluate
from metrics.host import build, collect_seldom
from metrics.payload import decode
from metrics.redis_store import RedisStore
from metrics.sqlite_store import SQLiteStore
from metrics.store import MemoryStore

from . import stores
from .contestants import SERVER_CORE, Contestant, held_to, no_op, ours, peers, trivial
from .feedback import SINGLE, Shape, bodies
from .load import Seen
from .table import Measures, Reached, at_least, at_most, number, print_table

MANY_ROWS = Shape(rows=1000)
OVERLOAD_QUEUE = 64
"""Events that may wait, so that 256 connections are more than the server takes."""


@dataclass
class Bench:
    """What every experiment is given, and what it leaves."""

    directory: Path
    redis: str | None
    """The URL of a Redis server; None where there is no binary."""
    rounds: int
    seconds: float
    history: int
    """Events of a long history."""
    reached: list[Reached] = field(default_factory=list)
    files: int = 0

    def sqlite(self) -> str:
        """The URL of a fresh SQLite store."""
        self.files += 1
        return f"sqlite:///{self.directory}/{self.files}.db"


def _note(measures: Measures, who: str, seen: Seen, **more: float) -> None:
    measures.add(
        who,
        rate=seen.rate,
        p50=1e3 * seen.quantile(0.5),
        p99=1e3 * seen.quantile(0.99),
        cpu=1e6 * seen.server_cpu / seen.requests,
        busy=100 * seen.own_cpu / seen.seconds,
        **more,
    )


_LOADED = {
    "events/s": ("rate", 1.0),
    "p50 ms": ("p50", 1.0),
    "p99 ms": ("p99", 1.0),
    "CPU µs/event": ("cpu", 1.0),
}


def _print(
    measures: Measures,
    who: Sequence[str],
    columns: dict[str, tuple[str, float]],
    title: str,
    first: str = "",
) -> None:
    rows = [
        [
            name,
            *(
                measures.spread(name, what, scale) if measures.has(name, what) else "–"
                for what, scale in columns.values()
            ),
        ]
        for name in who
    ]
    print_table([first, *columns], rows, title)


def _warm(contestants: Sequence[Contestant]) -> None:
    """Start and stop each once: files are in the page cache and bytecode is written."""
    for contestant in contestants:
        with contestant.running():
            pass


# --- what everyone is measured on ---------------------------------------------------------------


def against_peers(bench: Bench) -> None:
    """Throughput, latency, CPU, memory after start and time to start, of every contestant."""
    line_up = [no_op(), ours("ours, SQLite", bench.sqlite())]
    if bench.redis:
        line_up.append(ours("ours, Redis", bench.redis))
    line_up += [*peers(), trivial()]
    measures = Measures()
    _warm(line_up)
    for _ in range(bench.rounds):
        for each in line_up:
            start = each.start()
            memory = each.memory()
            _note(measures, each.name, each.drive(bench.seconds), start=start, memory=memory)
            each.check()
            each.stop()
    columns = {**_LOADED, "load generator busy %": ("busy", 1.0)}
    columns |= {"start ms": ("start", 1e3), "PSS MiB": ("memory", 1.0)}
    names = [each.name for each in line_up]
    _print(measures, names, columns, "64 connections, single-row events of 3 classes")
    print("`trivial` answers without reading: the load generator's own ceiling.")
    reach = bench.reached.append
    ratio, words = measures.ratio("ours, SQLite", "no-op", "rate")
    reach(at_least("events/s, against no-op parliament", 4, ratio, words))
    ratio, words = measures.ratio("ours, SQLite", "no-op", "p99")
    reach(at_most("p99 latency, against the same", 1, ratio, words))
    if bench.redis:
        ratio, words = measures.ratio("ours, Redis", "no-op", "rate")
        reach(at_least("events/s with Redis, against the same", 3, ratio, words))
    ratio, words = measures.ratio("ours, SQLite", "no-op", "memory")
    reach(at_most("PSS after start, against the same", 2.5, ratio, words))


# --- large events -------------------------------------------------------------------------------


def large_events(bench: Bench) -> None:
    """Events of 1000 rows × 3 probabilities, over HTTP and within a process."""
    measures = Measures()
    with ours("1000 rows", bench.sqlite()).running() as server:
        for _ in range(bench.rounds):
            seen = server.drive(bench.seconds, MANY_ROWS)
            _note(measures, server.name, seen, rows=MANY_ROWS.rows * seen.rate)
            measures.add("in process", **_handling(bench.sqlite()))
    _print(measures, ["1000 rows"], {"rows/s": ("rows", 1.0), **_LOADED}, "Large events, over HTTP")
    columns = {
        "orjson.loads µs": ("loads", 1.0),
        "decode and evaluate µs": ("evaluate", 1.0),
        "whole handling µs": ("whole", 1.0),
    }
    _print(measures, ["in process"], columns, "Large events, CPU in one process")
    reach = bench.reached.append
    rate = measures.median("1000 rows", "rows")
    words = measures.spread("1000 rows", "rows")
    reach(at_least("rows/s in events of 1000 rows × 3", 300_000, rate, words, "rows/s"))
    ratio, words = measures.ratio("in process", "in process", "whole", "loads")
    reach(at_most("the whole handling of one, against orjson.loads of its body", 4, ratio, words))


GATHERED = 16
"""Events of 1000 rows that come in before the server commits; see `server.GATHER_SECONDS`."""


def _handling(url: str) -> dict[str, float]:
    """CPU µs of an event: parsing its JSON, evaluating it, and all from headers to reply."""
    data = bodies(MANY_ROWS, random.Random(url))
    settings, known = settings_of({}).model_settings(), Known({"task": "multiclass"})
    app = build(settings_of({"FEEDBACK_STORE": url}))

    def post(id: int, tell: Tell) -> None:
        headers = {
            "ce-id": str(id),
            "ce-source": "/bench",
            "ce-type": "io.seldon.serving.feedback",
            "ce-specversion": "1.0",
            "content-type": "application/json",
        }
        assert app.post(headers, data[id % len(data)], tell) is None

    def whole(start: int) -> float:
        began, told = time.process_time(), SimpleQueue[Finish]()
        for id in range(start, start + GATHERED):
            post(id, told.put)
        app.committer.go()
        for _ in range(GATHERED):
            response = told.get()()
            assert response is not None
            assert response.status == 200, response
        return (time.process_time() - began) / GATHERED

    app.committer.gathers = True  # as a host that says when: now
    collect_seldom()
    whole(0)
    times: dict[str, list[float]] = {"loads": [], "evaluate": [], "whole": []}
    some = [data[id % len(data)] for id in range(GATHERED)]
    for turn in range(1, 51):
        times["loads"].append(_cpu(lambda: [orjson.loads(each) for each in some]) / GATHERED)
        decoded = _cpu(lambda: [evaluate(decode(each), settings, known) for each in some])
        times["evaluate"].append(decoded / GATHERED)
        times["whole"].append(whole(GATHERED * turn))
    found = {name: median(each) for name, each in times.items()}
    app.close()
    return {name: 1e6 * cpu for name, cpu in found.items()}


def _cpu(call: Callable[[], Any]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


# --- beside a scraper ---------------------------------------------------------------------------


def scraped(bench: Bench) -> None:
    """Throughput while Prometheus reads 10,000 series each second, and while it does not."""
    measures = Measures()
    store = stores.sqlite(bench.directory / "series.db", 20_000, 85)
    server = ours("10,000 series", store)
    server.accepted = 20_000
    with server.running():
        series = _scrape(server.port)
        for _ in range(bench.rounds):
            _note(measures, "alone", server.drive(bench.seconds))
            with _scraper(server.port):
                _note(measures, "scraped", server.drive(bench.seconds))
    _print(measures, ["alone", "scraped"], _LOADED, f"/metrics of {series:,} series each second")
    ratio, words = measures.ratio("scraped", "alone", "rate")
    reach = bench.reached.append
    reach(at_least(f"events/s while {series:,} series are scraped", 0.8, ratio, words))
    ratio, words = measures.ratio("scraped", "alone", "p99")
    reach(at_most("p99 while scraped", 2, ratio, words))


def _scrape(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return sum(not line.startswith(b"#") for line in answer)


def _scrape_each_second(port: int) -> None:
    while True:
        _scrape(port)
        time.sleep(1)


@contextmanager
def _scraper(port: int) -> Iterator[None]:
    process = multiprocessing.get_context("fork").Process(target=_scrape_each_second, args=(port,))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


# --- waking up, growing old ---------------------------------------------------------------------


def start(bench: Bench) -> None:
    """Process start to first accepted event, with a history, beside the no-op function."""
    measures = Measures()
    url = stores.sqlite(bench.directory / "history.db", bench.history, 4)
    aged = ours("ours, with a history", url)
    aged.accepted = bench.history
    line_up = [no_op(), ours("ours, new store", bench.sqlite()), aged]
    _warm(line_up)
    for _ in range(2 * bench.rounds):
        for each in line_up:
            measures.add(each.name, start=each.start(), memory=each.memory())
            each.check()
            each.stop()
    title = f"Start with {stores.counters(url):,} counters and {bench.history:,} seen ids"
    columns = {"process start to first 2xx, ms": ("start", 1e3), "PSS MiB": ("memory", 1.0)}
    _print(measures, [each.name for each in line_up], columns, title)
    ratio, words = measures.ratio(aged.name, "no-op", "start")
    bench.reached.append(at_most("start with a history, against no-op", 1.5, ratio, words))
    ratio, words = measures.ratio(aged.name, "no-op", "memory")
    bench.reached.append(at_most("PSS after that start, against no-op", 2.5, ratio, words))


def growth(bench: Bench) -> None:
    """Memory and CPU per event after 10,000 events, and after all the history in one process.

    All of them are single events. The CPU is compared, round by round, with that of a second server
    that has had 10,000 events.
    """
    measures = Measures()
    with ExitStack() as stack:
        old = stack.enter_context(ours("long history", bench.sqlite()).running())
        old.send(SINGLE, 10_000)
        measures.add("memory", young=old.memory())
        old.send(SINGLE, bench.history - old.accepted)
        for _ in range(bench.rounds):
            with ours("10,000 events", bench.sqlite()).running() as young:
                young.send(SINGLE, 10_000)
                _note(measures, young.name, young.drive(bench.seconds))
            _note(measures, old.name, old.drive(bench.seconds))
            measures.add("memory", old=old.memory())
        events = old.accepted
    _print(measures, ["10,000 events", "long history"], _LOADED, f"History of {events:,} events")
    young_memory = measures.median("memory", "young")
    growth = measures.median("memory", "old") / young_memory
    words = f"{number(growth)} ({young_memory:.1f} MiB → {measures.median('memory', 'old'):.1f})"
    reach = bench.reached.append
    reach(at_most(f"memory at event {events:,}, against at 10,000", 1.1, growth, words))
    ratio, words = measures.ratio("long history", "10,000 events", "cpu")
    reach(at_most("CPU per event then, against then", 1.1, ratio, words))


# --- overload, and what load costs --------------------------------------------------------------


def overload(bench: Bench) -> None:
    """256 connections on a server that lets fewer events wait: the rest is shed early."""
    measures = Measures()
    server = ours("overload", bench.sqlite(), FEEDBACK_MAX_QUEUE=str(OVERLOAD_QUEUE))
    calm = ours("calm", bench.sqlite())
    with server.running(), calm.running():
        for _ in range(bench.rounds):
            seen = server.drive(bench.seconds, connections=256, shedding=True)
            shed = 100 * seen.statuses[503] / seen.requests
            _note(measures, "at most 64 wait", seen, shed=shed)
            _note(measures, "all may wait", calm.drive(bench.seconds, connections=256))
    _print(
        measures,
        ["all may wait", "at most 64 wait"],
        {**_LOADED, "shed %": ("shed", 1.0)},
        "256 connections; events/s and latency of accepted events; every accepted event counted",
    )


def connections(bench: Bench) -> None:
    """Durable events/s against connections."""
    measures, numbers = Measures(), (1, 4, 16, 64, 256)
    with ours("SQLite", bench.sqlite()).running() as server:
        for _ in range(bench.rounds):
            for n in numbers:
                _note(measures, str(n), server.drive(bench.seconds, connections=n))
    _print(measures, [str(n) for n in numbers], _LOADED, "Connections, SQLite", "connections")


def sizes(bench: Bench) -> None:
    """What an event costs by the number of its model's classes, and of models."""
    shapes = {f"{n} classes": Shape(classes=n) for n in (2, 3, 10, 100, 1000)}
    shapes |= {f"{n} models": Shape(models=n) for n in (10, 100, 1000)}
    measures = Measures()
    for _ in range(bench.rounds):
        for name, shape in shapes.items():
            with ours(name, bench.sqlite()).running() as server:
                _note(measures, name, server.drive(bench.seconds, shape))
    _print(measures, list(shapes), _LOADED, "Classes, and models of 3 classes, SQLite")


def commits(bench: Bench) -> None:
    """How long a commit takes, by store and by events in it."""
    measures = Measures()
    opened: dict[str, Any] = {"memory": MemoryStore(stores.TTL)}
    opened["SQLite"] = SQLiteStore(str(bench.directory / "commits.db"), stores.TTL)
    if bench.redis:
        opened["Redis"] = RedisStore(bench.redis, stores.TTL)
    some = stores.entries(1)
    with held_to(SERVER_CORE):
        for _ in range(bench.rounds):
            for name, store in opened.items():
                for size in (1, 16, 64, 256):
                    took = []
                    for _ in range(50):
                        batch = [replace(e, digest=os.urandom(16)) for e in some[:size]]
                        began = time.perf_counter()
                        store.commit(batch, time.time())
                        took.append(1e3 * (time.perf_counter() - began))
                    took.sort()
                    measures.add(f"{name}, {size}", p50=took[25], p99=took[49])
    for store in opened.values():
        store.close()
    names = [f"{name}, {size}" for name in opened for size in (1, 16, 64, 256)]
    _print(
        measures,
        names,
        {"p50 ms": ("p50", 1.0), "p99 ms": ("p99", 1.0)},
        "A commit",
        "store, events",
    )


ALL: dict[str, Callable[[Bench], None]] = {
    "peers": against_peers,
    "rows": large_events,
    "scrape": scraped,
    "start": start,
    "growth": growth,
    "overload": overload,
    "connections": connections,
    "sizes": sizes,
    "commits": commits,
}
"""Experiments by the name that `--only` takes."""
