"""Ledgers to replay: the recorded demo, a small simulated world, hand-made rows, and the real aider calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from absent import shared

from replay import engine, queries
from replay.calls import CallRequest
from replay.core import Policy, admit
from replay.ledger.importers import import_file
from replay.ledger.load import Ledger, load_ledger
from replay.ledger.mirror import open_mirror
from replay.ledger.rows import AttemptRow, CallRow, OfferRow, columns, values
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Settings
from replay.world import Arrival, Life, RouteModel, Scenario, simulate

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())

DAY_MS = 86_400_000

MEASURED_TERM = [
    "policy",
    ["and", ["meets_req"], ["not", ["is", "breaker_open"]]],
    [
        "add",
        ["field", "success_rate"],
        ["scale", 0.5, ["neg", ["normalize", ["clamp", 0, 10_000, ["field", "latency_ms"]]]]],
        ["scale", 0.2, ["neg", ["normalize", ["field", "price_in"]]]],
    ],
    ["argmax"],
    ["id"],
    ["always", {"action": "next_candidate"}],
]


def _insert(connection: duckdb.DuckDBPyConnection, table: str, names: Sequence[str], rows: Iterable[Any]) -> None:
    listed = [list(row) for row in rows]
    if not listed:
        return
    given = pa.table({name: pa.array(column) for name, column in zip(names, zip(*listed, strict=True), strict=True)})
    connection.register("given", given)
    connection.execute(f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(names)} FROM given")
    connection.unregister("given")


def fill(
    connection: duckdb.DuckDBPyConnection,
    *,
    calls: Sequence[CallRow] = (),
    attempts: Sequence[AttemptRow] = (),
    offers: Sequence[OfferRow] = (),
    prices: Sequence[tuple[str, str, float, float, float | None]] = (),
    policies: Sequence[Policy] = (),
    settings: Sequence[Settings] = (),
) -> None:
    """Write rows into a connection that holds the mirror's tables."""
    for table, kind, rows in (
        ("calls", CallRow, calls),
        ("route_observations", AttemptRow, attempts),
        ("offer_history", OfferRow, offers),
    ):
        _insert(connection, table, columns(kind), (values(row) for row in rows))  # type: ignore[arg-type, union-attr]
    for price in prices:
        connection.execute("INSERT INTO provider_prices VALUES (?, ?, ?, ?, ?, 0)", price)
    for policy in policies:
        declared, tiers = json.dumps(policy.schema.declared), json.dumps(policy.schema.tiers)
        row = (policy.identity, json.dumps(policy.term), declared, tiers)
        connection.execute("INSERT INTO policies VALUES (?, ?, ?, ?, 0)", row)
    for one in settings:
        connection.execute("INSERT INTO settings VALUES (?, ?, 0)", (one.identity, one.to_json()))


def _ledger(**rows: Any) -> Ledger:
    with duckdb.connect() as connection:
        connection.execute(queries.ddl("mirror"))
        fill(connection, **rows)
        return load_ledger(connection)


@pytest.fixture(scope="session")
def ledger_of() -> Callable[..., Ledger]:
    """Make a ledger of rows: calls, attempts, offers, prices, policies and settings."""
    return _ledger


@pytest.fixture(scope="session")
def mirror_of() -> Callable[..., Path]:
    """Make a mirror file of rows, as `ledger_of`."""

    def make(path: Path, **rows: Any) -> Path:
        with open_mirror(path, write=True) as connection:
            fill(connection, **rows)
        return path

    return make


@pytest.fixture(scope="session")
def attempt() -> Callable[..., AttemptRow]:
    """Make an attempt on p|m|p: id and ts are needed, it succeeded unless said otherwise."""

    def make(row_id: int, ts: int, ok: bool = True, **more: Any) -> AttemptRow:
        said = {"provider_id": "p", "model_family": "m", "served_by": "p"} | more
        return AttemptRow(id=row_id, ts=ts, ok=ok, **said)

    return make


@pytest.fixture(scope="session")
def call() -> Callable[..., CallRow]:
    """Make a call that was decided, and read its evidence, at an instant."""

    def make(row_id: int, decided_at: int, **more: Any) -> CallRow:
        said = {"ts": decided_at // 1000 + 1, "decided_at": decided_at, "evidence_at": decided_at} | more
        return CallRow(id=row_id, **said)

    return make


@pytest.fixture(scope="session")
def measured_policy() -> Policy:
    """A policy that every stamp, the price and the breakers can turn."""
    return admit(MEASURED_TERM)


def world_scenario(**changes: Any) -> Scenario:
    """Three routes of one family, two processes and a restart, rows written up to 30 s late."""
    calls = changes.pop("calls", 150)
    names = ("p", "q", "r")
    given: dict[str, Any] = {
        "offers": tuple(
            OfferRow(
                id=place,
                valid_from=0,
                position=place,
                provider_id=name,
                model_family="m",
                price_in=1.0 + place,
                price_out=2.0,
                capabilities='{"supports_tools": true}',
            )
            for place, name in enumerate(names, start=1)
        ),
        "routes": {
            "p|m|p": RouteModel(success_rate=0.8, latency_median_ms=900, reported_cost=1.2),
            "q|m|q": RouteModel(success_rate=0.85, latency_median_ms=1100),
            "r|m|r": RouteModel(success_rate=0.9, latency_median_ms=1500),
        },
        "arrivals": tuple(
            Arrival(
                at_ms=1_000_000_000 + number * 20_000 + (number * 7919) % 13_000,
                request=CallRequest(usage_event_id=f"c{number}", tools=number % 3 == 0, seed=number),
                tokens_in=1000,
                tokens_out=100,
            )
            for number in range(calls)
        ),
        "lives": (
            Life(replica="a.1", slot=0, start_ms=0),
            Life(replica="b.1", slot=1, start_ms=0),
            Life(replica="a.2", slot=0, start_ms=1_001_500_000),
        ),
        "write_lag_ms": (0, 30_000),
    }
    return Scenario(**(given | changes))


@pytest.fixture(scope="session")
def scenario() -> Callable[..., Scenario]:
    """Make the small world's scenario; keyword arguments change it."""
    return world_scenario


@pytest.fixture(scope="session")
def world(measured_policy: Policy) -> Callable[..., Ledger]:
    """Let routers live in the small world, and give the ledger they recorded."""

    def live(seed: int = 3, settings: Settings = PRODUCTION_NOW, **changes: Any) -> Ledger:
        scenario = world_scenario(**changes)
        calls, attempts = simulate(scenario, seed, settings, measured_policy).rows()
        return _ledger(
            calls=calls, attempts=attempts, offers=scenario.offers, policies=[measured_policy], settings=[settings]
        )

    return live


@pytest.fixture(scope="session")
def small_world(world: Callable[..., Ledger]) -> Ledger:
    """The ledger of 150 calls in the small world, recorded once."""
    return world()


@pytest.fixture(scope="session")
def demo_ledger(demo_mirror: Path) -> Ledger:
    """The demo's ledger in memory."""
    with open_mirror(demo_mirror) as connection:
        return load_ledger(connection)


@pytest.fixture(scope="session")
def demo_start_ms(demo_ledger: Ledger) -> int:
    """Midnight before the demo's first call."""
    first: Any = demo_ledger.calls["decided_at"].min()
    return int(first) // DAY_MS * DAY_MS


@pytest.fixture(scope="session")
def demo_run(demo_ledger: Ledger) -> engine.Run:
    """The demo's week under both presets, replayed once."""
    return engine.run(demo_ledger, [PRODUCTION_NOW, PRODUCTION_BEFORE])


@pytest.fixture(scope="session")
def aider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of the real aider calls, imported whole."""
    path = tmp_path_factory.mktemp("aider") / "ledger.duckdb"
    import_file(shared("data/aider_calls.csv.gz"), path, source="aider_calls")
    return path


@pytest.fixture(scope="session")
def aider_ledger(aider: Path) -> Ledger:
    """The aider ledger in memory."""
    with open_mirror(aider) as connection:
        return load_ledger(connection)
