import csv
import datetime as dt
import gzip
import math

import polars as pl
import pytest
from absent import shared

from analysis.prequential import score
from replay.estimators import Ema, Window

WINDOW_MS = 15 * 60_000


@pytest.fixture(scope="module")
def attempts():
    """Give 5,000 real attempts as (start_ms or None, end_ms, route, ok, latency_ms or None)."""
    with gzip.open(shared("data/aider_calls.csv.gz"), "rt", encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))[-5_000:]
    found = []
    for row in rows:
        end_ms = round(dt.datetime.fromisoformat(row["ts_utc"]).timestamp() * 1000)
        latency_ms = float(row["latency_s"]) * 1000 if row["latency_s"] else None
        start_ms = None if latency_ms is None else end_ms - round(latency_ms)
        route = f"{row['provider']}|{row['model']}|{row['provider']}"
        found.append((start_ms, end_ms, route, row["status"] == "ok", latency_ms))
    return found


def predicted(attempts, reliability, latency):
    """Predict each attempt at its start with the streaming estimators, from the attempts that ended before it."""
    ends = sorted(range(len(attempts)), key=lambda i: (attempts[i][1], i))
    starts = sorted((i for i in range(len(attempts)) if attempts[i][0] is not None), key=lambda i: (attempts[i][0], i))
    streams, found, following = {}, {}, 0
    for i in starts:
        at = attempts[i][0]
        while following < len(ends) and attempts[ends[following]][1] < at:
            j = ends[following]
            _, end_ms, route, ok, latency_ms = attempts[j]
            success, time = streams.setdefault(route, (reliability.start(), latency.start()))
            success.fold(end_ms, j, float(ok))
            if ok and latency_ms is not None:
                time.fold(end_ms, j, latency_ms)
            following += 1
        pair = streams.get(attempts[i][2])
        found[i] = (pair[0].read(at).value, pair[1].read(at).value) if pair else (None, None)
    return found


def expected(attempts, weighted_mean):
    """Score from the definition, without streams: for each attempt, all earlier ones of its route."""
    ended = {}
    for i, (_, end_ms, route, ok, latency_ms) in enumerate(attempts):
        ended.setdefault(route, []).append((end_ms, i, float(ok), latency_ms))
    for rows in ended.values():
        rows.sort(key=lambda row: row[:2])
    briers, losses, errors = [], [], []
    for start_ms, _, route, ok, latency_ms in attempts:
        if start_ms is None:
            continue
        earlier = [row for row in ended[route] if row[0] < start_ms]
        p = weighted_mean(start_ms, [(end, x) for end, _, x, _ in earlier], 0.2)
        timed = [(end, time) for end, _, x, time in earlier if x and time is not None]
        guess = weighted_mean(start_ms, timed, 0.3)
        if p is not None:
            briers.append((p - ok) ** 2)
            losses.append(-math.log(min(max(p if ok else 1 - p, 1e-6), 1 - 1e-6)))
        if ok and latency_ms and guess:
            errors.append(abs(math.log(guess) - math.log(latency_ms)))
    return briers, losses, errors


def window_mean(at_ms, earlier, _):
    """Return the mean of the last 15 minutes."""
    inside = [x for end, x in earlier if end >= at_ms - WINDOW_MS]
    return math.fsum(inside) / len(inside) if inside else None


def moving_average(_, earlier, alpha):
    """Return the exponential moving average, seeded by the first."""
    mean = None
    for _, x in earlier:
        mean = x if mean is None else alpha * x + (1 - alpha) * mean
    return mean


@pytest.mark.parametrize(
    ("rules", "definition"),
    [((Window(WINDOW_MS), Window(WINDOW_MS)), window_mean), ((Ema(0.2), Ema(0.3)), moving_average)],
    ids=["window", "ema"],
)
def test_figures_on_5000_real_attempts_equal_brute_force(attempts, predictions, rules, definition):
    """Streaming estimators and `score` give what a quadratic loop over the definitions gives, for window and EMA."""
    stamps = predicted(attempts, *rules)
    rows = []
    for i, (start_ms, end_ms, route, ok, latency_ms) in enumerate(attempts):
        p, guess = stamps.get(i, (None, None))
        shared = {"attempt_id": i, "ts_ms": end_ms, "start_ms": start_ms, "route_key": route, "ok": ok}
        rows.append({**shared, "latency_ms": latency_ms, "p_start": p, "latency_start_ms": guess})
    figures = score(predictions(*rows))
    for metric, values in zip(("brier", "log loss", "log latency error"), expected(attempts, definition), strict=True):
        mine = (pl.col("question") == "at the attempt") & (pl.col("metric") == metric) & (pl.col("scope") == "all")
        found = figures.row(by_predicate=mine, named=True)
        assert found["attempts"] == len(values) > 500
        assert found["value"] == pytest.approx(sum(values) / len(values), rel=1e-9)
