"""Breakers and disabled providers of every process, folded once: which state each decision met.

`replay.core.Health` is the definition. The states are few and the decisions many, so each decision has a number, and a
table says which providers were open or disabled in that state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.kernel.compiled import compiled, inlined

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NOT_FULL = -1


class Ends(NamedTuple):
    """Attempts' ends; `order` sorts them by (process, key, identity).

    `number` says which provider a place of `provider` is, `policy` which policy walked a call; the last one is that of
    no call. What a policy makes of a kind of error is in the last two tables, (policies, kinds), the last kind being
    none; `asked_ms` is nan where the Action names no breaker time.
    """

    order: Ints
    process: Ints
    key: Ints
    at_ms: Ints
    ok: Bools
    provider: NDArray[np.int32]
    call: Ints  # -1: none
    kind: NDArray[np.int32]  # -1: none
    number: Ints
    policy: Ints
    client: Bools  # per kind: the client's own, which touch no breaker
    disables: Bools
    asked_ms: NDArray[np.float64]


class Rankings(NamedTuple):
    """Decisions; `order` sorts them by (process, key, identity)."""

    order: Ints
    process: Ints
    key: Ints
    at_ms: Ints


class Limits(NamedTuple):
    """`replay.core.Health`'s parameters."""

    threshold: int
    open_ms: float
    disable_ms: float
    honour: bool


class States(NamedTuple):
    """The states met: per state and provider, open and disabled side by side; state 0 is all well."""

    table: Bools  # (room, 2 × providers)
    bucket: NDArray[np.int32]
    used: Ints  # (1,)


def new_states(providers: int, size: int, old: States | None = None) -> States:
    """Allocate room for some states, with those of an older table in it."""
    made = States(
        np.zeros((size, 2 * providers), dtype=np.bool_),
        np.full(4 * size, -1, dtype=np.int32),
        np.zeros(1, dtype=np.int64),
    )
    for row in np.zeros((1, 2 * providers), dtype=np.bool_) if old is None else old.table[: old.used[0]]:
        _number(made, row)
    return made


def fold(rankings: Rankings, ends: Ends, providers: int, limits: Limits) -> tuple[Ints, Bools, Bools]:
    """Return the state that each decision met, and per state and provider whether it was open, and whether disabled."""
    size = 256
    states = new_states(providers, size)
    numbers = np.zeros(len(rankings.key), dtype=np.int64)
    while not _fold(rankings, ends, providers, limits, states, numbers):
        size *= 8
        states = new_states(providers, size, states)
    table = states.table[: states.used[0]]
    return numbers, np.ascontiguousarray(table[:, :providers]), np.ascontiguousarray(table[:, providers:])


@compiled
def _number(states: States, row: Bools) -> int:
    word = np.uint64(14695981039346656037)
    for column in range(len(row)):
        word = (word ^ np.uint64(row[column])) * np.uint64(1099511628211)
    size = len(states.bucket)
    place: Any = np.int64(word % np.uint64(size))
    while states.bucket[place] >= 0:
        number = states.bucket[place]
        same = True
        for column in range(len(row)):
            same &= states.table[number, column] == row[column]
        if same:
            return int(number)
        place = (place + 1) % size
    number = states.used[0]
    if number == len(states.table):
        return NOT_FULL
    states.bucket[place], states.used[0] = number, number + 1
    states.table[number] = row
    return int(number)


@compiled
def _fold(rankings: Rankings, ends: Ends, providers: int, limits: Limits, states: States, numbers: Ints) -> bool:
    """A ranking comes before an end with the same key. False: the table is full; begin again with a larger one."""
    failures = np.zeros(providers, dtype=np.int64)
    opened_ms = np.full(providers, np.nan)
    open_for_ms = np.zeros(providers)
    disabled_ms = np.full(providers, np.nan)
    row = np.zeros(2 * providers, dtype=np.bool_)
    process, end, troubled = -1, 0, 0  # troubled: providers that an instant may find open or disabled
    for ranking in rankings.order:
        if rankings.process[ranking] != process:
            process, troubled = rankings.process[ranking], 0
            failures[:] = 0
            opened_ms[:] = np.nan
            disabled_ms[:] = np.nan
            while end < len(ends.order) and ends.process[ends.order[end]] < process:
                end += 1
        while end < len(ends.order):
            attempt = ends.order[end]
            if ends.process[attempt] != process or ends.key[attempt] >= rankings.key[ranking]:
                break
            _observe(ends, attempt, limits, failures, opened_ms, open_for_ms, disabled_ms)
            troubled += 0 if ends.ok[attempt] else 1
            end += 1
        if troubled == 0:
            continue
        now_ms, troubled = rankings.at_ms[ranking], 0
        for provider in range(providers):
            is_open = now_ms - opened_ms[provider] < open_for_ms[provider]
            if opened_ms[provider] == opened_ms[provider] and not is_open:
                failures[provider], opened_ms[provider] = 0, np.nan
            row[provider] = is_open
            row[providers + provider] = now_ms - disabled_ms[provider] < limits.disable_ms
            troubled += opened_ms[provider] == opened_ms[provider] or disabled_ms[provider] == disabled_ms[provider]
        number = _number(states, row)
        if number < 0:
            return False
        numbers[ranking] = number
    return True


@inlined
def _observe(
    ends: Ends,
    attempt: int,
    limits: Limits,
    failures: Ints,
    opened_ms: NDArray[np.float64],
    open_for_ms: NDArray[np.float64],
    disabled_ms: NDArray[np.float64],
) -> None:
    provider, at_ms = ends.number[ends.provider[attempt]], ends.at_ms[attempt]
    if ends.ok[attempt]:
        failures[provider], opened_ms[provider] = 0, np.nan
        return
    policy, kind = ends.policy[ends.call[attempt]], ends.kind[attempt]
    if ends.disables[policy, kind]:
        disabled_ms[provider] = at_ms
    if ends.client[kind]:
        return
    failures[provider] += 1
    asked_ms = ends.asked_ms[policy, kind]
    asked = asked_ms == asked_ms
    if failures[provider] >= limits.threshold or asked:
        opened_ms[provider] = at_ms
        open_for_ms[provider] = asked_ms if limits.honour and asked else limits.open_ms
