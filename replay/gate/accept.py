"""Accepting a proposal: the only way a baseline changes, by a person who says why."""

from __future__ import annotations

import shutil

from replay.errors import NotComparableError, ReplayError
from replay.gate import baseline
from replay.gate.baseline import Baseline
from replay.gate.suite import Scenario, Suite


def accept(suite: Suite, names: list[str], reason: str) -> list[str]:
    """Move the proposals of the named scenarios (none named: all there are) into place; return what was accepted.

    The reason is added to each baseline's history, with the decision hashes before and after. Raises ReplayError
    where there is no reason or no proposal, or where a proposal cannot be read; then nothing was changed.
    """
    if not reason.strip():
        raise ReplayError("--reason is empty; expected why the new decisions are right: it is kept with the baseline")
    proposed = [one for one in suite.only(names).scenarios if baseline.proposal(one.baseline).exists() or names]
    if not proposed:
        raise ReplayError(f"{suite.path} has no proposal; write one first: replay check {suite.path} --update")
    read = {one.name: _read(suite, one) for one in proposed}
    for one in proposed:
        new, old = read[one.name]
        entry = {
            "reason": reason.strip(),
            "before": None if old is None else baseline.hashes(old.outcome.record),
            "after": baseline.hashes(new.outcome.record),
        }
        folder = baseline.proposal(one.baseline)
        baseline.write_record(folder, new.outcome.record, [*(old.history if old else []), entry])
        shutil.rmtree(one.baseline, ignore_errors=True)
        folder.rename(one.baseline)
    return [one.name for one in proposed]


def _read(suite: Suite, one: Scenario) -> tuple[Baseline, Baseline | None]:
    """Return a scenario's proposal and its baseline; refuses a proposal on another input."""
    folder = baseline.proposal(one.baseline)
    if not folder.exists():
        raise ReplayError(
            f"{one.name} has no proposal at {folder}; write one first: replay check {suite.path} {one.name} --update"
        )
    new, old = baseline.read(folder), baseline.read(one.baseline) if one.baseline.exists() else None
    if old is not None and old.outcome.record["input"] != new.outcome.record["input"]:
        raise NotComparableError(
            f"the proposal {folder} rests on another input than its baseline; nothing was accepted: write it anew with "
            "--update, or delete the baseline if the new input is meant"
        )
    return new, old
