"""Tracks against the streams that define them: the same doubles, whatever comes late, together or out of order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay import readings
from replay.estimators import (
    Beta,
    Consecutive,
    Count,
    Ema,
    PeakEma,
    Quantile,
    TimeEma,
    ToolsNever,
    ToolsSticky,
    ToolsWindow,
    Wilson,
    Window,
)
from replay.kernel import tracks
from replay.kernel.compiled import compiled
from replay.kernel.layout import lay_out, make_track, sorted_by, tools_values, track_on
from replay.kernel.tracks import advance, read
from replay.readings import Facts, Reads, read_many, read_many_streaming, read_tools, read_tools_streaming

LATENCY_RULES = [
    Window(20),
    Count(3),
    Ema(0.3),
    TimeEma(15),
    PeakEma(15),
    Quantile(window_ms=20, q=0.95),
    Quantile(n=4, q=0.5),
]
RATE_RULES = [
    Window(20),
    Count(4),
    Ema(0.2),
    TimeEma(10),
    Beta(0.9, 1.0, 0.5),
    Wilson(window_ms=20),
    Wilson(n=5, z=1.0),
    Consecutive(2, 7, 21),
    Consecutive(1, 5, 5),
]
TOOLS_RULES = [ToolsWindow(2, 20), ToolsSticky(2, 15), ToolsNever()]
RULES = [(rule, "latency") for rule in LATENCY_RULES] + [(rule, "rate") for rule in RATE_RULES]
BACK_AND_FORTH = [Window(20), Wilson(window_ms=20), Quantile(window_ms=20, q=0.5)]

SLOTS, PROCESSES = 4, 2
VALUES = {
    "latency": st.sampled_from([0.0004, 0.1, 1 / 3, 3.0, 3.0, 250.0, 1e4 / 7, 1e16, math.inf]),
    "rate": st.sampled_from([0.0, 1.0]),
    "tools": st.sampled_from([1.0, 1.0, 2.0, 3.0]),
}
keys = st.integers(0, 40)


@compiled
def _walk(track: Any, process: Any, key: Any, at_ms: Any, slots: int, said: Any, dirty: Any) -> None:
    """Advance through all reads; write every slot's reading after each, and which slots were said to have changed."""
    for row in range(len(key)):
        touched = advance(track, process[row], key[row], at_ms[row])
        for slot in range(slots):
            value, count, known = read(track, slot, at_ms[row])
            said[row, slot, 0], said[row, slot, 1], said[row, slot, 2] = value, count, known
        for place in range(touched):
            dirty[row, track.dirty[place]] += 1
        if touched < 0:
            dirty[row] = -1


def walk(track: Any, reads: list[tuple[int, int, int]]) -> tuple[Any, Any]:
    """Return (reads × slots × (value, count, known)) and (reads × slots) times each slot was put on the list."""
    process, key, at_ms = (
        np.array(column, dtype=np.int64) for column in (zip(*reads, strict=True) if reads else [()] * 3)
    )
    said, dirty = np.zeros((len(reads), SLOTS, 3)), np.zeros((len(reads), SLOTS), dtype=np.int64)
    _walk(track, process, key, at_ms, SLOTS, said, dirty)
    return said, dirty


def facts_of(rows: list[tuple[int, int, int, float]]) -> tuple[Facts, Any]:
    """Make facts of rows (key, at_ms, slot, value); identities run against the order, so that ties show."""
    key, at_ms, slot = (np.array([row[place] for row in rows], dtype=np.int64) for place in range(3))
    values = np.array([row[3] for row in rows], dtype=np.float64)
    return Facts(key, at_ms, np.arange(len(rows), dtype=np.int64)[::-1].copy(), slot), values


def track_of(rule: Any, rows: list[tuple[int, int, int, float]]) -> Any:
    """Start a rule on rows; slot s belongs to process s mod 2."""
    facts, values = facts_of(rows)
    return make_track(rule, facts, values, SLOTS, facts.group % PROCESSES, PROCESSES)


def streamed(rule: Any, rows: list[tuple[int, int, int, float]], reads: list[tuple[int, int, int]]) -> Iterator[Any]:
    """Yield, after each read, (value, count, known) of all slots: streams, of which a read moves its whole process."""
    streams: list[Any] = [rule.start() for _ in range(SLOTS)]
    seen, said = [False] * SLOTS, [(math.nan, 0, False)] * SLOTS
    facts, _ = facts_of(rows)
    order = np.lexsort((facts.identity, facts.at_ms, facts.key)).tolist()
    done = [0] * PROCESSES
    mine = [[row for row in order if rows[row][2] % PROCESSES == process] for process in range(PROCESSES)]
    for process, key, at_ms in reads:
        while done[process] < len(mine[process]) and rows[mine[process][done[process]]][0] < key:
            row = mine[process][done[process]]
            _, end_ms, slot, value = rows[row]
            seen[slot] = True
            if isinstance(rule, (ToolsWindow, ToolsSticky, ToolsNever)):
                streams[slot].fold(end_ms, bool(int(value) & 1), value >= 2)
            else:
                streams[slot].fold(end_ms, int(facts.identity[row]), value)
            done[process] += 1
        for slot in range(process, SLOTS, PROCESSES):
            found = streams[slot].read(at_ms)
            value = math.nan if found[0] is None else float(found[0])
            said[slot] = (value, found[1], seen[slot] and not isinstance(rule, ToolsNever))
        yield list(said)


def same(one: Any, other: Any) -> bool:
    """Say whether two arrays of doubles hold the same, nan for nan."""
    return bool(np.array_equal(one, other, equal_nan=True))


def rows_of(kind: str) -> st.SearchStrategy[list[tuple[int, int, int, float]]]:
    """Rows that end shortly before, or after, they become visible, or so long before that no window holds them."""
    lag = st.integers(-3, 12) | st.sampled_from([25, 40])
    row = st.tuples(keys, lag, st.integers(0, SLOTS - 1), VALUES[kind])
    return st.lists(row.map(lambda r: (r[0], r[0] - r[1], r[2], r[3])), max_size=40)


forward = st.lists(st.tuples(st.integers(0, PROCESSES - 1), keys, st.integers(-5, 5)), max_size=25).map(
    lambda reads: [(process, key, key + skew) for process, key, skew in sorted(reads, key=lambda r: r[1])]
)


@pytest.mark.parametrize(("rule", "kind"), [*RULES, *((rule, "tools") for rule in TOOLS_RULES)], ids=str)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_track_is_its_streams(rule: Any, kind: str, data: st.DataObject) -> None:
    """After every advance all slots of the process read what their streams read, to the bit, ties and late rows too.

    And a slot that reads otherwise than before is on the list of those that changed, once.
    """
    rows = [row for row in data.draw(rows_of(kind)) if math.isfinite(row[3]) or type(rule) in (Window, Quantile)]
    reads = data.draw(forward)
    said, dirty = walk(track_of(rule, rows), reads)
    expected = np.array(list(streamed(rule, rows, reads)), dtype=np.float64).reshape(said.shape)
    before = np.array([(1.0 if kind == "tools" else math.nan, 0, 0)] * SLOTS)
    for place, (process, _, _) in enumerate(reads):
        own = slice(process, SLOTS, PROCESSES)
        assert same(said[place, own], expected[place, own])
        for slot in range(SLOTS):
            changed = slot % PROCESSES == process and not same(said[place, slot], before[slot])
            assert dirty[place, slot] in ((1,) if changed else (0, 1))
            if slot % PROCESSES == process:
                before[slot] = said[place, slot]
        assert not dirty[place, 1 - process :: PROCESSES].any()


@pytest.mark.parametrize("rule", BACK_AND_FORTH, ids=str)
@settings(max_examples=80, deadline=None)
@given(
    rows=rows_of("rate"),
    reads=st.lists(st.tuples(st.integers(0, PROCESSES - 1), keys, st.integers(-10, 60)), max_size=25),
)
def test_a_window_may_move_back(rule: Any, rows: Any, reads: Any) -> None:
    """Keys and instants in any order: members are what has a smaller key and ended at the edge or later, no more."""
    said, _ = walk(track_of(rule, rows), reads)
    for place, (process, key, at_ms) in enumerate(reads):
        for slot in range(process, SLOTS, PROCESSES):
            seen = [row for row in rows if row[2] == slot and row[0] < key]
            alone = rule.start()
            for number, (_, end_ms, _, value) in enumerate(seen):
                alone.fold(end_ms, number, value)
            value, count = alone.read(at_ms)
            expected = [math.nan if value is None else value, count, bool(seen)]
            assert same(said[place, slot], np.array(expected, dtype=np.float64))


@settings(max_examples=80, deadline=None)
@given(
    rows=rows_of("latency"),
    reads=st.lists(st.tuples(st.integers(0, PROCESSES - 1), keys, st.integers(-10, 60)), max_size=25),
)
def test_a_mean_that_moves_back_is_exact_beside_an_outlier(rows: Any, reads: Any) -> None:
    """In any order of keys and instants the mean of a window is that of its members, within 1e-9 of each."""
    said, _ = walk(track_of(Window(20), rows), reads)
    for place, (process, key, at_ms) in enumerate(reads):
        for slot in range(process, SLOTS, PROCESSES):
            inside = [row[3] for row in rows if row[2] == slot and row[0] < key and row[1] >= at_ms - 20]
            assert said[place, slot, 1] == len(inside)
            if inside and all(map(math.isfinite, inside)):
                mean = float(sum(map(Fraction, inside)) / len(inside))
                assert math.isclose(said[place, slot, 0], mean, rel_tol=1e-9)
            else:
                assert math.isnan(said[place, slot, 0])


@pytest.mark.parametrize(
    "rule", [Count(3), Ema(0.5), TimeEma(10), PeakEma(10), Beta(0.5, 1, 1), Consecutive()], ids=str
)
def test_what_cannot_be_unfolded_says_so(rule: Any) -> None:
    """A key below one already passed gives -1 and changes nothing; the same key again is no step back."""
    rows = [(1, 1, 0, 1.0), (5, 5, 0, 0.0), (6, 6, 2, 1.0)]
    said, dirty = walk(track_of(rule, rows), [(0, 6, 6), (0, 6, 6), (0, 5, 5), (0, 7, 7), (1, 0, 0)])
    assert dirty.tolist() == [[1, 0, 0, 0], [0] * 4, [-1] * 4, [0, 0, 1, 0], [0] * 4]
    assert same(said[2, 0], said[1, 0])
    assert said[3, :, 1].tolist() == [2, 0, 1, 0]


def test_time_alone_brings_a_route_back() -> None:
    """Out at 10 for 7 ms, seen from any instant, clocks that go back included; each turn puts the slot on the list."""
    rows = [(9, 9, 0, 0.0), (10, 10, 0, 0.0), (10, 10, 2, 0.0)]
    reads = [(0, 11, at_ms) for at_ms in (11, 16, 17, 18, 16, 400)]
    said, dirty = walk(track_of(Consecutive(2, 7, 21), rows), reads)
    assert said[:, 0, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert said[:, 2, 0].tolist() == [1.0] * 6
    assert dirty[:, 0].tolist() == [1, 0, 1, 0, 1, 1]
    assert not dirty[1:, 2].any()


def test_time_alone_ends_a_tools_mark() -> None:
    """Two silent requests mark a route for 15 ms from the first; it is capable again without any new row."""
    rows = [(1, 1, 0, 1.0), (2, 2, 0, 1.0)]
    said, dirty = walk(track_of(ToolsSticky(2, 15), rows), [(0, 3, 3), (0, 3, 15), (0, 3, 16)])
    assert said[:, 0, 0].tolist() == [0.0, 0.0, 1.0]
    assert dirty[:, 0].tolist() == [1, 0, 1]


def test_sums_do_not_drift_beside_an_outlier() -> None:
    """A hundred thousand sub-millisecond latencies with 1e16 among every thousand: means without one keep 1e-9."""
    rng = np.random.default_rng(5)
    n = 100_000
    values = rng.uniform(1e-3, 0.9, n)
    values[::1000] = 1e16
    at_ms = np.arange(n, dtype=np.int64)
    facts = Facts(at_ms, at_ms, at_ms, np.zeros(n, dtype=np.int64))
    reads = Reads(at_ms[300::500] + 1, at_ms[300::500], np.zeros(len(at_ms[300::500]), dtype=np.int64))
    means, counts, _ = read_many(Window(199), facts, values, reads)
    exact = np.array([math.fsum(values[at - 199 : at + 1]) / 200 for at in reads.at_ms.tolist()])
    assert (counts == 200).all()
    clean = exact < 1
    assert clean.sum() > 190
    assert np.max(np.abs(means / exact - 1)[clean]) < 1e-9


def test_an_empty_window_forgets_its_rounding() -> None:
    """What rounding left of an outlier and its neighbours is gone when the last has left: 0.0004 is 0.0004 again."""
    rows = [(1, 1, 0, 1e16), (2, 2, 0, 1e4 / 7), (3, 3, 0, 1 / 3), (4, 4, 0, 0.0004), (50, 50, 0, 0.0004)]
    reads = [(0, 5, 5), (0, 40, 40), (0, 51, 51)]
    said, _ = walk(track_of(Window(20), rows), reads)
    assert said[2, 0].tolist() == [0.0004, 1, 1]
    assert same(said[:, 0], np.array(list(streamed(Window(20), rows, reads)))[:, 0])


@pytest.mark.parametrize(("rule", "kind"), [*RULES, *((rule, "tools") for rule in TOOLS_RULES)], ids=str)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_row_without_a_value_is_not_there(rule: Any, kind: str, data: st.DataObject) -> None:
    """A track on which some rows' values are nan says the same, and names the same changed slots, as one without them.

    Folds that would have to go back say so at the same reads.
    """
    drawn = data.draw(rows_of(kind))
    counted = data.draw(st.lists(st.booleans(), min_size=len(drawn), max_size=len(drawn)))
    reads = data.draw(st.lists(st.tuples(st.integers(0, PROCESSES - 1), keys, st.integers(-10, 60)), max_size=15))
    facts, values = facts_of(drawn)
    some = np.flatnonzero(counted)
    alone = Facts(*(column[some] for column in (facts.key, facts.at_ms, facts.identity, facts.group)))
    with_gaps = make_track(rule, facts, np.where(counted, values, np.nan), SLOTS, facts.group % PROCESSES, PROCESSES)
    without = make_track(rule, alone, values[some], SLOTS, alone.group % PROCESSES, PROCESSES)
    for one, other in zip(walk(with_gaps, reads), walk(without, reads), strict=True):
        assert same(one, other)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-(2**61), 0, 1, 7, 2**62]), st.integers(0, 3))),
    big=st.booleans(),
)
def test_rows_are_sorted_by_group_and_keys(rows: list[tuple[int, int, int]], big: bool) -> None:
    """Groups and keys of any size, in any order, with ties: the stable order, as a sort of tuples gives it."""
    group, first, second = (np.array([row[place] for row in rows], dtype=np.int64) for place in range(3))
    group = group * (2**60 if big else 1) - 1
    expected = sorted(range(len(rows)), key=lambda row: (group[row], first[row], second[row]))
    assert sorted_by(group, first, second).tolist() == expected
    assert sorted_by(group, second).tolist() == sorted(range(len(rows)), key=lambda row: (group[row], second[row]))
    assert sorted_by(group).tolist() == sorted(range(len(rows)), key=lambda row: group[row])


# Many reads


def realistic(kind: str, n: int = 4_000) -> tuple[Facts, Any, Reads]:
    """Make facts of nine groups with ties, late rows and an outlier, and reads of eleven whose clocks differ."""
    rng = np.random.default_rng(7)
    at_ms = rng.integers(0, 2 * n, n)
    facts = Facts(at_ms + rng.choice([0, 0, 5, 400, 2_000], n), at_ms, rng.permutation(n), rng.integers(0, 9, n))
    values = {
        "latency": np.where(rng.random(n) < 0.001, 1e16, np.exp(rng.normal(3, 4, n))),
        "rate": np.floor(rng.random(n) * 1.7),
    }[kind]
    key = rng.integers(-5, 2 * n + 900, n)
    return facts, values, Reads(key, key + rng.choice([-300, 0, 0, 7], n), rng.integers(-1, 10, n))


def grown(rule: Any) -> Any:
    """A rule of the list above, its times and numbers enlarged to what realistic facts have."""
    return type(rule)(**{
        name: value * 50 if name.endswith("_ms") and value else value * 10 if name == "n" and value else value
        for name, value in vars(rule).items()
    })  # fmt: skip


@pytest.mark.parametrize(("rule", "kind"), [(grown(rule), kind) for rule, kind in RULES], ids=str)
def test_many_reads_equal_streaming(rule: Any, kind: str) -> None:
    """Estimates, counts and "ever observed" of compiled and streaming reading are the same bits."""
    facts, values, reads = realistic(kind)
    fast, slow = read_many(rule, facts, values, reads), read_many_streaming(rule, facts, values, reads)
    for one, other in zip(fast, slow, strict=True):
        assert one.dtype == other.dtype
        assert same(one, other)
    assert 0.5 < np.mean(fast[2]) < 0.95


@pytest.mark.parametrize("rule", [ToolsWindow(9, 900), ToolsSticky(9, 900), ToolsNever()], ids=str)
def test_many_tools_reads_equal_streaming(rule: Any) -> None:
    """Verdicts and requests of compiled and streaming reading are the same, and verdicts of both kinds occur."""
    facts, _, reads = realistic("rate")
    rng = np.random.default_rng(8)
    requested, emitted = rng.random(4_000) < 0.8, rng.random(4_000) < 0.03
    fast = read_tools(rule, facts, requested, emitted, reads)
    slow = read_tools_streaming(rule, facts, requested, emitted, reads)
    assert [one.tolist() for one in fast] == [one.tolist() for one in slow]
    assert fast[0].any()
    assert fast[0].all() == isinstance(rule, ToolsNever)


@pytest.mark.parametrize("facts", [0, 3])
def test_nothing_to_read_or_to_read_from(facts: int) -> None:
    """No facts: no estimate and never observed. No reads: no answers. A group beyond all facts is just unknown."""
    none = np.zeros(0, dtype=np.int64)
    some = np.arange(facts, dtype=np.int64)
    ledger, values = Facts(some, some, some, some), np.ones(facts)
    assert [len(column) for column in read_many(Window(5), ledger, values, Reads(none, none, none))] == [0, 0, 0]
    far = np.array([99, -1])
    found = read_many(Ema(0.5), ledger, values, Reads(far, far, far))
    assert same(found[0], [math.nan] * 2)
    assert (found[1].tolist(), found[2].tolist()) == ([0, 0], [False, False])
    assert read_tools(ToolsWindow(1, 5), ledger, some < 0, some < 0, Reads(far, far, far))[0].all()


def test_all_rules_are_one_compiled_form() -> None:
    """After every rule, and arrays that are views or read-only, the reading has been compiled for one signature."""
    facts, values, reads = realistic("rate", 50)
    values.flags.writeable = False
    halves = Reads(*(np.repeat(column, 2)[::2] for column in (reads.key, reads.at_ms, reads.group)))
    for rule, _ in RULES:
        read_many(rule, facts, values, halves)
    for rule in TOOLS_RULES:
        read_tools(rule, facts, values > 0, values < 1, reads)
    assert len(readings._answer.signatures) == 1  # type: ignore[attr-defined]


def test_tracks_on_one_layout_share_it() -> None:
    """Two rules on the same facts share the arrays that say when and where, so a second costs its state alone."""
    facts, values, _ = realistic("rate", 50)
    layout = lay_out(facts, 9, facts.group * 0, 1)
    one, other = track_on(Window(5), layout, values), track_on(Count(5), layout, values)
    for name in ("key", "at_ms", "slot", "by_key", "by_time"):
        assert getattr(one, name) is getattr(other, name)
    assert (one.key is facts.key, one.at_ms is facts.at_ms, one.slot is facts.group) == (True, True, True)
    assert tools_values(values > 0, values > 0).max() == 3


def test_steps_count_no_references() -> None:
    """Without this option the same steps take some twenty times as long, and nothing else would tell."""
    for part in (tracks.advance, tracks.read, tracks._advance_window, tracks._advance_fold, tracks._change):
        options = part.targetoptions  # type: ignore[attr-defined]
        assert (options["_nrt"], options["forceinline"]) == (False, True)
