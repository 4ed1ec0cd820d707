"""The source of a pull: one PostgreSQL connection, one read-only snapshot, rows as Arrow tables.

Rows come over ADBC (the Arrow project's PostgreSQL driver), which reads PostgreSQL's binary COPY: no value is turned
into text and back, and none touches the disk on the way. What the driver says of an error may hold the user, the
host or the query, so only PostgreSQL's own sentence is passed on, without what the connection string holds.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import adbc_driver_postgresql.dbapi as adbc  # type: ignore[import-untyped, unused-ignore]
import psycopg
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from replay.errors import ReplayError
from replay.ledger.pull.ahead import ahead

CONNECT_TIMEOUT_S = 10

_SOME_BYTES = 32 << 20  # twice the driver's own choice: fewer insertions, and still four or so to a batch

_HARMLESS = ("port", "connect_timeout", "application_name", "sslmode")

_XIDS = 2**32  # PostgreSQL's row versions carry the low 32 bits of their transaction id


@dataclass(frozen=True)
class Snapshot:
    """The bounds of `pg_current_snapshot()`: every transaction below `xmin` had ended, none from `xmax` on had."""

    text: str
    xmin: int
    xmax: int

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read PostgreSQL's text form, of which only the bounds are needed here.

        >>> Snapshot.parse("100:107:100,103").xmax
        107
        """
        xmin, xmax, _ = text.split(":")
        return cls(text, int(xmin), int(xmax))


class Source:
    """A PostgreSQL database as one snapshot sees it; make one with `open_source`."""

    def __init__(self, connection: Any, secrets: list[str]) -> None:
        self._connection = connection
        self._secrets = secrets

    @cached_property
    def snapshot(self) -> Snapshot:
        """What this reader sees."""
        return Snapshot.parse(self.row("SELECT pg_current_snapshot()::text")[0])

    @cached_property
    def database(self) -> str:
        """Which database this is, as text: the cluster's system identifier (empty where it is hidden) and its oid."""
        hidden = "NOT has_function_privilege('pg_control_system()', 'EXECUTE')"
        oid = self.row(f"SELECT oid::bigint, {hidden} FROM pg_database WHERE datname = current_database()")
        cluster = "" if oid[1] else self.row("SELECT system_identifier::text FROM pg_control_system()")[0]
        return f"{cluster}/{oid[0]}"

    def columns(self, table: str) -> set[str]:
        """Return the columns of a table that may be read, `xmin` too where its rows have one; empty: no such table."""
        found = self.table(
            "SELECT attname::text FROM pg_attribute "
            f"WHERE attrelid = to_regclass('{table}') AND NOT attisdropped AND (attnum > 0 OR attname = 'xmin') "
            "AND has_column_privilege(attrelid, attname, 'SELECT')"
        )
        return set(found.column(0).to_pylist())

    def exists(self, table: str) -> bool:
        """Whether there is such a table at all, readable or not."""
        return bool(self.row(f"SELECT to_regclass('{table}') IS NOT NULL")[0])

    def row(self, query: str) -> list[Any]:
        """Return the values of a query's only row."""
        return [column[0].as_py() for column in self.table(query).columns]

    def table(self, query: str) -> pa.Table:
        """Run a query and return all its rows; raises ReplayError, without secrets, when it fails."""
        # In another thread: in the main one the driver takes Ctrl-C for itself and makes an error of the query of it.
        with ahead(self._whole(query), stop=self.cancel) as tables:
            return next(tables)

    def _whole(self, query: str) -> Generator[pa.Table]:
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(query)
                yield cursor.fetch_arrow_table()
        except adbc.Error as error:
            raise failed(error, self._secrets) from None

    def batches(self, query: str) -> Generator[pa.RecordBatch]:
        """Run a query and yield its rows as they come, some MB at a time; raises ReplayError as `table` does."""
        try:
            with self._connection.cursor() as cursor:
                cursor.adbc_statement.set_options(**{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(_SOME_BYTES)})
                cursor.execute(query)
                yield from cursor.fetch_record_batch()
        except (adbc.Error, pa.ArrowException, OSError) as error:  # half-way it is Arrow that says it
            raise failed(error, self._secrets) from None

    def cancel(self) -> None:
        """Stop the query that another thread runs."""
        with suppress(adbc.Error):
            self._connection.adbc_cancel()


@contextmanager
def open_source(dsn: str, *, statement_timeout_ms: int) -> Iterator[Source]:
    """Open a PostgreSQL database for reading in one repeatable-read, read-only transaction; always ends it again.

    `statement_timeout_ms` bounds each statement on the server. Raises ReplayError, which never holds the connection
    string or a part of it.
    """
    try:
        parameters = conninfo_to_dict(dsn)
    except psycopg.Error:
        raise ReplayError(
            "The connection string cannot be read (it is not shown here); expected for example "
            "postgresql://user@host/database, or host=… dbname=… user=…"
        ) from None
    secrets = [str(value) for name, value in parameters.items() if name not in _HARMLESS]
    parameters.setdefault("connect_timeout", str(CONNECT_TIMEOUT_S))
    parameters.setdefault("application_name", "replay pull")
    conninfo = make_conninfo(dsn, **{name: str(value) for name, value in parameters.items()})
    connection: Any = None
    try:
        connection = adbc.connect(conninfo, autocommit=True)
        with connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute(f"SET LOCAL statement_timeout = {int(statement_timeout_ms)}")
        source = Source(connection, secrets)
        _ = source.snapshot  # the first query takes it
    except adbc.Error as error:
        raise failed(error, secrets) from None
    finally:
        if connection is not None and "source" not in locals():
            connection.close()
    try:
        yield source
    finally:
        with suppress(adbc.Error):
            connection.close()


def recent(snapshot: Snapshot, now: Snapshot, version: str = "xmin") -> str:
    """Return SQL that holds for every row version written by a transaction from `snapshot.xmin` on.

    `version` is a row's 32-bit transaction id. It is compared on the circle of 2³² ids, against how far the database
    has come since; a row of a former round may hold too, but none that should is missed.
    """
    passed = now.xmax - snapshot.xmin
    if passed >= _XIDS:
        return "TRUE"
    offset = _XIDS - snapshot.xmin % _XIDS
    return f"(({version}::text::bigint + {offset}) % {_XIDS} < {passed})"


def failed(error: Exception, secrets: list[str]) -> ReplayError:
    """Return what PostgreSQL or its driver says as an error that can be shown: one sentence, nothing secret."""
    text = str(error)
    said = re.search(r"(?:ERROR|FATAL|PANIC): +([^\n]*)", text)
    if said is None:
        said = re.search(r"Failed to connect: (?:.* failed: )?([^\n]*)", text)
    reason = said[1] if said else "the connection was lost"
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        reason = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "…", reason)
    if "statement timeout" in reason:
        reason += " (give it longer with --timeout)"
    return ReplayError(f"PostgreSQL could not be read: {reason.rstrip('. ')}.")
