"""FEEDBACK_MAX_SERIES: what is exposed where there is too much, and that it stays the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as prometheus

from metrics.series_cap import LINE_BYTES, PARTS, TOTALS, choose, sizes
from metrics.state import Entry
from metrics.windows import ALL_TIME
from tests.test_exposition import OPENMETRICS, Fixed

LONG = "é" * 250


def lines(text: str, *having: str) -> list[str]:
    """The samples of models in a text exposition that contain all of `having`."""
    return [
        line
        for line in text.splitlines()
        if not line.startswith("#")
        and 'deployment_name="' in line
        and all(each in line for each in having)
    ]


def omitted(text: str) -> dict[str, float]:
    """Part -> series that are said to be omitted."""
    return {
        sample.labels["part"]: sample.value
        for family in prometheus(text)
        for sample in family.samples
        if sample.name == "feedback_series_omitted"
    }


def many(fixed: Fixed) -> None:
    """Models of every task, with everything that can have series."""
    rng = random.Random(4)
    meta = {"tags": {"country": "nl"}}
    timers: list[Any] = [
        {"key": "took", "type": "TIMER", "value": 3, "tags": {"a": LONG}},
        {"key": "hits", "value": 3, "tags": {"a": "b"}},
        {"key": "load", "type": "GAUGE", "value": 3},
    ]
    for number in range(4):
        fixed.send([number], [[0.1, 0.2, 0.3, 0.4]], "multi", reward=number)
        fixed.send([number % 2], [rng.random()], "binary", meta=meta)
        fixed.send([[1.5, 2.5]], [[rng.random(), 3.0]], "outputs", timers)
        fixed.send([1.5], [rng.random()], "regressor")
        fixed.send([LONG + str(number)], [LONG], LONG, meta=meta)
        routed = {"data": {"ndarray": [1]}, "meta": {"routing": {"router": number}}}
        fixed.send([1], routed, "routes", reward=1)


@pytest.fixture
def full() -> Iterator[Fixed]:
    """An app with models of all kinds."""
    fixed = Fixed(FEEDBACK_SEGMENTS="country", FEEDBACK_BETA="2", FEEDBACK_TOP_K="2")
    many(fixed)
    yield fixed
    fixed.app.close()


def test_no_part_has_more_series_or_bytes_than_it_counts_as(full: Fixed) -> None:
    """The count before a series is made is at least what then is exposed, of every model."""
    text = full.text()
    assert set(omitted(text).values()) == {0.0}
    for model, state in full.app.read().models.items():
        name = model.split("/")[3]
        found = sizes(model, state, full.app.models.of(model), 10)
        own = lines(text, f'model_name="{name}"')
        assert len(own) > 10, name
        assert len(own) <= sum(found.values()), name
        size = len("\n".join(own).encode())
        assert size <= LINE_BYTES * sum(found.values()), name
        assert sum(found.values()) <= 2 * max(len(own), size // LINE_BYTES), name


def test_all_that_is_exposed_is_within_the_cap(full: Fixed) -> None:
    """At any cap: no more series, whole parts, what is left out is told, and both formats agree."""
    whole = len(lines(full.text()))
    before = -1
    for most in (0, 100, 300, 600, 1000, 2000, 10_000):
        fixed = Fixed(
            FEEDBACK_SEGMENTS="country",
            FEEDBACK_BETA="2",
            FEEDBACK_TOP_K="2",
            FEEDBACK_MAX_SERIES=str(most),
        )
        many(fixed)
        text = fixed.text()
        exposed = len(lines(text))
        assert before <= exposed <= min(most, whole)
        before = exposed
        assert (sum(omitted(text).values()) > 0) == (exposed < whole)
        assert fixed.text() == text
        plain = sorted(line for line in lines(text) if "_created{" not in line)
        metered = [line for line in lines(fixed.text(OPENMETRICS)) if "_created{" not in line]
        assert sorted(metered) == plain
        fixed.app.close()
    assert before == whole


def test_who_invents_classes_loses_his_own_series_only() -> None:
    """Of one part the models with the fewest series come first, whenever they came to be."""
    fixed = Fixed(FEEDBACK_MAX_SERIES="2000")
    fixed.send(["a"], ["a"], "loud")
    fixed.send([2], [[0.1, 0.2, 0.7]], "quiet")
    before = lines(fixed.text(), 'model_name="quiet"')
    classes = {(f"class {number}",): 1 for number in range(1000)}
    vector = {"true_positives": classes, "rows": {(): 1000}, "events": {(): 1}}
    loud = "seldon/iris/default/loud"
    fixed.app.store.commit([Entry(loud, b"", (ALL_TIME,), vector)], fixed.now)
    text = fixed.text()
    assert sorted(lines(text, 'model_name="quiet"')) == sorted(before)
    assert lines(text, 'model_name="loud"', "feedback_score{")
    assert not lines(text, 'model_name="loud"', 'class="')
    assert omitted(text)["classes"] >= 4000
    fixed.app.close()


def test_series_do_not_come_and_go_with_time(full: Fixed) -> None:
    """What is chosen follows from the state: windows that run empty admit nothing else."""
    fixed = Fixed(FEEDBACK_MAX_SERIES="900")
    many(fixed)
    parts = {line.partition("{")[0] for line in lines(fixed.text())}
    fixed.now += 400
    names = {line.partition("{")[0] for line in lines(fixed.text())}
    assert names == parts
    assert omitted(fixed.text()) == omitted(fixed.text())
    fixed.app.close()


Models = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.tuples(
        st.integers(0, 3).map(float), st.dictionaries(st.sampled_from(PARTS), st.integers(1, 50))
    ),
    max_size=8,
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(Models, st.integers(0, 300), st.randoms())
def test_the_choice_is_one_whatever_the_order(models: Any, most: int, shuffle: Any) -> None:
    """The same for any order of the models, within the cap, and with the totals of each first."""
    chosen, left_out = choose(models, most)
    items = list(models.items())
    shuffle.shuffle(items)
    assert choose(dict(items), most) == (chosen, left_out)
    taken = sum(models[model][1][part] for model, parts in chosen.items() for part in parts)
    total = sum(sum(parts.values()) for _, parts in models.values())
    assert taken <= most
    assert taken + sum(left_out.values()) == total
    for model, parts in chosen.items():
        assert not parts or total <= most or TOTALS in parts, model
