"""The router's time: a clock, and waiting by it, blocking or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """The router's time: integer ms, and waiting, for an instant or for blocking work."""

    def now_ms(self) -> int:
        """The present instant in ms."""

    def sleep(self, duration_ms: float) -> None:
        """Wait, blocking."""

    async def sleep_async(self, duration_ms: float) -> None:
        """Wait, letting others run."""

    async def work_async(self, work: Callable[[], T]) -> T:
        """Do work that may block, letting others run; a cancellation does not wait for it."""


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

    async def work_async(self, work: Callable[[], T]) -> T:
        """Do it in a thread of the running asyncio loop."""
        return await asyncio.to_thread(work)
