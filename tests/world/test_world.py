"""A simulated world: its luck, incidents, prices, processes and caches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from replay.core import admit
from replay.errors import ReplayError
from replay.ledger.rows import AttemptRow
from replay.settings import PRODUCTION_NOW
from replay.world import Incident, Life, RouteModel, Scenario, simulate


def attempts(scenario: Scenario, term: Any, seed: int = 1) -> tuple[AttemptRow, ...]:
    """The attempts recorded in a scenario."""
    return simulate(scenario, seed, PRODUCTION_NOW, admit(term)).rows()[1]


def luck_met(rows: tuple[AttemptRow, ...]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Per (call, route, attempt on it): how it ended and how long it took."""
    return {(r.request_id, r.route_key, r.candidate_attempt): (r.ok, r.error_kind, r.latency_ms) for r in rows}


def test_the_same_attempt_meets_the_same_luck_whatever_the_order(small: Any, ordered: Any) -> None:
    """Two policies that try the routes in opposite orders agree wherever both made the same attempt."""
    flipped = [*ordered[:3], ["prefer", ["provider_eq", "q"], ["ordered"]], *ordered[4:]]
    routes = {name: RouteModel(success_rate=0.5) for name in ("p|m|p", "q|m|q")}
    one, other = (luck_met(attempts(small(routes=routes), term)) for term in (ordered, flipped))
    shared = one.keys() & other.keys()
    assert len(shared) > 20
    assert {key: one[key] for key in shared} == {key: other[key] for key in shared}


def test_another_seed_is_another_week(small: Any, ordered: Any) -> None:
    """The seed reaches every draw."""
    assert luck_met(attempts(small(), ordered, 1)) != luck_met(attempts(small(), ordered, 2))


def test_calls_overlap_and_every_call_is_recorded_once(small: Any, ordered: Any) -> None:
    """All calls arrive at once; each still has exactly one row, and numbers stay exact."""
    scenario = small()
    together = replace(scenario, arrivals=tuple(replace(arrival, at_ms=0) for arrival in scenario.arrivals))
    calls, rows = simulate(together, 1, PRODUCTION_NOW, admit(ordered)).rows()
    assert sorted(call.usage_event_id or "" for call in calls) == sorted(f"c{n}" for n in range(50))
    assert {call.decided_at for call in calls} == {0}
    numbers = sorted(row.replica_seq or 0 for row in (*calls, *rows))
    assert numbers == list(range(1, len(numbers) + 1))


def test_an_incident_changes_only_the_routes_and_the_time_it_names(small: Any, ordered: Any) -> None:
    """From 100 s to 200 s p always fails, with the incident's kind; before and after it never does."""
    incident = Incident(start_ms=100_000, end_ms=200_000, provider_id="p", success_factor=0.0, error_kind="made_up")
    rows = attempts(small(routes={}, incidents=(incident,)), ordered)
    kinds = {(row.error_kind, 100_000 <= (row.started_at or 0) < 200_000) for row in rows if row.provider_id == "p"}
    calm = {row.error_kind for row in attempts(small(routes={}), ordered) if row.provider_id == "p"}
    assert ("made_up", True) in kinds
    assert (None, True) not in kinds
    assert ("made_up", False) not in kinds
    assert "made_up" not in calm


def test_an_attempt_slower_than_the_timeout_is_cut_off_there(small: Any, ordered: Any) -> None:
    """With a median far above it, every attempt lasts exactly the timeout and fails so."""
    slow = {name: RouteModel(latency_median_ms=1e6, latency_sigma=0.1) for name in ("p|m|p", "q|m|q")}
    rows = attempts(small(routes=slow, timeout_ms=3000), ordered)
    assert {(row.latency_ms, row.error_kind) for row in rows} == {(3000.0, "timeout")}


def test_a_peer_that_leaves_is_not_called_any_more(small: Any, ordered: Any) -> None:
    """Offers are read at the instant of the decision."""
    scenario = small(routes={})
    first, second = scenario.offers
    rows = attempts(replace(scenario, offers=(replace(first, valid_to=250_000), second)), ordered)
    ends = [(row.provider_id, row.started_at) for row in rows if row.attempt == 1]
    assert [provider for provider, _ in ends] == ["p"] * 25 + ["q"] * 25


def test_a_restart_hands_its_slot_to_the_next_life(small: Any, ordered: Any) -> None:
    """Calls that arrive after the restart are the new replica's, numbered from one."""
    lives = (Life(replica="one", slot=0, start_ms=0), Life(replica="two", slot=0, start_ms=300_000))
    calls, _ = simulate(small(lives=lives), 1, PRODUCTION_NOW, admit(ordered)).rows()
    ordered_calls = sorted(calls, key=lambda call: call.decided_at or 0)
    assert [call.replica for call in ordered_calls] == ["one"] * 30 + ["two"] * 20
    assert ordered_calls[30].replica_seq == 1


def test_a_slot_without_a_process_is_refused(small: Any, ordered: Any) -> None:
    """A call that nobody could serve is a mistake in the scenario."""
    with pytest.raises(ReplayError, match="slot 0"):
        attempts(small(lives=(Life(replica="late", slot=0, start_ms=10**9),)), ordered)


def test_a_silent_route_answers_tools_requests_without_tool_calls(small: Any, ordered: Any) -> None:
    """tool_rate 0 never emits, 1 always does, and nothing emits where no tools were asked for."""
    for rate, request, expected in (
        (0.0, {"tools": True}, {False}),
        (1.0, {"tools": True}, {True}),
        (1.0, {}, {False}),
    ):
        routes = {name: RouteModel(success_rate=1.0, tool_rate=rate) for name in ("p|m|p", "q|m|q")}
        rows = attempts(small(routes=routes, request=request), ordered)
        assert {row.tool_calls_emitted for row in rows} == expected


def test_a_session_finds_its_prefix_cached_where_it_was_last_and_nowhere_else(small: Any, ordered: Any) -> None:
    """The first turn has nothing cached; later ones have the turn before, on the hot route."""
    routes = {"p|m|p": RouteModel(success_rate=1.0)}
    calls, _ = simulate(
        small(routes=routes, calls=3, request={"session_id": "s"}), 1, PRODUCTION_NOW, admit(ordered)
    ).rows()
    assert [call.tokens_cached for call in calls] == [0, 1000, 1000]
    assert ["p|m|p" in (call.request or "") for call in calls] == [False, True, True]
    # 1000 cached × 0.1 + 100 out × 2 = 300 millionths
    assert calls[1].cost_usd == 0.0003


def test_a_provider_s_own_figure_is_its_factor_on_the_list_price(small: Any, ordered: Any) -> None:
    """1000 in × 1 + 100 out × 2 = 1200 millionths at list, 1440 as charged."""
    routes = {"p|m|p": RouteModel(success_rate=1.0, reported_cost=1.2)}
    calls, _ = simulate(small(routes=routes, calls=1), 1, PRODUCTION_NOW, admit(ordered)).rows()
    assert (calls[0].cost_usd, calls[0].cost_basis) == (0.00144, "reported")


def test_the_client_s_own_error_is_found_by_every_route_that_looks(small: Any, ordered: Any) -> None:
    """With a rate of one, both routes answer bad_request, and the call is a 400."""
    arrival = {"client_error": "bad_request", "client_error_rate": 1.0}
    calls, rows = simulate(small(calls=1, arrival=arrival), 1, PRODUCTION_NOW, admit(ordered)).rows()
    assert [(row.provider_id, row.error_kind, row.http_status) for row in rows] == [
        ("p", "bad_request", 400),
        ("q", "bad_request", 400),
    ]
    assert calls[0].status == 400


def test_a_client_that_hangs_up_leaves_a_cancelled_call(small: Any, ordered: Any) -> None:
    """The attempt in flight ends when the client does."""
    calls, rows = simulate(small(calls=1, arrival={"hang_up_after_ms": 5}), 1, PRODUCTION_NOW, admit(ordered)).rows()
    assert [(row.error_kind, row.ts) for row in rows] == [("cancelled", 5)]
    assert [(call.status, call.latency_ms) for call in calls] == [(499, 5.0)]


def test_rows_are_committed_within_the_write_lag_in_their_own_order(small: Any, ordered: Any) -> None:
    """With a lag, ids follow commits, not ends; some row overtakes another, and all rows arrive."""
    scenario = small(write_lag_ms=(0, 60_000))
    rows = attempts(scenario, ordered)
    ends = [row.ts for row in rows]
    assert [row.id for row in rows] == list(range(1, len(rows) + 1))
    assert ends != sorted(ends)
    assert luck_met(rows).keys() >= {(f"c{n}", "p|m|p", 1) for n in range(50)}
