"""What can be filled: each target's columns with their types, what a row must have, and what makes it unusable.

Columns and types come from `mirror.sql`, which stays the only list of them; here is what SQL types do not say:
units of instants, which columns hold JSON, and the reasons for which a readable row is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import duckdb

from replay.ledger.mirror import TABLES, schema_sql

PRICE_EVENTS = "price_events"
"""A target outside the mirror: the events of a price list, read by `replay prices`."""

_PRICE_EVENTS_SQL = """CREATE TABLE price_events (
    ts_ms BIGINT NOT NULL, model TEXT NOT NULL, event TEXT NOT NULL, price_in DOUBLE, price_out DOUBLE,
    price_cached_in DOUBLE, context BIGINT, supports_tools BOOLEAN)"""

_SECONDS = {("calls", "ts")}
_MILLISECONDS = {
    "calls": ("decided_at", "evidence_at"),
    "route_observations": ("ts", "started_at"),
    "provider_prices": ("updated_at",),
    "peer_offers": ("last_seen", "observed_at", "first_seen", "fetched_at"),
    "offer_history": ("valid_from", "valid_to"),
    "policies": ("recorded_at",),
    "settings": ("recorded_at",),
    PRICE_EVENTS: ("ts_ms",),
}
_JSON = {
    "calls": ("request",),
    "offer_history": ("capabilities", "declared"),
    "policies": ("term", "declared_fields", "tiers"),
    "settings": ("settings",),
}
# `id` is not here: rows without one get the hash of their values.
_KEYS = {
    "provider_prices": ("provider_id", "model_family"),
    "peer_offers": ("peer_id", "service"),
    "policies": ("policy_id",),
    "settings": ("settings_id",),
}
_MEANING = {
    ("calls", "ts"): "seconds, when the call ended",
    ("route_observations", "ts"): "milliseconds, when the attempt ended",
    ("route_observations", "ok"): "true or false",
    ("offer_history", "valid_from"): "milliseconds",
    ("offer_history", "position"): "the candidate order",
    (PRICE_EVENTS, "ts_ms"): "milliseconds",
}
# Such list prices are kept: the cost query skips and counts them, and an offer's +inf means "no price".
_MAY_BE_INFINITE = ("price_in", "price_out", "price_cached_in")
_NEVER_NEGATIVE = (
    "latency_ms",
    "tokens_in",
    "tokens_out",
    "tokens_total",
    "tokens_cached",
    "cost_usd",
    "context",
    "tok_s",
    "max_concurrency",
)
_CLOSED = {
    ("calls", "cost_basis"): ("reported", "computed", "subscription"),
    ("calls", "evidence_state"): ("ok", "unavailable"),
}


@dataclass(frozen=True)
class Column:
    """One column of a target; `kind` is bigint, integer, double, boolean, text, json, s or ms (instants)."""

    name: str
    kind: str
    required: bool
    meaning: str = ""

    @property
    def sql_type(self) -> str:
        """Return the column's DuckDB type."""
        return {"s": "BIGINT", "ms": "BIGINT", "json": "VARCHAR", "text": "VARCHAR"}.get(self.kind, self.kind.upper())

    def describe(self) -> str:
        """Return the name, with what it must hold where that is not obvious."""
        return f"{self.name} ({self.meaning})" if self.meaning else self.name


@dataclass(frozen=True)
class Target:
    """A table that can be filled: its columns, its key, and the reasons to reject a row as (reason, SQL condition)."""

    name: str
    columns: dict[str, Column]
    key: tuple[str, ...]
    rejections: tuple[tuple[str, str, tuple[str, ...]], ...] = field(default=())

    @property
    def required(self) -> list[Column]:
        """Return the columns without which no row is usable."""
        return [column for column in self.columns.values() if column.required]


@cache
def targets() -> dict[str, Target]:
    """Return every target by name, with columns and types read from `mirror.sql`.

    >>> [column.describe() for column in targets()["route_observations"].required]
    ['ts (milliseconds, when the attempt ended)', 'ok (true or false)']
    """
    with duckdb.connect() as connection:
        connection.execute(schema_sql())
        connection.execute(_PRICE_EVENTS_SQL)
        return {name: _target(connection, name) for name in (*TABLES, PRICE_EVENTS)}


def _target(connection: duckdb.DuckDBPyConnection, table: str) -> Target:
    described = connection.execute(
        "SELECT column_name, data_type, NOT is_nullable FROM duckdb_columns() WHERE table_name = ? "
        "ORDER BY column_index",
        [table],
    ).fetchall()
    columns = {}
    for name, sql_type, not_null in described:
        kind = {"VARCHAR": "text"}.get(sql_type, sql_type.lower())
        if (table, name) in _SECONDS:
            kind = "s"
        elif name in _MILLISECONDS.get(table, ()):
            kind = "ms"
        elif name in _JSON.get(table, ()):
            kind = "json"
        columns[name] = Column(name, kind, bool(not_null) and name != "id", _MEANING.get((table, name), ""))
    return Target(table, columns, _KEYS.get(table, ("id",)), tuple(_rejections(table, columns)))


def _rejections(table: str, columns: dict[str, Column]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (reason, SQL condition with columns as {name}, those columns), most telling first."""
    reasons: list[tuple[str, str, tuple[str, ...]]] = []
    for column in columns.values():
        if column.required:
            reasons.append((f"no {column.describe()}", f"{{{column.name}}} IS NULL", (column.name,)))
    if table == "route_observations":
        condition = "coalesce({provider_id}, '') = '' AND coalesce({model_family}, '') = ''"
        reasons.append(("no route (neither provider_id nor model_family)", condition, ("provider_id", "model_family")))
    for name, column in columns.items():
        if column.kind == "double":
            test = (
                f"isnan({{{name}}})"
                if name in _MAY_BE_INFINITE and table != PRICE_EVENTS
                else f"NOT isfinite({{{name}}})"
            )
            reasons.append((f"{name} is not finite", test, (name,)))
        if (
            name in _NEVER_NEGATIVE
            or column.kind in ("s", "ms")
            or (table == PRICE_EVENTS and name in _MAY_BE_INFINITE)
        ):
            reasons.append((f"{name} is negative", f"{{{name}}} < 0", (name,)))
        if (table, name) in _CLOSED:
            allowed = _CLOSED[table, name]
            listed = ", ".join(f"'{value}'" for value in allowed)
            reasons.append((f"{name} is none of {', '.join(allowed)}", f"{{{name}}} NOT IN ({listed})", (name,)))
    if "id" in columns:
        reasons.append(("id is negative", "{id} < 0", ("id",)))
    return reasons
