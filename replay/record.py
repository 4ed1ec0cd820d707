"""A run's folder: what was decided, what was predicted, and a record of everything it rests on.

    RUN/record.json           settings, policy, input, versions, reproduction, audit, warnings, hashes
    RUN/decisions.parquet     one row per setting and call (columns: `replay.engine.DECISIONS`)
    RUN/predictions.parquet   one row per setting and attempt (columns: `analysis.prequential`)
    RUN/rankings.parquet      of slices, if asked for: one row per candidate, too (columns: `replay.rankings.RANKINGS`)
    RUN/source.json           where the mirror was; the only file that is about this machine

Nothing else in it depends on the clock, on chance, on threads or on the order of rows in a file: the same inputs give
the same bytes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

import replay
from replay.audit import Audit
from replay.columns import by_first_use
from replay.core import Policy, Schema, admit
from replay.engine import DECISIONS, Run
from replay.errors import NotComparableError, ReplayError
from replay.reproduction import Reproduction
from replay.rowhash import RowHash
from replay.settings import Settings, from_dict

FORMAT = 3
ROWS_PER_GROUP = 65_536
DICTIONARY_BYTES = 2**17  # numbers that do not recur after all are written plainly from there on
MISMATCHES_SHOWN = 20
_TABLES = ("decisions", "predictions", "rankings")
_PACKAGES = ("duckdb", "numpy", "polars", "pyarrow")


@dataclass(frozen=True)
class StoredRun:
    """A run read back from its folder."""

    folder: Path
    record: dict[str, Any]
    decisions: pl.DataFrame
    predictions: pl.DataFrame
    mirror: Path | None

    @property
    def settings(self) -> list[Settings]:
        """The settings it replayed, in their order."""
        return [from_dict({key: one[key] for key in one if key != "identity"}) for one in self.record["settings"]]

    @property
    def rankings(self) -> pl.LazyFrame | None:
        """The full ranking of every decision, not read yet; None where the run was made without (`--full`)."""
        path = self.folder / "rankings.parquet"
        return pl.scan_parquet(path) if path.is_file() else None

    @property
    def input(self) -> dict[str, Any]:
        """What it read: tables with rows, ranges and content hashes, and the slice."""
        return dict(self.record["input"])

    @property
    def policy(self) -> Policy | None:
        """The policy it was given, None where every call was decided with its recorded one."""
        given = self.record["policy"]
        return given and admit(given["term"], Schema.declare(given["declared_fields"], given["tiers"]))


def make_record(
    run: Run,
    identity: dict[str, Any],
    policy: Policy | None,
    inferred: list[str],
    since_ms: int | None,
    until_ms: int | None,
    hashes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the record of a run as JSON data, without anything that changes from one run to the next.

    `hashes` are the decision hashes by setting, where a `Writer` took the rows.
    """
    if hashes is None:
        hashes = {one.settings.name: decision_hash(one.decisions) for one in run.replayed}
    return {
        "format": FORMAT,
        "route_replay": replay.__version__,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "input": {"tables": identity, "since_ms": since_ms, "until_ms": until_ms},
        "policy": None
        if policy is None
        else {
            "identity": policy.identity,
            "term": policy.term,
            "declared_fields": policy.schema.declared,
            "tiers": policy.schema.tiers,
        },
        "settings": [{**one.settings.to_dict(), "identity": one.settings.identity} for one in run.replayed],
        "inferred": inferred,
        "warnings": run.warnings,
        "reproduction": _reproduction(run.reproduction),
        "replayed": [
            {
                "setting": one.settings.name,
                "visibility": one.visibility,
                "decisions": one.decided,
                "predictions": one.predicted,
                "undecided": one.undecided,
                "lag_flips": None if one.lag_flips is None else len(one.lag_flips),
                "audit": _audit(one.audit),
                "decision_hash": hashes[one.settings.name],
            }
            for one in run.replayed
        ],
    }


def _reproduction(result: Reproduction) -> dict[str, Any]:
    return {
        "kind": result.kind,
        "decisions": result.decisions,
        "compared": result.compared,
        "agreed": result.agreed,
        "forced": result.forced,
        "excluded": dict(sorted(result.excluded.items())),
        "incomplete": dict(sorted(result.incomplete.items())),
        "causes": dict(sorted(result.causes.items())),
        "first_mismatch": result.first_mismatch,
    }


def _audit(result: Audit) -> dict[str, Any]:
    return {
        "decisions": result.decisions,
        "of_decisions": result.of_decisions,
        "comparisons": result.comparisons,
        "mismatches": len(result.mismatches),
        "first_mismatches": result.mismatches[:MISMATCHES_SHOWN],
    }


def decision_hash(decisions: pl.DataFrame) -> str:
    """Return a hash over every value of the decisions in their order; doubles count to the last bit."""
    rows = RowHash()
    rows.update(decisions.to_arrow())
    return rows.hexdigest()


class Writer:
    """Writes a run's folder while the run goes on; a sink for `replay.engine.run`.

    The folder appears only when `finish` has written everything, replacing an earlier run; otherwise nothing is left.
    """

    def __init__(self, folder: Path) -> None:
        if (
            folder.exists()
            and not (folder / "record.json").is_file()
            and (not folder.is_dir() or any(folder.iterdir()))
        ):
            raise ReplayError(f"{folder} exists and is not a run's folder; nothing was written: give another folder")
        self.folder = folder
        self._draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
        self._tables: dict[str, _Table] = {}
        self._hashes: dict[str, RowHash] = {}

    def __enter__(self) -> Writer:
        with self._said():
            self._draft.mkdir(parents=True)
            self._tables = {name: _Table(self._draft / f"{name}.parquet") for name in _TABLES}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for table in self._tables.values():
            table.close()
        shutil.rmtree(self._draft, ignore_errors=True)

    def decisions(self, rows: pa.Table) -> None:
        """Take some decisions of one setting, in order."""
        with self._said():
            self._tables["decisions"].add(rows)
        if len(rows):
            self._hashes.setdefault(rows["setting"][0].as_py(), RowHash()).update(rows)

    def predictions(self, rows: pa.Table) -> None:
        """Take some predictions, in order."""
        with self._said():
            self._tables["predictions"].add(rows)

    def rankings(self, rows: pa.Table) -> None:
        """Take some full rankings, in order; without any there is no such file."""
        with self._said():
            self._tables["rankings"].add(rows)

    def restart(self) -> None:
        """Forget all rows taken so far: they come again."""
        for table in self._tables.values():
            table.close()
        self._hashes = {}
        self._tables = {name: _Table(self._draft / f"{name}.parquet") for name in _TABLES}

    def hashes(self, run: Run) -> dict[str, str]:
        """Return the decision hash of every setting of a run."""
        nothing = RowHash()
        return {one.settings.name: self._hashes.get(one.settings.name, nothing).hexdigest() for one in run.replayed}

    def finish(self, record: dict[str, Any], run: Run, mirror: Path | None = None) -> None:
        """Write the record beside the rows, and let the folder appear."""
        if not run.proved:
            raise ReplayError("a replay without its audit is not written; run it with prove=True")
        with self._said():
            for table in self._tables.values():
                table.finish()
            text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
            (self._draft / "record.json").write_text(text + "\n", encoding="utf-8")
            source = {"mirror": None if mirror is None else str(mirror.resolve())}
            (self._draft / "source.json").write_text(json.dumps(source) + "\n", encoding="utf-8")
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self._draft.rename(self.folder)

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ReplayError(f"the run could not be written to {self.folder}: {error.strerror or error}") from error


class _Table:
    """A Parquet file whose row groups do not depend on how its rows come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[pa.Table] = []
        self._held = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, rows: pa.Table) -> None:
        self._rows.append(rows)
        self._held += len(rows)
        if self._held >= ROWS_PER_GROUP:
            whole = pa.concat_tables(self._rows)
            full = self._held - self._held % ROWS_PER_GROUP
            for start in range(0, full, ROWS_PER_GROUP):
                self._write(whole.slice(start, ROWS_PER_GROUP))
            self._rows, self._held = [whole.slice(full)], self._held - full

    def finish(self) -> None:
        if self._rows and (self._held or self._writer is None):
            self._write(pa.concat_tables(self._rows))
        self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, rows: pa.Table) -> None:
        # Texts with those of these rows, in the order of these rows, however they came.
        columns = {
            name: column if pa.types.is_primitive(column.type) else by_first_use(column)
            for name, column in zip(rows.column_names, rows.columns, strict=True)
        }
        table = pa.table(columns)
        if self._writer is None:
            ways = {field.name: _way(field) for field in table.schema}
            self._writer = pq.ParquetWriter(
                self._path,
                table.schema,
                compression="snappy",  # zstd saves another seventh, in a fifth more of the time
                use_dictionary=[name for name, way in ways.items() if way == "DICTIONARY"],
                column_encoding={name: way for name, way in ways.items() if way != "DICTIONARY"},
                dictionary_pagesize_limit=DICTIONARY_BYTES,
                write_statistics=False,
                store_schema=False,
            )
        self._writer.write_table(table, row_group_size=ROWS_PER_GROUP)


def _way(field: pa.Field) -> str:
    """Return how a column is encoded before it is compressed."""
    if field.type == pa.int64():  # ids and instants rise
        return "DELTA_BINARY_PACKED"
    if field.type in (pa.bool_(), pa.uint64()):
        return "PLAIN"
    return "BYTE_STREAM_SPLIT" if "latency_" in field.name else "DICTIONARY"


def write(folder: Path, record: dict[str, Any], run: Run, mirror: Path | None = None) -> None:
    """Write the folder of a run that kept its rows."""
    with Writer(folder) as writer:
        for one in run.replayed:
            writer.decisions(one.decisions.to_arrow())
        for one in run.replayed:
            writer.predictions(one.predictions.to_arrow())
        writer.finish(record, run, mirror)


def read(folder: Path) -> StoredRun:
    """Read a run's folder; raises ReplayError where it is none, or of another format."""
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        decisions = pl.read_parquet(folder / "decisions.parquet")
        predictions = pl.read_parquet(folder / "predictions.parquet")
        mirror = json.loads((folder / "source.json").read_text(encoding="utf-8"))["mirror"]
    except FileNotFoundError as error:
        raise ReplayError(
            f"{folder} is no run's folder; expected one written by `replay run … --out {folder}`"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, pl.exceptions.PolarsError) as error:
        raise ReplayError(f"{folder} cannot be read as a run's folder ({error}); replay it again") from error
    if not isinstance(record, dict):
        raise ReplayError(f"{folder} cannot be read as a run's folder (its record is no object); replay it again")
    if record.get("format") != FORMAT:
        raise NotComparableError(
            f"{folder} has format {record.get('format')}, this version reads format {FORMAT}: replay it again"
        )
    missing = set(DECISIONS) - set(decisions.columns)
    if missing:
        raise ReplayError(f"{folder}/decisions.parquet lacks the column {sorted(missing)[0]}; replay it again")
    return StoredRun(folder, record, decisions, predictions, None if mirror is None else Path(mirror))


def require_comparable(first: StoredRun, second: StoredRun) -> None:
    """Refuse two runs that do not rest on the same input; says where they differ."""
    if first.input == second.input:
        return
    ours, theirs = first.input, second.input
    for table, identity in ours["tables"].items():
        other = theirs["tables"].get(table)
        if other != identity:
            raise NotComparableError(
                f"{first.folder} and {second.folder} are not comparable: their inputs differ in {table} "
                f"({identity['rows']:,} rows, content {identity['content'][:8]}, against "
                f"{other['rows'] if other else 0:,} rows, content {other['content'][:8] if other else 'none'}). "
                "Replay both from the same mirror."
            )
    raise NotComparableError(
        f"{first.folder} and {second.folder} are not comparable: they replay different slices of the same ledger. "
        "Replay both with the same --since and --until."
    )
