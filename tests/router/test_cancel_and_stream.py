"""Calls that are cancelled or streamed: the attempt ends when the caller goes or the stream ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from replay.calls import CallOutcome, CallRequest
from replay.clock import SystemClock
from replay.core import Candidate
from replay.stamps import Evidence

OK = CallOutcome(ok=True, tokens_in=10, tokens_out=2)


def test_a_cancelled_task_records_the_attempt_in_flight_and_the_call(bench: Any) -> None:
    """asyncio's cancellation goes on to the caller after both rows are written."""

    async def hang(candidate: Candidate, request: CallRequest) -> CallOutcome:
        bench.clock.now += 40
        await asyncio.Event().wait()
        return OK

    async def main() -> None:
        task = asyncio.create_task(bench.router.execute_async(CallRequest(), hang))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    (call,), (attempt,) = bench.rows()
    assert (attempt.ok, attempt.error_kind, attempt.latency_ms, attempt.replica_seq) == (False, "cancelled", 40.0, 2)
    assert (call.status, call.error_type, call.route_key) == (499, "cancelled", "ant|atlas|ant")


def test_a_call_cancelled_while_it_waits_to_retry_has_no_attempt_in_flight(bench: Any) -> None:
    """Only the attempt that ended is recorded, and the call once."""

    async def fail(candidate: Candidate, request: CallRequest) -> CallOutcome:
        return CallOutcome(ok=False, error_kind="server_error")

    async def never(duration_ms: float) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        bench.clock.sleep_async = never
        task = asyncio.create_task(bench.router.execute_async(CallRequest(), fail))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    (call,), attempts = bench.rows()
    assert [a.error_kind for a in attempts] == ["server_error"]
    assert (call.status, call.error_type) == (499, "cancelled")


def test_a_cancellation_counts_for_the_breaker_as_its_row_says(bench: Any) -> None:
    """Three cancelled attempts in a row open the breaker, as folding the three rows would."""
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            bench.run([(1, KeyboardInterrupt())])
    assert bench.router.health.open_breakers(bench.clock.now) == {"ant"}
    bench.run([(1, OK)])
    assert bench.rows()[0][-1].route_key == "bee|atlas|bee"


class Blocking:
    """Stamps whose reading blocks its thread until it is let go."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def read(self, now_ms: int) -> Evidence:
        """Wait, then say nothing."""
        self.entered.set()
        assert self.go.wait(30)
        return Evidence(now_ms)


def with_real_waiting(bench: Any) -> Any:
    """Let a bench's clock do blocking work as the real one does."""
    bench.clock.work_async = SystemClock().work_async
    return bench


def test_the_loop_goes_on_while_evidence_is_read(new_bench: Any) -> None:
    """Another task runs, and only it lets the reading end."""
    stamps = Blocking()
    bench = with_real_waiting(new_bench(stamps=stamps))

    async def answer(candidate: Candidate, request: CallRequest) -> CallOutcome:
        return OK

    async def main() -> Any:
        task = asyncio.create_task(bench.router.execute_async(CallRequest(), answer))
        while not stamps.entered.is_set():
            await asyncio.sleep(0.001)
        stamps.go.set()
        return await task

    assert asyncio.run(main()).ok


def test_a_call_cancelled_while_evidence_is_read_is_recorded_without_a_decision(new_bench: Any) -> None:
    """The cancellation does not wait for the database; nothing was attempted, and no evidence is claimed."""
    stamps = Blocking()
    bench = with_real_waiting(new_bench(stamps=stamps))

    async def main() -> None:
        task = asyncio.create_task(bench.router.execute_async(CallRequest(), pytest.fail))
        while not stamps.entered.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stamps.go.set()

    asyncio.run(main())
    (call,), attempts = bench.rows()
    assert (call.error_type, call.replica_seq, call.evidence_state, attempts) == ("cancelled", None, None, ())


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_streamed_attempt_ends_when_its_stream_ends(bench: Any, mode: str) -> None:
    """Items are passed on as they come, the last one is the outcome, and latency covers the stream."""
    heard: list[tuple[int, str]] = []
    request = CallRequest(on_chunk=lambda item: heard.append((bench.clock.now, item)))
    begun = bench.clock.now

    def stream(candidate: Candidate, request: CallRequest) -> Iterator[Any]:
        for word in ("one", "two"):
            bench.clock.now += 100
            yield word
        bench.clock.now += 5
        yield OK

    async def stream_async(candidate: Candidate, request: CallRequest) -> AsyncIterator[Any]:
        for item in stream(candidate, request):
            yield item

    if mode == "sync":
        response = bench.router.execute(request, stream)
    else:
        response = asyncio.run(bench.router.execute_async(request, stream_async))
    (call,), (attempt,) = bench.rows()
    assert heard == [(begun + 100, "one"), (begun + 200, "two")]
    assert (response.ok, attempt.ok, attempt.latency_ms, call.tokens_in) == (True, True, 205.0, 10)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("ending", ["raises", "stops", "reports"])
def test_a_stream_that_breaks_after_its_first_item_is_never_retried(bench: Any, mode: str, ending: str) -> None:
    """What the client has heard cannot be unsaid: the kind is stream_interrupted, whatever the provider calls it."""

    def stream(candidate: Candidate, request: CallRequest) -> Iterator[Any]:
        yield "one"
        if ending == "raises":
            raise TimeoutError
        if ending == "reports":
            yield CallOutcome(ok=False, error_kind="server_error")

    async def stream_async(candidate: Candidate, request: CallRequest) -> AsyncIterator[Any]:
        for item in stream(candidate, request):
            yield item

    if mode == "sync":
        response = bench.router.execute(CallRequest(), stream)
    else:
        response = asyncio.run(bench.router.execute_async(CallRequest(), stream_async))
    _, attempts = bench.rows()
    assert [a.error_kind for a in attempts] == ["stream_interrupted"]
    assert response.error == "stream_interrupted"


def test_a_stream_that_fails_before_its_first_item_may_be_retried(bench: Any) -> None:
    """Nothing was heard yet, so the walk goes on."""
    answers = iter([[CallOutcome(ok=False, error_kind="timeout")], [], ["word", OK]])
    response = bench.router.execute(CallRequest(), lambda candidate, request: next(answers))
    _, attempts = bench.rows()
    assert [a.error_kind for a in attempts] == ["timeout", "bad_response", None]
    assert response.ok


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_client_that_goes_away_mid_stream_gets_its_own_error_back(bench: Any, mode: str) -> None:
    """An `on_chunk` that raises is the caller's leaving, not the provider's failure; the stream is closed."""
    closed: list[str] = []

    def hear(item: Any) -> None:
        raise BrokenPipeError("client left")

    def stream(candidate: Candidate, request: CallRequest) -> Iterator[Any]:
        try:
            yield "one"
            yield OK
        finally:
            closed.append(candidate.provider_id)

    async def stream_async(candidate: Candidate, request: CallRequest) -> AsyncIterator[Any]:
        try:
            yield "one"
            yield OK
        finally:
            closed.append(candidate.provider_id)

    def serve() -> None:
        if mode == "sync":
            bench.router.execute(CallRequest(on_chunk=hear), stream)
        else:
            asyncio.run(bench.router.execute_async(CallRequest(on_chunk=hear), stream_async))

    with pytest.raises(BrokenPipeError, match="client left"):
        serve()
    (call,), attempts = bench.rows()
    assert ([a.error_kind for a in attempts], call.error_type, closed) == (["cancelled"], "cancelled", ["ant"])
