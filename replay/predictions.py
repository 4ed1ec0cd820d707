"""Every attempt predicted before it is looked at: when it began, and as the router read it for its call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from replay.columns import frame, known, numbers, texts, truths
from replay.kernel.layout import all_rows, ordered
from replay.measuring import Measuring, Order, Questions, Reading
from replay.timeline import Floats, Ints


@dataclass(frozen=True)
class Predicted:
    """Estimates for some attempts, nan where nothing was stamped: at their start, and as read for their call."""

    attempts: Ints
    rate_start: Floats
    latency_start_ms: Floats
    rate_read: Floats
    latency_read_ms: Floats


def predict(measuring: Measuring, attempts: Ints) -> Predicted:
    """Predict some attempts under one setting. Latencies are the estimates themselves, before a stamp is rounded."""
    return next(predict_blocks(measuring, attempts, max(1, len(attempts))))


def predict_blocks(measuring: Measuring, attempts: Ints, rows: int) -> Iterator[Predicted]:
    """Predict as `predict`, in blocks of so many rows: one at least, so that no attempts give an empty one."""
    facts = measuring.timeline.attempts
    started, called = (np.flatnonzero(column[attempts] >= 0) for column in (facts.start_ms, facts.call))

    def at_starts(some: Ints) -> Questions:
        return measuring.at_starts(attempts[some])

    def at_calls(some: Ints) -> Questions:
        return measuring.at_calls(facts.call[attempts[some]], facts.route[attempts[some]])

    shape = len(attempts), rows
    start = _estimates(measuring, "time", _Asked(at_starts, started, *shape))
    read = _estimates(measuring, measuring.order, _Asked(at_calls, called, *shape))
    for first, at_start, at_call in zip(range(0, max(1, len(attempts)), rows), start, read, strict=True):
        yield Predicted(attempts[first : first + rows], *at_start, *at_call)


def predictions(measuring: Measuring, attempts: Ints) -> pl.DataFrame:
    """Predict some attempts under one setting, as rows with the columns that `analysis.prequential` documents."""
    return frame(table(measuring, predict(measuring, attempts)))


def table(measuring: Measuring, predicted: Predicted) -> pa.Table:
    """Return predictions as rows, in the order of the attempts given. Texts are dictionaries."""
    axis, attempts = measuring.timeline, predicted.attempts
    facts = axis.attempts
    call, start_ms = facts.call[attempts], facts.start_ms[attempts]
    called = call >= 0

    def of_call(values: Ints) -> pa.Array:
        found = values[np.maximum(call, 0)] if len(values) else call
        return numbers(found, called & (found >= 0))

    return pa.table(
        {
            "setting": texts(np.zeros(len(attempts), dtype=np.int32), [measuring.settings.name]),
            "attempt_id": numbers(facts.id[attempts]),
            "call_id": of_call(axis.calls.id),
            "route_key": texts(facts.route[attempts], axis.routes),
            "ts_ms": numbers(facts.ts_ms[attempts]),
            "start_ms": numbers(start_ms, start_ms >= 0),
            "evidence_ms": of_call(measuring.evidence_ms),
            "ok": truths(facts.ok[attempts]),
            "error_kind": texts(facts.error_kind.codes[attempts], facts.error_kind.values),
            "latency_ms": known(facts.latency_ms[attempts]),
            "tools_requested": truths(facts.tools_requested[attempts]),
            "p_start": known(predicted.rate_start),
            "latency_start_ms": known(predicted.latency_start_ms),
            "p_read": known(predicted.rate_read),
            "latency_read_ms": known(predicted.latency_read_ms),
            "read_known": truths(called),
        }
    )


class _Asked(NamedTuple):
    """Questions about some rows: `ask` makes those of any of them, `which` (in order) have one, of `total`."""

    ask: Callable[[Ints], Questions]
    which: Ints
    total: int
    rows: int  # of a block


def _estimates(measuring: Measuring, order: Order, asked: _Asked) -> Iterator[list[Floats]]:
    """Yield reliability and latency of every block of rows, nan where none is asked for or there is none."""
    rate, latency = (measuring.reading(name, order) for name in ("reliability", "latency"))
    if rate.measure.state == latency.measure.state:
        yield from _in_order([rate, latency], asked)
    else:  # each ledger has its own order
        for blocks in zip(_in_order([rate], asked), _in_order([latency], asked), strict=True):
            yield [estimates for block in blocks for estimates in block]


def _in_order(readings: list[Reading], asked: _Asked) -> Iterator[list[Floats]]:
    """Read one ledger's measures in the order of the questions' keys; hand a block out once all its rows are read."""
    pieces = [asked.which[first : first + asked.rows] for first in range(0, len(asked.which), asked.rows)]
    keys = [readings[0].reads(asked.ask(piece)).key for piece in pieces]
    key = np.concatenate([np.empty(0, dtype=np.int64), *keys])
    order = asked.which[ordered(all_rows(key), key)]
    del keys, key
    # Before position i, every row below read_from[i] is read.
    read_from = np.append(np.minimum.accumulate(order[::-1])[::-1], asked.total)
    held, position = [np.empty(0) for _ in readings], 0
    for first in range(0, max(1, asked.total), asked.rows):
        size = min(asked.rows, asked.total - first)
        until = int(np.searchsorted(read_from, first + size))
        while position < until:
            some = order[position : min(position + asked.rows, until)]
            questions = asked.ask(some)
            held = [_with_room(column, int(some.max()) + 1 - first) for column in held]
            for column, reading in zip(held, readings, strict=True):
                column[some - first], _ = reading.estimates(questions)
            position += len(some)
        held = [_with_room(column, size) for column in held]
        yield [column[:size] for column in held]
        held = [column[size:] for column in held]


def _with_room(column: Floats, rows: int) -> Floats:
    """Return a column with room for so many rows, nan in the new ones."""
    if rows <= len(column):
        return column
    longer = np.full(rows, np.nan)
    longer[: len(column)] = column
    return longer
