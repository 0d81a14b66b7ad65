"""Every setting: its variable, its flag, its default, and nonsense, which is one line at start."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metrics.config import SETTINGS, Settings, add_flags, load
from metrics.errors import ConfigurationError
from metrics.model_settings import ModelSettings
from metrics.store import open_store
from metrics.windows import window
from tests.servers_http import ROOT, environment, free_port

ANCESTORS = "adserver.cm_models"
ONE_HOT = f"{ANCESTORS}.multiclass_one_hot.MulticlassOneHot"

DEFAULTS: dict[str, Any] = {
    "port": 8080,
    "host": "0.0.0.0",
    "workers": 1,
    "store": "sqlite:///state/feedback.db",
    "redis_durability": "none",
    "snapshot_interval": 0.0,
    "dedup_ttl": 86400,
    "dedup_by": "event",
    "join_ttl": 0,
    "join_max_bytes": 256 << 20,
    "join_time": "truth",
    "corrections": False,
    "max_queue": 1024,
    "task": "auto",
    "models_file": "",
    "classes": (),
    "threshold": 0.5,
    "top_k": 0,
    "beta": 0.0,
    "probabilities": "refuse",
    "windows": (window("5m"), window("1h"), window("1d")),
    "segments": (),
    "confidence": 0.95,
    "max_models": 1000,
    "max_classes": 1000,
    "confusion_classes": 10,
    "max_series": 200_000,
    "max_body": 16 * 1024 * 1024,
    "max_connections": 2048,
    "reply": "event",
    "reply_windows": (),
    "oidc_audience": "",
    "oidc_issuer": "https://kubernetes.default.svc",
    "sink": "",
    "sink_interval": 1.0,
    "ce_overrides": {},
    "pushgateway": "",
    "pushgateway_interval": 10.0,
    "pushgateway_job": "feedback-metrics",
    "event_type": "io.seldon.serving.feedback.metrics",
    "event_source": "io.seldon.serving.feedback",
    "accept_types": ("io.seldon.serving.feedback",),
    "prediction_types": (
        "io.seldon.serving.inference.response",
        "org.kubeflow.serving.inference.response",
    ),
    "log_level": "INFO",
    "namespace": "default",
    "deployment": "default",
    "predictor": "default",
    "model": "default",
    "model_image": "",
}

CONTRACT = {
    "PORT": "http_port",
    "HOST": "host",
    "FEEDBACK_STORE": "store",
    "FEEDBACK_SNAPSHOT_INTERVAL": "snapshot_interval",
    "FEEDBACK_TASK": "storage_uri",
    "FEEDBACK_MODELS": "models",
    "FEEDBACK_WINDOWS": "windows",
    "FEEDBACK_DEDUP_TTL": "dedup_ttl",
    "FEEDBACK_REPLY": "reply",
    "K_SINK": "reply_url",
    "FEEDBACK_EVENT_TYPE": "event_type",
    "FEEDBACK_EVENT_SOURCE": "event_source",
    "FEEDBACK_MAX_BODY": "max_body",
    "FEEDBACK_MAX_CONNECTIONS": "max_connections",
    "FEEDBACK_MAX_MODELS": "max_models",
    "FEEDBACK_MAX_CLASSES": "max_classes",
    "LOG_LEVEL": "log_level",
}
"""The public variables and flags, which may be extended but never renamed."""

GOOD: dict[str, tuple[str, Any]] = {
    "port": ("9000", 9000),
    "host": ("127.0.0.1", "127.0.0.1"),
    "workers": ("4", 4),
    "store": ("sqlite:////state/f.db", "sqlite:////state/f.db"),
    "redis_durability": ("wait:1:100", "wait:1:100"),
    "snapshot_interval": ("2.5", 2.5),
    "dedup_ttl": ("2h", 7200),
    "dedup_by": ("request", "request"),
    "join_ttl": ("2d", 172800),
    "join_max_bytes": ("1GiB", 1 << 30),
    "join_time": ("prediction", "prediction"),
    "corrections": ("on", True),
    "max_queue": ("7", 7),
    "task": ("binary", "binary"),
    "models_file": ("/etc/models.yaml", "/etc/models.yaml"),
    "classes": ("cat, dog ,", ("cat", "dog")),
    "threshold": ("0.25", 0.25),
    "top_k": ("3", 3),
    "beta": ("2", 2.0),
    "probabilities": ("normalise", "normalise"),
    "windows": ("10s, 1h30m", (window("10s"), window("1h30m"))),
    "segments": ("country,device", ("country", "device")),
    "confidence": ("0.99", 0.99),
    "max_models": ("5", 5),
    "max_classes": ("50", 50),
    "confusion_classes": ("0", 0),
    "max_series": ("0", 0),
    "max_body": ("512KiB", 512 * 1024),
    "max_connections": ("100", 100),
    "reply": ("off", "off"),
    "reply_windows": ("1h,all", ("1h", "all")),
    "oidc_audience": ("me", "me"),
    "oidc_issuer": ("https://issuer/x", "https://issuer/x"),
    "sink": ("http://sink:81/x?y=z", "http://sink:81/x?y=z"),
    "sink_interval": ("1m", 60.0),
    "ce_overrides": ('{"extensions": {"a": "b"}}', {"a": "b"}),
    "pushgateway": ("gateway:9091", "http://gateway:9091"),
    "pushgateway_interval": ("1m", 60.0),
    "pushgateway_job": ("mine", "mine"),
    "event_type": ("my.type", "my.type"),
    "event_source": ("/my/source", "/my/source"),
    "accept_types": ("a.type, b.type", ("a.type", "b.type")),
    "prediction_types": ("c.type,d.type", ("c.type", "d.type")),
    "log_level": ("debug", "DEBUG"),
    "namespace": ("prod", "prod"),
    "deployment": ("fraud", "fraud"),
    "predictor": ("canary", "canary"),
    "model": ("réseau", "réseau"),
    "model_image": ("registry/image:1.2", "registry/image:1.2"),
}

NONSENSE: dict[str, tuple[str, ...]] = {
    "port": ("http", "0", "65536", "-1", "80.5"),
    "host": ("nonsense", "1.2.3", "http://0.0.0.0"),
    "workers": ("0", "65", "many"),
    "snapshot_interval": ("-1", "nan", "inf", "soon", "1e9", "5 minutes"),
    "dedup_ttl": ("0", "-1d", "1y", "d", "1.5h"),
    "max_queue": ("0", "x"),
    "task": ("clustering", "multi class"),
    "classes": ("a,b,a",),
    "threshold": ("0", "1", "-0.5", "nan", "half"),
    "top_k": ("-1", "1.5"),
    "beta": ("-1", "nan", "inf", "x"),
    "probabilities": ("ignore",),
    "windows": ("5x", "1h,1h", "0s", "5m;1h"),
    "confidence": ("0", "1", "95", "nan"),
    "max_models": ("0",),
    "max_classes": ("1", "ten"),
    "confusion_classes": ("-1",),
    "max_series": ("-1", "many"),
    "max_body": ("0", "16MB", "lots", "-1KiB"),
    "max_connections": ("0", "many", "-1"),
    "reply": ("on", "EVENT "),
    "reply_windows": ("7m",),
    "oidc_issuer": ("issuer", "ftp://x", "https://"),
    "sink": ("ftp://x", "http://", "http://x:99999", "http://x:y"),
    "sink_interval": ("often", "-1s"),
    "pushgateway": ("ftp://x", "http://", "http://x:99999"),
    "pushgateway_interval": ("0", "often", "-1s"),
    "pushgateway_job": ("a/b",),
    "ce_overrides": (
        "x",
        "[]",
        '{"extensions": ["a"]}',
        '{"extensions": {"A b": "c"}}',
        '{"extensions": {"a": 1}}',
    ),
    "event_type": ("io.seldon.serving.feedback",),
    "accept_types": (",", "io.seldon.serving.feedback.metrics"),
    "prediction_types": (",", "a, io.seldon.serving.feedback"),
    "dedup_by": ("id",),
    "join_ttl": ("-1", "1y", "soon"),
    "join_max_bytes": ("0", "lots"),
    "join_time": ("arrival",),
    "corrections": ("yes",),
    "log_level": ("LOUD",),
    "namespace": ("a/b", "a\nb", "x" * 257),
    "deployment": ("a/b",),
    "predictor": ("a/b",),
    "model": ("a/b", "a\0b"),
}
ANY_TEXT = {
    "store",
    "models_file",
    "segments",
    "redis_durability",
    "event_source",
    "model_image",
    "oidc_audience",
}
"""Settings whose text is checked where it is used, before anything is served."""


def flags(*words: str) -> dict[str, Any]:
    """The command line's flags as `load` takes them."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser)
    return vars(parser.parse_args(words))


def changed(settings: Settings) -> set[str]:
    """The fields that are not at their default."""
    return {name for name, value in DEFAULTS.items() if getattr(settings, name) != value}


def test_the_tables_here_are_complete() -> None:
    """Every setting has its default, a good value and nonsense in this file."""
    fields = [setting.field for setting in SETTINGS]
    assert list(DEFAULTS) == fields
    assert list(GOOD) == fields
    assert NONSENSE.keys() | ANY_TEXT == set(fields)
    assert not NONSENSE.keys() & ANY_TEXT
    assert len({setting.variable for setting in SETTINGS}) == len(fields)
    assert len({setting.flag for setting in SETTINGS}) == len(fields)


def test_the_contract_names_are_kept() -> None:
    """Variables and flags that users rely on."""
    names = {setting.variable: setting.flag for setting in SETTINGS}
    assert {variable: names.get(variable) for variable in CONTRACT} == CONTRACT


def test_defaults() -> None:
    """Nothing set, or set to nothing."""
    assert changed(load({})) == set()
    blank = {setting.variable: " " for setting in SETTINGS}
    assert load(blank) == load({})


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.field)
def test_variable_and_flag(setting: Any) -> None:
    """Each is read by its variable and by its flag in either spelling, and the flag wins."""
    text, value = GOOD[setting.field]
    by_variable = load({setting.variable: text})
    assert getattr(by_variable, setting.field) == value
    assert changed(by_variable) == {setting.field}
    for flag in (setting.flag, setting.flag.replace("_", "-")):
        by_flag = load({}, flags(f"--{flag}", text))
        assert by_flag == by_variable
    other = {"reply": "event"}.get(setting.field, setting.default)
    if other:
        assert load({setting.variable: other}, flags(f"--{setting.flag}", text)) == by_flag


ROWS = [
    (setting, text)
    for setting in SETTINGS
    if setting.field not in ANY_TEXT
    for text in NONSENSE[setting.field]
]


@pytest.mark.parametrize(
    ("setting", "text"), ROWS, ids=[f"{setting.field}={text[:30]}" for setting, text in ROWS]
)
def test_nonsense(setting: Any, text: str) -> None:
    """One line that names what was set, the variable or the flag, and says why."""
    for name, environ, words in (
        (setting.variable, {setting.variable: text}, ()),
        (f"--{setting.flag}", {}, (f"--{setting.flag}={text}",)),
    ):
        with pytest.raises(ConfigurationError) as caught:
            load(environ, flags(*words))
        reason = str(caught.value)
        assert "\n" not in reason
        told = "FEEDBACK_EVENT_TYPE" if "would loop" in reason else name
        assert reason.startswith((f"{told}: ", f"{setting.variable}: "))
        assert len(reason) > len(name) + 10


def test_settings_that_must_agree() -> None:
    """What makes sense alone but not together is refused too."""
    with pytest.raises(ConfigurationError, match="FEEDBACK_REPLY_WINDOWS"):
        load({"FEEDBACK_REPLY_WINDOWS": "1h", "FEEDBACK_WINDOWS": "5m"})
    with pytest.raises(ConfigurationError, match=r"^FEEDBACK_EVENT_TYPE: .*loop"):
        load({"FEEDBACK_EVENT_TYPE": "a", "FEEDBACK_ACCEPT_TYPES": "b,a"})
    with pytest.raises(ConfigurationError, match="FEEDBACK_CLASSES"):
        load({"FEEDBACK_TASK": "binary", "FEEDBACK_CLASSES": "a,b,c"})


def test_model_settings_are_what_was_set() -> None:
    """Each setting of models reaches the models."""
    settings = load(
        {setting.variable: GOOD[setting.field][0] for setting in SETTINGS}
        | {"FEEDBACK_REPLY_WINDOWS": ""}
    )
    assert settings.model_settings() == ModelSettings(
        task="binary",
        classes=("cat", "dog"),
        threshold=0.25,
        k=3,
        beta=2.0,
        probabilities="normalise",
        windows=(window("10s"), window("1h30m")),
        segments=("country", "device"),
        max_classes=50,
        confidence=0.99,
    )


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost", "127.0.0.1"),
        ("::", "::"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    """IPv4, IPv6, and the one name that everybody has."""
    assert load({"HOST": text}).host == address


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("1048576", 1 << 20), ("2 MiB", 2 << 20), ("1GiB", 1 << 30), ("3KiB", 3072)],
)
def test_sizes(text: str, size: int) -> None:
    """Bytes, plain or with a unit of 1024s."""
    assert load({"FEEDBACK_MAX_BODY": text}).max_body == size


def test_windows_can_be_none() -> None:
    """A lone comma names no window: all time only."""
    assert load({"FEEDBACK_WINDOWS": ","}).windows == ()


def test_a_sink_without_a_scheme_is_http() -> None:
    """The ancestor took bare hosts."""
    assert load({"K_SINK": "message-dumper.default"}).sink == "http://message-dumper.default"
    assert load({}, flags("--reply_url", "sink:8080/x")).sink == "http://sink:8080/x"


# --- the ancestor's -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "task", "flat_rows"),
    [
        (ONE_HOT, "multiclass", True),
        (f"{ANCESTORS}.multiclass_numeric.MultiClassNumeric", "multiclass", False),
        (f"{ANCESTORS}.binary_metrics.BinaryMetrics", "binary", False),
    ],
)
def test_the_ancestors_classes(path: str, task: str, flat_rows: bool) -> None:
    """Each becomes a task; scores need not be probabilities, unless a setting says so."""
    for settings in (load({}, flags("--storage_uri", path)), load({"FEEDBACK_TASK": path})):
        assert settings.task == task
        assert settings.flat_rows == settings.model_settings().flat_rows == flat_rows
        assert settings.probabilities == "scores"
    by_variable: Mapping[str, str] = {"FEEDBACK_PROBABILITIES": "refuse"}
    assert load(by_variable, flags("--storage_uri", path)).probabilities == "refuse"
    words = ("--storage_uri", path, "--probabilities", "normalise")
    assert load(by_variable, flags(*words)).probabilities == "normalise"


def test_the_ancestors_words_change_nothing_else() -> None:
    """`--model_name`, `--protocol` and the last word are taken and have no effect."""
    words = (
        "--model_name",
        "multiclassserver",
        "--protocol",
        "seldonfeedback.http",
        "MetricsServer",
    )
    assert load({}, flags(*words)) == load({})


def test_what_no_variable_names() -> None:
    """Which parts of a model's identity are set, by variable or flag, blank ones not."""
    assert load({}).unset_identity == (True, True, True, True)
    environ = {"SELDON_DEPLOYMENT_ID": "d", "PREDICTOR_ID": " "}
    assert load(environ, flags("--model", "m")).unset_identity == (True, False, True, False)


# --- the process --------------------------------------------------------------------------------


def exit_of(directory: Path, *words: str, **variables: str) -> tuple[int, str]:
    """Exit status and stderr of `python -m …`, which must not come to serve."""
    run = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=directory,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return run.returncode, run.stderr


@pytest.mark.parametrize(
    "url",
    [
        "mysql://x",
        "sqlite:x.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///x?journal=paper",
        "feedback.db",
    ],
)
def test_nonsense_of_a_store(url: str) -> None:
    """One line that names the variable."""
    with pytest.raises(ConfigurationError, match=r"^FEEDBACK_STORE: [^\n]+$"):
        open_store(url, 60)


PROCESSES: dict[str, tuple[dict[str, str], tuple[str, ...], str]] = {
    "a variable": ({"PORT": "http"}, (), "PORT: "),
    "a flag": ({}, ("--threshold", "2"), "--threshold: "),
    "a task": ({"FEEDBACK_TASK": "clustering"}, (), "FEEDBACK_TASK: "),
    "a class that is not there": ({"FEEDBACK_TASK": "no.such.Class"}, (), "no.such.Class"),
    "a models file": ({"FEEDBACK_MODELS": "/no/such.yaml"}, (), "FEEDBACK_MODELS: /no/such.yaml"),
    "a store's scheme": ({"FEEDBACK_STORE": "mysql://x"}, (), "FEEDBACK_STORE: mysql://x is no"),
    "a store's path": ({"FEEDBACK_STORE": "sqlite:x.db"}, (), "FEEDBACK_STORE: "),
    "a store's journal": ({"FEEDBACK_STORE": "sqlite:///x?journal=paper"}, (), "FEEDBACK_STORE: "),
    "a directory": ({"FEEDBACK_STORE": "sqlite:////tmp"}, (), "FEEDBACK_STORE: /tmp"),
    "a path through a file": (
        {"FEEDBACK_STORE": f"sqlite:///{__file__}/x"},
        (),
        "FEEDBACK_STORE: ",
    ),
    "Redis' port": ({"FEEDBACK_STORE": "redis://x:99999"}, (), "FEEDBACK_STORE: "),
    "Redis' durability": (
        {"FEEDBACK_STORE": "redis://127.0.0.1:1", "FEEDBACK_REDIS_DURABILITY": "forever"},
        (),
        "FEEDBACK_REDIS_DURABILITY: ",
    ),
    "several workers": (
        {"FEEDBACK_STORE": "sqlite:////tmp", "WEB_CONCURRENCY": "2"},
        (),
        "FEEDBACK_STORE: /tmp",
    ),
}


@pytest.mark.parametrize(("variables", "words", "reason"), PROCESSES.values(), ids=PROCESSES.keys())
def test_a_mistake_is_one_line_and_exit_status_2(
    tmp_path: Path, variables: dict[str, str], words: tuple[str, ...], reason: str
) -> None:
    """What configuration can never mend ends the process at once: no traceback, no respawn."""
    variables = {"FEEDBACK_STORE": "memory:", "HOST": "127.0.0.1", **variables}
    variables.setdefault("PORT", str(free_port()))
    status, stderr = exit_of(tmp_path, "metrics", "serve", *words, **variables)
    assert (status, stderr.count("\n")) == (2, 1), stderr
    assert stderr.startswith("feedback-metrics: ")
    assert reason in stderr


def test_a_port_that_is_taken_is_one_line_too(tmp_path: Path) -> None:
    """The reason of the operating system, and no backtrace."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        variables = {"PORT": port, "HOST": "127.0.0.1", "FEEDBACK_STORE": "memory:"}
        status, stderr = exit_of(tmp_path, "metrics", "serve", **variables)
    assert (status, stderr.count("\n")) == (2, 1), stderr
    assert stderr.startswith(f"feedback-metrics: PORT: 127.0.0.1:{port}: ")


@pytest.mark.parametrize(
    "variables",
    [
        {"FEEDBACK_WINDOWS": "5x"},
        {"FEEDBACK_STORE": "sqlite:////tmp"},
        {"FEEDBACK_TASK": "no.such.Class", "FEEDBACK_STORE": "memory:"},
    ],
)
def test_stock_parliament_ends_alike(tmp_path: Path, variables: dict[str, str]) -> None:
    """The same line and status before its port opens."""
    status, stderr = exit_of(tmp_path, "parliament", str(ROOT), **variables)
    assert (status, stderr.count("\n")) == (2, 1), stderr
    assert stderr.startswith("feedback-metrics: ")


def test_a_class_whose_module_breaks_is_a_mistake_as_well(tmp_path: Path) -> None:
    """Whatever a user's module raises when it is imported is told in one line."""
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')\n")
    variables = {"FEEDBACK_STORE": "memory:", "FEEDBACK_TASK": "broken.Custom"}
    variables["PORT"] = str(free_port())
    status, stderr = exit_of(tmp_path, "metrics", "serve", **variables)
    assert (status, stderr.count("\n")) == (2, 1), stderr
    assert "'broken.Custom': not today" in stderr


@pytest.mark.parametrize(
    "words",
    [("--nonsense", "1"), ("--protocol", "kafka.http"), ("OutlierServer",), ("--threshold",)],
)
def test_unknown_words_are_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A flag, protocol or server that is none: usage and exit status 2."""
    status, stderr = exit_of(tmp_path, "metrics", "serve", *words)
    assert status == 2
    assert stderr.startswith("usage: ")
