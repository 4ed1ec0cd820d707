"""What each setting measures: stamps at every decision and every attempt, from what was visible then."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np

from replay.estimators import Window
from replay.kernel.compiled import compiled
from replay.readings import Facts, Reads, read_many, read_tools
from replay.settings import Measure, Settings, Tools
from replay.timeline import NEVER, Bools, Floats, Ints, Snapshot, Timeline, Visibility, visibility
from replay.virtual import Luck

Order = Literal["sequence", "time"]


@dataclass(frozen=True)
class Questions:
    """Who asks what: arrays of one length, and by what a process orders its own events for these questions.

    `shared_key` and `shared_ms` are the reader's key and instant on the shared ledger; `own_key` and `own_ms` those
    in its own process, `process` its number; `route` is the route asked for, `mute` marks a failed reading, at
    which shared evidence says nothing.
    """

    shared_key: Ints
    shared_ms: Ints
    own_key: Ints
    own_ms: Ints
    process: Ints
    route: Ints
    mute: Bools
    order: Order


@dataclass(frozen=True)
class Stamps:
    """Answers, one per question: estimates (nan: no stamp), the observations behind them, and tool capability."""

    reliability: Floats
    latency_ms: Floats
    capable: Bools
    count: Ints
    latency_count: Ints
    tools_requests: Ints

    @cached_property
    def stamped_latency_ms(self) -> Floats:
        """Latency as it is stamped: an integer, half to even, as production rounds it whatever rule made it.

        A mean that is not finite, or beyond 2⁵², is no stamp, as in the shared SQL.
        """
        usable = np.abs(self.latency_ms) < 2.0**52
        return np.where(usable, np.rint(np.where(usable, self.latency_ms, 0.0)), np.nan)


class Measuring:
    """One setting on one timeline: who is which process, what each decision could see, and the stamps that follow.

    `like` is another of the same timeline; its visibility serves where both settings see alike.
    """

    def __init__(self, timeline: Timeline, settings: Settings, like: Measuring | None = None) -> None:
        self.timeline = timeline
        self.settings = settings
        shared = like is not None and sight(like.settings) == sight(settings)
        self.visibility: Visibility = like.visibility if like and shared else visibility(timeline, settings)
        self.call_process, self.attempt_process, self.process_count = _processes(timeline, settings)
        self.order: Order = "sequence" if settings.replicas is None and _numbered(timeline) else "time"
        self.mute: Bools = timeline.calls.state.codes == timeline.calls.state.code("unavailable")
        self.evidence_ms, self.evidence_key = self._evidence()

    def _evidence(self) -> tuple[Ints, Ints]:
        """Return each decision's evidence instant and reader's key: as recorded, or under a hypothetical memo."""
        calls, memo_ms = self.timeline.calls, self.settings.memo_ms
        if memo_ms is None:
            return calls.evidence_ms, self.visibility.calls
        fresh = calls.evidence_ms == calls.decided_ms
        keys = np.where(fresh, self.visibility.calls, self.visibility.instants(calls.decided_ms))
        order = np.lexsort((calls.id, self.own_call_key(), calls.decided_ms))
        read_at = memoised(order, calls.decided_ms, self.call_process, self.mute, memo_ms)
        return calls.decided_ms[read_at], keys[read_at]

    def own_call_key(self) -> Ints:
        """Return each decision's place among the events of its process."""
        return self.timeline.calls.replica_seq if self.order == "sequence" else self.timeline.calls.decided_ms

    def evidence_snapshot(self, call: int) -> Snapshot:
        """Return the snapshot a decision's evidence was read with, the first one before it is known.

        Recorded visibility only.
        """
        text = self.timeline.calls.snapshot[call]
        if self.settings.memo_ms is None and text is not None:
            return Snapshot.parse(text)
        return self.visibility.snapshot(max(int(self.evidence_key[call]), 1))

    def evidence_until_ms(self, call: int) -> tuple[int, int]:
        """Return before which instants rows without, and rows with, a transaction id had to be visible to be seen."""
        evidence_ms, key = int(self.evidence_ms[call]), int(self.evidence_key[call])
        if self.visibility.kind == "lagged" or key <= 0:
            return evidence_ms, evidence_ms
        return int(self.visibility.reach_ms[key - 1]), int(NEVER)

    def at_calls(self, call: Ints, route: Ints) -> Questions:
        """Ask, for each pair, what call number `call` could read of `route`."""
        calls = self.timeline.calls
        return Questions(
            shared_key=self.evidence_key[call],
            shared_ms=self.evidence_ms[call],
            own_key=self.own_call_key()[call],
            own_ms=calls.decided_ms[call],
            process=self.call_process[call],
            route=route,
            mute=self.mute[call],
            order=self.order,
        )

    def at_instant(self, at_ms: int, route: Ints, process: int = 0) -> Questions:
        """Ask what a reader at any instant could know of each route; a process's own state is that of `process`."""
        instants = np.full(len(route), at_ms, dtype=np.int64)
        return Questions(
            shared_key=self.visibility.instants(instants),
            shared_ms=instants,
            own_key=instants,
            own_ms=instants,
            process=np.full(len(route), process, dtype=np.int64),
            route=route,
            mute=np.zeros(len(route), dtype=np.bool_),
            order="time",
        )

    def at_starts(self, attempt: Ints) -> Questions:
        """Ask, for each attempt with a known start, what was known of its route when it began."""
        attempts = self.timeline.attempts
        start_ms = attempts.start_ms[attempt]
        return Questions(
            shared_key=self.visibility.instants(start_ms),
            shared_ms=start_ms,
            own_key=start_ms,
            own_ms=start_ms,
            process=self.attempt_process[attempt],
            route=attempts.route[attempt],
            mute=np.zeros(len(attempt), dtype=np.bool_),
            order="time",
        )

    def answer(self, questions: Questions) -> Stamps:
        """Read every rule of the settings at every question."""
        reliability, count = self._read(self.settings.reliability, questions, self.successes())
        latency_ms, latency_count = self._read(self.settings.latency, questions, self.latencies())
        capable, requests = self._read_tools(self.settings.tools, questions)
        return Stamps(reliability, latency_ms, capable, count, latency_count, requests)

    def estimates(self, questions: Questions) -> tuple[Floats, Floats]:
        """Read reliability and latency at every question: estimates, nan where there is no stamp."""
        reliability, _ = self._read(self.settings.reliability, questions, self.successes())
        latency_ms, _ = self._read(self.settings.latency, questions, self.latencies())
        return reliability, latency_ms

    def successes(self) -> tuple[Ints, Floats]:
        """Return which attempts reliability counts, and each one's success as 0.0 or 1.0."""
        attempts = self.timeline.attempts
        counted = np.flatnonzero(_kinds_kept(self.timeline, self.settings.reliability))
        return counted, attempts.ok[counted].astype(np.float64)

    def latencies(self) -> tuple[Ints, Floats]:
        """Return which attempts latency counts, and what each contributes, in ms."""
        attempts, measure = self.timeline.attempts, self.settings.latency
        values = attempts.latency_ms.copy()
        if measure.zero_latency == "unknown":
            values[~(values > 0)] = np.nan
        values[~attempts.ok] = np.nan if measure.failed_latency_ms is None else measure.failed_latency_ms
        if not isinstance(measure.rule, Window):  # production's query averages what it finds; no fold recovers from it
            values[np.isinf(values)] = np.nan
        counted = np.flatnonzero(_kinds_kept(self.timeline, measure) & ~np.isnan(values))
        return counted, values[counted]

    def tools_evidence(self) -> Ints:
        """Return which attempts the tools rule counts."""
        attempts, tools = self.timeline.attempts, self.settings.tools
        evidence = attempts.tools_requested | attempts.tools_emitted
        return np.flatnonzero(evidence & (attempts.ok | (tools.failed == "counted")))

    def _read(self, measure: Measure, questions: Questions, observed: tuple[Ints, Floats]) -> tuple[Floats, Ints]:
        which, values = observed
        facts, reads = self._facts(which, measure.state, questions.order), self._reads(questions, measure.state)
        estimates, counts, known = read_many(measure.rule, facts, values, reads)
        for replacement, place in ((measure.when_cold, ~known), (measure.when_empty, known)):
            if replacement is not None:
                estimates = np.where(np.isnan(estimates) & place, replacement, estimates)
        if measure.state == "shared":
            estimates = np.where(questions.mute, np.nan, estimates)
        return estimates, counts

    def _read_tools(self, tools: Tools, questions: Questions) -> tuple[Bools, Ints]:
        attempts, which = self.timeline.attempts, self.tools_evidence()
        facts, reads = self._facts(which, tools.state, questions.order), self._reads(questions, tools.state)
        requested, emitted = attempts.tools_requested[which], attempts.tools_emitted[which]
        capable, requests = read_tools(tools.rule, facts, requested, emitted, reads)
        return (capable | questions.mute if tools.state == "shared" else capable), requests

    def facts(self, which: Ints, state: str) -> Facts:
        """Return some attempts as the facts of decisions: on the shared ledger, or in their processes."""
        return self._facts(which, state, self.order)

    def _facts(self, which: Ints, state: str, order: Order) -> Facts:
        attempts = self.timeline.attempts
        if state == "shared":
            key, group = self.visibility.attempts, attempts.route
        else:
            key = attempts.replica_seq if order == "sequence" else attempts.ts_ms
            group = attempts.route * self.process_count + self.attempt_process
        facts = Facts(key, attempts.ts_ms, attempts.id, group)
        return facts if len(which) == len(key) else Facts(*(getattr(facts, one.name)[which] for one in fields(facts)))

    def _reads(self, questions: Questions, state: str) -> Reads:
        if state == "shared":
            return Reads(questions.shared_key, questions.shared_ms, questions.route)
        group = questions.route * self.process_count + questions.process
        return Reads(questions.own_key, questions.own_ms, np.where(questions.route < 0, -1, group))


@compiled
def memoised(order: Ints, decided_ms: Ints, process: Ints, mute: Bools, memo_ms: int) -> Ints:
    """Return, for each call, at which call its process read the stamps it decided with: its own number, or an earlier.

    `order` is that in which they decide. A process reads anew once its reading is `memo_ms` old; a failed reading
    (`mute`) leaves nothing to reuse.
    """
    read_at = np.arange(len(order))
    last = np.full(process.max() + 1 if len(process) else 0, -1)
    for call in order:
        memo = last[process[call]]
        if memo >= 0 and decided_ms[call] - decided_ms[memo] < memo_ms:
            read_at[call] = memo
        elif not mute[call]:
            last[process[call]] = call
    return read_at


def sight(settings: Settings) -> tuple[object, ...]:
    """Return all that visibility depends on; the seed only where a lag is drawn.

    >>> sight(Settings(seed=1)) == sight(Settings(seed=2))
    True
    """
    return settings.visibility, settings.lag_ms, settings.seed if len(settings.lag_ms) > 1 else None


def _kinds_kept(timeline: Timeline, measure: Measure) -> Bools:
    kinds = timeline.attempts.error_kind
    excluded = [kinds.code(kind) for kind in measure.exclude_kinds]
    return ~np.isin(kinds.codes, excluded)


def _numbered(timeline: Timeline) -> bool:
    """Say whether every decision and attempt carries its replica's own numbering."""
    calls, attempts = timeline.calls, timeline.attempts
    return bool(
        len(calls)
        and np.all(calls.replica_seq >= 0)
        and np.all(attempts.replica_seq >= 0)
        and np.all(calls.replica.codes >= 0)
        and np.all(attempts.replica.codes >= 0)
    )


def _processes(timeline: Timeline, settings: Settings) -> tuple[Ints, Ints, int]:
    """Return the process of every call and every attempt, and how many there are.

    A process is one life: a replica as recorded (or drawn per call, where the settings name a number of them),
    and its life between two of the settings' restarts. An attempt is its call's.
    """
    calls, attempts = timeline.calls, timeline.attempts
    restarts = np.array(sorted(settings.restarts), dtype=np.int64)
    call_life = np.searchsorted(restarts, calls.decided_ms, side="right")
    attempt_life = np.searchsorted(restarts, attempts.ts_ms, side="right")
    if settings.replicas is None:
        both = (calls.replica, attempts.replica)
        none = {""} if any((texts.codes < 0).any() for texts in both) else set()
        names = sorted({*none, *(name for texts in both for name in texts.values)})
        number = {name: index for index, name in enumerate(names)}
        call_replica, attempt_replica = (
            np.array([*(number[name] for name in texts.values), number.get("", 0)], dtype=np.int64)[texts.codes]
            for texts in both
        )
        replicas = max(1, len(names))
    else:
        replicas, luck = settings.replicas, Luck(settings.seed)
        drawn = [luck.whole(0, replicas - 1, "replica", call) for call in calls.id.tolist()]
        call_replica = np.array(drawn, dtype=np.int64)
        lone = [
            int(call_replica[call]) if call >= 0 else luck.whole(0, replicas - 1, "replica", "attempt", row)
            for call, row in zip(attempts.call.tolist(), attempts.id.tolist(), strict=True)
        ]
        attempt_replica = np.array(lone, dtype=np.int64)
    lives = len(settings.restarts) + 1
    return call_replica * lives + call_life, attempt_replica * lives + attempt_life, replicas * lives
