"""What goes into a live call and what comes out of it: request, offer, the provider's outcome, response."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from replay import prices
from replay.core import Candidate, Policy
from replay.errors import ReplayError
from replay.ledger.rows import CallRow, OfferRow

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


@dataclass(frozen=True, slots=True)
class Response:
    """What the caller gets: the provider's outcome if there was one, the error if all failed, and what was recorded.

    `error` is the walk's own word (`exhausted: timeout`, `no_candidates`, …). `exception` is the last unexpected
    one a provider callable raised; it is reported here rather than raised, since the walk went on after it.
    """

    ok: bool
    value: Any
    error: str | None
    chosen: Candidate | None
    path: tuple[Mapping[str, Any], ...]
    call: CallRow
    exception: Exception | None = None
