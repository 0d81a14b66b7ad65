"""Every form in which truths and predictions arrive, and every way in which they are refused."""

from __future__ import annotations

import base64
import copy
import json
import random
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.errors import Refused
from metrics.payload import Budget, Feedback, check_label, decode, message, one_line, parse

ROWS = [[0.25, 0.75], [1, 0]]
FLAT = [0.25, 0.75, 1, 0]


def encoded(value: Any) -> str:
    """Base64 of a JSON value."""
    return base64.b64encode(json.dumps(value).encode()).decode()


def tensor(kind: str, field: str, values: Any, *sizes: int) -> dict[str, Any]:
    """A `tftensor` message."""
    shape = {"dim": [{"size": size} for size in sizes]}
    return {"data": {"tftensor": {"dtype": kind, "tensor_shape": shape, field: values}}}


def content(kind: str, raw: bytes, *sizes: int) -> dict[str, Any]:
    """A `tftensor` message of raw bytes."""
    return tensor(kind, "tensor_content", base64.b64encode(raw).decode(), *sizes)


def v2(datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    """A message with one V2 output."""
    return {"outputs": [{"name": "predict", "datatype": datatype, "shape": shape, "data": data}]}


GOOD = {
    "ndarray rows": ({"data": {"ndarray": ROWS}}, FLAT, 2),
    "ndarray labels": ({"data": {"ndarray": ["a", "b"]}}, ["a", "b"], 0),
    "ndarray column": ({"data": {"ndarray": [[1], [2]]}}, [1, 2], 0),
    "ndarray scalar": ({"data": {"ndarray": 3}}, [3], 0),
    "tensor": ({"data": {"tensor": {"shape": [2, 2], "values": FLAT}}}, FLAT, 2),
    "tensor with a dimension of 1": (
        {"data": {"tensor": {"shape": [2, 1, 2], "values": FLAT}}},
        FLAT,
        2,
    ),
    "jsonData array": ({"jsonData": ROWS}, FLAT, 2),
    "jsonData predictions": ({"jsonData": {"predictions": ROWS}}, FLAT, 2),
    "jsonData Seldon data": ({"jsonData": {"data": {"ndarray": ROWS}}}, FLAT, 2),
    "strData": ({"strData": "cat"}, ["cat"], 0),
    "binData": ({"binData": encoded(ROWS)}, FLAT, 2),
    "KServe V1": ({"predictions": ROWS}, FLAT, 2),
    "KServe V2 flat": (v2("FP32", [2, 2], FLAT), FLAT, 2),
    "KServe V2 nested": (v2("FP64", [2, 2], ROWS), FLAT, 2),
    "KServe V2 bool": (v2("BOOL", [2], [True, False]), [True, False], 0),
    "KServe V2 bytes": (v2("BYTES", [2], ["a", "b"]), ["a", "b"], 0),
    "KServe V2, the probabilities of two outputs": (
        {
            "outputs": [
                {"name": "predict", "datatype": "INT64", "shape": [1], "data": [1]},
                {"name": "predict_proba", "datatype": "FP64", "shape": [1, 2], "data": [0.5, 0.5]},
            ]
        },
        [0.5, 0.5],
        2,
    ),
    "DT_FLOAT": (tensor("DT_FLOAT", "float_val", [0.5, 1.5], 1, 2), [0.5, 1.5], 2),
    "DT_DOUBLE": (tensor("DT_DOUBLE", "double_val", [0.5, 1.5], 2), [0.5, 1.5], 0),
    "DT_HALF": (tensor("DT_HALF", "half_val", [15360, 14336], 2), [1.0, 0.5], 0),
    "DT_BFLOAT16": (tensor("DT_BFLOAT16", "half_val", [16256], 1), [1.0], 0),
    "DT_INT32": (tensor("DT_INT32", "int_val", [3, 4], 2), [3, 4], 0),
    "DT_UINT32": (tensor("DT_UINT32", "uint32_val", [3], 1), [3], 0),
    "DT_INT64 as strings": (tensor("DT_INT64", "int64_val", ["3", "-4"], 2), [3, -4], 0),
    "DT_UINT64": (tensor("DT_UINT64", "uint64_val", [3], 1), [3], 0),
    "DT_BOOL": (tensor("DT_BOOL", "bool_val", [True], 1), [True], 0),
    "DT_STRING": (tensor("DT_STRING", "string_val", ["Y2F0"], 1), ["cat"], 0),
    "a short list repeats its last": (tensor("DT_INT32", "int_val", [3, 4], 4), [3, 4, 4, 4], 0),
    "raw floats": (content("DT_FLOAT", struct.pack("<2f", 0.5, 1.5), 1, 2), [0.5, 1.5], 2),
    "raw int64": (content("DT_INT64", struct.pack("<2q", 5, -6), 2), [5, -6], 0),
    "protobuf's camelCase": (
        {
            "data": {
                "tftensor": {
                    "dtype": "DT_FLOAT",
                    "tensorShape": {"dim": [{"size": "1"}, {"size": "2"}]},
                    "floatVal": [0.5, 1.5],
                }
            }
        },
        [0.5, 1.5],
        2,
    ),
}
GOOD |= {
    f"KServe V2 {kind}": (v2(kind, [2], [1, 2]), [1, 2], 0)
    for kind in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16")
}
GOOD |= {
    f"KServe V2 {kind}, many rows of {row}": (v2(kind, [50, 2], [row] * 50), row * 50, 2)
    for kind in ("INT8", "INT64", "UINT64", "FP32")
    for row in ([0, 1], [5, 7], [1, 3])
}
GOOD |= {"KServe V2 integers written as 2.0": (v2("INT64", [2], [2.0, 1]), [2.0, 1], 0)}
GOOD |= {
    "ndarray column of strings": ({"data": {"ndarray": [["a"], ["b"]]}}, ["a", "b"], 0),
    "ndarray of labels of two kinds": ({"data": {"ndarray": ["a", 1]}}, ["a", 1], 0),
    "many columns of one": ({"data": {"ndarray": [[1]] * 99}}, [1] * 99, 0),
    "many rows": ({"data": {"ndarray": ROWS * 99}}, FLAT * 99, 2),
    "many strings": ({"data": {"ndarray": ["a"] * 99}}, ["a"] * 99, 0),
    "tensor without a shape": ({"data": {"tensor": {"values": [1, 2]}}}, [1, 2], 0),
    "tensor that is a scalar": ({"data": {"tensor": {"shape": [], "values": [7]}}}, [7], 0),
    "tensor column": ({"data": {"tensor": {"shape": [2, 1], "values": [1, 2]}}}, [1, 2], 0),
    "tensor row": ({"data": {"tensor": {"shape": [1, 4], "values": FLAT}}}, FLAT, 4),
    "jsonData label": ({"jsonData": "cat"}, ["cat"], 0),
    "jsonData number": ({"jsonData": 2}, [2], 0),
    "jsonData ndarray": ({"jsonData": {"ndarray": ROWS}}, FLAT, 2),
    "jsonData outputs": ({"jsonData": v2("FP32", [2, 2], FLAT)}, FLAT, 2),
    "jsonData tensor": ({"jsonData": {"tensor": {"shape": [2, 2], "values": FLAT}}}, FLAT, 2),
    "binData predictions": ({"binData": encoded({"predictions": ROWS})}, FLAT, 2),
    "binData label": ({"binData": encoded("cat")}, ["cat"], 0),
    "KServe V1 labels": ({"predictions": ["a", "b"]}, ["a", "b"], 0),
    "KServe V1 column": ({"predictions": [[1], [2]]}, [1, 2], 0),
    "KServe V2 without a shape": ({"outputs": [{"datatype": "FP32", "data": ROWS}]}, FLAT, 2),
    "KServe V2 BF16": (v2("BF16", [1, 2], [0.5, 1.5]), [0.5, 1.5], 2),
    "KServe V2 column of bytes": (v2("BYTES", [2, 1], ["a", "b"]), ["a", "b"], 0),
    "KServe V2 bool as 0 and 1": (v2("BOOL", [2], [1, 0]), [1, 0], 0),
    "KServe V2 one output of any name": (
        {"outputs": [{"name": "anything", "datatype": "FP32", "shape": [2], "data": [1, 2]}]},
        [1, 2],
        0,
    ),
    "DT_HALF subnormal": (tensor("DT_HALF", "half_val", [1], 1), [2**-24], 0),
    "DT_BFLOAT16 negative": (tensor("DT_BFLOAT16", "half_val", [49024], 1), [-1.0], 0),
    "DT_INT64 lowest": (tensor("DT_INT64", "int64_val", [str(-(1 << 63))], 1), [-(1 << 63)], 0),
    "DT_UINT64 largest": (
        tensor("DT_UINT64", "uint64_val", ["18446744073709551615"], 1),
        [(1 << 64) - 1],
        0,
    ),
    "DT_INT32 written as a float": (tensor("DT_INT32", "int_val", [3.0], 1), [3], 0),
    "DT_STRING of Unicode": (
        tensor("DT_STRING", "string_val", [base64.b64encode("é∑".encode()).decode()], 1),
        ["é∑"],
        0,
    ),
    "tftensor that is a scalar": (tensor("DT_FLOAT", "float_val", [0.5]), [0.5], 0),
    "tftensor sizes as strings": (tensor("DT_INT32", "int_val", [3, 4], "1", "2"), [3, 4], 2),
    "one value stands for all": (tensor("DT_DOUBLE", "double_val", [0.5], 2, 2), [0.5] * 4, 2),
    "raw bytes win over values": (
        {
            "data": {
                "tftensor": {
                    "dtype": "DT_UINT8",
                    "tensorShape": {"dim": [{"size": 2}]},
                    "tensorContent": base64.b64encode(b"\x05\x06").decode(),
                    "intVal": [],
                }
            }
        },
        [5, 6],
        0,
    ),
}
GOOD |= {
    f"{kind} of small integers": (tensor(kind, "int_val", [3, 4], 2), [3, 4], 0)
    for kind in ("DT_INT8", "DT_INT16", "DT_UINT8", "DT_UINT16")
}
RAW = {
    "DT_FLOAT": "f",
    "DT_DOUBLE": "d",
    "DT_HALF": "e",
    "DT_BOOL": "?",
    "DT_INT8": "b",
    "DT_INT16": "h",
    "DT_INT32": "i",
    "DT_INT64": "q",
    "DT_UINT8": "B",
    "DT_UINT16": "H",
    "DT_UINT32": "I",
    "DT_UINT64": "Q",
}
"""The codes with which `struct` packs the numbers of a type."""


def cast(code: str) -> type:
    """The type of a number that was unpacked."""
    return float if code in "fde" else bool if code == "?" else int


GOOD |= {
    f"raw {kind}": (
        content(kind, struct.pack(f"<4{code}", 1, 0, 0, 1), 2, 2),
        list(map(cast(code), (1, 0, 0, 1))),
        2,
    )
    for kind, code in RAW.items()
}
GOOD |= {
    f"camelCase {name}": (
        {
            "data": {
                "tftensor": {
                    "dtype": kind,
                    "tensorShape": {"dim": [{"size": "1"}]},
                    name: [given_],
                }
            }
        },
        [number],
        0,
    )
    for name, kind, given_, number in (
        ("floatVal", "DT_FLOAT", 0.5, 0.5),
        ("doubleVal", "DT_DOUBLE", 0.5, 0.5),
        ("halfVal", "DT_HALF", 15360, 1.0),
        ("intVal", "DT_INT32", 3, 3),
        ("int64Val", "DT_INT64", "3", 3),
        ("uint32Val", "DT_UINT32", 3, 3),
        ("uint64Val", "DT_UINT64", "3", 3),
        ("boolVal", "DT_BOOL", True, True),
        ("stringVal", "DT_STRING", "Y2F0", "cat"),
    )
}


@pytest.mark.parametrize(("given_", "flat", "width"), GOOD.values(), ids=GOOD.keys())
def test_every_form_becomes_the_same_values(given_: Any, flat: list[Any], width: int) -> None:
    """Each form is read into its scalars and its number of columns."""
    values = message(given_, "truth", Budget(3))
    assert (values.flat, values.width) == (flat, width)
    if values.doubles is None or not width:  # many rows of numbers are kept as doubles
        assert list(map(type, values.flat)) == list(map(type, flat))
    assert len(values) == len(flat) // (width or 1)
    assert values.numeric == (not any(type(scalar) is str for scalar in flat))
    assert values.field.startswith("truth.")
    if values.numeric:
        rows = np.array(flat, np.float64).reshape(-1, width or 1)
        assert (values.matrix() == rows).all()
        assert values.matrix().shape == rows.shape


def test_reading_leaves_the_event_as_it_was() -> None:
    """Custom classes and error replies see what was sent."""
    for given_, _, _ in GOOD.values():
        before = copy.deepcopy(given_)
        message(given_, "truth", Budget(3))
        assert given_ == before


def test_names_belong_to_values_where_they_name_its_columns() -> None:
    """Names of another number are names of something else, e.g. of the one column of labels."""
    for form in ({"ndarray": ROWS}, {"tensor": {"shape": [2, 2], "values": FLAT}}):
        assert message({"data": {"names": ["a", "b"], **form}}, "truth").names == ("a", "b")
        for names in ([], None, ["a"], ["a", "b", "c"]):
            assert message({"data": {"names": names, **form}}, "truth").names is None
    assert message({"data": {"names": ["label"], "ndarray": [1, 2]}}, "truth").names is None


BAD = {
    "not an object": ([1], "truth"),
    "empty": ({"data": {}}, "truth.data"),
    "unknown kind": ({"imageData": 1}, "truth"),
    "ragged rows": ({"data": {"ndarray": [[1, 2], [3]]}}, "truth.data.ndarray"),
    "rows and scalars": ({"data": {"ndarray": [[1, 2], 3]}}, "truth.data.ndarray"),
    "scalars and rows": ({"data": {"ndarray": [3, [1, 2]]}}, "truth.data.ndarray"),
    "three dimensions": ({"data": {"ndarray": [[[1, 2]], [[3, 4]]]}}, "truth.data.ndarray"),
    "no rows": ({"data": {"ndarray": []}}, "truth.data.ndarray"),
    "empty rows": ({"data": {"ndarray": [[], []]}}, "truth.data.ndarray"),
    "null": ({"data": {"ndarray": [None]}}, "truth.data.ndarray"),
    "an object in it": ({"data": {"ndarray": [{}]}}, "truth.data.ndarray"),
    "strings in columns": ({"data": {"ndarray": [["a", "b"]]}}, "truth.data.ndarray"),
    "many strings in columns": ({"data": {"ndarray": [["a", "b"]] * 99}}, "truth.data.ndarray"),
    "many rows, one ragged": (
        {"data": {"ndarray": [[1, 2]] * 99 + [[1]]}},
        "truth.data.ndarray",
    ),
    "tensor shape": ({"data": {"tensor": {"shape": [3], "values": [1]}}}, "truth.data.tensor"),
    "negative size": ({"data": {"tensor": {"shape": [-1], "values": [1]}}}, "truth.data.tensor"),
    "boolean size": ({"data": {"tensor": {"shape": [True], "values": [1]}}}, "truth.data.tensor"),
    "tensor of strings": ({"data": {"tensor": {"values": ["a"]}}}, "truth.data.tensor.values"),
    "unknown dtype": (tensor("DT_RESOURCE", "float_val", [1], 1), "truth.data.tftensor.dtype"),
    "no values": (tensor("DT_FLOAT", "int_val", [1], 1), "truth.data.tftensor.float_val"),
    "wrong values": (tensor("DT_FLOAT", "float_val", ["x"], 1), "truth.data.tftensor.float_val"),
    "a splat of gigabytes": (tensor("DT_FLOAT", "float_val", [1], 1 << 40), "truth.data.tftensor"),
    "half of a raw float": (content("DT_FLOAT", b"abc", 1), "truth.data.tftensor.tensor_content"),
    "raw NaN": (content("DT_FLOAT", struct.pack("<f", float("nan")), 1), "truth.data.tftensor"),
    "infinite half": (tensor("DT_HALF", "half_val", [31744], 1), "truth.data.tftensor.half_val"),
    "base64": ({"binData": "!"}, "truth.binData"),
    "JSON in base64": ({"binData": base64.b64encode(b"{").decode()}, "truth.binData"),
    "strData": ({"strData": 1}, "truth.strData"),
    "V2 datatype": (v2("FP8", [1], [1]), "truth.outputs[0].datatype"),
    "V2 shape": (v2("FP32", [2], [1]), "truth.outputs[0].data"),
    "V2 fraction of an integer": (v2("INT8", [1], [0.5]), "truth.outputs[0].data"),
    "V2 fraction among many integers": (
        v2("INT64", [50, 2], [[5, 7]] * 49 + [[5, 7.5]]),
        "truth.outputs[0].data",
    ),
    "V2 fraction among many booleans": (
        v2("BOOL", [50, 2], [[0, 1]] * 49 + [[0, 2]]),
        "truth.outputs[0].data",
    ),
    "V2 numbers as bytes": (v2("BYTES", [1], [1]), "truth.outputs[0].data"),
    "V2 several outputs": (
        {"outputs": [{"name": "a"}, {"name": "b"}]},
        "truth.outputs",
    ),
    "a mix of labels and rows, many": (
        {"data": {"ndarray": [[1]] * 99 + ["a"]}},
        "truth.data.ndarray",
    ),
    "objects among many rows of one": (
        {"data": {"ndarray": [[1]] * 99 + [{"cat": None}]}},
        "truth.data.ndarray",
    ),
    "objects among many rows of two": (
        {"data": {"ndarray": [[1, 2]] * 99 + [{"a": 1, "b": 2}]}},
        "truth.data.ndarray",
    ),
    "a string among many rows of two": (
        {"data": {"ndarray": [[1, 2]] * 99 + ["12"]}},
        "truth.data.ndarray",
    ),
    "null among many": ({"data": {"ndarray": [1] * 99 + [None]}}, "truth.data.ndarray"),
    "a number among rows": ({"data": {"ndarray": [[1, 2]] * 99 + [3]}}, "truth.data.ndarray"),
    "an object for an array": ({"data": {"ndarray": {"a": 1}}}, "truth.data.ndarray"),
    "null for an array": ({"data": {"ndarray": None}}, "truth.data.ndarray"),
    "null data": ({"data": None}, "truth.data"),
    "a list for data": ({"data": [[1]]}, "truth.data"),
    "null for a tensor": ({"data": {"tensor": None}}, "truth.data.tensor"),
    "null for its values": ({"data": {"tensor": {"values": None}}}, "truth.data.tensor"),
    "null for its shape": (
        {"data": {"tensor": {"shape": None, "values": [1]}}},
        "truth.data.tensor.shape",
    ),
    "null for a size": (
        {"data": {"tensor": {"shape": [None], "values": [1]}}},
        "truth.data.tensor.shape",
    ),
    "a fraction for a size": (
        {"data": {"tensor": {"shape": [1.0], "values": [1]}}},
        "truth.data.tensor.shape",
    ),
    "a size of 0": ({"data": {"tensor": {"shape": [0], "values": []}}}, "truth.data.tensor.values"),
    "nested values": ({"data": {"tensor": {"values": [[1]]}}}, "truth.data.tensor.values"),
    "three dimensions of more than 1": (
        {"data": {"tensor": {"shape": [1, 2, 2], "values": FLAT}}},
        "truth.data.tensor.values",
    ),
    "a million dimensions": (
        {"data": {"tensor": {"shape": [1 << 62] * 100_000, "values": [1]}}},
        "truth.data.tensor.shape",
    ),
    "null for a tftensor": ({"data": {"tftensor": None}}, "truth.data.tftensor"),
    "no dtype": ({"data": {"tftensor": {"floatVal": [1]}}}, "truth.data.tftensor.dtype"),
    "a list for a dtype": ({"data": {"tftensor": {"dtype": []}}}, "truth.data.tftensor.dtype"),
    "no tensor_shape": (
        {"data": {"tftensor": {"dtype": "DT_FLOAT", "floatVal": [1]}}},
        "truth.data.tftensor.tensor_shape",
    ),
    "a list for a tensor_shape": (
        {"data": {"tftensor": {"dtype": "DT_FLOAT", "floatVal": [1], "tensorShape": [1]}}},
        "truth.data.tftensor.tensor_shape",
    ),
    "a dim that is no object": (
        {"data": {"tftensor": {"dtype": "DT_FLOAT", "tensorShape": {"dim": [1]}}}},
        "truth.data.tftensor.tensor_shape",
    ),
    "an empty list of values": (
        tensor("DT_FLOAT", "float_val", [], 0),
        "truth.data.tftensor.float_val",
    ),
    "null among tensor values": (
        tensor("DT_FLOAT", "float_val", [None], 1),
        "truth.data.tftensor.float_val",
    ),
    "booleans as floats": (
        tensor("DT_FLOAT", "float_val", [True], 1),
        "truth.data.tftensor.float_val",
    ),
    "a NaN that is a string": (
        tensor("DT_FLOAT", "float_val", ["NaN"], 1),
        "truth.data.tftensor.float_val",
    ),
    "integers as booleans": (
        tensor("DT_BOOL", "bool_val", [1], 1),
        "truth.data.tftensor.bool_val",
    ),
    "a fraction as an integer": (
        tensor("DT_INT32", "int_val", [1.5], 1),
        "truth.data.tftensor.int_val",
    ),
    "more values than the shape": (
        tensor("DT_INT32", "int_val", [1, 2, 3], 2),
        "truth.data.tftensor.int_val",
    ),
    "half a half": (tensor("DT_HALF", "half_val", [70_000], 1), "truth.data.tftensor.half_val"),
    "a negative half": (tensor("DT_HALF", "half_val", [-1], 1), "truth.data.tftensor.half_val"),
    "a NaN half": (tensor("DT_HALF", "half_val", [32256], 1), "truth.data.tftensor.half_val"),
    "a wide bfloat16": (
        tensor("DT_BFLOAT16", "half_val", [1 << 20], 1),
        "truth.data.tftensor.half_val",
    ),
    "a NaN bfloat16": (
        tensor("DT_BFLOAT16", "half_val", [32704], 1),
        "truth.data.tftensor.half_val",
    ),
    "a string that is no base64": (
        tensor("DT_STRING", "string_val", ["é"], 1),
        "truth.data.tftensor.string_val",
    ),
    "a string that is no UTF-8": (
        tensor("DT_STRING", "string_val", ["/w=="], 1),
        "truth.data.tftensor.string_val",
    ),
    "raw strings": (content("DT_STRING", b"abc", 3), "truth.data.tftensor.tensor_content"),
    "raw content that is no base64": (
        tensor("DT_FLOAT", "tensor_content", "!", 1),
        "truth.data.tftensor.tensor_content",
    ),
    "raw content that is a list": (
        tensor("DT_FLOAT", "tensor_content", [1], 1),
        "truth.data.tftensor.tensor_content",
    ),
    "raw content of padding": (
        tensor("DT_FLOAT", "tensor_content", "=", 0),
        "truth.data.tftensor",
    ),
    "raw content that is no shape": (content("DT_FLOAT", b"12345678", 3), "truth.data.tftensor"),
    "many raw infinities": (
        content("DT_DOUBLE", struct.pack("<99d", *[float("inf"), float("-inf"), 0.0] * 33), 99),
        "truth.data.tftensor",
    ),
    "raw infinite halves": (content("DT_HALF", struct.pack("<H", 31744), 1), "truth.data.tftensor"),
    "null for base64": ({"binData": None}, "truth.binData"),
    "bytes that are no JSON": (
        {"binData": base64.b64encode(b"\xff\xfe").decode()},
        "truth.binData",
    ),
    "no bytes": ({"binData": ""}, "truth.binData"),
    "an object without a form": ({"jsonData": {"x": 1}}, "truth.jsonData"),
    "null for JSON": ({"jsonData": None}, "truth.jsonData"),
    "null for predictions": ({"predictions": None}, "truth.predictions"),
    "no predictions": ({"predictions": []}, "truth.predictions"),
    "an object for outputs": ({"outputs": {}}, "truth.outputs"),
    "no outputs": ({"outputs": []}, "truth.outputs"),
    "null for an output": ({"outputs": [None]}, "truth.outputs"),
    "V2 datatype missing": ({"outputs": [{"data": [1]}]}, "truth.outputs[0].datatype"),
    "V2 datatype a list": (
        {"outputs": [{"datatype": [], "data": [1]}]},
        "truth.outputs[0].datatype",
    ),
    "V2 datatype an object": (
        {"outputs": [{"datatype": {}, "data": [1]}]},
        "truth.outputs[0].datatype",
    ),
    "V2 data missing": ({"outputs": [{"datatype": "FP32"}]}, "truth.outputs[0].data"),
    "V2 data null": (
        {"outputs": [{"datatype": "FP32", "data": None}]},
        "truth.outputs[0].data",
    ),
    "V2 negative size": (v2("FP32", [-1], [1]), "truth.outputs[0].shape"),
    "V2 boolean size": ({"outputs": [{**v2("FP32", [True], [1])["outputs"][0]}]}, "truth.outputs"),
    "V2 shape an object": (
        {"outputs": [{"datatype": "FP32", "shape": {}, "data": [1]}]},
        "truth.outputs[0].shape",
    ),
    "V2 strings as numbers": (v2("FP32", [1], ["1"]), "truth.outputs[0].data"),
    "V2 numbers among bytes": (v2("BYTES", [2], ["a", 1]), "truth.outputs[0].data"),
    "V2 bytes among numbers": (v2("FP32", [2], [1, "a"]), "truth.outputs[0].data"),
    "V2 booleans that are 5": (v2("BOOL", [1], [5]), "truth.outputs[0].data"),
    "V2 booleans that are 0.5": (v2("BOOL", [1], [0.5]), "truth.outputs[0].data"),
    "V2 bytes in columns": (v2("BYTES", [1, 2], ["a", "b"]), "truth.outputs[0].data"),
    "names that are no list": ({"data": {"names": "ab", "ndarray": ROWS}}, "truth.data.names"),
    "names that are numbers": ({"data": {"names": [1, 2], "ndarray": ROWS}}, "truth.data.names"),
    "null among names": ({"data": {"names": ["a", None], "ndarray": ROWS}}, "truth.data.names"),
    "names twice": ({"data": {"names": ["a", "a"], "ndarray": [[1, 2]]}}, "truth.data.names"),
    "10 kB names": ({"data": {"names": ["a" * 10_000, "b"], "ndarray": [[1, 2]]}}, "truth.data"),
    "control characters in names": (
        {"data": {"names": ["a\n", "b"], "ndarray": [[1, 2]]}},
        "truth.data.names",
    ),
}


BAD |= {
    f"{kind} beyond 64 bits": (tensor("DT_INT64", "int64_val", [text], 1), "truth.data.tftensor")
    for kind, text in (
        *(("an integer", str(1 << 64)), ("a negative one", str(-(1 << 63) - 1))),
        *(("a float", 1e300), ("400 digits", "9" * 400), ("5000 digits", "9" * 5000)),
    )
}
BAD |= {
    f"an integer written {text!r}": (
        tensor("DT_INT64", "int64_val", [text], 1),
        "truth.data.tftensor.int64_val",
    )
    for text in ("", " 7", "7\n", "1_0", "٣", "0x1", "1e3", "1.0", "--1", "+1", "a")
}
BAD |= {
    f"a tensor size of {size!r:.40}": (
        tensor("DT_INT32", "int_val", [1], size),
        "truth.data.tftensor.tensor_shape",
    )
    for size in (True, None, 1.5, -1, "-1", "x", "1_0", [], {}, 1e308, "9" * 5000, str(1 << 64))
}


def is_one_short_line(error: Refused) -> bool:
    """Whether a reason fits a log line and the first 1024 bytes that a broker passes on."""
    text = str(error)
    return one_line(text, 400) == text and text.startswith(error.field) and error.field != text


@pytest.mark.parametrize(("given_", "field"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_read_is_refused_by_field(given_: Any, field: str) -> None:
    """Each bad message raises Refused with one line that names a field at or below `field`."""
    with pytest.raises(Refused) as refused:
        message(given_, "truth")
    assert refused.value.field.startswith(field)
    assert is_one_short_line(refused.value)


def test_numbers_of_any_size_are_finite_or_refused_without_a_warning() -> None:
    """Sums may overflow on the way to finding that every number is finite."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count in (2, 99):
            flat = [1e308, -1e308, 1e308] * count
            assert message({"data": {"ndarray": flat}}, "truth").flat == flat


def test_a_short_list_stands_for_no_more_than_the_budget_has() -> None:
    """What is filled up is taken from the budget, however it is laid out, and refused past it."""
    budget = Budget(1000)
    for rows, left in ((400, 601), (602, 0)):
        values = message(tensor("DT_FLOAT", "float_val", [0.5], rows), "truth", budget)
        assert (len(values), budget._left) == (rows, left)
    for sizes in ((2,), (1_000_001,), (1 << 20, 1 << 20), (1 << 62, 1 << 62)):
        with pytest.raises(Refused, match=r"float_val: is filled up with more numbers .* \(0\)"):
            message(tensor("DT_FLOAT", "float_val", [0.5], *sizes), "truth", budget)


TRUTH = {"truth": {"data": {"ndarray": [1]}}}

BAD_BODIES = {
    "empty": (b"", "data"),
    "not JSON": (b"{", "data"),
    "bytes": (b"\xff\xfe\x00", "data"),
    "NaN": (b'{"truth": {"data": {"ndarray": [NaN]}}}', "data"),
    "Infinity": (b'{"truth": {"data": {"ndarray": [1e999]}}}', "data"),
    "deep nesting": (b"[" * 100_000 + b"]" * 100_000, "data"),
    "a list": (b"[1]", "data"),
    "a string": (b'"x"', "data"),
    "no truth": (b'{"response": {"data": {"ndarray": [1]}}}', "truth"),
    "a null truth": (b'{"truth": null}', "truth"),
    "an empty truth": (b'{"truth": {}}', "truth"),
    "a reward that is a string": (json.dumps({**TRUTH, "reward": "1"}).encode(), "reward"),
    "a reward that is true": (json.dumps({**TRUTH, "reward": True}).encode(), "reward"),
    "tags that are a list": (json.dumps({**TRUTH, "meta": {"tags": [1]}}).encode(), "meta.tags"),
    "a puid of 1": (json.dumps({**TRUTH, "meta": {"puid": 1}}).encode(), "meta.puid"),
    "a meta of 1": (json.dumps({**TRUTH, "meta": 1}).encode(), "meta"),
    "white space": (b" \n", "data"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "data"),
    "JSON after JSON": (b"{}{}", "data"),
    "a lone surrogate": (b'{"truth": {"strData": "\\ud800"}}', "data"),
    "null": (b"null", "data"),
    "an empty object": (b"{}", "truth"),
    "a false truth": (b'{"truth": false}', "truth"),
    "a truth of text": (b'{"truth": "cat"}', "truth"),
    "a truth with nothing but meta": (b'{"truth": {"meta": {}}}', "truth"),
    "a response of text": (json.dumps({**TRUTH, "response": "cat"}).encode(), "response"),
    "a response of an unknown kind": (
        json.dumps({**TRUTH, "response": {"customData": {}}}).encode(),
        "response",
    ),
    "a reward beyond doubles": (b'{"truth": {"data": {"ndarray": [1]}}, "reward": 1e999}', "data"),
    "a reward that is a list": (json.dumps({**TRUTH, "reward": [1]}).encode(), "reward"),
    "a routing that is a list": (
        json.dumps({**TRUTH, "meta": {"routing": [1]}}).encode(),
        "meta.routing",
    ),
    "a branch that is null": (
        json.dumps({**TRUTH, "meta": {"routing": {"ab": None}}}).encode(),
        "meta.routing",
    ),
    "a branch that is deep": (
        b'{"truth": {"data": {"ndarray": [1]}}, "meta": {"routing": {"ab": %s}}}'
        % (b"[" * 1000 + b"]" * 1000),
        "meta.routing",
    ),
    "a route of control characters": (
        json.dumps({**TRUTH, "meta": {"routing": {"a\n": 1}}}).encode(),
        "meta.routing",
    ),
    "a route of 10 kB": (
        json.dumps({**TRUTH, "meta": {"routing": {"a" * 10_000: 1}}}).encode(),
        "meta.routing",
    ),
    "a path of control characters": (
        json.dumps({**TRUTH, "meta": {"requestPath": {"\x00": ""}}}).encode(),
        "meta.requestPath",
    ),
    "a path that is a list": (
        json.dumps({**TRUTH, "meta": {"requestPath": [1]}}).encode(),
        "meta.requestPath",
    ),
    "the truth's metrics an object": (
        json.dumps({"truth": {**TRUTH["truth"], "meta": {"metrics": {"a": 1}}}}).encode(),
        "truth.meta.metrics",
    ),
    "the response's meta a list": (
        json.dumps({**TRUTH, "response": {**TRUTH["truth"], "meta": [1]}}).encode(),
        "response.meta",
    ),
}


@pytest.mark.parametrize("depth", [2, 500, 1000])
@pytest.mark.parametrize(
    "frame",
    [
        '{"truth": %s}',
        '{"truth": {"data": %s}}',
        '{"truth": {"data": {"ndarray": %s}}}',
        '{"truth": {"data": {"tensor": {"values": %s}}}}',
        '{"truth": {"jsonData": %s}}',
        '{"truth": {"outputs": %s}}',
        '{"truth": {"data": {"ndarray": [1]}}, "meta": {"tags": %s}}',
        '{"truth": {"data": {"ndarray": [1]}}, "meta": {"puid": %s}}',
        '{"truth": {"data": {"ndarray": [1]}}, "meta": {"routing": %s}}',
        '{"truth": {"data": {"ndarray": [1]}}, "reward": %s}',
    ],
)
def test_deep_nesting_is_refused_wherever_it_stands(frame: str, depth: int) -> None:
    """Neither the parser's stack nor Python's is at a sender's mercy."""
    with pytest.raises(Refused) as refused:
        decode((frame % ("[" * (depth + 1) + "]" * (depth + 1))).encode())
    assert is_one_short_line(refused.value)


@pytest.mark.parametrize(("body", "field"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_bad_bodies_are_refused_by_field(body: bytes, field: str) -> None:
    """Each bad body raises Refused with one short line that names the field."""
    with pytest.raises(Refused) as refused:
        decode(body)
    assert refused.value.field == field
    assert is_one_short_line(refused.value)


def test_meta_is_read_from_every_message_and_metrics_from_the_truth_only() -> None:
    """Tags merge, the route names its branches, and only the truth's metrics count."""
    feedback = parse(
        {
            "truth": {
                "data": {"ndarray": [1]},
                "meta": {"metrics": [{"key": "a"}], "tags": {"b": 2}, "puid": "p"},
            },
            "response": {
                "data": {"ndarray": [1]},
                "meta": {"tags": {"a": 1}, "routing": {"ab": 1}, "metrics": [{"key": "b"}]},
            },
            "reward": 2,
        }
    )
    assert feedback.tags == {"a": 1, "b": 2}
    assert feedback.route == "ab=1"
    assert feedback.puid == "p"
    assert feedback.metrics == [{"key": "a"}]
    assert feedback.reward == 2.0


def test_the_route_is_told_by_routing_else_by_the_path() -> None:
    """Routers come sorted, so that one route has one name."""
    routing = {"routing": {"b": 1, "a": -1}, "requestPath": {"model": "image:1"}}
    assert parse({**TRUTH, "meta": routing}).route == "a=-1,b=1"
    path = {"requestPath": {"router": "x", "model": "y"}}
    assert parse({**TRUTH, "meta": path}).route == "router,model"
    assert parse({**TRUTH, "meta": {"routing": {}, "requestPath": {}}}).route == ""


def test_what_is_null_or_empty_in_meta_is_not_there() -> None:
    """Seldon's executor writes empty members where it has nothing to say."""
    for nothing in (None, {}, [], ""):
        members = ("tags", "puid", "routing", "requestPath", "metrics")
        meta = dict.fromkeys(members, nothing)
        feedback = parse({"truth": {**TRUTH["truth"], "meta": meta}, "response": None, "meta": {}})
        assert (feedback.tags, feedback.puid, feedback.route) == ({}, "", "")
        assert not feedback.metrics
        assert feedback.prediction is None
    assert parse({**TRUTH, "response": {}, "reward": None}).reward is None


def test_one_line_is_fit_for_a_log() -> None:
    """Control characters are replaced, and the rest is cut."""
    assert one_line("a\nb\x1b[31m\u2028\x85c") == "a�b�[31m��c"
    assert one_line("x" * 300, 10) == "x" * 9 + "…"


def test_labels_may_be_any_text_but_control_characters() -> None:
    """Unicode is fine, also joined emoji; control characters and 10 kB are not."""
    assert check_label("naïve 👩‍👧 ∑", "truth") == "naïve 👩‍👧 ∑"
    for text in ("a\x00", "a\n", "\x7f", "a" * 257, "\u2028"):
        with pytest.raises(Refused):
            check_label(text, "truth")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("data", "ndarray", "tensor", "tftensor", "shape", "values", "dtype", "names"),
                    *("jsonData", "strData", "binData", "predictions", "outputs", "meta", "truth"),
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


PIECES = [
    *(None, True, False, 0, 1, 2, -1, 0.5, 1.0, 1e308, -1e308, 5e-324, 1 << 62, 70_000, "", "a"),
    *("0", "00", "9" * 400, "9" * 5000, "\n", "a" * 10_000, "é", "=", "Y2F0", "DT_HALF", "BOOL"),
    *([], {}, [1], [[1]], [[]], [None], [1e308] * 70, [[0.5, 0.5]] * 30, [[1, 1], [0, 0]]),
    *({"size": True}, {"a": [1]}, [{"name": "predict"}], ["a", "b"], {"dim": [{"size": "2"}]}),
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value, but the top."""
    inner = (
        value.items() if type(value) is dict else enumerate(value) if type(value) is list else ()
    )
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


def hostile_events(rounds: int, seed: int) -> Iterator[Any]:
    """Events in every good form, with one to three of their values replaced, dropped or nested."""
    chance = random.Random(seed)
    forms = [form for form, flat, _ in GOOD.values() if len(flat) < 20]
    metric = {"key": "m", "type": "COUNTER", "value": 1, "tags": {"a": "b"}}
    for _ in range(rounds):
        meta = {"tags": {"a": "b"}, "puid": "p", "routing": {"ab": 1}, "metrics": [metric]}
        event: Any = copy.deepcopy(
            {
                "truth": {**chance.choice(forms), "meta": meta},
                "response": {**chance.choice(forms), "meta": meta},
                "reward": 1,
                "meta": {"requestPath": {"a": "b"}},
            }
        )
        for _ in range(chance.randint(1, 3)):
            *path, last = chance.choice(list(places(event)))
            at = event
            for key in path:
                at = at[key]
            action = chance.randrange(6)
            if action == 0:
                del at[last]
            elif action == 1:
                at[last] = chance.choice([[at[last]], {"data": at[last]}, {"ndarray": at[last]}])
            else:
                at[last] = copy.deepcopy(chance.choice(PIECES))
            if not event:
                break
        yield event


@pytest.mark.parametrize("seed", range(4))
def test_anything_anywhere_in_a_good_event_is_feedback_or_refused(seed: int) -> None:
    """One to three values of an event replaced by hostile ones: read or refused, nothing else."""
    read = refused = 0
    for event in hostile_events(1000, seed):
        before = copy.deepcopy(event)
        try:
            parse(event)
            read += 1
        except Refused as error:
            assert is_one_short_line(error), repr(str(error)[:500])  # noqa: PT017  either is right
            refused += 1
        assert event == before
    assert min(read, refused) > 100


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes_are_feedback_or_refused(body: bytes) -> None:
    """A body that is no feedback is refused in one line, whatever bytes it holds."""
    with pytest.raises(Refused) as refused:
        decode(body)
    assert is_one_short_line(refused.value)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(JSON, JSON)
def test_any_json_is_feedback_or_refused(truth: Any, response: Any) -> None:
    """Whatever JSON stands where a message should is read or refused, and nothing else."""
    try:
        assert isinstance(parse({"truth": truth, "response": response}), Feedback)
    except Refused as error:
        assert "\n" not in f"{error.field}{error}"  # noqa: PT017  either is right
