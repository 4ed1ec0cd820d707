"""Prequential figures of 5,000 real attempts, from mirror to score, against the text of replay.md in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.prequential import AS_READ, AT_ATTEMPT, BRIER, LATENCY, LOG_LOSS, score
from replay import timeline
from replay.ledger.load import Ledger
from replay.ledger.mirror import open_mirror
from replay.measuring import Measuring
from replay.predictions import predictions
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Settings

ATTEMPTS = 5_000
WINDOW_MS = 15 * 60_000

Row = dict[str, Any]


@pytest.fixture(scope="module")
def real(aider: Path) -> tuple[list[Row], dict[str, int]]:
    """The last 5,000 attempts as plain rows, and the evidence instant of each call by its usage_event_id."""
    with open_mirror(aider) as connection:
        cursor = connection.execute(
            "SELECT id, ts, provider_id, model_family, served_by, ok, latency_ms, started_at, request_id "
            "FROM route_observations ORDER BY ts DESC, id DESC LIMIT ?",
            [ATTEMPTS],
        )
        names = [column[0] for column in cursor.description or []]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        calls = connection.execute("SELECT usage_event_id, ts, latency_ms FROM calls").fetchall()
    for row in rows:
        row["route"] = "|".join(row[part] or "" for part in ("provider_id", "model_family", "served_by"))
    # Without decided_at: the end in whole seconds less the latency; a latency of 0 or none is unknown.
    return rows, {event: ts * 1000 - (round(latency) if latency else 0) for event, ts, latency in calls}


@pytest.fixture(scope="module")
def measured_ledger(aider_ledger: Ledger, real: Any) -> Ledger:
    """The aider ledger with the same 5,000 attempts alone."""
    kept = [row["id"] for row in real[0]]
    return replace(aider_ledger, attempts=aider_ledger.attempts.filter(pl.col("id").is_in(kept)))


def window_mean(earlier: list[tuple[int, int, float]], at_ms: int, _: float) -> float | None:
    """The mean of those that ended in [t − W, t)."""
    inside = [value for ended, _, value in earlier if ended >= at_ms - WINDOW_MS]
    return math.fsum(inside) / len(inside) if inside else None


def moving_average(earlier: list[tuple[int, int, float]], at_ms: int, alpha: float) -> float | None:
    """The first seeds it; then m ← αx + (1 − α)m, in the order of (visible_at, id)."""
    mean: float | None = None
    for _, _, value in earlier:
        mean = value if mean is None else alpha * value + (1 - alpha) * mean
    return mean


def oracle(rows: list[Row], evidence_ms: dict[str, int], rule: Any, question: str, zero_counts: bool) -> dict[str, Any]:
    """Predict every attempt from the definition, all earlier ones of its route anew each time, and score it."""
    by_route: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["ts"], row["id"])):
        by_route.setdefault(row["route"], []).append(row)
    losses: dict[str, list[float]] = {BRIER: [], LOG_LOSS: [], LATENCY: []}
    stamped = 0
    for row in rows:
        at_ms = row["started_at"] if question == AT_ATTEMPT else evidence_ms[row["request_id"]]
        seen = [other for other in by_route[row["route"]] if other["ts"] < at_ms]  # visible_at < instant, no lag
        p = rule([(other["ts"], other["id"], float(other["ok"])) for other in seen], at_ms, 0.2)
        timed = [other for other in seen if other["ok"] and other["latency_ms"] is not None]
        timed = [other for other in timed if zero_counts or other["latency_ms"] > 0]
        latency = rule([(other["ts"], other["id"], other["latency_ms"]) for other in timed], at_ms, 0.3)
        stamped += p is not None
        if p is None and question == AS_READ:
            p = 1.0  # no stamp reads the field's default
        if p is not None:
            losses[BRIER].append((p - row["ok"]) ** 2)
            losses[LOG_LOSS].append(-math.log(min(max(p if row["ok"] else 1 - p, 1e-6), 1 - 1e-6)))
        if row["ok"] and row["latency_ms"] and latency:
            losses[LATENCY].append(abs(math.log(latency) - math.log(row["latency_ms"])))
    means = {name: math.fsum(values) / len(values) for name, values in losses.items()}
    return {"means": means, "counts": {name: len(values) for name, values in losses.items()}, "stamped": stamped}


@pytest.mark.parametrize(
    ("chosen", "rule", "zero_counts"),
    [(PRODUCTION_NOW, window_mean, True), (PRODUCTION_BEFORE, moving_average, False)],
    ids=["window", "ema"],
)
def test_figures_of_5000_real_attempts_are_the_definition(
    measured_ledger: Ledger, real: Any, chosen: Settings, rule: Any, zero_counts: bool
) -> None:
    """Brier, log loss, log-latency error and share stamped, at the attempt and as read, equal a quadratic loop's."""
    rows, evidence_ms = real
    axis = timeline.build(measured_ledger)
    figures = score(predictions(Measuring(axis, chosen), np.arange(ATTEMPTS, dtype=np.int64)))
    for question in (AT_ATTEMPT, AS_READ):
        expected = oracle(rows, evidence_ms, rule, question, zero_counts)
        for metric in (BRIER, LOG_LOSS, LATENCY):
            of_all = (pl.col("question") == question) & (pl.col("metric") == metric) & (pl.col("scope") == "all")
            found = figures.row(by_predicate=of_all, named=True)
            assert found["attempts"] == expected["counts"][metric] > 500
            assert found["value"] == pytest.approx(expected["means"][metric], rel=1e-9)
            if metric == BRIER:
                assert found["stamped_share"] == expected["stamped"] / ATTEMPTS
    assert set(figures["question"]) == {AT_ATTEMPT, AS_READ}  # every start and every call is known here


def test_an_attempt_without_start_or_call_is_kept_apart(ledger_of: Any, attempt: Any, call: Any) -> None:
    """A start comes from started_at, else from ts − latency; a latency of 0 says nothing; an unknown call is none."""
    rows = [
        attempt(1, 1_000, latency_ms=100.0, request_id="a"),
        attempt(2, 10_000, latency_ms=4_000.4, request_id="a"),
        attempt(3, 10_000, latency_ms=0.0, request_id="gone"),
        attempt(4, 10_000, latency_ms=None, started_at=2_000),
        attempt(5, 10_000, latency_ms=float("nan"), request_id="a"),
    ]
    ledger = ledger_of(attempts=rows, calls=[call(7, 1_500, usage_event_id="a")])
    frame = predictions(Measuring(timeline.build(ledger), PRODUCTION_NOW), np.arange(5, dtype=np.int64))
    assert frame["start_ms"].to_list() == [900, 6_000, None, 2_000, None]
    assert frame["call_id"].to_list() == [7, 7, None, None, 7]
    assert frame["evidence_ms"].to_list() == [1_500, 1_500, None, None, 1_500]
    assert frame["p_start"].to_list() == [None, 1.0, None, 1.0, None]
    assert frame["p_read"].to_list() == [1.0, 1.0, None, None, 1.0]
    assert frame["latency_read_ms"].to_list() == [100.0, 100.0, None, None, 100.0]


def test_a_fallback_is_predicted_by_what_its_call_read(ledger_of: Any, attempt: Any, call: Any) -> None:
    """Failover never stamps again: as read, the second attempt knows no more than the first; at its start it does."""
    rows = [
        attempt(1, 1_000, ok=True),
        attempt(2, 3_000, ok=False, started_at=2_000, request_id="a", attempt=1),
        attempt(3, 4_000, ok=True, started_at=3_500, request_id="a", attempt=2),
    ]
    ledger = ledger_of(attempts=rows, calls=[call(1, 2_000, usage_event_id="a")])
    frame = predictions(Measuring(timeline.build(ledger), PRODUCTION_NOW), np.arange(3, dtype=np.int64))
    assert frame["p_read"].to_list() == [None, 1.0, 1.0]
    assert frame["p_start"].to_list() == [None, 1.0, 0.5]
