"""A roll-out whose old process has a client that is too slow, on each store that may be shared."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from .servers import RedisServer
from .servers_http import until
from .soak import HEADERS, Function, Traffic, judge

END_SECONDS = 10.0
"""After its SIGTERM the old process has ended."""
PATIENCE = 120.0
SLOW = ("slow", "slow")
"""Truth and prediction of the slow client's event; no other has them."""
BODY = json.dumps(
    {
        "truth": {"data": {"ndarray": [SLOW[0]]}},
        "response": {"data": {"ndarray": [SLOW[1]]}},
    }
)
EVENT = {**HEADERS, "ce-id": "slow"}


class SlowClient:
    """A client that sends one event, byte by byte, for as long as somebody takes it."""

    def __init__(self, port: int) -> None:
        self._link = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._link.putrequest("POST", "/")
        for name, text in {**EVENT, "content-length": str(len(BODY))}.items():
            self._link.putheader(name, text)
        self._link.endheaders()
        self._rest = BODY.encode()

    def trickle(self) -> None:
        """Send one more byte."""
        self._link.send(self._rest[:1])
        self._rest = self._rest[1:]

    def is_cut_off(self) -> bool:
        """Send one more byte; whether the connection has ended without an answer."""
        try:
            self.trickle()
        except OSError:
            self._link.close()
            return True
        return False


def _post(port: int) -> int:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    link.request("POST", "/", BODY, EVENT)
    status = link.getresponse().status
    link.close()
    return status


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


def _ready(function: Function) -> bool:
    return function.get("/health/readiness")[0] == 200


def _exact(function: Function, traffic: Traffic) -> bool:
    return judge(function, traffic, 0).exact


def _further(traffic: Traffic, events: int) -> None:
    """Wait until so many more events are acknowledged."""
    target = traffic.acknowledged + events
    _eventually(lambda: traffic.acknowledged >= target)


def _eventually(condition: Callable[[], bool]) -> None:
    until(condition, PATIENCE)


def _roll_out(store: str) -> None:
    with Function(store) as old, Function(store) as new:
        for function in (old, new):
            function.start()
            _eventually(partial(_ready, function))
        with Traffic([old.port, new.port], connections=2) as traffic:
            _further(traffic, 100)
            client = SlowClient(old.port)
            client.trickle()
            _further(traffic, 20)  # the old one has long begun to read the event
            traffic.ports.remove(old.port)
            old.terminate()
            began = time.monotonic()
            _eventually(lambda: not _listens(old.port))
            while not client.is_cut_off():
                _further(traffic, 1)
                time.sleep(0.1)
            assert old.wait() == 0
            assert time.monotonic() - began < END_SECONDS
            assert _post(new.port) == 200  # nothing of it is counted yet, so its sender does again
            traffic.sent[SLOW] += 1
            traffic.acknowledged += 1
            assert _post(new.port) == 200  # as if the answer had been lost: a duplicate
            _further(traffic, 100)
            traffic.stop()
        _eventually(partial(_exact, new, traffic))
        new.terminate()
        assert new.wait() == 0
        new.start()
        verdict = judge(new, traffic, 0)
        assert verdict.exact, verdict
        assert verdict.events > 250


@pytest.mark.timeout(400)
def test_an_old_pod_that_drains_beside_its_successor(tmp_path: Path) -> None:
    """Old and new share a store; the old one has a client that is too slow when SIGTERM comes.

    It is cut off in time, and its event counts at the successor, which takes all others meanwhile;
    neither process loses, undoes or doubles any.
    """
    with RedisServer(appendonly="yes") as server, ThreadPoolExecutor() as pool:
        stores = (f"sqlite:///{tmp_path}/feedback.db", server.url)
        for done in [pool.submit(_roll_out, store) for store in stores]:
            done.result()
