"""The compiled core over a timeline: every decision of a setting in one pass, handed out in blocks of calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from replay.asking import Asked as Asks
from replay.core import CLIENT_ERROR_KINDS, Candidate, Policy
from replay.core.health import Health
from replay.deciding import Decider
from replay.errors import ReplayError
from replay.kernel import health as breakers
from replay.kernel import loop
from replay.kernel.layout import sorted_by
from replay.kernel.loop import OUT_OF_ORDER, QUESTION, Asked, Found, Measures, decide, new_patterns, room
from replay.kernel.population import Population, distinct_candidates, populate
from replay.kernel.ranking import Work, new_work
from replay.kernel.requests import NOT_ASKED, Requests
from replay.kernel.single import random_start
from replay.kernel.truth import Stamped, World
from replay.measuring import NAMES, Measuring
from replay.offerbook import OfferBook, Segment, list_prices, repriced
from replay.pricing import PriceFactors, price_factors
from replay.settings import Prices, Settings
from replay.timeline import Bools, Codes, Floats, Ints, densely

ROWS_PER_BLOCK = 65_536
STEP = 16_384

Say = Callable[[str, int, int], None]


class NotCoveredError(ReplayError):
    """The compiled core does not do this; the interpreter does."""


@dataclass(frozen=True)
class Block:
    """What came of a run of the calls asked for.

    `found` has a row for each of `calls`, and may be used until the next block is asked for.
    """

    calls: Ints
    found: Found
    health: Ints  # the state of breakers and disabled providers that each decision met
    health_texts: Callable[[], tuple[list[str], list[str]]]  # per state: the open ones and the disabled, by comma
    reject_texts: Callable[[], list[str]]

    @property
    def states(self) -> tuple[list[str], list[str]]:
        """Per state: the providers with an open breaker and the disabled ones, in byte order, joined by commas."""
        return self.health_texts()

    @property
    def rejects(self) -> list[str]:
        """The reject counts as JSON, by the pattern's number."""
        return self.reject_texts()


class CompiledCore:
    """Everything about a timeline's decisions that no setting changes, as arrays."""

    def __init__(self, decider: Decider) -> None:
        timeline, book = decider.timeline, decider.book
        self.timeline = timeline
        self.book = book
        self.policies = decider.policies
        self.asked = decider.asked
        self.requests = Requests()
        offering = [candidate.provider_id for candidate in distinct_candidates(book.segments)[0]]
        credited = [provider for asks in self.asked.distinct for provider in asks.credits]
        for provider in (*timeline.attempts.provider.values, *offering, *credited):
            self.requests.providers.setdefault(provider, len(self.requests.providers))
        self.segment = book.numbers_at(timeline.calls.decided_ms)
        self._questions: dict[bool, tuple[Codes, Any]] = {}
        self._populations: dict[str, Population] = {}
        self._healths: dict[tuple[object, ...], tuple[Ints, Bools, Bools]] = {}
        self._asked_alike(recorded=False)

    def decide(
        self, measuring: Measuring, calls: Ints, say: Say, what: str, *, recorded_policy: bool = False
    ) -> Iterator[Block]:
        """Decide some calls (in order) under one setting; raises NotCoveredError before or while it goes.

        `say` is told `what` is being done.
        """
        settings = measuring.settings
        if settings.prices.mode == "measured":
            raise NotCoveredError("prices that are measured change with every call; the interpreter decides with them")
        measures, stamped = self._measures(measuring)
        order = _order(measuring, calls, measures)
        asked, opened, disabled = self._asked(measuring, recorded_policy)
        asking, code = self.requests.layout()
        world = World(code, self._population(settings.prices), asking, opened, disabled)
        say(what if compiled_before() else f"{what} (compiling, once)", 0, len(calls))
        for block in self._blocks(calls, order, asked, measures, world, stamped):
            yield block
            say(what, int(np.searchsorted(calls, block.calls[-1])), len(calls))

    def _blocks(
        self, calls: Ints, order: Ints, asked: Asked, measures: Measures, world: World, stamped: Stamped
    ) -> Iterator[Block]:
        """Run the pass step by step; a block is handed out once all its calls are decided, whatever their order."""
        work: Work = new_work(world.population, world.code, len(world.asking.request))
        reasons = [reason for reason, _ in sorted(self.requests.names.reasons.items(), key=lambda pair: pair[1])]
        patterns, versions = new_patterns(len(reasons)), np.zeros(2, dtype=np.int64)
        known: list[str] = []

        def texts() -> list[str]:
            known.extend(_texts(patterns.counts[len(known) : patterns.used[0]], reasons))
            return known

        def states() -> tuple[list[str], list[str]]:
            return self._named(world.open), self._named(world.disabled)

        # Before position i, everything below open_from[i] is decided.
        open_from = np.append(np.minimum.accumulate(order[::-1])[::-1], len(calls))
        base, top, position = 0, 0, 0
        found = room(ROWS_PER_BLOCK + STEP)
        while position < len(order):
            end = min(position + STEP, len(order))
            top = max(top, int(order[position:end].max()) + 1)
            found = _with_room(found, top - base)
            while position < end:
                at = decide(
                    calls, order, position, end, base, asked, measures, versions, world, stamped, work, patterns, found
                )
                if at == OUT_OF_ORDER:
                    raise NotCoveredError(
                        "a fold on shared evidence beside state in processes, with decisions that overlap; "
                        "the interpreter decides it"
                    )
                if at < 0:
                    position = -at - 3
                    patterns = new_patterns(len(reasons), 4 * len(patterns.counts), patterns)
                else:
                    position = at
            ready = min(ROWS_PER_BLOCK, len(calls) - base)
            while ready and base + ready <= open_from[position]:
                rows = slice(base, base + ready)
                ours = Found(*(column[:ready] for column in found))
                yield Block(calls[rows], ours, asked.health[calls[rows]], states, texts)
                for column in found:
                    column[: top - base - ready] = column[ready : top - base]
                base += ready
                ready = min(ROWS_PER_BLOCK, len(calls) - base)

    # What decisions are made from

    def _asked_alike(self, recorded: bool) -> tuple[Codes, Any]:
        """Return which question every call is, and the questions: a policy and what is asked of it."""
        recorded = recorded and self.policies.given is not None  # else they are the same
        if recorded not in self._questions:
            policy_of, policies = self.policies.numbered(recorded=recorded)
            asks = self.asked.distinct
            pairs, numbers = densely(policy_of * len(asks) + self.asked.codes)
            question = np.array(
                [self._question(policies[pair // len(asks)], asks[pair % len(asks)]) for pair in pairs.tolist()],
                dtype=QUESTION,
            )
            self._questions[recorded] = numbers, question
        return self._questions[recorded]

    def _question(self, policy: Policy | None, asks: Asks) -> tuple[int, int, int]:
        """Return what QUESTION records: the hot route is -1 where none is named, or nothing reads it."""
        seed = random_start(asks.seed)
        if policy is None or asks.request is None:
            return seed, NOT_ASKED, -1
        request = self.requests.number(policy, asks.request, asks.credits)
        hot = asks.hot_route if "cache_hot" in policy.schema.fields else None
        return seed, request, -1 if hot is None else self.requests.names.text(hot)

    def _asked(self, measuring: Measuring, recorded: bool) -> tuple[Asked, Bools, Bools]:
        """Return what every call is asked with, and what its state of health means."""
        numbers, question = self._asked_alike(recorded)
        health, opened, disabled = self._health(measuring)
        asked = Asked(
            shared_key=measuring.evidence_key,
            shared_ms=measuring.evidence_ms,
            own_key=measuring.own_call_key(),
            own_ms=self.timeline.calls.decided_ms,
            process=measuring.call_process,
            mute=measuring.mute,
            segment=self.segment,
            health=health,
            actual=self.timeline.taken,
            number=numbers,
            question=question,
        )
        return asked, opened, disabled

    def _population(self, prices: Prices) -> Population:
        key = json.dumps([prices.mode, prices.at_ms, sorted(prices.scale.items()), len(self.requests.names.columns)])
        if key not in self._populations:
            segments = priced(self.book, price_factors(self.timeline, self.book, prices))
            self._populations[key] = populate(
                segments, self.timeline.routes, self.requests.providers, self.requests.names
            )
        return self._populations[key]

    def _measures(self, measuring: Measuring) -> tuple[Measures, Stamped]:
        settings = measuring.settings
        rate, latency, tools = (measuring.track(name, measuring.order) for name in NAMES)
        own = np.array([getattr(settings, name).state == "process" for name in NAMES])
        measures = Measures(
            rate,
            latency,
            tools,
            own=own,
            stride=measuring.stride,
            cold=_stands_in(settings, "when_cold"),
            empty=_stands_in(settings, "when_empty"),
        )
        slots = measuring.stride * (measuring.process_count if own.any() else 1)
        mean_ms = measures.cold[1]
        cold = np.rint(mean_ms) if abs(mean_ms) < 2.0**52 else np.nan
        return measures, Stamped(np.full(slots, measures.cold[0]), np.full(slots, cold), np.ones(slots, dtype=np.bool_))

    # Breakers

    def _named(self, states: Bools) -> list[str]:
        """Return the providers that each state has, by name."""
        names = sorted(self.requests.providers.items(), key=lambda pair: pair[0].encode())
        return [",".join(name for name, number in names if state[number]) for state in states.tolist()]

    def _health(self, measuring: Measuring) -> tuple[Ints, Bools, Bools]:
        """Return the state that every call met, and which providers are open and disabled in each."""
        one = measuring.settings
        key = (one.replicas, one.restarts, one.seed, one.honour_open_breaker_ms)
        if key not in self._healths:
            calls, ends = self.timeline.calls, self._ends(measuring)
            order = sorted_by(measuring.call_process, measuring.own_call_key(), calls.id)
            rankings = breakers.Rankings(order, measuring.call_process, measuring.own_call_key(), calls.decided_ms)
            usual = Health()
            limits = breakers.Limits(
                usual.threshold, float(usual.open_ms), float(usual.disable_ms), one.honour_open_breaker_ms
            )
            self._healths[key] = breakers.fold(rankings, ends, len(self.requests.providers), limits)
        return self._healths[key]

    def _ends(self, measuring: Measuring) -> breakers.Ends:
        attempts = self.timeline.attempts
        key = attempts.replica_seq if measuring.order == "sequence" else attempts.ts_ms
        order = sorted_by(measuring.attempt_process, key, attempts.id)
        kinds = [*attempts.error_kind.values, None]  # -1, no kind, is the last
        policy_of, policies = self.policies.numbered(in_force=True)
        policies = [*policies, self.policies.given]  # of an attempt without a call
        actions = [[None if policy is None else policy.action(kind) for kind in kinds] for policy in policies]
        disables = np.array([[one is not None and one.action == "disable_provider" for one in row] for row in actions])
        asked_ms = np.array(
            [
                [np.nan if one is None or one.open_breaker_ms is None else float(one.open_breaker_ms) for one in row]
                for row in actions
            ]
        )
        return breakers.Ends(
            order=order,
            process=measuring.attempt_process,
            key=key,
            at_ms=attempts.ts_ms,
            ok=attempts.ok,
            provider=attempts.provider.codes,
            call=attempts.call,
            kind=attempts.error_kind.codes,
            number=np.array([self.requests.providers[name] for name in attempts.provider.values], dtype=np.int64),
            policy=np.append(policy_of, len(policies) - 1),
            client=np.array([kind in CLIENT_ERROR_KINDS for kind in kinds], dtype=np.bool_),
            disables=disables,
            asked_ms=asked_ms,
        )


def compiled_before() -> bool:
    """Say whether the pass need not be compiled first: it was in this process, or an earlier one left it on disk."""
    dispatcher: Any = decide
    if not hasattr(dispatcher, "signatures") or dispatcher.signatures:  # NUMBA_DISABLE_JIT: nothing is ever compiled
        return True
    return any(Path(dispatcher.stats.cache_path or ".").glob(f"{Path(loop.__file__).stem}.decide-*.nbi"))


def priced(book: OfferBook, factors: PriceFactors) -> list[Segment]:
    """Return the book's segments at other prices that do not change with time; each offer is repriced once."""
    if factors.recorded:
        return book.segments
    made: dict[tuple[int, float | None], Candidate] = {}
    segments = []
    for segment in book.segments:
        candidates = []
        for place, candidate in enumerate(segment.candidates):
            key = (id(candidate), segment.cached_prices[place])
            if key not in made:
                prices = factors.prices(0, candidate, list_prices(segment, place))
                made[key] = candidate if prices is None else repriced(candidate, *prices)
            candidates.append(made[key])
        segments.append(replace(segment, candidates=tuple(candidates)))
    return segments


def _order(measuring: Measuring, calls: Ints, measures: Measures) -> Ints:
    """Return the order of decisions in which all evidence only comes in, as positions among the calls.

    Shared evidence goes by the reader's key, a process's own by its own numbering. Where both are read, each process
    keeps its own order, at the highest shared key it has reached: windows on shared evidence can step back.
    """
    axis = measuring.timeline.calls

    def of(values: Ints) -> Ints:
        return values if len(calls) == len(values) else values[calls]  # calls are in order, each one once

    decided_ms, identity = of(axis.decided_ms), of(axis.id)
    if not measures.own.any():
        return sorted_by(of(measuring.evidence_key), decided_ms, identity)
    shared = of(measuring.evidence_key) if not measures.own.all() else decided_ms
    own_key, process = of(measuring.own_call_key()), of(measuring.call_process)
    by_own = sorted_by(process, own_key, identity)
    reached = np.empty(len(calls), dtype=np.int64)
    for one in np.unique(process):
        mine = by_own[process[by_own] == one]
        reached[mine] = np.maximum.accumulate(shared[mine])
    return sorted_by(reached, own_key, identity)


def _stands_in(settings: Settings, name: str) -> Floats:
    values = [getattr(one, name) for one in (settings.reliability, settings.latency)]
    return np.array([*(np.nan if value is None else value for value in values), np.nan])


def _with_room(found: Found, rows: int) -> Found:
    """Return the same with room for more rows."""
    if rows <= len(found.decided):
        return found
    larger = room(max(rows, 2 * len(found.decided)))
    for old, new in zip(found, larger, strict=True):
        new[: len(old)] = old
    return larger


def _texts(counts: object, reasons: list[str]) -> list[str]:
    rows = np.asarray(counts).tolist()
    return [
        json.dumps({reasons[number]: count for number, count in enumerate(row) if count}, sort_keys=True)
        for row in rows
    ]
