"""FEEDBACK_MODELS: globs, mistakes that name file, line and key, and reading it again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metrics import models_file
from metrics.alerts import Rule
from metrics.errors import ConfigurationError
from metrics.model_settings import ModelSettings
from metrics.models_file import ModelsFile
from metrics.windows import window
from tests.servers_http import OwnServer, until

DEFAULTS = ModelSettings(threshold=0.4, max_classes=77)
IRIS = "seldon/iris/default/classifier"

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the file, a new one each time as ConfigMaps are; returns its path."""
    path = tmp_path / "models.yaml"

    def write(text: str) -> str:
        fresh = tmp_path / "fresh"
        fresh.write_text(text)
        os.replace(fresh, path)
        return str(path)

    return write


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the file looked at whenever a model's settings are asked for."""
    monkeypatch.setattr(models_file, "RELOAD_SECONDS", -1.0)


def test_without_a_file_all_models_have_the_defaults() -> None:
    """No path, no file, no reading."""
    assert ModelsFile("", DEFAULTS).of(IRIS) is DEFAULTS


@pytest.mark.parametrize("text", ["", "# nothing\n", "models: {}\n"])
def test_an_empty_file_changes_nothing(write: Write, text: str) -> None:
    """A file that names no model is fine."""
    assert ModelsFile(write(text), DEFAULTS).of(IRIS) is DEFAULTS


def test_ids_that_senders_invent_are_not_kept(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few models are remembered, right ones after any number of others; without globs, none."""
    monkeypatch.setattr(models_file, "MAX_KNOWN", 100)
    models = ModelsFile(write("models: {'seldon/*': {threshold: 0.25}}"), DEFAULTS)
    plain = ModelsFile("", DEFAULTS)
    for number in range(1000):
        assert models.of(f"x/{number}") is DEFAULTS
        assert models.of(f"seldon/{number}").threshold == 0.25
        assert models.of(IRIS) is models.of(IRIS)
        assert plain.of(f"x/{number}") is DEFAULTS
        assert len(models._known) <= 100
    assert not plain._known


def test_every_key(write: Write) -> None:
    """All that a model can be told."""
    path = write(
        """
models:
  "*":
    task: binary
    classes: [ham, spam]
    positive_class: ham
    threshold: 0.2
    k: 2
    beta: 0.5
    probabilities: scores
    windows: [15m, 1d]
    segments: [country, device]
    max_classes: 9
    confidence: 0.9
"""
    )
    assert ModelsFile(path, DEFAULTS).of(IRIS) == ModelSettings(
        task="binary",
        classes=("ham", "spam"),
        positive_class="ham",
        threshold=0.2,
        k=2,
        beta=0.5,
        probabilities="scores",
        windows=(window("15m"), window("1d")),
        segments=("country", "device"),
        max_classes=9,
        confidence=0.9,
    )


GLOBS = """
models:
  "*": {beta: 1}
  "*/fraud-*/*/*": {task: binary, threshold: 0.2}
  "seldon/*": {threshold: 0.3}
  "seldon/iris/default/classifier": {k: 2}
  "*/[ab]/?/m": {k: 7}
"""


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("other/model/default/m", {}),
        ("other/fraud-1/default/m", {"task": "binary", "threshold": 0.2}),
        ("seldon/fraud-1/default/m", {"task": "binary", "threshold": 0.3}),
        (IRIS, {"threshold": 0.3, "k": 2}),
        ("SELDON/iris/default/classifier", {}),
        ("x/a/p/m", {"k": 7}),
        ("x/c/p/m", {}),
    ],
)
def test_globs_apply_in_the_order_written(
    write: Write, model: str, changes: dict[str, Any]
) -> None:
    """Every glob that matches, later keys over earlier ones, the rest by default."""
    found = ModelsFile(write(GLOBS), DEFAULTS).of(model)
    expected = {"threshold": 0.4, "max_classes": 77, "beta": 1.0, **changes}
    assert found == ModelSettings(**expected)


def test_names_are_as_written(write: Write) -> None:
    """YAML would make a boolean of `no`, a number of `1.0` and a date of `2026-01-31`."""
    path = write('models: {"*": {classes: [no, yes, 1.0, 012, 2026-01-31, ~, "on"]}}')
    names = ("no", "yes", "1.0", "012", "2026-01-31", "~", "on")
    assert ModelsFile(path, DEFAULTS).of(IRIS).classes == names


def test_rules_are_read(write: Write) -> None:
    """With their defaults, and on windows that stand further down."""
    path = write(
        """
models:
  "*":
    alerts:
      - {name: low, score: accuracy, below: 0.9}
      - {name: high.loss-1, score: log_loss, window: 15m, above: 1, rows: 100, for: 5m}
    windows: [15m]
"""
    )
    assert ModelsFile(path, DEFAULTS).of(IRIS).alerts == (
        Rule("low", "accuracy", "all", below=0.9),
        Rule("high.loss-1", "log_loss", "15m", above=1.0, rows=100, seconds=300),
    )


def test_the_order_of_a_models_keys_does_not_matter(write: Write) -> None:
    """Keys that must agree are judged together."""
    for keys in (
        "positive_class: b, classes: [a, b], task: binary",
        "task: binary, classes: [a, b], positive_class: b",
        "classes: [a, b], task: binary, positive_class: b",
    ):
        found = ModelsFile(write(f'models: {{"*": {{{keys}}}}}'), DEFAULTS).of(IRIS)
        assert (found.task, found.classes, found.positive) == ("binary", ("a", "b"), 1)


def _keys(line: str) -> str:
    return f'models:\n  "a/*":\n    k: 1\n  "b/*":\n    beta: 1\n    {line}\n'


def _rule(keys: str) -> str:
    return _keys(f"alerts: [{{{keys}}}]")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("models: [", 1, "found '<stream end>'"),
        ("models:\n  a: b: c\n", 2, "mapping values"),
        ("models:\n\t- a\n", 2, "token"),
        ("- a\n", 1, "the file: must be a mapping"),
        ("word", 1, "the file: must be a mapping"),
        ("models:\n  a/b: {}\nmodel: {}\n", 3, "model: unknown; the file has one key, models"),
        ("\nmodels: 7\n", 2, "models: must be a mapping"),
        ("models:\n", 1, "models: must be a mapping"),
        ("models:\n  - a\n", 2, "models: must be a mapping"),
        ('models:\n  "a/*": binary\n', 2, "a/*: must be a mapping"),
        (_keys("tresh: 1"), 6, "tresh: unknown; one of task, classes"),
        (_keys("task: clustering"), 5, "'clustering' is neither"),
        (_keys("task: [binary]"), 6, "b/*: task: must be a string"),
        (_keys("task: no.such.Class"), 6, "b/*: task: cannot load the class 'no.such.Class'"),
        (_keys("threshold: high"), 6, "b/*: threshold: must be a number"),
        (_keys("threshold: true"), 6, "b/*: threshold: must be a number"),
        (_keys("threshold: '0.5'"), 6, "b/*: threshold: must be a number"),
        (_keys("threshold: 1.5"), 6, "b/*: threshold: must lie between 0 and 1"),
        (_keys("threshold:"), 6, "b/*: threshold: must be a number"),
        (_keys("threshold: !secret x"), 6, "b/*: threshold: could not determine a constructor"),
        (_keys("k: 1.5"), 6, "b/*: k: must be an integer"),
        (_keys("k: -1"), 6, "b/*: k: must be 0 or more"),
        (_keys("beta: .nan"), 6, "b/*: beta: must be 0 or more"),
        (_keys("beta: .inf"), 6, "b/*: beta: must be 0 or more"),
        (_keys("classes: cat"), 6, "b/*: classes: must be a list of names"),
        (_keys("classes: [a, [b]]"), 6, "b/*: classes: must be a list of names"),
        (_keys("classes: [a, a]"), 5, "classes: names a class twice"),
        (_keys("classes: ['']"), 5, "classes: a name needs 1 to 256 characters"),
        (_keys("probabilities: ignore"), 6, "b/*: probabilities: must be one of refuse"),
        (_keys("windows: 5m"), 6, "b/*: windows: must be a list of names"),
        (_keys("windows: [5x]"), 6, "b/*: windows: '5x' is no duration"),
        (_keys("segments: {a: b}"), 6, "b/*: segments: must be a list of names"),
        (_keys("max_classes: 1"), 6, "b/*: max_classes: must be 2 or more"),
        (_keys("confidence: 95"), 6, "b/*: confidence: must lie between 0 and 1"),
        (_keys("positive_class: x"), 5, "positive_class: 'x' is no class"),
        (_keys("alerts: {a: 1}"), 6, "b/*: alerts: must be a list of rules"),
        (_keys("alerts: [7]"), 6, "b/*: alerts: rule 1: must be a mapping"),
        (_rule("nmae: x"), 6, "b/*: alerts: rule 1: nmae: unknown; one of above, below, for"),
        (_rule("name: a b, score: f1, below: 1"), 6, "rule 1: name: must be 1 to 64"),
        (_rule("name: a, score: acuracy, below: 1"), 6, "a: score: 'acuracy' is no score"),
        (_rule("name: a, score: f1"), 6, "a: needs below or above, and not both"),
        (_rule("name: a, score: f1, below: 1, above: 0"), 6, "needs below or above, and not both"),
        (_rule("name: a, score: f1, below: low"), 6, "a: must be a number"),
        (_rule("name: a, score: f1, below: .nan"), 6, "a: must be a finite number"),
        (_rule("name: a, score: f1, below: 1, rows: 0"), 6, "a: must be 1 or more"),
        (_rule("name: a, score: f1, below: 1, for: soon"), 6, "a: 'soon' is no duration"),
        (_rule("name: a, score: f1, below: 1, window: 7m"), 5, "a: window '7m' is not kept"),
        (
            _keys("alerts: [{name: a, score: f1, below: 1}, {name: a, score: f1, above: 0}]"),
            5,
            "two rules have one name",
        ),
        (_keys("task: binary\n    classes: [a, b, c]"), 5, "classes: a binary model has two"),
    ],
)
def test_a_mistake_names_file_line_and_key(write: Write, text: str, line: int, reason: str) -> None:
    """Keys that must agree are told at their model's first line, all others at their own."""
    path = write(text)
    with pytest.raises(ConfigurationError) as caught:
        ModelsFile(path, DEFAULTS)
    told = str(caught.value)
    assert told.startswith(f"FEEDBACK_MODELS: {path}:{line}: ")
    assert reason in told
    assert "\n" not in told


@pytest.mark.parametrize("content", [None, b"\xff\xfe models"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    """Missing, or no UTF-8: the variable, the path and why."""
    path = tmp_path / "models.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"^FEEDBACK_MODELS: .*models\.yaml: "):
        ModelsFile(str(path), DEFAULTS)


# --- reading it again ---------------------------------------------------------------------------


def test_a_changed_file_is_read_again(
    write: Write, at_once: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each change, and never when nothing changed."""
    caplog.set_level(logging.INFO)
    models = ModelsFile(write('models: {"*": {threshold: 0.1}}'), DEFAULTS)
    assert models.of(IRIS).threshold == 0.1
    assert models.of(IRIS) is models.of(IRIS)
    assert caplog.records == []
    path = write('models: {"*": {threshold: 0.9}}')
    assert models.of(IRIS).threshold == 0.9
    assert models.of(IRIS).threshold == 0.9
    assert caplog.messages == [f"{path} read again"]


def test_a_file_is_not_looked_at_more_than_once_a_second(write: Write) -> None:
    """The time between two looks is a second, whatever is asked."""
    models = ModelsFile(write('models: {"*": {threshold: 0.1}}'), DEFAULTS)
    write('models: {"*": {threshold: 0.9}}')
    assert models.of(IRIS).threshold == 0.1
    assert models_file.RELOAD_SECONDS == 1.0


@pytest.mark.parametrize(
    "broken",
    ["models: [", 'models: {"*": {threshold: 7}}', 'models: {"*": {k: !x 1}}', "word", None],
)
def test_a_broken_new_version_keeps_the_old(
    write: Write, at_once: None, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    """Also a file that is gone: one line in the log, and the next good version is taken."""
    path = write('models: {"*": {threshold: 0.1}}')
    models = ModelsFile(path, DEFAULTS)
    if broken is None:
        os.unlink(path)
    else:
        write(broken)
    for _ in range(3):
        assert models.of(IRIS).threshold == 0.1
        assert models.of("a/new/model/here").threshold == 0.1
    (message,) = caplog.messages
    assert message.startswith(f"FEEDBACK_MODELS: {path}")
    assert message.endswith("; the version before stays in force")
    assert "\n" not in message
    write('models: {"*": {threshold: 0.9}}')
    assert models.of(IRIS).threshold == 0.9


def test_a_running_server_takes_a_changed_file(write: Write, tmp_path: Path) -> None:
    """The next event after a second counts under the new settings; what was counted stays."""
    path = write('models: {"*": {task: binary, threshold: 0.2}}')
    with OwnServer(tmp_path, FEEDBACK_MODELS=path) as server:
        first = server.feedback("1", "m/o/d/el", 0.3, 1).json
        assert first["increment"]["true_positives"] == {"1": 1}
        write('models: {"*": {task: binary, threshold: 0.5}}')
        until(lambda: server.get("/v1/models") and "read again" in server.log())
        second = server.feedback("2", "m/o/d/el", 0.3, 1).json
        assert second["increment"]["false_negatives"] == {"1": 1}
        assert second["scores"]["recall"] == 0.5
