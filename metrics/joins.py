"""Truth that comes late: halves of feedback that wait for each other, and corrections.

A prediction, a truth, or what was scored of both, is remembered as the record of its request: in
the store, not in memory, and swapped in the transaction that counts. So each half, whichever comes
first, on whichever replica, meets the other once. Nothing here knows a clock: times are passed in.

A record is 8 bytes of tag, 4 of the length of its head, the head (JSON), and the prediction's
numbers as doubles where they are all floats.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from .counters import SUPERSEDED, Vector, decode_key, encode_key, unpack
from .errors import Refused
from .exact import restored, stored, to_units
from .payload import NO_BUDGET, Budget, Feedback, Values, check_label, dump_json, message, read_meta
from .state import TAG, Constants, Entry, RecordKey, Swap, home_of
from .windows import ALL_TIME, Pane, expired, in_segments

PREDICTION, TRUTH, WHOLE, SCORED = "prediction", "truth", "whole", "scored"
"""What an event is, or a record: half of feedback, all of it at once, or what was made of it."""

_KINDS = {kind[0]: kind for kind in (PREDICTION, TRUTH, SCORED)}

DELAYS = (1, 10, 60, 300, 1800, 3600, 21600, 86400, 604800)
"""Upper bounds of the histogram of the seconds from prediction to truth."""

NO_TRUTH = Values("truth", [], 0, True)
"""Stands for the truth of a prediction that waits for it."""

IDENTITY = ("namespace", "inferenceservicename", "endpoint", "modelid")
"""The extensions that name an event's model."""


class Case(NamedTuple):
    """One event's feedback, or half of it, and what else decides where it counts."""

    model: str
    digest: bytes
    time: float | None
    """When it happened, epoch seconds, if it says so."""
    arrival: float
    extensions: Mapping[str, str]
    feedback: Feedback


@dataclass(slots=True)
class Half:
    """A record, or an event on its way to become one."""

    kind: str
    case: Case
    written: float
    """Epoch seconds; its time to live begins then."""
    panes: tuple[Pane, ...] = ()
    """Where it was counted."""
    contribution: Vector = field(default_factory=dict)
    """What it added there."""

    @property
    def time(self) -> float:
        """When it happened, as far as is known."""
        case = self.case
        return case.arrival if case.time is None else min(case.time, case.arrival)


@dataclass(frozen=True, slots=True)
class Joins:
    """Meets the halves of requests; see `config` for its settings."""

    ttl: float
    """Seconds."""
    max_bytes: int
    by_truth: bool
    """Whether a row counts at its truth's time, not at its prediction's."""
    corrections: bool
    segments: Callable[[str], Iterable[str]]
    """The extensions and tags of a model that its segments need."""
    keeps_raw: Callable[[str], bool]
    """Whether a model's task reads the event as it came."""
    evaluate: Callable[[Case, Constants], Entry]
    admit: Callable[[str], Any]
    """What a model holds of the cap until its first event is committed. Raises Refused."""

    def entry(self, kind: str, case: Case, request: str, tag: bytes) -> Entry:
        """The entry of a half, or of whole feedback with a request's id.

        It is to be resolved with the request's record. `tag` is 8 bytes like no other's of the
        request. Raises Refused for an id that is too long, and for what cannot be remembered.
        """
        check_label(request, "requestid")
        as_it_came = self._as_it_came(case)
        if as_it_came:  # refused now: with a snapshot interval it is acknowledged before encoding
            dump_json([[[as_it_came]]], "data")
        home = home_of(case.model)
        id = blake2b(orjson.dumps((home, request)), digest_size=16).digest()
        half = Half(kind, case, case.arrival)
        return self._entry(half, RecordKey(home, id), tag, Entry(case.model, case.digest, (), {}))

    def _entry(self, half: Half, key: RecordKey, tag: bytes, entry: Entry) -> Entry:
        def resolve(constants: Callable[[str], Constants], record: bytes) -> Entry:
            return self._entry(half, key, tag, self._meet(half, key, tag, constants, record))

        entry.finds, entry.resolve = key, resolve
        return entry

    def _meet(
        self,
        half: Half,
        key: RecordKey,
        tag: bytes,
        constants: Callable[[str], Constants],
        record: bytes,
    ) -> Entry:
        """What `half` adds where `record` is there. Raises Refused where they do not fit."""
        there = decode(key.home, record) if record else None
        fates, outcome = _MEETINGS[half.kind, there.kind if there else ""]
        counts: dict[str, Any] = {
            family: {(fate,): 1 for fate in fates} for family, fates in fates.items()
        }
        if outcome == "waits":
            return self._waiting(half, key, tag, counts, record)
        case = half.case
        panes: tuple[Pane, ...] = ()
        taken: Vector = {}
        if there is not None and outcome == "stays":
            return Entry(there.case.model, case.digest, (ALL_TIME,), counts)
        if there is not None and there.kind == SCORED:
            taken = {SUPERSEDED + family: cells for family, cells in there.contribution.items()}
            taken["corrected"] = {(): 1}
            panes = tuple(pane for pane in there.panes if not expired(pane, half.written))
            case = _corrected(half, there)
        elif there is not None and half.kind != WHOLE:
            one, other = (half, there) if half.kind == PREDICTION else (there, half)
            counts |= _delay(other.time - one.time)
            case = _together(one, other, half, (other if self.by_truth else one).time)
        entry = self.evaluate(case, constants(case.model))
        contribution: Vector = {**unpack(entry.increment)}
        if panes:
            segments = dict.fromkeys(pane.segment for pane in entry.panes if pane.segment)
            bases = [pane for pane in panes if not pane.segment]
            entry.panes = tuple(in_segments(bases, segments))
        if taken and set(panes) != set(entry.panes):
            entry.besides = ((panes, taken),)
        else:
            counts |= taken
        entry.increment = {**contribution, **counts}
        after = b""
        if self.corrections:
            scored = Half(SCORED, case, half.written, entry.panes, contribution)
            try:
                after = tag + self._encode(scored)
            except BaseException:
                entry.release()
                raise
        entry.swap = Swap(key, record[:TAG], after)
        return entry

    def _waiting(self, half: Half, key: RecordKey, tag: bytes, counts: Any, record: bytes) -> Entry:
        """The entry of a half that waits for the other one."""
        after = tag + self._encode(half)
        if len(after) > self.max_bytes:
            raise Refused("data", f"{len(after)} bytes to remember; see FEEDBACK_JOIN_MAX_BYTES")
        swap = Swap(key, record[:TAG], after)
        entry = Entry(half.case.model, half.case.digest, (ALL_TIME,), counts, swap=swap)
        entry.reserved = self.admit(half.case.model)
        return entry

    # --- the end of waiting --------------------------------------------------------------------

    def lapsed(
        self, oldest: Iterable[tuple[RecordKey, bytes]], held: int, now: float
    ) -> list[Entry]:
        """Entries that forget those of `oldest` whose time is over, or for which room is wanted.

        Each counts the half that waited in vain. `held` is the size of all records in bytes.
        """
        entries = []
        halves = [(key, record, decode(key.home, record)) for key, record in oldest]
        for key, record, half in sorted(halves, key=lambda each: each[2].written):
            if half.written + self.ttl > now and held <= self.max_bytes:
                break
            fate = "unjoined" if half.written + self.ttl <= now else "dropped"
            held -= len(record)
            counts: Vector = {} if half.kind == SCORED else {f"{half.kind}s": {(fate,): 1}}
            swap = Swap(key, record[:TAG], b"")
            entries.append(Entry(half.case.model, b"", (ALL_TIME,), counts, swap=swap))
        return entries

    def _as_it_came(self, case: Case) -> dict[str, Any]:
        """What a record takes over of an event without looking into it."""
        feedback = case.feedback
        found: dict[str, Any] = {}
        if feedback.tags:
            kept = [name for name in self.segments(case.model) if name in feedback.tags]
            found["tags"] = {name: feedback.tags[name] for name in kept}
        if feedback.metrics:
            found["metrics"] = feedback.metrics
        if self.keeps_raw(case.model):
            found["raw"] = dict(feedback.raw)
        return found

    # --- records -------------------------------------------------------------------------------

    def _encode(self, half: Half) -> bytes:
        """A record without its tag; `decode` is the inverse."""
        case, feedback = half.case, half.case.feedback
        more: dict[str, Any] = {
            "arrival": None if int(case.arrival) == int(half.written) else case.arrival,
            "unnamed": [name for name in IDENTITY if not case.extensions.get(name)],
            "extensions": {
                name: case.extensions[name]
                for name in self.segments(case.model)
                if name in case.extensions
            },
            "route": feedback.route,
            **self._as_it_came(case),
            "panes": list(map(tuple, half.panes)),
            "contribution": {
                encode_key(family, labels): number
                for family, cells in half.contribution.items()
                for labels, number in stored(family, cells).items()
            },
        }
        more = {name: value for name, value in more.items() if value}
        if feedback.reward is not None:
            more["reward"] = feedback.reward
        model = case.model[len(home_of(case.model)) + 1 :]
        prediction, doubles = _packed(feedback.prediction)
        truth = feedback.truth
        head = dump_json(
            (
                half.kind[0],
                model,
                int(half.written),  # nothing depends on less than a second, and it is many bytes
                case.time,
                prediction,
                (list(truth.flat), truth.width, truth.names) if truth.rows else 0,
                more or 0,
            ),
            "data",
        )
        return len(head).to_bytes(4, "little") + head + doubles


_MEETINGS: Mapping[tuple[str, str], tuple[Mapping[str, Sequence[str]], str]] = {
    (PREDICTION, ""): ({"predictions": ["arrived"]}, "waits"),
    (PREDICTION, PREDICTION): ({"predictions": ["arrived", "replaced"]}, "waits"),
    (PREDICTION, TRUTH): ({"predictions": ["arrived", "joined"], "truths": ["joined"]}, "scores"),
    (PREDICTION, SCORED): ({"predictions": ["arrived", "joined"]}, "stays"),
    (TRUTH, ""): ({"truths": ["arrived"]}, "waits"),
    (TRUTH, TRUTH): ({"truths": ["arrived", "replaced"]}, "waits"),
    (TRUTH, PREDICTION): ({"predictions": ["joined"]}, "scores"),
    (TRUTH, SCORED): ({}, "scores"),
    (WHOLE, ""): ({}, "scores"),
    (WHOLE, PREDICTION): ({"predictions": ["joined"]}, "scores"),
    (WHOLE, TRUTH): ({"truths": ["replaced"]}, "scores"),
    (WHOLE, SCORED): ({}, "scores"),
}
"""(what comes, what is there) -> what is counted of halves, and what becomes of what came."""


def _together(prediction: Half, truth: Half, last: Half, time: float) -> Case:
    """The case as if both had come together at `time`, when `last` came; of the predicting model.

    What both say of tags, extensions and route, the truth's event says.
    """
    one, other = prediction.case, truth.case
    feedback = replace(
        other.feedback,
        prediction=one.feedback.prediction,
        tags={**one.feedback.tags, **other.feedback.tags},
        route=other.feedback.route or one.feedback.route,
        raw={**one.feedback.raw, **other.feedback.raw},
    )
    extensions = {**one.extensions, **other.extensions}
    extensions |= {name: one.extensions.get(name, "") for name in IDENTITY}
    return Case(one.model, last.case.digest, time, last.case.arrival, extensions, feedback)


def _corrected(half: Half, scored: Half) -> Case:
    """The case that takes the place of what was scored: it counts when that did.

    What a correction does not say stays: prediction, reward, metrics, route, tags, extensions.
    """
    one, other = scored.case.feedback, half.case.feedback
    case = _together(scored, half, half, 0.0)
    feedback = replace(
        case.feedback,
        prediction=one.prediction if half.kind == TRUTH else other.prediction,
        reward=one.reward if other.reward is None else other.reward,
        metrics=other.metrics or one.metrics,
    )
    return scored.case._replace(
        digest=half.case.digest, feedback=feedback, extensions=case.extensions
    )


def _delay(seconds: float) -> dict[str, Any]:
    """The cells of the histogram of delays; of a truth that happened first, as of none."""
    seconds = max(0.0, seconds)
    bucket = (*map(str, DELAYS), "+Inf")[bisect_left(DELAYS, seconds)]
    return {"truth_delay_bucket": {(bucket,): 1}, "truth_delay_sum": {(): to_units(seconds)}}


def decode(home: str, record: bytes) -> Half:
    """What a record says."""
    start = TAG + 4
    end = start + int.from_bytes(record[TAG:start], "little")
    letter, model, written, time, prediction, truth, more = orjson.loads(record[start:end])
    more = more or {}
    extensions = dict(zip(IDENTITY, f"{home}/{model}".split("/"), strict=False))
    for name in more.get("unnamed", ()):
        extensions.pop(name, None)
    feedback = Feedback(
        truth=_values("truth", *truth) if truth else NO_TRUTH,
        prediction=_unpacked(prediction, record[end:]),
        reward=more.get("reward"),
        metrics=more.get("metrics", ()),
        tags=more.get("tags", {}),
        route=more.get("route", ""),
        raw=more.get("raw", {}),
    )
    contribution: dict[str, Any] = {}
    for key, number in more.get("contribution", {}).items():
        family, labels = decode_key(key)
        contribution.setdefault(family, {})[labels] = restored(family, number)
    return Half(
        _KINDS[letter],
        Case(
            f"{home}/{model}",
            b"",
            time,
            more.get("arrival", written),
            {**extensions, **more.get("extensions", {})},
            feedback,
        ),
        written,
        tuple(Pane(*pane) for pane in more.get("panes", ())),
        contribution,
    )


def _packed(values: Values | None) -> tuple[Any, bytes]:
    """The head's part of a prediction, and its numbers where they are all floats."""
    if values is None:
        return None, b""
    if values.flat and set(map(type, values.flat)) == {float}:
        head = (0, values.width, values.names) if values.names else values.width
        return head, array("d", values.flat).tobytes()
    return (list(values.flat), values.width, values.names), b""


def _unpacked(prediction: Any, doubles: bytes) -> Values | None:
    if prediction is None:
        return None
    if type(prediction) is int:
        prediction = (0, prediction, None)
    flat, width, names = prediction
    if flat != 0:
        return _values("response", flat, width, names)
    packed = array("d")
    packed.frombytes(doubles)
    return _values("response", packed.tolist(), width, names)


def _values(where: str, flat: list[Any], width: int, names: Any) -> Values:
    numeric = str not in set(map(type, flat))
    return Values(where, flat, width, numeric, tuple(names) if names else None)


def prediction_of(answer: Any, budget: Budget = NO_BUDGET) -> Feedback:
    """The prediction in a model's answer as a logger sends it. Raises Refused."""
    feedback = Feedback(NO_TRUTH, message(answer, "data", budget), raw={"response": answer})
    if answer.get("meta") is not None:
        read_meta(answer["meta"], "data.meta", feedback)
    if not feedback.puid and type(answer.get("id")) is str:
        feedback.puid = answer["id"]
    return feedback
