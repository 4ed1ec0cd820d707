"""Gaps in a process's own numbering: rows that were never written, and how long their absence leaves doubt.

A process numbers its decisions and attempt ends, since both change what it knows by itself: which breakers are open,
which providers disabled. A number that no row carries is a row that was dropped (its queue was full while the database
was away), or a call that had not ended when the ledger was pulled. What it changed is unknown, so for a while nobody
can say what the process knew of a provider: until an attempt on it succeeds that was decided after the gap (which
closes its breaker, and shows that it was not disabled), or until whatever the gap hid has run out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from replay.core import Health
from replay.timeline import Bools, Ints, Texts, Timeline

_HEALTH = Health()
_SPARSE = 16
_MANY = 2**62


@dataclass
class Numbering:
    """What is known of each process's numbering: nothing where a ledger is looked at whole, else of earlier parts.

    Only numbers above `after` and up to `upto` are looked at (None: to the end). `calls` has the number of the last
    call and how many later numbers were there, `doubts` what was in doubt then; both go on with every part looked at,
    once and in their order.
    """

    after: Mapping[str, int] = field(default_factory=dict)
    upto: Mapping[str, int] | None = field(default_factory=dict)
    calls: dict[str, tuple[int, int]] = field(default_factory=dict)
    doubts: dict[str, _Doubt] = field(default_factory=dict)

    @classmethod
    def whole(cls) -> Numbering:
        """Look at everything at once."""
        return cls().next(None)

    def next(self, upto: Mapping[str, int] | None) -> Numbering:
        """Return the same for the part after this one, up to other numbers."""
        return Numbering(self.looked_at, upto, self.calls, self.doubts)

    @property
    def looked_at(self) -> dict[str, int]:
        """The number of each process up to which this part and those before it go."""
        return {**self.after, **(self.upto or {})}

    def missing(self, timeline: Timeline, between: Ints) -> int:
        """Count the numbers that no row carries between each process's first and last of these calls."""
        calls, attempts = timeline.calls, timeline.attempts
        count = 0
        for name in {*calls.replica.values, *attempts.replica.values}:
            ends = _numbers(calls.replica, calls.replica_seq, name, between)
            if not len(ends) and name not in self.calls:
                continue
            last_call, present = self.calls.get(name, (int(ends.min(initial=_MANY)) - 1, 0))
            last = int(ends.max(initial=last_call))
            numbers = np.concatenate([_numbers(rows.replica, rows.replica_seq, name) for rows in (calls, attempts)])
            numbers = numbers[self._is_inside(name, numbers) & (numbers > last_call)] - last_call - 1
            present += _distinct(numbers[numbers < last - last_call])
            later = _distinct(numbers[numbers >= last - last_call])
            if len(ends):
                count += last - last_call - present
                present = 0
            self.calls[name] = last, present + later
        return count

    def in_doubt(self, timeline: Timeline, providers_of: Callable[[int], Iterable[str]]) -> frozenset[int]:
        """Return the calls decided while it is unknown what their process knew of some provider they could choose.

        `providers_of` gives the providers among a call's candidates. A ledger without gaps costs one look at its
        numbers.
        """
        doubtful: set[int] = set()
        for name in sorted({*timeline.calls.replica.values, *timeline.attempts.replica.values}):
            doubt = self.doubts.get(name)
            for number, is_call, index, missing in self._events(timeline, name, doubt is not None):
                at_ms = int(timeline.calls.decided_ms[index] if is_call else timeline.attempts.ts_ms[index])
                if missing:
                    doubt = _Doubt(number, at_ms)
                if doubt is None:
                    continue
                if not is_call:
                    _fold(doubt, timeline, index)
                elif at_ms < doubt.last_ms and any(doubt.concerns(one, at_ms) for one in providers_of(index)):
                    doubtful.add(index)
            if doubt is not None:
                self.doubts[name] = doubt
        return frozenset(doubtful)

    def _events(self, timeline: Timeline, name: str, doubted: bool) -> Iterator[tuple[int, bool, int, bool]]:
        """Yield a process's numbered events in order: number, is it a call, row, and whether it follows a gap.

        Those before its first gap are left out, unless there was one before.
        """
        calls, attempts = timeline.calls, timeline.attempts
        of_calls, of_attempts = (
            np.flatnonzero((table.replica.codes == table.replica.code(name)) & self._is_inside(name, table.replica_seq))
            for table in (calls, attempts)
        )
        numbers = np.concatenate([calls.replica_seq[of_calls], attempts.replica_seq[of_attempts]])
        if not len(numbers):
            return
        before = self.after.get(name, int(numbers.min()) - 1)
        if not doubted and int(numbers.max()) - before == _distinct(numbers - before - 1):
            return
        rows = np.concatenate([of_calls, of_attempts])
        order = np.argsort(numbers, kind="stable")
        follows = np.diff(numbers[order], prepend=before) > 1
        gaps = np.flatnonzero(follows)
        first = 0 if doubted else int(gaps[0]) if len(gaps) else len(order)
        for place, missing in zip(order[first:].tolist(), follows[first:].tolist(), strict=True):
            yield int(numbers[place]), place < len(of_calls), int(rows[place]), missing

    def _is_inside(self, name: str, numbers: Ints) -> Bools:
        upto = _MANY if self.upto is None else self.upto.get(name, self.after.get(name, -1))
        return (numbers > self.after.get(name, -1)) & (numbers <= upto)


def _numbers(replica: Texts, numbers: Ints, name: str, some: Ints | None = None) -> Ints:
    """Return the numbers that a process gave its rows, or some of them."""
    mine = (replica.codes == replica.code(name)) & (numbers >= 0)
    return numbers[np.flatnonzero(mine) if some is None else some[mine[some]]]


def _distinct(numbers: Ints) -> int:
    """Count distinct numbers from 0 on; they mostly lie close together."""
    if len(numbers) and int(numbers.max()) > _SPARSE * len(numbers):
        return len(np.unique(numbers))
    return int(np.count_nonzero(np.bincount(numbers)))


class _Doubt:
    """What is in doubt after a gap that ended at an instant with an event of this number; at first, nothing is."""

    def __init__(self, number: int = -1, since_ms: float = -math.inf) -> None:
        self.number = number
        self.last_ms = self.hidden_until_ms = since_ms + _HEALTH.disable_ms
        self.sure: set[str] = set()
        self.until_ms: dict[str, float] = {}

    def concerns(self, provider: str, at_ms: int) -> bool:
        return provider not in self.sure and at_ms < self.until_ms.get(provider, self.hidden_until_ms)

    def failed(self, provider: str, until_ms: float) -> None:
        """A failure after the gap: with those that the gap hid, it may have opened the breaker."""
        if provider not in self.sure:
            self.until_ms[provider] = max(self.until_ms.get(provider, self.hidden_until_ms), until_ms)
            self.last_ms = max(self.last_ms, until_ms)


def _fold(doubt: _Doubt, timeline: Timeline, attempt: int) -> None:
    attempts = timeline.attempts
    provider, at_ms, call = attempts.provider[attempt] or "", int(attempts.ts_ms[attempt]), int(attempts.call[attempt])
    if call < 0 and not attempts.ok[attempt]:  # nobody knows what its policy made of it
        doubt.sure.discard(provider)
        doubt.failed(provider, at_ms + _HEALTH.disable_ms)
    elif not attempts.ok[attempt]:
        doubt.failed(provider, at_ms + _HEALTH.open_ms)
    elif call >= 0 and timeline.calls.replica_seq[call] >= doubt.number:
        doubt.sure.add(provider)
