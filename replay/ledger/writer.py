"""The background writer: one thread that batches what is queued and commits it in the order of arrival.

A batch is one transaction. If a row of it cannot be written, that row alone is looked for and dropped. If the server
is away, locked or full, the batch is kept and tried again. If the connection breaks while the commit is
under way, nobody knows what became of it; the server does, by the transaction's id, and is asked before anything is
written again. So nothing is written twice, and what is missing was counted.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from replay.ledger.batch import TABLES, CommitUnknownError, ForgottenError, NotReadyError, Refused, was_committed, write
from replay.ledger.postgres import Connection, Redactor, connect, is_rows_own_fault, psycopg
from replay.ledger.reference import RefusedError
from replay.ledger.retention import Retention
from replay.ledger.rowqueue import Drained, Item, Queue
from replay.ledger.rows import AttemptRow, CallRow
from replay.ledger.schema import Layout, Table, evolve

log = logging.getLogger(__name__)

BATCH_ITEMS: Final = 1_000
GATHER_S: Final = 0.005  # after the first item arrives, so that a call and its attempts share a commit
FIRST_LOOK_AGAIN_S: Final = 2.0  # at a schema that could not be completed; then ever more rarely, since each try
LONGEST_LOOK_AGAIN_S: Final = 300.0  # holds up those behind it for the length of its lock timeout
IDLE_S: Final = 5.0
LONGEST_PAUSE_S: Final = 2.0
_WAITING: Final = ("55P03", "57014", "40P01")
"""SQLSTATEs of a lock that was not had in time: what they kept from being done will be done later."""


class Writer:
    """Writes a queue to PostgreSQL from a thread of its own; `layout` and `last_error` say how it fares."""

    def __init__(self, conninfo: str, queue: Queue, retention: Retention) -> None:
        self.queue = queue
        self.retention = retention
        self.layout = Layout()
        self.last_error: str | None = None
        self.connected = False
        self.looked = threading.Event()
        self._conninfo = conninfo
        self._redactor = Redactor(conninfo)
        self._connection: Connection | None = None
        self._obstacle: Exception | None = None
        self._look_at = self._look_again_s = self._pause_s = 0.0
        self._hurry = threading.Event()
        self._stopping = self._abandoned = False
        self._said = ("", "")
        self._said_dropped = 0
        self._thread = threading.Thread(target=self._run, name="route-replay-writer", daemon=True)

    def start(self) -> None:
        """Start the thread; it connects, completes the schema, and writes."""
        self._thread.start()

    def hurry(self) -> None:
        """Cut short a pause between two tries."""
        self._hurry.set()

    def stop(self, deadline_s: float) -> Drained:
        """Let it write what is queued and end; after the deadline, break its connection and give up what is left."""
        self._stopping = True
        self.queue.close()
        self.queue.arrived.set()
        self.drain(deadline_s)
        self._abandoned = True
        self.hurry()
        self.queue.arrived.set()
        connection = self._connection
        if self.queue.account().left and connection is not None:
            with contextlib.suppress(OSError, psycopg.Error):
                _break_off(connection)
        if self._thread.ident is not None:
            self._thread.join(timeout=1.0)
        outcome = self.queue.abandon()
        self._say_dropped()
        return outcome

    def drain(self, deadline_s: float) -> None:
        """Wait until everything queued so far is settled, at most until the deadline; tries follow fast meanwhile."""
        until = time.monotonic() + deadline_s
        while not self.queue.wait_empty(min(0.1, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until or not self._thread.is_alive():
                break
            self.hurry()

    def _run(self) -> None:
        while not self._abandoned:
            try:
                self._turn()
            except Exception as error:  # nothing may end this thread: the rows of every later call depend on it
                self._trouble(error)
            if self._stopping and not self.queue.account().left:
                break
        if self._connection is not None:
            self._connection.close()

    def _turn(self) -> None:
        if self._connection is None or time.monotonic() >= self._look_at:
            self._connected()
        self.queue.arrived.wait(timeout=min(IDLE_S, max(0.0, self._look_at - time.monotonic())))
        if not self._stopping and self.queue.account().left < BATCH_ITEMS:
            time.sleep(GATHER_S)
        for group in _groups(self.queue.take(BATCH_ITEMS)):
            self._persist(group)
        self._say_dropped()

    def _persist(self, items: list[Item]) -> None:
        """Write rows, or one reference, however often it takes; returns early only when they are given up."""
        unknown: CommitUnknownError | None = None
        careful = False
        while not self._abandoned:
            try:
                connection = self._connected()
                if unknown is not None and was_committed(connection, unknown.txid):
                    refused = unknown.refused
                else:
                    unknown = None
                    items = self._writable(items)
                    refused = self._write(connection, items, careful)
            except CommitUnknownError as error:
                unknown = error
                self._trouble(error)
            except ForgottenError as error:
                self._drop("commit_unknown", items, error)
                return
            except RefusedError as error:
                self._drop("refused", items, error)
                return
            except NotReadyError as error:
                self._trouble(error)
            except Exception as error:
                if not is_rows_own_fault(error):
                    self._trouble(error)
                elif careful:
                    self._divide(items, error)
                    return
                else:
                    careful = True
            else:
                self._wrote(items, refused)
                return

    def _divide(self, items: list[Item], error: Exception) -> None:
        """Something that no row shows by itself is wrong (a constraint at the commit): each half has its own."""
        if len(items) == 1:
            self._drop("bad_row", items, error)
            return
        half = len(items) // 2
        self._persist(items[:half])
        self._persist(items[half:])

    def _writable(self, items: list[Item]) -> list[Item]:
        """Leave out (and count) the items of a table that this role cannot write and that will not come either."""
        closed = {table for table in set(map(_table, items)) if not self._columns(table)}
        if closed:
            if getattr(self._obstacle, "sqlstate", None) in _WAITING:
                raise NotReadyError("a table of the ledger does not exist yet; its creation waits for a lock")
            left_out = [item for item in items if _table(item) in closed]
            tables = ", ".join(sorted(closed))
            self._drop("not_writable", left_out, f"this role cannot insert into {tables}, or it does not exist")
        return [item for item in items if _table(item) not in closed]

    def _columns(self, table: str) -> frozenset[str]:
        return self.layout.tables.get(table, Table()).writable

    def _write(self, connection: Connection, items: Sequence[Item], careful: bool) -> list[Refused]:
        rows = [item for item in items if isinstance(item, CallRow | AttemptRow)]
        if rows:
            return write(connection, self.layout, rows, careful)
        for item in items:
            item.write(connection)  # type: ignore[union-attr]
        return []

    def _wrote(self, items: Sequence[Item], refused: Sequence[Refused]) -> None:
        if refused:
            self._say(refused[0][1], f"{len(refused)} rows cannot be written and are dropped, the first one for this")
        bad = {id(row) for row, _ in refused}
        written = Counter(_table(item) for item in items if id(item) not in bad)
        self.queue.settle(written, Counter({"bad_row": len(bad)} if bad else {}))
        if self._pause_s:
            log.warning("writing works again")
            self._pause_s, self._said = 0.0, ("", "")
        connection = self._connection
        for column in self.retention.due(written):
            try:
                if connection is not None and not connection.closed:
                    self.retention.delete(connection, self.layout, column)
            except psycopg.Error as error:
                self._say(error, "deleting expired rows failed; it is tried again later")

    def _drop(self, reason: str, items: Sequence[Item], why: Exception | str) -> None:
        self.queue.settle(Counter(), Counter({reason: len(items)}))
        tables = ", ".join(sorted({_table(item) for item in items}))
        self._say(why, f"{len(items)} of {tables} dropped ({reason})")

    def _connected(self) -> Connection:
        """Return the connection, made anew if it broke; completes the schema when that is due."""
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = connect(self._conninfo)
            self._look_at = 0.0
        if time.monotonic() >= self._look_at:
            self.layout, self._obstacle = evolve(connection)
            self._plan_next_look()
            self.looked.set()
        self.connected = True
        return connection

    def _plan_next_look(self) -> None:
        self._look_at = float("inf")
        if self._obstacle is not None:
            self._look_again_s = min(LONGEST_LOOK_AGAIN_S, 2 * self._look_again_s or FIRST_LOOK_AGAIN_S)
            self._look_at = time.monotonic() + self._look_again_s
            self._say(self._obstacle, "the schema is not complete; rows are written with the columns it has")

    def _trouble(self, error: Exception) -> None:
        """Say what is wrong, and pause: twice as long each time, up to a limit."""
        self._look_at = 0.0  # it may be that the tables have changed
        self.connected = self._connection is not None and not self._connection.closed
        self._say(error, "writing failed; the rows are kept and tried again")
        self._say_dropped()
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s or 0.05)
        self._hurry.wait(timeout=self._pause_s)
        self._hurry.clear()

    def _say(self, error: Exception | str, consequence: str) -> None:
        """Log what happened, once until it works again or something else happens."""
        said = error if isinstance(error, str) else self._redactor.say(error)
        if (consequence, said) != self._said:
            log.warning("%s: %s", consequence, said)
        self._said = (consequence, said)
        self.last_error = said

    def _say_dropped(self) -> None:
        """Log what was dropped, whenever it has doubled, and at the end."""
        dropped = Counter(self.queue.dropped)
        if dropped.total() > (self._said_dropped if self._abandoned else 2 * self._said_dropped):
            self._said_dropped = dropped.total()
            log.warning("dropped so far: %s", ", ".join(f"{count} {reason}" for reason, count in dropped.items()))


def _groups(items: list[Item]) -> Iterator[list[Item]]:
    """Rows that follow each other are written together, anything else by itself."""
    for are_rows, group in itertools.groupby(items, key=lambda item: isinstance(item, CallRow | AttemptRow)):
        together = list(group)
        yield from [together] if are_rows else ([item] for item in together)


def _table(item: Item) -> str:
    # What is no row at all was put in by mistake; it is dropped as any other bad row.
    return TABLES[type(item)] if isinstance(item, CallRow | AttemptRow) else getattr(item, "table", "calls")


def _break_off(connection: Connection) -> None:
    """End a connection that another thread is waiting on, which then sees it broken."""
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        ours.shutdown(socket.SHUT_RDWR)
