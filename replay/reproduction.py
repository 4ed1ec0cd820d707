"""Reproduction, the first thing reported: under what was recorded, does the core decide as it did?"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import polars as pl

from replay import settings as settings_room
from replay.deciding import Decider
from replay.durations import iso
from replay.errors import ReplayError
from replay.measuring import Measuring
from replay.outcomes import CAUSES, UNDECIDED, Choices
from replay.settings import Settings
from replay.timeline import Ints, Timeline

Kind = Literal["reproduction", "final-route agreement", "none"]
_KINDS: tuple[Kind, ...] = ("reproduction", "final-route agreement")


@dataclass
class Reproduction:
    """How many decisions with complete evidence were reproduced, and why the others were not.

    `kind` is `reproduction` where first attempts, policies, settings and snapshots are recorded; else
    `final-route agreement`, which only says how often the given policy would have ended where the call did. Its
    mismatches are differences, not faults.
    """

    kind: Kind = "none"
    decisions: int = 0
    compared: int = 0
    agreed: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)  # agreement: why it cannot be reproduction
    forced: int = 0  # agreement: compared calls for which only one candidate qualified, so agreeing says nothing
    causes: Counter[str] = field(default_factory=Counter)
    first_mismatch: str | None = None

    def add(self, later: Reproduction) -> None:
        """Take in what came of the decisions after: where any are held against their record, only those count."""
        kinds = {self.kind, later.kind}
        self.decisions += later.decisions
        for one in (self, later):
            if "reproduction" in kinds and one.kind != "reproduction":
                one.excluded, one.incomplete = one.incomplete, Counter()
                one.compared, one.agreed, one.forced, one.causes, one.first_mismatch = 0, 0, 0, Counter(), None
        self.kind = next((kind for kind in _KINDS if kind in kinds), "none")
        self.compared += later.compared
        self.agreed += later.agreed
        self.forced += later.forced
        for name in ("excluded", "incomplete", "causes"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.first_mismatch = self.first_mismatch or later.first_mismatch

    @property
    def share(self) -> float | None:
        """Agreed ÷ compared, None where nothing was compared."""
        return self.agreed / self.compared if self.compared else None

    @property
    def passed(self) -> bool:
        """Whether nothing stands against this replay: agreement is never a test, reproduction must be whole."""
        return self.kind != "reproduction" or self.agreed == self.compared


def recorded_settings(table: pl.DataFrame) -> dict[str, Settings]:
    """Return the measurement settings in a ledger's table by identity, without those that this version cannot read.

    A recorded decision's evidence instant is known, so a recorded memo has nothing left to say.
    """
    known = {}
    for row in table.to_dicts():
        with suppress(ValueError, ReplayError):
            read = settings_room.from_dict(json.loads(row["settings"]), name="recorded")
            known[row["settings_id"]] = replace(read, memo_ms=None)
    return known


WHY_NOT = (
    "",
    "evidence state not recorded",
    "no evidence snapshot",
    "request not recorded",
    "request refused by the core",
    "settings not recorded",
    "settings not in the ledger, or unreadable",
    "first attempt not recorded",
    "rows of its process are missing",
)


@dataclass(frozen=True)
class Completeness:
    """Why each call cannot be held against its record, as places in `reasons`; 0 where its evidence is complete."""

    codes: Ints
    reasons: list[str]

    def count(self, calls: Ints) -> Counter[str]:
        """Return how many of the calls cannot be, by reason."""
        numbers = np.bincount(self.codes[calls], minlength=len(self.reasons)).tolist()
        return Counter({reason: n for reason, n in zip(self.reasons[1:], numbers[1:], strict=True) if n})


def completeness(decider: Decider, known: dict[str, Settings]) -> Completeness:
    """Find out which decisions can be held against their record, and why the others cannot."""
    calls = decider.timeline.calls
    states = [f"evidence {state}" for state in calls.state.values]
    reasons = [*WHY_NOT, *states]
    refused = np.array([asked.request is None for asked in decider.asked.distinct], dtype=np.bool_)
    readable = np.array([identity in known for identity in calls.settings_id.values] + [False], dtype=np.bool_)
    conditions = [
        calls.state.codes < 0,
        calls.state.codes != calls.state.code("ok"),
        ~calls.snapshot.known,
        calls.request.codes < 0,
        refused[decider.asked.codes] if len(refused) else np.zeros(len(calls), dtype=np.bool_),
        calls.settings_id.codes < 0,
        ~readable[calls.settings_id.codes],
        (calls.first_attempt < 0) & (calls.route >= 0),
        np.isin(np.arange(len(calls)), sorted(decider.in_doubt)),
    ]
    choices = [np.full(len(calls), 1), len(WHY_NOT) + calls.state.codes, *(np.full(len(calls), n) for n in range(2, 9))]
    return Completeness(np.select(conditions, choices, 0).astype(np.int64), reasons)


def hold(result: Reproduction, decider: Decider, complete: Completeness, choices: Choices) -> None:
    """Hold decisions, made again under what was recorded, against their recorded first attempts."""
    timeline = decider.timeline
    result.excluded += complete.count(choices.calls)
    whole = complete.codes[choices.calls] == 0
    if not whole.any():
        return
    result.kind = "reproduction"
    calls, chosen, causes = choices.calls[whole], choices.route[whole], choices.cause[whole]
    recorded = first_routes(timeline, calls)
    missed = np.flatnonzero(chosen != recorded)
    result.compared += len(calls)
    result.agreed += len(calls) - len(missed)
    for place in missed.tolist():
        call, cause = int(calls[place]), CAUSES[int(causes[place])]
        if chosen[place] == UNDECIDED:
            cause = "unknown policy" if decider.policies.recorded(call) is None else "refused"
        result.causes[cause] += 1
        if result.first_mismatch is None:
            name = [*timeline.routes, "nothing"]  # -1, no route, is the last
            result.first_mismatch = (
                f"call {timeline.calls.id[call]} at {iso(int(timeline.calls.decided_ms[call]))}: recorded "
                f"{name[recorded[place]]}, replayed {name[max(chosen[place], -1)]} ({cause})"
            )


def agree(result: Reproduction, decider: Decider, choices: Choices) -> None:
    """Compare the choices of the given policy with the final routes, all that an old ledger knows."""
    result.kind = "final-route agreement"
    recorded = decider.timeline.calls.route[choices.calls]
    decided = (choices.route != UNDECIDED) & (recorded >= 0)
    result.excluded += Counter(
        {
            reason: n
            for reason, n in (
                ("no route recorded", int((recorded < 0).sum())),
                ("unknown policy", int(((recorded >= 0) & (choices.route == UNDECIDED)).sum())),
            )
            if n
        }
    )
    same = decided & (choices.route == recorded)
    result.compared += int(decided.sum())
    result.forced += int((decided & choices.alone).sum())
    result.agreed += int(same.sum())
    differs = np.bincount(choices.cause[decided & ~same], minlength=len(CAUSES)).tolist()
    # Where the first attempt went elsewhere than the final route, it is what the choice was compared with.
    for cause, n in zip(CAUSES, differs, strict=True):
        result.causes += Counter({cause or "failover": n})


def first_routes(timeline: Timeline, calls: Ints) -> Ints:
    """Return the route of each call's first attempt, -1 where it is unknown."""
    first = timeline.calls.first_attempt[calls]
    return np.where(first >= 0, timeline.attempts.route[np.maximum(first, 0)], -1) if len(timeline.attempts) else first


def measurings(timeline: Timeline, known: dict[str, Settings]) -> dict[str, Measuring]:
    """Return a measuring of the timeline under each recorded setting."""
    return {identity: Measuring(timeline, settings) for identity, settings in known.items()}
