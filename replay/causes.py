"""What turned a flip: parts are exchanged and the decision is made again, so the core answers, not a guess."""

from __future__ import annotations

import numpy as np
import polars as pl

from replay import offerbook
from replay.asking import Policies
from replay.core import Policy
from replay.deciding import Decider, Parts
from replay.engine import Progress
from replay.measuring import Measuring
from replay.settings import Settings
from replay.timeline import Timeline

PARTS = ("reliability", "latency", "tools", "price", "health")
"""What a decision rests on besides the candidates, the request and the policy."""

CAUSES_SCHEMA: dict[str, type[pl.DataType]] = {"call_id": pl.Int64, "cause": pl.String}


def cause(decider: Decider, call: int, base: Parts, other: Parts, chosen_other: int) -> str:
    """Say which part, taken alone from `other`, turns the base's choice into the other's.

    `several` means that more than one part would do it alone, `joint` that none does.
    """
    turning = []
    for part in PARTS:
        decision = decider.decide(call, base.with_part(part, other))
        if decision is not None and decision.chosen_route == chosen_other:
            turning.append(part)
    return turning[0] if len(turning) == 1 else "several" if turning else "joint"


def causes(
    axis: Timeline,
    policy: Policy | None,
    first: Settings,
    second: Settings,
    flips: pl.DataFrame,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """Return `call_id` and `cause` of every flip between two settings under one policy (None: the recorded ones).

    In: `flips` with `call_id` and `chosen_b`, the route the second setting chose (null: none).
    """
    say = progress or (lambda what, done, total: None)
    if flips.is_empty():
        return pl.DataFrame(schema=CAUSES_SCHEMA)
    chosen = dict(zip(flips["call_id"].to_list(), flips["chosen_b"].to_list(), strict=True))
    calls = np.flatnonzero(np.isin(axis.calls.id, list(chosen))).astype(np.int64)
    decider = Decider(axis, offerbook.build(axis), Policies(axis, policy), calls)
    base, other = (decider.parts(Measuring(axis, settings)) for settings in (first, second))
    rows = []
    for number, call in enumerate(calls.tolist()):
        if number % 100 == 0:
            say("finding what turned each flip", number, len(calls))
        row = int(axis.calls.id[call])
        route = -1 if chosen[row] is None else axis.number(chosen[row])
        rows.append((row, cause(decider, call, base, other, route)))
    return pl.DataFrame(rows, schema=CAUSES_SCHEMA, orient="row")
