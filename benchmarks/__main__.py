"""Measure every contestant in interleaved rounds and print the tables; see benchmarks/README.md.

python -m benchmarks [--quick] [--only NAME …]
"""

from __future__ import annotations

import argparse
import os
import platform
import sqlite3
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.servers import RedisServer

from .contestants import CORES, LOAD_CORE
from .experiments import ALL, Bench
from .table import print_table


def main() -> None:
    """Run the experiments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--history", type=int, default=1_000_000, help="events of a long history")
    parser.add_argument("--quick", action="store_true", help="a minute: does it all work?")
    parser.add_argument("--only", nargs="+", choices=ALL, metavar="NAME", help=", ".join(ALL))
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.history = 1, 0.5, 50_000
    if len(CORES) < 2:
        sys.exit("benchmarks: two cores are needed, one for the load and one for the server")
    began = time.monotonic()
    print(f"{machine()}; {options.rounds} rounds of {options.seconds:g} s", flush=True)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        os.sched_setaffinity(0, LOAD_CORE)
        bench = Bench(directory, redis_url(stack), options.rounds, options.seconds, options.history)
        for name in options.only or ALL:
            ALL[name](bench)
    rows = [[r.what, r.asked, r.measured, "yes" if r.holds else "**no**"] for r in bench.reached]
    if rows:
        title = "Reach (median, or ratio of medians; in parentheses the range over the rounds)"
        print_table(["what", "asked", "measured", "holds"], rows, title)
    load = os.getloadavg()[0]
    print(f"{time.monotonic() - began:.0f} s; load average at the end {load:.1f}")


def redis_url(stack: ExitStack) -> str | None:
    """A Redis server for as long as the stack, on the load's core; None where there is none."""
    try:
        server = stack.enter_context(RedisServer(appendonly="yes", appendfsync="everysec"))
    except (RuntimeError, OSError) as error:
        print(f"Redis: not available, left out ({error})")
        return None
    return server.url


def machine() -> str:
    """Date, processor, system, versions, and how busy it was."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return (
        f"{time.strftime('%Y-%m-%d')}, {len(CORES)} cores of {model}, {platform.platform()}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"load average {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
