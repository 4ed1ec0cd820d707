"""A bench for the router: a clock that moves only when told, scripted providers, and a ledger that keeps rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from replay.calls import CallOutcome, CallRequest, Offer, Response
from replay.core import Candidate, admit
from replay.ledger.memory import MemoryLedger
from replay.router import Router
from replay.settings import PRODUCTION_NOW, Settings

START_MS = 1_772_409_600_000


class ManualClock:
    """Time that passes only where somebody waits."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now = now_ms

    def now_ms(self) -> int:
        """The present instant."""
        return self.now

    def sleep(self, duration_ms: float) -> None:
        """Let time pass."""
        self.now += int(duration_ms)

    async def sleep_async(self, duration_ms: float) -> None:
        """Let time pass."""
        self.now += int(duration_ms)

    async def work_async(self, work: Callable[[], Any]) -> Any:
        """Do it at once."""
        return work()


Script = Sequence[tuple[int, CallOutcome | BaseException]]
"""What happens at each attempt, in order: it takes so many ms, then gives an outcome or raises."""

ORDERED = [
    "policy",
    ["meets_req"],
    ["zero"],
    ["prefer", ["not", ["is", "breaker_open"]], ["ordered"]],
    ["id"],
    [
        "override",
        [
            "override",
            ["override", ["always", {"action": "next_candidate"}], "stream_interrupted", {"action": "abort"}],
            "server_error",
            {"action": "retry_same", "attempts": 1, "backoff_ms": 500, "then_action": "next_candidate"},
        ],
        "auth_error",
        {"action": "disable_provider"},
    ],
]
"""Candidates in their order, those with a closed breaker first; every kind of action is within reach."""


class Bench:
    """One router over three offers of three providers, with what it recorded."""

    def __init__(
        self,
        *,
        term: Any = None,
        offers: Sequence[Offer] | None = None,
        settings: Settings = PRODUCTION_NOW,
        stamps: Any = None,
        recorder: Any = None,
    ) -> None:
        self.clock = ManualClock()
        self.policy = admit(ORDERED if term is None else term)
        self.ledger = MemoryLedger(settings, self.clock)
        self.offers = tuple(offers) if offers is not None else tuple(map(self.offer, ("ant", "bee", "cat")))
        self.router = Router(
            self.policy,
            lambda now_ms: self.offers,
            self.ledger if stamps is None else stamps,
            self.ledger if recorder is None else recorder,
            self.clock,
            "replica-1",
            settings,
        )

    @staticmethod
    def offer(provider_id: str, **changes: Any) -> Offer:
        """An offer at 3 and 15 USD per million tokens; keyword arguments change its candidate."""
        price_cached_in = changes.pop("price_cached_in", None)
        values: dict[str, Any] = {
            "provider_id": provider_id,
            "model_family": "atlas",
            "served_model_id": "atlas-1",
            "capabilities": {"supports_tools": True, "context": 100_000},
            "fields": {"price_in": 3.0, "price_out": 15.0},
        }
        return Offer(Candidate(**(values | changes)), price_cached_in)

    def run(self, script: Script, request: CallRequest | None = None, *, mode: str = "sync") -> Response:
        """Route one call whose attempts follow the script, by `execute` or `execute_async`."""
        request, left = request or CallRequest(), list(script)

        def play(candidate: Candidate, request: CallRequest) -> CallOutcome:
            takes_ms, end = left.pop(0)
            self.clock.now += takes_ms
            if isinstance(end, BaseException):
                raise end
            return end

        async def play_async(candidate: Candidate, request: CallRequest) -> CallOutcome:
            return play(candidate, request)

        if mode == "sync":
            return self.router.execute(request, play)
        return asyncio.run(self.router.execute_async(request, play_async))

    def rows(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The recorded calls and attempts."""
        self.ledger.flush()
        return self.ledger.rows()


@pytest.fixture(scope="session")
def new_bench() -> Callable[..., Bench]:
    """Make a bench; keyword arguments as `Bench`."""
    return Bench


@pytest.fixture
def bench() -> Bench:
    """The plain bench."""
    return Bench()
