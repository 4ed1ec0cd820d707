"""The options of a setting, and the processes that in-process state lives in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from replay import engine, timeline
from replay.estimators import Count, Ema, TimeEma, ToolsSticky, ToolsWindow, Window
from replay.ledger.load import Ledger
from replay.measuring import Measuring, Stamps
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Measure, Settings, Tools

W = Window(10_000)


def stamps(ledger: Ledger, **changes: Any) -> Stamps:
    """Answer what every decision could read of the first route."""
    measuring = Measuring(timeline.build(ledger), replace(Settings(), **changes))
    calls = np.arange(len(measuring.timeline.calls))
    return measuring.answer(measuring.at_calls(calls, np.zeros_like(calls)))


def plain(values: Any) -> list[float | None]:
    """Turn an array into a list with None for "no stamp"."""
    return [None if value != value else value for value in values.tolist()]


@pytest.fixture
def kinds(ledger_of: Any, attempt: Any, call: Any) -> Ledger:
    """One success and three failures of different kinds, then decisions while they are in the window and after."""
    rows = [
        attempt(1, 1_000, latency_ms=100.0),
        attempt(2, 2_000, ok=False, error_kind="timeout", latency_ms=900.0),
        attempt(3, 3_000, ok=False, error_kind="bad_request", latency_ms=50.0),
        attempt(4, 4_000, ok=False, latency_ms=None),
        attempt(5, 4_500, latency_ms=0.0),
    ]
    return ledger_of(attempts=rows, calls=[call(1, 500), call(2, 5_000), call(3, 50_000)])


def test_every_kind_counts_by_default(kinds: Ledger) -> None:
    """Production: 2 of 5 attempts succeeded; a latency of 0 is a value; failed attempts' latency is left out."""
    found = stamps(kinds, reliability=Measure(rule=W), latency=Measure(rule=W))
    assert plain(found.reliability) == [None, 0.4, None]
    assert found.count.tolist() == [0, 5, 0]
    assert plain(found.latency_ms) == [None, 50.0, None]
    assert found.latency_count.tolist() == [0, 2, 0]


def test_kinds_can_be_excluded(kinds: Ledger) -> None:
    """Without the client's own kinds 2 of 4 succeeded; a failure without a kind still counts."""
    found = stamps(kinds, reliability=Measure(rule=W, exclude_kinds=("bad_request", "content_filter")))
    assert plain(found.reliability) == [None, 0.5, None]
    assert found.count.tolist() == [0, 4, 0]


def test_cold_and_empty_are_told_apart(kinds: Ledger) -> None:
    """Never observed is cold, observed but with nothing in the window is empty; each has its own value or none."""
    found = stamps(
        kinds, reliability=Measure(rule=W, when_cold=0.9, when_empty=0.6), latency=Measure(rule=W, when_empty=7.0)
    )
    assert plain(found.reliability) == [0.9, 0.4, 0.6]
    assert plain(found.latency_ms) == [None, 50.0, 7.0]
    assert found.count.tolist() == [0, 5, 0]


def test_failed_attempts_can_cost_latency(kinds: Ledger) -> None:
    """As a penalty, each failed attempt counts with the given latency, recorded or not: (100 + 3 × 2,000 + 0) ÷ 5."""
    found = stamps(kinds, latency=Measure(rule=W, failed_latency_ms=2_000.0))
    assert plain(found.latency_ms) == [None, 1_220.0, None]
    excluded = stamps(kinds, latency=Measure(rule=W, failed_latency_ms=2_000.0, exclude_kinds=("bad_request",)))
    assert plain(excluded.latency_ms) == [None, 1_025.0, None]


def test_a_zero_latency_can_be_unknown(kinds: Ledger) -> None:
    """What production did before: only a positive latency counts."""
    found = stamps(kinds, latency=Measure(rule=W, zero_latency="unknown"))
    assert plain(found.latency_ms) == [None, 100.0, None]


@pytest.mark.parametrize("rule", [Count(10), Ema(0.5), TimeEma(1_000)])
def test_folds_leave_out_what_is_no_number(ledger_of: Any, attempt: Any, call: Any, rule: Any) -> None:
    """A fold could never forget an infinite latency, so it never takes one in."""
    rows = [attempt(1, 1_000, latency_ms=float("inf")), attempt(2, 2_000, latency_ms=40.0)]
    found = stamps(ledger_of(attempts=rows, calls=[call(1, 1_500), call(2, 3_000)]), latency=Measure(rule=rule))
    assert plain(found.latency_ms) == [None, 40.0]


@pytest.mark.parametrize(("mean", "stamp"), [(2.5, 2.0), (3.5, 4.0), (2.500001, 3.0), (0.5, 0.0), (7.49, 7.0)])
def test_the_stamped_latency_is_rounded_half_to_even(
    ledger_of: Any, attempt: Any, call: Any, mean: float, stamp: float
) -> None:
    """The stamp is an integer whatever rule made it; the estimate behind it stays as it is."""
    ledger = ledger_of(attempts=[attempt(1, 1_000, latency_ms=mean)], calls=[call(1, 2_000)])
    for rule in (W, Ema(0.3)):
        found = stamps(ledger, latency=Measure(rule=rule))
        assert found.stamped_latency_ms.tolist() == [stamp]
        assert found.latency_ms.tolist() == [mean]


def test_tools_may_leave_failed_attempts_out(ledger_of: Any, attempt: Any, call: Any) -> None:
    """Counted, two failed tools-requests and one silent success condemn at three; excluded, they do not."""
    rows = [
        attempt(1, 1_000, ok=False, tools_requested=True),
        attempt(2, 2_000, ok=False, tools_requested=True),
        attempt(3, 3_000, tools_requested=True, tool_calls_emitted=False),
    ]
    ledger = ledger_of(attempts=rows, calls=[call(1, 4_000)])
    rule = ToolsWindow(3, 10_000)
    assert stamps(ledger, tools=Tools(rule=rule)).capable.tolist() == [False]
    excluded = stamps(ledger, tools=Tools(rule=rule, failed="excluded"))
    assert (excluded.capable.tolist(), excluded.tools_requests.tolist()) == ([True], [1])


def test_an_unavailable_reading_is_neutral_but_in_process_state_is_not(ledger_of: Any, attempt: Any, call: Any) -> None:
    """A failed read makes every shared stamp neutral, tools included; what a process holds itself needs no read."""
    rows = [attempt(n, n, ok=False, tools_requested=True, latency_ms=5.0) for n in range(1, 30)]
    ledger = ledger_of(attempts=rows, calls=[call(1, 1_000, evidence_state="unavailable")])
    shared = Measure(rule=W, when_cold=0.3, when_empty=0.3)
    found = stamps(ledger, reliability=shared, tools=Tools(rule=ToolsWindow(2, 5_000)))
    assert (plain(found.reliability), found.capable.tolist()) == ([None], [True])
    own = stamps(
        ledger, reliability=replace(shared, state="process"), tools=Tools(rule=ToolsSticky(2, 5_000), state="process")
    )
    assert (plain(own.reliability), own.capable.tolist()) == ([0.0], [False])


# Processes


def two_replicas(ledger_of: Any, attempt: Any, call: Any, numbered: bool) -> Ledger:
    """Replica a saw one failure, replica b one success; each then decides. Optionally with their own numbering."""

    def place(replica: str, number: int) -> dict[str, Any]:
        return {"replica": replica, "replica_seq": number if numbered else None}

    return ledger_of(
        attempts=[attempt(1, 1_000, ok=False, **place("a", 1)), attempt(2, 1_000, ok=True, **place("b", 1))],
        calls=[call(1, 2_000, **place("a", 2)), call(2, 2_000, **place("b", 2)), call(3, 2_001, **place("c", 1))],
    )


@pytest.mark.parametrize("numbered", [True, False])
def test_each_process_has_its_own_state(ledger_of: Any, attempt: Any, call: Any, numbered: bool) -> None:
    """In process, a knows its failure, b its success, and c, which is new, nothing; shared, all know both."""
    ledger = two_replicas(ledger_of, attempt, call, numbered)
    own = stamps(ledger, reliability=Measure(rule=Ema(0.2), state="process"))
    assert plain(own.reliability) == [0.0, 1.0, None]
    shared = stamps(ledger, reliability=Measure(rule=Window(5_000)))
    assert plain(shared.reliability) == [0.5, 0.5, 0.5]


def test_a_replicas_numbering_beats_the_clock(ledger_of: Any, attempt: Any, call: Any) -> None:
    """Two events in one millisecond, or clocks that went back: in process, what has the smaller number came first."""
    rows = [
        attempt(1, 5_000, ok=False, replica="a", replica_seq=1),
        attempt(2, 5_000, ok=True, replica="a", replica_seq=3),
        attempt(3, 4_000, ok=False, replica="a", replica_seq=5),
    ]
    calls = [
        call(1, 5_000, replica="a", replica_seq=2),
        call(2, 5_000, replica="a", replica_seq=4),
        call(3, 5_000, replica="a", replica_seq=6),
    ]
    found = stamps(ledger_of(attempts=rows, calls=calls), reliability=Measure(rule=Ema(0.5), state="process"))
    assert plain(found.reliability) == [0.0, 0.5, 0.25]


def test_one_row_without_a_number_puts_everything_in_order_of_time(
    ledger_of: Any, attempt: Any, call: Any, measured_policy: Any
) -> None:
    """Where numbering is incomplete the clock decides, strictly before, and a warning says so."""
    rows = [
        attempt(1, 5_000, ok=False, replica="a", replica_seq=1),
        attempt(2, 4_999, ok=True, replica="a"),
    ]
    ledger = ledger_of(attempts=rows, calls=[call(1, 5_000, replica="a", replica_seq=2)])
    found = stamps(ledger, reliability=Measure(rule=Ema(0.5), state="process"))
    assert plain(found.reliability) == [1.0]
    run = engine.run(ledger, [PRODUCTION_BEFORE], measured_policy)
    assert any("in-process order goes by time" in warning for warning in run.warnings)


def test_a_restart_loses_what_the_process_knew(ledger_of: Any, attempt: Any, call: Any) -> None:
    """State from before a restart is gone from its very instant on, in whatever order restarts are listed."""
    ledger = ledger_of(
        attempts=[attempt(1, 1_000), attempt(2, 3_000, ok=False)],
        calls=[call(n, at) for n, at in enumerate((1_999, 2_000, 3_500, 6_000))],
    )
    measure = Measure(rule=Ema(0.2), state="process")
    assert plain(stamps(ledger, reliability=measure).reliability) == [1.0, 1.0, 0.8, 0.8]
    restarted = stamps(ledger, reliability=measure, restarts=(2_000, 5_000))
    assert plain(restarted.reliability) == [1.0, None, 0.0, None]
    unordered = stamps(ledger, reliability=measure, restarts=(5_000, 2_000))
    assert plain(unordered.reliability) == [1.0, None, 0.0, None]


def test_assumed_replicas_share_the_traffic_by_the_hash_of_seed_and_call(
    ledger_of: Any, attempt: Any, call: Any
) -> None:
    """Three processes: each learns from about a third, an attempt belongs to its call's, and the seed draws anew."""
    calls = [call(n, n * 1_000, usage_event_id=f"c{n}") for n in range(1, 301)]
    rows = [attempt(n, n * 1_000 + 500, request_id=f"c{n}", ok=n % 2 == 0) for n in range(1, 301)]
    axis = timeline.build(ledger_of(attempts=rows, calls=calls))
    before = replace(PRODUCTION_BEFORE, replicas=3)
    measuring = Measuring(axis, before)
    sizes = np.bincount(measuring.call_process, minlength=3)
    assert measuring.process_count == 3
    assert sizes.min() > 70
    assert (measuring.call_process == measuring.attempt_process).all()
    other = Measuring(axis, replace(before, seed=1))
    assert (other.call_process != measuring.call_process).any()
    again = Measuring(axis, before)
    assert (again.call_process == measuring.call_process).all()
    found = measuring.answer(measuring.at_calls(np.array([299]), np.array([0])))
    own = int(np.sum(measuring.attempt_process[:299] == measuring.call_process[299]))
    assert found.count.tolist() == [own]
    assert 70 < own < 130


def test_an_attempt_of_an_unknown_call_still_belongs_to_some_process(ledger_of: Any, attempt: Any, call: Any) -> None:
    """A request id that no call has is no call; its attempt is drawn a process of its own, and it is evidence."""
    rows = [attempt(n, n, request_id="gone") for n in range(1, 200)]
    axis = timeline.build(ledger_of(attempts=rows, calls=[call(1, 1_000, usage_event_id="here")]))
    assert set(axis.attempts.call.tolist()) == {-1}
    measuring = Measuring(axis, replace(PRODUCTION_BEFORE, replicas=4))
    assert set(measuring.attempt_process.tolist()) == {0, 1, 2, 3}
    shared = Measuring(axis, PRODUCTION_NOW)
    assert shared.answer(shared.at_calls(np.array([0]), np.array([0]))).count.tolist() == [199]


# Memoised stamps


def test_a_memo_reuses_the_evidence_of_its_process(ledger_of: Any, attempt: Any, call: Any) -> None:
    """With 2 s of memo a process reads at 0, 2 and 5 s; between, it sees what it saw. Others read their own."""
    rows = [attempt(1, 1_500, ok=False)]
    at_ms = (1_000, 2_000, 2_999, 3_000, 6_000)
    calls = [call(n, at, replica="a") for n, at in enumerate(at_ms, start=1)] + [call(9, 2_000, replica="b")]
    ledger = ledger_of(attempts=rows, calls=calls)
    axis = timeline.build(ledger)
    measuring = Measuring(axis, replace(PRODUCTION_NOW, memo_ms=2_000))
    read_at = dict(zip(axis.calls.id.tolist(), measuring.evidence_ms.tolist(), strict=True))
    assert read_at == {1: 1_000, 2: 1_000, 3: 1_000, 4: 3_000, 5: 6_000, 9: 2_000}
    found = measuring.answer(measuring.at_calls(np.arange(6), np.zeros(6, dtype=np.int64)))
    counts = dict(zip(axis.calls.id.tolist(), found.count.tolist(), strict=True))
    assert counts == {1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 9: 1}


def test_a_failed_reading_is_not_memoised(ledger_of: Any, attempt: Any, call: Any) -> None:
    """After a reading failed, the next decision reads anew, as the router does."""
    calls = [call(1, 1_000, evidence_state="unavailable"), call(2, 1_500), call(3, 2_000)]
    measuring = Measuring(
        timeline.build(ledger_of(attempts=[attempt(1, 1)], calls=calls)), replace(PRODUCTION_NOW, memo_ms=2_000)
    )
    assert measuring.evidence_ms.tolist() == [1_000, 1_500, 1_500]


def test_no_memo_reads_at_every_decision(ledger_of: Any, attempt: Any, call: Any) -> None:
    """memo 0 reads at decided_at even where the ledger recorded a memoised evidence instant; unset keeps the latter."""
    ledger = ledger_of(attempts=[attempt(1, 1)], calls=[call(1, 5_000, evidence_at=4_000)])
    axis = timeline.build(ledger)
    assert Measuring(axis, replace(PRODUCTION_NOW, memo_ms=0)).evidence_ms.tolist() == [5_000]
    assert Measuring(axis, PRODUCTION_NOW).evidence_ms.tolist() == [4_000]


def test_a_ledger_recorded_with_a_memo_reproduces(world: Any) -> None:
    """A router that memoised its stamps is reproduced whole by the recorded instants, and audits under every memo."""
    recorded = replace(PRODUCTION_NOW, memo_ms=45_000)
    ledger = world(settings=recorded, calls=50)
    reused = ledger.calls.filter(ledger.calls["evidence_at"] < ledger.calls["decided_at"])
    assert len(reused) > 10
    run = engine.run(
        ledger, [PRODUCTION_NOW, replace(recorded, name="memo"), replace(PRODUCTION_NOW, name="fresh", memo_ms=0)]
    )
    assert run.reproduction.agreed == run.reproduction.compared == 50
    assert run.passed
    kept, memo, fresh = (one.decisions for one in run.replayed)
    assert memo["evidence_ms"].to_list() == kept["evidence_ms"].to_list()
    assert memo["order_hash"].to_list() == kept["order_hash"].to_list()
    assert fresh["evidence_ms"].to_list() == fresh["decided_ms"].to_list()
