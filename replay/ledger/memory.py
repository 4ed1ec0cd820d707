"""An in-memory ledger on a given clock: the router's recorder and its stamps, without a database.

Rows become visible as in production: asynchronously. A recorded row commits at `now + write lag`; only then does
it get its id and transaction id, and only then can a decision see it.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from replay.errors import ReplayError
from replay.estimators import Stream, ToolsStream
from replay.ledger.rows import AttemptRow, CallRow
from replay.settings import Measure, Settings
from replay.stamps import Evidence, RouteStat

Row = TypeVar("Row", CallRow, AttemptRow)
WriteLag = Callable[[CallRow | AttemptRow], int]


class HasNow(Protocol):
    """The part of a clock that a ledger needs."""

    def now_ms(self) -> int:
        """The present instant in ms."""


def no_lag(row: CallRow | AttemptRow) -> int:
    """Write at once."""
    return 0


class QueuedLedger:
    """What ledgers on a clock share: rows wait for their write lag, then commit one transaction each.

    Commits happen when the ledger is next read (or flushed), in the order of (commit instant, recording order),
    which cannot be told from committing on time: nobody looked in between. Subclasses store the committed rows.
    """

    def __init__(self, clock: HasNow, write_lag: WriteLag = no_lag) -> None:
        self.clock = clock
        self.write_lag = write_lag
        self.lock = threading.Lock()
        self.next_txid = 1
        self._pending: list[tuple[int, int, CallRow | AttemptRow]] = []
        self._recorded = 0
        self._last_ids: dict[type, int] = {CallRow: 0, AttemptRow: 0}

    def record_call(self, row: CallRow) -> None:
        """Take in a call's row; it becomes visible after its write lag."""
        self._enqueue(row)

    def record_attempt(self, row: AttemptRow) -> None:
        """Take in an attempt's row; it becomes visible after its write lag."""
        self._enqueue(row)

    def flush(self) -> None:
        """Commit everything that is still waiting, each row at its own instant."""
        with self.lock:
            self._commit(None)

    def _enqueue(self, row: CallRow | AttemptRow) -> None:
        with self.lock:
            commit_at_ms = self.clock.now_ms() + self.write_lag(row)
            self._recorded += 1
            heapq.heappush(self._pending, (commit_at_ms, self._recorded, row))

    def _commit(self, until_ms: int | None) -> str:
        """Commit the rows due at an instant (None: all) and return the snapshot after them; the lock is held."""
        while self._pending and (until_ms is None or self._pending[0][0] <= until_ms):
            row = heapq.heappop(self._pending)[2]
            row_id = self._last_ids[type(row)] = self._last_ids[type(row)] + 1
            if isinstance(row, CallRow):
                self._store_call(replace(row, id=row_id, txid=self.next_txid))
            else:
                self._store_attempt(replace(row, id=row_id, txid=self.next_txid))
            self.next_txid += 1
        return f"{self.next_txid}:{self.next_txid}:"

    def _store_call(self, row: CallRow) -> None:
        raise NotImplementedError

    def _store_attempt(self, row: AttemptRow) -> None:
        raise NotImplementedError


class MemoryLedger(QueuedLedger):
    """Recorder and stamps in memory, measured by the streaming estimators of the settings.

    It serves shared rules (`state = "shared"`), without `when_cold` and `when_empty`; others are refused.
    """

    def __init__(self, settings: Settings, clock: HasNow, write_lag: WriteLag = no_lag) -> None:
        super().__init__(clock, write_lag)
        require_shared(settings)
        self.settings = settings
        self.calls: list[CallRow] = []
        self.attempts: list[AttemptRow] = []
        self._routes: dict[str, _Route] = {}
        self._hot: dict[str, CallRow] = {}

    def read(self, now_ms: int) -> Evidence:
        """Derive every stamp from what is visible at an instant."""
        with self.lock:
            snapshot = self._commit(now_ms)
            stats: dict[str, RouteStat] = {}
            incapable: list[str] = []
            for route_key, route in self._routes.items():
                stat = route.stat(now_ms)
                if stat.count or stat.latency_count:
                    stats[route_key] = stat
                if not route.tools.read(now_ms).capable:
                    incapable.append(route_key)
            return Evidence(now_ms, stats, frozenset(incapable), "ok", snapshot)

    def hot_route(self, session_id: str, now_ms: int) -> str | None:
        """Route key of the session's latest visible call with status < 400 and a served_by (by ts, then id)."""
        with self.lock:
            self._commit(now_ms)
            call = self._hot.get(session_id)
            return None if call is None else f"{call.provider_id or ''}|{call.model_family or ''}|{call.served_by}"

    def rows(self) -> tuple[tuple[CallRow, ...], tuple[AttemptRow, ...]]:
        """Return the committed calls and attempts, each in the order of their ids."""
        with self.lock:
            return tuple(self.calls), tuple(self.attempts)

    def _store_call(self, row: CallRow) -> None:
        self.calls.append(row)
        if not row.session_id or not row.served_by or row.status is None or row.status >= 400:
            return
        hot = self._hot.get(row.session_id)
        if hot is None or hot.ts <= row.ts:  # ids ascend, so the later commit wins a tie
            self._hot[row.session_id] = row

    def _store_attempt(self, row: AttemptRow) -> None:
        self.attempts.append(row)
        route = self._routes.get(row.route_key)
        if route is None:
            route = self._routes[row.route_key] = _Route(self.settings)
        route.fold(row)


class _Route:
    """The three streams of one route."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.reliability: Stream = settings.reliability.rule.start()
        self.latency: Stream = settings.latency.rule.start()
        self.tools: ToolsStream = settings.tools.rule.start()

    def fold(self, row: AttemptRow) -> None:
        identity = row.id or 0
        if row.error_kind not in self.settings.reliability.exclude_kinds:
            self.reliability.fold(row.ts, identity, 1.0 if row.ok else 0.0)
        latency_ms = latency_observation(row, self.settings.latency)
        if latency_ms is not None:
            self.latency.fold(row.ts, identity, latency_ms)
        if row.ok or self.settings.tools.failed == "counted":
            self.tools.fold(row.ts, bool(row.tools_requested), bool(row.tool_calls_emitted))

    def stat(self, now_ms: int) -> RouteStat:
        success_rate, count = self.reliability.read(now_ms)
        mean_ms, latency_count = self.latency.read(now_ms)
        latency_ms = None if mean_ms is None else round(mean_ms)  # round() is half to even, as the SQL
        return RouteStat(success_rate, latency_ms, count, latency_count)


def latency_observation(row: AttemptRow, measure: Measure) -> float | None:
    """The latency that an attempt contributes under a measure, in ms; None if it contributes none.

    >>> failed = AttemptRow(ts=1, ok=False, latency_ms=90.0)
    >>> latency_observation(failed, Settings().latency) is None
    True
    """
    if row.error_kind in measure.exclude_kinds:
        return None
    if not row.ok:
        return measure.failed_latency_ms
    unknown = row.latency_ms == 0 and measure.zero_latency == "unknown"
    return None if unknown else row.latency_ms


def require_shared(settings: Settings) -> None:
    """Refuse settings that need in-process state or stamps for routes without evidence."""
    for name, measure in (("reliability", settings.reliability), ("latency", settings.latency)):
        if measure.when_cold is not None or measure.when_empty is not None:
            raise ReplayError(
                f"settings.{name} has when_cold or when_empty; expected neither in a live ledger: leave them out"
            )
    for name, state in (
        ("reliability", settings.reliability.state),
        ("latency", settings.latency.state),
        ("tools", settings.tools.state),
    ):
        if state != "shared":
            raise ReplayError(
                f"settings.{name} keeps its state in the process; expected shared state, which is what a ledger "
                'serves: use the preset production-now, or state = "shared"'
            )
