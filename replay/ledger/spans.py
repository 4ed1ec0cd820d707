"""Reading a mirror span by span of time: what must be known of it before, and the rows of one span after the other.

Rows are read by their end, each exactly once. A decision's own attempts, and rows that it saw although their clock was
ahead, end later than the decision; so a reader stays `ahead_ms` ahead of the decisions that it reads for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import duckdb

from replay.ledger.load import Ledger, Seen, read_rows, read_small

_FOREVER_MS = 2**62

_DECIDED_MS = """coalesce(decided_at, ts * 1000 - CASE WHEN latency_ms > 0 AND isfinite(latency_ms)
    THEN least(latency_ms, 1e15)::BIGINT ELSE 0 END)"""

_STARTED_MS = """coalesce(started_at, ts - CASE WHEN latency_ms > 0 AND isfinite(latency_ms)
    THEN least(latency_ms, 1e15)::BIGINT ELSE 0 END)"""

_CALLS = f"""SELECT count(*) AS calls,
    min({_DECIDED_MS}) AS first_ms,
    max({_DECIDED_MS}) AS last_ms,
    greatest(0, max(ts * 1000 + 1000 - {_DECIDED_MS})) AS longest_ms,
    greatest(0, max({_DECIDED_MS} - evidence_at)) AS oldest_evidence_ms,
    count(*) FILTER (WHERE replica IS NOT NULL AND replica_seq IS NOT NULL) AS numbered,
    count(evidence_snapshot) AS snapshots
    FROM calls"""

_ATTEMPTS = f"""SELECT count(*) AS attempts,
    greatest(0, max(ts - {_STARTED_MS})) AS longest_ms,
    count(*) FILTER (WHERE replica IS NOT NULL AND replica_seq IS NOT NULL) AS numbered,
    count(txid) AS txids
    FROM route_observations"""

_BUCKET_MS = 60_000


@dataclass(frozen=True)
class Extent:
    """What is known of a mirror's calls and attempts without reading them: counts, and the longest times in ms.

    `longest_ms` bounds the time from a decision to its call's end, and from an attempt's start to its end;
    `oldest_evidence_ms` how old stamps were at a decision. `numbered`, `txids` and `snapshots` count the rows that
    have their replica's number, a transaction id, a snapshot.
    """

    calls: int
    attempts: int
    first_ms: int
    last_ms: int
    longest_ms: int
    oldest_evidence_ms: int
    numbered_calls: int
    numbered_attempts: int
    txids: int
    snapshots: int
    offers: int


def extent(connection: duckdb.DuckDBPyConnection) -> Extent:
    """Find out how far a mirror's rows reach."""
    calls, attempts = (_one(connection, text) for text in (_CALLS, _ATTEMPTS))
    offers = _one(connection, "SELECT count(*) AS offers FROM offer_history")["offers"]
    return Extent(
        calls=calls["calls"],
        attempts=attempts["attempts"],
        first_ms=calls["first_ms"] or 0,
        last_ms=calls["last_ms"] or 0,
        longest_ms=max(calls["longest_ms"] or 0, attempts["longest_ms"] or 0),
        oldest_evidence_ms=calls["oldest_evidence_ms"] or 0,
        numbered_calls=calls["numbered"],
        numbered_attempts=attempts["numbered"],
        txids=attempts["txids"],
        snapshots=calls["snapshots"],
        offers=offers,
    )


def cuts_ms(connection: duckdb.DuckDBPyConnection, calls: int) -> list[int]:
    """Return instants, whole minutes, between which about so many calls were decided."""
    counts = connection.execute(
        f"SELECT {_DECIDED_MS} // {_BUCKET_MS} AS bucket, count(*) FROM calls GROUP BY 1 ORDER BY 1"
    ).fetchall()
    cuts, held = [], 0
    for bucket, count in counts:
        if held and held + count > calls:
            cuts.append(int(bucket) * _BUCKET_MS)
            held = 0
        held += count
    return cuts


class Spans:
    """A mirror's rows in the order of their ends, span by span; `identity` is whole after the last one."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, cuts_ms: list[int], ahead_ms: int) -> None:
        self._connection, self.cuts_ms = connection, cuts_ms
        self._seen = {table: Seen(table) for table in ("calls", "route_observations")}
        self.small, self._small_identity = read_small(connection)
        self._ends_ms = [-_FOREVER_MS, *(cut + ahead_ms for cut in cuts_ms), _FOREVER_MS]

    def __iter__(self) -> Iterator[tuple[int, Ledger]]:
        """Yield each span's rows, and before which instant none of them ended; all small tables are whole in each."""
        for first_ms, until_ms in pairwise(self._ends_ms):
            rows = {}
            for table, unit_ms in (("calls", 1_000), ("route_observations", 1)):
                # Plain numbers, so that the file's own bounds tell which of its parts need not be looked at.
                where = f"WHERE ts >= {-(-first_ms // unit_ms)} AND ts < {-(-until_ms // unit_ms)}"
                rows[table] = read_rows(self._connection, table, self._seen[table], where)
            yield first_ms, Ledger(rows["calls"], rows["route_observations"], **self.small, identity={})

    @property
    def identity(self) -> dict[str, dict[str, Any]]:
        """The identity of what was read, as `Ledger.identity` holds it."""
        return self._small_identity | {table: seen.identity for table, seen in self._seen.items()}


def _one(connection: duckdb.DuckDBPyConnection, text: str) -> dict[str, Any]:
    found = connection.execute(text)
    names = [column[0] for column in found.description or ()]
    return dict(zip(names, found.fetchone() or (), strict=True))
