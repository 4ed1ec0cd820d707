"""Decisions per second of the engine on one thread, against production's way and against the interpreter.

A decision is whole: its stamps are brought up to date, breakers and disabled providers are known, the candidates
filtered, scored and ordered, and what came of it is noted. Tables are not built and nothing is written. Time is the
processor's, of all threads together, so that others on the machine count little; compiling stands apart.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import duckdb
import numpy as np

from replay import offerbook, outcomes, queries, timeline
from replay.asking import Policies
from replay.bench import Figure, Say
from replay.bench.alone import alone
from replay.bench.synthetic import shipped, write_ledger
from replay.core import Policy, State, admit, plan
from replay.deciding import Decider
from replay.kernel.compiled import compiled
from replay.kernel.core import CompiledCore
from replay.ledger.derivations import Row, Windows
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.measuring import Measuring
from replay.settings import PRODUCTION_NOW
from replay.stamps import Evidence, stamp
from replay.timeline import Floats, Ints, Timeline

CALLS, QUICK_CALLS = 1_000_000, 20_000
SAMPLE = 200
"""Decisions made production's way: each asks DuckDB twice."""

INTERPRETED = 4_096
ROUNDS = 9
"""Others on the machine slow the processor itself; of several rounds, the fastest one was disturbed least."""

AIMS = {("default", 60): 1e6, ("default", 20): 2e6}
"""Decisions per second aimed at."""

TIMES_SQL = 1_000

DECISIONS = "decisions/s"


def bench_decisions(say: Say, quick: bool) -> list[Figure]:
    """Measure the policies `default` at 20 and 60 candidates and `balanced` at 60, over a million calls each."""
    calls = QUICK_CALLS if quick else CALLS
    figures = [] if quick else [_compile_figure(say)]
    for candidates, names in ((20, ["default"]), (60, ["default", "balanced"])):
        with _ledger(calls, candidates, say) as (mirror, axis):
            book = offerbook.build(axis)
            deciders = {name: Decider(axis, book, Policies(axis, shipped(name))) for name in names}
            engines = _engines(deciders, candidates, quick, say)
            figures += engines
            if candidates == 60:
                figures += _others(engines[1], deciders["default"], mirror, quick, say)
                figures += _parts(axis, book, quick, say)
    say("decisions: done", 1, 1)
    return figures


@contextmanager
def _ledger(calls: int, candidates: int, say: Say) -> Iterator[tuple[Path, Timeline]]:
    say(f"decisions: making a ledger of {calls:,} calls, {candidates} candidates", 0, 1)
    with tempfile.TemporaryDirectory(prefix="replay-bench-") as folder:
        mirror = Path(folder) / "ledger.duckdb"
        write_ledger(mirror, calls, candidates, shipped("default"))
        yield mirror, _timeline(mirror)


def _timeline(mirror: Path) -> Timeline:
    with open_mirror(mirror) as connection:
        return timeline.build(load_ledger(connection, whole=False))


def _engines(deciders: dict[str, Decider], candidates: int, quick: bool, say: Say) -> list[Figure]:
    """Decide all calls under each policy, in turns with a loop that only finds the largest of as many numbers."""
    calls = len(next(iter(deciders.values())).selected)
    works = {"": _bare(calls, candidates)} | {name: partial(decide_all, one) for name, one in deciders.items()}
    for work in works.values():
        work()  # whatever is compiled is compiled, or read from disk, now
    least_s = dict.fromkeys(works, float("inf"))
    for number in range(ROUNDS):
        say(f"decisions: {', '.join(deciders)} at {candidates} candidates", number, ROUNDS)
        for name, work in works.items():
            least_s[name] = min(least_s[name], _cpu_s(work))
    bare = Figure(f"bare loop, the largest of {candidates} numbers", calls / least_s.pop(""), DECISIONS)
    figures = [bare]
    for name, decided_s in least_s.items():
        rate, aim = calls / decided_s, AIMS.get((name, candidates))
        said = None if aim is None else f"≥ {aim:,.0f} {DECISIONS}"
        reached = None if aim is None or quick else rate >= aim
        figures.append(Figure(_engine(name, candidates), rate, DECISIONS, bare.name, rate / bare.value, said, reached))
    return figures


def _engine(name: str, candidates: int) -> str:
    return f"engine, policy {name}, {candidates} candidates"


def decide_all(decider: Decider) -> int:
    """Decide every call under production's settings with nothing known beforehand but the ledger; returns how many."""
    blocks = CompiledCore(decider).decide(Measuring(decider.timeline, PRODUCTION_NOW), decider.selected, _silent, "")
    return sum(len(block.calls) for block in blocks)


def _others(engine: Figure, decider: Decider, mirror: Path, quick: bool, say: Say) -> list[Figure]:
    """The same decisions in production's way and by the interpreter, on samples."""
    calls = np.unique(np.linspace(0, len(decider.selected) - 1, 20 if quick else SAMPLE).astype(np.int64))
    say("decisions: production's way", 0, 1)
    with open_mirror(mirror) as connection:
        connection.execute("SET threads = 1")
        by_sql(connection, decider, calls[:1])
        production = len(calls) / _cpu_s(lambda: by_sql(connection, decider, calls))
    say("decisions: the interpreter", 0, 1)
    some = decider.selected[-(256 if quick else INTERPRETED) :]
    measuring = Measuring(decider.timeline, PRODUCTION_NOW)
    interpreted = len(some) / _cpu_s(lambda: sum(1 for _ in outcomes.interpreted(decider, measuring, some)))
    sql, core = f"shared SQL and interpreter, {len(calls)} decisions", f"interpreter core, {len(some):,} decisions"
    aim, times = f"≥ {TIMES_SQL:,}×", engine.value / production
    reached = None if quick else times >= TIMES_SQL
    return [
        Figure(sql, production, DECISIONS),
        Figure(engine.name, engine.value, DECISIONS, sql, times, aim, reached),
        Figure(core, interpreted, DECISIONS),
        Figure(engine.name, engine.value, DECISIONS, core, engine.value / interpreted),
    ]


def by_sql(connection: duckdb.DuckDBPyConnection, decider: Decider, calls: Ints) -> list[str | None]:
    """Decide some calls as production does: both queries on the ledger as it was, stamp, plan; returns the routes.

    The windows end at the evidence instant; breakers are left out, in production's favour.
    """
    windows, chosen = Windows.of(PRODUCTION_NOW), []
    for call in calls.tolist():
        at_ms, asked, policy = (
            int(decider.timeline.calls.evidence_ms[call]),
            decider.asked[call],
            decider.policies.of(call),
        )
        assert policy is not None
        assert asked.request is not None
        answers: list[list[Row]] = []
        for name, values in windows.asked(at_ms):
            query = queries.load(name)
            found = connection.execute(query.text, query.bind(**{**values, "until_ms": at_ms}))
            names = [column[0] for column in found.description or ()]
            answers.append([dict(zip(names, row, strict=True)) for row in found.fetchall()])
        stats, incapable = windows.told(answers)
        candidates = stamp(decider.segment(call).candidates, Evidence(at_ms, stats, incapable))
        ordered = plan(policy, candidates, asked.request, State(), asked.seed).ordered
        chosen.append(candidates[ordered[0]].route_key if ordered else None)
    return chosen


# What a decision's parts cost


def _parts(axis: Timeline, book: offerbook.OfferBook, quick: bool, say: Say) -> list[Figure]:
    """Take parts of `balanced` away, one after the other; what is left at the end is stamps, state and notes."""
    term = list(shipped("balanced").term)
    kept = {
        "balanced, latency not scored": _with(term, scorer=["add", term[2][1], term[2][2]]),
        "balanced, only prices scored": _with(term, scorer=["neg", ["normalize", ["field", "price_out"]]]),
        "nothing filtered, all scores 0": _with(term, pred=["top"], scorer=["zero"], selector=["argmax"]),
    }
    figures = []
    for number, (name, policy) in enumerate(kept.items()):
        say("decisions: which part costs what", number, len(kept))
        work = partial(decide_all, Decider(axis, book, Policies(axis, policy)))
        decided_s = min(_cpu_s(work) for _ in range(1 if quick else ROUNDS))
        figures.append(Figure(f"engine, {name}, 60 candidates", len(axis.calls) / decided_s, DECISIONS))
    return figures


def _with(term: list[object], **parts: object) -> Policy:
    names = ("pred", "scorer", "selector")
    pred, scorer, selector = (parts.get(name, term[place]) for place, name in enumerate(names, start=1))
    return admit(["policy", pred, scorer, selector, *term[4:]], shipped("balanced").schema)


# Clocks and yardsticks


def _silent(what: str, done: int, total: int) -> None:
    """Say nothing."""


def _bare(calls: int, candidates: int) -> Callable[[], object]:
    scores = np.random.default_rng(0).random((4_096, candidates))
    _largest(scores, 1)
    return lambda: _largest(scores, calls)


@compiled
def _largest(scores: Floats, calls: int) -> int:
    """Find the place of the largest score, so many times; returns the sum of the places."""
    total = 0
    for call in range(calls):
        row = call % len(scores)
        best = 0
        for place in range(1, scores.shape[1]):
            if scores[row, place] > scores[row, best]:
                best = place
        total += best
    return total


def _cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _compile_figure(say: Say) -> Figure:
    """The seconds that the first decision ever waits for the compiler, in a process with an empty cache."""
    say("decisions: compiling from nothing", 0, 1)
    with tempfile.TemporaryDirectory(prefix="replay-bench-") as folder:
        mirror = Path(folder) / "ledger.duckdb"
        write_ledger(mirror, 1_000, 20, shipped("default"))
        seconds = alone(__name__, "first_use", str(mirror), environment={"NUMBA_CACHE_DIR": folder})
    return Figure("compiling, once for all processes", seconds, "s")


def first_use(mirror: str) -> float:
    """Return how many more seconds deciding takes for the first time in this process than for the second."""
    axis = _timeline(Path(mirror))
    decider = Decider(axis, offerbook.build(axis), Policies(axis, shipped("default")))
    return _cpu_s(lambda: decide_all(decider)) - _cpu_s(lambda: decide_all(decider))
