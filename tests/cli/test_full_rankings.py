"""`replay run --full`: every candidate of every decision, beside the first three that every run has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from replay import record
from replay.cli import run_cli
from replay.rankings import RANKINGS

SPAN = ["--since", "2026-03-06T09:00:00Z", "--until", "2026-03-06T10:00:00Z"]
BOTH = ["-s", "production-now", "-s", "production-before"]
PLACED = ("score", "success_rate", "latency_ms", "tools", "price_in", "price_out")


def replayed(mirror: Path, out: Path, *more: str) -> record.StoredRun:
    """Replay an hour of the demo, with whatever else is said."""
    assert run_cli(["run", str(mirror), *BOTH, *SPAN, "-o", str(out), *more]) == 0
    return record.read(out)


@pytest.fixture(scope="module")
def full(demo_mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> record.StoredRun:
    """The hour with its full rankings."""
    return replayed(demo_mirror, tmp_path_factory.mktemp("full") / "run", "--full")


@pytest.fixture(scope="module")
def ranked(full: record.StoredRun) -> pl.DataFrame:
    """Its rankings."""
    assert full.rankings is not None
    return full.rankings.collect()


def test_the_first_three_places_are_those_of_the_decisions(full: record.StoredRun, ranked: pl.DataFrame) -> None:
    """Route, score and stamps of each, to the bit, though another core decided."""
    keys = ["setting", "call_id"]
    for place in (1, 2, 3):
        here = full.decisions.filter(pl.col(f"route_{place}").is_not_null())
        mine = here.select(keys).join(ranked.filter(place=place), on=keys, how="left", maintain_order="left")
        assert mine["route_key"].to_list() == here[f"route_{place}"].to_list()
        for name in PLACED:
            assert mine[name].equals(here[f"{name}_{place}"].alias(name), null_equal=True), (place, name)
        assert np.array_equal(mine["score"].to_numpy().view(np.int64), here[f"score_{place}"].to_numpy().view(np.int64))
    assert len(full.decisions) > 100


def test_counts_and_reasons_are_those_of_the_decisions(full: record.StoredRun, ranked: pl.DataFrame) -> None:
    """Every candidate has one row; rejected ones are counted alike, by reason; places run from 1 without a gap."""
    counted = ranked.group_by("setting", "call_id", maintain_order=True).agg(
        pl.len().alias("candidates"),
        pl.col("reject_reason").count().alias("rejected"),
        pl.col("place").drop_nulls(),
        pl.col("reject_reason").drop_nulls(),
        pl.col("candidate").sort(),
    )
    assert counted.select("setting", "call_id").equals(full.decisions.select("setting", "call_id"))
    for mine, decision in zip(counted.iter_rows(named=True), full.decisions.iter_rows(named=True), strict=True):
        assert (mine["candidates"], mine["rejected"]) == (decision["candidates"], decision["rejected"])
        assert mine["place"] == list(range(1, len(mine["place"]) + 1))
        assert mine["candidate"] == list(range(mine["candidates"]))
        reasons = {name: mine["reject_reason"].count(name) for name in mine["reject_reason"]}
        assert reasons == json.loads(decision["reject_counts"])


def test_a_row_is_ranked_or_rejected_or_neither(full: record.StoredRun, ranked: pl.DataFrame) -> None:
    """A place comes with a score and without a reason; neither means a pin, where one is ranked and nobody rejected."""
    assert ranked.schema == pl.Schema(RANKINGS)
    assert (ranked["place"].is_null() == ranked["score"].is_null()).all()
    assert ranked.filter(pl.col("place").is_not_null() & pl.col("reject_reason").is_not_null()).is_empty()
    left_out = ranked.filter(pl.col("place").is_null() & pl.col("reject_reason").is_null())["call_id"].unique()
    pinned = ranked.filter(pl.col("call_id").is_in(left_out.to_list()), setting="production-now")
    assert len(left_out) > 0
    assert pinned["place"].drop_nulls().to_list() == [1] * len(left_out)
    assert pinned["reject_reason"].is_null().all()


def test_the_bytes_are_the_same_again_and_nothing_else_changes(
    full: record.StoredRun, demo_mirror: Path, tmp_path: Path
) -> None:
    """Also where the interpreter decides; without --full there is no such file, and the rest is the same."""
    again = replayed(demo_mirror, tmp_path / "again", "--full", "--core", "interpreter")
    without = replayed(demo_mirror, tmp_path / "without")
    names = ("decisions.parquet", "predictions.parquet", "record.json")
    for name in (*names, "rankings.parquet"):
        assert (again.folder / name).read_bytes() == (full.folder / name).read_bytes(), name
    for name in names:
        assert (without.folder / name).read_bytes() == (full.folder / name).read_bytes(), name
    assert without.rankings is None
    assert not (without.folder / "rankings.parquet").exists()


def test_row_groups_are_as_in_every_file(full: record.StoredRun, ranked: pl.DataFrame) -> None:
    """65,536 rows each, whatever the blocks they came in."""
    stored = pq.ParquetFile(full.folder / "rankings.parquet").metadata
    groups = [stored.row_group(number).num_rows for number in range(stored.num_row_groups)]
    assert sum(groups) == len(ranked)
    assert set(groups[:-1]) <= {record.ROWS_PER_GROUP}


def test_a_policy_that_keeps_the_first_two_leaves_the_others_without_a_place(demo_mirror: Path, tmp_path: Path) -> None:
    """Neither placed nor rejected."""
    term = ["policy", ["meets_req"], ["neg", ["field", "price_in"]], ["top_k", 2, ["argmax"]], ["id"],
            ["always", {"action": "next_candidate"}]]  # fmt: skip
    (tmp_path / "two.json").write_text(json.dumps(term))
    run = replayed(demo_mirror, tmp_path / "run", "--full", "--policy", str(tmp_path / "two.json"))
    assert run.rankings is not None
    rows = run.rankings.collect()
    assert rows["place"].drop_nulls().max() == 2
    assert len(rows.filter(pl.col("place").is_null() & pl.col("reject_reason").is_null())) > 0


def test_too_many_rows_are_refused_before_anything_is_decided(
    ranked: pl.DataFrame, demo_mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """With the number of rows there would be, the bound, and what to do; nothing is written."""
    monkeypatch.setattr("replay.rankings.MOST_ROWS", len(ranked) - 1)
    assert run_cli(["run", str(demo_mirror), *BOTH, *SPAN, "--full", "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"the full ranking has {len(ranked):,} rows" in said
    assert "replay a slice with --since and --until" in said
    assert list(tmp_path.iterdir()) == []
