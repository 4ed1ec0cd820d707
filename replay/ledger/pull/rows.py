"""One table's pull: its rows in batches, each stored together with how far they go."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count, groupby
from operator import itemgetter

import duckdb
import polars as pl
import pyarrow as pa

from replay.errors import ReplayError
from replay.ledger.pseudonyms import COLUMNS, Pseudonyms
from replay.ledger.pull.ahead import ahead
from replay.ledger.pull.source import Source
from replay.ledger.pull.state import Pulled, pulled, remember
from replay.ledger.pull.tables import PER_MS, SINCE, SourceTable

Say = Callable[[str, int, int], None]
"""Told which table is pulled, how many rows have come, and about how many there are."""

Insert = Callable[[pa.Table], str]
"""Gives the SQL that stores what is registered as `_ROWS`."""

_BATCH_BYTES = 96 << 20
_FIRST_ROWS = 16_384  # until the width of the rows is known
_LEAST_ROWS = 512
_NO_ID = -1
_ROWS, _CHANGED = "pulled_rows", "changed_rows"


@dataclass(frozen=True)
class TablePull:
    """What a pull did with one table: rows read, rows that were new or had changed, and how late rows are found.

    `lacking` are the columns the source does not have; `since_ms` is where the mirror's rows begin, None: at the first.
    """

    name: str
    read: int
    stored: int
    way: str
    lacking: tuple[str, ...]
    since_ms: int | None


def pull_table(
    mirror: duckdb.DuckDBPyConnection,
    source: Source,
    table: SourceTable,
    since_ms: int | None,
    pseudonyms: Pseudonyms | None,
    batch_rows: int,
    say: Say,
) -> TablePull:
    """Bring one table of the mirror up to the source's snapshot; see `replay.ledger.pull` for what is read."""
    return _Pull(mirror, source, table, pseudonyms, batch_rows, say).run(since_ms)


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Commit at the end of the block, or roll back on any error; DuckDB's own are raised as ReplayError."""
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except duckdb.Error as error:
        _abandon(connection)
        raise ReplayError(
            f"The mirror could not be written: {str(error).splitlines()[0]}. What was stored before stays; if the "
            "disk is full or memory is short, make room, then pull again."
        ) from error
    except BaseException as error:
        _abandon(connection)
        if isinstance(error.__cause__, KeyboardInterrupt):  # a query that Ctrl-C breaks into raises a RuntimeError
            raise error.__cause__ from None
        raise


def _abandon(connection: duckdb.DuckDBPyConnection) -> None:
    # A failed commit has already rolled back; what the caller must hear is the first error.
    with suppress(duckdb.Error):
        connection.execute("ROLLBACK")


@dataclass
class _Pull:
    mirror: duckdb.DuckDBPyConnection
    source: Source
    table: SourceTable
    pseudonyms: Pseudonyms | None
    batch_rows: int
    say: Say
    read: int = 0
    stored: int = 0
    about: int = 0

    def run(self, since_ms: int | None) -> TablePull:
        before = pulled(self.mirror, self.table.name)
        if self.table.name not in SINCE:
            since_ms = None
        elif since_ms is None and before is not None:
            since_ms = before.since_ms
        last_id = before.last_id if before else _NO_ID
        state = Pulled(last_id, self.source.snapshot, since_ms, self.table.way, complete=True)
        if self.table.by_id:
            self._by_id(before, state)
        else:
            with transaction(self.mirror):
                self._store(self.source.table(self.table.select()), self._insert_changed)
                remember(self.mirror, self.table.name, state)
            self._tell()
        return TablePull(self.table.name, self.read, self.stored, self.table.way, self.table.lacking, since_ms)

    def _by_id(self, before: Pulled | None, state: Pulled) -> None:
        kept = "TRUE" if state.since_ms is None else f"NOT {self._ended_before(state.since_ms)}"
        beyond = kept
        if before is not None:
            beyond = f"id > {before.last_id} AND {kept}"
            # Until all of these are here the mirror goes no further than it did.
            again = f"id <= {before.last_id} AND {kept} AND ({self._again(before, state)})"
            self._in_batches(again, self._insert_changed, lambda _: replace(before, complete=False))
        first, last = self._ends(beyond)
        self.about = self.read + last - first + 1
        insert: Insert = self._insert_changed
        if self.table.name in SINCE:  # a row of these never changes; a file may have brought it already
            insert = self._insert_missing if self._holds(first, last) else self._insert_new
        last_id = self._in_batches(beyond, insert, lambda reached: replace(state, last_id=reached, complete=False))
        with transaction(self.mirror):
            remember(self.mirror, self.table.name, state if last_id is None else replace(state, last_id=last_id))

    def _again(self, before: Pulled, state: Pulled) -> str:
        """Return SQL that holds for the rows up to the last id that the mirror may not have, or not as they are now."""
        if before.way == "overlap" and self.table.way != "overlap":
            return "TRUE"  # what was uncertain can be made certain
        late = self.table.written_since(before, state.snapshot)
        goes_back = before.since_ms is not None and (state.since_ms is None or state.since_ms < before.since_ms)
        return f"{late} OR {self._ended_before(before.since_ms or 0)}" if goes_back else late

    def _in_batches(self, where: str, insert: Insert, reached: Callable[[int], Pulled]) -> int | None:
        """Store the rows that hold, each batch with how far it `reached`; return the last id, None without any."""
        last_id: int | None = None
        with ahead(self._coming(where), stop=self.source.cancel) as coming:
            for _, batch in groupby(coming, key=itemgetter(0)):
                with transaction(self.mirror):
                    for _, rows in batch:
                        self._store(rows, insert)
                    last_id = int(rows.column("id")[-1].as_py())
                    remember(self.mirror, self.table.name, reached(last_id))
                self._tell()
        return last_id

    def _ended_before(self, at_ms: int) -> str:
        column, unit_ms = PER_MS[self.table.name]
        return f"({column} < {-(-at_ms // unit_ms)})"

    def _ends(self, where: str) -> tuple[int, int]:
        """Return the first and the last id of the rows that hold, which costs two looks at an index; (0, -1): none."""
        first, last = self.source.row(f"SELECT min(id)::bigint, max(id)::bigint FROM {self.table.name} WHERE {where}")
        return (0, -1) if first is None else (int(first), int(last))

    def _holds(self, first: int, last: int) -> bool:
        found = self.mirror.execute(f"SELECT 1 FROM {self.table.name} WHERE id BETWEEN {first} AND {last} LIMIT 1")
        return found.fetchone() is not None

    def _coming(self, where: str) -> Generator[tuple[int, pa.Table]]:
        """Yield the rows that hold, in the order of ids and a few at a time, each with the number of its batch."""
        select = f"{self.table.select()} WHERE {where}"
        after, limit = "", min(_FIRST_ROWS, self.batch_rows)
        for number in count():
            rows = size = 0
            for some in self.source.batches(f"{select} {after} ORDER BY id LIMIT {limit}"):
                rows, size = rows + some.num_rows, size + some.nbytes
                if some.num_rows:
                    after = f"AND id > {some.column('id')[-1].as_py()}"
                    yield number, self._named(pa.Table.from_batches([some]))
            if rows < limit:
                return
            limit = min(self.batch_rows, max(_LEAST_ROWS, _BATCH_BYTES * rows // max(1, size)))

    def _store(self, rows: pa.Table, insert: Insert) -> None:
        """Store rows inside the caller's transaction."""
        self.read += rows.num_rows
        if not rows.num_rows:
            return
        self.mirror.register(_ROWS, rows)
        try:
            found = self.mirror.execute(insert(rows)).fetchone()
        finally:
            self.mirror.unregister(_ROWS)
        self.stored += found[0] if found else 0

    def _tell(self) -> None:
        self.say(self.table.name, self.read, max(self.read, self.about))

    def _named(self, rows: pa.Table) -> pa.Table:
        if self.pseudonyms is None or self.table.name != "calls":
            return rows
        for name in COLUMNS:
            names = self.pseudonyms.series(pl.Series(rows.column(name)))
            rows = rows.set_column(rows.schema.get_field_index(name), name, names.to_arrow())
        return rows

    def _insert_new(self, rows: pa.Table) -> str:
        return f"INSERT INTO {self.table.name} BY NAME SELECT * FROM {_ROWS}"

    def _insert_missing(self, rows: pa.Table) -> str:
        """Return SQL that stores the rows whose ids the mirror does not have; looking for each takes its time."""
        held = f"SELECT id FROM {self.table.name} WHERE {_between(rows)}"
        return f"INSERT INTO {self.table.name} BY NAME SELECT * FROM {_ROWS} ANTI JOIN ({held}) USING (id)"

    def _insert_changed(self, rows: pa.Table) -> str:
        """Return SQL that stores the rows that the mirror does not have, or has otherwise."""
        name, columns = self.table.name, ", ".join(self.table.columns)
        held = f"SELECT {columns} FROM {name} WHERE {_between(rows) if self.table.by_id else 'TRUE'}"
        changed = f"(SELECT {columns} FROM {_ROWS} EXCEPT {held}) ORDER BY {', '.join(self.table.key)}"
        if name not in SINCE:
            return f"INSERT OR REPLACE INTO {name} BY NAME {changed}"
        return (  # these have no primary key
            f"CREATE OR REPLACE TEMP TABLE {_CHANGED} AS {changed}; "
            f"DELETE FROM {name} WHERE {_between(rows)} AND id IN (SELECT id FROM {_CHANGED}); "
            f"INSERT INTO {name} BY NAME FROM {_CHANGED}"
        )


def _between(rows: pa.Table) -> str:
    ids = rows.column("id")
    return f"id BETWEEN {ids[0].as_py()} AND {ids[-1].as_py()}"
