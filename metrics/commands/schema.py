"""What an export may say of a model: its families, gauges and constants, each by name.

Everything is checked before anything is written: a store that holds what the function never counts
could not be shown. At last the scores are made of what came, as a page would make them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson

from ..bins import CALIBRATION_BINS, MAX_LOGIT_BIN
from ..counters import LARGEST, OTHER, SUPERSEDED, Labels, Number, add, value
from ..errors import Refused
from ..evaluators.regression import MAX_OUTPUTS, ZERO
from ..evaluators.user_metrics import BUCKETS, KINDS, are_stored_tags, is_stored_name
from ..exact import REALS, shown, to_units
from ..joins import DELAYS, IDENTITY
from ..model_settings import TASKS, ModelSettings
from ..payload import check_label, one_line
from ..scores import model_view
from ..state import ModelState
from ..windows import ALL_TIME

MAX_TIME = 253402300799
"""The last second of the year 9999, epoch seconds."""

MOST = 1 << 53
"""Events, rows or cells that are counted exactly."""

_MOST_UNITS = to_units(LARGEST) * MOST
"""Of a real number that is the sum of as many rows."""

_ROUNDED_BITS = 40
"""Bits of a sum of doubles that many roundings leave right."""

MAX_NAMES = 100_000
"""Names of classes in an export."""

Check = Callable[[str], bool]


class Family(NamedTuple):
    """A family: what its numbers are, and how each of its keys' labels is checked."""

    number: Callable[[Number], bool]
    shapes: tuple[tuple[Check, ...], ...] = ((),)
    """The labels of a key; of some families there are keys of two lengths."""


def check_model(model: str, known: ModelState, where: str) -> None:
    """Raises Refused, naming `where` and the place in it, for what the function never counts."""
    for pane, vector in known.panes.items():
        at = f"{where}.panes[{pane.width}, {pane.index}, {one_line(pane.segment, 40)}]"
        if pane.segment and not _is_segment(pane.segment):
            raise Refused(at, "the segment is no key=value")
        if (pane.index + 1) * max(pane.width, 1) > MAX_TIME:
            raise Refused(at, "starts past the year 9999")
        for family, cells in vector.items():
            for labels, number in cells.items():
                _check_cell(family, labels, number, at)
        _check_taken(vector, at)
    for (family, labels), gauge in known.gauges.items():
        at = f"{where}.gauges[{_shown(family, labels)}]"
        if family not in _GAUGES or not _GAUGES[family](labels, gauge.value):
            raise Refused(at, f"{gauge.value!r} is no value of a gauge of the function's")
        if not _is_time(gauge.time):
            raise Refused(at, f"{gauge.time!r} is no time of the years 1970 to 9999")
    for name, constant in known.constants.items():
        if not _is_constant(name, constant):
            at = f"{where}.constants.{one_line(name, 60)}"
            raise Refused(at, f"{_brief(constant)} is no such constant of the function's")
    _check_scores(model, known, where)


def _check_cell(family: str, labels: Labels, number: Number, at: str) -> None:
    at = f"{at}.counters[{_shown(family, labels)}]"
    found = _FAMILIES.get(family.removeprefix(SUPERSEDED))
    if found is None:
        raise Refused(at, "no such family")
    if not any(_fits(labels, shape) for shape in found.shapes):
        raise Refused(at, "labels that the family does not have")
    if not found.number(number):
        raise Refused(at, f"{_brief(shown(family, number))} is no number of that family")


def _fits(labels: Labels, shape: tuple[Check, ...]) -> bool:
    if shape and shape[-1] is _TAGS:
        shape = shape[:-1]
        labels, tags = labels[: len(shape)], labels[len(shape) :]
        if not are_stored_tags(tags):
            return False
    return len(labels) == len(shape) and all(
        check(label) for check, label in zip(shape, labels, strict=True)
    )


def _check_taken(vector: Mapping[str, Any], at: str) -> None:
    """Corrections take back no more than was counted."""
    for family, cells in vector.items():
        counted = family.removeprefix(SUPERSEDED)
        if family == counted or _FAMILIES[counted].number is _is_signed:
            continue
        for labels, number in cells.items():
            there = value(vector, counted, *labels)
            if counted in REALS:  # older versions rounded both
                there += int(there) >> _ROUNDED_BITS
            if number > there:
                key = _shown(family, labels)
                raise Refused(f"{at}.counters[{key}]", "more is taken back than was counted")


def _check_scores(model: str, known: ModelState, where: str) -> None:
    """Make what would be shown: of all time, and of all panes of a width and segment together."""
    sums: dict[tuple[int, str], dict[str, Any]] = {}
    for pane, vector in known.panes.items():
        add(sums.setdefault((pane.width, pane.segment), {}), vector)
    for (width, segment), vector in sums.items():
        summed = ModelState({ALL_TIME: vector}, known.gauges, known.constants)
        try:
            orjson.dumps(model_view(model, summed, _DEFAULTS, 0.0, curves=True))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            at = f"{where}.panes of width {width} {one_line(segment, 40)}".rstrip()
            reason = one_line(str(error), 60)
            raise Refused(at, f"no scores can be made of its counters: {reason}") from None


_DEFAULTS = ModelSettings()


# --- numbers ------------------------------------------------------------------------------------


def _is_count(number: Number) -> bool:
    return 0 <= number <= MOST and number == int(number)


def _is_sum(number: Number) -> bool:
    return 0 <= number < _MOST_UNITS


def _is_signed(number: Number) -> bool:
    return abs(number) < _MOST_UNITS


def _is_time(number: Any) -> bool:
    return type(number) in (int, float) and 0 <= number <= MAX_TIME


def _is_finite(number: Any) -> bool:
    return type(number) in (int, float) and abs(number) < LARGEST


# --- labels -------------------------------------------------------------------------------------


def _is_label(text: str) -> bool:
    try:
        return check_label(text, "") == text
    except Refused:
        return False


def _is_segment(text: str) -> bool:
    return "=" in text and all(map(_is_label, text.split("=", 1)))


def _whole(least: int, most: int, *others: str) -> Check:
    def check(text: str) -> bool:
        if text in others:
            return True
        return _WHOLE.fullmatch(text) is not None and least <= int(text) <= most

    return check


def _one_of(*texts: str) -> Check:
    return texts.__contains__


_WHOLE = re.compile("0|-?[1-9][0-9]{0,8}")
_TAGS: Check = _one_of()
"""Stands for what is left of a key: tag, value, tag, value, …"""
_OUTPUT = _whole(0, MAX_OUTPUTS - 1)
_K = _whole(1, 10**9)
_BIN = _whole(0, CALIBRATION_BINS - 1)
_LOGIT = _whole(-MAX_LOGIT_BIN, MAX_LOGIT_BIN)
_ERROR = _whole(-20_000, 20_000, ZERO)  # of errors from 1e-150 to 1e150, and more
_FATE = _one_of("arrived", "joined", "unjoined", "dropped", "replaced")
_BOUND = _one_of(*map(repr, BUCKETS), "+Inf")
_DELAY = _one_of(*map(str, DELAYS), "+Inf")

_FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        ("events", "rows", "late", "rejected", "duplicates", "corrected"), Family(_is_count)
    ),
    **dict.fromkeys(("probability_rows", "subset_hits"), Family(_is_count)),
    "cells": Family(_is_count, ((), (_one_of(OTHER),))),
    **dict.fromkeys(
        ("true_positives", "false_negatives", "false_positives"),
        Family(_is_count, ((_is_label,),)),
    ),
    "confusion": Family(_is_count, ((_is_label, _is_label),)),
    **dict.fromkeys(("log_loss", "log_loss_squared", "brier", "brier_squared"), Family(_is_sum)),
    **dict.fromkeys(("calibration_rows", "calibration_hits"), Family(_is_count, ((_BIN,),))),
    "calibration_confidence": Family(_is_sum, ((_BIN,),)),
    "scores": Family(_is_count, ((_is_label, _LOGIT, _one_of("0", "1")),)),
    **dict.fromkeys(("top_k_rows", "top_k_hits"), Family(_is_count, ((_K,),))),
    **dict.fromkeys(("targets", "percentage_rows"), Family(_is_count, ((_OUTPUT,),))),
    **dict.fromkeys(
        ("absolute_error", "squared_error", "truth_offset_squared", "percentage_error"),
        Family(_is_sum, ((_OUTPUT,),)),
    ),
    **dict.fromkeys(("error", "truth_offset"), Family(_is_signed, ((_OUTPUT,),))),
    "absolute_errors": Family(_is_count, ((_OUTPUT, _ERROR),)),
    "rewards": Family(_is_count, ((), (_is_label,))),
    **dict.fromkeys(
        ("reward_positive", "reward_negative", "reward_offset_squared"),
        Family(_is_sum, ((), (_is_label,))),
    ),
    "reward_offset": Family(_is_signed, ((), (_is_label,))),
    "user_counters": Family(_is_sum, ((is_stored_name, _TAGS),)),
    "user_timers_sum": Family(_is_sum, ((is_stored_name, _TAGS),)),
    "user_timers_bucket": Family(_is_count, ((is_stored_name, _BOUND, _TAGS),)),
    **dict.fromkeys(("predictions", "truths"), Family(_is_count, ((_FATE,),))),
    "truth_delay_bucket": Family(_is_count, ((_DELAY,),)),
    "truth_delay_sum": Family(_is_sum),
}


def _is_user_gauge(labels: Labels, number: Any) -> bool:
    return _is_finite(number) and _fits(labels, (is_stored_name, _TAGS))


_GAUGES: Mapping[str, Callable[[Labels, Any], bool]] = {
    "last_event": lambda labels, number: not labels and _is_time(number),
    "columns": lambda labels, number: not labels and _is_count(number) and number < 1 << 31,
    "user_gauges": _is_user_gauge,
}


# --- constants ----------------------------------------------------------------------------------


def _is_constant(name: str, constant: Any) -> bool:
    kind, _, rest = name.partition(" ")
    if kind == "metric":
        return is_stored_name(rest) and type(constant) is str and constant in KINDS
    if kind == "imported":
        return _is_label(name) and type(constant) is str and _is_label(constant)
    return name in _CONSTANTS and _CONSTANTS[name](constant)


def _are_names(value: Any) -> bool:
    return (
        type(value) is list
        and 0 < len(value) <= MAX_NAMES
        and all(type(name) is str and _is_label(name) for name in value)
        and len(set(value)) == len(value)
    )


def _are_origins(value: Any) -> bool:
    return type(value) is list and 0 < len(value) <= MAX_OUTPUTS and all(map(_is_finite, value))


_CONSTANTS: Mapping[str, Callable[[Any], bool]] = {
    "task": lambda value: type(value) is str and value in TASKS[1:],
    "names": _are_names,
    "origins": _are_origins,
    "reward_origin": _is_finite,
    "unnamed": lambda value: type(value) is list and all(each in IDENTITY for each in value),
    "created": _is_time,
}


# --- words --------------------------------------------------------------------------------------


def _shown(family: str, labels: Labels) -> str:
    return one_line(", ".join((family, *labels)), 60)


def _brief(constant: Any) -> str:
    return one_line(str(constant)[:200], 60)
