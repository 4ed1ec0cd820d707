"""A ledger in DuckDB on a given clock: the router's recorder and its stamps, derived by the shared SQL as it stands."""

from __future__ import annotations

from typing import Any

import duckdb

from replay import queries
from replay.errors import ReplayError
from replay.estimators import ToolsNever, ToolsWindow, Window
from replay.ledger.memory import HasNow, QueuedLedger, WriteLag, no_lag, require_shared
from replay.ledger.rows import AttemptRow, CallRow, columns, values
from replay.settings import Measure, Settings
from replay.stamps import Evidence, RouteStat


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
        require_shared(settings)
        self.connection = connection
        self.reliability_window_ms = _window_ms("reliability", settings.reliability)
        self.latency_window_ms = _window_ms("latency", settings.latency)
        if not isinstance(settings.tools.rule, ToolsWindow | ToolsNever) or settings.tools.failed != "counted":
            raise ReplayError(
                f"settings.tools is {settings.tools}; expected the windowed rule with failed attempts counted, which "
                "is what the shared SQL derives: take the preset production-now, or use the in-memory ledger"
            )
        self.tools_rule = settings.tools.rule
        self._continue_after_what_is_there()

    def read(self, now_ms: int) -> Evidence:
        """Derive every stamp from what is visible at an instant, with production's queries and no upper bound."""
        with self.lock:
            snapshot = self._commit(now_ms)
            stats = self._stats(now_ms)
            incapable: frozenset[str] = frozenset()
            if isinstance(self.tools_rule, ToolsWindow):
                rows = self._run(
                    "tool_incapable_routes",
                    since_ms=now_ms - self.tools_rule.window_ms,
                    until_ms=queries.END_OF_TIME,
                    min_samples=self.tools_rule.min_samples,
                )
                incapable = frozenset(_route_key(row) for row in rows)
            return Evidence(now_ms, stats, incapable, "ok", snapshot)

    def hot_route(self, session_id: str, now_ms: int) -> str | None:
        """Route key of the session's latest visible call that succeeded and says who served it."""
        with self.lock:
            self._commit(now_ms)
            rows = self._run("hot_route", session_id=session_id)
            return rows[0]["route_key"] if rows else None

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

    def _stats(self, now_ms: int) -> dict[str, RouteStat]:
        """Per route, reliability and latency, each from its own window (one query where they are the same)."""
        reliability = self._route_stats(now_ms - self.reliability_window_ms)
        if self.latency_window_ms == self.reliability_window_ms:
            return reliability
        latency = self._route_stats(now_ms - self.latency_window_ms)
        nothing = RouteStat(None, None, 0, 0)
        merged: dict[str, RouteStat] = {}
        for route_key in sorted(reliability.keys() | latency.keys()):
            rate, speed = reliability.get(route_key, nothing), latency.get(route_key, nothing)
            if rate.count or speed.latency_count:
                merged[route_key] = RouteStat(rate.success_rate, speed.latency_ms, rate.count, speed.latency_count)
        return merged

    def _route_stats(self, since_ms: int) -> dict[str, RouteStat]:
        rows = self._run("route_stats", since_ms=since_ms, until_ms=queries.END_OF_TIME)
        return {
            _route_key(row): RouteStat(row["success_rate"], row["latency_ms"], row["count"], row["latency_count"])
            for row in rows
        }

    def _run(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
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


def _route_key(row: dict[str, Any]) -> str:
    return f"{row['provider_id']}|{row['model_family']}|{row['served_by']}"


def _window_ms(name: str, measure: Measure) -> int:
    plain = not measure.exclude_kinds and measure.failed_latency_ms is None and measure.zero_latency == "value"
    if isinstance(measure.rule, Window) and plain:
        return measure.rule.window_ms
    raise ReplayError(
        f"settings.{name} is {measure}; expected a plain window, which is what the shared SQL derives: take the preset "
        "production-now, or use the in-memory ledger"
    )
