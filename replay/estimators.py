"""Estimators: how a route is measured from its attempts.

Each rule is a small frozen value that can be written in a settings file; `rule.start()` gives its streaming
form, which folds one observation and reads at an instant. The streaming form is the definition and the oracle
of every faster path. Observations are folded in the order they become visible; `at_ms` of an observation is
when its attempt ended.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from replay.errors import ReplayError


class Reading(NamedTuple):
    """What a rule says at an instant: the estimate (None: nothing to say) and the observations behind it."""

    value: float | None
    observations: int


class Stream(Protocol):
    """The streaming form of a rule for one route."""

    def fold(self, at_ms: int, identity: int, value: float) -> None:
        """Take in one observation that ended at `at_ms`; `identity` breaks ties in time."""

    def read(self, at_ms: int) -> Reading:
        """Estimate at an instant from what was folded so far."""


class Rule(Protocol):
    """A rule as a value: named, with parameters, able to start a stream."""

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""


@dataclass(frozen=True)
class Window:
    """Mean over the observations of the last `window_ms`; nothing in the window gives no estimate.

    An observation is in the window at `t` when `at_ms ≥ t − window_ms`. There is no upper bound: what has been
    folded was visible, and production's query has none either.

    >>> stream = Window(window_ms=1000).start()
    >>> stream.fold(500, 1, 1.0); stream.fold(1200, 2, 0.0)
    >>> stream.read(1500), stream.read(1501), stream.read(9000)
    (Reading(value=0.5, observations=2), Reading(value=0.0, observations=1), Reading(value=None, observations=0))
    """

    window_ms: int

    def __post_init__(self) -> None:
        _require(self.window_ms > 0, f"window is {self.window_ms} ms", "more than 0", "for example 15m")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _WindowStream(self.window_ms)


@dataclass(frozen=True)
class Count:
    """Mean over the last `n` observations by (at_ms, identity), whatever their age.

    >>> stream = Count(n=2).start()
    >>> for at, value in ((1, 1.0), (2, 0.0), (3, 0.0)): stream.fold(at, at, value)
    >>> stream.read(10)
    Reading(value=0.0, observations=2)
    """

    n: int

    def __post_init__(self) -> None:
        _require(self.n >= 1, f"count is {self.n}", "at least 1", "for example 20")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _CountStream(self.n)


@dataclass(frozen=True)
class Ema:
    """Exponential moving average per observation: the first seeds it, then m ← αx + (1 − α)m.

    >>> stream = Ema(alpha=0.2).start()
    >>> stream.fold(1, 1, 1.0); stream.fold(2, 2, 0.0); stream.read(3)
    Reading(value=0.8, observations=2)
    """

    alpha: float

    def __post_init__(self) -> None:
        _require(0 < self.alpha <= 1, f"alpha is {self.alpha}", "more than 0 and at most 1", "for example 0.2")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _EmaStream(self.alpha)


@dataclass(frozen=True)
class TimeEma:
    """Moving average weighted by time: w = exp(−Δt/τ), m ← wm + (1 − w)x, half-life τ·ln 2; the first seeds it.

    Δt is the time between the ends of the two attempts, never below 0: a row that became visible late weighs
    as if it had ended with the one before it.

    >>> stream = TimeEma(tau_ms=10_000).start()
    >>> stream.fold(0, 1, 1.0); stream.fold(10_000, 2, 0.0); round(stream.read(10_000).value, 6)
    0.367879
    """

    tau_ms: int

    def __post_init__(self) -> None:
        _require(self.tau_ms > 0, f"tau is {self.tau_ms} ms", "more than 0", "for example 10s")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _TimeEmaStream(self.tau_ms)


def _require(holds: bool, given: str, expected: str, example: str) -> None:
    if not holds:
        raise ReplayError(f"{given}; expected {expected}; give {example}")


class DoubleDouble:
    """A running sum kept as two doubles, good to about 106 bits (Knuth's two-sum).

    Adding and removing values beside a huge outlier leaves no residue a double could show.

    >>> total = DoubleDouble()
    >>> for value in (0.1, 1e16, -1e16): total.add(value)
    >>> total.value
    0.1
    """

    __slots__ = ("high", "low")

    def __init__(self) -> None:
        self.high = 0.0
        self.low = 0.0

    def add(self, value: float) -> None:
        """Add a value; remove one by adding its negative."""
        total = self.high + value
        part = total - self.high
        low = self.low + ((self.high - (total - part)) + (value - part))
        self.high = total + low
        self.low = low - (self.high - total)

    @property
    def value(self) -> float:
        """The sum as one double."""
        return self.high + self.low


class _WindowStream:
    """Rows sorted by (at_ms, identity); `first` is the first row inside the window last read.

    A value that is no finite number leaves the window without an estimate as long as it is in it, and no longer.
    """

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self.rows: list[tuple[int, int, float]] = []
        self.first = 0
        self.since_ms = -(2**63)
        self.sum = DoubleDouble()
        self.unusable = 0

    def fold(self, at_ms: int, identity: int, value: float) -> None:
        bisect.insort(self.rows, (at_ms, identity, value))
        if at_ms >= self.since_ms:
            self._enter(value)
        else:  # already older than the window when it became visible
            self.first += 1

    def read(self, at_ms: int) -> Reading:
        self._move(at_ms - self.window_ms)
        count = len(self.rows) - self.first
        return Reading(self.sum.value / count if count and not self.unusable else None, count)

    def _enter(self, value: float) -> None:
        if math.isfinite(value):
            self.sum.add(value)
        else:
            self.unusable += 1

    def _leave(self, value: float) -> None:
        if math.isfinite(value):
            self.sum.add(-value)
        else:
            self.unusable -= 1

    def _move(self, since_ms: int) -> None:
        """Move the window's edge; back, too, as the clocks of two replicas need not agree."""
        self.since_ms = since_ms
        while self.first < len(self.rows) and self.rows[self.first][0] < since_ms:
            self._leave(self.rows[self.first][2])
            self.first += 1
        while self.first > 0 and self.rows[self.first - 1][0] >= since_ms:
            self.first -= 1
            self._enter(self.rows[self.first][2])


class _CountStream:
    def __init__(self, n: int) -> None:
        self.n = n
        self.rows: list[tuple[int, int, float]] = []
        self.sum = DoubleDouble()

    def fold(self, at_ms: int, identity: int, value: float) -> None:
        bisect.insort(self.rows, (at_ms, identity, value))
        self.sum.add(value)
        if len(self.rows) > self.n:
            self.sum.add(-self.rows.pop(0)[2])

    def read(self, at_ms: int) -> Reading:
        count = len(self.rows)
        return Reading(self.sum.value / count, count) if count else Reading(None, 0)


class _EmaStream:
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.mean: float | None = None
        self.count = 0

    def fold(self, at_ms: int, identity: int, value: float) -> None:
        self.count += 1
        self.mean = value if self.mean is None else self.alpha * value + (1 - self.alpha) * self.mean

    def read(self, at_ms: int) -> Reading:
        return Reading(self.mean, self.count)


class _TimeEmaStream:
    def __init__(self, tau_ms: int) -> None:
        self.tau_ms = tau_ms
        self.mean: float | None = None
        self.last_ms = 0
        self.count = 0

    def fold(self, at_ms: int, identity: int, value: float) -> None:
        self.count += 1
        if self.mean is None:
            self.mean, self.last_ms = value, at_ms
            return
        weight = math.exp(-max(0, at_ms - self.last_ms) / self.tau_ms)
        self.mean = weight * self.mean + (1 - weight) * value
        self.last_ms = max(self.last_ms, at_ms)

    def read(self, at_ms: int) -> Reading:
        return Reading(self.mean, self.count)


class ToolsReading(NamedTuple):
    """A tools verdict at an instant and the evidence behind it."""

    capable: bool
    requests: int
    emitted: int


class ToolsStream(Protocol):
    """The streaming form of a tools rule for one route."""

    def fold(self, at_ms: int, requested: bool, emitted: bool) -> None:
        """Take in one attempt that asked for tools or answered with a tool call."""

    def read(self, at_ms: int) -> ToolsReading:
        """Judge at an instant from what was folded so far."""


class ToolsRule(Protocol):
    """A tools rule as a value."""

    def start(self) -> ToolsStream:
        """Return the streaming form with nothing observed."""


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
        _require(self.min_samples >= 1, f"tools min_samples is {self.min_samples}", "at least 1", "for example 20")
        _require(self.window_ms > 0, f"tools window is {self.window_ms} ms", "more than 0", "for example 30m")

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
        _require(self.min_samples >= 1, f"tools min_samples is {self.min_samples}", "at least 1", "for example 20")
        _require(self.horizon_ms > 0, f"tools horizon is {self.horizon_ms} ms", "more than 0", "for example 30m")

    def start(self) -> ToolsStream:
        """Return the streaming form with nothing observed."""
        return _ToolsStickyStream(self)


@dataclass(frozen=True)
class ToolsNever:
    """No measurement: every route stays capable."""

    def start(self) -> ToolsStream:
        """Return the streaming form with nothing observed."""
        return _ToolsWindowStream(ToolsWindow(min_samples=2**62, window_ms=1))


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
