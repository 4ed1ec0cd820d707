"""Reading ahead: what comes next is made in another thread while this one works on what it has."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from typing import TypeVar

Item = TypeVar("Item")

_AHEAD = 3
_GLANCE_S = 0.1  # a wait without an end would not notice Ctrl-C where the system tells another thread of it
_END = object()


@contextmanager
def ahead(items: Generator[Item], stop: Callable[[], None]) -> Generator[Iterator[Item]]:
    """Give a generator's items, in their order, the next few being made in another thread meanwhile.

    An error of the generator is raised where its item would have come. Where the block ends by an error, `stop` is
    called to cut short what the other thread does. The generator is closed and the thread gone when the block is left.

    >>> with ahead((letter for letter in "abc"), stop=lambda: None) as letters:
    ...     "".join(letters)
    'abc'
    """

    def taken() -> Iterator[Item]:
        while True:
            while not coming[0].done():
                wait([coming[0]], timeout=_GLANCE_S)
            if (item := coming.popleft().result()) is _END:
                return
            coming.append(other.submit(next, items, _END))
            yield item  # type: ignore[misc]

    with closing(items), ThreadPoolExecutor(1) as other:
        coming = deque(other.submit(next, items, _END) for _ in range(_AHEAD))
        try:
            yield taken()
        except BaseException:
            other.shutdown(wait=False, cancel_futures=True)
            stop()
            raise
