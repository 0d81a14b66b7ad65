"""Passwords and tokens in settings are in no message, whatever is wrong with the setting."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from metrics.config import SETTINGS
from tests.servers import free_port
from tests.servers_http import OwnServer, attributes, environment, until

SECRET = "S3cretWord"
PARTS = ("S3cret", "Word", base64.b64encode(f"user:{SECRET}".encode()).decode())
"""None of them may be shown."""
GARBAGE = (
    f"ftp://user:{SECRET}@place.invalid/x",
    f"http://user:S3cret/Word@place.invalid:x/y?token={SECRET}",
    f"user:{SECRET}@place.invalid",
    f"http://user:{SECRET}@[::1/x.y",
    f"http://place.invalid:99999/?token={SECRET}&x#{SECRET}",
    f"sqlite://user:{SECRET}@place.invalid/x.db?journal=S3cret",
    f"redis://user:S3cret/Word@place.invalid:6379/{SECRET}@x",
    f"redis://:{SECRET}@place.invalid:port/0?{SECRET}=1",
)
LOCAL = {"FEEDBACK_STORE": "memory:", "HOST": "127.0.0.1"}

CHECK = """
import os, sys
from metrics import config, log
from metrics.errors import FeedbackMetricsError
from metrics.host import build
garbage = os.environ.pop("GARBAGE").split("\\n")
for setting in config.SETTINGS:
    for text in garbage:
        for flags in ({}, {setting.flag: text}):
            environ = {"FEEDBACK_STORE": "memory:"} if flags else {
                "FEEDBACK_STORE": "memory:", setting.variable: text}
            print("#", setting.variable, *flags, file=sys.stderr)
            try:
                settings = config.load(environ, flags)
                log.configure(settings.log_level)
                if setting.field in ("sink", "pushgateway", "oidc_issuer", "store"):
                    continue  # they would be asked: other tests do
                build(settings).close()
            except FeedbackMetricsError as error:
                print(f"feedback-metrics: {error}", file=sys.stderr)
"""


def test_no_setting_shows_a_secret(tmp_path: Path) -> None:
    """Each setting, as variable and as flag, set to things that it cannot be, or must not show."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=tmp_path,
        env=environment(GARBAGE="\n".join(GARBAGE)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stderr.splitlines()
    assert sum(line.startswith("# ") for line in lines) == 2 * len(GARBAGE) * len(SETTINGS)
    assert len(lines) > 3 * len(SETTINGS)
    shown, at = [], ""
    for line in lines:
        at = line if line.startswith("# ") else at
        if any(part in line for part in PARTS):
            shown.append((at, line))
    assert shown == []


def run(tmp_path: Path, **variables: str) -> tuple[int, str]:
    """Start a server that cannot start; its status and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "metrics", "serve"],
        cwd=tmp_path,
        env=environment(PORT=str(free_port()), **{**LOCAL, **variables}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["K_SINK", "FEEDBACK_PUSHGATEWAY_URL", "FEEDBACK_OIDC_ISSUER"])
@pytest.mark.parametrize("text", [each for each in GARBAGE if not each.startswith("user:")])
def test_a_server_that_cannot_start_shows_none(tmp_path: Path, name: str, text: str) -> None:
    """One line that names the variable."""
    status, said = run(tmp_path, **{name: text})
    assert status == 2, said
    (line,) = said.splitlines()
    assert line.startswith(f"feedback-metrics: {name}: ")
    assert not any(part in said for part in PARTS)


@pytest.mark.parametrize("text", [*GARBAGE, f"http://user:{SECRET}@127.0.0.1:1/x?t={SECRET}"])
def test_no_command_shows_one(tmp_path: Path, text: str) -> None:
    """A server's address, by which nothing can be reached."""
    done = subprocess.run(
        [sys.executable, "-m", "metrics", "show", "--url", text],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert not any(part in done.stdout + done.stderr for part in PARTS)
    assert len(done.stderr.splitlines()) == 1


# --- what user and password are for ---------------------------------------------------------------


class Guarded(ThreadingHTTPServer):
    """Answers 202 to whoever says the password, and 401 to others; keeps the paths it saw."""

    daemon_threads = True

    def __init__(self) -> None:
        guarded = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                said = self.headers.get("authorization", "")
                guarded.seen.append((said, self.path))
                self.send_response(202 if said == f"Basic {PARTS[2]}" else 401)
                self.send_header("content-length", "0")
                self.end_headers()

            do_PUT = do_POST  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str]] = []
        self.place = f"user:{SECRET}@127.0.0.1:{self.server_address[1]}"
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    """A server that wants a password."""
    server = Guarded()
    yield server
    server.shutdown()
    server.server_close()


def test_a_sink_and_a_gateway_are_told_them(tmp_path: Path, guarded: Guarded) -> None:
    """As the URL has them, in a header; nobody else is."""
    with OwnServer(
        tmp_path,
        K_SINK=f"http://{guarded.place}/sink?token={SECRET}",
        FEEDBACK_PUSHGATEWAY_URL=guarded.place,
        FEEDBACK_PUSHGATEWAY_INTERVAL="0.05",
    ) as server:
        assert server.feedback("1").status == 202
        until(lambda: len(guarded.seen) >= 2)
        assert set(guarded.seen) == {
            (f"Basic {PARTS[2]}", f"/sink?token={SECRET}"),
            (f"Basic {PARTS[2]}", "/metrics/job/feedback-metrics"),
        }
        assert not any(part in server.log() for part in PARTS)


def test_those_that_are_down_are_told_of_without(tmp_path: Path) -> None:
    """What is logged, and what a stranger is answered, when none of them can be reached."""
    place = f"user:{SECRET}@127.0.0.1:{free_port()}/{SECRET}?token={SECRET}"
    with OwnServer(
        tmp_path,
        K_SINK=f"http://{place}",
        FEEDBACK_PUSHGATEWAY_URL=f"http://user:{SECRET}@localhost:{free_port()}",
        FEEDBACK_PUSHGATEWAY_INTERVAL="0.05",
        FEEDBACK_OIDC_ISSUER=f"http://{place}",
    ) as server:
        assert server.feedback("1").status == 202
        until(lambda: "the sink does not take events" in server.log())
        until(lambda: "the Pushgateway does not get totals" in server.log())
        server.terminate()
        server.variables["FEEDBACK_OIDC_AUDIENCE"] = "us"
        server.start()
        token = jwt.encode({"aud": "us"}, rsa.generate_private_key(65537, 2048), "RS256")
        named = {f"ce_{name}": text for name, text in attributes("2").items()}
        for issuer in (f"http://{place}", f"https://{place}", f"http://user:{SECRET}@localhost"):
            server.terminate()
            server.variables["FEEDBACK_OIDC_ISSUER"] = issuer
            server.start()
            answer = server.post(b"{}", authorization=f"Bearer {token}", **named)
            assert answer.status == 503, answer
            assert not any(part in answer.text for part in PARTS)
        assert not any(part in server.log() for part in PARTS)
