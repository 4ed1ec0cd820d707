"""The live router: the routing core, stamps and a recorder around any provider callable.

One generator (`Router._call`) is a whole call: reading evidence, ranking, the walk down the ranking, recording. It
does no I/O of its own: it yields "read this", "call this candidate" or "wait", and takes what came of it. `execute`
and `execute_async` only carry those steps out, so both record the same. Every attempt is recorded when it ends, and
each call exactly once, however it ends: success, exhaustion, a limit, an unexpected exception, cancellation.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from replay.calls import CallOutcome, CallRequest, InFlight, Offer, Response
from replay.clock import Clock
from replay.core import Attempt, Candidate, Health, Limits, Policy, Request, State, Step, Wait, Walk, failover, plan
from replay.core import Outcome as Ended
from replay.core.planning import narrowed
from replay.errors import ReplayError
from replay.ledger.rows import AttemptRow, CallRow
from replay.sessions import Session, SessionStamps, visible_session
from replay.settings import Settings
from replay.stamps import Evidence, Stamps, stamp
from replay.streams import ClientGoneError, drain, drain_async

log = logging.getLogger(__name__)

ProviderCall = Callable[[Candidate, CallRequest], CallOutcome | Iterable[Any]]
"""Calls one candidate. It returns the outcome, or an iterable whose last item is the outcome (a stream)."""

AsyncProviderCall = Callable[[Candidate, CallRequest], Awaitable[CallOutcome | AsyncIterable[Any]] | AsyncIterable[Any]]
"""The same, awaitable: a coroutine function that returns either, or an async generator function."""


@dataclass(frozen=True, slots=True)
class _Read:
    """Do this; it may block, for a database's round trip."""

    work: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class _Try:
    """Call this candidate with this request."""

    candidate: Candidate
    request: CallRequest


_Step = _Read | _Try | Wait
_Steps = Generator[_Step, Any, Response]


class Recorder(Protocol):
    """Where rows go. It may drop a row; whatever it raises is logged and counted, never passed to the caller."""

    def record_call(self, row: CallRow) -> None:
        """Take in a call's row."""

    def record_attempt(self, row: AttemptRow) -> None:
        """Take in an attempt's row."""

    def record_policy(self, policy: Policy) -> None:
        """Take in a policy that calls are decided with; one it has already had costs nothing."""

    def record_settings(self, settings: Settings) -> None:
        """Take in the measurement settings behind the stamps."""


class Router:
    """Routes calls by a policy over the offers of the moment, and records what happened.

    `offers` gives the candidates at an instant in their order, which breaks ties. `replica` names one life of one
    process: give a new name at every start. Breakers and disabled providers live here (`health`); success rates,
    latencies and tool verdicts come from `stamps`, and so do sessions if it knows them. Safe to use from several
    threads and from one event loop.
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
        self.sessions = stamps if isinstance(stamps, SessionStamps) else None
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
        self._readable = True
        self._record(recorder.record_policy, policy)
        self._record(recorder.record_settings, settings)

    def execute(self, request: CallRequest, call: ProviderCall) -> Response:
        """Route one call, blocking; raises only what cancels it (such as KeyboardInterrupt) or bad input."""
        steps = self._call(request)
        try:
            step = next(steps)
            while True:
                try:
                    result = self._do(step, call)
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
                    result = await self._do_async(step, call)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return _response(done)
        except ClientGoneError as gone:
            raise gone.error from None

    def _do(self, step: _Step, call: ProviderCall) -> Any:
        """Carry out one step, blocking."""
        if isinstance(step, _Try):
            return drain(call(step.candidate, step.request), step.request)
        return step.work() if isinstance(step, _Read) else self.clock.sleep(step.backoff_ms)

    async def _do_async(self, step: _Step, call: AsyncProviderCall) -> Any:
        """Carry out one step without blocking the loop."""
        if isinstance(step, _Read):
            return await self.clock.work_async(step.work)
        if isinstance(step, Wait):
            return await self.clock.sleep_async(step.backoff_ms)
        answer = call(step.candidate, step.request)
        return await drain_async(await answer if inspect.isawaitable(answer) else answer, step.request)

    def _call(self, request: CallRequest) -> _Steps:
        """One whole call: every attempt recorded, and one call row on every way out."""
        current = self._begin(request)
        try:
            walk = yield from self._walk(current)
        except Exception as error:
            kind = "bad_request" if isinstance(error, ReplayError) else "exception"
            self._record(self.recorder.record_call, current.row(kind, self.clock.now_ms()))
            raise
        except BaseException:
            self._record(self.recorder.record_call, current.row("cancelled", self.clock.now_ms()))
            raise
        row = current.row(None if walk.ok else current.why_failed, self.clock.now_ms())
        self._record(self.recorder.record_call, row)
        outcome, session = current.outcome, current.session
        return Response(
            ok=walk.ok,
            value=None if outcome is None else outcome.value,
            error=walk.error,
            chosen=walk.chosen,
            path=tuple(walk.path),
            call=row,
            attempts=current.attempts,
            session=None if session is None else session.totals.plus(row),
            exception=None if outcome is None else outcome.exception,
        )

    def _begin(self, request: CallRequest) -> InFlight:
        policy = request.policy or self.policy
        if policy is not self.policy:
            self._record(self.recorder.record_policy, policy)
        return InFlight(
            request,
            self.clock.now_ms(),
            usage_event_id=request.usage_event_id or self.next_event_id(),
            policy_id=policy.identity,
            settings_id=self.settings_id,
            replica=self.replica,
        )

    def _walk(self, current: InFlight) -> Generator[_Step, Any, Walk]:
        """Decide, then walk down the ranking until a candidate answers, or the policy or a limit ends it."""
        request, decided_at = current.request, current.decided_at
        seen = Request.from_record(request.record())
        policy = request.policy or self.policy
        if seen.envelope is not None:
            narrowed(policy, seen)  # refused here, before it counts as a decision
        limits = Limits(request.max_attempts, None if request.deadline_ms is None else decided_at + request.deadline_ms)
        evidence, session = yield from self._evidence(current)
        request = current.take_in(evidence, session)
        current.offers = self.offers(decided_at)
        candidates = stamp((offer.candidate for offer in current.offers), evidence, request.hot_route)
        with self._lock:  # also around the plan: no attempt of this process may end between ranking and first step
            current.replica_seq = self._next_seq()
            open_breakers, disabled = self.health.rank(decided_at)
            state = State(open_breakers, disabled, request.credits)
            ranking = plan(policy, candidates, seen, state, request.seed)
            current.reason = ranking.reason or "no_candidates"
            machine = failover(policy, ranking, candidates, self.health, decided_at, limits)
            step = _advance(machine, None)
        while not isinstance(step, Walk):
            if isinstance(step, Wait):
                yield step
                with self._lock:
                    step = _advance(machine, (None, self.clock.now_ms()))
            else:
                step = yield from self._attempt(policy, machine, step, current)
        return step

    def _attempt(
        self, policy: Policy, machine: Generator[Step, Any, Walk], step: Attempt, current: InFlight
    ) -> Generator[_Try, Any, Step | Walk]:
        """Make one attempt, record it, and return what follows it."""
        started_at = self.clock.now_ms()
        try:
            outcome: CallOutcome = yield _Try(step.candidate, current.left(started_at))
        except Exception as error:
            outcome = CallOutcome(ok=False, error_kind=_kind_of(error), exception=error)
        except BaseException:
            self._abandon(policy, step, started_at, current)
            raise
        with self._lock:
            ended_at, seq = self.clock.now_ms(), self._next_seq()
            following = _advance(machine, (Ended(outcome.ok, outcome.kind), ended_at))
        self._record_attempt(step, outcome, started_at, ended_at, seq, current)
        return following

    def _abandon(self, policy: Policy, step: Attempt, started_at: int, current: InFlight) -> None:
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
        self, step: Attempt, outcome: CallOutcome, started_at: int, ended_at: int, seq: int, current: InFlight
    ) -> None:
        current.ended(step, outcome)
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

    def _evidence(self, current: InFlight) -> Generator[_Read, Any, tuple[Evidence, Session | None]]:
        """Read the stamps, or reuse the last reading for `memo_ms`; a session is read for every call of it."""
        request, now_ms = current.request, current.decided_at
        memo = self._memo
        if memo is not None and not 0 <= now_ms - memo.at_ms < self.memo_ms:
            memo = None
        if memo is not None and (self.sessions is None or not request.session_id):
            return memo, None
        read: tuple[Evidence, Session | None] = yield _Read(partial(self._gather, memo, now_ms, request))
        return read

    def _gather(self, memo: Evidence | None, now_ms: int, request: CallRequest) -> tuple[Evidence, Session | None]:
        """Read what is not remembered; a failed reading leaves the stamps neutral and the session unknown."""
        evidence, session = memo, None
        try:
            if self.sessions is None or not request.session_id:
                evidence = self.stamps.read(now_ms)
            else:
                if memo is not None:
                    session = self.sessions.read_session(request.session_id)
                else:
                    evidence, session = self.sessions.read_for(now_ms, request.session_id)
                session = visible_session(session, request.caller, self.sessions.read_session)
        except Exception as error:
            self._say_readable(False, error)
            return evidence or Evidence.unavailable(now_ms), None
        self._say_readable(True)
        assert evidence is not None, "a reading gives the stamps, or they were remembered"
        self._memo = evidence
        return evidence, session

    def _say_readable(self, readable: bool, error: Exception | None = None) -> None:
        """Log when reading begins to fail and when it works again, not at each decision in between."""
        if readable is self._readable:
            return
        self._readable = readable
        if error is not None:
            log.warning("the ledgers cannot be read (%s): routing on defaults until they can", _said(error))
        else:
            log.warning("the ledgers can be read again")

    def _record(self, record: Callable[[Any], None], row: CallRow | AttemptRow | Policy | Settings) -> None:
        try:
            record(row)
        except Exception as error:
            self.dropped_rows += 1
            log.warning("recording a row failed (%s); %d are dropped so far", _said(error), self.dropped_rows)

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def next_event_id(self) -> str:
        """A call id that no other call of this replica has had."""
        with self._lock:
            self._calls += 1
            return f"{self.replica}-{self._calls}"


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


def _said(error: Exception) -> str:
    """What an error may say in a log: only our own messages are known to hold no connection string."""
    return str(error) if isinstance(error, ReplayError) else type(error).__name__


def _kind_of(error: Exception) -> str:
    """The error kind of an exception a provider callable raised; an unknown one fails over as `exception`."""
    if isinstance(error, TimeoutError):
        return "timeout"
    return "network_error" if isinstance(error, OSError) else "exception"
