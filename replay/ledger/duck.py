"""A ledger in DuckDB on a given clock: the router's recorder and its stamps, derived by the shared SQL as it stands."""

from __future__ import annotations

from typing import Any

import duckdb

from replay import queries
from replay.ledger.derivations import Row, Windows
from replay.ledger.memory import HasNow, QueuedLedger, WriteLag, no_lag
from replay.ledger.rows import AttemptRow, CallRow, columns, values
from replay.sessions import Session, session_of
from replay.settings import Settings
from replay.stamps import Evidence


class DuckLedger(QueuedLedger):
    """Recorder and stamps over a DuckDB connection that holds the mirror's tables.

    The connection stays the caller's: nothing is committed to a file beyond what its own transaction does. Ids and
    transaction ids continue after the highest ones in the tables. Only what the shared SQL can measure is served:
    windows for reliability and latency, the windowed tools rule, or no tools rule.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        settings: Settings,
        clock: HasNow,
        write_lag: WriteLag = no_lag,
    ) -> None:
        super().__init__(clock, write_lag)
        self.connection = connection
        self.windows = Windows.of(settings)
        self._continue_after_what_is_there()

    def read(self, now_ms: int) -> Evidence:
        """Derive every stamp from what is visible at an instant, with production's queries and no upper bound."""
        with self.lock:
            snapshot = self._commit(now_ms)
            answers = [self._run(name, **values) for name, values in self.windows.asked(now_ms)]
            stats, incapable = self.windows.told(answers)
            return Evidence(now_ms, stats, incapable, "ok", snapshot)

    def read_for(self, now_ms: int, session_id: str) -> tuple[Evidence, Session]:
        """Derive every stamp, and read a session."""
        return self.read(now_ms), self.read_session(session_id)

    def read_session(self, session_id: str) -> Session:
        """Return the owner, the hot route and the totals of a session's visible calls."""
        with self.lock:
            self._commit(self.clock.now_ms())
            owner, hot, totals = (
                next(iter(self._run(name, session_id=session_id)), {})
                for name in ("session_owner", "hot_route", "session_totals")
            )
            return session_of(session_id, owner, hot, totals)

    def rows(self) -> tuple[tuple[CallRow, ...], tuple[AttemptRow, ...]]:
        """Return the committed calls and attempts, each in the order of their ids."""
        with self.lock:
            calls = self.connection.execute(f"SELECT {', '.join(columns(CallRow))} FROM calls ORDER BY id").fetchall()
            attempts = self.connection.execute(
                f"SELECT {', '.join(columns(AttemptRow))} FROM route_observations ORDER BY id"
            ).fetchall()
        return (
            tuple(CallRow(**dict(zip(columns(CallRow), row, strict=True))) for row in calls),
            tuple(AttemptRow(**dict(zip(columns(AttemptRow), row, strict=True))) for row in attempts),
        )

    def _run(self, name: str, **parameters: Any) -> list[Row]:
        query = queries.load(name)
        result = self.connection.execute(query.text, query.bind(**parameters))
        names = [column[0] for column in result.description or ()]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def _store_call(self, row: CallRow) -> None:
        self._insert("calls", row)

    def _store_attempt(self, row: AttemptRow) -> None:
        self._insert("route_observations", row)

    def _insert(self, table: str, row: CallRow | AttemptRow) -> None:
        names = columns(type(row))
        marks = ", ".join("?" * len(names))
        self.connection.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", values(row))

    def _continue_after_what_is_there(self) -> None:
        last_txid = 0
        tables: tuple[tuple[str, type[CallRow] | type[AttemptRow]], ...] = (
            ("calls", CallRow),
            ("route_observations", AttemptRow),
        )
        for table, row_type in tables:
            # Ids from 2^62 on are not handed out: they identify imported rows by their content.
            found = self.connection.execute(
                f"SELECT coalesce(max(id) FILTER (WHERE id < {2**62}), 0), coalesce(max(txid), 0) FROM {table}"
            )
            last_id, txid = found.fetchall()[0]
            self._last_ids[row_type] = last_id
            last_txid = max(last_txid, txid)
        self.next_txid = last_txid + 1
