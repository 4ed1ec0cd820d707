"""The full ranking of every decision, for a slice: each candidate with its place, score or reason, and its stamps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from replay.deciding import Decider, Decision
from replay.errors import ReplayError
from replay.measuring import Measuring
from replay.settings import Settings

MOST_ROWS = 5_000_000
"""Rows of a run's rankings; more is no slice."""

DECISIONS_PER_BLOCK = 1_024

RANKINGS: dict[str, pl.DataType | type[pl.DataType]] = {
    "setting": pl.String,
    "call_id": pl.Int64,
    "candidate": pl.Int32,
    "route_key": pl.String,
    "place": pl.Int32,
    "score": pl.Float64,
    "reject_reason": pl.String,
    "success_rate": pl.Float64,
    "latency_ms": pl.Float64,
    "tools": pl.Boolean,
    "price_in": pl.Float64,
    "price_out": pl.Float64,
}
"""Columns of `rankings.parquet`, one row per setting, decided call and candidate.

`candidate` counts from 0 in recorded order, which breaks ties; `place` from 1. A candidate that the filter rejected has
a `reject_reason` and neither place nor score; one that is left out otherwise (by a chain, the first k, a pin) has none
of the three. The stamps and prices (USD per million tokens, as ranked) are what the policy read, null where nothing was
known. Rows are ordered by setting, call as in `decisions.parquet`, place, then candidate.
"""

_STAMPS = ("success_rate", "latency_ms", "price_in", "price_out")


def require_few(decider: Decider, settings: Sequence[Settings]) -> None:
    """Refuse rankings of more than MOST_ROWS rows; counted before anything is decided."""
    book, decided_ms = decider.book, decider.timeline.calls.decided_ms[decider.selected]
    rows = int(book.sizes[book.numbers_at(decided_ms)].sum()) * len(settings)
    if rows > MOST_ROWS:
        raise ReplayError(
            f"the full ranking has {rows:,} rows, one for each setting, decision and candidate; expected at most "
            f"{MOST_ROWS:,}: replay a slice with --since and --until, or fewer settings at once"
        )


def blocks(decider: Decider, measuring: Measuring) -> Iterator[tuple[pa.Table, int]]:
    """Rank all candidates of the selected calls with the interpreter.

    Yields rows of RANKINGS, of some decisions at a time, and how many calls are done; at least once.
    """
    yield pl.DataFrame(schema=RANKINGS).to_arrow(), 0
    for start in range(0, len(decider.selected), DECISIONS_PER_BLOCK):
        some = decider.only(decider.selected[start : start + DECISIONS_PER_BLOCK])
        parts = some.parts(measuring)
        columns: dict[str, list[Any]] = {name: [] for name in RANKINGS if name != "setting"}
        for call in some.selected.tolist():
            decision = some.decide(call, parts)
            if decision is not None:
                _add(columns, int(decider.timeline.calls.id[call]), decision)
        setting = pl.lit(measuring.settings.name, dtype=pl.String)
        rows = pl.DataFrame(columns, schema_overrides={name: RANKINGS[name] for name in columns})
        yield rows.select(setting.alias("setting"), *columns).to_arrow(), start + len(some.selected)


def _add(columns: dict[str, list[Any]], call_id: int, decision: Decision) -> None:
    """Add a decision's candidates: the ranked ones by place, then the others in candidate order."""
    ranked = decision.plan.ordered
    reasons, scores = dict(decision.plan.rejected), dict(zip(ranked, decision.plan.scores, strict=True))
    places = {index: place for place, index in enumerate(ranked, start=1)}
    for index in [*ranked, *(index for index in range(len(decision.candidates)) if index not in places)]:
        candidate = decision.candidates[index]
        stamps = {name: candidate.fields.get(name) for name in _STAMPS}
        row = {
            "call_id": call_id,
            "candidate": index,
            "route_key": candidate.route_key,
            "place": places.get(index),
            "score": scores.get(index),
            "reject_reason": reasons.get(index),
            "tools": bool(candidate.capabilities.get("supports_tools")),
            **{name: None if value is None or value != value else float(value) for name, value in stamps.items()},
        }
        for name, value in row.items():
            columns[name].append(value)
