"""A sweep: every setting of a grid measured by worker processes, resumable, into one tidy table.

What is measured is kept at once in a folder beside the table, one file for each setting, under a name made of all it
rests on: input and slice, settings, the first setting, policy and code. A sweep that was stopped, or killed, goes on
from there; the table does not depend on how often, in which order, or by how many processes.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

import analysis
import replay
from analysis.prequential import FIGURES_SCHEMA
from replay.core import Policy
from replay.engine import Progress, Run
from replay.errors import ReplayError, StoppedError
from replay.ledger.load import Ledger
from replay.memory import peak_mb
from replay.record import ROWS_PER_GROUP
from replay.settings import Settings
from replay.sweep.grid import require_unique_names
from replay.sweep.work import Work, alone, prove

METRICS_SCHEMA: dict[str, Any] = {
    "setting": pl.String,
    "identity": pl.String,
    "settings": pl.String,
    **{name: kind for name, kind in FIGURES_SCHEMA.items() if name != "setting"},
    "decisions": pl.Int64,
}
"""Columns of a sweep's table: one row for each setting, question, metric and scope.

`settings` is the canonical JSON, `identity` its hash. Rows of predictions are those of `analysis.prequential.score`
(scopes: "all" and every route). Those of "the decisions" have `value` over `decisions` of them: "agreement" with the
route that was taken, "flips" against the first setting, "undecided", and "switches per 100": how often the winner is
another than at the last decision that asked the same of the same policy.
"""


@dataclass(frozen=True)
class Swept:
    """What came of a sweep.

    `proof` is the bases' replay, `measured` and `kept` count the distinct settings measured now and before,
    `interpreted` says why the compiled core did not decide, by name. `worker_peak_mb` is that of the largest worker,
    0 without any; pages it shares with the first process are counted in both.
    """

    table: pl.DataFrame
    proof: Run
    measured: int
    kept: int
    interpreted: dict[str, str]
    peak_mb: float
    worker_peak_mb: float


def sweep(
    ledger: Ledger,
    bases: Sequence[Settings],
    points: Sequence[Settings],
    out: Path,
    policy: Policy | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Swept:
    """Measure the first base and every point, and write the table to `out` (Parquet).

    The bases are audited and reproduced first, as `replay run` does; the points are not. Raises ReplayError where that
    fails, two settings have one name, or something cannot be written, and StoppedError on Ctrl-C.
    """
    say = progress or (lambda what, done, total: None)
    settings = [*bases[:1], *points]
    require_unique_names(settings)
    if jobs < 1:
        raise ReplayError(f"a sweep with {jobs} jobs measures nothing; expected 1 or more")
    parts = _Parts(out, _rests_on(ledger, settings[0], policy, since_ms, until_ms))
    distinct = list({one.identity: one for one in reversed(settings)}.values())[::-1]
    proof = prove(ledger, bases, policy, since_ms, until_ms, say)
    todo = [one for one in distinct if not parts.has(one)]
    if todo:
        say("laying out the ledger", 0, 1)
        work = Work(ledger, policy, since_ms, until_ms)
        say(f"deciding under {settings[0].name}", 0, 1)
        work.prepare([settings[0], *todo])
        _measure(work, parts, todo, len(distinct), jobs, say)
    found = {one.identity: parts.read(one) for one in distinct}
    rows = [{**_named(one), **row} for one in settings for row in found[one.identity]["rows"]]
    table = pl.DataFrame(rows, schema=METRICS_SCHEMA)
    parts.finish(table)
    why = {one.name: found[one.identity]["interpreted"] for one in settings}
    return Swept(
        table,
        proof,
        len(todo),
        len(distinct) - len(todo),
        {name: said for name, said in why.items() if said is not None},
        peak_mb(),
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    )


def _measure(work: Work, parts: _Parts, todo: list[Settings], total: int, jobs: int, say: Progress) -> None:
    done = total - len(todo)
    here = [one for one in todo if jobs == 1 or alone(one)]
    elsewhere = [one for one in todo if not (jobs == 1 or alone(one))]
    try:
        say("measuring settings", done, total)
        for one in here:
            parts.write(one, work.measure(one))
            done += 1
            say("measuring settings", done, total)
        _in_processes(work, parts, elsewhere, jobs, lambda count: say("measuring settings", done + count, total))
    except KeyboardInterrupt:
        raise StoppedError(
            f"stopped: {parts.count(todo) + total - len(todo)} of {total} settings are measured and kept in "
            f"{parts.folder}; the same command goes on from there"
        ) from None


# Processes

_measure_one: Callable[[Settings], None] | None = None  # what a worker process does; set when it begins


def _in_processes(work: Work, parts: _Parts, settings: list[Settings], jobs: int, tell: Callable[[int], None]) -> None:
    """Measure settings in forked processes, which share what was laid out; `tell` how many are done.

    On Ctrl-C those under way are finished and kept.
    """
    if not settings:
        return

    def measure_one(one: Settings) -> None:
        parts.write(one, work.measure(one))

    gc.collect()
    gc.freeze()  # a collection in a worker would copy every page it looks at
    pool = ProcessPoolExecutor(
        min(jobs, len(settings)), get_context("fork"), initializer=_begin, initargs=(measure_one,)
    )
    try:
        with warnings.catch_warnings():
            # Python warns of forking beside threads; the workers use nothing of theirs, Polars least of all.
            warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
            futures = [pool.submit(_work, one) for one in settings]
        for count, future in enumerate(as_completed(futures), start=1):
            future.result()
            tell(count)
    except BrokenProcessPool as error:
        raise ReplayError(
            f"a worker process was killed, perhaps for want of memory; {parts.count(settings)} of {len(settings)} "
            "settings are kept: run the same command again, with fewer --jobs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        gc.unfreeze()


def _begin(measure_one: Callable[[Settings], None]) -> None:
    """Begin a worker process: Ctrl-C is for the one that started it, without which it ends."""
    global _measure_one
    _measure_one = measure_one
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _work(one: Settings) -> None:
    if _measure_one is None:
        raise AssertionError("a worker process has not begun")
    _measure_one(one)


# What is kept


class _Parts:
    """Every setting's figures as a file of its own beside the table, until the table is written."""

    def __init__(self, out: Path, rests_on: str) -> None:
        if out.is_dir() or not out.parent.is_dir():
            why = "is a folder" if out.is_dir() else f"is in {out.parent}, which does not exist"
            raise ReplayError(f"{out} {why}; expected the path of a Parquet file to write, such as sweep.parquet")
        if out.exists() and not _is_table(out):
            raise ReplayError(f"{out} exists and no sweep wrote it; nothing was changed: give another path")
        self.out = out
        self.folder = out.with_name(f".{out.name}.parts")
        self._rests_on = rests_on

    def path(self, one: Settings) -> Path:
        """Return where a setting's figures are kept."""
        return self.folder / f"{_hash(self._rests_on + one.identity)}.json"

    def has(self, one: Settings) -> bool:
        """Say whether a setting was measured already."""
        return self.path(one).is_file()

    def count(self, settings: Sequence[Settings]) -> int:
        """Count those that were measured."""
        return sum(self.has(one) for one in settings)

    def write(self, one: Settings, measured: dict[str, Any]) -> None:
        """Keep a setting's figures; the file is there whole, or not at all."""
        path = self.path(one)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        with self._said():
            self.folder.mkdir(exist_ok=True)
            draft.write_text(json.dumps(measured, allow_nan=False), encoding="utf-8")
            draft.replace(path)

    def read(self, one: Settings) -> dict[str, Any]:
        """Read a setting's figures back."""
        with self._said():
            found: dict[str, Any] = json.loads(self.path(one).read_text(encoding="utf-8"))
        return found

    def finish(self, table: pl.DataFrame) -> None:
        """Write the table, and remove the parts."""
        draft = self.folder / f"table.{os.getpid()}.draft"
        with self._said():
            self.folder.mkdir(exist_ok=True)
            rows = table.to_arrow()
            pq.write_table(rows, draft, row_group_size=ROWS_PER_GROUP, compression="zstd", store_schema=False)
            draft.replace(self.out)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ReplayError(
                f"the sweep could not be written to {self.out}: {error.strerror or error}; make room, or give another "
                "path; what was measured is kept"
            ) from error


def _is_table(path: Path) -> bool:
    """Say whether a file is a sweep's table, which a sweep may replace."""
    try:
        return bool(pq.read_schema(path).names == list(METRICS_SCHEMA))
    except (OSError, ValueError):
        return False


def _named(one: Settings) -> dict[str, str]:
    return {"setting": one.name, "identity": one.identity, "settings": one.to_json()}


def _rests_on(
    ledger: Ledger, first: Settings, policy: Policy | None, since_ms: int | None, until_ms: int | None
) -> str:
    """Return the hash of all that a setting's figures rest on besides the setting itself."""
    rooms = (Path(room.__file__ or "").parent for room in (replay, analysis))
    sources = (path for room in rooms for path in sorted(room.rglob("*.py")))
    code = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    versions = [replay.__version__, *(version(name) for name in ("numba", "numpy"))]
    whole = [ledger.identity, since_ms, until_ms, first.identity, policy and policy.identity, versions, code]
    return _hash(json.dumps(whole, sort_keys=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
