"""A recorded world of two hours in which everything happens that a decision may remember, and small ledgers by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import pytest

from replay.calls import CallRequest
from replay.core import Policy, admit
from replay.ledger.folder import ledger_of
from replay.ledger.load import Ledger, load_ledger
from replay.ledger.mirror import open_mirror
from replay.ledger.rows import AttemptRow, CallRow, OfferRow, columns, values
from replay.settings import PRODUCTION_NOW, Settings
from replay.world import Arrival, Incident, Life, RouteModel, Scenario, simulate

START_MS = 1_000_000_000
TERM: Any = [
    "policy",
    ["and", ["meets_req"], ["scope_matches"], ["not", ["is", "breaker_open"]]],
    ["add", ["scale", 3, ["field", "success_rate"]], ["scale", -0.0005, ["field", "latency_ms"]]],
    ["argmax"],
    ["id"],
    ["override", ["always", {"action": "next_candidate"}], "auth_error", {"action": "disable_provider"}],
]


def _frame(kind: Any, rows: Sequence[Any]) -> pl.DataFrame:
    return pl.DataFrame([values(row) for row in rows], schema=columns(kind), orient="row", infer_schema_length=None)


def _ledger(
    calls: Sequence[CallRow] = (),
    attempts: Sequence[AttemptRow] = (),
    offers: Sequence[OfferRow] = (),
    policies: Sequence[Policy] = (),
    settings: Sequence[Settings] = (),
) -> Ledger:
    tables = {
        "calls": _frame(CallRow, calls),
        "route_observations": _frame(AttemptRow, attempts),
        "offer_history": _frame(OfferRow, offers),
        "policies": pl.DataFrame(
            [(one.identity, json.dumps(one.term), json.dumps(one.schema.declared), json.dumps(one.schema.tiers), 0)
             for one in policies],
            schema=["policy_id", "term", "declared_fields", "tiers", "recorded_at"], orient="row",
        ),
        "settings": pl.DataFrame(
            [(one.identity, one.to_json(), 0) for one in settings],
            schema=["settings_id", "settings", "recorded_at"], orient="row",
        ),
    }  # fmt: skip
    return ledger_of({table: frame for table, frame in tables.items() if len(frame)})


@pytest.fixture(scope="session")
def ledger_of_rows() -> Callable[..., Ledger]:
    """Make a ledger of rows: calls, attempts, offers, policies and settings."""
    return _ledger


@pytest.fixture(scope="session")
def policy() -> Policy:
    """A policy that success, latency, tools, scopes and breakers can turn."""
    return admit(TERM)


def _offer(place: int, name: str, **more: Any) -> OfferRow:
    said = {"valid_from": 0, "position": place, "provider_id": name, "model_family": "m", "price_in": 1.0}
    return OfferRow(**(said | {"id": place, "price_out": 2.0, "capabilities": '{"supports_tools": true}'} | more))


@pytest.fixture(scope="session")
def offer() -> Callable[..., OfferRow]:
    """Make an offer of the family m at a position by a provider."""
    return _offer


@pytest.fixture(scope="session")
def two_hours(policy: Policy) -> Ledger:
    """Six calls a minute by two processes, one of which restarts; an outage, a silent route, rows up to 30 s late."""
    offers = (
        _offer(1, "p"),
        _offer(2, "q", valid_to=START_MS + 4_000_000),
        _offer(3, "q", valid_from=START_MS + 4_000_000, price_in=0.5),
        _offer(4, "r"),
        _offer(5, "s", scope="tenant of alice"),
    )
    scenario = Scenario(
        offers=offers,
        routes={
            "p|m|p": RouteModel(success_rate=0.85, latency_median_ms=900, failures=(("server_error", 1.0),)),
            "q|m|q": RouteModel(success_rate=0.8, latency_median_ms=1100, failures=(("auth_error", 1.0),)),
            "r|m|r": RouteModel(success_rate=0.9, latency_median_ms=1500, tool_rate=0.0),
        },
        arrivals=tuple(
            Arrival(
                at_ms=START_MS + number * 10_000 + (number * 7919) % 9_000,
                request=CallRequest(
                    usage_event_id=f"event of bob {number}",
                    session_id=f"session of alice {number // 7}",
                    consumer_sha=f"consumer of alice {number % 3}",
                    caller="alice",
                    scope="tenant of alice" if number % 11 == 0 else None,
                    response_format={"type": "json_schema", "schema": "secret of carol"} if number % 5 == 0 else None,
                    tools=number % 3 == 0,
                    seed=number,
                ),
                tokens_in=1000,
                tokens_out=100,
            )
            for number in range(720)
        ),
        lives=(
            Life(replica="host-a.1", slot=0, start_ms=0),
            Life(replica="host-b.1", slot=1, start_ms=0),
            Life(replica="host-a.2", slot=0, start_ms=START_MS + 3_600_000),
        ),
        incidents=(
            Incident(start_ms=START_MS + 2_000_000, end_ms=START_MS + 2_600_000, provider_id="p", success_factor=0.0),
        ),
        write_lag_ms=(0, 30_000),
    )
    calls, attempts = simulate(scenario, 3, PRODUCTION_NOW, policy).rows()
    return _ledger(calls, attempts, offers, [policy], [PRODUCTION_NOW])


@pytest.fixture(scope="session")
def demo_ledger(demo_mirror: Any) -> Ledger:
    """The demo's ledger in memory."""
    with open_mirror(demo_mirror) as connection:
        return load_ledger(connection)
