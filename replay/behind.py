"""Rows handed on from a thread of their own, so that the next ones are made while the last are hashed and written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

Rows = TypeVar("Rows")


class Behind:
    """Hands rows to whoever takes them, in order, at most a few behind; errors come out of a later `hand` or the end.

    >>> taken = []
    >>> with Behind() as behind:
    ...     for number in range(3):
    ...         behind.hand(taken.append, number)
    >>> taken
    [0, 1, 2]
    """

    _DEPTH = 2

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def __enter__(self) -> Behind:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._settle(0)

    def hand(self, take: Callable[[Rows], None], rows: Rows) -> None:
        """Hand rows on; waits while too many are behind."""
        self._settle(self._DEPTH)
        self._pending.append(self._pool.submit(take, rows))

    def _settle(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.popleft().result()
