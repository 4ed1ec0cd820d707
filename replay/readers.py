"""What readers of the ledger could see, said in SQL: a table of readers, and conditions on the ledger's rows.

It is worked out from each reader's recorded snapshot (or the lag), not from the engine's keys: they check each other.
"""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl

from replay.measuring import Measuring
from replay.snapshots import NOTHING, Snapshot

# The commonest case first: a row that does not need the later ones is not held against them.
_RECORDED = """(txid < reader.xmin AND visible_ms < reader.numbered_until_ms
    OR txid >= reader.xmin AND txid < reader.xmax AND visible_ms < reader.numbered_until_ms
        AND NOT list_contains(reader.running, txid)
    OR txid IS NULL AND visible_ms < reader.until_ms)"""
_LAGGED = "visible_ms < reader.until_ms"
_WANTED = """(len(reader.without_kinds) = 0 OR NOT list_contains(reader.without_kinds, coalesce(error_kind, '')))
    AND (ok OR NOT reader.without_failed)"""

_READER: dict[str, pl.DataType | type[pl.DataType]] = {
    "until_ms": pl.Int64,
    "numbered_until_ms": pl.Int64,
    "newest_ms": pl.Int64,
    "xmin": pl.Int64,
    "xmax": pl.Int64,
    "running": pl.List(pl.Int64),
}


class Readers:
    """What is known of readers: a row each of a table `reader`, against which SQL holds the ledger's rows."""

    def __init__(self, measuring: Measuring) -> None:
        self.measuring = measuring
        self.recorded = measuring.visibility.kind == "recorded"
        # Nothing that a snapshot sees ended after the newest row of a transaction below its xmax. Said as a bound on
        # ts, that tells which rows a decision needs.
        attempts = measuring.timeline.attempts
        numbered = np.flatnonzero(attempts.txid >= 0)
        numbered = numbered[np.argsort(attempts.txid[numbered], kind="stable")]
        self._txid, self._newest_ms = attempts.txid[numbered], np.maximum.accumulate(attempts.ts_ms[numbered])

    @property
    def visible(self) -> str:
        """The condition in SQL that a row was visible; with columns `txid` and `visible_ms`, which attempts have."""
        return _RECORDED if self.recorded else _LAGGED

    @property
    def shown(self) -> str:
        """The condition in SQL that an attempt, in a table `all_observations`, was visible and is not left out."""
        return f"all_observations.ts <= reader.newest_ms AND {self.visible} AND {_WANTED}"

    def of_calls(self, calls: list[int]) -> pl.DataFrame:
        """Return what decisions could see."""
        snapshots = [self.measuring.evidence_snapshot(call) if self.recorded else NOTHING for call in calls]
        return self.at(snapshots, [self.measuring.evidence_until_ms(call) for call in calls])

    def at(self, snapshots: list[Snapshot], visible_until_ms: list[tuple[int, int]]) -> pl.DataFrame:
        """Return what readers with snapshots could see.

        `visible_until_ms`: before which instants rows without, and rows with a transaction id had to be visible.
        """
        below = np.searchsorted(self._txid, np.array([one.xmax for one in snapshots], dtype=np.int64))
        until_ms, numbered_until_ms = (np.array(one, dtype=np.int64) for one in zip(*visible_until_ms, strict=True))
        newest_ms = np.concatenate([[np.iinfo(np.int64).min], self._newest_ms])[below]
        return pl.DataFrame(
            {
                "until_ms": until_ms,
                "numbered_until_ms": numbered_until_ms,
                "newest_ms": np.maximum(until_ms, newest_ms),
                "xmin": [one.xmin for one in snapshots],
                "xmax": [one.xmax for one in snapshots],
                "running": [sorted(one.running) for one in snapshots],
            },
            schema=_READER,
        ).with_columns(without_kinds=pl.lit([], dtype=pl.List(pl.String)), without_failed=False)


def leave_out(connection: duckdb.DuckDBPyConnection, kinds: tuple[str, ...], failed: bool) -> None:
    """Have every reader in the table `reader` not be shown attempts of some error kinds, or any failed ones."""
    change = "UPDATE reader SET without_kinds = $1::TEXT[], without_failed = $2"
    connection.execute(change, [list(kinds), failed])


def fill(connection: duckdb.DuckDBPyConnection, into: str, frame: pl.DataFrame) -> None:
    """Bring a frame into a table; `into` is the statement up to its SELECT."""
    rows_read = frame.to_arrow()  # noqa: F841 - found by its name
    connection.execute(f"{into} SELECT * FROM rows_read")
