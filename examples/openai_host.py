"""A host to copy: an OpenAI-compatible endpoint on loopback, routed by Route Replay and recorded in PostgreSQL.

    DATABASE_URL=postgresql://… python examples/openai_host.py --port 8080

It needs the base install only (`pip install route-replay`, and libpq). The providers are fakes (`upstreams.py`).

POST /v1/chat/completions   model: "auto", a family ("atlas") or "provider/family"; `stream` and `tools` as usual
GET  /v1/models             the families on offer
GET  /health                the store's counters, for a monitor

A request's session is its header `x-session-id`; its caller is known by the API key, of which only a hash is kept. The
response's headers say what was routed (`x-route-chosen`, `x-route-cost-usd`, …); in a stream the last chunk does.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from replay.calls import CallRequest, Offer, Response
from replay.clock import SystemClock
from replay.core import Candidate, Schema, admit
from replay.errors import ReplayError
from replay.ledger.store import Store
from replay.router import Router
from replay.settings import PRODUCTION_NOW
from upstreams import DECLARED, OFFERS, POLICY, Upstream

DEADLINE_MS = 30_000
MAX_ATTEMPTS = 5
MAX_BODY_BYTES = 10_000_000


class Host(ThreadingHTTPServer):
    """The server and what its request threads share: one store, one router, the providers by their id."""

    daemon_threads = False  # closing waits for the requests in flight, so that they are recorded

    def __init__(self, port: int, store: Store, upstreams: Mapping[str, Upstream]) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        clock = SystemClock()
        offers = tuple(map(Offer.from_row, OFFERS))
        store.record_offers(OFFERS, clock.now_ms())
        self.store = store
        self.upstreams = upstreams
        self.router = Router(
            policy=admit(POLICY, Schema.declare(DECLARED)),
            offers=lambda now_ms: offers,
            stamps=store,
            recorder=store,
            clock=clock,
            replica=f"host-{uuid.uuid4().hex[:12]}",  # one life of this process
            settings=PRODUCTION_NOW,
        )

    def call(self, candidate: Candidate, request: CallRequest) -> Iterator[Any]:
        """The provider callable: hand the request to the candidate's provider."""
        return self.upstreams[candidate.provider_id](candidate, request)


class Handler(BaseHTTPRequestHandler):
    """One request in the form OpenAI's clients speak."""

    server: Host
    timeout = 30  # s, for a client that says nothing

    def do_GET(self) -> None:
        """Say which models there are, or how the store is."""
        if self.path == "/v1/models":
            models = [{"id": name, "object": "model", "owned_by": "route-replay"} for name in ("auto", *families())]
            self._send(200, {"object": "list", "data": models})
        elif self.path == "/health":
            self._send(200, self.server.store.counters())
        else:
            self._send(404, error("there is no such page", "not_found"))

    def do_POST(self) -> None:
        """Route a chat completion; a client that hangs up leaves a call recorded as cancelled."""
        length = self.headers.get("content-length", "0")
        with contextlib.suppress(ConnectionError):
            if self.path != "/v1/chat/completions":
                self._send(404, error("there is no such page", "not_found"))
            elif not length.isdigit() or int(length) > MAX_BODY_BYTES:
                self._send(413, error(f"expected at most {MAX_BODY_BYTES:,} bytes", "bad_request"))
            else:
                self._complete(self.rfile.read(int(length)))

    def _complete(self, body: bytes) -> None:
        stream = Stream(self)
        try:
            asked = json.loads(body)
            request = self._request(asked, stream)
        except (ValueError, KeyError, TypeError, AttributeError):
            self._send(400, error("expected a chat completion as JSON: model and messages", "bad_request"))
            return
        try:
            response = self.server.router.execute(request, self.server.call)
        except ReplayError as refused:
            self._send(400, error(str(refused), "bad_request"))
        else:
            self._answer(asked, response, stream)

    def _request(self, asked: dict[str, Any], stream: Stream) -> CallRequest:
        """Translate a chat completion; what the core needs to know of it, and the whole of it for the provider."""
        provider, _, family = asked["model"].rpartition("/")
        wanted = {"pin": {"provider": provider, "model": family}} if provider else {"model_family": family}
        key = self.headers.get("authorization", "").removeprefix("Bearer ").encode()
        digest = hashlib.sha256(key).hexdigest() if key else None
        return CallRequest(
            requirements={} if family == "auto" else wanted,
            tools=asked.get("tools"),
            images=any(isinstance(message["content"], list) for message in asked["messages"]),
            response_format=asked.get("response_format"),
            seed=asked.get("seed") or 0,
            session_id=self.headers.get("x-session-id"),
            caller=digest and f"key-{digest[:12]}",
            consumer_sha=digest,
            payload=asked,
            on_chunk=stream.relay if asked.get("stream") else None,
            max_attempts=MAX_ATTEMPTS,
            deadline_ms=DEADLINE_MS,
        )

    def _answer(self, asked: dict[str, Any], response: Response, stream: Stream) -> None:
        """Send the whole answer, the end of a stream, or an error in the form the client expects."""
        told = response.metadata()
        call = response.call
        if not response.ok:
            refusal = error(f"no route answered: {response.error}", call.error_type or "no_candidates")
            if stream.begun:
                stream.send(refusal)
                stream.end()
            else:
                self._send(call.status or 502, refusal, told)
            return
        usage = {
            "prompt_tokens": call.tokens_in,
            "completion_tokens": call.tokens_out,
            "total_tokens": call.tokens_total,
            "prompt_tokens_details": {"cached_tokens": call.tokens_cached},
        }
        finish = "tool_calls" if response.value.get("tool_calls") else "stop"
        if asked.get("stream"):
            stream.chunk({}, finish)
            stream.chunk(None, usage=usage, route=told)
            stream.end()
            return
        choice = {"index": 0, "message": response.value, "finish_reason": finish}
        self._send(200, completion("chat.completion", call.served_model_id, [choice], usage=usage), told)

    def _send(self, status: int, body: dict[str, Any], told: Mapping[str, Any] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in (told or {}).items():
            self.send_header(f"x-route-{name.replace('_', '-')}", str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keep quiet: a request line can hold what a log must not."""


class Stream:
    """A streamed answer; its head is sent with the first chunk, since until then another route may still be tried."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.begun = False

    def relay(self, delta: dict[str, Any]) -> None:
        """Pass on what a provider said."""
        self.chunk(delta)

    def chunk(self, delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> None:
        """Send one chunk; None as delta sends one without choices."""
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
        self.send(completion("chat.completion.chunk", None, choices, **more))

    def send(self, event: dict[str, Any]) -> None:
        """Send one event."""
        if not self.begun:
            self.begun = True
            self.handler.send_response(200)
            self.handler.send_header("content-type", "text/event-stream")
            self.handler.end_headers()
        self.handler.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def end(self) -> None:
        """Say that the answer is over."""
        self.handler.wfile.write(b"data: [DONE]\n\n")


def families() -> list[str]:
    """The model families on offer."""
    return sorted({offer.model_family for offer in OFFERS if offer.model_family})


def completion(kind: str, model: str | None, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A completion, or a chunk of one."""
    return {
        "id": "chatcmpl-route-replay",
        "object": kind,
        "created": int(time.time()),
        "model": model or "auto",
        "choices": choices,
        **more,
    }


def error(message: str, code: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": code, "code": code}}


def main() -> None:
    """Serve until Ctrl-C, then write what is still queued."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible host over fake providers.")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    port = parser.parse_args().port
    upstreams = {
        "bazaar": Upstream(15, ["ok", "rate_limit", "ok", "ok"], ignores_tools=True),
        "meadow": Upstream(25, ["ok", "ok", "ok", "network_error"]),
        "summit": Upstream(40),
    }
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what is queued is still written
    try:
        with Store(os.environ.get("DATABASE_URL")) as store, Host(port, store, upstreams) as host:
            store.ready(deadline_s=5)  # a new database gets its tables; where there is no server yet, go on without
            print(f"listening on http://127.0.0.1:{host.server_address[1]}/v1", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                host.serve_forever()
    except ReplayError as refused:
        sys.exit(str(refused))


if __name__ == "__main__":
    main()
