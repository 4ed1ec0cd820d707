"""What every estimator is made of: readings, the two forms of a rule, and a sum that does not drift."""

from __future__ import annotations

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


def require(holds: bool, given: str, expected: str, example: str) -> None:
    """Raise ReplayError unless a parameter makes sense: what was given, what was expected, what to give.

    >>> require(True, "alpha is 0.2", "more than 0", "for example 0.2")
    """
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
        self.clear()

    def clear(self) -> None:
        """Start again at exactly 0, without what rounding left behind."""
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
