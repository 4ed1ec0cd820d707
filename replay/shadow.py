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

from replay import queries
from replay.measuring import Measuring
from replay.timeline import NOTHING, Bools, Ints, Snapshot

_RECORDED = """CASE WHEN txid IS NULL THEN visible_ms < getvariable('reader').until_ms
    ELSE visible_ms < getvariable('reader').numbered_until_ms AND (txid < getvariable('reader').xmin
        OR (txid < getvariable('reader').xmax AND NOT list_contains(getvariable('reader').running, txid))) END"""
_LAGGED = "visible_ms < getvariable('reader').until_ms"


class Shadow:
    """An in-memory mirror of a timeline's ledger whose tables show only what a reader could see.

    `around` are calls, and ms before their evidence: of the attempts, only those that ended within are loaded, which
    spares most of a long ledger where a few decisions are looked at. Without it the ledger has to be a whole one.
    """

    def __init__(self, measuring: Measuring, around: tuple[Ints, int] | None = None) -> None:
        self.measuring = measuring
        # Nothing that a snapshot sees ended after the newest row of a transaction below its xmax. Said as a bound on
        # ts, that lets a query read the part of the table that it asks for, instead of all of it.
        attempts = measuring.timeline.attempts
        numbered = np.flatnonzero(attempts.txid >= 0)
        numbered = numbered[np.argsort(attempts.txid[numbered], kind="stable")]
        self._txid, self._newest_ms = attempts.txid[numbered], np.maximum.accumulate(attempts.ts_ms[numbered])
        self._database = duckdb.connect()
        self._database.execute("SET threads = 1")  # the queries are small: threads only cost
        self._database.execute("SET TimeZone = 'UTC'")
        self._load(around)
        self._connect()

    def __enter__(self) -> Shadow:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()
        self._database.close()

    def twin(self) -> Shadow:
        """Return another reader of the same rows, for a thread of its own; it is closed with this one."""
        other = object.__new__(Shadow)
        other.__dict__.update(self.__dict__)
        other._connect()
        return other

    def _load(self, around: tuple[Ints, int] | None) -> None:
        ledger, connection = self.measuring.timeline.ledger, self._database
        attempts, visible_ms = ledger.attempts, self.measuring.visibility.visible_ms
        connection.execute(queries.ddl("mirror"))
        if around is not None:
            inside = self._ended_around(*around)
            attempts, visible_ms = attempts.filter(pl.Series(inside)), visible_ms[inside]
        self._fill("all_observations", attempts.with_columns(visible_ms=pl.Series(visible_ms)))
        if around is None:
            self._fill("offer_history", ledger.offers)
            self._fill("provider_prices", ledger.prices)
            # A call's end is known to the second; it counts from that second on.
            self._fill("all_calls", ledger.calls.with_columns(visible_ms=pl.col("ts") * 1000))
        else:  # a query of theirs had better fail than find nothing
            for table in ("calls", "offer_history", "provider_prices"):
                connection.execute(f"DROP TABLE {table}")

    def _fill(self, table: str, frame: pl.DataFrame) -> None:
        known = self._database.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = ?", [table]).fetchone()
        self._database.register("rows_read", frame.to_arrow())
        into = f"INSERT INTO {table} BY NAME" if known else f"CREATE TABLE {table} AS"
        self._database.execute(f"{into} SELECT * FROM rows_read")
        self._database.unregister("rows_read")

    def _ended_around(self, calls: Ints, before_ms: int) -> Bools:
        """Mark the attempts that ended in the time before any of the calls' evidence, or later but seen by it."""
        first_ms = self.measuring.evidence_ms[calls] - before_ms
        asked = (self._asked(call) for call in calls.tolist())
        last_ms = np.array([self._newest(snapshot, until_ms) for snapshot, (until_ms, _) in asked], dtype=np.int64)
        order = np.argsort(first_ms, kind="stable")
        first_ms, last_ms = first_ms[order], np.maximum.accumulate(last_ms[order])
        ended_ms = self.measuring.timeline.attempts.ts_ms
        begun = np.searchsorted(first_ms, ended_ms, side="right") - 1
        return (begun >= 0) & (ended_ms <= last_ms[np.maximum(begun, 0)])

    def _connect(self) -> None:
        """Open a connection of one's own: views of the temporary schema, and variables, are nobody else's."""
        self._connection = connection = self._database.cursor()
        self._filters: tuple[tuple[str, ...], bool] | None = None
        visible = _RECORDED if self.measuring.visibility.kind == "recorded" else _LAGGED
        connection.execute(
            "CREATE TEMP VIEW route_observations AS SELECT * EXCLUDE (visible_ms) FROM memory.main.all_observations "
            f"WHERE ts <= getvariable('reader').newest_ms AND {visible} "
            "AND NOT list_contains(getvariable('without_kinds'), coalesce(error_kind, '')) "
            "AND (ok OR NOT getvariable('without_failed'))"
        )
        if connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'all_calls'").fetchone():
            connection.execute(
                f"CREATE TEMP VIEW calls AS SELECT * EXCLUDE (visible_ms) FROM memory.main.all_calls WHERE {visible}"
            )

    def see(self, evidence_ms: int, snapshot: Snapshot, visible_until_ms: tuple[int, int] | None = None) -> int:
        """Show what a reader at `evidence_ms` with this snapshot saw; return the `until_ms` to ask with.

        `visible_until_ms`: before which instants rows without and rows with a transaction id had to be visible; by
        default the first before `evidence_ms`, and the others whenever the snapshot sees them. Where visibility is
        recorded there is no upper bound in time, as in production.
        """
        until_ms, numbered_until_ms = visible_until_ms or (evidence_ms, queries.END_OF_TIME)
        numbers = {
            "until_ms": until_ms,
            "numbered_until_ms": numbered_until_ms,
            "newest_ms": self._newest(snapshot, until_ms),
            "xmin": snapshot.xmin,
            "xmax": snapshot.xmax,
        }
        values = [*(f"'{name}': {value}::BIGINT" for name, value in numbers.items())]
        values.append(f"'running': {sorted(snapshot.running)}::BIGINT[]")
        # One variable for all, as every call into DuckDB costs.
        self._connection.execute(f"SET VARIABLE reader = {{{', '.join(values)}}}")
        return queries.END_OF_TIME if self.measuring.visibility.kind == "recorded" else evidence_ms

    def see_call(self, call: int) -> int:
        """Show what a decision saw; return the `until_ms` to ask with."""
        return self.see(int(self.measuring.evidence_ms[call]), *self._asked(call))

    def _asked(self, call: int) -> tuple[Snapshot, tuple[int, int]]:
        recorded = self.measuring.visibility.kind == "recorded"
        snapshot = self.measuring.evidence_snapshot(call) if recorded else NOTHING
        return snapshot, self.measuring.evidence_until_ms(call)

    def _newest(self, snapshot: Snapshot, until_ms: int) -> int:
        """Return the latest end of any attempt that can be seen: of one without a transaction id, `until_ms`."""
        below = int(np.searchsorted(self._txid, snapshot.xmax))
        return max(until_ms, int(self._newest_ms[below - 1])) if below else until_ms

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
