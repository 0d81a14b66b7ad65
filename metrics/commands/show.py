"""`python -m metrics show`: the models of a server or a store, or the scores of one."""

from __future__ import annotations

import argparse
import os
import sys
import time as clock
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from .. import config
from ..counters import NO_LABELS, net, value
from ..errors import ConfigurationError, FeedbackMetricsError, NotFound
from ..events import format_time, shown_time
from ..isolation import Isolation
from ..models_file import ModelsFile
from ..payload import one_line
from ..scores import model_view
from ..scores.ranges import fixed
from ..scores.view import ALL, task_of
from ..state import ModelState
from ..store import Store
from .link import DEFAULT_URL, Server
from .stores import current, opened

MAX_LABELS = 20
"""Labels up to which the table has the confusion matrix; JSON has all that the server shows."""
MAX_CELL = 60
CLASS_SCORES = ("support", "precision", "recall", "f1", "roc_auc")
OUTPUT_SCORES = ("rows", "mean_absolute_error", "root_mean_squared_error", "r2")
SEGMENT_SCORES = ("rows", "accuracy", "mean_absolute_error", "subset_accuracy")

_EPILOG = f"""\
examples:
  python -m metrics show                                      the models of {DEFAULT_URL}
  python -m metrics show iris --window 1h --watch 5           one model, again every 5 seconds
  python -m metrics show seldon/iris/default/classifier --url https://metrics.example --json
  python -m metrics show iris --store sqlite:///state/feedback.db

MODEL is namespace/deployment/predictor/model, or any of the four where that is unambiguous.
A store is read beside its server or without one; the server's variables (FEEDBACK_TASK,
FEEDBACK_MODELS, FEEDBACK_WINDOWS, …) say how its counters are scored. An undefined score is absent.

exit status: 0 shown, 2 usage, or no such model, window, store or server, 130 interrupted
"""

Row = Sequence[Any]


class Stored:
    """Answers from a store what a server would answer."""

    def __init__(self, store: Store) -> None:
        settings = config.load(os.environ)
        self._models = ModelsFile(settings.models_file, settings.model_settings())
        self._store = store
        self._isolation = Isolation(lambda: None, traces=False)

    def models(self) -> list[dict[str, Any]]:
        """What is counted, as `GET /v1/models` has it. Raises StoreUnavailable."""
        known = [
            each
            for each in sorted(current(self._store).models.items())
            if "events" in each[1].all_time
        ]
        return [found for _, found in self._isolation.each(known, self._summary)]

    def _summary(self, model: str, state: ModelState) -> dict[str, Any]:
        vector = net(state.all_time)
        return {
            "id": model,
            "task": task_of(state, self._models.of(model)),
            "events": int(value(vector, "events")),
            "rows": int(value(vector, "rows")),
            "last_event": _last_event(state),
        }

    def view(self, model: str, window: str) -> dict[str, Any]:
        """One model's view. Raises NotFound, StoreUnavailable, Unreadable."""
        state = current(self._store).models.get(model)
        if state is None:
            raise NotFound(f"no feedback for the model {model!r}")
        settings = self._models.of(model)
        kept = {each.name: each for each in settings.windows}
        if window != ALL and window not in kept:
            raise NotFound(f"window: {window!r} is not kept; one of {', '.join((ALL, *kept))}")
        segments = bool(settings.segments)

        def view() -> dict[str, Any]:
            now, chosen = clock.time(), kept.get(window)
            found = model_view(model, state, settings, now, chosen, segments=segments, curves=True)
            orjson.dumps(found)  # what cannot be shown is told here, not by whoever prints it
            return found

        return self._isolation.one(model, view)


def _last_event(state: ModelState) -> str | None:
    last = state.gauges.get(("last_event", NO_LABELS))
    return shown_time(last.value) if last else None


class Served:
    """Asks a server."""

    def __init__(self, url: str) -> None:
        self._server = Server(url)

    def models(self) -> list[dict[str, Any]]:
        """What is counted. Raises NotFound, Unavailable."""
        models: list[dict[str, Any]] = self._ask("/v1/models", "models", list)["models"]
        return models

    def view(self, model: str, window: str) -> dict[str, Any]:
        """One model's view. Raises NotFound, and Refused for a window that is not kept."""
        return self._ask(f"/v1/models/{quote(model)}?window={quote(window)}", "scores", dict)

    def _ask(self, path: str, member: str, kind: type) -> dict[str, Any]:
        answer = self._server.get_json(path)
        if not isinstance(answer, dict) or not isinstance(answer.get(member), kind):
            raise ConfigurationError("--url: what answers there is not this function")
        return answer


def add_show(parser: argparse.ArgumentParser) -> None:
    """Describe the command's words to `parser`."""
    parser.description = "Show the scores of a model, or the list of models."
    parser.epilog = _EPILOG
    parser.add_argument("model", nargs="?", metavar="MODEL", help="without it, the models")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--url", default=DEFAULT_URL, help=f"a server [{DEFAULT_URL}]")
    place.add_argument("--store", metavar="URL", help="sqlite:///… or redis://…; no server needed")
    parser.add_argument("--window", default=ALL, metavar="NAME", help="all, 5m, 1h, … [all]")
    parser.add_argument("--json", action="store_true", help="as JSON, one line each time")
    parser.add_argument("--watch", type=_seconds, metavar="SECONDS", help="again and again")
    parser.set_defaults(run=show)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError("must be 0.1 to 86400 seconds")
    return seconds


def show(options: argparse.Namespace) -> int:
    """Show once, or until interrupted; an error that comes later does not end `--watch`."""
    if not options.store:
        return _show(Served(options.url), options)
    with opened(options.store) as store:
        return _show(Stored(store), options)


def _show(source: Stored | Served, options: argparse.Namespace) -> int:
    print(_text(source, options), flush=True)
    while options.watch:
        clock.sleep(options.watch)
        try:
            print(_text(source, options), flush=True)
        except FeedbackMetricsError as error:
            print(f"feedback-metrics: {error}", file=sys.stderr)
    return 0


def _text(source: Stored | Served, options: argparse.Namespace) -> str:
    if options.model is None:
        models = source.models()
        text = _json({"models": models}) if options.json else model_table(models)
    else:
        view = source.view(find(options.model, source), options.window)
        text = _json(view) if options.json else view_table(view)
    if options.watch and not options.json:
        clear = "\x1b[H\x1b[2J" if sys.stdout.isatty() else ""
        text = f"{clear}{format_time(int(clock.time()))}\n{text}"
    return text


def find(wanted: str, source: Stored | Served) -> str:
    """The id of the model that is meant. Raises NotFound or, for several, ConfigurationError."""
    if wanted.count("/") == 3:
        return wanted
    ids = [each["id"] for each in source.models()]
    found = [id for id in ids if wanted in id.split("/")]
    if not found:
        raise NotFound(f"no feedback for the model {wanted!r}")
    if len(found) > 1:
        rest = ", …" if len(found) > 3 else ""
        names = ", ".join(one_line(id, MAX_CELL) for id in found[:3])
        raise ConfigurationError(f"{wanted!r} may be any of {len(found)} models: {names}{rest}")
    return str(found[0])


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


# --- tables -----------------------------------------------------------------------------------


def model_table(models: Sequence[Mapping[str, Any]]) -> str:
    """The list of models, aligned."""
    if not models:
        return "no model has had any feedback yet"
    return table(_rows("model", "id", ("task", "events", "rows", "last_event"), models))


def view_table(view: Mapping[str, Any]) -> str:
    """One model's view, aligned; where there is nothing to say of something, it is left out."""
    about: list[Row] = [(name, view.get(name)) for name in ("task", "window", "events", "rows")]
    blocks = [[("model", view.get("id")), *about], _scores(view), *_parts(view)]
    shown = [table(rows) for rows in blocks if len(rows) > 1]
    if len(shown) == 1:
        shown.append("no rows in this window: nothing is defined")
    return "\n\n".join(shown)


def _scores(view: Mapping[str, Any]) -> list[Row]:
    bounds = view.get("bounds", {})
    ranges = {**view.get("intervals", {}), **bounds}
    rows: list[Row] = [("score", "value", "low", "high", "")]
    for name, number in view["scores"].items():
        low, high = ranges.get(name, (None, None))
        rows.append((name, number, low, high, "certified" if name in bounds else ""))
    return rows


def _parts(view: Mapping[str, Any]) -> Iterator[list[Row]]:
    yield _rows("class", "class", CLASS_SCORES, view.get("classes", ()))
    matrix = view.get("confusion_matrix") or {"labels": ()}
    labels = matrix["labels"]
    if 0 < len(labels) <= MAX_LABELS:
        cells = zip(labels, matrix["matrix"], strict=True)
        yield [("truth \\ predicted", *labels), *((label, *row) for label, row in cells)]
    outputs = view.get("outputs", ())
    if len(outputs) > 1:
        yield _rows("output", "output", OUTPUT_SCORES, [{**o, **o["scores"]} for o in outputs])
    if reward := view.get("reward"):
        routes = [{**reward, "route": "all"}, *reward.get("routes", ())]
        yield _rows("reward", "route", ("count", "sum", "mean"), routes)
    segments = [
        {**each, **each["scores"], "name": f"{each['segment']}={each['value']}"}
        for each in view.get("segments", ())
    ]
    yield _rows("segment", "name", SEGMENT_SCORES, segments)


def _rows(
    title: str, key: str, names: Sequence[str], items: Iterable[Mapping[str, Any]]
) -> list[Row]:
    """A row of `names` for each of `items`, under a head."""
    return [(title, *names), *((item[key], *map(item.get, names)) for item in items)]


def table(rows: Sequence[Row]) -> str:
    """`rows` in aligned columns, numbers to the right; columns without any content are left out."""
    cells = [[_cell(each) for each in row] for row in rows]
    columns = [column for column in zip(*cells, strict=True) if any(column[1:])]
    aligned = []
    for at, column in enumerate(columns):
        width = max(map(len, column))
        left = not at or len(rows[0]) == 2
        aligned.append([text.ljust(width) if left else text.rjust(width) for text in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*aligned, strict=True))


def _cell(value: Any) -> str:
    """A cell's text; labels are others' input, so without control characters, and cut."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) >= 1e4 or 0 < abs(value) < 1e-4 else fixed(value, 6)
    return one_line(str(value), MAX_CELL)
