"""The store in Redis (6.2 or newer) or Valkey, one server or a cluster: for several replicas.

Keys, format 2. Those of a deployment's models share a hash tag, so a cluster has them on one node;
HOME is `namespace/deployment` and MODEL the rest of a model's id, both percent-encoded, so that a
brace in them cannot end the tag:

    {fdmt:HOME}MODEL:meta       hash  epoch: a random text, a point, how often it was reset;
                                      sequence: how many commits touched the model
    {fdmt:HOME}MODEL:panes      zset  pane → the sequence that last touched it
    {fdmt:HOME}MODEL:pane:PANE  hash  JSON [family, labels…] → number; PANE is width:index:segment
    {fdmt:HOME}MODEL:gauges     hash  JSON [family, labels…] → "time number"; last write wins
    {fdmt:HOME}MODEL:constants  hash  name → JSON; first writer wins, unless replaced
    {fdmt:HOME}:seen            zset  16 bytes for (source, id) → epoch seconds
    {fdmt:HOME}:records         hash  16 bytes for a request → what is remembered of it
    {fdmt:HOME}:order           list  a record's 16 bytes and tag, in the order of their writing
    {fdmt:HOME}:held            text  bytes of all records
    fdmt:changes                zset  one server: model → the number of its last commit, counted
                                      over all models; "birth RANDOM" → 0
    fdmt:models                 set   cluster: the models
    fdmt:format                       this format's number
    …:probe                           what an empty commit writes

A number is an integer, exact to 64 bits, or the text of an exact number with a "p" in it (`exact`).
In format 1 these were floats, of 17 digits: where one is found, that double is meant, and the next
commit writes the sum as an exact number. A replica of format 1 that still runs then fails to read
and to commit to that model, and writes nothing: its script makes every sum before the first write,
and finds that the text is no number. So replicas may be replaced one by one, and there is no way
back but by an export. Panes expire by themselves at the age at which no window
reaches them; digests go in small steps, a few with every commit and every `housekeep`.

A commit is one script a model (`redis_commit.lua`): it writes all of the model's share of a batch,
or nothing, and nothing where it knows a digest; the share is then summed without that entry and
sent again. So a batch over several models is atomic model by model: where one fails, `commit`
raises, and a retry finds the others' digests. Sums are exact, so mirror and server are equal to the
bit, whatever the order in which replicas commit.

`refresh` asks `fdmt:changes` (in a cluster: the meta of every model), and loads the panes that
changed. Data is lost where a sequence fell, an epoch changed otherwise than by a reset, or a server
with another history has fewer events: this is counted, logged, and gives the model a new `created`,
so that whoever scrapes its counters sees a reset and no jump.

A pane's key is made from its name in `redis_load.lua` and `redis_restart.lua`: it is in the slot
of their KEYS, but not one of them. While a slot moves to another node its models are unavailable.
The server must not evict: `maxmemory-policy noeviction`, its default.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time as clock
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from .counters import Increment, Vector, encode_key, known_key, merge
from .errors import ConstantsDiffer, StoreUnavailable, StoreUnusable
from .exact import read_back, stored
from .redis_link import ATTEMPTS, Call, Link, Script, promise, run, script
from .state import Delta, Entry, Gauge, Mirror, RecordKey, State, home_of, total
from .store import (
    PANES_AT_ONCE,
    Ahead,
    apply_rest,
    check_constants,
    events_in,
    read_constant,
    split,
    unheeded,
    with_created,
)
from .windows import ALL_TIME, PANES, Pane

logger = logging.getLogger("metrics.store")

FORMAT = 2
LOAD_PANES = 64
"""Panes in one answer, about: a script stops the server while it runs."""
LOAD_MODELS = 50
"""Models asked for in one round trip."""
SWEEP_DIGESTS = 5000
"""Digests of a home that one step of housekeeping forgets at most."""
HOMES_IN_TURN = 20
"""Homes whose digests one step of housekeeping looks at; the next step takes the next."""

CHANGES = "fdmt:changes"
MODELS = "fdmt:models"


def _script(name: str) -> Script:
    return script(Path(__file__).with_name(f"redis_{name}.lua").read_text(encoding="utf-8"))


COMMIT, LOAD, OLDEST, RESTART, SWEEP = map(
    _script, ("commit", "load", "oldest", "restart", "sweep")
)


class Known(NamedTuple):
    """A model's last commit of those without a gap that the mirror holds."""

    epoch: str = ""
    sequence: int = 0


@dataclass(slots=True)
class Share:
    """One model's entries of a batch, on their way into the store."""

    model: str
    entries: list[Entry] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Where in the batch they stand."""
    fresh: set[bytes] = field(default_factory=set)
    """Their digests, less those that turned out to be known; some entries have none."""
    delta: Delta = field(default_factory=Delta)
    vectors: list[tuple[Increment, list[Pane]]] = field(default_factory=list)
    """What `delta` adds, and to which panes; each pane occurs once."""
    verdicts: list[bool] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    """The digests of `delta`, in order."""
    epoch: str = ""
    """The epoch that begins if the model has none."""


@dataclass(slots=True)
class Loaded:
    """What a server tells of a model; `whole`, or only what changed since it was known."""

    known: Known
    whole: bool = False
    panes: dict[str, Vector] = field(default_factory=dict)
    gauges: list[tuple[str, str]] = field(default_factory=list)
    constants: list[tuple[str, str]] = field(default_factory=list)


class RedisStore:
    """Counters in Redis; any number of replicas may commit to it at once."""

    def __init__(self, url: str, dedup_ttl: int, durability: str = "none") -> None:
        self._ttl = dedup_ttl
        self._link = Link(url, promise(durability))
        self._lock = threading.Lock()
        self._mirror = Mirror()
        self._known: dict[str, Known] = {}
        self._suspects: set[str] = set()
        self._fallen: dict[str, str] = {}
        self._listed: set[str] = set()
        self._birth: bytes = b""
        self._change = 0
        self._seen = 0
        self._turn = secrets.randbelow(1 << 32)
        self._next_count = 0.0
        self._checked = False
        self._stamped = False
        self.losses = 0
        """How often the data of a model turned out to be lost."""
        try:
            self._look()
        except StoreUnavailable as error:
            logger.warning("store is not ready (%s): %s", error.kind, error)

    # --- the contract ------------------------------------------------------------------------

    def commit(self, batch: Sequence[Entry], now: float, ahead: Ahead = unheeded) -> list[bool]:
        """Add what is new of `batch`, atomically model by model; see `store.Store.commit`.

        Where it raises StoreUnavailable any of the batch may be counted; what is, is a duplicate
        when it comes again. An id is a duplicate within its home only: namespace and deployment.
        """
        with self._lock, self._serving():
            self._check_format(stamp=True)
            return self._commit(_shares(batch), now, ahead) if batch else self._probe(now)

    def refresh(self, now: float) -> None:
        """Take in what other replicas committed, and count digests where that is cheap."""
        with self._lock, self._serving():
            self._look()
            self._count()

    def read(self) -> State:
        """A consistent copy as of the last commit, or `refresh`; from memory."""
        return self._mirror.published

    def find(
        self, keys: Collection[RecordKey], ids: Collection[RecordKey]
    ) -> tuple[dict[RecordKey, bytes], set[RecordKey]]:
        """The records there are of `keys`, and which of `ids` are known in their homes."""
        of_keys, of_ids = _by_home(keys), _by_home(ids)
        calls = []
        for kind, command, by_home in (
            ("records", "HMGET", of_keys),
            ("seen", "ZMSCORE", of_ids),
        ):
            for home, asked in by_home.items():
                name = _shared(home, kind)
                calls.append(Call(name, (command, name, *(each.id for each in asked))))
        if not calls:
            return {}, set()
        with self._lock, self._serving():
            replies = iter(self._link.exchange(calls))
            records = {
                key: body
                for asked in of_keys.values()
                for key, body in zip(asked, next(replies), strict=True)
                if body
            }
            if records:
                self._look()
        known = {
            id
            for asked in of_ids.values()
            for id, time in zip(asked, next(replies), strict=True)
            if time
        }
        return records, known

    def oldest(self, limit: int) -> list[tuple[RecordKey, bytes]]:
        """The records that were written first, of each home."""
        with self._lock, self._serving():
            homes = list(self._homes())
            calls = [
                run(OLDEST, [_shared(home, "records"), _shared(home, "order")], limit)
                for home in homes
            ]
            replies = self._link.exchange(calls) if calls else []
        return [
            (RecordKey(home, reply[at]), reply[at + 1])
            for home, reply in zip(homes, replies, strict=True)
            for at in range(0, len(reply), 2)
        ]

    def held(self) -> int:
        """Bytes of all records."""
        with self._lock, self._serving():
            names = [_shared(home, "held") for home in self._homes()]
            replies = self._link.exchange([Call(name, ("GET", name)) for name in names])
            return sum(int(reply or 0) for reply in replies)

    def housekeep(self, now: float) -> bool:
        """Forget some expired panes, and digests past their time of the next few homes."""
        with self._lock, self._serving():
            old: dict[str, list[Pane]] = {}
            for model, pane in self._mirror.expired(now, PANES_AT_ONCE):
                old.setdefault(model, []).append(pane)
            homes = self._next_homes()
            calls = [self._sweep(home, now) for home in homes]
            calls += [_drop(model, panes) for model, panes in old.items()]
            gone = self._link.exchange(calls) if calls else []
            for model, panes in old.items():
                for pane in panes:
                    self._mirror.drop(model, pane)
            self._mirror.read()
            return (
                sum(map(len, old.values())) == PANES_AT_ONCE
                or max(gone[: len(homes)], default=0) == SWEEP_DIGESTS
            )

    def _next_homes(self) -> list[str]:
        """The homes whose turn it is; a process that lives for seconds begins with any."""
        homes = sorted(self._homes())
        begin = self._turn % max(1, len(homes))
        self._turn = begin + HOMES_IN_TURN
        return (homes + homes)[begin : begin + min(HOMES_IN_TURN, len(homes))]

    def _sweep(self, home: str, now: float) -> Call:
        return run(SWEEP, [_shared(home, "seen")] * 2, repr(now - self._ttl), SWEEP_DIGESTS)

    def seen(self) -> int:
        """How many digests are remembered, as of a `refresh`."""
        return self._seen

    def _count(self) -> None:
        """Count the digests, in a hundredth of the time at most."""
        began = clock.monotonic()
        if began < self._next_count:
            return
        names = {_shared(model, "seen") for model in self._known}
        self._seen = sum(self._link.exchange([Call(name, ("ZCARD", name)) for name in names]))
        self._next_count = clock.monotonic() + 100 * (clock.monotonic() - began)

    def reset(self, model: str) -> bool:
        """Forget all of one model but its digests; other replicas notice by its epoch."""
        with self._lock, self._serving():
            for _ in range(ATTEMPTS):
                self._load({model})
                if model not in self._mirror:
                    return False
                epoch = self._known[model].epoch
                name, _, resets = epoch.partition(".")
                call = self._restart(model, epoch, f"{name}.{int(resets) + 1}", "")
                if self._link.exchange([call], durable=True)[0] >= 0:
                    self._load({model})
                    return True
            raise _contended()

    def hasten(self) -> None:
        """Housekeeping goes by small steps as it is."""

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            self._link.close()

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """Raise as unavailable what would be unusable at start: it may be mended."""
        try:
            yield
        except StoreUnusable as error:
            raise StoreUnavailable("foreign", str(error)) from error

    def _check_format(self, stamp: bool = False) -> None:
        """Raises StoreUnusable where a version wrote that knows more; `stamp` writes ours."""
        if self._stamped or (self._checked and not stamp):
            return
        key = "fdmt:format"
        (number,) = self._link.exchange([Call(key, ("GET", key))])
        if number not in (None, b"1", b"%d" % FORMAT):
            raise StoreUnusable(
                f"FEEDBACK_STORE: holds format {number.decode()}; this version reads {FORMAT}"
            )
        if stamp and number != b"%d" % FORMAT:
            self._link.exchange([Call(key, ("SET", key, FORMAT))])
        self._checked, self._stamped = True, stamp

    # --- one commit --------------------------------------------------------------------------

    def _commit(self, shares: list[Share], now: float, ahead: Ahead) -> list[bool]:
        """Commit every share; the verdicts in the order of the batch."""
        if len(shares) > 1:
            self._claim(shares, now)
        todo = shares
        for _ in range(ATTEMPTS):
            todo = self._send(todo, now, len(todo) < len(shares), ahead)
            if not todo:
                break
        else:
            raise _contended()
        verdicts = [False] * sum(len(share.entries) for share in shares)
        for share in shares:
            for place, verdict in zip(share.places, share.verdicts, strict=True):
                verdicts[place] = verdict
        return verdicts

    def _claim(self, shares: Sequence[Share], now: float) -> None:
        """Fix new constants before anything is counted.

        Else ConstantsDiffer could be raised for one model when another's entries are counted
        already, and they would be duplicates of themselves when they come again.
        """
        todo = []
        for share in shares:
            known = self._mirror.constants(share.model).keys()
            if any(entry.constants.keys() - known for entry in share.entries):
                delta = Delta(constants=total(share.entries).constants)
                todo.append(Share(share.model, delta=delta))
        for _ in range(ATTEMPTS):
            if not todo:
                return
            todo = self._send(todo, now, begun=False)
        raise _contended()

    def _send(
        self, shares: Sequence[Share], now: float, begun: bool, ahead: Ahead = unheeded
    ) -> list[Share]:
        """Send every share; returns those that must be sent again.

        `begun` tells that other shares of the batch are counted: too late for ConstantsDiffer.
        """
        self._list(share.model for share in shares)
        try:
            calls = [self._plan(share, now) for share in shares]
        except ConstantsDiffer as error:
            if begun:
                raise StoreUnavailable("contended", f"constants changed: {error}") from None
            raise
        again: list[Share] = []
        stale: set[str] = set()
        alone: Share | None = None
        for share, reply in zip(shares, self._exchange(shares, calls, ahead), strict=True):
            if reply[0] == b"ok":
                self._note(share, *reply[1:])
                continue
            if reply[0] == b"record":
                alone = share
                continue
            again.append(share)
            if reply[0] == b"known":
                share.fresh.difference_update(share.digests[int(at)] for at in reply[1].split())
            else:
                stale.add(share.model)
        if stale:
            self._load(stale)
        if alone is not None:
            if begun or len(shares) > 1:
                raise StoreUnavailable("contended", f"a record changed: {alone.model}")
            raise ConstantsDiffer(f"{alone.model}: a record")
        return again

    def _plan(self, share: Share, now: float) -> Call:
        """The call that commits `share`. Raises ConstantsDiffer, as far as the mirror can tell."""
        model = share.model
        if share.entries:
            new, duplicates, share.verdicts = split(share.entries, set(share.fresh))
            share.delta = total(new, duplicates)
            share.digests = [entry.digest for entry in new if entry.digest]
        share.epoch = f"{secrets.token_hex(8)}.0"
        check_constants(self._mirror, share.delta)
        with_created(self._mirror, share.delta, now)
        constants = share.delta.constants.get(model, {})
        replaced = share.delta.replaced.get(model, {})
        in_force = {**constants, **self._mirror.constants(model)}  # equal, but perhaps 1 for 1.0
        in_force.update((name, constants[name]) for name in replaced)
        gauges = share.delta.gauges.get(model, {})
        share.vectors = _vectors(share.delta)
        panes = [
            (_name(pane), _seconds_left(pane, now)) for _, panes in share.vectors for pane in panes
        ]
        known = self._known.get(model, Known())
        ring = not self._link.in_cluster()
        arguments = {
            "model": model,
            "changes": ring,
            "epoch": known.epoch,
            "sequence": known.sequence,
            "fresh": share.epoch,
            "now": repr(now),
            "forget": repr(now - self._ttl),
            "keep": 2 * self._ttl,
            "constants": [text for name in constants for text in (name, _json(in_force[name]))],
            "replaced": {
                name: "" if before is None else _json(before) for name, before in replaced.items()
            },
            "gauges": [
                text
                for key, gauge in gauges.items()
                for text in (encode_key(*key), repr(gauge.time), repr(gauge.value))
            ],
            "panes": panes,
            "vectors": _numbered(share.vectors),
        }
        keys = [*_keys(model, "meta", "panes", "constants", "gauges"), _shared(model, "seen")]
        keys.append(CHANGES if ring else keys[0])
        keys += [_shared(model, kind) for kind in ("records", "order", "held")]
        keys += _keys(model, *(f"pane:{name}" for name, _ in panes))
        swaps = [
            text
            for swap in share.delta.swaps.values()
            for text in (swap.key.id, swap.before, swap.after)
        ]
        return run(COMMIT, keys, b"".join(share.digests), orjson.dumps(arguments), *swaps)

    def _exchange(self, shares: Sequence[Share], calls: Sequence[Call], ahead: Ahead) -> list[Any]:
        """The replies to the calls of `shares`; those that were committed are in the mirror.

        They are taken into it while the server works. Where other replicas committed in between,
        the mirror is still a sum of whole commits, but theirs are missing until the next look.
        """

        def foresee() -> None:
            for share in shares:
                self._add(share)
            foreseen = self._mirror.foreseen()
            ahead(foreseen)

        with self._mirror.ahead():
            replies = self._link.exchange(calls, durable=True, meanwhile=foresee)
            if any(reply[0] != b"ok" for reply in replies):
                self._mirror.take_back()
                for share, reply in zip(shares, replies, strict=True):
                    if reply[0] == b"ok":
                        self._add(share)
        return replies

    def _add(self, share: Share) -> None:
        """Add what a share adds to the mirror."""
        for vector, panes in share.vectors:
            self._mirror.spread((share.model, tuple(panes)), vector)
        apply_rest(self._mirror, share.delta)
        self._mirror.sequence += 1

    def _note(self, share: Share, sequence: int, change: int, exact: int) -> None:
        """Note which commit of its model, and of all, a share became."""
        known = self._known.setdefault(share.model, Known(share.epoch))
        if sequence == known.sequence + 1:
            self._known[share.model] = Known(known.epoch, sequence)
        if change == self._change + 1:
            self._change = change
        if change == 1:
            self._birth = f"birth {share.epoch}".encode()
        if not exact:
            self._suspects.add(share.model)

    def _probe(self, now: float) -> list[bool]:
        """Write to every node that a model is known on."""
        keys = self._link.spread(["fdmt:probe", *self._every("probe")])
        calls = [Call(key, ("SET", key, repr(now), "EX", 86400)) for key in keys]
        self._link.exchange(calls, durable=True)
        return []

    def _list(self, models: Iterable[str]) -> None:
        """List models of a cluster where other replicas look, before they are committed to."""
        if not self._link.in_cluster():
            return
        new = [model for model in models if model not in self._listed]
        if new:
            self._link.exchange([Call(MODELS, ("SADD", MODELS, *new))])
            self._listed.update(new)

    # --- catching up -------------------------------------------------------------------------

    def _look(self) -> None:
        """Load what other replicas committed, if any did."""
        self._check_format()
        if self._link.in_cluster():
            change, changed = 0, self._changed_in_cluster()
        else:
            change, changed = self._changed()
        doubted = set(self._link.in_doubt({_tag(model) for model in self._known}))
        self._suspects.update(model for model in self._known if _tag(model) in doubted)
        self._load(changed)
        self._change = change

    def _changed(self) -> tuple[int, set[str]]:
        """The number of the last commit, and the models that changed since the last look."""
        births, rows = self._link.exchange(
            [
                Call(CHANGES, ("ZRANGEBYSCORE", CHANGES, 0, 0)),
                Call(CHANGES, ("ZRANGEBYSCORE", CHANGES, self._change, "+inf", "WITHSCORES")),
            ]
        )
        birth = births[0] if births else b""
        if birth != self._birth or (self._change and not rows):  # not the key it was
            self._suspects.update(self._known)
            self._birth = birth
            self._change = 0
            (rows,) = self._link.exchange(
                [Call(CHANGES, ("ZRANGEBYSCORE", CHANGES, 0, "+inf", "WITHSCORES"))]
            )
        numbers = {rows[at].decode(): int(rows[at + 1]) for at in range(0, len(rows), 2)}
        changed = {model for model, number in numbers.items() if number > self._change}
        return max(numbers.values(), default=0), changed

    def _changed_in_cluster(self) -> set[str]:
        """The models whose meta is not as known."""
        (members,) = self._link.exchange([Call(MODELS, ("SMEMBERS", MODELS))])
        models = list({member.decode() for member in members} | self._known.keys())
        keys = [key for model in models for key in _keys(model, "meta")]
        calls = [Call(key, ("HMGET", key, "epoch", "sequence")) for key in keys]
        metas = self._link.exchange(calls)
        return {
            model
            for model, (epoch, sequence) in zip(models, metas, strict=True)
            if self._known.get(model, Known()) != ((epoch or b"").decode(), int(sequence or 0))
        }

    def _load(self, models: Iterable[str]) -> None:
        """Make the mirror equal the server for `models`, and for those that are suspect."""
        todo = set(models)
        lost: list[str] = []
        try:
            while todo or self._suspects or self._fallen:
                loads = self._fetch(todo | self._suspects | self._begin_anew())
                todo.clear()
                lost_now = [
                    model for model, loaded in loads.items() if self._is_lost(model, loaded)
                ]
                for model, loaded in loads.items():
                    self._take(model, loaded)
                if lost_now:
                    lost += lost_now
                    whole = {model for model, loaded in loads.items() if loaded.whole}
                    self._suspects.update(self._known.keys() - whole)
                    self._listed.clear()
        finally:
            self._mirror.read()
            if lost:
                self.losses += len(lost)
                logger.error("Redis lost data of %d models, one is %s", len(lost), lost[0])

    def _begin_anew(self) -> set[str]:
        """Give models whose counters fell a new `created`; returns which."""
        fallen = list(self._fallen.items())
        self._link.exchange(
            [
                self._restart(model, epoch, f"{secrets.token_hex(8)}.0", _json(clock.time()))
                for model, epoch in fallen
            ]
        )
        self._fallen.clear()
        for model, _ in fallen:
            self._known.pop(model, None)
        return {model for model, _ in fallen}

    def _restart(self, model: str, epoch: str, fresh: str, created: str) -> Call:
        """The call that ends `epoch`; without `created`, it ends with nothing left."""
        ring = not self._link.in_cluster()
        keys = _keys(model, "meta", "panes", "constants", "gauges")
        keys.append(CHANGES if ring else keys[0])
        return run(RESTART, keys, model, epoch, fresh, created, int(ring), *_keys(model, "pane:"))

    def _fetch(self, models: Iterable[str]) -> dict[str, Loaded]:
        """What the server has that the mirror lacks; all of it for models that are suspect."""
        loads = {}
        for model in models:
            known = self._known.get(model, Known())
            loads[model] = Loaded(known._replace(sequence=-1) if model in self._suspects else known)
        todo = list(loads)
        while todo:
            part, todo = todo[:LOAD_MODELS], todo[LOAD_MODELS:]
            replies = self._link.exchange([_load_call(model, loads[model].known) for model in part])
            todo += [
                model
                for model, reply in zip(part, replies, strict=True)
                if _take_in(loads[model], orjson.loads(reply))
            ]
        return loads

    def _is_lost(self, model: str, loaded: Loaded) -> bool:
        """Whether commits that were known are not in what the server has now."""
        known = self._known.get(model)
        if known is None or model not in self._mirror:
            return False
        name, _, resets = known.epoch.partition(".")
        name_now, _, resets_now = loaded.known.epoch.partition(".")
        if name_now != name:
            return True
        if int(resets_now) > int(resets):
            return False
        lost = resets_now != resets or loaded.known.sequence < known.sequence
        if loaded.whole and not lost:
            state = self._mirror.foreseen().models.get(model)
            now = loaded.panes.get(_name(ALL_TIME), {})
            lost = state is not None and events_in(state.all_time) > events_in(now)
        if lost:
            self._fallen[model] = loaded.known.epoch
        return lost

    def _take(self, model: str, loaded: Loaded) -> None:
        """Take what was loaded into the mirror."""
        if loaded.whole:
            self._mirror.forget(model)
        for name, vector in loaded.panes.items():
            self._mirror.replace_pane(model, _pane(name), vector)
        for key, text in loaded.gauges:
            time, _, number = text.partition(" ")
            gauge = Gauge(_number(number), _number(time))
            self._mirror.set_gauge(model, known_key(key), gauge)
        if loaded.constants:
            constants = {name: read_constant(text) for name, text in loaded.constants}
            self._mirror.set_constants(model, constants, replaced=constants)
        self._mirror.sequence += 1
        if loaded.known.epoch:
            self._known[model] = loaded.known
        else:
            self._known.pop(model, None)
        self._suspects.discard(model)

    def _homes(self) -> set[str]:
        """The homes of all known models."""
        return {home_of(model) for model in self._known}

    def _every(self, kind: str) -> list[str]:
        """That key of every known model."""
        return [key for model in self._known for key in _keys(model, kind)]


def _drop(model: str, panes: Iterable[Pane]) -> Call:
    """The call that forgets panes of a model."""
    names = [_name(pane) for pane in panes]
    keys = [_shared(model, "seen"), *_keys(model, "panes", *(f"pane:{name}" for name in names))]
    return run(SWEEP, keys, "-inf", 0, *names)


def _shares(batch: Sequence[Entry]) -> list[Share]:
    """The batch, model by model."""
    shares: dict[str, Share] = {}
    for place, entry in enumerate(batch):
        share = shares.get(entry.model)
        if share is None:
            share = shares[entry.model] = Share(entry.model)
        share.entries.append(entry)
        share.places.append(place)
        if entry.digest:
            share.fresh.add(entry.digest)
    return list(shares.values())


def _by_home(keys: Collection[RecordKey]) -> dict[str, list[RecordKey]]:
    by_home: dict[str, list[RecordKey]] = {}
    for key in keys:
        by_home.setdefault(key.home, []).append(key)
    return by_home


def _load_call(model: str, known: Known) -> Call:
    """The call that asks for what a model has beyond `known`."""
    keys = _keys(model, "meta", "panes", "constants", "gauges")
    return run(LOAD, keys, *known, LOAD_PANES, *_keys(model, "pane:"))


def _take_in(loaded: Loaded, reply: dict[str, Any]) -> bool:
    """Add one answer of `redis_load.lua`; tells whether there is more to ask for."""
    if int(reply["since"]) < 0:
        loaded.whole = True
        loaded.panes.clear()
    for name, flat in reply["panes"]:
        loaded.panes[name] = _vector(flat or ())
    loaded.gauges = _pairs(reply["gauges"])
    loaded.constants = _pairs(reply["constants"])
    loaded.known = Known(reply["epoch"], int(reply["upto"]))
    return bool(reply["upto"] != reply["sequence"])


def _pairs(flat: Any) -> list[tuple[str, str]]:
    """Field and value of a hash, of which cjson writes an empty one as {}."""
    flat = flat or ()
    return list(zip(flat[::2], flat[1::2], strict=True))


def _vector(flat: Sequence[str]) -> Vector:
    """The vector in a pane's hash."""
    vector: dict[str, Any] = {}
    for key, text in _pairs(flat):
        family, labels = known_key(key)
        number = text if "p" in text else _number(text)
        vector.setdefault(family, {})[labels] = read_back(family, number)
    return vector


def _vectors(delta: Delta) -> list[tuple[Increment, list[Pane]]]:
    """What a delta of one model adds, and to which panes; each pane occurs once.

    Panes that get the same share a vector: an event's four are written and sent as one.
    """
    groups = list(delta.groups.values())
    sources: dict[Pane, tuple[int, ...]] = {}
    for at, (_, panes) in enumerate(delta.groups):
        for pane in panes:
            sources[pane] = (*sources.get(pane, ()), at)
    alike: dict[tuple[int, ...], list[Pane]] = {}
    for pane, source in sources.items():
        alike.setdefault(source, []).append(pane)
    return [
        (groups[source[0]] if len(source) == 1 else merge(groups[at] for at in source), panes)
        for source, panes in alike.items()
    ]


def _numbered(vectors: Iterable[tuple[Increment, list[Pane]]]) -> list[Any]:
    """Each vector's keys and numbers as they are stored, and its panes counted from 1 over all."""
    numbered = []
    pane = 1
    for vector, panes in vectors:
        keys: list[str] = []
        numbers: list[str] = []
        for family, cells in vector.items():
            keys += [encode_key(family, labels) for labels in cells]
            numbers += map(str, stored(family, cells).values())
        numbered.append((keys, numbers, list(range(pane, pane + len(panes)))))
        pane += len(panes)
    return numbered


def _number(text: str) -> Any:
    """The number of a stored text: a float bears a point or an exponent, an integer does not.

    What is no number is left as it is: whoever renders its model raises.
    """
    try:
        return float(text) if "." in text or "e" in text or "n" in text else int(text)
    except ValueError:
        return text


def _json(constant: Any) -> str:
    return orjson.dumps(constant, option=orjson.OPT_SORT_KEYS).decode()


@lru_cache(maxsize=4096)
def _tag(model: str) -> str:
    return f"{{fdmt:{quote(home_of(model))}}}"


@lru_cache(maxsize=4096)
def _prefix(model: str) -> str:
    return _tag(model) + quote(model[len(home_of(model)) :])


def _keys(model: str, *kinds: str) -> list[str]:
    """The names of a model's keys."""
    prefix = _prefix(model)
    return [f"{prefix}:{kind}" for kind in kinds]


def _shared(model: str, kind: str) -> str:
    """The name of a key that all models of a home share; also by the home itself."""
    return f"{_tag(model)}:{kind}"


def _name(pane: Pane) -> str:
    return f"{pane.width}:{pane.index}:{pane.segment}"


def _pane(name: str) -> Pane:
    width, index, segment = name.split(":", 2)
    return Pane(int(width), int(index), segment)


def _seconds_left(pane: Pane, now: float) -> int:
    """Seconds after which `windows.expired` is true of `pane`; 0 for never."""
    return max(1, ceil((pane.index + PANES + 2) * pane.width - now)) if pane.width else 0


def _contended() -> StoreUnavailable:
    return StoreUnavailable("contended", "other writers were faster time and again")
