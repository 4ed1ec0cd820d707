"""What is asked of the source for each table: its columns as the mirror has them, and the rows that may be new."""

from __future__ import annotations

from dataclasses import dataclass

from replay.ledger.importers.targets import targets
from replay.ledger.pull.source import Snapshot, Source, recent
from replay.ledger.pull.state import Pulled

OVERLAP_ROWS = 100_000
"""How many ids below the last one are read again where nothing tells which rows committed late."""

IMPORTED_ID = 2**62
"""Ids from here on belong to rows of files, never to production's."""

PER_MS = {"calls": ("ts", 1000), "route_observations": ("ts", 1), "offer_history": ("valid_from", 1)}
"""The instant of a row and the milliseconds of its unit, for tables that have one."""

SINCE = ("calls", "route_observations")
"""The tables that `--since` cuts; the others are small, and say what was valid then."""

_POSTGRES = {"BIGINT": "bigint", "INTEGER": "integer", "DOUBLE": "float8", "BOOLEAN": "boolean", "VARCHAR": "text"}


@dataclass(frozen=True)
class SourceTable:
    """A mirrored table as the source has it: `columns` are the mirror's, name and type; `lacking` are not there.

    `way` says how rows that committed late are found again: "txid" by the transaction they carry, "row version" by
    the one PostgreSQL itself keeps for each row, "overlap" by reading the last ids again, which may miss some; "whole"
    where all rows are read each time.
    """

    name: str
    key: tuple[str, ...]
    columns: dict[str, str]
    lacking: tuple[str, ...]
    way: str
    versioned: bool

    @property
    def by_id(self) -> bool:
        """Whether rows have ids and so come in batches; tables without are read whole."""
        return self.key == ("id",) and self.way != "whole"

    def select(self, only: tuple[str, ...] = ()) -> str:
        """Return `SELECT … FROM table` with the mirror's columns and types, NULL for what is lacking."""
        listed = (
            f"{'NULL' if name in self.lacking else name}::{_POSTGRES[kind]} AS {name}"
            for name, kind in self.columns.items()
            if not only or name in only
        )
        return f"SELECT {', '.join(listed)} FROM {self.name}"

    def written_since(self, before: Pulled, now: Snapshot) -> str:
        """Return SQL that holds for the rows that an earlier pull could not see, or saw in another version."""
        version = recent(before.snapshot, now) if self.versioned else f"id > {before.last_id - OVERLAP_ROWS}"
        if self.way == "txid":
            return f"(txid >= {before.snapshot.xmin} OR (txid IS NULL AND {version}))"
        return version if self.versioned or self.by_id else "TRUE"


def describe(source: Source, name: str) -> SourceTable | None:
    """Return a mirrored table as this source has it, None where it has none of it, or nothing that may be read."""
    target = targets()[name]
    present = source.columns(name)
    columns = {column.name: column.sql_type for column in target.columns.values()}
    if not present & columns.keys():
        return None
    versioned = "xmin" in present
    by_id = target.key == ("id",)
    if "txid" in present and "txid" in columns:
        way = "txid"
    elif versioned:
        way = "row version"
    else:
        way = "overlap" if name in SINCE else "whole"
    lacking = tuple(column for column in columns if column not in present)
    return SourceTable(name, target.key, columns, lacking, way if by_id else "whole", versioned)
