from __future__ import annotations

import random
from typing import Any

import polars as pl
import pytest

PREDICTION_COLUMNS: dict[str, Any] = {
    "setting": pl.String,
    "attempt_id": pl.Int64,
    "call_id": pl.Int64,
    "route_key": pl.String,
    "ts_ms": pl.Int64,
    "start_ms": pl.Int64,
    "evidence_ms": pl.Int64,
    "ok": pl.Boolean,
    "error_kind": pl.String,
    "latency_ms": pl.Float64,
    "tools_requested": pl.Boolean,
    "p_start": pl.Float64,
    "latency_start_ms": pl.Float64,
    "p_read": pl.Float64,
    "latency_read_ms": pl.Float64,
    "read_known": pl.Boolean,
}


def make_predictions(*rows: dict[str, Any]) -> pl.DataFrame:
    """Return a predictions frame; what a row does not say is a success of 100 ms, start known, without stamps."""
    base = {
        "setting": "now",
        "route_key": "p|m|",
        "ts_ms": 1_000,
        "start_ms": 900,
        "ok": True,
        "latency_ms": 100.0,
        "read_known": True,
    }
    full = [{**dict.fromkeys(PREDICTION_COLUMNS), "attempt_id": i, **base, **row} for i, row in enumerate(rows)]
    return pl.DataFrame(full, schema=PREDICTION_COLUMNS)


def simulated_predictions(seed: int, attempts: int = 400, hour_step: float = 0.2) -> list[dict[str, Any]]:
    """Return awkward rows of two settings: missing stamps, starts, calls and latencies, and extreme predictions."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for attempt in range(attempts):
        ok = rng.random() < 0.8
        latency = rng.choice([None, 0.0, 50.0, 1234.5, float(rng.randrange(1, 9_000))])
        shared = {
            "attempt_id": attempt,
            "route_key": rng.choice(["p|m|", "q|m|", "q|n|peer"]),
            "ts_ms": int(attempt * hour_step * 3_600_000) + rng.randrange(1_000),
            "start_ms": None if rng.random() < 0.1 else 1,
            "ok": ok,
            "latency_ms": latency,
            "read_known": rng.random() < 0.9,
        }
        for setting in ("now", "before"):
            predicted = {
                name: None if rng.random() < 0.2 else rng.choice([0.0, 1.0, rng.random(), 1e-9])
                for name in ("p_start", "p_read")
            }
            timed = {
                name: None if rng.random() < 0.2 else rng.choice([0.0, float("inf"), rng.random() * 5_000])
                for name in ("latency_start_ms", "latency_read_ms")
            }
            rows.append({"setting": setting, **shared, **predicted, **timed})
    return rows


@pytest.fixture
def predictions() -> Any:
    """Give the maker of predictions frames."""
    return make_predictions


@pytest.fixture
def simulated() -> Any:
    """Give the maker of simulated prediction rows."""
    return simulated_predictions
