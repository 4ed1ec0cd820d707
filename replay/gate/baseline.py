"""A baseline's folder: the accepted outcome of a scenario, committed by a person and never written by a check.

    NAME/record.json           what the outcome rests on, its metrics and hashes, and the history of acceptances
    NAME/decisions.parquet     one row per setting and call (columns: `replay.outcomes.DECISIONS`)
    NAME/predictions.parquet   what each setting predicted of each attempt
    NAME/sql.parquet           what the shared SQL says (columns: `replay.gate.shared_sql.ANSWERS`)
    NAME.new/                  a proposal, beside it: `replay accept` moves it into place

No clock, version or path is in it: the same outcome gives the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from replay.errors import NotComparableError, ReplayError
from replay.gate.outcome import PREDICTIONS, RECORD, Outcome
from replay.gate.shared_sql import ANSWERS
from replay.record import ROWS_PER_GROUP

FORMAT = 1
FRAMES: dict[str, dict[str, type[pl.DataType]]] = {
    "decisions": {"setting": pl.String, "call_id": pl.Int64, "decided_ms": pl.Int64},
    "predictions": {"setting": pl.String, "attempt_id": pl.Int64},
    "sql": dict(ANSWERS),
}
"""The files of a baseline, and the columns by which their rows are told apart."""


@dataclass(frozen=True)
class Baseline:
    """An accepted outcome and how it came to be: each acceptance's reason, and the decision hashes around it."""

    outcome: Outcome
    history: list[dict[str, Any]]


def proposal(baseline: Path) -> Path:
    """Return where a proposal for a baseline lies.

    >>> proposal(Path("baselines/outage")).name
    'outage.new'
    """
    return baseline.with_name(baseline.name + ".new")


def read(folder: Path) -> Baseline:
    """Read a baseline; raises NotComparableError where it is missing, damaged or of another format."""
    if not (folder / "record.json").is_file():
        raise NotComparableError(
            f"there is no baseline at {folder}; nothing can be compared: write a proposal with --update, look at it, "
            "and take it with `replay accept`"
        )
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        written = record.pop("format")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(folder / "record.json", "it is not a JSON object with a format") from error
    if written != FORMAT:
        raise NotComparableError(
            f"the baseline {folder} has format {written}, this version reads format {FORMAT}: check it with the "
            "version that wrote it, or delete it and write it anew with --update"
        )
    wrong = _misfit(record)
    if wrong is not None:
        raise _damaged(folder / "record.json", wrong)
    history = record.pop("history")
    frames = {name: _read_frame(folder / f"{name}.parquet", keys) for name, keys in FRAMES.items()}
    _require_objects(folder / "sql.parquet", frames["sql"]["row"])
    return Baseline(Outcome(record, frames["decisions"], frames["predictions"], frames["sql"]), history)


def _misfit(record: dict[str, Any]) -> str | None:
    """Say what of a record is not as `write_record` writes it, None where it can be worked with."""
    expected = {*RECORD, "metrics", "history"}
    if set(record) != expected:
        return f"its key {min(set(record) ^ expected)} is missing or not known"
    texts = {"history": ("reason",), "metrics": ("setting", "metric"), "replayed": ("setting", "decision_hash")}
    for key, names in texts.items():
        rows = record[key]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return f"{key} is no list of objects"
        if not all(isinstance(row.get(name), str) for row in rows for name in names):
            return f"an entry of {key} lacks one of the texts {', '.join(names)}"
    values = [row.get(name) for row in record["metrics"] for name in ("value", "of")]
    if not all(value is None or type(value) in (int, float) for value in values):
        return "the value of a metric is no number"
    return None


def _read_frame(path: Path, keys: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    """Read a frame; the columns by which its rows are told apart have to be there, whole and of their types."""
    if not path.is_file():
        raise _damaged(path, "there is no such file")
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _damaged(path, error) from error
    for name, kind in keys.items():
        if frame.schema.get(name) != kind or frame[name].null_count():
            raise _damaged(path, f"its column {name} is missing, or not {kind.__name__} in every row")
    return frame


def _require_objects(path: Path, rows: pl.Series) -> None:
    try:
        objects = all(isinstance(json.loads(row), dict) for row in rows)
    except ValueError as error:
        raise _damaged(path, error) from error
    if not objects:
        raise _damaged(path, "an answer's row is no JSON object")


def _damaged(path: Path, why: object) -> NotComparableError:
    return NotComparableError(
        f"the baseline {path} cannot be read ({str(why).splitlines()[0] if str(why) else type(why).__name__}); nothing "
        "can be compared: restore it from version control"
    )


def write_proposal(baseline: Path, outcome: Outcome, history: list[dict[str, Any]]) -> Path:
    """Write an outcome beside the baseline, whole or not at all, and return its folder."""
    folder = proposal(baseline)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    frames = {
        "decisions": outcome.decisions,
        "predictions": outcome.predictions.select(PREDICTIONS),
        "sql": outcome.sql,
    }
    try:
        draft.mkdir(parents=True)
        for name, frame in frames.items():
            pq.write_table(
                frame.to_arrow(),
                draft / f"{name}.parquet",
                row_group_size=ROWS_PER_GROUP,
                compression="zstd",
                store_schema=False,
            )
        write_record(draft, outcome.record, history)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    except OSError as error:
        raise ReplayError(f"no proposal could be written to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def write_record(folder: Path, record: dict[str, Any], history: list[dict[str, Any]]) -> None:
    """Write a baseline's record with its history."""
    text = json.dumps({**record, "format": FORMAT, "history": history}, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / "record.json").write_text(text + "\n", encoding="utf-8")


def hashes(record: dict[str, Any]) -> dict[str, str]:
    """Return the decision hash of each setting of a record."""
    return {one["setting"]: one["decision_hash"] for one in record["replayed"]}
