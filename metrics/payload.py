"""Event data -> Feedback: every form in which truths and predictions arrive, made one.

    {"request"?: M, "response"?: M, "truth": M, "reward"?: number}

M is a Seldon message (`data.ndarray`, `data.tensor`, `data.tftensor`, `jsonData`, `strData`,
`binData`), a KServe V1 answer (`predictions`) or a V2 one (`outputs`). Each becomes `Values`:
(N,) labels or numbers, or (N, K) rows of numbers. Nothing here knows a task; that is
the evaluators' business. Whatever cannot be read raises `Refused`, which names the field.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import orjson

from . import large_arrays
from .errors import Refused
from .tensors import base64_bytes, read_outputs, read_tensor, read_tftensor
from .values import (
    MAX_LABEL,
    NO_BUDGET,
    Budget,
    Values,
    check_label,
    flat_values,
    one_line,
    read_array,
)

__all__ = [
    "MAX_LABEL",
    "NO_BUDGET",
    "Budget",
    "Feedback",
    "Values",
    "check_label",
    "decode",
    "dump_json",
    "load_json",
    "message",
    "one_line",
    "parse",
    "read_meta",
]


@dataclass(slots=True)
class Feedback:
    """What one feedback event says."""

    truth: Values
    prediction: Values | None
    reward: float | None = None
    metrics: Sequence[Any] = ()
    """`truth.meta.metrics` as it came: the user's own metrics."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    route: str = ""
    """The branch a router chose, where `meta.routing` or a request path names one."""
    puid: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict)
    """The decoded event, for custom metric classes."""


def decode(body: bytes) -> Feedback:
    """The feedback in `body` (JSON). Raises Refused, which names the offending field."""
    feedback = parse(load_large(body, "data"), Budget(len(body)))
    if len(body) >= _LARGE:
        feedback.raw = Again(body)
    return feedback


_LARGE = 4096
"""Bytes of an event from which its decoded form is not kept while it waits for its commit."""


class Again(Mapping[str, Any]):
    """A JSON object that is decoded whenever it is looked at.

    It is the data of a structured event where `is_structured`, and a member of the object where
    `under` names that.
    """

    def __init__(self, body: bytes, is_structured: bool = False, under: str = "") -> None:
        self._body = body
        self._is_structured = is_structured
        self._under = under

    def _decoded(self) -> Any:
        value = orjson.loads(self._body)
        if self._is_structured:
            coded = value.get("data_base64")
            value = value["data"] if coded is None else orjson.loads(b64decode(coded))
        return {self._under: value} if self._under else value

    def __getitem__(self, name: str) -> Any:
        return self._decoded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())


def load_json(body: bytes | str, where: str, loads: Callable[[Any], Any] = orjson.loads) -> Any:
    """The JSON value in `body`. Raises Refused, naming `where`; NaN and Infinity are no JSON."""
    if not body:
        raise Refused(where, "empty; feedback is a JSON object with truth and response")
    try:
        return loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(where, f"not JSON: {one_line(str(error))}") from None


def load_large(text: bytes, where: str) -> Any:
    """`load_json`, with long arrays as `LargeArray`. Raises Refused, naming `where`."""
    if len(text) < large_arrays.MIN_BODY:
        return load_json(text, where)
    value = large_arrays.load(text, loads)
    return load_json(text, where, loads) if value is None else value


loads: Callable[[Any], Any] = orjson.loads
"""How large JSON is decoded: replaced in a process whose memory is limited."""


def dump_json(value: Any, where: str, option: int = 0) -> bytes:
    """What was read, as JSON again. Raises Refused, naming `where`, for what is nested too deeply.

    orjson reads 1024 levels and writes 254; all else that it reads it can write.
    """
    try:
        return orjson.dumps(value, option=option)
    except orjson.JSONEncodeError as error:
        if "ecursion" not in str(error):
            raise
        raise Refused(where, "nested too deeply to be remembered") from None


def parse(event: Any, budget: Budget = NO_BUDGET) -> Feedback:
    """The feedback in a decoded event. Raises Refused, which names the offending field."""
    if type(event) is not dict:
        raise Refused("data", "must be a JSON object with truth and response")
    truth = event.get("truth")
    if truth is None or truth == {}:
        raise Refused("truth", "missing; feedback needs the ground truth")
    response = event.get("response")
    if response == {}:
        response = None
    reward = event.get("reward")
    if reward is not None:
        if type(reward) not in (int, float) or not isfinite(reward):
            raise Refused("reward", "must be a finite number")
        reward = float(reward)
    true = message(truth, "truth", budget)
    prediction = None if response is None else message(response, "response", budget)
    feedback = Feedback(true, prediction, reward, raw=event)
    if "meta" in event or "meta" in truth or (response and "meta" in response):
        for where, part in (("meta", event), ("response.meta", response), ("truth.meta", truth)):
            if part and part.get("meta") is not None:
                read_meta(part["meta"], where, feedback)
    return feedback


def message(value: Any, where: str, budget: Budget = NO_BUDGET) -> Values:
    """The values of one message M. Raises Refused, naming a field below `where`."""
    if type(value) is not dict:
        raise Refused(where, "must be a JSON object")
    if "data" in value:
        return _seldon_data(value["data"], where + ".data", budget)
    for key, read in _MESSAGE_FORMS.items():
        if key in value:
            return read(value[key], f"{where}.{key}", budget)
    raise Refused(where, f"none of {', '.join(_MESSAGE_FORMS)} in it")


# --- one message ----------------------------------------------------------------------------


def _seldon_data(data: Any, where: str, budget: Budget) -> Values:
    if type(data) is not dict:
        raise Refused(where, "must be a JSON object")
    if "ndarray" in data:
        values = read_array(data["ndarray"], where + ".ndarray")
    else:
        key = next((key for key in _DATA_FORMS if key in data), None)
        if key is None:
            raise Refused(where, f"none of {', '.join(_DATA_FORMS)} in it")
        values = _DATA_FORMS[key](data[key], f"{where}.{key}", budget)
    if data.get("names"):
        values.names = _names(data["names"], f"{where}.names", values.width)
    return values


def _names(names: Any, where: str, width: int) -> tuple[str, ...] | None:
    if type(names) is not list or any(type(name) is not str for name in names):
        raise Refused(where, "must be a list of strings")
    if len(names) != width:
        return None  # names of something else, e.g. of the one column of labels
    if len(set(names)) != len(names):
        raise Refused(where, "names a column twice")
    return tuple(check_label(name, where) for name in names)


def _any_json(value: Any, where: str, budget: Budget) -> Values:
    """A message, a bare array, or one label, as `jsonData` may hold."""
    if type(value) is dict:
        for key in value:
            if key in _NESTED_FORMS:
                return _NESTED_FORMS[key](value[key], f"{where}.{key}", budget)
        raise Refused(where, f"none of {', '.join(_NESTED_FORMS)} in it")
    return read_array(value, where)


def _text(value: Any, where: str, _: Budget) -> Values:
    if type(value) is not str:
        raise Refused(where, "must be a string")
    return flat_values([value], where)


def _binary(value: Any, where: str, budget: Budget) -> Values:
    return _any_json(load_large(base64_bytes(value, where), where), where, budget)


# --- meta -----------------------------------------------------------------------------------


def read_meta(meta: Any, where: str, feedback: Feedback) -> None:
    """Take what is used of a `meta`: tags and puid of any message, metrics of the truth's."""
    if type(meta) is not dict:
        raise Refused(where, "must be a JSON object")
    tags = meta.get("tags")
    if tags:
        if type(tags) is not dict:
            raise Refused(f"{where}.tags", "must be a JSON object")
        feedback.tags = {**feedback.tags, **tags}
    puid = meta.get("puid")
    if puid:
        if type(puid) is not str:
            raise Refused(f"{where}.puid", "must be a string")
        feedback.puid = puid
    routing = meta.get("routing")
    if routing:
        if type(routing) is not dict:
            raise Refused(f"{where}.routing", "must be a JSON object")
        if not set(map(type, routing.values())) <= {int, float, str}:
            raise Refused(f"{where}.routing", "must give each router's branch as a number")
        parts = (f"{router}={branch}" for router, branch in sorted(routing.items()))
        feedback.route = check_label(",".join(parts), f"{where}.routing")
    elif meta.get("requestPath") and not feedback.route:
        path = meta["requestPath"]
        if type(path) is not dict:
            raise Refused(f"{where}.requestPath", "must be a JSON object")
        feedback.route = check_label(",".join(map(str, path)), f"{where}.requestPath")
    metrics = meta.get("metrics")
    if metrics and where == "truth.meta":
        if type(metrics) is not list:
            raise Refused(f"{where}.metrics", "must be a list")
        feedback.metrics = metrics


# --- tables ---------------------------------------------------------------------------------

_Reader = Callable[[Any, str, Budget], Values]

_DATA_FORMS: dict[str, _Reader] = {
    "ndarray": read_array,
    "tensor": read_tensor,
    "tftensor": read_tftensor,
}
_MESSAGE_FORMS: dict[str, _Reader] = {
    "data": _seldon_data,
    "jsonData": _any_json,
    "strData": _text,
    "binData": _binary,
    "predictions": read_array,
    "outputs": read_outputs,
}
_NESTED_FORMS: dict[str, _Reader] = {
    **_DATA_FORMS,
    "data": _seldon_data,
    "predictions": read_array,
    "outputs": read_outputs,
}
