"""What the tests of pull and verify share: rows for production, and a comparison that shares no code with ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg

from replay.ledger.mirror import TABLES, open_mirror

KEYS = {
    "calls": ["id"],
    "route_observations": ["id"],
    "provider_prices": ["provider_id", "model_family"],
    "peer_offers": ["peer_id", "service"],
    "offer_history": ["id"],
    "policies": ["policy_id"],
    "settings": ["settings_id"],
}
assert set(KEYS) == set(TABLES)


def held(mirror: Path, table: str) -> list[dict[str, str]]:
    """Return a mirror's rows, in the order of their key, each value as Python writes it."""
    with open_mirror(mirror) as connection:
        cursor = connection.execute(f"SELECT * FROM {table}")
        names = [column[0] for column in cursor.description or []]
        return _in_order(table, names, cursor.fetchall())


def there(connection: psycopg.Connection[Any], table: str) -> list[dict[str, str]]:
    """Return the database's rows in the same form."""
    cursor = connection.execute(f"SELECT * FROM {table}")
    names = [column.name for column in cursor.description or []]
    return _in_order(table, names, cursor.fetchall())


def _in_order(table: str, names: list[str], rows: list[tuple[Any, ...]]) -> list[dict[str, str]]:
    found = [dict(zip(names, row, strict=True)) for row in rows]
    found.sort(key=lambda row: [row[name] for name in KEYS[table]])
    return [{name: repr(value) for name, value in row.items()} for row in found]


def assert_same(connection: psycopg.Connection[Any], mirror: Path, *tables: str) -> None:
    """The mirror holds the database's rows, to the last bit and no other."""
    for table in tables or TABLES:
        assert held(mirror, table) == there(connection, table), table


def add_attempts(connection: psycopg.Connection[Any], count: int, first_ts: int = 1000) -> None:
    """Insert that many attempts, a millisecond apart."""
    connection.execute(
        "INSERT INTO route_observations (ts, provider_id, model_family, ok, latency_ms) "
        "SELECT %s + n, 'p' || n %% 7, 'm', n %% 5 <> 0, n / 7.0 FROM generate_series(0, %s - 1) n",
        [first_ts, count],
    )


def add_call(connection: psycopg.Connection[Any], **values: Any) -> int:
    """Insert a call; return its id."""
    values = {"ts": 1, **values}
    row = connection.execute(
        f"INSERT INTO calls ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))}) RETURNING id",
        list(values.values()),
    ).fetchone()
    assert row is not None
    return int(row[0])
