"""Comparing settings: who predicts better, which decisions flip, and what turned them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import polars as pl

from analysis import decisions as deciding
from analysis import prequential
from replay import offerbook, timeline
from replay.deciding import Decider, Policies, cause
from replay.engine import Progress
from replay.errors import NotComparableError, ReplayError
from replay.ledger.load import TABLES, load_ledger
from replay.ledger.mirror import open_mirror
from replay.measuring import Measuring
from replay.record import ROWS_PER_GROUP, StoredRun, require_comparable
from replay.settings import Settings


@dataclass(frozen=True)
class Side:
    """One setting of one run, under a name that is unique in the comparison."""

    run: StoredRun
    settings: Settings
    name: str


@dataclass(frozen=True)
class Comparison:
    """Tidy frames: see `analysis.prequential` and `analysis.decisions` for their columns."""

    sides: list[Side]
    figures: pl.DataFrame
    differences: pl.DataFrame
    flips: pl.DataFrame
    flip_summary: pl.DataFrame
    agreement: pl.DataFrame
    verdict: list[str]
    notes: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Store every frame as Parquet beside each other."""
        folder.mkdir(parents=True, exist_ok=True)
        for item in fields(self):
            frame = getattr(self, item.name)
            if isinstance(frame, pl.DataFrame):
                frame.write_parquet(folder / f"{item.name}.parquet", row_group_size=ROWS_PER_GROUP)


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

    The causes of flips need the ledger: it is read again from `mirror`, or from where the first run found it.
    """
    say = progress or (lambda what, done, total: None)
    sides = sides_of(runs)
    predictions = pl.concat([_named(side.run.predictions, side) for side in sides])
    decisions = pl.concat([_named(side.run.decisions, side) for side in sides])
    window_ms = max(side.settings.longest_window_ms for side in sides)
    first, others = sides[0], sides[1:]
    say("scoring predictions", 0, 1)
    figures = prequential.score(predictions)
    say("bootstrapping differences", 0, 1)
    names = [side.name for side in others]
    differences = prequential.differences(predictions, first.name, names, window_ms=window_ms)
    flips, summaries, notes = [], [], []
    for other in others if len(decisions) else []:
        flipped = deciding.flips(decisions, first.name, other.name)
        causes, note = _causes(first, other, flipped, mirror, say)
        notes += [note] if note else []
        flips.append(
            flipped.join(causes, on="call_id", how="left").with_columns(
                setting_a=pl.lit(first.name), setting_b=pl.lit(other.name)
            )
        )
        summary = deciding.flip_summary(decisions, first.name, other.name, causes, window_ms=window_ms)
        summaries.append(summary.with_columns(setting_a=pl.lit(first.name), setting_b=pl.lit(other.name)))
    agreed = deciding.agreement(decisions, window_ms=window_ms) if len(decisions) else pl.DataFrame()
    verdict = deciding.verdict(
        figures, differences, summaries[0] if summaries else None, agreed if len(agreed) else None
    )
    return Comparison(
        sides,
        figures,
        differences,
        pl.concat(flips) if flips else pl.DataFrame(),
        pl.concat(summaries) if summaries else pl.DataFrame(),
        agreed,
        verdict,
        notes,
    )


def _named(frame: pl.DataFrame, side: Side) -> pl.DataFrame:
    return frame.filter(pl.col("setting") == side.settings.name).with_columns(setting=pl.lit(side.name))


def _causes(
    first: Side, other: Side, flipped: pl.DataFrame, mirror: Path | None, say: Progress
) -> tuple[pl.DataFrame, str | None]:
    """Exchange one part at a time in every flipped decision, and see which turns it."""
    none = pl.DataFrame(schema={"call_id": pl.Int64, "cause": pl.String})
    path = mirror or first.run.mirror
    if path is None or not path.is_file():
        return none, f"causes of flips are not known: the mirror is not at {path}; give --mirror"
    with open_mirror(path) as connection:
        ledger = load_ledger(connection)
    for table in TABLES:
        if ledger.identity[table] != first.run.input["tables"][table]:
            raise NotComparableError(
                f"{path} is not what {first.run.folder} replayed: its {table} has other content. "
                "Replay it again, or name the mirror it was made from with --mirror."
            )
    same_policy = first.run.record["policy"] == other.run.record["policy"]
    axis = timeline.build(ledger)
    wanted = set(flipped["call_id"].to_list())
    calls = [index for index, row in enumerate(axis.calls.id.tolist()) if row in wanted]
    decider = Decider(
        axis, offerbook.build(axis), Policies(axis, first.run.policy), pl.Series(calls, dtype=pl.Int64).to_numpy()
    )
    base = decider.parts(Measuring(axis, first.settings))
    against = decider.parts(Measuring(axis, other.settings))
    chosen = dict(zip(flipped["call_id"].to_list(), flipped["chosen_b"].to_list(), strict=True))
    rows = []
    for number, call in enumerate(calls):
        if number % 200 == 0:
            say("finding what turned each flip", number, len(calls))
        row = int(axis.calls.id[call])
        route = axis.number(chosen[row]) if chosen[row] is not None else -1
        rows.append((row, cause(decider, call, base, against, route) if same_policy else "policy"))
    return pl.DataFrame(rows, schema=none.schema, orient="row"), None
