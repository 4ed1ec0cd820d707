"""What each setting measures: stamps at every decision and every attempt, from what was visible then."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from replay.estimators import Window
from replay.kernel.compiled import compiled
from replay.kernel.layout import Layout, lay_out, tools_values, track_on
from replay.kernel.tracks import Track
from replay.readings import Facts, Reads, answer, capable
from replay.settings import Measure, Settings, Tools
from replay.snapshots import Snapshot
from replay.timeline import NEVER, Bools, Floats, Ints, Timeline, Visibility, visibility
from replay.virtual import Luck

Order = Literal["sequence", "time"]
Name = Literal["reliability", "latency", "tools"]
"""A measure of a setting."""

NAMES: tuple[Name, ...] = ("reliability", "latency", "tools")


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


class Reading:
    """One measure at its questions; a question's key must not be smaller than one of an earlier time (`read`)."""

    def __init__(self, measure: Measure | Tools, track: Track, stride: int) -> None:
        self.measure = measure
        self._track = track
        self._stride = stride

    def reads(self, questions: Questions) -> Reads:
        """Return what questions ask of this measure's ledger: the shared one, or the process's own."""
        if self.measure.state == "shared":
            return Reads(questions.shared_key, questions.shared_ms, questions.route)
        slot = questions.process * self._stride + questions.route
        return Reads(questions.own_key, questions.own_ms, np.where(questions.route < 0, -1, slot))

    def estimates(self, questions: Questions) -> tuple[Floats, Ints]:
        """Return the estimates, nan where there is no stamp, and the observations behind each."""
        measure = self.measure
        assert isinstance(measure, Measure)
        estimates, counts, known = answer(self._track, self.reads(questions))
        for replacement, place in ((measure.when_cold, ~known), (measure.when_empty, known)):
            if replacement is not None:
                estimates = np.where(np.isnan(estimates) & place, replacement, estimates)
        if measure.state == "shared":
            estimates[questions.mute] = np.nan
        return estimates, counts

    def verdicts(self, questions: Questions) -> tuple[Bools, Ints]:
        """Return whether each route is capable of tools, and the requests behind each verdict."""
        found, requests = capable(self._track, self.reads(questions))
        return (found | questions.mute if self.measure.state == "shared" else found), requests


class Measuring:
    """One setting on one timeline: who is which process, what each decision could see, and the stamps that follow.

    `like` is another of the same timeline; what it found out serves where both settings see alike.
    """

    def __init__(self, timeline: Timeline, settings: Settings, like: Measuring | None = None) -> None:
        self.timeline = timeline
        self.settings = settings
        shared = like is not None and sight(like.settings) == sight(settings)
        self.visibility: Visibility = like.visibility if like and shared else visibility(timeline, settings)
        split = like is not None and _split(like.settings) == _split(settings)
        self._processes: tuple[Ints, Ints, int] = like._processes if like and split else _processes(timeline, settings)
        self.call_process, self.attempt_process, self.process_count = self._processes
        self.stride = len(timeline.routes) + 1
        self.order: Order = "sequence" if settings.replicas is None and _numbered(timeline) else "time"
        self.mute: Bools = timeline.calls.state.codes == timeline.calls.state.code("unavailable")
        self.evidence_ms, self.evidence_key = self._evidence()
        self._shared: _Ledger = like._shared if like and shared else self._shared_ledger(like)
        self._own: dict[Order, _Ledger] = like._own if like and split else {}

    def _shared_ledger(self, like: Measuring | None) -> _Ledger:
        attempts, known = self.timeline.attempts, like._shared.facts if like else None
        facts = Facts(self.visibility.attempts, attempts.ts_ms, attempts.id, attempts.route, known)
        return _Ledger(facts, self.stride)

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
        reliability, count = self.reading("reliability", questions.order).estimates(questions)
        latency_ms, latency_count = self.reading("latency", questions.order).estimates(questions)
        verdicts, requests = self.reading("tools", questions.order).verdicts(questions)
        return Stamps(reliability, latency_ms, verdicts, count, latency_count, requests)

    def reading(self, name: Name, order: Order) -> Reading:
        """Return a measure with nothing read yet, for questions by this order of a process's own events."""
        return Reading(getattr(self.settings, name), self.track(name, order, alone=True), self.stride)

    def track(self, name: Name, order: Order, *, alone: bool = False) -> Track:
        """Return a measure's track, its slots being routes, of every process (number × `stride` + route) or shared.

        A ledger is one process of the track, or (`alone`) every slot is.
        """
        measure: Measure | Tools = getattr(self.settings, name)
        values = {"reliability": self.successes, "latency": self.latencies, "tools": self.tools_evidence}[name]()
        return track_on(measure.rule, self._ledger(measure.state, order).layout(alone), values)

    def successes(self) -> Floats:
        """Return each attempt's success as 0.0 or 1.0, nan where reliability does not count it."""
        attempts = self.timeline.attempts
        values = attempts.ok.astype(np.float64)
        values[_kinds_left_out(self.timeline, self.settings.reliability)] = np.nan
        return values

    def latencies(self) -> Floats:
        """Return what each attempt contributes to latency, in ms, nan where it is not counted."""
        attempts, measure = self.timeline.attempts, self.settings.latency
        values = attempts.latency_ms.copy()
        if measure.zero_latency == "unknown":
            values[~(values > 0)] = np.nan
        values[~attempts.ok] = np.nan if measure.failed_latency_ms is None else measure.failed_latency_ms
        if not isinstance(measure.rule, Window):  # production's query averages what it finds; no fold recovers from it
            values[np.isinf(values)] = np.nan
        values[_kinds_left_out(self.timeline, measure)] = np.nan
        return values

    def tools_evidence(self) -> Floats:
        """Return each attempt's evidence as the values of a track, nan where the tools rule does not count it."""
        attempts, tools = self.timeline.attempts, self.settings.tools
        evidence = attempts.tools_requested | attempts.tools_emitted
        counted = evidence & (attempts.ok | (tools.failed == "counted"))
        return np.where(counted, tools_values(attempts.tools_requested, attempts.tools_emitted), np.nan)

    def _ledger(self, state: str, order: Order) -> _Ledger:
        if state == "shared":
            return self._shared
        if order not in self._own:
            attempts, process = self.timeline.attempts, self.attempt_process
            key = attempts.replica_seq if order == "sequence" else attempts.ts_ms
            slot = process * self.stride + attempts.route
            facts = Facts(key, attempts.ts_ms, attempts.id, slot, self._shared.facts)
            self._own[order] = _Ledger(facts, self.stride * self.process_count, process, self.process_count)
        return self._own[order]


class _Ledger:
    """All attempts as the facts of the shared ledger, or of the processes' own, laid out once per way of reading."""

    def __init__(self, facts: Facts, slots: int, process: Ints | None = None, processes: int = 1) -> None:
        self.facts = facts
        self._slots = slots
        self._process, self._processes = process, processes
        self._layouts: dict[bool, Layout] = {}

    def layout(self, alone: bool) -> Layout:
        """Return the attempts by process, or (`alone`) by slot."""
        if alone not in self._layouts:
            process = np.zeros_like(self.facts.group) if self._process is None else self._process
            by = (self.facts.group, self._slots) if alone else (process, self._processes)
            self._layouts[alone] = lay_out(self.facts, self._slots, *by)
        return self._layouts[alone]


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


def see_alike(one: Measuring, other: Measuring, calls: Ints) -> Bools:
    """Say which of the calls see the very same attempts under two visibilities of one timeline.

    A reader sees the attempts whose keys are smaller: so many of the first ones in the order of keys. Two sets of one
    size are the same where one lies in the other.
    """
    ours, theirs = one.visibility.attempts, other.visibility.attempts
    if not len(ours):
        return np.ones(len(calls), dtype=np.bool_)
    order = np.argsort(ours, kind="stable")
    seen = np.searchsorted(ours[order], one.evidence_key[calls])
    highest = np.maximum.accumulate(theirs[order])[np.maximum(seen - 1, 0)]
    until = other.evidence_key[calls]
    as_many = seen == np.searchsorted(np.sort(theirs, kind="stable"), until)
    alike: Bools = as_many & ((seen == 0) | (highest < until))
    return alike


def sight(settings: Settings) -> tuple[object, ...]:
    """Return all that visibility depends on; the seed only where a lag is drawn.

    >>> sight(Settings(seed=1)) == sight(Settings(seed=2))
    True
    """
    return settings.visibility, settings.lag_ms, settings.seed if len(settings.lag_ms) > 1 else None


def _split(settings: Settings) -> tuple[object, ...]:
    """Return all that the division into processes depends on; the seed only where replicas are drawn."""
    return settings.replicas, settings.restarts, settings.seed if settings.replicas is not None else None


def _kinds_left_out(timeline: Timeline, measure: Measure) -> Ints:
    """Return the attempts that a measure leaves out for the kind of their error."""
    kinds = timeline.attempts.error_kind
    excluded = [kinds.code(kind) for kind in measure.exclude_kinds]
    return np.flatnonzero(np.isin(kinds.codes, excluded)) if excluded else np.empty(0, dtype=np.int64)


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
    if lives == 1:
        return call_replica, attempt_replica, replicas
    call_life, attempt_life = (
        np.searchsorted(np.array(sorted(settings.restarts), dtype=np.int64), at_ms, side="right")
        for at_ms in (calls.decided_ms, attempts.ts_ms)
    )
    return call_replica * lives + call_life, attempt_replica * lives + attempt_life, replicas * lives
