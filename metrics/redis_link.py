"""The way to a Redis or Valkey server, or to the nodes of a cluster: what never sends twice.

redis-py opens connections and knows a cluster's map. Sending and receiving is done here, because
its own retries, and its cluster pipeline's, send a command again when its reply was lost: a commit
would then find its own digests and call its entries duplicates. Here only that is sent again which
a server says it did not execute: an unknown script, a slot that is elsewhere.
"""

from __future__ import annotations

import logging
import secrets
import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from redis import exceptions
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.connection import ConnectionPool
from redis.retry import Retry

from .errors import ConfigurationError, StoreUnavailable, StoreUnusable
from .urls import redacted

logger = logging.getLogger("metrics.store")

SOCKET_SECONDS = 5.0
"""How long a server may take to answer, besides what the durability setting has it wait."""
CONNECT_SECONDS = 2.0
ATTEMPTS = 10
"""How often a call is sent that is not executed."""


class Script(NamedTuple):
    """A Lua script, and the name a server knows it by once it has run it."""

    text: str
    sha: str


def script(text: str) -> Script:
    """The script of that text."""
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


class Call(NamedTuple):
    """A command, for the node that serves `key`; or, with `script`, its keys and arguments."""

    key: str
    words: tuple[Any, ...]
    script: Script | None = None


def run(script: Script, keys: Sequence[str], *arguments: Any) -> Call:
    """The call that runs `script`."""
    return Call(keys[0], (len(keys), *keys, *arguments), script)


class Promise(NamedTuple):
    """What a commit waits for before it is acknowledged."""

    words: tuple[Any, ...] = ()
    """The command that waits; empty for none."""
    least: tuple[int, ...] = ()
    """What it must answer, at least."""
    seconds: float = 0.0


NO_PROMISE = Promise()


def promise(setting: str) -> Promise:
    """What `FEEDBACK_REDIS_DURABILITY` promises. Raises ConfigurationError for nonsense.

    `none`: an acknowledged event is in the server's memory, and on disk as its `appendfsync`
    says: with `always` before the acknowledgement, with `everysec` within two seconds.
    `wait:REPLICAS:MS`: it is also in the memory of that many replicas of the server, so that
    a failover to one of those keeps it.
    `waitaof:LOCAL:REPLICAS:MS`: it is on the disk of the server (LOCAL 1) and of that many
    replicas. Needs Redis 7.2 or Valkey, `appendonly yes`, and `appendfsync` `always`, or
    `everysec`: a commit then waits for the next second.

    What is not reached within MS milliseconds is answered 503: the event may be counted then,
    and its retry is a duplicate.
    """
    kind, *texts = setting.strip().split(":")
    if kind == "none" and not texts:
        return NO_PROMISE
    if all(text.isascii() and text.isdigit() for text in texts):
        *least, milliseconds = map(int, texts or ["0"])
        sound = milliseconds > 0 and any(least)
        promised = Promise((kind.upper(), *least, milliseconds), tuple(least), milliseconds / 1000)
        if sound and kind == "wait" and len(least) == 1:
            return promised
        if sound and kind == "waitaof" and len(least) == 2 and least[0] <= 1:
            return promised
    raise ConfigurationError(
        f"FEEDBACK_REDIS_DURABILITY: {setting!r}: use none, wait:REPLICAS:MS or "
        "waitaof:LOCAL:REPLICAS:MS, with LOCAL 0 or 1, and something to wait for"
    )


@dataclass(slots=True)
class _Try:
    """A call under way: how it is sent next, and what came back."""

    call: Call
    whole: bool = False
    """Whether the script's text is sent, for a server that does not know it."""
    ask: exceptions.AskError | None = None
    """Who serves the key for now, while its slot is moving."""
    moved: bool = False
    """Whether the map of the cluster led to the wrong node."""
    reply: Any = None

    def commands(self) -> list[tuple[Any, ...]]:
        """What to send."""
        script = self.call.script
        if script is None:
            words = self.call.words
        elif self.whole:
            words = ("EVAL", script.text, *self.call.words)
        else:
            words = ("EVALSHA", script.sha, *self.call.words)
        return [("ASKING",), words] if self.ask else [words]

    def refused(self) -> bool:
        """Whether it was not executed, and can be sent again. Raises any other error."""
        error, self.ask, self.moved = self.reply, None, False
        if not isinstance(error, Exception):
            return False
        if isinstance(error, exceptions.NoScriptError):
            self.whole = True
        elif isinstance(error, _MOVED):
            self.moved = True
        elif isinstance(error, exceptions.AskError):
            self.ask = error
        else:
            raise error
        return True


def _nothing() -> None:
    """What is done meanwhile where nothing is to be done."""


_MOVED = (exceptions.MovedError, exceptions.TryAgainError, exceptions.ClusterDownError)


@dataclass(slots=True)
class _Line:
    """One node's connection during one round trip."""

    pool: Any
    connection: Any
    tries: list[_Try]
    clean: bool = False
    """Whether every reply was read, so that the connection can serve again."""


class Link:
    """Sends calls and gives their replies. Raises StoreUnavailable for whatever goes wrong.

    Not thread-safe.
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
        self._place, self._pool = _pool(url, self._options, promise, self._on_connect)
        self._cluster: Any = None
        self._mode = ""
        self._lost_map = False
        self._histories: dict[str, str] = {}
        self._policies: dict[str, bytes] = {}
        self._doubts: set[str] = set()

    def in_cluster(self) -> bool:
        """Whether the server is a node of a cluster."""
        if not self._mode:
            with self._guard():
                self._connect()
        return self._cluster is not None

    def exchange(
        self,
        calls: Sequence[Call],
        durable: bool = False,
        meanwhile: Callable[[], None] = _nothing,
    ) -> list[Any]:
        """The replies to `calls`, in one round trip where nothing is amiss.

        `durable` has every node wait for what was promised, and raises where it is not reached.
        `meanwhile` is called once, as soon as all are sent.
        """
        with self._guard():
            self._connect()
            todo = tries = [_Try(call) for call in calls]
            for attempt in range(ATTEMPTS):
                if any(each.moved for each in todo):
                    clock.sleep(0.02 * (attempt - 1))
                    self._cluster.nodes_manager.initialize()
                self._round(todo, self._promise if durable else NO_PROMISE, meanwhile)
                meanwhile = _nothing
                todo = [each for each in todo if each.refused()]
                if not todo or (self._cluster is None and todo[0].moved):
                    break
            if todo:
                raise todo[0].reply
            return [each.reply for each in tries]

    def in_doubt(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` whose server may lack commits: it restarted, took over, or is new here.

        Each answer is given once.
        """
        with self._guard():
            doubts = self._doubts.copy()
            if doubts and self._cluster is not None:
                keys = [key for key in keys if self._cluster.get_node_from_key(key).name in doubts]
            self._doubts.clear()
            return list(keys) if doubts else []

    def spread(self, keys: Sequence[str]) -> list[str]:
        """As few of `keys` as reach every node that serves any of them."""
        if not self.in_cluster():
            return list(keys[:1])
        with self._guard():
            return list({self._cluster.get_node_from_key(key).name: key for key in keys}.values())

    def close(self) -> None:
        """Close all connections."""
        self._pool.disconnect()
        if self._cluster is not None:
            self._cluster.close()

    def _connect(self) -> None:
        """Find out at first whether there is a cluster; and after an error, how it looks now."""
        if not self._mode:
            self._pool.release(self._pool.get_connection())
        if self._mode == "cluster" and self._cluster is None:
            self._cluster = RedisCluster.from_url(
                self._url,
                redis_connect_func=self._greet,
                require_full_coverage=False,
                **self._options,
            )
        elif self._cluster is not None and self._lost_map:
            self._cluster.nodes_manager.initialize()
        self._lost_map = False

    def _on_connect(self, connection: Any) -> None:
        connection.on_connect()
        try:
            self._greet(connection)
        except StoreUnusable:
            connection.disconnect()
            raise

    def _greet(self, connection: Any) -> None:
        """Learn what a new connection leads to: kind and version of the server, and its history."""
        hello = _ask(connection, "HELLO") or []
        facts = dict(zip(hello[::2], hello[1::2], strict=False))
        version = facts.get(b"version", b"").decode()
        if version and tuple(map(int, version.split(".")[:2])) < (6, 2):
            raise StoreUnusable(f"FEEDBACK_STORE: Redis 6.2 or newer is needed, not {version}")
        self._mode = facts.get(b"mode", b"standalone").decode()
        lines = [
            line
            for section in ("server", "replication")
            for line in (_ask(connection, "INFO", section) or b"").split(b"\r\n")
            if line.startswith((b"run_id:", b"master_replid:"))
        ]
        # whoever may not ask INFO has every reconnect taken for another history
        history = b" ".join(lines).decode() or secrets.token_hex(8)
        name = f"{connection.host}:{connection.port}"
        if self._histories.get(name) != history:
            self._histories[name] = history
            self._doubts.add(name)
            self._warn_of_eviction(connection, name)

    def _warn_of_eviction(self, connection: Any, name: str) -> None:
        """Warn of a server that evicts keys, once, if it tells."""
        memory = _ask(connection, "INFO", "memory") or b""
        _, _, rest = memory.partition(b"maxmemory_policy:")
        policy = rest.split(b"\r\n", 1)[0]
        if policy not in (b"", b"noeviction", self._policies.get(name)):
            logger.warning(
                "Redis at %s has maxmemory-policy %s: when its memory is full it forgets events "
                "that were acknowledged; set noeviction",
                name,
                policy.decode(errors="replace"),
            )
        self._policies[name] = policy

    def _round(
        self, tries: Iterable[_Try], promise: Promise, meanwhile: Callable[[], None]
    ) -> None:
        """Send every node its calls, then read the replies."""
        lines: dict[str, _Line] = {}
        try:
            for each in tries:
                name, pool = self._route(each)
                if name not in lines:
                    lines[name] = _Line(pool, pool.get_connection(), [])
                lines[name].tries.append(each)
            for line in lines.values():
                commands = [words for each in line.tries for words in each.commands()]
                if promise.words:
                    commands.append(promise.words)
                line.connection.send_packed_command(line.connection.pack_commands(commands))
            meanwhile()
            for line in lines.values():
                for each in line.tries:
                    each.reply = [_receive(line.connection) for _ in each.commands()][-1]
                reached = _receive(line.connection) if promise.words else ()
                line.clean = True
                if not any(isinstance(each.reply, Exception) for each in line.tries):
                    _check(promise, reached)
        finally:
            for line in lines.values():
                if not line.clean:
                    line.connection.disconnect()
                line.pool.release(line.connection)

    def _route(self, each: _Try) -> tuple[str, Any]:
        """The node that a call goes to, and its connections."""
        if self._cluster is None:
            return "", self._pool
        node = None
        if each.ask:
            node = self._cluster.get_node(host=each.ask.host, port=each.ask.port)
        node = node or self._cluster.get_node_from_key(each.call.key)
        return node.name, self._cluster.get_redis_connection(node).connection_pool

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Raise as StoreUnavailable whatever redis-py raises."""
        try:
            yield
        except _ERRORS as error:
            self._lost_map = True
            kind = _kind(error)
            if kind == "readonly":
                self._pool.disconnect()  # the name may lead to another master by now
            raise StoreUnavailable(kind, f"{self._place}: {error}") from error


def _pool(
    url: str, options: Mapping[str, Any], promise: Promise, on_connect: Any
) -> tuple[str, Any]:
    """Where `url` leads, for messages, and its connections, none of them open yet.

    Raises ConfigurationError for a URL that makes no sense; no message shows its password.
    """
    shown = f"FEEDBACK_STORE: {redacted(url)}"
    try:
        parts = urlsplit(url)
        database = parts.path.strip("/")
        if "@" in parts.path + parts.query + parts.fragment:
            raise ConfigurationError(f"{shown}: write / ? # of a password as %2F %3F %23")
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.port == 0:
            raise ValueError
        if database and not (database.isascii() and database.isdigit()):
            raise ConfigurationError(f"{shown}: its path is no number of a database")
        parts.hostname.encode("idna")
        pool: Any = ConnectionPool.from_url(url, redis_connect_func=on_connect, **options)
        settings = pool.connection_kwargs
        if settings["protocol"] != 2 or settings.get("decode_responses"):
            raise ConfigurationError(f"{shown}: protocol and decode_responses cannot be chosen")
        if settings["socket_timeout"] <= promise.seconds:
            raise ConfigurationError(
                f"{shown}: socket_timeout must be longer than FEEDBACK_REDIS_DURABILITY's MS"
            )
        pool.make_connection()  # made, not opened: an option that does not exist shows here
    except (ValueError, TypeError, exceptions.RedisError):  # their texts may show a password
        raise ConfigurationError(
            f"{shown}: use redis://[[user]:password@]host[:port][/database], or rediss://, "
            "perhaps with ?option=value of redis-py"
        ) from None
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}/{database}", pool


def _receive(connection: Any) -> Any:
    """The next reply; an error reply is returned, since the connection is in order."""
    try:
        return connection.read_response()
    except exceptions.ResponseError as error:
        return error


def _ask(connection: Any, *words: str) -> Any:
    """The reply to a question that a server need not understand or allow; None where not."""
    connection.send_command(*words, check_health=False)
    reply = _receive(connection)
    return None if isinstance(reply, Exception) else reply


def _check(promise: Promise, reached: Any) -> None:
    """Raises StoreUnavailable where `reached`, the reply of WAIT or WAITAOF, is too little."""
    if isinstance(reached, Exception):
        raise StoreUnavailable("durability", f"{promise.words[0]}: {reached}")
    counts = tuple(reached) if isinstance(reached, (list, tuple)) else (reached,)
    if any(count < least for count, least in zip(counts, promise.least, strict=True)):
        asked = " ".join(map(str, promise.words))
        raise StoreUnavailable("durability", f"{asked}: reached only {counts}")


def _kind(error: BaseException) -> str:
    """A label of few values for what went wrong."""
    for kind, classes in _KINDS:
        if isinstance(error, classes):
            return kind
    for kind, signs in _SIGNS:
        if any(sign in str(error) for sign in signs):
            return kind
    return "other"


_ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError, UnicodeError)
_KINDS: tuple[tuple[str, tuple[type[BaseException], ...]], ...] = (
    (
        "auth",
        (
            exceptions.AuthenticationError,
            exceptions.AuthorizationError,
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
_SIGNS = (  # of errors that Redis 6 wraps in words of its own, or that redis-py does not know
    ("oom", ("OOM ",)),
    ("readonly", ("READONLY", "MISCONF")),
    ("durability", ("NOREPLICAS",)),
    ("auth", ("NOPERM", "can't run this command")),
)
