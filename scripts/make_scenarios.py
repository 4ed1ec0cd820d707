"""Cut the ledgers of `scenarios/` anew: `python scripts/make_scenarios.py [FOLDER]`; same code, same bytes.

What is cut is this project's own: the simulated week of `replay demo`, and a small world in which all times lie on a
grid of five seconds. Baselines are not touched; where a ledger comes out differently, `replay check` says so.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from replay.calls import CallRequest
from replay.core import admit, load_policy
from replay.demo import record_demo
from replay.durations import iso
from replay.gate.suite import read_suite
from replay.ledger.folder import ledger_of, write_ledger_folder
from replay.ledger.load import Ledger, load_ledger
from replay.ledger.mirror import open_mirror
from replay.ledger.rows import AttemptRow, CallRow, OfferRow, columns, values
from replay.settings import PRODUCTION_NOW
from replay.slicing import slice_ledger
from replay.world import Arrival, Incident, Life, RouteModel, Scenario, simulate

CUT = ("slow-provider", "dead-peer", "silent-tools", "drifting-price")
"""Scenarios cut from the simulated week, each for its span and settings in suite.toml."""

GRID_MS = 5_000
EDGES_START_MS = 1_767_600_000_000
IMPORTED = ("2026-03-05T07:00:00Z", "2026-03-05T09:20:00Z")


def main(folder: Path) -> None:
    """Write every ledger into a folder that holds suite.toml."""
    suite = read_suite(folder / "suite.toml")
    with tempfile.TemporaryDirectory() as scratch:
        record_demo(Path(scratch) / "week.duckdb")
        with open_mirror(Path(scratch) / "week.duckdb") as connection:
            week = load_ledger(connection)
    for name in CUT:
        scenario = suite.only([name]).scenarios[0]
        assert scenario.since_ms is not None
        assert scenario.until_ms is not None
        cut = slice_ledger(week, scenario.settings, scenario.since_ms, scenario.until_ms)
        said = {"since_ms": cut.since_ms, "until_ms": cut.until_ms, "settings": [one.name for one in scenario.settings]}
        write_ledger_folder(scenario.ledger, cut.ledger, said)
        tell(f"{name}: {cut.decisions} decisions, {cut.warm_up} attempts to warm up on")
    edges = edges_ledger()
    write_ledger_folder(suite.only(["edges"]).scenarios[0].ledger, edges)
    tell(f"edges: {len(edges.calls)} decisions")
    rows = write_csv(week, suite.only(["imported"]).scenarios[0].ledger)
    tell(f"imported: {rows} rows")


def edges_ledger() -> Ledger:
    """Five routes whose attempts begin and end on a grid, so that ends meet decisions and windows' edges exactly."""
    policy = admit(load_policy(Path(__file__).parents[1] / "scenarios/policies/edges.json"))
    offers = tuple(
        OfferRow(
            id=place,
            valid_from=EDGES_START_MS - 1_000,
            position=place,
            provider_id=provider,
            model_family="m",
            served_model_id="m-1",
            peer_id=peer,
            price_in=price,
            price_out=2 * price,
            context=context,
            tier="marketplace" if peer else None,
            capabilities='{"supports_tools": true}',
        )
        for place, (provider, peer, price, context) in enumerate(
            (("p", None, 1.0, 8_000), ("q", None, 1.0, 8_000), ("market", "one", 0.5, 8_000),
             ("market", "two", 0.5, 8_000), ("dear", None, 9.0, 1_000)), start=1
        )
    )  # fmt: skip
    scenario = Scenario(
        offers=offers,
        routes={
            "p|m|p": RouteModel(success_rate=1.0, latency_median_ms=10_000, latency_sigma=0.0, reported_cost=1.1),
            "q|m|q": RouteModel(success_rate=1.0, latency_median_ms=10_000, latency_sigma=0.0),
            "market|m|one": RouteModel(success_rate=0.6, latency_median_ms=20_000, latency_sigma=0.0, tool_rate=0.0),
            "market|m|two": RouteModel(success_rate=0.9, latency_median_ms=40_000, latency_sigma=0.0),
        },
        arrivals=tuple(_edge_arrival(number) for number in range(300)),
        lives=(
            Life(replica="one.1", slot=0, start_ms=EDGES_START_MS - 1_000),
            Life(replica="two.1", slot=1, start_ms=EDGES_START_MS - 1_000),
        ),
        incidents=(
            Incident(
                start_ms=EDGES_START_MS + 1_200_000,
                end_ms=EDGES_START_MS + 1_500_000,
                provider_id="q",
                success_factor=0.0,
                error_kind="server_error",
            ),
        ),
        timeout_ms=60_000,
    )
    calls, attempts = simulate(scenario, 11, PRODUCTION_NOW, policy).rows()
    term, declared, tiers = map(json.dumps, (policy.term, policy.schema.declared, policy.schema.tiers))
    admitted = {"policy_id": policy.identity, "term": term, "declared_fields": declared, "tiers": tiers}
    recorded = {"settings_id": PRODUCTION_NOW.identity, "settings": PRODUCTION_NOW.to_json()}
    return ledger_of(
        {
            "calls": _frame(CallRow, calls),
            "route_observations": _frame(AttemptRow, attempts),
            "offer_history": _frame(OfferRow, offers),
            "policies": pl.DataFrame([admitted]),
            "settings": pl.DataFrame([recorded]),
        }
    )


def _edge_arrival(number: int) -> Arrival:
    return Arrival(
        at_ms=EDGES_START_MS + number * 2 * GRID_MS + (number % 3) * GRID_MS,
        request=CallRequest(
            usage_event_id=f"call-{number}",
            session_id=f"session-{number // 10}",
            tools=number % 4 != 3,
            requirements={"min_context": 4_000} if number % 4 == 0 else {},
            seed=number + 1,
        ),
        tokens_in=1_000 + number,
        tokens_out=100,
    )


def _frame(kind: Any, rows: Any) -> pl.DataFrame:
    return pl.DataFrame([values(row) for row in rows], schema=columns(kind), orient="row", infer_schema_length=None)


def write_csv(week: Ledger, path: Path) -> int:
    """Write some hours of the week as another system might have logged them: seconds, no servers, gaps."""
    ends = pl.from_epoch(pl.col("ts"), time_unit="s")
    since, until = (pl.lit(text).str.to_datetime(time_zone="UTC").dt.replace_time_zone(None) for text in IMPORTED)
    rows = week.calls.filter((ends >= since) & (ends < until)).sort("id").to_dicts()
    asked_tools = dict(zip(week.attempts["request_id"], week.attempts["tools_requested"], strict=True))
    called_tools = dict(zip(week.attempts["request_id"], week.attempts["tool_calls_emitted"], strict=True))
    with path.open("w", encoding="utf-8", newline="") as stream:
        out = csv.writer(stream, lineterminator="\n")
        out.writerow(["ended", "provider", "model", "seconds", "outcome", "asked_tools", "called_tools",
                      "tokens_in", "tokens_cached", "tokens_out", "usd"])  # fmt: skip
        for number, row in enumerate(rows):
            seconds = None if number % 23 == 0 else row["latency_ms"] / 1000
            out.writerow([
                iso(row["ts"] * 1000),
                "?" if number % 17 == 0 else row["provider_id"],
                row["model_family"],
                seconds,
                row["error_type"] or "ok",
                asked_tools.get(row["usage_event_id"], False),
                called_tools.get(row["usage_event_id"], False),
                row["tokens_in"], row["tokens_cached"], row["tokens_out"], row["cost_usd"],
            ])  # fmt: skip
    return len(rows)


def tell(text: str) -> None:
    """Say what was done."""
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "scenarios")
