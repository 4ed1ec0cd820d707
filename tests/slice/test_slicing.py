from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from replay import engine
from replay.core import Policy
from replay.durations import instant_ms
from replay.errors import ReplayError
from replay.ledger.folder import frames, ledger_of
from replay.ledger.load import Ledger
from replay.ledger.rows import AttemptRow, CallRow
from replay.record import decision_hash
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Settings, from_dict
from replay.slicing import slice_ledger

START_MS = 1_000_000_000
EMA = from_dict({"reliability": {"rule": "ema", "alpha": 0.2}, "latency": {"rule": "ema", "alpha": 0.3}}, "shared ema")
COUNT = from_dict({"reliability": {"rule": "count", "n": 20}, "latency": {"rule": "count", "n": 10}}, "count")
LAGGED = replace(PRODUCTION_NOW, name="lagged", visibility="lagged", lag_ms=(0, 5_000, 40_000), memo_ms=2_000)
DRAWN = replace(PRODUCTION_BEFORE, name="drawn", replicas=3, restarts=(START_MS + 5_000_000,), seed=5)
ALL = (PRODUCTION_NOW, PRODUCTION_BEFORE, EMA, COUNT, LAGGED, DRAWN)


def _hashes(ledger: Ledger, chosen: Sequence[Settings], since_ms: int, until_ms: int, **given: Any) -> list[str]:
    run = engine.run(ledger, chosen, since_ms=since_ms, until_ms=until_ms, prove=False, **given)
    return [decision_hash(one.decisions) for one in run.replayed]


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate])  # to shrink takes minutes
@given(
    chosen=st.sampled_from(ALL),
    since_ms=st.integers(START_MS, START_MS + 7_000_000),
    length_ms=st.integers(60_000, 500_000),
    names=st.booleans(),
)
def test_a_slice_replays_to_the_decisions_of_the_whole(
    two_hours: Ledger, chosen: Settings, since_ms: int, length_ms: int, names: bool
) -> None:
    """Whatever is cut, under whatever rule, with names or numbers: the same scores and stamps to the last bit."""
    until_ms = since_ms + length_ms
    cut = slice_ledger(two_hours, [chosen], since_ms, until_ms, names=names)
    assert _hashes(cut.ledger, [chosen], since_ms, until_ms) == _hashes(two_hours, [chosen], since_ms, until_ms)


@pytest.mark.slow
def test_a_slice_of_the_demo_is_small_and_replays_as_the_whole_under_both_presets(demo_ledger: Ledger) -> None:
    """On the week's first morning, after an hour of rest, a window needs no more than what is in it."""
    both = [PRODUCTION_NOW, PRODUCTION_BEFORE]
    since_ms, until_ms = instant_ms("2026-03-02T09:25:00Z"), instant_ms("2026-03-02T09:32:00Z")
    cut = slice_ledger(demo_ledger, both, since_ms, until_ms)
    assert _hashes(cut.ledger, both, since_ms, until_ms) == _hashes(demo_ledger, both, since_ms, until_ms)
    windowed = slice_ledger(demo_ledger, [PRODUCTION_NOW], since_ms, until_ms)
    assert len(windowed.ledger.calls) < len(cut.ledger.calls) < 300
    assert not windowed.whole_history


def test_a_slice_of_a_slice_is_the_slice_of_the_whole(two_hours: Ledger) -> None:
    """What a slice leaves out is missed by no later cut: both ways give the same rows."""
    outer = slice_ledger(two_hours, [PRODUCTION_NOW], START_MS + 3_600_000, START_MS + 4_200_000, names=True)
    span = (START_MS + 3_900_000, START_MS + 4_100_000)
    inner = slice_ledger(outer.ledger, [PRODUCTION_NOW], *span, names=True)
    direct = slice_ledger(two_hours, [PRODUCTION_NOW], *span, names=True)
    assert inner.ledger.identity == direct.ledger.identity


def test_a_slice_reproduces_what_was_recorded(two_hours: Ledger) -> None:
    """The slice proves itself as the whole does: every decision reproduced, every audit agreed."""
    cut = slice_ledger(two_hours, [PRODUCTION_BEFORE], START_MS + 2_500_000, START_MS + 2_700_000)
    assert cut.run.reproduction.kind == "reproduction"
    assert cut.run.reproduction.agreed == cut.run.reproduction.compared == cut.decisions
    assert cut.run.passed


def test_a_slice_takes_only_what_it_needs_along(two_hours: Ledger) -> None:
    """Offers that ended before, and rows that no window reaches, stay behind."""
    cut = slice_ledger(two_hours, [PRODUCTION_NOW], START_MS + 6_900_000, START_MS + 7_000_000)
    assert cut.ledger.offers["id"].to_list() == [1, 3, 4, 5]
    assert len(cut.ledger.attempts) < len(two_hours.attempts) / 2


def test_numbers_stand_in_the_place_of_names(two_hours: Ledger) -> None:
    """No name, and nothing the core does not read of a request, is left; calls still join their attempts."""
    cut = slice_ledger(two_hours, [PRODUCTION_NOW], START_MS + 3_500_000, START_MS + 3_800_000)
    text = "".join(frame.write_json() for frame in frames(cut.ledger).values())
    assert not [name for name in ("alice", "bob", "carol", "host-") if name in text]
    assert set(cut.ledger.attempts["request_id"]) <= set(cut.ledger.calls["usage_event_id"])
    assert set(cut.ledger.calls["replica"]) == {"replica-1", "replica-2", "replica-3"}
    assert '"scope":"scope-1"' in text


def test_a_span_without_decisions_is_refused(two_hours: Ledger) -> None:
    """There is nothing to cut where nothing was decided, and the message says where something was."""
    with pytest.raises(ReplayError, match=r"no call was decided from 1970-02-01.*its decisions run from 1970-01-12T13"):
        slice_ledger(two_hours, [PRODUCTION_NOW], instant_ms("1970-02-01"), instant_ms("1970-02-02"))


def test_a_span_that_ends_before_it_starts_is_refused(two_hours: Ledger) -> None:
    """The two instants may have been swapped."""
    with pytest.raises(ReplayError, match="swap the two"):
        slice_ledger(two_hours, [PRODUCTION_NOW], START_MS + 10, START_MS)


def test_a_ledger_that_does_not_hold_is_not_cut(two_hours: Ledger) -> None:
    """Where the whole's own reproduction fails, its slice would guard a fault."""
    elsewhere = two_hours.attempts["provider_id"].replace({"p": "r", "r": "p"})
    broken = ledger_of(frames(two_hours) | {"route_observations": two_hours.attempts.with_columns(elsewhere)})
    with pytest.raises(ReplayError, match="does not hold"):
        slice_ledger(broken, [PRODUCTION_NOW], START_MS + 1_000_000, START_MS + 1_200_000)


HOUR_MS = 3_600_000


@pytest.fixture(scope="session")
def old_failures(ledger_of_rows: Callable[..., Ledger], offer: Any, policy: Policy) -> Callable[..., Ledger]:
    """Make a ledger of one process: provider p failed at some hours, calls were decided at some, both in one order."""

    def make(failed: Sequence[int], decided: Sequence[int]) -> Ledger:
        order = sorted([(at_ms, True) for at_ms in failed] + [(at_ms, False) for at_ms in decided])
        attempts = [
            AttemptRow(id=place, ts=at_ms, ok=False, provider_id="p", model_family="m", served_by="p", latency_ms=5.0,
                       error_kind="server_error", replica="one", replica_seq=place)
            for place, (at_ms, is_failure) in enumerate(order, start=1)
            if is_failure
        ]  # fmt: skip
        calls = [
            CallRow(id=place, ts=at_ms // 1000, decided_at=at_ms, evidence_at=at_ms, request="{}", replica="one",
                    replica_seq=place, policy_id=policy.identity)
            for place, (at_ms, is_failure) in enumerate(order, start=1)
            if not is_failure
        ]  # fmt: skip
        return ledger_of_rows(calls, attempts, [offer(1, "p"), offer(2, "q")], [policy])

    return make


def _chosen(ledger: Ledger, at_ms: int) -> tuple[str | None, int]:
    cut = slice_ledger(ledger, [PRODUCTION_NOW], at_ms, at_ms + 1)
    return cut.run.decisions["chosen_route"][0], len(cut.ledger.attempts)


def test_failures_of_hours_ago_still_open_a_breaker(old_failures: Callable[..., Ledger]) -> None:
    """Consecutive failures have no age: two in the morning and one at noon open it, so the slice keeps all three."""
    noon = 12 * HOUR_MS
    ledger = old_failures([HOUR_MS, 2 * HOUR_MS, noon - 1_000], [noon])
    assert _chosen(ledger, noon) == ("q|m|q", 3)


def test_the_ranking_that_found_a_breaker_recovered_is_kept(old_failures: Callable[..., Ledger]) -> None:
    """It began the count anew, so one more failure opens nothing; without that ranking a fourth would."""
    noon = 12 * HOUR_MS
    failed = [HOUR_MS, HOUR_MS + 10, HOUR_MS + 20, noon - 1_000]
    assert _chosen(old_failures(failed, [3 * HOUR_MS, noon]), noon)[0] == "p|m|p"
    assert _chosen(old_failures(failed, [noon]), noon)[0] == "q|m|q"


def test_the_tool_call_that_proved_a_route_for_good_is_kept(
    ledger_of_rows: Callable[..., Ledger], offer: Any, policy: Policy
) -> None:
    """One tool call in the morning, then silence: the sticky rule never condemns, in the slice as in the whole."""
    noon = 12 * HOUR_MS
    attempts = [
        AttemptRow(id=number, ts=at_ms, ok=True, provider_id="p", model_family="m", served_by="p", latency_ms=9.0,
                   tools_requested=True, tool_calls_emitted=number == 1)
        for number, at_ms in enumerate([HOUR_MS, *range(noon - 30_000, noon, 1_000)], start=1)
    ]  # fmt: skip
    asking = CallRow(id=1, ts=noon // 1000, decided_at=noon, evidence_at=noon, request='{"tools":true}')
    ledger = ledger_of_rows([asking], attempts, [offer(1, "p")])
    cut = slice_ledger(ledger, [PRODUCTION_BEFORE], noon, noon + 1, policy)
    assert cut.run.decisions["tools_1"].to_list() == [True]
    assert cut.ledger.attempts["id"][0] == 1


def test_first_uses_are_kept_where_candidates_come_from_the_ledger(
    ledger_of_rows: Callable[..., Ledger], policy: Policy
) -> None:
    """Without recorded offers a route is a candidate from its first use on; p's last success is kept beside it."""
    noon = 12 * HOUR_MS
    attempts = [
        AttemptRow(id=number, ts=number * HOUR_MS, ok=True, provider_id=name, model_family="m", latency_ms=9.0)
        for number, name in enumerate("pqppppppr", start=1)
    ]
    calls = [CallRow(id=1, ts=noon // 1000, decided_at=noon, evidence_at=noon)]
    cut = slice_ledger(ledger_of_rows(calls, attempts), [PRODUCTION_NOW], noon, noon + 1, policy)
    assert cut.run.decisions["candidates"].to_list() == [3]
    assert cut.ledger.attempts["id"].to_list() == [1, 2, 8, 9]
