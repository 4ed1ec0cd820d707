"""The ledgers behind the router: visibility, and that memory measures exactly what the shared SQL does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay import queries
from replay.errors import ReplayError
from replay.estimators import ToolsWindow, Window
from replay.ledger.duck import DuckLedger
from replay.ledger.memory import MemoryLedger
from replay.ledger.rows import AttemptRow, CallRow, OfferRow, columns
from replay.sessions import Session
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Measure, Settings, Tools

SMALL = Settings(
    reliability=Measure(rule=Window(1000)),
    latency=Measure(rule=Window(700)),
    tools=Tools(rule=ToolsWindow(min_samples=2, window_ms=1500)),
)


class At:
    """A clock set by hand."""

    def __init__(self) -> None:
        self.now = 0

    def now_ms(self) -> int:
        """The present instant."""
        return self.now


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty mirror in memory."""
    with duckdb.connect() as connection:
        connection.execute(queries.ddl("mirror"))
        yield connection


@pytest.mark.parametrize(
    ("table", "row_type"), [("calls", CallRow), ("route_observations", AttemptRow), ("offer_history", OfferRow)]
)
def test_a_row_type_has_the_columns_of_its_table(
    connection: duckdb.DuckDBPyConnection, table: str, row_type: Any
) -> None:
    """Same names, same order, as the mirror's DDL."""
    found = [row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()]
    assert found == list(columns(row_type))


attempts = st.builds(
    AttemptRow,
    ts=st.integers(0, 4000),
    provider_id=st.sampled_from(["p", "q"]),
    model_family=st.sampled_from(["m", "", None]),
    served_by=st.sampled_from(["", None, "x"]),
    ok=st.booleans(),
    latency_ms=st.one_of(st.none(), st.integers(0, 9).map(float)),
    tools_requested=st.sampled_from([True, False, None]),
    tool_calls_emitted=st.sampled_from([True, False, False, False, None]),
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("attempt"), attempts, st.integers(0, 300)),
        st.tuples(
            st.just("call"),
            st.builds(
                CallRow,
                ts=st.integers(0, 5),
                session_id=st.sampled_from(["s", "t", "", None]),
                caller=st.sampled_from(["ann", "bob", None]),
                provider_id=st.just("p"),
                served_by=st.sampled_from(["x", "y", "", None]),
                status=st.sampled_from([200, 399, 400, None]),
                tokens_in=st.sampled_from([7, None]),
                cost_usd=st.sampled_from([0.1, 4e-7, 5e-13, -2.5, 1e6, float("inf"), None]),
            ),
            st.integers(0, 300),
        ),
        st.tuples(st.just("read"), st.integers(-300, 500), st.just(0)),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=events)
def test_memory_and_duckdb_say_the_same_at_every_instant(
    connection: duckdb.DuckDBPyConnection, events: list[tuple[str, Any, int]]
) -> None:
    """Random rows, lags and readings (of clocks that need not agree): same stats, verdicts, snapshot and session."""
    connection.execute("DELETE FROM calls; DELETE FROM route_observations")
    clock, lag_ms = At(), 0

    def write_lag(row: CallRow | AttemptRow) -> int:
        return lag_ms

    ledgers = (MemoryLedger(SMALL, clock, write_lag), DuckLedger(connection, SMALL, clock, write_lag))
    for what, value, lag_ms in events:  # noqa: B007 (the lag is read by `write_lag`)
        clock.now += 37
        if what == "read":
            memory, duck = (ledger.read(clock.now + value) for ledger in ledgers)
            assert memory == duck
            assert ledgers[0].read_session("s") == ledgers[1].read_session("s")
        for ledger in ledgers:
            if what == "attempt":
                ledger.record_attempt(value)
            elif what == "call":
                ledger.record_call(value)
    for ledger in ledgers:
        ledger.flush()
    assert ledgers[0].rows() == ledgers[1].rows()


def test_the_stamped_latency_is_the_mean_rounded_half_to_even() -> None:
    """2 and 3 make 2.5, which is 2; 3 and 4 make 3.5, which is 4; failed attempts add no latency."""
    ledger = MemoryLedger(PRODUCTION_NOW, At())
    for provider, latencies in (("even", (2.0, 3.0)), ("odd", (3.0, 4.0))):
        for latency in latencies:
            ledger.record_attempt(AttemptRow(ts=1, provider_id=provider, ok=True, latency_ms=latency))
        ledger.record_attempt(AttemptRow(ts=1, provider_id=provider, ok=False, latency_ms=900.0))
    stats = ledger.read(10).stats
    assert (stats["even||"].latency_ms, stats["odd||"].latency_ms) == (2, 4)
    assert (stats["even||"].success_rate, stats["even||"].count, stats["even||"].latency_count) == (2 / 3, 3, 2)


def test_a_row_is_seen_only_after_its_write_lag_and_the_snapshot_says_so() -> None:
    """Committed in the order of their instants, not of their recording; unseen before."""
    clock = At()
    ledger = MemoryLedger(SMALL, clock, lambda row: 100 if row.ts == 1 else 20)
    for ts in (1, 2):
        ledger.record_attempt(AttemptRow(ts=ts, provider_id="p", ok=True))
    seen = []
    for now in (19, 20, 99, 100):
        clock.now = now
        evidence = ledger.read(now)
        seen.append((evidence.snapshot, {key: stat.count for key, stat in evidence.stats.items()}))
    assert seen == [("1:1:", {}), ("2:2:", {"p||": 1}), ("2:2:", {"p||": 1}), ("3:3:", {"p||": 2})]
    assert [(row.id, row.txid, row.ts) for row in ledger.rows()[1]] == [(1, 1, 2), (2, 2, 1)]


def test_a_duckdb_ledger_goes_on_where_its_tables_end(connection: duckdb.DuckDBPyConnection) -> None:
    """Ids and transaction ids continue; ids of imported rows, from 2^62 on, are not native and do not count."""
    connection.execute(
        "INSERT INTO route_observations (id, ts, ok, txid) VALUES (7, 1, true, 40), (2::bigint**62, 1, true, 3)"
    )
    ledger = DuckLedger(connection, PRODUCTION_NOW, At())
    ledger.record_attempt(AttemptRow(ts=5, ok=True))
    ledger.flush()
    assert connection.execute("SELECT id, txid FROM route_observations WHERE ts = 5").fetchall() == [(8, 41)]


@pytest.mark.parametrize(
    "changed",
    [
        PRODUCTION_BEFORE,
        replace(PRODUCTION_NOW, reliability=Measure(rule=Window(1000), when_cold=0.5)),
        replace(PRODUCTION_NOW, latency=Measure(rule=Window(1000), failed_latency_ms=9.0)),
        replace(PRODUCTION_NOW, tools=Tools(rule=ToolsWindow(20, 1000), failed="excluded")),
    ],
)
def test_settings_that_the_shared_sql_cannot_measure_are_refused(
    connection: duckdb.DuckDBPyConnection, changed: Settings
) -> None:
    """Rather than being measured as something else."""
    with pytest.raises(ReplayError, match="expected"):
        DuckLedger(connection, changed, At())


def test_in_process_settings_are_refused_by_the_memory_ledger() -> None:
    """A shared ledger cannot serve state that belongs to one process."""
    with pytest.raises(ReplayError, match="in the process"):
        MemoryLedger(PRODUCTION_BEFORE, At())


def test_the_hot_route_is_the_latest_successful_call_s_and_the_later_id_wins_a_tie() -> None:
    """By ts, then id; a failed call and one without a served_by do not count."""
    ledger = MemoryLedger(PRODUCTION_NOW, At())
    found = []
    for ts, served_by, status in ((5, "a", 200), (5, "b", 200), (4, "c", 200), (9, "d", 400), (9, None, 200)):
        ledger.record_call(CallRow(ts=ts, session_id="s", provider_id="p", served_by=served_by, status=status))
        found.append(ledger.read_session("s").hot_route)
    assert found == ["p||a", "p||b", "p||b", "p||b", "p||b"]
    assert ledger.read_session("t") == Session("t")


@pytest.mark.parametrize(("failed", "condemned"), [("excluded", frozenset()), ("counted", frozenset({"p||"}))])
def test_the_memory_ledger_honours_what_the_settings_leave_out(failed: Any, condemned: frozenset[str]) -> None:
    """Excluded kinds are no observations, a failed attempt may cost a fixed latency, failed tools requests may go."""
    ledger = MemoryLedger(
        Settings(
            reliability=Measure(rule=Window(1000), exclude_kinds=("bad_request",)),
            latency=Measure(rule=Window(1000), failed_latency_ms=500.0, zero_latency="unknown"),
            tools=Tools(rule=ToolsWindow(2, 1000), failed=failed),
        ),
        At(),
    )
    for latency_ms, kind in ((100.0, None), (0.0, None), (7.0, "bad_request"), (7.0, "timeout")):
        row = AttemptRow(
            ts=1,
            provider_id="p",
            ok=kind is None,
            error_kind=kind,
            latency_ms=latency_ms,
            tools_requested=kind is not None,
        )
        ledger.record_attempt(row)
    evidence = ledger.read(10)
    stat = evidence.stats["p||"]
    assert (stat.success_rate, stat.count) == (2 / 3, 3)
    assert (stat.latency_ms, stat.latency_count) == (367, 3)  # (100 + 500 + 500) / 3
    assert evidence.tool_incapable == condemned
