"""The Redis store among lost replies, dead servers, lost data, full memory and moving slots."""

from __future__ import annotations

import logging
import random
import shutil
import signal
import ssl
import subprocess
import threading
import time as clock
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from metrics import redis_store
from metrics.errors import ConfigurationError, ConstantsDiffer, StoreUnavailable, StoreUnusable
from metrics.redis_link import promise
from metrics.redis_store import RedisStore
from metrics.state import Entry
from metrics.windows import ALL_TIME, Pane, place, window
from tests.servers import CutWire, RedisServer, read, redis_cluster

NOW = 1_700_000_000.0
TTL = 800
WINDOWS = [window(name) for name in ("5m", "1h", "1d")]
MODELS = [f"ns/deployment-{n}/default/{{model}}" for n in range(9)]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    """A server for all tests that leave it as it was, but for its content."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """That server, empty."""
    shared_server.ask("FLUSHALL")
    return shared_server


@pytest.fixture
def open_store() -> Iterator[Any]:
    """Opens stores, and closes them in the end."""
    stores: list[RedisStore] = []

    def open_store(url: str, durability: str = "none") -> RedisStore:
        stores.append(RedisStore(url, TTL, durability))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def entries(*ids: int, model: str = "m", **more: Any) -> list[Entry]:
    """One entry an id, each in four panes."""
    increment = {"events": {(): 1}, "loss": {(): 0.1}}
    panes = place(NOW, NOW, WINDOWS).panes
    return [Entry(model, id.to_bytes(16, "big"), panes, increment, **more) for id in ids]


def events(store: RedisStore, model: str = "m") -> Any:
    """The events and duplicates that the store reads."""
    vector = read(store).models[model].all_time
    return vector.get("events", {}).get((), 0), vector.get("duplicates", {}).get((), 0)


def kind(store: RedisStore, batch: Sequence[Entry] = ()) -> str:
    """The kind of error with which a commit fails."""
    with pytest.raises(StoreUnavailable) as caught:
        store.commit(batch, NOW)
    return caught.value.kind


def commit(store: RedisStore, batch: Sequence[Entry], now: float = NOW) -> list[bool]:
    """The verdicts of a commit that is repeated while the store is unavailable."""
    end = clock.monotonic() + 60
    while True:
        try:
            return store.commit(batch, now)
        except StoreUnavailable:
            if clock.monotonic() > end:
                raise
            clock.sleep(0.02)


# --- the wire ----------------------------------------------------------------------------------


def test_unknown_scripts(server: RedisServer, open_store: Any) -> None:
    """A server that forgot the scripts is sent them again."""
    store = open_store(server.url)
    for id in range(3):
        server.ask("SCRIPT", "FLUSH")
        assert store.commit(entries(id) + entries(id, model="n"), NOW) == [True, True]
    for use in (lambda: store.housekeep(NOW), lambda: store.reset("m"), store.read):
        server.ask("SCRIPT", "FLUSH")
        use()
    assert set(read(store).models) == set(read(open_store(server.url)).models) == {"n"}


def test_lost_reply(server: RedisServer, open_store: Any) -> None:
    """A commit whose reply is lost raises, is not sent again by itself, and is counted once."""
    with CutWire(server.port) as wire:
        store = open_store(wire.url)
        store.commit(entries(1, model="n"), NOW)  # now the server knows the script
        for id in range(3):
            wire.cut_after = 0
            assert kind(store, entries(id)) == "unreachable"
            assert events(store) == (id + 1, id)
            assert store.commit(entries(id), NOW) == [False]
        assert wire.cuts == 3
    assert events(open_store(server.url)) == (3, 3)


@pytest.mark.parametrize("lose_replies", [False, True])
def test_every_packet_can_be_lost(server: RedisServer, open_store: Any, lose_replies: bool) -> None:
    """Wherever the connection ends, no verdict is wrong and the totals are exact afterwards."""
    other = open_store(server.url)
    over, faults = False, 0
    while not over:
        server.ask("FLUSHALL")
        read(other)
        with CutWire(server.port, lose_replies) as wire:
            wire.cut_after = faults
            store = open_store(wire.url)
            other.commit(entries(2, 3), NOW)
            batch = entries(3, 4) + entries(5, model="n", constants={"origin": 0.5})
            given: list[list[bool]] = []
            failed = 0
            for each in (entries(1, 2), batch, None):
                try:
                    if each is None:
                        store.housekeep(NOW)
                    else:
                        given.append(store.commit(each, NOW))
                except StoreUnavailable:
                    failed += 1
                read(store)
                store.seen()
            over = not wire.cuts
            faults += not over
            assert failed <= 1
            if failed == 0 and given:
                assert given == [[True, False], [False, True, True]]
            again = commit(store, entries(1, 2) + batch)
            assert again[1:3] == [False, False]
            if len(given) == 2:
                assert again == [False] * 5
            elif not lose_replies:
                assert again.count(True) in (1, 2)
            for each in (store, other, open_store(server.url)):
                assert events(each)[0] == 4
                assert events(each, "n")[0] == 1
                assert read(each).constants("n") == {"created": NOW, "origin": 0.5}
            assert read(store).models == read(other).models
            assert store.losses == 0
            store.close()
    assert faults >= 8


def test_connection_closed_while_idle(server: RedisServer, open_store: Any) -> None:
    """A connection that the server closed since the last commit costs no error."""
    store = open_store(server.url)
    for id in range(3):
        server.ask("CLIENT", "KILL", "TYPE", "normal")
        clock.sleep(0.02)
        assert store.commit(entries(id), NOW) == [True]
    assert (events(store), store.losses) == ((3, 0), 0)


def test_reading_an_unchanged_store(server: RedisServer, open_store: Any) -> None:
    """A look at a store in which nothing changed is two small commands, however many models."""
    store, other = open_store(server.url), open_store(server.url)
    other.commit([each for model in MODELS for each in entries(1, model=model)], NOW)

    def commands() -> int:
        info = server.ask("INFO", "stats")
        return int(info.split("total_commands_processed:")[1].split()[0])

    for each in (store, other):
        before_read = read(each)
        before = commands()
        assert all(read(each) is before_read for _ in range(10))
        assert commands() - before == 21  # INFO itself is one
        assert all(each.read() is before_read for _ in range(10))
        assert commands() - before == 22


def test_server_that_does_not_answer(server: RedisServer, open_store: Any) -> None:
    """A commit to a server that stands still times out, and is counted once when it goes on."""
    store = open_store(f"{server.url}?socket_timeout=1")
    store.commit(entries(1), NOW)
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        assert kind(store, entries(2)) == "timeout"
        assert kind(store) == "timeout"
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert commit(store, entries(2, 3)) in ([False, True], [True, True])
    assert events(open_store(server.url))[0] == events(store)[0] == 3


def test_tls(server: RedisServer, open_store: Any, tmp_path: Path) -> None:
    """A rediss:// address speaks TLS, and trusts only whom it is told to."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key)]
    subprocess.run([openssl, *words, "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with CutWire(server.port) as wire:
        wire.wrap = context
        url = f"rediss://localhost:{wire.port}"
        store = open_store(f"{url}?ssl_ca_certs={certificate}")
        assert store.commit(entries(1), NOW) == [True]
        assert kind(open_store(url)) == "unreachable"
    assert events(open_store(server.url)) == (1, 0)


# --- what time can mend ------------------------------------------------------------------------


def test_unreachable(open_store: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A store whose server is down opens with one warning, and serves when the server is up."""
    server = RedisServer()
    store = open_store(server.url)
    assert dict(read(store).models) == {}
    assert kind(store) == kind(store, entries(1)) == "unreachable"
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("metrics.store", logging.WARNING)
    with server:
        assert store.commit(entries(1), NOW) == [True]
        assert events(store) == (1, 0)
        server.kill()
        assert kind(store, entries(2)) == "unreachable"
        assert events(store) == (1, 0)
    assert len(caplog.records) == 1


def test_password(open_store: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong password is unavailable until the server takes it; no message shows it."""
    with RedisServer(requirepass="right") as server:
        assert open_store(server.url).commit(entries(1), NOW) == [True]
        store = open_store(server.url.replace("right", "wr%6fng"))
        with pytest.raises(StoreUnavailable) as caught:
            store.commit(entries(2), NOW)
        assert caught.value.kind == "auth"
        none = open_store(server.url.replace(":right@", ""))
        assert kind(none, entries(2)) == "auth"
        server.ask("CONFIG", "SET", "requirepass", "wrong")
        assert store.commit(entries(2), NOW) == [True]
        server.settings["requirepass"] = "wrong"
    assert "wrong" not in caplog.text + str(caught.value)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "noeviction"])
def test_a_server_that_evicts_is_warned_of(
    policy: str, open_store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, when the store is opened; whoever may not ask says nothing."""
    with RedisServer(maxmemory_policy=policy) as server:
        store = open_store(server.url)
        for id in range(3):
            store.commit(entries(id), NOW)
        open_store(server.url)
        expected = 0 if policy == "noeviction" else 2
        assert caplog.text.count(f"has maxmemory-policy {policy}: ") == expected
        rights = ["+@all", "-@admin", "-@dangerous"]
        server.ask("ACL", "SETUSER", "metrics", "on", ">secret", "~fdmt:*", "~{fdmt:*", *rights)
        open_store(server.url.replace("://", "://metrics:secret@")).commit(entries(4), NOW)
        assert caplog.text.count("maxmemory-policy") == expected


def test_rights(server: RedisServer, open_store: Any) -> None:
    """A user with rights to these keys, and none to INFO, is enough; without them: unavailable."""
    rights = ["+@all", "-@admin", "-@dangerous"]
    server.ask("ACL", "SETUSER", "metrics", "on", ">secret", "~fdmt:*", "~{fdmt:*", *rights)
    server.ask("ACL", "SETUSER", "other", "on", ">secret", "~other:*", *rights)
    url = server.url.replace("//", "//metrics:secret@")
    store = open_store(url)
    assert store.commit(entries(1), NOW) == [True]
    server.ask("CLIENT", "KILL", "TYPE", "normal")
    assert store.commit(entries(1, 2), NOW) == [False, True]
    assert (events(store), store.losses) == ((2, 1), 0)
    assert kind(open_store(url.replace("metrics", "other")), entries(3)) == "auth"


def test_memory_full(server: RedisServer, open_store: Any) -> None:
    """A server out of memory writes nothing, and counts once when there is room again."""
    store = open_store(server.url)
    store.commit(entries(1), NOW)
    server.ask("CONFIG", "SET", "maxmemory", "1")
    assert kind(store, entries(2)) == "oom"
    assert kind(store) == "oom"
    assert events(store) == (1, 0)
    server.ask("CONFIG", "SET", "maxmemory", "0")
    assert store.commit(entries(1, 2), NOW) == [False, True]


def test_replica(open_store: Any) -> None:
    """A replica can be read, and its store commits when it, or where its name leads, is master."""
    with RedisServer() as master, RedisServer(replicaof=f"127.0.0.1 {master.port}") as replica:
        one = open_store(master.url, "wait:1:5000")
        commit(one, entries(1))
        store = open_store(replica.url)
        assert kind(store, entries(2)) == "readonly"
        with CutWire(replica.port) as wire:
            named = open_store(wire.url)
            assert kind(named, entries(2)) == "readonly"
            assert events(named) == (1, 0)
            wire.target = master.port  # as a name that leads to the new master
            assert commit(named, entries(2)) == [True]
            one.commit([], NOW)
        replica.ask("REPLICAOF", "NO", "ONE")
        assert store.commit(entries(1, 2, 3), NOW) == [False, False, True]
        assert (events(store)[0], store.losses) == (3, 0)


def test_newer_format(server: RedisServer, open_store: Any) -> None:
    """What a newer version wrote is unusable at start, and unavailable to who served before."""
    store = RedisStore("redis://127.0.0.1:1", TTL)
    server.ask("SET", "fdmt:format", redis_store.FORMAT + 1)
    with pytest.raises(StoreUnusable, match="format"):
        open_store(server.url)
    store._link = redis_store.Link(server.url, promise("none"))
    assert kind(store, entries(1)) == "foreign"
    assert server.ask("EXISTS", "fdmt:changes") == "0"
    store.close()


# --- lost data ---------------------------------------------------------------------------------


def test_flushed(server: RedisServer, open_store: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Data that vanished is counted and logged once; its counters begin anew."""
    one, other = open_store(server.url), open_store(server.url)
    one.commit(entries(1, 2) + entries(1, model="n"), NOW)
    read(other)
    server.ask("FLUSHALL")
    assert one.commit(entries(1), NOW + 9) == [True]
    assert read(one).models["m"].constants == {"created": NOW + 9}
    for store in (one, other):
        assert set(read(store).models) == {"m"}
        assert events(store) == (1, 0)
        assert store.losses == 2
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert other.commit(entries(3) + entries(1, model="n"), NOW + 10) == [True, True]
    assert read(one).models == read(other).models
    assert one.losses == other.losses == 2


def test_only_other_models_after_a_flush(server: RedisServer, open_store: Any) -> None:
    """A model that vanished is noticed, also where others keep the server as busy as before."""
    one, other = open_store(server.url), open_store(server.url)
    one.commit(entries(1), NOW)
    read(one)
    server.ask("FLUSHALL")
    for id in range(5):
        other.commit(entries(id, model="n"), NOW)
    assert set(read(one).models) == {"n"}
    assert one.losses == 1


def test_killed_server(open_store: Any) -> None:
    """With `appendfsync always` a server that is killed and restarted lost nothing."""
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        stores = [open_store(server.url) for _ in range(2)]
        sums = [0, 0]

        def work(at: int) -> None:
            for id in range(0, 150, 5):
                batch = entries(*range(id, id + 5))
                sums[at] += sum(commit(stores[at], batch))
                read(stores[at])

        threads = [threading.Thread(target=work, args=(at,)) for at in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            clock.sleep(0.1)
            server.restart()
        for thread in threads:
            thread.join()
        assert sum(sums) <= 150  # an answer can be lost, but none is given twice
        for store in [*stores, open_store(server.url)]:
            assert events(store)[0] == 150
            assert store.losses == 0
        assert read(stores[0]).models == read(stores[1]).models


@pytest.mark.parametrize("first", ["read", "commit"])
def test_stale_failover(first: str, open_store: Any) -> None:
    """A server that took over without the last commits is noticed: new `created`, no jump."""
    with RedisServer() as server:
        one, other = open_store(server.url), open_store(server.url)
        one.commit(entries(1, 2) + entries(1, model="n"), NOW)
        server.ask("SAVE")
        one.commit(entries(3, 4), NOW)
        read(other)
        server.restart()
        if first == "commit":
            assert commit(one, entries(4, 5)) == [True, True]
            assert one.losses == 1  # known when it was committed, not at the next look
            expected = 4
        else:
            expected = 2
        for store in (one, other, open_store(server.url)):
            assert events(store)[0] == expected
            assert read(store).constants("m")["created"] > NOW
            assert read(store).constants("n") == {"created": NOW}
        assert read(one).models == read(other).models
        assert (one.losses, other.losses) == (1, 1)


def test_fewer_events(open_store: Any) -> None:
    """A server that took over is noticed by its events, where its sequence was overtaken."""
    with RedisServer() as server:
        one, other = open_store(server.url), open_store(server.url)
        one.commit(entries(1), NOW)
        read(other)
        server.ask("SAVE")
        one.commit(entries(2, 3), NOW)
        server.restart()
        for _ in range(5):
            assert commit(other, entries(1)) == [False]
        assert events(one) == events(other) == (1, 5)
        assert one.losses == 1
        assert read(one).models == read(other).models
        assert read(one).constants("m")["created"] > NOW


def test_overtaken_failover(open_store: Any) -> None:
    """Where others committed more than was lost, memory still equals the server afterwards."""
    with RedisServer() as server:
        one, other = open_store(server.url), open_store(server.url)
        one.commit(entries(1, 2), NOW)
        read(other)
        server.ask("SAVE")
        late = Pane(5, 340000001)
        one.commit([Entry("m", bytes(16), (ALL_TIME, late), {"lost": {(): 1}})], NOW)
        server.restart()
        for id in range(10, 15):
            commit(other, entries(id))
        assert late not in read(one).models["m"].panes
        assert read(one).models == read(other).models == read(open_store(server.url)).models


# --- values and keys ---------------------------------------------------------------------------


def test_one_slot(server: RedisServer, open_store: Any) -> None:
    """All keys of a model are in one slot of a cluster, whatever is in its name."""
    store = open_store(server.url)
    for model in ("a}b", "{", "}{}", "", "ns/{x}/y", "%7D", "☃"):
        store.commit(entries(1, model=model), NOW)
        tag = redis_store._tag(model)
        keys = {key for key in _scan(server) if key.startswith(tag)}
        assert len({key_slot(key.encode()) for key in keys}) == 1
        assert {key.removeprefix(tag).split(":")[1] for key in keys} == {
            *("meta", "panes", "pane", "constants", "seen")
        }
        server.ask("FLUSHALL")
        read(store)


def test_keys_of_models_are_apart(server: RedisServer, open_store: Any) -> None:
    """No model's key is another's, even where its name is made to look so."""
    store = open_store(server.url)
    store.commit([Entry("a", bytes(16), (Pane(5, 1, "}:meta"), ALL_TIME), {"x": {(): 1}})], NOW)
    store.commit(entries(1, model="a}:pane:5:1:"), NOW)
    for each in (store, open_store(server.url)):
        assert read(each).models["a"].panes[Pane(5, 1, "}:meta")] == {"x": {(): 1}}
        assert events(each, "a}:pane:5:1:") == (1, 0)


def _scan(server: RedisServer) -> list[str]:
    """The keys of a server."""
    script = "return table.concat(redis.call('KEYS', '*'), '\\n')"
    return server.ask("EVAL", script, 0).split("\n")


def test_everything_expires(server: RedisServer, open_store: Any) -> None:
    """Panes and digests have an end of their own, should no function ever come back."""
    store = open_store(server.url)
    store.commit(entries(1), NOW)
    ends = {key.split("}:")[1]: int(server.ask("TTL", key)) for key in _scan(server) if "}" in key}
    (five_minutes,) = [end for key, end in ends.items() if key.startswith("pane:5:")]
    assert ends["pane:0:0:"] == ends["meta"] == ends["constants"] == ends["panes"] == -1
    assert 62 * 5 - 6 < five_minutes <= 62 * 5
    assert TTL < ends["seen"] <= 2 * TTL


def test_digests_stay_few(server: RedisServer, open_store: Any) -> None:
    """Commits themselves forget what is past its time, so that digests cannot pile up."""
    store = open_store(server.url)
    for step in range(60):
        store.commit(entries(*range(20 * step, 20 * step + 20)), NOW + step * TTL / 10)
        assert store._link.exchange([_zcard("m")])[0] <= 20 * 13
    store.commit([], NOW)


def _zcard(model: str) -> redis_store.Call:
    (key,) = redis_store._keys(model, "seen")
    return redis_store.Call(key, ("ZCARD", key))


def test_past_64_bits(server: RedisServer, open_store: Any) -> None:
    """An integer that no longer fits in 64 bits goes on as a float, everywhere."""
    store = open_store(server.url)
    for id in range(5):
        store.commit([Entry("m", bytes([id] * 16), (ALL_TIME,), {"x": {(): 2**61 + 1}})], NOW)
    for each in (store, open_store(server.url)):
        number = read(each).models["m"].all_time["x"][()]
        assert repr(number) == repr(float(5 * (2**61 + 1)))


def test_own_commits_before_others(server: RedisServer, open_store: Any) -> None:
    """Between two looks a reader sees its own commits at once, and only whole ones."""
    one, other = open_store(server.url), open_store(server.url)
    one.commit(entries(1), NOW)
    read(other)
    one.commit(entries(2, 3), NOW)
    other.commit(entries(4), NOW)
    assert other.read().models["m"].all_time["events"] == {(): 2}
    assert one.read().models["m"].all_time["events"] == {(): 3}
    for store in (one, other):
        assert events(store) == (4, 0)
    assert repr(read(one).models["m"].all_time) == repr(read(other).models["m"].all_time)


def test_reset_while_loading(
    server: RedisServer, open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that begins anew while it is read in parts, only the new is read."""
    monkeypatch.setattr(redis_store, "LOAD_PANES", 2)
    one, other = open_store(server.url), open_store(server.url)
    one.commit(entries(1), NOW)
    one.commit([Entry("m", bytes(16), (Pane(5, 1), Pane(5, 2)), {"old": {(): 1}})], NOW)
    exchange = other._link.exchange

    def interrupted(calls: Any, durable: bool = False) -> Any:
        replies = exchange(calls, durable)
        if calls and calls[0].script is redis_store.LOAD and one.reset("m"):
            one.commit([Entry("m", b"x" * 16, (ALL_TIME,), {"new": {(): 1}})], NOW)
            monkeypatch.setattr(other._link, "exchange", exchange)
        return replies

    monkeypatch.setattr(other._link, "exchange", interrupted)
    assert read(other).models["m"].panes == {ALL_TIME: {"new": {(): 1}}}
    assert other.losses == 0


# --- durability --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting",
    [
        *("", "all", "none:1", "wait", "wait:1", "wait:0:100", "wait:1:0", "wait:-1:5"),
        *("wait:x:5", "wait:1:²", "wait:1:1:5", "wait:1:5:", "waitaof:1:5", "waitaof:2:0:5"),
        *("waitaof:0:0:5", "waitaof:1:0:0"),
    ],
)
def test_nonsense_durability(setting: str) -> None:
    """A durability that makes no sense is refused at start."""
    with pytest.raises(ConfigurationError, match="FEEDBACK_REDIS_DURABILITY"):
        RedisStore("redis://127.0.0.1:1", TTL, setting)


def test_timeout_below_durability() -> None:
    """An answer cannot be awaited shorter than the replicas are."""
    with pytest.raises(ConfigurationError, match="socket_timeout"):
        RedisStore("redis://127.0.0.1:1?socket_timeout=1", TTL, "wait:1:1000")


def test_wait(open_store: Any) -> None:
    """With `wait` a commit is unavailable while too few replicas have it."""
    with RedisServer() as master:
        store = open_store(master.url, "wait:1:50")
        assert kind(store) == "durability"
        assert kind(store, entries(1)) == "durability"
        assert events(open_store(master.url)) == (1, 0)
        with RedisServer(replicaof=f"127.0.0.1 {master.port}") as replica:
            assert commit(store, entries(1, 2))[0] is False  # it is counted already
            assert events(open_store(replica.url))[0] == 2
        assert kind(store, entries(3)) == "durability"


def test_waitaof(server: RedisServer, open_store: Any) -> None:
    """With `waitaof` a commit is on the server's disk, also with `appendfsync everysec`."""
    if server.ask("WAITAOF", 0, 0, 1).startswith("ERR unknown"):
        pytest.skip("needs Redis 7.2 or Valkey")
    assert kind(open_store(server.url, "waitaof:1:0:2000"), entries(1)) == "durability"
    with RedisServer(appendonly="yes", appendfsync="everysec") as durable:
        store = open_store(durable.url, "waitaof:1:0:5000")
        assert store.commit(entries(1), NOW) == [True]
        durable.restart()
        assert commit(store, entries(1, 2)) == [False, True]
        assert store.losses == 0


# --- a cluster ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    """Three masters."""
    with redis_cluster(3) as servers:
        yield servers


@pytest.fixture
def nodes(cluster: list[RedisServer]) -> list[RedisServer]:
    """Those masters, empty."""
    for server in cluster:
        server.ask("FLUSHALL")
    return cluster


def owner(nodes: list[RedisServer], model: str) -> RedisServer:
    """The node that serves a model."""
    slot = key_slot(redis_store._tag(model).encode())
    for server in nodes:
        if "MOVED" not in server.ask("GET", f"{redis_store._tag(model)}:x"):
            return server
    raise AssertionError(slot)


def test_cluster(nodes: list[RedisServer], open_store: Any) -> None:
    """Many models spread over the nodes are counted exactly, from instances at any node."""
    stores = [open_store(server.url) for server in nodes]
    assert len({owner(nodes, model).port for model in MODELS}) == 3
    chance = random.Random(3)
    sent = [(model, id) for model in MODELS for id in range(20)] * 2
    chance.shuffle(sent)
    new = 0
    while sent:
        size = chance.randrange(1, 20)
        batch = [each for model, id in sent[:size] for each in entries(id, model=model)]
        sent = sent[size:]
        new += sum(chance.choice(stores).commit(batch, NOW))
    assert new == 20 * len(MODELS)
    for store in [*stores, open_store(nodes[0].url)]:
        assert store.commit([], NOW) == []
        assert {model: events(store, model) for model in MODELS} == dict.fromkeys(MODELS, (20, 20))
        assert read(store).models == read(stores[0]).models
        assert (store.seen(), store.losses) == (20 * len(MODELS), 0)


def test_cluster_contract(nodes: list[RedisServer], open_store: Any) -> None:
    """Constants, resets, housekeeping and lost data work in a cluster as on one server."""
    one, other = (open_store(server.url) for server in nodes[:2])
    one.commit(entries(1, constants={"origin": 0.5}), NOW)
    batch = [each for model in MODELS for each in entries(1, model=model)]
    with pytest.raises(ConstantsDiffer):
        other.commit([*batch, *entries(2, constants={"origin": 0.25})], NOW)
    assert other.commit(batch, NOW) == [True] * len(batch)
    assert set(read(one).models) == {"m", *MODELS}
    assert one.reset(MODELS[0])
    assert set(read(other).models) == {"m", *MODELS[1:]}
    one.housekeep(NOW + 90000)
    other.housekeep(NOW + 90000)
    for store in (one, other, open_store(nodes[2].url)):
        assert all(set(state.panes) == {ALL_TIME} for state in read(store).models.values())
    owner(nodes, "m").ask("FLUSHALL")
    lost = {model for model in ["m", *MODELS[1:]] if owner(nodes, model) is owner(nodes, "m")}
    for store in (one, other):
        assert set(read(store).models) == {"m", *MODELS[1:]} - lost
        assert store.losses == len(lost)
    for node in nodes:
        node.ask("FLUSHALL")
    assert one.commit(entries(1), NOW) == [True]
    assert set(read(other).models) == set(read(open_store(nodes[1].url)).models) == {"m"}


def test_moving_slots(nodes: list[RedisServer], open_store: Any) -> None:
    """A model is unavailable while its slot moves, and found again where it went."""
    store, other = open_store(nodes[0].url), open_store(nodes[1].url)
    old, new = "m", next(name for name in MODELS if owner(nodes, name) is owner(nodes, "m"))
    source = owner(nodes, "m")
    third = next(name for name in MODELS if owner(nodes, name) is not source)
    target = next(server for server in nodes if server is not source)
    names = {server.port: server.ask("CLUSTER", "MYID").strip() for server in nodes}
    store.commit(entries(1), NOW)
    assert events(store) == events(other) == (1, 0)
    for model in (old, new):
        slot = key_slot(redis_store._tag(model).encode())
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source.port])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target.port])
    try:
        assert kind(store, entries(2)) == kind(store, entries(2, model=new)) == "cluster"
        keys = [key for key in _scan(source) if redis_store._tag(old) in key]
        source.ask("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
        assert kind(store, entries(2)) == "cluster"  # half of it is here, half there
        assert events(store) == (1, 0)
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys[1:])
        other.commit(entries(1, model=third), NOW)
        assert events(store, third) == (1, 0)  # others can be read meanwhile
        assert events(store) == (1, 0)
    finally:
        for model in (old, new):
            slot = key_slot(redis_store._tag(model).encode())
            for server in nodes:
                server.ask("CLUSTER", "SETSLOT", slot, "NODE", names[target.port])
    assert commit(store, entries(1, 2) + entries(1, model=new)) == [False, True, True]
    for each in (store, other, open_store(nodes[2].url)):
        assert events(each) == (2, 1)
        assert events(each, new) == (1, 0)
        assert each.losses == 0


def test_lost_node(open_store: Any) -> None:
    """While a node is down its models are unavailable; the others are not, and none is lost."""
    settings = {"appendonly": "yes", "appendfsync": "always", "cluster_require_full_coverage": "no"}
    with redis_cluster(3, **settings) as nodes:
        store = open_store(nodes[0].url)
        store.commit([each for model in MODELS for each in entries(1, model=model)], NOW)
        dead = owner(nodes, MODELS[0])
        alive = next(name for name in MODELS if owner(nodes, name) is not dead)
        dead.kill()
        assert kind(store, entries(2, model=MODELS[0])) in ("unreachable", "cluster")
        assert store.commit(entries(2, model=alive), NOW) == [True]
        assert events(store, MODELS[0]) == (1, 0)
        dead.start()
        assert commit(store, entries(1, 2, model=MODELS[0])) == [False, True]
        assert (events(store, MODELS[0]), store.losses) == ((2, 1), 0)
