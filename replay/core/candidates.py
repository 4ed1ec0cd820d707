"""What a decision is made from: the candidates, the request, and the state of the process at that instant."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from replay.errors import ReplayError

_NOT_FIELDS = frozenset(
    {
        "provider_id",
        "model_family",
        "served_model_id",
        "scope",
        "tier",
        "capabilities",
        "offer",
        "peer_id",
        "price_multiplier",
    }
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One route that could serve a request, with what was observed of it.

    `fields` holds only the values that are present: `price_in` and `price_out` (raw, USD per million tokens),
    `latency_ms`, `tok_s`, `success_rate`, `has_tee`, `no_log` and declared ones; an absent one reads the
    schema's default. `price_multiplier` scales the two prices as a policy sees them, never the raw ones here.

    >>> Candidate("openai", "gpt-5.5").route_key
    'openai|gpt-5.5|openai'
    """

    provider_id: str
    model_family: str
    served_model_id: str = ""
    peer_id: str | None = None
    scope: str | None = None
    tier: str | None = None
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, float | bool] = field(default_factory=dict)
    price_multiplier: float = 1.0

    @property
    def served_by(self) -> str:
        """The marketplace peer, or the provider itself for a direct route."""
        return self.peer_id or self.provider_id

    @property
    def route_key(self) -> str:
        """The host's text form of the route; a missing part is the empty string."""
        return f"{self.provider_id or ''}|{self.model_family or ''}|{self.served_by or ''}"

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Candidate:
        """Read the vectors' form: identity at the top, `offer: {peer_id}`, every other key an observed field.

        Null values are absent. Raises `ReplayError` for a record that is none, or a field that is no number or flag.

        >>> Candidate.from_record({"provider_id": "p", "model_family": "m", "offer": {"peer_id": "x"}, "tok_s": 9})
        Candidate(provider_id='p', model_family='m', served_model_id='', peer_id='x', scope=None, tier=None, \
capabilities={}, fields={'tok_s': 9}, price_multiplier=1.0)
        """
        if not isinstance(record, Mapping):
            raise ReplayError(
                f"a candidate is {type(record).__name__}; expected a JSON object; see a vector file's form"
            )
        for key in ("provider_id", "model_family"):
            if not isinstance(record.get(key), str):
                raise ReplayError(f"a candidate has no text {key!r}; expected provider_id and model_family; add them")
        fields = {key: value for key, value in record.items() if key not in _NOT_FIELDS and value is not None}
        for key, value in fields.items():
            if not isinstance(value, bool):
                _number(fields, key, "a candidate", 0.0)
        offer = _mapping(record, "offer", "a candidate")
        capabilities = _mapping(record, "capabilities", "a candidate")
        _number(capabilities, "context", "a candidate's capabilities", 0.0)
        return cls(
            provider_id=record["provider_id"],
            model_family=record["model_family"],
            served_model_id=record.get("served_model_id") or "",
            peer_id=offer.get("peer_id") or record.get("peer_id"),
            scope=record.get("scope"),
            tier=record.get("tier"),
            capabilities=capabilities,
            fields=fields,
            price_multiplier=_number(record, "price_multiplier", "a candidate", 1.0),
        )

    def stamped(self, success_rate: float | None, latency_ms: float | None, tools: bool) -> Candidate:
        """Return this candidate with the measured fields set (removed where None).

        With `tools` false, `supports_tools` is removed from the capabilities; true leaves them as they are.
        """
        fields = dict(self.fields)
        for name, value in (("success_rate", success_rate), ("latency_ms", latency_ms)):
            if value is None:
                fields.pop(name, None)
            else:
                fields[name] = value
        capabilities = self.capabilities
        if not tools and "supports_tools" in capabilities:
            capabilities = {name: value for name, value in capabilities.items() if name != "supports_tools"}
        return Candidate(
            self.provider_id,
            self.model_family,
            self.served_model_id,
            self.peer_id,
            self.scope,
            self.tier,
            capabilities,
            fields,
            self.price_multiplier,
        )


@dataclass(frozen=True, slots=True)
class Request:
    """What the core may know of a request.

    `requirements` may hold needs, min_context, model_family, tier, privacy, min_tok_s and pin; a null one is
    absent. `envelope` is a host's Pred term (JSON), and-ed onto the policy's filter. `needs` is derived: the
    required needs in their order, then those the request itself implies.

    >>> Request(requirements={"needs": ["seed"]}, tools=[{"name": "f"}]).needs
    ('seed', 'tools')
    """

    requirements: Mapping[str, Any] = field(default_factory=dict)
    scope: str | None = None
    tools: Any = None
    images: Any = None
    response_format: Any = None
    envelope: Any = None
    needs: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        implied = []
        if self.images:
            implied.append("vision")
        if self.tools:
            implied.append("tools")
        if isinstance(self.response_format, Mapping) and self.response_format.get("type") == "json_object":
            implied.append("json_mode")
        for name in ("min_context", "min_tok_s"):
            _number(self.requirements, name, "requirements", 0.0)
        for name in ("model_family", "tier", "privacy"):
            if not isinstance(self.requirements.get(name), str | None):
                raise ReplayError(f"requirements.{name} is no text; expected a string or nothing; correct the request")
        needs = self.requirements.get("needs") or ()
        if isinstance(needs, str) or not all(isinstance(need, str) for need in needs):
            raise ReplayError("requirements.needs is no list of names; expected for example ['tools']; correct it")
        pin = self.requirements.get("pin")
        parts = [pin.get("provider"), pin.get("model")] if isinstance(pin, Mapping) else []
        if pin is not None and not (parts and all(isinstance(part, str) for part in parts)):
            raise ReplayError(
                "requirements.pin is not a record of the texts provider and model; "
                "expected {'provider': …, 'model': a family}; correct or remove it"
            )
        object.__setattr__(self, "needs", (*needs, *implied))

    @property
    def pin(self) -> tuple[str, str] | None:
        """The pinned (provider id, model family), or None."""
        pin = self.requirements.get("pin")
        return None if pin is None else (pin["provider"], pin["model"])

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Request:
        """Read the vectors' and the ledger's form; keys that say nothing to the core (seed, credits, …) are ignored."""
        if not isinstance(record, Mapping):
            raise ReplayError(f"a request is {type(record).__name__}; expected a JSON object; see a vector file's form")
        return cls(
            requirements=_mapping(record, "requirements", "a request"),
            scope=record.get("scope"),
            tools=record.get("tools"),
            images=record.get("images"),
            response_format=record.get("response_format"),
            envelope=record.get("envelope"),
        )


@dataclass(frozen=True, slots=True)
class State:
    """The process at the ranking: providers with an open breaker, disabled ones, and credits per provider."""

    open_breakers: frozenset[str] = frozenset()
    disabled: frozenset[str] = frozenset()
    credits: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> State:
        """Read the vectors' form: `breakers` and `disabled` are lists of providers, `credits` a record."""
        if not isinstance(record, Mapping):
            raise ReplayError(f"a state is {type(record).__name__}; expected a JSON object; see a vector file's form")
        providers = []
        for name in ("breakers", "disabled"):
            listed = record.get(name) or ()
            if isinstance(listed, str) or not all(isinstance(provider, str) for provider in listed):
                raise ReplayError(f"state.{name} is no list of texts; expected a list of provider ids; correct it")
            providers.append(frozenset(listed))
        money = _mapping(record, "credits", "a state")
        for provider in money:
            _number(money, provider, "state.credits", 0.0)
        return cls(providers[0], providers[1], money)


def _mapping(record: Mapping[str, Any], key: str, owner: str) -> Mapping[str, Any]:
    value = record.get(key)
    if value is None or value == []:  # an empty record may have been written as an empty list
        return {}
    if not isinstance(value, Mapping):
        raise ReplayError(f"{owner}'s {key} is {type(value).__name__}; expected a JSON object; correct it")
    return value


def _number(record: Mapping[str, Any], key: str, owner: str, default: float) -> float:
    value = record.get(key)
    if value is None:
        return default
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # an integer beyond every double
            return float(value)
    raise ReplayError(
        f"{owner}'s {key} is {type(value).__name__}; expected a number that a double can hold; correct it"
    )


NO_REQUEST = Request()
NO_STATE = State()
