"""What the router records, on every way a call can end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.calls import CallOutcome, CallRequest
from replay.errors import ReplayError
from replay.settings import PRODUCTION_NOW
from replay.stamps import Evidence

OK = CallOutcome(ok=True, tokens_in=1000, tokens_cached=400, tokens_out=200)
START_MS = 1_772_409_600_000


def failed(kind: str, status: int | None = None) -> CallOutcome:
    """A failed attempt."""
    return CallOutcome(ok=False, error_kind=kind, http_status=status)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_call_that_succeeds_at_once_is_one_attempt_and_one_call(bench: Any, mode: str) -> None:
    """The simplest call, column by column, computed by hand."""
    request = CallRequest(tools=[{"name": "f"}], session_id="s", caller="ide", consumer_sha="c0", seed=5)
    response = bench.run([(1234, OK)], request, mode=mode)
    (call,), (attempt,) = bench.rows()
    assert response.ok
    assert response.call.route_key == "ant|atlas|ant"
    assert (attempt.id, attempt.ts, attempt.started_at, attempt.latency_ms) == (1, START_MS + 1234, START_MS, 1234.0)
    assert (attempt.provider_id, attempt.model_family, attempt.served_by) == ("ant", "atlas", "ant")
    assert (attempt.ok, attempt.error_kind, attempt.http_status) == (True, None, 200)
    assert (attempt.tools_requested, attempt.tool_calls_emitted) == (True, False)
    assert (attempt.request_id, attempt.attempt, attempt.candidate_attempt) == ("replica-1-1", 1, 1)
    assert (attempt.replica, attempt.replica_seq, attempt.txid) == ("replica-1", 2, 1)
    assert (call.ts, call.latency_ms, call.status, call.error_type) == (1_772_409_601, 1234.0, 200, None)
    assert (call.usage_event_id, call.session_id, call.caller, call.consumer_sha) == ("replica-1-1", "s", "ide", "c0")
    assert (call.route_key, call.served_by, call.served_model_id) == ("ant|atlas|ant", "ant", "atlas-1")
    assert (call.tokens_in, call.tokens_out, call.tokens_total, call.tokens_cached) == (1000, 200, 1200, 400)
    # 600 × 3 + 400 × 0.3 + 200 × 15 = 4920 millionths
    assert (call.cost_usd, call.cost_basis) == (0.00492, "computed")
    assert (call.decided_at, call.evidence_at) == (START_MS, START_MS)
    assert json.loads(call.request) == {"seed": 5, "tools": True}
    assert (call.policy_id, call.settings_id) == (bench.policy.identity, PRODUCTION_NOW.identity)
    assert (call.replica, call.replica_seq) == ("replica-1", 1)
    assert (call.evidence_snapshot, call.evidence_state) == ("1:1:", "ok")


@settings(deadline=None)
@given(
    ends=st.lists(
        st.tuples(
            st.integers(0, 3000),
            st.one_of(
                st.just(OK),
                st.sampled_from(["server_error", "auth_error", "timeout", "bad_request", "made_up"]).map(failed),
                st.sampled_from([ValueError("bug"), TimeoutError(), ConnectionError()]),
                st.just(KeyboardInterrupt()),
            ),
        ),
        min_size=8,
        max_size=8,
    ),
    calls=st.integers(1, 3),
)
def test_synchronous_and_asynchronous_execution_record_the_same(
    new_bench: Any, ends: list[tuple[int, Any]], calls: int
) -> None:
    """Whatever the providers do, both drivers leave the same rows, and one call row per call."""
    recorded = []
    for mode in ("sync", "async"):
        bench = new_bench()
        for _ in range(calls):
            try:
                bench.run(ends, mode=mode)
            except KeyboardInterrupt:
                continue
        recorded.append(bench.rows())
        assert len(bench.rows()[0]) == calls
    assert recorded[0] == recorded[1]


def test_every_failed_attempt_is_recorded_with_its_kind_and_number(bench: Any) -> None:
    """A retry, a fallback and a success: three attempts, one call on the final route."""
    response = bench.run([(100, failed("server_error", 500)), (50, failed("timeout")), (30, OK)])
    (call,), attempts = bench.rows()
    assert response.ok
    assert [(a.provider_id, a.attempt, a.candidate_attempt, a.error_kind, a.http_status) for a in attempts] == [
        ("ant", 1, 1, "server_error", 500),
        ("ant", 2, 2, "timeout", None),
        ("bee", 3, 1, None, 200),
    ]
    # 100, then 500 of backoff, then 50, then 30
    assert [(a.started_at - START_MS, a.ts - START_MS) for a in attempts] == [(0, 100), (600, 650), (650, 680)]
    assert (call.route_key, call.status, call.latency_ms) == ("bee|atlas|bee", 200, 680.0)
    assert [a.replica_seq for a in attempts] == [2, 3, 4]


def test_a_call_whose_attempts_all_failed_names_the_last_route_and_kind(bench: Any) -> None:
    """The call row of an exhausted walk has the last attempt's route, its kind's status and no cost."""
    response = bench.run([(1, failed("timeout")), (1, failed("rate_limit", 429)), (1, failed("network_error"))])
    (call,), attempts = bench.rows()
    assert (response.ok, response.error, response.chosen) == (False, "exhausted: network_error", None)
    assert len(attempts) == 3
    assert (call.route_key, call.status, call.error_type) == ("cat|atlas|cat", 502, "network_error")
    assert (call.cost_usd, call.cost_basis, call.tokens_in, call.tokens_total) == (None, None, None, None)


def test_a_call_without_candidates_is_recorded_without_a_route(bench: Any) -> None:
    """Nothing was attempted, so there is no route; the call is there all the same."""
    response = bench.run([], CallRequest(requirements={"min_context": 1_000_000}))
    (call,), attempts = bench.rows()
    assert attempts == ()
    assert (response.error, call.route_key, call.provider_id, call.served_by) == ("no_candidates", None, None, None)
    assert (call.status, call.error_type, call.replica_seq) == (503, "no_candidates", 1)


def test_a_pin_that_matches_nothing_is_recorded_as_such(bench: Any) -> None:
    """An unmatched pin is told apart from an empty ranking."""
    bench.run([], CallRequest(requirements={"pin": {"provider": "dog", "model": "atlas"}}))
    (call,), _ = bench.rows()
    assert (call.status, call.error_type, call.requested_model) == (404, "pin_not_found", "pin:dog/atlas")


def test_an_unexpected_exception_fails_over_and_is_handed_back(bench: Any) -> None:
    """A provider callable that blows up is one failed attempt, not the end of the request."""
    bug = ValueError("bug")
    response = bench.run([(5, bug), (5, bug), (5, bug)])
    _, attempts = bench.rows()
    assert [a.error_kind for a in attempts] == ["exception"] * 3
    assert (response.ok, response.call.status, response.exception) == (False, 500, bug)


@pytest.mark.parametrize(("error", "kind"), [(TimeoutError(), "timeout"), (ConnectionResetError(), "network_error")])
def test_the_usual_exceptions_have_their_own_kind(bench: Any, error: Exception, kind: str) -> None:
    """A timeout and a broken connection need no classification by the callable."""
    bench.run([(5, error), (5, OK)])
    _, attempts = bench.rows()
    assert [a.error_kind for a in attempts] == [kind, None]


def test_a_failure_without_a_kind_is_recorded_as_unknown(bench: Any) -> None:
    """The core needs a kind; a provider that names none does not break the walk."""
    bench.run([(5, CallOutcome(ok=False)), (5, OK)])
    _, attempts = bench.rows()
    assert [a.error_kind for a in attempts] == ["unknown", None]


def test_a_request_that_the_core_refuses_is_a_recorded_bad_request(bench: Any) -> None:
    """Bad input is raised to the caller, and its call row says 400."""
    with pytest.raises(Exception, match="min_context"):
        bench.run([], CallRequest(requirements={"min_context": "much"}))
    (call,), attempts = bench.rows()
    assert (call.status, call.error_type, call.evidence_state, attempts) == (400, "bad_request", None, ())


def test_a_refused_envelope_never_counts_as_a_decision(bench: Any) -> None:
    """Its call has no number among the decisions, so a replay does not hold it against one."""
    with pytest.raises(Exception, match="made_up"):
        bench.run([], CallRequest(envelope=["made_up"]))
    bench.run([(1, OK)])
    calls, _ = bench.rows()
    assert [(call.error_type, call.replica_seq) for call in calls] == [("bad_request", None), (None, 1)]


def test_a_response_tells_what_the_host_may_tell_its_client(bench: Any) -> None:
    """Route, attempts, policy, cost with its basis, and the session's meter; nothing that is unknown."""
    request = CallRequest(session_id="s")
    told = bench.run([(1, failed("timeout")), (1, OK)], request).metadata()
    assert told == {
        "chosen": "bee|atlas|bee",
        "attempts": 2,
        "policy_id": bench.policy.identity,
        "cost_usd": 0.00492,
        "cost_basis": "computed",
        "session_calls": 1,
        "session_tokens_in": 1000,
        "session_tokens_out": 200,
        "session_tokens_cached": 400,
        "session_cost_usd": 0.00492,
    }
    failing = bench.run([(1, failed("timeout"))] * 3).metadata()
    assert failing == {"attempts": 3, "policy_id": bench.policy.identity, "error": "exhausted: timeout"}


def test_policies_and_settings_are_recorded_as_soon_as_calls_can_name_them(bench: Any, new_bench: Any) -> None:
    """The router's own at its start, one that arrives with a call when it does."""
    other = new_bench(term=["policy", ["top"], ["zero"], ["ordered"], ["id"], ["always", {"action": "abort"}]]).policy
    assert (set(bench.ledger.policies), set(bench.ledger.all_settings)) == (
        {bench.policy.identity},
        {PRODUCTION_NOW.identity},
    )
    bench.run([(1, OK)], CallRequest(policy=other))
    assert set(bench.ledger.policies) == {bench.policy.identity, other.identity}


def test_an_interrupted_synchronous_call_is_recorded_and_the_interrupt_goes_on(bench: Any) -> None:
    """KeyboardInterrupt in the callable: the attempt in flight and the call are recorded as cancelled."""
    with pytest.raises(KeyboardInterrupt):
        bench.run([(5, failed("timeout")), (7, KeyboardInterrupt())])
    (call,), attempts = bench.rows()
    assert [(a.error_kind, a.ts - START_MS) for a in attempts] == [("timeout", 5), ("cancelled", 12)]
    assert (call.status, call.error_type, call.route_key) == (499, "cancelled", "bee|atlas|bee")


class Exploding:
    """A ledger that is down."""

    def read(self, now_ms: int) -> Any:
        """Fail."""
        raise ConnectionError("database is away")

    def record_call(self, row: Any) -> None:
        """Fail."""
        raise ConnectionError("database is away")

    record_attempt = record_policy = record_settings = record_call


def test_stamps_that_cannot_be_read_leave_every_candidate_neutral(new_bench: Any) -> None:
    """A failed reading is recorded as unavailable, and measured fields read their defaults."""
    stale = new_bench.offer("ant", fields={"price_in": 1.0, "success_rate": 0.1})
    term = [
        "policy",
        ["cmp", "success_rate", "ge", 0.9],
        ["zero"],
        ["ordered"],
        ["id"],
        ["always", {"action": "abort"}],
    ]
    bench = new_bench(term=term, offers=[stale], stamps=Exploding())
    assert bench.run([(5, OK)]).ok
    (call,), _ = bench.rows()
    assert (call.evidence_state, call.evidence_snapshot, call.evidence_at) == ("unavailable", None, START_MS)


def test_a_failing_reading_is_logged_when_it_begins_and_ends_without_what_it_may_quote(
    new_bench: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One line each, not one per call; only our own errors are quoted, since others may hold a connection string."""

    class Flaky:
        error: Exception | None = None

        def read(self, now_ms: int) -> Evidence:
            if self.error is not None:
                raise self.error
            return Evidence(now_ms)

    stamps = Flaky()
    bench = new_bench(stamps=stamps)
    for stamps.error in (OSError("password=hunter2"), OSError("password=hunter2"), None, ReplayError("busy"), None):
        bench.run([(1, OK)])
    assert [record.getMessage() for record in caplog.records] == [
        "the ledgers cannot be read (OSError): routing on defaults until they can",
        "the ledgers can be read again",
        "the ledgers cannot be read (busy): routing on defaults until they can",
        "the ledgers can be read again",
    ]
    assert "hunter2" not in caplog.text


def test_a_recorder_that_fails_never_reaches_the_caller(new_bench: Any) -> None:
    """Rows that cannot be recorded are dropped and counted."""
    bench = new_bench(recorder=Exploding())
    assert bench.run([(5, failed("timeout")), (5, OK)]).ok
    assert bench.router.dropped_rows == 5  # two attempts, the call, the policy, the settings


def test_reported_cost_wins_over_the_list_price_and_a_subscription_costs_nothing(new_bench: Any) -> None:
    """The three cost bases, and an offer without a price."""
    reported = CallOutcome(ok=True, tokens_in=10, tokens_out=10, cost_usd=0.5)
    prepaid = CallOutcome(ok=True, tokens_in=10, tokens_out=10, subscription=True)
    found = []
    for outcome, offer in (
        (reported, new_bench.offer("ant")),
        (prepaid, new_bench.offer("ant")),
        (OK, new_bench.offer("ant", price_cached_in=0.5)),
        (OK, new_bench.offer("ant", fields={})),
        (CallOutcome(ok=True), new_bench.offer("ant")),
    ):
        bench = new_bench(offers=[offer])
        bench.run([(1, outcome)])
        found.append((bench.rows()[0][0].cost_usd, bench.rows()[0][0].cost_basis))
    # 600 × 3 + 400 × 0.5 + 200 × 15 = 5000 millionths
    assert found == [(0.5, "reported"), (0.0, "subscription"), (0.005, "computed"), (None, None), (None, None)]


def test_a_ranking_multiplier_never_enters_the_cost(new_bench: Any) -> None:
    """Cost is at the raw price."""
    bench = new_bench(offers=[new_bench.offer("ant", price_multiplier=0.5)])
    bench.run([(1, OK)])
    assert bench.rows()[0][0].cost_usd == 0.00492


def test_a_given_call_id_is_kept_and_joins_attempts_to_the_call(bench: Any) -> None:
    """The host may bring its own id."""
    bench.run([(1, failed("timeout")), (1, OK)], CallRequest(usage_event_id="mine"))
    (call,), attempts = bench.rows()
    assert [call.usage_event_id, *(a.request_id for a in attempts)] == ["mine"] * 3


def test_a_policy_that_comes_with_the_call_is_the_one_recorded(bench: Any, new_bench: Any) -> None:
    """Both the walk and the row follow the call's own policy."""
    other = new_bench(
        term=["policy", ["provider_eq", "cat"], ["zero"], ["ordered"], ["id"], ["always", {"action": "abort"}]]
    )
    bench.run([(1, failed("timeout"))], CallRequest(policy=other.policy))
    (call,), attempts = bench.rows()
    assert (call.policy_id, [a.provider_id for a in attempts]) == (other.policy.identity, ["cat"])


def test_what_the_core_saw_is_recorded_whole(bench: Any) -> None:
    """Every part of the request that a decision depends on is in its JSON, keys sorted."""
    request = CallRequest(
        requirements={"min_context": 8000, "needs": ["tools"]},
        scope="agent:1",
        tools=[{"name": "secret"}],
        images=["bytes"],
        response_format={"type": "json_object"},
        envelope=["not", ["provider_eq", "bee"]],
        seed=9,
        credits={"ant": 2.5},
        hot_route="ant|atlas|ant",
        payload="never recorded",
    )
    assert request.to_json() == (
        '{"credits":{"ant":2.5},"envelope":["not",["provider_eq","bee"]],"hot_route":"ant|atlas|ant","images":true,'
        '"requirements":{"min_context":8000,"needs":["tools"]},"response_format":{"type":"json_object"},'
        '"scope":"agent:1","seed":9,"tools":true}'
    )
    bench.run([], request)
    assert bench.rows()[0][0].request == request.to_json()
