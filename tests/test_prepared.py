"""Answers that are made while their commit waits: used where they are true, and only there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
import pytest

from metrics.app import App
from metrics.committer import Work
from metrics.config import load
from metrics.host import build
from metrics.replies import Response
from metrics.state import State
from tests.servers_http import FEEDBACK, feedback

HEADERS = {
    "content-type": "application/json",
    "ce-specversion": "1.0",
    "ce-source": "/tests",
    "ce-type": FEEDBACK,
    "ce-modelid": "m",
}
BODY = orjson.dumps(feedback(1, 0))


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """An app on a file."""
    app = build(load({"FEEDBACK_STORE": f"sqlite:///{tmp_path}/feedback.db"}))
    yield app
    app.close()


def send(app: App, id: str) -> Response:
    """Post one event."""
    return app.post_sync({**HEADERS, "ce-id": id}, BODY)


def events(response: Response) -> int:
    """How many events the answer's view has."""
    count: int = orjson.loads(response.body)["events"]
    return count


def test_the_answer_is_the_one_that_was_made_ahead(app: App) -> None:
    """Whoever commits tells the host ahead, and what it has made then is what is answered."""
    made: list[Response] = []

    def ahead(works: Sequence[Work], state: State) -> None:
        app.prepare(works, state)
        made.extend(work.prepared[2] for work in works)  # type: ignore[attr-defined]

    plain = send(app, "1")
    app.committer.ahead = ahead
    answers = [send(app, "1"), send(app, "2")]
    assert [answer is ahead_of for answer, ahead_of in zip(answers, made, strict=True)] == [1, 1]
    assert [events(answer) for answer in (plain, *answers)] == [1, 1, 2]


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_for_another_state_is_not_used(app: App, late: bool) -> None:
    """What was foreseen and did not come about is not told, and neither is what is old."""
    send(app, "1")
    of_old = app.read()

    def ahead(works: Sequence[Work], state: State) -> None:
        app.prepare(works, state)
        app.prepare(works, of_old)

    app.committer.ahead = ahead
    if late:
        send(app, "2")
    assert events(send(app, "3")) == 2 + late
