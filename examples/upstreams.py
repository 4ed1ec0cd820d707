"""Fake providers for the examples: they take their time, fail as their script says, and cost nothing.

A real host puts its provider clients in the place of `Upstream`; the offers would come from its catalogue.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from replay.calls import CallOutcome, CallRequest
from replay.core import Candidate
from replay.ledger.rows import OfferRow

FAMILY: dict[str, Any] = {"model_family": "atlas", "served_model_id": "atlas-1", "context": 128_000}
CAPABLE = json.dumps({"supports_tools": True, "supports_vision": True, "supports_json_mode": True})
OFFERS = (
    OfferRow(valid_from=0, position=0, provider_id="bazaar", peer_id="peer-fig", tier="marketplace",
             price_in=1.0, price_out=4.0, capabilities=CAPABLE, **FAMILY),
    OfferRow(valid_from=0, position=1, provider_id="meadow", price_in=2.0, price_out=8.0,
             capabilities=CAPABLE, **FAMILY),
    OfferRow(valid_from=0, position=2, provider_id="summit", price_in=3.0, price_out=15.0, price_cached_in=0.3,
             capabilities=CAPABLE, **FAMILY),
)  # fmt: skip
"""What can be called, cheapest first; prices in USD per million tokens."""

POLICY = [
    "policy",
    ["and", ["meets_req"], ["not", ["is", "disabled"]], ["cmp", "success_rate", "ge", 0.5]],
    [
        "add",
        ["gate", ["is", "cache_hot"], ["lit", 0.3]],
        ["scale", 0.5, ["neg", ["normalize", ["field", "price_in"]]]],
        ["scale", 0.5, ["field", "success_rate"]],
    ],
    ["prefer", ["not", ["is", "breaker_open"]], ["argmax"]],
    ["id"],
    [
        "override",
        ["override", ["always", {"action": "next_candidate"}], "stream_interrupted", {"action": "abort"}],
        "network_error",
        {"action": "retry_same", "attempts": 1, "backoff_ms": 20, "then_action": "next_candidate"},
    ],
]
"""Reliable and cheap, and where the session's cache is hot; `cache_hot` is a declared field."""

DECLARED = {"cache_hot": {"sort": "Bool", "default": False}}


class Upstream:
    """One fake provider. It takes `latency_ms` and follows its script, over and over: "ok" or an error kind.

    "stream_interrupted" breaks off after the first word. It remembers how many tokens a session had, as prompt caches
    do, and calls the first tool it is offered unless it `ignores_tools`.
    """

    def __init__(self, latency_ms: float = 5, script: Sequence[str] = ("ok",), ignores_tools: bool = False) -> None:
        self.latency_ms = latency_ms
        self.ignores_tools = ignores_tools
        self._script = itertools.cycle(script)
        self._lock = threading.Lock()
        self._cached: dict[str, int] = {}

    def __call__(self, candidate: Candidate, request: CallRequest) -> Iterator[Any]:
        """Answer one attempt: the words as they come, then the outcome, whose value is the whole message."""
        with self._lock:
            end = next(self._script)
        left_ms = self.latency_ms if request.deadline_ms is None else min(self.latency_ms, request.deadline_ms)
        time.sleep(left_ms / 1000)
        if left_ms < self.latency_ms:
            end = "timeout"
        if end not in ("ok", "stream_interrupted"):
            yield CallOutcome(ok=False, error_kind=end)
            return
        asked = _text(request.payload["messages"][-1])
        words = f"{candidate.served_model_id} of {candidate.served_by} heard: {asked}".split()
        tokens_in = sum(len(_text(message).split()) for message in request.payload["messages"])
        tools = None if self.ignores_tools else request.tools
        for word in [] if tools else words:
            yield {"content": f"{word} "}
            if end == "stream_interrupted":
                raise ConnectionResetError
        tool_calls = [_tool_call(tools[0])] if tools else None
        if tool_calls:
            yield {"tool_calls": tool_calls}
        message = {"role": "assistant", "content": None if tools else " ".join(words)}
        yield CallOutcome(
            ok=True,
            tokens_in=tokens_in,
            tokens_out=len(words),
            tokens_cached=self._cache(request.session_id, tokens_in),
            tool_calls_emitted=bool(tool_calls),
            value=message | ({"tool_calls": tool_calls} if tool_calls else {}),
        )

    def _cache(self, session_id: str | None, tokens_in: int) -> int:
        """Return how many of a session's tokens were cached, and cache them all."""
        if not session_id:
            return 0
        with self._lock:
            cached, self._cached[session_id] = self._cached.get(session_id, 0), tokens_in
        return min(cached, tokens_in)


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _tool_call(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": tool["function"]["name"], "arguments": "{}"}
    return {"index": 0, "id": "call-1", "type": "function", "function": function}
