"""Read a mirror's ledgers into memory, once, and say exactly what was read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from replay.ledger.lacks import lacks
from replay.ledger.mirror import open_mirror
from replay.rowhash import TableHash

if TYPE_CHECKING:
    import duckdb

TABLES = ("calls", "route_observations", "provider_prices", "offer_history", "policies", "settings")
LARGE = ("calls", "route_observations")
_SMALL = {"offer_history": "offers", "provider_prices": "prices", "policies": "policies", "settings": "settings"}

ROWS_PER_BATCH = 122_880

_KEYS = {"provider_prices": ("provider_id", "model_family"), "policies": ("policy_id",), "settings": ("settings_id",)}
_INSTANTS = {"calls": ("ts", 1000), "route_observations": ("ts", 1), "offer_history": ("valid_from", 1)}
"""The instant of a row, and the milliseconds of its unit."""

_CODED = {
    "calls": (
        *("route_key", "provider_id", "model_family", "requested_model", "cost_basis", "request", "policy_id"),
        *("settings_id", "replica", "evidence_state"),
    ),
    "route_observations": ("provider_id", "model_family", "served_by", "error_kind", "replica"),
}
_UNREAD = {
    "calls": (
        *("session_id", "consumer_sha", "caller", "served_model_id", "status", "error_type", "tokens_total"),
        *("served_by", "txid"),
    ),
    "route_observations": ("http_status", "candidate_attempt"),
}
"""What a replay reads of the two large tables: texts that recur as numbers, and these columns not at all."""


@dataclass(frozen=True)
class Ledger:
    """The ledgers as frames with the mirror's columns, sorted by their keys, and the identity of what was read.

    `identity` maps each table to its `rows`, `first_ms`, `last_ms` (of what has an instant) and `content`: a hash
    over the rows that does not depend on their order (`replay.rowhash`).
    """

    calls: pl.DataFrame
    attempts: pl.DataFrame
    offers: pl.DataFrame
    prices: pl.DataFrame
    policies: pl.DataFrame
    settings: pl.DataFrame
    identity: dict[str, dict[str, Any]]


def load_ledger(connection: duckdb.DuckDBPyConnection, *, whole: bool = True) -> Ledger:
    """Load every table a replay needs from an open mirror.

    Not `whole`: of calls and attempts only what a replay reads, in a fraction of the memory; texts that recur are then
    of the type `polars.Enum`. The identity is that of all columns either way.
    """
    seen = {table: Seen(table) for table in LARGE}
    calls, attempts = (read_rows(connection, table, seen[table], whole=whole) for table in LARGE)
    small, identity = read_small(connection)
    identity = {table: identity.get(table) or seen[table].identity for table in TABLES}
    return Ledger(calls, attempts, **small, identity=identity)


def read_small(
    connection: duckdb.DuckDBPyConnection,
) -> tuple[dict[str, pl.DataFrame], dict[str, dict[str, Any]]]:
    """Return the tables that are small, by the names that `Ledger` has for them, and their identities."""
    seen = {table: Seen(table) for table in _SMALL}
    frames = {name: read_rows(connection, table, seen[table], whole=True) for table, name in _SMALL.items()}
    return frames, {table: one.identity for table, one in seen.items()}


def read_for_replay(mirror: Path) -> tuple[Ledger, list[str]]:
    """Read of a mirror file what a replay reads, and, beside it, what the replay will have to infer."""
    with open_mirror(mirror) as connection, ThreadPoolExecutor(1) as beside:
        inferred = beside.submit(lacks, connection.cursor())
        return load_ledger(connection, whole=False), inferred.result()


def table_identity(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, Any]:
    """Return a table's row count, time range and content hash, as `Ledger.identity` holds them."""
    seen = Seen(table)
    for rows in _batches(connection, table):
        seen.update(rows)
    return seen.identity


def read_rows(
    connection: duckdb.DuckDBPyConnection, table: str, seen: Seen, where: str = "", *, whole: bool = False
) -> pl.DataFrame:
    """Return a table's rows, or those of a condition in SQL, in the order of its key; `seen` takes note of them."""
    coded, unread = ((), ()) if whole else (_CODED.get(table, ()), _UNREAD.get(table, ()))
    batches = []
    kept: list[str] = []
    for rows in _some(connection, table, where) if where else _batches(connection, table):
        made = _dictionaries(rows, coded)
        seen.update(made)
        kept = [name for name in made.schema.names if name not in unread]
        batches.append(made.select(kept))
    table_rows = pa.Table.from_batches(batches)
    frame = pl.DataFrame(
        {name: _enum(table_rows[name]) if name in coded else pl.Series(table_rows[name]) for name in kept}
    )
    key = _KEYS.get(table, ("id",))
    in_order = key == ("id",) and frame["id"].is_sorted()
    return (frame if in_order else frame.sort(*key)).rechunk()


def _batches(connection: duckdb.DuckDBPyConnection, table: str) -> Iterator[pa.RecordBatch]:
    """Yield a table's rows, at least one batch, be it empty; the next is read while the last is worked on."""
    reader = connection.execute(f"SELECT * FROM {table}").to_arrow_reader(ROWS_PER_BATCH)
    rows = pa.RecordBatch.from_pylist([], schema=reader.schema)
    with ThreadPoolExecutor(1) as ahead:
        while rows is not None:
            coming = ahead.submit(next, reader, None)
            yield rows
            rows = coming.result()


def _some(connection: duckdb.DuckDBPyConnection, table: str, where: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a condition, few enough to be read at once: that spares a copy of each of them."""
    rows = connection.sql(f"SELECT * FROM {table} {where}").to_arrow_table(ROWS_PER_BATCH)
    yield pa.RecordBatch.from_pylist([], schema=rows.schema)
    yield from rows.to_batches()


def _dictionaries(rows: pa.RecordBatch, coded: Iterable[str]) -> pa.RecordBatch:
    columns = {name: rows.column(name) for name in rows.schema.names}
    return pa.record_batch(columns | {name: columns[name].dictionary_encode() for name in coded})


def _enum(column: pa.ChunkedArray) -> pl.Series:
    """Return a column of dictionaries as one enumeration, its values in byte order."""
    whole = column.unify_dictionaries().combine_chunks()
    values = whole.dictionary.to_pylist()
    order = sorted(range(len(values)), key=lambda place: values[place].encode())
    place_of = np.empty(len(values), dtype=np.uint32)
    place_of[order] = np.arange(len(values), dtype=np.uint32)
    codes = pl.Series(whole.indices)
    placed = pl.Series(place_of).gather(codes) if len(values) else codes.cast(pl.UInt32)
    return placed.cat.to(pl.Enum([values[place] for place in order]))


class Seen:
    """What a table's identity is made of, batch by batch."""

    def __init__(self, table: str) -> None:
        self._instant = _INSTANTS.get(table)
        self._content = TableHash()
        self._rows = 0
        self._ends: list[int] = []

    def update(self, rows: pa.RecordBatch) -> None:
        """Take in more rows."""
        self._rows += len(rows)
        self._content.update(rows)
        if self._instant is not None:
            ends = pl.Series(rows.column(self._instant[0]))
            self._ends += [at for at in (ends.min(), ends.max()) if isinstance(at, int)]

    @property
    def identity(self) -> dict[str, Any]:
        """The identity of all rows so far, as `Ledger.identity` holds it."""
        unit_ms = self._instant[1] if self._instant else 1
        first, last = (pick(self._ends) * unit_ms if self._ends else None for pick in (min, max))
        return {"rows": self._rows, "first_ms": first, "last_ms": last, "content": self._content.hexdigest()}
