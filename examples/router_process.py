"""One router process under load, over fake providers: `three_routers.py` starts several of them on one PostgreSQL.

    DATABASE_URL=postgresql://… python examples/router_process.py --replica a --seconds 10

It needs the base install only. Whatever could matter to a replay is in its traffic: sessions (some with another
caller's id), tools, policies that come with a call, envelopes, clients that hang up, limits, breakers, disabled
providers, a price change. Its last line is JSON: what was asked, and what became of the rows.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from replay.calls import CallRequest, Response
from replay.clock import SystemClock
from replay.core import Candidate, Schema, admit, load_policy
from replay.estimators import ToolsWindow, Window
from replay.ledger.rows import OfferRow
from replay.ledger.store import Store
from replay.router import Router
from replay.settings import Measure, Settings, Tools
from replay.virtual import Luck
from replay.world import OfferBook
from upstreams import CAPABLE, DECLARED, FAMILY, Upstream

SETTINGS = Settings(
    name="five-seconds",
    reliability=Measure(rule=Window(5_000)),
    latency=Measure(rule=Window(5_000)),
    tools=Tools(rule=ToolsWindow(min_samples=20, window_ms=5_000)),
)
"""Short windows, so that evidence comes and goes within a short run."""

POLICY = [
    "policy",
    ["and", ["meets_req"], ["not", ["is", "disabled"]]],
    [
        "add",
        ["scale", 0.8, ["field", "success_rate"]],
        ["scale", 0.1, ["neg", ["normalize", ["field", "latency_ms"]]]],
        ["scale", 0.05, ["neg", ["normalize", ["field", "price_in"]]]],
        ["gate", ["is", "cache_hot"], ["lit", 0.02]],
    ],
    ["prefer", ["not", ["is", "breaker_open"]], ["argmax"]],
    ["id"],
    [
        "override",
        [
            "override",
            ["override", ["always", {"action": "next_candidate"}], "auth_error", {"action": "disable_provider"}],
            "rate_limit",
            {"action": "next_candidate", "open_breaker_ms": 30_000},
        ],
        "network_error",
        {"action": "retry_same", "attempts": 1, "backoff_ms": 5, "then_action": "next_candidate"},
    ],
]
"""Routes of nearly the same success: what a decision saw of the last attempts is what turns it."""

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
THREADS = 12


def offers(price_change_ms: int) -> tuple[tuple[OfferRow, ...], tuple[OfferRow, ...]]:
    """The candidates before and after an instant at which the first provider becomes the cheapest."""
    before = tuple(
        OfferRow(valid_from=0, valid_to=price_change_ms, position=place, provider_id=name, price_in=1.0 + place,
                 price_out=8.0, capabilities=CAPABLE, peer_id=peer, tier="marketplace" if peer else None, **FAMILY)
        for place, (name, peer) in enumerate(
            [("alder", None), ("birch", None), ("cedar", None), ("bazaar", "peer-fig"), ("bazaar", "peer-yew")]
        )
    )  # fmt: skip
    after = [replace(row, valid_from=price_change_ms, valid_to=None) for row in before]
    return before, (replace(after[0], price_in=0.2), *after[1:])


def upstreams(luck: Luck) -> dict[str, Upstream]:
    """Providers that fail in every way, each a little differently, drawn once for a long script."""
    made = {}
    for number, name in enumerate(("alder", "birch", "cedar", "bazaar")):
        kinds = [("ok", 0.85), ("server_error", 0.06), ("network_error", 0.04), ("timeout", 0.03), ("rate_limit", 0.01)]
        kinds += [("stream_interrupted", 0.01), ("auth_error", 0.001 if name == "cedar" else 0.0)]
        script = [luck.pick(kinds, name, place) for place in range(997)]
        made[name] = Upstream(4 + 2 * number, script, ignores_tools=name == "bazaar")
    return made


def request(number: int, luck: Luck) -> CallRequest:
    """The process's call number so and so."""
    session = luck.whole(1, 40, number, "session")
    callers = [(f"caller-{session % 7}", 0.95), ("somebody else", 0.05)]
    own_policy = luck.draw(number, "policy") < 0.05
    return CallRequest(
        session_id=f"session-{session}" if luck.draw(number, "in session") < 0.7 else None,
        caller=luck.pick(callers, number, "caller"),
        tools=[TOOL] if luck.draw(number, "tools") < 0.4 else None,
        envelope=["not", ["provider_eq", "birch"]] if luck.draw(number, "envelope") < 0.1 else None,
        seed=number,
        policy=admit(load_policy("exploring")) if own_policy else None,
        payload={"messages": [{"role": "user", "content": f"call number {number}"}]},
        max_attempts=4,
        deadline_ms=500,
        on_chunk=_hang_up if luck.draw(number, "hangs up") < 0.01 else None,
    )


def _hang_up(item: Any) -> None:
    raise ConnectionAbortedError("the client is gone")


class Load:
    """Calls at a steady rate, from threads or from an event loop; `asked` counts how they ended."""

    def __init__(self, router: Router, luck: Luck, calls_per_second: float, seconds: float) -> None:
        self.router = router
        self.luck = luck
        self.upstreams = upstreams(luck)
        self.calls = round(calls_per_second * seconds)
        self.pause_s = 1 / calls_per_second
        self.began = time.monotonic()
        self.ended: Counter[str] = Counter()

    def _late_s(self, number: int) -> float:
        return max(0.0, self.began + number * self.pause_s - time.monotonic())

    def _call(self, candidate: Candidate, request: CallRequest) -> Iterator[Any]:
        return self.upstreams[candidate.provider_id](candidate, request)

    async def _call_async(self, candidate: Candidate, request: CallRequest) -> Any:
        async def stream() -> Any:
            for item in await asyncio.to_thread(list, self._call(candidate, request)):
                yield item

        return stream()

    def threads(self) -> None:
        """Make every call with `execute`."""

        def one(number: int) -> str:
            time.sleep(self._late_s(number))
            try:
                return _how(self.router.execute(request(number, self.luck), self._call))
            except ConnectionAbortedError:
                return "hung up"

        with ThreadPoolExecutor(THREADS) as pool:
            self.ended.update(pool.map(one, range(self.calls)))

    async def loop(self) -> None:
        """Make every call with `execute_async`; one in a hundred is cancelled."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        in_flight = asyncio.Semaphore(THREADS)

        async def one(number: int) -> str:
            made = self.router.execute_async(request(number, self.luck), self._call_async)
            try:
                async with in_flight, asyncio.timeout(0.005 if self.luck.draw(number, "cancelled") < 0.01 else None):
                    return _how(await made)
            except ConnectionAbortedError:
                return "hung up"
            except TimeoutError:
                return "cancelled"

        tasks = []
        for number in range(self.calls):
            await asyncio.sleep(self._late_s(number))
            tasks.append(asyncio.create_task(one(number)))
        self.ended.update(await asyncio.gather(*tasks))


def _how(response: Response) -> str:
    evidence = "" if response.call.evidence_state == "ok" else ", without evidence"
    return ("answered" if response.ok else "failed") + evidence


def main() -> None:
    """Run the load, write what is queued, and say what happened."""
    parser = argparse.ArgumentParser(description="One router process under load.")
    parser.add_argument("--replica", required=True)
    parser.add_argument("--calls-per-second", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--price-change-ms", type=int, default=0)
    parser.add_argument("--memo-ms", type=int, default=None)
    parser.add_argument("--queue-size", type=int, default=10_000)
    parser.add_argument("--loop", action="store_true", help="use an event loop instead of threads")
    given = parser.parse_args()
    logging.basicConfig(format=f"{given.replica}: %(message)s")
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # the store says in a line what it says in hundreds
    settings = replace(SETTINGS, memo_ms=given.memo_ms)
    store = Store(settings=settings, queue_size=given.queue_size)
    before, after = offers(given.price_change_ms)
    router = Router(
        policy=admit(POLICY, Schema.declare(DECLARED)),
        offers=OfferBook([*before, *after]).at,
        stamps=store,
        recorder=store,
        clock=SystemClock(),
        replica=given.replica,
        settings=settings,
    )
    load = Load(router, Luck(int.from_bytes(given.replica.encode()) % 2**31), given.calls_per_second, given.seconds)
    if given.loop:
        asyncio.run(load.loop())
    else:
        load.threads()
    drained = store.close(deadline_s=30)
    told = {"calls": load.calls, "ended": load.ended, **dataclasses.asdict(drained), "counters": store.counters()}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
