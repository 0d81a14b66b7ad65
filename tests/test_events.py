"""CloudEvents in and out: the three modes, attributes, percent-encoding, times."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics import events
from metrics.errors import Refused
from metrics.events import (
    BATCH,
    JSON,
    STRUCTURED,
    Event,
    batch_body,
    binary_headers,
    carried,
    format_time,
    parse_time,
    read_events,
)
from tests.servers_http import attributes, feedback

BODY = json.dumps(feedback()).encode()


def headers(**more: str) -> dict[str, str]:
    """The headers of a good event in binary mode."""
    event = {**attributes("1"), **more}
    return {"content-type": JSON, **{f"ce-{name}": text for name, text in event.items()}}


def read(headers: dict[str, str], body: bytes) -> Event:
    """The one event of a request that is no batch."""
    (event,), is_batch = read_events(headers, body)
    assert not is_batch
    return event


def structured(**more: Any) -> bytes:
    """A whole event as JSON; what is None is left out."""
    event = {**attributes("1"), "data": feedback(), **more}
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()


# --- in -----------------------------------------------------------------------------------------


def test_binary_mode() -> None:
    """Attributes are headers, data is the body, and what is no core attribute is an extension."""
    event = read(headers(time="1970-01-01T00:00:01Z", subject="s", modelid="m", x="y"), BODY)
    assert (event.id, event.source, event.type) == ("1", "/test/", "io.seldon.serving.feedback")
    assert event.time == 1.0
    assert event.extensions == {"modelid": "m", "x": "y"}
    assert event.feedback().truth.flat == [1]


def test_structured_mode_says_the_same_as_binary() -> None:
    """The same event in either mode is equal but for where its data stands."""
    more = {"time": "2026-01-31T12:00:00.5+01:00", "modelid": "é"}
    one = read({"content-type": STRUCTURED}, structured(**more))
    other = read(headers(**{**more, "modelid": "%C3%A9"}), BODY)
    assert (one.id, one.source, one.type, one.time) == (
        other.id,
        other.source,
        other.type,
        other.time,
    )
    assert one.extensions == other.extensions == {"modelid": "é"}
    assert one.digest == other.digest
    assert one.feedback().truth == other.feedback().truth


def test_structured_attributes_of_other_types_become_text() -> None:
    """Integers and booleans have the canonical text that headers would carry; null is absent."""
    body = json.dumps({**attributes("1"), "a": 7, "b": True, "c": False, "d": None, "data": {}})
    event = read({"content-type": STRUCTURED}, body.encode())
    assert event.extensions == {"a": "7", "b": "true", "c": "false"}


def test_base64_data_is_bytes() -> None:
    """`data_base64` is decoded and read like a body."""
    body = structured(data=None, data_base64=b64encode(BODY).decode())
    assert read({"content-type": STRUCTURED}, body).feedback().truth.flat == [1]


def test_a_batch_keeps_its_order() -> None:
    """Every event of a batch, in order; an empty batch has none."""
    body = b"[" + structured(id="a") + b"," + structured(id="b") + b"]"
    events, is_batch = read_events({"content-type": BATCH}, body)
    assert is_batch
    assert [event.id for event in events] == ["a", "b"]
    assert read_events({"content-type": BATCH}, b"[]") == ([], True)


@pytest.mark.parametrize("head", [{}, {"content-type": JSON}, {"content-type": "text/plain"}])
def test_plain_json_has_no_attributes(head: dict[str, str]) -> None:
    """Without any attribute the body is feedback, of no id: nothing to deduplicate by."""
    event = read(head, BODY)
    assert (event.id, event.source, event.type, event.digest) == ("", "", "", b"")
    assert event.time is None
    assert event.feedback().truth.flat == [1]


def test_the_digest_stands_for_source_and_id_only() -> None:
    """16 bytes; nothing else changes them, and no other pair of texts has them."""
    one = read(headers(), BODY).digest
    assert len(one) == 16
    assert read(headers(type="t", time="2026-01-01T00:00:00Z", modelid="m"), b"{}").digest == one
    pairs = [("/a", "bc"), ("/ab", "c"), ("/a", "b,c"), ('/a","b', "c"), ("/é", "c"), ("/a", "BC")]
    digests = {
        read({"content-type": STRUCTURED}, structured(source=source, id=id)).digest
        for source, id in pairs
    }
    assert len(digests) == len(pairs)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("plain", "plain"),
        ("%C3%A9%E2%9C%93", "é✓"),
        ("%F0%9F%92%A9", "\N{PILE OF POO}"),
        ("a%20b%22c%25", 'a b"c%'),
        ("100%", "100%"),
        ("%zz", "%zz"),
        ("a+b", "a+b"),
        ("é✓".encode().decode("latin-1"), "é✓"),
        ("é✓", "é✓"),
        ("caf\xe9", "café"),
    ],
)
def test_a_header_is_decoded(text: str, means: str) -> None:
    """Percent-encoded, raw UTF-8 that a WSGI server passed on as Latin-1, or text already."""
    assert read(headers(x=text), BODY).extensions["x"] == means


@pytest.mark.parametrize(
    ("head", "body", "field"),
    [
        (headers(x="%ff"), BODY, "ce-x"),
        (headers(x="a%0Ab"), BODY, "ce-x"),
        (headers(x="a%00b"), BODY, "ce-x"),
        (headers(x="%E2%80%A8"), BODY, "ce-x"),
        (headers(x="a\tb"), BODY, "ce-x"),
        (headers(id="a%1Bb"), BODY, "ce-id"),
        (headers(x="x" * 2049), BODY, "ce-x"),
        (headers(X="x"), BODY, "ce-X"),
        (headers(a_b="x"), BODY, "ce-a_b"),
        (headers(é="x"), BODY, "ce-é"),
        (headers(**{"": "x"}), BODY, "ce-"),
        (headers(**{"a" * 65: "x"}), BODY, "ce-aaa"),
        (headers(id=""), BODY, "ce-id"),
        (headers(source=""), BODY, "ce-source"),
        (headers(type=""), BODY, "ce-type"),
        (headers(specversion=""), BODY, "ce-specversion"),
        (headers(specversion="2.0"), BODY, "ce-specversion"),
        (headers(time="now"), BODY, "ce-time"),
        ({"ce-id": "1"}, BODY, "ce-source"),
        ({"content-type": "application/cloudevents+avro"}, BODY, "content-type"),
        ({"content-type": "application/cloudevents-batch+xml"}, BODY, "content-type"),
        ({"content-type": STRUCTURED}, b"", "data"),
        ({"content-type": STRUCTURED}, b"[]", "data"),
        ({"content-type": STRUCTURED}, structured(id=1.5), "id"),
        ({"content-type": STRUCTURED}, structured(x={"a": 1}), "x"),
        ({"content-type": STRUCTURED}, structured(x="\x01"), "x"),
        ({"content-type": STRUCTURED}, structured(**{"Bad\nname": "x"}), "Bad"),
        ({"content-type": STRUCTURED}, structured(type=None), "type"),
        ({"content-type": STRUCTURED}, structured(data_base64="e30="), "data_base64"),
        ({"content-type": STRUCTURED}, structured(data=None, data_base64=1), "data_base64"),
        ({"content-type": STRUCTURED}, structured(data=None, data_base64="e3=0"), "data_base64"),
        ({"content-type": BATCH}, b"{}", "data"),
        ({"content-type": BATCH}, b"[1]", "[0]"),
        (
            {"content-type": BATCH},
            b"[" + structured() + b"," + structured(id=None) + b"]",
            "[1].id",
        ),
    ],
)
def test_bad_attributes_are_refused(head: dict[str, str], body: bytes, field: str) -> None:
    """The reason names the attribute as it was sent, on one printable line."""
    with pytest.raises(Refused) as caught:
        read_events(head, body)
    assert caught.value.field.startswith(field)
    assert str(caught.value).isprintable()


def test_an_unwritable_name_cannot_fill_the_reason() -> None:
    """The reason holds the beginning of a long attribute name only."""
    with pytest.raises(Refused) as caught:
        read_events({"content-type": STRUCTURED}, structured(**{"x" * 10_000: "y"}))
    assert len(str(caught.value)) < 200


# --- times --------------------------------------------------------------------------------------

MOMENT = 1769860800.0  # 2026-01-31T12:00:00Z


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("1969-12-31T23:59:59Z", 0.0),
        ("2026-01-31T12:00:00Z", MOMENT),
        ("2026-01-31t12:00:00z", MOMENT),
        ("2026-01-31 12:00:00Z", MOMENT),
        ("2026-01-31T12:00:00+00:00", MOMENT),
        ("2026-01-31T12:00:00-00:00", MOMENT),
        ("2026-01-31T14:00:00+02:00", MOMENT),
        ("2026-01-31T06:30:00-05:30", MOMENT),
        ("2026-02-01T11:59:00+23:59", MOMENT),
        ("2026-01-31T12:00:00.5Z", MOMENT + 0.5),
        ("2026-01-31T12:00:00.123456789Z", MOMENT + 0.123456789),
        ("2026-01-31T14:00:00.000000001+02:00", MOMENT + 1e-9),
        ("2026-01-31T12:00:00.1234567890123Z", MOMENT + 0.1234567890123),
        ("2024-02-29T00:00:00Z", 1709164800.0),
        ("9999-12-31T23:59:59Z", 253402300799.0),
        ("2016-12-31T23:59:60Z", 1483228800.0),
        ("2016-12-31T23:59:60.25z", 1483228800.25),
        ("1990-12-31T15:59:60-08:00", 662688000.0),
        ("2017-01-01T05:29:60+05:30", 1483228800.0),
        ("2026-01-31T12:00:00." + "5" * 1000 + "Z", MOMENT + 5 / 9),
        ("1900-01-01T00:00:00Z", 0.0),
        ("0001-01-01T00:00:00Z", 0.0),
        ("0001-01-01T00:00:00+01:00", 0.0),
        ("0001-01-01T00:00:00+23:59", 0.0),
        ("9999-12-31T23:59:59-23:59", 253402387139.0),
    ],
)
def test_times_are_read(text: str, seconds: float) -> None:
    """RFC 3339 with any fraction and offset; seconds since the epoch, to a double's precision."""
    assert parse_time(text, "ce-time") == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "1700000000",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-01-31T12:00Z",
        "2026-01-31T12:00:00.Z",
        "2026-01-31T12:00:00,5Z",
        "2026-01-31T12:00:00+1:00",
        "2026-01-31T12:00:00+0100",
        "2026-01-31T12:00:00 Z",
        "2026-02-30T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-31T24:00:01Z",
        "2026-01-31T12:60:00Z",
        "2026-01-31T12:00:00+24:00",
        "2026-01-31T12:00:60Z",
        "2026-01-31T23:59:60+01:00",
        "2026-01-31T23:59:61Z",
        "\u0662\u0660\u0662\u0666-01-31T12:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-01-31T12:00:00Z\n",
        "x" * 5000,
    ],
)
def test_other_times_are_refused(text: str) -> None:
    """Whatever is no moment of RFC 3339; the reason names the attribute and stays short."""
    with pytest.raises(Refused) as caught:
        parse_time(text, "ce-time")
    assert caught.value.field == "ce-time"
    assert len(str(caught.value)) < 120


@given(st.integers(min_value=0, max_value=4_000_000_000))
def test_a_time_written_is_the_time_read(seconds: int) -> None:
    """`format_time` and `parse_time` are inverses over whole seconds."""
    text = format_time(seconds)
    assert text.endswith("Z")
    assert parse_time(text, "time") == seconds


# --- out ----------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_any_text_survives_a_header(text: str) -> None:
    """Headers are printable ASCII without space and quote, and decode to the text."""
    sent = dict(binary_headers({"x": text}))
    header = sent["ce-x"]
    assert all("!" <= character <= "~" and character != '"' for character in header)
    assert unquote(header, errors="strict") == text


def test_binary_headers_are_a_json_event() -> None:
    """Content type and specversion, then the attributes, all under lower-case names."""
    assert binary_headers({"id": "1", "modelid": "é"}) == [
        ("content-type", JSON),
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-modelid", "%C3%A9"),
    ]


def test_a_batch_can_be_read_again() -> None:
    """What is written is a JSON array of whole events with their data, and reads as such."""
    written = batch_body([(attributes("1", modelid='é"\\'), b'{"a": 1}'), (attributes("2"), b"[]")])
    assert json.loads(written) == [
        {**attributes("1", modelid='é"\\'), "datacontenttype": JSON, "data": {"a": 1}},
        {**attributes("2"), "datacontenttype": JSON, "data": []},
    ]
    events, _ = read_events({"content-type": BATCH}, written)
    assert [event.id for event in events] == ["1", "2"]
    assert batch_body([]) == b"[]"


def test_what_the_broker_added_is_not_carried() -> None:
    """Extensions are carried over but for those that tell of one delivery."""
    extensions = {
        "traceparent": "t",
        "modelid": "m",
        "knativearrivaltime": "x",
        "knativeerrorcode": "5",
    }
    assert carried(extensions) == {"traceparent": "t", "modelid": "m"}


def test_long_attributes_are_not_cached() -> None:
    """What a client says in an attribute is kept while it is answered, and no longer."""
    events._short_header.cache_clear()
    for number in range(50):
        lines = events.own_lines("1", 0, {"comment": f"{number}é" * 10_000}, ())
        assert lines.endswith("%C3%A9\r\n")
    assert events._short_header.cache_info().currsize <= 1  # the time's
    assert "ce-comment: short\r\n" in events.own_lines("1", 0, {"comment": "short"}, ())
