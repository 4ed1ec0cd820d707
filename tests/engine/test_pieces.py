"""A long ledger in pieces, against the same ledger whole: nothing may differ but which decisions are audited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from replay import engine, pieces, record
from replay.bench.synthetic import shipped, write_ledger
from replay.core import Policy, admit
from replay.engine import Run
from replay.errors import ReplayError
from replay.estimators import Quantile, ToolsWindow, Wilson, Window
from replay.ledger.folder import fill, frames
from replay.ledger.lacks import lacks
from replay.ledger.load import Ledger, load_ledger
from replay.ledger.memory import MemoryLedger
from replay.ledger.mirror import open_mirror
from replay.ledger.spans import extent
from replay.pieces import replay_in_pieces, replay_mirror
from replay.settings import PRODUCTION_BEFORE, Measure, Prices, Settings, Tools
from replay.virtual import Luck
from replay.world import Life, RouteModel, Scenario, Simulation

CALLS = 500
"""Calls of a world: some three hours of them."""

A_PIECE = 60

SHORT = Settings(
    name="short",
    reliability=Measure(rule=Window(120_000)),
    latency=Measure(rule=Window(60_000)),
    tools=Tools(rule=ToolsWindow(2, 180_000)),
)


class Rows:
    """A sink that keeps the rows."""

    def __init__(self) -> None:
        self.decided: list[pa.Table] = []
        self.predicted: list[pa.Table] = []

    def decisions(self, rows: pa.Table) -> None:
        """Keep some decisions."""
        self.decided.append(rows)

    def predictions(self, rows: pa.Table) -> None:
        """Keep some predictions."""
        self.predicted.append(rows)

    def restart(self) -> None:
        """Forget them."""
        self.decided, self.predicted = [], []

    def frames(self) -> list[pl.DataFrame]:
        """Return all decisions and all predictions."""
        return [pl.concat([plain(rows) for rows in some]) for some in (self.decided, self.predicted)]


def plain(rows: pa.Table) -> pl.DataFrame:
    """Rows with texts as such."""
    frame = pl.DataFrame(pl.from_arrow(rows))
    return frame.with_columns(pl.col(pl.Enum, pl.Categorical).cast(pl.String))


@pytest.fixture
def mirror(tmp_path: Path) -> Callable[[Ledger], Path]:
    """Write a ledger into a mirror file."""

    def write(ledger: Ledger) -> Path:
        path = tmp_path / "ledger.duckdb"
        with open_mirror(path, write=True) as connection:
            fill(connection, frames(ledger))
        return path

    return write


@pytest.fixture(autouse=True)
def _few_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the decisions is audited, as every audited one takes milliseconds."""
    monkeypatch.setattr(pieces, "SAMPLE", CALLS // 5)


@pytest.fixture(scope="module")
def long_world(world: Callable[..., Ledger]) -> Ledger:
    """Three hours of two processes, one of which is replaced, over a route that fails for an hour of it."""
    lives = (
        Life(replica="a.1", slot=0, start_ms=0),
        Life(replica="b.1", slot=1, start_ms=0),
        Life(replica="a.2", slot=0, start_ms=1_005_000_000),
    )
    return world(settings=SHORT, calls=CALLS, lives=lives, **outage())


def outage() -> dict[str, Any]:
    """Routes of which one fails, for good, from the second hour on, so that its breaker opens again and again."""
    failures = (("server_error", 8.0), ("rate_limit", 1.0))
    return {
        "routes": {
            "p|m|p": RouteModel(success_rate=0.55, failures=failures),
            "q|m|q": RouteModel(success_rate=0.8),
            "r|m|r": RouteModel(success_rate=0.02, failures=failures),
        }
    }


def same(whole: Run, path: Path, settings: Settings, calls_per_piece: int = A_PIECE, **more: Any) -> int:
    """Hold the pieces against the whole; returns how many pieces there were."""
    rows = Rows()
    found = replay_in_pieces(path, settings, rows, calls_per_piece=calls_per_piece, **more)
    decisions, predictions = rows.frames()
    assert decisions.equals(whole.decisions)
    assert predictions.equals(whole.predictions)
    assert found.run.reproduction == whole.reproduction
    assert found.run.warnings == whole.warnings
    (ours,), (theirs,) = found.run.replayed, whole.replayed
    assert (ours.lag_flips, ours.visibility) == (theirs.lag_flips, theirs.visibility)
    assert (ours.decided, ours.undecided, ours.predicted) == (theirs.decided, theirs.undecided, theirs.predicted)
    assert ours.audit.mismatches == []
    assert ours.audit.decisions > 0
    return found.pieces


OTHERS = {
    "short": SHORT,
    "lagged": replace(SHORT, visibility="lagged", lag_ms=(0, 5_000, 40_000)),
    "in process": replace(
        SHORT,
        reliability=Measure(rule=Wilson(window_ms=90_000), state="process"),
        latency=Measure(rule=Quantile(q=0.9, window_ms=200_000), failed_latency_ms=5_000.0),
    ),
    "three processes": replace(SHORT, replicas=3, restarts=(1_002_000_000, 1_007_000_000)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_pieces_give_the_whole(long_world: Ledger, mirror: Callable[[Ledger], Path], name: str) -> None:
    """Decisions, predictions, reproduction, flips, warnings and identity, under shared, lagged and own evidence."""
    settings = OTHERS[name]
    path, whole = mirror(long_world), engine.run(long_world, [settings])
    assert same(whole, path, settings) > 4
    assert replay_in_pieces(path, settings, Rows(), calls_per_piece=A_PIECE).identity == long_world.identity


def test_where_it_is_cut_does_not_matter(long_world: Ledger, mirror: Callable[[Ledger], Path]) -> None:
    """Pieces of other sizes give the same."""
    path, whole = mirror(long_world), engine.run(long_world, [SHORT])
    assert [same(whole, path, SHORT, calls_per_piece) for calls_per_piece in (333, 100)] == [2, 6]


class Leaky(MemoryLedger):
    """A ledger whose queue was full for one row in fifty."""

    def _enqueue(self, row: Any) -> None:
        if Luck(5).draw(row.replica, row.replica_seq) > 1 / 50:
            super()._enqueue(row)


@pytest.mark.parametrize("seed", range(3))
def test_doubt_is_carried_on(
    ledger_of: Callable[..., Ledger],
    scenario: Callable[..., Scenario],
    measured_policy: Policy,
    mirror: Callable[[Ledger], Path],
    seed: int,
) -> None:
    """Numbers that are missing are counted once each, and what they throw doubt on lasts into later pieces."""
    disabling = ["override", ["always", {"action": "next_candidate"}], "rate_limit", {"action": "disable_provider"}]
    policy = admit([*measured_policy.term[:5], disabling])
    simulation = Simulation(scenario(calls=CALLS, **outage()), seed, SHORT, policy)
    simulation.ledger = Leaky(SHORT, simulation.world)
    calls, attempts = simulation.run().rows()
    rows = {"calls": calls, "attempts": attempts, "offers": simulation.scenario.offers}
    ledger = ledger_of(**rows, policies=[policy], settings=[SHORT])
    whole = engine.run(ledger, [SHORT])
    assert whole.missing > 0
    assert 0 < whole.reproduction.excluded["rows of its process are missing"] < CALLS
    assert same(whole, mirror(ledger), SHORT) > 4


def test_offers_change_within_pieces_and_between(tmp_path: Path) -> None:
    """Nine hours over sixty candidates whose prices change three hundred times."""
    path = tmp_path / "ledger.duckdb"
    write_ledger(path, 12_000, 60, shipped("default"))
    with open_mirror(path) as connection:
        ledger = load_ledger(connection)
    for prices in (Prices(), Prices(mode="scaled", scale={"antseed": 0.5})):
        settings = replace(SHORT, prices=prices)
        assert same(engine.run(ledger, [settings]), path, settings, 2_000) > 4


def test_the_interpreter_goes_in_pieces_too(long_world: Ledger, mirror: Callable[[Ledger], Path]) -> None:
    """Which core decides has no part in it."""
    whole = engine.run(long_world, [SHORT], core="interpreter")
    assert same(whole, mirror(long_world), SHORT, 200, core="interpreter") > 1


def test_readers_without_a_snapshot_go_by_the_latest_before_them(
    long_world: Ledger, mirror: Callable[[Ledger], Path]
) -> None:
    """Snapshots are missing here and there, and in the end altogether."""
    known = (pl.col("id") < 300) & (pl.col("id") % 7 != 0)
    ledger = other(long_world, "calls", evidence_snapshot=pl.when(known).then(pl.col("evidence_snapshot")))
    assert same(engine.run(ledger, [SHORT]), mirror(ledger), SHORT) > 4


def other(ledger: Ledger, table: str, **columns: pl.Expr) -> Ledger:
    """The ledger with some columns of a table changed."""
    return replace(ledger, **{table: getattr(ledger, table).with_columns(**columns)})


FIRST_ID = pl.col("id") == pl.col("id").min()

REFUSED: dict[str, tuple[Settings, Callable[[Ledger], Ledger], str]] = {
    "a fold": (PRODUCTION_BEFORE, lambda ledger: ledger, "remembers everything"),
    "a memo": (replace(SHORT, memo_ms=2_000), lambda ledger: ledger, "reuses stamps"),
    "long windows": (replace(SHORT, tools=Tools(rule=ToolsWindow(2, 10**8))), lambda ledger: ledger, "over much of it"),
    "no offers": (SHORT, lambda ledger: replace(ledger, offers=ledger.offers.clear()), "no offers"),
    "txids of some": (
        SHORT,
        lambda ledger: other(ledger, "attempts", txid=pl.when(FIRST_ID).then(None).otherwise(pl.col("txid"))),
        "some attempts have a transaction id",
    ),
    "a row seen before its end": (
        SHORT,
        lambda ledger: other(ledger, "attempts", ts=pl.when(FIRST_ID).then(pl.col("ts") + 3_600_000).otherwise("ts")),
        "",
    ),
    "one id twice": (
        SHORT,
        lambda ledger: other(
            ledger,
            "calls",
            usage_event_id=pl.when(FIRST_ID).then(pl.lit("c400")).otherwise("usage_event_id"),
        ),
        "",
    ),
    "an attempt far from its call": (
        SHORT,
        lambda ledger: other(
            ledger, "attempts", request_id=pl.when(FIRST_ID).then(pl.lit("c400")).otherwise("request_id")
        ),
        "far from its call",
    ),
    "another order than time": (
        SHORT,
        lambda ledger: other(
            ledger, "attempts", replica_seq=pl.when(FIRST_ID).then(100_000).otherwise(pl.col("replica_seq"))
        ),
        "another order than that of time",
    ),
    "numbers of some": (
        SHORT,
        lambda ledger: other(ledger, "attempts", replica_seq=pl.when(FIRST_ID).then(None).otherwise("replica_seq")),
        "",
    ),
    "snapshots from some time on": (
        SHORT,
        lambda ledger: other(
            ledger, "calls", evidence_snapshot=pl.when(pl.col("id") > 200).then(pl.col("evidence_snapshot"))
        ),
        "no snapshots",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_pieces_cannot_do_is_done_whole(long_world: Ledger, mirror: Callable[[Ledger], Path], name: str) -> None:
    """It is noticed, at the latest at the end, and the result is that of the whole ledger."""
    settings, change, why = REFUSED[name]
    ledger = change(long_world)
    path, whole, rows = mirror(ledger), engine.run(ledger, [settings], prove=False), Rows()
    found = replay_mirror(path, [settings], rows, calls_per_piece=A_PIECE)
    decisions, predictions = rows.frames()
    assert found.pieces == 1
    assert found.whole is not None
    assert why in found.whole
    assert decisions.equals(whole.decisions)
    assert predictions.equals(whole.predictions)


def test_what_has_to_be_inferred_is_said_alike(long_world: Ledger, mirror: Callable[[Ledger], Path]) -> None:
    """Attempts that name a call which is nowhere are counted while the pieces are read, not by a query."""
    some = pl.col("request_id").is_in(["c7", "c100", "c101", "c480"])
    torn = other(long_world, "attempts", request_id=pl.when(some).then(pl.lit("nobody's")).otherwise("request_id"))
    count, path = len(long_world.attempts.filter(some)), mirror(torn)
    found = replay_mirror(path, [SHORT], Rows(), calls_per_piece=A_PIECE)
    assert found.pieces > 1
    assert f"{count} of {len(torn.attempts):,} attempts name a call that is not in the ledger" in found.inferred
    with open_mirror(path) as connection:
        assert found.inferred == lacks(connection)


def test_what_was_written_in_pieces_gives_way_to_the_whole(
    long_world: Ledger, mirror: Callable[[Ledger], Path], tmp_path: Path
) -> None:
    """A run's folder holds the whole ledger's bytes, though all pieces were written before it came out."""
    settings, change, _ = REFUSED["an attempt far from its call"]
    path = mirror(change(long_world))
    for out, calls_per_piece in (("pieces", A_PIECE), ("whole", CALLS)):
        with record.Writer(tmp_path / out) as writer:
            found = replay_mirror(path, [settings], writer, calls_per_piece=calls_per_piece)
            writer.finish({}, found.run, path)
    for name in ("decisions.parquet", "predictions.parquet"):
        assert (tmp_path / "pieces" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("lacking", "said"), [("attempts", "no attempts"), ("policies", "has a recorded policy")])
def test_what_a_replay_needs_is_asked_for_first(
    long_world: Ledger, mirror: Callable[[Ledger], Path], lacking: str, said: str
) -> None:
    """A long ledger without attempts, or without policies, is refused as a short one is, before anything is written."""
    rows, path = Rows(), mirror(replace(long_world, **{lacking: getattr(long_world, lacking).clear()}))
    with pytest.raises(ReplayError, match=said):
        replay_mirror(path, [SHORT], rows, calls_per_piece=A_PIECE)
    assert rows.decided == []


def test_a_short_ledger_is_replayed_whole_without_a_word(small_world: Ledger, mirror: Callable[[Ledger], Path]) -> None:
    """Nobody needs to know."""
    found = replay_mirror(mirror(small_world), [SHORT], Rows())
    assert (found.pieces, found.whole) == (1, None)


def test_how_far_a_mirror_reaches(mirror_of: Any, call: Any, attempt: Any, tmp_path: Path) -> None:
    """By hand: a call of 2.5 s by its latency, one whose stamps were 700 ms old; an attempt of four seconds."""
    path = mirror_of(
        tmp_path / "m.duckdb",
        calls=[
            replace(call(1, 0), ts=100, decided_at=None, evidence_at=None, latency_ms=2_500.0),
            call(2, 99_900, evidence_at=99_200, ts=100, replica="a", replica_seq=1, evidence_snapshot="1:1:"),
        ],
        attempts=[attempt(1, 50_000, started_at=46_000, txid=5), attempt(2, 60_000, latency_ms=1_000.0)],
    )
    with open_mirror(path) as connection:
        found = extent(connection)
    assert (found.calls, found.attempts, found.offers) == (2, 2, 0)
    assert (found.first_ms, found.last_ms) == (97_500, 99_900)
    assert (found.longest_ms, found.oldest_evidence_ms) == (4_000, 700)
    assert (found.numbered_calls, found.txids, found.snapshots) == (1, 1, 1)
