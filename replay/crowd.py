"""What many decisions saw, at once: the shared SQL, unedited, executed one time for all of them.

`replay.shadow` shows the ledger to one reader at a time. The queries of the stamps know an attempt's route and its
`ts`, and nothing else that tells one from another; so a view can show the rows of many readers side by side. There
the name of the provider begins with the reader's number, which keeps their routes apart, and `ts` counts from the
reader's evidence instant, which makes their windows one and the same. What each reader is shown, and what the query
says of it, is the same as one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import TracebackType

import duckdb
import numpy as np
import polars as pl

from replay import queries
from replay.measuring import Measuring
from replay.readers import Readers, fill, leave_out
from replay.timeline import Ints

_PAIRS = 1 << 20
"""How many pairs of a reader and a row are looked at in one execution, unless one reader alone has more."""

_SHARED_ROWS = 1 << 11
"""How many rows readers may share whatever each of them needs."""

_STAMPED_FROM = ("ok", "latency_ms", "error_kind", "tools_requested", "tool_calls_emitted", "txid")
"""The columns of an attempt that decide a stamp, besides its route and its end."""

_VIEW = """CREATE OR REPLACE TEMP VIEW route_observations AS
    SELECT ts - evidence_ms AS ts, mark || coalesce(provider_id, '') AS provider_id, model_family, served_by,
        {columns} FROM all_observations JOIN reader USING (part) WHERE {shown}"""


@dataclass
class _Part:
    """Decisions close to each other, which share rows: those at places [first, until) of all attempts by their end."""

    first: int
    until: int
    calls: list[int]

    @property
    def pairs(self) -> int:
        """How many rows are looked at for all of its decisions together."""
        return (self.until - self.first) * len(self.calls)


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """Return the database that every crowd has its tables in, each its own: to open one takes longer than to ask it."""
    database = duckdb.connect()
    database.execute("SET threads = 1")  # others are at work
    return database


class Crowd:
    """An in-memory mirror that shows what some decisions could see, as many of them at once as is good.

    `calls` are the decisions, in order, and `before_ms` is how long before its evidence each asks at most. Only for
    queries of an attempt's route and end that group by whole routes.
    """

    def __init__(self, measuring: Measuring, calls: Ints, before_ms: int) -> None:
        self.measuring = measuring
        self._readers = Readers(measuring)
        self._saw = self._readers.of_calls(calls.tolist()).with_columns(call=pl.Series(calls))
        self._by_end = np.argsort(measuring.timeline.attempts.ts_ms, kind="stable")
        self._parts = self._divided(calls, before_ms)
        self._connection = _database().cursor()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()

    @property
    def until_ms(self) -> int:
        """What production asks with as the end of its windows, from the evidence instant."""
        return queries.END_OF_TIME if self._readers.recorded else 0

    def batches(self) -> Iterator[list[int]]:
        """Show what some of the decisions saw, then what the next did; yields which, each one's number its place."""
        batch: list[_Part] = []
        for part in self._parts:
            if batch and part.pairs + sum(one.pairs for one in batch) > _PAIRS:
                yield self._show(batch)
                batch = []
            batch.append(part)
        if batch:
            yield self._show(batch)

    def ask(self, name: str, kinds: tuple[str, ...] = (), failed: bool = False, **values: int) -> pl.DataFrame:
        """Run a shared query as it stands in its file, attempts of some error kinds or all failed ones left out.

        Instants count from each reader's evidence. `number` says whose row it is, and `route` is its key.
        """
        leave_out(self._connection, kinds, failed)
        query = queries.load(name)
        frame = self._connection.execute(query.text, query.bind(**values)).pl()
        number, provider = frame["provider_id"].str.splitn(":", 2).struct.unnest().get_columns()
        frame = frame.with_columns(number.cast(pl.Int64).alias("number"), provider.alias("provider_id"))
        return frame.with_columns(route=pl.concat_str("provider_id", "model_family", "served_by", separator="|"))

    def _divided(self, calls: Ints, before_ms: int) -> list[_Part]:
        """Divide calls into parts that need few rows more than each of their calls."""
        ended_ms = self.measuring.timeline.attempts.ts_ms[self._by_end]
        newest_ms = self._saw["newest_ms"].to_numpy()
        first = np.searchsorted(ended_ms, self.measuring.evidence_ms[calls] - before_ms)
        until = np.maximum(np.searchsorted(ended_ms, newest_ms, side="right"), first)
        parts: list[_Part] = []
        for call, low, high in zip(calls.tolist(), first.tolist(), until.tolist(), strict=True):
            if parts:
                joint = _Part(min(low, parts[-1].first), max(high, parts[-1].until), [*parts[-1].calls, call])
                if joint.until - joint.first <= max(_SHARED_ROWS, 2 * (high - low)) and joint.pairs <= _PAIRS:
                    parts[-1] = joint
                    continue
            parts.append(_Part(low, high, [call]))
        return parts

    def _show(self, parts: list[_Part]) -> list[int]:
        """Have the view show what the decisions of some parts saw; returns them."""
        calls = [call for part in parts for call in part.calls]
        numbers = np.arange(len(parts))
        readers = self._saw.filter(pl.col("call").is_in(calls)).with_columns(  # as both are in order
            mark=pl.Series([f"{number}:" for number in range(len(calls))]),
            part=pl.Series(np.repeat(numbers, [len(part.calls) for part in parts])),
            evidence_ms=pl.Series(self.measuring.evidence_ms[calls]),
        )
        places = np.concatenate([self._by_end[part.first : part.until] for part in parts])
        columns = ["ts", "provider_id", "model_family", "served_by", *_STAMPED_FROM]
        rows = self.measuring.timeline.ledger.attempts.select(columns)[pl.Series(places)].with_columns(
            visible_ms=pl.Series(self.measuring.visibility.visible_ms[places]),
            part=pl.Series(np.repeat(numbers, [part.until - part.first for part in parts])),
        )
        fill(self._connection, "CREATE OR REPLACE TEMP TABLE reader AS", readers)
        self._connection.register("all_observations", rows.to_arrow())
        self._connection.execute(_VIEW.format(columns=", ".join(_STAMPED_FROM), shown=self._readers.shown))
        return calls
