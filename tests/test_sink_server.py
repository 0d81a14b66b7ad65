"""A server with a sink: idle pauses cost nothing, and the end waits for nobody."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from tests.servers_http import OwnServer, series, until
from tests.sinks import Delivery, Receiver

MODEL = "ns/iris/default/classifier"


def increments(receiver: Receiver) -> int:
    """Events that the sink heard of."""
    return sum(each.data["increment"].get("events", 0) for each in receiver.taken)


def test_an_idle_pause_costs_no_delivery(tmp_path: Path) -> None:
    """The sink closes its connection in each of them, as servers do."""
    with (
        Receiver() as receiver,
        OwnServer(tmp_path, K_SINK=receiver.url, FEEDBACK_SINK_INTERVAL="0") as server,
    ):
        for number in range(1, 5):
            assert server.feedback(f"e{number}", MODEL).status == 202
            until(lambda number=number: increments(receiver) == number)
            receiver.hang_up()
            until(lambda: not receiver.open_connections)
        found = series(server.exposition(), "feedback_sink_events_total{")
        assert found['feedback_sink_events_total{outcome="sent"}'] == 4
        assert found['feedback_sink_events_total{outcome="failed"}'] == 0
        assert "the sink does not take events" not in server.log()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_a_troubled_sink_hears_adds_up(tmp_path: Path, workers: str) -> None:
    """Refusals, lost answers and closed connections, seeded: each event is told of once.

    By an id that the sink knows it is told again, and of nothing else.
    """
    chance = random.Random(3)

    def trouble(_: dict[str, str]) -> int:
        happens = chance.choice(["fine", "fine", "refused", "lost", "closed"])
        if happens == "closed":
            receiver.hang_up()
        receiver.lose_answer = happens == "lost"
        return 503 if happens == "refused" else 202

    with (
        Receiver() as receiver,
        OwnServer(
            tmp_path, K_SINK=receiver.url, FEEDBACK_SINK_INTERVAL="0.01", WEB_CONCURRENCY=workers
        ) as server,
    ):
        receiver.answer = trouble
        models = [f"ns/iris/default/m{number}" for number in range(3)]
        for number in range(300):
            if number % 20 == 0:
                server.hang_up()  # the next connection may be another worker's
            assert server.feedback(f"e{number}", models[number % 3]).status == 202
            if number % 7 == 0:  # redelivered
                assert server.feedback(f"e{number}", models[number % 3]).status == 202
        time.sleep(1)
        receiver.answer = lambda _: 202
        until(lambda: sum(heard(receiver).values()) >= 300)
        assert server.terminate() == 0
        assert heard(receiver) == dict.fromkeys(models, 100)


def heard(receiver: Receiver) -> dict[str, int]:
    """Events by model that a sink counts which ignores ids it knows."""
    first: dict[str, Delivery] = {}
    for each in receiver.taken:
        known = first.setdefault(each.attributes["id"], each)
        assert known.data["increment"] == each.data["increment"]
    found: Counter[str] = Counter()
    for each in first.values():
        found[each.attributes["subject"]] += each.data["increment"].get("events", 0)
    return dict(found)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("how", ["silent", "drips"])
def test_sigterm_waits_for_neither_sink_nor_gateway(tmp_path: Path, how: str, workers: str) -> None:
    """Both hang while they are asked: the end comes in good order, long before a kubelet's kill."""
    with closing(socket.create_server(("127.0.0.1", 0))) as hanging:
        stop = threading.Event()
        if how == "drips":
            threading.Thread(target=drip, args=(hanging, stop), daemon=True).start()
        address = f"127.0.0.1:{hanging.getsockname()[1]}"
        with OwnServer(
            tmp_path,
            K_SINK=f"http://{address}/",
            FEEDBACK_PUSHGATEWAY_URL=address,
            FEEDBACK_PUSHGATEWAY_INTERVAL="0.05",
            WEB_CONCURRENCY=workers,
        ) as server:
            for number in range(20):
                server.hang_up()
                assert server.feedback(f"e{number}", f"ns/iris/default/m{number % 3}").status == 202
            time.sleep(1)
            began = time.monotonic()
            assert server.terminate() == 0
            assert time.monotonic() - began < 10
            stop.set()
            assert "last metrics events and alerts are not sent" in server.log()
            server.variables["K_SINK"] = ""
            server.start()
            found = Counter({id: each["events"] for id, each in server.models().items()})
            assert found.total() == 20


def drip(listener: socket.socket, stop: threading.Event) -> None:
    """Answer each connection with a byte now and then, and never to the end."""

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
                while not stop.wait(0.1):
                    connection.sendall(b" ")
            except OSError:
                pass

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(connection,), daemon=True).start()
