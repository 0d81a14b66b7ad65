"""The development broker does what knative-facts.md says of the real one, row by row."""

from __future__ import annotations

import base64
import itertools
import json
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from examples import broker as broker_module
from examples.activator import Activator
from examples.broker import (
    DEFAULT_DELIVERY,
    Answer,
    Broker,
    Delivery,
    Event,
    Malformed,
    Trigger,
    decode,
    encode,
    post,
    read_manifests,
    seconds,
)

from .servers import free_port

ASKED, ANSWERED = "test.asked", "test.answered"
PRODUCED = Event(
    {
        "specversion": "1.0",
        "id": "1",
        "source": "/test",
        "type": ASKED,
        "datacontenttype": "application/json",
    },
    b'{"reward": 1}',
)
REPLY = PRODUCED.having(id="r", type=ANSWERED)
RETRIED = Delivery(retry=2, backoff_delay="PT0.01S")
PATIENCE = 60


class Request(NamedTuple):
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> Event:
        event = decode(self.headers, self.body)
        assert event is not None
        return event


Response = tuple[int, Mapping[str, str], bytes]


class Subscriber:
    """A consumer at `url` that keeps its requests and answers with `respond`."""

    def __init__(self, respond: Callable[[Request], Response]) -> None:
        self.respond = respond
        self.requests: list[Request] = []
        self._changed = threading.Condition()
        subscriber = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = Request({name.lower(): text for name, text in self.headers.items()}, body)
                with subscriber._changed:
                    subscriber.requests.append(request)
                    subscriber._changed.notify_all()
                status, headers, answer = subscriber.respond(request)
                try:
                    self.send_response(status)
                    for name, text in headers.items():
                        self.send_header(name, text)
                    self.end_headers()
                    self.wfile.write(answer)
                except ConnectionError:
                    pass  # the broker did not wait: some tests want just that

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, PATIENCE)

    @property
    def events(self) -> list[Event]:
        return [request.event for request in self.requests]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class World:
    """Starts consumers and brokers, and closes them at the test's end."""

    def __init__(self) -> None:
        self.started: list[Any] = []

    def subscriber(self, respond: Callable[[Request], Response] | None = None) -> Subscriber:
        subscriber = Subscriber(respond or (lambda request: (202, {}, b"")))
        self.started.append(subscriber)
        return subscriber

    def answering(self, status: int, headers: Mapping[str, str], body: bytes) -> Subscriber:
        return self.subscriber(lambda request: (status, headers, body))

    def broker(self, *triggers: Trigger, **options: Any) -> Broker:
        broker = Broker(triggers, **options)
        self.started.append(broker)
        return broker


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for started in reversed(world.started):
        started.close()


def binary(event: Event, status: int = 200) -> Response:
    return (status, *encode(event))


def structured(event: Event, status: int = 200) -> Response:
    return (status, *encode(event, structured=True))


JSON = {"Content-Type": "application/json"}
BATCH = (200, {"Content-Type": "application/cloudevents-batch+json"}, b"[]")
BROKEN = (200, {"Content-Type": "application/cloudevents+json"}, b'{"specversion"')
REDIRECT = {"Location": "/elsewhere"}

ROWS: dict[str, tuple[Response, int, str]] = {
    "binary reply, 200": (binary(REPLY), 1, "replied"),
    "binary reply, 201": (binary(REPLY, 201), 1, "replied"),
    "binary reply, 202": (binary(REPLY, 202), 1, "replied"),
    "binary reply without data": (binary(replace(REPLY, data=b"")), 1, "replied"),
    "structured reply, 200": (structured(REPLY), 1, "replied"),
    "structured reply, 202": (structured(REPLY, 202), 1, "replied"),
    **{f"{status}, empty": ((status, {}, b""), 1, "delivered") for status in (200, 202, 204)},
    **{f"200, {body!r}": ((200, JSON, body), 3, "dead-lettered") for body in (b"OK", b"{}", b" ")},
    "a batch": (BATCH, 3, "dead-lettered"),
    "unparsable structured JSON": (BROKEN, 3, "dead-lettered"),
    "binary reply without id": (binary(REPLY.having(id=None)), 1, "dead-lettered"),
    "structured reply without id": (structured(REPLY.having(id=None)), 1, "dead-lettered"),
    **{
        str(status): ((status, REDIRECT, b"why"), 1, "dead-lettered")
        for status in (301, 302, 307, 308, 400, 401, 403, 405, 410, 413, 415, 422, 425)
    },
    **{
        str(status): ((status, {}, b"why"), 3, "dead-lettered")
        for status in (404, 408, 409, 429, 500, 501, 502, 503, 504)
    },
}


@pytest.mark.parametrize(("answer", "calls", "what"), ROWS.values(), ids=ROWS.keys())
def test_the_delivery_table(world: World, answer: Response, calls: int, what: str) -> None:
    """Each answer is retried, dead-lettered and routed as measured at the real broker."""
    subscriber, replies, dead = world.answering(*answer), world.subscriber(), world.subscriber()
    delivery = replace(RETRIED, dead_letter=dead.url)
    broker = world.broker(
        Trigger("asked", subscriber.url, {"type": ASKED}, delivery=delivery),
        Trigger("answered", replies.url, {"type": ANSWERED}, delivery=delivery),
    )
    assert broker.publish(PRODUCED) == 202
    (outcome,) = broker.outcomes("asked")
    assert (outcome.calls, outcome.what) == (calls, what)
    assert set(outcome.statuses) == {answer[0]}
    assert [event.attributes["id"] for event in subscriber.events] == ["1"] * calls
    assert len(replies.requests) == (what == "replied")
    assert [event.attributes["id"] for event in dead.events] == ["1"] * (what == "dead-lettered")


def test_a_retry_can_succeed(world: World) -> None:
    """The first 2xx ends the retries."""
    answers = iter([503, 429, 200])
    subscriber = world.subscriber(lambda request: (next(answers), {}, b""))
    broker = world.broker(Trigger("t", subscriber.url, delivery=replace(RETRIED, retry=5)))
    assert broker.publish(PRODUCED) == 202
    assert broker.outcomes()[0].statuses == (503, 429, 200)


def test_a_dead_letter_tells_what_went_wrong(world: World) -> None:
    """It is the original event plus destination, code and the first 1024 bytes of the body."""
    body = bytes(range(256)) * 5
    subscriber, dead = world.answering(400, {}, body), world.subscriber()
    delivery = replace(RETRIED, dead_letter=dead.url)
    broker = world.broker(Trigger("t", subscriber.url, delivery=delivery))
    broker.publish(PRODUCED.having(requestid="puid"))
    (letter,) = dead.events
    assert letter.data == PRODUCED.data
    expected = {
        **PRODUCED.attributes,
        "requestid": "puid",
        "knativeerrordest": subscriber.url,
        "knativeerrorcode": "400",
        "knativeerrordata": base64.b64encode(body[:1024]).decode(),
        "knativebrokerttl": "255",
    }
    assert {**letter.attributes, "knativearrivaltime": ""} == {**expected, "knativearrivaltime": ""}
    assert "prefer" not in dead.requests[0].headers


def test_a_replayed_dead_letter_keeps_its_first_error(world: World) -> None:
    """Error attributes that an event already bears are not overwritten."""
    subscriber, dead = world.answering(500, {}, b""), world.subscriber()
    delivery = Delivery(dead_letter=dead.url)
    broker = world.broker(Trigger("t", subscriber.url, delivery=delivery))
    broker.publish(PRODUCED.having(knativeerrorcode="413"))
    assert dead.events[0].attributes["knativeerrorcode"] == "413"


def test_a_refused_reply_dead_letters_the_original(world: World) -> None:
    """The broker itself is named as the destination that refused."""
    subscriber, dead = world.answering(*binary(REPLY.having(id=None))), world.subscriber()
    delivery = replace(RETRIED, dead_letter=dead.url)
    broker = world.broker(Trigger("t", subscriber.url, {"type": ASKED}, delivery=delivery))
    broker.publish(PRODUCED)
    (letter,) = dead.events
    assert letter.data == PRODUCED.data
    assert letter.attributes["knativeerrordest"] == broker.url
    assert letter.attributes["knativeerrorcode"] == "400"


def test_nonsense_with_a_2xx_leaves_no_trace_in_the_dead_letter(world: World) -> None:
    """Broker-filter turns it into a bare 502, which the dispatcher cannot explain."""
    subscriber, dead = world.answering(200, {}, b"OK"), world.subscriber()
    delivery = Delivery(dead_letter=dead.url)
    broker = world.broker(Trigger("t", subscriber.url, delivery=delivery))
    broker.publish(PRODUCED)
    assert not [name for name in dead.events[0].attributes if name.startswith("knativeerror")]
    assert broker.outcomes()[0].code == 502


def test_the_dead_letter_sink_is_retried_too(world: World) -> None:
    """If it fails for good, the event is lost and the producer gets a 500."""
    subscriber, dead = world.answering(400, {}, b""), world.answering(503, {}, b"")
    delivery = replace(RETRIED, dead_letter=dead.url)
    broker = world.broker(Trigger("t", subscriber.url, delivery=delivery))
    assert broker.publish(PRODUCED) == 500
    assert len(dead.requests) == 3
    assert broker.outcomes()[0].what == "failed"


def test_a_slow_answer_is_a_duplicate_beside_the_original(world: World) -> None:
    """After `timeout` the next call begins while the first still runs in the function."""
    turns = itertools.count(1)
    second_came, first_saw_it = threading.Event(), threading.Event()

    def respond(request: Request) -> Response:
        if next(turns) == 2:
            second_came.set()
        elif second_came.wait(PATIENCE):
            first_saw_it.set()
        return 200, {}, b""

    subscriber = world.subscriber(respond)
    delivery = replace(RETRIED, timeout="PT1S")
    broker = world.broker(Trigger("t", subscriber.url, delivery=delivery))
    assert broker.publish(PRODUCED) == 202
    assert broker.outcomes()[0].statuses == (0, 200)
    assert [event.attributes["id"] for event in subscriber.events] == ["1", "1"]
    assert first_saw_it.wait(PATIENCE)


def test_always_slower_than_the_timeout_is_a_dead_letter(world: World) -> None:
    """Every call times out; the dead letter says nothing of why."""
    over = threading.Event()
    subscriber = world.subscriber(lambda request: (200 if over.wait(PATIENCE) else 500, {}, b""))
    dead = world.subscriber()
    delivery = replace(RETRIED, timeout="PT0.1S", dead_letter=dead.url)
    broker = world.broker(Trigger("t", subscriber.url, delivery=delivery))
    assert broker.publish(PRODUCED) == 202
    over.set()
    assert broker.outcomes()[0].statuses == (0, 0, 0)
    assert broker.outcomes()[0].what == "dead-lettered"
    assert "knativeerrorcode" not in dead.events[0].attributes


def test_a_refused_connection_is_retried(world: World) -> None:
    """The dead letter quotes the broker's own words, with code 500."""
    dead = world.subscriber()
    url = f"http://127.0.0.1:{free_port()}/"
    broker = world.broker(Trigger("t", url, delivery=replace(RETRIED, dead_letter=dead.url)))
    assert broker.publish(PRODUCED) == 202
    assert broker.outcomes()[0].statuses == (0, 0, 0)
    told = dead.events[0].attributes
    assert (told["knativeerrordest"], told["knativeerrorcode"]) == (url, "500")
    assert base64.b64decode(told["knativeerrordata"]).startswith(b"dispatch error: ")


def test_a_reset_connection_is_retried(world: World) -> None:
    """A subscriber that hangs up without an answer gets the event again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        broker = world.broker(Trigger("t", url, delivery=RETRIED))
        statuses: list[int] = []
        producer = threading.Thread(target=lambda: statuses.append(broker.publish(PRODUCED)))
        producer.start()
        listener.settimeout(PATIENCE)
        for _ in range(3):
            listener.accept()[0].close()
        producer.join(PATIENCE)
    assert statuses == [500]
    assert broker.outcomes()[0].calls == 3


@pytest.mark.parametrize("answer", [binary(REPLY), (500, {}, b"")], ids=["replies", "fails"])
def test_a_producer_that_gives_up(world: World, answer: Response) -> None:
    """One call; no retry, no dead letter, and the reply is lost."""
    gone = threading.Event()

    def respond(request: Request) -> Response:
        gone.wait(PATIENCE)
        return answer

    subscriber, replies, dead = world.subscriber(respond), world.subscriber(), world.subscriber()
    delivery = replace(RETRIED, dead_letter=dead.url)
    broker = world.broker(
        Trigger("asked", subscriber.url, {"type": ASKED}, delivery=delivery),
        Trigger("answered", replies.url, {"type": ANSWERED}, delivery=delivery),
    )
    headers, body = encode(PRODUCED)
    lines = [f"{name}: {text}\r\n" for name, text in headers.items()]
    head = f"POST / HTTP/1.1\r\nHost: broker\r\nContent-Length: {len(body)}\r\n{''.join(lines)}\r\n"
    with socket.create_connection(("127.0.0.1", int(broker.url.split(":")[2][:-1]))) as producer:
        producer.sendall(head.encode() + body)
        subscriber.wait_for(1)
    (outcome,) = broker.wait_for_outcomes(1)
    gone.set()
    assert (outcome.what, outcome.calls) == ("abandoned", 1)
    assert (len(subscriber.requests), len(replies.requests), len(dead.requests)) == (1, 0, 0)


def test_a_reply_of_the_triggers_own_type_loops_until_the_ttl_is_used_up(world: World) -> None:
    """255 calls, then the broker refuses the reply and the last event is a dead letter."""
    subscriber, dead = world.answering(*binary(PRODUCED)), world.subscriber()
    delivery = replace(RETRIED, dead_letter=dead.url)
    broker = world.broker(Trigger("t", subscriber.url, {"type": ASKED}, delivery=delivery))
    assert broker.publish(PRODUCED) == 202
    assert len(subscriber.requests) == 255
    assert [event.attributes["knativebrokerttl"] for event in dead.events] == ["1"]
    assert [outcome.what for outcome in broker.outcomes()] == ["dead-lettered"] + 254 * ["replied"]


def test_a_loop_without_dead_letter_is_bounded_by_passes(world: World) -> None:
    """The multiplying retries of a reply loop stop after `passes` entries."""
    subscriber = world.answering(*binary(PRODUCED))
    broker = world.broker(Trigger("t", subscriber.url, delivery=RETRIED), passes=20)
    assert broker.publish(PRODUCED) == 500
    assert len(subscriber.requests) == 20
    assert broker.publish(PRODUCED) == 500
    assert len(subscriber.requests) == 40


def test_a_reply_nobody_takes_is_tried_retries_squared_times(world: World) -> None:
    """Without dead letters its sink is called (retry+1)² times, its author once."""
    subscriber, replies = world.answering(*binary(REPLY)), world.answering(500, {}, b"")
    broker = world.broker(
        Trigger("asked", subscriber.url, {"type": ASKED}, delivery=RETRIED),
        Trigger("answered", replies.url, {"type": ANSWERED}, delivery=RETRIED),
    )
    assert broker.publish(PRODUCED) == 500
    assert (len(subscriber.requests), len(replies.requests)) == (1, 9)


def test_another_triggers_failure_makes_the_producer_send_again(world: World) -> None:
    """The healthy Trigger then sees the same id twice."""
    healthy, failing = world.subscriber(), world.answering(400, {}, b"")
    broker = world.broker(
        Trigger("healthy", healthy.url, delivery=RETRIED),
        Trigger("failing", failing.url, delivery=RETRIED),
    )
    assert [broker.publish(PRODUCED), broker.publish(PRODUCED)] == [500, 500]
    assert [event.attributes["id"] for event in healthy.events] == ["1", "1"]
    assert {outcome.what for outcome in broker.outcomes("healthy")} == {"delivered"}


def test_what_the_subscriber_sees(world: World) -> None:
    """The broker's headers and a few passed through, nothing else; the TTL stays inside."""
    subscriber = world.subscriber()
    broker = world.broker(Trigger("t", subscriber.url), namespace="seldon")
    passed_on = {"X-Request-Id": "a", "Knative-Thing": "b", "X-B3-TraceId": "c"}
    event = PRODUCED.having(subject='Grüße, "100 %"')
    broker.publish(event, headers={**passed_on, "Authorization": "secret", "X-Other": "d"})
    (request,) = subscriber.requests
    for name, text in {**passed_on, "Prefer": "reply", "Kn-Namespace": "seldon"}.items():
        assert request.headers[name.lower()] == text
    assert not {"authorization", "x-other", "ce-knativebrokerttl"} & request.headers.keys()
    assert request.headers["ce-subject"] == "Gr%C3%BC%C3%9Fe,%20%22100%20%25%22"
    arrived = request.event
    assert arrived.attributes["knativearrivaltime"].endswith("Z")
    assert arrived.having(knativearrivaltime=None) == event


@pytest.mark.parametrize("mode", ["binary", "json"])
def test_structured_input_arrives_binary_unless_the_format_is_json(world: World, mode: str) -> None:
    """`delivery.format` decides, for the subscriber alone; attributes and data are the same."""
    subscriber, dead = world.answering(400, {}, b""), world.subscriber()
    delivery = Delivery(format=mode, dead_letter=dead.url)
    broker = world.broker(Trigger("t", subscriber.url, delivery=delivery))
    assert broker.publish(PRODUCED, structured=True) == 202
    (request,) = subscriber.requests
    assert ("ce-id" in request.headers) == (mode == "binary")
    assert request.event.having(knativearrivaltime=None) == PRODUCED
    assert "ce-id" in dead.requests[0].headers


def test_eight_mebibytes_pass_both_ways(world: World) -> None:
    """Large events and large replies are not cut."""
    large = b"x" * (8 << 20)
    subscriber, replies = world.answering(*binary(replace(REPLY, data=large))), world.subscriber()
    broker = world.broker(
        Trigger("asked", subscriber.url, {"type": ASKED}),
        Trigger("answered", replies.url, {"type": ANSWERED}),
    )
    assert broker.publish(replace(PRODUCED, data=large)) == 202
    assert subscriber.events[0].data == large == replies.events[0].data


REFUSED: dict[str, tuple[Mapping[str, str], bytes]] = {
    "no event": (JSON, b"{}"),
    "a batch": BATCH[1:],
    "broken JSON": BROKEN[1:],
    "structured, but a list": (BROKEN[1], b"[]"),
    "an unknown version": encode(PRODUCED.having(specversion="7")),
    "no id": encode(PRODUCED.having(id=None)),
    "an empty source": encode(PRODUCED.having(source="")),
    "no type": encode(PRODUCED.having(type=None)),
    "TTL used up": encode(PRODUCED.having(knativebrokerttl="1")),
}


@pytest.mark.parametrize(("headers", "body"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_front_door_refuses(world: World, headers: Mapping[str, str], body: bytes) -> None:
    """The producer gets a 400 and nobody is called."""
    subscriber = world.subscriber()
    broker = world.broker(Trigger("t", subscriber.url))
    assert post(broker.url, headers, body).status == 400
    assert (broker.publish(PRODUCED), len(subscriber.requests)) == (202, 1)


ATTRIBUTES = Event({"type": "com.example.one", "source": "/a", "region": "eu"})
FILTERS: dict[str, tuple[Mapping[str, Any], bool]] = {
    "exact": ({"exact": {"type": "com.example.one"}}, True),
    "exact, other": ({"exact": {"type": "com.example"}}, False),
    "exact, two": ({"exact": {"type": "com.example.one", "source": "/b"}}, False),
    "exact, absent": ({"exact": {"zone": ""}}, False),
    "prefix": ({"prefix": {"type": "com."}}, True),
    "prefix, other": ({"prefix": {"type": "org."}}, False),
    "suffix": ({"suffix": {"type": ".one"}}, True),
    "suffix, other": ({"suffix": {"type": ".two"}}, False),
    "all": ({"all": [{"exact": {"source": "/a"}}, {"prefix": {"type": "org"}}]}, False),
    "any": ({"any": [{"exact": {"source": "/a"}}, {"prefix": {"type": "org"}}]}, True),
    "any, none": ({"any": [{"exact": {"source": "/b"}}]}, False),
    "not": ({"not": {"exact": {"region": "us"}}}, True),
    "not, nested": ({"not": {"any": [{"exact": {"region": "eu"}}]}}, False),
}


@pytest.mark.parametrize(("expression", "wanted"), FILTERS.values(), ids=FILTERS.keys())
def test_filters(expression: Mapping[str, Any], wanted: bool) -> None:
    """Each dialect decides as the Subscriptions API says, whatever `filter` says."""
    trigger = Trigger("t", "http://127.0.0.1:1/", {"type": "other"}, [expression])
    assert trigger.wants(ATTRIBUTES) is wanted


def test_several_filters_must_all_pass() -> None:
    """The list is a conjunction."""
    yes, no = FILTERS["exact"][0], FILTERS["exact, other"][0]
    assert Trigger("t", "http://127.0.0.1:1/", filters=[yes, yes]).wants(ATTRIBUTES)
    assert not Trigger("t", "http://127.0.0.1:1/", filters=[yes, no]).wants(ATTRIBUTES)


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({}, True),
        ({"type": "com.example.one", "region": "eu"}, True),
        ({"type": "com.example.one", "region": "us"}, False),
        ({"region": ""}, True),
        ({"zone": ""}, False),
    ],
)
def test_filter_attributes(attributes: Mapping[str, str], wanted: bool) -> None:
    """`filter.attributes` is exact; an empty value asks for any."""
    assert Trigger("t", "http://127.0.0.1:1/", attributes).wants(ATTRIBUTES) is wanted


@pytest.mark.parametrize(
    "make",
    [
        lambda: Trigger("t", "http://127.0.0.1:1/", filters=[{"cesql": "type = 'a'"}]),
        lambda: Trigger("t", "http://127.0.0.1:1/", filters=[{"any": [{}, {"exact": {}}]}]),
        lambda: Trigger("t", "http://127.0.0.1:1/", filters=[{"exact": {}, "prefix": {}}]),
        lambda: Trigger("t", "http://192.0.2.1/"),
        lambda: Trigger("t", "http://example.invalid/"),
        lambda: Trigger("t", "https://127.0.0.1/"),
        lambda: Delivery(dead_letter="http://192.0.2.1/"),
        lambda: Delivery(backoff_delay="1s"),
        lambda: Delivery(timeout="PT"),
        lambda: Delivery(backoff_policy="random"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(make: Callable[[], object]) -> None:
    """A bad filter, duration or policy, or an address that is not loopback, is a ValueError."""
    with pytest.raises(ValueError, match=r"dialect|loopback|duration|policy"):
        make()


@pytest.mark.parametrize(
    ("text", "value"),
    [("PT0.2S", 0.2), ("PT1M30S", 90), ("PT2H", 7200), ("P1DT1S", 86401), (None, 0)],
)
def test_durations(text: str | None, value: float) -> None:
    """ISO 8601 durations up to days become seconds."""
    assert seconds(text) == pytest.approx(value)


def test_backoff_has_no_jitter() -> None:
    """Exponential doubles from the delay; linear's first retry is immediate."""
    exponential = Delivery(backoff_delay="PT0.1S")
    linear = replace(exponential, backoff_policy="linear")
    failed = Answer(500)
    assert [exponential.pause(n, failed) for n in range(4)] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert [linear.pause(n, failed) for n in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert sum(DEFAULT_DELIVERY.pause(n, failed) for n in range(10)) == pytest.approx(204.6)


def test_the_broker_waits_between_retries(world: World) -> None:
    """Between two calls lies at least the backoff."""
    subscriber = world.answering(500, {}, b"")
    delivery = Delivery(retry=3, backoff_delay="PT0.05S")
    broker = world.broker(Trigger("t", subscriber.url, delivery=delivery))
    broker.publish(PRODUCED)
    times = broker.outcomes()[0].times
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(gap > 0.99 * due for gap, due in zip(gaps, [0.05, 0.1, 0.2], strict=True))


@pytest.mark.parametrize(
    ("status", "header", "most", "pause"),
    [
        (429, "7", None, 0.1),
        (503, "7", None, 0.1),
        (503, "7", "PT0S", 0.1),
        (503, "7", "PT5S", 5),
        (429, "7", "PT1M", 7),
        (429, "0", "PT1M", 0.1),
        (503, "soon", "PT1M", 0.1),
        (503, "Fri, 31 Dec 2100 23:59:59 GMT", "PT1M", 60),
        (503, "Fri, 31 Dec 1999 23:59:59 GMT", "PT1M", 0.1),
        (500, "7", "PT1M", 0.1),
    ],
)
def test_retry_after(status: int, header: str, most: str | None, pause: float) -> None:
    """It counts for 429 and 503, only where `retryAfterMax` is set, and only upwards."""
    delivery = Delivery(backoff_delay="PT0.1S", retry_after_max=most)
    answer = Answer(status, {"Retry-After": header})
    assert delivery.pause(0, answer) == pytest.approx(pause)


def test_retry_after_over_the_wire(world: World) -> None:
    """The header of a real answer lengthens the wait, up to `retryAfterMax`."""
    subscriber = world.answering(503, {"Retry-After": "9"}, b"")
    delivery = Delivery(retry=1, retry_after_max="PT0.3S")
    broker = world.broker(Trigger("t", subscriber.url, delivery=delivery))
    broker.publish(PRODUCED)
    first, second = broker.outcomes()[0].times
    assert 0.29 < second - first < 9


def test_a_triggers_delivery_replaces_the_brokers(world: World) -> None:
    """A Trigger that sets only a timeout loses retries and dead letter."""
    subscriber, dead = world.answering(500, {}, b""), world.subscriber()
    broker = world.broker(
        Trigger("inherits", subscriber.url, {"type": ASKED}),
        Trigger("replaces", subscriber.url, {"type": ASKED}, delivery=Delivery(timeout="PT5S")),
        delivery=replace(RETRIED, dead_letter=dead.url),
    )
    assert broker.publish(PRODUCED) == 500
    fared = {outcome.trigger: (outcome.calls, outcome.what) for outcome in broker.outcomes()}
    assert fared == {"inherits": (3, "dead-lettered"), "replaces": (1, "failed")}


def test_codec() -> None:
    """What cannot be a CloudEvent is None, what fails to be one is Malformed; text survives."""
    assert decode(JSON, b"{}") is None
    with pytest.raises(Malformed):
        decode({"content-type": "application/cloudevents+json"}, b'{"data_base64": "%"}')
    numbers = b'{"specversion":"1.0","id":"1","source":"/","type":"t","n":3,"b":true,"data":[1.5]}'
    event = decode({"Content-Type": "application/cloudevents+json; charset=utf-8"}, numbers)
    assert event is not None
    assert (event.attributes["n"], event.attributes["b"]) == ("3", "true")
    assert (event.attributes["datacontenttype"], event.data) == ("application/json", b"[1.5]")
    for data, kind in [(b"\xff\x00", "application/octet-stream"), (b"", "text/plain")]:
        sent = replace(PRODUCED, data=data).having(datacontenttype=kind)
        assert decode(*encode(sent, structured=True)) == sent == decode(*encode(sent))


MANIFESTS: Sequence[Mapping[str, Any] | None] = [
    None,
    {"kind": "Service", "spec": {"template": {}}},
    {
        "kind": "Broker",
        "spec": {"delivery": {"retry": 4, "deadLetterSink": {"uri": "http://127.0.0.1:3/dead"}}},
    },
    {
        "kind": "Trigger",
        "metadata": {"name": "feedback"},
        "spec": {
            "filter": {"attributes": {"type": ASKED}},
            "subscriber": {"ref": {"kind": "Service", "name": "function"}, "uri": "/in"},
            "delivery": {
                "retry": 2,
                "backoffPolicy": "linear",
                "backoffDelay": "PT1S",
                "timeout": "PT5S",
                "retryAfterMax": "PT9S",
                "format": "json",
                "deadLetterSink": {"ref": {"kind": "Service", "name": "dead"}},
            },
        },
    },
    {
        "kind": "Trigger",
        "metadata": {"name": "metrics"},
        "spec": {
            "filters": [{"prefix": {"type": "test."}}],
            "subscriber": {"ref": {"name": "dead"}},
        },
    },
]
ADDRESSES = {"function": "http://127.0.0.1:1", "dead": "http://127.0.0.1:2"}


def test_manifests() -> None:
    """Broker and Triggers are read as kubectl would apply them, others are skipped."""
    delivery, (feedback, metrics) = read_manifests(MANIFESTS, ADDRESSES)
    assert delivery == Delivery(retry=4, dead_letter="http://127.0.0.1:3/dead")
    assert feedback == Trigger(
        "feedback",
        "http://127.0.0.1:1/in",
        {"type": ASKED},
        delivery=Delivery(2, "linear", "PT1S", "PT5S", "PT9S", "http://127.0.0.1:2", "json"),
    )
    assert metrics == Trigger(
        "metrics", "http://127.0.0.1:2", filters=[{"prefix": {"type": "test."}}]
    )
    assert read_manifests(MANIFESTS[3:], ADDRESSES)[0] == DEFAULT_DELIVERY
    with pytest.raises(ValueError, match="'dead' needs an address"):
        read_manifests(MANIFESTS, {})


def test_the_command_line(world: World, tmp_path: Path) -> None:
    """The module runs by itself on manifests and shows its outcomes at /outcomes."""
    pytest.importorskip("yaml")
    dead, path, port = world.subscriber(), tmp_path / "trigger.yaml", free_port()
    path.write_text("---\n".join(json.dumps(document) + "\n" for document in MANIFESTS[3:]))
    addresses = [f"--address={name}={dead.url}" for name in ADDRESSES]
    script = str(broker_module.__file__)
    command = [sys.executable, script, f"--port={port}", str(path), *addresses]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == (
                f"http://127.0.0.1:{port}/ for ['feedback', 'metrics']\n".encode()
            )
            headers, body = encode(PRODUCED)
            assert post(f"http://127.0.0.1:{port}/", headers, body).status == 202
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{port}/outcomes", timeout=PATIENCE) as answer:
                outcomes = json.load(answer)
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        log = process.stderr.read().decode()
    assert {outcome["trigger"] for outcome in outcomes} == {"feedback", "metrics"}
    assert outcomes[0]["event"]["data"] == PRODUCED.data.decode()
    assert f"feedback: {ASKED} delivered, calls [202]" in log.splitlines()


SLEEPER = """
import signal, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204); self.end_headers()
    def log_message(self, *args): pass
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
time.sleep(float(sys.argv[2]))  # a slow start, on purpose
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def sleeper(port: int, start: float = 0, idle: float = 0.2) -> Activator:
    return Activator(port, [sys.executable, "-c", SLEEPER, str(port), str(start)], idle=idle)


def test_scale_to_zero_and_back(world: World) -> None:
    """No process before the first event, SIGTERM when idle, a new process for the next event."""
    activator = sleeper(free_port())
    broker = world.broker(Trigger("t", activator.url, delivery=RETRIED), activators=[activator])
    assert activator.starts == 0
    for starts in (1, 2):
        assert broker.publish(PRODUCED) == 202
        assert activator.starts == starts
        assert activator.wait_for_zero(PATIENCE)
        assert activator.exit_codes == [7] * starts
    assert [outcome.statuses for outcome in broker.outcomes()] == [(204,), (204,)]


def test_a_cold_start_counts_against_the_timeout(world: World) -> None:
    """A delivery that waits too long is retried while the same process goes on starting."""
    activator = sleeper(free_port(), start=0.4, idle=60)
    delivery = Delivery(
        retry=1000, backoff_policy="linear", backoff_delay="PT0.01S", timeout="PT0.1S"
    )
    broker = world.broker(Trigger("t", activator.url, delivery=delivery), activators=[activator])
    assert broker.publish(PRODUCED) == 202
    *before, last = broker.outcomes()[0].statuses
    assert set(before) == {0}
    assert (last, activator.starts) == (204, 1)


def test_closing_the_broker_ends_the_process(world: World) -> None:
    """Whoever starts a process also stops it, and a closed activator starts no other."""
    activator = sleeper(free_port(), idle=60)
    with Broker([Trigger("t", activator.url)], activators=[activator]) as broker:
        broker.publish(PRODUCED)
        assert activator.exit_codes == []
    assert activator.exit_codes == [7]
    with pytest.raises(ConnectionRefusedError), activator.awake(PATIENCE):
        pass


def test_a_crashed_process_is_started_again(world: World) -> None:
    """One that never gets ready is a failed call, retried like any other."""
    activator = Activator(free_port(), [sys.executable, "-c", "raise SystemExit(3)"])
    missing = Activator(free_port(), ["/nonexistent/program"])
    broker = world.broker(
        Trigger("crashes", activator.url, delivery=RETRIED),
        Trigger("missing", missing.url, delivery=RETRIED),
        activators=[activator, missing],
    )
    assert broker.publish(PRODUCED) == 500
    assert activator.exit_codes == [3, 3, 3]
    assert {outcome.statuses for outcome in broker.outcomes()} == {(0, 0, 0)}
