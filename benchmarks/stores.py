"""Stores with a history, made through the Store API in batches: what a server wakes up with."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path

from metrics.config import load
from metrics.evaluators import Known, evaluate
from metrics.payload import decode
from metrics.sqlite_store import SQLiteStore
from metrics.state import Entry, Gauge
from metrics.store import Store
from metrics.windows import place

from .feedback import SINGLE, Shape, bodies

TTL = 86400
BATCH = 1000


def entries(models: int, shape: Shape = SINGLE) -> list[Entry]:
    """What some events add, as the app would hand it to a store; digests are to be replaced."""
    settings = load({})
    now, chance = time.time(), random.Random("stores")
    data = bodies(shape, chance)
    found = []
    for at in range(max(models, len(data))):
        evaluation = evaluate(
            decode(data[at % len(data)]), settings.model_settings(), Known({"task": "multiclass"})
        )
        found.append(
            Entry(
                f"seldon/iris/default/classifier-{at % models}",
                b"",
                place(now, now, settings.windows).panes,
                evaluation.increment,
                {key: Gauge(value, now) for key, value in evaluation.gauges.items()},
                {"task": "multiclass"},
            )
        )
    return found


def fill(store: Store, events: int, models: int) -> None:
    """Commit so many events, each with a digest of its own."""
    some = entries(models)
    now = time.time()
    for start in range(0, events, BATCH):
        batch = [
            replace(some[number % len(some)], digest=os.urandom(16))
            for number in range(start, min(start + BATCH, events))
        ]
        store.commit(batch, now)
        if not start % (100 * BATCH):
            store.housekeep(now)


def sqlite(path: Path, events: int, models: int = 1) -> str:
    """The URL of a SQLite store with so many events, all digests of which are remembered."""
    store = SQLiteStore(str(path), TTL)
    fill(store, events, models)
    store.close()
    return f"sqlite:///{path}"


def counters(url: str) -> int:
    """How many counters a SQLite store holds."""
    store = SQLiteStore(url.removeprefix("sqlite:///"), TTL)
    models = store.read().models.values()
    vectors = [vector for model in models for vector in model.panes.values()]
    store.close()
    return sum(len(cells) for vector in vectors for cells in vector.values())
