"""The demo's recording: the router lives through a small week, and its ledgers are written into a mirror."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from replay import week
from replay.core import Policy
from replay.durations import iso
from replay.errors import ReplayError
from replay.ledger.mirror import open_mirror
from replay.ledger.rows import AttemptRow, CallRow, OfferRow, columns, values
from replay.settings import PRODUCTION_NOW, Settings
from replay.world import Scenario, simulate


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """What was recorded, for a reader: counts, the span in ms, and what happened in it, one line each."""

    calls: int
    calls_ok: int
    calls_fallen_back: int
    calls_cancelled: int
    attempts: int
    attempts_ok: int
    routes: int
    offers: int
    replicas: tuple[str, ...]
    from_ms: int
    to_ms: int
    cost_usd: float
    happened: tuple[str, ...]


def record_demo(
    mirror_path: str | Path, seed: int = 7, progress: Callable[[int, int], None] | None = None
) -> DemoSummary:
    """Let the router live through the week and write its ledgers into a mirror, in one transaction.

    The mirror must hold no calls and no attempts yet. The same seed gives the same rows everywhere. `progress` is
    told (calls ended, calls in all).
    """
    scenario = week.scenario(seed)
    policies, settings = week.policies(), PRODUCTION_NOW
    with open_mirror(mirror_path, write=True) as connection:
        _require_empty(connection, Path(mirror_path))
        calls, attempts = simulate(scenario, seed, settings, policies["balanced"], progress).rows()
        connection.execute("BEGIN")
        _append(connection, "calls", columns(CallRow), map(values, calls))
        _append(connection, "route_observations", columns(AttemptRow), map(values, attempts))
        _append(connection, "offer_history", columns(OfferRow), map(values, scenario.offers))
        _write_reference(connection, scenario, policies.values(), settings)
        connection.execute("COMMIT")
    return _summary(scenario, calls, attempts)


def _require_empty(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    found = connection.execute("SELECT (SELECT count(*) FROM calls), (SELECT count(*) FROM route_observations)")
    calls, attempts = found.fetchall()[0]
    if calls or attempts:
        raise ReplayError(
            f"{path} already holds {calls} calls and {attempts} attempts; expected a mirror without any, since a demo "
            "mixed into a ledger spoils it: give a new path, or delete the file"
        )


def _append(
    connection: duckdb.DuckDBPyConnection, table: str, names: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Append rows to a table by column name; DuckDB casts to the table's types."""
    transposed = list(zip(*rows, strict=True)) or [()] * len(names)
    arrow = pa.table({name: pa.array(column) for name, column in zip(names, transposed, strict=True)})
    connection.register("appended", arrow)
    connection.execute(f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(names)} FROM appended")
    connection.unregister("appended")


def _write_reference(
    connection: duckdb.DuckDBPyConnection, scenario: Scenario, policies: Iterable[Policy], settings: Settings
) -> None:
    """Policies, settings, list prices and the marketplace book, as they stand at the week's end."""
    for policy in policies:
        declared, tiers = json.dumps(policy.schema.declared, sort_keys=True), json.dumps(policy.schema.tiers)
        row = (policy.identity, json.dumps(policy.term), declared, tiers, week.START_MS)
        connection.execute("INSERT INTO policies VALUES (?, ?, ?, ?, ?)", row)
    connection.execute("INSERT INTO settings VALUES (?, ?, ?)", (settings.identity, settings.to_json(), week.START_MS))
    for offer in scenario.offers:
        if offer.peer_id is None and offer.valid_to is None:
            price = (offer.provider_id, offer.model_family, offer.price_in, offer.price_out, offer.price_cached_in)
            connection.execute("INSERT INTO provider_prices VALUES (?, ?, ?, ?, ?, ?)", (*price, offer.valid_from))
        elif offer.peer_id is not None:
            last_seen_ms = offer.valid_to or week.END_MS
            reputation = json.loads(offer.declared or "{}").get("reputation_score")
            connection.execute(
                "INSERT INTO peer_offers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(offer.peer_id, offer.model_family, offer.price_in, offer.price_out, offer.price_cached_in),
                    *(8, reputation, last_seen_ms, last_seen_ms, offer.valid_from, last_seen_ms),
                ),
            )


def _summary(scenario: Scenario, calls: Sequence[CallRow], attempts: Sequence[AttemptRow]) -> DemoSummary:
    slow, dead = week.SLOW_PROVIDER, week.DEAD_PEER
    return DemoSummary(
        calls=len(calls),
        calls_ok=sum(call.status == 200 for call in calls),
        calls_fallen_back=len({attempt.request_id for attempt in attempts if (attempt.attempt or 0) > 1}),
        calls_cancelled=sum(call.error_type == "cancelled" for call in calls),
        attempts=len(attempts),
        attempts_ok=sum(attempt.ok for attempt in attempts),
        routes=len({attempt.route_key for attempt in attempts}),
        offers=len(scenario.offers),
        replicas=tuple(life.replica for life in scenario.lives),
        from_ms=week.START_MS,
        to_ms=week.END_MS,
        cost_usd=sum(round((call.cost_usd or 0.0) * 1e6) for call in calls) / 1e6,
        happened=(
            f"all week: {week.SILENT_ROUTE} says it supports tools and never calls one",
            "all week: openrouter charges 20 % more than its list price",
            f"{iso(dead.start_ms)} to {iso(dead.end_ms)}: peer-aster is dead, but stays listed",
            f"{iso(week.PEER_JOINS_MS)}: peer-dune joins the marketplace, and leaves at {iso(week.PEER_LEAVES_MS)}",
            f"{iso(week.PRICE_CHANGE_MS)}: northlight|quill-code drops from 7.00 to 4.40 USD per million output tokens",
            f"{iso(week.LIVES[-1].start_ms)}: process web-a restarts",
            f"{iso(slow.start_ms)} to {iso(slow.end_ms)}: northlight is six times slower and refuses half its calls",
        ),
    )
