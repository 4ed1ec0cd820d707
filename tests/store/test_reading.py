"""Derived reads: PostgreSQL through the store says what DuckDB says, in one round trip, and fails softly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import duckdb
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_rows import NOW_MS, attempt, call, offer

from replay import queries
from replay.errors import ReplayError
from replay.estimators import ToolsNever, ToolsWindow, Window
from replay.ledger.duck import DuckLedger
from replay.ledger.rows import AttemptRow, CallRow
from replay.ledger.store import Store
from replay.settings import PRODUCTION_BEFORE, Measure, Settings, Tools
from replay.snapshots import Snapshot

Ask = Callable[..., list[dict[str, Any]]]
OpenStore = Callable[..., Store]

SMALL = Settings(
    reliability=Measure(rule=Window(1000)),
    latency=Measure(rule=Window(700)),
    tools=Tools(rule=ToolsWindow(min_samples=2, window_ms=1500)),
)


class At:
    """A clock set by hand."""

    now = 0

    def now_ms(self) -> int:
        """The present instant."""
        return self.now


@pytest.fixture
def duck() -> Iterator[DuckLedger]:
    """The same ledger in DuckDB, with the same small windows."""
    with duckdb.connect() as connection:
        connection.execute(queries.ddl("mirror"))
        yield DuckLedger(connection, SMALL, At())


part = st.sampled_from([None, "", "p", "P", "é", "a|b"])
attempts = st.lists(
    st.builds(
        AttemptRow,
        ts=st.integers(0, 3000),
        provider_id=part,
        model_family=part,
        served_by=part,
        ok=st.booleans(),
        latency_ms=st.one_of(st.none(), st.integers(0, 99).map(float)),
        tools_requested=st.sampled_from([True, False, None]),
        tool_calls_emitted=st.sampled_from([True, False, False, None]),
    ),
    max_size=30,
)
calls = st.lists(
    st.builds(
        CallRow,
        ts=st.integers(0, 3),
        session_id=st.sampled_from([None, "", "s", "t"]),
        caller=part,
        provider_id=part,
        model_family=part,
        served_by=part,
        status=st.sampled_from([None, 200, 399, 400]),
        tokens_in=st.one_of(st.none(), st.integers(0, 10**12)),
        tokens_cached=st.one_of(st.none(), st.integers(0, 10**6)),
        cost_usd=st.one_of(st.none(), st.integers(0, 20).map(lambda n: n * 5e-7), st.floats(-10, 1e5)),
        cost_basis=st.sampled_from([None, "reported", "computed"]),
    ),
    max_size=20,
)


@pytest.fixture
def small(open_store: OpenStore) -> Store:
    """A store that measures with small windows."""
    return open_store(settings=SMALL)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attempts=attempts, calls=calls, now_ms=st.integers(0, 4000))
def test_a_recorded_ledger_reads_alike_from_both_engines(
    small: Store, duck: DuckLedger, ask: Ask, attempts: list[AttemptRow], calls: list[CallRow], now_ms: int
) -> None:
    """Stamps, sessions and totals, recorded through the store and through DuckDB, by the same files."""
    ask("TRUNCATE calls, route_observations")
    duck.connection.execute("DELETE FROM calls; DELETE FROM route_observations")
    for ledger in (small, duck):
        for row in attempts:
            ledger.record_attempt(row)
        for one in calls:
            ledger.record_call(one)
    assert small.drain(10).left == 0
    (ours, session), (theirs, other) = small.read_for(now_ms, "s"), duck.read_for(now_ms, "s")
    assert (ours.stats, ours.tool_incapable, session) == (theirs.stats, theirs.tool_incapable, other)
    assert small.route_stats(now_ms, 1000).keys() == {key for key, stat in ours.stats.items() if stat.count}
    assert (small.session_totals("t"), small.hot_route("t")) == (
        duck.read_session("t").totals,
        duck.read_session("t").hot_route,
    )
    assert small.session_owner("t") == duck.read_session("t").owner
    for name, rows in (
        ("all_session_totals", small.all_session_totals()),
        ("cost_by_route", small.cost_by_route(now_ms // 1000, 2)),
    ):
        values = {} if name == "all_session_totals" else {"since_s": now_ms // 1000 - 2, "until_s": queries.END_OF_TIME}
        found = duck._run(name, **values)
        assert list(map(_values, rows.values())) == [
            {one.name: row[one.name] for one in fields(next(iter(rows.values())))} for row in found
        ]


def _values(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in fields(value)}


def test_the_values_of_a_small_ledger(store: Store) -> None:
    """Every read once, by hand."""
    for number in range(20):
        ok, latency_ms = number != 3, 100.0 + number
        store.record_attempt(attempt(0, served_by="p", ok=ok, latency_ms=latency_ms, tools_requested=True))
    store.record_attempt(attempt(0, provider_id="q", served_by="x", ok=False))
    store.record_call(call(1, ts=10, caller="ann", provider_id="p", model_family="m", tokens_in=5, cost_usd=0.25))
    store.record_call(call(2, ts=11, caller="bob", provider_id="q", model_family="n", served_by="x", cost_usd=0.5))
    store.record_offers([offer(0), offer(1)], 5)
    store.drain(10)
    stats = store.route_stats(NOW_MS + 1)
    # Of 100 … 119 without 103: (2190 − 103) ÷ 19 = 109.84
    assert (stats["p|m|p"].success_rate, stats["p|m|p"].latency_ms, stats["p|m|p"].latency_count) == (0.95, 110, 19)
    assert (stats["q|m|x"].success_rate, stats["q|m|x"].latency_ms, stats["q|m|x"].count) == (0.0, None, 1)
    assert store.provider_family_stats(NOW_MS + 1) == {("p", "m"): stats["p|m|p"], ("q", "m"): stats["q|m|x"]}
    assert store.tool_incapable_routes(NOW_MS + 1) == {"p|m|p"}
    assert store.tool_incapable_routes(NOW_MS + 1, min_samples=21) == frozenset()
    assert store.hot_route("s") == "q|n|x"
    assert store.session_owner("s") == "ann"
    assert _values(store.session_totals("s")) == {
        "calls": 2, "tokens_in": 5, "tokens_out": 0, "tokens_cached": 0, "cost_usd": 0.75,
    }  # fmt: skip
    assert store.all_session_totals() == {"s": store.session_totals("s")}
    assert store.session_warm("s") == {
        "m": {"provider_id": "p", "served_by": "p"},
        "n": {"provider_id": "q", "served_by": "x"},
    }
    cost = store.cost_by_route(11, 1)
    costs = {pair: (one.calls, one.cost_usd) for pair, one in cost.items()}
    assert costs == {("p", "m"): (1, 0.25), ("q", "n"): (1, 0.5)}
    assert [row.provider_id for row in store.candidates_at(6)] == ["p0", "p1"]
    assert store.candidates_at(4) == ()


def test_a_reading_says_exactly_which_rows_it_saw(store: Store, postgres_url: str, ask: Ask) -> None:
    """Rows of a transaction that is still open are not in its snapshot, however old their ts."""
    store.record_attempt(attempt(0, provider_id="seen"))
    store.drain(10)
    with psycopg.connect(postgres_url) as writer:
        writer.execute(
            "INSERT INTO route_observations (ts, ok, provider_id) VALUES (%s, true, 'unseen')", [NOW_MS - 1000]
        )
        store.record_attempt(attempt(1, provider_id="later"))  # begins later, commits earlier
        store.drain(10)
        evidence = store.read(NOW_MS + 10)
    assert set(evidence.stats) == {"seen|m|", "later|m|"}
    assert evidence.snapshot is not None
    snapshot = Snapshot.parse(evidence.snapshot)
    rows = ask("SELECT provider_id, txid FROM route_observations")
    assert {row["provider_id"] for row in rows if snapshot.sees(row["txid"])} == {"seen", "later"}
    assert len(rows) == 3


def test_a_reading_with_a_session_is_one_round_trip(open_store: OpenStore, proxy: Any) -> None:
    """Begin, timeout, snapshot, all queries and commit go out together, on a connection that is there."""
    store = open_store(proxy.url)
    store.drain(10)
    store.read(NOW_MS)
    turns = []
    for read in (lambda: store.read(NOW_MS), lambda: store.read_for(NOW_MS, "s"), lambda: store.hot_route("s")):
        before = proxy.turns
        read()
        turns.append(proxy.turns - before)
    assert turns == [1, 1, 1]


def test_reads_that_fail_are_neutral_and_counted(open_store: OpenStore, postgres_url: str, ask: Ask) -> None:
    """Every derived read; the evidence raises, so that the router says it was unavailable."""
    store = open_store()
    store.drain(10)
    ask("ALTER TABLE calls RENAME TO gone; ALTER TABLE route_observations RENAME TO gone_too")
    ask("ALTER TABLE offer_history RENAME TO gone_as_well")
    assert (store.route_stats(1), store.provider_family_stats(1), store.tool_incapable_routes(1)) == (
        {},
        {},
        frozenset(),
    )
    assert (store.hot_route("s"), store.session_warm("s"), store.session_owner("s")) == (None, {}, None)
    assert (store.session_totals("s").calls, store.session_totals("s").cost_usd) == (0, 0.0)
    assert (store.all_session_totals(), store.cost_by_route(1), store.candidates_at(1)) == ({}, {}, ())
    for read in (lambda: store.read(1), lambda: store.read_for(1, "s"), lambda: store.read_session("s")):
        with pytest.raises(ReplayError, match="UndefinedTable"):
            read()
    failed = store.health().failed_reads
    assert failed == {**dict.fromkeys(failed, 1), "session_totals": 2, "evidence": 2}
    assert len(failed) == 12
    assert store.counters()["failed_reads_hot_route"] == 1
    ask("ALTER TABLE gone_too RENAME TO route_observations")
    assert store.read(1).state == "ok"


def test_a_reading_that_takes_too_long_is_ended_by_the_server(open_store: OpenStore, postgres_url: str) -> None:
    """The statement timeout holds also where a lock is what takes so long."""
    store = open_store(statement_timeout_ms=100)
    store.drain(10)
    with psycopg.connect(postgres_url) as holder:
        holder.execute("LOCK TABLE route_observations IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(ReplayError, match="QueryCanceled"):
            store.read(1)
    assert store.read(1).state == "ok"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (PRODUCTION_BEFORE, "tools"),
        (Settings(reliability=Measure(rule=Window(1), exclude_kinds=("timeout",))), "reliability"),
        (Settings(latency=Measure(rule=Window(1), failed_latency_ms=9.0)), "latency"),
        (Settings(latency=Measure(rule=Window(1), when_cold=9.0)), "latency"),
        (Settings(tools=Tools(rule=ToolsWindow(1, 1), failed="excluded")), "tools"),
    ],
)
def test_settings_that_sql_cannot_measure_are_refused(settings: Settings, name: str) -> None:
    """At once, before anything connects."""
    with pytest.raises(ReplayError, match=rf"settings\.{name} is .*production-now"):
        Store("host=nowhere.example", settings)


def test_without_a_tools_rule_no_route_is_condemned(open_store: OpenStore) -> None:
    """However many requests went by without a tool call."""
    store = open_store(settings=Settings(tools=Tools(rule=ToolsNever())))
    for _ in range(30):
        store.record_attempt(attempt(0, tools_requested=True))
    store.drain(10)
    assert store.read(NOW_MS).tool_incapable == frozenset()
    assert store.tool_incapable_routes(NOW_MS) == {"p|m|"}
