"""All decisions in one compiled pass: evidence is taken in, aged and forgotten as decisions come, never laid out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.kernel.compiled import inlined, without_arrays
from replay.kernel.program import FROM_LATENCY, FROM_RATE, Records
from replay.kernel.ranking import Work, rank
from replay.kernel.tracks import Track, advance, read
from replay.kernel.truth import Moment, Stamped, World, can_tools, crosses

SHOWN = 3
"""Places of a plan that are kept."""

PATTERNS_FULL = -1
"""Returned instead of a position: the table of reject counts must grow first."""

OUT_OF_ORDER = -2
"""Returned instead of a position: a fold was asked to go back, which this pass cannot do."""


QUESTION = np.dtype(
    [
        ("seed", "i8"),
        ("request", "i4"),  # -1: cannot be decided
        ("hot", "i4"),
    ],
    align=True,
)
"""What many decisions are asked alike."""


Ints = NDArray[np.int64]


class Asked(NamedTuple):
    """What decisions are asked with: the ledger's own columns, of all its calls, and which question each is."""

    shared_key: Ints
    shared_ms: Ints
    own_key: Ints
    own_ms: Ints
    process: Ints
    mute: NDArray[np.bool_]
    segment: Ints
    health: Ints
    actual: Ints  # the recorded route
    number: NDArray[np.int32]
    question: Records


class Measures(NamedTuple):
    """The three measures of a setting: their tracks, whose state they read, and what stands in for no estimate."""

    rate: Track
    latency: Track
    tools: Track
    own: NDArray[np.bool_]  # (3,): state in the process
    stride: int  # slots of one process
    cold: NDArray[np.float64]  # (3,): nan where nothing stands in
    empty: NDArray[np.float64]


DECIDED = np.dtype(
    [
        ("hash", "u8"),
        ("best", "f8"),
        ("length", "i4"),
        ("rejected", "i4"),
        ("pattern", "i4"),
        ("chosen", "i4"),
        ("ranked", "i4"),
        ("out", "i4"),
    ],
    align=True,
)
STOOD = np.dtype(
    [
        *((name, "f8") for name in ("score", "rate", "latency_ms", "price_in", "price_out")),
        ("place", "i4"),
        ("tools", "i4"),
    ],
    align=True,
)


class Found(NamedTuple):
    """What came of decisions, a row each.

    `decided`: the plan's `length` (-1: undecided), how many were `rejected` and the `pattern` of their reasons, the
    first place of the plan whose provider is not disabled (`chosen`) with its score (`best`), whether the recorded
    route is `ranked`, whether its provider is disabled (`out`), the order's hash. `stood`: columns 0 to 2 are the
    plan's first three, 3 is the recorded route; `place` is relative to the segment, -1: none; nan is no score, no
    stamp, no price. Of several places of one route, a ranked one counts.
    """

    decided: Records
    stood: Records  # (rows, 4)


class Patterns(NamedTuple):
    """Reject counts met so far: row i of `counts` says how many were rejected for each reason; row 0 is none."""

    counts: NDArray[np.int32]
    bucket: NDArray[np.int32]  # open addressing, -1 is free
    used: NDArray[np.int64]  # (1,)
    scratch: NDArray[np.int32]


def room(rows: int) -> Found:
    """Allocate what comes of some decisions; whoever decides writes all of a row."""
    return Found(np.empty(rows, dtype=DECIDED), np.empty((rows, SHOWN + 1), dtype=STOOD))


def new_found(rows: int) -> Found:
    """Allocate what comes of some decisions that were not made yet."""
    found = Found(np.zeros(rows, dtype=DECIDED), np.zeros((rows, SHOWN + 1), dtype=STOOD))
    for name in ("length", "chosen"):
        found.decided[name] = -1
    for name in ("score", "rate", "latency_ms", "price_in", "price_out"):
        found.stood[name] = np.nan
    found.stood["place"] = -1
    return found


def new_patterns(reasons: int, size: int = 1024, old: Patterns | None = None) -> Patterns:
    """Allocate a table of reject counts, with all of an older one in it."""
    made = Patterns(
        np.zeros((size, reasons), dtype=np.int32),
        np.full(4 * size, -1, dtype=np.int32),
        np.zeros(1, dtype=np.int64),
        np.zeros(reasons, dtype=np.int32),
    )
    for row in [made.scratch.copy()] if old is None else old.counts[: old.used[0]]:
        made.scratch[:] = row
        _number(made)
    return made


@without_arrays
def _number(patterns: Patterns) -> int:
    """Return the number of the counts in scratch, new ones' too; PATTERNS_FULL where there is no room."""
    word = np.uint64(14695981039346656037)  # FNV-1a, over the counts
    for reason in range(len(patterns.scratch)):
        word = (word ^ np.uint64(patterns.scratch[reason])) * np.uint64(1099511628211)
    size = len(patterns.bucket)
    place: Any = np.int64(word % np.uint64(size))
    while patterns.bucket[place] >= 0:
        row = patterns.bucket[place]
        same = True
        for reason in range(len(patterns.scratch)):
            same &= patterns.counts[row, reason] == patterns.scratch[reason]
        if same:
            return int(row)
        place = (place + 1) % size
    row = patterns.used[0]
    if row == len(patterns.counts):
        return PATTERNS_FULL
    patterns.bucket[place] = row
    patterns.used[0] = row + 1
    for reason in range(len(patterns.scratch)):
        patterns.counts[row, reason] = patterns.scratch[reason]
    return int(row)


@without_arrays
def decide(
    calls: Ints,
    order: Ints,
    begin: int,
    end: int,
    base: int,
    asked: Asked,
    measures: Measures,
    versions: Ints,
    world: World,
    stamped: Stamped,
    work: Work,
    patterns: Patterns,
    found: Found,
) -> int:
    """Decide `calls[order[begin:end]]`; row `order[…] - base` of `found` takes what comes.

    Returns `end`; or, where it must stop before a decision, -(position) - 3 with the table of patterns full, and
    OUT_OF_ORDER where a fold would have to go back.
    """
    start, bounds = world.population.start, world.code.bound
    for position in range(begin, end):
        number = order[position]
        call = calls[number]
        if not _measure(call, asked, measures, versions, stamped, bounds):
            return OUT_OF_ORDER
        one = asked.question[asked.number[call]]
        if one.request < 0:
            undecided = found.decided[number - base]
            undecided.length = undecided.chosen = -1
            undecided.rejected = undecided.pattern = undecided.ranked = undecided.out = 0
            undecided.hash, undecided.best = 0, math.nan
            for shown in range(SHOWN + 1):
                found.stood[number - base, shown].place = -1
            continue
        segment = asked.segment[call]
        own = asked.process[call] * measures.stride
        shared = -1 if asked.mute[call] else 0
        at = Moment(
            start[segment],
            start[segment + 1] - start[segment],
            int(one.request),
            own if measures.own[0] else shared,
            own if measures.own[1] else shared,
            own if measures.own[2] else shared,
            asked.health[call],
            int(one.hot),
        )
        row = int(one.request & (len(work.entry) - 1))
        if rank(row, segment, versions, one.seed, world, stamped, work, at):
            pattern = _rejects(row, work, patterns, at)
            if pattern < 0:
                work.entry[row].segment = 0  # decide it anew, with room in the table
                return -position - 3
            work.entry[row].pattern = pattern
        if work.met[0] != segment:
            _meet(segment, world, work, at)
        _note(row, number - base, asked.actual[call], world, stamped, work, found, at)
    return int(end)


@inlined
def _measure(call: int, asked: Asked, measures: Measures, versions: Ints, stamped: Stamped, bounds: Records) -> bool:
    """Bring every measure to what this decision could see."""
    track = measures.rate
    at_ms, touched = _advanced(track, measures.own[0], call, asked)
    if touched < 0:
        return False
    for number in range(touched):
        slot = track.dirty[number]
        rate = _estimate(track, slot, at_ms, measures.cold[0], measures.empty[0])
        if crosses(bounds, FROM_RATE, stamped.rate[slot], rate):
            versions[1] += 1
        stamped.rate[slot] = rate

    track = measures.latency
    at_ms, touched = _advanced(track, measures.own[1], call, asked)
    if touched < 0:
        return False
    for number in range(touched):
        slot = track.dirty[number]
        mean_ms = _estimate(track, slot, at_ms, measures.cold[1], measures.empty[1])
        latency_ms = np.rint(mean_ms) if abs(mean_ms) < 2.0**52 else math.nan
        if crosses(bounds, FROM_LATENCY, stamped.latency_ms[slot], latency_ms):
            versions[1] += 1
        stamped.latency_ms[slot] = latency_ms

    track = measures.tools
    at_ms, touched = _advanced(track, measures.own[2], call, asked)
    if touched < 0:
        return False
    for number in range(touched):
        slot = track.dirty[number]
        capable = _estimate(track, slot, at_ms, math.nan, math.nan) > 0.0
        if stamped.capable[slot] != capable:
            stamped.capable[slot] = capable
            versions[0] += 1
    return True


@inlined
def _advanced(track: Track, own: bool, call: int, asked: Asked) -> tuple[int, int]:
    """Bring a track to a decision, in its process or on the shared ledger: its instant in ms, and slots changed."""
    if own:
        own_ms = asked.own_ms[call]
        return own_ms, advance(track, asked.process[call], asked.own_key[call], own_ms)
    shared_ms = asked.shared_ms[call]
    return shared_ms, advance(track, 0, asked.shared_key[call], shared_ms)


@inlined
def _estimate(track: Track, slot: int, at_ms: int, cold: float, empty: float) -> float:
    """Read a slot; where there is no estimate, what stands in for it (nan: nothing)."""
    value, _, known = read(track, slot, at_ms)
    if value == value:
        return value
    return empty if known else cold


@inlined
def _rejects(row: int, work: Work, patterns: Patterns, at: Moment) -> int:
    for reason in range(len(patterns.scratch)):
        patterns.scratch[reason] = 0
    for k in range(at.width):
        patterns.scratch[work.reason[row, k]] += 1
    patterns.scratch[0] = 0
    return int(_number(patterns))


@inlined
def _note(
    row: int,
    out: int,
    actual: int,
    world: World,
    stamped: Stamped,
    work: Work,
    found: Found,
    at: Moment,
) -> None:
    """Write down what came of a decision."""
    entry, ranked, place = work.entry[row], work.ranked[row], world.population.place
    decided = found.decided[out]
    decided.length, decided.pattern, decided.hash, decided.ranked = entry.length, entry.pattern, entry.hash, 0
    decided.rejected = entry.rejected
    decided.chosen, decided.best = -1, math.nan
    for k in range(entry.length):
        if not world.disabled[at.health, place[at.first + ranked[k]].dense]:
            decided.chosen, decided.best = ranked[k], work.score[row, k]
            break
    here, rank_here = _recorded(row, actual, work)
    decided.out = 0
    for shown in range(SHOWN + 1):
        which = here if shown == SHOWN else (int(ranked[shown]) if shown < entry.length else -1)
        stood = found.stood[out, shown]
        stood.place, stood.score = which, math.nan
        if which < 0:
            stood.rate = stood.latency_ms = stood.price_in = stood.price_out = math.nan
            stood.tools = 0
            continue
        where = at.first + which
        route = world.population.route[where]
        stood.rate = stamped.rate[at.rate_base + route] if at.rate_base >= 0 else math.nan
        stood.latency_ms = stamped.latency_ms[at.latency_base + route] if at.latency_base >= 0 else math.nan
        stood.price_in, stood.price_out = place[where].price_in, place[where].price_out
        stood.tools = can_tools(where, world.population, stamped, at)
        if shown < SHOWN:
            stood.score = work.score[row, shown]
            continue
        decided.out = world.disabled[at.health, place[where].dense]
        if rank_here >= 0:
            stood.score, decided.ranked = work.score[row, rank_here], 1


@inlined
def _recorded(row: int, actual: int, work: Work) -> tuple[int, int]:
    """Return the recorded route's place, a ranked one if there is, and its rank; -1: none."""
    if actual < 0 or actual >= len(work.first):
        return -1, -1
    k = work.first[actual]
    while k >= 0:
        rank_here = work.rank[row, k]  # of an earlier plan, if it is not in this one
        if rank_here < work.entry[row].length and work.ranked[row, rank_here] == k:
            return int(k), int(rank_here)
        k = work.next[k]
    return int(work.first[actual]), -1


@inlined
def _meet(segment: int, world: World, work: Work, at: Moment) -> None:
    """Find the places of every route in a segment."""
    start, route = world.population.start, world.population.route
    if work.met[0] >= 0:
        for place in range(start[work.met[0]], start[work.met[0] + 1]):
            work.first[route[place]] = -1
    for k in range(at.width - 1, -1, -1):
        its = route[at.first + k]
        work.next[k], work.first[its] = work.first[its], k
    work.met[0] = segment
