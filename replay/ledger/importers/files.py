"""Reads a CSV, Parquet or JSONL file (text also as .gz) into the temporary table `source_rows`: row number and texts.

Row numbers count from 1, the header not included. In CSV an empty field is null and a quoted empty one (`""`) is the
empty text, as PostgreSQL's COPY writes them; Parquet and JSONL keep their own nulls. Parquet's times become ISO texts
(those with a zone in UTC), and nested values become JSON.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from replay.errors import ReplayError
from replay.ledger.importers.convert import literal, quote

SOURCE_ROWS = "source_rows"
ROW = "row_number"
"""The column with a row's number; `columns` are stored as c0, c1, … so that no source name can clash with anything."""

_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_CHUNK_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 24


@dataclass(frozen=True)
class Source:
    """A file that was read: `sha256` is of its bytes, `columns` maps each name to its column in `source_rows`."""

    path: Path
    sha256: str
    columns: dict[str, str]
    rows: int


def read_source(
    connection: duckdb.DuckDBPyConnection, path: str | Path, note: Callable[[str], None] = lambda _: None
) -> Source:
    """Read a file into `source_rows`, every value as text. Raises ReplayError if it is missing, broken or empty."""
    file = Path(path)
    form, packed = _form(file)
    note(f"checking {file.name}")
    sha256 = _check_bytes(file, packed)
    note(f"reading {file.name}")
    try:
        columns, query = {"csv": _csv, "parquet": _parquet, "jsonl": _jsonl}[form](connection, file, packed)
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {SOURCE_ROWS} AS {query}")
    except duckdb.InterruptException:
        raise
    except (duckdb.InvalidInputException, duckdb.ConversionException, duckdb.InternalException) as error:
        raise ReplayError(
            f"{file} cannot be read as {form.upper()}: {_first_lines(error)}. Nothing was imported."
        ) from error
    except duckdb.IOException as error:
        if "No space left" in str(error) or "write" in str(error):
            raise
        raise ReplayError(
            f"{file} cannot be read as {form.upper()}: {_first_lines(error)}. Nothing was imported."
        ) from error
    counted = connection.execute(f"SELECT count(*) FROM {SOURCE_ROWS}").fetchone()
    rows = int(counted[0]) if counted else 0
    if rows == 0:
        raise ReplayError(f"{file} holds no rows: expected at least one besides a header. Nothing was imported.")
    return Source(file, sha256, {name: f"c{index}" for index, name in enumerate(columns)}, rows)


def _form(file: Path) -> tuple[str, bool]:
    packed = file.suffix.lower() == ".gz"
    suffix = Path(file.stem).suffix.lower() if packed else file.suffix.lower()
    if suffix not in _SUFFIXES or (packed and suffix == ".parquet"):
        raise ReplayError(
            f"{file} is of no known form. Expected .csv, .tsv, .jsonl or .ndjson, each also .gz, or .parquet; "
            "rename or convert the file."
        )
    return _SUFFIXES[suffix], packed


def _check_bytes(file: Path, packed: bool) -> str:
    """Return the SHA-256 of the file's bytes; prove a gzip stream whole: DuckDB stops quietly at a missing end."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
        if file.stat().st_size == 0:
            raise ReplayError(f"{file} is empty (0 bytes). Nothing was imported.")
        if packed:
            with gzip.open(file, "rb") as unpacked:
                while unpacked.read(_CHUNK_BYTES):
                    pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ReplayError(
            f"{file} is a truncated or damaged gzip file ({error}). Expected a whole one; fetch or pack it again. "
            "Nothing was imported."
        ) from error
    except OSError as error:
        raise ReplayError(
            f"{file} cannot be read: {error.strerror or error}. Give the path of an existing file."
        ) from error
    return digest.hexdigest()


def _path(file: Path) -> str:
    """Return the file's path for DuckDB, which takes *, ? and [ for patterns."""
    return literal(re.sub(r"([*?[])", r"[\1]", str(file)))


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:3]).rstrip(".")


def _csv(_: duckdb.DuckDBPyConnection, file: Path, packed: bool) -> tuple[list[str], str]:
    delimiter = "\t" if ".tsv" in file.suffixes else ","
    try:
        with gzip.open(file, "rb") if packed else file.open("rb") as raw:
            text = io.TextIOWrapper(io.BufferedReader(raw), encoding="utf-8-sig", newline="")
            header = next(csv.reader(text, delimiter=delimiter), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ReplayError(f"{file} cannot be read as CSV: its header is not UTF-8 text ({error}).") from error
    names = [name.strip() or f"column_{index + 1}" for index, name in enumerate(header)]
    _check_names(file, names)
    columns = ", ".join(f"'c{index}': 'VARCHAR'" for index in range(len(names)))
    # The buffer must hold a longest line; spend logs carry whole prompts in one field.
    compression = "gzip" if packed else "none"
    query = (
        f"SELECT row_number() OVER () AS {ROW}, * FROM read_csv({_path(file)}, header = true, "
        f"auto_detect = false, delim = {literal(delimiter)}, quote = '\"', escape = '\"', nullstr = '', "
        f"allow_quoted_nulls = false, max_line_size = {_MAX_LINE_BYTES}, compression = '{compression}', "
        f"columns = {{{columns}}})"
    )
    return names, query


def _parquet(connection: duckdb.DuckDBPyConnection, file: Path, _: bool) -> tuple[list[str], str]:
    connection.execute("SET TimeZone = 'UTC'")
    described = connection.execute(f"DESCRIBE SELECT * FROM read_parquet({_path(file)})").fetchall()
    names = [str(row[0]) for row in described]
    _check_names(file, names)
    texts = []
    for index, (name, sql_type) in enumerate((str(row[0]), str(row[1])) for row in described):
        nested = sql_type.startswith(("STRUCT", "MAP")) or sql_type.endswith("]")
        value = f"to_json({quote(name)})" if nested else quote(name)
        texts.append(f"{value}::VARCHAR AS c{index}")
    source = f"read_parquet({_path(file)})"
    return names, f"SELECT row_number() OVER () AS {ROW}, {', '.join(texts)} FROM {source}"


def _jsonl(connection: duckdb.DuckDBPyConnection, file: Path, packed: bool) -> tuple[list[str], str]:
    compression = "gzip" if packed else "uncompressed"
    lines = (
        f"read_ndjson_objects({_path(file)}, compression = '{compression}', maximum_object_size = {_MAX_LINE_BYTES})"
    )
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE source_lines AS SELECT row_number() OVER () AS {ROW}, json FROM {lines}"
    )
    wrong = connection.execute(
        f"SELECT min({ROW}) FROM source_lines WHERE json_type(json) IS DISTINCT FROM 'OBJECT'"
    ).fetchone()
    if wrong and wrong[0] is not None:
        raise ReplayError(f"{file}, row {wrong[0]}: expected one JSON object per line. Nothing was imported.")
    found = connection.execute(
        "SELECT DISTINCT unnest(json_keys(json)) AS name FROM source_lines ORDER BY name"
    ).fetchall()
    names = [str(name) for (name,) in found]
    texts = []
    for index, name in enumerate(names):
        pointer = "/" + name.replace("~", "~0").replace("/", "~1")
        texts.append(f"json_extract_string(json, {literal(pointer)}) AS c{index}")
    return names, f"SELECT {', '.join([ROW, *texts])} FROM source_lines"


def _check_names(file: Path, names: list[str]) -> None:
    if not any(names):
        raise ReplayError(f"{file} has no header: expected a first line with the columns' names. Nothing was imported.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ReplayError(
            f"{file} has more than one column named {', '.join(twice)}; expected each name once. Rename them."
        )
