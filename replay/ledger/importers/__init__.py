"""Importers: any CSV, Parquet or JSONL file of calls or attempts, into the mirror's tables.

One import is one transaction: it adds everything that is new or, on any error, changes nothing. Which rows are new is
decided by their identity alone (a native id, or the hash of the mapped values and the number of the occurrence), so a
second import of a file adds nothing and the order of its rows never matters.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb
import polars as pl

from replay.errors import ReplayError
from replay.ledger.importers.convert import quote
from replay.ledger.importers.files import ROW, SOURCE_ROWS, Source, read_source
from replay.ledger.importers.litellm import litellm_plan
from replay.ledger.importers.mapping import Mapping, load_mapping, mapped_plan, shipped_mappings
from replay.ledger.importers.plan import Plan, native_plan, with_nearest
from replay.ledger.importers.rows import MAPPED_ROWS, column_of, map_rows
from replay.ledger.importers.store import TargetReport, store_rows
from replay.ledger.importers.targets import PRICE_EVENTS, targets
from replay.ledger.mirror import TABLES, open_mirror

__all__ = [
    "ImportReport",
    "Mapping",
    "Reject",
    "TargetReport",
    "import_file",
    "load_mapping",
    "read_mapped",
    "shipped_mappings",
]

LITELLM = "litellm"


@dataclass(frozen=True)
class ImportReport:
    """What an import did: the file (its name and the SHA-256 of its bytes), how it was read, and each target's rows."""

    source_name: str
    source_sha256: str
    mapping: str
    targets: tuple[TargetReport, ...]

    @property
    def added(self) -> int:
        """Return the rows added over all targets."""
        return sum(report.added for report in self.targets)


@dataclass(frozen=True)
class Reject:
    """A row that could not be used: its number (from 1, the header not counted), why, and the row as JSON."""

    row_number: int
    reason: str
    source: str


def import_file(
    path: str | Path,
    mirror: duckdb.DuckDBPyConnection | str | Path,
    *,
    source: str | Path | Mapping,
    reject_unreadable: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> ImportReport:
    """Import a file into a mirror, given as a connection that may write or as a path (created if it is not there).

    `source` says what the file is: a native table's name, "litellm", a shipped mapping's name, the path of a mapping
    file, or a loaded `Mapping`. A value that cannot be read as its column's type refuses the file, unless
    `reject_unreadable` sets its row aside. `note` is told each step as it begins. Raises ReplayError, and then nothing
    was changed.
    """
    if isinstance(mirror, (str, Path)):
        with open_mirror(mirror, write=True) as connection:
            return import_file(path, connection, source=source, reject_unreadable=reject_unreadable, note=note)
    _transaction(mirror, "BEGIN")
    try:
        report = _import(path, mirror, source, reject_unreadable, note)
        note("committing")
        _transaction(mirror, "COMMIT")
    except duckdb.Error as error:
        _abandon(mirror)
        if isinstance(error, duckdb.InterruptException):
            raise KeyboardInterrupt from error
        raise ReplayError(
            f"{path} could not be imported: {str(error).splitlines()[0]}. Nothing was changed; if the disk is full or "
            "memory is short, make room and try again."
        ) from error
    except BaseException:
        _abandon(mirror)
        raise
    return report


def read_mapped(
    path: str | Path, mapping: str | Path | Mapping, target: str, *, reject_unreadable: bool = False
) -> tuple[pl.DataFrame, list[Reject]]:
    """Read a file through a mapping, without a mirror: the usable rows of one target, sorted by all their columns.

    The frame has the columns the mapping gives, in the target's order and types; for `price_events` all of them
    (ts_ms, model, event, prices in USD per million tokens, context, supports_tools). Raises ReplayError as an import.
    """
    loaded = mapping if isinstance(mapping, Mapping) else load_mapping(mapping)
    if target not in loaded.entries:
        raise ReplayError(
            f"The mapping {loaded.name} gives no {target}, only {', '.join(loaded.entries)}. Give a mapping that does."
        )
    only = Mapping(loaded.name, {target: loaded.entries[target]}, loaded.zone, loaded.origin_us, loaded.description)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        source = read_source(connection, path)
        plan = mapped_plan(only, source.columns, str(source.path))
        map_rows(connection, source, plan, reject_unreadable=reject_unreadable)
        return _frame(connection, plan, target), _rejects(connection, source, target)


def _frame(connection: duckdb.DuckDBPyConnection, plan: Plan, target: str) -> pl.DataFrame:
    cells = plan.cells[target]
    listed = []
    for name, column in targets()[target].columns.items():
        if name not in cells and target != PRICE_EVENTS:
            continue
        given = "CAST(identity AS VARCHAR)" if name in cells and cells[name].is_row_id else column_of(target, name)
        listed.append(f"{given if name in cells else f'NULL::{column.sql_type}'} AS {name}")
    return connection.execute(
        f"SELECT {', '.join(listed)} FROM {MAPPED_ROWS} WHERE {quote(f'reason.{target}')} IS NULL ORDER BY ALL"
    ).pl()


def _rejects(connection: duckdb.DuckDBPyConnection, source: Source, target: str) -> list[Reject]:
    reason = quote(f"reason.{target}")
    listed = ", ".join(f"'{name.replace(chr(39), chr(39) * 2)}', {stored}" for name, stored in source.columns.items())
    rows = connection.execute(
        f"SELECT {ROW}, {reason}, json_object({listed})::VARCHAR FROM {MAPPED_ROWS} JOIN {SOURCE_ROWS} USING ({ROW}) "
        f"WHERE {reason} IS NOT NULL ORDER BY {ROW}"
    ).fetchall()
    return [Reject(*row) for row in rows]


def _import(
    path: str | Path,
    connection: duckdb.DuckDBPyConnection,
    source: str | Path | Mapping,
    reject_unreadable: bool,
    note: Callable[[str], None],
) -> ImportReport:
    connection.execute("SET TimeZone = 'UTC'")
    given = _resolve(source)
    read = read_source(connection, path, note)
    plan = _plan(given, read)
    if PRICE_EVENTS in plan.cells:
        raise ReplayError(
            f"The mapping {plan.label} gives {PRICE_EVENTS}, which are no ledger rows: read them into "
            "offer_history with `replay prices`. Nothing was imported."
        )
    map_rows(connection, read, plan, reject_unreadable=reject_unreadable, note=note)
    reports = []
    for table in plan.cells:
        note(f"storing {table}")
        reports.append(store_rows(connection, read, plan, table))
    return ImportReport(read.path.name, read.sha256, plan.label, tuple(reports))


def _resolve(source: str | Path | Mapping) -> str | Mapping:
    if isinstance(source, Mapping):
        return source
    name = str(source)
    if name in TABLES or name == LITELLM:
        return name
    if name in shipped_mappings() or Path(name).suffix == ".toml" or Path(name).is_file():
        return load_mapping(source)
    known = (*TABLES, LITELLM, *shipped_mappings())
    raise ReplayError(
        f"{with_nearest([name], known)[0]} is nothing a file can be imported as. Expected a table "
        f"({', '.join(TABLES)}), {LITELLM}, a shipped mapping ({', '.join(shipped_mappings())}) "
        "or the path of a mapping file."
    )


def _plan(given: str | Mapping, read: Source) -> Plan:
    if isinstance(given, Mapping):
        return mapped_plan(given, read.columns, str(read.path))
    if given == LITELLM:
        return litellm_plan(read.columns, str(read.path))
    return native_plan(given, read.columns, str(read.path))


def _transaction(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    connection.execute(statement)


def _abandon(connection: duckdb.DuckDBPyConnection) -> None:
    # A failed commit has already rolled back; what the caller must hear is the first error.
    with suppress(duckdb.Error):
        connection.execute("ROLLBACK")
