"""Laying facts out for tracks: the orders in which rows are walked, once for every rule that reads the same facts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.estimators import (
    Beta,
    Consecutive,
    Count,
    Ema,
    PeakEma,
    Quantile,
    Rule,
    TimeEma,
    ToolsNever,
    ToolsRule,
    ToolsSticky,
    ToolsWindow,
    Wilson,
    Window,
)
from replay.kernel import tracks
from replay.kernel.compiled import compiled
from replay.kernel.tracks import ALWAYS_MS, LAST, LOWER, MEAN, PLACE, TOOLS, WINDOW, Floats, Halves, Ints, Rows, Track

if TYPE_CHECKING:
    from replay.readings import Facts

Bools = NDArray[np.bool_]


class Layout(NamedTuple):
    """F facts of S slots in P processes, and the orders of their rows; tracks on one layout share its arrays."""

    key: Ints  # (F,)
    at_ms: Ints  # (F,)
    slot: Ints  # (F,)
    by_key: Rows  # (F,): rows by (process, key, at_ms, identity)
    by_time: Rows  # (F,): rows by (process, at_ms, identity)
    slots: int
    start: Ints  # (P + 1,): each process's range, in both orders
    own_start: Ints  # (P + 1,)
    own: Halves  # each process's slots


def make_track(
    rule: Rule | ToolsRule, facts: Facts, values: Floats, slots: int, process_of_fact: Ints, processes: int
) -> Track:
    """Lay facts out and start a rule on them: `track_on(rule, lay_out(…), values)`."""
    return track_on(rule, lay_out(facts, slots, process_of_fact, processes), values)


def lay_out(facts: Facts, slots: int, process_of_fact: Ints, processes: int) -> Layout:
    """Lay facts out by process. `facts.group` is each fact's slot, below `slots`; a slot is in one process alone.

    >>> from replay.readings import Facts
    >>> facts = Facts(*(np.array(column) for column in ([5, 3], [1, 2], [10, 11], [0, 0])))
    >>> layout = lay_out(facts, slots=1, process_of_fact=np.array([0, 0]), processes=1)
    >>> layout.by_key.tolist(), layout.by_time.tolist()
    ([1, 0], [0, 1])
    """
    key, at_ms, slot = (np.require(column, np.int64, ["C", "W"]) for column in (facts.key, facts.at_ms, facts.group))
    start, process_of_slot = np.array([0, len(key)], dtype=np.int64), np.zeros(slots, dtype=np.int64)
    by_time = facts.by_time
    by_key = ordered(by_time, key)
    if processes > 1:
        by_time = ordered(by_time, process_of_fact)
        by_key = ordered_within(by_time, process_of_fact, key)
        start, process_of_slot = _starts(process_of_fact, processes), np.full(slots, -1, dtype=np.int64)
        process_of_slot[slot] = process_of_fact
    own = np.argsort(process_of_slot, kind="stable").astype(np.int32)
    own_start = np.searchsorted(process_of_slot[own], np.arange(processes + 1)).astype(np.int64)
    return Layout(key, at_ms, slot, by_key, by_time, slots, start, own_start, own)


def track_on(rule: Rule | ToolsRule, layout: Layout, values: Floats) -> Track:
    """Start a rule with nothing observed. `values` are parallel to the facts, nan where one is not to be counted.

    Tools: see `tools_values`.
    """
    form = _form(rule)
    empty, none = np.zeros(0, dtype=np.int32), np.zeros(0)
    value = np.require(values, np.float64, ["C", "W"])
    last, places = form["kind"] == LAST, form["summary"] == PLACE
    slot_start = _starts(layout.slot, layout.slots) if last or places else np.zeros(1, dtype=np.int64)
    level, place = _places(layout.slot, value, slot_start) if places else (none, empty)
    return Track(
        **form,
        key=layout.key,
        at_ms=layout.at_ms,
        slot=layout.slot,
        value=value,
        by_key=layout.by_key,
        by_time=layout.by_time,
        time_rank=_inverse(layout.by_time) if last else empty,
        cursor=_cursor(layout.start),
        tally=_tally(layout.slots, rule),
        sums=np.zeros((layout.slots, 2)),
        dirty=np.zeros(layout.slots, dtype=np.int32),
        slot_start=slot_start,
        last=np.zeros(len(value) if last else 0, dtype=np.int32),
        level=level,
        place=place,
        tree=np.zeros(len(place), dtype=np.int32),
        own_start=layout.own_start,
        own=layout.own,
    )


def tools_values(requested: Bools, emitted: Bools) -> Floats:
    """Return tools evidence as the values of a track: 1 asked for tools, 2 called one, 3 both.

    >>> tools_values(np.array([True, True, False]), np.array([False, True, True])).tolist()
    [1.0, 3.0, 2.0]
    """
    return requested.astype(np.float64) + 2 * emitted.astype(np.float64)


def _form(rule: Rule | ToolsRule) -> dict[str, Any]:
    """Return the scalars of a rule's track."""
    plain: dict[str, Any] = {"kind": tracks.NEVER, "summary": MEAN} | dict.fromkeys(("n", "span_ms", "longest_ms"), 0)
    plain |= dict.fromkeys(("x", "y", "z"), 0.0)
    match rule:
        case Window(window_ms):
            return plain | {"kind": WINDOW, "span_ms": window_ms}
        case Count(n):
            return plain | {"kind": LAST, "n": n}
        case Wilson(z=z):
            return plain | _members_of(rule) | {"summary": LOWER, "x": float(z)}
        case Quantile(q=q):
            return plain | _members_of(rule) | {"summary": PLACE, "x": float(q)}
        case Ema(alpha):
            return plain | {"kind": tracks.EMA, "x": float(alpha)}
        case TimeEma(tau_ms):
            return plain | {"kind": tracks.TIME_EMA, "span_ms": tau_ms}
        case PeakEma(tau_ms):
            return plain | {"kind": tracks.PEAK_EMA, "span_ms": tau_ms}
        case Beta(gamma, a0, b0):
            return plain | {"kind": tracks.BETA, "x": float(gamma), "y": float(a0), "z": float(b0)}
        case Consecutive(k, cooldown_ms, longest_ms):
            return plain | {"kind": tracks.CONSECUTIVE, "n": k, "span_ms": cooldown_ms, "longest_ms": longest_ms}
        case ToolsWindow(min_samples, window_ms):
            return plain | {"kind": WINDOW, "summary": TOOLS, "n": min_samples, "span_ms": window_ms}
        case ToolsSticky(min_samples, horizon_ms):
            return plain | {"kind": tracks.STICKY, "summary": TOOLS, "n": min_samples, "span_ms": horizon_ms}
        case ToolsNever():
            return plain | {"summary": TOOLS}
    raise AssertionError(f"no track for {rule!r}")


def _members_of(rule: Wilson | Quantile) -> dict[str, int]:
    return {"kind": LAST, "n": rule.n or 0} if rule.window_ms is None else {"kind": WINDOW, "span_ms": rule.window_ms}


def _cursor(start: Ints) -> Ints:
    cursor = np.zeros((len(start) - 1, 8), dtype=np.int64)
    for column in (tracks.DONE, tracks.FIRST, tracks.START):
        cursor[:, column] = start[:-1]
    cursor[:, tracks.END] = start[1:]
    cursor[:, [tracks.EDGE_MS, tracks.STEADY_FROM_MS]] = ALWAYS_MS
    cursor[:, tracks.STEADY_UNTIL_MS] = 2**63 - 1
    return cursor


def _tally(slots: int, rule: Rule | ToolsRule) -> Ints:
    tally = np.zeros((slots, 8), dtype=np.int64)
    tally[:, tracks.UNTIL_MS] = ALWAYS_MS
    if isinstance(rule, Consecutive):
        tally[:, tracks.COOLDOWN_MS] = rule.cooldown_ms
    return tally


def _inverse(order: Rows) -> Halves:
    inverse = np.empty(len(order), dtype=np.int32)
    inverse[order] = np.arange(len(order), dtype=np.int32)
    return inverse


def _starts(number: Ints, numbers: int) -> Ints:
    """Return where each number's rows begin, once sorted by it, and where the last one's end."""
    start = np.zeros(numbers + 1, dtype=np.int64)
    np.cumsum(np.bincount(number, minlength=numbers), out=start[1:])
    return start


def _places(slot: Ints, value: Floats, slot_start: Ints) -> tuple[Floats, Halves]:
    """Return every slot's values in order, and which of its own, from 1, each fact's is."""
    order = np.lexsort((value, slot))
    place = np.empty(len(value), dtype=np.int32)
    place[order] = np.arange(1, len(value) + 1) - slot_start[slot[order]]
    return value[order], place


def sorted_by(group: Ints, *keys: Ints) -> Ints:
    """Return the stable order by group, then by each key; ledgers mostly come in order of theirs.

    >>> sorted_by(np.array([1, 0, 0]), np.array([5, 5, 4])).tolist()
    [2, 1, 0]
    """
    while keys and not _falls(keys[-1]):
        keys = keys[:-1]  # rows stay in the order of what they are not sorted by
    if not keys and not _falls(group):
        return np.arange(len(group), dtype=np.int64)
    rows = all_rows(group)
    for key in reversed(keys[1:]):
        rows = ordered(rows, key)
    return (ordered_within(rows, group, keys[0]) if keys else ordered(rows, group)).astype(np.int64)


def all_rows(column: Ints) -> Rows:
    """Return the numbers of a column's rows, in order."""
    return np.arange(len(column), dtype=np.uint32)


def ordered_within(rows: Rows, group: Ints, key: Ints) -> Rows:
    """Return rows in the order of their groups and, in each group, of their keys; those alike as they are."""
    rows = ordered(rows, group)
    if not _falls_within(rows, group, key):
        return rows
    (_, first, last), (_, low, high) = _span(rows, group), _span(rows, key)
    span = high - low + 1
    if (last - first + 1) * span >= 2**62:
        return ordered(ordered(rows, key), group)
    return rows[np.argsort(_joined(rows, group, first, key, low, span), kind="stable")]  # nearly in order, and so fast


@compiled
def _joined(rows: Rows, group: Ints, first: int, key: Ints, low: int, span: int) -> Ints:
    """Return every row's group and key as one number that goes by both."""
    numbers = np.empty(len(rows), dtype=np.int64)
    for place in range(len(rows)):
        numbers[place] = (group[rows[place]] - first) * span + (key[rows[place]] - low)
    return numbers


def ordered(rows: Rows, key: Ints) -> Rows:
    """Return rows in the order of their keys, those of one key as they are.

    Rows that are in order already are returned themselves. NumPy's stable sort is fast where rows are nearly in order,
    as a ledger's are by time, and for numbers of 16 bits, as those of groups are.

    >>> ordered(np.array([2, 0, 1], dtype=np.uint32), np.array([7, 7, 3])).tolist()
    [2, 0, 1]
    """
    falls, low, high = _span(rows, key)
    if not falls:
        return rows
    keys = (key - low).astype(np.uint16) if high - low < 2**16 else key
    return rows[np.argsort(keys[rows], kind="stable")]


@compiled
def _span(rows: Rows, key: Ints) -> tuple[bool, int, int]:
    """Say whether any row's key is below that of the row before, and which keys are the lowest and the highest."""
    if len(rows) == 0:
        return False, 0, 0
    falls, before = False, key[rows[0]]
    low, high = before, before
    for place in range(1, len(rows)):
        mine = key[rows[place]]
        falls |= mine < before
        low, high, before = min(low, mine), max(high, mine), mine
    return falls, low, high


def _falls(key: Ints) -> bool:
    """Say whether any number is below the one before."""
    return bool(np.any(key[1:] < key[:-1]))


@compiled
def _falls_within(rows: Rows, group: Ints, key: Ints) -> bool:
    """Say whether the key of any row is below that of the row before in its group."""
    for place in range(1, len(rows)):
        row, before = rows[place], rows[place - 1]
        if group[row] == group[before] and key[row] < key[before]:
            return True
    return False
