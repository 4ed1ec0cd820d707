"""Reading what the ledgers say: the shared SQL on pooled connections, each reading one round trip.

A reading is one repeatable-read transaction that also asks for its snapshot, sent as one pipeline: begin, the bound
on its time, the snapshot, the queries, commit. So whoever replays the ledger knows which rows the reading saw.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

from replay import queries
from replay.errors import ReplayError
from replay.ledger.derivations import Asked, Row
from replay.ledger.postgres import Connection, Redactor, conninfo_to_dict, make_conninfo, psycopg, psycopg_pool

RETRY_S: Final = 1.0
"""How often connecting is tried in the background while the server cannot be reached."""

GLANCE_S: Final = 0.001
"""How long a reading then waits for a connection: as good as not at all, so that no decision waits for the server."""

REPORT_TIMEOUT_MS: Final = 30_000
"""Bound on a reading that no request waits for."""

_CONNECTION_SETTINGS: Final = {
    "autocommit": True,
    "cursor_factory": psycopg.RawCursor,
    "row_factory": psycopg.rows.dict_row,
    # A prepared statement may be planned without its values; the window decides which plan is good.
    "prepare_threshold": None,
}


class _Discreet(psycopg.Connection[dict[str, Any]]):
    """A connection that names neither host, user nor database where psycopg's pool logs it, or why there is none."""

    @classmethod
    def connect(cls, conninfo: str = "", **settings: Any) -> _Discreet:
        try:
            return super().connect(conninfo, **settings)
        except psycopg.Error as error:
            raise psycopg.OperationalError(Redactor(conninfo).say(error)) from None

    def __repr__(self) -> str:
        return f"<connection of route-replay, {'closed' if self.closed else 'open'}>"


class Reads:
    """At most `connections` readings at a time; each may take `timeout_ms` on the server."""

    def __init__(self, conninfo: str, connections: int, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms
        # What is lost on the way is noticed as soon as a reading would be too late, where the system can tell.
        patience = {"tcp_user_timeout": str(max(1000, 2 * timeout_ms))}
        self._conninfo = make_conninfo("", **{**conninfo_to_dict(conninfo), **patience})
        self._redactor = Redactor(conninfo)
        self._connections = connections
        self._turns = threading.BoundedSemaphore(connections)
        self._lock = threading.Lock()
        self._pool: psycopg_pool.ConnectionPool[Connection] | None = None
        self._reachable = True
        self._closed = False

    def ask(self, asked: Sequence[Asked], timeout_ms: int | None = None) -> tuple[str, list[list[Row]]]:
        """Return the snapshot and each query's rows; raises ReplayError, without secrets, if that fails.

        A pooled connection that the server ended while it was idle is no failure: the next one is tried.
        """
        bound_ms = timeout_ms or self.timeout_ms
        if not self._turns.acquire(timeout=bound_ms / 1000):
            raise ReplayError(f"all {self._connections} reading connections were busy for {bound_ms} ms")
        try:
            for _ in range(self._connections):
                with self._borrowed() as connection:
                    self._reachable = True
                    try:
                        return _read(connection, asked, bound_ms)
                    except psycopg.OperationalError:
                        if not connection.closed:
                            raise
            raise ReplayError("every pooled connection to the ledger was broken")
        except psycopg_pool.PoolTimeout:
            self._reachable = False
            raise ReplayError("the ledger's server cannot be reached") from None
        except (psycopg.Error, psycopg_pool.PoolClosed, OSError) as error:
            raise ReplayError(f"reading the ledger failed: {self._redactor.say(error)}") from None
        finally:
            self._turns.release()

    def close(self) -> None:
        """Close the connections; a reading after that fails."""
        with self._lock:
            self._closed = True
            if self._pool is not None:
                self._pool.close(timeout=1.0)

    def _borrowed(self) -> Any:
        return self._opened().connection(timeout=self.timeout_ms / 1000 if self._reachable else GLANCE_S)

    def _opened(self) -> psycopg_pool.ConnectionPool[Connection]:
        """Open the pool at the first reading: a process that forks before has none to share."""
        with self._lock:
            if self._closed:
                raise ReplayError("the store is closed")
            if self._pool is None:
                self._pool = psycopg_pool.ConnectionPool(
                    self._conninfo,
                    connection_class=_Discreet,
                    kwargs=dict(_CONNECTION_SETTINGS),
                    min_size=1,
                    max_size=self._connections,
                    # It would try ever more rarely; given up early, it tries anew whenever somebody asks.
                    reconnect_timeout=RETRY_S,
                    name="route-replay-reads",
                    open=True,
                )
            return self._pool


def _read(connection: Connection, asked: Sequence[Asked], timeout_ms: int) -> tuple[str, list[list[Row]]]:
    loaded = [(queries.load(name), values) for name, values in asked]
    try:
        with _pipeline(connection):
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            connection.execute(f"SET LOCAL statement_timeout = {timeout_ms}")
            snapshot = connection.execute("SELECT pg_current_snapshot()::text AS snapshot")
            cursors = [connection.execute(query.text, query.bind(**values)) for query, values in loaded]
            connection.execute("COMMIT")
    except psycopg.Error:
        if not connection.closed:
            connection.rollback()
        raise
    (row,) = snapshot.fetchall()
    return row["snapshot"], [list(cursor.fetchall()) for cursor in cursors]


@contextlib.contextmanager
def _pipeline(connection: Connection) -> Iterator[None]:
    """A pipeline that says an error once: psycopg would log a second one, with the names of user and database."""
    failed: psycopg.Error | None = None
    with connection.pipeline() as pipeline:
        try:
            yield
        except psycopg.Error as error:
            failed = error
            with contextlib.suppress(psycopg.Error):
                pipeline.sync()
    if failed is not None:
        raise failed
