from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import duckdb
import psycopg
import pytest

from replay import queries

TYPES = {
    "BIGINT": "bigint",
    "INTEGER": "integer",
    "DOUBLE": "double precision",
    "BOOLEAN": "boolean",
    "VARCHAR": "text",
}
COLUMNS = """
    SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns
    WHERE table_schema = $1 ORDER BY table_name, ordinal_position
"""
KEYS = """
    SELECT u.table_name, u.column_name
    FROM information_schema.table_constraints t
    JOIN information_schema.key_column_usage u
        ON u.constraint_name = t.constraint_name AND u.table_name = t.table_name AND u.table_schema = t.table_schema
    WHERE t.constraint_type = 'PRIMARY KEY' AND t.table_schema = $1
    ORDER BY u.table_name, u.ordinal_position
"""


def _connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, cursor_factory=psycopg.RawCursor)


def _evolve(connection: psycopg.Connection[Any]) -> None:
    connection.execute(queries.ddl("schema"))
    connection.commit()


def _columns(connection: psycopg.Connection[Any]) -> list[tuple[str, ...]]:
    return connection.execute(COLUMNS, ["public"]).fetchall()


@pytest.fixture
def empty(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to an empty database."""
    with _connect(postgres_url) as connection:
        yield connection


@pytest.fixture
def mirror() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty mirror in memory."""
    with duckdb.connect() as connection:
        connection.execute(queries.ddl("mirror"))
        yield connection


def _old_schema() -> str:
    """What production had before replay: schema.sql without what is added to it, and without the new tables."""
    before = queries.ddl("schema").split("-- New with replay.")[0]
    return re.sub(r"ALTER TABLE[^;]*;", "", before)


def _make_old(connection: psycopg.Connection[Any]) -> None:
    connection.execute(_old_schema())
    connection.execute("INSERT INTO calls (ts, session_id) VALUES (1, 'old')")
    connection.execute("INSERT INTO route_observations (ts, ok) VALUES (1000, true)")
    connection.commit()


def test_both_engines_have_the_same_columns_and_types(empty: Any, mirror: duckdb.DuckDBPyConnection) -> None:
    """Table by table, in order, with the same NOT NULL; the mirror's own two tables apart."""
    _evolve(empty)
    rows = mirror.execute(COLUMNS, ["main"]).fetchall()
    theirs = [(table, column, TYPES[type_], null) for table, column, type_, null in rows if table[:7] != "mirror_"]
    assert len(theirs) > 80
    assert _columns(empty) == theirs


def test_both_engines_have_the_same_primary_keys(empty: Any, mirror: duckdb.DuckDBPyConnection) -> None:
    """The mirror identifies a row by what production does; of the two large tables it keeps no index of that."""
    _evolve(empty)
    theirs = [row for row in mirror.execute(KEYS, ["main"]).fetchall() if row[0][:7] != "mirror_"]
    ours = empty.execute(KEYS, ["public"]).fetchall()
    large = [("calls", "id"), ("route_observations", "id")]
    assert set(large) <= set(ours)
    assert [row for row in ours if row not in large] == theirs


def test_the_mirror_can_be_made_twice(mirror: duckdb.DuckDBPyConnection) -> None:
    """Nothing changes the second time."""
    before = mirror.execute(COLUMNS, ["main"]).fetchall()
    mirror.execute(queries.ddl("mirror"))
    assert mirror.execute(COLUMNS, ["main"]).fetchall() == before


def test_the_schema_can_be_applied_twice(empty: Any) -> None:
    """The second time changes nothing and keeps the rows."""
    _evolve(empty)
    before = _columns(empty)
    empty.execute("INSERT INTO calls (ts) VALUES (1)")
    _evolve(empty)
    assert _columns(empty) == before
    assert empty.execute("SELECT count(*) FROM calls").fetchone() == (1,)


def test_an_old_database_gains_the_new_columns_and_keeps_its_rows(empty: Any) -> None:
    """The columns are those of a new database; an old row has no transaction id."""
    _make_old(empty)
    assert "txid" not in {column for _, column, *_ in _columns(empty)}
    _evolve(empty)
    after = _columns(empty)
    assert ("calls", "evidence_snapshot", "text", "YES") in after
    assert ("route_observations", "replica_seq", "bigint", "YES") in after
    assert empty.execute("SELECT session_id, decided_at, txid FROM calls").fetchall() == [("old", None, None)]
    assert empty.execute("SELECT ts, started_at, txid FROM route_observations").fetchall() == [(1000, None, None)]


def test_evolving_does_not_rewrite_a_table(empty: Any) -> None:
    """The file on disk stays the same one, so a large production table is not locked while it is copied."""
    files = "SELECT pg_relation_filenode('calls'), pg_relation_filenode('route_observations')"
    _make_old(empty)
    before = empty.execute(files).fetchone()
    _evolve(empty)
    assert empty.execute(files).fetchone() == before


@pytest.mark.parametrize(
    "insert", ["INSERT INTO calls (ts) VALUES (1)", "INSERT INTO route_observations (ts, ok) VALUES (1, true)"]
)
def test_a_row_carries_the_transaction_that_wrote_it(empty: Any, insert: str) -> None:
    """By default, and comparable with a snapshot: not visible before the commit, visible after."""
    _evolve(empty)
    [(txid, current)] = empty.execute(f"{insert} RETURNING txid, pg_current_xact_id()::text").fetchall()
    assert str(txid) == current
    empty.commit()
    [(visible,)] = empty.execute(f"SELECT pg_visible_in_snapshot('{txid}'::xid8, pg_current_snapshot())").fetchall()
    assert visible is True


def test_ids_are_handed_out_by_the_database_and_may_be_given(empty: Any) -> None:
    """Identity columns, which a copy of a ledger can fill with the ids it has."""
    _evolve(empty)
    assert empty.execute("INSERT INTO calls (ts) VALUES (1), (2) RETURNING id").fetchall() == [(1,), (2,)]
    assert empty.execute("INSERT INTO calls (id, ts) VALUES (99, 3) RETURNING id").fetchall() == [(99,)]


def test_the_indexes_of_the_system_page_are_there(empty: Any) -> None:
    """Those of calls and of route_observations, column by column."""
    _evolve(empty)
    rows = empty.execute("SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'").fetchall()
    indexes = {(table, definition.split("(")[1].rstrip(")")) for table, definition in rows}
    assert indexes >= {
        ("calls", "ts"),
        ("calls", "route_key, ts"),
        ("calls", "session_id"),
        ("calls", "consumer_sha, ts"),
        ("calls", "caller, ts"),
        ("route_observations", "ts"),
        ("route_observations", "provider_id, model_family, served_by, ts"),
    }


@pytest.mark.parametrize("old", [False, True], ids=["empty database", "old database"])
def test_two_processes_that_start_at_once_take_turns(empty: Any, postgres_url: str, old: bool) -> None:
    """The second waits for the advisory lock until the first commits, then finds nothing left to do."""
    if old:
        _make_old(empty)
    errors: list[Exception] = []

    def second() -> None:
        try:
            with _connect(postgres_url) as connection:
                _evolve(connection)
        except Exception as error:
            errors.append(error)

    empty.execute(queries.ddl("schema"))  # not committed yet
    thread = threading.Thread(target=second)
    thread.start()
    with _connect(postgres_url) as observer:
        _wait_for(observer, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
    assert thread.is_alive()
    empty.commit()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert errors == []
    assert "txid" in {column for _, column, *_ in _columns(empty)}


def _wait_for(connection: psycopg.Connection[Any], count: str) -> None:
    for _ in range(300):
        if connection.execute(count).fetchone() == (1,):
            return
        connection.rollback()
        time.sleep(0.1)
    raise AssertionError(f"not 1 after 30 s: {count}")


def test_a_window_is_read_through_the_index(empty: Any) -> None:
    """A narrow window on a long ledger touches its own rows, not the whole table."""
    _evolve(empty)
    empty.execute(
        "INSERT INTO route_observations (ts, provider_id, ok) SELECT n, 'p', true FROM generate_series(1, 20000) n"
    )
    empty.execute("ANALYZE route_observations")
    query = queries.load("route_stats")
    plan = empty.execute("EXPLAIN " + query.text, query.bind(since_ms=19_900, until_ms=2**63 - 1)).fetchall()
    assert "route_observations_ts_idx" in "\n".join(line for (line,) in plan)
