"""Alerts to a sink outlive their process: told at least once, in order, under one id."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from metrics import background
from metrics.alerts import FIRING, PREFIX, REMEMBERED, RESOLVED, Rule, Transition
from metrics.outbox import ABANDONED_SECONDS, Alert, Outbox, constant, untold, with_one_more
from metrics.state import Entry
from metrics.store import MemoryStore
from tests.servers import RedisServer
from tests.servers_http import OwnServer, until
from tests.sinks import Receiver

MODEL = "ns/iris/default/classifier"
RULE = Rule("low", "accuracy", below=0.5, rows=4)
RULES = """
models:
  "ns/iris/*/*":
    alerts:
      - {name: low, score: accuracy, below: 0.5, rows: 4}
"""


def transition(number: int) -> Transition:
    """The first is firing, the second resolved, and so on."""
    return Transition(number, (RESOLVED, FIRING)[number % 2], 0.25, 1e9 + number, "")


def id_of(number: int) -> str:
    """The id of the event that tells it."""
    return transition(number).id(MODEL, RULE)


# --- through real servers -------------------------------------------------------------------------


@pytest.fixture
def rules(tmp_path: Path) -> str:
    """The path of a file of rules."""
    path = tmp_path / "models.yaml"
    path.write_text(RULES)
    return str(path)


class Silent:
    """A sink that accepts connections, reads what comes, and never answers."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(1 << 16):
                self.got.append(data)
        except OSError:
            pass

    def close(self) -> None:
        """Stop."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._connections:
            each.close()


def send(server: OwnServer, first: int, last: int, right: bool) -> None:
    """Events with these ids, all right or all wrong."""
    for number in range(first, last + 1):
        answer = server.feedback(f"e{number}", MODEL, truth=1 if right else 0)
        assert answer.status == 202


def is_told(exposition: str) -> bool:
    """Whether the rule fires by what Prometheus sees."""
    return "feedback_alert_firing{" in exposition and "} 1.0" in next(
        line for line in exposition.splitlines() if line.startswith("feedback_alert_firing{")
    )


@pytest.mark.parametrize("interval", ["0", "0.2"], ids=["each commit", "snapshots"])
def test_a_kill_before_the_delivery_loses_no_alert(
    tmp_path: Path, rules: str, interval: str
) -> None:
    """SIGKILL while the sink has not answered: told after the restart, once, and not again."""
    with closing(Silent()) as silent, Receiver() as receiver:
        server = OwnServer(
            tmp_path,
            K_SINK=silent.url,
            FEEDBACK_MODELS=rules,
            FEEDBACK_SNAPSHOT_INTERVAL=interval,
        )
        with server:
            send(server, 1, 6, right=False)
            until(lambda: is_told(server.exposition()))
            until(lambda: silent.got)
            server.kill()
            server.variables["K_SINK"] = receiver.url
            server.start()
            until(lambda: receiver.alerts)
            send(server, 7, 14, right=True)
            until(lambda: len(receiver.alerts) == 2)
            time.sleep(1.5)  # the store hears of it in a second
            server.restart()
            time.sleep(ABANDONED_SECONDS + 2)
        found = [(each["id"], each["state"], each["rule"]) for each in receiver.alerts]
        assert found == [(id_of(1), FIRING, "low"), (id_of(2), RESOLVED, "low")]


def test_another_replica_tells_what_a_dead_one_left(tmp_path: Path, rules: str) -> None:
    """Two replicas on one Redis, the one that saw the crossing is killed: the other tells it."""
    with RedisServer() as redis, closing(Silent()) as silent, Receiver() as receiver:
        shared = {"FEEDBACK_STORE": redis.url, "FEEDBACK_MODELS": rules}
        one = OwnServer(tmp_path, **shared, K_SINK=silent.url)
        other = OwnServer(tmp_path, **shared, K_SINK=receiver.url)
        with one, other:
            one_sees(one)
            one.kill()
            until(lambda: receiver.alerts)
            send(other, 7, 14, right=True)
            until(lambda: len(receiver.alerts) == 2)
        found = [(each["id"], each["state"]) for each in receiver.alerts]
        assert found == [(id_of(1), FIRING), (id_of(2), RESOLVED)]


def one_sees(server: OwnServer) -> None:
    """Have the rule fire in this replica."""
    send(server, 1, 6, right=False)
    until(lambda: is_told(server.exposition()))


def test_what_the_sink_refuses_for_good_is_told_once(tmp_path: Path, rules: str) -> None:
    """A 400 is an answer: no restart tells it again."""
    with Receiver() as receiver:
        receiver.answer = lambda named: 400 if named["type"].endswith("alert") else 202
        with OwnServer(tmp_path, K_SINK=receiver.url, FEEDBACK_MODELS=rules) as server:
            send(server, 1, 6, right=False)
            alerts = [id_of(1)]
            until(lambda: [i for i in ids(receiver) if i in alerts] == alerts)
            assert server.terminate() == 0
            server.start()
            time.sleep(ABANDONED_SECONDS + 2)
            assert [i for i in ids(receiver) if i in alerts] == alerts


def ids(receiver: Receiver) -> list[str]:
    """The ids of all that came."""
    return [each.attributes["id"] for each in receiver.deliveries]


def test_the_end_tells_the_store_what_was_told(tmp_path: Path, rules: str) -> None:
    """SIGTERM right after the crossing: delivered while closing, and not again."""
    with Receiver() as receiver:
        server = OwnServer(tmp_path, K_SINK=receiver.url, FEEDBACK_MODELS=rules)
        with server:
            receiver.answer = lambda _: 503 if not closing_time.is_set() else 202
            closing_time = threading.Event()
            send(server, 1, 6, right=False)
            until(lambda: id_of(1) in ids(receiver))
            closing_time.set()
            assert server.terminate() == 0
            assert [each["id"] for each in receiver.alerts] == [id_of(1)]
            server.start()
            time.sleep(ABANDONED_SECONDS + 2)
            assert [each["id"] for each in receiver.alerts] == [id_of(1)]


# --- the outbox by itself -------------------------------------------------------------------------


class Replica:
    """An outbox, what it handed to its sink, and a clock of its own."""

    def __init__(self, store: MemoryStore) -> None:
        self.handed: list[Alert] = []
        self.room = True
        self.now = 0.0
        self.outbox = Outbox(store, self._tell, lambda _: None, lambda: self.now)

    def _tell(self, alert: Alert) -> bool:
        if self.room:
            self.handed.append(alert)
        return self.room

    def numbers(self) -> list[int]:
        """The transitions it handed over."""
        return [each.transition.number for each in self.handed]

    def settle(self, upto: int | None = None) -> None:
        """Have its sink take some of them."""
        for alert in self.handed[:upto]:
            self.outbox.settled(alert)
        del self.handed[:upto]
        self.outbox.settle(0.0)


def happen(store: MemoryStore, number: int) -> None:
    """Have a transition be in the store, as `watch` has it."""
    state = store.read().models.get(MODEL)
    known: Any = state.constants if state else {}
    name = constant(RULE)
    changed = {name: with_one_more(known, RULE, transition(number))}
    store.commit(
        [Entry(MODEL, b"", (), {}, constants=changed, replaces={name: known.get(name)})], 0.0
    )


def left(store: MemoryStore) -> list[int]:
    """The numbers in the outbox."""
    return [each.number for each in untold(store.read().models[MODEL].constants, RULE)]


@pytest.fixture
def store() -> Iterator[MemoryStore]:
    """A store of one's own."""
    store = MemoryStore(3600)
    yield store
    store.close()


def test_it_keeps_the_youngest(store: MemoryStore) -> None:
    """A sink that is away for days costs a few transitions a rule."""
    for number in range(1, 30):
        happen(store, number)
    assert left(store) == list(range(30 - REMEMBERED, 30))


def test_others_wait_before_they_take_over(store: MemoryStore) -> None:
    """Who made it tells it at once; others only what has waited for long, and once each."""
    one, other = Replica(store), Replica(store)
    happen(store, 1)
    one.outbox.hand(MODEL, (RULE,))
    rules = {MODEL: (RULE,)}
    for _ in range(2):
        for each in (one, other):
            each.outbox.look(rules)
        other.now += ABANDONED_SECONDS / 2
        one.now += ABANDONED_SECONDS
    assert (one.numbers(), other.numbers()) == ([1], [])
    one.settle()
    assert left(store) == []
    happen(store, 2)
    for _ in range(4):
        other.outbox.look(rules)
        other.now += ABANDONED_SECONDS / 2
    assert other.numbers() == [2]
    happen(store, 3)
    other.outbox.hand(MODEL, (RULE,))
    assert other.numbers() == [2, 3]


def test_what_finds_no_room_is_handed_later(store: MemoryStore) -> None:
    """In order: none overtakes one that found no room."""
    replica = Replica(store)
    replica.room = False
    happen(store, 1)
    replica.outbox.hand(MODEL, (RULE,))
    happen(store, 2)
    replica.room = True
    replica.outbox.hand(MODEL, (RULE,))
    assert replica.numbers() == [1, 2]


def test_an_error_of_one_leaves_it_in_the_outbox(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug in handing it over is reported; it is tried again."""
    monkeypatch.setattr(background, "_logged", {})
    counted: list[str] = []
    fails = iter([True])
    handed: list[Alert] = []

    def tell(alert: Alert) -> bool:
        if next(fails, False):
            raise KeyError("a bug")
        handed.append(alert)
        return True

    outbox = Outbox(store, tell, counted.append)
    happen(store, 1)
    outbox.hand(MODEL, (RULE,))
    assert (counted, handed) == (["alerts"], [])
    outbox.hand(MODEL, (RULE,))
    assert [each.transition.number for each in handed] == [1]


@pytest.mark.parametrize("broken", [5, "x", [[1]], [["a", 1, 2, 3, 4]], {"a": 1}, [None]])
def test_a_broken_outbox_is_an_empty_one(store: MemoryStore, broken: Any) -> None:
    """What no version of ours wrote stops nothing, and is replaced by what happens next."""
    store.commit([Entry(MODEL, b"", (), {}, constants={constant(RULE): broken})], 0.0)
    replica = Replica(store)
    replica.outbox.hand(MODEL, (RULE,))
    replica.outbox.look({MODEL: (RULE,)})
    assert replica.numbers() == []
    happen(store, 7)
    replica.outbox.hand(MODEL, (RULE,))
    assert replica.numbers() == [7]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_whoever_dies(store: MemoryStore, seed: int) -> None:
    """Transitions, deliveries, kills and restarts at random, over two replicas.

    Each transition is told at least once, and no replica tells one before an older one of those it
    tells.
    """
    chance = random.Random(seed)
    replicas = [Replica(store), Replica(store)]
    delivered: list[int] = []
    happened = 0

    def deliver(replica: Replica, some: int | None) -> None:
        numbers = replica.numbers()
        assert numbers == sorted(numbers)
        delivered.extend(numbers[:some])
        replica.settle(some)

    for _ in range(300):
        at = chance.randrange(2)
        replica = replicas[at]
        event = chance.choice(["happens", "delivers", "dies", "looks", "looks"])
        if event == "happens" and len(left(store) if happened else []) < REMEMBERED:
            happened += 1
            happen(store, happened)
            if chance.random() < 0.8:  # else it is killed before it hands it over
                replica.outbox.hand(MODEL, (RULE,))
            else:
                replicas[at] = Replica(store)
        elif event == "delivers":
            deliver(replica, chance.randrange(3))
        elif event == "dies":
            if chance.random() < 0.5:  # the sink has it, and the store does not know
                delivered.extend(replica.numbers())
            replicas[at] = Replica(store)
        else:
            replica.now += ABANDONED_SECONDS / 2
            replica.outbox.look({MODEL: (RULE,)})
    last = replicas[0]
    for _ in range(4):
        last.outbox.look({MODEL: (RULE,)})
        last.now += ABANDONED_SECONDS / 2
    deliver(last, None)
    assert happened > 20
    assert set(delivered) == set(range(1, happened + 1))
    assert left(store) == []


def test_it_survives_json_and_is_not_exported() -> None:
    """As a store keeps it; alerts are told where they are watched."""
    assert constant(RULE).startswith(PREFIX)
    assert constant(RULE) != RULE.constant
    assert json.loads(json.dumps(with_one_more({}, RULE, transition(1)))) == [
        [1, FIRING, 0.25, 1e9 + 1, ""]
    ]
