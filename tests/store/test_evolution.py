"""The schema in databases that are empty, old, large, locked, or not ours to change."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from store_rows import NOW_MS, attempt, call, offer

from replay import queries
from replay.ledger.schema import statements
from replay.ledger.store import Store, StoreHealth

Ask = Callable[..., list[dict[str, Any]]]
OpenStore = Callable[..., Store]

FILES = "SELECT pg_relation_filenode('calls') AS calls, pg_relation_filenode('route_observations') AS attempts"


def _old_schema() -> str:
    """What production had at first: no added column, no cost_basis, none of the new tables."""
    before = queries.ddl("schema").split("-- New with replay.")[0]
    before = re.sub(r",\s*cost_basis[^\n]*", "", before)
    return re.sub(r"ALTER TABLE[^;]*;[^\n]*", "", before)


def _until(store: Store, holds: Callable[[StoreHealth], bool]) -> StoreHealth:
    for _ in range(400):
        if holds(store.health()):
            break
        time.sleep(0.05)
    assert holds(store.health())
    return store.health()


def _columns(ask: Ask) -> list[tuple[Any, ...]]:
    rows = ask(
        "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns "
        "WHERE table_schema = current_schema() ORDER BY 1, 2"
    )
    return [tuple(row.values()) for row in rows]


def test_the_old_schema_of_these_tests_is_old(ask: Ask) -> None:
    """It lacks what it should lack."""
    ask(_old_schema())
    names = {(table, column) for table, column, *_ in _columns(ask)}
    assert {("calls", "served_by"), ("route_observations", "ok")} <= names
    assert names.isdisjoint({("calls", "cost_basis"), ("calls", "txid"), ("offer_history", "id")})


def test_every_statement_of_the_schema_is_understood() -> None:
    """Each has its kind, its table, and what it is about; none is passed over."""
    text = re.sub(r"--[^\n]*", "", queries.ddl("schema"))
    assert len(statements()) == sum(bool(part.strip()) for part in text.split(";"))
    assert [one.kind for one in statements()].count("lock") == 1
    assert {one.table for one in statements() if one.kind == "default"} == {"calls", "route_observations"}


def test_an_old_database_evolves_in_place(open_store: OpenStore, ask: Ask, postgres_url: str) -> None:
    """To what a new one has, without a rewrite, keeping its rows; new rows carry their transaction, old ones do not."""
    ask(_old_schema())
    ask("INSERT INTO calls (ts, session_id) SELECT n, 'old' FROM generate_series(1, 3000) n")
    ask("INSERT INTO route_observations (ts, ok) SELECT n, true FROM generate_series(1, 3000) n")
    before = ask(FILES)
    store = open_store()
    assert ask(FILES) == before
    assert (store.health().exact_visibility, store.health().missing, store.health().advice) == (True, (), ())
    store.record_attempt(attempt(1))
    store.record_call(call(1, cost_basis="reported"))
    store.drain(10)
    assert ask("SELECT count(*) AS n, count(txid) AS new, count(cost_basis) AS basis FROM calls") == [
        {"n": 3001, "new": 1, "basis": 1}
    ]
    ours = _columns(ask)
    [here] = ask("SELECT current_schema() AS name")
    ask(f"DROP SCHEMA {here['name']} CASCADE; CREATE SCHEMA {here['name']}")
    ask(queries.ddl("schema"))
    assert ours == _columns(ask)


@pytest.mark.slow
def test_a_million_old_rows_are_neither_rewritten_nor_locked_for_an_index(open_store: OpenStore, ask: Ask) -> None:
    """An index that is missing on a large table is left to the operator, with the statement to run."""
    ask(_old_schema())
    named = [one.text.split()[5] for one in statements() if (one.kind, one.table) == ("index", "calls")]
    ask(f"DROP INDEX IF EXISTS {', '.join(named)}")
    ask("INSERT INTO calls (ts, session_id, route_key) SELECT n, 's', 'p|m|x' FROM generate_series(1, 1000000) n")
    ask("CREATE INDEX by_another_name ON calls (caller, ts)")
    before = ask(FILES)
    store = open_store()
    assert ask(FILES) == before
    assert store.health().missing == ()
    assert store.health().advice == (
        "CREATE INDEX CONCURRENTLY calls_ts_idx ON calls (ts)",
        "CREATE INDEX CONCURRENTLY calls_route_key_ts_idx ON calls (route_key, ts)",
        "CREATE INDEX CONCURRENTLY calls_session_id_idx ON calls (session_id)",
        "CREATE INDEX CONCURRENTLY calls_consumer_sha_ts_idx ON calls (consumer_sha, ts)",
        "CREATE INDEX CONCURRENTLY calls_txid_idx ON calls USING brin (txid) WITH (autosummarize = on)",
    )
    assert store.health().exact_visibility
    for statement in store.health().advice:
        ask(statement)
    assert open_store().health().advice == ()


def test_a_complete_schema_is_not_touched(open_store: OpenStore, ask: Ask, postgres_url: str) -> None:
    """No lock is asked for, so a long transaction on the tables delays nothing."""
    open_store().close()
    with psycopg.connect(postgres_url) as holder:
        holder.execute("LOCK TABLE calls, route_observations, offer_history IN ACCESS EXCLUSIVE MODE")
        holder.execute("ALTER TABLE calls ADD COLUMN of_the_host text")  # not ours
        assert open_store().health().missing == ()


def test_a_long_transaction_on_an_old_table_delays_only_its_evolution(
    open_store: OpenStore, ask: Ask, postgres_url: str
) -> None:
    """Rows are written with the columns there are; when the lock is gone, the rest follows by itself."""
    ask(_old_schema())
    with psycopg.connect(postgres_url) as holder:
        holder.execute("SELECT count(*) FROM route_observations")  # holds its lock to the end of the transaction
        store = open_store()
        health = store.health()
        assert {name.split()[1] for name in health.missing} == {"route_observations"}
        assert not health.exact_visibility
        assert "LockNotAvailable" in (health.last_error or "")
        store.record_attempt(attempt(1, replica="r"))
        store.record_call(call(1, replica="r"))
        assert store.drain(10).left == 0
        assert store.read(NOW_MS + 10).stats.keys() == {"p|m|"}
    _until(store, lambda health: health.exact_visibility)
    store.record_attempt(attempt(2, replica="r"))
    store.drain(10)
    rows = ask("SELECT request_id, replica FROM route_observations ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [(None, None), ("e2", "r")]
    assert ask("SELECT replica FROM calls") == [{"replica": "r"}]


@pytest.mark.parametrize("old", [False, True], ids=["empty", "old"])
def test_processes_that_start_at_once_make_one_schema(ask: Ask, postgres_url: str, old: bool) -> None:
    """Three of them, each of which then writes a row; nobody fails."""
    if old:
        ask(_old_schema())
    code = (
        "import sys; from store_rows import attempt; from replay.ledger.store import Store\n"
        "store = Store(sys.argv[1], retention_days=None); store.record_attempt(attempt(int(sys.argv[2])))\n"
        "print(store.ready(20), store.close(20), store.health().missing, store.health().exact_visibility)"
    )
    command = [sys.executable, "-W", "error", "-c", code, postgres_url]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "tests:."}
    running = [
        subprocess.Popen([*command, str(number)], stdout=-1, stderr=-1, text=True, env=environment)
        for number in range(3)
    ]
    said = [process.communicate(timeout=60) for process in running]
    assert [out for out, _ in said] == ["True Drained(written=2, dropped=0, left=0) () True\n"] * 3, said
    assert ask("SELECT count(*) AS n, count(txid) AS known FROM route_observations") == [{"n": 3, "known": 3}]


@pytest.fixture
def role(postgres_url: str, ask: Ask) -> Iterator[tuple[str, str]]:
    """A role without any rights on this test's tables: its name, and its connection string."""
    name = f"replay_test_{secrets.token_hex(6)}"
    ask(f"CREATE ROLE {name} LOGIN PASSWORD '{name}'")
    [here] = ask("SELECT current_schema() AS name")
    ask(f"GRANT USAGE ON SCHEMA {here['name']} TO {name}")
    yield name, make_conninfo(postgres_url, user=name, password=name)
    ask(f"DROP OWNED BY {name}; DROP ROLE {name}")


def _grant(ask: Ask, rights: str, role: str) -> None:
    [here] = ask("SELECT current_schema() AS name")
    ask(f"GRANT {rights} ON ALL TABLES IN SCHEMA {here['name']} TO {role}")


def test_a_role_that_may_only_insert_and_select_uses_what_is_there(
    open_store: OpenStore, ask: Ask, role: tuple[str, str]
) -> None:
    """On the old tables: rows go in with the old columns, reads work, there is no exact visibility, and it is said."""
    name, url = role
    ask(_old_schema())
    _grant(ask, "SELECT, INSERT", name)
    store = open_store(url, retention_days=1)
    health = store.health()
    assert not health.exact_visibility
    assert "column calls txid" in health.missing
    assert "InsufficientPrivilege" in (health.last_error or "")
    store.record_offers([offer(0)], 5)
    for number in range(501):
        store.record_attempt(attempt(number, ts=1))
        store.record_call(call(number, ts=1))
    done = store.drain(10)
    assert (done.left, store.health().dropped) == (0, {"not_writable": 2})  # the offers and the settings: no tables
    assert ask("SELECT count(*) AS n FROM calls") == [{"n": 501}]  # expired, but not this role's to delete
    assert store.health().deleted == {}
    assert store.read(10).stats.keys() == {"p|m|"}
    assert store.session_totals("s").calls == 501


def test_a_role_that_may_only_read_reads(open_store: OpenStore, ask: Ask, role: tuple[str, str]) -> None:
    """What it records is dropped and counted, and never held against its reading."""
    name, url = role
    writer = open_store()
    writer.record_attempt(attempt(1))
    writer.drain(10)
    _grant(ask, "SELECT", name)
    store = open_store(url)
    store.record_attempt(attempt(2))
    assert store.drain(10).left == 0
    assert store.health().dropped == {"not_writable": 2}
    assert store.read(NOW_MS + 10).stats.keys() == {"p|m|"}
