"""A redelivered event is no news to the sink: what it hears adds up to what the store counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers_http import OwnServer, until
from tests.sinks import Receiver

MODEL = "ns/iris/default/classifier"


def increments(receiver: Receiver) -> int:
    """Events that the sink heard of."""
    return sum(each.data["increment"].get("events", 0) for each in receiver.taken)


def events(server: OwnServer) -> int:
    """Events that the store counts."""
    found = server.models().get(MODEL)
    return int(found["events"]) if found else 0


@pytest.mark.parametrize("redelivered", ["before the flush", "after the flush", "after a restart"])
@pytest.mark.parametrize("interval", ["0", "0.3"], ids=["each commit", "snapshots"])
def test_a_redelivery_is_no_news_to_the_sink(
    tmp_path: Path, interval: str, redelivered: str
) -> None:
    """The sum of what it hears is what the store counts."""
    with (
        Receiver() as receiver,
        OwnServer(
            tmp_path,
            K_SINK=receiver.url,
            FEEDBACK_SINK_INTERVAL="0",
            FEEDBACK_SNAPSHOT_INTERVAL=interval,
        ) as server,
    ):
        for number in range(5):
            assert server.feedback(f"e{number}", MODEL).status == 202
        if redelivered != "before the flush":
            until(lambda: events(server) == 5)
            until(lambda: increments(receiver) == 5)
        if redelivered == "after a restart":
            assert server.terminate() == 0
            server.start()
        for number in range(5):
            assert server.feedback(f"e{number}", MODEL).status == 202
        assert server.feedback("last", MODEL).status == 202
        until(lambda: events(server) == 6)
        until(lambda: increments(receiver) >= 6)
        assert server.terminate() == 0
        assert increments(receiver) == 6
