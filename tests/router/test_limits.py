"""Limits on attempts and time: the walk ends with an error that says so, and no decision changes."""

from __future__ import annotations

from typing import Any

import pytest

from replay.calls import CallOutcome, CallRequest
from replay.core import Candidate
from replay.stamps import Evidence

OK = CallOutcome(ok=True)


def failed(kind: str) -> CallOutcome:
    """A failed attempt."""
    return CallOutcome(ok=False, error_kind=kind)


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    ("limits", "kinds", "error"),
    [
        ({}, ["timeout", "timeout", "rate_limit"], "exhausted: rate_limit"),
        ({"max_attempts": 3}, ["timeout", "timeout", "rate_limit"], "exhausted: rate_limit"),
        ({"max_attempts": 2}, ["timeout", "timeout"], "max_attempts: timeout"),
        ({"max_attempts": 1}, ["timeout"], "max_attempts: timeout"),
        ({"deadline_ms": 201}, ["timeout", "timeout", "rate_limit"], "exhausted: rate_limit"),
        ({"deadline_ms": 200}, ["timeout", "timeout"], "deadline: timeout"),  # the second ends at 200 ms
        ({"deadline_ms": 100}, ["timeout"], "deadline: timeout"),
        ({"deadline_ms": -5}, ["timeout"], "deadline: timeout"),  # the first attempt is always made
    ],
)
def test_a_limit_ends_the_walk_and_says_so(
    bench: Any, mode: str, limits: dict[str, Any], kinds: list[str], error: str
) -> None:
    """The rows are those of an exhausted walk: the last attempt's route and kind."""
    script = [(100, failed("timeout")), (100, failed("timeout")), (100, failed("rate_limit"))]
    response = bench.run(script, CallRequest(**limits), mode=mode)
    (call,), attempts = bench.rows()
    assert (response.error, response.attempts) == (error, len(kinds))
    assert [attempt.error_kind for attempt in attempts] == kinds
    assert (call.error_type, call.route_key) == (kinds[-1], attempts[-1].route_key)


def test_a_retry_counts_as_an_attempt_and_its_wait_as_time(bench: Any) -> None:
    """A server error is tried again after 500 ms: not if only one attempt is left, nor if the wait is too long."""
    for limits, error, takes_ms in (
        ({"max_attempts": 1}, "max_attempts: server_error", 10),
        ({"deadline_ms": 510}, "deadline: server_error", 10),
        ({"deadline_ms": 511}, None, 520),
    ):
        response = bench.run([(10, failed("server_error")), (10, OK)], CallRequest(**limits))
        assert (response.error, response.call.latency_ms) == (error, takes_ms)


def test_what_a_limit_cut_off_leaves_no_event(bench: Any) -> None:
    """A retry that is not made is not scheduled either."""
    response = bench.run([(10, failed("server_error"))], CallRequest(max_attempts=1))
    assert [event["event"] for event in response.path] == ["attempted"]


def test_the_provider_is_told_what_is_left_of_the_deadline(bench: Any) -> None:
    """1 ms at least, so that it is a usable timeout."""
    left: list[float | None] = []

    def call(candidate: Candidate, request: CallRequest) -> CallOutcome:
        left.append(request.deadline_ms)
        bench.clock.now += 60
        return failed("timeout")

    bench.router.execute(CallRequest(deadline_ms=100), call)
    bench.router.execute(CallRequest(deadline_ms=0), call)
    bench.router.execute(CallRequest(max_attempts=1), call)
    assert left == [100, 40, 1, None]


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_slow_reading_of_the_evidence_counts_but_the_first_attempt_is_made(new_bench: Any, mode: str) -> None:
    """A decision always leads to its attempt, which is what a replay holds it against."""

    class Slow:
        def read(self, now_ms: int) -> Evidence:
            bench.clock.now += 900
            return Evidence(now_ms)

    bench = new_bench(stamps=Slow())
    response = bench.run([(10, failed("timeout"))], CallRequest(deadline_ms=500), mode=mode)
    assert (response.error, response.attempts) == ("deadline: timeout", 1)


def test_a_limit_of_no_attempts_is_refused(bench: Any) -> None:
    """A decision without an attempt could not be reproduced."""
    with pytest.raises(Exception, match="max_attempts is 0; expected 1 or more"):
        bench.run([], CallRequest(max_attempts=0))
    (call,), _ = bench.rows()
    assert (call.error_type, call.replica_seq) == ("bad_request", None)
