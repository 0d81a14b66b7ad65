"""Event data -> Feedback: every form in which truths and predictions arrive, made one.

    {"request"?: M, "response"?: M, "truth": M, "reward"?: number}

M is a Seldon message (`data.ndarray`, `data.tensor`, `data.tftensor`, `jsonData`, `strData`,
`binData`), a KServe V1 answer (`predictions`) or a V2 one (`outputs`). Each becomes `Values`:
(N,) labels or numbers, or (N, K) rows of numbers. Nothing here knows a task; that is
the evaluators' business. Whatever cannot be read raises `Refused`, which names the field.
"""

from __future__ import annotations

import binascii
import re
import struct
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod
from struct import pack, unpack, unpack_from
from typing import TYPE_CHECKING, Any

import orjson

from . import large_arrays
from .errors import Refused
from .large_arrays import LargeArray

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_LABEL = 256
"""Characters of a class label, a class name or any other text that becomes a label."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NUMBERS = frozenset({int, float, bool})
_DECIMAL = re.compile("-?[0-9]{1,20}")

Scalar = int | float | bool | str


@dataclass(slots=True, init=False)
class Values:
    """Truths or predictions: `flat` holds N scalars (`width` 0) or N rows of `width` numbers."""

    field: str
    """Where they stood in the event, for error messages."""
    flat: list[Any]
    width: int
    numeric: bool
    """Whether no scalar is a string."""
    names: tuple[str, ...] | None
    """`data.names`, one for each column."""
    doubles: bytes | bytearray | None
    """The scalars as doubles, where they are many numbers: what numpy reads without a copy."""
    rows: int

    def __init__(  # by hand: every event has two of them
        self,
        field: str,
        flat: list[Any],
        width: int,
        numeric: bool,
        names: tuple[str, ...] | None = None,
        doubles: bytes | bytearray | None = None,
    ) -> None:
        self.field = field
        self.flat = flat
        self.width = width
        self.numeric = numeric
        self.names = names
        self.doubles = doubles
        self.rows = len(flat) // width if width else len(flat)

    def __len__(self) -> int:
        return self.rows

    def __getattr__(self, name: str) -> Any:
        """`flat` of many rows that `forget` left as doubles."""
        if name != "flat" or self.doubles is None:
            raise AttributeError(name)
        self.flat = list(unpack(f"{len(self.doubles) // 8}d", self.doubles))
        return self.flat

    def forget(self) -> None:
        """Let go of the scalars but for their doubles: many events wait for one commit."""
        del self.flat

    def row(self, index: int) -> list[Any]:
        """The numbers of one row; only where `width` > 0."""
        return self.flat[index * self.width : (index + 1) * self.width]

    def first(self) -> Sequence[Any]:
        """The numbers of the first row; only where `width` > 0."""
        return self.row(0) if self.doubles is None else unpack_from(f"{self.width}d", self.doubles)

    def whole(self) -> bool:
        """Whether every number was written without a fraction: labels, never probabilities."""
        return self.numeric and float not in set(map(type, self.flat))

    def integral(self) -> bool:
        """Whether no number has a fraction, however it is written; only where `numeric`."""
        if self.doubles is None:
            return all(type(number) is not float or number.is_integer() for number in self.flat)
        numbers = self.matrix()
        return bool((numbers == numbers.round()).all())

    def as_one_row(self) -> Values:
        """The same scalars read as a single row (the ancestor's flat one-hot lists)."""
        return Values(self.field, self.flat, len(self.flat), self.numeric, self.names, self.doubles)

    def matrix(self) -> NDArray[np.float64]:
        """(N, K) float64; only where `numeric`. Imports numpy, which one row need not wait for."""
        import numpy as np

        doubles = _doubles(self.flat) if self.doubles is None else self.doubles
        return np.frombuffer(doubles, np.float64).reshape(len(self), self.width or 1)

    def finite(self) -> bool:
        """Whether no number is NaN or infinite; like `matrix` only where `numeric`, with numpy."""
        import numpy as np

        return bool(np.isfinite(self.matrix()).all())


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


class Budget:
    """What the events of one request may stand for beyond what they spell out.

    Whatever is short for more numbers takes them from here. A body of N bytes has a budget of N
    numbers, so what a request costs is bounded by its size.
    """

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, numbers: int, where: str) -> None:
        """Spend so many numbers. Raises Refused, naming `where`, for more than are left."""
        if numbers > self._left:
            raise Refused(where, f"is filled up with more numbers than are allowed ({self._left})")
        self._left -= numbers


NO_BUDGET = Budget(0)
"""For events that spell out all of their numbers."""


def decode(body: bytes) -> Feedback:
    """The feedback in `body` (JSON). Raises Refused, which names the offending field."""
    event = large_arrays.load(body) if len(body) >= large_arrays.MIN_BODY else None
    if event is None:
        event = load_json(body, "data")
    feedback = parse(event, Budget(len(body)))
    if len(body) >= _LARGE:
        feedback.raw = _Again(body)
    return feedback


_LARGE = 4096
"""Bytes of an event from which its decoded form is not kept while it waits for its commit."""


class _Again(Mapping[str, Any]):
    """A JSON object that is decoded whenever it is looked at."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __getitem__(self, name: str) -> Any:
        return orjson.loads(self._body)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(orjson.loads(self._body))

    def __len__(self) -> int:
        return len(orjson.loads(self._body))


def load_json(body: bytes | str, where: str) -> Any:
    """The JSON value in `body`. Raises Refused, naming `where`; NaN and Infinity are no JSON."""
    if not body:
        raise Refused(where, "empty; feedback is a JSON object with truth and response")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(where, f"not JSON: {one_line(str(error))}") from None


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


def one_line(text: str, limit: int = 200) -> str:
    """`text` without control characters, cut to `limit` characters: fit for a reason or a log."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_label(text: str, where: str) -> str:
    """`text`, fit to be a label: no control characters, at most MAX_LABEL long. Raises Refused."""
    if len(text) > MAX_LABEL:
        raise Refused(where, f"a label of {len(text)} characters; at most {MAX_LABEL} are taken")
    if _CONTROL.search(text):
        raise Refused(where, f"control characters in the label {one_line(text, 40)!r}")
    return text


# --- one message ----------------------------------------------------------------------------


def _seldon_data(data: Any, where: str, budget: Budget) -> Values:
    if type(data) is not dict:
        raise Refused(where, "must be a JSON object")
    if "ndarray" in data:
        values = _array(data["ndarray"], where + ".ndarray")
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
    return _array(value, where)


def _text(value: Any, where: str, _: Budget) -> Values:
    if type(value) is not str:
        raise Refused(where, "must be a string")
    return _flat([value], where)


def _binary(value: Any, where: str, budget: Budget) -> Values:
    return _any_json(load_json(_base64(value, where), where), where, budget)


def _base64(value: Any, where: str) -> bytes:
    if type(value) is not str:
        raise Refused(where, "must be a base64 string")
    try:
        return b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(where, "not base64") from None


def _outputs(outputs: Any, where: str, _: Budget) -> Values:
    """The one output of a V2 answer, or the one called predict_proba or predict."""
    if type(outputs) is not list or not outputs:
        raise Refused(where, "must be a list of outputs")
    if any(type(output) is not dict for output in outputs):
        raise Refused(where, "every output must be a JSON object")
    if len(outputs) == 1:
        return _output(outputs[0], f"{where}[0]")
    for wanted in ("predict_proba", "probabilities", "predict"):
        for index, output in enumerate(outputs):
            if output.get("name") == wanted:
                return _output(output, f"{where}[{index}]")
    raise Refused(where, f"{len(outputs)} outputs, none of them called predict_proba or predict")


def _output(output: Mapping[str, Any], where: str) -> Values:
    datatype = output.get("datatype")
    if type(datatype) is not str or datatype not in _V2_DATATYPES:
        raise Refused(f"{where}.datatype", f"must be one of {', '.join(sorted(_V2_DATATYPES))}")
    if "data" not in output:
        raise Refused(f"{where}.data", "missing (only JSON data is read)")
    data = output["data"]
    shape = output.get("shape")
    values = _array(data, f"{where}.data")
    fits = set(map(type, values.flat)) == {str} if datatype == "BYTES" else values.numeric
    if not fits or (datatype == "BOOL" and not set(values.flat) <= {0, 1}):
        raise Refused(f"{where}.data", f"is not of datatype {datatype}")
    if datatype not in _FLOAT_DATATYPES and values.numeric and not values.integral():
        raise Refused(f"{where}.data", f"has a fraction, which datatype {datatype} has not")
    if shape is not None:
        dims = _shape(shape, f"{where}.shape")
        values = _shaped(values.flat, dims, f"{where}.data")
    return values


# --- arrays ---------------------------------------------------------------------------------


def _array(value: Any, where: str, _: Budget = NO_BUDGET) -> Values:
    """(N,) scalars, (N, K) rows, or a bare scalar as one row; a single column is (N,)."""
    if type(value) is not list:
        return _large(value, where) if type(value) is LargeArray else _flat([value], where)
    if not value:
        raise Refused(where, "has no rows")
    first = value[0]
    if type(first) is not list:
        return _flat(value, where)
    if len(value) == 1 and len(first) > 1:
        return _flat(first, where, len(first))
    # among many rows of several columns only strings and objects pass as rows, and `_flat` tells
    if (len(value) < _MANY or len(value[0]) == 1) and set(map(type, value)) != {list}:
        raise Refused(where, "mixes rows and scalars")
    try:
        widths = set(map(len, value))
    except TypeError:
        raise Refused(where, "mixes rows and scalars") from None
    if len(widths) != 1:
        raise Refused(where, f"ragged: rows of {min(widths)} to {max(widths)} values")
    width = widths.pop()
    if width == 0:
        raise Refused(where, "has empty rows")
    flat: list[Any] = []
    deque(map(flat.extend, value), maxlen=0)
    values = _flat(flat, where, 0 if width == 1 else width)
    if width > 1 and values.doubles is not None and not set(first) <= {0, 1}:
        values.forget()  # no labels, which are told by their types
    return values


def _large(array: LargeArray, where: str) -> Values:
    values = Values(where, array.flat or [], array.width, array.numeric, None, array.doubles)
    if array.doubles is not None:
        values.rows = len(array.doubles) // 8 // (array.width or 1)
        if array.flat is None:
            values.forget()
        if not values.finite():
            raise Refused(where, "has a number that is not finite")
    return values


_MANY = 64
"""Scalars from which it pays to read them as doubles at once."""


def _doubles(numbers: list[Any]) -> bytes:
    """Numbers as doubles. Raises struct.error or OverflowError for what is none."""
    return pack(f"{len(numbers)}d", *numbers)  # in half the time of `array`


def _flat(flat: list[Any], where: str, width: int = 0) -> Values:
    if len(flat) >= _MANY:
        try:
            doubles = _doubles(flat)
        except (struct.error, OverflowError):
            pass  # not numbers alone: told apart below
        else:
            values = Values(where, flat, width, True, None, doubles)
            if not values.finite():
                raise Refused(where, "has a number that is not finite")
            return values
    kinds = set(map(type, flat))
    numeric = kinds <= _NUMBERS
    if numeric:
        if float in kinds and not isfinite(sum(flat)) and not all(map(isfinite, flat)):
            raise Refused(where, "has a number that is not finite")
    elif not kinds <= _NUMBERS | {str}:
        if list in kinds:
            raise Refused(where, "has more than two dimensions, or mixes rows and scalars")
        raise Refused(where, "may hold numbers and strings only")
    elif width:
        raise Refused(where, "has strings in rows of several columns")
    return Values(where, flat, width, numeric)


def _shaped(flat: list[Any], dims: Sequence[int], where: str) -> Values:
    """`flat` laid out as `dims`; dimensions of 1 beyond the first are dropped."""
    if prod(dims) != len(flat):
        shape = one_line("×".join(map(str, dims)), 60) or "a scalar"
        raise Refused(where, f"{len(flat)} values for the shape {shape}")
    if not flat:
        raise Refused(where, "has no rows")
    rest = [size for size in dims[1:] if size != 1]
    if len(rest) > 1:
        raise Refused(where, f"has {len(dims)} dimensions; rows and columns are taken")
    return _flat(flat, where, rest[0] if rest else 0)


def _shape(shape: Any, where: str) -> list[int]:
    if type(shape) is not list or any(type(size) is not int or size < 0 for size in shape):
        raise Refused(where, "must be a list of sizes, each 0 or more")
    if len(shape) > _MAX_DIMENSIONS:
        raise Refused(where, f"has {len(shape)} dimensions")
    return shape


_MAX_DIMENSIONS = 32
"""Sizes that are multiplied at all: the product of a million would take hours."""


def _tensor(tensor: Any, where: str, _: Budget) -> Values:
    if type(tensor) is not dict or type(tensor.get("values")) is not list:
        raise Refused(where, "must be an object with shape and values")
    flat = tensor["values"]
    dims = _shape(tensor.get("shape", [len(flat)]), f"{where}.shape")
    values = _shaped(flat, dims, f"{where}.values")
    if not values.numeric:
        raise Refused(f"{where}.values", "must be numbers")
    return values


def _tftensor(tensor: Any, where: str, budget: Budget) -> Values:
    """A TensorProto as JSON, in its own snake_case or in protobuf's camelCase.

    Source: tensorflow/core/framework/tensor.proto; a `*_val` list shorter than the shape
    repeats its last value, 64-bit integers may be strings, half_val holds the bits.
    """
    if type(tensor) is not dict:
        raise Refused(where, "must be a JSON object")
    tensor = {_snake(key): value for key, value in tensor.items()}
    kind = tensor.get("dtype")
    if type(kind) is not str or kind not in _TF_TYPES:
        raise Refused(f"{where}.dtype", f"must be one of {', '.join(sorted(_TF_TYPES))}")
    name, code, convert = _TF_TYPES[kind]
    dims = _tf_dims(tensor.get("tensor_shape"), f"{where}.tensor_shape")
    size = prod(dims)
    if tensor.get("tensor_content"):
        if not code:
            raise Refused(f"{where}.tensor_content", f"cannot hold {kind}")
        return _shaped(
            _unpack(tensor["tensor_content"], code, f"{where}.tensor_content"), dims, where
        )
    flat = tensor.get(name)
    if type(flat) is not list or not flat:
        raise Refused(f"{where}.{name}", f"missing, and so is tensor_content; dtype is {kind}")
    try:
        flat = [convert(value) for value in flat]
    except (TypeError, ValueError, OverflowError, binascii.Error):
        raise Refused(f"{where}.{name}", f"holds something that is no {kind}") from None
    if len(flat) < size:
        budget.take(size - len(flat), f"{where}.{name}")
        flat += [flat[-1]] * (size - len(flat))
    return _shaped(flat, dims, f"{where}.{name}")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match[1].lower(), name)


def _tf_dims(shape: Any, where: str) -> list[int]:
    dims = shape.get("dim", []) if type(shape) is dict else None
    if type(dims) is not list or any(type(dim) is not dict for dim in dims):
        raise Refused(where, 'must be {"dim": [{"size": …}, …]}')
    try:
        sizes = [_integer(dim.get("size", 0)) for dim in dims]
    except (TypeError, ValueError, OverflowError):
        raise Refused(where, "has a size that is no integer") from None
    return _shape(sizes, where)


def _unpack(content: Any, code: str, where: str) -> list[Any]:
    import numpy as np  # only tensors of raw bytes pay for it

    raw = _base64(content, where)
    kind = np.dtype(code)
    if len(raw) % kind.itemsize:
        raise Refused(where, f"{len(raw)} bytes are no whole number of {kind} values")
    values: list[Any] = np.frombuffer(raw, kind).tolist()
    return values


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError
    return float(value)


def _integer(value: Any) -> int:
    """A whole number of at most 64 bits, or the decimal string of one."""
    if type(value) is str and not _DECIMAL.fullmatch(value):
        raise ValueError
    if type(value) not in (int, str) and not (type(value) is float and value.is_integer()):
        raise TypeError
    number = int(value)
    if not -(1 << 63) <= number < 1 << 64:
        raise OverflowError
    return number


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError
    return value


def _bits(value: Any) -> int:
    bits = _integer(value)
    if not 0 <= bits < 1 << 16:
        raise ValueError
    return bits


def _half(value: Any) -> float:
    return float(unpack("<e", pack("<H", _bits(value)))[0])


def _bfloat16(value: Any) -> float:
    return float(unpack("<f", pack("<I", _bits(value) << 16))[0])


def _string(value: Any) -> str:
    return b64decode(value, validate=True).decode()


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

_DATA_FORMS: dict[str, _Reader] = {"ndarray": _array, "tensor": _tensor, "tftensor": _tftensor}
_MESSAGE_FORMS: dict[str, _Reader] = {
    "data": _seldon_data,
    "jsonData": _any_json,
    "strData": _text,
    "binData": _binary,
    "predictions": _array,
    "outputs": _outputs,
}
_NESTED_FORMS: dict[str, _Reader] = {
    **_DATA_FORMS,
    "data": _seldon_data,
    "predictions": _array,
    "outputs": _outputs,
}
_FLOAT_DATATYPES = frozenset({"FP16", "BF16", "FP32", "FP64"})
_V2_DATATYPES = _FLOAT_DATATYPES | {
    *("BOOL", "BYTES", "INT8", "INT16", "INT32", "INT64"),
    *("UINT8", "UINT16", "UINT32", "UINT64"),
}
_TF_TYPES: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "DT_FLOAT": ("float_val", "<f4", _number),
    "DT_DOUBLE": ("double_val", "<f8", _number),
    "DT_HALF": ("half_val", "<f2", _half),
    "DT_BFLOAT16": ("half_val", "", _bfloat16),
    "DT_INT8": ("int_val", "<i1", _integer),
    "DT_INT16": ("int_val", "<i2", _integer),
    "DT_INT32": ("int_val", "<i4", _integer),
    "DT_UINT8": ("int_val", "<u1", _integer),
    "DT_UINT16": ("int_val", "<u2", _integer),
    "DT_UINT32": ("uint32_val", "<u4", _integer),
    "DT_INT64": ("int64_val", "<i8", _integer),
    "DT_UINT64": ("uint64_val", "<u8", _integer),
    "DT_BOOL": ("bool_val", "?", _boolean),
    "DT_STRING": ("string_val", "", _string),
}
