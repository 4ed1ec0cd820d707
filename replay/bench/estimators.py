"""Estimators read at many instants, against a bare loop that knows one rule alone, and against DuckDB.

The work: attempts of 200 routes and as many questions, each about one route at one instant, all in order of time. The
bare loops take every liberty: one rule, plain sums that drift, no late rows, no processes, nothing but the estimate.
DuckDB answers with one range-window query over the same rows, on one thread as well. Laying the facts out (sorting,
which the loops and the query's table have had done for them) is a figure of its own.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from replay.bench import Figure, Say, best_of
from replay.estimators import Ema, Rule, Window
from replay.kernel.compiled import compiled
from replay.kernel.layout import Layout, lay_out, track_on
from replay.kernel.tracks import Floats, Ints, Track, advance, read
from replay.readings import Facts, Reads, read_many

ROUTES = 200
WINDOW_MS = 900_000
GAP_MS = 500
"""Mean time between two attempts: a window holds 1,800 of them."""
ROUNDS = 5

QUERY = f"""
SELECT at_ms, route, mean FROM (
    SELECT at_ms, route, value IS NULL AS asked,
           avg(value) OVER (PARTITION BY route ORDER BY at_ms
                            RANGE BETWEEN {WINDOW_MS} PRECEDING AND 1 PRECEDING) AS mean
    FROM events
) WHERE asked
"""


def bench_estimators(say: Say, quick: bool) -> list[Figure]:
    """Measure a window and an EMA at 5 million attempts and questions (`quick`: 200,000), all on the same rows.

    DuckDB has no EMA: both rules stand against its window. Its query takes a minute or so, and is run once.
    """
    size = 200_000 if quick else 5_000_000
    facts, values, reads = _work(size)
    say("estimators: laying out", 0, 4)
    lay_out_s = best_of(ROUNDS, lambda: lay_out(facts, ROUTES, np.zeros(size, dtype=np.int64), 1))
    layout = lay_out(facts, ROUTES, np.zeros(size, dtype=np.int64), 1)

    say("estimators: DuckDB's range window", 1, 4)
    query_ns = _query_s(facts, values, reads) / size * 1e9
    figures = [
        Figure("DuckDB range-window query", query_ns, "ns per question"),
        Figure("laying facts out, sorted already", lay_out_s / size * 1e9, "ns per attempt"),
    ]
    rules: list[tuple[str, Rule, Any]] = [("window", Window(WINDOW_MS), _window), ("EMA", Ema(0.2), _ema)]
    for number, (name, rule, bare) in enumerate(rules):
        say(f"estimators: {name}", 2 + number, 4)
        bare_ns, track_ns = _side_by_side_ns(bare, rule, layout, facts, values, reads)
        slower, faster = track_ns / bare_ns, query_ns / track_ns
        figures += [
            Figure(f"{name}, bare loop", bare_ns, "ns per question"),
            Figure(f"{name}, track", track_ns, "ns per question", f"{name}, bare loop", slower, "≤ 4×", slower <= 4),
            Figure(
                f"{name}, track",
                track_ns,
                "ns per question",
                "DuckDB range-window query",
                faster,
                "≥ 50×",
                faster >= 50,
            ),
        ]
    whole_ns = best_of(ROUNDS, lambda: read_many(Window(WINDOW_MS), facts, values, reads)) / size * 1e9
    against = "DuckDB range-window query"
    figures.append(
        Figure("window, read_many with its sorting", whole_ns, "ns per question", against, query_ns / whole_ns)
    )
    say("estimators: done", 4, 4)
    return figures


def _work(size: int) -> tuple[Facts, Floats, Reads]:
    """Make attempts and questions, seeded; latencies are log-normal, about a second."""
    rng = np.random.default_rng(0)
    at_ms, asked_ms = (np.sort(rng.integers(0, size * GAP_MS, size)) for _ in range(2))
    facts = Facts(at_ms, at_ms, np.arange(size), rng.integers(0, ROUTES, size))
    return facts, np.exp(rng.normal(7.0, 1.0, size)), Reads(asked_ms, asked_ms, rng.integers(0, ROUTES, size))


def _side_by_side_ns(
    bare: Any, rule: Rule, layout: Layout, facts: Facts, values: Floats, reads: Reads
) -> tuple[float, float]:
    """Return ns per question of the bare loop and of the track, in turns, so that both meet the same machine."""
    fresh = [track_on(rule, layout, values) for _ in range(ROUNDS + 1)]
    given = facts.at_ms, facts.group, values, reads.at_ms, reads.group
    bare(*given)  # compiles, as does the next
    _walk(fresh.pop(), reads.key[:1], reads.at_ms[:1], reads.group[:1])
    bare_s = track_s = math.inf
    for track in fresh:
        bare_s = min(bare_s, best_of(1, partial(bare, *given)))
        track_s = min(track_s, best_of(1, partial(_walk, track, reads.key, reads.at_ms, reads.group)))
    return bare_s / len(reads.key) * 1e9, track_s / len(reads.key) * 1e9


def _query_s(facts: Facts, values: Floats, reads: Reads) -> float:
    with duckdb.connect() as connection:
        connection.register("given", _events(facts, values, reads))
        connection.execute("CREATE TABLE events AS SELECT * FROM given ORDER BY at_ms")
        connection.execute("SET threads = 1")
        return best_of(1, lambda: connection.execute(QUERY).to_arrow_table())


def _events(facts: Facts, values: Floats, reads: Reads) -> pa.Table:
    """Put attempts and questions (value null) into one table."""
    value = np.concatenate([values, np.zeros(len(reads.key))])
    return pa.table(
        {
            "at_ms": np.concatenate([facts.at_ms, reads.at_ms]),
            "route": np.concatenate([facts.group, reads.group]),
            "value": pa.array(value, mask=np.arange(len(value)) >= len(values)),
        }
    )


@compiled
def _walk(track: Track, key: Ints, at_ms: Ints, route: Ints) -> Floats:
    """Read a track at every question, in the order given."""
    said = np.empty(len(key))
    for row in range(len(key)):
        advance(track, 0, key[row], at_ms[row])
        said[row], _, _ = read(track, route[row], at_ms[row])
    return said


@compiled
def _window(at_ms: Ints, route: Ints, value: Floats, asked_ms: Ints, asked: Ints) -> Floats:
    """Two pointers, plain sums."""
    total, count = np.zeros(ROUTES), np.zeros(ROUTES, dtype=np.int64)
    said = np.empty(len(asked_ms))
    new = old = 0
    for row in range(len(asked_ms)):
        until_ms = asked_ms[row]
        while new < len(at_ms) and at_ms[new] < until_ms:
            total[route[new]] += value[new]
            count[route[new]] += 1
            new += 1
        while old < new and at_ms[old] < until_ms - WINDOW_MS:
            total[route[old]] -= value[old]
            count[route[old]] -= 1
            old += 1
        said[row] = total[asked[row]] / count[asked[row]]
    return said


@compiled
def _ema(at_ms: Ints, route: Ints, value: Floats, asked_ms: Ints, asked: Ints) -> Floats:
    """One pointer, one mean a route."""
    mean = np.full(ROUTES, np.nan)
    said = np.empty(len(asked_ms))
    new = 0
    for row in range(len(asked_ms)):
        while new < len(at_ms) and at_ms[new] < asked_ms[row]:
            before = mean[route[new]]
            mean[route[new]] = value[new] if np.isnan(before) else 0.2 * value[new] + 0.8 * before
            new += 1
        said[row] = mean[asked[row]]
    return said
