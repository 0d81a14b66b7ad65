"""Windows and segments of a running function: what its replies, views and series show."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from metrics.labels import MAX_SEGMENT_VALUES

from .servers_http import OwnServer, attributes, feedback, message, of_model, series

MODEL = "slices/d/p/m"
VIEW = f"/v1/models/{MODEL}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """A function that slices scores by country and plan, and replies with a window."""
    with OwnServer(
        tmp_path_factory.mktemp("slices"),
        FEEDBACK_SEGMENTS="country,plan",
        FEEDBACK_WINDOWS="5m,1h",
        FEEDBACK_REPLY_WINDOWS="1h",
    ) as server:
        yield server


def _by_name(view: Any) -> dict[str, float]:
    return {f"{each['segment']}={each['value']}": each["events"] for each in view["segments"]}


def test_replies_show_the_windows_that_were_asked_for(server: OwnServer) -> None:
    """An event of two hours ago counts in all time, and not in the window of an hour."""
    past = (datetime.now(timezone.utc) - timedelta(hours=2)).isoformat()
    assert server.feedback("old", "slices/windows/p/m", time=past, truth=0).status == 200
    data = server.feedback("new", "slices/windows/p/m").json
    assert (data["window"], data["events"], data["scores"]["accuracy"]) == ("all", 2, 0.5)
    assert set(data["windows"]) == {"1h"}
    window = data["windows"]["1h"]
    assert (window["window"], window["events"], window["scores"]["accuracy"]) == ("1h", 1, 1.0)


def test_an_event_counts_in_the_segments_it_names(server: OwnServer) -> None:
    """Extensions come before tags; a boolean is a segment, and what is not listed is none."""
    tags = {"plan": True, "country": "de", "secret": "x"}
    body = {**feedback(), "truth": {**message([1]), "meta": {"tags": tags}}}
    assert server.event(body, attributes("1", MODEL, country="nl", secret="y")).status == 200
    assert server.event(feedback(1, 0), attributes("2", MODEL, country="nl")).status == 200
    view = server.get(VIEW).json
    assert _by_name(view) == {"country=nl": 2, "plan=true": 1}
    accuracy = {
        (segment, window): value
        for segment in ("country=nl", "plan=true")
        for window in ("all", "5m", "1h")
        for value in series(
            server.exposition(),
            "feedback_score{",
            'score="accuracy"',
            f'segment="{segment}"',
            f'window="{window}"',
            *of_model(MODEL),
        ).values()
    }
    assert accuracy == {
        **{("country=nl", window): 0.5 for window in ("all", "5m", "1h")},
        **{("plan=true", window): 1.0 for window in ("all", "5m", "1h")},
    }


@pytest.mark.parametrize("tag", [{"a": 1}, ["nl"]])
def test_a_segment_that_is_no_scalar_is_refused(server: OwnServer, tag: Any) -> None:
    """By field, and nothing is counted."""
    body = {**feedback(), "truth": {**message([1]), "meta": {"tags": {"plan": tag}}}}
    answer = server.event(body, attributes("3", "slices/refused/p/m"))
    assert answer.status == 400
    assert "meta.tags.plan" in answer.detail
    assert server.get("/v1/models/slices/refused/p/m").status == 404


def test_a_segment_has_a_view_of_its_own(server: OwnServer) -> None:
    """`?segment=key=value`: a key that is not kept is a mistake, an unseen value is not there."""
    model = "slices/view/p/m"
    for number in range(4):
        body = feedback(1, number % 2)
        assert server.event(body, attributes(f"{number}", model, country="ch")).status == 200
    server.event(feedback(), attributes("other", model, country="nl"))
    view = server.get(f"/v1/models/{model}?segment=country%3Dch&window=1h").json
    assert (view["segment"], view["window"], view["rows"]) == ("country=ch", "1h", 4)
    assert view["scores"]["accuracy"] == 0.5
    assert view["confusion_matrix"]["matrix"] == [[0, 2], [0, 2]]
    unknown = server.get(f"/v1/models/{model}?segment=planet%3Dearth")
    assert (unknown.status, unknown.json["field"]) == (400, "segment")
    assert "(country, plan)" in unknown.detail
    assert server.get(f"/v1/models/{model}?segment=country%3Dmoon").status == 404


def test_values_past_the_cap_share_a_segment(server: OwnServer) -> None:
    """A key has so many segments at most, and `__other__`; known ones go on being told apart."""
    model = "slices/many/p/m"
    for value in range(MAX_SEGMENT_VALUES + 5):
        assert server.feedback(f"a{value}", model, plan=f"p{value}").status == 200
    assert server.feedback("b", model, plan="p0", country="nl").status == 200
    found = _by_name(server.get(f"/v1/models/{model}").json)
    assert found.pop("plan=p0") == 2
    assert found.pop("plan=__other__") == 5
    assert found.pop("country=nl") == 1
    assert found == {f"plan=p{value}": 1 for value in range(1, MAX_SEGMENT_VALUES)}
