"""Reproduction, the first thing reported: under what was recorded, does the core decide as it did?"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from replay import settings as settings_room
from replay.deciding import Decider, Decision, Parts
from replay.durations import iso
from replay.errors import ReplayError
from replay.measuring import Measuring
from replay.settings import Settings
from replay.timeline import Timeline

TIE_TOLERANCE = 1e-12


@dataclass
class Reproduction:
    """How many decisions with complete evidence were reproduced, and why the others were not.

    `kind` is `reproduction` where first attempts, policies, settings and snapshots are recorded; else
    `final-route agreement`, which only says how often the given policy would have ended where the call did. Its
    mismatches are differences, not faults.
    """

    kind: Literal["reproduction", "final-route agreement", "none"] = "none"
    decisions: int = 0
    compared: int = 0
    agreed: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)  # agreement: why it cannot be reproduction
    forced: int = 0  # agreement: compared calls for which only one candidate qualified, so agreeing says nothing
    causes: Counter[str] = field(default_factory=Counter)
    first_mismatch: str | None = None

    @property
    def share(self) -> float | None:
        """Agreed ÷ compared, None where nothing was compared."""
        return self.agreed / self.compared if self.compared else None

    @property
    def passed(self) -> bool:
        """Whether nothing stands against this replay: agreement is never a test, reproduction must be whole."""
        return self.kind != "reproduction" or self.agreed == self.compared


def recorded_settings(timeline: Timeline) -> dict[str, Settings]:
    """Return the measurement settings in the ledger by identity, without those that this version cannot read.

    A recorded decision's evidence instant is known, so a recorded memo has nothing left to say.
    """
    known = {}
    for row in timeline.ledger.settings.to_dicts():
        with suppress(ValueError, ReplayError):
            read = settings_room.from_dict(json.loads(row["settings"]), name="recorded")
            known[row["settings_id"]] = replace(read, memo_ms=None)
    return known


def excluded_because(decider: Decider, known: dict[str, Settings], call: int) -> str | None:
    """Say why a decision cannot be held against its record; None if its evidence is complete."""
    calls = decider.timeline.calls
    row = calls.rows[call]
    if calls.state[call] != "ok":
        return f"evidence {calls.state[call]}" if calls.state[call] else "evidence state not recorded"
    if calls.snapshot[call] is None:
        return "no evidence snapshot"
    if row["request"] is None:
        return "request not recorded"
    if decider.asked[call].request is None:
        return "request refused by the core"
    if row["settings_id"] not in known:
        return "settings not recorded" if row["settings_id"] is None else "settings not in the ledger, or unreadable"
    if calls.first_attempt[call] < 0 and calls.route[call] >= 0:
        return "first attempt not recorded"
    return None


def reproduce(decider: Decider, parts_of: dict[str, Parts], known: dict[str, Settings]) -> Reproduction:
    """Decide every call again under its recorded setting and policy, and hold it against its recorded first attempt.

    `parts_of` are the parts measured under each recorded setting, by its identity.
    """
    result = Reproduction(decisions=len(decider.selected))
    for call in decider.selected.tolist():
        parts = parts_of.get(decider.timeline.calls.rows[call]["settings_id"] or "")
        decision = None if parts is None else decider.decide(call, parts, recorded_policy=True)
        hold(result, decider, known, call, decision)
    return result


def hold(
    result: Reproduction, decider: Decider, known: dict[str, Settings], call: int, decision: Decision | None
) -> None:
    """Hold one decision, made again under what was recorded, against its recorded first attempt."""
    why = excluded_because(decider, known, call)
    if why is not None:
        result.excluded[why] += 1
        return
    result.kind = "reproduction"
    result.compared += 1
    recorded = _first_route(decider.timeline, call)
    if decision is not None and decision.chosen_route == recorded:
        result.agreed += 1
        return
    if decider.policies.recorded(call) is None:
        cause = "unknown policy"
    else:
        cause = "refused" if decision is None else mismatch(decision, recorded)
    _missed(result, decider.timeline, call, cause, recorded, decision)


def agree(result: Reproduction, decider: Decider, call: int, decision: Decision | None) -> None:
    """Compare one choice of the given policy with the final route, all that an old ledger knows."""
    result.kind = "final-route agreement"
    recorded = int(decider.timeline.calls.route[call])
    if decision is None or recorded < 0:
        result.excluded["no route recorded" if recorded < 0 else "unknown policy"] += 1
        return
    result.compared += 1
    result.forced += len(decision.plan.ordered) == 1
    if decision.chosen_route == recorded:
        result.agreed += 1
    else:
        result.causes[mismatch(decision, recorded)] += 1


def mismatch(decision: Decision, recorded: int) -> str:
    """Say where a recorded route stands in a plan that does not begin with it."""
    if recorded < 0:
        return "no route recorded"
    places = np.flatnonzero(decision.routes == recorded).tolist()
    if not places:
        return "no candidate"
    score_of = dict(zip(decision.plan.ordered, decision.plan.scores, strict=True))
    ranked = [place for place in places if place in score_of]
    if not ranked:
        return "filtered"
    if decision.candidates[ranked[0]].provider_id in decision.disabled:
        return "failover"
    best = score_of[decision.chosen] if decision.chosen is not None else float("nan")
    return "tie" if abs(best - score_of[ranked[0]]) <= TIE_TOLERANCE else "score"


def _first_route(timeline: Timeline, call: int) -> int:
    first = int(timeline.calls.first_attempt[call])
    return -1 if first < 0 else int(timeline.attempts.route[first])


def _missed(
    result: Reproduction, timeline: Timeline, call: int, cause: str, recorded: int, decision: Decision | None
) -> None:
    result.causes[cause] += 1
    if result.first_mismatch is None:
        chosen = -1 if decision is None else decision.chosen_route
        name = [*timeline.routes, "nothing"]  # -1, no route, is the last
        result.first_mismatch = (
            f"call {timeline.calls.id[call]} at {iso(int(timeline.calls.decided_ms[call]))}: recorded "
            f"{name[recorded]}, replayed {name[chosen]} ({cause})"
        )


def measurings(timeline: Timeline, known: dict[str, Settings]) -> dict[str, Measuring]:
    """Return a measuring of the timeline under each recorded setting."""
    return {identity: Measuring(timeline, settings) for identity, settings in known.items()}
