"""The shared SQL's own answers on a scenario, at a handful of its instants: a changed query shows, flips or none."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import duckdb
import polars as pl
import psycopg
from psycopg import sql

from replay import queries
from replay.errors import ReplayError
from replay.ledger.folder import frames
from replay.ledger.load import Ledger

INSTANTS = 5
WINDOW_MS = 1_800_000
WINDOW_S = 86_400
MIN_SAMPLES = 20

ANSWERS: dict[str, type[pl.DataType]] = {
    "query": pl.String,
    "parameters": pl.String,
    "place": pl.Int64,
    "row": pl.String,
}
"""Columns of `sql.parquet`: the query, its values as JSON, the row's place in the answer (-1: it is empty), the row
as a JSON object whose keys are the columns in their order."""


@dataclass(frozen=True)
class Ask:
    """One query with its values, named."""

    query: str
    values: dict[str, Any]


def asks(ledger: Ledger, since_ms: int | None, until_ms: int | None) -> list[Ask]:
    """Return every shared query with its values at five instants of the slice, spread over its decisions."""
    found = []
    for at_ms in _instants(ledger, since_ms, until_ms):
        known = {
            "since_ms": at_ms - WINDOW_MS,
            "until_ms": at_ms,
            "since_s": at_ms // 1000 - WINDOW_S,
            "until_s": at_ms // 1000,
            "at_ms": at_ms,
            "min_samples": MIN_SAMPLES,
            "session_id": _session(ledger, at_ms),
        }
        for name in queries.names():
            unknown = set(queries.load(name).parameters) - set(known)
            if unknown:
                raise ReplayError(
                    f"the query {name} has the parameter {min(unknown)}, for which the gate knows no value; "
                    "add one in replay/gate/shared_sql.py"
                )
            found.append(Ask(name, {one: known[one] for one in queries.load(name).parameters}))
    once = {(ask.query, json.dumps(ask.values)): ask for ask in found}
    return [once[key] for key in sorted(once)]


def _instants(ledger: Ledger, since_ms: int | None, until_ms: int | None) -> list[int]:
    if len(ledger.calls):
        at = ledger.calls.select(pl.coalesce("decided_at", pl.col("ts") * 1000)).to_series()
    else:
        at = ledger.attempts["ts"]
    known = at.unique().sort().to_list()
    inside = [one for one in known if (since_ms or one) <= one and (until_ms is None or one < until_ms)]
    steps = range(INSTANTS) if inside else ()
    return sorted({inside[step * (len(inside) - 1) // (INSTANTS - 1)] for step in steps})


def _session(ledger: Ledger, at_ms: int) -> str:
    """Return the session of the latest call that ended until then, the empty one where there is none."""
    told = ledger.calls.filter((pl.col("ts") * 1000 <= at_ms) & (pl.col("session_id").fill_null("") != ""))
    return str(told.sort("ts", "id")["session_id"][-1]) if len(told) else ""


def on_duckdb(connection: duckdb.DuckDBPyConnection, asked: Sequence[Ask]) -> pl.DataFrame:
    """Return what the queries say on a mirror that holds the scenario. Out: the columns of `ANSWERS`."""
    answers: list[tuple[Any, ...]] = []
    for ask in asked:
        query = queries.load(ask.query)
        try:
            cursor = connection.execute(query.text, query.bind(**ask.values))
        except duckdb.Error as error:
            raise ReplayError(f"the query {ask.query} fails on DuckDB: {str(error).splitlines()[0]}") from error
        columns = [column[0] for column in cursor.description or []]
        answers += _answer(ask, columns, cursor.fetchall())
    return pl.DataFrame(answers, schema=ANSWERS, orient="row")


def on_postgres(url: str, ledger: Ledger, asked: Sequence[Ask]) -> pl.DataFrame:
    """Return what the queries say on PostgreSQL, in a schema that lives in one transaction, which is rolled back.

    Out: the columns of `ANSWERS`. The connection string is in no message.
    """
    answers: list[tuple[Any, ...]] = []
    try:
        with psycopg.connect(url, cursor_factory=psycopg.RawCursor) as connection, connection.cursor() as cursor:
            schema = sql.Identifier(f"replay_check_{secrets.token_hex(8)}")
            cursor.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
            cursor.execute(sql.SQL("SET LOCAL search_path TO {}").format(schema))
            cursor.execute(queries.ddl("schema").encode())
            for table, frame in frames(ledger).items():
                _copy(cursor, table, frame)
            for ask in asked:
                query = queries.load(ask.query)
                cursor.execute(query.text.encode(), query.bind(**ask.values))
                answers += _answer(ask, [column.name for column in cursor.description or []], cursor.fetchall())
            connection.rollback()
    except psycopg.Error as error:
        said = error.diag.message_primary or "it cannot be reached"
        raise ReplayError(
            f"the shared SQL could not be run on PostgreSQL ({type(error).__name__}: {said}); expected a database "
            "in which a schema may be created: check the connection string, or leave it out"
        ) from error
    return pl.DataFrame(answers, schema=ANSWERS, orient="row")


def _copy(cursor: psycopg.Cursor[Any], table: str, frame: pl.DataFrame) -> None:
    columns = sql.SQL(", ").join(map(sql.Identifier, frame.columns))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), columns)
    with cursor.copy(statement) as copy:
        for row in frame.iter_rows():
            copy.write_row(row)


def _answer(ask: Ask, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
    parameters = json.dumps(ask.values, ensure_ascii=False)
    said: list[tuple[Any, ...]] = [
        (ask.query, parameters, place, _row(dict(zip(columns, row, strict=True)))) for place, row in enumerate(rows)
    ]
    # An empty answer has columns too, and is told apart from a query that was not run.
    return said or [(ask.query, parameters, -1, _row(dict.fromkeys(columns)))]


def _row(row: dict[str, Any]) -> str:
    return json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
