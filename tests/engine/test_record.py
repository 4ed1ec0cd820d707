"""A run's folder: whole or not at all, the same bytes for the same inputs, and comparable only on the same input."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from replay import record as record_room
from replay.cli import run_cli
from replay.engine import DECISIONS
from replay.errors import NotComparableError, ReplayError
from replay.ledger.importers import import_file
from replay.ledger.mirror import open_mirror

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
AIDER = ROOT.parent / "shared" / "data" / "aider_calls.csv.gz"

HASHED = ("decisions.parquet", "predictions.parquet", "record.json")
BOTH = ("-s", "production-now", "-s", "production-before")

# DuckDB takes its number of threads from the machine; the driver pins it for every connection of the process.
DRIVER = """
import os, sys
threads = int(os.environ["DUCKDB_THREADS_FOR_TEST"])
import duckdb
connect = duckdb.connect
duckdb.connect = lambda *given, **named: connect(*given, config={"threads": threads}, **named)
from replay.cli import run_cli
sys.exit(run_cli(sys.argv[1:]))
"""


def replayed(mirror: Path, out: Path, *more: str, threads: int = 2, hash_seed: str = "0") -> Path:
    """Run `replay run` in a process of its own with these thread counts and this hash seed."""
    environment = {
        **os.environ,
        "PYTHONHASHSEED": hash_seed,
        "POLARS_MAX_THREADS": str(threads),
        "DUCKDB_THREADS_FOR_TEST": str(threads),
    }
    command = [sys.executable, "-c", DRIVER, "run", str(mirror), "-o", str(out), *more]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def assert_same_bytes(one: Path, other: Path) -> None:
    """What is hashed is the same, byte for byte; the decision hash with it."""
    for name in HASHED:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_threads_and_hash_seed_change_no_byte(mirror: Path, tmp_path: Path) -> None:
    """A recorded ledger under both presets: the same bytes with other threads and another PYTHONHASHSEED."""
    span = ("--until", "1970-01-12T14:10:00Z")
    one = replayed(mirror, tmp_path / "one", *BOTH, *span, threads=1, hash_seed="1")
    four = replayed(mirror, tmp_path / "four", *BOTH, *span, threads=4, hash_seed="4242")
    assert_same_bytes(one, four)
    assert len(pl.read_parquet(one / "decisions.parquet")) > 50


def test_the_order_of_the_source_changes_no_byte(aider: Path, tmp_path: Path) -> None:
    """The aider file with its rows shuffled, imported anew and replayed with other threads: the same bytes."""
    with gzip.open(AIDER, "rt", encoding="utf-8", newline="") as stream:
        header, *rows = list(csv.reader(stream))
    random.Random(5).shuffle(rows)
    shuffled = tmp_path / "aider_calls.csv"
    with shuffled.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([header, *rows])
    import_file(shuffled, tmp_path / "shuffled.duckdb", source="aider_calls")
    flags = (*BOTH, "--policy", "cheapest", "--since", "2025-05-01", "--until", "2025-05-06", "--replicas", "3",
             "--lag", "0s", "--lag", "2s")  # fmt: skip
    one = replayed(aider, tmp_path / "one", *flags, threads=2, hash_seed="7")
    other = replayed(tmp_path / "shuffled.duckdb", tmp_path / "other", *flags, threads=1, hash_seed="0")
    assert_same_bytes(one, other)
    record = json.loads((one / "record.json").read_text())
    assert record["replayed"][0]["decisions"] > 10
    assert record["replayed"][0]["decision_hash"] != record["replayed"][1]["decision_hash"]


@pytest.fixture(scope="module")
def mirror(mirror_of: Any, tmp_path_factory: pytest.TempPathFactory, small_world: Any) -> Path:
    """The small world as a mirror file."""
    path = tmp_path_factory.mktemp("world") / "world.duckdb"
    with open_mirror(path, write=True) as connection:
        for table, frame in (
            ("calls", small_world.calls),
            ("route_observations", small_world.attempts),
            ("offer_history", small_world.offers),
            ("policies", small_world.policies),
            ("settings", small_world.settings),
        ):
            connection.register("given", frame.to_arrow())
            connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM given")
            connection.unregister("given")
    return path


@pytest.fixture(scope="module")
def both(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world under both presets, in a run's folder."""
    out = tmp_path_factory.mktemp("runs") / "both"
    assert run_cli(["run", str(mirror), *BOTH, "-o", str(out)]) == 0
    return out


def test_a_folder_holds_what_replay_md_says(both: Path, mirror: Path) -> None:
    """Settings, input identity, versions, audit, reproduction, hash; fixed row groups; nothing of time or place."""
    record = json.loads((both / "record.json").read_text())
    assert set(record) == {
        "format", "route_replay", "versions", "input", "policy", "settings", "inferred", "warnings", "reproduction",
        "replayed",
    }  # fmt: skip
    assert record["input"]["tables"]["calls"]["rows"] == 150
    assert record["reproduction"]["agreed"] == record["reproduction"]["compared"] == 150
    assert [one["audit"]["mismatches"] for one in record["replayed"]] == [0, 0]
    decisions = pl.read_parquet(both / "decisions.parquet")
    assert dict(decisions.schema) == DECISIONS
    assert decisions.group_by("setting").len()["len"].to_list() == [150, 150]
    assert set(decisions["label"]) <= {"recorded", "bounded"}
    for name in ("decisions", "predictions"):
        assert pq.ParquetFile(both / f"{name}.parquet").metadata.num_row_groups == 1
    assert record_room.ROWS_PER_GROUP == 65_536
    assert str(mirror) not in (both / "record.json").read_text()
    for one in record["replayed"]:
        mine = decisions.filter(pl.col("setting") == one["setting"])
        assert record_room.decision_hash(mine) == one["decision_hash"]


def test_the_hash_notices_one_bit(both: Path) -> None:
    """Change the last bit of one score and the decision hash changes."""
    decisions = pl.read_parquet(both / "decisions.parquet")
    scores = decisions["score_1"].to_list()
    scores[7] = math.nextafter(scores[7], math.inf)
    changed = decisions.with_columns(score_1=pl.Series(scores))
    assert record_room.decision_hash(changed) != record_room.decision_hash(decisions)


def test_a_run_reads_back_as_it_was_written(both: Path) -> None:
    """Settings, policy, frames and the mirror's place come back."""
    stored = record_room.read(both)
    assert [one.name for one in stored.settings] == ["production-now", "production-before"]
    assert stored.policy is None
    assert stored.mirror is not None
    assert stored.mirror.name == "world.duckdb"
    assert len(stored.predictions) == 2 * stored.input["tables"]["route_observations"]["rows"]


def test_running_again_replaces_the_folder(mirror: Path, tmp_path: Path) -> None:
    """A second run into the same folder leaves the second run alone: no draft, nothing of the first."""
    out = tmp_path / "run"
    span = ["--until", "1970-01-12T13:55:00Z"]
    assert run_cli(["run", str(mirror), "-o", str(out), *span]) == 0
    first = (out / "record.json").read_bytes()
    (out / "compare").mkdir()
    assert run_cli(["run", str(mirror), "-o", str(out), "--window", "5m", *span]) == 0
    assert (out / "record.json").read_bytes() != first
    assert run_cli(["run", str(mirror), "-o", str(out), *span]) == 0
    assert (out / "record.json").read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*HASHED, "source.json"])


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_nothing_that_is_no_run_is_replaced(mirror: Path, tmp_path: Path, kind: str, capsys: Any) -> None:
    """A folder with other things in it, or a file, is never overwritten: exit code 2, untouched."""
    out = tmp_path / "mine"
    kept = out
    if kind == "folder":
        out.mkdir()
        kept = out / "thesis.txt"
    kept.write_text("years of work")
    span = ["--until", "1970-01-12T13:50:00Z"]
    assert run_cli(["run", str(mirror), "-o", str(out), *span]) == 2
    assert "is not a run's folder; nothing was written" in capsys.readouterr().err
    assert kept.read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


LIMITED = """
import resource, sys
from replay.cli import run_cli
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(run_cli(sys.argv[2:]))
"""


def limited(limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that cannot write a file longer than the limit."""
    command = [sys.executable, "-c", LIMITED, str(limit), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_full_disk_leaves_nothing_behind(mirror: Path, tmp_path: Path) -> None:
    """The disk fills while the folder is written: one paragraph, exit code 2, no folder and no draft."""
    done = limited(4_096, "run", str(mirror), "-o", str(tmp_path / "run"), "--until", "1970-01-12T14:30:00Z")
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_comparing_is_an_error_too(both: Path, tmp_path: Path) -> None:
    """The disk fills while frames are stored: one paragraph, exit code 2."""
    done = limited(1_024, "compare", str(both), "-o", str(tmp_path / "frames"))
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_comparing_two_runs_of_one_input(both: Path, mirror: Path, tmp_path: Path, capsys: Any) -> None:
    """Two runs of the same mirror compare; settings of one name are told apart by their folder; frames are stored."""
    other = tmp_path / "other"
    assert run_cli(["run", str(mirror), "-o", str(other), "-s", "production-now", "--window", "5m"]) == 0
    assert run_cli(["compare", str(both), str(other), "-o", str(tmp_path / "frames")]) == 0
    said = capsys.readouterr().out
    assert "Verdict" in said
    assert "production-now window=5m" in said
    flips = pl.read_parquet(tmp_path / "frames" / "flips.parquet")
    assert set(flips["setting_b"]) <= {"production-before", "production-now window=5m"}
    assert len(flips) > 0
    causes = {"reliability", "latency", "tools", "price", "health", "several", "joint"}
    assert set(flips["cause"]) <= causes
    assert "price" not in set(flips["cause"])
    for name in ("figures", "differences", "flip_summary", "agreement"):
        assert len(pl.read_parquet(tmp_path / "frames" / f"{name}.parquet")) > 0


def test_other_inputs_are_not_comparable(both: Path, mirror: Path, tmp_path: Path, capsys: Any) -> None:
    """Another slice, or one changed row: refused with exit code 3, and it is said where they differ."""
    sliced = tmp_path / "sliced"
    assert run_cli(["run", str(mirror), "-o", str(sliced), "--until", "1970-01-12T13:50:00Z"]) == 0
    assert run_cli(["compare", str(both), str(sliced)]) == 3
    assert "different slices" in capsys.readouterr().err

    changed = tmp_path / "changed.duckdb"
    changed.write_bytes(mirror.read_bytes())
    with open_mirror(changed, write=True) as connection:
        connection.execute("UPDATE route_observations SET latency_ms = latency_ms + 1 WHERE id = 3")
    run_cli(["run", str(changed), "-o", str(tmp_path / "changed"), "--until", "1970-01-12T13:50:00Z"])
    capsys.readouterr()
    assert run_cli(["compare", str(both), str(tmp_path / "changed")]) == 3
    assert "their inputs differ in route_observations" in capsys.readouterr().err
    assert run_cli(["compare", str(both), "--mirror", str(changed)]) == 3
    assert "is not what" in capsys.readouterr().err


def test_a_failed_proof_is_exit_code_1(mirror: Path, tmp_path: Path, capsys: Any) -> None:
    """A ledger whose outcomes were changed is written and reported, and the command says so by its exit code."""
    changed = tmp_path / "changed.duckdb"
    changed.write_bytes(mirror.read_bytes())
    with open_mirror(changed, write=True) as connection:
        connection.execute("UPDATE route_observations SET ok = NOT ok WHERE id % 3 = 0")
    assert run_cli(["run", str(changed), "-o", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().out
    assert "Mismatches:" in said
    assert "First: call" in said


def test_what_is_no_run_is_not_read(both: Path, tmp_path: Path, capsys: Any) -> None:
    """No folder, an empty one, a broken record, another format, a missing column: each its own error, no traceback."""
    with pytest.raises(ReplayError, match="is no run's folder"):
        record_room.read(tmp_path / "none")
    with pytest.raises(ReplayError, match="is no run's folder"):
        record_room.read(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in (*HASHED, "source.json"):
        (broken / name).write_bytes((both / name).read_bytes())
    (broken / "record.json").write_text("{")
    with pytest.raises(ReplayError, match="cannot be read as a run's folder"):
        record_room.read(broken)
    (broken / "record.json").write_text('{"format": 99}')
    with pytest.raises(NotComparableError, match="has format 99"):
        record_room.read(broken)
    (broken / "record.json").write_text("[]")
    with pytest.raises(ReplayError):
        record_room.read(broken)
    (broken / "record.json").write_bytes((both / "record.json").read_bytes())
    (broken / "decisions.parquet").write_bytes(b"PAR1")
    with pytest.raises(ReplayError, match="cannot be read as a run's folder"):
        record_room.read(broken)
    pl.read_parquet(both / "decisions.parquet").drop("margin").write_parquet(broken / "decisions.parquet")
    with pytest.raises(ReplayError, match="lacks the column margin"):
        record_room.read(broken)
    assert run_cli(["compare", str(tmp_path / "none")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_one_setting_cannot_be_compared(mirror: Path, tmp_path: Path) -> None:
    """A run of one setting has nothing to compare with; the error says how to get a second one."""
    out = tmp_path / "one"
    span = ["--until", "1970-01-12T14:00:00Z"]
    assert run_cli(["run", str(mirror), "-o", str(out), *span]) == 0
    assert run_cli(["compare", str(out)]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nowhere.duckdb", "-o", "x"], "There is no mirror at nowhere.duckdb"),
        (["run", "{mirror}", "-o", "x", "-s", "nothing"], "no settings 'nothing'"),
        (["run", "{mirror}", "-o", "x", "--window", "0s"], "window is 0 ms"),
        (["run", "{mirror}", "-o", "x", "--policy", "nothing"], "nothing"),
        (["run", "{mirror}", "-o", "x", "--since", "noon"], "not an instant"),
        (["run", "{mirror}", "-o", "x", "--since", "2026-03-03T10:00:00"], "has no offset"),
        (["run", "{mirror}", "-o", "x", "--scale-price", "z=2"], "which no offer has"),
    ],
)
def test_bad_arguments_write_nothing(
    mirror: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, arguments: list[str], said: str
) -> None:
    """Each is one paragraph on standard error with exit code 2, before anything is written."""
    monkeypatch.chdir(tmp_path)
    assert run_cli([one.format(mirror=mirror) for one in arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
