"""Group commit over a store that can be held up, fail, and be fixed again."""

from __future__ import annotations

import logging
import random
import threading
import time as clock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from metrics import committer as committer_module
from metrics.committer import FLUSH_ATTEMPTS, Committer, transaction
from metrics.errors import ConstantsDiffer, Overloaded, Refused, StoreUnavailable
from metrics.state import Constants, Entry, RecordKey, State
from metrics.store import Ahead, MemoryStore, unheeded
from metrics.windows import ALL_TIME
from tests.servers_http import until

MODEL = "n/d/p/m"
NOW = 1_700_000_000.0
PATIENCE = 60
LONG = 3600.0
"""A snapshot interval that does not end."""


class HeldStore:
    """A memory store whose commits wait while `gate` is closed, and fail as they are told to."""

    def __init__(self) -> None:
        self.memory = MemoryStore(1000)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.down: Exception | None = None
        self.before: Callable[[Sequence[Entry]], None] = lambda batch: None
        self.batches: list[list[str]] = []
        """The entries of each commit that was tried, probes left out."""
        self.committed: list[str] = []
        """The entries of commits that succeeded."""
        self.probes = 0
        self.housekept = 0
        self.on_housekeep: Callable[[], None] = lambda: None
        self.left = 0
        """Steps of housekeeping that are left to be done at once."""
        self.refreshed = 0
        self.on_refresh: Callable[[], None] = lambda: None

    def commit(self, batch: Sequence[Entry], now: float, ahead: Ahead = unheeded) -> list[bool]:
        """Commit, as told."""
        assert threading.current_thread().name == "committer" or not batch
        if batch:
            self.batches.append([entry.digest.decode() for entry in batch])
            self.entered.release()
            assert self.gate.wait(PATIENCE)
            self.before(batch)
        else:
            self.probes += 1
        if self.down is not None:
            raise self.down
        verdicts = self.memory.commit(batch, now)
        self.committed += [entry.digest.decode() for entry in batch]
        return verdicts

    def refresh(self, now: float) -> None:
        """Count the calls."""
        self.refreshed += 1
        self.on_refresh()

    def read(self) -> State:
        """What is in memory."""
        return self.memory.read()

    def find(self, keys: Any, ids: Any) -> tuple[dict[RecordKey, bytes], set[RecordKey]]:
        """What is in memory; fails as commits do."""
        if self.down is not None:
            raise self.down
        return self.memory.find(keys, ids)

    def housekeep(self, now: float) -> bool:
        """Count the calls."""
        self.housekept += 1
        self.on_housekeep()
        self.left -= 1
        return self.left > 0

    def hasten(self) -> None:
        """Nothing takes long."""

    def seen(self) -> int:
        """Not asked for."""
        raise AssertionError

    def reset(self, model: str) -> bool:
        """Not asked for."""
        raise AssertionError

    def close(self) -> None:
        """Nothing to release."""

    def events(self) -> int:
        """Events counted."""
        state = self.read().models.get(MODEL)
        return int(state.all_time["events"][()]) if state and "events" in state.all_time else 0


class Tally:
    """What a committer reported."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.kinds: list[str] = []
        self.queue = 0

    def committed(self, seconds: float, entries: int) -> None:
        """A transaction succeeded."""
        assert seconds >= 0
        self.sizes.append(entries)

    def failed(self, kind: str) -> None:
        """A transaction did not."""
        self.kinds.append(kind)

    def waiting(self, entries: int) -> None:
        """So many entries are in the queue."""
        assert entries >= 0
        self.queue = entries


class Told:
    """What a request's waiter was told, once: a second time raises."""

    def __init__(self) -> None:
        self.verdicts: list[Any] = []
        self._told = threading.Event()

    def __call__(self, verdict: Any) -> None:
        self.verdicts.append(verdict)
        self._told.set()
        assert len(self.verdicts) == 1, "told twice"

    @property
    def yet(self) -> bool:
        """Whether it was told anything."""
        return bool(self.verdicts)

    @property
    def verdict(self) -> Any:
        """What it was told; waits for it."""
        assert self._told.wait(PATIENCE)
        (verdict,) = self.verdicts
        return verdict


def entry(digest: str, constants: Constants | None = None, again: Any = None) -> Entry:
    """One event's contribution."""
    increment = {"events": {(): 1}}
    return Entry(MODEL, digest.encode(), (ALL_TIME,), increment, {}, constants or {}, again=again)


@pytest.fixture
def store() -> HeldStore:
    """A store that does as it is told."""
    return HeldStore()


@pytest.fixture
def tally() -> Tally:
    """Takes the reports."""
    return Tally()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes and housekeeping come often enough to be waited for."""
    monkeypatch.setattr(committer_module, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(committer_module, "HOUSEKEEPING_SECONDS", 0.02)
    monkeypatch.setattr(committer_module, "REFRESH_SECONDS", 0.02)


Make = Callable[..., Committer]


@pytest.fixture
def make(store: HeldStore, tally: Tally) -> Iterator[Make]:
    """Makes committers over the store, and closes them."""
    made: list[Committer] = []

    def make(max_queue: int = 100, interval: float = 0.0) -> Committer:
        made.append(Committer(store, max_queue, tally, interval, lambda: NOW))
        return made[-1]

    yield make
    store.gate.set()
    for each in made:
        each.close()


@dataclass
class Asked:
    """A request."""

    entries: list[Entry]
    done: Callable[[Any], None]


def submit(committer: Committer, *entries: str | Entry) -> Told:
    """Submit one request."""
    told = Told()
    made = [entry(each) if isinstance(each, str) else each for each in entries]
    committer.submit(Asked(made, told))
    return told


def hold(committer: Committer, store: HeldStore, first: str = "first") -> Told:
    """Submit a request and return while its commit is under way, and stays so."""
    store.gate.clear()
    while store.entered.acquire(blocking=False):
        pass  # of commits before
    told = submit(committer, first)
    assert store.entered.acquire(timeout=PATIENCE)
    return told


# --- group commit -------------------------------------------------------------------------------


def test_requests_that_wait_share_one_transaction(
    make: Make, store: HeldStore, tally: Tally
) -> None:
    """What comes in while a commit runs is the next one, and nobody is told before it is done."""
    committer = make()
    first = hold(committer, store)
    rest = [submit(committer, str(number)) for number in range(5)]
    assert tally.queue == 5
    assert not any(told.yet for told in (first, *rest))
    store.gate.set()
    assert [told.verdict for told in (first, *rest)] == [[True]] * 6
    assert store.batches == [["first"], ["0", "1", "2", "3", "4"]]
    assert tally.sizes == [1, 5]
    assert tally.queue == 0


def test_each_request_is_told_of_its_own_entries(make: Make, store: HeldStore) -> None:
    """New or known, entry by entry, also where a digest stands twice among the requests."""
    committer = make()
    hold(committer, store)
    batch = submit(committer, "a", "first", "b", "a")
    other = submit(committer, "b", "c")
    none = submit(committer)
    store.gate.set()
    assert batch.verdict == [True, False, True, False]
    assert other.verdict == [False, True]
    assert none.verdict == []
    assert store.events() == 4


def test_a_request_is_never_divided(
    make: Make, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transactions end between requests; one that is larger than a transaction has its own."""
    monkeypatch.setattr(transaction, "MAX_BATCH", 4)
    committer = make()
    hold(committer, store)
    told = [submit(committer, *words) for words in (["a", "b"], ["c"], ["d", "e"], "fghijk", ["l"])]
    store.gate.set()
    assert [len(each.verdict) for each in told] == [2, 1, 2, 6, 1]
    assert [len(batch) for batch in store.batches] == [1, 3, 2, 6, 1]


def test_the_queue_is_bounded(make: Make, store: HeldStore, tally: Tally) -> None:
    """What does not fit is refused at once, waits for nothing and counts nothing."""
    committer = make(max_queue=3)
    hold(committer, store)
    taken = [submit(committer, "a", "b"), submit(committer, "c")]
    refused = Told()
    with pytest.raises(Overloaded, match="3 events wait"):
        committer.submit(Asked([entry("d")], refused))
    assert committer.full
    with pytest.raises(Overloaded, match="3 events wait"):
        committer.check()  # so that nobody reads what there is no room for
    assert tally.queue == 3
    store.gate.set()
    assert [told.verdict for told in taken] == [[True, True], [True]]
    committer.check()
    assert submit(committer, "d").verdict == [True]
    assert not refused.yet
    assert store.events() == 5


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits(
    make: Make, store: HeldStore
) -> None:
    """A retry of it can succeed, then."""
    committer = make(max_queue=2)
    hold(committer, store)
    large = submit(committer, *"abcde")
    with pytest.raises(Overloaded):
        submit(committer, "f")
    store.gate.set()
    assert large.verdict == [True] * 5


# --- failures -----------------------------------------------------------------------------------


def test_a_failing_store_is_told_to_all_who_share_the_transaction(
    make: Make, store: HeldStore, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    """Each waiter has the error, nothing is counted, it is not ready, and the log has one line."""
    committer = make()
    assert committer.healthy
    first = hold(committer, store)
    rest = [submit(committer, str(number)) for number in range(3)]
    store.down = StoreUnavailable("full", "no space left")
    store.gate.set()
    verdicts = [told.verdict for told in (first, *rest)]
    assert verdicts == [store.down] * 4
    assert not committer.healthy
    assert store.events() == 0
    until(lambda: len(tally.kinds) > 4)  # it goes on trying
    assert set(tally.kinds) == {"full"}
    assert tally.sizes == []
    assert caplog.messages == ["store cannot commit (full): no space left"]


def test_a_probe_finds_that_the_store_is_back(
    make: Make, store: HeldStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Ready again without any request, with a line in the log."""
    caplog.set_level(logging.INFO)
    committer = make()
    store.down = StoreUnavailable("io", "broken")
    assert submit(committer, "a").verdict is store.down
    assert not committer.healthy
    tried = len(store.batches)
    store.down = None
    until(lambda: committer.healthy)
    assert len(store.batches) == tried
    assert caplog.messages[-1] == "store commits again"
    assert submit(committer, "a").verdict == [True]
    assert store.events() == 1


def test_a_request_finds_that_the_store_is_back(
    make: Make,
    store: HeldStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request is tried although the last one failed, and its success is the recovery."""
    monkeypatch.setattr(committer_module, "PROBE_SECONDS", 3600.0)
    caplog.set_level(logging.INFO)
    committer = make()
    store.down = StoreUnavailable("io", "broken")
    assert submit(committer, "a").verdict is store.down
    store.down = None
    assert submit(committer, "a").verdict == [True]
    assert committer.healthy
    assert caplog.messages[-1] == "store commits again"


def test_a_store_that_is_down_at_first_is_waited_for(make: Make, store: HeldStore) -> None:
    """The committer starts unready, and becomes ready by itself."""
    store.down = StoreUnavailable("unreachable", "no route")
    committer = make()
    assert not committer.healthy
    store.down = None
    until(lambda: committer.healthy)


def test_a_bug_hurts_only_the_request_that_has_it(
    make: Make, store: HeldStore, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that shared a transaction with it are committed without it."""

    def choke(batch: Sequence[Entry]) -> None:
        if any(each.digest == b"bad" for each in batch):
            raise ZeroDivisionError("a bug")

    store.before = choke
    committer = make()
    hold(committer, store)
    told = {words: submit(committer, *words.split()) for words in ("a b", "c bad", "d", "bad")}
    store.gate.set()
    assert told["a b"].verdict == [True, True]
    assert told["d"].verdict == [True]
    for words in ("c bad", "bad"):
        assert isinstance(told[words].verdict, ZeroDivisionError)
    assert store.events() == 4
    assert committer.healthy
    assert set(tally.kinds) == {"bug"}
    assert "ZeroDivisionError: a bug" in caplog.text


def test_housekeeping_comes_and_its_failure_stops_nothing(
    make: Make, store: HeldStore, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a store that cannot, nor a bug there, ends the thread that commits."""
    committer = make()
    for error, kind in ((StoreUnavailable("busy", "locked"), None), (KeyError("a bug"), "bug")):

        def fail(error: Exception = error) -> None:
            raise error

        store.on_housekeep = fail
        before = store.housekept
        until(lambda before=before: store.housekept > before + 1)  # type: ignore[misc]
        assert submit(committer, f"after {error}").verdict == [True]
        assert ([kind] if kind else []) == sorted(set(tally.kinds))
    assert committer.healthy
    assert "housekeeping failed (busy): locked" in caplog.text
    assert "KeyError" in caplog.text


@pytest.mark.parametrize("interval", [0.0, 0.05])
def test_housekeeping_that_is_not_done_goes_on_at_once(
    interval: float, make: Make, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step, between commits and while there are none, not once a second."""
    monkeypatch.setattr(committer_module, "HOUSEKEEPING_SECONDS", 1.0)
    store.left = 100
    committer = make(interval=interval)
    until(lambda: store.left <= 0, 30)
    store.left = 100
    assert submit(committer, "in between").verdict == [True]
    until(lambda: store.left <= 0, 30)


def test_a_store_that_fails_is_not_kept_house_for(make: Make, store: HeldStore) -> None:
    """What cannot commit is only probed."""
    store.down = StoreUnavailable("io", "broken")
    make()
    until(lambda: store.probes > 3)
    assert store.housekept == 0


# --- constants ----------------------------------------------------------------------------------


def evaluated(digest: str, task: str, seen: list[Constants] | None = None) -> Entry:
    """An event that presupposes a task, and under another one is refused or is evaluated again."""

    def again(constants: Constants) -> Entry:
        if seen is not None:
            seen.append(dict(constants))
        if constants["task"] == "regression":
            raise Refused("truth", "is no number")
        return entry(f"{digest} as {constants['task']}", dict(constants), again)

    return entry(digest, {"task": task}, again)


def test_an_event_is_evaluated_again_under_what_another_writer_fixed(
    make: Make, store: HeldStore, tally: Tally
) -> None:
    """Another process fixes a constant while we commit: nothing is written twice or wrongly."""
    seen: list[Constants] = []

    def other_writer(batch: Sequence[Entry]) -> None:
        if len(store.batches) == 1:
            store.memory.commit([entry("theirs", {"task": "binary"})], NOW)
            raise ConstantsDiffer("task")

    store.before = other_writer
    told = submit(make(), evaluated("ours", "multiclass", seen), entry("plain"))
    assert told.verdict == [True, True]
    assert store.batches == [["ours", "plain"], ["ours as binary", "plain"]]
    assert [each["task"] for each in seen] == ["binary"]
    assert store.events() == 3
    assert tally.kinds == []


def test_of_two_requests_in_one_transaction_the_first_fixes(make: Make, store: HeldStore) -> None:
    """The second is evaluated under the first's constants before the store sees either."""
    committer = make()
    hold(committer, store)
    told = [
        submit(committer, evaluated("one", "multiclass")),
        submit(committer, evaluated("two", "binary"), evaluated("three", "multiclass")),
    ]
    store.gate.set()
    assert [each.verdict for each in told] == [[True], [True, True]]
    assert store.batches[1:] == [["one", "two as multiclass", "three"]]
    assert store.read().constants(MODEL)["task"] == "multiclass"


def test_a_request_that_contradicts_the_constants_is_refused_alone(
    make: Make, store: HeldStore
) -> None:
    """All of it, and nothing of those who share its transaction."""
    committer = make()
    assert submit(committer, evaluated("fixes", "regression")).verdict == [True]
    hold(committer, store)
    wrong = submit(committer, entry("good"), evaluated("bad", "multiclass"))
    right = submit(committer, evaluated("right", "regression"))
    store.gate.set()
    assert isinstance(wrong.verdict, Refused)
    assert right.verdict == [True]
    assert store.events() == 3
    assert store.batches[-1] == ["right"]


def test_what_cannot_be_evaluated_again_is_told_so(make: Make, store: HeldStore) -> None:
    """An entry without a way back is an error of its own request."""
    committer = make()
    assert submit(committer, entry("a", {"task": "binary"})).verdict == [True]
    assert isinstance(submit(committer, entry("b", {"task": "x"})).verdict, ConstantsDiffer)
    assert submit(committer, entry("c", {"task": "binary"})).verdict == [True]


def test_constants_that_never_settle_end_as_unavailable(make: Make, store: HeldStore) -> None:
    """Other writers that always come first are a reason to come again, not to wait for ever."""

    def contend(batch: Sequence[Entry]) -> None:
        raise ConstantsDiffer("task")

    store.before = contend
    verdict = submit(make(), "a").verdict
    assert isinstance(verdict, StoreUnavailable)
    assert verdict.kind == "contended"
    assert len(store.batches) == 10


# --- one verdict each ---------------------------------------------------------------------------


def test_a_contradiction_in_a_commit_that_fails_is_told_once(
    make: Make, store: HeldStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Who contradicts is told that, the others that the store is down, and all goes on."""
    committer = make()
    hold(committer, store)
    right = submit(committer, evaluated("right", "regression"))
    wrong = submit(committer, evaluated("wrong", "multiclass"))
    other = submit(committer, "other")

    def fail_later(batch: Sequence[Entry]) -> None:
        if batch[0].digest != b"first":
            raise StoreUnavailable("busy", "locked")

    store.before = fail_later
    store.gate.set()
    assert isinstance(right.verdict, StoreUnavailable)
    assert isinstance(other.verdict, StoreUnavailable)
    assert isinstance(wrong.verdict, Refused)
    store.before = lambda batch: None
    assert submit(committer, "next").verdict == [True]
    assert [len(each.verdicts) for each in (right, wrong, other)] == [1, 1, 1]
    assert "an answer failed" not in caplog.text


def test_what_a_refused_request_says_binds_nobody(make: Make, store: HeldStore) -> None:
    """Its first entry would have fixed a constant; who comes after is not held against that."""
    committer = make()
    hold(committer, store)
    wrong = submit(committer, evaluated("fixes", "regression"), evaluated("bad", "multiclass"))
    right = submit(committer, evaluated("right", "multiclass"))
    store.gate.set()
    assert isinstance(wrong.verdict, Refused)
    assert right.verdict == [True]
    assert store.read().constants(MODEL)["task"] == "multiclass"


def test_an_answer_that_raises_harms_no_other(
    make: Make, store: HeldStore, tally: Tally, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that share its commit are told, and commits go on."""
    committer = make()
    first = hold(committer, store)

    def broken(verdict: Any) -> None:
        raise AssertionError("a bug of an answer")

    committer.submit(Asked([entry("broken")], broken))
    rest = [submit(committer, "a"), submit(committer, "b")]
    store.gate.set()
    assert [told.verdict for told in (first, *rest)] == [[True]] * 3
    assert submit(committer, "c").verdict == [True]
    assert "a bug of an answer" in caplog.text
    assert tally.kinds == ["bug"]
    assert committer.alive


@pytest.mark.parametrize("interval", [0.0, LONG])
def test_a_thread_that_dies_answers_whoever_waits(
    make: Make, store: HeldStore, caplog: pytest.LogCaptureFixture, interval: float
) -> None:
    """A bug that nothing foresees: waiters are told, more is refused, and probes fail."""
    committer = make(interval=interval)
    assert committer.alive
    assert committer.healthy
    if interval:
        assert submit(committer, "kept").verdict == [True]
    entered, go_on = threading.Event(), threading.Event()

    def hold_on(*_: Any) -> Any:
        entered.set()
        assert go_on.wait(PATIENCE)
        raise SystemExit("nothing foresees this")

    store.find = store.commit = hold_on  # type: ignore[method-assign]
    first = submit(committer, "first")
    assert entered.wait(PATIENCE)
    rest = [submit(committer, str(number)) for number in range(3)]
    go_on.set()
    assert all(isinstance(told.verdict, StoreUnavailable) for told in (first, *rest))
    until(lambda: not committer.alive)
    assert not committer.healthy
    with pytest.raises(Overloaded):
        submit(committer, "late")
    assert "no more commits in this process" in caplog.text
    assert ("1 acknowledged events are lost" in caplog.text) == bool(interval)


def test_a_store_that_hangs_is_noticed(
    make: Make, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not healthy while one call takes too long, with nothing told; healthy again after it."""
    committer = make()
    told = hold(committer, store)
    assert committer.healthy
    monkeypatch.setattr(committer_module, "STALL_SECONDS", 0.05)
    until(lambda: not committer.healthy)
    assert committer.alive
    monkeypatch.setattr(committer_module, "DEAD_SECONDS", 0.1)
    until(lambda: not committer.alive)
    assert not told.yet
    store.gate.set()
    assert told.verdict == [True]
    until(lambda: committer.healthy and committer.alive)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_fails_each_work_has_one_verdict(
    make: Make, store: HeldStore, tally: Tally, seed: int
) -> None:
    """A store that fails, hangs, finds other constants and has bugs, and works that contradict."""
    chance = random.Random(seed)
    store.entered = threading.Semaphore(0)
    committer = make(max_queue=200, interval=chance.choice([0.0, 0.0, 0.01]))
    committer.gathers = chance.random() < 0.5
    trouble = [
        StoreUnavailable("io", "broken"),
        ConstantsDiffer("by chance"),
        ZeroDivisionError("a bug"),
        None,
        None,
        None,
    ]

    def misbehave(batch: Sequence[Entry]) -> None:
        if chance.random() < 0.1:
            threading.Event().wait(0.01)
        error = chance.choice(trouble)
        if error is not None:
            raise error

    store.before = misbehave
    store.on_housekeep = store.on_refresh = lambda: misbehave([])
    sent: dict[str, Told] = {}
    refused = 0
    for number in range(300):
        task = chance.choice(["regression", "multiclass", ""])
        name = f"{number}"
        made = evaluated(name, task) if task else entry(name)
        try:
            sent[name] = submit(committer, made, *([f"{number} b"] if number % 7 == 0 else []))
        except Overloaded:
            refused += 1
            threading.Event().wait(0.005)
        if chance.random() < 0.1:
            committer.go()
    verdicts = {name: told.verdict for name, told in sent.items()}
    store.before = lambda batch: None
    store.on_housekeep = store.on_refresh = lambda: None
    committer.close()
    assert all(len(told.verdicts) == 1 for told in sent.values())
    assert len(verdicts) + refused == 300
    counted = sum(sum(verdict) for verdict in verdicts.values() if isinstance(verdict, list))
    if committer._snapshot is None:
        assert store.events() == counted
    assert tally.queue == 0


# --- wake-ups -----------------------------------------------------------------------------------


def test_a_contradiction_alone_loses_no_wake_up(
    make: Make, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its answer has the host queue is committed as soon as the host says so."""
    monkeypatch.setattr(committer_module, "HOUSEKEEPING_SECONDS", 3600.0)
    monkeypatch.setattr(committer_module, "REFRESH_SECONDS", 3600.0)
    committer = make()
    assert submit(committer, evaluated("fixes", "regression")).verdict == [True]
    committer.gathers = True
    rejection = Told()

    def refused(verdict: Any) -> None:
        assert isinstance(verdict, Refused)
        committer.submit(Asked([entry("rejection")], rejection))
        committer.go()

    committer.submit(Asked([evaluated("bad", "multiclass")], refused))
    began = clock.monotonic()
    committer.go()
    assert rejection.verdict == [True]
    assert clock.monotonic() - began < 10


def test_a_host_that_forgets_to_go_is_not_waited_for(make: Make, store: HeldStore) -> None:
    """What is queued is committed all the same, a little later."""
    committer = make()
    committer.gathers = True
    for number in range(3):
        assert submit(committer, str(number)).verdict == [True]


def test_commits_wait_for_those_who_were_answered(make: Make, store: HeldStore) -> None:
    """What follows an answer shares the commit of what came before it."""
    committer = make()
    committer.gathers = True
    first = hold_gathered(committer, store)
    submit(committer, "a")
    committer.go()
    store.gate.set()
    assert first.verdict == [True]
    second = submit(committer, "b")
    committer.go()
    assert second.verdict == [True]
    assert store.batches == [["first"], ["a", "b"]]


def hold_gathered(committer: Committer, store: HeldStore) -> Told:
    """As `hold`, of a host that gathers."""
    store.gate.clear()
    told = submit(committer, "first")
    committer.go()
    assert store.entered.acquire(timeout=PATIENCE)
    return told


# --- other processes ----------------------------------------------------------------------------


def test_other_processes_are_looked_at_while_idle_and_busy(make: Make, store: HeldStore) -> None:
    """Again and again, by the one thread that uses the store, however the last look ended."""
    committer = make()
    threads: set[str] = set()

    def look() -> None:
        threads.add(threading.current_thread().name)
        if store.refreshed % 3 == 0:
            raise StoreUnavailable("busy", "locked")

    store.on_refresh = look
    until(lambda: store.refreshed > 6)
    for number in range(20):
        before = store.refreshed
        assert submit(committer, str(number)).verdict == [True]
        until(lambda before=before: store.refreshed > before)  # type: ignore[misc]
    assert threads == {"committer"}
    assert committer.healthy


def test_a_store_that_cannot_be_looked_at_is_not_healthy(
    make: Make, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left alone until it commits, and then looked at, at once."""
    monkeypatch.setattr(committer_module, "RECOVER_SECONDS", 3600.0)
    committer = make()

    def fail() -> None:
        store.down = StoreUnavailable("timeout", "no answer")
        raise store.down

    store.on_refresh = fail
    until(lambda: not committer.healthy)
    until(lambda: store.probes > 5)
    looks = store.refreshed
    assert looks == store.refreshed
    store.on_refresh = lambda: None
    store.down = None
    until(lambda: store.refreshed > looks)
    assert committer.healthy


def test_refresh_waits_until_the_thread_has_looked(make: Make, store: HeldStore) -> None:
    """Raises what the look raises, or that it takes too long; works after `close`, too."""
    committer = make()
    before = store.refreshed
    committer.refresh(PATIENCE)
    assert store.refreshed > before
    hold(committer, store)
    with pytest.raises(StoreUnavailable, match="busy"):
        committer.refresh(0.01)
    store.gate.set()
    committer.close()
    before = store.refreshed
    committer.refresh(PATIENCE)
    assert store.refreshed == before + 1


# --- the end ------------------------------------------------------------------------------------


def test_close_commits_what_is_queued(make: Make, store: HeldStore) -> None:
    """Every waiter is told before it returns, and whoever comes later is refused."""
    committer = make()
    hold(committer, store)
    rest = [submit(committer, str(number)) for number in range(3)]
    closer = threading.Thread(target=committer.close)
    closer.start()

    def refused() -> bool:
        try:
            submit(committer, "late")
        except Overloaded:
            return True
        return False

    until(refused)
    store.gate.set()
    closer.join(PATIENCE)
    assert not closer.is_alive()
    assert all(told.verdict == [True] for told in rest)
    committer.close()  # twice is once


def test_close_tells_waiters_of_a_store_that_fails(make: Make, store: HeldStore) -> None:
    """It ends even so, and nobody is acknowledged."""
    committer = make()
    first = hold(committer, store)
    store.down = StoreUnavailable("io", "broken")
    store.gate.set()
    committer.close()
    assert first.verdict is store.down


# --- the snapshot interval ----------------------------------------------------------------------


def test_with_an_interval_acks_come_at_once(make: Make, store: HeldStore, tally: Tally) -> None:
    """Before anything is committed; `close` flushes it all in order."""
    committer = make(interval=LONG)
    told = [submit(committer, *words) for words in ("ab", "b", "c")]
    assert [each.verdict for each in told] == [[True, True], [False], [True]]
    assert store.batches == []
    assert tally.queue == 4
    committer.close()
    assert store.batches == [["a", "b", "b", "c"]]
    assert store.events() == 3
    assert [len(each.verdicts) for each in told] == [1, 1, 1]


def test_the_interval_flushes(make: Make, store: HeldStore, tally: Tally) -> None:
    """What was acknowledged is durable after the interval, without any further request."""
    committer = make(interval=0.05)
    submit(committer, "a")
    submit(committer, "b")
    until(lambda: store.events() == 2 and tally.queue == 0)
    assert submit(committer, "a").verdict == [False]  # it is the store that knows it now
    until(lambda: store.batches[-1] == ["a"] and tally.queue == 0)
    committer.close()
    assert store.events() == 2


def test_a_queue_half_full_is_flushed_before_the_interval(make: Make, store: HeldStore) -> None:
    """So that the interval bounds the loss and the queue does not refuse while there is time."""
    committer = make(max_queue=10, interval=LONG)
    for number in range(6):
        submit(committer, str(number))
    until(lambda: store.events() == 6)


def test_with_an_interval_the_queue_is_bounded_too(make: Make, store: HeldStore) -> None:
    """A flush that takes too long is a 503 once the memory for its backlog is full."""
    committer = make(max_queue=4, interval=LONG)
    store.gate.clear()
    for digest in "abc":
        assert submit(committer, digest).verdict == [True]
    assert store.entered.acquire(timeout=PATIENCE)  # more than half full: it is flushed
    waits = submit(committer, "d")
    with pytest.raises(Overloaded):
        submit(committer, "e")
    store.gate.set()
    assert waits.verdict == [True]
    until(lambda: store.events() >= 3)
    committer.close()
    assert store.events() == 4


def test_a_flush_that_fails_is_tried_again_in_order(make: Make, store: HeldStore) -> None:
    """What it held stays before what came in while it failed."""
    store.gate.clear()
    committer = make(interval=0.05)
    assert submit(committer, "a", "b").verdict == [True, True]
    assert store.entered.acquire(timeout=PATIENCE)
    rest = [submit(committer, "c"), submit(committer, "d")]
    store.down = StoreUnavailable("io", "broken")
    store.gate.set()
    until(lambda: not committer.healthy)
    until(lambda: len(store.batches) > 2)
    assert set(map(tuple, store.batches)) == {("a", "b")}
    assert [each.verdict for each in rest] == [store.down] * 2  # not acknowledged: to be sent again
    store.down = None
    until(lambda: committer.healthy)
    rest = [submit(committer, "c"), submit(committer, "d")]
    until(lambda: store.committed == ["a", "b", "c", "d"])


def test_a_flush_that_fails_does_not_wait_for_the_next_interval(
    make: Make, store: HeldStore
) -> None:
    """It is tried again as often as a store is probed."""
    committer = make(interval=0.02)
    assert submit(committer, "a").verdict == [True]
    committer._snapshot._interval = LONG  # type: ignore[union-attr]
    store.down = StoreUnavailable("io", "broken")
    until(lambda: len(store.batches) >= 2)
    store.down = None
    until(lambda: store.events() == 1)
    until(lambda: committer.healthy)


def test_a_store_down_at_first_is_probed_whatever_the_interval(
    make: Make, store: HeldStore
) -> None:
    """Readiness does not wait for the next flush, an hour from now."""
    store.down = StoreUnavailable("unreachable", "no route")
    committer = make(interval=LONG)
    assert not committer.healthy
    store.down = None
    until(lambda: committer.healthy)


def test_close_tries_the_last_flush_several_times(
    make: Make, store: HeldStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Then it says how many acknowledged events are lost, and ends."""
    committer = make(interval=LONG)
    assert submit(committer, "a", "b").verdict == [True, True]
    store.down = StoreUnavailable("io", "broken")
    committer.close()
    assert store.batches == [["a", "b"]] * FLUSH_ATTEMPTS
    assert "2 acknowledged events are lost" in caplog.text


def test_close_flushes_once_the_store_is_back(make: Make, store: HeldStore) -> None:
    """A failure of the last flush that passes loses nothing."""
    committer = make(interval=LONG)

    def fail_once(batch: Sequence[Entry]) -> None:
        if len(store.batches) == 1:
            raise StoreUnavailable("busy", "locked")

    store.before = fail_once
    told = [submit(committer, "a"), submit(committer, "b")]
    assert [each.verdict for each in told] == [[True], [True]]
    committer.close()
    assert store.events() == 2


def test_an_acknowledged_event_that_cannot_count_is_in_the_log(
    make: Make, store: HeldStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Two events of one interval that contradict each other: the second was acknowledged, too."""
    committer = make(interval=LONG)
    for told in (
        submit(committer, evaluated("a", "regression")),
        submit(committer, evaluated("b", "multiclass")),
    ):
        assert told.verdict == [True]
    committer.close()
    assert store.events() == 1
    assert "an acknowledged event is not counted: truth: is no number" in caplog.text


def test_the_signal_to_stop_flushes_at_once(make: Make, store: HeldStore) -> None:
    """And every verdict from then on is durable, although connections are still open."""
    committer = make(interval=LONG)
    assert submit(committer, "a").verdict == [True]
    assert store.events() == 0
    committer.flush()
    until(lambda: store.events() == 1)
    told = submit(committer, "b")
    assert told.verdict == [True]
    assert store.events() == 2
    assert submit(committer, "a", "b").verdict == [False, False]
    committer.close()
    assert store.events() == 2


def test_a_flush_at_the_signal_that_fails_is_tried_until_the_end(
    make: Make, store: HeldStore, caplog: pytest.LogCaptureFixture
) -> None:
    """What comes meanwhile is not acknowledged, since it would be lost."""
    committer = make(interval=LONG)
    assert submit(committer, "a").verdict == [True]
    store.down = StoreUnavailable("io", "broken")
    committer.flush()
    until(lambda: len(store.batches) > 2)
    assert isinstance(submit(committer, "b").verdict, StoreUnavailable)
    store.down = None
    until(lambda: store.events() == 1)
    assert submit(committer, "b").verdict == [True]
    committer.close()
    assert store.committed == ["a", "b"]


def test_an_id_is_known_over_flushes(make: Make, store: HeldStore) -> None:
    """Whether it waits for its flush, is being flushed, or was, its second event is a duplicate."""
    committer = make(interval=0.02)
    new = 0
    for number in range(60):
        for _ in range(3):
            new += sum(submit(committer, str(number)).verdict)
    committer.close()
    assert new == store.events() == 60


def test_with_an_interval_a_store_that_cannot_be_asked_acknowledges_nothing(
    make: Make, store: HeldStore
) -> None:
    """Nobody could tell whether the event is new."""
    committer = make(interval=LONG)
    store.down = StoreUnavailable("io", "broken")
    assert submit(committer, "a").verdict is store.down
    assert not committer.healthy
    store.down = None
    until(lambda: committer.healthy)
    assert submit(committer, "a").verdict == [True]
