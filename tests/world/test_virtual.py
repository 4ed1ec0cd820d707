"""Virtual time and hashed luck."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from replay.errors import ReplayError
from replay.virtual import Luck, World


def test_events_at_one_instant_happen_in_the_order_they_were_scheduled() -> None:
    """Ties in time are broken by the order of scheduling, nothing else."""
    world, said = World(start_ms=10), []
    for word in ("a", "b", "c"):
        world.at(20, lambda word=word: said.append((world.now_ms(), word)))
    world.at(15, lambda: said.append((world.now_ms(), "first")))
    world.run()
    assert said == [(15, "first"), (20, "a"), (20, "b"), (20, "c")]


def test_coroutines_overlap_and_fractions_of_a_millisecond_are_rounded_up() -> None:
    """Two sleepers interleave; 0.5 ms is 1 ms, so that waiting never takes no time at all."""
    world, said = World(start_ms=0), []

    async def walk(name: str, pauses: list[float]) -> None:
        for pause in pauses:
            await world.sleep_async(pause)
            said.append((world.now_ms(), name))

    world.spawn(walk("x", [10, 10]))
    world.spawn(walk("y", [0.5, 15]))
    world.run()
    assert said == [(1, "y"), (10, "x"), (16, "y"), (20, "x")]


def test_a_cancelled_coroutine_gets_asyncio_s_error_where_it_waits() -> None:
    """It may clean up, and its pending wait is forgotten."""
    world, said = World(start_ms=0), []

    async def work() -> None:
        try:
            await world.sleep_async(100)
            said.append("done")
        except asyncio.CancelledError:
            said.append(f"cancelled at {world.now_ms()}")
            raise

    world.spawn(work(), cancel_after_ms=30)
    world.spawn(work(), cancel_after_ms=130)
    world.run()
    assert said == ["cancelled at 30", "done"]


def test_a_cancelled_coroutine_that_goes_on_waiting_is_refused() -> None:
    """Swallowing the cancellation is a defect of the coroutine, and is said."""
    world = World(start_ms=0)

    async def stubborn() -> None:
        try:
            await world.sleep_async(100)
        except asyncio.CancelledError:
            await world.sleep_async(100)

    world.spawn(stubborn(), cancel_after_ms=1)
    with pytest.raises(ReplayError, match="cancelled coroutine"):
        world.run()


def test_the_world_s_clock_refuses_to_block() -> None:
    """A blocking wait would stop every other coroutine."""
    with pytest.raises(ReplayError, match="execute_async"):
        World(start_ms=0).sleep(1)


def test_luck_is_uniform_enough_and_never_0_or_1() -> None:
    """10,000 draws: mean within five standard errors of a half, all inside (0, 1)."""
    draws = [Luck(3).draw("call", number) for number in range(10_000)]
    assert abs(sum(draws) / 10_000 - 0.5) < 5 * (1 / 12**0.5) / 100
    assert min(draws) > 0
    assert max(draws) < 1


def test_parts_of_a_draw_do_not_run_together() -> None:
    """("ab", "c") and ("a", "bc") are different draws."""
    assert Luck(1).draw("ab", "c") != Luck(1).draw("a", "bc")


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 5)])
def test_whole_numbers_reach_both_ends_and_no_further(low: int, high: int) -> None:
    """Every number from low to high comes up, no other."""
    assert {Luck(1).whole(low, high, n) for n in range(200)} == set(range(low, high + 1))


def test_picks_follow_the_weights() -> None:
    """A weight of zero is never picked; 3 to 1 comes out near 3 to 1."""
    weighted: list[tuple[Any, float]] = [("often", 3.0), ("never", 0.0), ("rarely", 1.0)]
    picks = [Luck(5).pick(weighted, number) for number in range(4_000)]
    assert set(picks) == {"often", "rarely"}
    assert 2_850 < picks.count("often") < 3_150  # 3000 ± 5 standard deviations of 27
