"""The synthetic ledger keeps the rules that real ones keep, so that what is measured on it is what happens."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from replay import engine
from replay.bench import synthetic
from replay.bench.synthetic import CHANGES, shipped, write_ledger
from replay.errors import ReplayError
from replay.ledger.load import Ledger, load_ledger
from replay.ledger.mirror import open_mirror
from replay.settings import PRODUCTION_NOW

CALLS, CANDIDATES = 3_000, 20


@pytest.fixture(scope="module")
def ledger(mirror: Path) -> Ledger:
    """The small ledger, read."""
    with open_mirror(mirror) as connection:
        return load_ledger(connection)


def test_a_seed_says_all(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same rows, however they are cut into chunks; another seed gives others."""
    monkeypatch.setattr(synthetic, "CHUNK", 1_700)
    identities = []
    for seed in (0, 1):
        write_ledger(tmp_path / f"{seed}.duckdb", CALLS, CANDIDATES, shipped("default"), seed)
        with open_mirror(tmp_path / f"{seed}.duckdb") as connection:
            identities.append(load_ledger(connection).identity)
    assert identities[0] == ledger.identity
    assert identities[1]["calls"]["content"] != ledger.identity["calls"]["content"]


def test_every_replica_numbers_its_events_without_a_gap_in_the_order_of_time(ledger: Ledger) -> None:
    """Decisions and attempt ends of a replica are 1, 2, 3, … by their instants."""
    events = pl.concat(
        [
            ledger.calls.select("replica", "replica_seq", at_ms="decided_at"),
            ledger.attempts.select("replica", "replica_seq", at_ms="ts"),
        ]
    )
    assert events["replica"].n_unique() == synthetic.REPLICAS
    for own in events.sort("replica", "replica_seq").partition_by("replica"):
        assert own["replica_seq"].to_list() == list(range(1, len(own) + 1))
        assert own["at_ms"].is_sorted()


def test_a_snapshot_sees_only_what_had_ended_and_nothing_is_unseen_again(ledger: Ledger) -> None:
    """What a call's snapshot sees ended before its decision; all that ended long before is seen."""
    calls = ledger.calls.select("decided_at", xmax=pl.col("evidence_snapshot").str.split(":").list[1].cast(pl.Int64))
    by_txid = ledger.attempts.group_by("txid").agg(last_ms=pl.col("ts").max()).sort("txid")
    assert by_txid["last_ms"].is_sorted()
    for decided_ms, xmax in calls.sample(200, seed=1).iter_rows():
        seen = ledger.attempts.filter(pl.col("txid") < xmax)
        unseen = ledger.attempts.filter(pl.col("txid") >= xmax)
        assert (seen["ts"] < decided_ms).all()
        assert (unseen["ts"] > decided_ms - 60_000).all()
    assert calls.sort("decided_at")["xmax"].is_sorted()


def test_there_are_as_many_candidates_at_every_instant_half_of_them_of_a_marketplace(ledger: Ledger) -> None:
    """Prices change so many times, and each change ends one offer as it begins the next."""
    offers = ledger.offers
    assert len(offers) == CANDIDATES + CHANGES
    for at_ms in offers["valid_from"].unique():
        open_ = (pl.col("valid_from") <= at_ms) & (pl.col("valid_to").is_null() | (pl.col("valid_to") > at_ms))
        present = offers.filter(open_)
        assert present["position"].sort().to_list() == list(range(CANDIDATES))
        assert (present["tier"] == "marketplace").sum() == CANDIDATES // 2


def test_failures_come_alone_and_in_outages(ledger: Ledger) -> None:
    """Most hours of a route fail now and then; a few fail most of the time."""
    hours = pl.col("ts") // 3_600_000
    rates = ledger.attempts.group_by("served_by", hours).agg(pl.len(), rate=pl.col("ok").mean())
    assert 0.90 < float(ledger.attempts["ok"].cast(pl.Float64).mean() or 0.0) < 0.98
    assert ((rates["len"] >= 8) & (rates["rate"] < 0.6)).any()


def test_a_replay_takes_it_for_a_recorded_ledger(ledger: Ledger) -> None:
    """Visibility is recorded, every call is decided with the recorded policy, and production's SQL agrees."""
    done = engine.run(ledger, [PRODUCTION_NOW], until_ms=int(ledger.calls["decided_at"][80]))
    (one,) = done.replayed
    assert one.visibility == "recorded"
    assert (one.decided, one.undecided, one.interpreted) == (80, 0, None)
    assert (one.audit.decisions, one.audit.mismatches) == (80, [])
    assert one.decisions["policy_id"].unique().to_list() == [shipped("default").identity]
    assert done.reproduction.kind == "final-route agreement"


def test_it_is_only_written_to_a_new_file(mirror: Path) -> None:
    """Two ledgers are never mixed."""
    with pytest.raises(ReplayError, match="expected a new file"):
        write_ledger(mirror, 10, 10, shipped("default"))
