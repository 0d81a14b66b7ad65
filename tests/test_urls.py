"""URLs in messages: what is secret never shows, whatever is passed."""

from __future__ import annotations

import random

import pytest

from metrics.urls import HIDDEN, redacted

SHOWN = {
    "redis://cache:6379/2": "redis://cache:6379/2",
    "redis://[::1]:6379/2": "redis://[::1]:6379/2",
    "redis://[::1]/2": "redis://[::1]/2",
    "https://sink.example/path": "https://sink.example/path",
    "https://münchen.example": "https://münchen.example",
    "sqlite:///state/feedback.db": "sqlite:///state/feedback.db",
    "memory:": "memory:",
    "redis://user:S3CRET@cache:6379/2": f"redis://{HIDDEN}@cache:6379/2",
    "redis://:S3CRET@[::1]:6379/2": f"redis://{HIDDEN}@[::1]:6379/2",
    "redis://:S3C/RET@cache/2": f"redis://{HIDDEN}@cache/2",
    "redis://user:1/S3CRET@cache:1": f"redis://{HIDDEN}@cache:1",
    "redis://user:S3C@RET@cache": f"redis://{HIDDEN}@cache",
    "redis://user:1?S3C=RET@cache": f"redis://{HIDDEN}@cache",
    "redis://user:1#S3CRET@cache": f"redis://{HIDDEN}@cache",
    "redis://:[S3CRET@cache": f"redis://{HIDDEN}@cache",
    "https://sink.example?token=S3CRET": f"https://sink.example?{HIDDEN}",
    "https://sink.example/a#S3CRET": "https://sink.example/a",
}
UNREADABLE = {
    "redis://:S3CRET": "redis://",
    "redis://cache:S3CRET/0": "redis://",
    "redis://S3%CRET": "redis://",
    "redis://S3CRET%40cache": "redis://",
    "http://[S3CRET": "http://",
    "http://sink.example:1:S3CRET": "http://",
    "http://sink/S3\nCRET": "http://",
    "http://sink/\x1b[31mS3CRET": "http://",
    "user:S3CRET@cache": "",
    "S3CRET": "",
    "": "",
    "redis:S3CRET": "",
}


@pytest.mark.parametrize("url", SHOWN)
def test_shows_where_it_leads(url: str) -> None:
    """Host, port and path are shown; user, password, query and fragment are not."""
    assert redacted(url) == SHOWN[url]


@pytest.mark.parametrize("url", UNREADABLE)
def test_hides_what_is_no_url(url: str) -> None:
    """Of what cannot be read only the scheme is shown."""
    assert redacted(url) == UNREADABLE[url] + HIDDEN


def test_never_raises_and_never_shows_a_password() -> None:
    """Any text passes; whatever stands around a password, it is not shown."""
    chance = random.Random(14)
    signs = ["/", "?", "#", "@", ":", "[", "]", "%", "\\", " ", "\0", "\n", "ä", "1", "//", "="]
    for _ in range(20_000):
        texts = ["".join(chance.choices(signs, k=chance.randrange(4))) for _ in range(3)]
        url = f"{chance.choice(['redis', 'http', ''])}://u{texts[0]}:S3{texts[1]}CRET{texts[2]}@h"
        shown = redacted(url)
        assert "S3" not in shown, url
        assert "CRET" not in shown, url
        assert shown.isprintable(), url
