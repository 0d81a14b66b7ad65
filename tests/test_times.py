"""Times of events: whatever a clock says is counted or refused, and all pages show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.app import App
from metrics.config import load
from metrics.host import flask_app
from metrics.store import open_store
from tests.servers_http import OwnServer, feedback
from tests.test_limits import field, post

MODEL = "ns/iris/default/limits"
PATHS = ("/metrics", "/v1/models", "/", "/?format=html", "/?format=json", f"/v1/models/{MODEL}")


digits = st.integers(0, 99).map("{:02}".format)
likely = st.builds(
    "{}-{}-{}{}{}:{}:{}{}{}".format,
    st.sampled_from(["0000", "0001", "1899", "1969", "1970", "2016", "2262", "9999", "+999"]),
    st.sampled_from(["01", "06", "12", "13", "00"]),
    st.sampled_from(["01", "30", "31", "32"]),
    st.sampled_from(["T", "t", " ", "_"]),
    st.sampled_from(["00", "23", "24"]),
    st.sampled_from(["00", "59", "60"]),
    st.one_of(digits, st.sampled_from(["59", "60", "61"])),
    st.sampled_from(["", ".5", ".999999999999999999999", "." + "9" * 400, ".", ",5"]),
    st.sampled_from(["Z", "z", "+00:00", "-00:00", "+23:59", "-23:59", "+24:00", "+01:99", ""]),
)


known = st.sampled_from(["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:60-23:59"])


@given(st.one_of(known, likely, st.datetimes().map(lambda time: f"{time.isoformat()}Z"), st.text()))
@settings(max_examples=150, deadline=None)
def test_any_time_is_refused_by_name_or_shown(time: str) -> None:
    """Each answer is a 400 that names the time, or a 200 after which every page is there."""
    variables = {"FEEDBACK_WINDOWS": "1s,1h,5200w", "FEEDBACK_REPLY_WINDOWS": "1s,5200w"}
    app = App(load(variables), open_store("memory:", 60))
    try:
        response = post(app, feedback(), time=time)
        client: Any = flask_app(app).test_client()
        if response.status == 400:
            assert field(response) == "ce-time"
        else:
            assert response.status == 200
            assert [client.get(path).status_code for path in PATHS] == [200] * len(PATHS)
    finally:
        app.close()


def test_a_clock_that_was_never_set_harms_nobody(tmp_path: Path) -> None:
    """The event counts for all time, as one that came late; other models are shown beside it."""
    with OwnServer(tmp_path) as server:
        assert server.feedback("1", "a/a/a/a").status == 200
        time = "0001-01-01T00:00:00+01:00"
        assert server.feedback("1", "b/b/b/b", time=time).status == 200
        assert set(server.models()) == {"a/a/a/a", "b/b/b/b"}
        view = server.get("/v1/models/b/b/b/b").json
        assert (view["events"], server.get("/v1/models/b/b/b/b?window=1d").json["events"]) == (1, 0)
        assert 'feedback_late_events_total{deployment_name="b"' in server.exposition()
        assert server.get("/", accept="text/html").status == 200
