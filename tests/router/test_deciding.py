"""What a decision of the live router rests on: stamps, breakers, and an order that holds under threads."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

from replay.calls import CallOutcome, CallRequest
from replay.core import Health, Request, State, plan
from replay.settings import PRODUCTION_NOW
from replay.stamps import Evidence, RouteStat, stamp

OK = CallOutcome(ok=True)
BY_SUCCESS = [
    "policy",
    ["meets_req"],
    ["field", "success_rate"],
    ["argmax"],
    ["id"],
    ["always", {"action": "next_candidate"}],
]


def failed(kind: str) -> CallOutcome:
    """A failed attempt."""
    return CallOutcome(ok=False, error_kind=kind)


def test_what_was_recorded_is_stamped_on_the_next_decision(new_bench: Any) -> None:
    """One failure puts a route behind the unmeasured ones; when its window has passed, it is perfect again."""
    bench = new_bench(term=BY_SUCCESS)
    start_ms = bench.clock.now
    bench.run([(10, failed("timeout")), (10, OK)])  # the failure ends at 10 ms: in the window up to 900,010 ms
    chosen = []
    for at_ms in (20, 900_010, 900_011):
        bench.clock.now = start_ms + at_ms
        bench.run([(0, OK)])
        chosen.append(bench.rows()[0][-1].provider_id)
    assert chosen == ["bee", "bee", "ant"]


def test_a_route_that_ignores_tools_is_condemned_on_the_marketplace_only(new_bench: Any) -> None:
    """The stamp removes supports_tools from a marketplace offer, and leaves a direct offer of the same route alone."""
    incapable = Evidence(0, tool_incapable=frozenset({"p|atlas|p"}))
    direct, market = new_bench.offer("p").candidate, new_bench.offer("p", tier="marketplace").candidate
    stamped = stamp([direct, market], incapable)
    assert ["supports_tools" in candidate.capabilities for candidate in stamped] == [True, False]
    assert "supports_tools" in market.capabilities


def test_only_the_session_s_hot_route_is_marked(new_bench: Any) -> None:
    """The route key that the request carries is where the session's cache is."""
    candidates = [new_bench.offer(name).candidate for name in ("ant", "bee")]
    stamped = stamp(candidates, Evidence(0), "bee|atlas|bee")
    assert [candidate.fields.get("cache_hot") for candidate in stamped] == [None, True]


class Counting:
    """Stamps that count how often they are read."""

    def __init__(self) -> None:
        self.reads = 0

    def read(self, now_ms: int) -> Evidence:
        """Nothing measured but how often."""
        self.reads += 1
        return Evidence(now_ms, {"ant|atlas|ant": RouteStat(0.5, None, self.reads, 0)})


def test_memoised_stamps_are_reused_and_the_call_says_when_they_were_read(new_bench: Any) -> None:
    """Within memo_ms the reading of the earlier decision serves; evidence_at is its instant."""
    stamps = Counting()
    bench = new_bench(settings=replace(PRODUCTION_NOW, memo_ms=1000), stamps=stamps)
    for wait_ms in (0, 999, 1):
        bench.clock.now += wait_ms
        bench.run([(0, OK)])
    ages = [call.decided_at - call.evidence_at for call in bench.rows()[0]]
    assert (ages, stamps.reads) == ([0, 999, 0], 2)


def test_a_restart_forgets_the_breakers(bench: Any, new_bench: Any) -> None:
    """Breakers live in the process: three failures keep a provider back, a new router starts afresh."""
    bench.run([(1, failed("timeout"))] * 3)
    bench.run([(1, failed("timeout"))] * 3)
    bench.run([(1, failed("timeout"))] * 3)
    bench.run([(1, OK)])
    assert bench.router.health.open_breakers(bench.clock.now) == {"bee", "cat"}
    assert new_bench().router.health.open_breakers(bench.clock.now) == frozenset()


def test_replica_seq_is_the_exact_order_of_decisions_and_attempt_ends_under_threads(new_bench: Any) -> None:
    """Folding the recorded rows by replica_seq gives, at every decision, the first attempt that was really made."""
    bench = new_bench()
    kinds = ["timeout", None, "server_error", None, "auth_error", "timeout", "timeout", None]

    def work(thread: int) -> None:
        numbers = iter(range(10_000))

        def call(candidate: Any, request: CallRequest) -> CallOutcome:
            kind = kinds[(thread * 3 + next(numbers)) % len(kinds)]
            bench.clock.now += 1
            time.sleep(0)  # let another thread in
            return OK if kind is None else failed(kind)

        for _ in range(40):
            bench.router.execute(CallRequest(), call)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls, attempts = bench.rows()
    events = sorted([*calls, *attempts], key=lambda row: row.replica_seq)
    assert [row.replica_seq for row in events] == list(range(1, len(events) + 1))
    first = {row.request_id: row.provider_id for row in attempts if row.attempt == 1}
    health, candidates = Health(), [offer.candidate for offer in bench.offers]
    predicted, made = [], []
    for row in events:
        if hasattr(row, "decided_at"):
            state = State(*health.rank(row.decided_at))
            order = plan(bench.policy, candidates, Request(), state).ordered
            alive = [candidates[place].provider_id for place in order]
            predicted.append(next((p for p in alive if not health.is_disabled(p, row.decided_at)), None))
            made.append(first.get(row.usage_event_id))
        else:
            health.observe(row.provider_id, row.ok, row.error_kind, bench.policy.action(row.error_kind), row.ts)
    assert len(made) == 160
    assert predicted == made
    assert len(set(made)) > 1
