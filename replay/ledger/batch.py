"""A batch of rows as one transaction: copied in, searched for bad rows where it must be, and its fate looked up."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, Final

from replay.ledger.postgres import BOUNDS, Connection, is_rows_own_fault, psycopg
from replay.ledger.rows import AttemptRow, CallRow, columns
from replay.ledger.schema import Layout

Row = CallRow | AttemptRow
Refused = tuple[Row, Exception]
"""A row that cannot be written, and why."""

TABLES: Final[dict[type[CallRow] | type[AttemptRow], str]] = {AttemptRow: "route_observations", CallRow: "calls"}
"""In the order in which they are written: a call's attempts are there when it is."""

SPAN_ROWS: Final = 50
"""Rows copied together while bad ones are looked for: each failure sends its span once more."""

_BEGIN: Final = f"BEGIN; {BOUNDS}; SELECT pg_current_xact_id()::text AS txid"


class CommitUnknownError(Exception):
    """The connection broke during COMMIT; `txid` is the transaction in question, `refused` what it left out."""

    def __init__(self, txid: str, refused: list[Refused]) -> None:
        super().__init__(f"the connection broke while transaction {txid} was committed")
        self.txid = txid
        self.refused = refused


class ForgottenError(Exception):
    """The server no longer knows what became of a transaction."""


class NotReadyError(Exception):
    """What is needed to go on is not there yet."""


def write(connection: Connection, layout: Layout, rows: Sequence[Row], careful: bool) -> list[Refused]:
    """Write rows in one transaction, in their order, each table with the columns it has.

    If a row cannot be written, its error is raised and nothing is written; `careful` finds such rows, writes all
    others, and returns them. Raises `CommitUnknownError` where the connection broke during COMMIT.
    """
    refused: list[Refused] = []
    txid = _begin(connection)
    try:
        for statement, values, chosen in _by_table(layout, rows):
            if careful:
                refused += _copy_what_goes(connection, statement, values, chosen)
            else:
                _copy(connection, statement, values)
    except BaseException:
        with contextlib.suppress(psycopg.Error):
            connection.rollback()
        raise
    try:
        connection.execute("COMMIT")
    except psycopg.Error as error:
        if connection.closed:
            raise CommitUnknownError(txid, refused) from error
        raise
    return refused


def was_committed(connection: Connection, txid: str) -> bool:
    """Ask the server what became of a transaction.

    Raises `NotReadyError` while it is still under way, `ForgottenError` if it was too long ago to be known.
    """
    try:
        found = connection.execute("SELECT pg_xact_status($1::xid8) AS fate", [txid]).fetchone()
    except psycopg.errors.InvalidParameterValue:
        return False  # an id of the future: this server, brought back from an older state, never had it
    fate = None if found is None else found["fate"]
    if fate == "in progress":
        raise NotReadyError(f"transaction {txid} is still under way")
    if fate is None:
        raise ForgottenError(f"the server no longer knows what became of transaction {txid}")
    return bool(fate == "committed")


def _begin(connection: Connection) -> str:
    """Begin a transaction with bounds on everything it may wait for, and return its id; one round trip."""
    cursor = connection.execute(_BEGIN)
    while cursor.nextset():
        pass
    begun = cursor.fetchone()
    assert begun is not None, "a SELECT without FROM gives one row"
    return str(begun["txid"])


def _by_table(layout: Layout, rows: Sequence[Row]) -> Iterator[tuple[str, list[tuple[Any, ...]], list[Row]]]:
    """Give each table's COPY statement, values and rows, with the columns that it has and this role may fill."""
    for row_type, table in TABLES.items():
        chosen = [row for row in rows if type(row) is row_type]
        if chosen:
            writable = layout.tables[table].writable
            # The database gives both: the id, and as txid the transaction that writes the row.
            names = [name for name in columns(row_type) if name in writable and name not in ("id", "txid")]
            yield f"COPY {table} ({', '.join(names)}) FROM STDIN", list(map(attrgetter(*names), chosen)), chosen


def _copy(connection: Connection, statement: str, values: Sequence[tuple[Any, ...]]) -> None:
    with connection.cursor().copy(statement) as copy:
        for line, row in enumerate(values):
            try:
                copy.write_row(row)
            except Exception as error:
                error.add_note(f"COPY, line {line + 1}")
                raise


def _copy_what_goes(
    connection: Connection, statement: str, values: list[tuple[Any, ...]], rows: list[Row]
) -> list[Refused]:
    """Copy under savepoints; where that fails for a row's fault, go on with what is before, at and after the culprit.

    A row is refused only if it fails alone, so that a wrong guess costs time and no row.
    """
    refused: list[Refused] = []
    spans = [(first, min(first + SPAN_ROWS, len(rows))) for first in range(0, len(rows), SPAN_ROWS)][::-1]
    while spans:
        first, end = spans.pop()
        try:
            with connection.transaction():
                _copy(connection, statement, values[first:end])
        except Exception as error:
            if not is_rows_own_fault(error):
                raise
            if end - first == 1:
                refused.append((rows[first], error))
                continue
            culprit = _culprit(error)
            cuts = (first + end) // 2, (first + end) // 2
            if culprit is not None and first + culprit < end:
                cuts = first + culprit, first + culprit + 1
            parts = [(first, cuts[0]), cuts, (cuts[1], end)]
            spans += [(start, stop) for start, stop in reversed(parts) if start < stop]
    return refused


def _culprit(error: Exception) -> int | None:
    """Return the place, from 0, of the row that an error is about, in whatever language it says so.

    >>> failed = ValueError("not a number")
    >>> failed.add_note("COPY, line 7")
    >>> _culprit(failed)
    6
    """
    said = getattr(getattr(error, "diag", None), "context", None) or "\n".join(getattr(error, "__notes__", ()))
    line = re.search(r"^COPY[^,]*,\D*(\d+)", said or "", re.MULTILINE)
    return int(line[1]) - 1 if line else None
