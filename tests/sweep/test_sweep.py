"""Sweeps: the figures of `replay run`, whatever the processes and the interruptions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from analysis import prequential
from replay import engine
from replay.cli import run_cli
from replay.errors import ReplayError, StoppedError
from replay.ledger.load import Ledger
from replay.settings import PRODUCTION_NOW, Settings
from replay.sweep.grid import at_point
from replay.sweep.running import METRICS_SCHEMA, Swept, sweep
from replay.sweep.work import AGREEMENT, DECISIONS, FLIPS, SWITCHES, UNDECIDED_SHARE
from tests.sweep.conftest import SINCE_MS, UNTIL_MS


@pytest.fixture(scope="session")
def swept(ledger: Ledger, points: list[Settings], tmp_path_factory: pytest.TempPathFactory) -> tuple[Swept, bytes]:
    """The five points over half an hour, in this process, and the bytes of their table."""
    out = tmp_path_factory.mktemp("sweep") / "one.parquet"
    done = sweep(ledger, [PRODUCTION_NOW], points, out, None, SINCE_MS, UNTIL_MS)
    return done, out.read_bytes()


@pytest.fixture(scope="session")
def replayed(ledger: Ledger, points: list[Settings]) -> engine.Run:
    """The same replayed as `replay run` does, without its proof."""
    return engine.run(ledger, [PRODUCTION_NOW, *points], None, SINCE_MS, UNTIL_MS, prove=False)


def _of_decisions(done: Swept, name: str) -> dict[str, tuple[float | None, int]]:
    mine = done.table.filter((pl.col("setting") == name) & (pl.col("question") == DECISIONS))
    return {row["metric"]: (row["value"], row["decisions"]) for row in mine.iter_rows(named=True)}


def test_the_figures_are_those_of_a_run(
    swept: tuple[Swept, bytes], replayed: engine.Run, points: list[Settings]
) -> None:
    """Every prequential figure of every setting, to the last bit, though no frame was scored."""
    quantiles = {points[3].name: 0.9}
    expected = prequential.score(replayed.predictions, quantiles)
    found = swept[0].table.filter(pl.col("question") != DECISIONS).select(expected.columns)
    assert expected.height > 150
    for name in [PRODUCTION_NOW.name, *(one.name for one in points)]:
        mine = pl.col("setting") == name
        assert found.filter(mine).equals(expected.filter(mine)), name


def test_the_table_is_tidy(swept: tuple[Swept, bytes], points: list[Settings]) -> None:
    """One row for each setting, question, metric and scope, in the order of the settings, with all that made them."""
    table = swept[0].table
    assert table.schema == pl.Schema(METRICS_SCHEMA)
    assert not table.select("setting", "question", "metric", "scope").is_duplicated().any()
    assert table["setting"].unique(maintain_order=True).to_list() == [
        PRODUCTION_NOW.name,
        *(one.name for one in points),
    ]
    assert json.loads(table["settings"][-1])["memo_ms"] == 10_000


def test_decisions_are_those_of_a_run(swept: tuple[Swept, bytes], replayed: engine.Run, points: list[Settings]) -> None:
    """Agreement, flips and switches counted from the run's rows, decision by decision."""
    by_setting = {one.settings.name: one.decisions for one in replayed.replayed}
    first = by_setting[PRODUCTION_NOW.name]
    taken = first["recorded_first_route"].fill_null(first["recorded_route"])
    for one in points:
        mine = by_setting[one.name]
        found = _of_decisions(swept[0], one.name)
        agree, flips = (mine["chosen_route"] == taken).sum(), (mine["chosen_route"] != first["chosen_route"]).sum()
        assert found[AGREEMENT] == (agree / len(mine), len(mine))
        assert found[FLIPS] == (flips / len(mine), len(mine))
        assert found[UNDECIDED_SHARE] == (0.0, len(mine))


def test_a_switch_is_another_winner_for_the_same_request(
    swept: tuple[Swept, bytes], replayed: engine.Run, ledger: Ledger
) -> None:
    """Requests are the same if what they require is; seed, credits and hot route of a session may differ."""
    asked = {row["id"]: json.loads(row["request"]) for row in ledger.calls.select("id", "request").to_dicts()}
    total = 0
    for one in replayed.replayed:
        last: dict[str, str] = {}
        switches = again = 0
        for row in one.decisions.iter_rows(named=True):
            left_out = ("seed", "credits", "hot_route")
            same = {key: said for key, said in asked[row["call_id"]].items() if key not in left_out}
            key = json.dumps([row["policy_id"], same], sort_keys=True)
            again += key in last
            switches += key in last and last[key] != row["chosen_route"]
            last[key] = row["chosen_route"]
        assert _of_decisions(swept[0], one.settings.name)[SWITCHES] == (100 * switches / again, again)
        total += switches
    assert total > 5


def test_what_measures_alike_is_measured_once(swept: tuple[Swept, bytes], points: list[Settings]) -> None:
    """The second point is the base under another name: five settings are measured, six listed."""
    assert (swept[0].measured, swept[0].kept) == (5, 0)
    rows = [swept[0].table.filter(pl.col("setting") == name).drop("setting") for name in
            (PRODUCTION_NOW.name, points[1].name)]  # fmt: skip
    assert rows[0].equals(rows[1])


def test_the_interpreter_is_said(ledger: Ledger, tmp_path: Path) -> None:
    """Measured prices are not the compiled core's, nor a worker's: the figures are those of a run all the same."""
    point = at_point(PRODUCTION_NOW, {"prices.mode": "measured"})
    until_ms = SINCE_MS + 1_800_000
    done = sweep(ledger, [PRODUCTION_NOW], [point], tmp_path / "s.parquet", None, SINCE_MS, until_ms, jobs=2)
    assert list(done.interpreted) == [point.name]
    expected = engine.run(ledger, [point], None, SINCE_MS, until_ms, prove=False).decisions
    agreed = expected["chosen_route"] == expected["recorded_first_route"]
    assert _of_decisions(done, point.name)[AGREEMENT] == (agreed.sum() / len(expected), len(expected))


def test_the_bases_are_proved(swept: tuple[Swept, bytes]) -> None:
    """The base reproduces what was recorded; the points are not replayed for that."""
    assert swept[0].proof.passed
    assert [one.settings.name for one in swept[0].proof.replayed] == [PRODUCTION_NOW.name]


def test_two_processes_write_the_same_bytes(
    swept: tuple[Swept, bytes], ledger: Ledger, points: list[Settings], tmp_path: Path
) -> None:
    """And nothing is left beside the table."""
    out = tmp_path / "two.parquet"
    done = sweep(ledger, [PRODUCTION_NOW], points, out, None, SINCE_MS, UNTIL_MS, jobs=2)
    assert out.read_bytes() == swept[1]
    assert list(tmp_path.iterdir()) == [out]
    assert done.worker_peak_mb > 0


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stopped_sweep_goes_on(
    swept: tuple[Swept, bytes], ledger: Ledger, points: list[Settings], tmp_path: Path, jobs: int
) -> None:
    """Ctrl-C after the second setting: what is done is said and kept, and the end is the same to the byte."""
    out = tmp_path / "stopped.parquet"

    def stop(what: str, done: int, total: int) -> None:
        if what == "measuring settings" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(StoppedError, match="of 5 settings are measured and kept") as said:
        sweep(ledger, [PRODUCTION_NOW], points, out, None, SINCE_MS, UNTIL_MS, jobs=jobs, progress=stop)
    kept = int(re.findall(r"stopped: (\d)", str(said.value))[0])
    assert not out.exists()
    assert len(list((tmp_path / ".stopped.parquet.parts").iterdir())) == kept >= 2
    done = sweep(ledger, [PRODUCTION_NOW], points, out, None, SINCE_MS, UNTIL_MS, jobs=jobs)
    assert (done.kept, done.measured) == (kept, 5 - kept)
    assert out.read_bytes() == swept[1]


def test_a_setting_kept_under_another_slice_is_not_used(ledger: Ledger, points: list[Settings], tmp_path: Path) -> None:
    """What is kept rests on input, slice, first setting, policy and code; only the same is taken up again."""
    out = tmp_path / "slices.parquet"

    def stop(what: str, done: int, total: int) -> None:
        if what == "measuring settings" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(StoppedError):
        sweep(ledger, [PRODUCTION_NOW], points[:1], out, None, SINCE_MS, UNTIL_MS, progress=stop)
    done = sweep(ledger, [PRODUCTION_NOW], points[:1], out, None, SINCE_MS, UNTIL_MS - 900_000)
    assert (done.kept, done.measured) == (0, 2)


WINDOWS = ["--window", "1m..60m:16", "--since", "2026-03-03T08:00:00Z", "--until", "2026-03-03T09:00:00Z"]


def _started(mirror: Path, out: Path) -> subprocess.Popen[str]:
    """Start the command in a group of its own, as a terminal does."""
    command = [sys.executable, "-m", "replay", "sweep", str(mirror), *WINDOWS, "--jobs", "2", "-o", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def _until_some_are_kept(running: subprocess.Popen[str], parts: Path) -> None:
    until = time.monotonic() + 120
    while len(list(parts.glob("*.json"))) < 2 and running.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    assert list(parts.glob("*.json")), "no setting was measured"


@pytest.fixture(scope="session")
def uninterrupted(demo_mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of the command that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "sweep.parquet"
    assert run_cli(["sweep", str(demo_mirror), *WINDOWS, "--jobs", "1", "-o", str(out)]) == 0
    return out.read_bytes()


@pytest.mark.slow
def test_a_killed_sweep_goes_on(demo_mirror: Path, uninterrupted: bytes, tmp_path: Path) -> None:
    """kill -9: its workers end with it, and the same command writes the same bytes."""
    out = tmp_path / "sweep.parquet"
    running = _started(demo_mirror, out)
    _until_some_are_kept(running, tmp_path / ".sweep.parquet.parts")
    running.kill()
    running.communicate(timeout=60)  # returns once every worker, too, has closed its end
    assert not out.exists()
    assert run_cli(["sweep", str(demo_mirror), *WINDOWS, "--jobs", "1", "-o", str(out)]) == 0
    assert out.read_bytes() == uninterrupted


@pytest.mark.slow
def test_ctrl_c_ends_the_command_with_a_sentence(demo_mirror: Path, tmp_path: Path) -> None:
    """The whole group is told, as by a terminal: exit code 130, one paragraph, and what is measured is kept."""
    parts = tmp_path / ".sweep.parquet.parts"
    running = _started(demo_mirror, tmp_path / "sweep.parquet")
    _until_some_are_kept(running, parts)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130, said
    found = re.search(r"replay: stopped: (\d+) of 17 settings are measured and kept", said)
    assert found is not None, said
    assert "Traceback" not in said
    assert int(found[1]) == len(list(parts.glob("*.json")))


def test_the_command_shows_the_best(
    demo_mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proof first, then the first setting and the best, and what the figures cannot say."""
    monkeypatch.setenv("COLUMNS", "200")  # in a narrow terminal a name takes several lines
    slice_ = ["--since", "2026-03-03T08:00:00Z", "--until", "2026-03-03T09:00:00Z"]
    arguments = ["--window", "5m,15m", "--alpha", "0.1", *slice_, "--jobs", "1", "-o", str(tmp_path / "s.parquet")]
    assert run_cli(["sweep", str(demo_mirror), *arguments]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Reproduction: 100.00%")
    assert "3 points; 3 distinct settings measured." in said
    for line in ("production-now alpha=0.1", "Only routes that the recorded policy chose are scored", "Peak memory"):
        assert line in said


def _refused(ledger: Ledger, points: list[Settings], out: Path, **more: Any) -> str:
    with pytest.raises(ReplayError) as said:
        sweep(ledger, [PRODUCTION_NOW], points, out, **more)
    return str(said.value)


def test_bad_input_is_refused_before_anything_is_read(ledger: Ledger, points: list[Settings], tmp_path: Path) -> None:
    """A folder, a path in none, no jobs, and two points of one name."""
    out = tmp_path / "out.parquet"
    assert "is a folder" in _refused(ledger, points, tmp_path)
    assert "which does not exist" in _refused(ledger, points, tmp_path / "none" / "out.parquet")
    assert "0 jobs" in _refused(ledger, points, out, jobs=0)
    assert "two points" in _refused(ledger, [points[0], points[0]], out)
    assert list(tmp_path.iterdir()) == []
