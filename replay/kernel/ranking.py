"""One decision, compiled: filter, score, order. Whatever did not change since its kind of decision was last made is
kept: reasons while breakers and verdicts stand, static scores while the survivors stand, the order while the scores do.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.core.signature import MAX_DEPTH
from replay.kernel import program as p
from replay.kernel.compiled import inner
from replay.kernel.program import Code, Records
from replay.kernel.requests import NOT_ASKED
from replay.kernel.truth import Floats, Moment, Stamped, World, meets, read_field, truth
from replay.orderhash import GOLDEN, NAN_BITS, ODD

MOST_ENTRIES = 64
NEVER_FAILS = 2**31 - 1

ENTRY = np.dtype(
    [
        ("hash", "u8"),
        *((name, "i8") for name in ("segment", "request", "health", "verdicts", "hot", "tools_base")),
        *((name, "i8") for name in ("count", "length", "pattern")),
    ]
)
CELL = np.dtype(
    [(name, "i4") for name in ("first", "why", "reason", "survivor", "rank_class", "order", "ranked", "scratch")]
)


class Work(NamedTuple):
    """What is kept per entry (a kind of decision: one request, one segment), and scratch space at the end.

    `entry` says what the entry stands for and what it was last decided with; `cell` has, per entry and candidate, the
    first failing clause among those that read no measurement (`first`) with its reason (`why`), the `reason` of the
    last decision, then by number among them the `survivor`s, their class, their `order`, and the plan (`ranked`, places
    relative to the segment, with `score`). `plain` are the survivors' scores, `static` those of static parts.
    """

    entry: Records
    cell: Records
    static: NDArray[np.float64]
    plain: NDArray[np.float64]
    score: NDArray[np.float64]
    everyone: NDArray[np.int32]  # 0, 1, 2, …
    survivors: NDArray[np.int32]  # of the entry at work
    stack: NDArray[np.bool_]
    vector: NDArray[np.float64]
    values: NDArray[np.float64]


def new_work(widest: int, code: Code, entries: int) -> Work:
    """Allocate the workspace for segments up to `widest` candidates."""
    rows, width = max(1, min(entries, MOST_ENTRIES)), max(1, widest)
    statics = int((code.program["static_hi"] - code.program["static_lo"]).max(initial=0))
    return Work(
        entry=np.zeros(rows, dtype=ENTRY),
        cell=np.zeros((rows, width), dtype=CELL),
        static=np.zeros((rows, max(1, statics), width)),
        plain=np.zeros((rows, width)),
        score=np.zeros((rows, width)),
        everyone=np.arange(width, dtype=np.int32),
        survivors=np.zeros(width, dtype=np.int32),
        stack=np.zeros((MAX_DEPTH + 2, width), dtype=np.bool_),
        vector=np.zeros((MAX_DEPTH * 2 + 2, width)),
        values=np.zeros(width),
    )


@inner
def rank(
    row: int, segment: int, verdicts: int, seed: int, world: World, stamped: Stamped, work: Work, at: Moment
) -> bool:
    """Decide; the ranking stands in the entry's cells afterwards. Returns whether reasons changed."""
    number = int(world.asking.request[at.request].program)
    program, entry = world.code.program[number], work.entry[row]
    known = entry.segment == segment + 1 and entry.request == at.request
    same = (
        known
        and entry.health == at.health
        and entry.verdicts == verdicts
        and entry.hot == at.hot
        and entry.tools_base == at.tools_base
    )
    if world.asking.request[at.request].pin_provider != NOT_ASKED:
        fresh = not known
        if fresh:
            _pin(row, world, work, at)
    else:
        fresh = _filter(row, number, known, same, world, stamped, work, at)
    entry.segment, entry.request, entry.health = segment + 1, at.request, at.health
    entry.verdicts, entry.hot, entry.tools_base = verdicts, at.hot, at.tools_base
    count = entry.count
    cell = work.cell[row]
    for k in range(count):
        work.survivors[k] = cell[k].survivor
    first = program.scorer
    if fresh:
        first = program.static_lo
        for k in range(count):
            cell[k].order = k
    needs = world.code.piece[program.scorer].needs
    scored = fresh or _may_differ(needs, same)
    if scored:
        while first < program.static_hi:  # the static parts, where survivors changed, then the scorer
            _score(row, first, count, world, stamped, work, at)
            first += 1
        _score(row, program.scorer, count, world, stamped, work, at)
        for k in range(count):
            work.plain[row, k] = work.vector[0, k]
    if scored or _may_differ(program.order_needs, same) or program.selector == p.SAMPLE:
        _select(row, number, seed, world, stamped, work, at)
        _hash(row, world, work, at)
    return bool(fresh)


@inner
def _may_differ(needs: int, same: bool) -> bool:
    """Say whether something may have changed since the entry's last decision; measurements always may."""
    return (needs & p.MEASURED) != 0 or (needs != 0 and not same)


@inner
def _pin(row: int, world: World, work: Work, at: Moment) -> None:
    """The first candidate of the pinned provider and family survives, alone; nobody is rejected."""
    asked, cell = world.asking.request[at.request], work.cell[row]
    work.entry[row].count = 0
    for k in range(at.width):
        cell[k].reason = 0
    for k in range(at.width):
        place = world.population.place[at.first + k]
        if place.provider == asked.pin_provider and place.family == asked.pin_family:
            cell[0].survivor, work.entry[row].count = k, 1
            return


@inner
def _filter(
    row: int, number: int, known: bool, same: bool, world: World, stamped: Stamped, work: Work, at: Moment
) -> bool:
    """Find every candidate's first failing clause; returns whether any reason changed.

    First the clauses that read no measurement, kept while nothing they read has changed, then the others. Clauses come
    last to first, so that the earliest failing one stays.
    """
    piece, program, cell = world.code.piece, world.code.program[number], work.cell[row]
    for turn in range(2):
        measured = turn == 1
        if same and not measured:
            continue
        for k in range(at.width):
            if measured:
                cell[k].scratch = cell[k].why
            else:
                cell[k].first, cell[k].why = NEVER_FAILS, 0
        clause = program.clause_hi
        while clause > program.clause_lo:
            clause -= 1
            if ((piece[clause].needs & p.MEASURED) != 0) != measured:
                continue
            reason = int(piece[clause].reason)
            if reason < 0:
                for k in range(at.width):
                    why = meets(at.first + k, world, stamped, at)
                    if why != 0:
                        cell[k].first, cell[k].why = clause, why
                continue
            truth(clause, work.stack, work.everyone, work.values, world, stamped, at)
            for k in range(at.width):
                if not work.stack[0, k]:
                    if not measured:
                        cell[k].first, cell[k].why = clause, reason
                    elif cell[k].first > clause:
                        cell[k].scratch = reason
    return _survive(row, known, work, at)


@inner
def _survive(row: int, known: bool, work: Work, at: Moment) -> bool:
    """Take the reasons just found; returns whether any differs from the last decision's."""
    cell, changed = work.cell[row], not known
    for k in range(at.width):
        changed |= cell[k].scratch != cell[k].reason
    if not changed:
        return False
    count = 0
    for k in range(at.width):
        cell[k].reason = cell[k].scratch
        if cell[k].reason == 0:
            cell[count].survivor = k
            count += 1
    work.entry[row].count = count
    return True


@inner
def _score(row: int, piece: int, count: int, world: World, stamped: Stamped, work: Work, at: Moment) -> None:
    """Run a Scorer over the survivors; the result stands in the first vector, or in the entry's static rows."""
    vector, static, survivors = work.vector, work.static[row], work.survivors
    top = -1
    for number in range(world.code.piece[piece].lo, world.code.piece[piece].hi):
        step = world.code.step[number]
        if step.op == p.FIELD:
            top += 1
            read_field(vector[top], survivors, count, int(step.a), int(step.b), world, stamped, at)
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
            pred = world.code.program[world.asking.request[at.request].program].pred + step.a
            truth(pred, work.stack, work.everyone, work.values, world, stamped, at)
            for k in range(count):
                if not work.stack[0, survivors[k]]:
                    vector[top, k] = 0.0


@inner
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


@inner
def _select(row: int, number: int, seed: int, world: World, stamped: Stamped, work: Work, at: Moment) -> None:
    """Order the survivors as the Selector says."""
    program, cell, plain, score = world.code.program[number], work.cell[row], work.plain[row], work.score[row]
    count = work.entry[row].count
    if program.selector == p.CHAIN:
        for k in range(count):
            place = world.population.column[program.chain_column, at.first + work.survivors[k]]
            plain[k] = -place if place > 0.0 else math.nan  # not on the list: sorted last, then left out
    if program.selector != p.ORDERED:
        for k in range(count):
            cell[k].rank_class = 0
        for preference in range(program.class_lo, program.class_hi):
            truth(world.code.class_pred[preference], work.stack, work.everyone, work.values, world, stamped, at)
            for k in range(count):
                cell[k].rank_class = 2 * cell[k].rank_class + (0 if work.stack[0, work.survivors[k]] else 1)
        for k in range(count):
            cell[k].rank_class = 2 * cell[k].rank_class + (1 if plain[k] != plain[k] else 0)
        sort(cell, plain, count)
    if program.selector == p.CHAIN:
        while count > 0 and plain[cell[count - 1].order] != plain[cell[count - 1].order]:
            count -= 1
    for k in range(count):
        cell[k].ranked, score[k] = work.survivors[cell[k].order], plain[cell[k].order]
    if program.selector == p.SAMPLE:
        _draw(cell, score, count, program.temperature, seed, work.values)
    for wrapper in range(program.wrap_lo, program.wrap_hi):
        value = world.code.wrap[wrapper].value
        if world.code.wrap[wrapper].kind == p.TOP_K:
            count = min(count, value)
        else:
            truth(value, work.stack, work.everyone, work.values, world, stamped, at)
            _partition(cell, score, count, work)
    work.entry[row].length = count


@inner
def sort(cell: Records, plain: Floats, count: int) -> None:
    """Sort by (class, score descending, candidate order), from the last order on: usually next to nothing moves."""
    for k in range(1, count):
        mine = cell[k].order
        mine_class, mine_score = cell[mine].rank_class, plain[mine]
        place = k
        while place > 0:
            other = cell[place - 1].order
            if cell[other].rank_class != mine_class:
                before = cell[other].rank_class < mine_class
            elif plain[other] > mine_score:
                before = True
            elif plain[other] < mine_score:
                before = False
            else:  # equal, or both no numbers
                before = other < mine
            if before:
                break
            cell[place].order = other
            place -= 1
        cell[place].order = mine


@inner
def _draw(cell: Records, score: Floats, count: int, temperature: float, seed: int, weight: Floats) -> None:
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
        place, its_score, its_weight = cell[taken].ranked, score[taken], weight[taken]
        for k in range(taken, drawn, -1):
            cell[k].ranked, score[k], weight[k] = cell[k - 1].ranked, score[k - 1], weight[k - 1]
        cell[drawn].ranked, score[drawn], weight[drawn] = place, its_score, its_weight


@inner
def _partition(cell: Records, score: Floats, count: int, work: Work) -> None:
    """Put those for which the truth in the first row holds first, each side in its order."""
    kept = 0
    others = 0
    for k in range(count):
        place, its_score = cell[k].ranked, score[k]
        if work.stack[0, place]:
            cell[kept].ranked, score[kept] = place, its_score
            kept += 1
        else:
            cell[others].scratch, work.values[others] = place, its_score
            others += 1
    for k in range(others):
        cell[kept + k].ranked, score[kept + k] = cell[k].scratch, work.values[k]


_GOLDEN, _ODD, _NAN = np.uint64(GOLDEN), np.uint64(ODD), np.uint64(NAN_BITS)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


@inner
def _mix(word: Any) -> Any:
    word = (word ^ (word >> _S30)) * _M1
    word = (word ^ (word >> _S27)) * _M2
    return word ^ (word >> _S31)


@inner
def _hash(row: int, world: World, work: Work, at: Moment) -> None:
    """`replay.orderhash.order_hash` of the ranking."""
    total, step = np.uint64(0), np.uint64(0)
    bits = work.score[row].view(np.uint64)
    for k in range(work.entry[row].length):
        step = step + _GOLDEN
        score = work.score[row, k]
        word = _NAN if score != score else bits[k]
        place = world.population.place[at.first + work.cell[row, k].ranked]
        total = total + _mix((place.hash + step) ^ (word * _ODD))
    work.entry[row].hash = _mix(total)
