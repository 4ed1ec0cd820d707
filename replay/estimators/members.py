"""Rules over members: the rows that count at an instant (the last W ms, or the last n), and what is said of them."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Protocol

from replay.estimators.base import DoubleDouble, Reading, Stream, require


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
        require(self.window_ms > 0, f"window is {self.window_ms} ms", "more than 0", "for example 15m")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _WindowStream(self.window_ms, _Mean())


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
        require(self.n >= 1, f"count is {self.n}", "at least 1", "for example 20")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _CountStream(self.n, _Mean())


@dataclass(frozen=True, kw_only=True)
class Wilson:
    """Lower bound of the success rate: Wilson's score interval over a window of `window_ms`, or over the last `n`.

    Of m observations with s successes: (s + z²/2 − z·√(s(m−s)/m + z²/4)) / (m + z²), never below 0; observations
    are 1.0 (success) or 0.0. `z` is the standard normal quantile: 1.96 leaves 2.5 % below. One success of one reads
    0.2, so a route that nothing is known of looks worse than one with a record.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    >>> stream = Wilson(n=20, z=2.0).start()
    >>> stream.fold(1, 1, 1.0); stream.read(1)
    Reading(value=0.2, observations=1)
    """

    window_ms: int | None = None
    n: int | None = None
    z: float = 1.96

    def __post_init__(self) -> None:
        _require_members("wilson", self.window_ms, self.n)
        require(0 < self.z < math.inf, f"z is {self.z}", "a finite number above 0", "for example 1.96")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _members(self.window_ms, self.n, _Lower(self.z))


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """Quantile `q` of the latencies in a window of `window_ms`, or of the last `n`.

    It is the lower empirical quantile (type 1 of Hyndman and Fan, "Sample quantiles in statistical packages", The
    American Statistician 50 (1996)): of m sorted values the one at place max(1, ⌈qm⌉), q·m taken as doubles. This is
    what `percentile_disc` means in SQL. It is always a latency that was observed, in ms, so no arithmetic can blur it.

    >>> stream = Quantile(n=20, q=0.5).start()
    >>> for at, value in ((1, 30.0), (2, 10.0), (3, 20.0), (4, 500.0)): stream.fold(at, at, value)
    >>> stream.read(9)
    Reading(value=20.0, observations=4)
    """

    q: float
    window_ms: int | None = None
    n: int | None = None

    def __post_init__(self) -> None:
        _require_members("quantile", self.window_ms, self.n)
        require(0 < self.q <= 1, f"q is {self.q}", "more than 0 and at most 1", "for example 0.5 or 0.95")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _members(self.window_ms, self.n, _Place(self.q))


def wilson_lower(successes: float, observations: int, z: float) -> float:
    """Return Wilson's lower bound; see `Wilson` for the formula. `observations` is at least 1.

    >>> wilson_lower(0, 5, 1.96), round(wilson_lower(9, 10, 1.96), 3)
    (0.0, 0.596)
    """
    spread = z * math.sqrt(successes * (observations - successes) / observations + z * z / 4)
    return max(0.0, (successes + z * z / 2 - spread) / (observations + z * z))


def quantile_place(observations: int, q: float) -> int:
    """Return which of so many sorted values is the quantile, counted from 1.

    >>> [quantile_place(4, q) for q in (0.01, 0.25, 0.26, 0.5, 1.0)]
    [1, 1, 2, 2, 4]
    """
    return max(1, math.ceil(q * observations))


def _require_members(name: str, window_ms: int | None, n: int | None) -> None:
    given = f"{name} has {'neither window nor n' if n is None else 'window and n'}"
    require((window_ms is None) != (n is None), given, "one of the two", 'for example window = "15m"')
    require(window_ms is None or window_ms > 0, f"window is {window_ms} ms", "more than 0", "for example 15m")
    require(n is None or n >= 1, f"n is {n}", "at least 1", "for example 20")


def _members(window_ms: int | None, n: int | None, summary: _Summary) -> Stream:
    return _CountStream(n or 1, summary) if window_ms is None else _WindowStream(window_ms, summary)


class _Summary(Protocol):
    """What is said of the members, kept up to date as they come and go. Members are finite."""

    def enter(self, value: float) -> None: ...

    def leave(self, value: float) -> None: ...

    def read(self, count: int) -> float: ...


class _Mean:
    """The sum in double-double; it starts again at 0 when the last member has left."""

    def __init__(self) -> None:
        self.sum = DoubleDouble()
        self.count = 0

    def enter(self, value: float) -> None:
        self.count += 1
        self.sum.add(value)

    def leave(self, value: float) -> None:
        self.count -= 1
        if self.count:
            self.sum.add(-value)
        else:
            self.sum.clear()

    def read(self, count: int) -> float:
        return self.sum.value / count


class _Lower(_Mean):
    def __init__(self, z: float) -> None:
        super().__init__()
        self.z = z

    def read(self, count: int) -> float:
        return wilson_lower(self.sum.value, count, self.z)


class _Place:
    def __init__(self, q: float) -> None:
        self.q = q
        self.values: list[float] = []

    def enter(self, value: float) -> None:
        bisect.insort(self.values, value)

    def leave(self, value: float) -> None:
        del self.values[bisect.bisect_left(self.values, value)]

    def read(self, count: int) -> float:
        return self.values[quantile_place(count, self.q) - 1]


class _Members:
    """Rows sorted by (at_ms, identity), some of them members.

    A member that is no finite number leaves the rule without an estimate as long as it is one, and no longer.
    """

    def __init__(self, summary: _Summary) -> None:
        self.summary = summary
        self.rows: list[tuple[int, int, float]] = []
        self.count = 0
        self.unusable = 0

    def enter(self, value: float) -> None:
        self.count += 1
        if math.isfinite(value):
            self.summary.enter(value)
        else:
            self.unusable += 1

    def leave(self, value: float) -> None:
        self.count -= 1
        if math.isfinite(value):
            self.summary.leave(value)
        else:
            self.unusable -= 1

    def reading(self) -> Reading:
        usable = self.count and not self.unusable
        return Reading(self.summary.read(self.count) if usable else None, self.count)


class _WindowStream(_Members):
    """`first` is the first row inside the window last read."""

    def __init__(self, window_ms: int, summary: _Summary) -> None:
        super().__init__(summary)
        self.window_ms = window_ms
        self.first = 0
        self.since_ms = -(2**63)

    def fold(self, at_ms: int, identity: int, value: float) -> None:
        bisect.insort(self.rows, (at_ms, identity, value))
        if at_ms >= self.since_ms:
            self.enter(value)
        else:  # already older than the window when it became visible
            self.first += 1

    def read(self, at_ms: int) -> Reading:
        """Move the window's edge and read; back, too, as the clocks of two replicas need not agree."""
        self.since_ms = at_ms - self.window_ms
        while self.first < len(self.rows) and self.rows[self.first][0] < self.since_ms:
            self.leave(self.rows[self.first][2])
            self.first += 1
        while self.first > 0 and self.rows[self.first - 1][0] >= self.since_ms:
            self.first -= 1
            self.enter(self.rows[self.first][2])
        return self.reading()


class _CountStream(_Members):
    """All rows are members; one that comes too late to be among the last n never is."""

    def __init__(self, n: int, summary: _Summary) -> None:
        super().__init__(summary)
        self.n = n

    def fold(self, at_ms: int, identity: int, value: float) -> None:
        full = len(self.rows) == self.n
        if full and (at_ms, identity) < self.rows[0][:2]:
            return
        bisect.insort(self.rows, (at_ms, identity, value))
        self.enter(value)
        if full:
            self.leave(self.rows.pop(0)[2])

    def read(self, at_ms: int) -> Reading:
        return self.reading()
