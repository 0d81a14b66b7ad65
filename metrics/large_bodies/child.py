"""The process that decodes and evaluates large bodies: `python -m metrics.large_bodies.child`.

It answers one question after the other, pickled, on its standard streams, about the body that it
was given last. It has no state to lose: it ends when nobody asks, when its parent has ended, or
when a body needs more memory than its size allows.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import select
import signal
import sys
import traceback
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from .. import large_arrays, payload
from ..errors import Refused, TooLarge
from ..evaluators import Evaluation, Known, evaluate
from ..events import MAX_BATCH, structured
from ..model_settings import ModelSettings
from ..payload import Budget, Feedback, load_large, parse
from ..tensors import base64_bytes
from ..values import Values
from . import FAILED, REFUSED, RETURNED
from .batches import Span, split, without_data

MEMORY_A_BYTE = 6
"""Bytes of memory that a byte of a body may take in this process, itself included."""
ALLOWANCE = 16 << 20
"""Bytes of memory that any body may take besides."""
IDLE_SECONDS = 10.0
"""How long the process waits for the next body."""


class Answers:
    """What can be asked about one body, method by method."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._part: tuple[Span, Any] | None = None
        """The part of the body that was decoded last, decoded."""
        self._feedback: Feedback | None = None

    def split(self) -> list[Span]:
        """Where the events of a batch stand. Raises Refused for what is none."""
        spans = split(self._body, MAX_BATCH + 1)
        if spans is None:
            if load_large(self._body, "data") != []:  # which may tell why it is none
                raise Refused("data", "a batch must be a JSON array of events")
            return []
        if len(spans) > MAX_BATCH:
            reason = f"more than {MAX_BATCH} events; that many are taken in a batch"
            raise TooLarge("data", reason)
        return spans

    def event(self, span: Span, where: str) -> tuple[Any, ...]:
        """Id, source, type, time and extensions of a structured event. Raises Refused."""
        try:
            decoded = self._decoded(span)
        except MemoryError:  # its type may be one whose data is not looked at
            rest = without_data(self._body[slice(*span)])
            if rest is None:
                raise
            decoded = load_large(rest, "data")
        event = structured(decoded, where, Budget(0))
        return event.id, event.source, event.type, event.time, event.extensions

    def feedback(self, span: Span, is_structured: bool, whole: bool) -> Feedback:
        """The feedback in a part of the body; without its values unless `whole`. Raises Refused."""
        self._feedback = None
        feedback = parse(self._data(span, is_structured), Budget(span[1] - span[0]))
        feedback.raw = {}  # what reads it is evaluated elsewhere
        if whole:
            return feedback
        self._feedback = feedback
        return Feedback(
            Values("truth", [], 0, True),
            None if feedback.prediction is None else Values("response", [], 0, True),
            feedback.reward,
            tags=feedback.tags,
            route=feedback.route,
            puid=feedback.puid,
        )

    def json(self, span: Span, is_structured: bool) -> Any:
        """The data, with long arrays as `LargeArray`. Raises Refused."""
        return self._data(span, is_structured)

    def said(self, span: Span, is_structured: bool) -> bytes:
        """JSON that is the same for the same data; long arrays are in it as digests."""
        data = self._data(span, is_structured)
        return orjson.dumps(data, _digest_of, orjson.OPT_SORT_KEYS)

    def evaluate(self, span: Span, settings: ModelSettings, known: Known) -> Evaluation:
        """What the feedback that was asked for last adds. Raises Refused."""
        feedback, self._feedback, self._part = self._feedback, None, None
        assert feedback is not None
        if span == (0, len(self._body)):
            self._body = b""  # nothing else is in it
        return evaluate(feedback, settings, known)

    def _data(self, span: Span, is_structured: bool) -> Any:
        event = self._decoded(span)
        if not is_structured:
            return event
        if "data_base64" in event:
            return load_large(base64_bytes(event["data_base64"], "data_base64"), "data")
        return event.get("data")

    def _decoded(self, span: Span) -> Any:
        """A part of the body, which must be a JSON object. Raises Refused."""
        if self._part is None or self._part[0] != span:
            self._part = self._feedback = None
            start, end = span
            whole = start == 0 and end == len(self._body)
            part = self._body if whole else self._body[start:end]
            self._part = span, load_large(part, "data")
        value = self._part[1]
        if type(value) is not dict:
            raise Refused("data", "must be a JSON object")
        return value


def _digest_of(array: Any) -> str:
    """What stands for a long array in JSON."""
    if not isinstance(array, large_arrays.LargeArray):
        raise TypeError
    said = array.doubles
    if said is None:
        said = orjson.dumps(array.flat, list)
    return f"{array.width} {blake2b(said, digest_size=16).hexdigest()}"


# --- the process ------------------------------------------------------------------------------


def _memory() -> int:
    """Bytes of private memory of this process, as RLIMIT_DATA counts them; 0 where unknown."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return 0


def _limit(size: int, base: int) -> None:
    """Limit the memory of this process to what a body of `size` bytes may take."""
    if base:
        _allow(base + MEMORY_A_BYTE * size + ALLOWANCE)


def _allow(most: int) -> None:
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))


def _loads(text: bytes) -> Any:
    """`orjson.loads` within the limit of memory. Raises MemoryError.

    orjson asks for 12 times the text at once, of which it uses 16 bytes for each value. What it
    does not use is address space only, and is not to count.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY:
        return orjson.loads(text)
    unused = 12 * len(text) - 16 * _values(text)
    _allow(most + max(0, unused))
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "memory" in str(error):
            raise MemoryError from None
        raise
    except SystemError:  # it went on where there was no memory for an object
        raise MemoryError from None
    finally:
        _allow(most)


def _values(text: bytes) -> int:
    """How many JSON values and keys there are in a text, at most, but for one."""
    if text.count(b'"') < _FEW_QUOTES and b'\\"' not in text:
        text = b"".join(text.split(b'"')[::2])  # without its strings, which may be long
    return sum(map(text.count, (b",", b":", b"[", b"{")))


_FEW_QUOTES = 10_000


def _answer(answers: Answers | None, question: str, *values: Any) -> tuple[int, Any]:
    try:
        return RETURNED, getattr(answers, question)(*values)
    except Refused as error:
        reason = str(error).removeprefix(f"{error.field}: ")
        return REFUSED, (error.field, reason, isinstance(error, TooLarge))
    except MemoryError:
        return REFUSED, ("data", "takes too much memory for its size", True)
    except Exception:
        return FAILED, traceback.format_exc()


def run(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until nobody asks any more."""
    ones = np.ones((256, 64))
    ones @ ones[0]  # OpenBLAS takes its buffers with the first product
    base = _memory()
    about: Answers | None = None
    while select.select([questions], [], [], IDLE_SECONDS)[0]:
        try:
            question, *values = pickle.load(questions)
        except EOFError:
            return
        if question == "body":
            about = None
            (size,) = values
            _limit(size, base)
            body = questions.read(size)
            if len(body) < size:
                return
            about = Answers(body)
            del body
            answer: tuple[int, Any] = (RETURNED, None)
        elif question == "done":
            about = None
            if _memory() > base + ALLOWANCE // 2:
                return  # what was not given back would count for the next body
            continue
        else:
            answer = _answer(about, question, *values)
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()
        del answer


def main() -> None:
    """Serve the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent decides when it ends
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write among the answers
    payload.loads = _loads
    gc.freeze()
    with suppress(BrokenPipeError):
        run(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
