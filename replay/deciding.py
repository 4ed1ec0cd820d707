"""Deciding again: every recorded decision put to the core, from parts that can be exchanged one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from replay.core import AdmissionError, Candidate, Health, Plan, Policy, Request, Schema, State, admit, plan
from replay.errors import ReplayError
from replay.measuring import Measuring, Stamps
from replay.offerbook import OfferBook, Segment, list_prices, repriced
from replay.pricing import PriceFactors, price_factors
from replay.stamps import Evidence, RouteStat, stamp
from replay.timeline import Ints, Timeline

Providers = tuple[frozenset[str], frozenset[str]]
"""(those with an open breaker, those disabled) in a process at one decision."""


@dataclass(frozen=True)
class Asked:
    """What a recorded call asked of the core, read once."""

    request: Request | None  # None: the core refuses it, as it did when it was made
    seed: int
    credits: Mapping[str, float]
    hot_route: str | None
    kind: str  # tools, vision, json or plain


@dataclass(frozen=True)
class Layout:
    """Candidates of the selected decisions laid end to end: call i owns the places `starts[i]` to `starts[i + 1]`."""

    segments: list[Segment]  # one per call
    starts: Ints
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


class Policies:
    """The policy of every call: one for all, or the recorded ones by identity."""

    def __init__(self, timeline: Timeline, given: Policy | None = None) -> None:
        self.given = given
        self._by_id: dict[str, Policy] = {}
        for row in timeline.ledger.policies.to_dicts():
            try:
                schema = Schema.declare(json.loads(row["declared_fields"]), json.loads(row["tiers"]))
                self._by_id[row["policy_id"]] = admit(json.loads(row["term"]), schema)
            except (ValueError, TypeError, AttributeError, RecursionError, ReplayError) as error:
                raise ReplayError(
                    f"the ledger's policy {row['policy_id']} cannot be read ({error}); expected a term, its declared "
                    "fields and tiers as JSON that the core admits; correct it in the table policies, or delete it: "
                    "its calls then count as decided with an unknown policy"
                ) from error
        self._of_call = [row["policy_id"] for row in timeline.calls.rows]

    def recorded(self, call: int) -> Policy | None:
        """Return the policy a call was decided with, None where the ledger does not know it."""
        return self._by_id.get(self._of_call[call] or "")

    def of(self, call: int) -> Policy | None:
        """Return the policy to decide a call with."""
        return self.given or self.recorded(call)

    def in_force(self, call: int) -> Policy | None:
        """Return the policy whose failover walked a recorded call; where unrecorded, the given one stands for it."""
        return self.recorded(call) or self.given


class Decider:
    """Everything about a timeline's decisions that no setting changes; only `selected` calls are decided."""

    def __init__(self, timeline: Timeline, book: OfferBook, policies: Policies, selected: Ints | None = None) -> None:
        self.timeline = timeline
        self.book = book
        self.policies = policies
        self.selected = np.arange(len(timeline.calls), dtype=np.int64) if selected is None else selected
        self.asked = [_asked(timeline, call) for call in range(len(timeline.calls))]
        segments = [book.at(int(at_ms)) for at_ms in timeline.calls.decided_ms]
        sizes = np.zeros(len(segments), dtype=np.int64)
        sizes[self.selected] = [len(segments[call].candidates) for call in self.selected.tolist()]
        routes = [segments[call].routes for call in self.selected.tolist()]
        self.layout = Layout(
            segments,
            np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)]),
            np.repeat(np.arange(len(segments), dtype=np.int64), sizes),
            np.concatenate(routes) if routes else np.empty(0, dtype=np.int64),
        )

    def parts(self, measuring: Measuring) -> Parts:
        """Measure everything a setting puts on every decision's candidates."""
        stamps = measuring.answer(measuring.at_calls(self.layout.call, self.layout.route))
        factors = price_factors(self.timeline, self.book, measuring.settings.prices)
        return Parts(stamps, stamps, stamps, factors, self._health(measuring))

    def decide(self, call: int, parts: Parts, *, recorded_policy: bool = False) -> Decision | None:
        """Decide one call from the given parts; None if its policy is not known or the core refuses its request."""
        policy = self.policies.recorded(call) if recorded_policy else self.policies.of(call)
        asked, segment = self.asked[call], self.layout.segments[call]
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
        asked, segment = self.asked[call], self.layout.segments[call]
        open_breakers, disabled = parts.health[call]
        bare = self._priced(call, segment, parts.price)
        hot = asked.hot_route if "cache_hot" in policy.schema.fields else None
        candidates = stamp(bare, self._evidence(call, parts), hot)
        return candidates, State(open_breakers, disabled, asked.credits)

    def _evidence(self, call: int, parts: Parts) -> Evidence:
        """Put a decision's stamps into the form the live router reads."""
        at = slice(int(self.layout.starts[call]), int(self.layout.starts[call + 1]))
        rates = parts.reliability.reliability[at].tolist()
        latencies = parts.latency.stamped_latency_ms[at].tolist()
        capable = parts.tools.capable[at].tolist()
        stats: dict[str, RouteStat] = {}
        incapable: set[str] = set()
        for place, candidate in enumerate(self.layout.segments[call].candidates):
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
        health.observe(attempts.provider[attempt], ok, kind, action, int(attempts.ts_ms[attempt]))


def _asked(timeline: Timeline, call: int) -> Asked:
    row = timeline.calls.rows[call]
    try:
        record: dict[str, Any] = json.loads(row["request"]) if row["request"] else _from_label(row["requested_model"])
        request = Request.from_record(record)
        seed = int(record.get("seed") or 0)
        credits = State.from_record({"credits": record.get("credits")}).credits
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, ReplayError):
        return Asked(None, 0, {}, None, "refused")
    return Asked(request, seed, credits, record.get("hot_route"), _kind(request))


def _from_label(label: str | None) -> dict[str, Any]:
    """Infer a request from `requested_model`, all that an old ledger says of it."""
    if label and label.startswith("family:"):
        return {"requirements": {"model_family": label.removeprefix("family:")}}
    if label and label.startswith("pin:") and "/" in label:
        provider, family = label.removeprefix("pin:").split("/", 1)
        return {"requirements": {"pin": {"provider": provider, "model": family}}}
    return {}


def _kind(request: Request) -> str:
    kinds: tuple[tuple[str, Callable[[tuple[str, ...]], bool]], ...] = (
        ("tools", lambda needs: "tools" in needs),
        ("vision", lambda needs: "vision" in needs),
        ("json", lambda needs: "json_mode" in needs),
    )
    return next((name for name, holds in kinds if holds(request.needs)), "plain")
