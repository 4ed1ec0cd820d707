"""One scenario against its baseline: the verdict, and what it rests on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import polars as pl

from replay.engine import Progress
from replay.errors import NotComparableError, ReplayError
from replay.gate import baseline
from replay.gate.baseline import Baseline
from replay.gate.differences import CHECKS, DIFFERENCES, differences
from replay.gate.outcome import Outcome, replay_scenario
from replay.gate.suite import Scenario
from replay.outcomes import DECISIONS


class Verdict(IntEnum):
    """What the gate says of a scenario; the value is the exit code."""

    same = 0
    regression = 1
    not_comparable = 3


@dataclass(frozen=True)
class Checked:
    """A scenario, what it gave, and how that differs from its baseline (`differences`: see `DIFFERENCES`).

    `problem` says why nothing was compared, or why the replay itself does not hold. `skipped`: its data is not here.
    `proposal` is where an update was written, `refused` why none was.
    """

    scenario: Scenario
    verdict: Verdict
    before: Outcome | None = None
    now: Outcome | None = None
    differences: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=DIFFERENCES))
    problem: str | None = None
    skipped: bool = False
    proposal: Path | None = None
    refused: str | None = None

    def counted(self, *checks: str) -> pl.DataFrame:
        """Return the differences of some checks, or of all, without the allowed ones."""
        return self.differences.filter(pl.col("check").is_in(checks or CHECKS) & pl.col("allowed").is_null())


def check(
    scenario: Scenario,
    *,
    postgres_url: str | None = None,
    update: bool = False,
    progress: Progress | None = None,
) -> Checked:
    """Replay a scenario and hold it against its baseline; `update` writes a proposal beside it where it differs.

    A baseline that is missing, damaged or of another version, and an input that changed, are verdicts, not errors.
    Raises ReplayError where the scenario itself cannot be replayed.
    """
    for allowed in scenario.allowed:
        unknown = set(allowed.columns) - set(DECISIONS)
        if unknown:
            raise ReplayError(
                f"the scenario {scenario.name} allows differences in the column {min(unknown)}, which decisions do "
                "not have; expected columns of decisions.parquet: correct allow.columns"
            )
    if scenario.absent is not None and not scenario.ledger.exists():
        return Checked(scenario, Verdict.same, problem=scenario.absent, skipped=True)
    problem = None if update else _unreadable(scenario)
    if problem is not None:  # there is nothing to replay for
        return Checked(scenario, Verdict.not_comparable, problem=problem)
    try:
        now = replay_scenario(scenario, postgres_url, progress)
    except ReplayError as error:
        raise type(error)(f"scenario {scenario.name}: {error}") from error
    return compare(scenario, now, update=update)


def _unreadable(scenario: Scenario) -> str | None:
    try:
        baseline.read(scenario.baseline)
    except NotComparableError as error:
        return str(error)
    return None


def compare(scenario: Scenario, now: Outcome, *, update: bool = False) -> Checked:
    """Hold an outcome of a scenario against its baseline, as `check` does with the one that it replays."""
    try:
        accepted = baseline.read(scenario.baseline)
    except NotComparableError as error:
        checked = Checked(scenario, Verdict.not_comparable, now=now, problem=str(error))
        return _updated(checked, None) if update else checked
    checked = _judged(scenario, accepted.outcome, now)
    return _updated(checked, accepted) if update else checked


def _judged(scenario: Scenario, before: Outcome, now: Outcome) -> Checked:
    found = differences(before, now, scenario.allowed)
    of_input = found.filter(pl.col("check") == "input")
    if len(of_input):  # what was decided on another input says nothing: only the inputs' difference is a result
        return Checked(scenario, Verdict.not_comparable, before, now, of_input, _other_input(scenario))
    problem = None if now.passed else _no_proof(now)
    bad = problem is not None or found["allowed"].is_null().any()
    return Checked(scenario, Verdict.regression if bad else Verdict.same, before, now, found, problem)


def _updated(checked: Checked, accepted: Baseline | None) -> Checked:
    """Write the proposal beside the baseline, or withdraw an earlier one where nothing differs any more."""
    scenario, now = checked.scenario, checked.now
    assert now is not None
    if accepted is None and scenario.baseline.exists():
        return replace(checked, refused="what the baseline accepted cannot be read: restore or delete it first")
    if accepted is not None and checked.verdict is Verdict.not_comparable:
        return replace(checked, refused="the input changed, and an update is for code")
    if not now.passed:
        return replace(checked, refused=_no_proof(now))
    if accepted is not None and checked.differences.is_empty():
        shutil.rmtree(baseline.proposal(scenario.baseline), ignore_errors=True)
        return checked
    history = [] if accepted is None else accepted.history
    proposal = baseline.write_proposal(scenario.baseline, now, history)
    return replace(checked, proposal=proposal, problem=None if accepted else "there is no baseline to compare with yet")


def not_reproduced(record: dict[str, Any]) -> bool:
    """Whether a record's reproduction stands against it; agreement on final routes never does."""
    found = record["reproduction"]
    return bool(found["kind"] == "reproduction" and found["agreed"] != found["compared"])


def _no_proof(now: Outcome) -> str:
    """Say which part of the proof fails."""
    audited = not any(one["audit"]["mismatches"] for one in now.record["replayed"])
    fails = [] if audited else ["its audit against production's SQL"]
    fails += ["its reproduction"] if not_reproduced(now.record) else []
    return f"the replay itself does not hold: {' and '.join(fails)} fail{'s' if len(fails) == 1 else ''}"


def _other_input(scenario: Scenario) -> str:
    what = "the ledger" if scenario.source is None else "the file, its mapping or the importer"
    return (
        "the input is not the one that the baseline was accepted on, so no decision can be compared: restore "
        f"{what}; if the new one is meant, delete the baseline and accept a new one"
    )


def exit_code(checked: Sequence[Checked]) -> int:
    """Return the code of a whole suite: 1 if any scenario regressed, else 3 if any cannot be compared, else 0."""
    verdicts = {one.verdict for one in checked}
    return int(next((one for one in (Verdict.regression, Verdict.not_comparable) if one in verdicts), Verdict.same))
