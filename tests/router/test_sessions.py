"""Sessions at the router: cache affinity, the running meter, and that a session shows nothing to other callers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from replay.calls import CallOutcome, CallRequest
from replay.core import CORE_SCHEMA, Schema, admit
from replay.ledger.rows import CallRow
from replay.sessions import Session, SessionTotals, own_id, visible_session
from replay.settings import PRODUCTION_NOW
from replay.stamps import Evidence

OK = CallOutcome(ok=True, tokens_in=1000, tokens_out=200, tokens_cached=400)  # 0.00492 USD
STICKY = [
    "policy",
    ["meets_req"],
    ["gate", ["is", "cache_hot"], ["lit", 1]],
    ["argmax"],
    ["id"],
    ["always", {"action": "next_candidate"}],
]
SCHEMA = Schema.declare({"cache_hot": {"sort": "Bool", "default": False}}, CORE_SCHEMA.tiers)


def of(session_id: str, caller: str | None = "ann", **more: Any) -> CallRequest:
    """A caller's request in a session."""
    return CallRequest(session_id=session_id, caller=caller, policy=admit(STICKY, SCHEMA), **more)


def test_a_session_stays_where_its_cache_is_hot(bench: Any) -> None:
    """The first call falls back to bee; the second starts there, and its row says why."""
    bench.run([(1, CallOutcome(ok=False, error_kind="timeout")), (1, OK)], of("s"))
    bench.run([(1, OK)], of("s"))
    bench.run([(1, OK)], of("t"))
    calls = bench.rows()[0]
    assert [call.provider_id for call in calls] == ["bee", "bee", "ant"]
    assert [json.loads(call.request).get("hot_route") for call in calls] == [None, "bee|atlas|bee", None]


def test_a_hot_route_that_the_host_gives_is_kept(bench: Any) -> None:
    """The host may know better than the ledger."""
    bench.run([(1, OK)], of("s"))
    bench.run([(1, OK)], of("s", hot_route="cat|atlas|cat"))
    assert bench.rows()[0][-1].provider_id == "cat"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_the_meter_is_what_is_committed_plus_the_call_in_flight(bench: Any, mode: str) -> None:
    """Failed calls count too; cost has 6 decimals."""
    meters = [
        bench.run(script, of("s"), mode=mode).session
        for script in ([(1, OK)], [(1, CallOutcome(ok=False))] * 3, [(1, OK)])
    ]
    assert meters == [
        SessionTotals(1, 1000, 200, 400, 0.00492),
        SessionTotals(2, 1000, 200, 400, 0.00492),
        SessionTotals(3, 2000, 400, 800, 0.00984),
    ]


def test_a_call_without_a_session_has_no_meter(bench: Any) -> None:
    """There is nothing to add up."""
    assert [bench.run([(1, OK)], CallRequest(session_id=session_id)).session for session_id in (None, "")] == [None] * 2


def test_another_caller_s_session_looks_as_if_it_were_not_there(bench: Any, new_bench: Any) -> None:
    """Bob names Ann's session: call by call he gets what he would get from a session that nobody has ever used."""
    for _ in range(2):
        bench.run([(1, CallOutcome(ok=False, error_kind="timeout")), (1, OK)], of("s"))
    fresh = new_bench()
    taken, unused = ([one.run([(1, OK)], of("s", "bob")) for _ in range(3)] for one in (bench, fresh))
    assert [one.session for one in taken] == [one.session for one in unused]
    assert [one.session.calls for one in taken] == [1, 2, 3]
    assert [one.chosen.provider_id for one in taken] == ["ant"] * 3  # Ann's is hot at bee
    assert bench.run([(1, OK)], of("s")).session.calls == 3  # and Bob's calls are not on Ann's meter


def test_a_call_in_another_caller_s_session_is_recorded_under_an_id_of_its_own(bench: Any) -> None:
    """Ann's session stays hers in the ledger; Bob's has Ann's id in its name, so that an operator finds it."""
    for caller in ("ann", "bob", "ann"):
        bench.run([(1, OK)], of("s", caller))
    assert [call.session_id for call in bench.rows()[0]] == ["s", own_id("s", "bob"), "s"]


@pytest.mark.parametrize(("first", "second"), [(None, "ann"), ("ann", None), ("ann", "")])
def test_calls_without_a_caller_are_one_nameless_caller_s(bench: Any, first: Any, second: Any) -> None:
    """A nameless caller sees nameless sessions, and neither sees the other's."""
    seen = [bench.run([(1, OK)], of("s", caller)).session.calls for caller in (first, second, first, second)]
    assert seen == [1, 1, 2, 2]


def test_even_an_id_of_one_s_own_can_be_somebody_else_s() -> None:
    """Who guesses another's own id and takes it first gains nothing: the other's session is then simply empty."""
    taken = Session("x", "eve", "p|m|p", SessionTotals(7))
    found = visible_session(Session("s", "ann", None, SessionTotals(1)), "bob", lambda session_id: taken)
    assert (found.hot_route, found.totals) == (None, SessionTotals())


class Sessions:
    """Stamps that know one session and count how they are asked; either part can be made to fail."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.asked: list[str] = []
        self.failing: set[str] = set()

    def _answer(self, what: str) -> None:
        self.asked.append(what)
        if what in self.failing:
            raise ConnectionError("away")

    def read(self, now_ms: int) -> Evidence:
        """Stamps alone."""
        self._answer("stamps")
        return Evidence(now_ms)

    def read_for(self, now_ms: int, session_id: str) -> tuple[Evidence, Session]:
        """Both."""
        self._answer("both")
        return Evidence(now_ms), self.session

    def read_session(self, session_id: str) -> Session:
        """The session alone."""
        self._answer("session")
        return self.session


def test_a_session_costs_no_reading_of_its_own_and_is_never_remembered(new_bench: Any) -> None:
    """Stamps and session are one reading; while the stamps are remembered, the session alone is read."""
    stamps = Sessions(Session("s"))
    bench = new_bench(settings=replace(PRODUCTION_NOW, memo_ms=1000), stamps=stamps)
    hot = []
    for request in (of("s"), of("s"), CallRequest(), of("s")):
        bench.run([(1, OK)], request)
        hot.append(json.loads(bench.rows()[0][-1].request).get("hot_route"))
        stamps.session = replace(stamps.session, owner="ann", hot_route=f"r{len(hot)}", totals=SessionTotals(1))
    assert stamps.asked == ["both", "session", "session"]
    assert hot == [None, "r1", None, "r3"]
    assert [call.evidence_at for call in bench.rows()[0]] == [bench.rows()[0][0].decided_at] * 4


def test_a_session_that_cannot_be_read_has_no_meter_and_leaves_remembered_stamps_alone(new_bench: Any) -> None:
    """Unknown is not zero. A failed reading of both leaves the decision without evidence."""
    stamps = Sessions(Session("s"))
    bench = new_bench(settings=replace(PRODUCTION_NOW, memo_ms=1000), stamps=stamps)
    stamps.failing = {"session"}
    meters = [bench.run([(1, OK)], of("s")).session for _ in range(2)]
    stamps.failing = {"both"}
    bench.clock.now += 5000
    meters.append(bench.run([(1, OK)], of("s")).session)
    assert [meter and meter.calls for meter in meters] == [1, None, None]
    assert [call.evidence_state for call in bench.rows()[0]] == ["ok", "ok", "unavailable"]


def test_the_meter_counts_a_cost_as_the_shared_sql_does() -> None:
    """A cost that is no number of less than a million dollars is no known cost."""
    totals = SessionTotals(cost_usd=0.5)
    for cost_usd in (None, float("nan"), float("inf"), 1e6, 0.25, 4e-7):
        totals = totals.plus(CallRow(ts=0, cost_usd=cost_usd))
    assert (totals.calls, totals.cost_usd) == (6, 0.75)
