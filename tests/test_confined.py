"""The function as a confined pod runs it: any uid, nothing writable but its volume."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers_http import ROOT, OwnServer


@pytest.fixture
def volume() -> Iterator[Path]:
    """A directory that other users can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


class Confined(OwnServer):
    """Our server as a uid that no user has, where all but its volume is read-only."""

    uid = random.randrange(10_000, 60_000)

    def command(self) -> list[str]:
        """What is run."""
        confine = (
            "mount --make-rprivate / && mount --bind {0} {0} && mount -o remount,ro,bind / / && "
            "exec setpriv --reuid {1} --regid {1} --clear-groups --no-new-privs "
            "--inh-caps=-all {2}"
        )
        inner = " ".join(map(_quoted, super().command()))
        script = confine.format(_quoted(str(self.directory)), self.uid, inner)
        return ["unshare", "--mount", "sh", "-c", script]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _confines() -> bool:
    """Whether this machine lets us make such a name space, and lets others read our Python."""
    if os.geteuid() != 0:
        return False
    script = (
        "mount --make-rprivate / && mount -o remount,ro,bind / / && "
        "exec setpriv --reuid 12345 --regid 12345 --clear-groups "
        f"{sys.executable} -c 'import numpy'"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, check=False, cwd=ROOT
    )
    return done.returncode == 0


def test_any_uid_and_a_read_only_root(volume: Path) -> None:
    """It starts, counts, and keeps its state, with only the volume to write to."""
    if not _confines():
        pytest.skip("no mount name spaces here, or a Python that only root can read")
    volume.chmod(0o755)
    server = Confined(volume, HOME="/nonexistent", PYTHONDONTWRITEBYTECODE="1")
    os.chown(server.directory, Confined.uid, Confined.uid)
    with server:
        assert server.feedback("a", "ns/d/p/m").status == 200
        assert server.get("/").status == 200
        (pid, *_) = server.pids
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{Confined.uid}\t" in status
        assert server.file.stat().st_uid == Confined.uid
        server.restart()
        assert server.models()["ns/d/p/m"]["events"] == 1
