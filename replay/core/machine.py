"""Failover: one machine without I/O that walks a ranking.

It yields what to do next, a call or a wait, and is sent what came of it and the time; whoever drives it, with
threads, an event loop or a recorded script, gets the same walk.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from replay.core.candidates import Candidate
from replay.core.health import Health
from replay.core.planning import Plan
from replay.core.policy import Policy
from replay.errors import ReplayError


@dataclass(frozen=True, slots=True)
class Attempt:
    """Call this candidate (`index` in the candidates). Attempts count from 1: over the call, and on the candidate."""

    candidate: Candidate
    index: int
    attempt: int
    candidate_attempt: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait before a retry; never negative."""

    backoff_ms: float


Step = Attempt | Wait


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a walk ends early: after so many attempts, or at an instant (ms); None does not limit it.

    The first attempt is made whatever the instant, so limits never change which candidate a decision chose.
    """

    max_attempts: int | None = None
    until_ms: float | None = None

    def __post_init__(self) -> None:
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ReplayError(f"max_attempts is {self.max_attempts}; expected 1 or more: leave it out for no limit")

    def reached(self, attempts: int, starts_ms: float) -> str | None:
        """Name the limit that forbids another attempt at an instant, None if there is none.

        >>> Limits(2, 500).reached(1, 499), Limits(2, 500).reached(1, 500), Limits(2, 500).reached(2, 0)
        (None, 'deadline', 'max_attempts')
        """
        if self.max_attempts is not None and attempts >= self.max_attempts:
            return "max_attempts"
        return "deadline" if attempts and self.until_ms is not None and starts_ms >= self.until_ms else None


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended; a failure names its kind."""

    ok: bool
    error_kind: str | None = None

    def __post_init__(self) -> None:
        if not self.ok and self.error_kind is None:
            raise ReplayError("a failed attempt has no error kind; expected one, for example 'timeout'; name it")


@dataclass(frozen=True, slots=True)
class Walk:
    """A finished call: whether it succeeded, else why not, who served it, and the events on the way."""

    ok: bool
    error: str | None
    chosen: Candidate | None
    path: tuple[dict[str, Any], ...]


def failover(
    policy: Policy,
    plan: Plan,
    candidates: Sequence[Candidate],
    health: Health,
    now_ms: float,
    limits: Limits = NO_LIMITS,
) -> Generator[Step, tuple[Outcome | None, float], Walk]:
    """Walk the plan's ranking; start it with `next()`.

    After an `Attempt` send `(outcome, now_ms)`, after a `Wait` send `(None, now_ms)`. The machine keeps `health`
    up to date itself, at each attempt's end. The generator returns the `Walk`. Where a limit forbids the next attempt
    the walk ends with `max_attempts: LAST_KIND` or `deadline: LAST_KIND`; a wait that would pass the deadline is not
    begun.

    >>> from replay.core.planning import plan as decide
    >>> from replay.core.policy import admit
    >>> policy = admit(["policy", ["top"], ["zero"], ["ordered"], ["id"], ["always", {"action": "next_candidate"}]])
    >>> candidates = [Candidate("p", "m"), Candidate("q", "m")]
    >>> machine = failover(policy, decide(policy, candidates), candidates, Health(), 0)
    >>> next(machine).candidate.provider_id, machine.send((Outcome(False, "timeout"), 50)).candidate.provider_id
    ('p', 'q')
    """
    if not plan.ordered:
        return Walk(False, "no_candidates", None, ())
    path: list[dict[str, Any]] = []
    attempts = 0
    last_kind: str | None = None
    cursor = 0
    while cursor < len(plan.ordered):
        index = plan.ordered[cursor]
        candidate = candidates[index]
        if health.is_disabled(candidate.provider_id, now_ms):
            path.append(_event("skipped", candidate, reason="disabled_provider"))
            cursor += 1
            continue
        retries = 0
        if (limit := limits.reached(attempts, now_ms)) is not None:
            return Walk(False, f"{limit}: {last_kind}", None, tuple(path))
        while True:
            attempts += 1
            outcome, now_ms = yield Attempt(candidate, index, attempts, retries + 1)
            if outcome is None:
                raise ReplayError("an attempt was answered without an outcome; send (Outcome(…), now_ms) after it")
            kind = outcome.error_kind
            if outcome.ok:
                health.observe(candidate.provider_id, True, None, None, now_ms)
                path.append(_event("attempted", candidate, attempt=retries + 1))
                return Walk(True, None, candidate, tuple(path))
            last_kind = kind
            action = policy.action(kind)
            health.observe(candidate.provider_id, False, kind, action, now_ms)
            path.append(_event("attempted", candidate, error_kind=kind, attempt=retries + 1))
            # The count of retries is the candidate's, whichever Actions asked for them.
            if action.action != "retry_same" or retries >= action.attempts:
                break
            retries += 1
            backoff_ms = action.backoff_before(retries)
            if (limit := limits.reached(attempts, now_ms + max(backoff_ms, 0))) is not None:
                return Walk(False, f"{limit}: {kind}", None, tuple(path))
            path.append(_event("retry_scheduled", candidate, attempt=retries, backoff_ms=backoff_ms))
            _, now_ms = yield Wait(max(backoff_ms, 0))
        move = action.action
        if move == "retry_same":  # out of retries: only abort is special, anything else advances
            move = "abort" if action.then_action == "abort" else "next_candidate"
        if move == "abort":
            return Walk(False, kind, None, tuple(path))
        if move == "disable_provider":
            path.append({"event": "provider_disabled", "provider_id": candidate.provider_id, "reason": kind})
        cursor = _next_of_family(plan, candidates, cursor) if move == "next_provider_same_model" else cursor + 1
    return Walk(False, f"exhausted: {'no_candidates' if last_kind is None else last_kind}", None, tuple(path))


def _next_of_family(plan: Plan, candidates: Sequence[Candidate], cursor: int) -> int:
    """Return the place of the next candidate of the same family in the ranking, its end if there is none."""
    family = candidates[plan.ordered[cursor]].model_family
    for place in range(cursor + 1, len(plan.ordered)):
        if candidates[plan.ordered[place]].model_family == family:
            return place
    return len(plan.ordered)


def _event(event: str, candidate: Candidate, **details: Any) -> dict[str, Any]:
    return {"event": event, "provider_id": candidate.provider_id, "model_family": candidate.model_family, **details}
