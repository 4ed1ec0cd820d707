"""A run's folder: what was decided, what was predicted, and a record of everything it rests on.

    RUN/record.json           settings, policy, input, versions, reproduction, audit, warnings, hashes
    RUN/decisions.parquet     one row per setting and call (columns: `replay.engine.DECISIONS`)
    RUN/predictions.parquet   one row per setting and attempt (columns: `analysis.prequential`)
    RUN/source.json           where the mirror was; the only file that is about this machine

Nothing else in it depends on the clock, on chance, on threads or on the order of rows in a file: the same inputs give
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

import replay
from replay.audit import Audit
from replay.core import Policy, Schema, admit
from replay.engine import DECISIONS, Run
from replay.errors import NotComparableError, ReplayError
from replay.reproduction import Reproduction
from replay.settings import Settings, from_dict

FORMAT = 2
ROWS_PER_GROUP = 65_536
MISMATCHES_SHOWN = 20
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
) -> dict[str, Any]:
    """Return the record of a run as JSON data, without anything that changes from one run to the next."""
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
                "decisions": len(one.decisions),
                "predictions": len(one.predictions),
                "undecided": one.undecided,
                "lag_flips": None if one.lag_flips is None else len(one.lag_flips),
                "audit": _audit(one.audit),
                "decision_hash": decision_hash(one.decisions),
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
    """Return the SHA-256 over every value of the decisions in their order; doubles count to the last bit."""
    digest = hashlib.sha256()
    for column in decisions.iter_columns():
        digest.update(column.name.encode())
        values = column.to_list()
        if column.dtype == pl.Float64:
            values = [None if value is None else value.hex() for value in values]
        digest.update(json.dumps(values).encode())
    return digest.hexdigest()


def write(folder: Path, record: dict[str, Any], run: Run, mirror: Path | None = None) -> None:
    """Write a run's folder whole: it appears only when everything in it is written, replacing an earlier run."""
    if not run.proved:
        raise ReplayError("a replay without its audit is not written; run it with prove=True")
    if folder.exists() and not (folder / "record.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ReplayError(f"{folder} exists and is not a run's folder; nothing was written: give another folder")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    try:
        draft.mkdir(parents=True)
        _write_parquet(draft / "decisions.parquet", run.decisions)
        _write_parquet(draft / "predictions.parquet", run.predictions)
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
        (draft / "record.json").write_text(text + "\n", encoding="utf-8")
        source = {"mirror": None if mirror is None else str(mirror.resolve())}
        (draft / "source.json").write_text(json.dumps(source) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except OSError as error:
        raise ReplayError(f"the run could not be written to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_parquet(path: Path, frame: pl.DataFrame) -> None:
    pq.write_table(frame.to_arrow(), path, row_group_size=ROWS_PER_GROUP, compression="zstd", store_schema=False)


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
