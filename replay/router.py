"""The live router: the routing core, stamps and a recorder around any provider callable.

One generator (`Router._call`) is a whole call: reading evidence, ranking, the walk down the ranking, recording. It
does no I/O of its own towards providers: it yields "call this candidate" or "wait", and takes what came of it.
`execute` and `execute_async` only carry those steps out, so both record the same. Every attempt is recorded when
it ends, and each call exactly once, however it ends: success, exhaustion, an unexpected exception, cancellation.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Sequence
from typing import Any, Protocol

from replay.calls import CallOutcome, CallRequest, Offer, Response, http_status
from replay.core import Attempt, Candidate, Health, Policy, Request, State, Step, Wait, Walk, failover, plan
from replay.core import Outcome as Ended
from replay.errors import ReplayError
from replay.ledger.rows import AttemptRow, CallRow
from replay.settings import Settings
from replay.stamps import Evidence, Stamps, stamp
from replay.streams import ClientGoneError, drain, drain_async

log = logging.getLogger(__name__)

ProviderCall = Callable[[Candidate, CallRequest], CallOutcome | Iterable[Any]]
"""Calls one candidate. It returns the outcome, or an iterable whose last item is the outcome (a stream)."""

AsyncProviderCall = Callable[[Candidate, CallRequest], Awaitable[CallOutcome | AsyncIterable[Any]] | AsyncIterable[Any]]
"""The same, awaitable: a coroutine function that returns either, or an async generator function."""

_Steps = Generator[Step, CallOutcome | None, Response]


class Recorder(Protocol):
    """Where rows go. It may drop a row; whatever it raises is logged and counted, never passed to the caller."""

    def record_call(self, row: CallRow) -> None:
        """Take in a call's row."""

    def record_attempt(self, row: AttemptRow) -> None:
        """Take in an attempt's row."""


class Clock(Protocol):
    """The router's time: integer ms, and waiting by it."""

    def now_ms(self) -> int:
        """The present instant in ms."""

    def sleep(self, duration_ms: float) -> None:
        """Wait, blocking."""

    async def sleep_async(self, duration_ms: float) -> None:
        """Wait, letting others run."""


class SystemClock:
    """Wall-clock time."""

    def now_ms(self) -> int:
        """The present instant in ms."""
        return time.time_ns() // 1_000_000

    def sleep(self, duration_ms: float) -> None:
        """Wait, blocking."""
        time.sleep(duration_ms / 1000)

    async def sleep_async(self, duration_ms: float) -> None:
        """Wait on the running asyncio loop."""
        await asyncio.sleep(duration_ms / 1000)


class Router:
    """Routes calls by a policy over the offers of the moment, and records what happened.

    `offers` gives the candidates at an instant in their order, which breaks ties. `replica` names one life of one
    process: give a new name at every start. Breakers and disabled providers live here (`health`); success rates,
    latencies and tool verdicts come from `stamps`. Safe to use from several threads and from one event loop.
    """

    def __init__(
        self,
        policy: Policy,
        offers: Callable[[int], Sequence[Offer]],
        stamps: Stamps,
        recorder: Recorder,
        clock: Clock,
        replica: str,
        settings: Settings,
        health: Health | None = None,
    ) -> None:
        self.policy = policy
        self.offers = offers
        self.stamps = stamps
        self.recorder = recorder
        self.clock = clock
        self.replica = replica
        self.memo_ms = settings.memo_ms or 0
        self.settings_id = settings.identity
        self.health = health or Health(honour_open_breaker_ms=settings.honour_open_breaker_ms)
        self.dropped_rows = 0
        # Numbering and every change of the breakers happen under this lock, so that `replica_seq` is their order.
        self._lock = threading.Lock()
        self._seq = 0
        self._calls = 0
        self._memo: Evidence | None = None

    def execute(self, request: CallRequest, call: ProviderCall) -> Response:
        """Route one call, blocking; raises only what cancels it (such as KeyboardInterrupt) or bad input."""
        steps = self._call(request)
        try:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, Wait):
                        self.clock.sleep(step.backoff_ms)
                        result = None
                    else:
                        result = drain(call(step.candidate, request), request)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return _response(done)
        except ClientGoneError as gone:
            raise gone.error from None

    async def execute_async(self, request: CallRequest, call: AsyncProviderCall) -> Response:
        """Route one call without blocking the loop; a cancelled call is recorded, then the cancellation goes on."""
        steps = self._call(request)
        try:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, Wait):
                        await self.clock.sleep_async(step.backoff_ms)
                        result = None
                    else:
                        answer = call(step.candidate, request)
                        result = await drain_async(await answer if inspect.isawaitable(answer) else answer, request)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return _response(done)
        except ClientGoneError as gone:
            raise gone.error from None

    def _call(self, request: CallRequest) -> _Steps:
        """One whole call: every attempt recorded, and one call row on every way out."""
        current = _Current(self, request)
        try:
            walk = yield from self._walk(request, current)
        except Exception as error:
            kind = "bad_request" if isinstance(error, ReplayError) else "exception"
            self._record(self.recorder.record_call, current.row(kind, self.clock.now_ms()))
            raise
        except BaseException:
            self._record(self.recorder.record_call, current.row("cancelled", self.clock.now_ms()))
            raise
        row = current.row(None if walk.ok else current.why_failed, self.clock.now_ms())
        self._record(self.recorder.record_call, row)
        outcome = current.outcome
        return Response(
            ok=walk.ok,
            value=None if outcome is None else outcome.value,
            error=walk.error,
            chosen=walk.chosen,
            path=tuple(walk.path),
            call=row,
            exception=None if outcome is None else outcome.exception,
        )

    def _walk(self, request: CallRequest, current: _Current) -> Generator[Step, CallOutcome | None, Walk]:
        """Decide, then walk down the ranking until a candidate answers or the policy gives up."""
        seen = Request.from_record(request.record())
        policy = request.policy or self.policy
        evidence = current.evidence = self._evidence(current.decided_at)
        current.offers = self.offers(current.decided_at)
        candidates = stamp((offer.candidate for offer in current.offers), evidence, request.hot_route)
        with self._lock:  # also around the plan: no attempt of this process may end between ranking and first step
            current.seq = self._next_seq()
            open_breakers, disabled = self.health.rank(current.decided_at)
            state = State(open_breakers, disabled, request.credits)
            ranking = plan(policy, candidates, seen, state, request.seed)
            current.reason = ranking.reason or "no_candidates"
            machine = failover(policy, ranking, candidates, self.health, current.decided_at)
            step = _advance(machine, None)
        while not isinstance(step, Walk):
            if isinstance(step, Wait):
                yield step
                with self._lock:
                    step = _advance(machine, (None, self.clock.now_ms()))
                continue
            started_at = self.clock.now_ms()
            try:
                outcome = yield step
                assert outcome is not None, "an attempt is answered by its outcome"
            except Exception as error:
                outcome = CallOutcome(ok=False, error_kind=_kind_of(error), exception=error)
            except BaseException:
                self._abandon(policy, step, started_at, current)
                raise
            with self._lock:
                ended_at, seq = self.clock.now_ms(), self._next_seq()
                following = _advance(machine, (Ended(outcome.ok, outcome.kind), ended_at))
            self._record_attempt(step, outcome, started_at, ended_at, seq, current)
            step = following
        return step

    def _abandon(self, policy: Policy, step: Attempt, started_at: int, current: _Current) -> None:
        """Record the attempt that was in flight when the caller gave up.

        The breakers take it in as any other failure, since that is what its row says to whoever folds the ledger.
        """
        with self._lock:
            ended_at, seq = self.clock.now_ms(), self._next_seq()
            action = policy.action("cancelled")
            self.health.observe(step.candidate.provider_id, False, "cancelled", action, ended_at)
        outcome = CallOutcome(ok=False, error_kind="cancelled")
        self._record_attempt(step, outcome, started_at, ended_at, seq, current)

    def _record_attempt(
        self, step: Attempt, outcome: CallOutcome, started_at: int, ended_at: int, seq: int, current: _Current
    ) -> None:
        current.last, current.outcome = step, outcome
        row = AttemptRow(
            ts=ended_at,
            provider_id=step.candidate.provider_id,
            model_family=step.candidate.model_family,
            served_by=step.candidate.served_by,
            ok=outcome.ok,
            latency_ms=float(max(0, ended_at - started_at)),
            error_kind=outcome.kind,
            http_status=outcome.http_status if outcome.http_status or not outcome.ok else 200,
            tools_requested=bool(current.request.tools),
            tool_calls_emitted=outcome.tool_calls_emitted,
            started_at=started_at,
            request_id=current.usage_event_id,
            attempt=step.attempt,
            candidate_attempt=step.candidate_attempt,
            replica=self.replica,
            replica_seq=seq,
        )
        self._record(self.recorder.record_attempt, row)

    def _evidence(self, now_ms: int) -> Evidence:
        """Read the stamps, or reuse the last reading for `memo_ms`; a failed reading leaves everything neutral."""
        memo = self._memo
        if memo is not None and 0 <= now_ms - memo.at_ms < self.memo_ms:
            return memo
        try:
            evidence = self.stamps.read(now_ms)
        except Exception:
            log.exception("reading the stamps failed; this decision takes every route as unmeasured")
            return Evidence.unavailable(now_ms)
        self._memo = evidence
        return evidence

    def _record(self, record: Callable[[Any], None], row: CallRow | AttemptRow) -> None:
        try:
            record(row)
        except Exception:
            self.dropped_rows += 1
            log.exception("recording a row failed; it is dropped (%d so far)", self.dropped_rows)

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def next_event_id(self) -> str:
        """A call id that no other call of this replica has had."""
        with self._lock:
            self._calls += 1
            return f"{self.replica}-{self._calls}"


class _Current:
    """What is known of the call in flight, and its row at the end."""

    def __init__(self, router: Router, request: CallRequest) -> None:
        self.router = router
        self.request = request
        self.request_json = request.to_json()
        self.usage_event_id = request.usage_event_id or router.next_event_id()
        self.decided_at = router.clock.now_ms()
        self.evidence: Evidence | None = None
        self.offers: Sequence[Offer] = ()
        self.seq: int | None = None
        self.reason = "no_candidates"
        self.last: Attempt | None = None
        self.outcome: CallOutcome | None = None

    @property
    def why_failed(self) -> str | None:
        """Error kind of the last attempt, or why there was none."""
        return self.reason if self.outcome is None else self.outcome.kind

    def row(self, error_type: str | None, ended_at: int) -> CallRow:
        """The call's row: the final route is that of the last attempt, failed or not."""
        candidate = None if self.last is None else self.last.candidate
        outcome = self.outcome or CallOutcome(ok=False)
        cost_usd, cost_basis = (None, None) if self.last is None else self.offers[self.last.index].cost(outcome)
        tokens_known = outcome.tokens_in is not None and outcome.tokens_out is not None
        request, evidence = self.request, self.evidence
        return CallRow(
            ts=ended_at // 1000,
            usage_event_id=self.usage_event_id,
            session_id=request.session_id,
            consumer_sha=request.consumer_sha,
            caller=request.caller,
            route_key=None if candidate is None else candidate.route_key,
            provider_id=None if candidate is None else candidate.provider_id,
            model_family=None if candidate is None else candidate.model_family,
            served_model_id=None if candidate is None else candidate.served_model_id,
            requested_model=request.model_label,
            status=http_status(error_type),
            error_type=error_type,
            latency_ms=float(max(0, ended_at - self.decided_at)),
            tokens_in=outcome.tokens_in,
            tokens_out=outcome.tokens_out,
            tokens_total=(outcome.tokens_in or 0) + (outcome.tokens_out or 0) if tokens_known else None,
            tokens_cached=outcome.tokens_cached,
            cost_usd=cost_usd,
            served_by=None if candidate is None else candidate.served_by,
            cost_basis=cost_basis,
            decided_at=self.decided_at,
            evidence_at=None if evidence is None else evidence.at_ms,
            request=self.request_json,
            policy_id=(request.policy or self.router.policy).identity,
            settings_id=self.router.settings_id,
            replica=self.router.replica,
            replica_seq=self.seq,
            evidence_snapshot=None if evidence is None else evidence.snapshot,
            evidence_state=None if evidence is None else evidence.state,
        )


def _advance(machine: Generator[Step, Any, Walk], message: Any) -> Step | Walk:
    """Send the failover machine a message and return its next step, or the walk if it is over."""
    try:
        return machine.send(message)
    except StopIteration as done:
        walk: Walk = done.value
        return walk


def _response(done: StopIteration) -> Response:
    response: Response = done.value
    return response


def _kind_of(error: Exception) -> str:
    """The error kind of an exception a provider callable raised; an unknown one fails over as `exception`."""
    if isinstance(error, TimeoutError):
        return "timeout"
    return "network_error" if isinstance(error, OSError) else "exception"
