"""`python -m metrics export` and `import`: the state of a store as portable JSON, and back.

    {"format": "feedback-metrics", "version": 2, "id": random text, "created": RFC 3339,
     "models": {MODEL: {"constants": {name: JSON}, "gauges": {KEY: [number, epoch seconds]},
                        "panes": [{"width", "start", "segment", "counters": {KEY: number}}, …]}}}

KEY is the text of a JSON array, [family, labels…], as in the stores; so is a number: an integer, or
the text of an exact number (`exact`). In version 1, which is read too, these were floats. A pane of
width 0 is all time.

An import adds. With each model's counters, in the same commit, it fixes the constant
`imported ID`, whose value stands for this run: so an export counts once in a model however long
ago it was imported, whoever else imports it now, and wherever a run was interrupted.

Digests of events and halves that wait for each other stay where they are: an event that is
redelivered to another store than it was counted in is counted there.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time as clock
from collections.abc import Container
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from typing import Any

import orjson

from .. import alerts
from ..counters import Labels, Number, decode_key, encode_key
from ..errors import ConfigurationError, ConstantsDiffer, Refused, StoreUnavailable, StoreUnusable
from ..events import format_time
from ..exact import restored, stored
from ..payload import check_label, load_json, one_line
from ..state import Constants, Entry, Gauge, ModelState, State
from ..store import Store
from ..windows import ALL_TIME, Pane
from .schema import check_model
from .stores import current, opened

FORMAT = "feedback-metrics"
VERSION = 2
READ = (1, 2)
MARK = "imported "
"""What the name of the constant begins with that says that an export is in a model."""
ATTEMPTS = 5
"""Tries of a model's commit while others fix constants of it."""

_EXPORT_EPILOG = """\
examples:
  python -m metrics export --store sqlite:///state/feedback.db -o backup.json
  python -m metrics export --store redis://localhost:6379 | gzip > backup.json.gz

A server may be using the store. Ids of events, by which duplicates are known, and halves that wait
for each other are no part of an export.

exit status: 0 done, 2 usage or no such store, 130 interrupted
"""

_IMPORT_EPILOG = """\
examples:
  python -m metrics import --store sqlite:///state/feedback.db backup.json
  gunzip < backup.json.gz | python -m metrics import --store redis://localhost:6379 -

Counters are added to those that the store holds; a SQLite file that does not exist is made. An
export is added to a model once: a second import is refused, and one that was interrupted is
completed by the same command. A model whose task, class names or origins contradict the store's is
refused, and nothing of the export is added. What `reset` forgot can be imported again.

exit status: 0 done, 1 the import was refused, 2 usage or no such store, 130 interrupted
"""


@dataclass(frozen=True)
class Export:
    """An export that was read and checked."""

    id: str
    models: dict[str, ModelState]

    @property
    def mark(self) -> str:
        """The constant that a model has once this is added to it."""
        return MARK + self.id


def add_export(parser: argparse.ArgumentParser) -> None:
    """Describe the words of `export` to `parser`."""
    parser.description = "Write the state of a store as portable JSON."
    parser.epilog = _EXPORT_EPILOG
    parser.add_argument("--store", required=True, metavar="URL", help="sqlite:///… or redis://…")
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="- for stdout [-]")
    parser.set_defaults(run=export)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Describe the words of `import` to `parser`."""
    parser.description = "Add an export to the state of a store."
    parser.epilog = _IMPORT_EPILOG
    parser.add_argument("--store", required=True, metavar="URL", help="sqlite:///… or redis://…")
    parser.add_argument("file", metavar="FILE", help="an export; - for stdin")
    parser.set_defaults(run=import_)


# --- out --------------------------------------------------------------------------------------


def export(options: argparse.Namespace) -> int:
    """Write the export; a file appears whole or not at all."""
    with opened(options.store) as store:
        state = store.read()
    text = dump(state, secrets.token_hex(16), clock.time())
    if options.output == "-":
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        return 0
    try:
        _write(options.output, text)
    except OSError as error:
        raise ConfigurationError(f"--output: {options.output}: {error.strerror}") from None
    print(f"{options.output}: {len(state.models)} models, {len(text)} bytes", file=sys.stderr)
    return 0


def dump(state: State, id: str, now: float) -> bytes:
    """The export called `id` of `state`, one model a line. Raises StoreUnusable for infinity."""
    head = {"format": FORMAT, "version": VERSION, "id": id, "created": format_time(int(now))}
    models = (
        orjson.dumps(model) + b": " + orjson.dumps(_packed(model, known))
        for model, known in sorted(state.models.items())
    )
    return orjson.dumps(head)[:-1] + b',"models":{\n' + b",\n".join(models) + b"\n}}\n"


def _packed(model: str, state: ModelState) -> dict[str, Any]:
    return {
        "constants": {
            name: constant
            for name, constant in state.constants.items()
            if not name.startswith(alerts.PREFIX)  # how rules stand is of where they are watched
        },
        "gauges": {
            encode_key(*key): [_finite(gauge.value, model, key[0]), gauge.time]
            for key, gauge in state.gauges.items()
        },
        "panes": [
            {
                "width": pane.width,
                "start": pane.index,
                "segment": pane.segment,
                "counters": {
                    encode_key(family, labels): number
                    for family, cells in vector.items()
                    for labels, number in stored(family, cells).items()
                },
            }
            for pane, vector in sorted(state.panes.items())
        ],
    }


def _finite(number: Number, model: str, family: str) -> Number:
    if not isfinite(number):
        raise StoreUnusable(f"{model}: {family} is {number}, which JSON cannot hold")
    return number


def _write(path: str, text: bytes) -> None:
    """Put a file in its place, whole."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigurationError(f"--output: {path} is no regular file; use - for stdout")
    part = f"{path}.part"
    with open(part, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


# --- in ---------------------------------------------------------------------------------------


def import_(options: argparse.Namespace) -> int:
    """Add an export to a store; 1 where it was refused."""
    try:
        if options.file == "-":
            text = sys.stdin.buffer.read()
        else:
            with open(options.file, "rb") as file:
                text = file.read()
    except OSError as error:
        raise ConfigurationError(f"{options.file}: {error.strerror}") from None
    try:
        export = load(text)
        with opened(options.store, create=True) as store:
            added = merge_into(store, export)
    except (Refused, ConstantsDiffer) as error:
        print(f"feedback-metrics: {options.file}: {error}", file=sys.stderr)
        return 1
    before = len(export.models) - added
    rest = f"; {before} were imported before" if before else ""
    print(f"added {added} models of the export {export.id}{rest}")
    return 0


def load(text: bytes) -> Export:
    """The export in `text`, checked whole. Raises Refused, which names what is wrong."""
    value = load_json(text, "the file")
    if type(value) is not dict or value.get("format") != FORMAT:
        raise Refused("the file", "is no export")
    if value.get("version") not in READ:
        raise Refused("version", f"{value.get('version')!r}; this program reads {VERSION}")
    id, models = value.get("id"), value.get("models")
    if type(id) is not str or not id or type(models) is not dict:
        raise Refused("the file", "is damaged: no id or no models")
    check_label(MARK + id, "id")
    return Export(id, {model: _unpacked(model, known) for model, known in models.items()})


def _unpacked(model: str, known: Any) -> ModelState:
    where = f"models.{one_line(model, 80)}"
    parts = model.split("/")
    if len(parts) != 4 or not all(check_label(part, where) for part in parts):
        raise Refused(where, "is no namespace/deployment/predictor/model")
    try:
        panes: dict[Pane, Any] = {}
        for stored in known["panes"]:
            vector = panes[_pane(stored["width"], stored["start"], stored["segment"], panes)] = {}
            for key, number in stored["counters"].items():
                family, labels = _key(key)
                number = number if type(number) is str else _number(number)
                vector.setdefault(family, {})[labels] = restored(family, number)
        gauges = {
            _key(key): Gauge(_number(number), _number(time))
            for key, (number, time) in known["gauges"].items()
        }
        state = ModelState(panes, gauges, {**known["constants"]})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Refused(where, f"is damaged: {one_line(str(error), 100)}") from None
    check_model(model, state, where)
    return state


def _pane(width: Any, start: Any, segment: Any, others: Container[Pane]) -> Pane:
    """Raises ValueError for what is no stretch of time, or one of `others`."""
    pane = Pane(width, start, segment)
    whole = type(width) is int and type(start) is int and type(segment) is str
    if not whole or not 0 <= width < 1 << 31 or not 0 <= start < 1 << 40 or (start and not width):
        raise ValueError(f"a pane of width {width!r} and start {start!r}")
    if pane in others:
        raise ValueError(f"two panes of width {width} and start {start}")
    return pane


def _key(text: str) -> tuple[str, Labels]:
    """Raises ValueError for what is no [family, labels…]."""
    key = orjson.loads(text)
    if type(key) is not list or not key or any(type(part) is not str for part in key):
        raise ValueError(f"{text!r} is no [family, labels…]")
    return decode_key(text)


def _number(value: Any) -> Number:
    """Raises ValueError for what is no number that a store holds."""
    if type(value) is float or (type(value) is int and abs(value) < 1 << 63):
        number: Number = value
        return number
    raise ValueError(f"{value!r} is no number")


def merge_into(store: Store, export: Export) -> int:
    """Add each of the export's models to `store` that it was not added to; returns how many.

    A model is one commit. Raises Refused where all were added before, and ConstantsDiffer, before
    anything is added, where constants contradict.
    """
    state = current(store)
    todo = [model for model in export.models if export.mark not in state.constants(model)]
    if export.models and not todo:
        raise Refused("", f"the export {export.id} is in the store already; nothing was added")
    for model in todo:
        _check_constants(model, export.models[model], state)
    for model in todo:
        _add(store, export, model)
    return len(todo)


def _check_constants(model: str, known: ModelState, state: State) -> None:
    there = state.constants(model)
    for name, constant in known.constants.items():
        if name != "created" and there.get(name, constant) != constant:
            raise ConstantsDiffer(
                f"{model}: {name} is {_short(constant)} in the export and {_short(there[name])} "
                "in the store: they cannot be added; nothing was"
            )


def _short(constant: Any) -> str:
    return one_line(orjson.dumps(constant).decode(), 60)


def _add(store: Store, export: Export, model: str) -> None:
    """Commit one model. Raises ConstantsDiffer where another import is faster."""
    run = secrets.token_hex(8)
    known = export.models[model]
    for _ in range(ATTEMPTS):
        there = store.read().constants(model)
        if export.mark in there:
            raise ConstantsDiffer(f"{model}: another import of this export was faster")
        constants = {**known.constants, export.mark: run}
        if "created" in there:  # when the store's own counters began
            constants.pop("created", None)
        try:
            store.commit(_entries(model, known, constants, run), clock.time())
            return
        except ConstantsDiffer:
            _check_constants(model, known, store.read())
    raise StoreUnavailable("contended", f"{model}: others were faster time and again")


def _entries(model: str, known: ModelState, constants: Constants, run: str) -> list[Entry]:
    """What adds one model: an entry for each of its panes; the first bears all that is no sum.

    Their digests keep a commit from adding twice where it is repeated after a lost answer.
    """
    entries = []
    for pane, vector in (known.panes or {ALL_TIME: {}}).items():
        digest = blake2b(orjson.dumps((run, model, *pane)), digest_size=16).digest()
        entries.append(Entry(model, digest, (pane,), vector))
    entries[0].gauges, entries[0].constants = known.gauges, constants
    return entries
