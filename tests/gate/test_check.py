"""A check against an accepted baseline: what fails, what does not, and with which verdict."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replay import engine
from replay.cli import run_cli
from replay.errors import ReplayError
from replay.gate.check import Checked, Verdict
from replay.gate.outcome import Outcome, load
from replay.gate.suite import read_suite
from replay.outcomes import DECISIONS

BASELINE = ("decisions.parquet", "predictions.parquet", "record.json", "sql.parquet")


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its name."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_unchanged_code_is_green_and_changes_no_file(suite: Path, checked: Callable[..., Checked]) -> None:
    """Exit code 0, nothing differs, and the suite's folder holds the same bytes."""
    before = bytes_of(suite.parent)
    found = checked()
    assert (found.verdict, found.differences.height, found.problem) == (Verdict.same, 0, None)
    assert run_cli(["check", str(suite)]) == 0
    assert bytes_of(suite.parent) == before


def test_a_regression_writes_nothing_unless_asked(
    suite: Path, held: Callable[..., Checked], doctored: Any, putting: Any
) -> None:
    """A check never writes; --update writes a proposal beside the baseline, whose own bytes stay."""
    doctored("decisions", putting("latency_ms_1", 20, 1.0))
    before = bytes_of(suite.parent)
    assert held().verdict is Verdict.regression
    assert bytes_of(suite.parent) == before
    found = held(update=True)
    assert found.proposal == suite.parent / "baselines" / "small.new"
    assert set(bytes_of(found.proposal)) == set(BASELINE)
    assert bytes_of(suite.parent / "baselines" / "small") == {name: before[name] for name in BASELINE}


def test_an_update_of_what_is_the_same_withdraws_an_old_proposal(suite: Path, held: Callable[..., Checked]) -> None:
    """A proposal that lay there from before would no longer say what the code does."""
    stale = suite.parent / "baselines" / "small.new"
    stale.mkdir()
    assert held(update=True).proposal is None
    assert not stale.exists()


# Chunks, DuckDB's threads and the core have no option of `replay check`: a driver sets them for the process.
DRIVER = """
import functools, sys
rows, threads, core, suite = sys.argv[1:]
import duckdb
duckdb.connect = functools.partial(duckdb.connect, config={"threads": int(threads)})
import replay.kernel.core
replay.kernel.core.ROWS_PER_BLOCK = int(rows)
from replay import engine
engine.run = functools.partial(engine.run, core=core)
from replay.cli import run_cli
sys.exit(run_cli(["check", suite, "--update"]))
"""


@pytest.mark.slow
def test_threads_hash_seed_chunks_core_and_interpreter_flags_change_no_byte(suite: Path, tmp_path: Path) -> None:
    """What is printed and proposed is the same in processes that differ in all of them, and so is what was accepted."""
    written = []
    for number, (flags, threads, seed, rows, core) in enumerate(
        (
            ([], "1", "1", "65536", "compiled"),
            (["-O"], "4", "4242", "7", "compiled"),
            ([], "2", "7", "23", "interpreter"),
        )
    ):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        (folder / "ledger").symlink_to(suite.parent / "ledger")
        (folder / "suite.toml").write_text(suite.read_text())
        pools = dict.fromkeys(("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), threads)
        environment = {**os.environ, **pools, "PYTHONHASHSEED": seed}
        command = [sys.executable, *flags, "-c", DRIVER, rows, threads, core, "suite.toml"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr
        written.append((done.stdout, bytes_of(folder / "baselines" / "small.new")))
    assert written[0] == written[1] == written[2]
    held = bytes_of(suite.parent / "baselines" / "small")
    assert {**held, "record.json": b""} == {**written[0][1], "record.json": b""}
    one, other = (json.loads(data["record.json"]) for data in (held, written[0][1]))
    assert one.pop("history") != other.pop("history")
    assert one == other


def test_the_other_core_decides_the_same(accepted: Path, outcome: Outcome) -> None:
    """The interpreter, decision by decision, gives the very rows of the core that is used."""
    scenario = read_suite(accepted / "suite.toml").scenarios[0]
    interpreted = engine.run(load(scenario), scenario.settings, core="interpreter")
    assert interpreted.decisions.equals(outcome.decisions)
    assert interpreted.predictions.equals(outcome.predictions)


def test_the_first_proposal_has_nothing_to_be_compared_with(suite: Path, held: Callable[..., Checked]) -> None:
    """It is written, not comparable all the same, and nobody is told to write it."""
    shutil.rmtree(suite.parent / "baselines")
    found = held(update=True)
    assert found.verdict is Verdict.not_comparable
    assert found.problem == "there is no baseline to compare with yet"
    assert found.proposal == suite.parent / "baselines" / "small.new"


def test_a_dropped_column_is_a_regression(held: Callable[..., Checked], doctored: Any) -> None:
    """A column that only the code at hand, or only the baseline, has fails both ways."""
    doctored("decisions", lambda frame: frame.drop("tools_2").with_columns(extra=1))
    found = held()
    assert found.verdict is Verdict.regression
    rows = found.differences.select("check", "id", "column", "kind").rows()
    assert rows == [("decisions", "", "extra", "missing"), ("decisions", "", "tools_2", "added")]


def test_a_column_of_another_type_is_a_regression(held: Callable[..., Checked], doctored: Any) -> None:
    """Equal numbers in another type are another schema."""
    doctored("decisions", lambda frame: frame.with_columns(pl.col("candidates").cast(pl.Int64)))
    row = held().differences.row(0, named=True)
    assert (row["column"], row["baseline"], row["now"]) == ("candidates", "Int64", "Int32")


@pytest.mark.parametrize(
    ("edit", "kinds"),
    [
        (lambda frame: frame[1:], ["added"]),
        (lambda frame: pl.concat([frame, frame[5:6].with_columns(call_id=pl.lit(999, pl.Int64))]), ["missing"]),
        (lambda frame: pl.concat([frame, frame[5:6]]), ["missing"]),
        (lambda frame: frame.clear(), ["added"] * 60),
    ],
    ids=["a decision that the baseline lacks", "one that it has more", "one that it has twice", "none at all"],
)
def test_rows_are_compared_both_ways(held: Callable[..., Checked], doctored: Any, edit: Any, kinds: list[str]) -> None:
    """Added and missing decisions are a regression, a doubled one too."""
    doctored("decisions", edit)
    found = held()
    assert found.verdict is Verdict.regression
    assert found.differences["kind"].to_list() == kinds


@pytest.mark.parametrize("name", ["decisions", "predictions", "sql"])
def test_the_order_of_rows_in_a_file_says_nothing(held: Callable[..., Checked], doctored: Any, name: str) -> None:
    """Only keys count; an answer's rows carry their place."""
    doctored(name, lambda frame: frame.sort(pl.int_range(pl.len()) % 7) if name != "sql" else frame)
    assert held().verdict is Verdict.same


@pytest.mark.parametrize(
    ("column", "change", "differs"),
    [
        ("score_1", lambda old: old + 1e-13, False),
        ("score_1", lambda old: old + 1e-11, True),
        ("latency_ms_1", lambda old: old * (1 + 1e-13), False),
        ("latency_ms_1", lambda old: old * (1 + 1e-11), True),
        ("price_in_1", lambda old: old + 4e-7, False),
        ("price_in_1", lambda old: old + 1e-6, True),
        ("success_rate_1", None, True),
        ("candidates", lambda old: old + 1, True),
        ("reject_counts", '{"x": 1}', True),
        ("route_3", "q|m|q ", True),
        ("tools_2", lambda old: not old, True),
        ("order_hash", lambda old: old ^ 1, True),
    ],
)
def test_what_is_exact_and_what_is_not(
    held: Callable[..., Checked], doctored: Any, putting: Any, column: str, change: Any, differs: bool
) -> None:
    """Keys, picks, order and counts exactly, money in micro-dollars, other doubles to 1e-12."""
    doctored("decisions", putting(column, 40, change))
    found = held()
    assert found.differences["column"].to_list() == ([column] if differs else [])
    assert found.verdict is (Verdict.regression if differs else Verdict.same)


def test_the_order_hash_says_nothing_where_the_whole_order_is_in_sight(
    held: Callable[..., Checked], doctored: Any
) -> None:
    """Three ranked routes stand in the row with their scores, to 1e-12; a hash over their last bits adds nothing."""

    def three_ranked(frame: pl.DataFrame) -> pl.DataFrame:
        seen = pl.col("candidates") - pl.col("rejected") <= 3
        return frame.with_columns(order_hash=pl.when(seen).then(pl.col("order_hash") ^ 1).otherwise("order_hash"))

    doctored("decisions", three_ranked)
    assert held().verdict is Verdict.same


def test_a_changed_prediction_is_a_regression(held: Callable[..., Checked], doctored: Any, putting: Any) -> None:
    """What an estimator says of an attempt is compared, even where no decision turns."""
    doctored("predictions", putting("p_read", 60, 0.5))
    found = held()
    assert found.verdict is Verdict.regression
    assert set(found.differences["check"]) == {"predictions"}


def test_another_input_is_not_comparable_and_no_update_hides_it(suite: Path, held: Callable[..., Checked]) -> None:
    """One hash of the ledger's content: exit code 3; --update is refused; decisions are not even compared."""
    record = suite.parent / "baselines" / "small" / "record.json"
    content = json.loads(record.read_text())["input"]["tables"]["calls"]["content"]
    record.write_text(record.read_text().replace(content, "0" * 32))
    found = held(update=True)
    assert (found.verdict, found.proposal) == (Verdict.not_comparable, None)
    assert found.refused == "the input changed, and an update is for code"
    assert found.differences.select("check", "id", "now").rows() == [("input", "input.tables.calls.content", content)]


def test_another_slice_is_another_input(suite: Path, checked: Callable[..., Checked]) -> None:
    """A scenario that ends earlier replays other decisions."""
    suite.write_text(suite.read_text() + "until = 1001000000\n")
    found = checked()
    assert found.verdict is Verdict.not_comparable
    assert found.differences["id"].to_list() == ["input.until_ms"]


def test_changed_settings_are_a_regression(suite: Path, checked: Callable[..., Checked]) -> None:
    """A window of 14 minutes: the setting is named, and what it moved."""
    settings = '[reliability]\nrule = "window"\nwindow = "14m"\n'
    (suite.parent / "now.toml").write_text(f'name = "production-now"\n{settings}')
    suite.write_text(suite.read_text() + 'settings = ["now.toml"]\n')
    found = checked()
    assert found.verdict is Verdict.regression
    row = found.counted("settings").row(0, named=True)
    assert (row["id"], row["baseline"], row["now"]) == (
        "settings.production-now.reliability.window_ms", "900000", "840000"
    )  # fmt: skip
    assert len(found.counted("decisions", "predictions")) > 0


def test_a_changed_policy_is_a_regression(suite: Path, checked: Callable[..., Checked], gate_policy: Any) -> None:
    """The same term, given instead of recorded, is named as a difference though no decision turns."""
    (suite.parent / "same.json").write_text(json.dumps(gate_policy.term))
    suite.write_text(suite.read_text() + 'policy = "same.json"\n')
    found = checked()
    assert found.verdict is Verdict.regression
    assert found.counted("settings")["id"].to_list() == ["policy"]
    assert len(found.counted("decisions")) == 0


@pytest.mark.parametrize(
    ("scope", "verdict"),
    [
        ("calls = [41]", Verdict.same),
        ('columns = ["margin"]', Verdict.same),
        ('columns = ["margin"]\ncalls = [41]', Verdict.same),
        ("calls = [40]", Verdict.regression),
        ('columns = ["label"]', Verdict.regression),
        ('columns = ["margin"]\ncalls = [40]', Verdict.regression),
    ],
)
def test_allowed_differences_are_kept_apart(
    suite: Path, held: Callable[..., Checked], doctored: Any, putting: Any, scope: str, verdict: Verdict
) -> None:
    """By call, by column, or both; they stay in the full difference with their reason."""
    suite.write_text(suite.read_text() + f'[[scenario.allow]]\nreason = "it drifts"\n{scope}\n')
    doctored("decisions", putting("margin", 40, 0.25))
    found = held()
    assert found.verdict is verdict
    assert found.differences["allowed"].to_list() == ["it drifts" if verdict is Verdict.same else None]


def test_an_allowed_column_must_exist(suite: Path, checked: Callable[..., Checked]) -> None:
    """A misspelt column would allow nothing, silently."""
    suite.write_text(suite.read_text() + '[[scenario.allow]]\nreason = "r"\ncolumns = ["margins"]\n')
    assert "margins" not in DECISIONS
    with pytest.raises(ReplayError, match="allows differences in the column margins"):
        checked()
    assert run_cli(["check", str(suite)]) == 2


def test_a_replay_that_does_not_hold_is_a_regression_and_no_proposal(
    suite: Path, checked: Callable[..., Checked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a query of production's that counts otherwise, the audit fails: no update makes that the baseline."""
    from replay import queries

    text = queries.load("route_stats").text
    broken = text.replace("count(*)::bigint AS attempts", "(count(*) + 1)::bigint AS attempts")
    assert broken != text
    real = queries._read
    monkeypatch.setattr(queries, "_read", lambda name: broken if name == "route_stats" else real(name))
    queries.load.cache_clear()
    try:
        found = checked(update=True)
    finally:
        monkeypatch.undo()
        queries.load.cache_clear()
    assert (found.verdict, found.proposal) == (Verdict.regression, None)
    assert found.problem == "the replay itself does not hold: its audit against production's SQL fails"
    assert {"sql", "proof"} <= set(found.differences["check"])


def test_absent_data_is_skipped_with_its_reason(suite: Path, checked: Callable[..., Checked], capsys: Any) -> None:
    """Only where the suite says so; a ledger that should be there is an error."""
    text = suite.read_text().replace('"ledger"', '"elsewhere"')
    suite.write_text(text)
    with pytest.raises(ReplayError, match=r"scenario small: there is no ledger at"):
        checked()
    suite.write_text(text + 'absent = "the data is private"\n')
    found = checked()
    assert (found.skipped, found.verdict) == (True, Verdict.same)
    assert run_cli(["check", str(suite)]) == 0
    assert "small: skipped, the data is private" in capsys.readouterr().out


def test_a_regression_outweighs_what_cannot_be_compared(suite: Path, doctored: Any, putting: Any) -> None:
    """Exit code 1 for a suite with both; 3 for the scenario without a baseline alone."""
    suite.write_text(suite.read_text() + suite.read_text().replace('"small"', '"new"'))
    doctored("decisions", putting("margin", 40, 0.25))
    assert [one.name for one in read_suite(suite).scenarios] == ["small", "new"]
    assert run_cli(["check", str(suite)]) == 1
    assert run_cli(["check", str(suite), "new"]) == 3
    assert run_cli(["check", str(suite), "newer"]) == 2


def test_a_file_is_imported_when_it_is_checked(tmp_path: Path, capsys: Any) -> None:
    """A mapped CSV as a scenario's ledger: an importer that reads it otherwise gives another input."""
    (tmp_path / "calls.csv").write_text(
        "ended,provider,model,seconds\n" + "".join(f"2026-01-01T00:0{n}:00Z,p,m,{n + 1}\n" for n in range(9))
    )
    mapping = """
[calls]
ts = { column = "ended", as = "iso" }
usage_event_id = { row_id = true }
provider_id = "provider"
model_family = "model"
status = { constant = 200 }
latency_ms = { column = "seconds", as = "UNIT" }

[route_observations]
ts = { column = "ended", as = "iso" }
provider_id = "provider"
model_family = "model"
ok = { constant = true }
latency_ms = { column = "seconds", as = "UNIT" }
"""
    (tmp_path / "log.toml").write_text(mapping.replace("UNIT", "s_to_ms"))
    suite = tmp_path / "suite.toml"
    suite.write_text(
        '[[scenario]]\nname = "log"\nguards = "How a log is read."\nledger = "calls.csv"\nsource = "log.toml"\n'
        'policy = "cheapest"\n'
    )
    assert run_cli(["check", str(suite), "--update"]) == 3
    assert run_cli(["accept", str(suite), "--reason", "read once by hand"]) == 0
    assert run_cli(["check", str(suite)]) == 0
    (tmp_path / "log.toml").write_text(mapping.replace(', as = "UNIT"', ""))
    capsys.readouterr()
    assert run_cli(["check", str(suite)]) == 3
    assert "input.tables.route_observations.content" in capsys.readouterr().out
