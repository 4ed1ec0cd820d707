"""Production's ledger as one reader saw it: the shared SQL, unedited, over views that shadow the ledger tables.

The views stand in DuckDB's temporary schema, which is searched first, so `FROM route_observations` in a query finds
them. What they show is worked out in SQL from the recorded snapshot (or the lag), not from the engine's keys.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from replay import queries
from replay.measuring import Measuring
from replay.timeline import NOTHING, Snapshot

_RECORDED = """CASE WHEN txid IS NULL THEN visible_ms < getvariable('until_ms')
    ELSE visible_ms < getvariable('numbered_until_ms') AND (txid < getvariable('xmin')
        OR (txid < getvariable('xmax') AND NOT list_contains(getvariable('running'), txid))) END"""
_LAGGED = "visible_ms < getvariable('until_ms')"


class Shadow:
    """An in-memory mirror of a timeline's ledger whose tables show only what a reader could see."""

    def __init__(self, measuring: Measuring) -> None:
        self.measuring = measuring
        self._filters: tuple[tuple[str, ...], bool] | None = None
        self._connection = duckdb.connect()
        self._connection.execute("SET threads = 1")  # the queries are small: threads only cost
        self._connection.execute("SET TimeZone = 'UTC'")
        self._load()

    def __enter__(self) -> Shadow:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    def _load(self) -> None:
        # Nothing that a snapshot sees ended after the newest row of a transaction below its xmax. Said as a bound on
        # ts, that lets a query read the part of the table that it asks for, instead of all of it.
        attempts = self.measuring.timeline.attempts
        numbered = np.flatnonzero(attempts.txid >= 0)
        numbered = numbered[np.argsort(attempts.txid[numbered], kind="stable")]
        self._txid, self._newest_ms = attempts.txid[numbered], np.maximum.accumulate(attempts.ts_ms[numbered])
        ledger, visibility = self.measuring.timeline.ledger, self.measuring.visibility
        visible = _RECORDED if visibility.kind == "recorded" else _LAGGED
        keys = {"id": self.measuring.timeline.attempts.id, "visible_ms": visibility.visible_ms}
        self._connection.execute(queries.ddl("mirror"))
        self._fill("offer_history", ledger.offers)
        self._fill("provider_prices", ledger.prices)
        self._connection.register("attempts", ledger.attempts.to_arrow())
        self._connection.register("visible", pa.table(keys))
        self._connection.register("calls_read", ledger.calls.to_arrow())
        self._connection.execute(
            "CREATE TABLE all_observations AS "
            "SELECT a.*, v.visible_ms FROM attempts AS a JOIN visible AS v USING (id) ORDER BY ts, id"
        )
        # A call's end is known to the second; it counts from that second on.
        self._connection.execute("CREATE TABLE all_calls AS SELECT *, ts * 1000 AS visible_ms FROM calls_read")
        self._connection.execute(
            "CREATE TEMP VIEW route_observations AS SELECT * EXCLUDE (visible_ms) FROM memory.main.all_observations "
            f"WHERE ts <= getvariable('newest_ms') AND {visible} "
            "AND NOT list_contains(getvariable('without_kinds'), coalesce(error_kind, '')) "
            "AND (ok OR NOT getvariable('without_failed'))"
        )
        self._connection.execute(
            f"CREATE TEMP VIEW calls AS SELECT * EXCLUDE (visible_ms) FROM memory.main.all_calls WHERE {visible}"
        )

    def _fill(self, table: str, frame: pl.DataFrame) -> None:
        self._connection.register("rows_read", frame.to_arrow())
        self._connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM rows_read")
        self._connection.unregister("rows_read")

    def see(self, evidence_ms: int, snapshot: Snapshot, visible_until_ms: tuple[int, int] | None = None) -> int:
        """Show what a reader at `evidence_ms` with this snapshot saw; return the `until_ms` to ask with.

        `visible_until_ms`: before which instants rows without and rows with a transaction id had to be visible; by
        default the first before `evidence_ms`, and the others whenever the snapshot sees them. Where visibility is
        recorded there is no upper bound in time, as in production.
        """
        until_ms, numbered_until_ms = visible_until_ms or (evidence_ms, queries.END_OF_TIME)
        seen = (
            f"SET VARIABLE until_ms = {until_ms}::BIGINT; SET VARIABLE numbered_until_ms = {numbered_until_ms}::BIGINT;"
        )
        recorded, newest_ms = self.measuring.visibility.kind == "recorded", until_ms
        if recorded:
            seen += f"SET VARIABLE xmin = {snapshot.xmin}::BIGINT; SET VARIABLE xmax = {snapshot.xmax}::BIGINT;"
            seen += f"SET VARIABLE running = {sorted(snapshot.running)}::BIGINT[];"
            below = int(np.searchsorted(self._txid, snapshot.xmax))
            newest_ms = max(until_ms, int(self._newest_ms[below - 1])) if below else until_ms
        seen += f"SET VARIABLE newest_ms = {newest_ms}::BIGINT;"
        self._connection.execute(seen)  # one text, as every call into DuckDB costs
        return queries.END_OF_TIME if recorded else evidence_ms

    def see_call(self, call: int) -> int:
        """Show what a decision saw; return the `until_ms` to ask with."""
        recorded = self.measuring.visibility.kind == "recorded"
        snapshot = self.measuring.evidence_snapshot(call) if recorded else NOTHING
        return self.see(int(self.measuring.evidence_ms[call]), snapshot, self.measuring.evidence_until_ms(call))

    def without(self, kinds: tuple[str, ...] = (), failed: bool = False) -> Shadow:
        """Leave attempts of some error kinds, or all failed ones, out of what is shown from now on."""
        if self._filters != (kinds, failed):
            self._connection.execute("SET VARIABLE without_kinds = $1::TEXT[]", [list(kinds)])
            self._connection.execute(f"SET VARIABLE without_failed = {failed}")
            self._filters = (kinds, failed)
        return self

    def rows(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        """Run a shared query as it stands in its file."""
        query = queries.load(name)
        return self._connection.execute(query.text, query.bind(**values)).fetchall()

    def frame(self, name: str, **values: Any) -> pl.DataFrame:
        """Run a shared query as it stands in its file, into a frame."""
        query = queries.load(name)
        return self._connection.execute(query.text, query.bind(**values)).pl()
