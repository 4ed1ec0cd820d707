"""The store: PostgreSQL as a router's recorder and as its stamps, by the shared SQL.

    store = Store()                                   # DATABASE_URL; returns at once, also with the server away
    router = Router(policy, offers, store, store, SystemClock(), replica, settings)
    ...
    print(store.close())                              # what was written, dropped, left

Recording takes a row in and returns; a thread of its own writes (`writer.py`). Reading is one round trip
(`reads.py`). Neither passes an error of the database on to a request: a row is dropped and counted, a reading gives
its neutral value and is counted. `health()` says how it fares, `counters()` is that as numbers to export.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TypeVar

from replay.core import Policy
from replay.errors import ReplayError
from replay.ledger import derivations
from replay.ledger.derivations import Asked, Row, Windows, since
from replay.ledger.postgres import resolve
from replay.ledger.reads import REPORT_TIMEOUT_MS, Reads
from replay.ledger.reference import Offers, PolicyRecord, Reference, SettingsRecord
from replay.ledger.retention import Retention
from replay.ledger.rowqueue import Drained, Item, Queue
from replay.ledger.rows import AttemptRow, CallRow, OfferRow, columns
from replay.ledger.writer import Writer
from replay.sessions import Session, SessionTotals, session_of
from replay.settings import PRODUCTION_NOW, Settings
from replay.stamps import Evidence, RouteStat

log = logging.getLogger(__name__)

Value = TypeVar("Value")

REMEMBERED = 1_000
"""Policies and settings of which a process remembers that it has recorded them; more are written anew, to no effect."""

EXIT_DEADLINE_S = 5.0
"""How long an interpreter that ends waits for what is queued."""


@dataclass(frozen=True, slots=True)
class RouteCost:
    """Calls of known cost of one (provider, family): tokens, USD, and how many costs were the provider's own figure."""

    calls: int
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    cost_usd: float
    reported: int


@dataclass(frozen=True, slots=True)
class StoreHealth:
    """How the store fares. `advice` are statements that an operator should run; no field holds a secret."""

    connected: bool
    exact_visibility: bool
    missing: tuple[str, ...]
    advice: tuple[str, ...]
    queued: int
    written: Mapping[str, int]
    dropped: Mapping[str, int]
    deleted: Mapping[str, int]
    failed_reads: Mapping[str, int]
    last_error: str | None


class Store:
    """Recorder, stamps and derived reads on one PostgreSQL.

    `settings` say how stamps are measured; those the shared SQL cannot serve are refused. `queue_size` bounds what
    waits to be written, `retention_days` (None: for ever) how old a row grows. A reading may take
    `statement_timeout_ms` on the server, and at most `connections` run at a time. Raises ReplayError for a connection
    string that is missing or unreadable; the server itself need not be there. Safe to use from several threads; after
    a fork the child has an empty queue and connections of its own. Where a process ends without `atexit` (a child of
    `multiprocessing`), call `close`.
    """

    def __init__(
        self,
        conninfo: str | None = None,
        settings: Settings = PRODUCTION_NOW,
        *,
        queue_size: int = 10_000,
        retention_days: int | None = 30,
        statement_timeout_ms: int = 1_000,
        connections: int = 4,
    ) -> None:
        self.windows = Windows.of(settings)
        self.settings = settings
        self.retention_days = retention_days
        self.queue_size = queue_size
        self.statement_timeout_ms = statement_timeout_ms
        self.connections = connections
        self._conninfo = resolve(conninfo)
        self._closed = False
        self._begin()
        self._start()
        self.record_settings(settings)
        _LIVE.add(self)

    def _begin(self) -> None:
        """Make the parts that belong to one process."""
        self._queue = Queue(self.queue_size)
        self._retention = Retention(self.retention_days)
        self._writer = Writer(self._conninfo, self._queue, self._retention)
        self._reads = Reads(self._conninfo, self.connections, self.statement_timeout_ms)
        self._lock = threading.Lock()
        self._started = False  # after a fork, until the first row: most children only execute something else
        self._failed: Counter[str] = Counter()
        self._said: set[str] = set()
        self._recorded: dict[str, object] = {}

    def _start(self) -> None:
        with self._lock:
            if not self._started:
                self._started = True
                with contextlib.suppress(RuntimeError):  # the interpreter is ending: rows stay queued, and are counted
                    self._writer.start()

    # --- recording: nothing here waits or raises ---

    def record_call(self, row: CallRow) -> None:
        """Take in a call's row."""
        self._put(row)

    def record_attempt(self, row: AttemptRow) -> None:
        """Take in an attempt's row."""
        self._put(row)

    def record_offers(self, offers: Sequence[OfferRow], now_ms: int) -> None:
        """Take in the whole candidate list as it is from an instant on; only what changed is written.

        Their ids and validity do not matter. All replicas record the same list: the ledger holds one at a time.
        """
        self._take_down(lambda: Offers.of(offers, now_ms))

    def record_policy(self, policy: Policy) -> None:
        """Take in a policy; the same identity with other declared fields or tiers is refused, counted and logged."""
        self._take_down(lambda: PolicyRecord.of(policy, _now_ms()))

    def record_settings(self, settings: Settings) -> None:
        """Take in measurement settings; the store's own are recorded when it is made."""
        self._take_down(lambda: SettingsRecord.of(settings, _now_ms()))

    def _put(self, item: Item) -> bool:
        if not self._started:
            self._start()
        return self._queue.put(item)

    def _take_down(self, taken: Callable[[], Reference]) -> None:
        """Queue what differs from the last that this process recorded under that name."""
        try:
            item = taken()
            name, says = item.name, item.says()
        except Exception:
            self._queue.refuse("bad_row")
            log.exception("what was to be recorded cannot be read; it is left out")
            return
        with self._lock:
            known = self._recorded.get(name) == says
        if known or not self._put(item):
            return
        with self._lock:
            self._recorded.pop(name, None)
            self._recorded[name] = says
            if len(self._recorded) > REMEMBERED:
                del self._recorded[next(iter(self._recorded))]  # the one that was new the longest time ago

    # --- the router's evidence: raises, and the router takes everything as neutral ---

    def read(self, now_ms: int) -> Evidence:
        """Derive every stamp at an instant, in one round trip; raises ReplayError if that fails."""
        return self._evidence(now_ms, [])[0]

    def read_for(self, now_ms: int, session_id: str) -> tuple[Evidence, Session]:
        """Derive every stamp and read a session, in one round trip; raises ReplayError if that fails."""
        evidence, answers = self._evidence(now_ms, _session_asked(session_id))
        return evidence, _session_told(session_id, answers)

    def read_session(self, session_id: str) -> Session:
        """Read a session alone; raises ReplayError if that fails."""
        return _session_told(session_id, self._ask("session", _session_asked(session_id))[1])

    def _evidence(self, now_ms: int, more: list[Asked]) -> tuple[Evidence, list[list[Row]]]:
        asked = self.windows.asked(now_ms)
        snapshot, answers = self._ask("evidence", [*asked, *more])
        stats, incapable = self.windows.told(answers[: len(asked)])
        return Evidence(now_ms, stats, incapable, "ok", snapshot), answers[len(asked) :]

    # --- derived reads: one query each, neutral where it fails ---

    def route_stats(self, now_ms: int, window_ms: int = 900_000) -> dict[str, RouteStat]:
        """Return the stats of every route with attempts in the window that ends now; {} on an error."""
        return self._soft(("route_stats", since(now_ms, window_ms)), derivations.route_stats, {})

    def provider_family_stats(self, now_ms: int, window_ms: int = 900_000) -> dict[tuple[str, str], RouteStat]:
        """Return the roll-up by (provider, family), latency weighted by the attempts behind it; {} on an error."""
        asked = "provider_family_stats", since(now_ms, window_ms)
        return self._soft(asked, lambda rows: {_pair(row): derivations.stat(row) for row in rows}, {})

    def tool_incapable_routes(self, now_ms: int, window_ms: int = 1_800_000, min_samples: int = 20) -> frozenset[str]:
        """Return the routes that ignore tools; none on an error: every route stays capable."""
        asked = "tool_incapable_routes", {**since(now_ms, window_ms), "min_samples": min_samples}
        return self._soft(asked, derivations.route_keys, frozenset())

    def hot_route(self, session_id: str) -> str | None:
        """Return the route key of the session's latest successful call, None without one or on an error."""
        asked = "hot_route", {"session_id": session_id}
        return self._soft(asked, lambda rows: rows[0]["route_key"] if rows else None, None)

    def session_totals(self, session_id: str) -> SessionTotals:
        """Return calls, tokens and cost of a session; zeros without calls or on an error."""
        asked = "session_totals", {"session_id": session_id}
        return self._soft(asked, lambda rows: _filled(SessionTotals, rows[0]), SessionTotals())

    def session_warm(self, session_id: str) -> dict[str, dict[str, str]]:
        """Return per family the latest successful provider_id and served_by of a session; {} on an error."""
        asked = "session_warm", {"session_id": session_id}
        parts = ("provider_id", "served_by")
        return self._soft(
            asked, lambda rows: {row["model_family"]: {part: row[part] for part in parts} for row in rows}, {}
        )

    def session_owner(self, session_id: str) -> str | None:
        """Return the caller of the session's earliest call; None without one, if it named none, or on an error."""
        asked = "session_owner", {"session_id": session_id}
        return self._soft(asked, lambda rows: rows[0]["caller"] if rows else None, None)

    def all_session_totals(self) -> dict[str, SessionTotals]:
        """Return the totals of every session; {} on an error."""
        asked: Asked = "all_session_totals", {}
        return self._soft(
            asked, lambda rows: {row["session_id"]: _filled(SessionTotals, row) for row in rows}, {}, REPORT_TIMEOUT_MS
        )

    def cost_by_route(self, now_s: int, window_s: int = 86_400) -> dict[tuple[str, str], RouteCost]:
        """Return cost and tokens by (provider, family) of the calls of known cost; {} on an error."""
        window = since(now_s, window_s)
        asked = "cost_by_route", {"since_s": window["since_ms"], "until_s": window["until_ms"]}
        return self._soft(
            asked, lambda rows: {_pair(row): _filled(RouteCost, row) for row in rows}, {}, REPORT_TIMEOUT_MS
        )

    def candidates_at(self, at_ms: int) -> tuple[OfferRow, ...]:
        """Return the candidates that a decision at an instant could have seen, in their order; () on an error."""
        return self._soft(
            ("candidates_at", {"at_ms": at_ms}),
            lambda rows: tuple(OfferRow(**{name: row[name] for name in columns(OfferRow)}) for row in rows),
            (),
        )

    def _soft(
        self, asked: Asked, told: Callable[[list[Row]], Value], neutral: Value, timeout_ms: int | None = None
    ) -> Value:
        """Run one query and return its value, or the neutral one if that fails; it is counted and logged."""
        try:
            return told(self._ask(asked[0], [asked], timeout_ms)[1][0])
        except ReplayError:
            return neutral

    def _ask(self, name: str, asked: list[Asked], timeout_ms: int | None = None) -> tuple[str, list[list[Row]]]:
        try:
            answer = self._reads.ask(asked, timeout_ms)
        except ReplayError as error:
            with self._lock:
                self._failed[name] += 1
                new, self._said = name not in self._said, self._said | {name}
            if new:  # once until it works again: this may be every call's path
                log.warning("reading %s failed: %s", name, error)
            raise
        self._said.discard(name)
        return answer

    # --- its own life ---

    def ready(self, deadline_s: float) -> bool:
        """Wait until the schema was looked at and completed as far as it can be; say whether that happened."""
        return self._writer.looked.wait(timeout=deadline_s)

    def health(self) -> StoreHealth:
        """Say how the store fares, without asking the server."""
        layout, queue = self._writer.layout, self._queue
        return StoreHealth(
            connected=self._writer.connected,
            exact_visibility=layout.exact_visibility,
            missing=tuple(" ".join((one.kind, one.table, one.what)).rstrip() for one in layout.missing),
            advice=layout.advice,
            queued=queue.account().left,
            written=dict(queue.written),
            dropped=dict(queue.dropped),
            deleted=dict(self._retention.deleted),
            failed_reads=dict(self._failed),
            last_error=self._writer.last_error,
        )

    def counters(self) -> dict[str, int]:
        """Return the health's numbers, flat, to export: `written_calls`, `dropped_queue_full`, `connected` (0 or 1)."""
        flat: dict[str, int] = {}
        for name, value in asdict(self.health()).items():
            if isinstance(value, dict):
                flat |= {f"{name}_{part}": count for part, count in sorted(value.items())}
            elif isinstance(value, int):
                flat[name] = int(value)
        return flat

    def drain(self, deadline_s: float) -> Drained:
        """Wait until what was recorded is settled, at most so many seconds, and say what became of it."""
        self._writer.drain(deadline_s)
        return self._queue.account()

    def close(self, deadline_s: float = 5.0) -> Drained:
        """Write what is queued, at most until the deadline, and end; `left` was lost, and is counted as dropped.

        What is recorded from then on is dropped and counted. Closing again changes nothing.
        """
        if not self._closed:
            self._closed = True
            self._outcome = self._writer.stop(deadline_s)
            self._reads.close()
        return self._outcome

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _forked(self) -> None:
        """In a child: leave the parent's parts alone (kept, so that nothing of theirs is closed), begin anew."""
        _OF_PARENTS.append((self._queue, self._writer, self._reads))
        self._begin()


_LIVE: weakref.WeakSet[Store] = weakref.WeakSet()
_OF_PARENTS: list[object] = []


def _renew_after_fork() -> None:
    for store in list(_LIVE):
        store._forked()


def _close_at_exit() -> None:
    for store in list(_LIVE):
        if not store._closed:
            done = store.close(EXIT_DEADLINE_S)
            if done.left:
                log.error("the interpreter ends with %d recorded rows that were not written", done.left)


atexit.register(_close_at_exit)
os.register_at_fork(after_in_child=_renew_after_fork)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _pair(row: Row) -> tuple[str, str]:
    return row["provider_id"], row["model_family"]


def _filled(kind: type[Value], row: Row) -> Value:
    return kind(**{one.name: row[one.name] for one in fields(kind)})  # type: ignore[arg-type]


def _session_asked(session_id: str) -> list[Asked]:
    return [(name, {"session_id": session_id}) for name in ("session_owner", "hot_route", "session_totals")]


def _session_told(session_id: str, answers: list[list[Row]]) -> Session:
    owner, hot, totals = (next(iter(rows), {}) for rows in answers)
    return session_of(session_id, owner, hot, totals)
