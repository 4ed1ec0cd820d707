"""Gaps in a process's own numbering: rows that were never written, and how long their absence leaves doubt.

A process numbers its decisions and attempt ends, since both change what it knows by itself: which breakers are open,
which providers disabled. A number that no row carries is a row that was dropped (its queue was full while the database
was away), or a call that had not ended when the ledger was pulled. What it changed is unknown, so for a while nobody
can say what the process knew of a provider: until an attempt on it succeeds that was decided after the gap (which
closes its breaker, and shows that it was not disabled), or until whatever the gap hid has run out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import polars as pl

from replay.core import Health
from replay.timeline import Ints, Texts, Timeline

_HEALTH = Health()
_SPARSE = 16


def in_doubt(timeline: Timeline, providers_of: Callable[[int], Iterable[str]]) -> frozenset[int]:
    """Return the calls decided while it is unknown what their process knew of some provider that they could choose.

    `providers_of` gives the providers among a call's candidates. A ledger without gaps costs one look at its numbers.
    """
    doubtful: set[int] = set()
    if not missing_numbers(timeline):
        return frozenset()
    for events in _with_gaps(timeline).partition_by("replica"):
        doubt = _Doubt()
        for number, is_call, index, missing in events.select("number", "is_call", "index", "missing").iter_rows():
            at_ms = int(timeline.calls.decided_ms[index] if is_call else timeline.attempts.ts_ms[index])
            if missing:
                doubt = _Doubt(number, at_ms)
            if not is_call:
                _fold(doubt, timeline, index)
            elif at_ms < doubt.last_ms and any(doubt.concerns(provider, at_ms) for provider in providers_of(index)):
                doubtful.add(index)
    return frozenset(doubtful)


def missing_numbers(timeline: Timeline, between: Ints | None = None) -> int:
    """Count the numbers that no row carries between each process's first and last row.

    With `between`: only those between its first and last of these calls.
    """
    calls, attempts = timeline.calls, timeline.attempts
    count = 0
    for name in {*calls.replica.values, *attempts.replica.values}:
        of_calls = _numbers(calls.replica, calls.replica_seq, name)
        numbers = np.concatenate([of_calls, _numbers(attempts.replica, attempts.replica_seq, name)])
        ends = numbers if between is None else _numbers(calls.replica, calls.replica_seq, name, between)
        if len(ends):
            first, last = int(ends.min()), int(ends.max())
            inside = numbers[(numbers >= first) & (numbers <= last)]
            count += last - first + 1 - _distinct(inside - first)
    return count


def _numbers(replica: Texts, numbers: Ints, name: str, some: Ints | None = None) -> Ints:
    """Return the numbers that a process gave its rows, or some of them."""
    mine = (replica.codes == replica.code(name)) & (numbers >= 0)
    return numbers[np.flatnonzero(mine) if some is None else some[mine[some]]]


def _distinct(numbers: Ints) -> int:
    """Count distinct numbers from 0 on; they mostly lie close together."""
    if len(numbers) and int(numbers.max()) > _SPARSE * len(numbers):
        return len(np.unique(numbers))
    return int(np.count_nonzero(np.bincount(numbers)))


def _with_gaps(timeline: Timeline) -> pl.DataFrame:
    """Return each process's numbered events from its first gap on, in their order; `missing` marks what follows one."""
    frames = []
    for rows, is_call in ((timeline.calls, True), (timeline.attempts, False)):
        numbers = {"replica": rows.replica.take(np.arange(len(rows))), "number": rows.replica_seq}
        frames.append(pl.DataFrame(numbers).with_row_index("index").with_columns(is_call=pl.lit(is_call)))
    events = pl.concat(frames).filter(pl.col("replica").is_not_null(), pl.col("number") >= 0).sort("replica", "number")
    events = events.with_columns(missing=(pl.col("number").diff().over("replica") > 1).fill_null(False))
    return events.filter(pl.col("missing").cum_sum().over("replica") > 0)


class _Doubt:
    """What is in doubt after a gap that ended at an instant with an event of this number; at first, nothing is."""

    def __init__(self, number: int = -1, since_ms: float = -math.inf) -> None:
        self.number = number
        self.last_ms = self.hidden_until_ms = since_ms + _HEALTH.disable_ms
        self.sure: set[str] = set()
        self.until_ms: dict[str, float] = {}

    def concerns(self, provider: str, at_ms: int) -> bool:
        return provider not in self.sure and at_ms < self.until_ms.get(provider, self.hidden_until_ms)

    def failed(self, provider: str, until_ms: float) -> None:
        """A failure after the gap: with those that the gap hid, it may have opened the breaker."""
        if provider not in self.sure:
            self.until_ms[provider] = max(self.until_ms.get(provider, self.hidden_until_ms), until_ms)
            self.last_ms = max(self.last_ms, until_ms)


def _fold(doubt: _Doubt, timeline: Timeline, attempt: int) -> None:
    attempts = timeline.attempts
    provider, at_ms, call = attempts.provider[attempt] or "", int(attempts.ts_ms[attempt]), int(attempts.call[attempt])
    if call < 0 and not attempts.ok[attempt]:  # nobody knows what its policy made of it
        doubt.sure.discard(provider)
        doubt.failed(provider, at_ms + _HEALTH.disable_ms)
    elif not attempts.ok[attempt]:
        doubt.failed(provider, at_ms + _HEALTH.open_ms)
    elif call >= 0 and timeline.calls.replica_seq[call] >= doubt.number:
        doubt.sure.add(provider)
