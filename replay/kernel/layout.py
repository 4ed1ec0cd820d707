"""Laying facts out for tracks: sorted by process, key and time, once for every rule that reads the same facts."""

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
from replay.kernel.tracks import ALWAYS_MS, LAST, LOWER, MEAN, PLACE, TOOLS, WINDOW, Floats, Halves, Ints, Track

if TYPE_CHECKING:
    from replay.readings import Facts

Bools = NDArray[np.bool_]


FALLS, TIED, RISES, CONSTANT = range(4)


class Layout(NamedTuple):
    """F facts of S slots in P processes, in the order of their keys; tracks on one layout share its arrays.

    `order` takes an array that is parallel to the facts given into the order of the layout.
    """

    order: Ints  # (F,)
    when: Ints  # (F, 2): key and at_ms
    slot: Halves  # (F,)
    by_time: Halves  # (F,): places in this layout by (process, at_ms, identity)
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
    >>> layout.order.tolist(), layout.by_time.tolist()
    ([1, 0], [1, 0])
    """
    order = sorted_by(process_of_fact, facts.key, facts.at_ms, facts.identity)
    process = process_of_fact[order] if processes > 1 else process_of_fact
    at_ms, slot = facts.at_ms[order], facts.group.astype(np.int32)[order]
    when = np.empty((len(order), 2), dtype=np.int64)
    when[:, 0], when[:, 1] = facts.key[order], at_ms
    by_time = sorted_by(process, at_ms, facts.identity[order]).astype(np.int32)
    start = np.searchsorted(process, np.arange(processes + 1)).astype(np.int64)
    first_of_slot = np.full(slots, -1, dtype=np.int64)
    first_of_slot[slot] = process if processes > 1 else 0
    own = np.argsort(first_of_slot, kind="stable").astype(np.int32)
    own_start = np.searchsorted(first_of_slot[own], np.arange(processes + 1)).astype(np.int64)
    return Layout(order, when, slot, by_time, slots, start, own_start, own)


def track_on(rule: Rule | ToolsRule, layout: Layout, values: Floats) -> Track:
    """Start a rule with nothing observed. `values` are parallel to the facts given; tools: see `tools_values`."""
    form = _form(rule)
    empty, none = np.zeros(0, dtype=np.int32), np.zeros(0)
    value = np.ascontiguousarray(values, dtype=np.float64)[layout.order]
    members, places = form["kind"] in (WINDOW, LAST), form["summary"] == PLACE
    slot_start = np.zeros(layout.slots + 1, dtype=np.int64)
    np.cumsum(np.bincount(layout.slot, minlength=layout.slots), out=slot_start[1:])
    level, place = _places(layout.slot, value, slot_start) if places else (none, empty)
    return Track(
        **form,
        when=layout.when,
        slot=layout.slot,
        value=value,
        by_time=layout.by_time if members else empty,
        time_rank=_inverse(layout.by_time) if form["kind"] == LAST else empty,
        cursor=_cursor(layout.start),
        tally=_tally(layout.slots, rule),
        sums=np.zeros((layout.slots, 2)),
        dirty=np.zeros(layout.slots, dtype=np.int32),
        slot_start=slot_start,
        last=np.zeros(len(value) if form["kind"] == LAST else 0, dtype=np.int32),
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


def _inverse(order: Halves) -> Halves:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order), dtype=np.int32)
    return inverse


def _places(slot: Halves, value: Floats, slot_start: Ints) -> tuple[Floats, Halves]:
    """Return every slot's values in order, and which of its own, from 1, each fact's is."""
    order = np.lexsort((value, slot))
    place = np.empty(len(value), dtype=np.int32)
    place[order] = np.arange(1, len(value) + 1) - slot_start[slot[order]]
    return value[order], place


def sorted_by(group: Ints, *keys: Ints) -> Ints:
    """Return the stable order by group, then by each key; ledgers mostly come in order of theirs, and groups are few.

    >>> sorted_by(np.array([1, 0, 0]), np.array([5, 5, 4])).tolist()
    [2, 1, 0]
    """
    if _in_order((group, *keys)):
        return np.arange(len(group), dtype=np.int64)
    while len(keys) > 1 and _in_order(keys[-1:]):
        keys = keys[:-1]  # a stable sort keeps the order of rows, and so this key's
    if _rising(group) == CONSTANT:
        return np.lexsort(keys[::-1])
    order = np.argsort(_small(group), kind="stable")
    if _in_order(keys):
        return order
    joined = _joined(group, keys)
    if joined is None:
        order = np.lexsort(keys[::-1])
        return order[np.argsort(_small(group[order]), kind="stable")]
    return order[np.argsort(joined[order], kind="stable")]  # nearly in order by now, which is fast


def _joined(group: Ints, keys: tuple[Ints, ...]) -> Ints | None:
    """Return numbers in the order of (group, key), None where there are several keys or 64 bits do not hold them."""
    low, high = int(keys[0].min()), int(keys[0].max())
    span = high - low + 1
    if len(keys) > 1 or int(group.min()) < 0 or (int(group.max()) + 1) * span >= 2**62:
        return None
    return group * span + (keys[0] - low)


def _small(group: Ints) -> NDArray[np.integer[Any]]:
    """Return groups as 16-bit numbers where they are, for which NumPy's stable sort is a radix sort."""
    return group.astype(np.uint16) if group.min() >= 0 and group.max() < 2**16 else group


def _in_order(keys: tuple[Ints, ...]) -> bool:
    """Say whether rows are in the order of their keys, the first one first."""
    rising = _rising(keys[0])
    if len(keys) == 1 or rising in (FALLS, RISES):
        return rising != FALLS
    if rising == CONSTANT:
        return _in_order(keys[1:])
    tied: Any = True
    for key in keys:
        if np.any(tied & (key[1:] < key[:-1])):
            return False
        tied = tied & (key[1:] == key[:-1])
    return True


@compiled
def _rising(key: Ints) -> int:
    """Say how numbers go on: FALLS somewhere, TIED here and there, RISES, or CONSTANT."""
    ties = 0
    for row in range(1, len(key)):
        if key[row] < key[row - 1]:
            return FALLS
        ties += key[row] == key[row - 1]
    if ties == len(key) - 1:
        return CONSTANT
    return TIED if ties else RISES
