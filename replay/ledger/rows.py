"""The rows of the ledgers as values: the names and order are those of the columns in `schema.sql` and `mirror.sql`.

A row is snapshotted when it is recorded, so every row is frozen. `id` and `txid` are the database's to give:
they stay None until the row is committed.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from replay.core import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRow:
    """One call as the client saw it: the final route only, written when the call ends."""

    id: int | None = None
    ts: int  # seconds
    usage_event_id: str | None = None
    session_id: str | None = None
    consumer_sha: str | None = None
    caller: str | None = None
    route_key: str | None = None
    provider_id: str | None = None
    model_family: str | None = None
    served_model_id: str | None = None
    requested_model: str | None = None
    status: int | None = None
    error_type: str | None = None
    latency_ms: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    tokens_total: int | None = None
    tokens_cached: int | None = None
    cost_usd: float | None = None
    served_by: str | None = None
    cost_basis: str | None = None
    decided_at: int | None = None
    evidence_at: int | None = None
    request: str | None = None
    policy_id: str | None = None
    settings_id: str | None = None
    replica: str | None = None
    replica_seq: int | None = None
    evidence_snapshot: str | None = None
    evidence_state: str | None = None
    txid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One provider call the router made, failed ones included, written when it ends."""

    id: int | None = None
    ts: int  # milliseconds
    provider_id: str | None = None
    model_family: str | None = None
    served_by: str | None = None
    ok: bool
    latency_ms: float | None = None
    error_kind: str | None = None
    http_status: int | None = None
    tools_requested: bool | None = None
    tool_calls_emitted: bool | None = None
    started_at: int | None = None
    request_id: str | None = None
    attempt: int | None = None
    candidate_attempt: int | None = None
    replica: str | None = None
    replica_seq: int | None = None
    txid: int | None = None

    @property
    def route_key(self) -> str:
        """The route's text form, a missing part as the empty string.

        >>> AttemptRow(ts=1, ok=True, provider_id="p", model_family="m").route_key
        'p|m|'
        """
        return f"{self.provider_id or ''}|{self.model_family or ''}|{self.served_by or ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferRow:
    """One candidate over the time it could have been seen; prices in USD per million tokens."""

    id: int | None = None
    valid_from: int  # ms, inclusive
    valid_to: int | None = None  # ms, exclusive
    position: int
    provider_id: str | None = None
    model_family: str | None = None
    served_model_id: str | None = None
    peer_id: str | None = None
    scope: str | None = None
    tier: str | None = None
    price_in: float | None = None
    price_out: float | None = None
    price_cached_in: float | None = None
    price_multiplier: float | None = None
    capabilities: str | None = None
    context: int | None = None
    tok_s: float | None = None
    has_tee: bool | None = None
    no_log: bool | None = None
    declared: str | None = None

    def valid_at(self, at_ms: int) -> bool:
        """Whether a decision at an instant could have seen this offer."""
        return self.valid_from <= at_ms and (self.valid_to is None or at_ms < self.valid_to)

    def candidate(self) -> Candidate:
        """The offer as the routing core sees it before any stamp; a null column is an absent value.

        >>> row = OfferRow(valid_from=0, position=0, provider_id="p", model_family="m", price_in=3.0, context=8000)
        >>> row.candidate().route_key, dict(row.candidate().fields), dict(row.candidate().capabilities)
        ('p|m|p', {'price_in': 3.0}, {'context': 8000})
        """
        capabilities: dict[str, Any] = json.loads(self.capabilities or "{}")
        if self.context is not None:
            capabilities["context"] = self.context
        fields: dict[str, float | bool] = {
            name: value
            for name, value in (
                ("price_in", self.price_in),
                ("price_out", self.price_out),
                ("tok_s", self.tok_s),
                ("has_tee", self.has_tee),
                ("no_log", self.no_log),
            )
            if value is not None
        }
        return Candidate(
            provider_id=self.provider_id or "",
            model_family=self.model_family or "",
            served_model_id=self.served_model_id or "",
            peer_id=self.peer_id,
            scope=self.scope,
            tier=self.tier,
            capabilities=capabilities,
            fields=fields | json.loads(self.declared or "{}"),
            price_multiplier=1.0 if self.price_multiplier is None else self.price_multiplier,
        )


def columns(row_type: type[CallRow] | type[AttemptRow] | type[OfferRow]) -> tuple[str, ...]:
    """The column names of a row type, in the order of the table.

    >>> columns(AttemptRow)[:3]
    ('id', 'ts', 'provider_id')
    """
    return tuple(field.name for field in dataclasses.fields(row_type))


def values(row: CallRow | AttemptRow | OfferRow) -> tuple[Any, ...]:
    """A row's values in column order, ready to be bound or appended."""
    return tuple(getattr(row, name) for name in row.__slots__)
