"""A small ledger as a folder that can be committed: one Parquet file per table, and a manifest of what they hold.

    FOLDER/manifest.json             format, what the ledger was cut from and for, rows and content hash of each table
    FOLDER/calls.parquet             and route_observations, offer_history, provider_prices, policies, settings

The same ledger gives the same bytes with one version of pyarrow. What counts is the content hash in the manifest,
the one that a run's record shows: it is that of a mirror with the same rows, whatever wrote the files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from replay import queries
from replay.errors import NotComparableError, ReplayError
from replay.ledger.load import TABLES, Ledger, load_ledger, table_identity

FORMAT = 1
MANIFEST = "manifest.json"
_ROWS_PER_GROUP = 65_536


def frames(ledger: Ledger) -> dict[str, pl.DataFrame]:
    """Return a ledger's frames by the names of their tables."""
    held = (ledger.calls, ledger.attempts, ledger.prices, ledger.offers, ledger.policies, ledger.settings)
    return dict(zip(TABLES, held, strict=True))


def ledger_of(tables: Mapping[str, pl.DataFrame]) -> Ledger:
    """Return the ledger that a mirror with these rows would give: same columns, types, order and identity."""
    with duckdb.connect() as connection:
        fill(connection, tables)
        return load_ledger(connection)


def fill(connection: duckdb.DuckDBPyConnection, tables: Mapping[str, pl.DataFrame]) -> None:
    """Create the mirror's tables and write rows into them; a column that a frame lacks is null."""
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(queries.ddl("mirror"))
    for table, frame in tables.items():
        connection.register("rows_read", frame.to_arrow())
        connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM rows_read")
        connection.unregister("rows_read")


def write_ledger_folder(folder: Path, ledger: Ledger, said: Mapping[str, Any] | None = None) -> None:
    """Write a ledger whole: the folder appears only when everything in it is written, replacing an earlier ledger.

    `said` goes into the manifest under `slice`: JSON data that says what the ledger was cut from and for. Columns
    without any value are left out. Raises ReplayError where the folder is something else, or cannot be written.
    """
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ReplayError(f"{folder} exists and is not a ledger's folder; nothing was written: give another folder")
    manifest = {"format": FORMAT, "tables": ledger.identity, **({} if said is None else {"slice": dict(said)})}
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    try:
        draft.mkdir(parents=True)
        for table, frame in frames(ledger).items():
            _write(draft / f"{table}.parquet", frame)
        text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False)
        (draft / MANIFEST).write_text(text + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except OSError as error:
        raise ReplayError(f"the ledger could not be written to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(path: Path, frame: pl.DataFrame) -> None:
    kept = [column.name for column in frame if len(frame) == 0 or column.null_count() < len(frame)]
    table = frame.select(kept).to_arrow()
    # Small files: no statistics to skip by, and texts once each. Nothing about this machine or session.
    plain = table.cast(pa.schema([(name, _plain_type(table.schema.field(name).type)) for name in kept]))
    pq.write_table(
        plain,
        path,
        row_group_size=_ROWS_PER_GROUP,
        compression="zstd",
        compression_level=19,
        write_statistics=False,
        store_schema=False,
    )


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return pa.string() if kind in (pa.large_string(), pa.string_view()) else kind


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a folder's manifest; raises ReplayError where there is none, or another version wrote it."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReplayError(
            f"{folder} is no ledger's folder: it has no {MANIFEST}; expected one written by `replay slice`"
        ) from error
    except (OSError, ValueError) as error:
        raise ReplayError(
            f"{folder / MANIFEST} cannot be read ({error}); restore it, or cut the slice again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else "(none)"
        raise NotComparableError(
            f"{folder} is a ledger's folder of format {found}, this version reads format {FORMAT}: cut the slice again"
        )
    tables = manifest.get("tables")
    if not isinstance(tables, dict) or set(tables) != set(TABLES):
        raise ReplayError(
            f"{folder / MANIFEST} does not name the tables {', '.join(TABLES)}; restore it, or cut the slice again"
        )
    return manifest


def read_ledger_folder(folder: Path) -> Ledger:
    """Read a ledger from its folder, and check every table against the manifest.

    Raises ReplayError where a file is missing, cut short, or does not hold what the manifest says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_ledger_folder(Path(folder) / "empty", ledger_of({}))
    ...     len(read_ledger_folder(Path(folder) / "empty").calls)
    0
    """
    with open_ledger_folder(folder) as connection:
        return load_ledger(connection)


@contextmanager
def open_ledger_folder(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a ledger's folder as a mirror in memory, checked as `read_ledger_folder` does; nothing is written back."""
    said = read_manifest(folder)["tables"]
    held = {table: _read(folder / f"{table}.parquet") for table in TABLES}
    with duckdb.connect() as connection:
        try:
            fill(connection, held)
        except duckdb.Error as error:
            raise ReplayError(
                f"{folder} does not fit the mirror's tables ({str(error).splitlines()[0]}); restore it from version "
                "control, or cut the slice again with this version"
            ) from error
        for table in TABLES:
            found = table_identity(connection, table)
            if found != said[table]:
                raise ReplayError(
                    f"{folder / table}.parquet is not the table that {MANIFEST} describes: it holds "
                    f"{found['rows']:,} rows with content {found['content'][:8]}, the manifest says "
                    f"{_described(said[table])}. Restore both from version control, or cut the slice again"
                )
        yield connection


def _read(path: Path) -> pl.DataFrame:
    try:
        return pl.DataFrame(pq.ParquetFile(path).read())
    except FileNotFoundError as error:
        raise ReplayError(f"{path} is missing; restore it from version control, or cut the slice again") from error
    except (OSError, pa.ArrowException) as error:
        raise ReplayError(
            f"{path} is no whole Parquet file ({str(error).splitlines()[0]}); restore it from version control, or cut "
            "the slice again"
        ) from error


def _described(said: object) -> str:
    if not isinstance(said, dict):
        return "nothing of it"
    return f"{said.get('rows')} with content {str(said.get('content'))[:8]}"
