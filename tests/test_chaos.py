"""Some seconds of chaos on each store; `python -m tests.chaos` runs for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import STORES, Chaos


@pytest.mark.parametrize("store", STORES)
def test_whatever_clients_and_stores_do_every_event_counts_once(store: str, tmp_path: Path) -> None:
    """And the server stays live, becomes ready, stays small, and ends on SIGTERM."""
    verdict = Chaos(store, seconds=5, seed=20, idle=300).run(tmp_path)
    assert verdict.errors == []
    assert verdict.events > 0
    assert verdict.liveness < 10
