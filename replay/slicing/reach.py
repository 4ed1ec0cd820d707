"""Which rows of a ledger can matter to some of its decisions: the slice itself, and the warm-up before it.

                 what is remembered                     everything                 the slice
    ───┬───────┬─────────────┬──────────┬─────────────────────────────────┬───────────────────────────┬──▶ time
    first   last success   the last     │◀──────────── reach ─────────────▶│ since                until │
    uses    of a provider  of a route   from

Within the reach (the longest window, and what a process remembers for a time) every row is kept. From before it comes
only what has no horizon: the last observations of a fold, a tool call that proved a route, the failures of a provider
since its last success, and the first use of a route where candidates depend on it. How many observations a fold needs
until the older ones are lost in rounding cannot be said beforehand: `depth` doubles reach and number, and a replay of
what was cut is the proof.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from replay.core import Health
from replay.estimators import ToolsSticky
from replay.measuring import Measuring
from replay.settings import Measure, Settings
from replay.timeline import Bools, Ints, Timeline

EVERYTHING = 16
"""The depth that keeps every row from before the slice."""

_FOLDED = 64
_PROCESS_MS = int(Health().disable_ms)  # what a process remembers by the clock; a breaker opens for less


@dataclass(frozen=True)
class Chosen:
    """Masks over a timeline's calls and attempts."""

    calls: Bools
    attempts: Bools

    @classmethod
    def none(cls, timeline: Timeline) -> Chosen:
        """Choose nothing yet."""
        return cls(np.zeros(len(timeline.calls), dtype=np.bool_), np.zeros(len(timeline.attempts), dtype=np.bool_))


def matters(measuring: Measuring, chosen: Chosen, has_offers: bool, depth: int) -> Chosen:
    """Return the rows that can matter to the chosen decisions and attempts under one setting.

    `has_offers` says whether the ledger records its candidates. Depths go from 0 to `EVERYTHING`.
    """
    reach = _Reach(measuring, chosen, depth)
    if depth < EVERYTHING:
        reach.keep_folds()
        reach.keep_health()
        reach.keep_first_uses(has_offers)
        reach.keep_calls_of_attempts()
        reach.keep_order_of_visibility()
    return reach.kept


class _Reach:
    """Collects the rows kept for one setting; attempts before `from_ms` are the past that has to be picked from."""

    def __init__(self, measuring: Measuring, chosen: Chosen, depth: int) -> None:
        self.measuring, self.settings = measuring, measuring.settings
        self.timeline = measuring.timeline
        self.folded = _FOLDED << depth
        calls, attempts = self.timeline.calls, self.timeline.attempts
        readers = chosen.calls.copy()
        asking = attempts.call[chosen.attempts]
        readers[asking[asking >= 0]] = True
        self.processes = np.union1d(measuring.call_process[readers], measuring.attempt_process[chosen.attempts])
        starts = attempts.start_ms[chosen.attempts]
        first = [measuring.evidence_ms[readers], calls.decided_ms[readers], starts[starts >= 0]]
        first_ms = int(min(part.min() for part in first if len(part)))
        last_ms = int(max(calls.decided_ms[chosen.calls].max(initial=first_ms), first_ms))
        reach_ms = remembered_ms(self.settings) << depth
        self.from_ms = -(2**62) if depth == EVERYTHING else first_ms - reach_ms
        within = (calls.decided_ms >= self.from_ms) & (calls.decided_ms <= last_ms)
        keys = np.concatenate([measuring.evidence_key[readers], np.zeros(1, dtype=np.int64)])
        seen = (attempts.ts_ms <= last_ms) | (measuring.visibility.attempts < keys.max())
        of_kept = (
            (attempts.call >= 0) & within[attempts.call] if len(calls) else np.zeros(len(attempts), dtype=np.bool_)
        )
        recent = (attempts.ts_ms >= self.from_ms) & (seen | of_kept)
        self.past = attempts.ts_ms < self.from_ms
        self.kept = Chosen(within | readers, recent | chosen.attempts)

    def keep_folds(self) -> None:
        """Keep the last observations, and the last successes, of everything that a fold without a horizon is for."""
        attempts, rules = self.timeline.attempts, (self.settings.reliability, self.settings.latency)
        for measure in rules:
            if _is_fold(measure):
                least = max(self.folded, int(getattr(measure.rule, "n", 0)))
                self._keep_last(self._groups(measure.state), self.past, least)
                self._keep_last(self._groups(measure.state), self.past & attempts.ok, least)
        tools = self.settings.tools
        if isinstance(tools.rule, ToolsSticky):
            groups = self._groups(tools.state)
            proof = self._first_of(groups, self.past & attempts.tools_emitted)
            self.kept.attempts[proof] = True
            proven = np.isin(groups, groups[proof])
            self.kept.attempts[self.past & attempts.tools_requested & ~proven] = True

    def _groups(self, state: str) -> Ints:
        route = self.timeline.attempts.route
        if state == "shared":
            return route
        return route * self.measuring.process_count + self.measuring.attempt_process

    def _in_time(self, which: Bools) -> Ints:
        attempts = self.timeline.attempts
        places = np.flatnonzero(which)
        return places[np.lexsort((attempts.id[places], attempts.ts_ms[places]))]

    def _keep_last(self, groups: Ints, which: Bools, count: int) -> None:
        counted: dict[int, int] = {}
        for place in self._in_time(which)[::-1].tolist():
            group = int(groups[place])
            counted[group] = counted.get(group, 0) + 1
            if counted[group] <= count:
                self.kept.attempts[place] = True

    def _first_of(self, groups: Ints, which: Bools) -> Ints:
        places = self._in_time(which)
        return places[np.unique(groups[places], return_index=True)[1]]

    def keep_health(self) -> None:
        """Keep, per process and provider, the last success before the reach and every failure since.

        A success wipes what came before it. Before each failure, and at the end, the last ranking is kept: if any
        ranking since the failure before found the breaker recovered, the last one did. The last event of each process
        is kept too, so that the numbers left out end well before the slice (`replay.gaps`).
        """
        attempts = self.timeline.attempts
        for events in self._past_by_process():
            ranking: list[int] = []
            tails: dict[str, tuple[list[int], list[int]]] = {}  # attempts and rankings since the last success
            for _, is_end, place in events:
                if not is_end:
                    ranking = [place]
                    continue
                provider = attempts.provider[place] or ""
                if attempts.ok[place]:
                    tails[provider] = ([place], [])
                else:
                    ends, rankings = tails.setdefault(provider, ([], []))
                    ends.append(place)
                    rankings += ranking
            for ends, rankings in tails.values():
                self.kept.attempts[ends] = True
                self.kept.calls[rankings] = True
            self.kept.calls[ranking] = True
            if events[-1][1]:
                self.kept.attempts[events[-1][2]] = True

    def _past_by_process(self) -> list[list[tuple[int, bool, int]]]:
        """Return each asking process's events before the reach, in its order: (own key, is an attempt's end, row)."""
        measuring, attempts = self.measuring, self.timeline.attempts
        ends = attempts.replica_seq if measuring.order == "sequence" else attempts.ts_ms
        earlier = self.timeline.calls.decided_ms < self.from_ms
        found: dict[int, list[tuple[int, bool, int]]] = {}
        for process_of, keys, past, is_end in (
            (measuring.call_process, measuring.own_call_key(), earlier, False),
            (measuring.attempt_process, ends, self.past, True),
        ):
            for place in np.flatnonzero(past & np.isin(process_of, self.processes)).tolist():
                found.setdefault(int(process_of[place]), []).append((int(keys[place]), is_end, place))
        return [sorted(events) for events in found.values()]

    def keep_first_uses(self, has_offers: bool) -> None:
        """Keep each route's first use where candidates depend on it.

        That is where the ledger records no offers, and where it writes some routes without their server
        (`Timeline.route_of`).
        """
        routes = self.timeline.routes
        if has_offers and not any(key.endswith("|") for key in routes):
            return
        calls, attempts = self.timeline.calls, self.timeline.attempts
        uses = [
            (int(at_ms), is_call, place, int(route))
            for is_call, table in ((True, zip(calls.decided_ms, calls.route, strict=True)),
                                   (False, zip(_starts(self.timeline), attempts.route, strict=True)))
            for place, (at_ms, route) in enumerate(table)
            if route >= 0
        ]  # fmt: skip
        known: set[int] = set()
        for _, is_call, place, route in sorted(uses):
            if route not in known:
                known.add(route)
                (self.kept.calls if is_call else self.kept.attempts)[place] = True

    def keep_calls_of_attempts(self) -> None:
        """Keep every kept attempt's call: it names the policy that failed over, and the process it belongs to."""
        owners = self.timeline.attempts.call[self.kept.attempts]
        self.kept.calls[owners[owners >= 0]] = True

    def keep_order_of_visibility(self) -> None:
        """Keep, for each kept attempt, the decision that saw it first: what a shared fold's order rests on."""
        visibility, settings = self.measuring.visibility, self.settings
        shared = any(_is_fold(one) and one.state == "shared" for one in (settings.reliability, settings.latency))
        if visibility.kind == "lagged" or not shared:
            return
        numbered = np.flatnonzero(self.timeline.calls.snapshot.known)
        by_key = numbered[np.argsort(visibility.calls[numbered], kind="stable")]
        witness = np.searchsorted(visibility.calls[by_key], visibility.attempts[self.kept.attempts], side="right")
        self.kept.calls[by_key[witness[witness < len(by_key)]]] = True


def _starts(timeline: Timeline) -> Ints:
    attempts = timeline.attempts
    return np.where(attempts.start_ms >= 0, attempts.start_ms, attempts.ts_ms)


def _is_fold(measure: Measure) -> bool:
    return getattr(measure.rule, "window_ms", None) is None


def remembered_ms(settings: Settings) -> int:
    """Return how far back a decision looks by itself, in ms: windows, late rows, memo, prices, disabled providers.

    >>> from replay.settings import PRODUCTION_NOW
    >>> remembered_ms(PRODUCTION_NOW)
    2100000
    """
    prices_ms = settings.prices.window_ms if settings.prices.mode == "measured" else 0
    late_ms = max(settings.lag_ms) + (settings.memo_ms or 0)
    return max(settings.longest_window_ms, prices_ms) + late_ms + _PROCESS_MS


def union(chosen: Iterable[Chosen], timeline: Timeline) -> Chosen:
    """Return the rows that any of several choices keeps."""
    kept = Chosen.none(timeline)
    for one in chosen:
        kept.calls[one.calls] = True
        kept.attempts[one.attempts] = True
    return kept
