"""The command line, through subprocess, on real files, real servers and real stores."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from metrics.state import State
from metrics.store import open_store
from tests.servers import RedisServer
from tests.servers_http import OwnServer, attributes, environment, feedback, free_port, until

Run = subprocess.CompletedProcess[str]
IRIS = "seldon/iris/default/classifier"
SECONDS = 120
"""What no command takes, however busy the machine."""


def words(*arguments: object) -> list[str]:
    """The command line of a command."""
    return [sys.executable, "-m", "metrics", *map(str, arguments)]


def run(*arguments: object, input: str | None = None, **variables: str) -> Run:
    """Run a command to its end; it never shows a traceback."""
    done = subprocess.run(
        words(*arguments),
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment(**variables),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def fails(*arguments: object, status: int = 2, **options: Any) -> str:
    """The one line on stderr of a command that fails with `status`."""
    done = run(*arguments, **options)
    assert (done.returncode, done.stdout) == (status, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("feedback-metrics: "), line
    return line.removeprefix("feedback-metrics: ")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """A server for this module; each test has models of its own."""
    with OwnServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def server(shared: OwnServer) -> OwnServer:
    """The shared server by a new connection: it closes those that were idle for long."""
    shared.hang_up()
    return shared


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    """The URL of a Redis server for this module."""
    with RedisServer() as running:
        yield running.url


def url(server: OwnServer) -> str:
    return f"http://127.0.0.1:{server.port}"


def send(server: OwnServer, model: str, *arguments: object, **options: Any) -> Run:
    """Send files about a model of this name."""
    return run("send", *arguments, "--url", url(server), "--model", model, **options)


def view(server: OwnServer, model: str) -> dict[str, Any]:
    """What the server answers about a model of this name, or of an id of four parts.

    On a new connection: servers close those that were idle while commands ran.
    """
    server.hang_up()
    path = model if "/" in model else f"default/default/default/{model}"
    found: dict[str, Any] = server.get(f"/v1/models/{path}").json
    return found


def line(truth: Any, response: Any, **more: Any) -> str:
    return json.dumps({**feedback(response, truth), **more})


# --- send -------------------------------------------------------------------------------------


def test_a_broken_line_is_named_and_all_others_are_sent(server: OwnServer, tmp_path: Path) -> None:
    """In each format; what only the server refuses is named with its reason."""
    csv, lines, array = tmp_path / "a.csv", tmp_path / "b.jsonl", tmp_path / "c.json"
    csv.write_text('truth,prediction\n1,1\n0,1,9\n"0,1\nnan,1\n\n1,\n0,0\n')
    lines.write_text("\n".join((line(1, 1), '{"truth": ', "[1]", '{"truth": {}}', line(0, 0))))
    array.write_text(f"[{line(1, 0)},\n{{}},\n{line([1, 1], 0)},\n{line(0, 0)},\n oops]")
    done = send(server, "broken", csv, lines, array, "--json")
    assert done.returncode == 1
    named = sorted(text.split(": ")[0] for text in done.stderr.splitlines())
    expected = [*(f"{csv}:{n}" for n in (3, 4, 5, 7)), *(f"{lines}:{n}" for n in (2, 3, 4))]
    assert named == [*expected, *(f"{array}:{n}" for n in (2, 3, 5))], done.stderr
    assert "column" not in done.stderr or "truth" in done.stderr
    (refused,) = (text for text in done.stderr.splitlines() if f"{array}:3" in text)
    assert "HTTP 400" in refused
    summary = json.loads(done.stdout)
    del summary["seconds"]
    assert summary == {"taken": 6, "refused": 1, "given_up": 0, "broken": 9, "retries": 0}
    assert view(server, "broken")["events"] == 6
    assert view(server, "broken")["scores"]["accuracy"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("pipe", [False, True], ids=["file", "pipe"])
def test_a_file_sent_again_counts_once(server: OwnServer, tmp_path: Path, pipe: bool) -> None:
    """Equal lines count each; another file, or --fresh-ids, counts again."""
    model = f"again-{pipe}"
    file = tmp_path / "feedback.csv"
    file.write_text("truth,prediction\n" + "1,1\n" * 20)
    source: tuple[Any, dict[str, Any]] = (file, {})
    if pipe:
        source = ("-", {"input": file.read_text()})
    for _ in range(2):
        done = send(server, model, source[0], **source[1])
        assert done.returncode == 0, done
        assert done.stdout.startswith("20 taken, 0 refused, 0 given up, 0 broken lines"), done
        assert view(server, model)["events"] == 20
    assert send(server, model, source[0], "--fresh-ids", **source[1]).returncode == 0
    assert view(server, model)["events"] == 40
    other = tmp_path / "other.csv"
    other.write_text("truth,prediction\n1,1\n0,0\n")
    assert send(server, model, other).returncode == 0
    assert view(server, model)["events"] == 42


def test_csv_has_probabilities_rewards_times_and_names(server: OwnServer, tmp_path: Path) -> None:
    """Columns p0, p1, … or named ones; tabs and byte order marks are fine."""
    file = tmp_path / "rows.csv"
    file.write_text(
        "\ufefftruth\tp0\tp1\treward\ttime\n1\t0.3\t0.7\t1\t1700000000\n0\t.2\t.8\t\t\n"
    )
    assert send(server, "csv", file).returncode == 0
    seen = view(server, "csv")
    assert seen["scores"]["accuracy"] == 0.5
    assert seen["reward"]["sum"] == 1
    assert 'model_name="csv"' in server.exposition()
    late = [text for text in server.exposition().splitlines() if text.startswith("feedback_late")]
    assert any('model_name="csv"' in text and text.endswith(" 1.0") for text in late), late
    file.write_text("truth;no;yes\nyes;0.1;0.9\nno;0.6;0.4\n")
    done = send(server, "named", file, "--probabilities", "no,yes", "--text")
    assert done.returncode == 0, done
    classes = {each["class"]: each["support"] for each in view(server, "named")["classes"]}
    assert classes == {"no": 1, "yes": 1}
    file.write_text("prediction\n1\n")
    done = send(server, "csv", file)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{file}:1: the header needs one column 'truth'")


def test_records_of_two_models_may_bear_the_same_ids(server: OwnServer, tmp_path: Path) -> None:
    """An id is a duplicate within its model, in whichever file."""
    for model in ("ids-a", "ids-b"):
        for name in ("one", "two"):
            file = tmp_path / f"{name}.csv"
            file.write_text(f"truth,prediction,id\n1,1,same\n0,0,{name}\n")
            assert send(server, model, file).returncode == 0
        assert view(server, model)["events"] == 3


def test_cloud_events_keep_their_attributes(server: OwnServer, tmp_path: Path) -> None:
    """A structured event is of the model and id that it says, whatever the options say."""
    file = tmp_path / "events.jsonl"
    event = {**attributes("1", "seldon/own/default/own"), "data": feedback(1, 1)}
    file.write_text(f"{json.dumps(event)}\n{json.dumps(event)}\n")
    assert send(server, "other", file).returncode == 0
    assert view(server, "seldon/own/default/own")["events"] == 1


class Flaky(BaseHTTPRequestHandler):
    """Answers as `script` says, then 202; keeps the ids of all that came."""

    protocol_version = "HTTP/1.1"
    script: list[tuple[int, dict[str, str]] | None]
    ids: list[str]

    def do_POST(self) -> None:
        """One try."""
        self.rfile.read(int(self.headers["content-length"]))
        self.ids.append(self.headers["ce-id"])
        answer = self.script.pop(0) if self.script else (202, {})
        if answer is None:
            self.close_connection = True
            return
        self.send_response(answer[0])
        for name, text in answer[1].items():
            self.send_header(name, text)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def flaky(script: list[Any]) -> tuple[ThreadingHTTPServer, type[Flaky]]:
    """A broker that answers so, and what it saw."""
    handler = type("Scripted", (Flaky,), {"script": script, "ids": []})
    broker = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=broker.serve_forever, daemon=True).start()
    return broker, handler


def test_what_may_succeed_later_is_tried_again_under_one_id(tmp_path: Path) -> None:
    """No answer, 429 and 503 are retried; 400 is not, and is named."""
    file = tmp_path / "a.csv"
    file.write_text("truth,prediction,id\n1,1,a\n0,1,b\n")
    script = [(503, {"retry-after": "1"}), None, (429, {}), (202, {}), (400, {})]
    broker, seen = flaky(script)
    try:
        address = f"http://127.0.0.1:{broker.server_address[1]}/ns/default"
        done = run("send", file, "--url", address, "--connections", 1)
    finally:
        broker.shutdown()
        broker.server_close()
    assert done.returncode == 1
    # An old connection that breaks may have been closed while idle: that is not counted as a try.
    assert done.stdout.startswith("1 taken, 1 refused, 0 given up, 0 broken lines, 2 retries")
    assert seen.ids == ["a"] * 4 + ["b"]
    assert done.stderr == f"{file}:3: refused: HTTP 400: Bad Request\n"


def test_a_dead_broker_is_given_up(tmp_path: Path) -> None:
    """Each event after its tries, and the rest after ten in a row."""
    file = tmp_path / "a.csv"
    file.write_text("truth,prediction\n" + "1,1\n" * 100)
    broker, seen = flaky([(500, {})] * 1000)
    try:
        address = f"http://127.0.0.1:{broker.server_address[1]}"
        done = run("send", file, "--url", address, "--connections", 1, "--retries", 0)
    finally:
        broker.shutdown()
        broker.server_close()
    assert done.returncode == 1
    assert len(seen.ids) == 10
    assert done.stderr.splitlines()[-1] == "gave up: the rest was not sent"
    assert done.stdout.startswith("0 taken, 0 refused, 10 given up")


def test_nobody_there_and_no_such_file_are_one_line(tmp_path: Path) -> None:
    """Exit status 2, and nothing on stdout."""
    file = tmp_path / "a.csv"
    file.write_text("truth,prediction\n1,1\n")
    address = f"http://127.0.0.1:{free_port()}"
    said = fails("send", file, "--url", address, "--retries", 1)
    assert said == f"{address}: Connection refused; nothing was sent"
    assert fails("send", tmp_path / "none.csv") == f"{tmp_path}/none.csv: No such file or directory"
    assert "is no http://" in fails("send", file, "--url", "ftp://example.org")
    assert "Is a directory" in fails("send", tmp_path)
    done = run("send", file, "--rate", "0")
    assert (done.returncode, "must be more than 0" in done.stderr) == (2, True)


def test_interrupting_send_ends_it(server: OwnServer) -> None:
    """Ctrl-C while stdin is still open: exit status 130, a summary, no traceback."""
    arguments = ("send", "-", "--format", "csv", "--url", url(server), "--model", "interrupted")
    process = subprocess.Popen(
        words(*arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdin
    process.stdin.write("truth,prediction\n1,1\n")
    process.stdin.flush()
    until(lambda: view(server, "interrupted").get("events") == 1, SECONDS)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert out.startswith("1 taken")
    assert err == "interrupted: the rest was not sent\n"


def test_a_terminal_sees_progress(server: OwnServer, tmp_path: Path) -> None:
    """A line that is drawn over itself, at the rate that was asked for."""
    file = tmp_path / "a.csv"
    file.write_text("truth,prediction\n" + "1,1\n" * 8)
    ours, theirs = pty.openpty()
    arguments = words("send", file, "--url", url(server), "--model", "tty", "--rate", 8)
    done = subprocess.run(
        arguments, stdout=subprocess.PIPE, stderr=theirs, timeout=SECONDS, env=environment()
    )
    os.close(theirs)
    drawn = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "\r\x1b[K[####" in drawn
    assert " taken, " in drawn


# --- show -------------------------------------------------------------------------------------


def test_show_says_the_same_of_a_server_and_its_store(server: OwnServer, tmp_path: Path) -> None:
    """As JSON and as tables, by any part of a model's id that is unambiguous."""
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(line([n % 3], [[0.1, 0.2, 0.7]]) for n in range(30)))
    named = ("--namespace", "seldon", "--deployment", "shown", "--predictor", "p")
    assert send(server, "m", file, *named).returncode == 0
    store = f"sqlite:///{server.file}"
    for window in ("all", "1h"):
        arguments = ("show", "shown", "--window", window)
        answered = run(*arguments, "--json", "--url", url(server))
        assert answered.returncode == 0, answered
        seen = json.loads(answered.stdout)
        assert seen["scores"]["accuracy"] == pytest.approx(1 / 3)
        stored = json.loads(run(*arguments, "--json", "--store", store).stdout)
        assert stored["scores"] == seen["scores"]
        assert stored["classes"] == seen["classes"]
        tables = [
            run(*arguments, *at).stdout for at in (("--url", url(server)), ("--store", store))
        ]
        assert tables[0] == tables[1]
        rows = [text.split() for text in tables[0].splitlines()]
        assert ["model", "seldon/shown/p/m"] in rows
        assert ["accuracy", "0.333333"] in [row[:2] for row in rows]
        assert ["2", "0", "0", "10"] in rows, "the confusion matrix"
    models = [run("show", *at).stdout for at in (("--url", url(server)), ("--store", store))]
    assert models[0] == models[1]
    row = next(text for text in models[0].splitlines() if text.startswith("seldon/shown/p/m"))
    assert row.split()[1:4] == ["multiclass", "30", "30"]


def test_show_of_what_does_not_exist_is_one_line(server: OwnServer, tmp_path: Path) -> None:
    """Models, windows, servers, stores, other people's servers and files."""
    server.feedback("1", "a/twin/c/x")
    server.feedback("2", "a/twin/c/y")
    store = f"sqlite:///{server.file}"
    for at in (("--url", url(server)), ("--store", store)):
        assert "'nobody'" in fails("show", "nobody", *at)
        assert "a/b/c/d" in fails("show", "a/b/c/d", *at)
        assert "2 models: a/twin/c/x, a/twin/c/y" in fails("show", "twin", *at)
        assert "one of all, 5m, 1h, 1d" in fails("show", "a/twin/c/x", "--window", "3h", *at)
    assert "Connection refused" in fails("show", "--url", f"127.0.0.1:{free_port()}")
    missing = tmp_path / "none.db"
    assert (
        fails("show", "--store", f"sqlite:///{missing}") == f"--store: there is no file {missing}"
    )
    assert not missing.exists()
    assert "is no http://" in fails("show", "--url", "http://")
    assert "\u2603" in fails("show", "--url", "http://host/\u2603")
    assert "http://a..b" in fails("show", "--url", "http://a..b")
    assert "ask that with --url" in fails("show", "--store", "memory:")
    assert "is no store" in fails("show", "--store", "mysql://x")
    assert "sqlite:///relative" in fails("show", "--store", "sqlite:x")
    assert "127.0.0.1" in fails("show", "--store", f"redis://127.0.0.1:{free_port()}")
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"not a database, but long enough to be looked at" * 100)
    assert "foreign.db" in fails("show", "--store", f"sqlite:///{foreign}")
    assert foreign.read_bytes().startswith(b"not a database")


def test_watch_follows_until_it_is_interrupted(server: OwnServer) -> None:
    """A new line of JSON at each look, with what was counted since."""
    server.feedback("1", "a/watched/c/d")
    process = subprocess.Popen(
        words("show", "watched", "--json", "--watch", 0.1, "--url", url(server)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout
    assert json.loads(process.stdout.readline())["events"] == 1
    server.hang_up()
    server.feedback("2", "a/watched/c/d")
    until(lambda: process.stdout and json.loads(process.stdout.readline())["events"] == 2, SECONDS)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (130, "")


def test_a_reader_that_has_seen_enough_is_no_error(server: OwnServer) -> None:
    """`show --watch | head -1`."""
    server.feedback("1", "a/piped/c/d")
    process = subprocess.Popen(
        words("show", "piped", "--watch", 0.1, "--url", url(server)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(SECONDS) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


# --- export, import ---------------------------------------------------------------------------


def state(url: str) -> State:
    """What a store holds."""
    store = open_store(url, 86400)
    try:
        store.commit([], 1.0)
        return store.read()
    finally:
        store.close()


def content(url: str) -> dict[str, Any]:
    """All that is counted in a store, without the marks of imports."""
    return {
        model: (
            known.panes,
            known.gauges,
            {name: text for name, text in known.constants.items() if "imported" not in name},
        )
        for model, known in state(url).models.items()
    }


@pytest.fixture
def filled(tmp_path: Path) -> str:
    """The URL of a store with several models, floats and segments in it."""
    with OwnServer(tmp_path, FEEDBACK_SEGMENTS="country") as server:
        for n in range(20):
            about = attributes(str(n), IRIS, country="dä" if n % 2 else "x")
            assert server.event(feedback([[0.1, 0.3, 0.6]], [n % 3], reward=0.1), about)
            server.feedback(str(n), "seldon/price/default/r", [0.1 * n], [0.7 + n / 3])
            server.feedback(str(n), "seldon/names/default/\u00e4", "<b>", "\u2603")
        assert server.event(feedback(1, 1), attributes("0", IRIS)).status == 200  # a duplicate
        assert len(server.models()) == 3
        assert server.terminate() == 0
        return f"sqlite:///{server.file}"


def test_an_import_into_an_empty_store_is_equal_to_the_bit(
    filled: str, redis: str, tmp_path: Path
) -> None:
    """From SQLite to Redis and back to SQLite, by files and by pipes."""
    before = content(filled)
    assert len(before) == 3
    file, back = tmp_path / "a.json", f"sqlite:///{tmp_path}/back.db"
    done = run("export", "--store", filled, "-o", file)
    assert (done.returncode, done.stdout) == (0, ""), done
    assert content(filled) == before
    done = run("import", "--store", redis, file)
    assert done.returncode == 0, done
    assert done.stdout.startswith("added 3 models")
    assert content(redis) == before
    second = run("export", "--store", redis)
    assert second.returncode == 0, second
    assert run("import", "--store", back, "-", input=second.stdout).returncode == 0
    assert content(back) == before
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_an_export_is_added_once(filled: str, redis: str, tmp_path: Path, kind: str) -> None:
    """It merges by addition; the same one is refused, in whichever process, reset or not."""
    target = f"sqlite:///{tmp_path}/target.db" if kind == "sqlite" else f"{redis}/0"
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    for file in (one, two):
        assert run("export", "--store", filled, "-o", file).returncode == 0
    base = state(target).models[IRIS].all_time["rows"][()] if kind == "redis" else 0
    for file, total in ((one, 20), (two, 40)):
        assert run("import", "--store", target, file).returncode == 0
        for _ in range(2):
            assert "already; nothing was added" in fails(
                "import", "--store", target, file, status=1
            )
        assert state(target).models[IRIS].all_time["rows"][()] == base + total
    assert run("reset", IRIS, "--store", target, "--yes").returncode == 0
    done = run("import", "--store", target, one)
    assert done.stdout.startswith("added 1 models"), done
    assert "2 were imported before" in done.stdout
    assert state(target).models[IRIS].all_time["rows"][()] == 20
    price = state(target).models["seldon/price/default/r"].all_time
    assert price["rows"][()] == base + 40


def test_racing_imports_add_once(filled: str, tmp_path: Path) -> None:
    """Three processes import one export; all models are there once."""
    file, target = tmp_path / "one.json", f"sqlite:///{tmp_path}/target.db"
    assert run("export", "--store", filled, "-o", file).returncode == 0
    racers = [
        subprocess.Popen(
            words("import", "--store", target, file),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        for _ in range(3)
    ]
    said = [racer.communicate(timeout=SECONDS)[1] for racer in racers]
    assert all(b"Traceback" not in text for text in said), said
    assert content(target) == content(filled)


def test_a_server_shows_what_is_imported_beside_it(
    server: OwnServer, filled: str, tmp_path: Path
) -> None:
    """And an event afterwards adds to it; `reset` is seen, too."""
    export = run("export", "--store", filled)
    store = f"sqlite:///{server.file}"
    assert run("import", "--store", store, "-", input=export.stdout).returncode == 0
    until(lambda: view(server, IRIS).get("events") == 20, SECONDS)
    about = attributes("new", IRIS)
    assert server.event(feedback([[0.1, 0.3, 0.6]], [2]), about).status == 200
    assert view(server, IRIS)["events"] == 21
    done = run("reset", IRIS, "--store", store, "--yes")
    assert (done.returncode, done.stdout) == (0, f"forgot {IRIS}: 21 events\n")
    server.hang_up()
    until(lambda: server.get(f"/v1/models/{IRIS}").status == 404, SECONDS)


def test_contradicting_exports_are_refused_whole(filled: str, tmp_path: Path) -> None:
    """A model of another task: nothing of the export is added, not even the other models."""
    export = json.loads(run("export", "--store", filled).stdout)
    target = f"sqlite:///{tmp_path}/target.db"
    constants = export["models"][IRIS]["constants"]
    assert constants["task"] == "multiclass"
    other = {**export, "id": "other"}
    other["models"] = {IRIS: export["models"][IRIS]}
    assert run("import", "--store", target, "-", input=json.dumps(other)).returncode == 0
    before = content(target)
    constants["task"] = "regression"
    said = fails("import", "--store", target, "-", input=json.dumps(export), status=1)
    assert 'task is "regression" in the export and "multiclass" in the store' in said
    assert content(target) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda export: export.update(format="x"), "the file: is no export"),
        (lambda export: export.update(version=99), "this program reads 2"),
        (lambda export: export.update(id=""), "no id or no models"),
        (lambda export: export.update(models=[]), "no id or no models"),
        (lambda export: export["models"].update({"a/b": {}}), "models.a/b: is no namespace/"),
        (
            lambda export: export["models"].update({"a/b/c/d": {}}),
            "models.a/b/c/d: is damaged: 'panes'",
        ),
        (lambda export: _pane(export).update(start="x"), "a pane of width 0 and start 'x'"),
        (lambda export: _pane(export).update(start=-1), "a pane of width 0 and start -1"),
        (lambda export: export["models"]["m/m/m/m"]["panes"].append(_pane(export)), "two panes"),
        (lambda export: export["models"]["m/m/m/m"].update(constants=[1]), "is damaged"),
        (
            lambda export: _pane(export)["counters"].update({"x": 1}),
            "m/m/m/m: is damaged: unexpected",
        ),
        (lambda export: _pane(export)["counters"].update({'["x"]': "1"}), "'1' is no number"),
        (lambda export: _pane(export)["counters"].update({'["x"]': 1 << 63}), "is no number"),
    ],
)
def test_a_damaged_export_is_refused_in_one_line(change: Any, said: str, tmp_path: Path) -> None:
    """Which names what is wrong; the store is not even made."""
    pane = {"width": 0, "start": 0, "segment": "", "counters": {'["rows"]': 1}}
    model = {"constants": {}, "gauges": {}, "panes": [pane]}
    export = {"format": "feedback-metrics", "version": 1, "id": "1", "models": {"m/m/m/m": model}}
    change(export)
    file = tmp_path / "x.json"
    file.write_text(json.dumps(export))
    found = fails("import", "--store", f"sqlite:///{tmp_path}/x.db", file, status=1)
    assert said in found
    assert not (tmp_path / "x.db").exists()


def _pane(export: Any) -> Any:
    return export["models"]["m/m/m/m"]["panes"][0]


def test_exports_that_cannot_be_read_or_written_are_one_line(filled: str, tmp_path: Path) -> None:
    """Missing files and directories, stores that are none, text that is no JSON."""
    none = tmp_path / "none" / "x.json"
    assert "No such file" in fails("export", "--store", filled, "-o", none)
    assert "no regular file" in fails("export", "--store", filled, "-o", os.devnull)
    assert "No such file" in fails("import", "--store", filled, none)
    assert "there is no file" in fails("export", "--store", f"sqlite:///{tmp_path}/x.db")
    assert "not JSON" in fails("import", "--store", filled, "-", input="{", status=1)
    with open("/dev/full", "wb") as full:
        arguments = words("export", "--store", filled)
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, env=environment())
    assert (done.returncode, done.stderr) == (2, b"feedback-metrics: No space left on device\n")


# --- reset ------------------------------------------------------------------------------------


def test_labels_of_any_script_are_shown_on_any_terminal(filled: str) -> None:
    """What an encoding lacks is shown escaped; control characters never."""
    done = run("show", "names", "--store", filled, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "\\u2603" in done.stdout


def test_reset_asks_first(filled: str) -> None:
    """Whoever cannot be asked must say --yes; any answer but yes forgets nothing."""
    before = content(filled)
    arguments = ("reset", IRIS, "--store", filled)
    assert "say --yes" in fails(*arguments)
    assert "no model 'a/b/c/d'" in fails("reset", "a/b/c/d", "--store", filled, "--yes")
    assert asked(arguments, "n")[0] == 1
    assert content(filled) == before
    status, said = asked(arguments, "yes")
    assert status == 0
    assert f"Forget {IRIS} and its 20 events for good? [y/N]" in said
    assert content(filled) == {model: known for model, known in before.items() if model != IRIS}


def asked(arguments: tuple[object, ...], answer: str) -> tuple[int, str]:
    """Exit status and stderr of a command whose question is answered on a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        words(*arguments),
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    _, said = process.communicate(timeout=SECONDS)
    os.close(ours)
    return process.returncode, said


# --- help -------------------------------------------------------------------------------------


def test_help_has_examples_and_exit_statuses() -> None:
    """For every command; usage errors exit with 2."""
    listed = run("--help").stdout
    for command in ("send", "show", "export", "import", "reset"):
        assert f"\n    {command} " in listed
        done = run(command, "--help")
        assert done.returncode == 0
        assert "examples:" in done.stdout
        assert "exit status:" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 100
    assert "serve" in listed
    assert run().returncode == run("nonsense").returncode == run("reset").returncode == 2
    assert run("show", "--watch", "x").returncode == 2
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        file = ("send", "/dev/null", "--url", f"http://127.0.0.1:{port}")
        assert run(*file).stdout.startswith("0 taken")
