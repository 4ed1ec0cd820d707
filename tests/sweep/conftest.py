"""The demo's ledger, and a few settings over half an hour of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.durations import instant_ms
from replay.ledger.load import Ledger, load_ledger
from replay.ledger.mirror import open_mirror
from replay.settings import PRODUCTION_NOW, Settings
from replay.sweep.grid import at_point

SINCE_MS, UNTIL_MS = instant_ms("2026-03-05T09:00:00Z"), instant_ms("2026-03-05T09:30:00Z")
"""Half an hour of the demo's week."""


@pytest.fixture(scope="session")
def ledger(demo_mirror: Path) -> Ledger:
    """The demo's ledger in memory."""
    with open_mirror(demo_mirror) as connection:
        return load_ledger(connection)


@pytest.fixture(scope="session")
def points() -> list[Settings]:
    """Five settings of every kind that is measured apart: windows, a fold in processes, quantiles, a drawn lag."""
    changes: list[dict[str, object]] = [
        {"reliability.window": "5m", "latency.window": "5m"},
        {"reliability.window": "15m"},  # measures as the base does
        {"reliability": {"rule": "ema", "alpha": 0.2}, "reliability.state": "process", "replicas": 2},
        {"latency": {"rule": "quantile", "q": 0.9, "n": 20}},
        {"visibility": "lagged", "lag": ["0ms", "30s"], "memo": "10s"},
    ]
    return [at_point(PRODUCTION_NOW, change) for change in changes]
