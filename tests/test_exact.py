"""Sums of real numbers are exact: on every path and store, in any order, and taken back whole."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from fractions import Fraction
from itertools import count
from math import ceil, log, sqrt, ulp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from metrics.commands.export import dump, load, merge_into
from metrics.counters import SUPERSEDED, add, merge, net, unpack
from metrics.evaluators import classification, exact_rows, one_row, regression_rows
from metrics.evaluators import rows as evaluator_rows
from metrics.evaluators.regression import MANY_ROWS, row_by_row
from metrics.evaluators.regression_rows import many_rows
from metrics.evaluators.rows import count_probability_rows
from metrics.exact import (
    CLIP,
    FINE_ONE,
    REALS,
    decode,
    encode,
    fine,
    from_units,
    log_loss,
    of_fine,
    of_fine_squared,
    restored,
    squared,
    to_units,
)
from metrics.exposition import render
from metrics.payload import Values
from metrics.redis_store import RedisStore
from metrics.scores import model_view
from metrics.sqlite_store import SQLiteStore
from metrics.state import Entry
from metrics.store import MemoryStore, open_store
from metrics.windows import ALL_TIME, Pane
from tests.servers import RedisServer, read
from tests.servers_http import OwnServer
from tests.test_joins import FEEDBACK, IDENTITY, MODEL, NOW, Function, send, view
from tests.test_joins import function as function
from tests.test_joins import server as server

LAWS = settings(max_examples=150, derandomize=True, deadline=None)
REAL = st.floats(-1e150, 1e150)
UNITS = st.builds(
    lambda mantissa, shift: mantissa << shift,
    st.integers(-(1 << 130), 1 << 130),
    st.integers(0, 900),
)
OLDER = Path(__file__).parent / "golden" / "older"
"""What the version before exact sums wrote, and what it said of it."""


# --- units ----------------------------------------------------------------------------------------


@LAWS
@given(UNITS, UNITS)
def test_a_text_is_the_number_and_equal_numbers_have_equal_texts(one: int, other: int) -> None:
    """Whatever the sums that led to them."""
    assert decode(encode(one)) == one
    assert encode(one + other - other) == encode(one)
    assert (encode(one) == encode(other)) == (one == other)


@LAWS
@given(REAL)
def test_a_double_is_a_whole_number_of_units(number: float) -> None:
    """To the bit where it is not tiny, and then it comes back as it was."""
    units = to_units(number)
    if abs(number) >= 2.0**-348:
        assert Fraction(units, 1 << 400) == Fraction(number)
        assert from_units(units) == number
    else:
        assert abs(Fraction(units, 1 << 400) - Fraction(number)) < Fraction(1, 1 << 400)
    assert str(from_units(to_units(-0.0))) == "0.0"


@pytest.mark.parametrize(
    "text", ["", "p", "1", "1.0", "1p", "p0", "1p1", "0x1p0", "1p-440", "1p9999"]
)
def test_what_is_no_exact_number_is_refused(text: str) -> None:
    """And so is a number past all that can be read as a float, and one of no real family."""
    with pytest.raises(ValueError, match="is no"):
        decode(text)
    for family, number in (("rows", "1p0"), ("brier", float("inf")), ("brier", "f" * 300 + "p0")):
        with pytest.raises(ValueError, match="is no"):
            restored(family, number)


# --- one row, a few, many -------------------------------------------------------------------------


@LAWS
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_logarithms_are_the_same_double_for_one_and_for_many(probabilities: list[float]) -> None:
    """And within an ulp of the C library's."""
    many = exact_rows.log_losses(np.array(probabilities)).tolist()
    assert many == [log_loss(p) for p in probabilities]
    for p, found in zip(probabilities, many, strict=True):
        there = -log(min(max(p, CLIP), 1 - CLIP))
        assert abs(found - there) <= ulp(there)


def by_definition(rows: Any, truth: list[int], best: list[int], k: int) -> dict[str, Any]:
    """What rows add, one by one."""
    keys = tuple(map(str, range(rows.shape[1])))
    vector: dict[str, Any] = {}
    for row, true, top in zip(rows.tolist(), truth, best, strict=True):
        one: dict[str, Any] = {}
        values = Values("response", row, len(row), True)
        classification.count_probabilities(one, values, keys, [true], k, [top])
        add(vector, one)
    return vector


def table(chance: Any, rows: int, width: int) -> Any:
    """(rows, width) probabilities: spread, certain, even, and of few decimals."""
    found = chance.dirichlet(np.full(width, 10 ** chance.uniform(-3, 1)), rows)
    found = np.where(np.isfinite(found), found, 1 / width)
    kind = chance.integers(0, 4)
    if kind == 1:
        found = np.round(found, 2)
    if kind == 2:
        found = np.eye(width)[chance.integers(0, width, rows)] * (1 - 1e-12)
    return found


@pytest.mark.parametrize("rows", [1, 2, 23, 24, 300, 2048, 2049])
@pytest.mark.parametrize("width", [2, 3, 63, 64, 70])
def test_rows_count_alike_by_themselves_and_among_others(rows: int, width: int) -> None:
    """Every number to the bit, by each of the paths that count rows."""
    if rows * width > 70_000:
        width = 2
    chance = np.random.default_rng(rows * width)
    drawn = table(chance, rows, width)
    truth, best = chance.integers(0, width, rows).tolist(), drawn.argmax(axis=1).tolist()
    keys = tuple(map(str, range(width)))
    vector: dict[str, Any] = {}
    count_probability_rows(vector, drawn, keys, truth, 2, best)
    expected = by_definition(drawn, truth, best, 2)
    assert unpack(vector) == expected
    if width < 64:
        one_by_one = [
            one_row.Row(row, true, top, 2)
            for row, true, top in zip(drawn.tolist(), truth, best, strict=True)
        ]
        straight = unpack(one_row.Row.total(one_by_one))
        assert {family: straight[family] for family in expected} == expected
        for counted in one_by_one[:50]:  # what a reply shows, before it was counted and after
            fresh = one_row.Row(counted.row, counted.true, counted.best, counted.k)
            assert fresh.shown() == counted.shown()


@LAWS
@given(
    st.lists(st.floats(0, 64, exclude_max=True), min_size=1, max_size=30),
    st.sampled_from([1, exact_rows.FEW, 9000]),
)
def test_the_sums_of_many_are_those_of_each(some: list[float], times: int) -> None:
    """And of their squares; a bin's are, too."""
    numbers = some * ceil(times / len(some))
    each = [fine(number) for number in numbers]
    fined = exact_rows.to_fine(np.array([numbers]))
    assert fined[0].tolist() == [one / FINE_ONE for one in each]
    ((total, squares),) = exact_rows.sums_and_squares(fined)
    assert total == of_fine(sum(each))
    assert squares == of_fine_squared(sum(one * one for one in each))
    if len(numbers) >= exact_rows.FEW:
        assert exact_rows.sums_and_squares(np.array([numbers])) == [(total, squares)]
    halves = [number / 64 for number in numbers]
    bins = np.arange(len(halves)) % 3
    assert exact_rows.sums_by(np.array(halves), bins, 3) == [
        of_fine(sum(fine(half) for half in halves[bin::3])) for bin in range(3)
    ]


NUMBERS = (
    st.floats(-1e40, 1e40) | st.sampled_from([0.0, 1.0, -2.0, 100.0, 0.1]) | st.integers(-9, 9)
)


@LAWS
@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.5, -1e8, 1 / 3]),
    st.sampled_from([1, MANY_ROWS, 3000]),
)
def test_many_rows_of_a_regression_count_like_each(
    some: list[tuple[float, float]], origin: float, times: int
) -> None:
    """Every sum and every bin, wherever the rows together say anything."""
    rows = some * ceil(times / len(some))
    truth, prediction = (np.array(side, float) for side in zip(*rows, strict=True))
    found = many_rows(truth, prediction, origin)
    if found is not None:
        assert found == row_by_row(rows, origin, "truth")
    usual = all(abs(number) > 1e-30 for row in some for number in (*row, row[0] - row[1]) if number)
    assert found is not None or not usual


def test_rows_of_a_regression_are_counted_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same bit, so that a large event's intermediate results stay small."""
    chance = np.random.default_rng(14)
    truth, prediction = chance.normal(size=(2, 1000))
    whole = many_rows(truth, prediction, 0.5)
    monkeypatch.setattr(regression_rows, "PART", 7)
    assert many_rows(truth, prediction, 0.5) == whole
    truth[999] = 1e-300
    assert many_rows(truth, prediction, 0.5) is None


@pytest.mark.parametrize("width", [2, 3, 40])
def test_rows_of_probabilities_are_counted_by_parts(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bit."""
    chance = np.random.default_rng(15)
    rows = chance.dirichlet(np.ones(width), 500)
    truth = chance.integers(0, width, 500).tolist()
    keys = tuple(map(str, range(width)))
    counted = []
    for part in (1000, 7):
        monkeypatch.setattr(evaluator_rows, "PART", part)
        vector: dict[str, Any] = {}
        count_probability_rows(vector, rows, keys, truth, 2)
        counted.append({family: dict(cells) for family, cells in vector.items()})
    assert counted[0] == counted[1]


# --- Redis adds as Python does --------------------------------------------------------------------


class Cells:
    """A Redis store, and a vector that should be what it holds."""

    def __init__(self, server: RedisServer) -> None:
        server.ask("FLUSHALL")
        self.server = server
        self.store = RedisStore(server.url, 86400)
        self.sums: dict[Any, int] = {}
        self.ids = count()

    def add(self, cells: dict[Any, int]) -> None:
        """Commit one entry."""
        id = next(self.ids).to_bytes(16, "big")
        self.store.commit([Entry(MODEL, id, (ALL_TIME,), {"error": cells})], NOW)
        for labels, number in cells.items():
            self.sums[labels] = self.sums.get(labels, 0) + number

    def check(self) -> None:
        """Fail unless server, mirror and a second replica hold the sums, as their texts."""
        for labels, number in self.sums.items():
            key = json.dumps(["error", *labels], separators=(",", ":"))
            there = self.server.ask("HGET", "{fdmt:ns/iris}/default/classifier:pane:0:0:", key)
            assert there.strip() == encode(number)
        other = RedisStore(self.server.url, 86400)
        for store in (self.store, other):
            cells = store.read().models[MODEL].all_time["error"]
            assert cells == self.sums
        other.close()
        self.store.close()


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), UNITS | REAL.map(to_units)), max_size=6))
def test_the_script_adds_exactly(server: RedisServer, parts: list[dict[str, int]]) -> None:
    """Numbers of all sizes and signs, carries, borrows, and what is left of two that cancel."""
    cells = Cells(server)
    cells.add({("a",): 1})
    for part in parts:
        cells.add({(label,): number for label, number in part.items()})
        cells.add({(label,): -number for label, number in part.items() if label == "b"})
    cells.check()


def test_the_script_carries_and_borrows_over_many_places(server: RedisServer) -> None:
    """Sums at the edges of its digits."""
    cells = Cells(server)
    chance = random.Random(1)
    edges = [1, 2**39, 2**40 - 1, 2**40, 2**80 - 1, 2**120, 2**400, 2**160 - 2**40]
    for number in range(300):
        first, second = chance.choice(edges), chance.choice(edges)
        sign = chance.choice([1, -1])
        cells.add({(str(number % 40),): sign * (first << 40 * chance.randrange(4)) + second})
    cells.add({labels: -number for labels, number in list(cells.sums.items())[:10]})
    assert 0 in cells.sums.values()
    cells.check()


def test_the_script_adds_what_rows_tell(server: RedisServer) -> None:
    """Sums of the usual sizes, with carries into each of their places, and zeros in them."""
    cells = Cells(server)
    chance = random.Random(2)
    for _ in range(200):
        near = 1 - 2.0 ** -chance.randrange(1, 54)
        each = [chance.random(), near, 2.0 ** chance.randrange(-57, 50)]
        numbers = [of_fine(fine(one)) for one in each]
        cells.add({(str(at),): one for at, one in enumerate(numbers)})
        cells.add({(f"{at} squared",): squared(one) for at, one in enumerate(numbers[:2])})
        cells.add({("edge",): chance.choice([-1, 1, 1, 1]) << 40 * chance.randrange(4, 11)})
        cells.add({("full",): (1 << 400 - 40 * chance.randrange(4)) - (1 << 280)})
    cells.check()


@pytest.mark.parametrize(
    "text", ["0.1", "-2.5", "1e+16", "0.0", "1e-130", "-1.5e-300", "3e75", "7"]
)
def test_a_float_of_format_1_is_added_to_as_that_double(server: RedisServer, text: str) -> None:
    """With all its bits, in the server as in the mirror."""
    cells = Cells(server)
    cells.add({("x",): to_units(0.3), ("y",): to_units(0.3)})
    key = '["error","x"]'
    server.ask("HSET", "{fdmt:ns/iris}/default/classifier:pane:0:0:", key, text)
    cells.store.close()
    cells.store = RedisStore(server.url, 86400)
    cells.sums["x",] = to_units(float(text))
    assert cells.store.read().models[MODEL].all_time["error"] == cells.sums
    cells.add({("x",): to_units(0.7), ("y",): 5})
    cells.check()


# --- through the function -------------------------------------------------------------------------

ids = count()
JOINED = {"FEEDBACK_JOIN_TTL": "1h", "FEEDBACK_CORRECTIONS": "on"}


def whole(truth: Any, prediction: Any, **more: Any) -> Any:
    """The data of feedback that is complete."""
    return {
        "truth": {"data": {"ndarray": truth}},
        "response": {"data": {"ndarray": prediction}},
        **more,
    }


def tell(app: Any, request: str, data: Any) -> None:
    """Send feedback, or a truth that corrects it."""
    answer = send(app, FEEDBACK, data, requestid=request)
    assert answer.status == 200, answer.body


def truth(value: Any) -> Any:
    """The data of a truth alone."""
    return {"truth": {"data": {"ndarray": value}}}


PROVISIONAL = [(8.0, 8.450000000000001), (7.7, 7.6499999999999995), (4.1, 4.25)]


def test_a_regression_corrected_to_its_predictions_has_no_error_left(tmp_path: Path) -> None:
    """Metrics and pages of the real server stand, for this model and for others, and say 0."""
    with OwnServer(tmp_path, FEEDBACK_WINDOWS="5m", **JOINED) as function:
        identity = {name.removeprefix("ce-"): text for name, text in IDENTITY.items()}

        def post(data: Any, request: str) -> None:
            attributes = {
                **identity,
                "specversion": "1.0",
                "id": f"server-{next(ids)}",
                "source": "/test",
                "type": FEEDBACK,
                "requestid": request,
            }
            assert function.event(data, attributes).status == 200

        for at, (true, predicted) in enumerate(PROVISIONAL):
            post(whole([true], [predicted]), f"r-{at}")
        for at in (1, 2, 0):
            post(truth([PROVISIONAL[at][1]]), f"r-{at}")
        for restarted in range(2):
            for path in ("/metrics", "/", f"/?model={MODEL}", "/v1/models", f"/v1/models/{MODEL}"):
                assert function.get(path).status == 200, (path, restarted)
            scores = json.loads(function.get(f"/v1/models/{MODEL}").body)["scores"]
            assert scores["root_mean_squared_error"] == 0
            assert scores["mean_absolute_error"] == 0
            assert scores["r2"] == 1
            function.restart()


def test_a_typo_that_was_corrected_leaves_no_trace(function: Function) -> None:
    """1e8 for 100: mean squared error and R² of all time are as if it had never been."""
    rows = [(99.0, 98.5), (101.5, 101.0), (100.0, 100.7), (98.25, 99.0)]
    app = function.start(FEEDBACK_CORRECTIONS="on")
    clean = Function("memory:", {})
    for at, (true, predicted) in enumerate(rows):
        tell(app, f"r-{at}", whole([1e8 if at == 2 else true], [predicted]))
    tell(app, "r-2", truth([100.0]))
    other = clean.start(FEEDBACK_CORRECTIONS="on")
    for at, (true, predicted) in enumerate(rows):
        tell(other, f"r-{at}", whole([true], [predicted]))
    for each in (app, function.restart()):
        assert view(each)["scores"] == view(other)["scores"]
        assert view(each)["intervals"] == view(other)["intervals"]
    assert view(app)["scores"]["r2"] == pytest.approx(1 - 1.5525 / 5.921875)
    clean.stop()


KINDS = ("regression", "outputs", "multiclass", "binary")


def draw(chance: random.Random, kind: str) -> tuple[Any, Any, list[Any]]:
    """A prediction, a truth, and what else the feedback says."""
    more: dict[str, Any] = {}
    if chance.random() < 0.7:
        more["reward"] = chance.choice([0.1, -1 / 3, 1e8 + 0.1, 0, 5])
    rows = chance.choice([1, 1, 1, 2, 30])
    if kind in ("regression", "outputs"):
        level = chance.choice([0.0, 100.0, 1e8])
        numbers = [level + chance.gauss(0, 1) for _ in range(4 * rows)]
        if kind == "outputs":
            pairs = [numbers[at : at + 2] for at in range(0, 4 * rows, 2)]
            return pairs[:rows], pairs[rows:], [more]
        return numbers[:rows], numbers[rows : 2 * rows], [more]
    if kind == "binary":
        return (
            [chance.random() for _ in range(rows)],
            [chance.randrange(2) for _ in range(rows)],
            [more],
        )
    parts = [[chance.random() ** 8 + 1e-9 for _ in range(3)] for _ in range(rows)]
    probabilities = [[part / sum(row) for part in row] for row in parts]
    return probabilities, [chance.randrange(3) for _ in range(rows)], [more]


def replicas(function: Function, kind: str, number: int) -> None:
    """Start that many on one store."""
    task = "regression" if kind == "outputs" else kind
    shared = 1 if function.url == "memory:" else number
    function.start(shared, FEEDBACK_CORRECTIONS="on", FEEDBACK_TASK=task, FEEDBACK_TOP_K="2")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_corrections_is_its_outcome_from_scratch(
    function: Function, kind: str, seed: int
) -> None:
    """To the bit: net counters, views and intervals, by any replica, in any order and batches."""
    chance = random.Random(f"{kind} {seed}")
    drawn = {f"r-{at}": draw(chance, kind) for at in range(14)}
    final: dict[str, Any] = {}
    replicas(function, kind, 2)
    for request, (prediction, true, [more]) in drawn.items():
        said = whole(true, prediction, **more)
        tell(chance.choice(function.apps), request, said)
        final[request] = said
    for _ in range(40):
        request = chance.choice(list(drawn))
        prediction, true, [more] = drawn[request]
        other = true[:]
        chance.shuffle(other)
        if kind in ("regression", "outputs"):
            other = chance.choice([prediction, true, other])
        reward = {"reward": chance.choice([0.1, 7.25, -2.5])} if more else {}
        tell(chance.choice(function.apps), request, {**truth(other), **reward})
        final[request] = whole(other, prediction, **reward)
    found = unpack(net(function.restart().read().models[MODEL].all_time))
    shown = view(function.apps[0])
    scratch = Function("memory:", {})
    replicas(scratch, kind, 1)
    order = list(final)
    chance.shuffle(order)
    for request in order:
        tell(scratch.apps[0], request, final[request])
    expected = scratch.apps[0].read().models[MODEL].all_time
    uncounted = {"corrected"}
    assert {
        family: {labels: number for labels, number in cells.items() if number}
        for family, cells in found.items()
        if family not in uncounted
    } == {
        family: kept
        for family, cells in unpack(expected).items()
        if (kept := {labels: number for labels, number in cells.items() if number})
    }
    there = view(scratch.apps[0])
    for member in ("rows", "events", "scores", "intervals", "bounds", "reward", "calibration"):
        assert shown.get(member) == there.get(member), member
    scratch.stop()


@pytest.mark.parametrize("seed", range(4))
def test_any_order_and_grouping_of_commits_is_the_same_state(
    function: Function, seed: int, tmp_path: Path
) -> None:
    """On every store, reopened or read by a second replica: the sum of the increments."""
    chance = random.Random(seed)
    panes = (ALL_TIME, Pane(60, int(NOW // 60)))
    families = {"error": ("0",), "truth_offset": ("0",), "reward_offset": ()}
    entries = [
        Entry(
            MODEL,
            at.to_bytes(16, "big"),
            panes[: chance.choice([1, 2])],
            {
                prefix + family: {
                    labels: to_units(chance.choice([1e8, 0.1, -3.3e-5]) * chance.random())
                }
                for family, labels in families.items()
                for prefix in ("", SUPERSEDED)
            },
        )
        for at in range(60)
    ]
    expected = {
        pane: merge(each.increment for each in entries if pane in each.panes) for pane in panes
    }
    chance.shuffle(entries)
    stores = [open_store(function.url, 86400)]
    if not isinstance(stores[0], MemoryStore):
        stores.append(open_store(function.url, 86400))
    todo = entries[:]
    while todo:
        size = chance.choice([1, 2, 7, 30])
        batch, todo = todo[:size], todo[size:]
        store = chance.choice(stores)
        assert all(store.commit(batch, NOW))
        if chance.random() < 0.3:
            store.housekeep(NOW)
    for store in stores:
        assert read(store).models[MODEL].panes == expected
    if isinstance(stores[0], MemoryStore):
        return
    for store in stores:
        store.close()
    again = open_store(function.url, 86400)
    assert again.read().models[MODEL].panes == expected
    text = dump(again.read(), "id", NOW)
    again.close()
    copy = open_store(f"sqlite:///{tmp_path}/copy.db", 86400)
    assert merge_into(copy, load(text)) == 1
    assert copy.read().models[MODEL].panes == expected
    copy.close()


# --- what older versions wrote --------------------------------------------------------------------


def older_sqlite(path: Path) -> str:
    """A file of version 2, its last commit in the log only."""
    connection = sqlite3.connect(path)
    connection.executescript((OLDER / "version2.sql").read_text())
    connection.close()
    return f"sqlite:///{path}"


def older_redis(server: RedisServer) -> str:
    """The data set of format 1."""
    server.ask("FLUSHALL")
    with Redis(port=server.port) as client:
        for command in json.loads((OLDER / "format1.json").read_text()):
            client.execute_command(*[word.encode("latin-1") for word in command])
    return server.url


@pytest.fixture(params=["sqlite", "redis", "export"])
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Function]:
    """A function on what an older version left."""
    path = tmp_path / "older.db"
    if request.param == "redis":
        url = older_redis(request.getfixturevalue("server"))
    elif request.param == "sqlite":
        url = older_sqlite(path)
    else:
        url = f"sqlite:///{path}"
        store = SQLiteStore(str(path), 86400)
        assert merge_into(store, load((OLDER / "version1.json").read_bytes())) == 2
        store.close()
    function = Function(url, {})
    yield function
    function.stop()


def test_what_an_older_version_wrote_says_the_same(older: Function) -> None:
    """The same scores, and the next events and corrections are added to them."""
    app = older.start(FEEDBACK_CORRECTIONS="on")
    expected = json.loads((OLDER / "views.json").read_text())
    for _ in range(2):
        for model, said in expected.items():
            shown = model_view(model, app.read().models[model], app.models.of(model), NOW)
            for member, there in said.items():
                assert shown[member] == approximately(there), (model, member)
        assert b"feedback_score" in render(app, "")[0]
        app = older.restart()
    regressor, before = "ns/iris/default/regressor", expected["ns/iris/default/regressor"]
    answer = send(app, FEEDBACK, whole([3.0], [4.5], reward=2.0), modelid="regressor")
    assert answer.status == 200
    after = json.loads(answer.body)
    n = before["rows"]
    error = before["scores"]["mean_absolute_error"]
    assert after["scores"]["mean_absolute_error"] == pytest.approx((n * error + 1.5) / (n + 1))
    assert after["reward"]["sum"] == pytest.approx(before["reward"]["sum"] + 2)
    if not any(older.apps[0].store.oldest(1)):
        return  # an export has no records
    send(app, FEEDBACK, truth([93.7]), modelid="regressor", requestid="r3")
    state = older.restart().read().models[regressor]
    found = model_view(regressor, state, app.models.of(regressor), NOW)["scores"]
    errors = [0.5, 0.15, 0.15, 0, 1.5]
    assert found["mean_absolute_error"] == pytest.approx(sum(errors) / 5)
    rms = sqrt(sum(error**2 for error in errors) / 5)
    assert found["root_mean_squared_error"] == pytest.approx(rms)


def approximately(there: Any) -> Any:
    """The same JSON, floats to 1e-9."""
    if isinstance(there, dict):
        return {name: approximately(each) for name, each in there.items()}
    if isinstance(there, list):
        return [approximately(each) for each in there]
    return pytest.approx(there, rel=1e-9, abs=1e-12) if isinstance(there, float) else there


def test_a_process_of_an_older_version_fails_on_the_file(tmp_path: Path) -> None:
    """It finds no log: what it has open it reads no more, nor writes to."""
    path = tmp_path / "older.db"
    older_sqlite(path)
    still_open = sqlite3.connect(path)
    still_open.execute("SELECT max(sequence) FROM log")
    SQLiteStore(str(path), 86400).close()
    with pytest.raises(sqlite3.OperationalError, match="no such table: log"):
        still_open.execute("SELECT max(sequence) FROM log")
    still_open.close()


def test_every_family_that_is_no_integer_is_a_real_one(function: Function) -> None:
    """What all tasks count is an int, and a number of stores and records is never a float."""
    app = function.start(FEEDBACK_CORRECTIONS="on", FEEDBACK_TASK="auto")
    meta = {"metrics": [{"key": "c", "value": 0.5}, {"key": "t", "type": "TIMER", "value": 3}]}
    for at, (model, said) in enumerate(
        (
            ("a", whole([1.5], [2.5], reward=0.5)),
            ("b", whole([2], [[0.1, 0.2, 0.7]], reward=-0.5)),
            ("c", whole([1], [0.7])),
        )
    ):
        said["truth"]["meta"] = meta
        assert send(app, FEEDBACK, said, requestid=f"r-{at}", modelid=model).status == 200
        corrected = {"truth": said["truth"], "reward": 0.25}
        assert send(app, FEEDBACK, corrected, requestid=f"r-{at}", modelid=model).status == 200
    seen = set()
    for state in app.read().models.values():
        for vector in state.panes.values():
            for family, cells in unpack(vector).items():
                assert {type(number) for number in cells.values()} <= {int}, family
                seen.add(family)
    assert len(seen & REALS) >= 28
    assert squared(to_units(0.5)) == to_units(0.25)
