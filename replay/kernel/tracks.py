"""Tracks: the compiled form of every estimator, for reading many states at many instants.

A track is one measure's facts, in the orders in which they are walked, and the state of every slot (whose state: a
route, or a route in a process). The facts themselves stay where they are: an order says which row comes next, and a row
whose value is nan is none of this measure's, so that one pair of orders serves every measure. `advance` brings one
process to a reader's key and instant, `read` says what a rule says of a slot then; both are for compiled code and
become part of it. All rules share one type, so that it is compiled once. The streaming forms in `replay.estimators` are
the definition: `advance` does the same operations on the same doubles in the same order as one stream for each slot,
each read at every advance of its process.

    rows by (process, key)      ───┬──────────────┬─────▶    members of a window: key below the reader's,
                                   │   members    │ key      and ended at its edge or later; a row that is already
    rows by (process, at_ms)    ───┴──────────────┴─────▶    older than the edge when it becomes visible never
                                 edge = at_ms − W            enters
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.estimators import quantile_place, wilson_lower
from replay.kernel.compiled import inlined

Ints = NDArray[np.int64]
Halves = NDArray[np.int32]
Rows = NDArray[np.uint32]
"""Numbers of rows: without a sign, so that compiled code need not ask whether an index counts from the end."""

Floats = NDArray[np.float64]

WINDOW, LAST, EMA, TIME_EMA, PEAK_EMA, BETA, CONSECUTIVE, STICKY, NEVER = range(9)
"""`Track.kind`: what is kept of the facts."""

MEAN, LOWER, PLACE, TOOLS = range(4)
"""`Track.summary`: what is said of members."""

DONE, FIRST, EDGE_MS, TURN, START, END, STEADY_FROM_MS, STEADY_UNTIL_MS = range(8)
"""Columns of `Track.cursor`: facts seen, first in the window, its edge, the number of this advance, the process's
range, and the span of instants (first included) around the last one read in which no reading changes by itself."""

COUNT, UNUSABLE, SEEN, TOUCHED, AT_MS, UNTIL_MS, STREAK, COOLDOWN_MS = range(8)
"""Columns of `Track.tally`: members or requests, members that are no finite number, facts seen, the last turn it
changed in, an instant of the rule, until when it is out, what the rule counts (failures, tool calls, rows pushed), and
its next cooldown."""

ALWAYS_MS = -(2**63)
"""Before every instant."""


class Track(NamedTuple):
    """F facts in S slots of P processes; unused arrays are empty. Made by `replay.kernel.layout.track_on`.

    Scalars: `n` is a count, k or min_samples; `span_ms` the window, τ, horizon or cooldown; `x`, `y`, `z` are
    α | γ, a0, b0 | q | z of the rule. Slots of different processes are different slots.
    """

    kind: int
    summary: int
    n: int
    span_ms: int
    longest_ms: int
    x: float
    y: float
    z: float
    key: Ints  # (F,): a row per fact, in any order
    at_ms: Ints  # (F,)
    slot: Ints  # (F,)
    value: Floats  # (F,): nan: not counted; tools: 1 asked for tools, 2 called one, 3 both
    by_key: Rows  # (F,): rows by (process, key, at_ms, identity)
    by_time: Rows  # (F,): rows by (process, at_ms, identity)
    time_rank: Halves  # (F,): the inverse of by_time, LAST only
    cursor: Ints  # (P, 8)
    tally: Ints  # (S, 8)
    sums: Floats  # (S, 2): a sum in double-double, a mean, or a and b
    dirty: Halves  # (S,): after an advance that returned n, dirty[:n] are the slots that may read otherwise
    slot_start: Ints  # (S + 1,): where a slot's share of the arrays below begins
    last: Halves  # (F,): time ranks of the slot's members in order, LAST only
    level: Floats  # (F,): the slot's values in order, PLACE only
    place: Halves  # (F,): which of them a row has, from 1
    tree: Halves  # (F,): Fenwick tree of the members' places
    own_start: Ints  # (P + 1,): where a process's share of `own` begins
    own: Halves  # the slots of each process, where readings change by themselves


_lower: Any = inlined(wilson_lower)
_place: Any = inlined(quantile_place)
_whole: Any = np.int64  # one type for every number, so that each step is compiled once


@inlined
def advance(track: Track, process: int, key: int, at_ms: int) -> int:
    """Bring a process to the reader's key and instant; return how many slots in `track.dirty` may read otherwise.

    Facts with `fact.key < key` are seen. A window may move back in key and instant (clocks of replicas differ);
    folds and counts go forward only: a smaller key than one already passed returns -1 and changes nothing.
    """
    if track.kind == WINDOW:
        return _advance_window(track, process, key, at_ms)
    if track.kind == NEVER:
        return 0
    return _advance_fold(track, process, key, at_ms)


@inlined
def read(track: Track, slot: int, at_ms: int) -> tuple[float, int, bool]:
    """Return (estimate, observations behind it, ever observed) of a slot at the instant last advanced to.

    The estimate is nan where the rule has nothing to say; of a tools rule it is 1.0 (capable) or 0.0 (condemned),
    and the observations are the requests.
    """
    count, seen = track.tally[slot, COUNT], track.tally[slot, SEEN]
    if track.kind <= LAST:
        return _read_members(track, slot, count), count, seen > 0
    if track.kind >= STICKY:
        return (0.0 if at_ms < track.tally[slot, UNTIL_MS] else 1.0), count, seen > 0
    if seen == 0:
        return math.nan, 0, False
    if track.kind == CONSECUTIVE:
        return (0.0 if at_ms < track.tally[slot, UNTIL_MS] else 1.0), seen, True
    if track.kind == BETA:
        successes = track.sums[slot, 0] + track.y
        return successes / (successes + (track.sums[slot, 1] + track.z)), seen, True
    return track.sums[slot, 0], seen, True


@inlined
def _read_members(track: Track, slot: int, count: int) -> float:
    if track.summary == TOOLS:
        return 0.0 if count >= track.n and track.tally[slot, STREAK] == 0 else 1.0
    if count == 0 or track.tally[slot, UNUSABLE] > 0:
        return math.nan
    if track.summary == PLACE:
        return _value_at(track, slot, _place(count, track.x))
    total = track.sums[slot, 0] + track.sums[slot, 1]
    return total / count if track.summary == MEAN else float(_lower(total, count, track.x))


@inlined
def _touch(track: Track, slot: int, turn: int, touched: int) -> int:
    """Put a slot on the list of those that changed, once a turn; return the list's length."""
    if track.tally[slot, TOUCHED] == turn:
        return touched
    track.tally[slot, TOUCHED] = turn
    track.dirty[touched] = slot
    return touched + 1


# Members


@inlined
def _advance_window(track: Track, process: int, key: int, at_ms: int) -> int:
    cursor, by_key, by_time = track.cursor[process], track.by_key, track.by_time
    turn, touched = cursor[TURN] + 1, 0
    done, edge_ms = cursor[DONE], cursor[EDGE_MS]
    while done < cursor[END] and track.key[by_key[done]] < key:
        touched = _see(track, _whole(by_key[done]), 1, edge_ms, turn, touched)
        done += 1
    while done > cursor[START] and track.key[by_key[done - 1]] >= key:
        done -= 1
        touched = _see(track, _whole(by_key[done]), -1, edge_ms, turn, touched)
    first, edge_ms = cursor[FIRST], at_ms - track.span_ms
    while first < cursor[END] and track.at_ms[by_time[first]] < edge_ms:
        touched = _pass_edge(track, _whole(by_time[first]), -1, key, turn, touched)
        first += 1
    while first > cursor[START] and track.at_ms[by_time[first - 1]] >= edge_ms:
        first -= 1
        touched = _pass_edge(track, _whole(by_time[first]), 1, key, turn, touched)
    cursor[TURN], cursor[DONE], cursor[FIRST], cursor[EDGE_MS] = turn, done, first, edge_ms
    return touched


@inlined
def _see(track: Track, row: int, sign: int, edge_ms: int, turn: int, touched: int) -> int:
    """Let a row become visible (+1), or be so no longer (-1); return the length of the list of changed slots."""
    if math.isnan(track.value[row]):
        return touched
    slot = track.slot[row]
    track.tally[slot, SEEN] += sign
    if track.at_ms[row] >= edge_ms:
        _change(track, slot, row, sign)
    return _touch(track, slot, turn, touched)


@inlined
def _pass_edge(track: Track, row: int, sign: int, key: int, turn: int, touched: int) -> int:
    """Let the window's edge pass a row that ends before it from now on (-1), or does so no longer (+1)."""
    if math.isnan(track.value[row]) or track.key[row] >= key:
        return touched
    slot = track.slot[row]
    _change(track, slot, row, sign)
    return _touch(track, slot, turn, touched)


@inlined
def _change(track: Track, slot: int, row: int, sign: int) -> None:
    """Let a row become a member (+1), or be one no longer (-1)."""
    value, tally = track.value[row], track.tally
    if track.summary == TOOLS:
        evidence = int(value)
        tally[slot, COUNT] += sign * (evidence & 1)
        tally[slot, STREAK] += sign * (evidence >> 1)
        return
    tally[slot, COUNT] += sign
    if not math.isfinite(value):
        tally[slot, UNUSABLE] += sign
    elif track.summary == PLACE:
        _plant(track, slot, _whole(track.place[row]), sign)
    elif sign < 0 and tally[slot, COUNT] == tally[slot, UNUSABLE]:
        track.sums[slot, 0] = track.sums[slot, 1] = 0.0  # as the stream: nothing left, no residue either
    else:
        _add(track.sums, slot, sign * value)


@inlined
def _add(sums: Floats, slot: int, value: float) -> None:
    """`DoubleDouble.add`, the same operations."""
    high = sums[slot, 0]
    total = high + value
    part = total - high
    low = sums[slot, 1] + ((high - (total - part)) + (value - part))
    sums[slot, 0] = total + low
    sums[slot, 1] = low - (sums[slot, 0] - total)


@inlined
def _plant(track: Track, slot: int, place: int, sign: int) -> None:
    """Count a member in, or out, at its place among the slot's values."""
    start = track.slot_start[slot] - 1
    size = track.slot_start[slot + 1] - track.slot_start[slot]
    while place <= size:
        track.tree[start + place] += sign
        place += place & -place


@inlined
def _value_at(track: Track, slot: int, nth: int) -> float:
    """Return the n-th smallest member's value, from 1: a descent from the tree's largest power of two."""
    start = track.slot_start[slot] - 1
    size = track.slot_start[slot + 1] - track.slot_start[slot]
    step = 1
    while 2 * step <= size:
        step *= 2
    place = 0
    while step > 0:
        if place + step <= size and track.tree[start + place + step] < nth:
            place += step
            nth -= track.tree[start + place]
        step //= 2
    return float(track.level[start + place + 1])


@inlined
def _push(track: Track, slot: int, row: int) -> None:
    """Make a row one of the last n by time, and let the oldest go; a row older than all of them is none.

    The slot's members lie in order at the end of what it ever had; each newcomer lengthens that by one at most.
    """
    count, rank = track.tally[slot, COUNT], track.time_rank[row]
    end = track.slot_start[slot] + track.tally[slot, STREAK]
    if count == track.n and rank < track.last[end - count]:
        return
    place = end
    while place > end - count and track.last[place - 1] > rank:
        track.last[place] = track.last[place - 1]
        place -= 1
    track.last[place] = rank
    track.tally[slot, STREAK] += 1
    _change(track, slot, row, 1)
    if count == track.n:
        _change(track, slot, _whole(track.by_time[track.last[end - count]]), -1)


# Folds


@inlined
def _advance_fold(track: Track, process: int, key: int, at_ms: int) -> int:
    cursor, by_key = track.cursor[process], track.by_key
    done = cursor[DONE]
    while done > cursor[START] and track.key[by_key[done - 1]] >= key:
        done -= 1
        if not math.isnan(track.value[by_key[done]]):
            return -1
    turn, touched, moved = cursor[TURN] + 1, 0, False
    while done < cursor[END] and track.key[by_key[done]] < key:
        row = _whole(by_key[done])
        done += 1
        if math.isnan(track.value[row]):
            continue
        slot = track.slot[row]
        until_ms = track.tally[slot, UNTIL_MS]
        track.tally[slot, SEEN] += 1
        _fold(track, slot, row, track.at_ms[row])
        moved = moved or track.tally[slot, UNTIL_MS] != until_ms
        touched = _touch(track, slot, turn, touched)
    steady = cursor[STEADY_FROM_MS] <= at_ms < cursor[STEADY_UNTIL_MS]
    if (track.kind == CONSECUTIVE or track.kind == STICKY) and (moved or not steady):
        touched = _pass_time(track, process, turn, at_ms, touched)
    cursor[TURN], cursor[DONE], cursor[EDGE_MS] = turn, done, at_ms
    return touched


@inlined
def _pass_time(track: Track, process: int, turn: int, at_ms: int, touched: int) -> int:
    """Put slots on the list that read otherwise than at the last instant, and find how long all will now read alike."""
    last_ms, from_ms, until_ms = track.cursor[process, EDGE_MS], ALWAYS_MS, 2**63 - 1
    for place in range(track.own_start[process], track.own_start[process + 1]):
        slot = _whole(track.own[place])
        turns_ms = track.tally[slot, UNTIL_MS]
        if (last_ms < turns_ms) != (at_ms < turns_ms):
            touched = _touch(track, slot, turn, touched)
        if turns_ms <= at_ms:
            from_ms = max(from_ms, turns_ms)
        else:
            until_ms = min(until_ms, turns_ms)
    track.cursor[process, STEADY_FROM_MS], track.cursor[process, STEADY_UNTIL_MS] = from_ms, until_ms
    return touched


@inlined
def _fold(track: Track, slot: int, row: int, at_ms: int) -> None:
    """Take in one fact: the same lines as the streams of `replay.estimators`."""
    if track.kind == LAST:
        _push(track, slot, row)
    elif track.kind == STICKY:
        _fold_sticky(track, slot, int(track.value[row]), at_ms)
    elif track.kind == CONSECUTIVE:
        _fold_consecutive(track, slot, track.value[row], at_ms)
    else:
        _fold_mean(track, slot, track.value[row], at_ms)


@inlined
def _fold_mean(track: Track, slot: int, value: float, at_ms: int) -> None:
    state, tally = track.sums[slot], track.tally[slot]
    if track.kind == BETA:
        state[0] = track.x * state[0] + value
        state[1] = track.x * state[1] + (1 - value)
    elif tally[SEEN] == 1:
        state[0], tally[AT_MS] = value, at_ms
    elif track.kind == EMA:
        state[0] = track.x * value + (1 - track.x) * state[0]
    else:
        if track.kind == PEAK_EMA and value > state[0]:
            state[0] = value
        else:
            weight = math.exp(-max(0, at_ms - tally[AT_MS]) / track.span_ms)
            state[0] = weight * state[0] + (1 - weight) * value
        tally[AT_MS] = max(tally[AT_MS], at_ms)


@inlined
def _fold_consecutive(track: Track, slot: int, value: float, at_ms: int) -> None:
    tally = track.tally[slot]
    if value > 0:
        tally[STREAK], tally[UNTIL_MS], tally[COOLDOWN_MS] = 0, ALWAYS_MS, track.span_ms
    elif at_ms >= tally[UNTIL_MS]:
        tally[STREAK] += 1
        if tally[STREAK] >= track.n:
            tally[UNTIL_MS] = at_ms + tally[COOLDOWN_MS]
            tally[COOLDOWN_MS] = min(2 * tally[COOLDOWN_MS], track.longest_ms)


@inlined
def _fold_sticky(track: Track, slot: int, evidence: int, at_ms: int) -> None:
    """`STREAK` is 1 once a tool call has proven the slot, `AT_MS` when its count began."""
    tally = track.tally[slot]
    if evidence >= 2:
        tally[STREAK], tally[UNTIL_MS] = 1, ALWAYS_MS
    if evidence & 1 == 0:
        return
    if tally[COUNT] >= track.n and at_ms >= tally[AT_MS] + track.span_ms:
        tally[COUNT] = 0
    if tally[COUNT] == 0:
        tally[AT_MS] = at_ms
    tally[COUNT] += 1
    marked = tally[COUNT] >= track.n and tally[STREAK] == 0
    tally[UNTIL_MS] = tally[AT_MS] + track.span_ms if marked else ALWAYS_MS
