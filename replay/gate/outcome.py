"""What a scenario gives under the code at hand: the form that is held against a baseline, and that becomes one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from analysis import cost, prequential
from analysis import decisions as deciding
from replay import engine, record
from replay.engine import Progress
from replay.errors import ReplayError
from replay.gate.shared_sql import asks, on_duckdb, on_postgres
from replay.gate.suite import Scenario
from replay.ledger.folder import fill, frames, read_ledger_folder
from replay.ledger.importers import import_file
from replay.ledger.load import Ledger, load_ledger
from replay.ledger.mirror import open_mirror
from replay.ledger.offers import cost_frames
from replay.settings import Settings, quantiles
from replay.timeline import route_key_expr

PREDICTIONS = ("setting", "attempt_id", "p_start", "latency_start_ms", "p_read", "latency_read_ms")
"""The columns of a run's predictions that the code computes; the others are facts of the input."""

RECORD = ("input", "policy", "settings", "reproduction", "replayed", "warnings")
"""The keys of a run's record that say what must come out, not what it was made with."""


@dataclass(frozen=True)
class Outcome:
    """A scenario's decisions, predictions and SQL answers, and the record they rest on.

    `record` holds the keys of `RECORD` and `metrics`.
    `predictions` has every column of a run's; a baseline keeps those of `PREDICTIONS`. `ends`: `route_key` and `ts` in
    ms of each attempt of the ledger; a baseline has none.
    """

    record: dict[str, Any]
    decisions: pl.DataFrame
    predictions: pl.DataFrame
    sql: pl.DataFrame
    postgres: pl.DataFrame | None = None
    passed: bool = True
    ends: pl.DataFrame = field(default_factory=pl.DataFrame)


def replay_scenario(scenario: Scenario, postgres_url: str | None = None, progress: Progress | None = None) -> Outcome:
    """Replay a scenario; with a connection string, the shared SQL is asked on PostgreSQL too."""
    ledger = load(scenario)
    since_ms, until_ms = scenario.since_ms, scenario.until_ms
    asked = asks(ledger, since_ms, until_ms)
    with duckdb.connect() as connection:
        fill(connection, frames(ledger))
        answers = on_duckdb(connection, asked)
        costs = _costs(*cost_frames(connection)) if len(ledger.calls) else []
    postgres = None if postgres_url is None else on_postgres(postgres_url, ledger, asked)
    done = engine.run(ledger, scenario.settings, scenario.policy, since_ms, until_ms, progress)
    made = record.make_record(done, ledger.identity, scenario.policy, [], since_ms, until_ms)
    metrics = [*_predicted(done.predictions, scenario.settings), *_agreed(done.decisions), *costs]
    kept = json.loads(json.dumps({**{key: made[key] for key in RECORD}, "metrics": metrics}))  # as it is read back
    ends = ledger.attempts.select(route_key_expr(), "ts")
    return Outcome(kept, done.decisions, done.predictions, answers, postgres, done.passed, ends)


def load(scenario: Scenario) -> Ledger:
    """Read a scenario's ledger: a slice's folder, a mirror, or a file that its `source` maps."""
    path = scenario.ledger
    if not path.exists():
        raise ReplayError(
            f"there is no ledger at {path}; expected a slice's folder, a mirror, or a file "
            'with a source: commit it, or say absent = "why it may be missing"'
        )
    if scenario.source is not None:
        with tempfile.TemporaryDirectory() as folder:
            mirror = Path(folder) / "imported.duckdb"
            import_file(path, mirror, source=scenario.source)
            return _load_mirror(mirror)
    return read_ledger_folder(path) if path.is_dir() else _load_mirror(path)


def _load_mirror(path: Path) -> Ledger:
    with open_mirror(path) as connection:
        return load_ledger(connection)


def _metric(setting: str, name: str, value: float | None, of: int | None = None, **interval: Any) -> dict[str, Any]:
    return {"setting": setting, "metric": name, "value": value, "of": of, **interval}


def _predicted(predictions: pl.DataFrame, settings: Sequence[Settings]) -> list[dict[str, Any]]:
    if predictions.is_empty():
        return []
    figures = prequential.score(predictions, quantiles(settings)).filter(pl.col("scope") == prequential.ALL)
    return [
        _metric(row["setting"], f"{row['metric']}, {row['question']}", row["value"], row["attempts"])
        for row in figures.iter_rows(named=True)
        if row["value"] is not None
    ]


def _agreed(decisions: pl.DataFrame) -> list[dict[str, Any]]:
    if decisions.is_empty():
        return []
    rows = deciding.agreement(decisions).iter_rows(named=True)
    return [
        _metric(row["setting"], row["label"], row["share"], row["decisions"], low=row["low"], high=row["high"])
        for row in rows
    ]


def _costs(calls: pl.DataFrame, prices: pl.DataFrame, constant: pl.DataFrame) -> list[dict[str, Any]]:
    """Return what the recorded tokens cost, measured and at list price, in integer micro-dollars per provider."""
    rolled = cost.roll_up(cost.price_calls(calls, prices, constant)).sort("provider_id")
    return [
        _metric("", f"{name} of {row['provider_id'] or '(none)'}, micro-USD", row[column], row["compared"])
        for row in rolled.iter_rows(named=True)
        for name, column in (("measured cost", "measured_micro"), ("list cost", "expected_micro"))
    ]
