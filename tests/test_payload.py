"""Every form in which truths and predictions arrive, and every way in which they are refused."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.errors import Refused
from metrics.payload import Feedback, check_label, decode, message, parse

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


@pytest.mark.parametrize(("given_", "flat", "width"), GOOD.values(), ids=GOOD.keys())
def test_every_form_becomes_the_same_values(given_: Any, flat: list[Any], width: int) -> None:
    """Each form is read into its scalars and its number of columns."""
    values = message(given_, "truth")
    assert (values.flat, values.width) == (flat, width)
    assert list(map(type, values.flat)) == list(map(type, flat))


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
    "V2 numbers as bytes": (v2("BYTES", [1], [1]), "truth.outputs[0].data"),
    "V2 several outputs": (
        {"outputs": [{"name": "a"}, {"name": "b"}]},
        "truth.outputs",
    ),
    "names twice": ({"data": {"names": ["a", "a"], "ndarray": [[1, 2]]}}, "truth.data.names"),
    "10 kB names": ({"data": {"names": ["a" * 10_000, "b"], "ndarray": [[1, 2]]}}, "truth.data"),
    "control characters in names": (
        {"data": {"names": ["a\n", "b"], "ndarray": [[1, 2]]}},
        "truth.data.names",
    ),
}


@pytest.mark.parametrize(("given_", "field"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_read_is_refused_by_field(given_: Any, field: str) -> None:
    """Each bad message raises Refused with one line that names a field at or below `field`."""
    with pytest.raises(Refused) as refused:
        message(given_, "truth")
    assert refused.value.field.startswith(field)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(refused.value.field)


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
}


@pytest.mark.parametrize(("body", "field"), BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_bad_bodies_are_refused_by_field(body: bytes, field: str) -> None:
    """Each bad body raises Refused with one short line that names the field."""
    with pytest.raises(Refused) as refused:
        decode(body)
    assert refused.value.field == field
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


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


@settings(max_examples=300, derandomize=True, deadline=None)
@given(JSON, JSON)
def test_any_json_is_feedback_or_refused(truth: Any, response: Any) -> None:
    """Whatever JSON stands where a message should is read or refused, and nothing else."""
    try:
        assert isinstance(parse({"truth": truth, "response": response}), Feedback)
    except Refused as error:
        assert "\n" not in f"{error.field}{error}"  # noqa: PT017  either is right
