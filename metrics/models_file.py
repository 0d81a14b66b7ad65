"""`FEEDBACK_MODELS`: a YAML file that sets models apart, by glob on the model id.

    models:
      "*/fraud-*/*/*":
        task: binary
        threshold: 0.2
      "seldon/iris/default/classifier":
        classes: [setosa, versicolor, virginica]
        alerts:
          - {name: accuracy, score: accuracy, window: 1h, below: 0.9, rows: 100, for: 5m}

Every glob that matches applies, in the order written, later keys over earlier ones. The file is
checked at start; when it changes (ConfigMaps are swapped under a running pod) it is read again,
and a broken new version keeps the old one and says so.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time as clock
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any, NoReturn

from .alerts import SCORES, Rule
from .background import Count, report
from .errors import ConfigurationError
from .evaluators.user_metrics import load_class
from .model_settings import ModelSettings
from .urls import shown
from .windows import duration, window

logger = logging.getLogger("metrics.models")

RELOAD_SECONDS = 1.0
"""How often the file is looked at, at most."""
MAX_KNOWN = 10_000
"""Models whose settings are cached, whether they were ever admitted or not."""


class ModelsFile:
    """The settings of each model; without a file, the defaults for all."""

    def __init__(self, path: str, defaults: ModelSettings, count: Count | None = None) -> None:
        self._path = path
        self._count = count
        self._defaults = defaults
        self._lock = threading.Lock()
        self._looked = clock.monotonic()
        self._stamp: Any = None
        self._globs: list[tuple[str, dict[str, Any]]] = []
        self._known: dict[str, ModelSettings] = {}
        if path:
            self._stamp = self._stat()
            self._globs = self._read()

    def of(self, model: str) -> ModelSettings:
        """The settings in force for the model with this id."""
        if self._path and clock.monotonic() - self._looked > RELOAD_SECONDS:
            self._reload()
        if not self._globs:
            return self._defaults
        known = self._known  # before the globs: those read again come before an empty cache
        found = known.get(model)
        if found is None:
            changes: dict[str, Any] = {}
            for glob, settings in self._globs:
                if fnmatchcase(model, glob):
                    changes.update(settings)
            found = replace(self._defaults, **changes) if changes else self._defaults
            if len(known) >= MAX_KNOWN:  # senders invent ids
                self._known = known = {}
            known[model] = found
        return found

    def _reload(self) -> None:
        if not self._lock.acquire(False):
            return
        try:
            self._looked = clock.monotonic()
            stamp = self._stat()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._globs = self._read()
            self._known = {}
            logger.info("%s read again", shown(self._path))
        except ConfigurationError as error:
            logger.error("%s; the version before stays in force", error)
        except Exception as error:  # a bug: events are evaluated as before
            report("models", error, self._count)
        finally:
            self._lock.release()

    def _stat(self) -> Any:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> list[tuple[str, dict[str, Any]]]:
        try:
            with open(self._path, encoding="utf-8") as file:
                text = file.read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigurationError(f"FEEDBACK_MODELS: {shown(self._path)}: {reason}") from None
        try:
            return _parse(text, shown(self._path), self._defaults)
        except RecursionError:
            raise ConfigurationError(
                f"FEEDBACK_MODELS: {shown(self._path)}: nested too deeply"
            ) from None


def _parse(text: str, path: str, defaults: ModelSettings) -> list[tuple[str, dict[str, Any]]]:
    """The globs and their settings. Raises ConfigurationError naming file, line and key."""
    import yaml  # only with a file

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigurationError(f"FEEDBACK_MODELS: {path}:{line}: {problem}") from None
    if root is None:
        return []
    construct = yaml.SafeLoader("").construct_document
    as_written = yaml.BaseLoader("").construct_document
    globs: list[tuple[str, dict[str, Any]]] = []
    for key, node in _entries(root, path, "the file"):
        if key != "models":
            _refuse(path, node, key, "unknown; the file has one key, models")
        for glob, model in _entries(node, path, "models"):
            settings: dict[str, Any] = {}
            for name, value in _entries(model, path, glob):
                if name not in _KEYS:
                    _refuse(path, value, name, f"unknown; one of {', '.join(_KEYS)}")
                field, read = _KEYS[name]
                try:
                    typed = read in (_number, _integer, _rules)
                    settings[field] = read(construct(value) if typed else as_written(value))
                    replace(defaults, **settings)
                except yaml.YAMLError as error:
                    reason = getattr(error, "problem", None) or "not YAML"
                    _refuse(path, value, f"{glob}: {name}", reason)
                except (TypeError, ValueError, AttributeError, ConfigurationError) as error:
                    if isinstance(error, ConfigurationError) and _mends_itself(name, model):
                        continue
                    _refuse(path, value, f"{glob}: {name}", str(error).removeprefix(f"{name}: "))
            try:
                replace(defaults, **settings)
            except ConfigurationError as error:
                _refuse(path, model, glob, str(error))
            globs.append((glob, settings))
    return globs


def _mends_itself(name: str, model: Any) -> bool:
    """Whether a disagreement may come from a key that stands further down; it is checked again."""
    keys = ("task", "classes", "positive_class", "alerts", "windows")
    return name in keys and len(model.value) > 1


def _entries(node: Any, path: str, where: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(node, "value") or not isinstance(node.value, list) or node.id != "mapping":
        _refuse(path, node, where, "must be a mapping")
    for key, value in node.value:
        yield str(key.value), value


def _refuse(path: str, node: Any, key: str, reason: str) -> NoReturn:
    line = node.start_mark.line + 1
    raise ConfigurationError(f"FEEDBACK_MODELS: {path}:{line}: {key}: {reason}")


def _strings(value: Any) -> tuple[str, ...]:
    """Names as written: to YAML, `no` would be false and `1.0` a number."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("must be a list of names")
    return tuple(value)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def _task(value: Any) -> str:
    task = _string(value)
    if "." in task:
        try:
            load_class(task)
        except ConfigurationError as error:
            raise ValueError(str(error).removeprefix("task: ")) from None
    return task


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a number")
    return float(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be an integer")
    return value


_RULE = {"name", "score", "window", "below", "above", "rows", "for"}


def _rules(value: Any) -> tuple[Rule, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of rules")
    return tuple(_rule(each, f"rule {number}") for number, each in enumerate(value, 1))


def _rule(value: Any, where: str) -> Rule:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: must be a mapping")
    unknown = [str(key) for key in value if key not in _RULE]
    if unknown:
        raise ValueError(f"{where}: {unknown[0]}: unknown; one of {', '.join(sorted(_RULE))}")
    name = value.get("name")
    if not isinstance(name, str) or not _RULE_NAME.fullmatch(name):
        raise ValueError(f"{where}: name: must be 1 to 64 letters, digits, '-', '_' or '.'")
    if value.get("score") not in SCORES:
        raise ValueError(f"{name}: score: {value.get('score')!r} is no score")
    if ("below" in value) == ("above" in value):
        raise ValueError(f"{name}: needs below or above, and not both")
    bound = "below" if "below" in value else "above"
    rows, seconds = value.get("rows", 1), value.get("for", 0)
    try:
        return Rule(
            name,
            value["score"],
            str(value.get("window", "all")),
            **{bound: _finite(_number(value[bound]))},
            rows=_from(1, _integer(rows)),
            seconds=duration(str(seconds)) if seconds != 0 else 0,
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _finite(number: float) -> float:
    if not isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _from(least: int, number: int) -> int:
    if number < least:
        raise ValueError(f"must be {least} or more")
    return number


_RULE_NAME = re.compile("[A-Za-z0-9._-]{1,64}")

_KEYS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "task": ("task", _task),
    "classes": ("classes", _strings),
    "positive_class": ("positive_class", _string),
    "threshold": ("threshold", _number),
    "k": ("k", _integer),
    "beta": ("beta", _number),
    "probabilities": ("probabilities", _string),
    "windows": ("windows", lambda value: tuple(map(window, _strings(value)))),
    "segments": ("segments", _strings),
    "max_classes": ("max_classes", _integer),
    "confidence": ("confidence", _number),
    "alerts": ("alerts", _rules),
}
