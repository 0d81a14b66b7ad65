"""A Knative broker for a laptop: one process, loopback only, nothing stored.

It answers as Knative's multi-tenant broker over an in-memory channel does: `Broker._ingress`
is the ingress, `Broker._dispatch` the channel's dispatcher, `_as_filter` broker-filter's view
of an answer. As there, a producer's POST ends only when every matching Trigger's delivery has,
and a reply enters again through the front door.

    python examples/broker.py --address feedback-metrics=http://127.0.0.1:8080 \\
        knative/base/trigger.yaml
    curl http://127.0.0.1:8081/outcomes
"""

from __future__ import annotations

import argparse
import base64
import collections
import email.utils
import http.client
import ipaddress
import json
import re
import signal
import socket
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from examples.activator import Activator

TTL, FULL_TTL, ARRIVAL = "knativebrokerttl", 255, "knativearrivaltime"
ROOT = "Dev-Broker-Root"  # on a reply: which produced event it descends from
PASSED_ON = re.compile(r"x-request-id|knative-.*|x-b3-.*", re.IGNORECASE)
UNQUOTED = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


# --- events ---------------------------------------------------------------------------------


class Malformed(ValueError):
    """Raised when something calls itself a CloudEvent and cannot be read as one."""


@dataclass(frozen=True)
class Event:
    """One CloudEvent: attributes in their string form (`datacontenttype` too), and data."""

    attributes: Mapping[str, str]
    data: bytes = b""

    def having(self, **attributes: str | None) -> Event:
        """A copy with these attributes set; None takes one away."""
        merged = {**self.attributes, **attributes}
        return Event({name: text for name, text in merged.items() if text is not None}, self.data)


def encode(event: Event, structured: bool = False) -> tuple[dict[str, str], bytes]:
    """Headers and body of `event`, in binary mode unless told otherwise."""
    media_type = event.attributes.get("datacontenttype", "")
    if structured:
        document: dict[str, Any] = dict(event.attributes)
        if "json" in media_type and event.data:
            document["data"] = json.loads(event.data)
        elif event.data:
            document["data_base64"] = base64.b64encode(event.data).decode()
        return {"Content-Type": "application/cloudevents+json"}, json.dumps(document).encode()
    headers = {
        f"ce-{name}": urllib.parse.quote(text, safe=UNQUOTED)
        for name, text in event.attributes.items()
        if name != "datacontenttype"
    }
    return {**headers, **({"Content-Type": media_type} if media_type else {})}, event.data


def decode(headers: Mapping[str, str], body: bytes) -> Event | None:
    """The CloudEvent of a request or an answer, perhaps an invalid one; None if it is none.

    Raises Malformed for a batch and for structured JSON that does not parse.
    """
    lower = {name.lower(): text for name, text in headers.items()}
    media_type = lower.get("content-type", "").split(";")[0].strip().lower()
    if media_type == "application/cloudevents+json":
        return _decode_structured(body)
    if media_type.startswith("application/cloudevents"):
        raise Malformed(f"{media_type} is not taken")
    if lower.get("ce-specversion") not in ("0.3", "1.0"):
        return None
    attributes = {
        name[3:]: urllib.parse.unquote(text)
        for name, text in lower.items()
        if name.startswith("ce-")
    }
    if media_type:
        attributes["datacontenttype"] = lower["content-type"]
    return Event(attributes, body)


def _decode_structured(body: bytes) -> Event:
    try:
        document = json.loads(body)
        data = base64.b64decode(document.pop("data_base64", ""), validate=True)
    except (ValueError, TypeError, AttributeError) as error:
        raise Malformed(f"no event in JSON: {error}") from error
    if "data" in document:
        value = document.pop("data")
        media_type = str(document.setdefault("datacontenttype", "application/json"))
        is_text = isinstance(value, str) and "json" not in media_type
        data = (value if is_text else json.dumps(value)).encode()
    return Event(
        {
            name: text if isinstance(text, str) else json.dumps(text)
            for name, text in document.items()
            if text is not None
        },
        data,
    )


# --- what is configured ---------------------------------------------------------------------


def seconds(duration: str | None) -> float:
    """Seconds of an ISO 8601 duration of days and less, as in `PT0.2S`; 0 for None."""
    number = r"(?:(\d+(?:\.\d+)?)%s)?"
    pattern = "P" + number % "D" + "(?:T" + "".join(number % unit for unit in "HMS") + ")?"
    found = re.fullmatch(pattern, duration or "PT0S")
    if not found or not any(found.groups()):
        raise ValueError(f"{duration!r} is no ISO 8601 duration")
    days, hours, minutes, rest = (float(text or 0) for text in found.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=rest).total_seconds()


def on_loopback(url: str) -> str:
    """`url`; raises ValueError unless it is HTTP to this machine's loopback interface."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    with suppress(ValueError):
        if parts.scheme == "http" and ipaddress.ip_address(host).is_loopback:
            return url
    if parts.scheme == "http" and host == "localhost":
        return url
    raise ValueError(f"{url!r} is not on this machine's loopback interface")


@dataclass(frozen=True)
class Delivery:
    """The `spec.delivery` of a Broker or Trigger; the defaults are those of an empty one."""

    retry: int = 0
    backoff_policy: str = "exponential"
    backoff_delay: str = "PT0S"
    timeout: str | None = None
    retry_after_max: str | None = None
    dead_letter: str | None = None
    format: str = "binary"

    def __post_init__(self) -> None:
        if self.backoff_policy not in ("exponential", "linear"):
            raise ValueError(f"unknown backoff policy {self.backoff_policy!r}")
        if self.retry < 0:
            raise ValueError(f"retry is {self.retry}")
        for duration in (self.backoff_delay, self.timeout, self.retry_after_max):
            seconds(duration)
        if self.dead_letter is not None:
            on_loopback(self.dead_letter)

    def pause(self, retry: int, answer: Answer) -> float:
        """Seconds to wait before retry number `retry`, counted from 0."""
        steps = 2**retry if self.backoff_policy == "exponential" else retry
        backoff = seconds(self.backoff_delay) * steps
        if answer.status not in (429, 503):
            return backoff
        return max(backoff, min(_retry_after(answer), seconds(self.retry_after_max)))


DEFAULT_DELIVERY = Delivery(retry=10, backoff_policy="exponential", backoff_delay="PT0.2S")


@dataclass(frozen=True)
class Trigger:
    """Whom to call for which events; `filters` overrides `filter`, `delivery` the Broker's."""

    name: str
    subscriber: str
    filter: Mapping[str, str] = field(default_factory=dict)
    filters: Sequence[Mapping[str, Any]] = ()
    delivery: Delivery | None = None

    def __post_init__(self) -> None:
        on_loopback(self.subscriber)
        self.wants(Event({}))  # an unknown dialect speaks up now, not at the first event

    def wants(self, event: Event) -> bool:
        """Whether `event` passes this Trigger's filters."""
        if self.filters:
            return _passes({"all": self.filters}, event.attributes)
        return all(
            name in event.attributes and text in ("", event.attributes[name])
            for name, text in self.filter.items()
        )


def _passes(expression: Mapping[str, Any], attributes: Mapping[str, str]) -> bool:
    if len(expression) != 1:
        raise ValueError(f"a filter has one dialect, not {list(expression)}")
    ((dialect, argument),) = expression.items()
    if dialect in ("all", "any"):
        # Every part is looked at, so that a bad one is found when the Trigger is made.
        passed = [_passes(part, attributes) for part in argument]
        return all(passed) if dialect == "all" else any(passed)
    if dialect == "not":
        return not _passes(argument, attributes)
    tests: dict[str, Callable[[str, str], bool]] = {
        "exact": str.__eq__,
        "prefix": str.startswith,
        "suffix": str.endswith,
    }
    if dialect not in tests:
        raise ValueError(f"filter dialect {dialect!r} is not supported here")
    return all(
        name in attributes and tests[dialect](attributes[name], text)
        for name, text in argument.items()
    )


def delivery_of(spec: Mapping[str, Any], addresses: Mapping[str, str]) -> Delivery:
    """The Delivery of a manifest's `spec.delivery`; `addresses` are URLs by Service name."""
    given = {re.sub("([A-Z])", r"_\1", name).lower(): spec[name] for name in spec}
    sink = given.pop("dead_letter_sink", None)
    return Delivery(**given, dead_letter=_address_of(sink, addresses) if sink else None)


def _address_of(destination: Mapping[str, Any], addresses: Mapping[str, str]) -> str:
    if "ref" not in destination:
        return str(destination["uri"])
    name = destination["ref"]["name"]
    if name not in addresses:
        raise ValueError(f"{name!r} needs an address")
    return urllib.parse.urljoin(addresses[name], str(destination.get("uri", "")))


def read_manifests(
    documents: Iterable[Mapping[str, Any] | None], addresses: Mapping[str, str]
) -> tuple[Delivery, list[Trigger]]:
    """The Broker's delivery, and the Triggers, among Kubernetes manifests; others are skipped."""
    delivery, triggers = DEFAULT_DELIVERY, []
    for document in filter(None, documents):
        spec, kind = document.get("spec") or {}, document.get("kind")
        if kind not in ("Broker", "Trigger"):
            continue
        own = delivery_of(spec["delivery"], addresses) if "delivery" in spec else None
        if kind == "Broker":
            delivery = own or delivery
        else:
            subscriber = _address_of(spec["subscriber"], addresses)
            exact = (spec.get("filter") or {}).get("attributes") or {}
            filters = spec.get("filters") or ()
            triggers.append(Trigger(document["metadata"]["name"], subscriber, exact, filters, own))
    return delivery, triggers


# --- calls ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What one call came to: the status, or a 500 or 502 in the broker's words with a `reason`.

    `told` is whether the attributes of a dead letter tell of it.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    reply: Event | None = None
    reason: str = ""
    told: bool = True

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def retryable(self) -> bool:
        return self.status >= 500 or self.status in (404, 408, 409, 429)


def _as_filter(answer: Answer) -> Answer:
    """`answer` with its reply; a 2xx whose body is no event becomes a 502 that says nothing."""
    if not answer.ok:
        return answer
    try:
        reply = decode(answer.headers, answer.body)
    except Malformed as error:
        return Answer(502, reason=str(error), told=False)
    if reply is None and answer.body:
        return Answer(502, reason="a 2xx whose body is no CloudEvent", told=False)
    return replace(answer, reply=reply)


def _retry_after(answer: Answer) -> float:
    lower = {name.lower(): text for name, text in answer.headers.items()}
    text = lower.get("retry-after", "")
    if re.fullmatch("[0-9]{1,9}", text):
        return float(text)
    with suppress(ValueError, TypeError):
        return email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    return 0.0


class Context:
    """The life of one event at the front door; `cancel` ends every call made on its behalf."""

    def __init__(self, root: str, passed_on: Mapping[str, str]) -> None:
        self.root, self.passed_on = root, passed_on
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    @contextmanager
    def holding(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(connection)
        try:
            if self.cancelled.is_set():
                raise ConnectionAbortedError("the producer hung up")
            yield
        finally:
            with self._lock:
                self._open.discard(connection)

    def cancel(self) -> None:
        self.cancelled.set()
        with self._lock, suppress(OSError):
            for connection in self._open:
                connection.shutdown(socket.SHUT_RDWR)


def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    timeout: float | None = None,
    context: Context | None = None,
) -> Answer:
    """The answer to one POST; redirects are not followed. Raises OSError or HTTPException."""
    parts = urllib.parse.urlsplit(url)
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout)
    try:
        connection.connect()
        with (context or Context("", {})).holding(connection.sock):
            connection.request("POST", target, body, dict(headers))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


# --- the broker -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How one event fared at one Trigger.

    `what` is `delivered` (2xx, no reply), `replied` (and the broker took the reply),
    `dead-lettered`, `failed` (lost; the producer gets a 500) or `abandoned` (the producer hung
    up first). `statuses` and `times` (monotonic seconds at the end) have one entry for each
    call of the subscriber, status 0 where no answer came. `code` and `reason` say what failed.
    """

    trigger: str
    event: Event
    what: str
    statuses: tuple[int, ...]
    times: tuple[float, ...]
    reply: Event | None = None
    code: int = 0
    reason: str = ""

    @property
    def calls(self) -> int:
        return len(self.statuses)

    def __str__(self) -> str:
        reply = f", reply {self.reply.attributes.get('type')}" if self.reply else ""
        why = f" ({self.code} {self.reason})" if self.code else ""
        kind = self.event.attributes["type"]
        return f"{self.trigger}: {kind} {self.what}, calls {list(self.statuses)}{reply}{why}"


class Broker:
    """A broker that serves at `url` from the moment it exists until `close`.

    `passes` bounds how often a produced event and all its replies may enter: without a dead
    letter sink, the retries of a reply loop multiply at each of its 255 levels.
    """

    def __init__(
        self,
        triggers: Iterable[Trigger],
        *,
        delivery: Delivery = DEFAULT_DELIVERY,
        activators: Iterable[Activator] = (),
        namespace: str = "default",
        port: int = 0,
        passes: int = 1000,
        log: Callable[[Outcome], object] | None = None,
    ) -> None:
        self.triggers = tuple(triggers)
        self._delivery, self._namespace, self._passes, self._log = delivery, namespace, passes, log
        self._activators = {activator.origin: activator for activator in activators}
        self._changed = threading.Condition()
        self._outcomes: collections.deque[Outcome] = collections.deque(maxlen=10_000)
        self._passes_left: dict[str, int] = {}
        self._server = _Server(self, port)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops listening, and stops the activated processes."""
        self._server.shutdown()
        self._server.server_close()
        for activator in self._activators.values():
            activator.close()

    def publish(
        self, event: Event, *, structured: bool = False, headers: Mapping[str, str] | None = None
    ) -> int:
        """The status that a producer of `event` gets, once all Triggers are done with it."""
        own, body = encode(event, structured)
        return post(self.url, {**own, **(headers or {})}, body).status

    def outcomes(self, trigger: str | None = None) -> list[Outcome]:
        """What became of the events so far, oldest end first, perhaps at one Trigger only."""
        with self._changed:
            return [outcome for outcome in self._outcomes if trigger in (None, outcome.trigger)]

    def wait_for_outcomes(self, count: int, timeout: float = 10) -> list[Outcome]:
        """`outcomes()` as soon as there are `count`. Raises TimeoutError if there never are."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._outcomes) >= count, timeout):
                raise TimeoutError(f"{len(self._outcomes)} outcomes instead of {count}")
            return list(self._outcomes)

    def _ingress(self, event: Event, headers: Mapping[str, str], client: socket.socket) -> int:
        """The status for an event at the front door, after all its deliveries."""
        had = event.attributes.get(TTL, "")
        ttl = min(int(had), FULL_TTL) - 1 if re.fullmatch("[0-9]{1,9}", had) else FULL_TTL
        if ttl <= 0 or not all(event.attributes.get(name) for name in ("id", "source", "type")):
            return 400
        root = headers.get(ROOT) or uuid.uuid4().hex
        with self._changed:
            left = self._passes_left.get(root, self._passes) - 1
            self._passes_left[root] = left
        now = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
        context = Context(root, {**_passed_on(headers), "Kn-Namespace": self._namespace})
        try:
            if left < 0:
                return 400
            return self._fan_out(event.having(**{TTL: str(ttl), ARRIVAL: now}), context, client)
        finally:
            if ROOT not in headers:
                with self._changed:
                    del self._passes_left[root]

    def _fan_out(self, event: Event, context: Context, client: socket.socket) -> int:
        """The status after one delivery, in its own thread, to each Trigger that wants `event`."""
        done: list[Outcome] = []
        jobs = [
            threading.Thread(
                target=lambda to=trigger: done.append(self._dispatch(to, event, context)),
                daemon=True,
            )
            for trigger in self.triggers
            if trigger.wants(event)
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            while job.is_alive():
                job.join(0.02)
                if _hung_up(client):
                    context.cancel()
        lost = len(done) < len(jobs) or any(outcome.what == "failed" for outcome in done)
        return 500 if lost else 202

    def _dispatch(self, trigger: Trigger, event: Event, context: Context) -> Outcome:
        """Delivers to one Trigger: to the subscriber, then the reply or else the dead letter."""
        delivery = self._delivery if trigger.delivery is None else trigger.delivery
        calls: list[tuple[int, float]] = []

        def judge(answer: Answer) -> Answer:
            calls.append((0 if answer.reason else answer.status, time.monotonic()))
            return _as_filter(answer)

        sent, headers = event.having(**{TTL: None}), {**context.passed_on, "Prefer": "reply"}
        answer = self._send(trigger.subscriber, sent, headers, delivery, context, judge)
        target, reply, what = trigger.subscriber, answer.reply, "delivered"
        if reply is not None:
            target, what = self.url, "replied"
            sent, headers = reply.having(**{TTL: event.attributes[TTL]}), _passed_on(answer.headers)
            headers[ROOT] = context.root
            answer = self._send(target, sent, headers, delivery, context)
        if not answer.ok:
            what = "failed"
            if delivery.dead_letter is not None and not context.cancelled.is_set():
                sent, headers = _dead_letter(event, target, answer), dict(context.passed_on)
                if self._send(delivery.dead_letter, sent, headers, delivery, context).ok:
                    what = "dead-lettered"
        if context.cancelled.is_set():
            what = "abandoned"
        statuses, times = zip(*calls, strict=True)
        code, reason = (0, "") if answer.ok else (answer.status, answer.reason)
        outcome = Outcome(trigger.name, event, what, statuses, times, reply, code, reason)
        with self._changed:
            self._outcomes.append(outcome)
            self._changed.notify_all()
        if self._log:
            self._log(outcome)
        return outcome

    def _send(
        self,
        url: str,
        event: Event,
        headers: Mapping[str, str],
        delivery: Delivery,
        context: Context,
        judge: Callable[[Answer], Answer] | None = None,
    ) -> Answer:
        """The last answer after all retries; `judge` is put for the subscriber only."""
        own, body = encode(event, structured=judge is not None and delivery.format == "json")
        timeout = seconds(delivery.timeout) or None
        for retry in range(delivery.retry + 1):
            answer = self._attempt(url, {**own, **headers}, body, timeout, context)
            answer = judge(answer) if judge else answer
            if not answer.retryable or retry == delivery.retry:
                break
            if context.cancelled.wait(delivery.pause(retry, answer)):
                break
        return answer

    def _attempt(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        timeout: float | None,
        context: Context,
    ) -> Answer:
        started = time.monotonic()
        try:
            with ExitStack() as held:
                activator = self._activators.get(urllib.parse.urlsplit(url).netloc)
                if activator is not None:
                    held.enter_context(activator.awake(timeout))
                    # A cold start is part of the call: what it took is gone from the timeout.
                    timeout = timeout and max(started + timeout - time.monotonic(), 0.001)
                return post(url, headers, body, timeout, context)
        except TimeoutError:
            # Here the dispatcher, not broker-filter, gave up: it has nobody's answer to quote.
            return Answer(500, reason="no answer in time", told=False)
        except (OSError, http.client.HTTPException) as error:
            reason = f"dispatch error: {error!r}"
            return Answer(500, body=reason.encode(), reason=reason)


def _passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in headers.items() if PASSED_ON.fullmatch(name)}


def _dead_letter(event: Event, target: str, answer: Answer) -> Event:
    """`event` with Knative's error attributes; those that it already bears stay as they are."""
    if not answer.told:
        return event
    error = {
        "knativeerrordest": target,
        "knativeerrorcode": str(answer.status),
        "knativeerrordata": base64.b64encode(answer.body[:1024]).decode(),
    }
    return event.having(**{name: event.attributes.get(name) or error[name] for name in error})


def _hung_up(client: socket.socket) -> bool:
    try:
        return not client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, broker: Broker, port: int) -> None:
        self.broker = broker
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if length.isdecimal():
            headers, body = dict(self.headers), self.rfile.read(int(length))
            self._answer(self._take(headers, body))
        else:
            self.close_connection = True
            self._answer(411)

    def _take(self, headers: Mapping[str, str], body: bytes) -> int:
        try:
            event = decode(headers, body)
        except Malformed:
            return 400
        return self.server.broker._ingress(event, headers, self.connection) if event else 400

    def do_GET(self) -> None:
        if self.path == "/outcomes":
            outcomes = [asdict(outcome) for outcome in self.server.broker.outcomes()]
            shown = json.dumps(outcomes, default=lambda data: data.decode(errors="replace"))
            self._answer(200, shown.encode())
        else:
            self._answer(405)

    def _answer(self, status: int, body: bytes = b"") -> None:
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the outcomes are the log."""


# --- the command line -----------------------------------------------------------------------


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=URL")
    return name, value


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves until interrupted, and writes one line to stderr for each outcome."""
    parser = argparse.ArgumentParser(description="A Knative broker for a laptop.")
    add = parser.add_argument
    add("manifest", nargs="+", help="YAML files with Triggers, perhaps with their Broker")
    add("--port", type=int, default=8081)
    add("--namespace", default="default")
    address = "where the Service of this name, which a manifest refers to, is found"
    add("--address", action="append", default=[], type=_pair, metavar="NAME=URL", help=address)
    options = parser.parse_args(arguments)
    import yaml  # importers of this module need not have it

    documents: list[Any] = []
    for path in options.manifest:
        with open(path, encoding="utf-8") as manifest:
            documents += yaml.safe_load_all(manifest)
    try:
        delivery, triggers = read_manifests(documents, dict(options.address))
    except (ValueError, TypeError, KeyError) as error:
        parser.error(f"a manifest makes no sense: {error!r}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Broker(
        triggers,
        delivery=delivery,
        namespace=options.namespace,
        port=options.port,
        log=lambda outcome: print(outcome, file=sys.stderr, flush=True),
    ) as broker:
        print(f"{broker.url} for {[trigger.name for trigger in triggers]}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
