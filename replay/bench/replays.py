"""A whole replay, from mirror file to written run folder, against reading the mirror's tables once.

Every size is measured in a process of its own, so that its highest memory is its own too. A replay is what `replay run`
does under production's settings, audit included; the fastest of some counts, so files are in the page cache and
compiled code is loaded. Reading is one `SELECT *` of each of the two large tables, without the content hashes that a
run needs.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from replay import record
from replay.bench import Figure, Say, best_of
from replay.bench.alone import alone
from replay.bench.synthetic import shipped, write_ledger
from replay.estimators import Ema, Rule, Window
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.memory import peak_mb
from replay.pieces import replay_mirror
from replay.settings import PRODUCTION_NOW, Measure, Settings
from replay.sweep.running import sweep

CALLS, QUICK_CALLS, FULL_CALLS = 1_000_000, 300, 10_000_000
CANDIDATES = 60
ROUNDS = 8
WHOLE_S = 5.0
MEMORY_MB = 2_048
GROWTH = 1.3
SWEPT, QUICK_SWEPT = 10, 2
"""Rules of each of two measures; a sweep takes every pair of them."""

SWEEP_TIMES = 25.0


def bench_replays(say: Say, quick: bool, full: bool = False) -> list[Figure]:
    """Measure a replay of a million calls and its parts; `full` adds ten million, `quick` takes few."""
    calls = QUICK_CALLS if quick else CALLS
    with tempfile.TemporaryDirectory(prefix="replay-bench-") as folder:
        rules = QUICK_SWEPT if quick else SWEPT
        one = _measured(Path(folder), calls, ROUNDS, rules, say)
        figures = _whole(calls, one, quick) + _phases(calls, one) + _swept(calls, one, rules, quick)
        if full:
            more = _measured(Path(folder), FULL_CALLS, 1, 0, say)
            figures += _grown(figures[1], calls, one, more)
    say("replays: done", 1, 1)
    return figures


def _measured(folder: Path, calls: int, rounds: int, rules: int, say: Say) -> dict[str, Any]:
    """Return what `measure` and, with any rules, `measure_sweep` return, each run in a process of its own."""
    mirror = folder / f"{calls}.duckdb"
    say(f"replays: making a ledger of {calls:,} calls", 0, 3)
    write_ledger(mirror, calls, CANDIDATES, shipped("default"))
    say(f"replays: {calls:,} calls", 1, 3)
    measured: dict[str, Any] = alone(__name__, "measure", str(mirror), str(folder / "run"), rounds, int(rules > 0))
    if rules:
        say(f"replays: a sweep of {rules * rules} settings over {calls:,} calls", 2, 3)
        measured |= alone(__name__, "measure_sweep", str(mirror), str(folder / "sweep.parquet"), rules)
    mirror.unlink()
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


def _swept(calls: int, one: dict[str, Any], rules: int, quick: bool) -> list[Figure]:
    name, whole = f"sweep of {rules * rules} settings", f"replay of {calls:,} calls, file to folder"
    ratio, aim = one["sweep_s"] / one["whole_s"], f"≤ {SWEEP_TIMES:g}×"
    reached = None if quick else ratio <= SWEEP_TIMES
    return [
        Figure(name, one["sweep_s"], "s", whole, ratio, aim, reached),
        Figure(f"{name}, highest memory of a process", one["sweep_mb"], "MB"),
    ]


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
    """Takes a run's progress, and keeps the seconds between one word of it and the next, by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._phase, self._since = "", time.perf_counter()

    def say(self, what: str, done: int, total: int) -> None:
        """Take note of what is being done from now on, in whichever piece."""
        what = what.partition(", piece ")[0]
        phase = next((phase for start, end, phase in _PHASES if what.startswith(start) and what.endswith(end)), what)
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now


_PHASES = (
    ("deciding under", " without lag", "deciding without lag, predicting"),
    ("reproducing", "", "reproducing, predicting"),
    ("deciding under", "", "deciding, writing"),
    ("auditing", "", "auditing, predicting, writing"),
)
"""How a word of progress begins and ends, and what is being done then; what is named together goes on side by side."""


def replay_once(mirror: Path, out: Path) -> dict[str, float]:
    """Do what `replay run MIRROR --out OUT` does; returns the seconds of each phase."""
    with record.Writer(out) as writer:
        phases = Phases()
        phases.say("reading the mirror, with content hashes", 0, 1)
        read = replay_mirror(mirror, [PRODUCTION_NOW], writer, progress=phases.say)
        phases.say("writing the record", 0, 1)
        made = record.make_record(read.run, read.identity, None, read.inferred, None, None, writer.hashes(read.run))
        writer.finish(made, read.run, mirror)
        phases.say("", 1, 1)
    return phases.seconds


def read_tables(mirror: Path) -> int:
    """Read the two large tables once, plainly; returns the rows."""
    with open_mirror(mirror) as connection:
        return sum(len(connection.execute(f"SELECT * FROM {table} ORDER BY id").pl()) for table in TABLES)


TABLES = ("calls", "route_observations")


def measure(mirror: str, out: str, rounds: int, reads: int = 1) -> dict[str, Any]:
    """Replay a mirror some times and, unless `reads` is 0, read its tables as often; the fastest of each counts.

    Returns `whole_s`, the `phases_s` of the fastest replay, its `cpu_s`, the most memory that replaying took as
    `memory_mb`, and `reading_s`.
    """
    replays: list[tuple[float, float, dict[str, float]]] = []
    for _ in range(rounds):
        began, cpu_began = time.perf_counter(), time.process_time()
        phases_s = replay_once(Path(mirror), Path(out))
        replays.append((time.perf_counter() - began, time.process_time() - cpu_began, phases_s))
    whole_s, cpu_s, phases_s = min(replays, key=lambda one: one[0])
    memory_mb = peak_mb()  # before whole tables are read
    measured = {"whole_s": whole_s, "cpu_s": cpu_s, "phases_s": phases_s, "memory_mb": memory_mb}
    if reads:
        measured["reading_s"] = best_of(rounds, lambda: read_tables(Path(mirror)))
    return measured


def measure_sweep(mirror: str, out: str, rules: int) -> dict[str, Any]:
    """Sweep every pair of so many rules on all cores, as `replay sweep` does; returns `sweep_s` and `sweep_mb`."""
    began = time.perf_counter()
    with open_mirror(Path(mirror)) as connection:
        ledger = load_ledger(connection, whole=False)
    swept = sweep(ledger, [PRODUCTION_NOW], grid(rules), Path(out), jobs=os.cpu_count() or 1)
    memory_mb = max(swept.peak_mb, swept.worker_peak_mb)
    return {"sweep_s": time.perf_counter() - began, "sweep_mb": memory_mb}


def grid(rules: int) -> list[Settings]:
    """Return every pair of rules, half of them windows and half EMAs, as settings.

    >>> [one.name for one in grid(2)]
    ['window-0 window-0', 'window-0 ema-0', 'ema-0 window-0', 'ema-0 ema-0']
    """
    half = rules // 2
    known: dict[str, Rule] = {f"window-{n}": Window(60_000 * 2**n) for n in range(half)}
    known |= {f"ema-{n}": Ema(0.05 * 2**n / 2) for n in range(rules - half)}
    pairs = [(first, second) for first in known for second in known]
    return [
        replace(PRODUCTION_NOW, name=f"{a} {b}", reliability=Measure(rule=known[a]), latency=Measure(rule=known[b]))
        for a, b in pairs
    ]
