"""The host's processes: a signal while they start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.servers_http import ROOT, free_port


@pytest.mark.parametrize("workers", [1, 3])
def test_a_signal_ends_a_server_however_young(tmp_path: Path, workers: int) -> None:
    """A worker that is told to stop before it serves does not keep its server from ending."""
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
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
            deadline = time.monotonic() + 30
            while len(children.read_text().split()) < workers:
                assert time.monotonic() < deadline
            server.terminate()
            assert server.wait(30) == 0
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
