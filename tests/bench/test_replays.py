"""What is measured is a whole replay, and its parts are parts of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay import engine, record
from replay.bench import replays as bench
from replay.bench.synthetic import shipped, write_ledger
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.settings import PRODUCTION_NOW

PHASES = {
    "reading the mirror, with content hashes",
    "laying out the ledger",
    "deciding, writing",
    "deciding without lag, predicting",
    "auditing, predicting, writing",
    "writing the record",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of sixty calls, all of which an audit takes."""
    path = tmp_path_factory.mktemp("replays") / "small.duckdb"
    write_ledger(path, 60, 20, shipped("default"))
    return path


def test_what_is_measured_writes_the_folder_of_a_run(small: Path, tmp_path: Path) -> None:
    """The folder holds what the library's run decides, audited; no phase goes without a name."""
    measured = bench.measure(str(small), str(tmp_path / "run"), 1)
    assert set(measured["phases_s"]) == PHASES
    with open_mirror(small) as connection:
        ledger = load_ledger(connection)
    stored, run = record.read(tmp_path / "run"), engine.run(ledger, [PRODUCTION_NOW])
    assert stored.decisions.equals(run.decisions)
    assert stored.predictions.equals(run.predictions)
    assert stored.record["replayed"][0]["audit"]["decisions"] == 60
    assert bench.read_tables(small) == 120


def test_words_of_progress_begin_phases() -> None:
    """Words that say the same work of any setting are one phase; a word that is not known is one of its own."""
    phases = bench.Phases()
    phases.say("deciding under one", 0, 1)
    assert phases.seconds == {}
    for what in ("deciding under one", "deciding under other", "deciding under one without lag", "resting", ""):
        phases.say(what, 0, 1)
    assert list(phases.seconds) == ["deciding, writing", "deciding without lag, predicting", "resting"]


@pytest.mark.slow
def test_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole is held against reading the tables, each phase and the processor's time against the whole."""
    monkeypatch.setattr(bench, "QUICK_CALLS", 60)
    figures = bench.bench_replays(lambda what, done, total: None, True)
    value = {one.name: one.value for one in figures}
    whole = "replay of 60 calls, file to folder"
    assert {f"  {phase}" for phase in PHASES} | {whole, f"{whole}, highest memory", "sweep of 4 settings"} <= set(value)
    for one in figures:
        assert one.value > 0
        assert one.reached is None
        if one.against is not None:
            assert one.ratio == pytest.approx(one.value / value[one.against])
            assert (one.against == whole) == (one.name != whole)


def test_the_grid_is_a_hundred_settings_that_measure_differently() -> None:
    """Every pair of ten rules, each with a name and an identity of its own."""
    settings = bench.grid(bench.SWEPT)
    assert len(settings) == len({one.name for one in settings}) == len({one.identity for one in settings}) == 100


def test_growth_is_counted_for_each_call() -> None:
    """Ten million calls in 13 s against one million in 1 s are 1.3 times the time of each: just reached."""
    whole = bench.Figure("replay", 1.0, "s")
    one, more = {"whole_s": 1.0}, {"whole_s": 13.0, "memory_mb": 2_048.5}
    time, memory = bench._grown(whole, 1_000_000, one, more)
    assert (time.value, time.unit, time.ratio, time.reached) == (1.3, "µs", 1.3, True)
    assert (memory.value, memory.reached) == (2_048.5, False)
