"""The open-loop replay: every recorded decision again under other settings, audited, and held against its record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import polars as pl

from replay import offerbook, timeline
from replay.audit import Audit, audit, audited
from replay.core import Policy
from replay.deciding import Decider, Decision, Parts, Policies
from replay.durations import iso
from replay.errors import ReplayError
from replay.ledger.load import Ledger
from replay.measuring import Measuring, Stamps
from replay.orderhash import order_hash
from replay.reproduction import (
    Reproduction,
    agree,
    excluded_because,
    hold,
    measurings,
    recorded_settings,
    reproduce,
)
from replay.settings import Settings
from replay.timeline import Ints, Timeline, lag_free

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much is done, and of how much."""

Seeing = Callable[[int, Decision | None], None]
"""Shown each call and its decision, None where it could not be decided again."""

TOP = 3


@dataclass
class Replayed:
    """One setting's replay.

    `lag_flips` are the calls that would have been decided otherwise, had every row been visible at once; None where
    no write lag is known or assumed.
    """

    settings: Settings
    visibility: str
    decisions: pl.DataFrame
    predictions: pl.DataFrame
    lag_flips: list[int] | None
    undecided: int
    audit: Audit = field(default_factory=Audit)


@dataclass
class Run:
    """A replay of one ledger under one or more settings."""

    reproduction: Reproduction
    replayed: list[Replayed]
    decisions: pl.DataFrame
    predictions: pl.DataFrame
    warnings: list[str] = field(default_factory=list)
    proved: bool = True

    @property
    def passed(self) -> bool:
        """Whether every audit agreed and everything that could be reproduced was."""
        return self.reproduction.passed and all(one.audit.passed for one in self.replayed)


def run(
    ledger: Ledger,
    settings: Sequence[Settings],
    policy: Policy | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    progress: Progress | None = None,
    *,
    prove: bool = True,
) -> Run:
    """Replay a ledger under each of the settings.

    `policy` decides every call; None decides each with the policy it was recorded with. Only calls decided, and
    attempts ended, in [since_ms, until_ms) are reported; evidence from before is read all the same, so a slice's
    first decision is what it is in a longer run. `prove=False` leaves out reproduction, audit and the effect of the
    write lag, for a look while a slider moves; such a run is never written. Raises ReplayError where the ledger is
    empty, or has calls but neither recorded policies nor a given one.
    """
    say = progress or (lambda what, done, total: None)
    if len(ledger.attempts) == 0:
        raise ReplayError("the mirror holds no attempts; a replay has nothing to measure: import a ledger first")
    _check_names(settings)
    if since_ms is not None and until_ms is not None and until_ms <= since_ms:
        raise ReplayError(f"the slice ends at {iso(until_ms)}, not after its start {iso(since_ms)}; swap the two")
    axis = timeline.build(ledger)
    policies = Policies(axis, policy)
    selected = _within(axis.calls.decided_ms, since_ms, until_ms)
    if len(selected) and policy is None and not any(policies.recorded(call) for call in selected.tolist()):
        raise ReplayError(
            f"none of the {len(selected):,} calls has a recorded policy; a replay needs one to decide with: "
            "give one, for example --policy balanced"
        )
    decider = Decider(axis, offerbook.build(axis), policies, selected)
    attempts = _within(axis.attempts.ts_ms, since_ms, until_ms)
    known = recorded_settings(axis) if prove else {}
    recorded = {identity: decider.parts(one) for identity, one in measurings(axis, known).items()}
    say("reproducing what was recorded", 0, 1)
    reproduction, carrier, see = _proof(decider, known, recorded, settings) if prove else (Reproduction(), None, None)
    replayed = []
    for one in settings:
        measuring = Measuring(axis, one)
        parts = (None if one.memo_ms is not None else recorded.get(one.identity)) or decider.parts(measuring)
        replayed.append(_replay(decider, measuring, parts, attempts, say, prove, see if one is carrier else None))
    if prove:
        _audit(axis, selected, replayed, say)
    return Run(
        reproduction,
        replayed,
        pl.concat([one.decisions for one in replayed]),
        pl.concat([one.predictions for one in replayed]),
        _warnings(decider, replayed),
        prove,
    )


def _proof(
    decider: Decider, known: dict[str, Settings], recorded: dict[str, Parts], settings: Sequence[Settings]
) -> tuple[Reproduction, Settings | None, Seeing | None]:
    """Begin the proof: reproduction where any decision's evidence is complete, else agreement with the final route.

    A setting of the run that makes the very decisions the proof needs carries it, so that nothing is decided twice:
    the first one for agreement; for reproduction the recorded one, if every call is decided with its own policy.
    Returns the result, the carrier, and what it is to show each decision to; without a carrier the result is whole.
    """
    calls, selected = decider.timeline.calls, decider.selected.tolist()
    result = Reproduction(decisions=len(selected))
    if not selected:
        return result, None, None
    why = Counter(excluded_because(decider, known, call) for call in selected)
    if not why[None]:
        result.incomplete = Counter({reason: count for reason, count in why.items() if reason is not None})
        return result, settings[0], partial(agree, result, decider)
    identities = {calls.rows[call]["settings_id"] for call in selected}
    for one in settings:
        if identities == {one.identity} and one.memo_ms is None and decider.policies.given is None:
            return result, one, partial(hold, result, decider, known)
    return reproduce(decider, recorded, known), None, None


def _check_names(settings: Sequence[Settings]) -> None:
    twice = [name for name, count in Counter(one.name for one in settings).items() if count > 1]
    if twice or not settings:
        given = f"two settings are called {twice[0]!r}" if twice else "no settings were given"
        raise ReplayError(f"{given}; expected at least one, each under its own name: set name in the settings file")


def _within(at_ms: Ints, since_ms: int | None, until_ms: int | None) -> Ints:
    low = -(2**63) if since_ms is None else since_ms
    high = 2**63 - 1 if until_ms is None else until_ms
    return np.flatnonzero((at_ms >= low) & (at_ms < high)).astype(np.int64)


def _replay(
    decider: Decider,
    measuring: Measuring,
    parts: Parts,
    attempts: Ints,
    say: Progress,
    prove: bool,
    see: Seeing | None,
) -> Replayed:
    name = measuring.settings.name
    rows, undecided = [], 0
    total = len(decider.selected)
    for number, call in enumerate(decider.selected.tolist()):
        if number % 500 == 0:
            say(f"deciding under {name}", number, total)
        decision = decider.decide(call, parts)
        undecided += decision is None
        if see is not None:
            see(call, decision)
        if decision is not None:
            rows.append(_row(decider, call, decision, name, int(measuring.evidence_ms[call])))
    decisions = pl.DataFrame(rows, schema=DECISIONS, orient="row")
    return Replayed(
        settings=measuring.settings,
        visibility=measuring.visibility.kind,
        decisions=decisions,
        predictions=predictions(measuring, attempts),
        lag_flips=_lag_flips(decider, measuring, decisions, say) if prove else None,
        undecided=undecided,
    )


def _audit(axis: Timeline, selected: Ints, replayed: Sequence[Replayed], say: Progress) -> None:
    """Audit every setting; those that the shared SQL checks alike share one audit."""
    flips = _contested(axis, replayed)
    done: dict[str, Audit] = {}
    for one in replayed:
        checked = audited(one.settings)
        if checked.identity not in done:
            say(f"auditing {one.settings.name} against production's SQL", 0, 1)
            done[checked.identity] = audit(Measuring(axis, checked), selected, flips)
        one.audit = done[checked.identity]


def _contested(axis: Timeline, replayed: Sequence[Replayed]) -> list[int]:
    """Return the calls on which the settings differ from each other, from the record, or with the write lag."""
    differs = pl.col("chosen_route").n_unique() > 1
    bounded = (pl.col("label") != "recorded").any()
    every = pl.concat([one.decisions for one in replayed]).group_by("call_id").agg(differ=differs | bounded)
    ids = set(every.filter("differ")["call_id"].to_list())
    lagging = {call for one in replayed for call in one.lag_flips or ()}
    return [call for call, row in enumerate(axis.calls.id.tolist()) if row in ids or call in lagging]


def _lag_flips(decider: Decider, measuring: Measuring, decisions: pl.DataFrame, say: Progress) -> list[int] | None:
    """Return the calls decided differently had every row been visible at once; None where there was no lag."""
    settings = measuring.settings
    shared = "shared" in (settings.reliability.state, settings.latency.state, settings.tools.state)
    if measuring.visibility.kind == "lagged" and settings.lag_ms == (0,):
        return None
    if not shared:
        return []
    parts = decider.parts(Measuring(decider.timeline, lag_free(settings)))
    chosen = dict(zip(decisions["call_id"], decisions["chosen_route"], strict=True))
    name = [*decider.timeline.routes, None]
    flips = []
    for number, call in enumerate(decider.selected.tolist()):
        if number % 500 == 0:
            say(f"deciding under {settings.name} without lag", number, len(decider.selected))
        decision = decider.decide(call, parts)
        if decision is not None and name[decision.chosen_route] != chosen[int(decider.timeline.calls.id[call])]:
            flips.append(call)
    return flips


_PLACED = {
    "route": pl.String,
    "score": pl.Float64,
    "success_rate": pl.Float64,
    "latency_ms": pl.Float64,
    "tools": pl.Boolean,
    "price_in": pl.Float64,
    "price_out": pl.Float64,
}

DECISIONS: dict[str, pl.DataType | type[pl.DataType]] = {
    "setting": pl.String,
    "call_id": pl.Int64,
    "decided_ms": pl.Int64,
    "evidence_ms": pl.Int64,
    "policy_id": pl.String,
    "request_class": pl.String,
    "recorded_route": pl.String,
    "recorded_first_route": pl.String,
    "chosen_route": pl.String,
    "label": pl.String,
    "candidates": pl.Int32,
    "rejected": pl.Int32,
    "reject_counts": pl.String,
    "margin": pl.Float64,
    **{f"{name}_{place}": kind for place in range(1, TOP + 1) for name, kind in _PLACED.items()},
    "recorded_score": pl.Float64,
    "recorded_success_rate": pl.Float64,
    "recorded_latency_ms": pl.Float64,
    "order_hash": pl.UInt64,
}
"""Columns of `decisions.parquet`, one row per setting and call.

`recorded_route` is the call's final route, `recorded_first_route` its first attempt's (null: unknown), `chosen_route`
the first of the plan whose provider was not disabled. `label` is `recorded` where the choice is what happened, so its
outcome is known, else `bounded`. `margin` is the score of the first minus that of the second in the plan's order. The
numbered columns are the plan's first three: route key, score and the stamps behind it; `recorded_…` are those of the
recorded route (the first attempt's where known). `reject_counts` is a JSON object, reason → candidates. `order_hash`
is a 64-bit hash of the full order with its scores (`replay.orderhash`).
"""


def _row(decider: Decider, call: int, decision: Decision, setting: str, evidence_ms: int) -> tuple[object, ...]:
    axis, calls = decider.timeline, decider.timeline.calls
    name = [*axis.routes, None]
    ranking = decision.plan
    first = int(calls.first_attempt[call])
    first_route = None if first < 0 else int(axis.attempts.route[first])
    actual = int(calls.route[call]) if first_route is None else first_route
    top: list[object] = []
    for place in range(TOP):
        ranked = place < len(ranking.ordered)
        top += (
            _placed(decision, ranking.ordered[place], ranking.scores[place], name) if ranked else [None] * len(_PLACED)
        )
    margin = ranking.scores[0] - ranking.scores[1] if len(ranking.ordered) > 1 else None
    reasons = Counter(reason for _, reason in ranking.rejected)
    ranked_routes = [name[int(decision.routes[index])] or "" for index in ranking.ordered]
    return (
        setting,
        int(calls.id[call]),
        int(calls.decided_ms[call]),
        evidence_ms,
        decision.policy.identity,
        decider.asked[call].kind,
        name[int(calls.route[call])],
        None if first_route is None else name[first_route],
        name[decision.chosen_route],
        "recorded" if decision.chosen_route == actual else "bounded",
        len(decision.candidates),
        len(ranking.rejected),
        json.dumps(reasons, sort_keys=True),
        margin,
        *top,
        *_recorded(decision, actual),
        order_hash(zip(ranked_routes, map(float, ranking.scores), strict=True)),
    )


def _placed(decision: Decision, index: int, score: float, name: Sequence[str | None]) -> list[object]:
    candidate = decision.candidates[index]
    fields = candidate.fields
    return [
        name[int(decision.routes[index])],
        float(score),
        _number(fields.get("success_rate")),
        _number(fields.get("latency_ms")),
        bool(candidate.capabilities.get("supports_tools")),
        _number(fields.get("price_in")),
        _number(fields.get("price_out")),
    ]


def _recorded(decision: Decision, actual: int) -> list[float | None]:
    places = np.flatnonzero(decision.routes == actual).tolist() if actual >= 0 else []
    if not places:
        return [None, None, None]
    score_of = dict(zip(decision.plan.ordered, decision.plan.scores, strict=True))
    fields = decision.candidates[places[0]].fields
    return [_number(score_of.get(places[0])), _number(fields.get("success_rate")), _number(fields.get("latency_ms"))]


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def predictions(measuring: Measuring, attempts: Ints) -> pl.DataFrame:
    """Predict every given attempt under one setting: when it began, and as the router read it for its call.

    Columns: see `analysis.prequential`. Latencies are the estimates themselves, before the stamp is rounded.
    """
    axis = measuring.timeline
    facts = axis.attempts
    known_start = facts.start_ms[attempts] >= 0
    known_call = facts.call[attempts] >= 0
    at_start = _spread(measuring.answer(measuring.at_starts(attempts[known_start])), known_start)
    asked = measuring.at_calls(facts.call[attempts][known_call], facts.route[attempts][known_call])
    as_read = _spread(measuring.answer(asked), known_call)
    evidence_ms = np.where(known_call, measuring.evidence_ms[facts.call[attempts]] if len(axis.calls) else 0, -1)
    call_ids = np.where(known_call, axis.calls.id[facts.call[attempts]] if len(axis.calls) else 0, -1)
    frame = pl.DataFrame(
        {
            "setting": pl.Series([measuring.settings.name] * len(attempts), dtype=pl.String),
            "attempt_id": facts.id[attempts],
            "call_id": call_ids,
            "route_key": pl.Series([axis.routes[route] for route in facts.route[attempts].tolist()], dtype=pl.String),
            "ts_ms": facts.ts_ms[attempts],
            "start_ms": facts.start_ms[attempts],
            "evidence_ms": evidence_ms,
            "ok": facts.ok[attempts],
            "error_kind": pl.Series([facts.error_kind[index] for index in attempts.tolist()], dtype=pl.String),
            "latency_ms": facts.latency_ms[attempts],
            "tools_requested": facts.tools_requested[attempts],
            "p_start": at_start[0],
            "latency_start_ms": at_start[1],
            "p_read": as_read[0],
            "latency_read_ms": as_read[1],
            "read_known": known_call,
        }
    )
    absent = ("call_id", "start_ms", "evidence_ms")
    return frame.with_columns(
        *(pl.when(pl.col(name) >= 0).then(pl.col(name)).alias(name) for name in absent),
        pl.col(pl.Float64).fill_nan(None),
    ).sort("attempt_id")


def _spread(stamps: Stamps, where: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[Ints, Ints]:
    """Lay the answers to some questions out over all of them; nan where none was asked."""
    laid = []
    for values in (stamps.reliability, stamps.latency_ms):
        all_values = np.full(len(where), np.nan)
        all_values[where] = values
        laid.append(all_values)
    return laid[0], laid[1]


def _warnings(decider: Decider, replayed: Sequence[Replayed]) -> list[str]:
    warnings = []
    for one in replayed:
        if one.undecided:
            warnings.append(
                f"{one.settings.name}: {one.undecided:,} calls could not be decided again: unknown policy, or "
                "a request that the core refuses"
            )
        if one.settings.prices.mode == "measured":
            warnings.append(f"{one.settings.name}: measured prices are a what-if; production never feeds drift back")
    sequence = decider.timeline.attempts.replica_seq
    if len(sequence) and (sequence >= 0).any() and (sequence < 0).any():
        warnings.append("some attempts carry their replica's numbering and some do not: in-process order goes by time")
    missing = _gaps(decider.timeline)
    if missing:
        warnings.append(f"{missing:,} numbers are missing from the replicas' own numbering: rows were dropped")
    return warnings


def _gaps(axis: Timeline) -> int:
    """Count the numbers between a replica's first and last that no row carries: decisions and attempts never written.

    Numbers before the first are not counted: retention deletes old rows, and a ledger may begin anywhere.
    """
    numbers: dict[str, set[int]] = {}
    for replica, sequence in (
        *zip(axis.calls.replica, axis.calls.replica_seq.tolist(), strict=True),
        *zip(axis.attempts.replica, axis.attempts.replica_seq.tolist(), strict=True),
    ):
        if replica is not None and sequence >= 0:
            numbers.setdefault(replica, set()).add(sequence)
    return sum(max(seen) - min(seen) + 1 - len(seen) for seen in numbers.values())
