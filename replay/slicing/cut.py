"""The cut itself: the rows that can matter, in a ledger of their own, proved by replaying both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from replay import engine, timeline
from replay.core import Policy
from replay.durations import iso
from replay.engine import Progress, Run
from replay.errors import ReplayError
from replay.ledger.folder import frames, ledger_of
from replay.ledger.load import Ledger
from replay.measuring import Measuring
from replay.reproduction import recorded_settings
from replay.settings import Settings
from replay.slicing.names import without_names
from replay.slicing.reach import EVERYTHING, Chosen, matters, remembered_ms, union
from replay.timeline import Ints, Timeline

_DEPTHS = range(5)


@dataclass(frozen=True)
class Slice:
    """A ledger cut for [since_ms, until_ms), and its replay, which is that of the whole ledger."""

    ledger: Ledger
    run: Run
    since_ms: int
    until_ms: int
    decisions: int
    warm_up: int  # attempts that are there for the first decisions to rest on
    whole_history: bool


def slice_ledger(
    ledger: Ledger,
    settings: Sequence[Settings],
    since_ms: int,
    until_ms: int,
    policy: Policy | None = None,
    *,
    names: bool = False,
    progress: Progress | None = None,
) -> Slice:
    """Cut a ledger that replays [since_ms, until_ms) under each of the settings exactly as the whole ledger does.

    Decisions and predictions are compared to the last bit; where the rows that should matter do not suffice, more are
    taken, in the end everything from before. More are also tried where the numbers left out of a process would throw
    doubt on decisions (`replay.gaps`), as long as that stays small. `names` keeps callers, sessions and the like as
    they are (`replay.slicing.names`). Raises ReplayError where nothing was decided in the span, where the whole
    ledger's own replay does not hold, and where even the whole history does not give the same replay.
    """
    say = progress or (lambda what, done, total: None)
    if until_ms <= since_ms:
        raise ReplayError(f"the slice ends at {iso(until_ms)}, not after its start {iso(since_ms)}; swap the two")
    axis = timeline.build(ledger)
    chosen = _chosen(axis, since_ms, until_ms)
    if not chosen.calls.any():
        raise ReplayError(_nothing_there(axis, since_ms, until_ms))
    whole = engine.run(ledger, settings, policy, since_ms, until_ms, say)
    if not whole.passed:
        raise ReplayError(
            "the whole ledger's replay of this span does not hold (its audit or reproduction fails), so a slice of it "
            "could guard nothing; see what fails with: replay run … --since … --until …"
        )
    measurings = [Measuring(axis, one) for one in _concerned(axis, chosen, settings)]
    doubtful, difference = None, ""
    for number, depth in enumerate((*_DEPTHS, EVERYTHING)):
        if depth == EVERYTHING and doubtful is not None:
            return doubtful
        say("cutting", number, len(_DEPTHS) + 1)
        tables = _tables(axis, measurings, chosen, depth)
        cut = ledger_of(tables if names else without_names(tables))
        run = engine.run(cut, settings, policy, since_ms, until_ms, say)
        difference = _difference(whole, run)
        if not difference:
            decisions, attempts = int(chosen.calls.sum()), int(chosen.attempts.sum())
            made = Slice(cut, run, since_ms, until_ms, decisions, len(cut.attempts) - attempts, depth == EVERYTHING)
            if run.reproduction == whole.reproduction:
                return made
            doubtful = doubtful or made
    raise ReplayError(
        f"no slice replays as the whole ledger does, not even with everything from before it: {difference}. Nothing "
        "was written; please report this with the settings used"
    )


def _chosen(axis: Timeline, since_ms: int, until_ms: int) -> Chosen:
    """Choose the decisions and attempts that a replay of the span reports, and those decisions' own attempts."""
    within = [(at_ms >= since_ms) & (at_ms < until_ms) for at_ms in (axis.calls.decided_ms, axis.attempts.ts_ms)]
    attempts = within[1]
    if len(axis.calls):
        attempts = attempts | ((axis.attempts.call >= 0) & within[0][axis.attempts.call])
    return Chosen(within[0], attempts)


def _nothing_there(axis: Timeline, since_ms: int, until_ms: int) -> str:
    decided_ms = axis.calls.decided_ms
    known = f"its decisions run from {iso(int(decided_ms[0]))} to {iso(int(decided_ms[-1]))}" if len(decided_ms) else ""
    return (
        f"no call was decided from {iso(since_ms)} until {iso(until_ms)}, so there is nothing to cut; "
        f"{known or 'the ledger holds no calls'}: choose --since and --until within"
    )


def _concerned(axis: Timeline, chosen: Chosen, settings: Sequence[Settings]) -> list[Settings]:
    """Return the given settings, and the recorded ones that the reproduction replays."""
    used = set(axis.ledger.calls.filter(pl.col("id").is_in(_ids(axis.calls.id, chosen.calls)))["settings_id"])
    recorded = [one for identity, one in recorded_settings(axis.ledger.settings).items() if identity in used]
    return list({one.identity: one for one in (*settings, *recorded)}.values())


def _tables(axis: Timeline, measurings: Sequence[Measuring], chosen: Chosen, depth: int) -> dict[str, pl.DataFrame]:
    """Return the rows that can matter, of every table, with the offers, prices, policies and settings they need."""
    ledger, decided_ms = axis.ledger, axis.calls.decided_ms[chosen.calls]
    kept = union((matters(one, chosen, len(ledger.offers) > 0, depth) for one in measurings), axis)
    first_ms, last_ms = int(decided_ms.min()), int(decided_ms.max())
    undecided = ~pl.col("id").is_in(axis.calls.id.tolist()) & (pl.col("ts") * 1000).is_between(first_ms, last_ms)
    calls = ledger.calls.filter(pl.col("id").is_in(_ids(axis.calls.id, kept.calls)) | undecided)
    attempts = ledger.attempts.filter(pl.col("id").is_in(_ids(axis.attempts.id, kept.attempts)))
    remembered = max(remembered_ms(one.settings) for one in measurings)
    since_ms = -(2**62) if depth == EVERYTHING else first_ms - remembered
    instants = [one.settings.prices.at_ms for one in measurings if one.settings.prices.at_ms is not None]
    offers = ledger.offers.filter(
        pl.any_horizontal(*(_valid(low, high) for low, high in [(since_ms, last_ms), *((at, at) for at in instants)]))
    )
    pairs = pl.concat([frame.select("provider_id", "model_family") for frame in (calls, attempts, offers)]).unique()
    return frames(ledger) | {
        "calls": calls,
        "route_observations": attempts,
        "offer_history": offers,
        "provider_prices": ledger.prices.join(pairs, on=["provider_id", "model_family"], how="semi"),
        "policies": ledger.policies.filter(pl.col("policy_id").is_in(calls["policy_id"].unique().to_list())),
        "settings": ledger.settings.filter(pl.col("settings_id").is_in(calls["settings_id"].unique().to_list())),
    }


def _ids(ids: Ints, mask: timeline.Bools) -> list[int]:
    return [int(one) for one in ids[mask]]


def _valid(low_ms: int, high_ms: int) -> pl.Expr:
    """Offers that are valid at some instant of [low, high]."""
    return (pl.col("valid_from") <= high_ms) & (pl.col("valid_to").is_null() | (pl.col("valid_to") > low_ms))


def _difference(whole: Run, cut: Run) -> str:
    """Say the first thing in which two replays differ, "" if nothing does."""
    for name, ours, theirs in (
        ("decisions", whole.decisions, cut.decisions),
        ("predictions", whole.predictions, cut.predictions),
    ):
        if len(ours) != len(theirs):
            return f"{len(ours):,} {name} in the whole ledger, {len(theirs):,} in the slice"
        for column in ours.columns:
            differs = np.flatnonzero(~ours[column].eq_missing(theirs[column]).to_numpy())
            if len(differs):
                row = int(differs[0])
                return (
                    f"row {row} of the {name}: {column} is {ours[column][row]} in the whole ledger, "
                    f"{theirs[column][row]} in the slice"
                )
    return "" if cut.passed else "the slice's own audit or reproduction fails"
