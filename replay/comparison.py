"""Comparing settings: who predicts better, which decisions flip, and what turned them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import polars as pl

from analysis import decisions as deciding
from analysis import prequential
from replay import timeline
from replay.causes import CAUSES_SCHEMA, causes
from replay.engine import Progress
from replay.errors import NotComparableError, ReplayError
from replay.ledger.load import TABLES, load_ledger
from replay.ledger.mirror import open_mirror
from replay.measuring import Measuring
from replay.predictions import predictions as predictions_of
from replay.record import ROWS_PER_GROUP, StoredRun, require_comparable
from replay.settings import Settings, quantiles
from replay.timeline import Timeline

PROCESS_SEEDS = 20


@dataclass(frozen=True)
class Side:
    """One setting of one run, under a name that is unique in the comparison."""

    run: StoredRun
    settings: Settings
    name: str

    @property
    def named(self) -> Settings:
        """The settings under that name."""
        return replace(self.settings, name=self.name)


@dataclass(frozen=True)
class Comparison:
    """Tidy frames: see `analysis.prequential` and `analysis.decisions` for their columns."""

    sides: list[Side]
    figures: pl.DataFrame
    differences: pl.DataFrame
    flips: pl.DataFrame
    flip_summary: pl.DataFrame
    agreement: pl.DataFrame
    process_range: pl.DataFrame
    verdict: list[str]
    notes: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Store every frame as Parquet beside each other."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for item in fields(self):
                frame = getattr(self, item.name)
                if isinstance(frame, pl.DataFrame) and frame.columns:
                    frame.write_parquet(folder / f"{item.name}.parquet", row_group_size=ROWS_PER_GROUP)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ReplayError(
                f"the comparison could not be written to {folder} ({error}); make room, or give another folder"
            ) from error


def sides_of(runs: Sequence[StoredRun]) -> list[Side]:
    """Return every setting of the runs; where two have the same name, the run's folder tells them apart."""
    for run in runs[1:]:
        require_comparable(runs[0], run)
    names = [one.name for run in runs for one in run.settings]
    sides = []
    for run in runs:
        for one in run.settings:
            twice = names.count(one.name) > 1
            sides.append(Side(run, one, f"{one.name} ({run.folder.name})" if twice else one.name))
    if len(sides) < 2:
        raise ReplayError(
            f"{runs[0].folder} holds one setting, {sides[0].name}; a comparison needs two: name another run, or replay "
            "with --settings given twice"
        )
    if len({side.name for side in sides}) < len(sides):
        raise ReplayError("the runs have the same folder name and the same settings' names; rename one folder")
    return sides


def compare(runs: Sequence[StoredRun], mirror: Path | None = None, progress: Progress | None = None) -> Comparison:
    """Compare the first setting with each of the others, on the same input.

    The causes of flips, and the range over assumed processes, need the ledger: it is read again from `mirror`, or
    from where the first run found it.
    """
    say = progress or (lambda what, done, total: None)
    sides = sides_of(runs)
    predictions = pl.concat([_named(side.run.predictions, side) for side in sides])
    decisions = pl.concat([_named(side.run.decisions, side) for side in sides])
    window_ms = max(side.settings.longest_window_ms for side in sides)
    first, others = sides[0], sides[1:]
    say("scoring predictions", 0, 1)
    asked_q = quantiles(side.named for side in sides)
    figures = prequential.score(predictions, asked_q)
    say("bootstrapping differences", 0, 1)
    differences = prequential.differences(
        predictions, first.name, [other.name for other in others], window_ms=window_ms, quantiles=asked_q
    )
    axis, notes = _timeline(first.run, mirror)
    flips, summaries = [], []
    for other in others if len(decisions) else []:
        pair = {"setting_a": pl.lit(first.name), "setting_b": pl.lit(other.name)}
        flipped = deciding.flips(decisions, first.name, other.name)
        turned = _causes(axis, first, other, flipped, say)
        flips.append(flipped.join(turned, on="call_id", how="left").with_columns(**pair))
        summary = deciding.flip_summary(decisions, first.name, other.name, turned, window_ms=window_ms)
        summaries.append(summary.with_columns(**pair))
    agreed = deciding.agreement(decisions, window_ms=window_ms) if len(decisions) else pl.DataFrame()
    return Comparison(
        sides=sides,
        figures=figures,
        differences=differences,
        flips=pl.concat(flips) if flips else pl.DataFrame(),
        flip_summary=pl.concat(summaries) if summaries else pl.DataFrame(),
        agreement=agreed,
        process_range=_process_range(axis, sides, say),
        verdict=deciding.verdict(
            figures, differences, summaries[0] if summaries else None, agreed if len(agreed) else None
        ),
        notes=notes,
    )


def _named(frame: pl.DataFrame, side: Side) -> pl.DataFrame:
    return frame.filter(pl.col("setting") == side.settings.name).with_columns(setting=pl.lit(side.name))


def _timeline(run: StoredRun, mirror: Path | None) -> tuple[Timeline | None, list[str]]:
    """Read the ledger that a run replayed; None, and a note, where it is not there."""
    path = mirror or run.mirror
    if path is None or not path.is_file():
        return None, [f"causes of flips are not known: the mirror is not at {path}; give --mirror"]
    with open_mirror(path) as connection:
        ledger = load_ledger(connection, whole=False)
    for table in TABLES:
        if ledger.identity[table] != run.input["tables"][table]:
            raise NotComparableError(
                f"{path} is not what {run.folder} replayed: its {table} has other content. "
                "Replay it again, or name the mirror it was made from with --mirror."
            )
    return timeline.build(ledger), []


def _causes(axis: Timeline | None, first: Side, other: Side, flipped: pl.DataFrame, say: Progress) -> pl.DataFrame:
    if axis is None:
        return pl.DataFrame(schema=CAUSES_SCHEMA)
    if first.run.record["policy"] != other.run.record["policy"]:
        return flipped.select("call_id", cause=pl.lit("policy"))
    return causes(axis, first.run.policy, first.settings, other.settings, flipped, say)


def _process_range(axis: Timeline | None, sides: Sequence[Side], say: Progress) -> pl.DataFrame:
    """Score every setting that assumes a number of processes under 20 assignments of calls to them.

    Which process took which call is not known then; one seed's figure would be luck. Out: setting, question, metric,
    and the lowest and highest value over the seeds.
    """
    frames = []
    for side in sides:
        one = side.settings
        in_process = "process" in (one.reliability.state, one.latency.state)
        if axis is None or one.replicas is None or not in_process:
            continue
        attempts = np.flatnonzero(np.isin(axis.attempts.id, side.run.predictions["attempt_id"].to_numpy()))
        for seed in range(PROCESS_SEEDS):
            say(f"assigning calls to processes under {side.name}", seed, PROCESS_SEEDS)
            drawn = Measuring(axis, replace(side.named, seed=seed))
            scored = prequential.score(predictions_of(drawn, attempts.astype(np.int64)), quantiles([drawn.settings]))
            frames.append(scored.filter(pl.col("scope") == "all"))
    if not frames:
        return pl.DataFrame()
    value = pl.col("value")
    grouped = pl.concat(frames).group_by("setting", "question", "metric", maintain_order=True)
    return grouped.agg(value.min().alias("lowest"), value.max().alias("highest"), value.count().alias("seeds"))
