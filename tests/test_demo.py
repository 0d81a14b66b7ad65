"""The demo as `make demo` runs it, and that what disagrees gives another exit status."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

import pytest

from examples import demo

ROOT = Path(__file__).parent.parent
DISAGREES = """
import sys
from examples import demo

exact_scores = demo.exact_scores
demo.exact_scores = lambda model: exact_scores(model) | {"recall_macro": 0.5}
sys.exit(demo.main())
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def _state(output: str) -> Path:
    """The directory that a run says its state stays in."""
    found = re.search(r"State stays in (state/demo/[0-9a-f]{8});", output)
    assert found, output
    return ROOT / found[1]


@pytest.fixture(scope="module")
def run() -> Iterator[subprocess.CompletedProcess[str]]:
    """One run as `make demo` has it."""
    completed = _run("examples/demo.py")
    yield completed
    shutil.rmtree(_state(completed.stdout))


def test_all_agrees(run: subprocess.CompletedProcess[str]) -> None:
    """Exit status 0, and every line that is compared says so."""
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    assert "All agreed." in run.stdout
    assert "DIFFER" not in run.stdout
    assert re.search(r"^accuracy  +0\.\d{10} 0\.\d{10} agrees  +0\.\d{10} ", run.stdout, re.M)
    assert re.search(r"^roc_auc_ovr  +0\.\d{5}\.\.0\.\d{5} 0\.\d{10} agrees ", run.stdout, re.M)
    assert run.stdout.count("agrees") == 2 * 20 + 4 + 2  # scores, of positives, counts


def test_the_restart_changes_nothing(run: subprocess.CompletedProcess[str]) -> None:
    """All views and series are the same after it, and there are some."""
    found = re.search(r"SIGTERM.*\n  (\d+) views and series; changed: none\n", run.stdout)
    assert found, run.stdout
    assert int(found[1]) > 100


def test_duplicates_are_dropped_and_counted(run: subprocess.CompletedProcess[str]) -> None:
    """Each row is accepted once, each further call is a duplicate, and no reply differs."""
    lines = re.findall(
        r"^  (iris|cancer): (\d+) calls about (\d+) rows: "
        r"accepted (\d+), duplicate (\d+), rejected 0: agrees$",
        run.stdout,
        re.M,
    )
    assert [line[0] for line in lines] == ["iris", "cancer"]
    for calls, rows, accepted, duplicate in (map(int, line[1:]) for line in lines):
        assert rows == accepted
        halves = -(-rows // demo.LATE)  # of as many rows the truth comes by itself
        assert calls - rows - halves == duplicate > 15
    assert "  replies to copies of one event agree\n" in run.stdout


def test_halves_meet(run: subprocess.CompletedProcess[str]) -> None:
    """Every prediction that came by itself met its truth, and some truths came first."""
    lines = re.findall(
        r"^  (?:iris|cancer): (\d+) predictions came without their truth, (\d+) met it; "
        r"(\d+) of these truths came first$",
        run.stdout,
        re.M,
    )
    assert [(int(came), int(met)) for came, met, _ in lines] == [(25, 25), (95, 95)]
    assert all(0 < int(first) < int(came) for came, _, first in lines)


def test_it_shows_metrics_and_how_to_look_further(run: subprocess.CompletedProcess[str]) -> None:
    """Every series worth a look exists, and the commands name the store."""
    for series in demo.WORTH_A_LOOK:
        assert re.search(rf"^  {re.escape(series)} [\d.]+$", run.stdout, re.M), series
    state = _state(run.stdout).relative_to(ROOT)
    assert f"\n  FEEDBACK_STORE=sqlite:///{state}/feedback.db make run\n" in run.stdout
    assert "\n  curl -s localhost:8080/metrics\n" in run.stdout
    assert "$(BIN)/python examples/demo.py" in (ROOT / "Makefile").read_text()


def test_its_output_fits_a_readme(run: subprocess.CompletedProcess[str]) -> None:
    """Plain text, less than 100 wide."""
    assert run.stdout.isascii()
    for line in run.stdout.splitlines():
        assert len(line) < 100
        assert line == line.rstrip()


def test_state_stays(run: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    """A server on the store that the demo leaves answers with its rows."""
    store = f"sqlite:///{_state(run.stdout)}/feedback.db"
    with demo.serving(store, tmp_path / "log") as client:
        models = json.loads(client.get("/v1/models"))["models"]
        client.connection.close()
    assert {model["deployment"]: model["rows"] for model in models} == {"iris": 75, "cancer": 285}


def test_one_wrong_score_gives_exit_status_1() -> None:
    """The whole demo against a figure that is not right."""
    completed = _run("-c", DISAGREES)
    shutil.rmtree(_state(completed.stdout))
    assert completed.returncode == 1
    assert "NOT ALL AGREED." in completed.stdout
    (line,) = (line for line in completed.stdout.splitlines() if "DIFFERS" in line)
    assert line.startswith("recall_macro ")
    assert line.count("DIFFERS") == 2


# --- what agrees ----------------------------------------------------------------------------


def _agrees(score: float | None, right: float, bounds: tuple[float, float] | None = None) -> bool:
    view: dict[str, Any] = {"scores": {}, "bounds": {}}
    if score is not None:
        view["scores"]["score"] = score
    if bounds:
        view["bounds"]["score"] = bounds
    text, agrees = demo.compare(view, {"score": right})["score"]
    assert text.endswith("agrees" if agrees else "DIFFERS")
    return agrees


def test_scores_agree_but_for_rounding() -> None:
    """1e-9, and an absent score or one that is no number never agrees."""
    assert _agrees(0.9, 0.9)
    assert _agrees(0.9, 0.9 + 9e-10)
    assert not _agrees(0.9, 0.9 + 2e-9)
    assert not _agrees(0.9, 0.9 - 2e-9)
    assert not _agrees(None, 0.9)
    assert not _agrees(nan, nan)


def test_bounded_scores_agree_within_their_bounds() -> None:
    """Whatever the answered score itself is."""
    assert _agrees(0.91, 0.9, (0.89, 0.92))
    assert _agrees(0.9, 0.9, (0.9, 0.9))
    assert not _agrees(0.9, 0.9, (0.91, 0.92))
    assert not _agrees(0.9, 0.9, (0.8, 0.89))
    assert not _agrees(0.9, nan, (0.8, 0.9))


@pytest.mark.parametrize(
    ("counts", "agrees"),
    [
        ((2, 1, 0), True),
        ((3, 0, 0), False),
        ((2, 0, 0), False),
        ((2, 1, 1), False),
        ((1, 1, 0), False),
    ],
)
def test_counts_agree_if_each_event_counted_once(
    counts: tuple[int, int, int], agrees: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two events in three calls."""
    model = demo.Model("iris", [0, 1], [0.1, 0.9], ())
    calls = [({"ce-inferenceservicename": "iris", "ce-id": id}, b"") for id in "aba"]
    outcomes = ("accepted", "duplicate", "rejected")
    found = {
        demo.EVENTS.format("iris", outcome): float(number)
        for outcome, number in zip(outcomes, counts, strict=True)
    }
    assert demo.report_counts([model], calls, found) is agrees
    assert ("DIFFERS" in capsys.readouterr().out) is not agrees
    assert not demo.report_counts([model], calls, {})


# --- the server it starts -------------------------------------------------------------------


def test_a_server_that_does_not_start_is_said_with_its_log(tmp_path: Path) -> None:
    """One clear message."""
    said = r"did not become ready.*log says:\nfeedback-metrics: FEEDBACK_STORE: .*is no store"
    with pytest.raises(OSError, match=said), demo.serving("nosuch:store", tmp_path / "log"):
        pass


def test_no_server_outlives_a_failure(tmp_path: Path) -> None:
    """It is ended, whatever is raised while it serves."""
    clients = []

    def fail() -> None:
        with demo.serving(f"sqlite:///{tmp_path}/feedback.db", tmp_path / "log") as client:
            client.connection.close()
            clients.append(client)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ConnectionRefusedError):
        clients[0].get("/health/liveness")


# --- the demo of the whole loop ---------------------------------------------------------------


def test_the_loop_with_a_broker_goes_as_it_should() -> None:
    """Alerts fire and are resolved, everything counts once, and the function wakes from zero."""
    completed = _run("examples/demo_broker.py")
    said = completed.stdout
    assert completed.returncode == 0, said + completed.stderr
    fired, resolved = re.findall(
        r"ALERT accuracy-low is (\w+): accuracy of \S+ is 0\.\d+ over 5m", said
    )
    assert (fired, resolved) == ("firing", "resolved")
    assert said.count("asleep, exit status 0") == 3
    assert re.search(r"DEAD LETTER \S+: HTTP 400", said)
    assert "All as it should be." in said
    assert "$(BIN)/python examples/demo_broker.py" in (ROOT / "Makefile").read_text()
    shutil.rmtree(ROOT / said.split()[-1])
