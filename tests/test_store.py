"""The contract of a store, one suite over every backend."""

from __future__ import annotations

import random
import threading
import time as clock
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from metrics import committer, redis_store
from metrics.counters import add, merge, unpack, value
from metrics.errors import ConfigurationError, ConstantsDiffer, StoreUnavailable
from metrics.server_stats import ServerStats
from metrics.state import TAG, Entry, Gauge, RecordKey, State, Swap
from metrics.store import Store, open_store
from metrics.windows import ALL_TIME, Pane, place, window
from tests.servers import RedisServer, read
from tests.servers_http import until

NOW = 1_700_000_000.0
TTL = 800
WINDOWS = [window(name) for name in ("5m", "1h", "1d")]
ONE = {"events": {(): 1}}


@dataclass
class Backend:
    """A kind of store: every `open` gives another instance on the same content."""

    url: str
    stores: list[Store] = field(default_factory=list)

    def open(self, ttl: int = TTL) -> Store:
        """One more instance."""
        store = open_store(self.url, ttl)
        self.stores.append(store)
        return store

    def close(self) -> None:
        """Close every instance."""
        while self.stores:
            self.stores.pop().close()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis for the module."""
    with RedisServer() as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", "redis"])
def backend(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Backend]:
    """Each kind of store, empty."""
    yield from _backend(request, tmp_path)


@pytest.fixture(params=["sqlite", "redis"])
def shared(
    request: pytest.FixtureRequest, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    """Each kind of store that several instances can hold; readers look at once."""
    yield from _backend(request, tmp_path)


def _backend(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Backend]:
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/feedback.db"}.get(request.param)
    if url is None:
        server = request.getfixturevalue("server")
        server.ask("FLUSHALL")
        url = server.url
    backend = Backend(url)
    yield backend
    backend.close()


def digest(id: object) -> bytes:
    """A digest that stands for `id`."""
    return random.Random(repr(id)).randbytes(16)


def entry(id: object, increment: Any = ONE, model: str = "m", **more: Any) -> Entry:
    """An entry of the event `id`; in the pane of all time, where not said otherwise."""
    return Entry(model, digest(id), more.pop("panes", (ALL_TIME,)), increment, **more)


def all_time(store: Store, model: str = "m") -> Any:
    """The counters of all time as the store reads now."""
    return read(store).models[model].all_time


# --- counting ----------------------------------------------------------------------------------


def test_empty(backend: Backend) -> None:
    """An empty store knows no model."""
    assert dict(read(backend.open()).models) == {}


def test_empty_batch(backend: Backend) -> None:
    """An empty batch commits, and leaves the content as it is."""
    store = backend.open()
    assert store.commit([], NOW) == []
    assert dict(read(store).models) == {}


def test_adds(backend: Backend) -> None:
    """Increments add up in each of their panes, and only there."""
    store = backend.open()
    young, old = Pane(5, 340000000), Pane(5, 339999999, "country=de")
    batch = [
        entry(1, {"events": {(): 1}, "tp": {("a",): 2}}, panes=(ALL_TIME, young)),
        entry(2, {"events": {(): 1}, "tp": {("b",): 3}}, panes=(ALL_TIME, old)),
    ]
    assert store.commit(batch, NOW) == [True, True]
    assert store.commit([entry(3, {"tp": {("a",): 1}}, panes=(young,))], NOW) == [True]
    assert read(store).models["m"].panes == {
        ALL_TIME: {"events": {(): 2}, "tp": {("a",): 2, ("b",): 3}},
        young: {"events": {(): 1}, "tp": {("a",): 3}},
        old: {"events": {(): 1}, "tp": {("b",): 3}},
    }


def test_models_are_apart(backend: Backend) -> None:
    """A batch over several models counts each entry for its own model."""
    store = backend.open()
    batch = [entry(id, model=f"m{id % 3}") for id in range(7)]
    assert store.commit(batch, NOW) == [True] * 7
    counts = {model: state.all_time["events"][()] for model, state in read(store).models.items()}
    assert counts == {"m0": 3, "m1": 2, "m2": 2}


def test_wide_vector(shared: Backend) -> None:
    """A vector of more cells than one command takes is stored whole."""
    store = shared.open()
    wide = {"confusion": {(str(n), str(n + 1)): n for n in range(10_001)}}
    assert store.commit([entry(1, wide), entry(2, wide)], NOW) == [True, True]
    assert all_time(shared.open()) == {
        "confusion": {labels: 2 * n for labels, n in wide["confusion"].items()}
    }


def test_threads(backend: Backend) -> None:
    """Commits and reads from several threads lose nothing."""
    store = backend.open()
    seen: list[int] = []

    def work(thread: int) -> None:
        for n in range(25):
            store.commit([entry((thread, n)), entry(("all", n))], NOW)
            seen.append(all_time(store)["events"][()])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 100
    assert all_time(store) == {"events": {(): 125}, "duplicates": {(): 75}}


# --- reading -----------------------------------------------------------------------------------


def test_reading_does_not_wait_for_who_holds_the_store(
    shared: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`read` and `seen` answer from memory while a commit, or a refresh, hangs."""
    store = shared.open()
    store.commit([entry(1)], NOW)
    entered, go_on = threading.Event(), threading.Event()

    def hang(*_: Any) -> None:
        entered.set()
        assert go_on.wait(60)

    for name, use in (
        ("_catch_up", lambda: store.commit([entry(2)], NOW)),
        ("_look", lambda: store.refresh(NOW)),
    ):
        name = {"_catch_up": "_send"}.get(name, name) if shared.url.startswith("redis") else name
        before, seen = store.read(), store.seen()
        entered.clear()
        go_on.clear()
        with monkeypatch.context() as patch:
            patch.setattr(store, name, hang)
            thread = threading.Thread(target=suppressed, args=(use,))
            thread.start()
            assert entered.wait(60)
            began = clock.monotonic()
            assert store.read() is before
            assert store.seen() == seen
            assert clock.monotonic() - began < 1
            go_on.set()
            thread.join()


def suppressed(use: Any) -> None:
    """Use a store whose insides a test has replaced."""
    with suppress(Exception):
        use()


def test_reading_does_not_look(shared: Backend) -> None:
    """What others committed is read after `refresh`, and not before."""
    one, other = shared.open(), shared.open()
    one.commit([entry(1)], NOW)
    assert dict(other.read().models) == {}
    other.refresh(NOW)
    assert other.read().models == one.read().models
    one.reset("m")
    assert set(other.read().models) == {"m"}
    other.refresh(NOW)
    assert dict(other.read().models) == {}


# --- exactly once ------------------------------------------------------------------------------


def test_duplicate_in_batch(backend: Backend) -> None:
    """The second entry of a digest in a batch is a duplicate."""
    store = backend.open()
    assert store.commit([entry(1), entry(2), entry(1), entry(1)], NOW) == [True, True, False, False]
    assert all_time(store) == {"events": {(): 2}, "duplicates": {(): 2}}


def test_duplicate_across_batches(backend: Backend) -> None:
    """A known digest adds one to `duplicates` and nothing else, whatever else is in its batch."""
    store = backend.open()
    store.commit([entry(1), entry(2)], NOW)
    gauges = {("g", ()): Gauge(1.0, NOW)}
    again = entry(1, panes=(ALL_TIME, Pane(5, 340000000)), gauges=gauges, constants={"origin": 1})
    assert store.commit([entry(3), again, entry(4), entry(2)], NOW) == [True, False, True, False]
    state = read(store).models["m"]
    assert state.panes == {ALL_TIME: {"events": {(): 4}, "duplicates": {(): 2}}}
    assert state.gauges == {}
    assert state.constants == {"created": NOW}


def test_only_duplicates(backend: Backend) -> None:
    """A batch of known digests commits too."""
    store = backend.open()
    store.commit([entry(1)], NOW)
    assert store.commit([entry(1)], NOW) == [False]
    assert store.commit([entry(1), entry(1)], NOW) == [False, False]
    assert all_time(store) == {"events": {(): 1}, "duplicates": {(): 3}}


def test_without_digest(backend: Backend) -> None:
    """An entry without a digest is new every time, and remembered nowhere."""
    store = backend.open()
    store.commit([entry(1)], NOW)
    nameless = Entry("m", b"", (ALL_TIME,), ONE)
    batch = [nameless, entry(1), nameless, entry(2), nameless]
    assert store.commit(batch, NOW) == [True, False, True, True, True]
    assert store.commit([nameless, entry(2)], NOW) == [True, False]
    assert all_time(store) == {"events": {(): 6}, "duplicates": {(): 2}}
    until(lambda: read(store) and store.seen() == 2)


def test_duplicate_across_instances(shared: Backend) -> None:
    """What one instance committed is a duplicate to another, which has not read it."""
    one, other = shared.open(), shared.open()
    assert one.commit([entry(1), entry(2)], NOW) == [True, True]
    assert other.commit([entry(3), entry(2)], NOW) == [True, False]
    assert one.commit([entry(3)], NOW) == [False]
    assert all_time(other) == all_time(one) == {"events": {(): 3}, "duplicates": {(): 2}}


def test_duplicate_after_reopening(shared: Backend) -> None:
    """A digest outlives the instance that remembered it."""
    shared.open().commit([entry(1)], NOW)
    shared.close()
    assert shared.open().commit([entry(1)], NOW + TTL - 1) == [False]


def test_digests_are_forgotten(backend: Backend) -> None:
    """A digest is known for the time to live, and forgotten by housekeeping after it."""
    store = backend.open()
    store.commit([entry(id) for id in range(50)], NOW)
    for second in range(TTL - 1):
        if not second % 100:
            store.housekeep(NOW + second)
    assert store.commit([entry(1)], NOW + TTL - 1) == [False]
    until(lambda: read(store) and store.seen() == 50)
    for second in range(TTL, 2 * TTL):
        store.housekeep(NOW + second)
    until(lambda: read(store) and store.seen() == 0)
    assert store.commit([entry(1)], NOW + 2 * TTL) == [True]


def test_a_digest_of_the_future_keeps_no_others(backend: Backend) -> None:
    """What was committed while the clock was ahead does not keep what is committed later."""
    store = backend.open()
    store.commit([entry("ahead")], NOW + 100 * TTL)
    store.commit([entry(id) for id in range(50)], NOW)
    for second in range(2 * TTL):
        store.housekeep(NOW + second)
    assert store.seen() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_any_partition_and_order(shared: Backend, seed: int) -> None:
    """However entries are cut into batches and spread over instances, integers come out equal."""
    chance = random.Random(seed)
    entries = [
        entry(
            id,
            {"events": {(): 1}, "tp": {(chance.choice("abc"),): chance.randrange(9)}},
            model=chance.choice(["m", "n"]),
            panes=tuple(pane for pane in place(NOW - id, NOW, WINDOWS).panes),
        )
        for id in range(60)
    ]
    sent = entries + chance.choices(entries, k=30)
    chance.shuffle(sent)
    stores = [shared.open() for _ in range(3)]
    new = 0
    while sent:
        size = min(len(sent), chance.randrange(1, 12))
        batch, sent = sent[:size], sent[size:]
        new += sum(chance.choice(stores).commit(batch, NOW))
    assert new == 60
    expected: dict[str, dict[Pane, Any]] = {"m": {}, "n": {}}
    for each in entries:
        for pane in each.panes:
            add(expected[each.model].setdefault(pane, {}), each.increment)
    for store in [*stores, shared.open()]:
        models = read(store).models
        panes = {model: {**state.panes} for model, state in models.items()}
        repeated = 0
        for vectors in panes.values():
            vectors[ALL_TIME] = {**vectors[ALL_TIME]}
            repeated += vectors[ALL_TIME].pop("duplicates")[()]
        assert repeated == 30
        assert panes == expected


# --- records ------------------------------------------------------------------------------------


def record(id: object, text: str = "") -> bytes:
    """A record that `id` wrote."""
    return digest(("tag", id))[:TAG] + text.encode()


def swap(key: object, before: bytes, after: bytes, home: str = "m") -> Swap:
    """The swap of the request `key`'s record."""
    return Swap(RecordKey(home, digest(key)), before[:TAG], after)


def find(store: Store, *keys: object) -> list[bytes | None]:
    """The records of requests of the home `m`."""
    found, _ = store.find([RecordKey("m", digest(key)) for key in keys], [])
    return [found.get(RecordKey("m", digest(key))) for key in keys]


def test_records_are_swapped_with_the_commit(backend: Backend) -> None:
    """What is remembered of a request changes with the counters, or neither does."""
    store = backend.open()
    first, second = record(1, "prediction"), record(2, "contribution")
    assert find(store, "r", "s") == [None, None]
    assert store.commit([entry(1, swap=swap("r", b"", first))], NOW) == [True]
    assert (find(store, "r", "s"), store.held()) == ([first, None], len(first))
    for wrong in (swap("r", b"", second), swap("r", second, b""), swap("s", first, second)):
        with pytest.raises(ConstantsDiffer):
            store.commit([entry(2), entry(3, swap=wrong)], NOW)
    assert all_time(store) == ONE
    assert store.commit([entry(1, swap=swap("r", b"", second))], NOW) == [False]  # not looked at
    assert store.commit([entry(4, swap=swap("r", first, second))], NOW) == [True]
    assert (find(store, "r"), store.held()) == ([second], len(second))
    assert store.commit([entry(5, swap=swap("r", second, b""))], NOW) == [True]
    assert (find(store, "r"), store.held(), store.oldest(9)) == ([None], 0, [])
    assert all_time(store) == {"events": {(): 3}, "duplicates": {(): 1}}


def test_swaps_of_one_commit_follow_each_other(backend: Backend) -> None:
    """Several entries of a commit may take one record from hand to hand."""
    store = backend.open()
    one, two = record(1), record(2)
    batch = [
        entry(1, swap=swap("r", b"", one)),
        entry(2, swap=swap("r", one, two)),
        entry(3, swap=swap("q", b"", one)),
        entry(4, swap=swap("q", one, b"")),
    ]
    assert store.commit(batch, NOW) == [True] * 4
    assert find(store, "r", "q") == [two, None]
    with pytest.raises(ConstantsDiffer):
        store.commit([entry(5, swap=swap("q", b"", one)), entry(6, swap=swap("q", two, b""))], NOW)
    assert find(store, "r", "q") == [two, None]


def test_two_writers_of_one_record(shared: Backend) -> None:
    """Of two that hold the same record, one takes it."""
    one, other = shared.open(), shared.open()
    kept = record(1, "é" * 300)
    one.commit([entry(1, swap=swap("r", b"", kept))], NOW)
    assert find(other, "r") == [kept]
    other.commit([entry(2, swap=swap("r", kept, b""))], NOW)
    with pytest.raises(ConstantsDiffer):
        one.commit([entry(3, swap=swap("r", kept, b""))], NOW)
    assert find(one, "r") == find(other, "r") == [None]
    assert all_time(one) == {"events": {(): 2}}


def test_what_was_counted_with_a_record_is_read_with_it(shared: Backend) -> None:
    """A correction by another process never takes back what `read` does not show."""
    one, other = shared.open(), shared.open()
    one.commit([entry(1, {"x": {(): 5}}, swap=swap("r", b"", record(1)))], NOW)
    assert find(other, "r") == [record(1)]
    assert other.read().models["m"].all_time == {"x": {(): 5}}
    other.commit([entry(2, {"-x": {(): 5}}, swap=swap("r", record(1), record(2)))], NOW)
    assert other.read().models["m"].all_time == {"x": {(): 5}, "-x": {(): 5}}


def test_the_oldest_records_come_first(backend: Backend) -> None:
    """In the order of their last writing; those that are gone are passed over."""
    store = backend.open()
    for number in range(300):
        store.commit([entry(number, swap=swap(number, b"", record(number)))], NOW + number)
    for number in (*range(250), 260):
        gone = swap(number, record(number), b"")
        store.commit([entry(("gone", number), swap=gone)], NOW + 300)
    again = swap(251, record(251), record("again"))
    store.commit([entry("again", swap=again)], NOW + 300)
    for _ in range(40):  # in small steps
        oldest = store.oldest(20)
    expected = [250, *range(252, 260), *range(261, 300)]
    assert [key.id for key, _ in oldest] == [digest(number) for number in expected][: len(oldest)]
    assert len(oldest) >= 10
    assert oldest[0] == (RecordKey("m", digest(250)), record(250))
    whole = store.oldest(1000)
    assert [body for _, body in whole][-2:] == [record(299), record("again")]
    assert (len(whole), store.held()) == (49, 49 * TAG)


def test_known_digests_are_told_with_the_records(backend: Backend) -> None:
    """`find` tells which events are counted already, so that they are not evaluated again."""
    store = backend.open()
    store.commit([entry(1), entry(2, swap=swap("r", b"", record(1)))], NOW)
    store.housekeep(NOW + 1)
    store.commit([entry(3)], NOW + 1)
    key = RecordKey("m", digest("r"))
    ids = [RecordKey("m", digest(id)) for id in (0, 1, 2, 3)]
    assert store.find([key], ids) == ({key: record(1)}, set(ids[1:]))
    assert store.find([], ids) == ({}, set(ids[1:]))
    assert store.find([key], []) == ({key: record(1)}, set())
    assert store.find([], []) == ({}, set())


# --- constants and gauges ----------------------------------------------------------------------


def test_created(backend: Backend) -> None:
    """A model's first commit fixes `created`, and later ones leave it."""
    store = backend.open()
    store.commit([entry(1)], NOW)
    store.commit([entry(2), entry(3, model="n")], NOW + 7)
    assert read(store).constants("m") == {"created": NOW}
    assert read(store).constants("n") == {"created": NOW + 7}
    assert read(store).constants("unknown") == {}


def test_first_constant_wins(backend: Backend) -> None:
    """An entry that presupposes another constant is refused, and nothing of its batch written."""
    store = backend.open()
    store.commit([entry(1, constants={"origin": 0.25, "task": "regression"})], NOW)
    before = read(store)
    batch = [entry(2), entry(3, constants={"origin": 0.5}), entry(4, model="n")]
    with pytest.raises(ConstantsDiffer):
        store.commit(batch, NOW)
    assert read(store).models == before.models
    batch[1].constants = {"origin": 0.25}
    assert store.commit(batch, NOW) == [True, True, True]


def test_a_replaced_constant_is_compared_and_set(shared: Backend) -> None:
    """Of two writers that replace the same value, the second one writes nothing."""
    one, other = shared.open(), shared.open()
    state: Any = {"state": "ok", "recent": [["é", 0.1]]}

    def step(before: Any, after: Any, **more: Any) -> Entry:
        return Entry("m", b"", (), {}, constants={"s": after}, replaces={"s": before}, **more)

    assert one.commit([step(None, state)], NOW) == [True]
    with pytest.raises(ConstantsDiffer):
        other.commit([step(None, {"state": "firing"})], NOW)
    assert other.read().constants("m")["s"] == state
    assert other.commit([step(state, {"state": "firing"})], NOW) == [True]
    with pytest.raises(ConstantsDiffer):
        one.commit([step(state, {"state": "lost"})], NOW)
    for store in (one, other, shared.open()):
        assert read(store).constants("m") == {"created": NOW, "s": {"state": "firing"}}
    one.housekeep(NOW + 1)
    other.commit([step({"state": "firing"}, state)], NOW + 2)
    other.housekeep(NOW + 3)
    for store in (one, other, shared.open()):
        assert read(store).constants("m") == {"created": NOW, "s": state}
        assert read(store).models["m"].all_time == {}


def test_equal_constants(shared: Backend) -> None:
    """A constant of an equal value does not differ, whatever its type."""
    one, other = shared.open(), shared.open()
    one.commit([entry(1, constants={"origin": 1.0})], NOW)
    assert other.commit([entry(2, constants={"origin": 1})], NOW) == [True]
    assert repr(read(other).constants("m")["origin"]) == "1.0"


@pytest.mark.parametrize("known", [False, True])
def test_constant_of_another_instance(shared: Backend, known: bool) -> None:
    """ConstantsDiffer leaves nothing written for any model, and `read` knows the constant."""
    one, other = shared.open(), shared.open()
    if known:
        one.commit([entry(0, {})], NOW)
    read(other)
    one.commit([entry(1, constants={"origin": 0.25})], NOW)
    batch = [entry(2, model="a"), entry(3, constants={"origin": 0.5}), entry(4, model="z")]
    with pytest.raises(ConstantsDiffer):
        other.commit(batch, NOW)
    assert other.read().constants("m") == {"created": NOW, "origin": 0.25}
    batch[1].constants = {"origin": 0.25}
    assert other.commit(batch, NOW) == [True, True, True]
    assert all_time(one) == {"events": {(): 2}}


def test_gauges(backend: Backend) -> None:
    """The gauge that was written for the latest time wins, in and across batches."""
    store = backend.open()
    key = ("latency", ('route="a"',))

    def gauge(id: int, value: float, time: float) -> Entry:
        return entry(id, gauges={key: Gauge(value, time)})

    store.commit([gauge(1, 1.5, NOW), gauge(2, 2.5, NOW - 1)], NOW)
    assert read(store).models["m"].gauges == {key: Gauge(1.5, NOW)}
    store.commit([gauge(3, 3.5, NOW - 0.001)], NOW)
    assert read(store).models["m"].gauges == {key: Gauge(1.5, NOW)}
    store.commit([gauge(4, -4.5, NOW + 0.001)], NOW)
    assert read(store).models["m"].gauges == {key: Gauge(-4.5, NOW + 0.001)}


def test_gauges_of_instances(shared: Backend) -> None:
    """An older gauge of another instance does not replace a younger one."""
    one, other = shared.open(), shared.open()
    one.commit([entry(1, gauges={("g", ()): Gauge(1.0, NOW)})], NOW)
    other.commit([entry(2, gauges={("g", ()): Gauge(2.0, NOW - 9)})], NOW)
    for store in (one, other, shared.open()):
        assert read(store).models["m"].gauges == {("g", ()): Gauge(1.0, NOW)}


# --- values ------------------------------------------------------------------------------------


def test_bits(shared: Backend) -> None:
    """Sums of floats read the same to the last bit, before and after reopening, everywhere."""
    chance = random.Random(7)
    one, other = shared.open(), shared.open()
    for id in range(120):
        sums = {
            (str(n),): chance.choice([chance.random(), 10 ** chance.uniform(-300, 300), 0.1])
            for n in range(9)
        }
        (one, other)[id % 3 == 0].commit([entry(id, {"loss": sums})], NOW)
    read = [repr(sorted(all_time(store)["loss"].items())) for store in (one, other, shared.open())]
    assert read[0] == read[1] == read[2]
    one.commit([entry("last", {"loss": {("0",): 0.1}})], NOW)
    assert repr(all_time(one)) == repr(all_time(shared.open()))


def test_mirror_bits(shared: Backend) -> None:
    """What one instance knows of its own commits equals what is stored to the last bit."""
    chance = random.Random(8)
    store = shared.open()
    for id in range(150):
        store.commit([entry((id, n), {"x": {(): chance.uniform(0, 1e9)}}) for n in range(3)], NOW)
    assert repr(all_time(store)) == repr(all_time(shared.open()))


def test_types(shared: Backend) -> None:
    """Integers stay integers and floats stay floats, also where they are whole."""
    store = shared.open()
    for id in range(2):
        numbers = {("int",): 2, ("whole",): 1.0, ("float",): 0.5, ("large",): 1e300, ("zero",): 0}
        store.commit([entry(id, {"x": numbers})], NOW)
    store.commit([entry(2, {"x": {("mixed",): 1}}), entry(3, {"x": {("mixed",): 1.0}})], NOW)
    store.commit([entry(4, {"x": {("mixed",): 1}})], NOW)
    expected = "{'int': 4, 'whole': 2.0, 'float': 1.0, 'large': 2e+300, 'zero': 0, 'mixed': 3.0}"
    for each in (store, shared.open()):
        cells = {label: number for (label,), number in all_time(each)["x"].items()}
        assert repr({name: cells[name] for name in eval(expected)}) == expected


@pytest.mark.parametrize("number", [2**53 - 1, 2**53, 2**53 + 1, 2**60 + 1, -(2**53) - 1, -7])
def test_large_integers(shared: Backend, number: int) -> None:
    """Integers past those that doubles hold are added exactly."""
    store = shared.open()
    for id in range(3):
        store.commit([entry(id, {"x": {(): number}})], NOW)
    store.commit([entry("one", {"x": {(): 1}})], NOW)
    for each in (store, shared.open()):
        assert repr(all_time(each)["x"][()]) == repr(3 * number + 1)


HOSTILE = [
    "",
    "'",
    '"',
    '\\"],[',
    "a\\",
    "{fdmt:x}",
    "}{",
    "%7B",
    "a:b:c",
    "1:2:",
    " \t\r\n",
    "\x01\x1f\x7f",
    "naïve ☃ 𝔘𝔫𝔦",
    "\u2028\ufeff",
    "null",
    "$1 ?1 :a; DROP TABLE counters; --",
    "x" * 5000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(shared: Backend, text: str) -> None:
    """Any text survives as a label, family, model, segment, gauge's label and constant."""
    store = shared.open()
    pane = Pane(5, 340000000, f"k={text}")
    hostile = entry(
        1,
        {text or "x": {(text, "b"): 1, ("a", text): 2}},
        model=text,
        panes=(ALL_TIME, pane),
        gauges={("g", (text,)): Gauge(0.5, NOW)},
        constants={"c": [text, {text: None}], text or "x": 1},
    )
    neighbour = entry(1, {"x": {("", text, ""): 1}}, model=text + "x")
    assert store.commit([hostile], NOW) == [True]
    store.commit([neighbour], NOW)
    for each in (store, shared.open()):
        models = read(each).models
        assert set(models) == {text, text + "x"}
        assert models[text].panes == {ALL_TIME: hostile.increment, pane: hostile.increment}
        assert models[text].gauges == hostile.gauges
        assert models[text].constants == {**hostile.constants, "created": NOW}
    assert store.reset(text)
    assert set(read(shared.open()).models) == {text + "x"}


# --- reading -----------------------------------------------------------------------------------


def test_read_is_a_copy(backend: Backend) -> None:
    """A state that was read does not change when more is committed."""
    store = backend.open()
    store.commit([entry(1, {"x": {(): 1}, "y": {("a",): 0.5}})], NOW)
    before = read(store)
    shown = repr(before)
    gauges = {("g", ()): Gauge(1.0, NOW)}
    panes = (ALL_TIME, Pane(5, 340000000))
    store.commit([entry(2, {"x": {(): 1, ("b",): 1}, "z": {(): 1}}, panes=panes)], NOW)
    store.commit([entry(3, {"x": {(): 1}}, gauges=gauges, constants={"c": 1})], NOW)
    assert repr(before) == shown
    assert all_time(store)["x"] == {(): 3, ("b",): 1}
    assert read(store).sequence > before.sequence


def test_read_again(backend: Backend) -> None:
    """Reading gives the same object until something changes."""
    store = backend.open()
    store.commit([entry(1)], NOW)
    before = store.read()
    assert store.read() is read(store) is before
    store.commit([], NOW)
    assert read(store) is before
    store.commit([entry(2)], NOW)
    assert store.read() is not before
    assert store.read() is read(store)


def test_a_commit_is_foreseen_and_seen_when_it_is_durable(shared: Backend) -> None:
    """What is told ahead is what is read afterwards, and not before; a duplicate alters it."""
    store = shared.open()
    gauges = {("g", ()): Gauge(1.0, NOW)}
    batches = [
        [entry(1, gauges=gauges, constants={"c": 1}), entry(2)],
        [entry(3, panes=(ALL_TIME, Pane(5, 340000000))), entry(2)],
        [entry(4), entry(5, model="n")],
        [entry(5, model="n"), entry(6)],
    ]
    for batch in batches:
        before = read(store)
        shown = repr(before)
        told: list[State] = []

        def ahead(state: State, before: State = before, told: list[State] = told) -> None:
            assert store.read() is before or told
            assert store.read() is not state
            told.append(state)

        store.commit(batch, NOW, ahead)
        assert store.read() is told[-1] is not before
        assert repr(before) == shown
        assert read(shared.open()).models == told[-1].models


def test_what_was_foreseen_in_vain_is_never_read(shared: Backend) -> None:
    """A commit that fails once it is foreseen leaves no trace, and can be tried again."""
    store = shared.open()
    store.commit([entry(1, {"events": {(): 1}, "x": {("a",): 0.1}}, constants={"c": 1})], NOW)
    before = read(store)
    shown = repr(before)
    gauges = {("g", ()): Gauge(1.0, NOW)}
    batch = [
        entry(2, {"events": {(): 1}, "x": {("a",): 0.2}}, gauges=gauges, constants={"d": 2}),
        entry(4, {"y": {("b",): 1}, "x": {("b",): 1}}),
        entry(3, model="n", panes=(ALL_TIME, Pane(5, 340000000))),
    ]

    def ahead(state: State) -> None:
        assert value(state.models["m"].all_time, "events") == 2
        raise ConstantsDiffer("by chance")

    with pytest.raises(ConstantsDiffer, match="by chance"):
        store.commit(batch, NOW, ahead)
    assert repr(before) == shown
    known = store._mirror.read().models  # type: ignore[attr-defined]
    assert known["m"][:2] == before.models["m"][:2]
    assert "n" not in known or not known["n"].panes
    store.housekeep(NOW)  # writes nothing of it
    store.commit(batch, NOW)
    again = read(store).models
    assert again == read(shared.open()).models
    assert again["m"].all_time["x"] == {("a",): 0.1 + 0.2, ("b",): 1}
    assert again["m"].constants.keys() == {"c", "d", "created"}
    assert value(again["n"].all_time, "events") == 1


@pytest.mark.parametrize("seed", range(4))
def test_commits_that_fail_ahead_add_up(shared: Backend, seed: int) -> None:
    """Two instances, failures in between, everything tried until it succeeds: each event once."""
    chance = random.Random(seed)
    stores = [shared.open(), shared.open()]
    sums: dict[tuple[str, Pane], Any] = {}

    def fail(_: State) -> None:
        if chance.random() < 0.4:
            raise ConnectionResetError

    for step in range(60):
        batch = []
        for at in range(chance.randrange(1, 4)):
            cells = {
                (str(chance.randrange(3)), str(chance.randrange(-99, 99)), chance.choice("01")): 1
                for _ in range(chance.choice([3, 90]))
            }
            increment = {"events": {(): 1}, "scores": cells, chance.choice("xyz"): {(): at}}
            panes = (ALL_TIME, Pane(60, int(NOW) // 60 - step // 5))
            model = chance.choice("mn")
            batch.append(entry((step, at), increment, model, panes=panes))
            for pane in panes:
                add(sums.setdefault((model, pane), {}), increment)
        for _ in range(99):
            store = chance.choice(stores)
            try:
                store.commit(batch, NOW, fail)
                break
            except (OSError, StoreUnavailable):
                pass
            if chance.random() < 0.2:
                store.housekeep(NOW)
    for store in (*stores, shared.open()):
        found = {
            (model, pane): {name: dict(cells) for name, cells in unpack(vector).items()}
            for model, state in read(store).models.items()
            for pane, vector in state.panes.items()
        }
        for vector in found.values():
            vector.pop("duplicates", None)
        assert found == sums


@pytest.mark.parametrize("url", ["sqlite", "redis"])
def test_within_a_second(url: str, server: RedisServer, tmp_path: Any) -> None:
    """What another instance commits, to a new model too, is found by a committer's thread."""
    assert committer.REFRESH_SECONDS <= 0.5
    server.ask("FLUSHALL")
    backend = Backend(server.url if url == "redis" else f"sqlite:///{tmp_path}/feedback.db")
    one, other = backend.open(), backend.open()
    thread = committer.Committer(other, 10, ServerStats())
    for model in ("m", "n"):
        one.commit([entry(model, model=model)], NOW)
        until(lambda model=model: model in other.read().models)
    one.commit([entry(3)], NOW)
    until(lambda: other.read().models["m"].all_time == {"events": {(): 2}})
    thread.close()
    backend.close()


def test_another_model(shared: Backend) -> None:
    """A commit of one's own does not hide what others committed to another model."""
    one, other = shared.open(), shared.open()
    read(one)
    for id in range(3):
        other.commit([entry(id, model="n")], NOW)
        one.commit([entry(id)], NOW)
        assert all_time(one, "n") == {"events": {(): id + 1}}


def test_catching_up(shared: Backend) -> None:
    """An instance that slept through many commits and panes reads what one that did not reads."""
    one, other = shared.open(), shared.open()
    read(other)
    for id in range(200):
        panes = place(NOW + id, NOW + id, WINDOWS).panes
        one.commit([entry(id, panes=panes, constants={"origin": 0.5})], NOW + id)
        if id == 100:
            assert read(other).models == read(one).models
    other.commit([entry("mine")], NOW + 200)
    assert read(other).models == read(one).models == read(shared.open()).models


@pytest.mark.parametrize("looks", ["always", "sometimes"])
def test_whole_commits(shared: Backend, looks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an instance reads while others commit is a sum of whole commits, and grows."""
    monkeypatch.setattr(redis_store, "LOAD_PANES", 3)
    writers, reader = [shared.open() for _ in range(2)], shared.open()

    def write(at: int) -> None:
        for n in range(60):
            panes = (ALL_TIME, Pane(5, 340000000 + n % 7), Pane(60, 28333333 + n % 11))
            writers[at].commit([entry((at, n), {"x": {(): 1}}, panes=panes)], NOW)

    threads = [threading.Thread(target=write, args=(at,)) for at in range(2)]
    for thread in threads:
        thread.start()
    last = 0
    reads = 0
    while last < 120:
        if looks == "sometimes" and not reads % 5:
            reader.commit([entry(("mine", reads), {"y": {(): 1}})], NOW)
        clock.sleep(0.001)  # SQLite is not fair to writers that wait
        if state := read(reader).models.get("m"):
            sums = dict.fromkeys((0, 5, 60), 0)
            for pane, vector in state.panes.items():
                sums[pane.width] += value(vector, "x")
            assert sums[0] == sums[5] == sums[60] >= last
            last = sums[0]
        reads += 1
    for thread in threads:
        thread.join()
    assert read(shared.open()).models == read(reader).models


# --- forgetting --------------------------------------------------------------------------------


def test_panes_expire(backend: Backend) -> None:
    """Housekeeping forgets a pane when no window reaches it, and not before."""
    store = backend.open()
    old = Pane(5, int(NOW) // 5)
    store.commit([entry(1, panes=(ALL_TIME, old, Pane(60, int(NOW) // 60)))], NOW)
    store.housekeep(NOW + 62 * 5 - 1)
    assert old in read(store).models["m"].panes
    store.housekeep(NOW + 62 * 5)
    assert set(read(store).models["m"].panes) == {ALL_TIME, Pane(60, int(NOW) // 60)}


def test_every_model_has_its_turn(backend: Backend) -> None:
    """However many models there are, some calls of housekeeping forget the old panes of all."""
    store = backend.open()
    models = 41
    panes = (ALL_TIME, Pane(5, int(NOW) // 5))
    store.commit([entry(id, model=f"m{id}", panes=panes) for id in range(models)], NOW)
    for _ in range(3):
        store.housekeep(NOW + 62 * 5)
    state = read(store).models
    assert len(state) == models
    assert all(set(each.panes) == {ALL_TIME} for each in state.values())


@pytest.mark.parametrize(("models", "segments"), [(1, 3000), (1500, 2), (60, 50)])
def test_all_that_expires_goes_at_once_in_small_steps(
    backend: Backend, models: int, segments: int
) -> None:
    """As fast as it came, however it is spread; a step that leaves some says so."""
    store = backend.open()
    for id in range(models):
        panes = [Pane(5, int(NOW) // 5, f"s={segment}") for segment in range(segments)]
        young = Pane(5, int(NOW) // 5 + 100)
        batch = [entry(id, model=f"m{id}", panes=(ALL_TIME, young, *panes))]
        store.commit(batch, NOW)
    longest = 0.0
    more = True
    for _ in range(1000):
        began = clock.monotonic()
        more = store.housekeep(NOW + 62 * 5)
        longest = max(longest, clock.monotonic() - began)
        if not more:
            break
    assert not more
    for each in [store, backend.open()] if backend.url != "memory:" else [store]:
        state = each.read().models
        assert len(state) == models
        assert all(set(known.panes) == {ALL_TIME, young} for known in state.values())
    assert longest < 2.0


def test_panes_expire_everywhere(shared: Backend) -> None:
    """A pane that one instance forgot is not read by a new one, and dies in the others too."""
    one, other = shared.open(), shared.open()
    old = Pane(5, int(NOW) // 5, "k=v")
    one.commit([entry(1, panes=(ALL_TIME, old))], NOW)
    assert old in read(other).models["m"].panes
    later = NOW + 62 * 5
    one.housekeep(later)
    other.housekeep(later)
    for store in (one, other, shared.open()):
        assert set(read(store).models["m"].panes) == {ALL_TIME}
    assert other.commit([entry(2, panes=(ALL_TIME, old))], later) == [True]
    assert read(shared.open()).models["m"].panes[old] == ONE


def test_reset(backend: Backend) -> None:
    """A reset forgets one model but its digests; it begins anew with the next commit."""
    store = backend.open()
    gauges = {("g", ()): Gauge(1.0, NOW)}
    store.commit([entry(1, gauges=gauges, constants={"c": 1}), entry(2, model="n")], NOW)
    assert store.reset("m") is True
    assert set(read(store).models) == {"n"}
    assert store.reset("m") is False
    assert store.reset("unknown") is False
    assert store.commit([entry(1), entry(3)], NOW + 5) == [False, True]
    state = read(store).models["m"]
    assert state.panes == {ALL_TIME: {"events": {(): 1}, "duplicates": {(): 1}}}
    assert (state.gauges, state.constants) == ({}, {"created": NOW + 5})


def test_reset_is_seen(shared: Backend) -> None:
    """Another instance notices a reset, whether it reads or commits first."""
    one, other = shared.open(), shared.open()
    for id, look in enumerate([Store.read, lambda store: store.commit([], NOW)]):
        panes = place(NOW, NOW, WINDOWS).panes
        one.commit([entry((id, 1), {"old": {(): 1}}, panes=panes)], NOW)
        assert all_time(other)["old"] == {(): 1}
        assert one.reset("m")
        look(other)
        assert other.commit([entry((id, 2))], NOW) == [True]
        for store in (one, other, shared.open()):
            assert read(store).models["m"].panes == {ALL_TIME: ONE}
        one.reset("m")


# --- opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "postgres://host/db",
        "sqlite://relative",
        "sqlite:///",
        "sqlite:///x?journal=off",
        "redis:",
        "redis://",
        "redis://host:port",
        "redis://host:99999999",
        "redis://host/name",
        "redis://host?unknown=1",
        "redis://host?socket_timeout=soon",
        "redis://host?protocol=3",
        "redis://host?decode_responses=1",
        f"redis://{'x' * 64}/",
    ],
)
def test_nonsense_url(url: str) -> None:
    """An address that makes no sense is refused when the store is opened."""
    with pytest.raises(ConfigurationError, match="FEEDBACK_STORE"):
        open_store(url, TTL)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:S3C/RET@cache:6379/0",
        "redis://user:12/S3CRET@cache:6379/0",
        "redis://user:12?S3C=RET@cache",
        "redis://user:12#S3CRET@cache",
        "redis://:[S3CRET@cache",
        "redis://user:S3CRET@cache:port",
        "redis://user:S3CRET@cache/database",
        "redis://user:S3CRET@cache?nonsense=S3CRET",
        "redis://user:S3CRET@cache?socket_timeout=S3CRET",
        "redis://user:S3CRET@",
        "redis://:S3CRET",
        "redis://user:S3CRET@caché\udc80",
        "rediss://user:S3CRET@cache?protocol=3",
        "sqlite://user:S3CRET@cache/file",
        "sqlite:S3CRET",
        "sqlite:///file?password=S3CRET",
        "S3CRET",
        "user:S3CRET@cache",
        "postgres://user:S3CRET@cache",
    ],
)
def test_no_secret_in_what_is_told_of_a_nonsense_url(url: str) -> None:
    """Neither in the message nor in what a traceback would show."""
    with pytest.raises(ConfigurationError) as caught:
        open_store(url, TTL)
    assert str(caught.value).startswith("FEEDBACK_STORE: ")
    assert not [part for part in ("S3C", "CRET") if part in str(caught.value)]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_merge_is_what_stores_do(backend: Backend) -> None:
    """A store's counters are the merge of the increments it took."""
    store = backend.open()
    increments = [{"a": {("x",): n}, "b": {(): 2 * n}} for n in range(5)]
    for n, increment in enumerate(increments):
        store.commit([entry(n, increment)], NOW)
    assert all_time(store) == merge(increments)
