"""What came of decisions, as a table: the numbers of a core beside the names, prices and instants of the ledger."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from replay.columns import Field, fields, known, numbers, texts, texts_that_recur, truths
from replay.deciding import Decider, Decision, Providers
from replay.kernel.compiled import compiled
from replay.kernel.core import Block
from replay.kernel.loop import SHOWN, Found, new_found
from replay.kernel.program import Records
from replay.measuring import Measuring
from replay.orderhash import order_hash
from replay.timeline import Bools, Codes, Floats, Ints

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
    actual = decider.timeline.taken[block.calls]
    segment = decider.book.numbers_at(decider.timeline.calls.decided_ms[block.calls])
    chosen = _routes(decider, segment, decided["chosen"], decided["chosen"] >= 0)
    return Choices(
        block.calls,
        np.where(decided["length"] < 0, UNDECIDED, chosen),
        decided["length"] == 1,
        _causes(decided, recorded, chosen, actual),
    )


@compiled
def _causes(decided: Records, recorded: Records, chosen: Ints, actual: Ints) -> NDArray[np.int8]:
    """Return why each plan does not begin with the recorded route, as a place in CAUSES."""
    causes = np.zeros(len(decided), dtype=np.int8)
    for row in range(len(decided)):
        one = decided[row]
        if one["length"] < 0 or chosen[row] == actual[row]:
            continue
        if actual[row] < 0:
            causes[row] = 1
        elif recorded[row]["place"] < 0:
            causes[row] = 2
        elif one["ranked"] == 0:
            causes[row] = 3
        elif one["out"] != 0:
            causes[row] = 4
        else:
            causes[row] = 5 if abs(one["best"] - recorded[row]["score"]) <= TIE_TOLERANCE else 6
    return causes


def table(decider: Decider, measuring: Measuring, block: Block, *, recorded_policy: bool = False) -> pa.Table:
    """Return a block as rows with the columns of DECISIONS, texts as dictionaries.

    Calls that could not be decided are left out. Nothing of the block is held on to.
    """
    kept = np.flatnonzero(block.found.decided["length"] >= 0)
    calls, axis = block.calls[kept], decider.timeline
    decided, stood = (fields(records, kept) for records in block.found)
    health = block.health[kept]
    opened, disabled = block.states
    decided_ms = axis.calls.decided_ms[calls]
    segment = decider.book.numbers_at(decided_ms)
    policy, policies = decider.policies.numbered(calls, recorded=recorded_policy)
    attempt = axis.calls.first_attempt[calls]
    first = np.where(attempt >= 0, axis.attempts.route[np.maximum(attempt, 0)], -1) if len(axis.attempts) else attempt
    chosen = _routes(decider, segment, decided("chosen"), decided("chosen") >= 0)
    columns = {
        "setting": texts(np.zeros(len(calls), dtype=np.int32), [measuring.settings.name]),
        "call_id": numbers(axis.calls.id[calls]),
        "decided_ms": numbers(decided_ms),
        "evidence_ms": numbers(measuring.evidence_ms[calls]),
        "policy_id": texts_that_recur(policy, [None if one is None else one.identity for one in policies]),
        "request_class": texts(decider.asked.kinds.codes[decider.asked.codes[calls]], decider.asked.kinds.values),
        "recorded_route": texts(axis.calls.route[calls], axis.routes),
        "recorded_first_route": texts(first, axis.routes),
        "chosen_route": texts(chosen, axis.routes),
        "label": texts((chosen == axis.taken[calls]).astype(np.int32), ["bounded", "recorded"]),
        "candidates": numbers(decider.book.sizes[segment]),
        "rejected": numbers(decided("rejected")),
        "reject_counts": texts(decided("pattern"), block.rejects),
        "open_breakers": texts_that_recur(health, opened),
        "disabled_providers": texts_that_recur(health, disabled),
        "margin": numbers(_minus(stood("score", 0), stood("score", 1)), decided("length") > 1),
    }
    columns |= _stood(decider, segment, decided, stood)
    columns["order_hash"] = numbers(decided("hash"))
    return pa.table(columns)


def _stood(decider: Decider, segment: Ints, decided: Field, stood: Field) -> dict[str, pa.Array]:
    """Return the columns of what came first, second and third, and of the recorded route."""
    columns: dict[str, pa.Array] = {}
    for place in range(SHOWN):
        ranked = decided("length") > place
        routes = _routes(decider, segment, stood("place", place), ranked)
        columns |= {
            f"route_{place + 1}": texts(routes, decider.timeline.routes),
            f"score_{place + 1}": numbers(stood("score", place), ranked),
            f"success_rate_{place + 1}": known(stood("rate", place), ranked),
            f"latency_ms_{place + 1}": known(stood("latency_ms", place), ranked),
            f"tools_{place + 1}": truths(stood("tools", place) != 0, ranked),
            f"price_in_{place + 1}": known(stood("price_in", place), ranked),
            f"price_out_{place + 1}": known(stood("price_out", place), ranked),
        }
    here = stood("place", SHOWN) >= 0
    return columns | {
        "recorded_score": numbers(stood("score", SHOWN), decided("ranked") != 0),
        "recorded_success_rate": known(stood("rate", SHOWN), here),
        "recorded_latency_ms": known(stood("latency_ms", SHOWN), here),
    }


def _routes(decider: Decider, segment: Ints, place: Codes, holds: Bools) -> Ints:
    """Return the routes of places in segments, -1 where it does not hold."""
    book = decider.book
    return np.append(book.routes, -1)[np.where(holds, book.starts[segment] + place, -1)]


def _minus(first: Floats, second: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # of two routes without a stamp, ∞ − ∞
        return np.subtract(first, second)


# The interpreter, in the same form


def interpreted(
    decider: Decider, measuring: Measuring, calls: Ints, *, recorded_policy: bool = False, rows: int = INTERPRETED_ROWS
) -> Iterator[Block]:
    """Decide some calls with the interpreter, block by block."""
    patterns, routes = {"{}": 0}, [*decider.timeline.routes, ""]
    states: dict[Providers, int] = {}
    for start in range(0, len(calls), rows):
        some = calls[start : start + rows]
        few, found = decider.only(some), new_found(len(some))
        parts, actual = few.parts(measuring), decider.timeline.taken[some]
        for row, call in enumerate(some.tolist()):
            decision = few.decide(call, parts, recorded_policy=recorded_policy)
            if decision is not None:
                _note(found, row, decision, int(actual[row]), routes, patterns)
        health = [states.setdefault(parts.health[call], len(states)) for call in some.tolist()]
        yield Block(some, found, np.array(health, dtype=np.int64), lambda: _texts(states), lambda: list(patterns))


def _texts(states: Iterable[Providers]) -> tuple[list[str], list[str]]:
    """Return the open and the disabled providers of each state, by name."""
    opened, disabled = ([",".join(sorted(state[part], key=str.encode)) for state in states] for part in (0, 1))
    return opened, disabled


def _note(found: Found, row: int, decision: Decision, actual: int, routes: list[str], patterns: dict[str, int]) -> None:
    """Write down one decision as the compiled core does."""
    ranking = decision.plan
    reasons = Counter(reason for _, reason in ranking.rejected)
    decided = found.decided[row]
    decided["length"], decided["rejected"] = len(ranking.ordered), len(ranking.rejected)
    decided["pattern"] = patterns.setdefault(json.dumps(reasons, sort_keys=True), len(patterns))
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
