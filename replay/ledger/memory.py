"""An in-memory ledger on a given clock: the router's recorder and its stamps, without a database.

Rows become visible as in production: asynchronously. A recorded row commits at `now + write lag`; only then does
it get its id and transaction id, and only then can a decision see it.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from replay.core import Policy
from replay.errors import ReplayError
from replay.estimators import Stream, ToolsStream
from replay.ledger.rows import AttemptRow, CallRow
from replay.sessions import Session, SessionTotals
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
        self.policies: dict[str, Policy] = {}
        self.all_settings: dict[str, Settings] = {}

    def record_policy(self, policy: Policy) -> None:
        """Keep a policy under its identity."""
        self.policies[policy.identity] = policy

    def record_settings(self, settings: Settings) -> None:
        """Keep measurement settings under their identity."""
        self.all_settings[settings.identity] = settings

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
        self._sessions: dict[str, _Session] = {}

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

    def read_for(self, now_ms: int, session_id: str) -> tuple[Evidence, Session]:
        """Derive every stamp, and read a session."""
        return self.read(now_ms), self.read_session(session_id)

    def read_session(self, session_id: str) -> Session:
        """Return the owner, the hot route and the totals of a session's visible calls."""
        with self.lock:
            self._commit(self.clock.now_ms())
            session = self._sessions.get(session_id)
            return Session(session_id) if session is None else session.read(session_id)

    def rows(self) -> tuple[tuple[CallRow, ...], tuple[AttemptRow, ...]]:
        """Return the committed calls and attempts, each in the order of their ids."""
        with self.lock:
            return tuple(self.calls), tuple(self.attempts)

    def _store_call(self, row: CallRow) -> None:
        self.calls.append(row)
        if not row.session_id:
            return
        session = self._sessions.get(row.session_id)
        if session is None:
            session = self._sessions[row.session_id] = _Session(first=row)
        session.fold(row)

    def _store_attempt(self, row: AttemptRow) -> None:
        self.attempts.append(row)
        route = self._routes.get(row.route_key)
        if route is None:
            route = self._routes[row.route_key] = _Route(self.settings)
        route.fold(row)


@dataclass
class _Session:
    """A session's first and latest successful call, and its totals; rows are folded in the order of their ids."""

    first: CallRow
    hot: CallRow | None = None
    totals: SessionTotals = field(default_factory=SessionTotals)
    cost_pico_usd: int = 0  # whole numbers, as in the shared SQL: the same sum in any order

    def fold(self, row: CallRow) -> None:
        if row.ts < self.first.ts:  # ids ascend, so the earlier commit wins a tie
            self.first = row
        succeeded = row.served_by and row.status is not None and row.status < 400
        if succeeded and (self.hot is None or self.hot.ts <= row.ts):  # and here the later one
            self.hot = row
        self.totals = self.totals.plus(row)
        if row.cost_usd is not None and -1e6 < row.cost_usd < 1e6:
            self.cost_pico_usd += math.floor(row.cost_usd * 1e12 + 0.5)

    def read(self, session_id: str) -> Session:
        micro_usd = math.copysign((abs(self.cost_pico_usd) + 500_000) // 1_000_000, self.cost_pico_usd)
        hot = self.hot
        return Session(
            session_id,
            owner=self.first.caller,
            hot_route=None if hot is None else f"{hot.provider_id or ''}|{hot.model_family or ''}|{hot.served_by}",
            totals=replace(self.totals, cost_usd=micro_usd / 1e6),
        )


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
