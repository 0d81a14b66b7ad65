"""Events to a sink over real HTTP: what is sent, how often, in which order, and what never is."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import orjson
import pytest

from metrics import background, sink
from metrics.counters import Increment
from metrics.errors import StoreUnavailable
from metrics.server_stats import SINK_OUTCOMES
from metrics.sink import Sink
from tests.servers_http import until
from tests.sinks import Receiver

MODEL = "ns/iris/default/classifier"
NEVER = 3600.0


class Tally:
    """Counts what the sink reports."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.bugs: Counter[str] = Counter()

    def sunk(self, outcome: str) -> None:
        assert outcome in SINK_OUTCOMES
        self.outcomes[outcome] += 1

    def unforeseen(self, part: str) -> None:
        self.bugs[part] += 1


def rendered(_: str, increment: Increment) -> bytes:
    """An increment of one family as its number."""
    return orjson.dumps(increment.get("events", {}).get((), 0))


class Told:
    """A sink, its receiver, and what they were told."""

    def __init__(self) -> None:
        self.receiver = Receiver()
        self.tally = Tally()
        self.sinks: list[Sink] = []
        self.told = 0
        self.settled: list[str] = []

    def open(self, interval: float = 0.0, url: str = "", data: Any = rendered) -> Sink:
        """A sink that posts to the receiver."""
        self.sinks.append(Sink(url or self.receiver.url, interval, {"by": "us"}, data, self.tally))
        return self.sinks[-1]

    def tell(self, model: str = MODEL, times: int = 1) -> None:
        """Tell the sink of events."""
        for _ in range(times):
            self.told += 1
            named = {"id": f"event-{self.told}", "type": "metrics", "subject": model}
            self.sinks[-1].tell(model, named, {"events": {(): 1}})

    def alert(self, rule: str, number: int) -> bool:
        """Tell it of an alert."""
        id = f"{rule}-{number}"
        return self.sinks[-1].alert(
            rule,
            MODEL,
            {"id": id, "type": "metrics.alert"},
            lambda: self.settled.append(id),
        )

    def sums(self) -> Counter[str]:
        """By model what a receiver counts that ignores ids it knows."""
        by_id = {each.attributes["id"]: each for each in self.receiver.taken}
        sums: Counter[str] = Counter()
        for each in by_id.values():
            if each.attributes["type"] == "metrics":
                sums[each.attributes["subject"]] += each.data
        return sums

    def ids(self) -> list[str]:
        """The ids of what was taken, in order."""
        return [each.attributes["id"] for each in self.receiver.taken]

    def close(self) -> None:
        for each in self.sinks:
            each.close()
        self.receiver.close()


@pytest.fixture
def world() -> Iterator[Told]:
    world = Told()
    yield world
    world.close()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are followed by a try soon."""
    monkeypatch.setattr(sink, "FIRST_BACKOFF_SECONDS", 0.002)
    monkeypatch.setattr(sink, "MAX_BACKOFF_SECONDS", 0.02)


# --- what is sent ---------------------------------------------------------------------------------


def test_a_model_has_one_event_an_interval(world: Told) -> None:
    """Its increments since the last one summed, with the attributes of its last event."""
    world.open(interval=0.5)
    world.tell()
    until(lambda: len(world.receiver.taken) == 1)
    world.tell(times=100)
    world.tell("other")
    until(lambda: len(world.receiver.taken) == 3)
    first, other, second = world.receiver.taken
    assert (first.data, first.attributes["id"]) == (1, "event-1")
    assert (other.data, other.attributes["id"]) == (1, "event-102")
    assert (second.data, second.attributes["id"]) == (100, "event-101")
    assert second.at - first.at >= 0.45
    assert second.attributes["by"] == "us"
    assert world.tally.outcomes == {"sent": 3}
    assert world.receiver.connections == 1


def test_a_backlog_is_one_event_a_model(world: Told, fast: None) -> None:
    """However many events come while the sink is down."""
    world.receiver.answer = lambda _: 503
    world.open()
    for _ in range(2000):
        for model in "abc":
            world.tell(model)
    until(lambda: world.tally.outcomes["failed"] >= 5)
    assert sum(len(line.messages) for line in world.sinks[0]._lines()) <= 3
    world.receiver.answer = lambda _: 202
    until(lambda: len(world.sums()) == 3)
    assert world.sums() == {"a": 2000, "b": 2000, "c": 2000}
    assert len(world.receiver.taken) == 3
    assert world.tally.outcomes["superseded"] >= 1


def test_alerts_that_wait_are_bounded(world: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much is not taken, and whoever tells hears so; later it is."""
    monkeypatch.setattr(sink, "MAX_ALERTS", 3)
    gate = threading.Event()
    world.receiver.answer = lambda _: 202 if gate.wait(60) else 500
    world.open()
    assert [world.alert(f"rule {number}", 1) for number in range(5)] == [True] * 3 + [False] * 2
    gate.set()
    until(lambda: len(world.settled) == 3)
    assert until(lambda: world.alert("rule 4", 1))
    monkeypatch.setattr(sink, "MAX_ALERTS", 100)
    gate.clear()
    taken = [world.alert("flaps", number) for number in range(20)]
    assert sum(taken) in (sink.MAX_OF_RULE, sink.MAX_OF_RULE + 1)  # one may be on its way
    gate.set()


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 408, 409, 429, 500, 502, 503, 504])
def test_what_a_retry_may_mend_is_retried(world: Told, fast: None, status: int) -> None:
    """As Knative retries it: nothing is lost; the failures are told of once."""
    statuses = iter([status] * 3)
    world.receiver.answer = lambda _: next(statuses, 202)
    world.open()
    world.tell()
    assert world.alert("rule", 1)
    until(lambda: len(world.receiver.taken) == 2)
    assert world.sums() == {MODEL: 1}
    assert world.tally.outcomes["failed"] == 3
    assert world.settled == ["rule-1"]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 405, 410, 413, 415, 422])
def test_what_no_retry_can_mend_is_dropped(
    world: Told, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Counted, told of once for as long as it stays so; what comes after it is sent."""
    statuses = iter([status] * 4)
    world.receiver.answer = lambda _: next(statuses, 202)
    world.open()
    assert world.alert("rule", 1)
    until(lambda: world.settled)
    for number in range(2, 6):
        world.tell()
        until(lambda number=number: len(world.receiver.deliveries) == number)
    until(lambda: world.tally.outcomes["sent"] == 1)
    assert world.tally.outcomes == {"dropped": 4, "sent": 1}
    assert caplog.text.count(f"refuses events of {MODEL}: HTTP {status}") == 1


def test_tries_are_ever_further_apart(world: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubling, up to a most, half of each by chance; the next success begins anew."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)
    monkeypatch.setattr(sink, "MAX_BACKOFF_SECONDS", 1.6)
    assert [sink._backoff(failures) for failures in (0, 1, 2, 3, 1000)] == pytest.approx(
        [0.15, 0.3, 0.6, 1.2, 1.2]
    )
    monkeypatch.undo()
    waits = {sink._backoff(1) for _ in range(50)}
    assert len(waits) > 10
    assert 0.2 <= min(waits) < max(waits) <= 0.4
    statuses = iter([503] * 3)
    world.receiver.answer = lambda _: next(statuses, 202)
    world.open()
    world.tell()
    until(lambda: world.receiver.taken)
    at = [each.at for each in world.receiver.deliveries]
    for sooner, later, least in zip(at[:-1], at[1:], (0.1, 0.2, 0.4), strict=True):
        assert later - sooner >= least
    assert world.sinks[0]._failures == 0


def test_a_sink_may_say_when_to_come_again(world: Told, fast: None) -> None:
    """`Retry-After` in seconds; at most MAX_RETRY_AFTER_SECONDS, and nothing else is a number."""
    assert [sink._seconds(text) for text in ("", "2", " 7 ", "9" * 400, "-1", "1.5", "soon")] == [
        *(0, 2, 7, sink.MAX_RETRY_AFTER_SECONDS, 0, 0, 0),
    ]
    world.receiver.headers["retry-after"] = "1"
    statuses = iter([429])
    world.receiver.answer = lambda _: next(statuses, 202)
    world.open()
    world.tell()
    until(lambda: world.receiver.taken)
    first, second = world.receiver.deliveries
    assert second.at - first.at >= 0.9


def test_a_model_that_is_always_refused_stops_no_other(world: Told, fast: None) -> None:
    """What the sink has against one model is no reason to make others wait for long."""
    world.receiver.answer = lambda named: 500 if named["subject"] == "bad" else 202
    world.open()
    world.tell("bad")
    for _ in range(20):
        world.tell("good")
        world.tell("bad")
        time.sleep(0.01)
    until(lambda: world.sums()["good"] == 20)


def test_alerts_of_a_rule_keep_their_order(world: Told, fast: None) -> None:
    """Whichever deliveries fail; other rules and models do not wait for it."""
    chance = random.Random(7)
    world.receiver.answer = lambda named: (
        503 if named["id"].startswith("stuck") or chance.random() < 0.6 else 202
    )
    world.open()
    assert world.alert("stuck", 1)
    for number in range(12):
        for rule in ("one", "two"):
            until(lambda rule=rule, number=number: world.alert(rule, number))
        world.tell()
    until(lambda: len(world.settled) == 24)
    for rule in ("one", "two"):
        found = [id for id in world.ids() if id.startswith(rule)]
        assert found == [f"{rule}-{number}" for number in range(12)]
        assert [id for id in world.settled if id.startswith(rule)] == found
    assert "stuck-1" not in world.settled


@pytest.mark.parametrize("seed", range(4))
def test_answers_that_get_lost_count_nothing_twice(world: Told, fast: None, seed: int) -> None:
    """The sink took it, and its answer is lost: posted again under the same id, with no more in it.

    Seeded: each delivery is answered, refused, or taken without an answer.
    """
    chance = random.Random(seed)

    def answer(_: dict[str, str]) -> int:
        happens = chance.choice(["taken", "refused", "lost", "lost"])
        if happens == "lost":
            world.receiver.lose_answer = True
            return 202
        return 503 if happens == "refused" else 202

    world.receiver.answer = answer
    world.open()
    for number in range(300):
        world.tell("ab"[number % 2])
        time.sleep(0.001)
        assert all(len(line.messages) <= 2 for line in world.sinks[0]._lines())
    until(lambda: sum(world.sums().values()) == 300)
    world.receiver.answer = lambda _: 202
    world.sinks[0].close()
    assert world.sums() == {"a": 150, "b": 150}
    assert len(world.ids()) > len(set(world.ids()))


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["idle", "after each answer"])
def test_a_connection_that_its_peer_closed_is_no_failure(
    world: Told, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """An idle pause costs a connection, and neither a failed delivery nor a warning."""
    world.receiver.hang_up_after = when == "after each answer"
    world.open()
    for number in range(1, 6):
        world.tell()
        until(lambda number=number: len(world.receiver.taken) == number)
        world.receiver.hang_up()
        until(lambda: not world.receiver.open_connections)
    until(lambda: world.tally.outcomes["sent"] == 5)
    assert world.tally.outcomes == {"sent": 5}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert world.receiver.connections == 5


def test_a_fresh_connection_that_is_closed_is_a_failure(
    world: Told, caplog: pytest.LogCaptureFixture, fast: None
) -> None:
    """A peer that closes all of them is down: no endless tries at once."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        accepted = 0

        def close_all() -> None:
            nonlocal accepted
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                accepted += 1
                connection.close()

        threading.Thread(target=close_all, daemon=True).start()
        world.open(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        world.tell()
        until(lambda: world.tally.outcomes["failed"] >= 3)
        assert accepted <= world.tally.outcomes["failed"] + 1
        assert caplog.text.count("the sink does not take events") == 1
        listener.shutdown(socket.SHUT_RDWR)


def test_a_sink_that_drips_is_given_up(world: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is no answer: the time is for the whole of it."""
    monkeypatch.setattr(sink, "TIMEOUT_SECONDS", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                try:
                    while True:
                        connection.sendall(b"H")
                        time.sleep(0.05)
                except OSError:
                    return

        threading.Thread(target=drip, daemon=True).start()
        world.open(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        world.tell()
        until(lambda: world.tally.outcomes["failed"] == 1, 10)


# --- bugs -----------------------------------------------------------------------------------------


def test_an_unforeseen_error_costs_one_event_only(
    world: Told, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one model; the thread lives, and the error is counted and logged."""
    monkeypatch.setattr(background, "_logged", {})

    def data(model: str, increment: Increment) -> bytes:
        if model == "bad":
            raise TypeError("a bug")
        return rendered(model, increment)

    world.open(data=data)
    for number in range(1, 4):
        world.tell("bad")
        until(lambda number=number: world.tally.bugs["sink"] == number)
    world.tell("good")
    until(lambda: world.sums()["good"] == 1)
    assert world.tally.outcomes == {"dropped": 3, "sent": 1}
    assert caplog.text.count("TypeError: a bug") == 1


def test_a_store_that_cannot_be_read_now_is_waited_for(world: Told, fast: None) -> None:
    """The view is of the last commit; where there is none to be had the event waits."""
    failures = iter(range(3))

    def data(model: str, increment: Increment) -> bytes:
        if next(failures, None) is not None:
            raise StoreUnavailable("unreachable", "no store")
        return rendered(model, increment)

    world.open(data=data)
    world.tell()
    until(lambda: world.sums()[MODEL] == 1)
    assert world.tally.outcomes == {"failed": 3, "sent": 1}
    assert not world.tally.bugs


def test_whatever_is_raised_the_thread_lives(world: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody thought of it."""
    broken = world.open()
    real = broken._deliver
    monkeypatch.setattr(broken, "_deliver", lambda *_: 1 / 0)
    world.tell()
    until(lambda: world.tally.bugs["sink"] == 1)
    monkeypatch.setattr(broken, "_deliver", real)
    world.tell("next")
    until(lambda: world.sums()["next"] == 1)


# --- the end --------------------------------------------------------------------------------------


def test_the_last_events_are_sent_at_the_end(world: Told) -> None:
    """Without waiting for their interval."""
    world.open(interval=NEVER)
    world.tell()
    until(lambda: world.receiver.taken)
    world.tell(times=3)
    world.tell("other")
    assert world.alert("rule", 1)
    world.sinks[0].close()
    assert world.sums() == {MODEL: 4, "other": 1}
    assert world.settled == ["rule-1"]
    assert not world.sinks[0]._thread.is_alive()
    assert not world.alert("rule", 2)


@pytest.mark.parametrize("how", ["down", "silent", "503"])
def test_the_end_waits_for_no_sink(
    world: Told, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What is not sent in time is told of."""
    monkeypatch.setattr(sink, "LAST_SECONDS", 0.5)
    world.receiver.answer = lambda _: 503
    with closing(socket.socket()) as deaf:
        deaf.bind(("127.0.0.1", 0))
        if how == "silent":
            deaf.listen()
        url = world.receiver.url if how == "503" else f"http://127.0.0.1:{deaf.getsockname()[1]}"
        world.open(url=url)
        world.tell()
        world.tell("other")
        time.sleep(0.1)
        began = time.monotonic()
        world.sinks[0].close()
        assert time.monotonic() - began < 3
    assert "2 last metrics events and alerts are not sent" in caplog.text
