"""Every setting in one table: its variable, flag, default and unit. Nothing else reads them.

A flag wins over its variable, and the variable over the default. The ancestor's flags and
variables keep working; its metric classes are translated to a task.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from .errors import ConfigurationError, Refused
from .model_settings import PROBABILITIES, ModelSettings
from .payload import check_label
from .urls import shown
from .windows import Window, duration, window

FEEDBACK_TYPE = "io.seldon.serving.feedback"
PREDICTION_TYPE = "io.seldon.serving.inference.response"
KSERVE_PREDICTION_TYPE = "org.kubeflow.serving.inference.response"
"""Its logger sends the request's id as the event's."""
PROTOCOL = "seldonfeedback.http"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: how it is called, what it defaults to, and how its text is read."""

    field: str
    variable: str
    flag: str
    default: str
    read: Callable[[str], Any]
    help: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a process, read and checked."""

    port: int
    host: str
    workers: int
    store: str
    redis_durability: str
    snapshot_interval: float
    dedup_ttl: int
    dedup_by: str
    join_ttl: int
    join_max_bytes: int
    join_time: str
    corrections: bool
    max_queue: int
    task: str
    models_file: str
    classes: tuple[str, ...]
    threshold: float
    top_k: int
    beta: float
    probabilities: str
    windows: tuple[Window, ...]
    segments: tuple[str, ...]
    confidence: float
    max_models: int
    max_classes: int
    confusion_classes: int
    max_series: int
    max_body: int
    max_connections: int
    reply: str
    reply_windows: tuple[str, ...]
    oidc_audience: str
    oidc_issuer: str
    sink: str
    sink_interval: float
    ce_overrides: dict[str, str]
    pushgateway: str
    pushgateway_interval: float
    pushgateway_job: str
    event_type: str
    event_source: str
    accept_types: tuple[str, ...]
    prediction_types: tuple[str, ...]
    log_level: str
    namespace: str
    deployment: str
    predictor: str
    model: str
    model_image: str
    flat_rows: bool = False
    unset_identity: tuple[bool, bool, bool, bool] = (True, True, True, True)
    """Which of namespace, deployment, predictor and model no variable names."""

    def model_settings(self) -> ModelSettings:
        """The settings of a model that `FEEDBACK_MODELS` says nothing about."""
        return ModelSettings(
            task=self.task,
            classes=self.classes,
            threshold=self.threshold,
            k=self.top_k,
            beta=self.beta,
            probabilities=self.probabilities,
            flat_rows=self.flat_rows,
            windows=self.windows,
            segments=self.segments,
            max_classes=self.max_classes,
            confidence=self.confidence,
        )


class _Unfit(ValueError):
    """Raised where a setting's text makes no sense; says why without a word of that text."""


def _text(text: str) -> str:
    return text.strip()


def _address(text: str) -> str:
    """An IP address; `localhost` is one."""
    text = text.strip()
    return str(ip_address("127.0.0.1" if text == "localhost" else text))


def _part(text: str) -> str:
    """A part of a model's id."""
    text = text.strip()
    if "/" in text:
        raise ValueError("must have no slash")
    try:
        return check_label(text, "")
    except Refused as error:
        raise ValueError(str(error)) from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _types(text: str) -> tuple[str, ...]:
    types = _words(text)
    if not types:
        raise ValueError("names no type: nothing would be counted")
    return types


def _windows(text: str) -> tuple[Window, ...]:
    windows = tuple(map(window, _words(text)))
    if len({each.name for each in windows}) != len(windows):
        raise ValueError("names a window twice")
    return windows


def _seconds(text: str) -> float:
    """Seconds: `0`, `2.5`, or a duration such as `1m`."""
    try:
        seconds = float(text)
    except ValueError:
        return float(duration(text))
    if not 0 <= seconds < 1e9:
        raise ValueError("must be 0 or more seconds")
    return seconds


def _some_seconds(text: str) -> float:
    seconds = _seconds(text)
    if not seconds:
        raise ValueError("must be more than 0 seconds")
    return seconds


def _duration_or_zero(text: str) -> int:
    return 0 if text.strip() == "0" else duration(text)


def _switch(text: str) -> bool:
    return _one_of("on", "off")(text) == "on"


def _at_least(least: int, most: int = 1 << 40) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text)
        if not least <= number <= most:
            raise ValueError(f"must be {least} or more, and {most} at most")
        return number

    return read


def _bytes(text: str) -> int:
    """Bytes: `1048576`, `512KiB`, `16MiB` or `1GiB`."""
    text = text.strip()
    for suffix, factor in (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)):
        if text.endswith(suffix):
            return _at_least(1)(text.removesuffix(suffix).strip()) * factor
    return _at_least(1)(text)


def _extensions(text: str) -> dict[str, str]:
    """The extension attributes of a SinkBinding's `K_CE_OVERRIDES`."""
    overrides = json.loads(text)
    extensions = overrides.get("extensions") or {} if isinstance(overrides, dict) else None
    if not isinstance(extensions, dict) or not all(
        isinstance(value, str) and name.isascii() and name.isalnum() and name.islower()
        for name, value in extensions.items()
    ):
        raise ValueError('must be {"extensions": {"name": "value"}}')
    return extensions


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return text

    return read


def _level(text: str) -> str:
    level = text.strip().upper()
    if level not in _LEVELS:
        raise ValueError(f"must be one of {', '.join(_LEVELS)}")
    return level


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _http(text: str) -> SplitResult:
    """The parts of an http(s) address. Raises _Unfit."""
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not text.isascii() or not text.isprintable() or " " in text:
        raise _Unfit("must be an http:// or https:// address")
    return parts


def _url(text: str) -> str:
    """An http(s) address, or nothing; a bare host is taken as http."""
    text = text.strip()
    return _http(text if "//" in text else f"http://{text}").geturl() if text else ""


def _issuer(text: str) -> str:
    """An http(s) address, as written: tokens bear it to the letter."""
    _http(text)
    return text


_ANCESTORS_TASKS = {
    "adserver.cm_models.multiclass_one_hot.MulticlassOneHot": "multiclass",
    "adserver.cm_models.multiclass_numeric.MultiClassNumeric": "multiclass",
    "adserver.cm_models.binary_metrics.BinaryMetrics": "binary",
}

SETTINGS: tuple[Setting, ...] = (
    Setting("port", "PORT", "http_port", "8080", _at_least(1, 65535), "HTTP port"),
    Setting("host", "HOST", "host", "0.0.0.0", _address, "address to listen on"),
    Setting(
        "workers",
        "WEB_CONCURRENCY",
        "workers",
        "1",
        _at_least(1, 64),
        "worker processes; they share one store",
    ),
    Setting(
        "store",
        "FEEDBACK_STORE",
        "store",
        "sqlite:///state/feedback.db",
        _text,
        "where state is durable: sqlite:///relative, sqlite:////absolute, redis://, rediss://, "
        "memory:",
    ),
    Setting(
        "redis_durability",
        "FEEDBACK_REDIS_DURABILITY",
        "redis_durability",
        "none",
        _text,
        "what a commit waits for: none, wait:REPLICAS:MS, waitaof:LOCAL:REPLICAS:MS",
    ),
    Setting(
        "snapshot_interval",
        "FEEDBACK_SNAPSHOT_INTERVAL",
        "snapshot_interval",
        "0",
        _seconds,
        "seconds between flushes; 0: every event is durable before its answer",
    ),
    Setting(
        "dedup_ttl",
        "FEEDBACK_DEDUP_TTL",
        "dedup_ttl",
        "1d",
        duration,
        "how long a (source, id) is remembered",
    ),
    Setting(
        "dedup_by",
        "FEEDBACK_DEDUP_BY",
        "dedup_by",
        "event",
        _one_of("event", "request"),
        "what makes an event a duplicate: its (source, id), or its request's id and content",
    ),
    Setting(
        "join_ttl",
        "FEEDBACK_JOIN_TTL",
        "join_ttl",
        "0",
        _duration_or_zero,
        "how long a prediction or a truth waits for the other; 0: only whole feedback is taken",
    ),
    Setting(
        "join_max_bytes",
        "FEEDBACK_JOIN_MAX_BYTES",
        "join_max_bytes",
        "256MiB",
        _bytes,
        "size of all that waits; past it the oldest is dropped",
    ),
    Setting(
        "join_time",
        "FEEDBACK_JOIN_TIME",
        "join_time",
        "truth",
        _one_of("truth", "prediction"),
        "whose time decides in which windows joined feedback counts",
    ),
    Setting(
        "corrections",
        "FEEDBACK_CORRECTIONS",
        "corrections",
        "off",
        _switch,
        "on: a further truth of a request replaces the one before, for FEEDBACK_JOIN_TTL",
    ),
    Setting(
        "max_queue",
        "FEEDBACK_MAX_QUEUE",
        "max_queue",
        "1024",
        _at_least(1),
        "events that may wait for a commit; more are answered 503",
    ),
    Setting(
        "task",
        "FEEDBACK_TASK",
        "storage_uri",
        "auto",
        _text,
        "auto, multiclass, binary, multilabel, regression, or the dotted path of your class",
    ),
    Setting(
        "models_file",
        "FEEDBACK_MODELS",
        "models",
        "",
        _text,
        "path of a YAML file with settings by model",
    ),
    Setting(
        "classes",
        "FEEDBACK_CLASSES",
        "classes",
        "",
        _words,
        "names of the classes in column order, comma-separated",
    ),
    Setting(
        "threshold",
        "FEEDBACK_THRESHOLD",
        "threshold",
        "0.5",
        float,
        "probability from which a binary model or a label is positive",
    ),
    Setting("top_k", "FEEDBACK_TOP_K", "top_k", "0", _at_least(0), "k of top_k_accuracy; 0: off"),
    Setting("beta", "FEEDBACK_BETA", "beta", "0", float, "beta of fbeta_*; 0: off"),
    Setting(
        "probabilities",
        "FEEDBACK_PROBABILITIES",
        "probabilities",
        "refuse",
        _one_of(*PROBABILITIES),
        "rows that are no probabilities: refuse, normalise, or take as scores (argmax only)",
    ),
    Setting(
        "windows",
        "FEEDBACK_WINDOWS",
        "windows",
        "5m,1h,1d",
        _windows,
        "sliding windows besides all time",
    ),
    Setting(
        "segments",
        "FEEDBACK_SEGMENTS",
        "segments",
        "",
        _words,
        "keys of extensions or meta.tags to slice scores by",
    ),
    Setting(
        "confidence",
        "FEEDBACK_CONFIDENCE",
        "confidence",
        "0.95",
        float,
        "level of the intervals, a ratio",
    ),
    Setting(
        "max_models",
        "FEEDBACK_MAX_MODELS",
        "max_models",
        "1000",
        _at_least(1),
        "models served; events of further ones are refused",
    ),
    Setting(
        "max_classes",
        "FEEDBACK_MAX_CLASSES",
        "max_classes",
        "1000",
        _at_least(2),
        "classes of a model; further ones count as __other__",
    ),
    Setting(
        "confusion_classes",
        "FEEDBACK_CONFUSION_CLASSES",
        "confusion_classes",
        "10",
        _at_least(0),
        "classes up to which feedback_confusion_total is exposed",
    ),
    Setting(
        "max_series",
        "FEEDBACK_MAX_SERIES",
        "max_series",
        "200000",
        _at_least(0),
        "series of models that are exposed; of more, whole parts of models are left out",
    ),
    Setting("max_body", "FEEDBACK_MAX_BODY", "max_body", "16MiB", _bytes, "bytes; larger: 413"),
    Setting(
        "max_connections",
        "FEEDBACK_MAX_CONNECTIONS",
        "max_connections",
        "2048",
        _at_least(1),
        "open connections of a worker; past it idle ones are closed",
    ),
    Setting(
        "reply",
        "FEEDBACK_REPLY",
        "reply",
        "event",
        _one_of("event", "off"),
        "answer with a metrics event, or with an empty 202",
    ),
    Setting(
        "reply_windows",
        "FEEDBACK_REPLY_WINDOWS",
        "reply_windows",
        "",
        _words,
        "windows that emitted events also show",
    ),
    Setting(
        "oidc_audience",
        "FEEDBACK_OIDC_AUDIENCE",
        "oidc_audience",
        "",
        _text,
        "events must bring a token for this audience; empty: tokens are not looked at",
    ),
    Setting(
        "oidc_issuer",
        "FEEDBACK_OIDC_ISSUER",
        "oidc_issuer",
        "https://kubernetes.default.svc",
        _issuer,
        "who issues the tokens, as they name it; its discovery document has the keys",
    ),
    Setting("sink", "K_SINK", "reply_url", "", _url, "post metric events there instead"),
    Setting(
        "sink_interval",
        "FEEDBACK_SINK_INTERVAL",
        "sink_interval",
        "1s",
        _seconds,
        "seconds between two events of one model to the sink",
    ),
    Setting(
        "ce_overrides",
        "K_CE_OVERRIDES",
        "ce_overrides",
        "{}",
        _extensions,
        'attributes set on events to the sink: {"extensions": {"name": "value"}}',
    ),
    Setting(
        "pushgateway",
        "FEEDBACK_PUSHGATEWAY_URL",
        "pushgateway_url",
        "",
        _url,
        "Pushgateway that gets the totals after commits and at the end",
    ),
    Setting(
        "pushgateway_interval",
        "FEEDBACK_PUSHGATEWAY_INTERVAL",
        "pushgateway_interval",
        "10s",
        _some_seconds,
        "seconds between two pushes",
    ),
    Setting(
        "pushgateway_job",
        "FEEDBACK_PUSHGATEWAY_JOB",
        "pushgateway_job",
        "feedback-metrics",
        _part,
        "job under which totals are pushed; one for each function that shares a gateway",
    ),
    Setting(
        "event_type",
        "FEEDBACK_EVENT_TYPE",
        "event_type",
        f"{FEEDBACK_TYPE}.metrics",
        _text,
        "type of emitted events",
    ),
    Setting(
        "event_source",
        "FEEDBACK_EVENT_SOURCE",
        "event_source",
        FEEDBACK_TYPE,
        _text,
        "source of emitted events",
    ),
    Setting(
        "accept_types",
        "FEEDBACK_ACCEPT_TYPES",
        "accept_types",
        FEEDBACK_TYPE,
        _types,
        "event types taken as feedback; others are answered 202",
    ),
    Setting(
        "prediction_types",
        "FEEDBACK_PREDICTION_TYPES",
        "prediction_types",
        ",".join((PREDICTION_TYPE, KSERVE_PREDICTION_TYPE)),
        _types,
        "event types taken as predictions that wait for their truth, with FEEDBACK_JOIN_TTL",
    ),
    Setting("log_level", "LOG_LEVEL", "log_level", "INFO", _level, "logs go to stderr"),
    Setting(
        "namespace",
        "SELDON_DEPLOYMENT_NAMESPACE",
        "namespace",
        "default",
        _part,
        "namespace of events that name none",
    ),
    Setting(
        "deployment",
        "SELDON_DEPLOYMENT_ID",
        "deployment",
        "default",
        _part,
        "deployment of events that name none",
    ),
    Setting(
        "predictor",
        "PREDICTOR_ID",
        "predictor",
        "default",
        _part,
        "predictor of events that name none",
    ),
    Setting(
        "model",
        "PREDICTIVE_UNIT_ID",
        "model",
        "default",
        _part,
        "model of events that name none",
    ),
    Setting(
        "model_image",
        "PREDICTIVE_UNIT_IMAGE",
        "model_image",
        "",
        _text,
        "image:version shown in the ancestor's families",
    ),
)


def load(environ: Mapping[str, str], flags: Mapping[str, str | None] | None = None) -> Settings:
    """The settings in `environ` and `flags`. Raises ConfigurationError, naming the one at fault."""
    values: dict[str, Any] = {}
    given: dict[str, str] = {}  # field -> the variable or flag that sets it
    for setting in SETTINGS:
        flag = (flags or {}).get(setting.flag)
        text = environ.get(setting.variable, "") if flag is None else flag
        name = setting.variable if flag is None else f"--{setting.flag}"
        if text.strip():
            given[setting.field] = name
        try:
            values[setting.field] = setting.read(text if text.strip() else setting.default)
        except ValueError as error:
            may_tell = shown(text) == text or isinstance(error, _Unfit)
            reason = error if may_tell else f"expected: {setting.help}"
            raise ConfigurationError(f"{name}: {shown(text)!r}: {reason}") from None
    unset = tuple(field not in given for field in ("namespace", "deployment", "predictor", "model"))
    settings = Settings(**values, unset_identity=unset)  # type: ignore[arg-type]
    if settings.task in _ANCESTORS_TASKS:
        settings = _as_ancestor(settings, "probabilities" in given)
    for name in settings.reply_windows:
        if name not in ("all", *(each.name for each in settings.windows)):
            raise ConfigurationError(
                f"FEEDBACK_REPLY_WINDOWS: {shown(name)!r} is no window that is kept"
            )
    if set(settings.accept_types) & set(settings.prediction_types):
        raise ConfigurationError("FEEDBACK_PREDICTION_TYPES: one is taken as feedback, too")
    if settings.event_type in settings.accept_types:
        raise ConfigurationError("FEEDBACK_EVENT_TYPE: is taken as feedback; events would loop")
    try:
        settings.model_settings()  # checks what settings must agree on
    except ConfigurationError as error:
        field, _, reason = str(error).partition(": ")
        name = given.get("top_k" if field == "k" else field, field)
        raise ConfigurationError(f"{name}: {reason}") from None
    return settings


def _as_ancestor(settings: Settings, strict: bool) -> Settings:
    """The ancestor's classes: a flat list is one row for its one-hot class; scores need not sum."""
    return replace(
        settings,
        task=_ANCESTORS_TASKS[settings.task],
        flat_rows=settings.task.endswith("OneHot"),
        probabilities=settings.probabilities if strict else "scores",
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, and the ancestor's own words, to `parser`."""
    for setting in SETTINGS:
        names = [f"--{setting.flag}"]
        if "_" in setting.flag:
            names.append(f"--{setting.flag.replace('_', '-')}")
        default = f" [{setting.default}]" if setting.default else ""
        parser.add_argument(
            *names,
            dest=setting.flag,
            metavar="X",
            help=f"{setting.help} ({setting.variable}){default}".replace("%", "%%"),
        )
    parser.add_argument("--model_name", metavar="X", help="the ancestor's; has no effect")
    parser.add_argument(
        "--protocol", metavar="X", choices=(PROTOCOL,), default=PROTOCOL, help="the ancestor's"
    )
    parser.add_argument(
        "server", nargs="?", choices=("MetricsServer",), help="the ancestor's; has no effect"
    )
