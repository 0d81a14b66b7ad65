"""Compare this tree with an earlier one in interleaved rounds: did a change cost anything?

python -m benchmarks.compare [REVISION] [--rounds N] [--seconds S]

The earlier tree is checked out into a temporary directory and served with this environment's
packages. Each round measures both, in turn, on SQLite, on Redis and with events of many rows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from .__main__ import machine, redis_url
from .contestants import LOAD_CORE, ROOT, Contestant, ours
from .experiments import MANY_ROWS
from .feedback import SINGLE, Shape
from .table import Measures, print_table

BEFORE, AFTER = "before", "after"
WHATS = {
    "cpu": "CPU an event",
    "rate": "events/s",
    "p99": "p99 latency",
    "start": "start",
    "memory": "PSS after start",
}


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A directory with the tree of `revision`."""
    with tempfile.TemporaryDirectory(prefix="compare-") as name:
        command = ["git", "-C", str(ROOT), "archive", revision]
        archive = subprocess.run(command, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", name], input=archive, check=True)
        yield Path(name)


def measure(measures: Measures, name: str, each: Contestant, shape: Shape, seconds: float) -> None:
    """One run: start, memory after it, and load for so many seconds."""
    start = each.start()
    memory = each.memory()
    seen = each.drive(seconds, shape)
    cpu = seen.server_cpu / seen.requests
    p99 = seen.quantile(0.99)
    measures.add(name, cpu=cpu, rate=seen.rate, p99=p99, start=start, memory=memory)
    each.stop()


def main() -> None:
    """Measure, and print the ratios of the medians, after by before."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("revision", nargs="?", default="HEAD")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    options = parser.parse_args()
    print(f"{machine()}; before: {options.revision}; {options.rounds} rounds")
    rows = []
    with ExitStack() as stack:
        earlier = stack.enter_context(checkout(options.revision))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        os.sched_setaffinity(0, LOAD_CORE)
        redis = [stack.enter_context(_redis()) for _ in range(2)]
        cases = {"SQLite": SINGLE, "Redis": SINGLE, "SQLite, 1000 rows": MANY_ROWS}
        for case, shape in cases.items():
            measures = Measures()
            for at in range(options.rounds):
                for side, name in enumerate((BEFORE, AFTER)):
                    store = f"sqlite:///{directory}/{case}-{name}-{at}.db".replace(" ", "")
                    url = redis[side] if case == "Redis" else store
                    if url is None:
                        continue
                    each = ours(name, url)
                    each = replace(each, directory=ROOT if side else earlier)
                    measure(measures, name, each, shape, options.seconds)
            if measures.has(AFTER, "cpu"):
                rows.append([case, *(measures.ratio(AFTER, BEFORE, what)[1] for what in WHATS)])
    title = f"After by before ({options.revision}), ratios of medians"
    print_table(["", *WHATS.values()], rows, title)


@contextmanager
def _redis() -> Iterator[str | None]:
    with ExitStack() as stack:
        yield redis_url(stack)


if __name__ == "__main__":
    main()
