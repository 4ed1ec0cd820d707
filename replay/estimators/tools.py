"""Tools rules: whether a route that is asked for tool calls ever makes one."""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from replay.estimators.base import ToolsReading, ToolsStream, require


@dataclass(frozen=True)
class ToolsWindow:
    """Incapable: at least `min_samples` tools-requests in the last `window_ms` and not one tool call.

    >>> stream = ToolsWindow(min_samples=2, window_ms=1000).start()
    >>> stream.fold(0, True, False); stream.fold(10, True, False)
    >>> stream.read(1000), stream.read(1001).capable
    (ToolsReading(capable=False, requests=2, emitted=0), True)
    """

    min_samples: int
    window_ms: int

    def __post_init__(self) -> None:
        require(self.min_samples >= 1, f"tools min_samples is {self.min_samples}", "at least 1", "for example 20")
        require(self.window_ms > 0, f"tools window is {self.window_ms} ms", "more than 0", "for example 30m")

    def start(self) -> ToolsStream:
        """Return the streaming form with nothing observed."""
        return _ToolsWindowStream(self)


@dataclass(frozen=True)
class ToolsSticky:
    """What production did before: a count of silent tools-requests, and one tool call proves a route for good.

    `min_samples` requests with no tool call mark the route; the mark expires `horizon_ms` after its count began,
    and the next request starts a new count.

    >>> stream = ToolsSticky(min_samples=2, horizon_ms=1000).start()
    >>> stream.fold(0, True, False); stream.fold(10, True, False)
    >>> stream.read(999).capable, stream.read(1000).capable
    (False, True)
    >>> stream.fold(1500, True, True); stream.fold(1600, True, False); stream.fold(1700, True, False)
    >>> stream.read(1800).capable
    True
    """

    min_samples: int
    horizon_ms: int

    def __post_init__(self) -> None:
        require(self.min_samples >= 1, f"tools min_samples is {self.min_samples}", "at least 1", "for example 20")
        require(self.horizon_ms > 0, f"tools horizon is {self.horizon_ms} ms", "more than 0", "for example 30m")

    def start(self) -> ToolsStream:
        """Return the streaming form with nothing observed."""
        return _ToolsStickyStream(self)


@dataclass(frozen=True)
class ToolsNever:
    """No measurement: every route stays capable."""

    def start(self) -> ToolsStream:
        """Return the streaming form with nothing observed."""
        return _ToolsNeverStream()


class _ToolsWindowStream:
    """Counts instead of sums; otherwise as the window stream."""

    def __init__(self, rule: ToolsWindow) -> None:
        self.rule = rule
        self.rows: list[tuple[int, bool, bool]] = []
        self.first = 0
        self.since_ms = -(2**63)
        self.requests = self.emitted = 0

    def fold(self, at_ms: int, requested: bool, emitted: bool) -> None:
        bisect.insort(self.rows, (at_ms, requested, emitted))
        if at_ms >= self.since_ms:
            self.requests += requested
            self.emitted += emitted
        else:
            self.first += 1

    def read(self, at_ms: int) -> ToolsReading:
        self.since_ms = at_ms - self.rule.window_ms
        while self.first < len(self.rows) and self.rows[self.first][0] < self.since_ms:
            self.requests -= self.rows[self.first][1]
            self.emitted -= self.rows[self.first][2]
            self.first += 1
        while self.first > 0 and self.rows[self.first - 1][0] >= self.since_ms:
            self.first -= 1
            self.requests += self.rows[self.first][1]
            self.emitted += self.rows[self.first][2]
        condemned = self.requests >= self.rule.min_samples and self.emitted == 0
        return ToolsReading(not condemned, self.requests, self.emitted)


class _ToolsStickyStream:
    def __init__(self, rule: ToolsSticky) -> None:
        self.rule = rule
        self.proven = False
        self.began_ms = 0
        self.requests = self.emitted = 0

    def fold(self, at_ms: int, requested: bool, emitted: bool) -> None:
        self.proven = self.proven or emitted
        self.emitted += emitted
        if not requested:
            return
        marked_until_ms = self.began_ms + self.rule.horizon_ms
        if self.requests >= self.rule.min_samples and at_ms >= marked_until_ms:
            self.requests = 0
        if self.requests == 0:
            self.began_ms = at_ms
        self.requests += 1

    def read(self, at_ms: int) -> ToolsReading:
        marked = self.requests >= self.rule.min_samples and at_ms < self.began_ms + self.rule.horizon_ms
        return ToolsReading(self.proven or not marked, self.requests, self.emitted)


class _ToolsNeverStream:
    """Looks at nothing, so it has seen nothing."""

    def fold(self, at_ms: int, requested: bool, emitted: bool) -> None:
        return

    def read(self, at_ms: int) -> ToolsReading:
        return ToolsReading(True, 0, 0)
