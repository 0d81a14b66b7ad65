"""Bodies of any size in every form that costs memory or time, and what a server makes of them.

`python -m tests.large_shapes [MiB] [shape …]` prints for each: the answer, how long it took, the
longest that a liveness probe waited meanwhile, and the peak of all processes' memory over what the
server had before, as a multiple of the body.
"""

from __future__ import annotations

import base64
import json
import random
import re
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from metrics.events import BATCH, JSON, STRUCTURED
from tests.servers_http import Answer, OwnServer, attributes

MODEL = "ns/large/default/m"


class Shape(NamedTuple):
    """One form of body, and what becomes of it."""

    status: int
    make: Callable[[int], bytes]
    """A body of at most so many bytes, and nearly as many."""
    content_type: str = JSON
    chunked: bool = False


def _repeated(unit: str, size: int) -> str:
    return ",".join([unit] * (size // (len(unit) + 1)))


def _drawn(units: list[str], size: int, seed: int) -> str:
    """Units at random, as many as fit."""
    chance = random.Random(seed)
    mean = sum(map(len, units)) / len(units) + 1
    return ",".join(chance.choices(units, k=int(size / mean * 0.99)))


def _both(truth: str, response: str) -> bytes:
    return f'{{"truth":{truth},"response":{response}}}'.encode()


def _ndarray(rows: str) -> str:
    return f'{{"data":{{"ndarray":[{rows}]}}}}'


def _sides(truth: str, response: str, size: int) -> bytes:
    """Feedback of as many of these rows as fit."""
    rows = (size - 100) // (len(truth) + len(response) + 2)
    return _both(_ndarray(",".join([truth] * rows)), _ndarray(",".join([response] * rows)))


def _same(units: list[str], size: int) -> bytes:
    """As many units on both sides, drawn independently."""
    half = (size - 200) // 2
    one, other = (_drawn(units, half, seed).split(",") for seed in (1, 2))
    rows = min(len(one), len(other))
    return _both(_ndarray(",".join(one[:rows])), _ndarray(",".join(other[:rows])))


def _probabilities(columns: int, size: int) -> bytes:
    rest = round(1 - 0.001 * (columns - 1), 3)
    row = "[" + ",".join([str(rest)] + ["0.001"] * (columns - 1)) + "]"
    return _sides("0", row, size)


def _digits(size: int) -> bytes:
    chance = random.Random(17)
    units = [repr(chance.random() * 10) for _ in range(1000)]
    return _same(units, size)


def _structured(body: bytes) -> bytes:
    head = json.dumps(attributes("1", MODEL))
    return head[:-1].encode() + b',"data":' + body + b"}"


def _batch(events: int, size: int) -> bytes:
    """Small events, `events` of them, of different models' rows."""
    each = (size - 2) // events
    found = []
    for at in range(events):
        head = json.dumps(attributes(str(at), MODEL))[:-1] + ',"data":'
        data = _sides("1", "[0.25,0.75]", each - len(head) - 2).decode()
        found.append(f"{head}{data}}}")
    return f"[{','.join(found)}]".encode()


def _v2(size: int) -> bytes:
    """A V2 answer of pairs of probabilities, flat with a shape, against labels."""
    rows = (size - 300) // len("0.5,0.5,1,")
    numbers = ",".join(["0.5"] * (2 * rows))
    output = f'{{"name":"x","datatype":"FP64","shape":[{rows},2],"data":[{numbers}]}}'
    return _both(_ndarray(",".join(["1"] * rows)), f'{{"outputs":[{output}]}}')


def _tensor(size: int) -> bytes:
    """Seldon's tensor on the side of the predictions."""
    rows = (size - 300) // len("0.5,0.5,1,")
    numbers = ",".join(["0.5"] * (2 * rows))
    tensor = f'{{"data":{{"tensor":{{"shape":[{rows},2],"values":[{numbers}]}}}}}}'
    return _both(_ndarray(",".join(["1"] * rows)), tensor)


def _content(size: int) -> bytes:
    """TensorProtos of raw bytes: floats against floats."""
    rows = (size - 600) // 11
    raw = base64.b64encode(struct.pack("<f", 1.25) * rows).decode()
    shape = f'{{"dim":[{{"size":{rows}}}]}}'
    tensor = f'{{"dtype":"DT_FLOAT","tensor_shape":{shape},"tensor_content":"{raw}"}}'
    message = f'{{"data":{{"tftensor":{tensor}}}}}'
    return _both(message, message)


def _val(size: int) -> bytes:
    """TensorProtos of numbers as text."""
    rows = (size - 600) // 10
    numbers = ",".join(["1.25"] * rows)
    shape = f'{{"dim":[{{"size":{rows}}}]}}'
    message = (
        f'{{"data":{{"tftensor":{{"dtype":"DT_FLOAT","tensor_shape":{shape},'
        f'"float_val":[{numbers}]}}}}}}'
    )
    return _both(message, message)


def _binary(size: int) -> bytes:
    """JSON in base64, on both sides."""
    rows = (size - 200) * 3 // 4 // 2
    coded = base64.b64encode(f'{{"ndarray":[{_repeated("0.25", rows)}]}}'.encode()).decode()
    return _both(f'{{"binData":"{coded}"}}', f'{{"binData":"{coded}"}}')


def _nested(unit: str) -> Callable[[int], bytes]:
    """An array of something that is no scalar."""
    return lambda size: _both(_ndarray(_repeated(unit, size - 100)), _ndarray("1"))


def _keys(size: int) -> bytes:
    """One object of very many keys."""
    members = ",".join(f'"k{at}":1' for at in range(size // 14))
    return f'{{{members},"truth":{_ndarray("1")},"response":{_ndarray("1")}}}'.encode()


def _deep(size: int) -> bytes:
    """Objects within objects, over and over."""
    unit = '{"a":' * 200 + "1" + "}" * 200
    return _both(_ndarray("1"), f'{{"x":[{_repeated(unit, size - 200)}],"strData":"1"}}')


def _request(text: str) -> bytes:
    """Small feedback to a large request."""
    request = f'{{"strData":"{text}"}}'
    return f'{{"request":{request},{_both(_ndarray("1"), _ndarray("1"))[1:].decode()}'.encode()


SHAPES: dict[str, Shape] = {
    "three probabilities a row": Shape(200, lambda size: _probabilities(3, size)),
    "100 probabilities a row": Shape(200, lambda size: _probabilities(100, size)),
    "regression": Shape(200, lambda size: _sides("1.5", "2.25", size)),
    "17 digits": Shape(200, _digits),
    "columns of one": Shape(200, lambda size: _sides("[1]", "[0]", size)),
    "labels of two bytes": Shape(200, lambda size: _sides("1", "0", size)),
    "0 and 1 as fractions": Shape(200, lambda size: _sides("1.0", "0.0", size)),
    "pairs of 1,000 classes": Shape(200, lambda size: _same([str(n) for n in range(1000)], size)),
    "pairs of 1,000 names": Shape(200, lambda size: _same([f'"c{n}"' for n in range(1000)], size)),
    "names": Shape(200, lambda size: _sides('"cat"', '"dog"', size)),
    "one-hot rows": Shape(200, lambda size: _sides("[1,0,0]", "[0,1,0]", size)),
    "rows of regression": Shape(200, lambda size: _sides("[1.5,2.5]", "[2.5,0.5]", size)),
    "no probabilities": Shape(400, lambda size: _sides("1", "[0.5,0.1]", size)),
    "V2 with a shape": Shape(200, _v2),
    "tensor": Shape(200, _tensor),
    "tensor_content": Shape(200, _content),
    "float_val": Shape(200, _val),
    "binData": Shape(200, _binary),
    "structured": Shape(200, lambda size: _structured(_probabilities(3, size - 400)), STRUCTURED),
    "chunked": Shape(200, lambda size: _probabilities(3, size), chunked=True),
    "batch of 10,000": Shape(200, lambda size: _batch(10_000, size), BATCH),
    "batch of 3": Shape(200, lambda size: _batch(3, size), BATCH),
    "batch of nothing": Shape(413, lambda size: f"[{_repeated('{}', size - 2)}]".encode(), BATCH),
    "objects": Shape(413, _nested("{}")),
    "lists": Shape(413, _nested("[]")),
    "lists in lists": Shape(413, _nested("[[1]]")),
    "a string": Shape(400, lambda size: _both('{"strData":"' + "x" * (size - 99) + '"}', "{}")),
    "huge whole numbers": Shape(200, lambda size: _sides("12345678901234567890", "1", size)),
    "many keys": Shape(413, _keys),
    "deep objects": Shape(413, _deep),
    "a request of one string": Shape(200, lambda size: _request("x" * (size - 150))),
    "a request of commas": Shape(200, lambda size: _request("0,1," * ((size - 150) // 4))),
    "no JSON": Shape(413, lambda size: b"[" * size),
}
"""By name."""


class Cost(NamedTuple):
    """What a body cost a server."""

    answer: Answer
    size: int
    seconds: float
    liveness: float
    """Seconds that the slowest of the probes took meanwhile."""
    peak: int
    """Bytes of memory of all processes over what the server had before, at most, as sampled."""


def _status(pid: int, name: str) -> int:
    """A number of bytes in the status of a process; 0 of one that has ended."""
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def cost(server: OwnServer, shape: Shape, size: int, model: str = "m") -> Cost:
    """Post a body of a model, and watch."""
    body = shape.make(size)
    assert 0.8 * size < len(body) <= size, len(body)
    if shape.content_type != JSON:
        body = body.replace(b'"m"', json.dumps(model).encode())

    def memory() -> int:
        return sum(_status(pid, "VmRSS") for pid in server.all_pids)

    before = memory()
    peaks: list[int] = [0]
    probes: list[float] = [0.0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            peaks.append(memory())

    def probe() -> None:
        twin = server.twin()
        while not over.wait(0.002):
            began = time.monotonic()
            assert twin.get("/health/liveness").status == 200
            probes.append(time.monotonic() - began)
        twin.hang_up()

    def parts() -> Iterator[bytes]:
        for at in range(0, len(body), 50_000):
            yield body[at : at + 50_000]

    threads = [threading.Thread(target=each) for each in (watch, probe)]
    for thread in threads:
        thread.start()
    headers = {"content-type": shape.content_type}
    if shape.content_type == JSON:
        headers |= {
            f"ce-{name}": text
            for name, text in attributes("1", f"ns/large/default/{model}").items()
        }
    began = time.monotonic()
    try:
        answer = server.request("POST", "/", headers, parts() if shape.chunked else body)
        seconds = time.monotonic() - began
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return Cost(answer, len(body), seconds, max(probes), max(peaks) - before)


def main() -> None:
    """Print the cost of shapes."""
    words = sys.argv[1:]
    size = int(float(words.pop(0)) * (1 << 20)) if words else 16 << 20
    print("shape                     status   seconds  liveness/ms  peak/MiB  times the body")
    for name in words or SHAPES:
        with tempfile.TemporaryDirectory() as directory, OwnServer(Path(directory)) as server:
            found = cost(server, SHAPES[name], size)
            print(
                f"{name:25} {found.answer.status:6} {found.seconds:9.2f} "
                f"{found.liveness * 1000:12.0f} {found.peak / (1 << 20):9.0f} "
                f"{found.peak / found.size:9.1f}  "
                f"{found.answer.detail[:70] if found.answer.status >= 400 else ''}",
                flush=True,
            )


if __name__ == "__main__":
    main()
