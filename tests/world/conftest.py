"""A small scenario: two routes of one family, one call every ten seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from replay.calls import CallRequest
from replay.ledger.rows import OfferRow
from replay.world import Arrival, Life, RouteModel, Scenario

ORDERED = ["policy", ["meets_req"], ["zero"], ["ordered"], ["id"], ["always", {"action": "next_candidate"}]]


def _small(**changes: Any) -> Scenario:
    calls = changes.pop("calls", 50)
    request = changes.pop("request", {})
    arrival = changes.pop("arrival", {})
    values: dict[str, Any] = {
        "offers": tuple(
            OfferRow(
                id=place,
                valid_from=0,
                position=place,
                provider_id=name,
                model_family="m",
                price_in=1.0,
                price_out=2.0,
                capabilities='{"supports_tools": true}',
            )
            for place, name in enumerate(("p", "q"), start=1)
        ),
        "routes": {"p|m|p": RouteModel(success_rate=0.7), "q|m|q": RouteModel(success_rate=1.0)},
        "arrivals": tuple(
            Arrival(
                at_ms=number * 10_000,
                request=CallRequest(usage_event_id=f"c{number}", **request),
                tokens_in=1000,
                tokens_out=100,
                **arrival,
            )
            for number in range(calls)
        ),
        "lives": (Life(replica="one", slot=0, start_ms=0),),
    }
    return Scenario(**(values | changes))


@pytest.fixture(scope="session")
def small() -> Callable[..., Scenario]:
    """Make the small scenario; keyword arguments replace its parts, its requests' and its arrivals'."""
    return _small


@pytest.fixture(scope="session")
def ordered() -> Any:
    """A policy term that takes candidates in their order and falls back down the list."""
    return ORDERED
