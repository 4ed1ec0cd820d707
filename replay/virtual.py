"""Virtual time and hashed luck: the ground a simulated world stands on.

Events are ordered by (instant, order of scheduling), so the same world runs the same way everywhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import math
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, TypeVar

from replay.errors import ReplayError

T = TypeVar("T")


class Luck:
    """Uniform draws in (0, 1) that depend on the seed and on what is drawn for, and on nothing else.

    >>> Luck(7).draw("call-1", "p|m|p", 1) == Luck(7).draw("call-1", "p|m|p", 1) != Luck(8).draw("call-1", "p|m|p", 1)
    True
    """

    def __init__(self, seed: int) -> None:
        self._key = str(seed).encode()

    def draw(self, *parts: str | int) -> float:
        """One draw, for these parts."""
        text = "\x1f".join(map(str, parts)).encode()
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8, key=self._key).digest(), "big")
        return ((number >> 12) + 0.5) / 2**52

    def pick(self, weighted: Sequence[tuple[Any, float]], *parts: str | int) -> Any:
        """One of several things, by their weights.

        >>> Luck(1).pick([("always", 1.0), ("never", 0.0)], "x")
        'always'
        """
        left = self.draw(*parts) * math.fsum(weight for _, weight in weighted)
        for thing, weight in weighted:
            left -= weight
            if left < 0:
                return thing
        return weighted[-1][0]

    def whole(self, low: int, high: int, *parts: str | int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self.draw(*parts) * (high - low + 1))


class World:
    """Virtual time: a clock that jumps from event to event, and the coroutines that wait on it.

    >>> world, said = World(start_ms=1000), []
    >>> async def speak(word, after_ms):
    ...     await world.sleep_async(after_ms)
    ...     said.append((world.now_ms(), word))
    >>> world.spawn(speak("slow", 50)); world.spawn(speak("quick", 20)); world.run()
    >>> said
    [(1020, 'quick'), (1050, 'slow')]
    """

    def __init__(self, start_ms: int) -> None:
        self._now_ms = start_ms
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._scheduled = 0

    def now_ms(self) -> int:
        """The present instant in ms."""
        return self._now_ms

    def sleep(self, duration_ms: float) -> None:
        """Refuse: blocking would stop the whole world."""
        raise ReplayError("the world's clock cannot block; expected execute_async: use it instead of execute")

    async def sleep_async(self, duration_ms: float) -> None:
        """Wait; a fraction of a millisecond is rounded up."""
        await _pause(math.ceil(duration_ms))

    async def work_async(self, work: Callable[[], T]) -> T:
        """Do work at once: it takes no virtual time."""
        return work()

    def at(self, at_ms: int, event: Callable[[], None]) -> None:
        """Let something happen at an instant (now, if that has passed), after all that was scheduled for it before."""
        self._scheduled += 1
        heapq.heappush(self._events, (max(at_ms, self._now_ms), self._scheduled, event))

    def spawn(self, coroutine: Coroutine[Any, Any, Any], cancel_after_ms: int | None = None) -> None:
        """Start a coroutine now; with `cancel_after_ms`, cancel it then if it still runs, as asyncio does."""
        task = _Task(self, coroutine)
        self.at(self._now_ms, task.step)
        if cancel_after_ms is not None:
            self.at(self._now_ms + cancel_after_ms, task.cancel)

    def run(self) -> None:
        """Let everything happen, until nothing is left to happen."""
        while self._events:
            self._now_ms, _, event = heapq.heappop(self._events)
            event()


class _Task:
    """A coroutine that runs in a world."""

    def __init__(self, world: World, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.world = world
        self.coroutine: Coroutine[Any, Any, Any] | None = coroutine

    def step(self) -> None:
        if self.coroutine is None:
            return
        try:
            wait_ms: int = self.coroutine.send(None)
        except StopIteration:
            self.coroutine = None
        else:
            self.world.at(self.world.now_ms() + wait_ms, self.step)

    def cancel(self) -> None:
        if self.coroutine is None:
            return
        coroutine, self.coroutine = self.coroutine, None
        try:
            coroutine.throw(asyncio.CancelledError())
        except (asyncio.CancelledError, StopIteration):
            return
        coroutine.close()
        raise ReplayError("a cancelled coroutine went on waiting; expected it to end: let CancelledError through")


@types.coroutine
def _pause(duration_ms: int) -> Generator[int, None, None]:
    yield duration_ms
