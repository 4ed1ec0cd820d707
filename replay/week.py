"""The demo's scenario: a small week of an invented router's life, from Monday 2026-03-02 00:00 UTC.

Everything in it is made up; the provider and peer names only look like those in the shipped policies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from replay.calls import CallRequest
from replay.core import CORE_SCHEMA, SHIPPED_FIELDS, Policy, Schema, admit, load_policy
from replay.ledger.rows import OfferRow
from replay.virtual import Luck
from replay.world import Arrival, Incident, Life, RouteModel, Scenario

START_MS = 1_772_409_600_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
END_MS = START_MS + 7 * DAY_MS

LIVES = (
    Life(replica="web-a.1", slot=0, start_ms=START_MS - HOUR_MS),
    Life(replica="web-b.1", slot=1, start_ms=START_MS - HOUR_MS),
    Life(replica="web-a.2", slot=0, start_ms=START_MS + 2 * DAY_MS + 15 * HOUR_MS + 10 * MINUTE_MS),
)
"""Two processes; the first is restarted on Wednesday at 15:10."""

SLOW_PROVIDER = Incident(
    start_ms=START_MS + 4 * DAY_MS + 10 * HOUR_MS,
    end_ms=START_MS + 4 * DAY_MS + 11 * HOUR_MS + 30 * MINUTE_MS,
    provider_id="northlight",
    success_factor=0.45,
    latency_factor=6.0,
    error_kind="rate_limit",
)
DEAD_PEER = Incident(
    start_ms=START_MS + DAY_MS + 8 * HOUR_MS,
    end_ms=START_MS + DAY_MS + 14 * HOUR_MS,
    served_by="peer-aster",
    success_factor=0.0,
    error_kind="model_unavailable",
)
INCIDENTS = (SLOW_PROVIDER, DEAD_PEER)
SILENT_ROUTE = "antseed|atlas-mini|peer-cedar"
"""Says it supports tools, and never calls one."""

PRICE_CHANGE_MS = START_MS + 2 * DAY_MS + 12 * HOUR_MS
PEER_JOINS_MS = START_MS + DAY_MS + 18 * HOUR_MS
PEER_LEAVES_MS = START_MS + 5 * DAY_MS + 9 * HOUR_MS


@dataclass(frozen=True)
class _Family:
    context: int
    vision: bool
    intelligence: float
    rank: int


_FAMILIES = {
    "atlas-large": _Family(400_000, False, 0.92, 1),
    "quill-code": _Family(200_000, False, 0.81, 2),
    "lumen-vision": _Family(128_000, True, 0.66, 3),
    "atlas-mini": _Family(64_000, False, 0.52, 4),
}


@dataclass(frozen=True)
class _Listing:
    provider: str
    family: str
    price_in: float
    price_out: float
    median_ms: float
    peer: str | None = None


# In candidate order. USD per million tokens; the median latency of an answer in ms.
_LISTINGS = (
    _Listing("openai_codex", "atlas-large", 2.5, 12.0, 2600),
    _Listing("openai_codex", "quill-code", 1.25, 10.0, 2200),
    _Listing("bedrock", "atlas-large", 3.0, 15.0, 2100),
    _Listing("bedrock", "quill-code", 2.0, 9.0, 1700),
    _Listing("bedrock", "lumen-vision", 1.0, 4.0, 1500),
    _Listing("bedrock", "atlas-mini", 0.6, 2.4, 700),
    _Listing("openrouter", "atlas-large", 2.8, 13.5, 2400),
    _Listing("openrouter", "quill-code", 1.6, 7.5, 1900),
    _Listing("openrouter", "lumen-vision", 0.55, 2.4, 1700),
    _Listing("openrouter", "atlas-mini", 0.5, 2.0, 950),
    _Listing("northlight", "quill-code", 1.5, 7.0, 1400),
    _Listing("northlight", "lumen-vision", 0.8, 3.4, 1200),
    _Listing("northlight", "atlas-mini", 0.34, 1.35, 600),
    _Listing("antseed", "atlas-large", 2.0, 9.5, 3200, "peer-aster"),
    _Listing("antseed", "atlas-mini", 0.24, 0.96, 1300, "peer-aster"),
    _Listing("antseed", "atlas-mini", 0.32, 1.25, 1100, "peer-birch"),
    _Listing("antseed", "quill-code", 1.1, 5.0, 2300, "peer-birch"),
    _Listing("antseed", "atlas-mini", 0.25, 1.0, 1200, "peer-cedar"),
    _Listing("antseed", "lumen-vision", 0.6, 2.6, 1900, "peer-cedar"),
    _Listing("antseed", "atlas-large", 1.9, 9.0, 2900, "peer-dune"),
    _Listing("antseed", "quill-code", 1.0, 4.8, 2100, "peer-dune"),
)

_SUCCESS = {"openai_codex": 0.985, "bedrock": 0.995, "openrouter": 0.985, "northlight": 0.99, "antseed": 0.96}
_TIERS = {"bedrock": "partner", "openai_codex": "partner", "antseed": "marketplace"}
_KEY_TROUBLE = (("server_error", 4.0), ("network_error", 2.0), ("rate_limit", 2.0), ("auth_error", 2.0))
_PEER_FAILURES = (("timeout", 2.0), ("network_error", 3.0), ("model_unavailable", 2.0), ("bad_response", 1.0))


@cache
def policies() -> dict[str, Policy]:
    """The router's own policy, `balanced`, and the profiles that some calls bring along."""
    schema = Schema.declare(SHIPPED_FIELDS, CORE_SCHEMA.tiers)
    return {name: admit(load_policy(name), schema) for name in ("balanced", "cheapest", "exploring")}


def scenario(seed: int) -> Scenario:
    """Return the week; the seed varies who asks for what and when, not what is offered or what goes wrong."""
    return Scenario(
        offers=tuple(_offers()),
        routes={_route_key(listing): _model(listing) for listing in _LISTINGS},
        arrivals=tuple(sorted(_arrivals(Luck(seed)), key=lambda arrival: arrival.at_ms)),
        lives=LIVES,
        incidents=INCIDENTS,
        write_lag_ms=(20, 400),
    )


def _route_key(listing: _Listing) -> str:
    return f"{listing.provider}|{listing.family}|{listing.peer or listing.provider}"


def _model(listing: _Listing) -> RouteModel:
    model = RouteModel(success_rate=_SUCCESS[listing.provider], latency_median_ms=listing.median_ms)
    if listing.peer is not None:
        model = replace(model, latency_sigma=0.6, failures=_PEER_FAILURES)
    elif listing.provider == "openrouter":
        model = replace(model, failures=_KEY_TROUBLE)
    if _route_key(listing) == SILENT_ROUTE:
        model = replace(model, tool_rate=0.0)
    return replace(
        model,
        reported_cost=1.2 if listing.provider == "openrouter" else None,
        subscription=listing.provider == "openai_codex",
    )


def _offers() -> Iterator[OfferRow]:
    """The rows of `offer_history`: one per listing, two where the price changed; ids follow in order."""
    number = 0
    for position, listing in enumerate(_LISTINGS):
        row = _offer(position, listing)
        rows = [row]
        if listing.peer == "peer-dune":
            rows = [replace(row, valid_from=PEER_JOINS_MS, valid_to=PEER_LEAVES_MS)]
        elif _route_key(listing) == "northlight|quill-code|northlight":
            cheaper = replace(row, valid_from=PRICE_CHANGE_MS, price_in=0.9, price_out=4.4, price_cached_in=0.18)
            rows = [replace(row, valid_to=PRICE_CHANGE_MS), cheaper]
        for row in rows:
            number += 1
            yield replace(row, id=number)


def _offer(position: int, listing: _Listing) -> OfferRow:
    family = _FAMILIES[listing.family]
    capabilities = {"supports_tools": True, "supports_json_mode": listing.provider != "antseed"}
    if family.vision:
        capabilities["supports_vision"] = True
    declared: dict[str, Any] = {
        "bench_intelligence": family.intelligence,
        "bench_intelligence_rank": family.rank,
        "cap_tools": True,
    }
    if listing.peer is not None:
        declared["reputation_score"] = 60 + position
    return OfferRow(
        valid_from=START_MS - DAY_MS,
        position=position,
        provider_id=listing.provider,
        model_family=listing.family,
        served_model_id=f"{listing.family}-2026",
        peer_id=listing.peer,
        tier=_TIERS.get(listing.provider),
        price_in=listing.price_in,
        price_out=listing.price_out,
        price_cached_in=None if listing.peer else round(listing.price_in * 0.2, 4),
        price_multiplier=0.9 if listing.provider == "openai_codex" else None,
        capabilities=json.dumps(capabilities, sort_keys=True),
        context=family.context,
        tok_s=None if listing.peer else round(120_000 / listing.median_ms, 1),
        has_tee=True if listing.peer == "peer-aster" else None,
        no_log=True if listing.provider == "bedrock" else None,
        declared=json.dumps(declared, sort_keys=True),
    )


def _arrivals(luck: Luck) -> Iterator[Arrival]:
    """Bursts of overlapping sessions by day, a trickle of single calls around the clock."""
    sessions = [*_bursts(luck), *_trickle(luck)]
    sessions.sort()
    number = 0
    for at_ms, name, turns in sessions:
        for turn in range(turns):
            number += 1
            yield _arrival(luck, at_ms, name, turn, f"call-{number:05d}")
            at_ms += luck.whole(12_000, 75_000, name, turn, "pause")


def _bursts(luck: Luck) -> Iterator[tuple[int, str, int]]:
    """(start in ms, name, turns) of every session that belongs to a busy half-hour."""
    for day in range(7):
        hours = (7, 9, 10, 11, 13, 14, 16, 20) if day < 5 else (10, 13, 17, 21)
        for hour in hours:
            begin_ms = START_MS + day * DAY_MS + hour * HOUR_MS + luck.whole(0, 25, day, hour, "begin") * MINUTE_MS
            for session in range(luck.whole(11, 16, day, hour, "sessions")):
                name = f"s{day}{hour:02d}{session:02d}"
                at_ms = begin_ms + luck.whole(0, 14 * MINUTE_MS, name, "start")
                yield at_ms, name, luck.whole(5, 13, name, "turns")


def _trickle(luck: Luck) -> Iterator[tuple[int, str, int]]:
    for slot in range(7 * 24 * 6):
        if luck.draw("trickle", slot) < 0.8:
            name = f"t{slot:04d}"
            yield START_MS + slot * 10 * MINUTE_MS + luck.whole(0, 10 * MINUTE_MS, name, "start"), name, 1


def _arrival(luck: Luck, at_ms: int, session: str, turn: int, event_id: str) -> Arrival:
    tokens_in = luck.whole(300, 4_000, session, "prompt")
    for earlier in range(turn):
        tokens_in += luck.whole(200, 1_800, session, earlier, "growth")
    refused = luck.draw(event_id, "refused") < 0.006
    hangs_up = luck.draw(event_id, "hangs up") < 0.012
    profile = _profile(luck, session, event_id)
    consumer = luck.pick([("acme", 5.0), ("bravo", 3.0), ("corvid", 2.0)], session, "consumer")
    request = CallRequest(
        **_needs(luck, session, event_id),
        seed=luck.whole(1, 2**31 - 2, event_id, "seed"),
        policy=None if profile is None else policies()[profile],
        requested_model=None if profile is None else f"profile:{profile}",
        session_id=session,
        consumer_sha=hashlib.sha256(consumer.encode()).hexdigest(),
        caller=luck.pick([("ide", 6.0), ("chat", 3.0), ("batch", 1.0)], session, "caller"),
        usage_event_id=event_id,
    )
    return Arrival(
        at_ms=at_ms,
        request=request,
        tokens_in=tokens_in,
        tokens_out=luck.whole(40, 900, event_id, "answer"),
        client_error="bad_request" if refused else None,
        hang_up_after_ms=luck.whole(100, 3_000, event_id, "hang up") if hangs_up else None,
    )


def _profile(luck: Luck, session: str, event_id: str) -> str | None:
    """A quarter of the sessions want it cheap; one call in ten explores, which is how unchosen routes get measured."""
    if luck.draw(event_id, "explores") < 0.1:
        return "exploring"
    return "cheapest" if luck.draw(session, "frugal") < 0.25 else None


def _needs(luck: Luck, session: str, event_id: str) -> dict[str, Any]:
    """What a session's calls ask for: its kind of work decides, and now and then a call names a route itself."""
    kinds: list[tuple[dict[str, Any], float]] = [
        ({"tools": True}, 30.0),
        ({"tools": True, "requirements": {"min_context": 100_000}}, 9.0),
        ({}, 23.0),
        ({"requirements": {"min_context": 150_000}}, 10.0),
        ({"response_format": {"type": "json_object"}}, 12.0),
        ({"images": True}, 8.0),
        ({"requirements": {"tier": "partner"}}, 2.0),
        ({"requirements": {"privacy": "no_log"}}, 2.0),
        ({"envelope": ["not", ["provider_eq", "antseed"]]}, 4.0),
    ]
    needs: dict[str, Any] = luck.pick(kinds, session, "kind")
    if luck.draw(event_id, "pin") < 0.02:
        return {"requirements": {"pin": {"provider": "bedrock", "model": "atlas-large"}}}
    if luck.draw(event_id, "family") < 0.06 and "images" not in needs:
        family = luck.pick([(name, 1.0) for name in _FAMILIES], event_id, "which family")
        return {**needs, "requirements": {"model_family": family}}
    return needs
