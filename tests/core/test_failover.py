from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from replay.core import Attempt, Candidate, Health, Outcome, Policy, Request, State, Wait, Walk, failover, plan
from replay.errors import ReplayError

NEXT = {"action": "next_candidate"}


class Driver:
    """Drive walks on a clock, with an outcome per attempt: a failure's kind, or None for a success."""

    def __init__(self, policy: Policy, *routes: str, health: Health | None = None, latency_ms: int = 10) -> None:
        self.policy = policy
        self.candidates = [Candidate(*route.split("|")) for route in routes]
        self.health = health or Health()
        self.latency_ms = latency_ms
        self.now_ms = 0
        self.steps: list[Any] = []

    def call(self, *kinds: str | None, before_attempt: Callable[[int], None] = lambda attempt: None) -> Walk:
        """Rank at the present instant and walk; each kind is one attempt's outcome."""
        open_breakers, disabled = self.health.rank(self.now_ms)
        decided = plan(self.policy, self.candidates, Request(), State(open_breakers, disabled))
        machine = failover(self.policy, decided, self.candidates, self.health, self.now_ms)
        script = list(kinds)
        try:
            step = next(machine)
            while True:
                self.steps.append(step)
                outcome = None
                if isinstance(step, Attempt):
                    before_attempt(step.attempt)
                    kind = script.pop(0)
                    outcome = Outcome(kind is None, kind)
                    self.now_ms += self.latency_ms
                else:
                    self.now_ms += int(step.backoff_ms)
                step = machine.send((outcome, self.now_ms))
        except StopIteration as finished:
            assert not script, "the walk ended before the script"
            walk: Walk = finished.value
            return walk


def short(walk: Walk) -> list[str]:
    """Write a path as short words: `+p1` success, `-p2:kind` failure at attempt 2, `~p1:200` retry, `!p:kind`, `/p`."""
    words = []
    for event in walk.path:
        provider = event["provider_id"]
        if event["event"] == "attempted":
            kind = event.get("error_kind")
            words.append(f"+{provider}{event['attempt']}" if kind is None else f"-{provider}{event['attempt']}:{kind}")
        elif event["event"] == "retry_scheduled":
            words.append(f"~{provider}{event['attempt']}:{event['backoff_ms']}")
        elif event["event"] == "provider_disabled":
            words.append(f"!{provider}:{event['reason']}")
        else:
            assert event["reason"] == "disabled_provider"
            words.append(f"/{provider}")
    return words


def always(action: dict[str, Any], **overrides: dict[str, Any]) -> Any:
    """Return a FailPlan: one Action, and overrides by kind."""
    term: Any = ["always", action]
    for kind, other in overrides.items():
        term = ["override", term, kind, other]
    return term


def test_next_candidate_walks_down_to_a_success(make: Any) -> None:
    """The walk names who served, and each event in full."""
    driver = Driver(make(plan=always(NEXT)), "a|m", "b|n")
    walk = driver.call("timeout", None)
    assert (walk.ok, walk.error, walk.chosen) == (True, None, driver.candidates[1])
    assert walk.path == (
        {"event": "attempted", "provider_id": "a", "model_family": "m", "error_kind": "timeout", "attempt": 1},
        {"event": "attempted", "provider_id": "b", "model_family": "n", "attempt": 1},
    )
    assert driver.steps == [Attempt(driver.candidates[0], 0, 1, 1), Attempt(driver.candidates[1], 1, 2, 1)]


def test_the_end_of_the_list_is_exhausted_with_the_last_kind(make: Any) -> None:
    """Not the first."""
    walk = Driver(make(plan=always(NEXT)), "a|m", "b|m").call("timeout", "rate_limit")
    assert (walk.ok, walk.error, walk.chosen) == (False, "exhausted: rate_limit", None)


def test_an_empty_ranking_is_no_candidates(make: Any) -> None:
    """Nothing is attempted, no event."""
    assert Driver(make(["bot"]), "a|m").call() == Walk(False, "no_candidates", None, ())


def test_nothing_attempted_is_exhausted_no_candidates(make: Any) -> None:
    """All providers are disabled at that moment, though the policy ranked them."""
    driver = Driver(make(plan=always({"action": "disable_provider"})), "a|m")
    driver.call("auth_error")
    walk = driver.call()
    assert (walk.error, short(walk)) == ("exhausted: no_candidates", ["/a"])


def test_abort_stops_with_the_kind(make: Any) -> None:
    """No further candidate."""
    walk = Driver(make(plan=always(NEXT, bad={"action": "abort"})), "a|m", "b|m").call("bad")
    assert (walk.error, short(walk)) == ("bad", ["-a1:bad"])


def test_disabling_is_reported_and_skips_the_provider_from_then_on(make: Any) -> None:
    """Its other candidates are skipped when the cursor reaches them."""
    policy = make(plan=always(NEXT, auth={"action": "disable_provider"}))
    driver = Driver(policy, "a|m", "a|n", "b|m")
    assert short(driver.call("auth", None)) == ["-a1:auth", "!a:auth", "/a", "+b1"]
    driver.now_ms = 300_009
    assert short(driver.call(None)) == ["/a", "/a", "+b1"]


def test_a_disabled_provider_is_back_from_exactly_300_s(make: Any) -> None:
    """The attempt ended at 10 ms, so it is called again at 300,010."""
    policy = make(plan=always(NEXT, auth={"action": "disable_provider"}))
    driver = Driver(policy, "a|m", "b|m")
    driver.call("auth", None)
    driver.now_ms = 300_010
    assert short(driver.call(None)) == ["+a1"]


def test_a_provider_can_come_back_during_the_walk(make: Any) -> None:
    """Whether it is disabled is asked at the moment the cursor reaches it."""
    policy = make(plan=always(NEXT, auth={"action": "disable_provider"}))
    driver = Driver(policy, "a|m", "b|m", "a|n", latency_ms=300_000)
    driver.health.observe("a", False, "auth", policy.action("auth"), 0)
    assert short(driver.call("timeout", None)) == ["/a", "-b1:timeout", "+a1"]


def test_a_breaker_open_candidate_is_not_skipped(make: Any) -> None:
    """Breakers only matter to the policy's predicates."""
    driver = Driver(make(plan=always(NEXT)), "a|m")
    for _ in range(3):
        driver.call("timeout")
    assert driver.health.open_breakers(driver.now_ms) == {"a"}
    assert short(driver.call(None)) == ["+a1"]
    assert driver.health.open_breakers(driver.now_ms) == frozenset()


def test_the_predicates_see_the_state_at_the_ranking(make: Any) -> None:
    """A breaker that opens during the walk does not change the ranking being walked."""
    policy = make(["not", ["is", "breaker_open"]], plan=always({"action": "next_candidate", "open_breaker_ms": 1}))
    driver = Driver(policy, "a|m", "a|n")
    assert short(driver.call("timeout", None)) == ["-a1:timeout", "+a1"]


SAME = {"action": "next_provider_same_model"}


def test_next_provider_same_model_passes_others_over_silently(make: Any) -> None:
    """The next of the family, whoever provides it, the same provider too."""
    driver = Driver(make(plan=always(SAME)), "a|m", "b|n", "a|m", "c|m")
    assert short(driver.call("x", "x", None)) == ["-a1:x", "-a1:x", "+c1"]


def test_next_provider_same_model_without_another_is_exhausted(make: Any) -> None:
    """Candidates of other families are left, and not tried."""
    walk = Driver(make(plan=always(SAME)), "a|m", "b|n").call("x")
    assert (walk.error, short(walk)) == ("exhausted: x", ["-a1:x"])


def test_next_provider_same_model_on_a_disabled_provider_goes_on_to_any_family(make: Any) -> None:
    """It is skipped with an event; the walk goes on to the next candidate of any family."""
    policy = make(plan=always(SAME, auth={"action": "disable_provider"}))
    driver = Driver(policy, "a|m", "b|n", "c|m", "d|n", "e|m")
    driver.health.observe("c", False, "auth", policy.action("auth"), 0)
    assert short(driver.call("x", None)) == ["-a1:x", "/c", "+d1"]


def retry(**more: Any) -> dict[str, Any]:
    """Return a `retry_same` Action."""
    return {"action": "retry_same", **more}


def test_retry_same_retries_once_by_default_then_advances(make: Any) -> None:
    """No attempts, no backoff, no then_action given."""
    driver = Driver(make(plan=always(retry())), "a|m", "b|m")
    assert short(driver.call("x", "y", None)) == ["-a1:x", "~a1:0", "-a2:y", "+b1"]
    assert driver.steps[1] == Wait(0)
    assert [step.candidate_attempt for step in driver.steps if isinstance(step, Attempt)] == [1, 2, 1]
    assert [step.attempt for step in driver.steps if isinstance(step, Attempt)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("backoff_ms", "waits"),
    [(200, [200, 200, 200]), ([100, 300], [100, 300, 300]), ([5], [5, 5, 5]), ([], [0, 0, 0]), (0.5, [0.5, 0.5, 0.5])],
)
def test_backoff_is_indexed_by_the_retry_and_its_last_repeats(make: Any, backoff_ms: Any, waits: list[float]) -> None:
    """One number, an array, an empty one."""
    driver = Driver(make(plan=always(retry(attempts=3, backoff_ms=backoff_ms))), "a|m")
    walk = driver.call("x", "x", "x", "x")
    assert [event["backoff_ms"] for event in walk.path if event["event"] == "retry_scheduled"] == waits
    assert [step.backoff_ms for step in driver.steps if isinstance(step, Wait)] == waits


def test_a_negative_backoff_is_not_waited_for(make: Any) -> None:
    """Admission lets every finite number in; time cannot run backwards."""
    driver = Driver(make(plan=always(retry(backoff_ms=-5))), "a|m")
    driver.call("x", None)
    assert driver.steps[1] == Wait(0)


def test_retries_are_counted_per_candidate_under_whichever_action(make: Any) -> None:
    """x allows 1, y allows 3: the retry made for x counts for y, and the array index goes on too."""
    policy = make(plan=always(NEXT, x=retry(attempts=1, backoff_ms=7), y=retry(attempts=3, backoff_ms=[1, 2, 3])))
    driver = Driver(policy, "a|m", "b|m")
    walk = driver.call("x", "y", "y", "y", None)
    assert short(walk) == ["-a1:x", "~a1:7", "-a2:y", "~a2:2", "-a3:y", "~a3:3", "-a4:y", "+b1"]
    driver = Driver(policy, "a|m", "b|m")
    assert short(driver.call("y", "x", None)) == ["-a1:y", "~a1:1", "-a2:x", "+b1"]


def test_the_next_candidate_has_its_own_retries(make: Any) -> None:
    """The count starts again."""
    driver = Driver(make(plan=always(retry())), "a|m", "b|m")
    assert short(driver.call("x", "x", "x", None)) == ["-a1:x", "~a1:0", "-a2:x", "-b1:x", "~b1:0", "+b2"]


def test_each_failure_picks_its_action_anew(make: Any) -> None:
    """A retry that fails by another kind follows that kind's Action."""
    driver = Driver(make(plan=always(NEXT, x=retry(attempts=5), y={"action": "abort"})), "a|m", "b|m")
    walk = driver.call("x", "y")
    assert (walk.error, short(walk)) == ("y", ["-a1:x", "~a1:0", "-a2:y"])


@pytest.mark.parametrize("then", ["retry_same", "next_candidate", "next_provider_same_model", "disable_provider"])
def test_after_the_retries_anything_but_abort_advances(make: Any, then: str) -> None:
    """Also `disable_provider` and `next_provider_same_model`: to the next candidate, of any family."""
    driver = Driver(make(plan=always(retry(attempts=0, then_action=then))), "a|m", "b|n")
    assert short(driver.call("x", None)) == ["-a1:x", "+b1"]
    assert driver.health.disabled(driver.now_ms) == frozenset()


def test_after_the_retries_abort_stops(make: Any) -> None:
    """Its error is the last failure's kind."""
    walk = Driver(make(plan=always(retry(then_action="abort"))), "a|m", "b|m").call("x", "y")
    assert (walk.error, short(walk)) == ("y", ["-a1:x", "~a1:0", "-a2:y"])


def test_state_changes_at_the_attempts_end(make: Any) -> None:
    """The third attempt ends at 30 ms, so the breaker is open until 30,030."""
    driver = Driver(make(plan=always(retry(attempts=2))), "a|m")
    driver.call("x", "x", "x")
    assert driver.now_ms == 30
    assert driver.health.open_breakers(30_029) == {"a"}
    assert driver.health.open_breakers(30_030) == frozenset()


def test_retries_count_for_the_breaker(make: Any) -> None:
    """Every failure adds one, a retry's too."""
    driver = Driver(make(plan=always(retry(attempts=2))), "a|m")
    opened: list[bool] = []
    driver.call(
        "x", "x", "x", before_attempt=lambda attempt: opened.append(bool(driver.health.open_breakers(driver.now_ms)))
    )
    assert opened == [False, False, False]
    assert driver.health.open_breakers(driver.now_ms) == {"a"}


def test_a_provider_disabled_elsewhere_meanwhile_is_still_retried(make: Any) -> None:
    """Candidates are skipped when the cursor reaches them, and it is there already."""
    policy = make(plan=always(retry(), auth={"action": "disable_provider"}))
    driver = Driver(policy, "a|m", "a|n")

    def elsewhere(attempt: int) -> None:
        if attempt == 1:
            driver.health.observe("a", False, "auth", policy.action("auth"), driver.now_ms)

    assert short(driver.call("x", "x", before_attempt=elsewhere)) == ["-a1:x", "~a1:0", "-a2:x", "/a"]


def test_an_outcome_is_needed_after_an_attempt(make: Any) -> None:
    """A driver's mistake is said, not guessed over."""
    policy = make()
    candidates = [Candidate("a", "m")]
    machine = failover(policy, plan(policy, candidates), candidates, Health(), 0)
    next(machine)
    with pytest.raises(ReplayError, match="without an outcome"):
        machine.send((None, 1))
    with pytest.raises(ReplayError, match="no error kind"):
        Outcome(False)
