"""Production's ledger as one reader saw it: the shared SQL, unedited, over views that shadow the ledger tables.

The views stand in DuckDB's temporary schema, which is searched first, so `FROM route_observations` in a query finds
them. `replay.crowd` is the same for many decisions at once.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import duckdb
import polars as pl

from replay import queries
from replay.measuring import Measuring
from replay.readers import Readers, fill, leave_out
from replay.snapshots import NOTHING, Snapshot


class Shadow:
    """An in-memory mirror of a timeline's ledger whose tables show only what one reader could see."""

    def __init__(self, measuring: Measuring) -> None:
        self.measuring = measuring
        self._readers = Readers(measuring)
        self._connection = connection = duckdb.connect()
        connection.execute("SET threads = 1")  # the queries are small: threads only cost
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(queries.ddl("mirror"))
        ledger = measuring.timeline.ledger
        fill(connection, "INSERT INTO offer_history BY NAME", ledger.offers)
        fill(connection, "INSERT INTO provider_prices BY NAME", ledger.prices)
        # A call's end is known to the second; it counts from that second on.
        fill(connection, "CREATE TABLE all_calls AS", ledger.calls.with_columns(visible_ms=pl.col("ts") * 1000))
        visible_ms = pl.Series(measuring.visibility.visible_ms)
        fill(connection, "CREATE TABLE all_observations AS", ledger.attempts.with_columns(visible_ms=visible_ms))
        self._see(NOTHING, (0, 0))
        connection.execute(
            "CREATE TEMP VIEW route_observations AS SELECT all_observations.* EXCLUDE (visible_ms) "
            f"FROM all_observations, reader WHERE {self._readers.shown}"
        )
        connection.execute(
            "CREATE TEMP VIEW calls AS SELECT all_calls.* EXCLUDE (visible_ms) "
            f"FROM all_calls, reader WHERE {self._readers.visible}"
        )

    def __enter__(self) -> Shadow:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def see(self, evidence_ms: int, snapshot: Snapshot, visible_until_ms: tuple[int, int] | None = None) -> int:
        """Show what a reader at `evidence_ms` with this snapshot saw; return the `until_ms` to ask with.

        `visible_until_ms`: before which instants rows without and rows with a transaction id had to be visible; by
        default the first before `evidence_ms`, and the others whenever the snapshot sees them. Where visibility is
        recorded there is no upper bound in time, as in production.
        """
        self._see(snapshot, visible_until_ms or (evidence_ms, queries.END_OF_TIME))
        return queries.END_OF_TIME if self._readers.recorded else evidence_ms

    def see_call(self, call: int) -> int:
        """Show what a decision saw; return the `until_ms` to ask with."""
        recorded = self._readers.recorded
        snapshot = self.measuring.evidence_snapshot(call) if recorded else NOTHING
        return self.see(int(self.measuring.evidence_ms[call]), snapshot, self.measuring.evidence_until_ms(call))

    def _see(self, snapshot: Snapshot, visible_until_ms: tuple[int, int]) -> None:
        reader = self._readers.at([snapshot], [visible_until_ms])
        fill(self._connection, "CREATE OR REPLACE TEMP TABLE reader AS", reader)

    def without(self, kinds: tuple[str, ...] = (), failed: bool = False) -> Shadow:
        """Leave attempts of some error kinds, or all failed ones, out of what is shown from now on."""
        leave_out(self._connection, kinds, failed)
        return self

    def rows(self, name: str, **values: int) -> list[tuple[Any, ...]]:
        """Run a shared query as it stands in its file."""
        query = queries.load(name)
        return self._connection.execute(query.text, query.bind(**values)).fetchall()

    def frame(self, name: str, **values: Any) -> pl.DataFrame:
        """Run a shared query as it stands in its file, into a frame."""
        query = queries.load(name)
        return self._connection.execute(query.text, query.bind(**values)).pl()
