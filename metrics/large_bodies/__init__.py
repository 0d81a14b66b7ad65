"""Large bodies are decoded and evaluated in another process.

In this one a large body would hold the interpreter's lock for as long as one call takes, and its
memory would stay with the process. The other one is started on demand, has a limit of memory in
proportion to the body, and is killed when the server stops: nothing is counted there. Caps,
constants and commits stay here: what comes back is an event's attributes and its increment.

What a class of the user's evaluates, and halves that wait to be joined, come back with their
values and are evaluated here.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from ..errors import Refused, TooLarge, Unavailable
from ..evaluators import Evaluation, Known, evaluate
from ..events import BATCH, STRUCTURED, Event, media_type, read_events, structured
from ..model_settings import ModelSettings
from ..payload import Again, Budget, Feedback, load_json, parse
from .batches import Span

logger = logging.getLogger("metrics.large_bodies")

MIN_BODY = 1 << 20
"""Bytes from which a body is decoded in the other process."""
SMALL_EVENT = 1 << 16
"""Bytes up to which an event of a large batch is decoded here."""
RETURNED, REFUSED, FAILED = range(3)
"""What an answer is: a value; the field and the reason of a refusal; the text of a bug."""
_DIED = (-6, -7, -11)
"""What SIGABRT, SIGBUS and SIGSEGV make of an exit status: memory that was not there."""


class LargeBodies:
    """The other process, as it is needed. Thread-safe: one body at a time."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._opened: bytes | None = None
        """The body that the other process has now."""
        self.current: LargeFeedback | None = None
        """The feedback that it decoded last."""
        self._closed = False

    @contextmanager
    def reading(
        self, headers: Mapping[str, str], body: bytes, whole: bool = False
    ) -> Iterator[tuple[list[Event], bool]]:
        """The events of a request, and whether it was a batch, as `events.read_events` gives them.

        `whole`: their feedback comes with its values. Raises Refused; Unavailable where the other
        process cannot be started, or was ended.
        """
        with self._lock:
            try:
                yield self._events(headers, body, whole)
            finally:
                self._done()

    def interrupt(self) -> None:
        """End what the other process does now. What waits for it is answered as Unavailable."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the other process for good."""
        self._closed = True
        self.interrupt()
        if self._lock.acquire(timeout=1):  # who waits for an answer gets none
            try:
                self._end()
            finally:
                self._lock.release()

    # --- reading -----------------------------------------------------------------------------

    def _events(
        self, headers: Mapping[str, str], body: bytes, whole: bool
    ) -> tuple[list[Event], bool]:
        kind = media_type(headers.get("content-type", ""))
        span = (0, len(body))
        if kind == STRUCTURED:
            return [self._structured(body, span, "", whole)], False
        if kind == BATCH:
            return self._batch(body, whole), True
        events, is_batch = read_events(headers, body)
        (event,) = events
        large = LargeEvent(event.id, event.source, event.type, event.time, event.extensions)
        large.place = Place(self, body, span, False, whole)
        return [large], is_batch

    def _structured(self, body: bytes, span: Span, where: str, whole: bool) -> Event:
        event = LargeEvent(*self.ask(body, "event", span, where))
        event.place = Place(self, body, span, True, whole)
        return event

    def _batch(self, body: bytes, whole: bool) -> list[Event]:
        spans: list[Span] = self.ask(body, "split")
        budget = Budget(sum(end - start for start, end in spans if end - start <= SMALL_EVENT))
        events = []
        for at, (start, end) in enumerate(spans):
            where = f"[{at}]."
            if end - start <= SMALL_EVENT:
                text = body[start:end]
                event = structured(load_json(text, "data"), where, budget)
                if event.body is None:
                    event = SmallEvent(
                        event.id,
                        event.source,
                        event.type,
                        event.time,
                        event.extensions,
                        shared=budget,
                    )
                    event.text = text
                events.append(event)
            else:
                events.append(self._structured(body, (start, end), where, whole))
        return events

    def evaluate(
        self, feedback: LargeFeedback, settings: ModelSettings, known: Known
    ) -> Evaluation:
        """What large feedback adds. Raises Refused and Unavailable."""
        place = feedback.place
        with self._lock:
            opened = self._opened is not None
            try:
                if "." in settings.task:  # the class of the user's may keep something
                    found: Feedback = place.ask("feedback", place.is_structured, True)
                    found.raw = place.raw()
                    return evaluate(found, settings, known)
                if self.current is not feedback or self._opened is not place.body:
                    place.ask("feedback", place.is_structured, False)
                self.current = None
                evaluation: Evaluation = place.ask("evaluate", settings, known)
                return evaluation
            finally:
                if not opened:
                    self._done()

    # --- the other process -------------------------------------------------------------------

    def ask(self, body: bytes, question: str, *values: Any) -> Any:
        """What the other process answers about a body. Raises Refused and Unavailable."""
        if self._opened is not body:
            self._open(body)
        return self._answer(question, *values)

    def _open(self, body: bytes) -> None:
        """Hand a body over."""
        self._done()
        for _ in range(2):
            process = self._process
            if process is None or process.poll() is not None:
                process = self._start()
            assert process.stdin is not None
            try:
                self._send("body", len(body))
                process.stdin.write(body)
                process.stdin.flush()
                kind, _ = self._receive()
            except (OSError, EOFError, pickle.UnpicklingError):
                if self._end() == 0:
                    continue  # it was idle, and ended just now
                break
            if kind == RETURNED:
                self._opened = body
                return
        raise Unavailable("the process for large bodies has ended; send it again")

    def _answer(self, question: str, *values: Any) -> Any:
        try:
            self._send(question, *values)
            kind, value = self._receive()
        except (OSError, EOFError, pickle.UnpicklingError):
            status = self._end()
            if status in _DIED:
                raise TooLarge("data", "takes too much memory for its size") from None
            raise Unavailable("the process for large bodies has ended; send it again") from None
        if kind == REFUSED:
            where, reason, is_large = value
            raise (TooLarge if is_large else Refused)(where, reason)
        if kind == FAILED:
            raise RuntimeError(value)
        return value

    def _done(self) -> None:
        """Have the other process forget the body it has."""
        if self._opened is not None:
            self._opened = self.current = None
            with suppress(OSError):
                self._send("done")

    def _send(self, *values: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(values, pickle.HIGHEST_PROTOCOL))
        self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        return pickle.load(self._process.stdout)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise Unavailable("the server stops")
        self._end()
        paths = [os.path.abspath(path) for path in sys.path]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__name__}.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
            )
        except OSError as error:
            logger.error("no process for a large body: %s", error)
            raise Unavailable("large bodies cannot be evaluated now") from None
        return self._process

    def _end(self) -> int | None:
        """End the other process, if there is one; its exit status."""
        self._opened = self.current = None
        process, self._process = self._process, None
        if process is None:
            return None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""One thread, whose buffers would count for the body."""


@dataclass(slots=True)
class SmallEvent(Event):
    """A structured event of a batch, whose data is decoded when its turn comes."""

    text: bytes = field(init=False)

    def feedback(self) -> Feedback:
        """What the event's data says. Raises Refused."""
        feedback = parse(self.json(), self.shared)
        feedback.raw = Again(self.text, True)
        return feedback

    def json(self) -> Any:
        """The event's data."""
        return load_json(self.text, "data").get("data")


@dataclass(slots=True)
class Place:
    """Where the data of a large event stands."""

    bodies: LargeBodies
    body: bytes
    span: Span
    is_structured: bool
    whole: bool

    def ask(self, question: str, *values: Any) -> Any:
        """What the other process says of the data."""
        return self.bodies.ask(self.body, question, self.span, *values)

    def feedback(self) -> Feedback:
        """The feedback in the data. Raises Refused."""
        found: Feedback = self.ask("feedback", self.is_structured, self.whole)
        if self.whole:
            found.raw = self.raw()
            return found
        large = LargeFeedback(
            found.truth,
            found.prediction,
            found.reward,
            tags=found.tags,
            route=found.route,
            puid=found.puid,
            place=self,
        )
        self.bodies.current = large
        return large

    def raw(self, under: str = "") -> Mapping[str, Any]:
        """The data, decoded when it is looked at."""
        start, end = self.span
        return Again(self.body[start:end], self.is_structured, under)


@dataclass(slots=True)
class LargeFeedback(Feedback):
    """What is known here of feedback whose values are elsewhere."""

    place: Place = field(kw_only=True)

    def evaluate(self, settings: ModelSettings, known: Known) -> Evaluation:
        """What it adds, as `evaluators.evaluate` tells of other feedback."""
        return self.place.bodies.evaluate(self, settings, known)


@dataclass(slots=True)
class LargeEvent(Event):
    """An event whose data is decoded elsewhere."""

    place: Place = field(init=False)

    def feedback(self) -> Feedback:
        """What the event's data says, with or without its values. Raises Refused."""
        return self.place.feedback()

    def json(self) -> Any:
        """The event's data, with long arrays as `LargeArray`. Raises Refused."""
        return self.place.ask("json", self.place.is_structured)

    def said(self) -> bytes:
        """JSON that is the same for the same data."""
        said: bytes = self.place.ask("said", self.place.is_structured)
        return said
