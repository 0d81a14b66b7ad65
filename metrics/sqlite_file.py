"""The files of an open SQLite database: whether its paths still lead to them.

SQLite writes to the files it opened, wherever they are by now. Whoever deletes, renames or replaces
one of them leaves a process that commits into a file that no restart finds. So device, inode and
size are compared with what is at their paths each second, and those of the database's own file
after every commit: no acknowledgement follows a commit into a file that was gone before it.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time as clock
from contextlib import closing, suppress
from secrets import token_hex
from typing import NamedTuple

BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite adds to a path for the files beside a database."""
_LOG = b"\x37\x7f\x06"
"""How a write-ahead log begins."""
COPY_SECONDS = 5.0
"""How long a copy waits for another process's transaction."""


class Change(NamedTuple):
    """What happened to one of the files since it was opened."""

    path: str
    what: str
    """`gone`, `replaced` or `truncated`."""

    def __str__(self) -> str:
        return f"{self.path} is {self.what}"


class Files:
    """What the paths of an open database lead to; made when it was read, so that all exist."""

    def __init__(self, path: str, wal: bool) -> None:
        real = os.path.realpath(path)  # SQLite's other files are beside that
        self._paths = [path, f"{real}-wal", f"{real}-shm"] if wal else [path]
        self._known = [os.stat(each) for each in self._paths]

    @property
    def main(self) -> tuple[int, int]:
        """What identifies the database's own file."""
        return self._known[0].st_dev, self._known[0].st_ino

    def moved(self) -> Change | None:
        """What `change` tells, as far as it can be told at every commit."""
        change = self._compare(0)
        if change is None and len(self._paths) > 1 and not os.access(self._paths[1], os.F_OK):
            change = Change(self._paths[1], "gone")  # to ask for times has each write set them anew
        return change

    def change(self) -> Change | None:
        """The first of the files that is not what it was; None where all are, or have grown."""
        for at in range(len(self._paths)):
            change = self._compare(at)
            if change is not None:
                return change
        if len(self._paths) > 1 and self._known[1].st_size:
            with open(self._paths[1], "rb") as log:  # not so the others: to close them unlocks them
                if log.read(len(_LOG)) != _LOG:
                    return Change(self._paths[1], "truncated")  # and has grown since
        return None

    def _compare(self, at: int) -> Change | None:
        path, then = self._paths[at], self._known[at]
        try:
            now = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return Change(path, "gone")
        if now.st_ino != then.st_ino or now.st_dev != then.st_dev:
            return Change(path, "replaced")
        if now.st_size != then.st_size:
            if now.st_size < then.st_size:
                return Change(path, "truncated")
            self._known[at] = now
        return None

    def unlink_beside(self) -> None:
        """Delete the write-ahead log and its index, which SQLite would take for another file's."""
        for path, known in zip(self._paths[1:], self._known[1:], strict=True):
            with suppress(FileNotFoundError, NotADirectoryError):
                if os.path.samestat(os.stat(path), known):
                    os.unlink(path)


def abandon(connection: sqlite3.Connection) -> None:
    """Close a connection whose write-ahead log lacks pages, without a checkpoint of what is left.

    Before Python 3.12 SQLite makes one if it can; the file is to be checked in any case.
    """
    if sys.version_info >= (3, 12):
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
    connection.close()


def identity(path: str) -> tuple[int, int] | None:
    """What identifies the file at `path`; None where there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def write_again(source: sqlite3.Connection, path: str, epoch: int) -> bool:
    """Write all that `source` has to a new file at `path`, and sync it; False where one is there.

    It has the given epoch. The file of `source` may be deleted: while it is open it is whole.
    Raises OSError or sqlite3.Error where the new file cannot be written.
    """
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    copy = f"{path}.{token_hex(4)}"
    end = clock.monotonic() + COPY_SECONDS

    def no_longer(_: int, left: int, __: int) -> None:
        if left and clock.monotonic() > end:
            raise sqlite3.OperationalError("database is locked")

    try:
        with closing(sqlite3.connect(copy, isolation_level=None)) as target:
            source.backup(target, progress=no_longer)
            target.execute("UPDATE meta SET epoch = ?", (epoch,))
        if identity(path) is not None:
            return False
        for more in BESIDE:  # of the file that is gone: SQLite would take them for the new one's
            with suppress(FileNotFoundError):
                os.unlink(path + more)
        if not _give(copy, path):
            return False
    finally:
        for more in ("", *BESIDE):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(copy + more)
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return True


def _give(copy: str, path: str) -> bool:
    """Give a file its name; False where another file has it."""
    try:
        os.link(copy, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            return False
        os.rename(copy, path)
    return True
