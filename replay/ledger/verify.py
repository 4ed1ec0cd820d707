"""Verify: whether the mirror holds what PostgreSQL holds, by counts, ranges and checksums of the rows' contents.

Each engine turns every row into the same bytes, which are hashed and added up per table and day, so only sums travel:

    NULL -      text length in bytes:text      integers and booleans as text      doubles by their 64 bits

NaN has one form and −0 is 0. A row's hash is the first 60 bits of its MD5; a day's checksum is their sum, which does
not depend on the rows' order. Rows that the last pull could not see yet are left out and counted, and so are those
that production has deleted since: what is older than its oldest row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa

from replay.durations import iso
from replay.errors import ReplayError
from replay.ledger.mirror import TABLES, open_mirror
from replay.ledger.pseudonyms import COLUMNS, Pseudonyms
from replay.ledger.pull.rows import Say
from replay.ledger.pull.source import Source, open_source
from replay.ledger.pull.state import Origin, Pulled, check_names, check_same_database, origin, pulled
from replay.ledger.pull.tables import IMPORTED_ID, PER_MS, SourceTable, describe

STATEMENT_TIMEOUT_MS = 600_000

_DAY_MS = 86_400_000
_NAMES_ROWS = 100_000
_ENDS = {"calls": "ts", "route_observations": "ts", "offer_history": "valid_to"}  # what retention goes by


@dataclass
class TableCheck:
    """One table's comparison.

    `rows` were compared, `later` were written since the last pull, `deleted` are no longer in the database, `imported`
    came from files, `unseen` are columns that could not be compared; `difference` says where the first one is.
    """

    name: str
    rows: int = 0
    later: int = 0
    deleted: int = 0
    imported: int = 0
    unseen: tuple[str, ...] = ()
    difference: str | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What was compared: `tables` in their order; `skipped` were never pulled, or are not in the database now."""

    tables: tuple[TableCheck, ...]
    skipped: tuple[str, ...]

    @property
    def difference(self) -> str | None:
        """The first difference, as a sentence without its full stop; None: there is none."""
        return next((table.difference for table in self.tables if table.difference), None)


def verify(
    dsn: str,
    mirror: str | Path,
    *,
    pseudonyms: Pseudonyms | None = None,
    statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    wait_s: float = 10.0,
    say: Say = lambda *_: None,
) -> VerifyReport:
    """Compare every pulled table of a mirror with the database it came from; changes neither.

    `pseudonyms` is needed to compare the columns of a mirror pulled with pseudonyms, which are left out without it.
    Raises ReplayError where they cannot be compared at all.
    """
    with (
        open_mirror(mirror, wait_s=wait_s) as connection,
        open_source(dsn, statement_timeout_ms=statement_timeout_ms) as source,
    ):
        names = _names(connection, source, pseudonyms)
        checks, skipped = [], []
        for number, name in enumerate(TABLES):
            say(f"comparing {name}", number, len(TABLES))
            state, table = pulled(connection, name), describe(source, name)
            if state is None or table is None:
                skipped.append(name)
                continue
            known = COLUMNS if name == "calls" and names.key else ()
            check = _Check(connection, source, table, state, (*table.lacking, *known))
            checks.append((check.by_day if table.by_id else check.by_key)(TableCheck(name)))
            if known and pseudonyms and checks[-1].difference is None:
                check.names(checks[-1], pseudonyms)
        return VerifyReport(tuple(checks), tuple(skipped))


def _names(connection: duckdb.DuckDBPyConnection, source: Source, pseudonyms: Pseudonyms | None) -> Origin:
    held = origin(connection)
    if held is None:
        raise ReplayError("This mirror was never pulled from a database, so there is nothing to compare: replay pull.")
    check_same_database(held, source.database)
    if held.key and pseudonyms:
        check_names(held, pseudonyms.fingerprint)
    return held


def _cell(name: str, kind: str, engine: str) -> str:
    """Return SQL for the bytes of one value, the same in both engines."""
    if kind == "VARCHAR":
        length = "octet_length" if engine == "postgres" else "strlen"
        text = f"{length}({name})::text || ':' || {name}"
    elif kind != "DOUBLE":
        text = f"{name}::text"
    elif engine == "postgres":
        bits = f"('x' || encode(float8send({name} + 0::float8), 'hex'))::bit(64)::bigint::text"
        text = f"CASE WHEN {name} = 'NaN'::float8 THEN 'NaN' ELSE {bits} END"
    else:
        text = f"CASE WHEN isnan({name}) THEN 'NaN' ELSE ({name} + 0.0::DOUBLE)::BIT::BIGINT::VARCHAR END"
    return f"coalesce({text}, '-')"


def _row_hash(columns: dict[str, str], engine: str) -> str:
    joined = ", ".join(_cell(name, kind, engine) for name, kind in columns.items())
    digits = f"substr(md5(concat_ws(',', {joined})), 1, 15)"
    return f"('x' || {digits})::bit(60)::bigint" if engine == "postgres" else f"('0x' || {digits})::BIGINT"


@dataclass
class _Check:
    mirror: duckdb.DuckDBPyConnection
    source: Source
    table: SourceTable
    state: Pulled
    left_out: tuple[str, ...]
    columns: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.columns = {name: kind for name, kind in self.table.columns.items() if name not in self.left_out}

    def by_day(self, check: TableCheck) -> TableCheck:
        """Compare a table whose rows have ids and instants."""
        check.unseen = self.left_out
        ours, theirs = self._rows_of_both(check)
        name, unit_ms = PER_MS[self.table.name]
        day = f"floor({name}::float8 / {_DAY_MS // unit_ms}::float8)::bigint"

        def sums(rows: str, engine: str) -> str:
            summed = f"sum({_row_hash(self.columns, engine)})::text"
            return f"SELECT {day}, count(*), min(id), max(id), {summed} FROM ({rows}) AS r GROUP BY 1 ORDER BY 1"

        held = {row[0]: row[1:] for row in self.mirror.execute(sums(ours, "duckdb")).fetchall()}
        there = {row[0]: row[1:] for row in _tuples(self.source.table(sums(theirs, "postgres")))}
        check.rows = sum(row[0] for row in there.values())
        differing = sorted(one for one in held.keys() | there.keys() if held.get(one) != there.get(one))
        if differing:
            on = f"{day} = {differing[0]}"
            found = self._first(f"SELECT * FROM ({ours}) AS r WHERE {on}", f"SELECT * FROM ({theirs}) AS r WHERE {on}")
            check.difference = f"{check.name}, {iso(differing[0] * _DAY_MS)[:10]}: {found}"
        return check

    def by_key(self, check: TableCheck) -> TableCheck:
        """Compare a table that is read whole; what production has deleted stays and is counted."""
        check.unseen = self.left_out
        settled = (
            f"NOT ({self.table.written_since(self.state, self.source.snapshot)})" if self.table.versioned else "TRUE"
        )
        theirs = f"{self.table.select()} WHERE {settled}"
        key = ", ".join(self.table.key)
        there = self.source.table(f"{self.table.select(self.table.key)}")
        self.mirror.register("keys_there", there)
        counted = f"SELECT count(*) FROM {self.table.name} ANTI JOIN keys_there USING ({key})"
        check.deleted = self._one(counted)
        hashes = self.source.table(f"SELECT {key}, {_row_hash(self.columns, 'postgres')} AS hash FROM ({theirs}) AS r")
        check.rows, check.later = hashes.num_rows, there.num_rows - hashes.num_rows
        self.mirror.register("settled_keys", hashes.select(list(self.table.key)))
        found = self._first(f"SELECT * FROM {self.table.name} SEMI JOIN settled_keys USING ({key})", theirs)
        check.difference = f"{check.name}: {found}" if found else None
        return check

    def _rows_of_both(self, check: TableCheck) -> tuple[str, str]:
        """Return the queries of the rows to compare, the mirror's and the database's, and count what is left out."""
        name, unit_ms = PER_MS[self.table.name]
        since_ms = self.state.since_ms
        reached = f"id <= {self.state.last_id}" + (
            "" if since_ms is None else f" AND {name} >= {-(-since_ms // unit_ms)}"
        )
        there, ends = self.table.name, _ENDS[self.table.name]
        # Without transaction ids nothing tells late rows apart; then they count as differences.
        late = self.table.written_since(self.state, self.source.snapshot) if self.table.way != "overlap" else "FALSE"
        unsettled = self.source.table(f"SELECT id::bigint AS id FROM {there} WHERE {reached} AND ({late})")
        beyond = self.source.row(f"SELECT count(*) FROM {there} WHERE id > {self.state.last_id}")[0]
        check.later = unsettled.num_rows + beyond
        self.mirror.register("unsettled", unsettled)
        oldest = self.source.row(f"SELECT min({ends})::bigint FROM {there}")[0]
        gone = f"coalesce({ends} < {2**63 - 1 if oldest is None else oldest}, FALSE)"
        check.imported = self._one(f"SELECT count(*) FROM {there} WHERE id >= {IMPORTED_ID}")
        check.deleted = self._one(f"SELECT count(*) FROM {there} WHERE {reached} AND {gone}")
        ours = f"SELECT * FROM {there} ANTI JOIN unsettled USING (id) WHERE {reached} AND NOT {gone}"
        return ours, f"{self.table.select()} WHERE {reached} AND NOT ({late})"

    def _first(self, ours: str, theirs: str) -> str | None:
        """Return which row differs first, and in what; None where none does."""
        key = ", ".join(self.table.key)
        hashes = self.source.table(f"SELECT {key}, {_row_hash(self.columns, 'postgres')} AS hash FROM ({theirs}) AS r")
        self.mirror.register("hashes_there", hashes)
        held = f"SELECT {key}, {_row_hash(self.columns, 'duckdb')} AS hash FROM ({ours})"
        row = self.mirror.execute(
            f"SELECT {key}, t.hash IS NULL FROM ({held}) AS h FULL JOIN hashes_there AS t USING ({key}) "
            f"WHERE h.hash IS DISTINCT FROM t.hash ORDER BY {key} LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        *values, here = row
        said = "row " + " ".join(str(value) for value in values)
        columns = self._differing_columns(values)
        if columns:
            return f"{said} differs in {columns[0]}"
        places = ("mirror", "database") if here else ("database", "mirror")
        return f"{said} is in the {places[0]} and not in the {places[1]}"

    def _differing_columns(self, values: list[Any]) -> list[str]:
        """Return the columns in which one row differs, none where one side does not have it."""
        quoted = [str(one) if isinstance(one, int) else "'" + str(one).replace("'", "''") + "'" for one in values]
        where = " AND ".join(f"{name} = {one}" for name, one in zip(self.table.key, quoted, strict=True))

        def cells(engine: str) -> str:
            return ", ".join(f"{_cell(name, kind, engine)} AS {name}" for name, kind in self.columns.items())

        held = self.mirror.execute(f"SELECT {cells('duckdb')} FROM {self.table.name} WHERE {where}").fetchone()
        found = _tuples(
            self.source.table(f"SELECT {cells('postgres')} FROM ({self.table.select()}) AS r WHERE {where}")
        )
        if held is None or not found:
            return []
        return [name for name, one, other in zip(self.columns, held, found[0], strict=True) if one != other]

    def names(self, check: TableCheck, pseudonyms: Pseudonyms) -> None:
        """Compare the columns that have pseudonyms in the mirror, in batches, as only we can compute them."""
        ours, theirs = self._rows_of_both(check)
        check.unseen = self.table.lacking
        listed = [name for name in COLUMNS if name not in self.table.lacking]
        after = ""
        while True:
            rows = self.source.table(
                f"SELECT {', '.join(['id', *listed])} FROM ({theirs}) AS r {after} ORDER BY id LIMIT {_NAMES_ROWS}"
            )
            if not rows.num_rows:
                return
            frame = pl.DataFrame(rows).with_columns(
                pseudonyms.series(pl.Series(rows.column(name)).alias(name)) for name in listed
            )
            self.mirror.register("named", frame.to_arrow())
            for name in listed:
                found = self.mirror.execute(
                    f"SELECT id FROM named JOIN ({ours}) AS o USING (id) "
                    f"WHERE named.{name} IS DISTINCT FROM o.{name} ORDER BY id LIMIT 1"
                ).fetchone()
                if found:
                    check.difference = f"{check.name}: row {found[0]} differs in {name}"
                    return
            after = f"WHERE id > {rows.column('id')[-1].as_py()}"

    def _one(self, query: str) -> int:
        row = self.mirror.execute(query).fetchone()
        return int(row[0]) if row else 0


def _tuples(rows: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in rows.columns), strict=True))
