"""What came of decisions, as a table: the numbers of a core beside the names, prices and instants of the ledger."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from replay.deciding import Decider, Decision, Providers
from replay.kernel.core import Block
from replay.kernel.loop import SHOWN, Found, new_found
from replay.measuring import Measuring
from replay.orderhash import order_hash
from replay.timeline import Bools, Floats, Ints

INTERPRETED_ROWS = 4_096

_PLACED: dict[str, pl.DataType | type[pl.DataType]] = {
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
    "open_breakers": pl.String,
    "disabled_providers": pl.String,
    "margin": pl.Float64,
    **{f"{name}_{place}": kind for place in range(1, SHOWN + 1) for name, kind in _PLACED.items()},
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
recorded route (the first attempt's where known). `reject_counts` is a JSON object, reason → candidates.
`open_breakers` and `disabled_providers` are what the process knew at the decision, names in byte order joined by
commas. `order_hash` is a 64-bit hash of the full order with its scores (`replay.orderhash`).
"""


CAUSES = ("", "no route recorded", "no candidate", "filtered", "failover", "tie", "score")
"""Why a plan does not begin with the recorded route; "" where it does, or nothing was decided."""

TIE_TOLERANCE = 1e-12

UNDECIDED = -2


@dataclass(frozen=True)
class Choices:
    """What was chosen, one entry for each of `calls`.

    `route` is the number of the route (-1: none, UNDECIDED: the policy is not known, or the request refused), `alone`
    whether nothing else was ranked, `cause` why it is not the recorded route, as a place in CAUSES.
    """

    calls: Ints
    route: Ints
    alone: Bools
    cause: NDArray[np.int8]

    @classmethod
    def undecided(cls, calls: Ints) -> Choices:
        """Return choices of calls that nobody decided."""
        none = np.zeros(len(calls), dtype=np.int8)
        return cls(calls, np.full(len(calls), UNDECIDED, dtype=np.int64), none.astype(np.bool_), none)

    @classmethod
    def together(cls, parts: list[Choices]) -> Choices:
        """Return several parts as one."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def choices(decider: Decider, block: Block) -> Choices:
    """Return what a block's decisions chose, and where the recorded route stands in plans that do not begin with it."""
    decided, recorded = block.found.decided, block.found.stood[:, SHOWN]
    routes, first = _places(decider, block.calls)
    chosen = _at(routes, first + decided["chosen"], decided["chosen"] >= 0)
    actual = decider.timeline.taken[block.calls]
    with np.errstate(invalid="ignore"):
        tie = np.abs(decided["best"] - recorded["score"]) <= TIE_TOLERANCE
    conditions = [
        (decided["length"] < 0) | (chosen == actual),
        actual < 0,
        recorded["place"] < 0,
        decided["ranked"] == 0,
        decided["out"] != 0,
        tie,
    ]
    return Choices(
        block.calls,
        np.where(decided["length"] < 0, UNDECIDED, chosen),
        decided["length"] == 1,
        np.select(conditions, range(len(conditions)), len(conditions)).astype(np.int8),
    )


def table(decider: Decider, measuring: Measuring, block: Block, *, recorded_policy: bool = False) -> pl.DataFrame:
    """Return a block as rows with the columns of DECISIONS; calls that could not be decided are left out.

    Texts that recur are of the type `polars.Enum`.
    """
    kept = np.flatnonzero(block.found.decided["length"] >= 0)
    calls, axis = block.calls[kept], decider.timeline
    decided, stood, health = block.found.decided[kept], block.found.stood[kept], block.health[kept].astype(np.int64)
    opened, disabled = block.states
    routes, first = _places(decider, calls)
    names = pl.Enum(axis.routes)
    policy_of, policies = decider.policies.numbered(recorded=recorded_policy)
    attempt = axis.calls.first_attempt[calls]
    first_route = _at(axis.attempts.route, np.maximum(attempt, 0), attempt >= 0)
    actual = axis.taken[calls]
    chosen = _at(routes, first + decided["chosen"], decided["chosen"] >= 0)
    columns: dict[str, pl.Series] = {
        "setting": _named(pl.Enum([measuring.settings.name]), np.zeros(len(calls), dtype=np.int64)),
        "call_id": pl.Series(axis.calls.id[calls]),
        "decided_ms": pl.Series(axis.calls.decided_ms[calls]),
        "evidence_ms": pl.Series(measuring.evidence_ms[calls]),
        "policy_id": _one_of([None if one is None else one.identity for one in policies], policy_of[calls]),
        "request_class": _one_of([asked.kind for asked in decider.asked.distinct], decider.asked.codes[calls]),
        "recorded_route": _named(names, axis.calls.route[calls]),
        "recorded_first_route": _named(names, first_route),
        "chosen_route": _named(names, chosen),
        "label": _named(pl.Enum(["bounded", "recorded"]), (chosen == actual).astype(np.int64)),
        "candidates": pl.Series(decider.book.sizes[decider.book.numbers_at(axis.calls.decided_ms[calls])]),
        "rejected": pl.Series(decided["rejected"].copy()),
        "reject_counts": pl.Series(block.rejects, dtype=pl.String).gather(decided["pattern"].astype(np.int64)),
        "open_breakers": pl.Series(opened, dtype=pl.String).gather(health),
        "disabled_providers": pl.Series(disabled, dtype=pl.String).gather(health),
        "margin": _some(_minus(stood["score"][:, 0], stood["score"][:, 1]), decided["length"] > 1),
    }
    for place in range(SHOWN):
        ranked = decided["length"] > place
        where = first + stood["place"][:, place]
        columns[f"route_{place + 1}"] = _named(names, _at(routes, where, ranked))
        columns[f"score_{place + 1}"] = _some(stood["score"][:, place], ranked)
        columns[f"success_rate_{place + 1}"] = _known(stood["rate"][:, place], ranked)
        columns[f"latency_ms_{place + 1}"] = _known(stood["latency_ms"][:, place], ranked)
        columns[f"tools_{place + 1}"] = pl.Series(stood["tools"][:, place] != 0).set(pl.Series(~ranked), None)
        columns[f"price_in_{place + 1}"] = _known(stood["price_in"][:, place], ranked)
        columns[f"price_out_{place + 1}"] = _known(stood["price_out"][:, place], ranked)
    here = stood["place"][:, SHOWN] >= 0
    columns["recorded_score"] = _some(stood["score"][:, SHOWN], decided["ranked"] != 0)
    columns["recorded_success_rate"] = _known(stood["rate"][:, SHOWN], here)
    columns["recorded_latency_ms"] = _known(stood["latency_ms"][:, SHOWN], here)
    columns["order_hash"] = pl.Series(decided["hash"].copy())
    return pl.DataFrame({name: columns[name] for name in DECISIONS})


def _places(decider: Decider, calls: Ints) -> tuple[Ints, Ints]:
    """Return the routes of all places of the offer book, and the first place of each call's candidates."""
    book = decider.book
    return book.routes, book.starts[book.numbers_at(decider.timeline.calls.decided_ms[calls])]


def _at(values: Ints, where: Ints, holds: Bools, otherwise: Ints | int = -1) -> Ints:
    """Return `values[where]` where it holds."""
    if not len(values):
        return np.broadcast_to(np.asarray(otherwise, dtype=np.int64), holds.shape).copy()
    return np.where(holds, values[np.where(holds, where, 0)], otherwise).astype(np.int64)


def _named(names: pl.Enum, numbers: Ints) -> pl.Series:
    """Return the names of some numbers, none of one below 0."""
    codes = pl.Series(numbers).set(pl.Series(numbers < 0), None)
    return codes.cast(pl.UInt32).cat.to(names)


def _one_of(names: Sequence[str | None], numbers: Ints) -> pl.Series:
    """Return the names of some numbers, where several may have the same, or none."""
    distinct = sorted({name for name in names if name is not None}, key=str.encode)
    place = np.array([-1 if name is None else distinct.index(name) for name in names], dtype=np.int64)
    return _named(pl.Enum(distinct), place[numbers])


def _minus(first: Floats, second: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # of two routes without a stamp, ∞ − ∞
        return np.subtract(first, second)


def _some(values: Floats, holds: Bools) -> pl.Series:
    """Return the values, null where they do not hold; a value may well be no number."""
    return pl.Series(values.copy()).set(pl.Series(~holds), None)


def _known(values: Floats, holds: Bools) -> pl.Series:
    """Return the values, null where they do not hold or are no number."""
    return pl.Series(values.copy()).set(pl.Series(~holds | np.isnan(values)), None)


# The interpreter, in the same form


def interpreted(
    decider: Decider, measuring: Measuring, calls: Ints, *, recorded_policy: bool = False, rows: int = INTERPRETED_ROWS
) -> Iterator[Block]:
    """Decide some calls with the interpreter, block by block."""
    numbers, routes = {"{}": 0}, [*decider.timeline.routes, ""]
    states: dict[Providers, int] = {}
    for start in range(0, len(calls), rows):
        some = calls[start : start + rows]
        few, found = decider.only(some), new_found(len(some))
        parts, actual = few.parts(measuring), decider.timeline.taken[some]
        for row, call in enumerate(some.tolist()):
            decision = few.decide(call, parts, recorded_policy=recorded_policy)
            if decision is not None:
                _note(found, row, decision, int(actual[row]), routes, numbers)
        health = [states.setdefault(parts.health[call], len(states)) for call in some.tolist()]
        yield Block(some, found, np.array(health, dtype=np.int64), lambda: _texts(states), lambda: list(numbers))


def _texts(states: Iterable[Providers]) -> tuple[list[str], list[str]]:
    """Return the open and the disabled providers of each state, by name."""
    opened, disabled = ([",".join(sorted(state[part], key=str.encode)) for state in states] for part in (0, 1))
    return opened, disabled


def _note(found: Found, row: int, decision: Decision, actual: int, routes: list[str], numbers: dict[str, int]) -> None:
    """Write down one decision as the compiled core does."""
    ranking = decision.plan
    reasons = Counter(reason for _, reason in ranking.rejected)
    decided = found.decided[row]
    decided["length"], decided["rejected"] = len(ranking.ordered), len(ranking.rejected)
    decided["pattern"] = numbers.setdefault(json.dumps(reasons, sort_keys=True), len(numbers))
    decided["chosen"] = -1 if decision.chosen is None else decision.chosen
    for place, (index, score) in enumerate(zip(ranking.ordered[:SHOWN], ranking.scores, strict=False)):
        _note_place(found, row, place, decision, index, score)
    score_of = dict(zip(ranking.ordered, ranking.scores, strict=True))
    decided["best"] = math.nan if decision.chosen is None else score_of[decision.chosen]
    same = np.flatnonzero(decision.routes == actual).tolist() if actual >= 0 else []
    if same:
        here = next((place for place in same if place in score_of), same[0])
        decided["ranked"] = here in score_of
        decided["out"] = decision.candidates[here].provider_id in decision.disabled
        _note_place(found, row, SHOWN, decision, here, score_of.get(here, math.nan))
    ranked = (
        (routes[int(decision.routes[index])], score)
        for index, score in zip(ranking.ordered, ranking.scores, strict=True)
    )
    decided["hash"] = order_hash(ranked)


def _note_place(found: Found, row: int, place: int, decision: Decision, index: int, score: float) -> None:
    candidate, stood = decision.candidates[index], found.stood[row, place]
    stood["place"], stood["score"] = index, score
    stood["tools"] = bool(candidate.capabilities.get("supports_tools"))
    for name in ("success_rate", "latency_ms", "price_in", "price_out"):
        value = candidate.fields.get(name)
        stood["rate" if name == "success_rate" else name] = math.nan if value is None else float(value)
