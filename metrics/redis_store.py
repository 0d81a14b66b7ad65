"""The store in Redis (6.2 or newer) or Valkey, one server or a cluster: for several replicas.

Keys, format 1. All of a model's share one hash tag, so a cluster keeps them on one node; in it
the id is percent-encoded, so that braces cannot end it:

    {fdmt:MODEL}:meta           hash  epoch: a random text, `.`, how often the model was reset;
                                      sequence: how many commits touched the model
    {fdmt:MODEL}:panes          zset  pane → the sequence that last touched it
    {fdmt:MODEL}:pane:PANE      hash  JSON [family, labels…] → number; PANE is width:index:segment
    {fdmt:MODEL}:gauges         hash  JSON [family, labels…] → "time number"; last write wins
    {fdmt:MODEL}:constants      hash  name → JSON; first writer wins
    {fdmt:MODEL}:seen           zset  16 bytes for (source, id) → epoch seconds
    fdmt:changes                zset  one server: model → the number of its last commit, counted
                                      over all models; "birth RANDOM" → 0
    fdmt:models                 set   cluster: the models
    fdmt:format, fdmt:probe           this format's number; what an empty commit writes

A number without point or exponent is an integer, exact to 64 bits; every other has 17 digits, so
that it is the same double everywhere. Panes expire by themselves, at the age at which no window
reaches them; digests go in small steps, a few with every commit.

A commit is one script a model (`redis_commit.lua`): it writes all of the model's share of a batch
or nothing, and nothing where a digest is known; the share is then summed without that and sent
again. So a batch over several models is atomic model by model: when one fails, `commit` raises,
and the retry finds what was committed already. What a server may have executed is never sent
again: redis-py's own retries are off, and its cluster pipeline, which cannot do without, is not
used. Since all adding is done in doubles on both sides, the mirror equals the server to the bit.

Readers ask `fdmt:changes` (in a cluster: every model's meta) at most twice a second, and load the
panes that changed. A sequence that fell, an epoch that changed otherwise than by a reset, or a
connection to a server with another history tells of lost data: it is counted in `losses`, logged,
and the model gets a new `created`, so that its counters start anew for whoever scrapes them.

A pane's key is made in `redis_load.lua` and `redis_restart.lua` from its name: it is in the slot
of the KEYS, but not among them.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time as clock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from redis import exceptions
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.connection import ConnectionPool
from redis.retry import Retry

from .counters import encode_key
from .errors import ConfigurationError, ConstantsDiffer, StoreUnavailable, StoreUnusable
from .state import Delta, Entry, Mirror, State, total
from .store import apply_rest, check_constants, split, with_created
from .windows import expired

logger = logging.getLogger("metrics.store")

FORMAT = 1
SOCKET_SECONDS = 5.0
"""How long a server may take to answer, besides what the durability setting has it wait."""
CONNECT_SECONDS = 2.0
CATCH_UP_SECONDS = 0.5
"""How old a reader's view may be before it looks for other replicas' commits."""
RECOVER_SECONDS = 5.0
"""How long readers leave a server alone that failed, unless a commit succeeds."""
ATTEMPTS = 10
"""How often a share is summed again, or a call sent anew that was not executed."""
LOAD_PANES = 64
"""Panes of one model that one answer holds, about: a script stops the server while it runs."""
SWEEP_MODELS = 20
"""Models of which one `housekeep` forgets digests; the next one takes the next."""
SWEEP_DIGESTS = 5000

CHANGES = "fdmt:changes"
MODELS = "fdmt:models"


class Script(NamedTuple):
    """A Lua script, and the name a server knows it by once it has run it."""

    text: str
    sha: str


def _read_script(name: str) -> Script:
    text = Path(__file__).with_name(f"redis_{name}.lua").read_text(encoding="utf-8")
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


COMMIT, LOAD, RESTART, SWEEP = map(_read_script, ("commit", "load", "restart", "sweep"))


class Call(NamedTuple):
    """A command, or a script with its keys and arguments, for the node that serves `key`."""

    key: str
    words: tuple[Any, ...]
    script: Script | None = None


def run(script: Script, keys: Sequence[str], *arguments: Any) -> Call:
    """The call that runs `script`."""
    return Call(keys[0], (len(keys), *keys, *arguments), script)


# --- durability ------------------------------------------------------------------------------


class Promise(NamedTuple):
    """What a commit waits for before it is acknowledged."""

    words: tuple[Any, ...] = ()
    """The command that waits; empty for none."""
    least: tuple[int, ...] = ()
    """What it must answer, at least."""
    seconds: float = 0.0


def promise(setting: str) -> Promise:
    """What `FEEDBACK_REDIS_DURABILITY` promises. Raises ConfigurationError for nonsense.

    `none`: an acknowledged event is in the server's memory, and on disk as its `appendfsync`
    says: `always`, before the acknowledgement; `everysec`, up to two seconds may be lost.
    `wait:REPLICAS:MS`: it is also in the memory of that many of the server's replicas, so a
    failover to one of those keeps it.
    `waitaof:LOCAL:REPLICAS:MS`: it is on the disk of the server (LOCAL 1) and of that many
    replicas, whatever `appendfsync` says. Needs Redis 7.2 or Valkey, with `appendonly yes`.

    What is not reached within MS milliseconds is answered 503: the event may be counted, and
    its retry is then a duplicate.
    """
    kind, *texts = setting.strip().split(":")
    try:
        *numbers, milliseconds = map(int, texts) if texts else (0,)
        if kind == "none" and not texts:
            return Promise()
        if milliseconds > 0 and min(numbers) >= 0 and any(numbers):
            seconds = milliseconds / 1000
            if kind == "wait" and len(numbers) == 1:
                return Promise(("WAIT", *numbers, milliseconds), tuple(numbers), seconds)
            if kind == "waitaof" and len(numbers) == 2 and numbers[0] <= 1:
                return Promise(("WAITAOF", *numbers, milliseconds), tuple(numbers), seconds)
    except ValueError:
        pass
    raise ConfigurationError(
        f"FEEDBACK_REDIS_DURABILITY: {setting!r}: use none, wait:REPLICAS:MS or "
        "waitaof:LOCAL:REPLICAS:MS, with LOCAL 0 or 1, something to wait for, and MS over 0"
    )


# --- the connection --------------------------------------------------------------------------


@dataclass(slots=True)
class _Try:
    """A call under way: how it is sent next, and what came back."""

    call: Call
    whole: bool = False
    """Whether the script's text is sent, for a server that does not know it."""
    ask: exceptions.AskError | None = None
    """Where to send it once, while its slot moves."""
    reply: Any = None

    def words(self) -> tuple[Any, ...]:
        """The command to send."""
        script = self.call.script
        if script is None:
            return self.call.words
        if self.whole:
            return ("EVAL", script.text, *self.call.words)
        return ("EVALSHA", script.sha, *self.call.words)

    def refused(self) -> bool:
        """Whether it was not executed, and can be sent again; raises any other error."""
        self.ask = None
        if isinstance(self.reply, exceptions.NoScriptError):
            self.whole = True
        elif isinstance(self.reply, exceptions.AskError) and not isinstance(
            self.reply, exceptions.MovedError
        ):
            self.ask = self.reply
        elif not isinstance(
            self.reply,
            (exceptions.MovedError, exceptions.TryAgainError, exceptions.ClusterDownError),
        ):
            if isinstance(self.reply, Exception):
                raise self.reply
            return False
        return True


@dataclass(slots=True)
class _Line:
    """One node's connection during one round trip."""

    pool: Any
    connection: Any
    tries: list[_Try]
    clean: bool = False
    """Whether every answer was read, so that the connection can serve again."""


class Link:
    """Sends calls to the server, or to the nodes of a cluster, and gives their replies.

    It raises StoreUnavailable for whatever goes wrong, and never sends again what a server may
    have executed. Not thread-safe.
    """

    def __init__(self, url: str, promise: Promise) -> None:
        self._url = url
        self._promise = promise
        self._options: dict[str, Any] = {
            "protocol": 2,
            "socket_timeout": SOCKET_SECONDS + promise.seconds,
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
        }
        self._place, self._pool = _pool(url, self._options, self._connected)
        self._cluster: Any = None
        self._mode = ""
        self._mapped = True
        self.histories: set[str] = set()
        """The runs of servers that answered; a new one may have lost commits."""

    def in_cluster(self) -> bool:
        """Whether the server is a node of a cluster."""
        with self._guard():
            self._connect()
            return self._cluster is not None

    def exchange(self, calls: Sequence[Call], durable: bool = False) -> list[Any]:
        """The replies to `calls`, in one round trip where nothing is amiss.

        `durable` has every node wait for what the promise says, and raises where it is not kept.
        """
        tries = [_Try(call) for call in calls]
        with self._guard():
            self._connect()
            todo = tries
            for attempt in range(ATTEMPTS):
                if attempt and self._cluster is not None:
                    clock.sleep(0.02 * (attempt - 1))
                    self._cluster.nodes_manager.initialize()
                self._round(todo, self._promise if durable else Promise())
                todo = [each for each in todo if each.refused()]
                if not todo:
                    return [each.reply for each in tries]
            raise todo[0].reply

    def spread(self, keys: Iterable[str]) -> list[str]:
        """As few of `keys` as reach every node that serves one of them."""
        with self._guard():
            self._connect()
            if self._cluster is None:
                return list(keys)[:1]
            nodes = {self._cluster.get_node_from_key(key).name: key for key in keys}
            return list(nodes.values())

    def close(self) -> None:
        """Close all connections."""
        self._pool.disconnect()
        if self._cluster is not None:
            self._cluster.close()

    def _connect(self) -> None:
        """Find out on first use whether there is a cluster, and after an error how it looks."""
        if not self._mode:
            self._pool.release(self._pool.get_connection())
        if self._mode == "cluster" and self._cluster is None:
            self._cluster = RedisCluster.from_url(
                self._url,
                redis_connect_func=self._greet,
                require_full_coverage=False,
                **self._options,
            )
        elif self._cluster is not None and not self._mapped:
            self._cluster.nodes_manager.initialize()
        self._mapped = True

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        self._greet(connection)

    def _greet(self, connection: Any) -> None:
        """Learn from a new connection which server this is: its kind, version and history."""
        hello = _ask(connection, "HELLO") or []
        facts = dict(zip(hello[::2], hello[1::2], strict=False))
        version = facts.get(b"version", b"").decode()
        if version and tuple(map(int, version.split(".")[:2])) < (6, 2):
            raise StoreUnusable(f"FEEDBACK_STORE: Redis 6.2 or newer is needed, not {version}")
        self._mode = facts.get(b"mode", b"standalone").decode()
        info = (_ask(connection, "INFO", "server") or b"") + (
            _ask(connection, "INFO", "replication") or b""
        )
        history = [
            line for line in info.split(b"\r\n") if line.startswith((b"run_id:", b"master_replid:"))
        ]
        # a user who may not ask INFO reads everything again after each reconnect
        self.histories.add(b" ".join(history).decode() or secrets.token_hex(8))

    def _round(self, tries: Iterable[_Try], promise: Promise) -> None:
        """Send every node its calls, then read the replies."""
        lines: dict[str, _Line] = {}
        try:
            for each in tries:
                name, pool = self._route(each)
                if name not in lines:
                    lines[name] = _Line(pool, pool.get_connection(), [])
                lines[name].tries.append(each)
            for line in lines.values():
                words = [
                    words
                    for each in line.tries
                    for words in ((("ASKING",),) if each.ask else ()) + (each.words(),)
                ]
                words += [promise.words] if promise.words else []
                line.connection.send_packed_command(line.connection.pack_commands(words))
            for line in lines.values():
                for each in line.tries:
                    if each.ask:
                        _receive(line.connection)
                    each.reply = _receive(line.connection)
                kept = _receive(line.connection) if promise.words else ()
                line.clean = True
                _check(promise, kept)
        finally:
            for line in lines.values():
                if not line.clean:
                    line.connection.disconnect()
                line.pool.release(line.connection)

    def _route(self, each: _Try) -> tuple[str, Any]:
        """The node that a call goes to, and its connections."""
        if self._cluster is None:
            return "", self._pool
        if each.ask:
            node = self._cluster.get_node(host=each.ask.host, port=each.ask.port)
        else:
            node = self._cluster.get_node_from_key(each.call.key)
        return node.name, self._cluster.get_redis_connection(node).connection_pool

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Raise as StoreUnavailable whatever redis-py raises."""
        try:
            yield
        except (
            exceptions.RedisError,
            exceptions.RedisClusterException,
            OSError,
            UnicodeError,
        ) as error:
            self._mapped = False
            kind = _kind(error)
            if kind == "readonly":
                self._pool.disconnect()  # the name may lead to the new master by now
            raise StoreUnavailable(kind, f"{self._place}: {error}") from error


def _pool(url: str, options: Mapping[str, Any], connected: Any) -> tuple[str, Any]:
    """Where `url` leads, for messages, and its connections, none of them open yet.

    Raises ConfigurationError for a URL that makes no sense; no message shows its password.
    """
    try:
        parts = urlsplit(url)
        database = parts.path.strip("/")
        if parts.scheme not in ("redis", "rediss") or not parts.hostname:
            raise ValueError("use redis://[[user]:password@]host[:port][/database] or rediss://…")
        if database and not (database.isascii() and database.isdigit()):
            raise ValueError(f"{database!r} is no number of a database")
        parts.hostname.encode("idna")
        pool: Any = ConnectionPool.from_url(url, redis_connect_func=connected, **options)
        pool.make_connection()  # built, not opened: an option that does not exist shows here
    except (ValueError, TypeError, exceptions.RedisError) as error:
        raise ConfigurationError(f"FEEDBACK_STORE: {error}") from None
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}/{database}", pool


def _receive(connection: Any) -> Any:
    """The next reply; an error reply is returned, since the connection is in order."""
    try:
        return connection.read_response()
    except exceptions.ResponseError as error:
        return error


def _ask(connection: Any, *words: str) -> Any:
    """The reply to a question that a server need not answer; None where it does not."""
    connection.send_command(*words, check_health=False)
    reply = _receive(connection)
    return None if isinstance(reply, exceptions.ResponseError) else reply


def _check(promise: Promise, kept: Any) -> None:
    """Raises StoreUnavailable where `kept`, the answer of WAIT or WAITAOF, is too little."""
    if isinstance(kept, Exception):
        raise StoreUnavailable("durability", f"{promise.words[0]}: {kept}")
    counts = kept if isinstance(kept, (list, tuple)) else (kept,)
    if any(count < least for count, least in zip(counts, promise.least, strict=True)):
        raise StoreUnavailable("durability", f"{promise.words}: reached only {tuple(counts)}")


def _kind(error: BaseException) -> str:
    """A label of few values for what went wrong."""
    for kind, classes in _KINDS:
        if isinstance(error, classes):
            return kind
    for kind, signs in _SIGNS:
        if any(sign in str(error) for sign in signs):
            return kind
    return "other"


_KINDS: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (
    (
        "auth",
        (
            exceptions.AuthenticationError,
            exceptions.AuthorizationError,
            exceptions.AuthenticationWrongNumberOfArgsError,
            exceptions.NoPermissionError,
        ),
    ),
    ("loading", (exceptions.BusyLoadingError,)),
    ("readonly", (exceptions.ReadOnlyError,)),
    ("oom", (exceptions.OutOfMemoryError,)),
    ("timeout", (exceptions.TimeoutError,)),
    (
        "cluster",
        (
            exceptions.ClusterError,
            exceptions.RedisClusterException,
            exceptions.AskError,
            exceptions.TryAgainError,
        ),
    ),
    ("unreachable", (exceptions.ConnectionError, OSError, UnicodeError)),
)
_SIGNS = (  # of errors that Redis 6 wraps in its own words, or that redis-py does not know
    ("oom", ("OOM",)),
    ("readonly", ("READONLY", "MISCONF")),
    ("durability", ("NOREPLICAS",)),
    ("auth", ("NOPERM", "can't run this command")),
)


# --- the store -------------------------------------------------------------------------------


class Known(NamedTuple):
    """The last commit of a model that the mirror is whole up to."""

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
    """The digests that are new, as far as is known."""
    fresh_epoch: str = ""
    digests: list[bytes] = field(default_factory=list)
    """The digests sent, in order."""
    verdicts: list[bool] = field(default_factory=list)
    delta: Delta = field(default_factory=Delta)


class RedisStore:
    """Counters in Redis; any number of replicas may commit to it at once."""

    def __init__(self, url: str, dedup_ttl: int, durability: str = "none") -> None:
        self._ttl = dedup_ttl
        self._link = Link(url, promise(durability))
        self._lock = threading.Lock()
        self._mirror_lock = threading.Lock()
        self._mirror = Mirror()
        self._known: dict[str, Known] = {}
        self._behind: set[str] = set()
        self._suspect: set[str] = set()
        self._renew: dict[str, str] = {}
        self._listed: set[str] = set()
        self._birth: Any = None
        self._change = 0
        self._histories = 0
        self._next_look = 0.0
        self._seen = 0
        self._count_again = 0.0
        self._swept = 0
        self._checked = False
        self.losses = 0
        """How often a model's data turned out to be lost."""
        try:
            self._look()
        except StoreUnavailable as error:
            self._rest()
            logger.warning("store is not ready (%s): %s", error.kind, error)

    # --- the contract ------------------------------------------------------------------------

    def commit(self, batch: Sequence[Entry], now: float) -> list[bool]:
        """Add what is new of `batch`, atomically for each model; see `store.Store.commit`.

        Where it raises StoreUnavailable, any of the batch may be counted: the same entries
        committed again are then duplicates. An id is a duplicate within its model only.
        """
        with self._lock:
            try:
                self._check_format()
                verdicts = self._commit(_shares(batch), now) if batch else self._probe(now)
            except StoreUnavailable:
                self._rest()
                raise
            if self._next_look - clock.monotonic() > CATCH_UP_SECONDS:
                self._next_look = 0.0  # the server is back
            return verdicts

    def read(self) -> State:
        """A consistent copy; sees commits of other replicas within a second.

        Where the server cannot be read it answers from memory, and where a commit is under way
        it does not wait for it.
        """
        if clock.monotonic() >= self._next_look and self._lock.acquire(False):
            try:
                self._look()
            except StoreUnavailable:
                self._rest()
            finally:
                self._lock.release()
        with self._mirror_lock:
            return self._mirror.read()

    def housekeep(self, now: float) -> None:
        """Forget expired panes, and of a few models some digests past their time."""
        with self._lock:
            with self._mirror_lock:
                models = self._mirror.read().models
            old = {
                model: names
                for model, state in models.items()
                if (names := [_name(pane) for pane in state.panes if expired(pane, now)])
            }
            turn = list(models)[self._swept : self._swept + SWEEP_MODELS]
            self._swept = self._swept + SWEEP_MODELS if turn else 0
            calls = [
                run(SWEEP, _keys(model, "seen", "panes"), now - self._ttl, SWEEP_DIGESTS, *names)
                for model in {*turn, *old}
                for names in (old.get(model, ()),)
            ]
            if calls:
                self._link.exchange(calls)
            if old:
                with self._mirror_lock:
                    self._mirror.expire(now)

    def seen(self) -> int:
        """How many digests are remembered; counting takes a hundredth of the time at most."""
        if clock.monotonic() >= self._count_again and self._lock.acquire(False):
            try:
                began = clock.monotonic()
                self._seen = sum(
                    self._link.exchange([Call(key, ("ZCARD", key)) for key in self._every("seen")])
                )
                self._count_again = clock.monotonic() + 100 * (clock.monotonic() - began)
            except StoreUnavailable:
                self._count_again = clock.monotonic() + RECOVER_SECONDS
            finally:
                self._lock.release()
        return self._seen

    def reset(self, model: str) -> bool:
        """Forget all of one model but its digests; other replicas notice by the epoch."""
        with self._lock:
            for _ in range(ATTEMPTS):
                self._load({model})
                epoch = self._known.get(model, Known()).epoch
                if model not in self._mirror:
                    return False
                name, _, resets = epoch.partition(".")
                if self._restart({model: epoch}, {model: f"{name}.{int(resets) + 1}"}, "")[0] >= 0:
                    self._load({model})
                    return True
            raise StoreUnavailable("contended", f"{model}: other writers were always faster")

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            self._link.close()

    # --- one commit --------------------------------------------------------------------------

    def _commit(self, shares: list[Share], now: float) -> list[bool]:
        """Commit every share; the verdicts by place in the batch."""
        self._list(share.model for share in shares)
        if len(shares) > 1:
            self._claim(shares, now)
        verdicts = [False] * sum(len(share.entries) for share in shares)
        todo = shares
        for _ in range(ATTEMPTS):
            todo = self._try(todo, len(todo) < len(shares), now)
            if not todo:
                break
        else:
            raise StoreUnavailable("contended", "other writers were always faster")
        for share in shares:
            for place, verdict in zip(share.places, share.verdicts, strict=True):
                verdicts[place] = verdict
        return verdicts

    def _claim(self, shares: Sequence[Share], now: float) -> None:
        """Fix new constants before anything is counted.

        Else ConstantsDiffer of one model could be raised when another's share was counted, and
        its entries would be duplicates of themselves when they come again.
        """
        claims = []
        for share in shares:
            presupposed = [entry for entry in share.entries if entry.constants]
            known = self._mirror.constants(share.model)
            if any(entry.constants.keys() - known.keys() for entry in presupposed):
                delta = total(presupposed)
                claims.append(Share(share.model, delta=Delta(constants=delta.constants)))
        todo = claims
        for _ in range(ATTEMPTS):
            if not todo:
                return
            todo = self._try(todo, False, now)
        raise StoreUnavailable("contended", "other writers were always faster")

    def _try(self, shares: Sequence[Share], begun: bool, now: float) -> list[Share]:
        """Send each share as it is now known; returns those to be sent again.

        `begun` tells that shares of this batch are committed, too late for ConstantsDiffer.
        """
        try:
            calls = [self._plan(share, now) for share in shares]
        except ConstantsDiffer as error:
            if begun:
                raise StoreUnavailable("contended", f"constants changed: {error}") from None
            raise
        again = []
        stale = set()
        for share, reply in zip(shares, self._link.exchange(calls, durable=True), strict=True):
            if reply[0] == b"ok":
                self._apply(share, *reply[1:])
                continue
            again.append(share)
            if reply[0] == b"known":
                share.fresh -= {share.digests[int(at)] for at in reply[1].split()}
            else:
                stale.add(share.model)
        if stale:
            self._load(stale)
        return again

    def _plan(self, share: Share, now: float) -> Call:
        """The call that commits `share`. Raises ConstantsDiffer as far as the mirror can tell."""
        model = share.model
        known = self._known.get(model, Known())
        if share.entries:
            new, duplicates, share.verdicts = split(share.entries, set(share.fresh))
            share.digests = [entry.digest for entry in new]
            share.delta = total(new, duplicates)
        check_constants(self._mirror, share.delta)
        with_created(self._mirror, share.delta, now)
        share.fresh_epoch = f"{secrets.token_hex(8)}.0"
        constants = share.delta.constants.get(model, {})
        in_force = {**constants, **self._mirror.constants(model)}  # equal, perhaps 1 for 1.0
        panes = [
            (_name(pane), _seconds_left(pane, now), *_cells(vector))
            for (_, pane), vector in share.delta.counters.items()
        ]
        arguments = {
            "model": model,
            "changes": not self._link.in_cluster(),
            "epoch": known.epoch,
            "sequence": known.sequence,
            "fresh": share.fresh_epoch,
            "now": repr(now),
            "forget": repr(now - self._ttl),
            "keep": 2 * self._ttl,
            "constants": [text for name in constants for text in (name, _json(in_force[name]))],
            "gauges": [
                text
                for (family, labels), gauge in share.delta.gauges.get(model, {}).items()
                for text in (encode_key(family, labels), _text(gauge.time), _text(gauge.value))
            ],
            "panes": panes,
        }
        keys = _keys(model, "meta", "panes", "constants", "gauges", "seen")
        keys.append(CHANGES if arguments["changes"] else keys[0])
        keys.extend(_keys(model, *(f"pane:{pane[0]}" for pane in panes)))
        return run(COMMIT, keys, b"".join(share.digests), orjson.dumps(arguments))

    def _apply(self, share: Share, sequence: int, change: int, exact: int) -> None:
        """Take what was committed into the mirror.

        Where other replicas committed in between, the mirror is the sum of whole commits still,
        but lacks theirs until the next look.
        """
        known = self._known.get(share.model) or Known(share.fresh_epoch)
        self._known[share.model] = known
        if sequence == known.sequence + 1:
            self._known[share.model] = Known(known.epoch, sequence)
        else:
            self._behind.add(share.model)
        if change == self._change + 1:
            self._change = change
        if not exact:
            self._suspect.add(share.model)
        with self._mirror_lock:
            for (model, pane), vector in share.delta.counters.items():
                self._mirror.add(model, pane, vector)
            apply_rest(self._mirror, share.delta)
            self._mirror.sequence += 1

    def _probe(self, now: float) -> list[bool]:
        """Write something to every node that is known to hold a model."""
        for key in self._link.spread(["fdmt:probe", *self._every("probe")]):
            self._link.exchange([Call(key, ("SET", key, repr(now), "EX", 86400))], durable=True)
        return []

    def _list(self, models: Iterable[str]) -> None:
        """Have every model listed where other replicas look, before it is first committed to."""
        new = [model for model in models if model not in self._listed]
        if new:
            if self._link.in_cluster():
                self._link.exchange([Call(MODELS, ("SADD", MODELS, *new))])
            self._listed.update(new)

    # --- catching up -------------------------------------------------------------------------

    def _look(self) -> None:
        """Load what other replicas committed, if they did."""
        self._check_format()
        changed, change = self._changed_models() if self._link.in_cluster() else self._changes()
        if len(self._link.histories) > self._histories:
            self._histories = len(self._link.histories)
            self._suspect.update(self._known)
        self._load(changed | self._behind)
        self._change = change
        self._next_look = clock.monotonic() + CATCH_UP_SECONDS

    def _changes(self) -> tuple[set[str], int]:
        """The models committed to since the last look, and the number of the last commit."""
        births, rows = self._link.exchange(
            [
                Call(CHANGES, ("ZRANGEBYSCORE", CHANGES, 0, 0)),
                Call(CHANGES, ("ZRANGEBYSCORE", CHANGES, self._change, "+inf", "WITHSCORES")),
            ]
        )
        if (births and births[0] != self._birth) or (not rows and self._change):
            # never read before, or not the keys that were read before
            self._suspect.update(self._known)
            self._birth = births[0] if births else None
            rows = self._link.exchange(
                [Call(CHANGES, ("ZRANGEBYSCORE", CHANGES, 0, "+inf", "WITHSCORES"))]
            )[0]
            self._change = 0
        numbers = {
            row.decode(): int(number) for row, number in zip(rows[::2], rows[1::2], strict=True)
        }
        changed = {model for model, number in numbers.items() if number > self._change}
        return changed, max(numbers.values(), default=0)

    def _changed_models(self) -> tuple[set[str], int]:
        """The models of a cluster whose meta is not as known."""
        (members,) = self._link.exchange([Call(MODELS, ("SMEMBERS", MODELS))])
        models = list({member.decode() for member in members} | self._known.keys())
        metas = self._link.exchange(
            [
                Call(key, ("HMGET", key, "epoch", "sequence"))
                for key in (_keys(model, "meta")[0] for model in models)
            ]
        )
        return {
            model
            for model, (epoch, sequence) in zip(models, metas, strict=True)
            if Known((epoch or b"").decode(), int(sequence or 0)) != self._known.get(model, Known())
        }, 0

    def _load(self, models: Iterable[str]) -> None:
        """Make the mirror equal the server for `models`, and for all that are suspect."""
        todo: dict[str, Loading] = {}
        while True:
            for model in {*models, *self._suspect, *self._renew} - todo.keys():
                ...
