"""A simulated world: routes that succeed, fail and slow down, and routers that live in it on virtual time.

It is deterministic, and the world's luck is drawn from (seed, call, route, attempt), never from the order of events:
two routers that measure differently meet the same luck wherever they make the same attempt.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import NormalDist

from replay import prices
from replay.calls import CallOutcome, CallRequest, Offer
from replay.core import Candidate, Policy
from replay.errors import ReplayError
from replay.ledger.memory import MemoryLedger
from replay.ledger.rows import AttemptRow, CallRow, OfferRow
from replay.router import Router
from replay.settings import Settings
from replay.virtual import Luck, World

_STANDARD_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteModel:
    """How a route behaves when nothing is wrong.

    Latency is lognormal with this median and the sigma of its logarithm. `tool_rate` is the chance that a
    successful answer to a tools request has a tool call. `failures` are error kinds with weights.
    `reported_cost` is what the provider charges, as a factor on the list price, if it reports cost at all.
    """

    success_rate: float = 0.99
    latency_median_ms: float = 1000.0
    latency_sigma: float = 0.4
    tool_rate: float = 0.85
    failures: tuple[tuple[str, float], ...] = (("server_error", 4.0), ("network_error", 2.0), ("rate_limit", 1.0))
    reported_cost: float | None = None
    subscription: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """A stretch of time [start_ms, end_ms) in which some routes behave differently; None matches every route.

    Success and latency are scaled; a tool rate and an error kind replace the route's own.
    """

    start_ms: int
    end_ms: int
    provider_id: str | None = None
    model_family: str | None = None
    served_by: str | None = None
    success_factor: float = 1.0
    latency_factor: float = 1.0
    tool_rate: float | None = None
    error_kind: str | None = None

    def concerns(self, candidate: Candidate, at_ms: int) -> bool:
        """Whether this route is hit at this instant."""
        return (
            self.start_ms <= at_ms < self.end_ms
            and self.provider_id in (None, candidate.provider_id)
            and self.model_family in (None, candidate.model_family)
            and self.served_by in (None, candidate.served_by)
        )

    def change(self, model: RouteModel) -> RouteModel:
        """The route's behaviour while this lasts."""
        return replace(
            model,
            success_rate=model.success_rate * self.success_factor,
            latency_median_ms=model.latency_median_ms * self.latency_factor,
            tool_rate=model.tool_rate if self.tool_rate is None else self.tool_rate,
            failures=model.failures if self.error_kind is None else ((self.error_kind, 1.0),),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One call that reaches the system, and what it will need: its tokens, or its own fault.

    `client_error` is an error kind that is the client's own; a route finds it with `client_error_rate`.
    """

    at_ms: int
    request: CallRequest
    tokens_in: int
    tokens_out: int
    client_error: str | None = None
    client_error_rate: float = 0.7
    hang_up_after_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One life of a process: `slot` is its place behind the load balancer, `replica` the name of this life."""

    replica: str
    slot: int
    start_ms: int


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A world to live in: what is offered, how routes behave, what goes wrong, and who asks for what when.

    `routes` maps route keys to behaviours; `offers` are rows of `offer_history`, so that prices change and peers
    come and go. `lives` are the processes; a slot's later life replaces the earlier one, which still ends the
    calls it has. A row is written `write_lag_ms` (lowest, highest) after it was recorded. An attempt lasts at most
    `timeout_ms`, and providers keep a session's prefix cached for `cache_ms`.
    """

    offers: tuple[OfferRow, ...]
    routes: Mapping[str, RouteModel]
    arrivals: tuple[Arrival, ...]
    lives: tuple[Life, ...]
    incidents: tuple[Incident, ...] = ()
    write_lag_ms: tuple[int, int] = (0, 0)
    timeout_ms: int = 20_000
    cache_ms: int = 300_000

    def behaviour(self, candidate: Candidate, at_ms: int) -> RouteModel:
        """How a route behaves at an instant."""
        model = self.routes.get(candidate.route_key, RouteModel())
        for incident in self.incidents:
            if incident.concerns(candidate, at_ms):
                model = incident.change(model)
        return model


class OfferBook:
    """The offers of any instant, in candidate order (position, then order of the rows)."""

    def __init__(self, rows: Sequence[OfferRow]) -> None:
        self._rows = sorted(rows, key=lambda row: row.position)
        edges = {row.valid_from for row in rows} | {row.valid_to for row in rows if row.valid_to is not None}
        self._edges = sorted(edges)
        self._pages: dict[int, tuple[Offer, ...]] = {}

    def at(self, at_ms: int) -> tuple[Offer, ...]:
        """What a decision at an instant can choose from.

        >>> book = OfferBook([OfferRow(valid_from=5, valid_to=9, position=1, provider_id="p", model_family="m")])
        >>> [len(book.at(at_ms)) for at_ms in (4, 5, 8, 9)]
        [0, 1, 1, 0]
        """
        page = bisect.bisect_right(self._edges, at_ms)
        if page not in self._pages:
            self._pages[page] = tuple(Offer.from_row(row) for row in self._rows if row.valid_at(at_ms))
        return self._pages[page]


@dataclass
class Simulation:
    """Routers living through a scenario; `run()` fills the ledger."""

    scenario: Scenario
    seed: int
    settings: Settings
    policy: Policy
    world: World = field(init=False)
    ledger: MemoryLedger = field(init=False)
    luck: Luck = field(init=False)
    responses: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        first_ms = min((arrival.at_ms for arrival in self.scenario.arrivals), default=0)
        self.luck = Luck(self.seed)
        self.world = World(min([first_ms, *(life.start_ms for life in self.scenario.lives)]))
        self.ledger = MemoryLedger(self.settings, self.world, self._write_lag_ms)
        self._book = OfferBook(self.scenario.offers)
        self._warm: dict[str, tuple[str, int, int]] = {}

    def run(self, progress: Callable[[int, int], None] | None = None) -> MemoryLedger:
        """Live through it; `progress` is told (calls ended, calls in all)."""
        for arrival in self.scenario.arrivals:
            self.world.at(arrival.at_ms, lambda arrival=arrival: self._arrive(arrival, progress))  # type: ignore[misc]
        self.world.run()
        self.ledger.flush()
        return self.ledger

    @cached_property
    def _slots(self) -> list[int]:
        return sorted({life.slot for life in self.scenario.lives})

    @cached_property
    def _routers(self) -> dict[str, Router]:
        return {
            life.replica: Router(
                self.policy, self._book.at, self.ledger, self.ledger, self.world, life.replica, self.settings
            )
            for life in self.scenario.lives
        }

    def _router_for(self, arrival: Arrival) -> Router:
        """The load balancer: a slot by luck, and the life it has now."""
        slot = self.luck.pick([(slot, 1.0) for slot in self._slots], _event_id(arrival), "slot")
        lives = [life for life in self.scenario.lives if life.slot == slot and life.start_ms <= arrival.at_ms]
        if not lives:
            raise ReplayError(f"no process lives in slot {slot} at {arrival.at_ms} ms; expected one: start it earlier")
        return self._routers[max(lives, key=lambda life: life.start_ms).replica]

    def _arrive(self, arrival: Arrival, progress: Callable[[int, int], None] | None) -> None:
        attempts: Counter[str] = Counter()

        async def provider(candidate: Candidate, request: CallRequest) -> CallOutcome:
            attempts[candidate.route_key] += 1
            return await self._answer(arrival, candidate, attempts[candidate.route_key])

        async def serve() -> None:
            try:
                await self._router_for(arrival).execute_async(arrival.request, provider)
            finally:
                self.responses += 1
                if progress is not None:
                    progress(self.responses, len(self.scenario.arrivals))

        self.world.spawn(serve(), arrival.hang_up_after_ms)

    async def _answer(self, arrival: Arrival, candidate: Candidate, attempt: int) -> CallOutcome:
        """What a route makes of a call, after the time it takes."""
        drawn_for = (_event_id(arrival), candidate.route_key, attempt)
        model = self.scenario.behaviour(candidate, self.world.now_ms())
        spread = math.exp(model.latency_sigma * _STANDARD_NORMAL.inv_cdf(self.luck.draw(*drawn_for, "latency")))
        latency_ms = max(1, round(model.latency_median_ms * spread))
        if arrival.client_error and self.luck.draw(*drawn_for, "client") < arrival.client_error_rate:
            await self.world.sleep_async(max(1, latency_ms // 8))
            return CallOutcome(ok=False, error_kind=arrival.client_error, http_status=400)
        if latency_ms > self.scenario.timeout_ms:
            await self.world.sleep_async(self.scenario.timeout_ms)
            return CallOutcome(ok=False, error_kind="timeout")
        if self.luck.draw(*drawn_for, "success") >= model.success_rate:
            kind: str = self.luck.pick(model.failures, *drawn_for, "failure")
            await self.world.sleep_async(self.scenario.timeout_ms if kind == "timeout" else max(1, latency_ms // 4))
            return CallOutcome(ok=False, error_kind=kind, http_status=_PROVIDER_STATUS.get(kind))
        cached = self._cached(arrival, candidate)
        await self.world.sleep_async(latency_ms)
        if arrival.request.session_id is not None:
            self._warm[arrival.request.session_id] = (candidate.route_key, self.world.now_ms(), arrival.tokens_in)
        return CallOutcome(
            ok=True,
            http_status=200,
            tokens_in=arrival.tokens_in,
            tokens_out=arrival.tokens_out,
            tokens_cached=cached,
            cost_usd=self._charged(model, arrival, candidate, cached),
            subscription=model.subscription,
            tool_calls_emitted=bool(arrival.request.tools) and self.luck.draw(*drawn_for, "tools") < model.tool_rate,
        )

    def _cached(self, arrival: Arrival, candidate: Candidate) -> int:
        """Tokens of the session's earlier turn that this route still has cached."""
        route_key, at_ms, tokens = self._warm.get(arrival.request.session_id or "", ("", 0, 0))
        warm = route_key == candidate.route_key and self.world.now_ms() - at_ms < self.scenario.cache_ms
        return min(tokens, arrival.tokens_in) if warm else 0

    def _charged(self, model: RouteModel, arrival: Arrival, candidate: Candidate, cached: int) -> float | None:
        """The provider's own figure, in USD to eight decimals, if it gives one."""
        if model.reported_cost is None:
            return None
        offers = self._book.at(self.world.now_ms())
        offer = next((offer for offer in offers if offer.candidate.route_key == candidate.route_key), None)
        price_in, price_out = candidate.fields.get("price_in", 0.0), candidate.fields.get("price_out", 0.0)
        price_cached_in = prices.cached_price(price_in, None if offer is None else offer.price_cached_in)
        listed = prices.cost_usd(arrival.tokens_in, cached, arrival.tokens_out, price_in, price_out, price_cached_in)
        return round(float(listed) * model.reported_cost, 8)

    def _write_lag_ms(self, row: CallRow | AttemptRow) -> int:
        low, high = self.scenario.write_lag_ms
        if isinstance(row, CallRow):
            return self.luck.whole(low, high, row.usage_event_id or "", "lag")
        return self.luck.whole(low, high, row.request_id or "", row.attempt or 0, "lag")


_PROVIDER_STATUS = {
    "auth_error": 401,
    "payment_required": 402,
    "rate_limit": 429,
    "server_error": 500,
    "model_unavailable": 503,
}
"""What a provider's own answer says; a network error or a timeout has no answer."""


def simulate(
    scenario: Scenario,
    seed: int,
    settings: Settings,
    policy: Policy,
    progress: Callable[[int, int], None] | None = None,
) -> MemoryLedger:
    """Run routers with this policy and these settings through a scenario; return what they recorded."""
    return Simulation(scenario, seed, settings, policy).run(progress)


def _event_id(arrival: Arrival) -> str:
    if arrival.request.usage_event_id is None:
        raise ReplayError("an arrival has no usage_event_id; expected one, since its luck is drawn by it: name it")
    return arrival.request.usage_event_id
