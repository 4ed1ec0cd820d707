"""Fields and predicates over all candidates of a moment, compiled."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.kernel import program as p
from replay.kernel.compiled import inlined
from replay.kernel.population import NO_SCOPE, Population
from replay.kernel.program import Code
from replay.kernel.requests import NO_CREDITS, NO_LOG, NOT_ASKED, TEE_REQUIRED, Asking

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Numbers = NDArray[np.int32]
Ints = NDArray[np.int64]


class Stamped(NamedTuple):
    """What is measured at present, per slot (a route, or a route in a process): nan is no stamp."""

    rate: Floats
    latency_ms: Floats
    capable: Bools


class Moment(NamedTuple):
    """One decision's place in all tables. `…_base` is the first slot of whose state is read, -1: nothing is known."""

    first: int  # place of the first candidate
    width: int  # candidates
    request: int
    rate_base: int
    latency_base: int
    tools_base: int
    health: int
    hot: int


class World(NamedTuple):
    """All that decisions are made from and no decision changes."""

    code: Code
    population: Population
    asking: Asking
    open: Bools  # per health state and provider
    disabled: Bools


@inlined
def read_measured(fields: Floats, needs: int, population: Population, stamped: Stamped, at: Moment) -> None:
    """Put what is measured of every candidate into its rows, defaults where nothing is."""
    if needs & (p.RATE | p.RATE_CROSSED):
        row = fields[p.FROM_RATE]
        for k in range(at.width):
            rate = stamped.rate[at.rate_base + population.route[at.first + k]] if at.rate_base >= 0 else math.nan
            row[k] = 1.0 if rate != rate else rate
    if needs & (p.LATENCY | p.LATENCY_CROSSED):
        row = fields[p.FROM_LATENCY]
        for k in range(at.width):
            latency = math.nan
            if at.latency_base >= 0:
                latency = stamped.latency_ms[at.latency_base + population.route[at.first + k]]
            row[k] = math.inf if latency != latency else latency


@inlined
def crosses(bounds: Any, source: int, before: float, now: float) -> bool:
    """Say whether a measurement that changed lies on the other side of any bound; absent values as their defaults."""
    absent = 1.0 if source == p.FROM_RATE else math.inf
    before = absent if before != before else before
    now = absent if now != now else now
    for number in range(len(bounds)):
        if bounds[number].source == source:
            relation, x = bounds[number].relation, bounds[number].x
            if holds(before, relation, x) != holds(now, relation, x):
                return True
    return False


@inlined
def holds(value: float, relation: int, bound: float) -> bool:
    """Compare a value with a bound."""
    if relation == 0:
        return value < bound
    if relation == 1:
        return value <= bound
    if relation == 2:
        return value == bound
    if relation == 3:
        return value != bound
    return value >= bound if relation == 4 else value > bound


@inlined
def read_state(fields: Floats, hot_column: int, world: World, at: Moment) -> None:
    """Put what the state says of every candidate into its rows: breakers, credits, and where the cache is hot."""
    place, credits = world.population.place, world.asking.credits
    for k in range(at.width):
        where = at.first + k
        provider = place[where].dense
        fields[p.FROM_OPEN, k] = 1.0 if world.open[at.health, provider] else 0.0
        fields[p.FROM_DISABLED, k] = 1.0 if world.disabled[at.health, provider] else 0.0
        fields[p.FROM_CREDITS, k] = credits[at.request, provider] if provider < credits.shape[1] else NO_CREDITS
        if hot_column >= 0:
            usual = world.population.column[hot_column, where]
            fields[p.FROM_HOT, k] = 1.0 if place[where].key == at.hot else usual


@inlined
def can_tools(where: int, population: Population, stamped: Stamped, at: Moment) -> bool:
    """Say whether a place supports tools: as offered, less a marketplace route's measured verdict."""
    if population.column[p.SUPPORTS_TOOLS, where] == 0.0:
        return False
    if at.tools_base < 0 or population.place[where].market == 0:
        return True
    return bool(stamped.capable[at.tools_base + population.route[where]])


@inlined
def meets(where: int, world: World, stamped: Stamped, at: Moment) -> int:
    """Return why a place does not meet the request's requirements, 0 if it does; the first failure wins."""
    asked, column, need = world.asking.request[at.request], world.population.column, world.asking.need
    for number in range(need.shape[1]):
        needed = need[at.request, number].column
        if needed == NOT_ASKED:
            break
        if needed == p.SUPPORTS_TOOLS:
            has = can_tools(where, world.population, stamped, at)
        else:
            has = column[needed, where] != 0.0
        if not has:
            return int(need[at.request, number].reason)
    if column[p.CONTEXT, where] < asked.min_context:
        return p.TOO_SHORT
    place = world.population.place[where]
    if asked.family != NOT_ASKED and place.family != asked.family:
        return p.OTHER_FAMILY
    if asked.tier != NOT_ASKED and place.tier != asked.tier:
        return p.OTHER_TIER
    has_tee = column[p.HAS_TEE, where] != 0.0
    if asked.privacy == TEE_REQUIRED and not has_tee:
        return p.NO_TEE
    if asked.privacy == NO_LOG and not (has_tee or column[p.LOGS_NOTHING, where] != 0.0):
        return p.LOGS
    if column[p.TOK_S, where] < asked.min_tok_s:
        return p.TOO_SLOW
    return 0


@inlined
def compare(out: Bools, values: Floats, start: int, count: int, relation: int, bound: float) -> None:
    """Compare each value with a bound."""
    if relation == 0:
        for k in range(count):
            out[k] = values[start + k] < bound
    elif relation == 1:
        for k in range(count):
            out[k] = values[start + k] <= bound
    elif relation == 2:
        for k in range(count):
            out[k] = values[start + k] == bound
    elif relation == 3:
        for k in range(count):
            out[k] = values[start + k] != bound
    elif relation == 4:
        for k in range(count):
            out[k] = values[start + k] >= bound
    else:
        for k in range(count):
            out[k] = values[start + k] > bound


@inlined
def identity(place: Any, which: int) -> Any:
    """Return the number of a place's provider, family, server or tier."""
    if which == 0:
        return place.provider
    if which == 1:
        return place.family
    return place.served_by if which == 2 else place.tier


@inlined
def truth(piece: int, stack: Bools, why: Numbers, fields: Floats, world: World, stamped: Stamped, at: Moment) -> None:
    """Evaluate a Pred for all candidates of a moment; the truth stands in the first row of `stack`.

    Where requirements are not met, `why` takes the reason.
    """
    place, top = world.population.place, -1
    for number in range(world.code.piece[piece].lo, world.code.piece[piece].hi):
        step = world.code.step[number]
        if step.op == p.NOT:
            for k in range(at.width):
                stack[top, k] = not stack[top, k]
            continue
        if step.op == p.AND:
            top -= 1
            for k in range(at.width):
                stack[top, k] &= stack[top + 1, k]
            continue
        if step.op == p.OR:
            top -= 1
            for k in range(at.width):
                stack[top, k] |= stack[top + 1, k]
            continue
        top += 1
        if step.op == p.COMPARE:
            column = step.a == p.COLUMN
            values = world.population.column[step.b] if column else fields[step.a]
            compare(stack[top], values, at.first if column else 0, at.width, int(step.y), step.x)
        elif step.op == p.IDENTITY:
            for k in range(at.width):
                stack[top, k] = identity(place[at.first + k], step.a) == step.b
        elif step.op == p.CAN_TOOLS:
            for k in range(at.width):
                stack[top, k] = can_tools(at.first + k, world.population, stamped, at)
        elif step.op == p.SCOPE:
            asked = world.asking.request[at.request].scope
            for k in range(at.width):
                scope = place[at.first + k].scope
                stack[top, k] = (scope == NO_SCOPE) | (scope == asked)
        elif step.op == p.MEETS:
            for k in range(at.width):
                why[k] = meets(at.first + k, world, stamped, at)
                stack[top, k] = why[k] == 0
        else:
            for k in range(at.width):
                stack[top, k] = step.op == p.TRUE
