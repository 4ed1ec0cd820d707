"""The schema in a database that may be older: what is there, and how it becomes what `schema.sql` says.

Only what is missing is done, one table at a time, each under the schema's advisory lock and with a short bound on
every lock: a long transaction on an old table delays the evolution, never the other way round. An index that is
missing on a large table is not built here, since that would hold up its writers; the operator is told the statement.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from replay import queries
from replay.ledger.postgres import Connection, bounded, psycopg

LOCK_TIMEOUT_MS = 100
"""How long a statement that changes a table may wait for its lock, and so hold up those behind it."""

LARGE_BYTES = 32 * 2**20
"""From this size of a table on, an index is left to the operator."""

_COLUMNS = """
    SELECT wanted.name AS table_name, c.oid IS NOT NULL AS present,
        coalesce(has_table_privilege(c.oid, 'DELETE'), false) AS deletable,
        coalesce(array_agg(a.attname::text) FILTER (WHERE a.attname IS NOT NULL), '{}') AS columns,
        coalesce(array_agg(a.attname::text) FILTER (WHERE has_column_privilege(c.oid, a.attnum, 'INSERT')), '{}')
            AS writable,
        coalesce(array_agg(a.attname::text) FILTER (WHERE a.atthasdef), '{}') AS defaults
    FROM unnest($1::text[]) AS wanted (name)
    LEFT JOIN pg_class AS c ON c.oid = to_regclass(wanted.name)
    LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    GROUP BY wanted.name, c.oid
"""
_INDEXES = """
    SELECT wanted.name AS table_name, array(
        SELECT a.attname::text FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE k.place <= i.indnkeyatts ORDER BY k.place
    ) AS columns
    FROM unnest($1::text[]) AS wanted (name)
    JOIN pg_index AS i ON i.indrelid = to_regclass(wanted.name)
    WHERE i.indisvalid AND i.indpred IS NULL
"""
_FORMS = {
    "lock": r"SELECT pg_advisory_xact_lock\(\d+\)",
    "table": r"CREATE TABLE IF NOT EXISTS (?P<table>\w+) \(.*",
    "column": r"ALTER TABLE (?P<table>\w+) ADD COLUMN IF NOT EXISTS (?P<what>\w+) [^,]*",
    "default": r"ALTER TABLE (?P<table>\w+) ALTER COLUMN (?P<what>\w+) SET DEFAULT .*",
    "index": r"CREATE INDEX IF NOT EXISTS \w+ ON (?P<table>\w+) (?:USING \w+ )?\((?P<what>[\w, ]+)\)(?: WITH \(.*\))?",
}


@dataclass(frozen=True)
class Statement:
    """One statement of `schema.sql`: its kind (see `_FORMS`), its table, and the column or columns it is about."""

    kind: str
    table: str
    what: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table as this role finds it."""

    present: bool = False
    deletable: bool = False
    columns: frozenset[str] = frozenset()
    writable: frozenset[str] = frozenset()
    defaults: frozenset[str] = frozenset()
    indexes: frozenset[str] = frozenset()  # each as "column, column"


@dataclass(frozen=True)
class Layout:
    """What is in the database: the tables, what they lack of the schema, and what only an operator should do."""

    tables: Mapping[str, Table] = field(default_factory=dict)
    missing: tuple[Statement, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def exact_visibility(self) -> bool:
        """Whether rows say which transaction wrote them and calls say what their decision could see."""
        calls, attempts = self.tables.get("calls", Table()), self.tables.get("route_observations", Table())
        return "evidence_snapshot" in calls.writable and "txid" in attempts.defaults


@cache
def statements() -> tuple[Statement, ...]:
    """Return the statements of `schema.sql` in order.

    >>> [statement.kind for statement in statements()][:3], statements()[1].table
    (['lock', 'table', 'column'], 'calls')
    """
    text = re.sub(r"--[^\n]*", "", queries.ddl("schema"))
    found = []
    for statement in filter(None, (" ".join(part.split()) for part in text.split(";"))):
        kind, match = next((kind, m) for kind, form in _FORMS.items() if (m := re.fullmatch(form, statement)))
        parts = match.groupdict()
        found.append(Statement(kind, parts.get("table", ""), parts.get("what", ""), statement))
    return tuple(found)


def inspect(connection: Connection) -> Layout:
    """Return what the database holds of the schema, in the order of the connection's search path; changes nothing."""
    names = list(dict.fromkeys(statement.table for statement in statements() if statement.table))
    with bounded(connection), connection.pipeline():
        columns, indexes = connection.execute(_COLUMNS, [names]), connection.execute(_INDEXES, [names])
    having: dict[str, set[str]] = {}
    for row in indexes.fetchall():
        having.setdefault(row["table_name"], set()).add(", ".join(row["columns"]))
    tables = {
        row["table_name"]: Table(
            present=row["present"],
            deletable=row["deletable"],
            columns=frozenset(row["columns"]),
            writable=frozenset(row["writable"]),
            defaults=frozenset(row["defaults"]),
            indexes=frozenset(having.get(row["table_name"], ())),
        )
        for row in columns.fetchall()
    }
    lacking = [statement for statement in statements() if _lacks(tables, statement)]
    large = _large(connection, {one.table for one in lacking if one.kind == "index" and tables[one.table].present})
    advice = [one for one in lacking if one.kind == "index" and one.table in large]
    return Layout(
        tables,
        tuple(statement for statement in lacking if statement not in advice),
        tuple(one.text.replace("INDEX IF NOT EXISTS", "INDEX CONCURRENTLY") for one in advice),
    )


def evolve(connection: Connection) -> tuple[Layout, Exception | None]:
    """Do what is missing; return what is there now, and what stood in the way (a lock, a right) if anything did.

    Each table is its own transaction, so one that is held by a long transaction does not keep the others back. Raises
    what the connection raises when it is lost.
    """
    layout = inspect(connection)
    obstacle: Exception | None = None
    for table in dict.fromkeys(statement.table for statement in layout.missing):
        try:
            _evolve_table(connection, [one for one in layout.missing if one.table == table])
        except psycopg.Error as error:
            if connection.closed:
                raise
            obstacle = obstacle or error
    return (inspect(connection) if layout.missing else layout), obstacle


def _evolve_table(connection: Connection, missing: Iterable[Statement]) -> None:
    with bounded(connection):  # whoever evolves the schema at this moment is waited for
        connection.execute(statements()[0].text)
        connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        for statement in missing:
            connection.execute(statement.text)


def _lacks(tables: Mapping[str, Table], statement: Statement) -> bool:
    if statement.kind == "lock":
        return False
    table = tables[statement.table]
    having = {"column": table.columns, "default": table.defaults, "index": table.indexes}
    return not table.present if statement.kind == "table" else statement.what not in having[statement.kind]


def _large(connection: Connection, names: Iterable[str]) -> set[str]:
    """Return those of some tables that are large. Asked only where it matters: their size takes a lock to read."""
    sizes = "SELECT name FROM unnest($1::text[]) AS name WHERE pg_relation_size(to_regclass(name)) >= $2"
    return {row["name"] for row in connection.execute(sizes, [list(names), LARGE_BYTES])} if names else set()
