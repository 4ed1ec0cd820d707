"""Streamed answers: their items are passed on as they come, and the attempt ends when the stream does."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from typing import Any

from replay.calls import CallOutcome, CallRequest


class ClientGoneError(BaseException):
    """The caller's own `on_chunk` raised: no provider failed, so nothing may be retried."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def drain(answer: CallOutcome | Iterable[Any], request: CallRequest) -> CallOutcome:
    """Pass a stream's items on; the attempt ends when the stream does, and its last item is the outcome."""
    if isinstance(answer, CallOutcome):
        return answer
    relayed = 0
    try:
        for item in answer:
            if isinstance(item, CallOutcome):
                return _streamed(item, relayed)
            _relay(item, request)
            relayed += 1
    except Exception as error:
        if not relayed:
            raise
        return CallOutcome(ok=False, error_kind="stream_interrupted", exception=error)
    finally:
        if hasattr(answer, "close"):
            answer.close()
    return _streamed(None, relayed)


async def drain_async(answer: CallOutcome | AsyncIterable[Any], request: CallRequest) -> CallOutcome:
    """As `drain`, for an asynchronous stream."""
    if isinstance(answer, CallOutcome):
        return answer
    relayed = 0
    try:
        async for item in answer:
            if isinstance(item, CallOutcome):
                return _streamed(item, relayed)
            _relay(item, request)
            relayed += 1
    except Exception as error:
        if not relayed:
            raise
        return CallOutcome(ok=False, error_kind="stream_interrupted", exception=error)
    finally:
        if hasattr(answer, "aclose"):
            await answer.aclose()
    return _streamed(None, relayed)


def _relay(item: Any, request: CallRequest) -> None:
    if request.on_chunk is None:
        return
    try:
        request.on_chunk(item)
    except BaseException as error:
        raise ClientGoneError(error) from error


def _streamed(outcome: CallOutcome | None, relayed: int) -> CallOutcome:
    """A stream's outcome; once items went out, a failure is `stream_interrupted`: a retry would repeat them."""
    if outcome is None:
        return CallOutcome(ok=False, error_kind="stream_interrupted" if relayed else "bad_response")
    if outcome.ok or not relayed:
        return outcome
    return CallOutcome(ok=False, error_kind="stream_interrupted", http_status=outcome.http_status)
