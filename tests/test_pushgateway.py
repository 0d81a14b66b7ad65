"""Totals that outlive their server: a real Pushgateway, and some that refuse or never answer."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metrics.pushgateway import lasting

from .servers_http import (
    OwnServer,
    ParliamentServer,
    Server,
    attributes,
    environment,
    feedback,
    free_port,
    message,
    series,
    until,
)

IRIS = "seldon/iris/default/classifier"


class Gateway:
    """Debian's prometheus-pushgateway."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("prometheus-pushgateway")
        if program is None:
            assert not os.environ.get("CI"), "CI needs Debian's package prometheus-pushgateway"
            pytest.skip("prometheus-pushgateway is not installed (Debian's package of that name)")
        self.address = f"127.0.0.1:{free_port()}"
        words = [program, f"--web.listen-address={self.address}"]
        words += [f"--persistence.file={directory}/pushgateway"]  # Debian's default outlives tests
        with open(directory / "pushgateway.log", "wb") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        until(self._serves, 30)

    def _serves(self) -> bool:
        try:
            self.text()
        except OSError:
            assert self._process.poll() is None, "the Pushgateway ended"
            return False
        return True

    def text(self) -> str:
        """What it exposes."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=30) as answer:
            return answer.read().decode()

    def accepted(self) -> float:
        """Accepted events of iris that it was told of."""
        return sum(series(self.text(), "feedback_events_total{", 'outcome="accepted"').values())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(30)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """A running Pushgateway."""
    gateway = Gateway(tmp_path)
    yield gateway
    gateway.close()


def send(server: Server, first: int, last: int) -> None:
    """Post events with the ids first..last."""
    for id in range(first, last + 1):
        assert server.feedback(str(id), IRIS, [id % 3], [0]).status == 200


def models(exposition: str) -> dict[str, float]:
    """The series of models over all time, without the labels that a gateway adds."""
    found = {}
    for family in text_string_to_metric_families(exposition):
        for name, labels, value, *_ in family.samples:
            labels.pop("job", None)
            assert not labels.pop("instance", "")
            if "deployment_name" in labels and labels.get("window", "all") == "all":
                found[str((name, sorted(labels.items())))] = value
    return found


@pytest.mark.parametrize("kind", [OwnServer, ParliamentServer], ids=lambda kind: kind.kind)
def test_a_gateway_has_the_totals_after_commits_and_of_a_server_that_ended(
    gateway: Gateway, tmp_path: Path, kind: type[Server]
) -> None:
    """Pushed at an interval, then once more on SIGTERM: what a scrape would have said last."""
    server = kind(
        tmp_path, FEEDBACK_PUSHGATEWAY_URL=gateway.address, FEEDBACK_PUSHGATEWAY_INTERVAL="0.1"
    )
    with server:
        send(server, 1, 5)
        until(lambda: gateway.accepted() == 5)
        until(lambda: pushes(server, "pushed") >= 1)
    server.variables["FEEDBACK_PUSHGATEWAY_INTERVAL"] = "1h"
    with server:
        send(server, 1, 9)
        last = server.exposition()
        assert gateway.accepted() == 5
        server.terminate()
    assert gateway.accepted() == 9
    pushed = gateway.text()
    assert models(pushed) == models(last)
    assert len(models(last)) > 30
    assert 'job="feedback-metrics"' in next(iter(series(pushed, "feedback_events_total{")))
    assert series(pushed, "feedback_commit_seconds") == {}
    assert series(pushed, 'window="5m"') == {}


def test_workers_push_one_truth(gateway: Gateway, tmp_path: Path) -> None:
    """Each worker pushes what all have committed; what the gateway shows never falls."""
    server = OwnServer(
        tmp_path,
        FEEDBACK_PUSHGATEWAY_URL=gateway.address,
        FEEDBACK_PUSHGATEWAY_INTERVAL="0.02",
        FEEDBACK_PUSHGATEWAY_JOB="two",
        WEB_CONCURRENCY="2",
    )
    with server:
        seen = [0.0]
        for id in range(1, 121):
            server.hang_up()  # the next connection may be another worker's
            send(server, id, id)
            seen.append(gateway.accepted())
        assert seen == sorted(seen)
        assert server.terminate() == 0
    assert gateway.accepted() == 120
    assert 'job="two"' in next(iter(series(gateway.text(), "feedback_events_total{")))


class Rude(ThreadingHTTPServer):
    """Answers every request with 500."""

    daemon_threads = True

    def __init__(self, status: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_PUT(handler) -> None:  # noqa: N805
                handler.rfile.read(int(handler.headers["content-length"]))
                handler.send_response(self.status)
                handler.send_header("content-length", "0")
                handler.end_headers()

            def log_message(handler, *_: Any) -> None:  # noqa: N805
                pass

        self.status = status
        super().__init__(("127.0.0.1", 0), Handler)
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


def pushes(server: Server, outcome: str) -> float:
    """Pushes by what became of them, as the server counts them."""
    return series(server.exposition())[f'feedback_pushes_total{{outcome="{outcome}"}}']


def test_a_gateway_that_refuses_is_counted_told_once_and_tried_again(tmp_path: Path) -> None:
    """One line in the log for many failures; and when it gets totals again, one more."""
    rude = Rude(500)
    try:
        with OwnServer(
            tmp_path,
            FEEDBACK_PUSHGATEWAY_URL=f"http://127.0.0.1:{rude.server_address[1]}",
            FEEDBACK_PUSHGATEWAY_INTERVAL="0.02",
        ) as server:
            send(server, 1, 1)
            until(lambda: pushes(server, "failed") >= 3)
            assert server.log().count("the Pushgateway does not get totals") == 1
            rude.status = 202
            until(lambda: "the Pushgateway gets totals again" in server.log())
            until(lambda: pushes(server, "pushed") >= 1)
    finally:
        rude.shutdown()
        rude.server_close()


@pytest.mark.parametrize("silent", [False, True], ids=["down", "silent"])
def test_a_gateway_that_is_down_is_in_nobodys_way(tmp_path: Path, silent: bool) -> None:
    """Nobody listens, or nobody answers: feedback is taken, and SIGTERM ends it in order."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if silent:
            deaf.listen()
        with OwnServer(
            tmp_path,
            FEEDBACK_PUSHGATEWAY_URL=f"127.0.0.1:{deaf.getsockname()[1]}",
            FEEDBACK_PUSHGATEWAY_INTERVAL="0.01",
        ) as server:
            send(server, 1, 50)
            until(lambda: pushes(server, "failed") >= 1, 30)
            assert server.terminate() == 0
            server.start()
            assert server.models()[IRIS]["events"] == 50


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("FEEDBACK_PUSHGATEWAY_URL", "ftp://gateway"),
        ("FEEDBACK_PUSHGATEWAY_URL", "http://"),
        ("FEEDBACK_PUSHGATEWAY_INTERVAL", "0"),
        ("FEEDBACK_PUSHGATEWAY_INTERVAL", "often"),
        ("FEEDBACK_PUSHGATEWAY_JOB", "a/b"),
    ],
)
def test_a_broken_setting_is_one_line_at_start(tmp_path: Path, variable: str, text: str) -> None:
    """Exit status 2, and a line that names the variable."""
    server = OwnServer(tmp_path)
    done = subprocess.run(
        server.command(),
        env=environment(FEEDBACK_STORE="memory:", PORT=str(free_port()), **{variable: text}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"feedback-metrics: {variable}: ")


def test_a_tag_called_job_does_not_have_the_push_refused(gateway: Gateway, tmp_path: Path) -> None:
    """The gateway's label is its own; series that differ in the tag alone stay apart."""
    with OwnServer(tmp_path, FEEDBACK_PUSHGATEWAY_URL=gateway.address) as server:
        tagged = [
            {"key": "clicks", "value": value, "tags": {"job": job, "instance": "i"}}
            for value, job in enumerate(("a", "b", 'job="c'), 1)
        ]
        truth = {**message([1]), "meta": {"metrics": tagged}}
        about = attributes("1", IRIS)
        assert server.event({**feedback(), "truth": truth}, about).status == 200
        assert server.terminate() == 0
    found = series(gateway.text(), "clicks_total{")
    assert sorted(found.values()) == [1, 2, 3]
    assert all('exported_job="' in name for name in found)


def test_only_what_lasts_is_pushed() -> None:
    """Samples of models over all time, whatever their labels say."""
    kept = (
        b'feedback_score{deployment_name="a",score="f1",window="all"} 1.0\n'
        b'feedback_rows_total{deployment_name="window=\\"5m\\""} 1.0\n'
        b'mine{deployment_name="a",window="seat"} 1.0\n'
        b'mine{deployment_name="a,job=\\"b\\"",jobs="job="} 1.0\n'
        b'seldon_metric_true_positive_total{deployment_name="a"} 1.0\n'
    )
    gone = (
        b'feedback_score{deployment_name="a",score="f1",window="5m"} 1.0\n'
        b'feedback_score_rows{deployment_name="a",window="1h"} 1.0\n'
        b"feedback_queue_events 0.0\n"
        b'feedback_build_info{version="deployment_name=\\"a\\""} 1.0\n'
    )
    help = b"# HELP feedback_score A score.\n# TYPE feedback_score gauge\n"
    assert lasting(help + gone + kept) == help + kept
    tagged = b'mine{deployment_name="a",job="b"} 1.0\nmine{deployment_name="a",x="",job="c"} 1.0\n'
    assert lasting(tagged) == tagged.replace(b',job="', b',exported_job="')
