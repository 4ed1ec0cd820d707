"""Every attempt predicted before it is looked at: when it began, and as the router read it for its call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from replay.measuring import Measuring, Questions
from replay.timeline import Bools, Floats, Ints


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
    facts = measuring.timeline.attempts
    started, called = facts.start_ms[attempts] >= 0, facts.call[attempts] >= 0
    asked = measuring.at_calls(facts.call[attempts][called], facts.route[attempts][called])
    return Predicted(
        attempts,
        *_spread(measuring, measuring.at_starts(attempts[started]), started),
        *_spread(measuring, asked, called),
    )


def predictions(measuring: Measuring, attempts: Ints) -> pl.DataFrame:
    """Predict some attempts under one setting, as rows with the columns that `analysis.prequential` documents."""
    return table(measuring, predict(measuring, attempts))


def blocks(predicted: Predicted, rows: int) -> Iterator[Predicted]:
    """Cut predictions into blocks of so many rows."""
    for start in range(0, len(predicted.attempts), rows):
        yield Predicted(*(getattr(predicted, name)[start : start + rows] for name in Predicted.__dataclass_fields__))


def table(measuring: Measuring, predicted: Predicted) -> pl.DataFrame:
    """Return predictions as rows, in the order of the attempts' ids."""
    axis, attempts = measuring.timeline, predicted.attempts
    facts = axis.attempts
    call = facts.call[attempts]
    known = call >= 0
    at_call = {"call_id": axis.calls.id, "evidence_ms": measuring.evidence_ms}
    spread = {
        name: np.where(known, values[np.maximum(call, 0)] if len(axis.calls) else 0, -1)
        for name, values in at_call.items()
    }
    names = pl.Enum(axis.routes)
    frame = pl.DataFrame(
        {
            "setting": pl.repeat(measuring.settings.name, len(attempts), dtype=pl.String, eager=True),
            "attempt_id": facts.id[attempts],
            "call_id": spread["call_id"],
            "route_key": pl.Series(facts.route[attempts]).cast(pl.UInt32).cat.to(names),
            "ts_ms": facts.ts_ms[attempts],
            "start_ms": facts.start_ms[attempts],
            "evidence_ms": spread["evidence_ms"],
            "ok": facts.ok[attempts],
            "error_kind": facts.error_kind.take(attempts),
            "latency_ms": facts.latency_ms[attempts],
            "tools_requested": facts.tools_requested[attempts],
            "p_start": predicted.rate_start,
            "latency_start_ms": predicted.latency_start_ms,
            "p_read": predicted.rate_read,
            "latency_read_ms": predicted.latency_read_ms,
            "read_known": known,
        }
    )
    absent = ("call_id", "start_ms", "evidence_ms")
    return frame.with_columns(
        *(pl.when(pl.col(name) >= 0).then(pl.col(name)).alias(name) for name in absent),
        pl.col(pl.Float64).fill_nan(None),
    )


def _spread(measuring: Measuring, questions: Questions, where: Bools) -> tuple[Floats, Floats]:
    """Answer some questions and lay the answers out over all attempts; nan where none was asked."""
    laid = []
    for values in measuring.estimates(questions):
        everywhere = np.full(len(where), np.nan)
        everywhere[where] = values
        laid.append(everywhere)
    return laid[0], laid[1]
