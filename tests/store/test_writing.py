"""Recording: what is written, in which order, and what is dropped and counted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_rows import NOW_MS, attempt, call

from replay.ledger.rows import CallRow, columns
from replay.ledger.store import Store
from replay.ledger.writer import BATCH_ITEMS

Ask = Callable[..., list[dict[str, Any]]]
OpenStore = Callable[..., Store]


def test_a_row_arrives_as_it_was_recorded(store: Store, ask: Ask) -> None:
    """Every column; the id and the transaction are the database's."""
    text = 'a\tb\\c\n"é𝔭", \\N \r'
    texts = {name: text for name, type_ in CallRow.__annotations__.items() if type_ == "str | None"}
    whole = {name: 2**62 for name, type_ in CallRow.__annotations__.items() if type_ == "int | None"}
    recorded = CallRow(**{**whole, **texts, "ts": 7, "status": 200, "latency_ms": 0.1, "cost_usd": 1e-300})
    failed = dataclasses.replace(attempt(1), ok=False, latency_ms=float("inf"), http_status=None)
    store.record_call(recorded)
    store.record_attempt(failed)
    assert store.drain(10).left == 0
    for table, row in (("calls", recorded), ("route_observations", failed)):
        [written] = ask(f"SELECT *, xmin::text::bigint AS writer FROM {table}")
        assert written["txid"] == written["writer"]
        expected = {name: getattr(row, name) for name in columns(type(row)) if name not in ("id", "txid")}
        assert {name: written[name] for name in expected} == expected


def test_ids_follow_the_order_of_arrival(store: Store, ask: Ask) -> None:
    """Through several batches, in both tables."""
    for number in range(2 * BATCH_ITEMS):
        store.record_attempt(attempt(number))
        store.record_call(call(number))
    assert store.drain(20).written == 4 * BATCH_ITEMS + 1  # and the store's own settings
    for table, column in (("route_observations", "request_id"), ("calls", "usage_event_id")):
        rows = ask(f"SELECT {column} AS name FROM {table} ORDER BY id")
        assert [row["name"] for row in rows] == [f"e{number}" for number in range(2 * BATCH_ITEMS)]


def test_an_attempt_is_never_seen_later_than_its_call(store: Store, ask: Ask) -> None:
    """Whatever transaction wrote the call wrote its attempt, or an earlier one did."""
    for number in range(3 * BATCH_ITEMS):
        store.record_attempt(attempt(number))
        store.record_call(call(number))
    store.drain(20)
    [row] = ask(
        "SELECT count(*) AS calls, count(*) FILTER (WHERE a.txid > c.txid) AS late FROM calls c "
        "JOIN route_observations a ON a.request_id = c.usage_event_id"
    )
    assert row == {"calls": 3 * BATCH_ITEMS, "late": 0}


BAD = {
    "a NUL": lambda: attempt(0, provider_id="a\0b"),
    "a lone surrogate": lambda: attempt(0, provider_id="\ud800"),
    "too large a number": lambda: attempt(0, http_status=2**31),
    "too large for any number": lambda: attempt(0, ts=2**63),
    "a null where none may be": lambda: attempt(0, ok=None),
    "not a text": lambda: attempt(0, provider_id={"a": 1}),
    "not a number": lambda: attempt(0, http_status="many"),
    "too long for an index": lambda: call(0, session_id="".join(str(hash((1, n))) for n in range(20_000))),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_dropped_alone_and_counted(store: Store, ask: Ask, name: str) -> None:
    """The rows around it arrive, in their order."""
    for number in range(100):
        store.record_attempt(attempt(number))
        if number == 33:
            bad = BAD[name]()
            store.record_call(bad) if isinstance(bad, CallRow) else store.record_attempt(bad)
    done = store.drain(20)
    assert (done.left, store.health().dropped) == (0, {"bad_row": 1})
    rows = ask("SELECT request_id AS name FROM route_observations ORDER BY id")
    assert [row["name"] for row in rows] == [f"e{number}" for number in range(100)]
    assert ask("SELECT * FROM calls") == []
    assert store.health().last_error is not None


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.sets(st.integers(0, 59), max_size=60))
def test_exactly_the_bad_rows_are_missing(store: Store, ask: Ask, bad: set[int]) -> None:
    """Whichever they are; what is left keeps its order."""
    ask("TRUNCATE route_observations")
    before = store.health().dropped.get("bad_row", 0)
    for number in range(60):
        store.record_attempt(attempt(number, **({"error_kind": "\0"} if number in bad else {})))
    assert store.drain(20).left == 0
    assert store.health().dropped.get("bad_row", 0) - before == len(bad)
    rows = ask("SELECT request_id AS name FROM route_observations ORDER BY id")
    assert [row["name"] for row in rows] == [f"e{number}" for number in range(60) if number not in bad]


def test_a_constraint_that_only_the_commit_checks_costs_its_row_alone(store: Store, ask: Ask) -> None:
    """A host may have one on its tables; no single row shows it before."""
    ask("ALTER TABLE calls ADD CONSTRAINT once UNIQUE (usage_event_id) DEFERRABLE INITIALLY DEFERRED")
    for number in (*range(30), 7, *range(30, 40)):
        store.record_call(call(number))
    assert store.drain(20).left == 0
    assert store.health().dropped == {"bad_row": 1}
    rows = ask("SELECT usage_event_id AS name FROM calls ORDER BY id")
    assert [row["name"] for row in rows] == [f"e{number}" for number in range(40)]


def test_a_full_queue_drops_what_comes_and_counts_it(open_store: OpenStore, postgres_url: str, ask: Ask) -> None:
    """While a lock keeps the writer from writing; what was queued before arrives."""
    store = open_store(queue_size=50)
    store.drain(10)
    with psycopg.connect(postgres_url) as holder:
        holder.execute("LOCK TABLE route_observations IN EXCLUSIVE MODE")
        for number in range(5 * BATCH_ITEMS):
            store.record_attempt(attempt(number))
        dropped = store.health().dropped["queue_full"]
        assert 5 * BATCH_ITEMS - dropped - store.health().queued == 0
    assert store.drain(20).left == 0
    assert ask("SELECT count(*) AS n FROM route_observations") == [{"n": 5 * BATCH_ITEMS - dropped}]


def test_a_closed_store_drops_and_counts(open_store: OpenStore, ask: Ask) -> None:
    """Closing writes what is queued; closing twice says the same."""
    store = open_store()
    store.record_attempt(attempt(1))
    done = store.close()
    assert (done.written, done.dropped, done.left) == (2, 0, 0)
    assert store.close() == done
    store.record_attempt(attempt(2))
    assert store.health().dropped == {"closed": 1}
    assert ask("SELECT request_id FROM route_observations") == [{"request_id": "e1"}]


@pytest.mark.parametrize("days", [30, None])
def test_rows_older_than_the_retention_are_deleted(open_store: OpenStore, ask: Ask, days: int | None) -> None:
    """Calls count seconds, attempts milliseconds; offers that still hold stay, however old. None keeps everything."""
    store = open_store(retention_days=days)
    now_s = int(time.time())
    ages_s = {"new": 0, "kept": 30 * 86_400 - 3600, "old": 30 * 86_400 + 3600, "ancient": 400 * 86_400}
    ask("INSERT INTO offer_history (valid_from, valid_to, position) VALUES (1, 2, 0), (1, NULL, 1)")
    for name, age_s in ages_s.items():
        store.record_call(call(0, ts=now_s - age_s, session_id=name))
        store.record_attempt(attempt(0, ts=(now_s - age_s) * 1000, request_id=name))
    store.drain(10)
    for number in range(500):
        store.record_call(call(number, ts=now_s))
        store.record_attempt(attempt(number, ts=now_s * 1000))
    store.drain(10)
    store.close()
    left = set(ages_s) if days is None else {"new", "kept"}
    assert {row["session_id"] for row in ask("SELECT session_id FROM calls")} - {"s"} == left
    assert {row["request_id"] for row in ask("SELECT request_id FROM route_observations")} & set(ages_s) == left
    assert [row["valid_to"] for row in ask("SELECT valid_to FROM offer_history ORDER BY position")] == (
        [2, None] if days is None else [None]
    )
    assert store.health().deleted == ({} if days is None else {"calls": 2, "route_observations": 2, "offer_history": 1})


def test_a_replica_reads_its_own_clock_for_nothing_but_retention(store: Store, ask: Ask) -> None:
    """An instant far from this machine's is written as it was given."""
    store.record_attempt(attempt(1, ts=NOW_MS * 3))
    store.drain(10)
    assert ask("SELECT ts FROM route_observations") == [{"ts": NOW_MS * 3}]


def test_what_is_no_row_is_dropped_and_counted(store: Store, ask: Ask) -> None:
    """Recording raises for nothing, and the writer outlives it."""
    store.record_attempt("no row")  # type: ignore[arg-type]
    store.record_call(None)  # type: ignore[arg-type]
    store.record_offers([object()], 1)  # type: ignore[list-item]
    store.record_policy(None)  # type: ignore[arg-type]
    store.record_settings(7)  # type: ignore[arg-type]
    store.record_attempt(attempt(1))
    assert store.drain(10).left == 0
    assert store.health().dropped == {"bad_row": 5}
    assert ask("SELECT request_id FROM route_observations") == [{"request_id": "e1"}]
