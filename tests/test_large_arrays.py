"""Bodies with large arrays are read slice by slice, with the same result as in one go."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from metrics import large_arrays
from metrics.errors import Refused
from metrics.payload import Values, decode


@pytest.fixture(params=[37, 200, 5000])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices so small that small arrays are large."""
    monkeypatch.setattr(large_arrays, "MIN_BODY", 0)
    monkeypatch.setattr(large_arrays, "SLICE", request.param)
    monkeypatch.setattr(large_arrays, "_MIN_ARRAY", 20)
    monkeypatch.setattr(large_arrays, "_MAX_SHARED", 10)


def said(values: Values | None) -> Any:
    """All that evaluators can see of values."""
    if values is None:
        return None
    numbers = values.matrix().tolist() if values.numeric else None
    flat = [(type(each), each) for each in values.flat]
    types = flat if values.width == 0 or set(values.row(0)) <= {0, 1} else list(values.flat)
    return (values.field, values.rows, values.width, values.numeric, values.names, types, numbers)


def whole(body: bytes) -> Any:
    """What is read of a body in one go, or why not."""
    least, large_arrays.MIN_BODY = large_arrays.MIN_BODY, 1 << 40
    try:
        return outcome(body)
    finally:
        large_arrays.MIN_BODY = least


def outcome(body: bytes) -> Any:
    """What is read of a body, or why not."""
    try:
        feedback = decode(body)
    except Refused as error:
        return str(error)
    return said(feedback.truth), said(feedback.prediction), feedback.reward, list(feedback.raw)


def arrays(chance: random.Random) -> Any:
    """An array of some form, right or wrong."""
    rows = chance.randrange(1, 200)

    def scalar() -> Any:
        return chance.choice(kinds)()

    makers = [
        lambda: chance.randrange(3),
        lambda: chance.randrange(100_000),
        lambda: chance.random(),
        lambda: float(chance.randrange(2)),
        lambda: chance.choice(("cat", "dog, or ]", 'a "quoted" [[1]]', "\\", "é")),
        lambda: chance.choice((True, None, {}, [], [1], 1e308)),
    ]
    kinds = [makers[0]] if chance.random() < 0.2 else chance.sample(makers[:4], 1)
    if chance.random() < 0.3:
        kinds = chance.sample(makers, 2)
    width = chance.choice((0, 0, 1, 2, 3, 7))
    if width:
        array = [[scalar() for _ in range(width)] for _ in range(rows)]
        if chance.random() < 0.1:
            array[-1] = array[-1][1:]
        return array
    return [scalar() for _ in range(rows)]


@pytest.mark.usefixtures("small")
def test_slices_make_no_difference() -> None:
    """Whatever the arrays hold, however they are written, and wherever they stand."""
    chance = random.Random(14)
    read = 0
    for _ in range(400):
        truth, response = arrays(chance), arrays(chance)
        form = chance.choice(("ndarray", "predictions", "V2", "nested"))
        messages = []
        for array in (truth, response):
            if form == "ndarray":
                messages.append({"data": {"names": ["a", "b"], "ndarray": array}})
            elif form == "predictions":
                messages.append({"predictions": array})
            elif form == "V2":
                output = {"name": "x", "datatype": "FP64", "shape": [len(array)], "data": array}
                messages.append({"outputs": [output]})
            else:
                messages.append({"jsonData": {"ndarray": array}})
        event = {"truth": messages[0], "response": messages[1], "reward": 0.5}
        text = json.dumps(event, indent=chance.choice((None, None, 1)), ensure_ascii=False)
        for sign in ("[", "]", ","):
            if chance.random() < 0.05:
                at = chance.randrange(len(text))
                text = text[:at] + sign + text[at:]
        body = text.encode()
        assert outcome(body) == whole(body), text
        read += large_arrays.load(body) is not None
    assert read > 100


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "array",
    [
        "[1,2,3,,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18]",
        "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,]",
        "[[1,2],[3,4],[5,6],[7,8],,[9,10],[11,12],[13,14]]",
        "[[1,2],[3,4],[5,6],[7,8],[9,10],[11,12],[13,14],]",
        "[[1,2],[3,4],[5,6],[7,8] [9,10],[11,12],[13,14]]",
        "[[[1,2],[3,4],[5,6]],[[7,8],[9,10]],[[11,12],[13,14]]]",
        "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20",
        "[1e400,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20]",
        "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20]]",
        '"\\u0000large array 0"',
    ],
)
def test_what_is_no_json_is_refused_as_ever(array: str) -> None:
    """With the reason that the whole body gives; and no text stands for an array."""
    good = ",".join(["0.25"] * 50)
    for key in ("ndarray", "tensor"):
        text = f'{{"truth":{{"data":{{"{key}":{array}}}}},"x":{{"ndarray":[{good}]}}}}'
        assert outcome(text.encode()) == whole(text.encode())


@pytest.mark.usefixtures("small")
def test_arrays_within_texts_are_no_arrays() -> None:
    """What looks like an array within a string is a part of the string."""
    inner = '"ndarray":[' + ",".join(["1"] * 100) + "]"
    event = {"truth": {"strData": inner}, "response": {"strData": f"{inner}{{"}}
    body = json.dumps(event).encode()
    assert outcome(body) == whole(body)
    assert large_arrays.load(body) is None
