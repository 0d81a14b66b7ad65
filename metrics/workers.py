"""The server's processes: forked, replaced when they die, and stopped together."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time as clock
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import FeedbackMetricsError

logger = logging.getLogger("metrics.workers")

HOPELESS = 2
"""The exit status of a worker that no restart could mend."""
PAUSE_SECONDS = 0.5
"""Between a worker's death and its replacement."""

_PR_SET_PDEATHSIG = 1
"""Of <linux/prctl.h>."""
_ENDS = (signal.SIGTERM, signal.SIGINT)
_WATCHED = (*_ENDS, signal.SIGCHLD)


def end_by_signal() -> None:
    """Have a signal end a process that does not serve yet, as it has nothing to finish.

    As the first process of a container it would not get the signal otherwise.
    """
    for number in _ENDS:
        signal.signal(number, _leave)


def _leave(*_: Any) -> NoReturn:
    sys.exit(0)


def supervise(number: int, work: Callable[[], None]) -> None:
    """Run `work` in so many processes until a signal says stop, and return when all have ended.

    Exits with HOPELESS when a worker does, or raises a FeedbackMetricsError of ours.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)  # none is lost: `sigwait` takes them
    workers = {_start(work) for _ in range(number)}
    stopping, status = False, 0
    while workers:
        if signal.sigwait(_WATCHED) in _ENDS:
            stopping = True
            _signal(workers)
        for worker, ended in _ended(workers):
            workers.discard(worker)
            if stopping:
                continue
            if ended == HOPELESS:
                stopping, status = True, HOPELESS
                _signal(workers)
                continue
            logger.error("worker %d ended with status %d and is replaced", worker, ended)
            clock.sleep(PAUSE_SECONDS)
            workers.add(_start(work))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
    if status:
        sys.exit(status)


def _end_with(parent: int) -> None:
    """Have this process get SIGTERM when its parent dies, however that happens."""
    if sys.platform == "linux":
        import ctypes  # not for those who have no workers

        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) == 0:
                if os.getppid() != parent:  # it died before
                    os.kill(os.getpid(), signal.SIGTERM)
                return
    watching = threading.Thread(target=_watch, args=(parent,), name="parent", daemon=True)
    watching.start()


def _watch(parent: int) -> None:
    """Send this process SIGTERM once its parent is another."""
    while os.getppid() == parent:
        clock.sleep(PAUSE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _signal(workers: set[int]) -> None:
    for worker in workers:
        os.kill(worker, signal.SIGTERM)


def _ended(workers: set[int]) -> list[tuple[int, int]]:
    """The workers that have ended, and how."""
    found = []
    for worker in workers:
        ended, status = os.waitpid(worker, os.WNOHANG)
        if ended:
            found.append((worker, os.waitstatus_to_exitcode(status)))
    return found


def _start(work: Callable[[], None]) -> int:
    """Fork a worker; in it, this never returns."""
    parent = os.getpid()
    worker = os.fork()
    if worker:
        return worker
    status = 1
    try:
        _end_with(parent)
        end_by_signal()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
        work()
        status = 0
    except FeedbackMetricsError as error:
        print(f"feedback-metrics: {error}", file=sys.stderr)
        status = HOPELESS
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
