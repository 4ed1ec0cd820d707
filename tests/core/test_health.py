from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.core import Action, Health

NEXT = Action("next_candidate")
DISABLE = Action("disable_provider")


def fail(health: Health, *instants_ms: int, kind: str = "timeout", action: Action = NEXT) -> None:
    """Let provider p fail at these instants."""
    for now_ms in instants_ms:
        health.observe("p", False, kind, action, now_ms)


def is_open(health: Health, now_ms: int) -> bool:
    """Tell whether exactly p has an open breaker."""
    return health.open_breakers(now_ms) == {"p"}


def test_the_third_failure_in_a_row_opens_at_that_instant() -> None:
    """Two are not enough; the instant of the third counts."""
    health = Health()
    fail(health, 0, 10)
    assert not is_open(health, 10)
    fail(health, 20)
    assert is_open(health, 20)


def test_it_counts_as_closed_from_exactly_30_s() -> None:
    """Open in [opened, opened + 30 s)."""
    health = Health()
    fail(health, 0, 10, 20)
    assert is_open(health, 30_019)
    assert not is_open(health, 30_020)


def test_a_success_closes_and_resets_the_count() -> None:
    """Afterwards three more failures are needed."""
    health = Health()
    fail(health, 0, 1, 2)
    health.observe("p", True, None, None, 3)
    assert not is_open(health, 3)
    fail(health, 4, 5)
    assert not is_open(health, 5)
    fail(health, 6)
    assert is_open(health, 6)


@pytest.mark.parametrize("kind", ["bad_request", "content_filter", "context_overflow"])
def test_the_clients_own_kinds_touch_no_breaker(kind: str) -> None:
    """Not even with `open_breaker_ms`; they neither count nor reset the count."""
    health = Health()
    fail(health, 0, 1)
    fail(health, 2, 3, 4, kind=kind, action=Action("abort", open_breaker_ms=30_000))
    assert not is_open(health, 4)
    fail(health, 5)
    assert is_open(health, 5)


def test_the_clients_own_kinds_still_disable() -> None:
    """Disabling is no breaker."""
    health = Health()
    fail(health, 0, kind="bad_request", action=DISABLE)
    assert health.rank(0) == (frozenset(), frozenset({"p"}))


def test_an_action_with_open_breaker_ms_opens_at_once() -> None:
    """At the first failure, for 30 s whatever it says."""
    health = Health()
    fail(health, 100, action=Action("next_candidate", open_breaker_ms=300_000))
    assert is_open(health, 30_099)
    assert not is_open(health, 30_100)


def test_the_honest_window_is_a_setting() -> None:
    """What the Action says; without one, the breaker's own 30 s."""
    health = Health(honour_open_breaker_ms=True)
    fail(health, 100, action=Action("next_candidate", open_breaker_ms=300_000))
    assert is_open(health, 300_099)
    assert not is_open(health, 300_100)
    health = Health(honour_open_breaker_ms=True)
    fail(health, 0, 0, 0)
    assert is_open(health, 29_999)
    assert not is_open(health, 30_000)


def test_a_failure_while_open_opens_again() -> None:
    """Opening does not reset the count, so each further failure restarts the 30 s."""
    health = Health()
    fail(health, 0, 0, 0, 10_000)
    assert is_open(health, 39_999)
    assert not is_open(health, 40_000)


def test_opening_early_does_not_reset_the_count() -> None:
    """One opening failure and two plain ones make three."""
    health = Health()
    fail(health, 0, action=Action("next_candidate", open_breaker_ms=1))
    fail(health, 100, 200)
    assert is_open(health, 30_199)


def test_without_a_ranking_the_count_outlives_the_window() -> None:
    """Closed by time alone: the next failure is the fourth and opens again."""
    health = Health()
    fail(health, 0, 0, 0, 50_000)
    assert is_open(health, 50_000)


def test_a_ranking_that_finds_it_recovered_resets_the_count() -> None:
    """From exactly 30 s on; then one failure is one."""
    health = Health()
    fail(health, 0, 0, 0)
    assert health.rank(30_000) == (frozenset(), frozenset())
    fail(health, 50_000, 50_001)
    assert not is_open(health, 50_001)


def test_a_ranking_while_open_or_never_opened_resets_nothing() -> None:
    """Two failures, a ranking much later, one more: open. And a ranking at 29.999 s leaves the count."""
    health = Health()
    fail(health, 0, 0)
    health.rank(100_000)
    fail(health, 100_001)
    assert is_open(health, 100_001)
    assert health.rank(130_000)[0] == {"p"}
    fail(health, 140_000)
    assert is_open(health, 140_000)


def test_a_disabled_provider_is_back_from_exactly_300_s() -> None:
    """Disabled in [then, then + 300 s); a success meanwhile changes nothing; disabling again starts anew."""
    health = Health()
    fail(health, 5, action=DISABLE)
    health.observe("p", True, None, None, 10)
    assert health.is_disabled("p", 300_004)
    assert not health.is_disabled("p", 300_005)
    assert health.disabled(300_005) == frozenset()
    fail(health, 200_000, action=DISABLE)
    assert health.is_disabled("p", 499_999)


def test_providers_are_apart() -> None:
    """One provider's failures are not another's."""
    health = Health()
    for provider in ("p", "q", "p", "q"):
        health.observe(provider, False, "timeout", NEXT, 0)
    assert health.open_breakers(0) == frozenset()


def test_a_failure_of_unknown_kind_counts() -> None:
    """Ledgers hold failures without a kind."""
    health = Health(threshold=1)
    health.observe("p", False, None, NEXT, 0)
    assert is_open(health, 0)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ok", "timeout", "bad_request", "rank"]),
        st.sampled_from([None, 1, 60_000]),
        st.integers(0, 20_000),
    ),
    max_size=30,
)


@given(EVENTS, st.booleans())
def test_the_timeline_equals_a_naive_replay_of_the_whole_past(
    events: list[tuple[str, int | None, int]], honest: bool
) -> None:
    """The breaker at each instant follows from the list of past events alone, read anew each time."""
    health = Health(honour_open_breaker_ms=honest)
    past: list[tuple[int, str, int | None]] = []
    now_ms = 0
    for event, asked_ms, gap_ms in events:
        now_ms += gap_ms
        if event == "rank":
            health.rank(now_ms)
        else:
            action = Action("next_candidate", open_breaker_ms=asked_ms)
            health.observe("p", event == "ok", None if event == "ok" else event, action, now_ms)
        past.append((now_ms, event, asked_ms))
        assert is_open(health, now_ms) == (now_ms < _closed_from_ms(past, honest))


def _closed_from_ms(past: list[tuple[int, str, int | None]], honest: bool) -> float:
    """Return the instant from which the breaker is closed, after the past; −inf where it never opened."""
    failures, closed_from_ms = 0, float("-inf")
    for at_ms, event, asked_ms in past:
        if event == "ok" or (event == "rank" and float("-inf") < closed_from_ms <= at_ms):
            failures, closed_from_ms = 0, float("-inf")
        elif event == "timeout":
            failures += 1
            if failures >= 3 or asked_ms is not None:
                closed_from_ms = at_ms + (asked_ms if honest and asked_ms is not None else 30_000)
    return closed_from_ms
