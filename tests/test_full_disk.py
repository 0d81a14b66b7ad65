"""Volumes that are full, read-only, or fail to write: nothing is lost, and a restart not needed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from .servers_http import OwnServer, series, until

MODEL = "full/d/p/m"


class Sender:
    """Sends events with ids of their own, and again what was refused; knows what must count."""

    def __init__(self, server: OwnServer) -> None:
        self.server = server
        self.acknowledged = 0
        self.refused: list[int] = []
        self._ids = count()

    def send(self, ids: list[int]) -> set[int]:
        """Send events, several at once; their statuses."""

        def one(id: int) -> int:
            twin = self.server.twin()
            status: int = twin.feedback(str(id), MODEL).status
            twin.hang_up()
            return status

        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(one, ids))
        self.acknowledged += statuses.count(200)
        self.refused += [id for id, status in zip(ids, statuses, strict=True) if status != 200]
        return set(statuses)

    def send_new(self, number: int = 8) -> set[int]:
        """Send so many new events."""
        return self.send([next(self._ids) for _ in range(number)])

    def send_refused(self) -> set[int]:
        """Send what was refused, as a broker does."""
        ids, self.refused = self.refused, []
        return self.send(ids)

    def exact(self) -> bool:
        """Whether the model has exactly what was acknowledged."""
        events: int = self.server.get(f"/v1/models/{MODEL}").json["events"]
        return events == self.acknowledged


def _mount(*words: str | Path) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "volume"
    path.mkdir()
    _mount("-t", "tmpfs", "-o", "size=1m", "none", path)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def _suffers(server: OwnServer, sender: Sender, kind: str) -> None:
    """It takes nothing, says why, is not ready, and `/metrics` answers."""
    assert sender.send_new() == {503}
    assert server.get("/health/readiness").status == 503
    assert server.get("/health/liveness").status == 200
    assert f"store cannot commit ({kind}): " in server.log()
    exposition = server.exposition()
    assert series(exposition)["feedback_store_ready"] == 0
    assert sum(series(exposition, "feedback_store_errors_total", f'"{kind}"').values()) > 0


def _recovers(server: OwnServer, sender: Sender) -> None:
    """It takes what it refused, once, without a restart; and has it after one."""
    until(lambda: server.get("/health/readiness").status == 200)
    assert "store commits again" in server.log()
    assert sender.send_refused() == {200}
    assert sender.exact()
    server.restart()
    assert sender.exact()


@pytest.mark.parametrize("journal", ["wal", "truncate"])
def test_full(volume: Path, journal: str) -> None:
    """A disk that others filled."""
    url = f"sqlite:///{volume}/feedback.db?journal={journal}"
    with OwnServer(volume.parent, FEEDBACK_STORE=url) as server:
        sender = Sender(server)
        for _ in range(2):
            assert sender.send_new() == {200}
            filler = volume / "filler"
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(bytes(2 << 20))
            until(lambda: 503 in sender.send_new(1))  # what had been allocated is used up
            _suffers(server, sender, "full")
            assert sender.exact()
            filler.unlink()
            _recovers(server, sender)


def test_full_of_feedback(volume: Path) -> None:
    """A disk that the store itself fills, to the last page."""
    url = f"sqlite:///{volume}/feedback.db"
    with OwnServer(volume.parent, FEEDBACK_STORE=url) as server:
        sender = Sender(server)
        until(lambda: 503 in sender.send_new(50))
        _suffers(server, sender, "full")
        assert sender.exact()
        _mount("-o", "remount,size=16m", volume)
        _recovers(server, sender)


def test_read_only(volume: Path) -> None:
    """A volume that is read-only when the function starts, so that it knows nothing yet."""
    url = f"sqlite:///{volume}/feedback.db"
    with OwnServer(volume.parent, FEEDBACK_STORE=url) as server:
        sender = Sender(server)
        assert sender.send_new() == {200}
        server.terminate()
        _mount("-o", "remount,ro", volume)
        server.start(ready=False)
        _suffers(server, sender, "readonly")
        assert server.models() == {}
        _mount("-o", "remount,rw", volume)
        _recovers(server, sender)


@pytest.mark.parametrize("journal", ["wal", "truncate"])
def test_writes_that_fail(tmp_path: Path, journal: str) -> None:
    """Writing fails, for another reason than want of room."""
    url = f"sqlite:///{tmp_path}/feedback.db?journal={journal}"
    with OwnServer(tmp_path, FEEDBACK_STORE=url) as server:
        sender = Sender(server)
        assert sender.send_new() == {200}
        server.limit_files(4096)
        _suffers(server, sender, "io")
        assert sender.exact()
        server.limit_files(None)
        _recovers(server, sender)
