"""Deciding again: every recorded decision put to the core, from parts that can be exchanged one by one."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from replay.asking import Asking, Policies
from replay.core import AdmissionError, Candidate, Health, Plan, Policy, State, plan
from replay.gaps import Numbering
from replay.measuring import Measuring, Stamps
from replay.offerbook import OfferBook, Segment, list_prices, repriced
from replay.pricing import PriceFactors, price_factors
from replay.stamps import Evidence, RouteStat, stamp
from replay.timeline import Ints, Timeline

Providers = tuple[frozenset[str], frozenset[str]]
"""(those with an open breaker, those disabled) in a process at one decision."""


@dataclass(frozen=True)
class Layout:
    """Candidates of the selected decisions laid end to end; call i has its places from `first_of[i]` on."""

    first_of: dict[int, int]
    call: Ints  # per place
    route: Ints  # per place


@dataclass(frozen=True)
class Parts:
    """One setting's parts for every decision; two settings' parts may be mixed to find out which one matters."""

    reliability: Stamps
    latency: Stamps
    tools: Stamps
    price: PriceFactors
    health: list[Providers]

    def with_part(self, name: str, other: Parts) -> Parts:
        """Return these parts with one taken from another setting."""
        return replace(self, **{name: getattr(other, name)})


@dataclass(frozen=True)
class Decision:
    """One decision made again: the candidates as the core saw them, the plan, and the first that may be called."""

    candidates: tuple[Candidate, ...]
    routes: Ints
    plan: Plan
    chosen: int | None
    disabled: frozenset[str]
    policy: Policy

    @property
    def chosen_route(self) -> int:
        """Number of the chosen route, -1 if there is none."""
        return -1 if self.chosen is None else int(self.routes[self.chosen])


class Decider:
    """Everything about a timeline's decisions that no setting changes; only `selected` calls are decided."""

    def __init__(
        self,
        timeline: Timeline,
        book: OfferBook,
        policies: Policies,
        selected: Ints | None = None,
        numbering: Numbering | None = None,
    ) -> None:
        self.timeline = timeline
        self.book = book
        self.policies = policies
        self.selected = np.arange(len(timeline.calls), dtype=np.int64) if selected is None else selected
        self.asked = Asking(timeline)
        self._numbering = numbering or Numbering.whole()
        self._healths: dict[tuple[object, ...], list[Providers]] = {}

    def only(self, selected: Ints) -> Decider:
        """Return the same for some of the calls; what was found out already is shared."""
        other = copy(self)
        other.selected = selected
        other.__dict__.pop("layout", None)
        return other

    def segment(self, call: int) -> Segment:
        """Return the candidates of a decision."""
        return self.book.at(int(self.timeline.calls.decided_ms[call]))

    @cached_property
    def layout(self) -> Layout:
        """Lay out the candidates of the selected decisions, for parts to be measured on."""
        segments = [self.segment(call) for call in self.selected.tolist()]
        sizes = np.array([len(segment.candidates) for segment in segments], dtype=np.int64)
        starts = np.cumsum(sizes) - sizes
        return Layout(
            dict(zip(self.selected.tolist(), starts.tolist(), strict=True)),
            np.repeat(self.selected, sizes),
            np.concatenate([np.empty(0, dtype=np.int64), *(segment.routes for segment in segments)]),
        )

    @cached_property
    def in_doubt(self) -> frozenset[int]:
        """The calls decided while their process knew of breakers what the ledger does not: rows are missing."""
        providers_of = lambda call: {one.provider_id for one in self.segment(call).candidates}  # noqa: E731
        return self._numbering.in_doubt(self.timeline, providers_of)

    def parts(self, measuring: Measuring) -> Parts:
        """Measure everything a setting puts on every decision's candidates."""
        stamps = measuring.answer(measuring.at_calls(self.layout.call, self.layout.route))
        factors = price_factors(self.timeline, self.book, measuring.settings.prices)
        return Parts(stamps, stamps, stamps, factors, self._health_of(measuring))

    def decide(self, call: int, parts: Parts, *, recorded_policy: bool = False) -> Decision | None:
        """Decide one call from the given parts; None if its policy is not known or the core refuses its request."""
        policy = self.policies.recorded(call) if recorded_policy else self.policies.of(call)
        asked, segment = self.asked[call], self.segment(call)
        if policy is None or asked.request is None:
            return None
        candidates, state = self.inputs(call, parts, policy)
        try:
            ranking = plan(policy, candidates, asked.request, state, asked.seed)
        except AdmissionError:  # of the request's envelope
            return None
        first = (index for index in ranking.ordered if candidates[index].provider_id not in state.disabled)
        return Decision(candidates, segment.routes, ranking, next(first, None), state.disabled, policy)

    def inputs(self, call: int, parts: Parts, policy: Policy) -> tuple[tuple[Candidate, ...], State]:
        """Return what the core is given besides policy, request and seed: stamped candidates, and the state."""
        asked, segment = self.asked[call], self.segment(call)
        open_breakers, disabled = parts.health[call]
        bare = self._priced(call, segment, parts.price)
        hot = asked.hot_route if "cache_hot" in policy.schema.fields else None
        candidates = stamp(bare, self._evidence(call, parts), hot)
        return candidates, State(open_breakers, disabled, asked.credits)

    def _evidence(self, call: int, parts: Parts) -> Evidence:
        """Put a decision's stamps into the form the live router reads."""
        segment, first = self.segment(call), self.layout.first_of[call]
        at = slice(first, first + len(segment.candidates))
        rates = parts.reliability.reliability[at].tolist()
        latencies = parts.latency.stamped_latency_ms[at].tolist()
        capable = parts.tools.capable[at].tolist()
        stats: dict[str, RouteStat] = {}
        incapable: set[str] = set()
        for place, candidate in enumerate(segment.candidates):
            rate, latency = rates[place], latencies[place]
            known_latency = None if latency != latency else int(latency)
            stats[candidate.route_key] = RouteStat(None if rate != rate else rate, known_latency, 0, 0)
            if not capable[place]:
                incapable.add(candidate.route_key)
        return Evidence(int(self.timeline.calls.evidence_ms[call]), stats, frozenset(incapable))

    def _priced(self, call: int, segment: Segment, factors: PriceFactors) -> tuple[Candidate, ...]:
        if factors.recorded:
            return segment.candidates
        at_ms = int(self.timeline.calls.decided_ms[call])
        candidates = []
        for place, candidate in enumerate(segment.candidates):
            prices = factors.prices(at_ms, candidate, list_prices(segment, place))
            candidates.append(candidate if prices is None else repriced(candidate, *prices))
        return tuple(candidates)

    def _health_of(self, measuring: Measuring) -> list[Providers]:
        one = measuring.settings
        key = (one.replicas, one.restarts, one.seed, one.honour_open_breaker_ms)
        if key not in self._healths:
            self._healths[key] = self._health(measuring)
        return self._healths[key]

    def _health(self, measuring: Measuring) -> list[Providers]:
        """Fold breakers and disabled providers of each process, and read them at each of its rankings.

        A ranking comes before an attempt's end at the same instant: the end is in the ledger's millisecond, and
        in-process evidence counts only if it came before. With recorded numbering there are no such ties.
        """
        calls, attempts = self.timeline.calls, self.timeline.attempts
        own_attempt = attempts.replica_seq if measuring.order == "sequence" else attempts.ts_ms
        events = [
            (process, key, 0, identity, index, True)
            for index, (process, key, identity) in enumerate(
                zip(measuring.call_process.tolist(), measuring.own_call_key().tolist(), calls.id.tolist(), strict=True)
            )
        ] + [
            (process, key, 1, identity, index, False)
            for index, (process, key, identity) in enumerate(
                zip(measuring.attempt_process.tolist(), own_attempt.tolist(), attempts.id.tolist(), strict=True)
            )
        ]
        states: list[Providers] = [(frozenset(), frozenset())] * len(calls)
        health: dict[int, Health] = {}
        honour = measuring.settings.honour_open_breaker_ms
        for process, _, _, _, index, is_ranking in sorted(events):
            own = health.setdefault(process, Health(honour_open_breaker_ms=honour))
            if is_ranking:
                states[index] = own.rank(int(calls.decided_ms[index]))
            else:
                self._observe(own, index)
        return states

    def _observe(self, health: Health, attempt: int) -> None:
        attempts = self.timeline.attempts
        ok, kind, call = bool(attempts.ok[attempt]), attempts.error_kind[attempt], int(attempts.call[attempt])
        policy = self.policies.in_force(call) if call >= 0 else self.policies.given
        action = None if ok or policy is None else policy.action(kind)
        health.observe(attempts.provider[attempt] or "", ok, kind, action, int(attempts.ts_ms[attempt]))
