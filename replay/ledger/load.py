"""Read a mirror's ledgers into memory, once, and say exactly what was read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    import duckdb

TABLES = ("calls", "route_observations", "provider_prices", "offer_history", "policies", "settings")

_INSTANT = {"calls": "ts * 1000", "route_observations": "ts", "offer_history": "valid_from"}


@dataclass(frozen=True)
class Ledger:
    """The ledgers as plain frames with the mirror's columns, sorted by id, and the identity of what was read.

    `identity` maps each table to its `rows`, `first_ms`, `last_ms` (of what has an instant) and `content`: a hash
    over the rows that does not depend on their order.
    """

    calls: pl.DataFrame
    attempts: pl.DataFrame
    offers: pl.DataFrame
    prices: pl.DataFrame
    policies: pl.DataFrame
    settings: pl.DataFrame
    identity: dict[str, dict[str, Any]]


def load_ledger(connection: duckdb.DuckDBPyConnection) -> Ledger:
    """Load every table a replay needs from an open mirror."""

    def frame(table: str, order: str) -> pl.DataFrame:
        return connection.execute(f"SELECT * FROM {table} ORDER BY {order}").pl()

    return Ledger(
        calls=frame("calls", "id"),
        attempts=frame("route_observations", "id"),
        offers=frame("offer_history", "id"),
        prices=frame("provider_prices", "provider_id, model_family"),
        policies=frame("policies", "policy_id"),
        settings=frame("settings", "settings_id"),
        identity={table: table_identity(connection, table) for table in TABLES},
    )


def table_identity(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, Any]:
    """Return a table's row count, time range and content hash: the xor of every row's MD5, as 32 hex digits.

    Rows are unique (each table has a key), so no two cancel out; MD5 is the same in every version and on every
    machine, which DuckDB's own `hash()` does not promise.
    """
    instant = _INSTANT.get(table, "NULL::BIGINT")
    row = connection.execute(
        f"SELECT count(*), min({instant}), max({instant}), "
        f"coalesce(bit_xor(md5_number(to_json(t)::VARCHAR)), 0::UHUGEINT)::VARCHAR FROM {table} AS t"
    ).fetchone()
    assert row is not None
    return {"rows": row[0], "first_ms": row[1], "last_ms": row[2], "content": f"{int(row[3]):032x}"}
