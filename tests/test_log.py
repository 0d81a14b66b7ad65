"""The log: others' input forges no lines in it, and floods it with none."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest

from metrics.log import LIMIT_LINES, LIMIT_SECONDS, MAX_LINE, Limit, OneLine
from tests.servers_http import OwnServer

HOSTILE = "a\n[E 260101 00:00:00 metrics.app] forged\r\x1b[2J\x00\u2028\u202e\udc80"


@pytest.fixture
def log() -> tuple[logging.Logger, io.StringIO]:
    """A logger, and what its handler writes."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(OneLine())
    logger = logging.Logger("metrics.test")  # of this test alone
    logger.addHandler(handler)
    return logger, text


def test_a_message_is_one_line(log: tuple[logging.Logger, io.StringIO]) -> None:
    """Whatever stands in it: control characters, other ends of lines, or very much."""
    logger, text = log
    logger.warning("a model is refused: %s", HOSTILE)
    logger.warning("%s", "x" * 100_000)
    hostile, long, nothing = text.getvalue().split("\n")
    assert hostile.startswith("[W ")
    assert hostile.endswith(
        "a model is refused: a\ufffd[E 260101 00:00:00 metrics.app] forged"
        + ("\ufffd" * 2 + "[2J" + "\ufffd" * 4)
    )
    assert len(long) < MAX_LINE + 100
    assert nothing == ""


def test_no_line_of_a_traceback_passes_for_a_record(
    log: tuple[logging.Logger, io.StringIO],
) -> None:
    """An exception's text may be a sender's too."""
    logger, text = log
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("unforeseen")
    first, *others = text.getvalue().rstrip("\n").split("\n")
    assert first.startswith("[E ")
    assert others[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in others)
    assert not set("\r\x1b\x00\u2028\u202e\udc80") & set(text.getvalue())


def test_few_lines_of_one_kind_are_written() -> None:
    """The next line after the time says how many there were; other kinds are not concerned."""
    now = 0.0
    limit = Limit(lambda: now)

    def passes(level: int, message: str, *arguments: object) -> str:
        record = logging.LogRecord("metrics.x", level, "", 0, message, arguments, None)
        return record.getMessage() if limit.filter(record) else ""

    lines = [passes(logging.WARNING, "refused: %s", model) for model in range(1000)]
    assert list(filter(None, lines)) == [f"refused: {model}" for model in range(LIMIT_LINES)]
    assert passes(logging.ERROR, "another") == "another"
    assert all(passes(logging.INFO, "PROCESSING %d", number) for number in range(1000))
    now = LIMIT_SECONDS
    left_out = 1000 - LIMIT_LINES
    expected = f"refused: 100% ({left_out} more of its kind were left out)"
    assert passes(logging.WARNING, "refused: %s", "100%") == expected
    assert passes(logging.WARNING, "refused: %s", "b") == "refused: b"
    for number in range(5000):
        passes(logging.WARNING, f"kind {number}")
    assert len(limit._kinds) <= 1000


def test_models_past_the_limit_flood_no_log(tmp_path: Path) -> None:
    """A sender that invents models writes a few lines a minute, each of one line."""
    with OwnServer(tmp_path, FEEDBACK_MAX_MODELS="1") as server:
        assert server.feedback("1", "a/a/a/a").status == 200
        for number in range(100):
            assert server.feedback("1", f"b/b/b/\u202e{number}").status == 400
        lines = [line for line in server.log().splitlines() if "past FEEDBACK_MAX_MODELS" in line]
        assert len(lines) == LIMIT_LINES
        assert not any("\u202e" in line for line in lines)
