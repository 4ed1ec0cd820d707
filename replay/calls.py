"""What goes into a live call and what comes out of it: request, offer, the provider's outcome, response."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from replay import prices
from replay.core import Attempt, Candidate, Policy
from replay.errors import ReplayError
from replay.ledger.rows import CallRow, OfferRow
from replay.sessions import Session, SessionTotals
from replay.stamps import Evidence

HTTP_STATUS: Mapping[str, int] = {
    "bad_request": 400,
    "content_filter": 400,
    "auth_error": 401,
    "payment_required": 402,
    "pin_not_found": 404,
    "context_overflow": 413,
    "rate_limit": 429,
    "cancelled": 499,
    "exception": 500,
    "bad_response": 502,
    "network_error": 502,
    "server_error": 502,
    "stream_interrupted": 502,
    "model_unavailable": 503,
    "no_candidates": 503,
    "timeout": 504,
}
"""The status a client sees when a call ends with an error kind; any other kind is 502."""


def http_status(error_kind: str | None) -> int:
    """The HTTP status of a call that ended so; None is success.

    >>> http_status(None), http_status("timeout"), http_status("made up")
    (200, 504, 502)
    """
    return 200 if error_kind is None else HTTP_STATUS.get(error_kind, 502)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """One request as it reaches the router.

    The first group is what the core sees, and is recorded. `policy` replaces the router's own for this call.
    `payload` is for the provider callable alone and is never recorded; nor are tool definitions and images, of
    which the core needs only whether there are any. `on_chunk` receives the items of a streamed answer.

    `max_attempts` and `deadline_ms` (counted from the call's arrival) end the walk down the ranking early, with an
    error that says so. The first attempt is always made, so they never change a decision, and a replay needs not know
    them. An attempt in flight is not cut off: the provider callable is given the request with `deadline_ms` as what
    is left of it (1 at least), to bound its own timeout with.
    """

    requirements: Mapping[str, Any] = field(default_factory=dict)
    scope: str | None = None
    tools: Any = None
    images: Any = None
    response_format: Mapping[str, Any] | None = None
    envelope: Any = None
    seed: int = 0
    credits: Mapping[str, float] = field(default_factory=dict)
    hot_route: str | None = None

    policy: Policy | None = None
    session_id: str | None = None
    consumer_sha: str | None = None
    caller: str | None = None
    requested_model: str | None = None
    usage_event_id: str | None = None
    payload: Any = None
    on_chunk: Callable[[Any], None] | None = None
    max_attempts: int | None = None
    deadline_ms: float | None = None

    def record(self) -> dict[str, Any]:
        """What the core sees, as JSON data; whatever says nothing is left out (the seed never is)."""
        seen = {
            "requirements": dict(self.requirements),
            "scope": self.scope,
            "tools": bool(self.tools),
            "images": bool(self.images),
            "response_format": self.response_format,
            "envelope": self.envelope,
            "credits": dict(self.credits),
            "hot_route": self.hot_route,
        }
        return {"seed": self.seed} | {key: value for key, value in seen.items() if value not in (None, False, {})}

    def to_json(self) -> str:
        """`record()` as canonical JSON.

        >>> CallRequest(requirements={"min_context": 8000}, tools=[{"name": "f"}], seed=3).to_json()
        '{"requirements":{"min_context":8000},"seed":3,"tools":true}'
        """
        try:
            return json.dumps(self.record(), sort_keys=True, separators=(",", ":"))
        except (TypeError, ValueError) as error:
            raise ReplayError(
                f"the request cannot be written as JSON ({error}); expected requirements, envelope, credits and "
                "response_format to be plain JSON data: convert them before the call"
            ) from error

    @property
    def model_label(self) -> str:
        """`requested_model` as given, else as the requirements say it: `pin:P/F`, `family:F` or "".

        >>> CallRequest(requirements={"model_family": "atlas"}).model_label
        'family:atlas'
        """
        if self.requested_model is not None:
            return self.requested_model
        pin = self.requirements.get("pin")
        if isinstance(pin, Mapping):
            return f"pin:{pin.get('provider')}/{pin.get('model')}"
        family = self.requirements.get("model_family")
        return f"family:{family}" if family else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """How one provider call ended; a failure is said by `ok=False` with its `error_kind`.

    `cost_usd` is the provider's own figure (recorded as `reported`). Without one the router computes it from the
    offer's raw list price, unless `subscription` says that the call costs nothing. `tokens_in` includes the cached
    ones. `value` is handed to the caller and never recorded.
    """

    ok: bool
    error_kind: str | None = None
    http_status: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_cached: int | None = None
    cost_usd: float | None = None
    subscription: bool = False
    tool_calls_emitted: bool = False
    value: Any = None
    exception: Exception | None = None

    @property
    def kind(self) -> str | None:
        """The error kind that counts: None after a success, `unknown` for a failure that names none."""
        return None if self.ok else self.error_kind or "unknown"


@dataclass(frozen=True, slots=True)
class Offer:
    """A candidate with what the host knows beside it: the cached input price (USD per million tokens)."""

    candidate: Candidate
    price_cached_in: float | None = None

    @classmethod
    def from_row(cls, row: OfferRow) -> Offer:
        """The offer that a row of `offer_history` describes."""
        return cls(row.candidate(), row.price_cached_in)

    def cost(self, outcome: CallOutcome) -> tuple[float | None, str | None]:
        """What a call cost in USD and how that is known: reported, computed, subscription, or (None, None).

        >>> offer = Offer(Candidate(provider_id="p", model_family="m", fields={"price_in": 3.0, "price_out": 15.0}))
        >>> offer.cost(CallOutcome(ok=True, tokens_in=1000, tokens_cached=400, tokens_out=200))
        (0.00492, 'computed')
        """
        if outcome.subscription:
            return 0.0, "subscription"
        if outcome.cost_usd is not None:
            return outcome.cost_usd, "reported"
        price_in, price_out = self.candidate.fields.get("price_in"), self.candidate.fields.get("price_out")
        tokens_in, tokens_out = outcome.tokens_in, outcome.tokens_out
        if price_in is None or price_out is None or tokens_in is None or tokens_out is None:
            return None, None
        price_cached_in = prices.cached_price(price_in, self.price_cached_in)
        cached = outcome.tokens_cached or 0
        return prices.cost_usd(tokens_in, cached, tokens_out, price_in, price_out, price_cached_in), "computed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the caller gets: the provider's outcome if there was one, the error if all failed, and what was recorded.

    `error` is the walk's own word (`exhausted: timeout`, `deadline: timeout`, `no_candidates`, …). `session` is the
    session's running meter, this call included: None without a session, or where it could not be read. `exception` is
    the last unexpected one a provider callable raised; it is reported here rather than raised, since the walk went on
    after it.
    """

    ok: bool
    value: Any
    error: str | None
    chosen: Candidate | None
    path: tuple[Mapping[str, Any], ...]
    call: CallRow
    attempts: int
    session: SessionTotals | None = None
    exception: Exception | None = None

    def metadata(self) -> dict[str, str | int | float]:
        """Return what a host may tell its client of the routing, by name; whatever is unknown is left out.

        `chosen` is the chosen route's key, `policy_id` the identity of the policy that chose it, `cost_basis` how
        `cost_usd` is known, and `session_…` the session's running meter.
        """
        told: dict[str, str | int | float | None] = {
            "chosen": None if self.chosen is None else self.chosen.route_key,
            "attempts": self.attempts,
            "policy_id": self.call.policy_id,
            "cost_usd": self.call.cost_usd,
            "cost_basis": self.call.cost_basis,
            "error": self.error,
        }
        if self.session is not None:
            told |= {f"session_{name}": value for name, value in dataclasses.asdict(self.session).items()}
        return {name: value for name, value in told.items() if value is not None}


class InFlight:
    """What is known of a call that has not ended, and its row once it has.

    Times are ms on the router's clock. `request` may change until the decision: a session brings its hot route.
    """

    def __init__(
        self,
        request: CallRequest,
        decided_at: int,
        *,
        usage_event_id: str,
        policy_id: str,
        settings_id: str,
        replica: str,
    ) -> None:
        self.request = request
        self.request_json = request.to_json()
        self.decided_at = decided_at
        self.usage_event_id = usage_event_id
        self.policy_id = policy_id
        self.settings_id = settings_id
        self.replica = replica
        self.evidence: Evidence | None = None
        self.session: Session | None = None
        self.offers: Sequence[Offer] = ()
        self.replica_seq: int | None = None
        self.reason = "no_candidates"
        self.attempts = 0
        self.last: Attempt | None = None
        self.outcome: CallOutcome | None = None

    def take_in(self, evidence: Evidence, session: Session | None) -> CallRequest:
        """Take in what was read for the decision and return the request with it; a hot route once given is kept."""
        self.evidence, self.session = evidence, session
        if session is not None:
            hot_route = self.request.hot_route or session.hot_route
            self.request = dataclasses.replace(self.request, hot_route=hot_route, session_id=session.session_id)
            self.request_json = self.request.to_json()
        return self.request

    def left(self, now_ms: int) -> CallRequest:
        """Return the request for a provider callable, with what is left of its deadline."""
        if self.request.deadline_ms is None:
            return self.request
        left_ms = self.decided_at + self.request.deadline_ms - now_ms
        return dataclasses.replace(self.request, deadline_ms=max(1, left_ms))

    def ended(self, attempt: Attempt, outcome: CallOutcome) -> None:
        """Take in the end of an attempt."""
        self.attempts, self.last, self.outcome = attempt.attempt, attempt, outcome

    @property
    def why_failed(self) -> str | None:
        """Error kind of the last attempt, or why there was none."""
        return self.reason if self.outcome is None else self.outcome.kind

    def row(self, error_type: str | None, ended_at: int) -> CallRow:
        """The call's row: the final route is that of the last attempt, failed or not."""
        candidate = None if self.last is None else self.last.candidate
        outcome = self.outcome or CallOutcome(ok=False)
        cost_usd, cost_basis = (None, None) if self.last is None else self.offers[self.last.index].cost(outcome)
        tokens_known = outcome.tokens_in is not None and outcome.tokens_out is not None
        request, evidence = self.request, self.evidence
        return CallRow(
            ts=ended_at // 1000,
            usage_event_id=self.usage_event_id,
            session_id=request.session_id,
            consumer_sha=request.consumer_sha,
            caller=request.caller,
            route_key=None if candidate is None else candidate.route_key,
            provider_id=None if candidate is None else candidate.provider_id,
            model_family=None if candidate is None else candidate.model_family,
            served_model_id=None if candidate is None else candidate.served_model_id,
            requested_model=request.model_label,
            status=http_status(error_type),
            error_type=error_type,
            latency_ms=float(max(0, ended_at - self.decided_at)),
            tokens_in=outcome.tokens_in,
            tokens_out=outcome.tokens_out,
            tokens_total=(outcome.tokens_in or 0) + (outcome.tokens_out or 0) if tokens_known else None,
            tokens_cached=outcome.tokens_cached,
            cost_usd=cost_usd,
            served_by=None if candidate is None else candidate.served_by,
            cost_basis=cost_basis,
            decided_at=self.decided_at,
            evidence_at=None if evidence is None else evidence.at_ms,
            request=self.request_json,
            policy_id=self.policy_id,
            settings_id=self.settings_id,
            replica=self.replica,
            replica_seq=self.replica_seq,
            evidence_snapshot=None if evidence is None else evidence.snapshot,
            evidence_state=None if evidence is None else evidence.state,
        )
