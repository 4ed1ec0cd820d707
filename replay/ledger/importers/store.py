"""Adds `mapped_rows` to the mirror's tables: new rows in, known rows counted, contradictions refused, rejects kept."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from replay.errors import ReplayError
from replay.ledger.importers.convert import literal, quote
from replay.ledger.importers.files import ROW, SOURCE_ROWS, Source
from replay.ledger.importers.plan import Plan
from replay.ledger.importers.rows import MAPPED_ROWS, column_of
from replay.ledger.importers.targets import Target, targets

_NEW_ROWS = "new_rows"


@dataclass(frozen=True)
class TargetReport:
    """What became of a file's rows in one target: read = added + present + rejected; `reasons` counts the rejected."""

    target: str
    read: int
    added: int
    present: int
    rejected: int
    reasons: dict[str, int]


def store_rows(connection: duckdb.DuckDBPyConnection, source: Source, plan: Plan, table: str) -> TargetReport:
    """Store one target's rows inside the caller's transaction. Raises ReplayError for a contradicting key."""
    target = targets()[table]
    values = _values(plan, target)
    _collect(connection, target, values)
    _refuse_contradictions(connection, source, target, values)
    key = ", ".join(target.key)
    # One row per key; sorted, so that shuffled input gives the same table down to the order of its rows.
    once = (
        f"SELECT * EXCLUDE ({ROW}) FROM {_NEW_ROWS} QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {ROW}) = 1"
    )
    order = ", ".join([*(name for name in ("ts", "valid_from") if name in values), *target.key])
    added = _count(
        connection,
        f"INSERT INTO {table} BY NAME SELECT * FROM ({once}) ANTI JOIN {table} USING ({key}) ORDER BY {order}",
    )
    usable = _count(connection, f"SELECT count(*) FROM {_NEW_ROWS}")
    reasons = dict(
        connection.execute(
            f"SELECT {_reason(table)}, count(*) FROM {MAPPED_ROWS} WHERE {_reason(table)} IS NOT NULL "
            "GROUP BY 1 ORDER BY 2 DESC, 1"
        ).fetchall()
    )
    report = TargetReport(table, source.rows, added, usable - added, source.rows - usable, reasons)
    _remember(connection, source, plan, report)
    return report


def _count(connection: duckdb.DuckDBPyConnection, statement: str) -> int:
    row = connection.execute(statement).fetchone()
    return int(row[0]) if row else 0


def _reason(table: str) -> str:
    return quote(f"reason.{table}")


def _values(plan: Plan, target: Target) -> dict[str, str]:
    """Return the SQL of every column this import gives, by name, in the order of `mirror.sql`."""
    cells = plan.cells[target.name]
    values = {
        name: "CAST(identity AS VARCHAR)" if cells[name].is_row_id else column_of(target.name, name)
        for name in target.columns
        if name in cells
    }
    if target.key == ("id",):
        values["id"] = f"coalesce({values['id']}, identity)" if "id" in values else "identity"
    if target.name == "calls":
        _derive(values)
    return {name: values[name] for name in target.columns if name in values}


def _derive(values: dict[str, str]) -> None:
    """Add the columns of a call that follow from others, where the file has none of its own."""
    parts = ("provider_id", "model_family", "served_by")
    if "route_key" not in values and any(part in values for part in parts):
        texts = " || '|' || ".join(f"coalesce({values.get(part, 'NULL')}, '')" for part in parts)
        values["route_key"] = f"CASE WHEN {texts} <> '||' THEN {texts} END"
    if "tokens_total" not in values and {"tokens_in", "tokens_out"} <= values.keys():
        values["tokens_total"] = f"{values['tokens_in']} + {values['tokens_out']}"


def _collect(connection: duckdb.DuckDBPyConnection, target: Target, values: dict[str, str]) -> None:
    listed = ", ".join(f"{value} AS {name}" for name, value in values.items())
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {_NEW_ROWS} AS "
        f"SELECT {ROW}, {listed} FROM {MAPPED_ROWS} WHERE {_reason(target.name)} IS NULL"
    )


def _refuse_contradictions(
    connection: duckdb.DuckDBPyConnection, source: Source, target: Target, values: dict[str, str]
) -> None:
    """Refuse a key that the mirror, or the file itself, already holds with other values."""
    others = [name for name in values if name not in target.key]
    if not others:
        return
    key = ", ".join(target.key)
    same_key = " AND ".join(f"fresh.{name} = held.{name}" for name in target.key)
    differs = " OR ".join(f"fresh.{name} IS DISTINCT FROM held.{name}" for name in others)
    differing = ", ".join(f"CASE WHEN fresh.{n} IS DISTINCT FROM held.{n} THEN {literal(n)} END" for n in others)
    first = f"(SELECT * FROM {_NEW_ROWS} QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {ROW}) = 1)"
    for place, held in ((f"the mirror's {target.name}", target.name), ("an earlier row of the file", first)):
        found = connection.execute(
            f"SELECT fresh.{ROW}, {', '.join(f'fresh.{name}' for name in target.key)}, "
            f"concat_ws(', ', {differing}) "
            f"FROM {_NEW_ROWS} fresh JOIN {held} held ON {same_key} WHERE {differs} ORDER BY 1 LIMIT 1"
        ).fetchone()
        if found is not None:
            said = ", ".join(f"{name} {value}" for name, value in zip(target.key, found[1:-1], strict=True))
            raise ReplayError(
                f"{source.path}, row {found[0]}: {said} is already in {place} with other values ({found[-1]} differ). "
                "A mirror holds one production's ledger, in which a row never changes: import this file into another "
                "mirror (--into). Nothing was imported."
            )


def _remember(connection: duckdb.DuckDBPyConnection, source: Source, plan: Plan, report: TargetReport) -> None:
    table = report.target
    texts = ", ".join(f"{literal(name)}, {stored}" for name, stored in source.columns.items())
    connection.execute(
        f"INSERT OR IGNORE INTO mirror_rejects SELECT ?, ?, ?, {ROW}, {_reason(table)}, json_object({texts})::VARCHAR "
        f"FROM {MAPPED_ROWS} JOIN {SOURCE_ROWS} USING ({ROW}) WHERE {_reason(table)} IS NOT NULL ORDER BY {ROW}",
        [source.sha256, table, plan.label],
    )
    # The first import of a file is what is remembered; only rows that a later one still added are counted on top.
    connection.execute(
        "INSERT INTO mirror_imports VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
        "rows_added = rows_added + excluded.rows_added, "
        "rows_present = greatest(0, rows_present - excluded.rows_added), rows_rejected = excluded.rows_rejected",
        [
            source.sha256,
            table,
            plan.label,
            source.path.name,
            report.read,
            report.added,
            report.present,
            report.rejected,
        ],
    )
