"""The host's processes: a signal while they start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metrics import background
from metrics.http1 import Request
from metrics.replies import Response
from metrics.server import Service
from tests.servers_http import ROOT, free_port, until


def _is_young(process: int, workers: int) -> bool:
    """Whether it heeds SIGTERM, or has all of its several workers."""
    if workers > 1:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return len(children) == workers
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (caught,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")]
    return bool(caught & 1 << signal.SIGTERM - 1)


@pytest.mark.parametrize("where", ["may_post", "post"])
def test_a_bug_is_a_500_and_the_log_has_it(
    where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a 400, on which a broker would give the event up; and the next event is answered."""
    monkeypatch.setattr(background, "_logged", {})  # each traceback is logged once a minute

    def bug(*_: object) -> bool:
        raise ZeroDivisionError

    app = SimpleNamespace(
        may_post=lambda _: True,
        post=lambda *_: Response(202, [], b""),
        settings=SimpleNamespace(max_body=10, max_connections=10),
        committer=SimpleNamespace(go=lambda: None, full=False),
    )
    answers: list[Any] = []
    connection: Any = SimpleNamespace(send=lambda _, *answer: answers.append(answer))
    service = Service(app)  # type: ignore[arg-type]
    turns: list[Any] = []
    service._loop = SimpleNamespace(  # type: ignore[assignment]
        time=lambda: 0.0, call_soon=turns.append
    )
    right = getattr(app, where)
    for each in (bug, right):
        setattr(app, where, each)
        service.handle(Request(connection, "POST", b"/", {}, b"{}", 2, True))
        while turns:
            turns.pop()()
    (status, _, body, *_), accepted = answers
    assert (status, b"internal error" in body, accepted[0]) == (500, True, 202)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("workers", [1, 3])
def test_a_signal_ends_a_server_however_young(tmp_path: Path, workers: int) -> None:
    """One that is told to stop before it serves ends as if it had; so does each of its workers."""
    environ = {
        **os.environ,
        "PORT": str(free_port()),
        "HOST": "127.0.0.1",
        "FEEDBACK_STORE": f"sqlite:///{tmp_path}/feedback.db",
        "LOG_LEVEL": "ERROR",
        "WEB_CONCURRENCY": str(workers),
    }
    for _ in range(5):
        server = subprocess.Popen(
            [sys.executable, "-m", "metrics", "serve"],
            cwd=ROOT,
            env=environ,
            start_new_session=True,
        )
        try:
            until(partial(_is_young, server.pid, workers))
            server.terminate()
            assert server.wait(30) == 0
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
