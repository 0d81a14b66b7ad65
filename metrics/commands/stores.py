"""Stores as commands open them, through their contract, while a server may be using them."""

from __future__ import annotations

import logging
import os
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ConfigurationError
from ..state import State
from ..store import Store, open_store

KEEP_DIGESTS = 10 * 365 * 86400
"""The time to live of digests in commands, seconds: forgetting them is the server's business."""


@contextmanager
def opened(url: str, create: bool = False) -> Iterator[Store]:
    """The store at `url`, proven to take commits.

    Raises ConfigurationError for an address that makes no sense or, unless `create`, leads to no
    file; StoreUnavailable or StoreUnusable for one that cannot be used.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        raise ConfigurationError("--store: memory: lives in its server only; ask that with --url")
    path = rest.partition("?")[0].removeprefix("///")
    if scheme == "sqlite" and rest.startswith("///") and not create and not os.path.isfile(path):
        raise ConfigurationError(f"--store: there is no file {path}")
    logging.getLogger("metrics").addHandler(logging.NullHandler())  # errors are raised, too
    durability = os.environ.get("FEEDBACK_REDIS_DURABILITY") or "none"
    try:
        store = open_store(url, KEEP_DIGESTS, durability)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("FEEDBACK_STORE", "--store", 1)) from None
    try:
        current(store)
        yield store
    finally:
        store.close()


def current(store: Store) -> State:
    """What `store` holds, once it is proven to take commits. Raises StoreUnavailable."""
    store.commit([], clock.time())
    store.refresh(clock.time())
    return store.read()
