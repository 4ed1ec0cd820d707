"""A whole replay, from mirror file to written run folder, against reading the mirror's tables once.

Every size is measured in a process of its own, so that its highest memory is its own too. A replay is what `replay run`
does under production's settings, audit included; the faster of two counts, so files are in the page cache and compiled
code is loaded. Reading is one `SELECT *` of each of the two large tables, without the content hashes that a run needs.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from replay import engine, record
from replay.bench import Figure, Say, best_of
from replay.bench.synthetic import shipped, write_ledger
from replay.errors import ReplayError
from replay.ledger.lacks import lacks
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.settings import PRODUCTION_NOW

CALLS, QUICK_CALLS, FULL_CALLS = 1_000_000, 300, 10_000_000
CANDIDATES = 60
ROUNDS = 2
WHOLE_S = 5.0
MEMORY_MB = 2_048
GROWTH = 1.3


def bench_replays(say: Say, quick: bool, full: bool = False) -> list[Figure]:
    """Measure a replay of a million calls and its parts; `full` adds ten million, `quick` takes few thousand."""
    calls = QUICK_CALLS if quick else CALLS
    with tempfile.TemporaryDirectory(prefix="replay-bench-") as folder:
        one = _measured(Path(folder), calls, ROUNDS, say)
        figures = _whole(calls, one, quick) + _phases(calls, one)
        if full:
            more = _measured(Path(folder), FULL_CALLS, 1, say)
            figures += _grown(figures[1], calls, one, more)
    say("replays: done", 1, 1)
    return figures


def _measured(folder: Path, calls: int, rounds: int, say: Say) -> dict[str, Any]:
    """Return the seconds of reading, of the replay and of its phases, and the highest memory in MB."""
    mirror = folder / f"{calls}.duckdb"
    say(f"replays: making a ledger of {calls:,} calls", 0, 2)
    write_ledger(mirror, calls, CANDIDATES, shipped("default"))
    say(f"replays: {calls:,} calls", 1, 2)
    command = [sys.executable, "-m", "replay.bench.replays", str(mirror), str(folder / "run"), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReplayError(f"the replay to be measured failed: {done.stderr.strip()[-300:]}; please report this")
    mirror.unlink()
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _whole(calls: int, one: dict[str, Any], quick: bool) -> list[Figure]:
    reading, whole = f"reading the tables of {calls:,} calls", f"replay of {calls:,} calls, file to folder"
    reached = None if quick else one["whole_s"] <= WHOLE_S
    ratio = one["whole_s"] / one["reading_s"]
    return [
        Figure(reading, one["reading_s"], "s"),
        Figure(whole, one["whole_s"], "s", reading, ratio, f"≤ {WHOLE_S:g} s", reached),
        Figure(f"{whole}, processor time", one["cpu_s"], "s", whole, one["cpu_s"] / one["whole_s"]),
        Figure(f"{whole}, highest memory", one["memory_mb"], "MB"),
    ]


def _phases(calls: int, one: dict[str, Any]) -> list[Figure]:
    against, whole_s = f"replay of {calls:,} calls, file to folder", one["whole_s"]
    return [Figure(f"  {name}", seconds, "s", against, seconds / whole_s) for name, seconds in one["phases_s"].items()]


def _grown(whole: Figure, calls: int, one: dict[str, Any], more: dict[str, Any]) -> list[Figure]:
    ratio = (more["whole_s"] / FULL_CALLS) / (one["whole_s"] / calls)
    fits = more["memory_mb"] <= MEMORY_MB
    name = f"replay of {FULL_CALLS:,} calls"
    return [
        Figure(
            f"{name}, each call",
            more["whole_s"] / FULL_CALLS * 1e6,
            "µs",
            whole.name,
            ratio,
            f"≤ {GROWTH:g}× the time of each call",
            ratio <= GROWTH,
        ),
        Figure(f"{name}, highest memory", more["memory_mb"], "MB", None, None, f"≤ {MEMORY_MB:,} MB", fits),
    ]


# What is measured, in its own process


class Phases:
    """Takes a run's progress and rows, and keeps the seconds between one word of progress and the next, by phase."""

    def __init__(self, writer: record.Writer) -> None:
        self.seconds: dict[str, float] = {}
        self._writer = writer
        self._phase, self._since = "", time.perf_counter()

    def say(self, what: str, done: int, total: int) -> None:
        """Take note of what is being done from now on."""
        self._enter(
            next((phase for start, end, phase in _PHASES if what.startswith(start) and what.endswith(end)), what)
        )

    def decisions(self, rows: pl.DataFrame) -> None:
        """Write some decisions."""
        self._write(lambda: self._writer.decisions(rows))

    def predictions(self, rows: pl.DataFrame) -> None:
        """Write some predictions."""
        self._write(lambda: self._writer.predictions(rows))

    def _write(self, write: Callable[[], None]) -> None:
        before = self._phase
        self._enter("writing rows, hashed")
        write()
        self._enter(before)

    def _enter(self, phase: str) -> None:
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now


_PHASES = (
    ("deciding under", " without lag", "deciding without lag"),
    ("deciding under", "", "deciding, tables built"),
    ("predicting under", "", "predicting"),
    ("auditing", "", "auditing, with what is flagged and warned of"),
)
"""How a word of progress begins and ends, and the phase that it begins."""


def replay_once(mirror: Path, out: Path) -> dict[str, float]:
    """Do what `replay run MIRROR --out OUT` does; returns the seconds of each phase."""
    with record.Writer(out) as writer:
        phases = Phases(writer)
        phases.say("reading the mirror, with content hashes", 0, 1)
        with open_mirror(mirror) as connection:
            ledger, inferred = load_ledger(connection), lacks(connection)
        done = engine.run(ledger, [PRODUCTION_NOW], progress=phases.say, sink=phases)
        phases.say("writing the record", 0, 1)
        made = record.make_record(done, ledger.identity, None, inferred, None, None, writer.hashes(done))
        writer.finish(made, done, mirror)
        phases.say("", 1, 1)
    return phases.seconds


def read_tables(mirror: Path) -> int:
    """Read the two large tables once, plainly; returns the rows."""
    with open_mirror(mirror) as connection:
        return sum(len(connection.execute(f"SELECT * FROM {table} ORDER BY id").pl()) for table in TABLES)


TABLES = ("calls", "route_observations")


def measure(mirror: Path, out: Path, rounds: int) -> dict[str, Any]:
    """Replay a mirror some times and read its tables, in turns; the fastest of each counts.

    Returns `whole_s`, `reading_s`, the `phases_s` of the fastest replay, its `cpu_s`, and the process's `memory_mb`.
    """
    replays: list[tuple[float, float, dict[str, float]]] = []
    reading_s = float("inf")
    for _ in range(rounds):
        reading_s = min(reading_s, best_of(1, lambda: read_tables(mirror)))
        began, cpu_began = time.perf_counter(), time.process_time()
        phases_s = replay_once(mirror, out)
        replays.append((time.perf_counter() - began, time.process_time() - cpu_began, phases_s))
    whole_s, cpu_s, phases_s = min(replays, key=lambda one: one[0])
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"whole_s": whole_s, "cpu_s": cpu_s, "reading_s": reading_s, "phases_s": phases_s, "memory_mb": memory_mb}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
