"""Tensors as JSON: Seldon's `tensor`, TensorFlow's TensorProto, and the outputs of a V2 answer.

Each becomes `Values`. Whatever contradicts its own type or shape raises `Refused`.
"""

from __future__ import annotations

import binascii
import re
from array import array
from base64 import b64decode
from collections.abc import Callable, Mapping
from itertools import repeat
from math import prod
from struct import pack, unpack
from typing import Any

from .errors import Refused
from .large_arrays import LargeArray
from .values import Budget, Values, read_array, reshaped, shape_of, shaped

_DECIMAL = re.compile("-?[0-9]{1,20}")


def read_outputs(outputs: Any, where: str, _: Budget) -> Values:
    """The one output of a V2 answer, or the one called predict_proba or predict. Raises Refused."""
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
    values = read_array(data, f"{where}.data")
    if datatype == "BYTES":
        fits = not values.numeric and set(map(type, values.flat)) == {str}
    else:
        fits = values.numeric
    if not fits or (datatype == "BOOL" and not values.among({0, 1})):
        raise Refused(f"{where}.data", f"is not of datatype {datatype}")
    if datatype not in _FLOAT_DATATYPES and values.numeric and not values.integral():
        raise Refused(f"{where}.data", f"has a fraction, which datatype {datatype} has not")
    if shape is not None:
        dims = shape_of(shape, f"{where}.shape")
        values = reshaped(values, dims, f"{where}.data")
    return values


def read_tensor(tensor: Any, where: str, _: Budget) -> Values:
    """Seldon's `tensor`: a shape and values. Raises Refused."""
    if type(tensor) is not dict or type(tensor.get("values")) not in (list, LargeArray):
        raise Refused(where, "must be an object with shape and values")
    flat = tensor["values"]
    if type(flat) is LargeArray:
        values = read_array(flat, f"{where}.values")
        if flat.is_rows:
            raise Refused(f"{where}.values", "has more than one dimension")
        dims = shape_of(tensor.get("shape", [values.rows]), f"{where}.shape")
        values = reshaped(values, dims, f"{where}.values")
    else:
        dims = shape_of(tensor.get("shape", [len(flat)]), f"{where}.shape")
        values = shaped(flat, dims, f"{where}.values")
    if not values.numeric:
        raise Refused(f"{where}.values", "must be numbers")
    return values


def read_tftensor(tensor: Any, where: str, budget: Budget) -> Values:
    """A TensorProto as JSON, in its own snake_case or in protobuf's camelCase.

    Source: tensorflow/core/framework/tensor.proto; a `*_val` list shorter than the shape
    repeats its last value, as far as `budget` allows; 64-bit integers may be strings, half_val
    holds the bits. Raises Refused.
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
        content = _unpack(tensor["tensor_content"], code, f"{where}.tensor_content")
        if isinstance(content, LargeArray):
            return reshaped(read_array(content, where), dims, where)
        return shaped(content, dims, where)
    flat = tensor.get(name)
    if type(flat) is LargeArray and not flat.is_rows:
        flat = flat.scalars()
    elif type(flat) is not list or not flat:
        raise Refused(f"{where}.{name}", f"missing, and so is tensor_content; dtype is {kind}")
    try:
        if len(flat) >= _LONG and convert in (_number, _half, _bfloat16):
            flat = array("d", map(convert, flat))
        else:
            flat = [convert(value) for value in flat]
    except (TypeError, ValueError, OverflowError, binascii.Error):
        raise Refused(f"{where}.{name}", f"holds something that is no {kind}") from None
    if len(flat) < size:
        budget.take(size - len(flat), f"{where}.{name}")
        flat.extend(repeat(flat[-1], size - len(flat)))
    if type(flat) is array:
        long = LargeArray()
        long.doubles = flat.tobytes()
        return reshaped(read_array(long, f"{where}.{name}"), dims, f"{where}.{name}")
    return shaped(flat, dims, f"{where}.{name}")


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
    return shape_of(sizes, where)


_LONG = 1 << 16
"""Numbers of a tensor that are not made objects of, where they may stay doubles."""


def _unpack(content: Any, code: str, where: str) -> list[Any] | LargeArray:
    import numpy as np  # only tensors of raw bytes pay for it

    raw = base64_bytes(content, where)
    kind = np.dtype(code)
    if len(raw) % kind.itemsize:
        raise Refused(where, f"{len(raw)} bytes are no whole number of {kind} values")
    numbers = np.frombuffer(raw, kind)
    if len(numbers) >= _LONG and kind.kind == "f":
        long = LargeArray()
        long.doubles = numbers.astype(np.float64).tobytes()
        return long
    values: list[Any] = numbers.tolist()
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


def base64_bytes(value: Any, where: str) -> bytes:
    """What a base64 string holds. Raises Refused for what is none."""
    if type(value) is not str:
        raise Refused(where, "must be a base64 string")
    try:
        return b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(where, "not base64") from None


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
