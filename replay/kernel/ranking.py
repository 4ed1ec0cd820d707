"""One decision, compiled: filter, score, order. Whatever did not change since its kind of decision was last made is
kept: reasons while breakers and verdicts stand, static scores while the survivors stand, the order while the scores do.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from replay.core.signature import MAX_DEPTH
from replay.kernel import program as p
from replay.kernel.compiled import inlined
from replay.kernel.population import Population
from replay.kernel.program import Code, Records
from replay.kernel.requests import NOT_ASKED
from replay.kernel.truth import Bools, Floats, Ints, Moment, Numbers, Stamped, World, read_measured, read_state, truth
from replay.orderhash import GOLDEN, NAN_BITS, ODD

MOST_ENTRIES = 64

ENTRY = np.dtype(
    [
        ("hash", "u8"),
        *((name, "i8") for name in ("segment", "request", "health", "verdicts", "crossings", "hot")),
        *((name, "i8") for name in ("rate_base", "latency_base", "tools_base")),
        *((name, "i8") for name in ("count", "length", "pattern", "rejected")),
    ]
)


class Work(NamedTuple):
    """What is kept per entry (a kind of decision: one request, one segment), and scratch space at the end.

    `entry` says what the entry stands for and what it was last decided with. Per entry and candidate: the fields that
    change, the truth of every pred, why requirements are `unmet`, the `reason` of the last decision. Per entry and
    survivor: its place, the scores of static parts, its score (`plain`) and class, and the `order`; then the plan,
    places (`ranked`) with their `score`, and each one's `rank`. Of the segment last met, the `first` place of every
    route, and the `next` of the same.
    """

    entry: Records
    fields: Floats  # (entries, sources, width)
    mask: Bools  # (entries, preds, width)
    unmet: Numbers
    reason: Numbers
    survivors: Numbers
    static: Floats  # (entries, statics, width)
    plain: Floats
    rank_class: Numbers
    order: Numbers
    ranked: Numbers
    score: Floats
    rank: Numbers
    met: Ints  # (1,): the segment; -1: none yet
    first: Numbers  # (routes,), -1: none
    next: Numbers  # (width,), -1: none
    stack: Bools
    vector: Floats
    now: Numbers
    ordered: Numbers
    values: Floats


def new_work(population: Population, code: Code, entries: int) -> Work:
    """Allocate the workspace for a population's segments."""
    rows = 1 << (max(1, min(entries, MOST_ENTRIES)) - 1).bit_length()  # so that a request's is found without dividing
    width = max(1, population.widest)
    preds = int((code.program["static"] - code.program["clause"]).max(initial=0))
    statics = int((code.program["scorer"] - code.program["static"]).max(initial=0))

    def numbers() -> Numbers:
        return np.zeros((rows, width), dtype=np.int32)

    return Work(
        entry=np.zeros(rows, dtype=ENTRY),
        fields=np.zeros((rows, p.SOURCES, width)),
        mask=np.zeros((rows, max(1, preds), width), dtype=np.bool_),
        unmet=numbers(),
        reason=numbers(),
        survivors=numbers(),
        static=np.zeros((rows, max(1, statics), width)),
        plain=np.zeros((rows, width)),
        rank_class=numbers(),
        order=numbers(),
        ranked=numbers(),
        score=np.zeros((rows, width)),
        rank=numbers(),
        met=np.full(1, -1, dtype=np.int64),
        first=np.full(population.route.max(initial=0) + 1, -1, dtype=np.int32),
        next=np.zeros(width, dtype=np.int32),
        stack=np.zeros((MAX_DEPTH + 2, width), dtype=np.bool_),
        vector=np.zeros((MAX_DEPTH * 2 + 2, width)),
        now=np.zeros(width, dtype=np.int32),
        ordered=np.zeros(width, dtype=np.int32),
        values=np.zeros(width),
    )


@inlined
def rank(
    row: int, segment: int, versions: Ints, seed: int, world: World, stamped: Stamped, work: Work, at: Moment
) -> bool:
    """Decide; the ranking stands in the entry's rows afterwards. Returns whether reasons changed.

    `versions` say how often a tools verdict changed, and how often a measurement crossed a bound.
    """
    asked = world.asking.request[at.request]
    program, entry = world.code.program[asked.program], work.entry[row]
    known = entry.segment == segment + 1 and entry.request == at.request
    changed = _changed(entry, versions, at) if known else p.ANYTHING
    _read(row, program, known, changed, world, stamped, work, at)
    if asked.pin_provider != NOT_ASKED:
        fresh = not known
        if fresh:
            _pin(row, asked, world, work, at)
    else:
        fresh = changed != 0 and _filter(row, program, known, world, work, at)
    entry.segment, entry.request, entry.health, entry.hot = segment + 1, at.request, at.health, at.hot
    entry.verdicts, entry.crossings = versions[0], versions[1]
    entry.rate_base, entry.latency_base, entry.tools_base = at.rate_base, at.latency_base, at.tools_base
    scored = fresh or _may_differ(world.code.piece[program.scorer].needs, changed)
    if scored:
        _score(row, program, fresh, world, work, at)
    if scored or _may_differ(program.order_needs, changed) or program.selector == p.SAMPLE:
        _select(row, program, seed, world, work, at)
        _hash(row, world, work, at)
    return bool(fresh)


@inlined
def _changed(entry: Any, versions: Ints, at: Moment) -> int:
    """Return what, of all that something may depend on, may differ from the entry's last decision."""
    changed = 0
    if entry.health != at.health:
        changed |= p.HEALTH
    if entry.verdicts != versions[0] or entry.tools_base != at.tools_base:
        changed |= p.TOOLS
    if entry.crossings != versions[1] or entry.rate_base != at.rate_base or entry.latency_base != at.latency_base:
        changed |= p.CROSSED
    if entry.hot != at.hot:
        changed |= p.HOT
    return changed


@inlined
def _may_differ(needs: int, changed: int) -> bool:
    """Say whether something may have changed since the entry's last decision; measurements always may."""
    return (needs & (p.MEASURED | changed)) != 0


@inlined
def _read(
    row: int, program: Any, known: bool, changed: int, world: World, stamped: Stamped, work: Work, at: Moment
) -> None:
    """Bring fields and preds up to date: what may have changed since the entry's last decision, and nothing else."""
    fields = work.fields[row]
    read_measured(fields, program.needs & (p.MEASURED | changed), world.population, stamped, at)
    if changed == 0:
        return
    if (changed & (p.HEALTH | p.HOT)) != 0:
        read_state(fields, program.hot_column, world, at)
    for piece in range(program.clause, program.static):
        if known and not _may_differ(world.code.piece[piece].needs, changed):
            continue
        truth(piece, work.stack, work.unmet[row], fields, world, stamped, at)
        mask = work.mask[row, piece - program.clause]
        for k in range(at.width):
            mask[k] = work.stack[0, k]


@inlined
def _pin(row: int, asked: Any, world: World, work: Work, at: Moment) -> None:
    """The first candidate of the pinned provider and family survives, alone; nobody is rejected."""
    work.entry[row].count, work.entry[row].rejected = 0, 0
    for k in range(at.width):
        work.reason[row, k] = 0
    for k in range(at.width):
        place = world.population.place[at.first + k]
        if place.provider == asked.pin_provider and place.family == asked.pin_family:
            work.survivors[row, 0], work.order[row, 0], work.entry[row].count = k, 0, 1
            return


@inlined
def _filter(row: int, program: Any, known: bool, world: World, work: Work, at: Moment) -> bool:
    """Find every candidate's first failing clause; returns whether any reason changed."""
    now, reason = work.now, work.reason[row]
    for k in range(at.width):
        now[k] = 0
    clause = program.pred
    while clause > program.clause:  # last to first, so that the earliest failing one stays
        clause -= 1
        mask, its = work.mask[row, clause - program.clause], world.code.piece[clause].reason
        if its >= 0:
            for k in range(at.width):
                now[k] = now[k] if mask[k] else its
        else:
            for k in range(at.width):
                now[k] = now[k] if mask[k] else work.unmet[row, k]
    differ = 0
    for k in range(at.width):
        differ |= now[k] ^ reason[k]
    if known and differ == 0:
        return False
    for k in range(work.entry[row].count if known else 0):  # the last order, by place
        work.ordered[k] = work.survivors[row, work.order[row, k]]
    before = work.entry[row].count if known else 0
    count = 0
    for k in range(at.width):
        reason[k] = now[k]
        work.survivors[row, count] = k
        now[k] = count if now[k] == 0 else -1
        count += 1 if now[k] >= 0 else 0
    _keep_order(row, before, count, work)
    work.entry[row].count, work.entry[row].rejected = count, at.width - count
    return True


@inlined
def _keep_order(row: int, before: int, count: int, work: Work) -> None:
    """Begin with the order of before, less those who left; newcomers come last. `now` has the survivors' numbers."""
    order, now, kept = work.order[row], work.now, 0
    for k in range(before):
        number = now[work.ordered[k]]
        if number >= 0:
            order[kept], now[work.ordered[k]] = number, -1
            kept += 1
    for k in range(count):
        if now[work.survivors[row, k]] >= 0:
            order[kept] = k
            kept += 1


@inlined
def _score(row: int, program: Any, fresh: bool, world: World, work: Work, at: Moment) -> None:
    """Run the Scorer over the survivors, and before it the static parts where the survivors changed."""
    vector, static, survivors, count = work.vector, work.static[row], work.survivors[row], work.entry[row].count
    for piece in range(program.static if fresh else program.scorer, program.scorer + 1):
        top = -1
        for number in range(world.code.piece[piece].lo, world.code.piece[piece].hi):
            step = world.code.step[number]
            if step.op == p.FIELD:
                top += 1
                column = step.a == p.COLUMN
                values = world.population.column[step.b] if column else work.fields[row, step.a]
                start = at.first if column else 0
                for k in range(count):
                    vector[top, k] = values[start + survivors[k]]
            elif step.op == p.SCALE:
                for k in range(count):
                    vector[top, k] = step.x * vector[top, k]
            elif step.op == p.ADD_STATIC:
                for k in range(count):
                    vector[top, k] = vector[top, k] + static[step.a, k]
            elif step.op == p.NORMALIZE:
                normalize(vector[top], count)
            elif step.op == p.NEGATE:
                for k in range(count):
                    vector[top, k] = 1.0 - vector[top, k]
            elif step.op == p.ADD:
                top -= 1
                for k in range(count):
                    vector[top, k] = vector[top, k] + vector[top + 1, k]
            elif step.op == p.ADD_ZERO:
                for k in range(count):
                    vector[top, k] = 0.0 + vector[top, k]
            elif step.op == p.PUSH:
                top += 1
                for k in range(count):
                    vector[top, k] = static[step.a, k]
            elif step.op == p.LITERAL:
                top += 1
                for k in range(count):
                    vector[top, k] = step.x
            elif step.op == p.STORE:
                for k in range(count):
                    static[step.a, k] = vector[top, k]
            elif step.op == p.CLAMP:
                for k in range(count):
                    s = vector[top, k]
                    vector[top, k] = step.x if s < step.x else (step.y if s > step.y else s)
            else:  # a gate
                for k in range(count):
                    vector[top, k] = vector[top, k] if work.mask[row, step.a, survivors[k]] else 0.0
    for k in range(count):
        work.plain[row, k] = vector[0, k]


@inlined
def normalize(vector: Floats, count: int) -> None:
    """Scale to [0, 1] by the least and the greatest number of the population."""
    low, high = math.inf, -math.inf
    some = False
    for k in range(count):
        s = vector[k]
        some |= s == s
        low = s if s < low else low
        high = s if s > high else high
    if not some or high <= low:
        for k in range(count):
            vector[k] = 0.0
        return
    span = high - low
    for k in range(count):
        s = vector[k]
        share = (s - low) / span
        share = 0.0 if share != share else share
        share = 0.0 if s <= low else share
        vector[k] = 1.0 if s >= high else share


@inlined
def _select(row: int, program: Any, seed: int, world: World, work: Work, at: Moment) -> None:
    """Order the survivors as the Selector says."""
    survivors, order, plain, rank_class = work.survivors[row], work.order[row], work.plain[row], work.rank_class[row]
    ranked, score, count = work.ranked[row], work.score[row], work.entry[row].count
    if program.selector == p.CHAIN:
        for k in range(count):
            place = world.population.column[program.chain_column, at.first + survivors[k]]
            plain[k] = -place if place > 0.0 else math.nan  # not on the list: sorted last, then left out
    if program.selector == p.ORDERED:
        for k in range(count):
            order[k] = k
    else:
        classes = program.class_lo < program.class_hi
        if classes:
            for k in range(count):
                rank_class[k] = 0
        for number in range(program.class_lo, program.class_hi):
            mask = work.mask[row, world.code.class_pred[number]]
            for k in range(count):
                rank_class[k] = 2 * rank_class[k] + (0 if mask[survivors[k]] else 1)
        sort(order, rank_class, plain, count, classes)
    if program.selector == p.CHAIN:
        while count > 0 and plain[order[count - 1]] != plain[order[count - 1]]:
            count -= 1
    for k in range(count):
        ranked[k], score[k] = survivors[order[k]], plain[order[k]]
    if program.selector == p.SAMPLE:
        _draw(ranked, score, count, program.temperature, seed, work.values)
    for wrapper in range(program.wrap_lo, program.wrap_hi):
        value = world.code.wrap[wrapper].value
        if world.code.wrap[wrapper].kind == p.TOP_K:
            count = min(count, value)
        else:
            _partition(ranked, score, count, work.mask[row, value], work.now, work.values)
    work.entry[row].length = count
    for k in range(count):
        work.rank[row, ranked[k]] = k


@inlined
def sort(order: Numbers, rank_class: Numbers, plain: Floats, count: int, classes: bool) -> None:
    """Sort by (class, no number last, score descending, candidate order), where there are any `classes`.

    It goes on from the last order: usually next to nothing moves, which a look at the one before tells.
    """
    if count == 0:
        return
    last = order[0]
    last_score = plain[last]
    for k in range(1, count):
        mine = order[k]
        mine_score = plain[mine]
        if last_score > mine_score and (not classes or rank_class[last] == rank_class[mine]):
            last, last_score = mine, mine_score
            continue
        place = k
        while place > 0 and not _before(order[place - 1], mine, rank_class, plain, classes):
            order[place] = order[place - 1]
            place -= 1
        order[place] = mine
        last = order[k]
        last_score = plain[last]


@inlined
def _before(one: int, other: int, rank_class: Numbers, plain: Floats, classes: bool) -> bool:
    """Say whether a survivor comes before another."""
    if classes and rank_class[one] != rank_class[other]:
        return bool(rank_class[one] < rank_class[other])
    its, others = plain[one], plain[other]
    if its > others or its < others:
        return bool(its > others)
    if (its != its) != (others != others):
        return bool(others != others)
    return one < other


@inlined
def _draw(ranked: Numbers, score: Floats, count: int, temperature: float, seed: int, weight: Floats) -> None:
    """Draw without replacement, weights 1, q, q², …; the page's generator, four steps discarded."""
    q = temperature / (temperature + 1.0)
    mark = 1.0
    for k in range(count):
        weight[k] = mark
        mark = mark * q
    state = seed
    for _ in range(4):
        state = state * 16807 % 2147483647
    for drawn in range(count):
        state = state * 16807 % 2147483647
        total = 0.0
        for k in range(drawn, count):
            total += weight[k]
        reach = state / 2147483647 * total
        running, taken = 0.0, count - 1
        for k in range(drawn, count):
            running += weight[k]
            if running >= reach:
                taken = k
                break
        place, its_score, its_weight = ranked[taken], score[taken], weight[taken]
        for k in range(taken, drawn, -1):
            ranked[k], score[k], weight[k] = ranked[k - 1], score[k - 1], weight[k - 1]
        ranked[drawn], score[drawn], weight[drawn] = place, its_score, its_weight


@inlined
def _partition(ranked: Numbers, score: Floats, count: int, mask: Bools, now: Numbers, values: Floats) -> None:
    """Put those for which the mask holds first, each side in its order."""
    kept = 0
    others = 0
    for k in range(count):
        place, its_score = ranked[k], score[k]
        if mask[place]:
            ranked[kept], score[kept] = place, its_score
            kept += 1
        else:
            now[others], values[others] = place, its_score
            others += 1
    for k in range(others):
        ranked[kept + k], score[kept + k] = now[k], values[k]


_GOLDEN, _ODD, _NAN = np.uint64(GOLDEN), np.uint64(ODD), np.uint64(NAN_BITS)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


@inlined
def _mix(word: Any) -> Any:
    word = (word ^ (word >> _S30)) * _M1
    word = (word ^ (word >> _S27)) * _M2
    return word ^ (word >> _S31)


@inlined
def _hash(row: int, world: World, work: Work, at: Moment) -> None:
    """`replay.orderhash.order_hash` of the ranking."""
    total, step = np.uint64(0), np.uint64(0)
    bits = work.score[row].view(np.uint64)
    for k in range(work.entry[row].length):
        step = step + _GOLDEN
        score = work.score[row, k]
        word = _NAN if score != score else bits[k]
        total = total + _mix((world.population.hash[at.first + work.ranked[row, k]] + step) ^ (word * _ODD))
    work.entry[row].hash = _mix(total)
