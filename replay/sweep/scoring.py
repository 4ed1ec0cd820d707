"""The figures of `analysis.prequential` straight from arrays: equal to the last bit, and without a frame.

A worker process must not use Polars: it was forked from one whose threads it does not have. And a sweep scores many
settings, where this takes a small part of the time that a frame of every loss does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.prequential import (
    ALL,
    AS_READ,
    AT_ATTEMPT,
    BRIER,
    CALL_UNKNOWN,
    CLIP,
    LATENCY,
    LOG_LOSS,
    PINBALL,
    START_UNKNOWN,
    SUCCESS_DEFAULT,
    pinball,
)
from replay.kernel.compiled import compiled, inlined
from replay.predictions import Predicted
from replay.timeline import Bools, Floats, Ints, Timeline

METRICS = (BRIER, LOG_LOSS, LATENCY, PINBALL)
PARTS = 48
"""Doubles that any sum of doubles is made of: (1024 + 1074) ÷ 53 = 40, and some to spare."""


class Sums(NamedTuple):
    """Per route: exact sums of the losses of each of METRICS, and counts."""

    part: NDArray[np.float64]  # (routes, 4, PARTS): a sum is that of its first parts, exactly
    parts: Ints  # (routes, 4)
    asked: Ints  # (routes,)
    scored: Ints
    stamped: Ints
    clipped: Ints
    timed: Ints
    timed_scored: Ints


def figures(timeline: Timeline, predicted: Predicted, q: float | None = None) -> list[dict[str, Any]]:
    """Return the rows of `analysis.prequential.score` for one setting, without its name, sorted alike.

    `q`: the quantile that the latency rule predicts, None for any other rule.
    """
    facts, attempts = timeline.attempts, predicted.attempts
    started, called = facts.start_ms[attempts] >= 0, facts.call[attempts] >= 0
    nothing = np.full(len(attempts), np.nan)
    asked = {
        AT_ATTEMPT: (started, predicted.rate_start, predicted.latency_start_ms, np.nan),
        AS_READ: (called, predicted.rate_read, predicted.latency_read_ms, SUCCESS_DEFAULT),
        START_UNKNOWN: (~started, predicted.rate_start, predicted.latency_start_ms, np.nan),
        CALL_UNKNOWN: (~called, nothing, nothing, np.nan),
    }
    rows = []
    for question, (where, rate, latency_ms, default) in asked.items():
        if question in (START_UNKNOWN, CALL_UNKNOWN) and not where.any():
            continue
        sums = _new_sums(len(timeline.routes))
        _add_up(
            sums, where, facts.route[attempts], facts.ok[attempts], facts.latency_ms[attempts],
            rate, latency_ms, default, math.nan if q is None else q,
        )  # fmt: skip
        names = METRICS[:-1] if q is None else (*METRICS[:-1], pinball(q))
        for scope, routes in _scopes(timeline.routes, sums):
            head = {"question": question, "scope": scope}
            rows += [
                {**head, "metric": name, **_figure(sums, question, place, routes)} for place, name in enumerate(names)
            ]
    return rows


def _new_sums(routes: int) -> Sums:
    counts = [np.zeros(routes, dtype=np.int64) for _ in range(6)]
    return Sums(np.zeros((routes, len(METRICS), PARTS)), np.zeros((routes, len(METRICS)), dtype=np.int64), *counts)


def _scopes(names: list[str], sums: Sums) -> Iterator[tuple[str, Ints]]:
    """Yield ("all", every route), then each route that was asked, most attempts first, then by key."""
    yield ALL, np.arange(len(names), dtype=np.int64)
    for route in sorted(np.flatnonzero(sums.asked).tolist(), key=lambda route: (-sums.asked[route], names[route])):
        yield names[route], np.array([route], dtype=np.int64)


def _figure(sums: Sums, question: str, place: int, routes: Ints) -> dict[str, Any]:
    metric, of_latency = METRICS[place], METRICS[place] in (LATENCY, PINBALL)
    asked = int((sums.timed if of_latency else sums.asked)[routes].sum())
    scored = int((sums.timed_scored if of_latency else sums.scored)[routes].sum())
    stamped = scored if of_latency else int(sums.stamped[routes].sum())
    parts = [sums.part[route, place, : sums.parts[route, place]] for route in routes.tolist()]
    clipped = int(sums.clipped[routes].sum())
    return {
        "value": math.fsum(np.concatenate([np.zeros(0), *parts]).tolist()) / scored if scored else None,
        "attempts": scored,
        "unscored": asked - scored,
        "stamped_share": stamped / asked if asked and question != CALL_UNKNOWN else None,
        "clipped_share": clipped / scored if metric == LOG_LOSS and scored else None,
    }


@compiled
def _add_up(
    sums: Sums, where: Bools, route: Ints, ok: Bools, took_ms: Floats, rate: Floats, told_ms: Floats,
    default: float, q: float,
) -> None:  # fmt: skip
    """Add every attempt's losses to its route; a nan in `rate` or `told_ms` is no stamp, which `default` stands for."""
    for row in range(len(where)):
        if not where[row]:
            continue
        to, stamped = route[row], not math.isnan(rate[row])
        sums.asked[to] += 1
        sums.stamped[to] += stamped
        p = rate[row] if stamped else default
        if not math.isnan(p):
            off = p - (1.0 if ok[row] else 0.0)
            of_outcome = min(max(p if ok[row] else 1.0 - p, CLIP), 1.0 - CLIP)
            sums.scored[to] += 1
            sums.clipped[to] += p < CLIP or p > 1.0 - CLIP
            _add(sums, to, 0, off * off)
            _add(sums, to, 1, -math.log(of_outcome))
        if not (ok[row] and math.isfinite(took_ms[row]) and took_ms[row] > 0):
            continue
        sums.timed[to] += 1
        if math.isfinite(told_ms[row]) and told_ms[row] > 0:
            short = math.log(took_ms[row]) - math.log(told_ms[row])
            sums.timed_scored[to] += 1
            _add(sums, to, 2, abs(short))
            if not math.isnan(q):
                _add(sums, to, 3, max(q * short, (q - 1.0) * short))


@inlined
def _add(sums: Sums, route: int, metric: int, value: float) -> None:
    """Add a value exactly: what one double cannot hold goes into the next (Shewchuk, "Adaptive precision …", 1997)."""
    kept, x = 0, value
    for place in range(sums.parts[route, metric]):
        y = sums.part[route, metric, place]
        if abs(x) < abs(y):
            x, y = y, x
        total = x + y
        rest = y - (total - x)
        if rest != 0.0:
            sums.part[route, metric, kept] = rest
            kept += 1
        x = total
    sums.part[route, metric, kept] = x
    sums.parts[route, metric] = kept + 1
