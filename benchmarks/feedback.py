"""Feedback events as bytes on the wire: built before the clock starts, all but the event's id."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

TYPE = "io.seldon.serving.feedback"
DISTINCT_ROWS = 2000
"""Rows of different scores; events repeat them in turn."""


@dataclass(frozen=True)
class Shape:
    """What the events of one run look like."""

    rows: int = 1
    classes: int = 3
    models: int = 1
    batch: int = 1
    """Events in a request; more than one go as a CloudEvents batch."""


SINGLE = Shape()


def bodies(shape: Shape, chance: random.Random) -> list[bytes]:
    """The data of several events: rows of probabilities, and a label for each as its truth."""
    found = []
    for _ in range(max(1, DISTINCT_ROWS // (shape.rows * max(1, shape.classes // 10)))):
        scores, truths = [], []
        for _ in range(shape.rows):
            parts = [chance.random() for _ in range(shape.classes)]
            whole = sum(parts)
            scores.append([part / whole for part in parts])
            truths.append(chance.randrange(shape.classes))
        response, truth = {"data": {"ndarray": scores}}, {"data": {"ndarray": truths}}
        found.append(orjson.dumps({"response": response, "truth": truth}))
    return found


def requests(shape: Shape, seed: str) -> Iterator[bytes]:
    """HTTP requests without end; no two of them, nor of another seed, bear the same id."""
    data = bodies(shape, random.Random(seed))
    if shape.batch > 1:
        yield from _batches(shape, data, seed)
    parts = []
    for at in range(max(len(data), shape.models)):
        body = data[at % len(data)]
        attributes = "".join(
            f"ce-{name}: {text}\r\n" for name, text in _attributes(at % shape.models).items()
        )
        head = (
            "POST / HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
            f"{attributes}content-length: {len(body)}\r\nce-id: {seed}-"
        )
        parts.append((head.encode(), b"\r\n\r\n" + body))
    for number, (head, tail) in enumerate(itertools.cycle(parts)):
        yield b"%b%d%b" % (head, number, tail)


def _batches(shape: Shape, data: list[bytes], seed: str) -> Iterator[bytes]:
    heads = [
        orjson.dumps(_attributes(model))[:-1] + f',"id":"{seed}-'.encode()
        for model in range(shape.models)
    ]
    events = zip(itertools.count(), itertools.cycle(heads), itertools.cycle(data))
    while True:
        body = b",".join(
            b'%b%d","data":%b}' % (head, number, each)
            for number, head, each in itertools.islice(events, shape.batch)
        )
        yield (
            b"POST / HTTP/1.1\r\nhost: bench\r\n"
            b"content-type: application/cloudevents-batch+json\r\n"
            b"content-length: %d\r\n\r\n[%b]" % (len(body) + 2, body)
        )


def _attributes(model: int) -> dict[str, str]:
    return {
        "specversion": "1.0",
        "type": TYPE,
        "source": "/bench",
        "namespace": "seldon",
        "inferenceservicename": "iris",
        "endpoint": "default",
        "modelid": f"classifier-{model}",
        "requestid": "0123456789",
    }
