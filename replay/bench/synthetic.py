"""A large ledger to measure on: drawn in columns, seeded, straight into a mirror file.

A month or more of traffic of three replicas over one writer, with snapshots and transaction ids, so that visibility is
recorded. One attempt per call; failures come alone and in outages; offers change a few hundred times. Routes are drawn,
not chosen: every candidate has evidence, which no deterministic policy would leave behind, and every decision meets
stamps that changed. So no settings are recorded with the calls, and a replay says agreement, not reproduction.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from replay.core import Policy, Schema, admit
from replay.core.library import SHIPPED_FIELDS, load_policy
from replay.errors import ReplayError
from replay.ledger.mirror import open_mirror

START_MS = 1_772_409_600_000  # 2026-03-02
GAP_MS = 2_592
"""Mean time between two calls: a million are a month."""

CHANGES = 300
"""How often some candidate's price changes."""

REPLICAS = 3
CELL_MS = 200
"""The writer commits what ended in such a span of time together, some time after it."""

FIRST_TXID = 1_000
CHUNK = 500_000

_PROVIDERS = (
    *(("antseed", "marketplace"),) * 3,
    ("openrouter_market", "marketplace"),
    ("bedrock_market", "marketplace"),
    ("openai_codex", "direct"),
    *(("openrouter", "direct"), ("bedrock", "direct")) * 2,
)
"""The providers of ten candidates, with their tiers; half are of a marketplace."""

_FAMILIES = ("atlas", "borealis", "cirrus", "dorado", "equinox", "fornax")

_REQUESTS: tuple[dict[str, Any], ...] = (
    {"seed": 1},
    {"seed": 2, "tools": True},
    {"seed": 3, "requirements": {"model_family": "atlas"}},
    {"seed": 4, "requirements": {"min_context": 100_000}},
    {"seed": 5, "requirements": {"min_context": 32_000, "needs": ["json_mode"]}, "tools": True},
)
_SHARES = (0.5, 0.25, 0.1, 0.1, 0.05)

_ERRORS = ("timeout", "server_error", "rate_limit", "network_error", "bad_request")

Ints = NDArray[np.int64]


def shipped(name: str) -> Policy:
    """Return a shipped policy, admitted with the fields it observes."""
    return admit(load_policy(name), Schema.declare(SHIPPED_FIELDS))


def write_ledger(path: Path, calls: int, candidates: int, policy: Policy, seed: int = 0) -> None:
    """Write a mirror of so many calls, each with one attempt, over so many candidates (a multiple of ten).

    `policy` is recorded as the one that decided. Raises ReplayError where there is a file already.
    """
    if path.exists():
        raise ReplayError(f"{path} exists; expected a new file for a synthetic ledger: give another")
    offers = _offers(candidates, calls * GAP_MS)
    drawn = _drawn(calls, offers.head(candidates), seed)
    with open_mirror(path, write=True) as connection:
        _insert(connection, "offer_history", offers)
        _insert(connection, "policies", _policies(policy))
        routes, requests = _routes(offers.head(candidates)), _requests()
        for name, table in (("routes", routes), ("requests", requests)):
            connection.register(name, table.to_arrow())
        for first in range(0, calls, CHUNK):
            connection.register("drawn", drawn.slice(first, CHUNK).to_arrow())
            connection.execute(_ATTEMPTS)
            connection.execute(_CALLS, [policy.identity])
            connection.unregister("drawn")


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pl.DataFrame) -> None:
    connection.register("rows_made", rows.to_arrow())
    connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM rows_made")
    connection.unregister("rows_made")


def _policies(policy: Policy) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "policy_id": policy.identity,
            "term": json.dumps(policy.term),
            "declared_fields": json.dumps(policy.schema.declared),
            "tiers": json.dumps(policy.schema.tiers),
        }
    )


def _requests() -> pl.DataFrame:
    texts = [json.dumps(request, sort_keys=True, separators=(",", ":")) for request in _REQUESTS]
    families = [(request.get("requirements") or {}).get("model_family") for request in _REQUESTS]
    labels = [f"family:{family}" if family else "" for family in families]
    return pl.DataFrame({"kind": range(len(_REQUESTS)), "request": texts, "requested_model": labels})


def _routes(offers: pl.DataFrame) -> pl.DataFrame:
    served_by = pl.coalesce("peer_id", "provider_id").alias("served_by")
    return offers.select("provider_id", "model_family", served_by).with_row_index("route")


def _offers(candidates: int, span_ms: int) -> pl.DataFrame:
    """Return the candidates as they begin, and then each change of a price, in the order of time."""
    rows = [_offer(number) for number in range(candidates)]
    holding = {row["position"]: row for row in rows}
    for change in range(CHANGES):
        at_ms = START_MS + (change + 1) * span_ms // (CHANGES + 1)
        old = holding[change * 7 % candidates]
        old["valid_to"] = at_ms
        factor = 1.1 if change % 2 else 0.9
        new = old | {"valid_from": at_ms, "valid_to": None, "price_in": old["price_in"] * factor}
        holding[old["position"]] = new
        rows.append(new)
    return pl.DataFrame(rows, infer_schema_length=None).with_row_index("id", offset=1)


def _offer(number: int) -> dict[str, Any]:
    provider, tier = _PROVIDERS[number % len(_PROVIDERS)]
    market = tier == "marketplace"
    rank = 1 + number * 11 % 20
    return {
        "valid_from": START_MS,
        "valid_to": None,
        "position": number,
        "provider_id": provider,
        "model_family": _FAMILIES[number // 2 % len(_FAMILIES)],
        "served_model_id": f"model-{number}",
        "peer_id": f"peer-{number}",
        "tier": tier,
        "price_in": 0.5 + number * 13 % 40 / 10,
        "price_out": 2.0 + number * 17 % 40 / 2,
        "price_multiplier": 1.05 if market else 1.0,
        "capabilities": json.dumps({"supports_tools": number % 9 != 0, "supports_json_mode": number % 4 != 0}),
        "context": 32_000 * (1 + number % 6),
        "tok_s": 20.0 + number % 50,
        "declared": json.dumps({"bench_intelligence": 70.0 - rank, "bench_intelligence_rank": rank, "cap_tools": True}),
    }


def _drawn(calls: int, offers: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Return what is drawn of every call and its attempt, as numbers."""
    rng = np.random.default_rng(seed)
    number = np.arange(calls)
    decided_ms = START_MS + np.cumsum(1 + rng.exponential(GAP_MS - 1, calls)).astype(np.int64)
    route = rng.integers(0, len(offers), calls)
    started_ms = decided_ms + rng.integers(3, 12, calls)
    latency_ms = np.exp(rng.normal(6.8, 0.7, calls))
    ended_ms = started_ms + np.rint(latency_ms).astype(np.int64)
    # Each route is down in one hour of fifty.
    hours = (ended_ms - START_MS) // 3_600_000
    down = rng.random((len(offers), int(hours.max(initial=0)) + 1)) < 0.02
    ok = rng.random(calls) >= np.where(down[route, hours], 0.6, 0.03)
    seen, txid = _visible(decided_ms, ended_ms, rng)
    replica = rng.integers(0, REPLICAS, calls)
    call_seq, attempt_seq = _sequences(replica, decided_ms, ended_ms)
    kind = rng.choice(len(_REQUESTS), calls, p=_SHARES)
    tools = np.array(["tools" in request for request in _REQUESTS])[kind]
    return pl.DataFrame(
        {
            "number": number + 1,
            "route": route,
            "decided_ms": decided_ms,
            "started_ms": started_ms,
            "ended_ms": ended_ms,
            "latency_ms": latency_ms,
            "ok": ok,
            "error": pl.Series(_ERRORS).gather(rng.integers(0, len(_ERRORS), calls)),
            "txid": txid,
            "seen": seen,
            "replica": replica,
            "call_seq": call_seq,
            "attempt_seq": attempt_seq,
            "kind": kind,
            "tools": tools,
            "emitted": tools & ok & (rng.random(calls) < 0.85),
        }
    )


def _visible(decided_ms: Ints, ended_ms: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return how far the transactions had come at each decision, and the transaction that wrote each attempt."""
    cell = ended_ms // CELL_MS
    cells, of_attempt = np.unique(cell, return_inverse=True)
    # One writer commits in order: no transaction is visible before an earlier one.
    committed_ms = np.maximum.accumulate((cells + 1) * CELL_MS + rng.integers(5, 500, len(cells)))
    seen = np.searchsorted(committed_ms, decided_ms, side="left")
    return FIRST_TXID + seen, FIRST_TXID + of_attempt


def _sequences(replica: Ints, decided_ms: Ints, ended_ms: Ints) -> tuple[Ints, Ints]:
    """Number each replica's decisions and attempt ends in the order of time, from 1."""
    both, at_ms = np.tile(replica, 2), np.concatenate([decided_ms, ended_ms])
    order = np.lexsort((at_ms, both))
    first = np.searchsorted(both[order], both[order], side="left")
    numbers = np.empty(len(both), dtype=np.int64)
    numbers[order] = np.arange(len(both)) - first + 1
    return numbers[: len(replica)], numbers[len(replica) :]


_ATTEMPTS = """
INSERT INTO route_observations BY NAME
SELECT number AS id, ended_ms AS ts, provider_id, model_family, served_by, ok, latency_ms,
       CASE WHEN NOT ok THEN error END AS error_kind, CASE WHEN ok THEN 200 ELSE 502 END AS http_status,
       tools AS tools_requested, emitted AS tool_calls_emitted, started_ms AS started_at,
       'event-' || number AS request_id, 1 AS attempt, 1 AS candidate_attempt,
       'replica-' || replica AS replica, attempt_seq AS replica_seq, txid
FROM drawn JOIN routes USING (route) ORDER BY number
"""

_CALLS = """
INSERT INTO calls BY NAME
SELECT number AS id, ended_ms // 1000 AS ts, 'event-' || number AS usage_event_id,
       'session-' || number // 7 AS session_id, md5((number % 1000)::VARCHAR) AS consumer_sha,
       'caller-' || number % 100 AS caller, provider_id || '|' || model_family || '|' || served_by AS route_key,
       provider_id, model_family, 'model-' || route AS served_model_id, requested_model,
       CASE WHEN ok THEN 200 ELSE 502 END AS status, CASE WHEN NOT ok THEN error END AS error_type, latency_ms,
       1000 + number % 700 AS tokens_in, number % 900 AS tokens_out, 1000 + number % 700 + number % 900 AS tokens_total,
       0 AS tokens_cached, (number % 1600) / 1e6 AS cost_usd, served_by, 'computed' AS cost_basis,
       decided_ms AS decided_at, decided_ms AS evidence_at, request, $1 AS policy_id, 'replica-' || replica AS replica,
       call_seq AS replica_seq, seen || ':' || seen || ':' AS evidence_snapshot, 'ok' AS evidence_state, txid
FROM drawn JOIN routes USING (route) JOIN requests USING (kind) ORDER BY number
"""
