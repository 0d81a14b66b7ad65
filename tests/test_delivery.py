"""The delivery table, case by case: the development broker against the real function."""

from __future__ import annotations

import json
import os
import signal
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from examples.activator import Activator
from examples.broker import Broker, Delivery, Event, Outcome, Trigger
from tests.servers_http import (
    OwnServer,
    ParliamentServer,
    Server,
    environment,
    feedback,
    outcomes,
    series,
    until,
)
from tests.test_broker import Subscriber, World

FEEDBACK = "io.seldon.serving.feedback"
METRICS = f"{FEEDBACK}.metrics"
MODEL = "seldon/iris/default/classifier"
DELIVERY = Delivery(retry=8, backoff_delay="PT0.1S")
RULES = """
models:
  "*": {alerts: [{name: low, score: accuracy, below: 0.5, rows: 3}]}
"""


@pytest.fixture
def world() -> Iterator[World]:
    """Consumers and brokers of the test's own."""
    world = World()
    yield world
    for started in reversed(world.started):
        started.close()


@pytest.fixture(params=[OwnServer, ParliamentServer], ids=["own", "parliament"])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts the function, under our server and under stock parliament."""
    started: list[Server] = []

    def start(**variables: str) -> Server:
        server: Server = request.param(tmp_path, **variables)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.close()


def event(id: str, data: Any = None, type: str = FEEDBACK, **more: str) -> Event:
    """One event as Seldon's executor sends it."""
    identity = dict(
        zip(
            ("namespace", "inferenceservicename", "endpoint", "modelid"),
            MODEL.split("/"),
            strict=True,
        )
    )
    core = {"specversion": "1.0", "id": id, "source": "http://seldon/", "type": type}
    body = data if isinstance(data, bytes) else json.dumps(data or feedback()).encode()
    return Event({**core, **identity, "datacontenttype": "application/json", **more}, body)


class Loop:
    """A broker with the function, a consumer of metrics, and a dead letter sink."""

    def __init__(self, world: World, server: Server, delivery: Delivery = DELIVERY, **filter: str):
        self.metrics, self.dead = world.subscriber(), world.subscriber()
        delivery = replace(delivery, dead_letter=self.dead.url)
        self.broker: Broker = world.broker(
            Trigger("function", _url(server), filter or {"type": FEEDBACK}, delivery=delivery),
            Trigger("metrics", self.metrics.url, {"type": METRICS}, delivery=delivery),
        )

    def deliver(self, sent: Event) -> Outcome:
        """What became of an event at the function."""
        self.broker.publish(sent)
        return self.broker.outcomes("function")[-1]


def _url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/"


def counted(server: Server) -> tuple[float, float, float]:
    """Events accepted, duplicate, rejected."""
    found = outcomes(server.exposition())
    return found["accepted"], found["duplicate"], found["rejected"]


def test_feedback_is_replied_to_and_the_reply_routed(world: World, serve: Any) -> None:
    """The metrics event comes out of the broker again, under one id however often it is sent."""
    server = serve()
    loop = Loop(world, server)
    for _ in range(2):
        outcome = loop.deliver(event("a"))
        assert (outcome.what, outcome.statuses) == ("replied", (200,))
    first, again = loop.metrics.events
    assert first.attributes["id"] == again.attributes["id"]
    assert first.attributes["type"] == METRICS
    assert first.attributes["subject"] == MODEL
    assert json.loads(first.data)["scores"]["accuracy"] == 1
    assert counted(server) == (1, 1, 0)


def test_what_is_not_ours_is_accepted_without_a_word(world: World, serve: Any) -> None:
    """Even our own metrics, where a Trigger has no filter: no loop."""
    server = serve()
    loop = Loop(world, server, source="http://seldon/")
    other = loop.deliver(event("o", {"any": "thing"}, type="some.other.type"))
    assert (other.what, other.statuses) == ("delivered", (202,))
    unfiltered = Trigger("all", _url(server), delivery=DELIVERY)
    broker = world.broker(unfiltered)
    assert broker.publish(event("a")) == 202
    calls = [(each.event.attributes["type"], each.what) for each in broker.outcomes("all")]
    assert sorted(calls) == [(FEEDBACK, "replied"), (METRICS, "delivered")]
    assert counted(server) == (1, 0, 0)


def test_no_reply_is_an_empty_202(world: World, serve: Any) -> None:
    """Where replies are off."""
    loop = Loop(world, serve(FEEDBACK_REPLY="off"))
    outcome = loop.deliver(event("a"))
    assert (outcome.what, outcome.statuses) == ("delivered", (202,))


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"no json", 400, "data: not JSON"),
        (b"x" * 9000, 413, "9000 bytes"),
        (b'{"response": {"data": {"ndarray": [1]}}}', 400, "truth: missing"),
        (
            b'{"truth": {"data": {"ndarray": [1, 2]}}, "response": {"data": {"ndarray": [1]}}}',
            400,
            "response.data.ndarray: 1 rows",
        ),
    ],
)
def test_what_can_never_be_counted_is_dead_lettered_at_once(
    world: World, serve: Any, data: bytes, status: int, reason: str
) -> None:
    """One call; the reason travels along with the event as it was."""
    server = serve(FEEDBACK_MAX_BODY="4KiB")
    loop = Loop(world, server)
    outcome = loop.deliver(event("bad", data))
    assert (outcome.what, outcome.statuses) == ("dead-lettered", (status,))
    (letter,) = loop.dead.events
    assert (letter.attributes["id"], letter.data) == ("bad", data)
    assert letter.attributes["knativeerrorcode"] == str(status)
    told = json.loads(b64decode(letter.attributes["knativeerrordata"]))
    assert told["detail"].startswith(reason) or reason in told["detail"]
    assert counted(server) == (0, 0, 1)


def test_a_store_that_cannot_commit_is_tried_again(world: World, serve: Any) -> None:
    """503 until it can; then the event counts, once."""
    server = serve()
    loop = Loop(world, server, replace(DELIVERY, retry=10))
    server.limit_files(1)
    done = threading.Thread(target=loop.broker.publish, args=(event("a"),))
    done.start()
    until(lambda: 0.0 in series(server.exposition(), "feedback_store_ready").values())
    server.limit_files(None)
    done.join()
    (outcome,) = loop.broker.outcomes("function")
    assert outcome.what == "replied"
    assert set(outcome.statuses) <= {200, 503}
    assert counted(server) == (1, 0, 0)


def test_a_function_that_dies_is_tried_again(world: World, serve: Any) -> None:
    """SIGKILL again and again while events are delivered: all count once."""
    server = serve()
    loop = Loop(world, server, replace(DELIVERY, retry=10, backoff_delay="PT0.2S"))
    events = [event(f"e-{number}") for number in range(120)]

    def produce(part: list[Event]) -> None:
        for each in part:
            loop.broker.publish(each)

    producers = [threading.Thread(target=produce, args=(events[at::4],)) for at in range(4)]
    for each in producers:
        each.start()
    for fraction in (0.2, 0.5):
        until(lambda part=fraction: len(loop.broker.outcomes("function")) > part * len(events))
        server.restart()
    for each in producers:
        each.join()
    assert {outcome.what for outcome in loop.broker.outcomes("function")} == {"replied"}
    accepted, _, rejected = counted(server)
    assert (accepted, rejected) == (len(events), 0)
    assert not loop.dead.requests


def test_an_answer_that_comes_too_late_counts_once(world: World, serve: Any) -> None:
    """The broker does not wait, and sends the same again beside it."""
    server = serve()
    loop = Loop(world, server, replace(DELIVERY, timeout="PT0.5S", retry=10))
    for pid in server.pids:
        signal_to(pid, signal.SIGSTOP)
    done = threading.Thread(target=loop.broker.publish, args=(event("a"),))
    done.start()
    done.join(1.2)  # more than one attempt has timed out
    for pid in server.pids:
        signal_to(pid, signal.SIGCONT)
    done.join()
    (outcome,) = loop.broker.outcomes("function")
    assert (outcome.what, outcome.statuses[0], outcome.statuses[-1]) == ("replied", 0, 200)
    until(lambda: counted(server)[0] == 1)
    assert counted(server)[1] >= 1


def signal_to(pid: int, number: int) -> None:
    """Send a signal to one process."""
    os.kill(pid, number)


def test_a_dead_letter_sent_again_counts_once(world: World, serve: Any) -> None:
    """Whoever plays dead letters back: what was counted is not counted again."""
    server = serve()
    server.feedback("a", MODEL)
    refuses = world.answering(400, {}, b"no")
    dead = world.subscriber()
    delivery = Delivery(dead_letter=dead.url)
    broker = world.broker(
        Trigger("function", _url(server), {"type": FEEDBACK}, delivery=delivery),
        Trigger("another", refuses.url, {"type": FEEDBACK}, delivery=delivery),
    )
    broker.publish(event("b"))
    (letter,) = dead.events
    loop = Loop(world, server)
    assert loop.deliver(letter).what == "replied"
    assert counted(server) == (2, 1, 0)


def test_alerts_are_routed_by_their_attributes(world: World, serve: Any, tmp_path: Path) -> None:
    """A Trigger on `state` gets the crossing and nothing else."""
    (tmp_path / "models.yaml").write_text(RULES)
    server = serve(FEEDBACK_MODELS=str(tmp_path / "models.yaml"))
    alarm: Subscriber = world.subscriber()
    broker = world.broker(
        Trigger("function", _url(server), {"type": FEEDBACK}, delivery=DELIVERY),
        Trigger("alarm", alarm.url, {"type": f"{METRICS}.alert", "state": "firing"}),
    )
    for number in range(5):
        broker.publish(event(f"e-{number}", feedback(1, 0)))
    broker.publish(event("e-2", feedback(1, 0)))  # redelivered: the same alert
    assert [each.attributes["rule"] for each in alarm.events] == ["low", "low"]
    first, again = alarm.events
    assert first.attributes["id"] == again.attributes["id"]
    assert json.loads(first.data)["alerts"][0]["state"] == "firing"


def test_from_zero_and_back(world: World, tmp_path: Path) -> None:
    """The process is started by an event, ended as the kubelet ends it, and started again."""
    server = OwnServer(tmp_path)
    server.start()
    server.close()  # it has a port and a store
    activator = Activator(
        server.port,
        server.command(),
        idle=0.3,
        env=environment(**server.variables),
    )
    dead = world.subscriber()
    delivery = replace(DELIVERY, timeout="PT60S", dead_letter=dead.url)
    trigger = Trigger("function", activator.url, {"type": FEEDBACK}, delivery=delivery)
    broker = world.broker(trigger, activators=[activator])
    for number in range(3):
        assert broker.publish(event(f"e-{number}")) == 202
        assert activator.wait_for_zero(60)
    assert broker.publish(event("e-1")) == 202
    assert [outcome.what for outcome in broker.outcomes("function")] == ["replied"] * 4
    assert activator.wait_for_zero(60)
    assert (activator.starts, set(activator.exit_codes)) == (4, {0})
    with server:
        assert counted(server) == (3, 1, 0)
