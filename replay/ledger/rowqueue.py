"""The bounded queue between a request and the writer: taking a row in costs a lock that is never held during I/O."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

from replay.ledger.reference import Reference
from replay.ledger.rows import AttemptRow, CallRow

Item = CallRow | AttemptRow | Reference


@dataclass(frozen=True, slots=True)
class Drained:
    """What became of everything recorded so far: committed, dropped (and counted by reason), or still waiting."""

    written: int
    dropped: int
    left: int


class Queue:
    """Items in the order of arrival, and an account: each one put is written, dropped, or left."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.written: Counter[str] = Counter()  # by table
        self.dropped: Counter[str] = Counter()  # by reason
        self.arrived = threading.Event()
        self._items: deque[Item] = deque()
        self._in_hand = 0
        self._closed = self._abandoned = False
        self._lock = threading.Lock()

    def put(self, item: Item) -> bool:
        """Take an item in, or drop and count it where the queue is full or closed; never waits."""
        with self._lock:
            if len(self._items) >= self.size or self._closed:
                self.dropped["closed" if self._closed else "queue_full"] += 1
                return False
            self._items.append(item)
        if not self.arrived.is_set():
            self.arrived.set()
        return True

    def refuse(self, reason: str) -> None:
        """Count something that could not even be taken in."""
        with self._lock:
            self.dropped[reason] += 1

    def take(self, most: int) -> list[Item]:
        """Take out up to so many items; they stay on the account until they are settled."""
        with self._lock:
            self.arrived.clear()
            items = [self._items.popleft() for _ in range(min(most, len(self._items)))]
            if self._items:
                self.arrived.set()
            self._in_hand += len(items)
        return items

    def settle(self, written: Counter[str], dropped: Counter[str]) -> None:
        """Enter what became of items that were taken out."""
        with self._lock:
            if self._abandoned:
                return  # they were given up, and are counted so
            self.written += written
            self.dropped += dropped
            self._in_hand -= written.total() + dropped.total()

    def close(self) -> None:
        """Drop whatever is put from now on."""
        with self._lock:
            self._closed = True

    def abandon(self) -> Drained:
        """Drop what is left, as closed, and return the account as it was before."""
        before = self.account()
        with self._lock:
            self._abandoned = True
            if before.left:
                self.dropped["closed"] += len(self._items) + self._in_hand
            self._items.clear()
            self._in_hand = 0
        return before

    def account(self) -> Drained:
        """Return what became of everything so far."""
        with self._lock:
            return Drained(self.written.total(), self.dropped.total(), len(self._items) + self._in_hand)

    def wait_empty(self, deadline_s: float) -> bool:
        """Wait until nothing is left or so many seconds have passed; say whether nothing is left."""
        until = time.monotonic() + deadline_s
        while self.account().left and time.monotonic() < until:
            time.sleep(0.002)
        return not self.account().left
