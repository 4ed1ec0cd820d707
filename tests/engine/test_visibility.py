"""Who sees what: recorded snapshots, write lags, and ledgers that have the one for some rows and not for others."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay import engine, timeline
from replay.audit import audit
from replay.errors import ReplayError
from replay.estimators import ToolsNever, Window
from replay.ledger.load import Ledger
from replay.ledger.rows import AttemptRow, CallRow
from replay.measuring import Measuring, see_alike
from replay.settings import PRODUCTION_NOW, Measure, Settings, Tools
from replay.snapshots import Snapshot
from replay.timeline import lag_free, visibility

SMALL = Settings(reliability=Measure(rule=Window(60_000)), latency=Measure(rule=Window(60_000)))


@pytest.mark.parametrize(
    ("txid", "seen"),
    [(9, True), (10, True), (11, False), (12, False), (13, True), (14, False), (15, False)],
)
def test_a_snapshot_sees_what_had_finished(txid: int, seen: bool) -> None:
    """Below xmin always; from xmax on never; between them unless in progress."""
    assert Snapshot.parse("11:14:11,12").sees(txid) is seen


def test_a_snapshot_without_running_transactions() -> None:
    """With xmin = xmax everything below is visible and nothing else."""
    snapshot = Snapshot.parse("7:7:")
    assert [txid for txid in range(10) if snapshot.sees(txid)] == list(range(7))


@pytest.mark.parametrize(
    "text", ["", "abc", "1:2", "1:2:3:4", "1:2:x", "1:2:3,", "-1:2:", "1:2:,3", "99999999999999999999:1:"]
)
def test_a_malformed_snapshot_is_refused(text: str) -> None:
    """A text that is no snapshot is a ReplayError that shows it, never a traceback."""
    with pytest.raises(ReplayError, match="expected xmin:xmax:xip"):
        Snapshot.parse(text)


@dataclass
class Cluster:
    """What a random cluster wrote: calls and attempts, the visible attempt ids of each call, and its clock skews."""

    calls: list[CallRow]
    attempts: list[AttemptRow]
    saw: dict[int, set[int]]


def cluster(seed: int, *, unnumbered: float = 0.0) -> Cluster:
    """Simulate overlapping transactions that commit out of order, read by replicas whose clocks disagree.

    The truth is kept beside the snapshots: at every read, the rows whose transaction had committed by then.
    """
    rng = random.Random(seed)
    skew = {name: rng.randrange(-3_000, 3_000) for name in "abc"}
    next_txid, now = 10, 100_000
    running: dict[int, int] = {}  # txid → attempt id
    committed: set[int] = set()
    made = Cluster([], [], {})
    for _ in range(120):
        now += rng.randrange(0, 700)
        act = rng.random()
        if act < 0.45:  # an attempt ended on some replica; its row is being written
            row_id = len(made.attempts) + 1
            ended = now - rng.choice([0, 0, 50, 5_000]) + skew[rng.choice("abc")]
            route = rng.choice(["p", "q"])
            made.attempts.append(
                AttemptRow(
                    id=row_id, ts=ended, ok=rng.random() < 0.7, provider_id=route, model_family="m", served_by=route,
                    latency_ms=float(rng.randrange(1, 900)), tools_requested=rng.random() < 0.5, txid=next_txid,
                )
            )  # fmt: skip
            running[next_txid] = row_id
            next_txid += 1
        elif act < 0.75 and running:  # any of the open transactions commits, not the oldest first
            txid = rng.choice(sorted(running))
            committed.add(running.pop(txid))
        else:  # a decision reads in one snapshot, by its own clock
            evidence = now + skew[rng.choice("abc")]
            xmin = min(running, default=next_txid)
            text = f"{xmin}:{next_txid}:{','.join(map(str, sorted(running)))}"
            call_id = len(made.calls) + 1
            made.calls.append(
                CallRow(
                    id=call_id, ts=evidence // 1000 + 1, decided_at=evidence, evidence_at=evidence,
                    evidence_snapshot=text, evidence_state="ok",
                )
            )  # fmt: skip
            made.saw[call_id] = set(committed)
    if unnumbered:
        made.attempts = [replace(row, txid=None) if rng.random() < unnumbered else row for row in made.attempts]
    return made


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**9))
def test_recorded_keys_say_exactly_what_each_decision_saw(ledger_of: Any, seed: int) -> None:
    """For every decision and row, "key of the row < key of the decision" is what had committed when it read."""
    made = cluster(seed)
    if not made.calls or not made.attempts:
        return
    axis = timeline.build(ledger_of(calls=made.calls, attempts=made.attempts))
    found = visibility(axis, SMALL)
    assert found.kind == "recorded"
    for call, call_id in enumerate(axis.calls.id.tolist()):
        seen = {int(row) for row in axis.attempts.id[found.attempts < found.calls[call]]}
        assert seen == made.saw[call_id]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unnumbered", [0.0, 0.3, 0.9])
def test_engine_and_sql_agree_on_any_cluster(ledger_of: Any, seed: int, unnumbered: float) -> None:
    """With late commits, skewed clocks and rows without a transaction id, both ways of knowing who saw what agree."""
    made = cluster(seed, unnumbered=unnumbered)
    axis = timeline.build(ledger_of(calls=made.calls, attempts=made.attempts))
    for lag_ms in ((0,), (0, 400, 3_000)) if unnumbered else ((0,),):
        measuring = Measuring(axis, replace(SMALL, lag_ms=lag_ms))
        assert measuring.visibility.kind == "recorded"
        assert audit(measuring, np.arange(len(axis.calls))).mismatches == []


@pytest.mark.parametrize("seed", range(4))
def test_old_decisions_go_by_time_and_new_ones_by_their_snapshot(ledger_of: Any, seed: int) -> None:
    """A ledger upgraded in place: the first half has neither snapshots nor transaction ids; the second is exact."""
    made = cluster(seed)
    half = len(made.calls) // 2
    turn = made.calls[half]
    old_calls = [replace(row, evidence_snapshot=None, evidence_state=None) for row in made.calls[:half]]
    old = made.saw[half]  # what had committed before the upgrade has no transaction id
    attempts = [
        replace(row, txid=None) if row.id in old and row.ts < turn.evidence_at else row for row in made.attempts
    ]
    axis = timeline.build(ledger_of(calls=[*old_calls, *made.calls[half:]], attempts=attempts))
    measuring = Measuring(axis, SMALL)
    found = measuring.visibility
    assert found.kind == "recorded"
    numbered = {row.id for row in attempts if row.txid is not None}
    for call, call_id in enumerate(axis.calls.id.tolist()):
        seen = {int(row) for row in axis.attempts.id[found.attempts < found.calls[call]]}
        if call_id > half:
            assert seen & numbered == made.saw[call_id] & numbered
        elif axis.calls.evidence_ms[call] < min(row.evidence_at for row in made.calls[half:]):
            by_time = {row.id for row in attempts if row.ts < axis.calls.evidence_ms[call]}
            assert seen <= by_time
            assert by_time - seen <= numbered
            assert seen, "an old decision is not blind"
    assert audit(measuring, np.arange(len(axis.calls))).mismatches == []


def stamped(ledger: Ledger, chosen: Settings) -> list[tuple[int, float | None]]:
    """Return (count, rate) of the first route at every decision."""
    measuring = Measuring(timeline.build(ledger), chosen)
    calls = np.arange(len(measuring.timeline.calls))
    stamps = measuring.answer(measuring.at_calls(calls, np.zeros_like(calls)))
    rates = [None if rate != rate else rate for rate in stamps.reliability.tolist()]
    return list(zip(stamps.count.tolist(), rates, strict=True))


def test_lagged_visibility_is_strict_and_the_window_includes_its_edge(ledger_of: Any, attempt: Any, call: Any) -> None:
    """An attempt that ended at the evidence instant is not seen; one exactly a window before it is."""
    ledger = ledger_of(
        attempts=[attempt(1, 10_000), attempt(2, 15_000, ok=False)],
        calls=[call(n, at) for n, at in enumerate((10_000, 10_001, 15_000, 15_001, 70_000, 70_001, 75_000, 75_001))],
    )
    expected = [(0, None), (1, 1.0), (1, 1.0), (2, 0.5), (2, 0.5), (1, 0.0), (1, 0.0), (0, None)]
    assert stamped(ledger, SMALL) == expected


def test_a_write_lag_delays_a_row_but_not_its_window(ledger_of: Any, attempt: Any, call: Any) -> None:
    """With 2 s of lag a row is seen only after ts + 2 s, and leaves the window by its ts all the same."""
    ledger = ledger_of(
        attempts=[attempt(1, 10_000)], calls=[call(n, at) for n, at in enumerate((12_000, 12_001, 70_000, 70_001))]
    )
    assert stamped(ledger, replace(SMALL, lag_ms=(2_000,))) == [(0, None), (1, 1.0), (1, 1.0), (0, None)]


def test_a_row_older_than_the_window_when_it_becomes_visible_never_enters(
    ledger_of: Any, attempt: Any, call: Any
) -> None:
    """With a lag longer than the window nothing is ever measured."""
    ledger = ledger_of(attempts=[attempt(1, 10_000)], calls=[call(n, 10_000 + n * 10_000) for n in range(1, 20)])
    assert set(stamped(ledger, replace(SMALL, lag_ms=(61_000,)))) == {(0, None)}


def test_drawn_lags_depend_on_seed_and_row_alone(ledger_of: Any, attempt: Any) -> None:
    """The same rows draw the same lags beside other rows; another seed draws others; every choice is drawn."""
    rows = [attempt(n, 1_000 * n) for n in range(1, 200)]
    chosen = replace(SMALL, lag_ms=(0, 100, 5_000))

    def lags(rows: list[AttemptRow], chosen: Settings) -> dict[int, int]:
        axis = timeline.build(ledger_of(attempts=rows))
        drawn = visibility(axis, chosen).visible_ms - axis.attempts.ts_ms
        return dict(zip(axis.attempts.id.tolist(), drawn.tolist(), strict=True))

    whole = lags(rows, chosen)
    assert set(whole.values()) == {0, 100, 5_000}
    some = lags(rows[50:120:3], chosen)
    assert some == {row: whole[row] for row in some}
    assert lags(rows, replace(chosen, seed=1)) != whole


def test_decisions_that_hang_on_the_lag_are_counted(small_world: Ledger) -> None:
    """Recorded visibility with up to 30 s of lag turns decisions; where no lag is known or assumed, none is claimed."""
    until_ms = int(small_world.calls.sort("decided_at")["decided_at"][60])
    run = engine.run(small_world, [PRODUCTION_NOW], until_ms=until_ms)
    flips = run.replayed[0].lag_flips
    assert flips
    lagged = replace(PRODUCTION_NOW, name="lagged", visibility="lagged")
    assumed = replace(lagged, name="assumed", lag_ms=(30_000,))
    at_once = engine.run(small_world, [lagged, assumed], until_ms=until_ms)
    assert [one.visibility for one in at_once.replayed] == ["lagged", "lagged"]
    assert at_once.replayed[0].lag_flips is None
    assert at_once.replayed[1].lag_flips
    differ = (at_once.replayed[0].decisions["chosen_route"] != run.decisions["chosen_route"]).sum()
    assert differ == len(flips)


def test_without_snapshots_visibility_is_lagged_and_reproduction_is_not_claimed(small_world: Ledger) -> None:
    """A ledger without snapshots cannot show reproduction: every call is excluded, by name."""
    bare = replace(small_world, calls=small_world.calls.with_columns(evidence_snapshot=pl.lit(None, dtype=pl.String)))
    until_ms = int(small_world.calls.sort("decided_at")["decided_at"][20])
    run = engine.run(bare, [PRODUCTION_NOW], until_ms=until_ms)
    assert run.replayed[0].visibility == "lagged"
    assert run.reproduction.kind == "final-route agreement"
    assert run.reproduction.incomplete == {"no evidence snapshot": 20}


def test_evidence_may_be_read_after_or_before_the_decision(ledger_of: Any, attempt: Any, call: Any) -> None:
    """Windows hang on evidence_at alone, whether it lies before decided_at (a memo) or, oddly, after it."""
    ledger = ledger_of(
        attempts=[attempt(1, 10_000), attempt(2, 20_000, ok=False)],
        calls=[call(1, 30_000, evidence_at=15_000), call(2, 12_000, evidence_at=25_000)],
    )
    assert sorted(stamped(ledger, SMALL), key=str) == [(1, 1.0), (2, 0.5)]


def test_never_stamping_needs_no_visibility(ledger_of: Any, attempt: Any, call: Any) -> None:
    """The rule "never" keeps every route capable, whatever was asked and not answered."""
    rows = [attempt(n, n, tools_requested=True, tool_calls_emitted=False) for n in range(1, 100)]
    measuring = Measuring(
        timeline.build(ledger_of(attempts=rows, calls=[call(1, 5_000)])), replace(SMALL, tools=Tools(rule=ToolsNever()))
    )
    assert measuring.answer(measuring.at_calls(np.array([0]), np.array([0]))).capable.tolist() == [True]


@pytest.mark.parametrize("memo_ms", [None, 30_000])
def test_who_sees_the_same_under_two_visibilities(small_world: Ledger, memo_ms: int | None) -> None:
    """For every decision, the sets of attempts are compared one by one; some differ, some do not."""
    axis, settings = timeline.build(small_world), replace(SMALL, memo_ms=memo_ms)
    one, other = Measuring(axis, settings), Measuring(axis, lag_free(settings))
    calls = np.arange(len(axis.calls))
    ours, theirs = (
        [set(np.flatnonzero(its.visibility.attempts < its.evidence_key[call])) for call in calls]
        for its in (one, other)
    )
    alike = see_alike(one, other, calls)
    assert alike.tolist() == [mine == other for mine, other in zip(ours, theirs, strict=True)]
    assert alike.any()
    assert not alike.all()


def test_decisions_that_see_the_same_do_not_hang_on_the_lag(small_world: Ledger) -> None:
    """The flips are those that deciding everything again finds."""
    at_once = replace(PRODUCTION_NOW, name="at once", visibility="lagged", lag_ms=(0,))
    run = engine.run(small_world, [PRODUCTION_NOW, at_once])
    first, again = (one.decisions for one in run.replayed)
    differ = first.filter(first["chosen_route"].ne_missing(again["chosen_route"]))
    assert run.replayed[0].lag_flips == differ["call_id"].to_list()
    assert len(differ) > 0
