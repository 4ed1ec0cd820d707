"""Production's ledger as one reader saw it: the shared SQL, unedited, over views that shadow the ledger tables.

The views stand in DuckDB's temporary schema, which is searched first, so `FROM route_observations` in a query finds
them. What they show is worked out in SQL from the recorded snapshot (or the lag), not from the engine's keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

import duckdb
import numpy as np
import polars as pl

from replay import queries
from replay.measuring import Measuring
from replay.snapshots import NOTHING, Snapshot
from replay.timeline import Ints

# The commonest case first: a row that does not need the later ones is not held against them.
_RECORDED = """(txid < reader.xmin AND visible_ms < reader.numbered_until_ms
    OR txid >= reader.xmin AND txid < reader.xmax AND visible_ms < reader.numbered_until_ms
        AND NOT list_contains(reader.running, txid)
    OR txid IS NULL AND visible_ms < reader.until_ms)"""
_LAGGED = "visible_ms < reader.until_ms"

_READER = """CREATE TEMP TABLE reader AS SELECT 0::BIGINT AS part, 0::BIGINT AS until_ms,
    0::BIGINT AS numbered_until_ms, 0::BIGINT AS newest_ms, 0::BIGINT AS xmin, 0::BIGINT AS xmax,
    []::BIGINT[] AS running, []::TEXT[] AS without_kinds, false AS without_failed"""

_STAMPED_FROM = (
    *("ts", "provider_id", "model_family", "served_by", "ok", "latency_ms", "error_kind"),
    *("tools_requested", "tool_calls_emitted", "txid"),
)
"""The columns of an attempt that decide a stamp."""

# A query is planned once and executed for every decision, as planning costs several times as much as the few rows it
# reads. DuckDB would plan anew wherever a parameter's value went into the plan (filter_pushdown), and what it finds
# out about the rows of one decision (their statistics) must not serve the next: so it plans with these alone.
_OPTIMIZERS = ("cte_inlining", "expression_rewriter", "join_filter_pushdown", "unused_columns")

_PART_ROWS, _BATCH_ROWS = 1 << 11, 1 << 14
"""How many rows the calls of a part may share whatever each of them needs, and how many are loaded at a time."""


@dataclass
class _Part:
    """Decisions close to each other, which share rows: those at places [first, until) of all attempts by their end."""

    first: int
    until: int
    most_rows: int
    calls: list[int]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.until - self.first


class Shadow:
    """An in-memory mirror of a timeline's ledger whose tables show only what a reader could see.

    `around` are calls, in order, and ms before their evidence: of the attempts, only those that ended within are ever
    loaded, those of some calls at a time. Then `see_call` is for these calls, `rows` for the queries of stamps, and
    `see` for nothing. Without it the ledger has to be a whole one, and every query will do.
    """

    def __init__(self, measuring: Measuring, around: tuple[Ints, int] | None = None) -> None:
        self.measuring = measuring
        # Nothing that a snapshot sees ended after the newest row of a transaction below its xmax. Said as a bound on
        # ts, that tells which rows a decision needs.
        attempts = measuring.timeline.attempts
        numbered = np.flatnonzero(attempts.txid >= 0)
        numbered = numbered[np.argsort(attempts.txid[numbered], kind="stable")]
        self._txid, self._newest_ms = attempts.txid[numbered], np.maximum.accumulate(attempts.ts_ms[numbered])
        self._database = duckdb.connect()
        self._database.execute("SET threads = 1")  # the queries are small: threads only cost
        self._database.execute("SET TimeZone = 'UTC'")
        self._parts: list[_Part] | None = None
        if around is not None:
            self._by_end = np.argsort(attempts.ts_ms, kind="stable")
            self._parts = self._divided(*around)
            self._part_of = {call: number for number, part in enumerate(self._parts) for call in part.calls}
            known = self._database.execute("SELECT name FROM duckdb_optimizers()").fetchall()
            self._database.execute("SET disabled_optimizers = '{}'".format(
                ",".join(name for (name,) in known if name not in _OPTIMIZERS)))  # fmt: skip
            self._database.execute(_ddl("route_observations"))
        else:
            self._load_whole()
        self._connect()

    def __enter__(self) -> Shadow:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()
        self._database.close()

    def twin(self) -> Shadow:
        """Return another reader of the same ledger, for a thread of its own; it is closed with this one."""
        other = object.__new__(Shadow)
        other.__dict__.update(self.__dict__)
        other._connect()
        return other

    def _divided(self, calls: Ints, before_ms: int) -> list[_Part]:
        """Divide calls into parts that need few rows more than each of their calls."""
        ended_ms = self.measuring.timeline.attempts.ts_ms[self._by_end]
        asked = [self._asked(call) for call in calls.tolist()]
        newest_ms = np.array([self._newest(snapshot, until_ms) for snapshot, (until_ms, _) in asked], dtype=np.int64)
        first = np.searchsorted(ended_ms, self.measuring.evidence_ms[calls] - before_ms)
        until = np.maximum(np.searchsorted(ended_ms, newest_ms, side="right"), first)
        parts: list[_Part] = []
        for call, low, high in zip(calls.tolist(), first.tolist(), until.tolist(), strict=True):
            if parts:
                part = parts[-1]
                joint = min(low, part.first), max(high, part.until)
                if joint[1] - joint[0] <= part.most_rows:
                    part.first, part.until = joint
                    part.calls.append(call)
                    continue
            parts.append(_Part(low, high, max(_PART_ROWS, 2 * (high - low)), [call]))
        return parts

    def _load_whole(self) -> None:
        """Load every table of the ledger; attempts come with each connection."""
        ledger, connection = self.measuring.timeline.ledger, self._database
        connection.execute(queries.ddl("mirror"))
        _fill(connection, "INSERT INTO offer_history BY NAME", ledger.offers)
        _fill(connection, "INSERT INTO provider_prices BY NAME", ledger.prices)
        # A call's end is known to the second; it counts from that second on.
        _fill(connection, "CREATE TABLE all_calls AS", ledger.calls.with_columns(visible_ms=pl.col("ts") * 1000))

    def _connect(self) -> None:
        """Open a connection of one's own: tables and views of the temporary schema are nobody else's."""
        self._connection = connection = self._database.cursor()
        self._prepared: set[str] = set()
        self._filters: tuple[tuple[str, ...], bool] = ((), False)
        self._loaded, self._running = range(0), frozenset[int]()
        visible = _RECORDED if self.measuring.visibility.kind == "recorded" else _LAGGED
        frame = self.measuring.timeline.ledger.attempts
        names = list(frame.columns if self._parts is None else _STAMPED_FROM)
        shown = ", ".join(names)
        connection.execute(_READER)
        connection.execute(
            f"CREATE TEMP TABLE all_observations AS SELECT 0::BIGINT AS part, 0::BIGINT AS visible_ms, {shown} "
            "FROM memory.main.route_observations LIMIT 0"
        )
        connection.execute(
            "CREATE TEMP VIEW route_observations AS "
            f"SELECT {shown} FROM all_observations JOIN reader USING (part) WHERE ts <= newest_ms AND {visible} "
            "AND (len(without_kinds) = 0 OR NOT list_contains(without_kinds, coalesce(error_kind, ''))) "
            "AND (ok OR NOT without_failed)"
        )
        if self._parts is None:
            self._show_attempts(names, np.arange(len(frame)), np.zeros(len(frame), dtype=np.int64))
            connection.execute(
                "CREATE TEMP VIEW calls AS SELECT all_calls.* EXCLUDE (visible_ms) FROM memory.main.all_calls, reader "
                f"WHERE {visible}"
            )

    def _show_attempts(self, names: list[str], places: Ints, parts: Ints) -> None:
        """Put some attempts in place of those that are shown."""
        frame = self.measuring.timeline.ledger.attempts.select(names)[pl.Series(places)]
        added = {"visible_ms": self.measuring.visibility.visible_ms[places], "part": parts}
        self._connection.execute("TRUNCATE all_observations")
        _fill(self._connection, "INSERT INTO all_observations BY NAME", frame.with_columns(pl.DataFrame(added)))

    def _load(self, number: int) -> None:
        """Have the rows of a part, and of those after it that are little work, where they are not there yet."""
        assert self._parts is not None
        if number in self._loaded:
            return
        until, rows = number + 1, self._parts[number].rows
        while until < len(self._parts) and rows + self._parts[until].rows <= _BATCH_ROWS:
            rows += self._parts[until].rows
            until += 1
        self._loaded = range(number, until)
        batch = self._parts[number:until]
        places = np.concatenate([self._by_end[part.first : part.until] for part in batch])
        self._show_attempts(list(_STAMPED_FROM), places, np.repeat(self._loaded, [part.rows for part in batch]))

    def see(self, evidence_ms: int, snapshot: Snapshot, visible_until_ms: tuple[int, int] | None = None) -> int:
        """Show what a reader at `evidence_ms` with this snapshot saw; return the `until_ms` to ask with.

        `visible_until_ms`: before which instants rows without and rows with a transaction id had to be visible; by
        default the first before `evidence_ms`, and the others whenever the snapshot sees them. Where visibility is
        recorded there is no upper bound in time, as in production.
        """
        self._show(0, snapshot, visible_until_ms or (evidence_ms, queries.END_OF_TIME))
        return self._asked_until_ms(evidence_ms)

    def see_call(self, call: int) -> int:
        """Show what a decision saw; return the `until_ms` to ask with."""
        part = 0 if self._parts is None else self._part_of[call]
        if self._parts is not None:
            self._load(part)
        self._show(part, *self._asked(call))
        return self._asked_until_ms(int(self.measuring.evidence_ms[call]))

    def _show(self, part: int, snapshot: Snapshot, visible_until_ms: tuple[int, int]) -> None:
        until_ms, numbered_until_ms = visible_until_ms
        self._do(
            "see",
            "UPDATE reader SET part = $1, until_ms = $2, numbered_until_ms = $3, newest_ms = $4, xmin = $5, xmax = $6",
            *(part, until_ms, numbered_until_ms, self._newest(snapshot, until_ms), snapshot.xmin, snapshot.xmax),
        )
        if snapshot.running != self._running:  # apart, as a list takes long to replace and is mostly empty
            self._connection.execute(f"UPDATE reader SET running = {sorted(snapshot.running)}")
            self._running = snapshot.running

    def _asked_until_ms(self, evidence_ms: int) -> int:
        return queries.END_OF_TIME if self.measuring.visibility.kind == "recorded" else evidence_ms

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
            change = "UPDATE reader SET without_kinds = $1::TEXT[], without_failed = $2"
            self._connection.execute(change, [list(kinds), failed])
            self._filters = (kinds, failed)
        return self

    def rows(self, name: str, **values: int) -> list[tuple[Any, ...]]:
        """Run a shared query as it stands in its file."""
        query = queries.load(name)
        if self._parts is None:
            return self._connection.execute(query.text, query.bind(**values)).fetchall()
        return self._do(name, query.text, *query.bind(**values)).fetchall()

    def frame(self, name: str, **values: Any) -> pl.DataFrame:
        """Run a shared query as it stands in its file, into a frame."""
        query = queries.load(name)
        return self._connection.execute(query.text, query.bind(**values)).pl()

    def _do(self, name: str, statement: str, *values: int) -> duckdb.DuckDBPyConnection:
        """Execute a statement that is prepared when it is first needed."""
        if name not in self._prepared:
            self._connection.execute(f"PREPARE {name} AS {statement}")
            self._prepared.add(name)
        return self._connection.execute(f"EXECUTE {name}({', '.join(f'{value}::BIGINT' for value in values)})")


def _fill(connection: duckdb.DuckDBPyConnection, into: str, frame: pl.DataFrame) -> None:
    # Found by its name in this function: registering it would change the catalog, and have all statements planned anew.
    rows_read = frame.to_arrow()  # noqa: F841
    connection.execute(f"{into} SELECT * FROM rows_read")


@cache
def _ddl(table: str) -> str:
    """Return the statement that creates one of the mirror's tables."""
    statements = duckdb.extract_statements(queries.ddl("mirror"))
    return next(one.query for one in statements if f"CREATE TABLE IF NOT EXISTS {table} (" in one.query)
