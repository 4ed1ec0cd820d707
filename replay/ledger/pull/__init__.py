"""Pull: PostgreSQL's tables into the mirror, each time only what the last pull could not have seen.

An id is handed out before its row commits, so "ids above the last one" would lose rows that commit late. A pull
therefore reads two kinds of rows, both from one snapshot:

    id ≤ last id    rows of transactions that the last pull's snapshot did not see as ended (and rows changed since)
    id > last id    the rest, in the order of ids, batch by batch

A batch's rows and how far they go are one transaction of the mirror, so a pull may be stopped anywhere, by kill -9
too, and the next one goes on from there. While rows are stored the next ones are already on their way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from replay.errors import ReplayError
from replay.ledger.importers.targets import targets
from replay.ledger.mirror import TABLES, open_mirror
from replay.ledger.pseudonyms import Pseudonyms
from replay.ledger.pull.rows import Say, TablePull, pull_table, transaction
from replay.ledger.pull.source import Source, open_source
from replay.ledger.pull.state import Origin, claim
from replay.ledger.pull.tables import IMPORTED_ID, PER_MS, SourceTable, describe

__all__ = ["PullReport", "TablePull", "pull"]

STATEMENT_TIMEOUT_MS = 60_000

BATCH_ROWS = 122_880
"""Rows stored at once, fewer if they are wide: a row group of DuckDB, which a commit writes as it is. Fewer rows are
copied into the table's last row group, which is compressed again each time: that costs twice as much."""

_MEMORY = "112MB"
_COMPARED_ROWS = 200


@dataclass(frozen=True)
class PullReport:
    """What a pull did. `absent` are tables that the source does not have; `hidden` those it does not let be read."""

    tables: tuple[TablePull, ...]
    absent: tuple[str, ...]
    hidden: tuple[str, ...]

    @property
    def uncertain(self) -> tuple[str, ...]:
        """The tables in which a row that committed late may have been missed: only `replay verify` can tell."""
        return tuple(table.name for table in self.tables if table.way == "overlap")


def pull(
    dsn: str,
    mirror: str | Path,
    *,
    tables: Sequence[str] = TABLES,
    since_ms: int | None = None,
    pseudonyms: Pseudonyms | None = None,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    batch_rows: int = BATCH_ROWS,
    wait_s: float = 10.0,
    say: Say = lambda *_: None,
) -> PullReport:
    """Bring a mirror up to date with a PostgreSQL database; the mirror is created if there is none.

    `since_ms` leaves out calls and attempts that ended earlier; an earlier one in a later pull goes back for them, and
    none goes on with the mirror's. `say` is told the table, the rows read and about how many there are. Needs the
    right to SELECT, nothing more. Raises ReplayError; what was stored until then stays, and is whole.
    """
    for name in tables:
        if name not in TABLES:
            raise ReplayError(f"There is no table {name} to pull; expected some of {', '.join(TABLES)}.")
    with open_source(dsn, statement_timeout_ms=statement_timeout_ms) as source:
        found = {name: describe(source, name) for name in tables}
        # Calls last: wherever a pull stops, a call in the mirror has its attempts, offers and policy beside it.
        described = sorted(
            (table for table in found.values() if table is not None), key=lambda one: one.name == "calls"
        )
        _check_source(described, tables)
        if not Path(mirror).exists():
            with open_mirror(mirror, write=True):
                pass  # from now on what is pulled stays, also when the pull is stopped
        with open_mirror(mirror, write=True, wait_s=wait_s) as connection:
            # One thread: the other core reads what comes next, and two would cost half as much work again.
            connection.execute(f"SET memory_limit = '{_MEMORY}'; SET threads = 1; SET enable_progress_bar = false")
            _check_ledger(connection, source, described)
            with transaction(connection):
                claim(connection, Origin(source.database, pseudonyms.fingerprint if pseudonyms else None))
            done = [pull_table(connection, source, one, since_ms, pseudonyms, batch_rows, say) for one in described]
        missing = [name for name, table in found.items() if table is None]
        hidden = tuple(name for name in missing if source.exists(name))
    done.sort(key=lambda one: TABLES.index(one.name))
    return PullReport(tuple(done), tuple(name for name in missing if name not in hidden), hidden)


def _check_source(described: list[SourceTable], asked: Sequence[str]) -> None:
    if not described:
        raise ReplayError(
            f"The database has none of the tables {', '.join(asked)} that this user may read. Expected the router's "
            "database; check its name and the search_path, and GRANT SELECT on them."
        )
    for table in described:
        required = {column.name for column in targets()[table.name].required} | set(table.key)
        for column in table.lacking:
            if column in required:
                raise ReplayError(
                    f"The database's table {table.name} has no column {column} that this user may read, and no row is "
                    "usable without it; check that it is the router's table, and GRANT SELECT on it."
                )


def _check_ledger(connection: duckdb.DuckDBPyConnection, source: Source, tables: list[SourceTable]) -> None:
    """Refuse a source in which ids stand for other rows: another database, or one restored to an earlier state."""
    for table in tables:
        if not table.by_id:
            continue
        instant = PER_MS[table.name][0]
        held = dict(
            connection.execute(
                f"SELECT id, {instant} FROM {table.name} WHERE id < {IMPORTED_ID} ORDER BY id DESC LIMIT ?",
                [_COMPARED_ROWS],
            ).fetchall()
        )
        if not held:
            continue
        listed = ", ".join(str(one) for one in held)
        theirs = source.table(
            f"SELECT id::bigint, {instant}::bigint FROM {table.name} WHERE id IN ({listed}) ORDER BY 1"
        )
        for row, at in zip(theirs.column(0).to_pylist(), theirs.column(1).to_pylist(), strict=True):
            if held[row] != at:
                raise ReplayError(
                    f"Row {row} of {table.name} is another one in the mirror ({instant} {held[row]}) than in the "
                    f"database ({instant} {at}): it is another database, or was restored to an earlier state; nothing "
                    "was changed. Pull into a new mirror."
                )
