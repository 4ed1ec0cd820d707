"""The proof of a replay: reproduction and audit hold on what the router recorded, and fail where it was changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from replay import audit as audit_room
from replay import engine, timeline
from replay.audit import Audit, audit, audited
from replay.crowd import Crowd
from replay.engine import Run
from replay.ledger.load import Ledger
from replay.measuring import Measuring, Questions, Stamps
from replay.reproduction import Reproduction
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Settings
from replay.shadow import Shadow


def tampered(ledger: Ledger, **changes: Any) -> Ledger:
    """Return the ledger with attempts changed where `where` holds."""
    where = changes.pop("where")
    frame = ledger.attempts.with_columns(
        pl.when(where).then(value).otherwise(pl.col(name)).alias(name) for name, value in changes.items()
    )
    return replace(ledger, attempts=frame)


def checked(ledger: Ledger, settings: Settings = PRODUCTION_NOW) -> Run:
    """Replay a ledger under one setting."""
    return engine.run(ledger, [settings])


def test_the_demo_reproduces_and_audits(demo_run: Run) -> None:
    """The recorded week is reproduced whole, none excluded, and production's SQL finds no fault with either preset."""
    run = demo_run
    found = run.reproduction
    assert (found.kind, found.agreed, found.compared, found.decisions) == ("reproduction", 6_674, 6_674, 6_674)
    assert not found.excluded
    for one in run.replayed:
        assert one.visibility == "recorded"
        assert one.audit.mismatches == []
        assert 450 <= one.audit.decisions <= 500
        assert one.audit.of_decisions == 6_674
        assert one.lag_flips is not None
    assert run.passed
    assert run.warnings == []
    lagging = run.replayed[0].lag_flips
    assert lagging, "some decisions of the week hang on the write lag, or this ledger proves little"


def test_the_small_world_reproduces_with_every_decision_audited(small_world: Ledger) -> None:
    """Up to 2,000 decisions are all audited: counts, rates, means, integers and verdicts of every route."""
    run = checked(small_world)
    audited_here = run.replayed[0].audit
    assert run.reproduction.agreed == run.reproduction.compared == 150
    assert (audited_here.decisions, audited_here.of_decisions) == (150, 150)
    assert audited_here.comparisons == 150 * 3 * 6  # three routes, six values each
    assert run.passed


def reproduced(ledger: Ledger) -> Reproduction:
    """Reproduce a ledger without replaying or auditing anything else."""
    return engine.reproduce(ledger)


def test_flipped_outcomes_are_noticed(small_world: Ledger) -> None:
    """Turn one attempt's outcome round, in ten ledgers: some no longer come out, and the cause and call are named."""
    noticed = 0
    for victim in small_world.attempts["id"][20:120:10]:
        found = reproduced(tampered(small_world, where=pl.col("id") == victim, ok=~pl.col("ok")))
        assert found.compared == 150
        noticed += not found.passed
        if not found.passed:
            assert set(found.causes) <= {"score", "filtered", "tie", "failover"}
            assert found.first_mismatch is not None
            assert "recorded" in found.first_mismatch
    assert noticed >= 2, "one outcome in a window of many turns few decisions, but not none"


def test_a_removed_attempt_is_noticed(small_world: Ledger) -> None:
    """Remove a first attempt: its decision is excluded by name, and so are those after it that it leaves in doubt."""
    victim = small_world.attempts.filter(pl.col("attempt") == 1)["id"][40]
    lacking = replace(small_world, attempts=small_world.attempts.filter(pl.col("id") != victim))
    assert reproduced(lacking).excluded == {"first attempt not recorded": 1, "rows of its process are missing": 7}
    warnings = engine.run(lacking, [PRODUCTION_NOW], prove=False).warnings
    assert any("1 numbers are missing" in warning for warning in warnings)


def test_an_altered_snapshot_is_noticed(small_world: Ledger) -> None:
    """Let every decision claim it saw all rows: the future leaks in, and reproduction fails."""
    frame = small_world.calls.with_columns(evidence_snapshot=pl.lit("9000000:9000000:"))
    found = reproduced(replace(small_world, calls=frame))
    assert found.agreed < found.compared == 150
    assert not found.passed


def test_snapshots_that_do_not_grow_fail_the_audit(small_world: Ledger) -> None:
    """Snapshots of two clusters have no common order: the engine's keys must be wrong, and the audit says so."""
    odd = pl.col("id") % 2 == 0
    mixed = pl.when(odd).then(pl.lit("1:500:100,101,102,103,104,105,106,107")).otherwise(pl.col("evidence_snapshot"))
    axis = timeline.build(replace(small_world, calls=small_world.calls.with_columns(evidence_snapshot=mixed)))
    assert audit(Measuring(axis, PRODUCTION_NOW), np.arange(0, 150, 5)).mismatches


def test_a_recorded_route_that_was_never_offered_is_named(small_world: Ledger) -> None:
    """Rename the provider in one attempt: its decision misses with the cause "no candidate"."""
    first = small_world.attempts.filter(pl.col("attempt") == 1)["id"][10]
    found = reproduced(tampered(small_world, where=pl.col("id") == first, provider_id=pl.lit("x")))
    assert found.causes["no candidate"] >= 1


def test_an_unknown_policy_is_a_cause_and_not_excused(small_world: Ledger) -> None:
    """A decision whose policy the ledger does not hold has complete evidence, and counts as not reproduced."""
    gone = pl.when(pl.col("id") == 7).then(pl.lit("gone")).otherwise("policy_id")
    ledger = replace(small_world, calls=small_world.calls.with_columns(policy_id=gone))
    found = reproduced(ledger)
    assert found.causes == {"unknown policy": 1}
    assert found.compared - found.agreed == 1
    run = engine.run(ledger, [PRODUCTION_NOW], prove=False)
    assert run.replayed[0].undecided == 1
    assert any("could not be decided" in warning for warning in run.warnings)


class _OffByOneMs(Measuring):
    """Reads every window one millisecond too early."""

    def at_calls(self, call: Any, route: Any) -> Questions:
        asked = super().at_calls(call, route)
        return replace(asked, shared_ms=asked.shared_ms - 1)


class _SeesItsOwnInstant(Measuring):
    """Lets a reader see what became visible at its own instant."""

    def at_calls(self, call: Any, route: Any) -> Questions:
        asked = super().at_calls(call, route)
        return replace(asked, shared_key=asked.shared_key + 1)


class _RoundsHalfUp(Measuring):
    """Measures latencies a tiny bit too long."""

    def answer(self, questions: Questions) -> Stamps:
        stamps = super().answer(questions)
        return replace(stamps, latency_ms=stamps.latency_ms * (1 + 1e-8))


class _NeverCondemns(Measuring):
    """Takes every route as capable of tools."""

    def answer(self, questions: Questions) -> Stamps:
        stamps = super().answer(questions)
        return replace(stamps, capable=np.ones_like(stamps.capable))


@pytest.fixture(scope="module")
def edges(ledger_of: Any, attempt: Any, call: Any) -> timeline.Timeline:
    """Silent attempts exactly at the edges of the windows of decisions at 10, 20 and 30 s."""
    rows = [attempt(n, ts, ok=n % 3 > 0, latency_ms=100.0 + n, tools_requested=True) for n, ts in _EDGES]
    settings_ledger = ledger_of(attempts=rows, calls=[call(n, n * 10_000) for n in (1, 2, 3)])
    return timeline.build(settings_ledger)


_EDGES = tuple(
    enumerate((4_999, 5_000, 9_999, 10_000, 10_001, 14_999, 15_000, 19_999, 20_000, 25_000, 30_000), start=1)
)
_EDGE_SETTINGS = Settings(
    reliability=replace(PRODUCTION_NOW.reliability, rule=audit_room.Window(5_000)),
    latency=replace(PRODUCTION_NOW.latency, rule=audit_room.Window(5_000)),
    tools=replace(PRODUCTION_NOW.tools, rule=audit_room.ToolsWindow(2, 5_000)),
)


def audit_with(kind: type[Measuring], edges: timeline.Timeline) -> Audit:
    """Audit all three decisions with an engine of that kind."""
    return audit(kind(edges, _EDGE_SETTINGS), np.arange(3, dtype=np.int64))


def test_the_audit_accepts_the_engine_at_every_edge(edges: timeline.Timeline) -> None:
    """Lower edge included, upper edge excluded: the engine and the SQL agree on attempts that lie exactly there."""
    assert audit_with(Measuring, edges).mismatches == []


@pytest.mark.parametrize(
    ("wrong", "field"),
    [(_OffByOneMs, "count"), (_SeesItsOwnInstant, "count"), (_RoundsHalfUp, "mean"), (_NeverCondemns, "capable")],
)
def test_the_audit_catches_a_wrong_engine(edges: timeline.Timeline, wrong: type[Measuring], field: str) -> None:
    """A window off by 1 ms, a row visible at its own instant, a mean off by 1e-8, a missed verdict: all are caught."""
    found = audit_with(wrong, edges)
    assert found.mismatches
    assert any(f": {field} is " in mismatch for mismatch in found.mismatches)
    assert not found.passed


def found_wrong(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    """Return which values of one route at one decision are mismatches; what is not given is neutral."""
    where = {"number": [0], "route": ["a|b|"]}
    engine, production = (
        pl.DataFrame(where | {name: [value] for name, value in (audit_room._NEUTRAL | one).items()}, schema=_SIDE)
        for one in (ours, theirs)
    )
    sentences = audit_room._mismatches(audit_room._side_by_side(engine, production), [7])
    assert all(sentence.startswith("call 7, route a|b|: ") for sentence in sentences)
    return {sentence.split(": ")[1].split(" is ")[0] for sentence in sentences}


_SIDE = {"number": pl.Int64, "route": pl.String, "count": pl.Int64, "rate": pl.Float64, "latency_count": pl.Int64}
_SIDE |= {"mean": pl.Float64, "latency_ms": pl.Float64, "capable": pl.Boolean}


@pytest.mark.parametrize(
    ("ours", "theirs", "wrong"),
    [
        ({"mean": 2.5, "latency_ms": 2.0}, {"mean": 2.5, "latency_ms": 3.0}, set()),
        ({"mean": 2.4999, "latency_ms": 2.0}, {"mean": 2.4999, "latency_ms": 3.0}, {"latency_ms"}),
        ({"mean": 2.5, "latency_ms": 2.0}, {"mean": 2.5}, {"latency_ms"}),
        ({"mean": None}, {"mean": 1.0}, {"mean"}),
        ({"mean": 1.0}, {"mean": 1.0 + 1e-10}, set()),
        ({"mean": 1.0}, {"mean": 1.0 + 1e-8}, {"mean"}),
        ({"rate": 0.1 + 0.2}, {"rate": 0.3}, {"rate"}),
        ({"rate": None}, {"rate": 0.3}, {"rate"}),
        ({"count": 3, "latency_count": 2}, {"count": 2, "latency_count": 3}, {"count", "latency_count"}),
        ({"capable": True}, {"capable": False}, {"capable"}),
    ],
)
def test_what_is_a_mismatch(ours: dict[str, Any], theirs: dict[str, Any], wrong: set[str]) -> None:
    """All is exact but means, to 1e-9; an integer may differ where the mean is within that of a half, not lack."""
    assert found_wrong(ours, theirs) == wrong


def test_a_route_that_only_one_side_knows_is_compared_with_nothing() -> None:
    """No attempts and capable: whoever says otherwise of a route unknown to the other is a mismatch."""
    engine, production = (
        pl.DataFrame({"number": 0, "route": route} | audit_room._NEUTRAL | {"count": count}, schema=_SIDE)
        for route, count in (("known", 0), ("other", 1))
    )
    both = audit_room._side_by_side(engine, production)
    assert audit_room._mismatches(both, [7]) == ["call 7, route other: count is 0 in the engine, 1 in production's SQL"]


def test_a_preset_without_queries_is_audited_on_what_it_saw() -> None:
    """An EMA in process has no query, so production's window stands in; a plain window is audited as it is."""
    assert audited(PRODUCTION_BEFORE).reliability == PRODUCTION_NOW.reliability
    shorter = replace(PRODUCTION_NOW, reliability=replace(PRODUCTION_NOW.reliability, rule=audit_room.Window(300_000)))
    assert audited(shorter).reliability.rule == audit_room.Window(300_000)


def test_excluded_kinds_and_failed_tools_are_audited(small_world: Ledger) -> None:
    """Windows that leave error kinds out, or failed attempts out of the tools rule, are checked by the same SQL."""
    kinds = ("rate_limit", "server_error")
    settings = replace(
        PRODUCTION_NOW,
        reliability=replace(PRODUCTION_NOW.reliability, exclude_kinds=kinds),
        tools=replace(PRODUCTION_NOW.tools, failed="excluded", rule=audit_room.ToolsWindow(2, 600_000)),
    )
    assert audited(settings).reliability.exclude_kinds == kinds
    axis = timeline.build(small_world)
    plain, other = Measuring(axis, PRODUCTION_NOW), Measuring(axis, settings)
    assert audit(other, np.arange(0, 150, 4)).mismatches == []
    every = np.repeat(np.arange(150), 3), np.tile(np.arange(3), 150)
    assert (plain.answer(plain.at_calls(*every)).count != other.answer(other.at_calls(*every)).count).any()


def test_a_failed_reading_is_excluded_and_costs_nothing_else(small_world: Ledger) -> None:
    """One call whose evidence was unavailable is excluded by name; all others keep their recorded visibility."""
    hit = pl.col("id") == 75
    frame = small_world.calls.with_columns(
        evidence_state=pl.when(hit).then(pl.lit("unavailable")).otherwise("evidence_state"),
        evidence_snapshot=pl.when(hit).then(None).otherwise("evidence_snapshot"),
    )
    run = checked(replace(small_world, calls=frame))
    assert run.replayed[0].visibility == "recorded"
    assert run.reproduction.excluded == {"evidence unavailable": 1}
    assert (run.reproduction.agreed, run.reproduction.compared) == (149, 149)
    assert run.replayed[0].audit.of_decisions == 149
    assert run.passed


def test_a_failed_reading_is_never_audited_even_where_it_flips(small_world: Ledger) -> None:
    """In a sampled audit, contested calls are preferred; one that read nothing is left out all the same."""
    frame = small_world.calls.with_columns(
        evidence_state=pl.when(pl.col("id") % 5 == 0).then(pl.lit("unavailable")).otherwise("evidence_state")
    )
    measuring = Measuring(timeline.build(replace(small_world, calls=frame)), PRODUCTION_NOW)
    everything = np.arange(150)
    result = audit(measuring, everything, flips=everything, sample=60, all_up_to=60)
    assert (result.mismatches, result.of_decisions) == ([], 120)
    assert result.decisions == pytest.approx(60, abs=10)


def test_a_crowd_is_told_what_each_is_told_alone(small_world: Ledger) -> None:
    """Production's query over many decisions at once says of each what it says where it alone is shown the ledger."""
    measuring = Measuring(timeline.build(small_world), PRODUCTION_NOW)
    chosen = np.arange(0, 150, 7, dtype=np.int64)
    with Shadow(measuring) as shadow, Crowd(measuring, chosen, 3_600_000) as crowd:
        (batch,) = crowd.batches()
        said = crowd.ask("route_stats", since_ms=-900_000, until_ms=crowd.until_ms)
        assert batch == chosen.tolist()
        for number, call in enumerate(batch):
            until_ms = shadow.see_call(call)
            alone = shadow.frame("route_stats", since_ms=int(measuring.evidence_ms[call]) - 900_000, until_ms=until_ms)
            assert_frame_equal(said.filter(number=number).select(alone.columns), alone, abs_tol=0, rel_tol=1e-12)


def test_a_part_of_a_ledger_has_its_share_of_the_sample(small_world: Ledger) -> None:
    """A quota of a few decisions still holds the first and the last; of none at all, these two."""
    measuring = Measuring(timeline.build(small_world), PRODUCTION_NOW)
    everything = np.arange(150, dtype=np.int64)
    assert audit_room._sample(measuring, everything, np.array([70, 71]), 7, 0).tolist() == [0, 70, 71, 74, 149]
    assert audit_room._sample(measuring, everything, np.array([70, 71]), 0, 0).tolist() == [0, 149]
    assert audit(measuring, everything, sample=10, all_up_to=0).decisions <= 10
    assert audit(measuring, everything, sample=10, all_up_to=150).decisions == 150


def test_a_sampled_audit_holds_first_last_flips_and_empty_windows(small_world: Ledger) -> None:
    """500 decisions at most: the first and last, the contested ones, those with nothing in any window."""
    measuring = Measuring(timeline.build(small_world), PRODUCTION_NOW)
    many = np.tile(np.arange(150, dtype=np.int64), 20)[:2_001]
    picked = audit_room._sample(measuring, many, np.array([5, 17, 140]), 500, 2_000).tolist()
    assert {0, int(many[-1]), 5, 17, 140} <= set(picked)
    assert len(picked) <= 500


@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan")])
def test_latencies_that_are_no_numbers_leave_no_trace_behind(
    ledger_of: Any, attempt: Any, call: Any, odd: float
) -> None:
    """While such a latency is in the window there is no latency stamp, as in production; after it all is as before."""
    rows = [attempt(1, 1_000, latency_ms=100.0), attempt(2, 2_000, latency_ms=odd), attempt(3, 8_000, latency_ms=300.0)]
    axis = timeline.build(ledger_of(attempts=rows, calls=[call(1, 1_500), call(2, 6_000), call(3, 9_000)]))
    measuring = Measuring(axis, _EDGE_SETTINGS)
    stamps = measuring.answer(measuring.at_calls(np.arange(3), np.zeros(3, dtype=np.int64)))
    assert [None if x != x else x for x in stamps.stamped_latency_ms] == [100.0, None, 300.0]
    assert stamps.latency_count.tolist() == [1, 2, 1]
    assert audit(measuring, np.arange(3)).mismatches == []


def test_negative_latencies_are_averaged_as_production_does(ledger_of: Any, attempt: Any, call: Any) -> None:
    """A clock that went back gives negative latencies; the SQL averages them, and so does the engine."""
    rows = [attempt(1, 1_000, latency_ms=-3.0), attempt(2, 2_000, latency_ms=2.0)]
    axis = timeline.build(ledger_of(attempts=rows, calls=[call(1, 3_000)]))
    measuring = Measuring(axis, PRODUCTION_NOW)
    stamps = measuring.answer(measuring.at_calls(np.array([0]), np.array([0])))
    assert stamps.latency_ms.tolist() == [-0.5]
    assert stamps.stamped_latency_ms.tolist() == [0.0]
    assert audit(measuring, np.array([0])).mismatches == []
