"""What the store costs: deriving at several volumes, recording for the caller, and writing against one INSERT per row.

Everything happens in a schema of its own on the given server, which is dropped at the end.
"""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import duckdb

from replay import queries
from replay.bench import Figure, Say, best_of
from replay.bench.servers import temporary_server
from replay.estimators import ToolsWindow, Window
from replay.ledger.derivations import Windows
from replay.ledger.duck import DuckLedger
from replay.ledger.postgres import Connection, connect, make_conninfo, resolve
from replay.ledger.reads import Reads
from replay.ledger.rows import AttemptRow
from replay.ledger.schema import evolve
from replay.ledger.store import Store
from replay.settings import Measure, Settings, Tools

VOLUMES = (400, 20_000, 200_000, 1_000_000)
"""Attempts in the window."""

ROUNDS = 9
"""Readings of which the fastest counts."""

SLOW_MS = 20.0
"""From here on a memo of the stamps pays."""

_FAR = 1_000
"""Two points of a noisy clock say nothing of volumes so many times as large."""

_ATTEMPTS = """
    INSERT INTO route_observations ({id} ts, provider_id, model_family, served_by, ok, latency_ms, tools_requested,
        tool_calls_emitted, started_at, request_id, attempt, candidate_attempt, replica, replica_seq)
    SELECT {id} n, 'provider-' || (n % 8), 'family-' || (n % 5), 'peer-' || (n % 3), n % 17 <> 0, 100 + n % 997,
        n % 3 = 0, n % 6 = 0, n - 100, 'event-' || n, 1, 1, 'replica-1', n
    FROM generate_series(1, {count}) AS series (n)
"""
_COVERING = (
    "CREATE INDEX covering ON route_observations (ts) "
    "INCLUDE (provider_id, model_family, served_by, ok, latency_ms, tools_requested, tool_calls_emitted)"
)


def bench_store(say: Say, quick: bool, dsn: str | None) -> list[Figure]:
    """Measure on the server of `dsn`, or on a temporary one; `quick` takes small volumes, for a look or a test."""
    volumes = (100, 1_000) if quick else VOLUMES
    with _scratch(dsn) as url:
        steps: list[Callable[[], list[Figure]]] = [
            lambda: _recording(url, 300 if quick else 5_000),
            lambda: _writing(url, 3_000 if quick else 100_000, 200 if quick else 2_000),
            lambda: _deriving(url, volumes),
        ]
        figures: list[Figure] = []
        for number, step in enumerate(steps):
            say("the store", number, len(steps))
            figures += step()
        say("the store", len(steps), len(steps))
    return figures


@contextlib.contextmanager
def _scratch(dsn: str | None) -> Iterator[str]:
    """Give a connection string whose tables are in a schema of their own."""
    with contextlib.ExitStack() as stack:
        given = dsn or stack.enter_context(temporary_server()).url
        name = f"replay_bench_{secrets.token_hex(4)}"
        with connect(resolve(given)) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        try:
            yield make_conninfo(given, options=f"-c search_path={name}")
        finally:
            with connect(resolve(given)) as connection:
                connection.execute(f"DROP SCHEMA {name} CASCADE")


def _attempt(number: int) -> AttemptRow:
    return AttemptRow(
        ts=number,
        provider_id=f"provider-{number % 8}",
        model_family=f"family-{number % 5}",
        served_by=f"peer-{number % 3}",
        ok=number % 17 != 0,
        latency_ms=100.0 + number % 997,
        http_status=200,
        tools_requested=number % 3 == 0,
        tool_calls_emitted=number % 6 == 0,
        started_at=number - 100,
        request_id=f"event-{number}",
        attempt=1,
        candidate_attempt=1,
        replica="replica-1",
        replica_seq=number,
    )


def _recording(url: str, count: int) -> list[Figure]:
    """What `record_attempt` costs its caller while the server is up, is held up by a lock, and is not there."""
    with Store(url, retention_days=None) as store, connect(resolve(url)) as other:
        store.ready(10)
        up = _paced(store.record_attempt, count)
        store.drain(10)
        other.execute("BEGIN")
        other.execute("LOCK TABLE route_observations IN ACCESS EXCLUSIVE MODE")
        slow = _paced(store.record_attempt, count)
        other.execute("ROLLBACK")
        store.drain(30)
        inserted = _paced(lambda row: _insert(other, row), min(count, 1_000))
    log = logging.getLogger("replay.ledger.writer")
    log.disabled = True  # that it is not there is what is measured
    away = Store("host=/nowhere/at/all", retention_days=None)
    gone = _paced(away.record_attempt, count)
    away.close(0.0)
    log.disabled = False
    plain_us, of_plain = _quantiles(inserted)
    plain, high = "one INSERT in the request, median", "record_attempt, server up, p99"
    figures = [Figure(plain, plain_us, "µs"), Figure("one INSERT in the request, p99", of_plain, "µs")]
    up_us = _quantiles(up)[1]
    figures.append(Figure(high, up_us, "µs", figures[1].name, of_plain / up_us))
    for name, times in (("up", up), ("held up by a lock", slow), ("gone", gone)):
        median_us, p99_us = _quantiles(times)
        name = f"record_attempt, server {name}"
        figures.append(
            Figure(f"{name}, median", median_us, "µs", plain, plain_us / median_us, "< 10 µs", median_us < 10)
        )
        if times is not up:
            ratio, aim = p99_us / up_us, "≤ 3× of that with the server up"
            figures.append(Figure(f"{name}, p99", p99_us, "µs", high, ratio, aim, ratio <= 3))
    return figures


def _paced(record: Callable[[AttemptRow], object], count: int) -> list[float]:
    """Return the µs that each of some calls took, with a little time between them, as requests come."""
    rows = [_attempt(number) for number in range(count)]
    times = []
    for row in rows:
        time.sleep(0.0002)
        began = time.perf_counter_ns()
        record(row)
        times.append((time.perf_counter_ns() - began) / 1000)
    return times


def _quantiles(times: Sequence[float]) -> tuple[float, float]:
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def _insert(connection: Connection, row: AttemptRow) -> None:
    connection.execute(
        "INSERT INTO route_observations (ts, provider_id, model_family, served_by, ok, latency_ms, http_status, "
        "tools_requested, tool_calls_emitted, started_at, request_id, attempt, candidate_attempt, replica, "
        "replica_seq) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        [row.ts, row.provider_id, row.model_family, row.served_by, row.ok, row.latency_ms, row.http_status,
         row.tools_requested, row.tool_calls_emitted, row.started_at, row.request_id, row.attempt,
         row.candidate_attempt, row.replica, row.replica_seq],
    )  # fmt: skip


def _writing(url: str, count: int, plain_count: int) -> list[Figure]:
    """Rows per second through the store, until they are committed, against one INSERT and commit per row."""
    rows = [_attempt(number) for number in range(count)]
    with Store(url, retention_days=None, queue_size=count) as store, connect(resolve(url)) as connection:
        store.ready(10)
        store.drain(10)

        def all_at_once() -> None:
            for row in rows:
                store.record_attempt(row)
            store.drain(600)

        def one_by_one() -> None:
            for row in rows[:plain_count]:
                _insert(connection, row)

        ours, plain = count / best_of(2, all_at_once), plain_count / best_of(2, one_by_one)
        dropped = sum(store.health().dropped.values())
        connection.execute("TRUNCATE route_observations")
    assert not dropped, f"{dropped} rows were dropped: the rate would be that of dropping"
    against = "one INSERT per row"
    return [
        Figure(against, plain, "rows/s"),
        Figure("the store, committed", ours, "rows/s", against, ours / plain, "≥ 20×", ours >= 20 * plain),
    ]


def _deriving(url: str, volumes: Sequence[int]) -> list[Figure]:
    """The time of one reading of all stamps, per engine and volume, with other indexes at one volume."""
    count = max(volumes)
    figures: list[Figure] = []
    with connect(resolve(url)) as connection, duckdb.connect() as mirror:
        evolve(connection)
        connection.execute(_ATTEMPTS.format(id="", count=count))
        connection.execute("ANALYZE route_observations")
        mirror.execute(queries.ddl("mirror"))
        mirror.execute(_ATTEMPTS.replace("{id} n,", "n, n,").format(id="id,", count=count))
        by_engine: dict[str, list[float]] = {"PostgreSQL": [], "DuckDB": []}
        for volume in volumes:
            settings = _window(volume)
            postgres_ms = _reading_ms(url, settings, count)
            duck = DuckLedger(mirror, settings, _At(count))
            duck_ms = 1000 * best_of(ROUNDS, lambda duck=duck: duck.read(count + 1))  # type: ignore[misc]
            by_engine["PostgreSQL"].append(postgres_ms)
            by_engine["DuckDB"].append(duck_ms)
            name = f"derive all stamps, {volume:,} attempts in the window, "
            figures.append(Figure(name + "PostgreSQL", postgres_ms, "ms"))
            against = name + "PostgreSQL"
            figures.append(Figure(name + "DuckDB", duck_ms, "ms", against, duck_ms / postgres_ms))
        for engine, times_ms in by_engine.items():
            crossing = crossing_volume(volumes, times_ms, SLOW_MS)
            figures.append(Figure(f"attempts in the window at {SLOW_MS:.0f} ms, {engine}", crossing, "attempts"))
        figures += _indexes(url, connection, count, volumes[-2])
    return figures


def _indexes(url: str, connection: Connection, count: int, volume: int) -> list[Figure]:
    """The same reading with other indexes on ts than the plain one; fresh rows are not yet vacuumed, as in a window."""
    settings = _window(volume)
    plain_ms = _reading_ms(url, settings, count)
    against = f"plain index on ts, {volume:,} attempts"
    figures = [Figure(against, plain_ms, "ms")]
    connection.execute("DROP INDEX route_observations_ts_idx")
    for name, statements in (
        ("covering index", (_COVERING,)),
        ("covering index, after VACUUM", ("VACUUM route_observations",)),
        ("BRIN index", ("DROP INDEX covering", "CREATE INDEX brin ON route_observations USING brin (ts)")),
    ):
        for statement in statements:
            connection.execute(statement)
        index_ms = _reading_ms(url, settings, count)
        figures.append(Figure(f"{name}, {volume:,} attempts", index_ms, "ms", against, index_ms / plain_ms))
    return figures


def _reading_ms(url: str, settings: Settings, now_ms: int) -> float:
    """The best of some readings, without a store: its writer would put back an index that is missing."""
    reads, asked = Reads(resolve(url), 1, 60_000), Windows.of(settings).asked(now_ms + 1)
    try:
        return 1000 * best_of(ROUNDS, lambda: reads.ask(asked))
    finally:
        reads.close()


def crossing_volume(volumes: Sequence[int], times_ms: Sequence[float], limit_ms: float) -> float:
    """Return the volume at which the time passes a limit, on the line through two measured points in logarithms.

    Beyond the largest volume measured, the last two points are extended, but not without bounds: a limit that
    lies a thousand times further is as good as infinity. A limit that the smallest passes gives it.

    >>> round(crossing_volume([100, 10_000], [1.0, 100.0], 20.0))
    2000
    """
    last = len(volumes) - 1
    if times_ms[0] >= limit_ms:
        return float(volumes[0])
    upper = next((place for place in range(1, last) if times_ms[place] >= limit_ms), last)
    x0, x1 = math.log(volumes[upper - 1]), math.log(volumes[upper])
    y0, y1 = math.log(times_ms[upper - 1]), math.log(times_ms[upper])
    crossing = x0 + (x1 - x0) * (math.log(limit_ms) - y0) / (y1 - y0) if y1 > y0 else math.inf
    return math.exp(crossing) if crossing <= x1 + math.log(_FAR) else math.inf


def _window(window_ms: int) -> Settings:
    """Settings whose stamps all look back that far; the rows are one per ms, so it is also their number."""
    rule = Window(window_ms)
    return Settings(
        reliability=Measure(rule=rule),
        latency=Measure(rule=rule),
        tools=Tools(rule=ToolsWindow(min_samples=20, window_ms=window_ms)),
    )


class _At:
    """A clock that stands still."""

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms

    def now_ms(self) -> int:
        return self.at_ms
