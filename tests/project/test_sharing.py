"""The Python and the SQL of docs/sql-sharing.md are run: on a real PostgreSQL, and on the demo's mirror."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from replay import queries
from replay.ledger.pull import pull
from replay.ledger.rows import AttemptRow, CallRow, OfferRow
from replay.ledger.store import Store

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
PAGE = (ROOT / "docs" / "sql-sharing.md").read_text(encoding="utf-8")
HOST, PRODUCTION, WORKBENCH = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
(ROLES,) = re.findall(r"^```sql\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_host_runs_on_postgresql(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call is routed, metered, and in the ledger with all that a replay needs."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    left: dict[str, Any] = {}
    exec(HOST, left)
    # 12 × 0.5 + 3 × 2 = 12 millionths
    assert (left["told"]["chosen"], left["told"]["cost_usd"]) == ("northlight|atlas-mini|northlight", 0.000012)
    assert left["told"]["session_calls"] == 1
    with psycopg.connect(postgres_url) as connection:
        tables = ("calls", "route_observations", "offer_history", "policies", "settings")
        counts = [connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables]  # type: ignore
    assert counts == [1, 1, 1, 1, 1]


def test_the_snippet_for_production_runs_on_postgresql(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes the tables, writes one attempt, and reads its route's stats."""
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    left: dict[str, Any] = {}
    exec(PRODUCTION, left)
    assert left["rows"] == [("northlight", "atlas-mini", "northlight", 1.0, 812.5, 812, 1, 1, 1)]
    assert (left["success_rate"], left["latency_ms"], left["counts"]) == (1.0, 812, [1, 1, 1])


def test_the_snippet_for_the_workbench_runs_on_the_mirror(
    checkout: Path, with_demo: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives every route of the demo's week, 21 of them, with 6,939 attempts in all."""
    with_demo()
    monkeypatch.chdir(checkout)
    left: dict[str, Any] = {}
    exec(WORKBENCH, left)
    assert (len(left["rows"]), sum(row[6] for row in left["rows"])) == (21, 6_939)


@pytest.fixture
def as_role(postgres_url: str) -> Iterator[Callable[[str], str]]:
    """The page's roles on a database with the schema; called with one, the connection string that acts as it."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute(queries.ddl("schema"))  # type: ignore[arg-type]
        connection.execute(ROLES)  # type: ignore[arg-type]
    yield lambda role: make_conninfo(postgres_url, options=f"-c role={role}")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("DROP OWNED BY ledger_router, ledger_pull; DROP ROLE ledger_router, ledger_pull")


def test_the_roles_of_the_page_are_enough_and_no_more(as_role: Callable[[str], str], tmp_path: Path) -> None:
    """A router records and reads as one, and changes its candidates; a pull reads as the other and writes nothing."""
    offer = OfferRow(valid_from=0, position=0, provider_id="p", model_family="m")
    with Store(as_role("ledger_router")) as store:
        store.record_offers([offer], 1_000)
        store.record_offers([], 2_000)
        store.record_attempt(AttemptRow(ts=5_000, ok=True, provider_id="p", model_family="m", replica="r"))
        store.record_call(CallRow(ts=5, session_id="s", caller="ann"))
        assert store.drain(10).left == 0
        evidence, session = store.read_for(6_000, "s")
        health = store.health()
    assert (set(evidence.stats), session.owner) == ({"p|m|"}, "ann")
    assert (health.dropped, health.missing, health.exact_visibility) == ({}, (), True)
    pull(as_role("ledger_pull"), tmp_path / "mirror.duckdb")
    with psycopg.connect(as_role("ledger_pull")) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM calls")
