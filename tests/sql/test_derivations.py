"""Every derivation on both engines over one awkward ledger, against values worked out by hand.

The ledger and its comments are in conftest.py; `awkward.run` fails where the engines differ.
"""

from __future__ import annotations

from typing import Any

import pytest

from replay.queries import END_OF_TIME


def _key(row: dict[str, Any]) -> str:
    return f"{row['provider_id']}|{row['model_family']}|{row['served_by']}"


def _stats(awkward: Any, since_ms: int = 1000, until_ms: int = 2000) -> dict[str, dict[str, Any]]:
    return {_key(row): row for row in awkward.run("route_stats", since_ms=since_ms, until_ms=until_ms)}


def test_routes_are_ordered_by_the_bytes_of_their_parts(awkward: Any) -> None:
    """Upper case comes before lower case and letters beyond ASCII come last, whatever the database's language."""
    assert list(_stats(awkward)) == ["||", "P|m|x", "a|m|x", "p|M|x", "p|m|", "p|m|y", "é|m|x"]


def test_null_and_empty_parts_are_one_route_and_the_window_is_half_open(awkward: Any) -> None:
    """The route p|m| has the attempt at since, not those before it or at until, whether its peer is null or empty."""
    row = _stats(awkward)["p|m|"]
    assert (row["count"], row["ok_count"], row["success_rate"]) == (3, 2, 2 / 3)


def test_only_successful_attempts_with_a_latency_have_a_say_in_it(awkward: Any) -> None:
    """A failed attempt's latency and a missing one count for nothing, and latency_count says so."""
    row = _stats(awkward)["p|m|"]
    assert (row["latency_count"], row["latency_mean_ms"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("key", "mean_ms", "latency_ms"),
    [("p|m|", 0.5, 0), ("P|m|x", 1.5, 2), ("p|M|x", 2.5, 2), ("||", 3.5, 4), ("p|m|y", 10.5, 10), ("é|m|x", 0.0, 0)],
)
def test_a_mean_half_way_between_two_integers_goes_to_the_even_one(
    awkward: Any, key: str, mean_ms: float, latency_ms: int
) -> None:
    """0.5, 1.5, 2.5, 3.5 become 0, 2, 2, 4 in both engines."""
    row = _stats(awkward)[key]
    assert (row["latency_mean_ms"], row["latency_ms"]) == (mean_ms, latency_ms)


@pytest.mark.parametrize(
    ("latency_ms", "expected"),
    [(7.25, 7), (7.75, 8), (-0.5, 0), (-1.5, -2), (2.0**51 + 0.5, 2**51), (2.0**53, None), (float("nan"), None)],
)
def test_other_means_go_to_the_nearest_integer_or_to_none(engines: Any, latency_ms: float, expected: int) -> None:
    """A mean without a nearest integer has no latency_ms, and does not take the whole answer down."""
    attempt = {"id": 1, "ts": 1, "ok": True, "latency_ms": latency_ms}
    with engines.holding({"route_observations": [attempt]}):
        [row] = engines.run("route_stats", since_ms=0, until_ms=END_OF_TIME)
        assert row["latency_ms"] == expected
        [row] = engines.run("provider_family_stats", since_ms=0, until_ms=END_OF_TIME)
        assert row["latency_ms"] == expected


def test_a_route_with_nothing_but_failures_has_a_rate_and_no_latency(awkward: Any) -> None:
    """Its rate is 0 and its latency null, not 0."""
    row = _stats(awkward)["a|m|x"]
    assert (row["success_rate"], row["latency_mean_ms"], row["latency_ms"]) == (0.0, None, None)
    assert (row["count"], row["ok_count"], row["latency_count"]) == (1, 0, 0)


def test_the_roll_up_weights_success_by_count_and_latency_by_latency_count(awkward: Any) -> None:
    """(p, m) has 5 attempts, 4 good; of its latencies 0.5, 10 and 11 each weighs the same: 21.5 / 3, not 4.5."""
    rows = awkward.run("provider_family_stats", since_ms=1000, until_ms=2000)
    assert [(row["provider_id"], row["model_family"]) for row in rows] == [
        ("", ""),
        ("P", "m"),
        ("a", "m"),
        ("p", "M"),
        ("p", "m"),
        ("é", "m"),
    ]
    row = rows[4]
    assert (row["count"], row["ok_count"], row["latency_count"], row["success_rate"]) == (5, 4, 3, 0.8)
    assert row["latency_mean_ms"] == pytest.approx(21.5 / 3, rel=1e-12)
    assert row["latency_ms"] == 7


@pytest.mark.parametrize(("since_ms", "until_ms"), [(2001, 4999), (1500, 1500), (2000, 1000), (END_OF_TIME, 0)])
def test_an_empty_window_gives_no_rows(awkward: Any, since_ms: int, until_ms: int) -> None:
    """Whether nothing happened in it, it has no length, or it ends before it begins."""
    for name in ("route_stats", "provider_family_stats", "tool_evidence"):
        assert awkward.run(name, since_ms=since_ms, until_ms=until_ms) == []
    assert awkward.run("tool_incapable_routes", since_ms=since_ms, until_ms=until_ms, min_samples=1) == []
    assert awkward.run("cost_by_route", since_s=since_ms, until_s=until_ms) == []


def test_the_largest_bigint_leaves_the_window_open(awkward: Any) -> None:
    """Production passes it as until: the attempt at 2000 counts then."""
    assert _stats(awkward, until_ms=END_OF_TIME)["p|m|"]["count"] == 4


def test_tool_evidence_counts_requests_failures_and_any_tool_call(awkward: Any) -> None:
    """Requests include failed ones, a tool call counts without a request, and attempts with neither are left out."""
    rows = awkward.run("tool_evidence", since_ms=5000, until_ms=6000)
    assert [(_key(row), row["requests"], row["failed_requests"], row["emitted"]) for row in rows] == [
        ("t||", 20, 0, 0),
        ("t|m|Unasked", 20, 0, 1),
        ("t|m|cleared", 21, 0, 1),
        ("t|m|exact", 20, 1, 0),
        ("t|m|short", 19, 0, 0),
    ]


def test_a_route_is_condemned_at_exactly_min_samples_unless_one_tool_call_clears_it(awkward: Any) -> None:
    """20 requests condemn and 19 do not; the failed one counts; one tool call, even an unasked one, clears."""
    rows = awkward.run("tool_incapable_routes", since_ms=5000, until_ms=6000, min_samples=20)
    assert [(_key(row), row["requests"]) for row in rows] == [("t||", 20), ("t|m|exact", 20)]


def test_a_tool_call_before_the_window_clears_nothing_and_one_in_it_does(awkward: Any) -> None:
    """The window is the re-test horizon: from 4999 on, the call that t|m|exact made there clears it."""
    rows = awkward.run("tool_incapable_routes", since_ms=4999, until_ms=6000, min_samples=20)
    assert [_key(row) for row in rows] == ["t||"]


def test_the_hot_route_is_the_latest_success_with_a_server_and_ids_break_ties(awkward: Any) -> None:
    """Calls 3, 4 and 7 share the last good second; 4 has no server; 5 has no status; 6 failed: it is 7."""
    assert awkward.run("hot_route", session_id="s1") == [
        {"provider_id": "P", "model_family": "", "served_by": "w", "route_key": "P||w", "ts": 20, "id": 7}
    ]


@pytest.mark.parametrize("session_id", ["unknown", "", "dark"])
def test_a_session_without_a_success_has_no_hot_route_and_is_warm_nowhere(awkward: Any, session_id: str) -> None:
    """Nor is the empty session one: call 13 belongs to none."""
    assert awkward.run("hot_route", session_id=session_id) == []
    assert awkward.run("session_warm", session_id=session_id) == []


def test_a_session_is_warm_on_the_latest_success_of_each_family(awkward: Any) -> None:
    """Without a peer the provider itself is what is warm; a null family is the empty one."""
    assert awkward.run("session_warm", session_id="s1") == [
        {"model_family": "", "provider_id": "P", "served_by": "w", "ts": 20, "id": 7},
        {"model_family": "M", "provider_id": "p", "served_by": "p", "ts": 20, "id": 4},
        {"model_family": "m", "provider_id": "p", "served_by": "y", "ts": 20, "id": 3},
    ]


@pytest.mark.parametrize(
    ("session_id", "expected"),
    [
        ("s1", [{"caller": "Alice", "ts": 10, "id": 1}]),  # bob wrote in the same second, with a higher id
        ("S1", [{"caller": None, "ts": 40, "id": 10}]),  # its first call names nobody; eve came later
        ("dark", [{"caller": "eve", "ts": 42, "id": 12}]),  # a failed call owns too
        ("unknown", []),
        ("", []),
    ],
)
def test_the_first_writer_owns_the_session(awkward: Any, session_id: str, expected: list[Any]) -> None:
    """By instant, then id; sessions that differ in case are different sessions."""
    assert awkward.run("session_owner", session_id=session_id) == expected


ZERO = {"calls": 0, "tokens_in": 0, "tokens_out": 0, "tokens_cached": 0, "cost_usd": 0.0, "cost_micro_usd": 0}
TOTALS = {
    # 0.0000005 + 0.000002 is two and a half millionths: half goes away from zero
    "S1": {**ZERO, "calls": 2, "tokens_out": 4, "cost_usd": 0.000003, "cost_micro_usd": 3},
    "dark": {**ZERO, "calls": 1},
    # 0.3 + 0.1 + 0.2 is 0.6, although as doubles they add up to 0.6 or 0.6000000000000001, depending on the order
    "s1": {
        "calls": 7,
        "tokens_in": 107,
        "tokens_out": 10,
        "tokens_cached": 53,
        "cost_usd": 0.6,
        "cost_micro_usd": 600_000,
    },
}


@pytest.mark.parametrize("session_id", ["s1", "S1", "dark", "unknown", ""])
def test_session_totals_count_every_call_and_round_the_cost_once(awkward: Any, session_id: str) -> None:
    """Null figures count as 0, failed calls count, and a session without calls has zeros."""
    assert awkward.run("session_totals", session_id=session_id) == [TOTALS.get(session_id, ZERO)]


def test_all_session_totals_are_the_totals_of_every_session(awkward: Any) -> None:
    """In the order of the bytes of their names; null and empty are no session."""
    assert awkward.run("all_session_totals") == [{"session_id": name, **totals} for name, totals in TOTALS.items()]


def test_cost_by_route_takes_the_calls_of_known_cost_in_the_window(awkward: Any) -> None:
    """From 10 on and before 50, without null, NaN and infinite costs, and says how many costs were reported."""
    rows = awkward.run("cost_by_route", since_s=10, until_s=50)
    by_name = ("provider_id", "model_family", "calls", "tokens_in", "tokens_out", "tokens_cached", "reported")
    assert [tuple(row[name] for name in by_name) for row in rows] == [
        ("", "m", 1, 0, 0, 0, 0),
        ("P", "m", 1, 0, 0, 3, 1),
        ("p", "m", 5, 107, 14, 50, 1),
    ]
    assert [row["cost_usd"] for row in rows] == [0.5, 0.1, 1.5000025]


def test_the_window_of_cost_by_route_includes_since_and_excludes_until(awkward: Any) -> None:
    """At exactly one second there is one call, in an empty range none."""
    [row] = awkward.run("cost_by_route", since_s=50, until_s=51)
    assert (row["calls"], row["cost_usd"]) == (1, 64.0)
    assert awkward.run("cost_by_route", since_s=51, until_s=END_OF_TIME) == []


def test_many_small_costs_add_up_without_loss(engines: Any) -> None:
    """A thousand calls at 0.0000001 USD cost 0.0001 USD, not a thousand times zero."""
    calls = [{"id": n, "ts": n, "session_id": "s", "provider_id": "p", "cost_usd": 1e-7} for n in range(1000)]
    with engines.holding({"calls": calls}):
        assert engines.run("session_totals", session_id="s")[0]["cost_micro_usd"] == 100
        assert engines.run("cost_by_route", since_s=0, until_s=2000)[0]["cost_usd"] == 0.0001


@pytest.mark.parametrize(
    ("at_ms", "served_by"),
    [(-1, []), (0, [""]), (99, [""]), (100, ["a", "peer"]), (199, ["a", "peer"]), (200, ["c", "a"]), (300, ["a"])],
)
def test_candidates_are_the_offers_valid_at_the_instant_in_order_of_position(
    awkward: Any, at_ms: int, served_by: list[str]
) -> None:
    """valid_from is inclusive, valid_to exclusive, null is for ever; ids break ties of position."""
    assert [row["served_by"] for row in awkward.run("candidates_at", at_ms=at_ms)] == served_by


def test_a_candidate_carries_every_column_of_its_offer(awkward: Any) -> None:
    """All columns of offer_history are in the answer, null where the offer says nothing."""
    [row] = awkward.run("candidates_at", at_ms=0)
    assert (row["has_tee"], row["declared"], row["price_in"], row["position"]) == (True, '{"x": 1}', None, 2)
    columns = awkward.postgres.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'offer_history'"
    ).fetchall()
    assert {name for (name,) in columns} <= set(row)
