"""Rules that fold: one small state per route, changed by every observation in the order it became visible."""

from __future__ import annotations

import math
from dataclasses import dataclass

from replay.estimators.base import Reading, Stream, require


@dataclass(frozen=True)
class Ema:
    """Exponential moving average per observation: the first seeds it, then m ← αx + (1 − α)m.

    >>> stream = Ema(alpha=0.2).start()
    >>> stream.fold(1, 1, 1.0); stream.fold(2, 2, 0.0); stream.read(3)
    Reading(value=0.8, observations=2)
    """

    alpha: float

    def __post_init__(self) -> None:
        require(0 < self.alpha <= 1, f"alpha is {self.alpha}", "more than 0 and at most 1", "for example 0.2")

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

    tau_ms: int = 10_000

    def __post_init__(self) -> None:
        require(self.tau_ms > 0, f"tau is {self.tau_ms} ms", "more than 0", "for example 10s")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _TimeEmaStream(self.tau_ms, peak=False)


@dataclass(frozen=True)
class PeakEma:
    """Latency that jumps up to a higher sample at once, m ← x if x > m, and decays to a lower one as `TimeEma` does.

    w = exp(−Δt/τ) and m ← wm + (1 − w)x where x ≤ m; the first seeds it, Δt is never below 0. Only observations
    change it: as for `TimeEma`, an idle route keeps its estimate. (Finagle's PeakEwma, where the rule comes from,
    also decays towards 0 when it is read; a stamp of 0 ms for what was not tried would be a claim.)

    >>> stream = PeakEma(tau_ms=10_000).start()
    >>> for at, value in ((0, 100.0), (1, 900.0), (10_001, 100.0)): stream.fold(at, at, value)
    >>> round(stream.read(10_001).value, 3)
    394.304
    """

    tau_ms: int = 10_000

    def __post_init__(self) -> None:
        require(self.tau_ms > 0, f"tau is {self.tau_ms} ms", "more than 0", "for example 10s")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _TimeEmaStream(self.tau_ms, peak=True)


@dataclass(frozen=True)
class Beta:
    """Mean of a Beta distribution whose evidence decays: a ← γa + x, b ← γb + 1 − x; (a + a0) / (a + b + a0 + b0).

    x is 1.0 (success) or 0.0, a0 and b0 are the prior's successes and failures, γ the weight that every observation
    leaves to those before it: they count as 1/(1 − γ) at most. A route never observed has no estimate, as under
    every rule (production stamps nothing); to stamp its prior say `when_cold` = a0/(a0 + b0).

    Source: A. Jøsang, R. Ismail, "The Beta reputation system", Bled Electronic Commerce Conference (2002).

    >>> stream = Beta(gamma=0.5, a0=1.0, b0=1.0).start()
    >>> stream.read(0), (stream.fold(1, 1, 1.0), stream.read(1))[1].value == 2 / 3
    (Reading(value=None, observations=0), True)
    >>> stream.fold(2, 2, 0.0); stream.read(2).value == 1.5 / 3.5
    True
    """

    gamma: float
    a0: float
    b0: float

    def __post_init__(self) -> None:
        require(0 < self.gamma <= 1, f"gamma is {self.gamma}", "more than 0 and at most 1", "for example 0.95")
        for name, prior in (("a0", self.a0), ("b0", self.b0)):
            require(0 <= prior < math.inf, f"{name} is {prior}", "a finite number of 0 or more", "for example 1.0")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _BetaStream(self)


@dataclass(frozen=True)
class Consecutive:
    """A success rate of 0.0 while a route is out, else 1.0: out after `k` failures in a row, back after a cooldown.

    The k-th failure in a row, ended at t, puts the route out until t + cooldown, that instant excluded. While it is
    out, failures change nothing (they began before it was). Once back it is on trial: one more failure puts it out
    again for twice as long as the last time, `longest_cooldown_ms` at most; one success ends the trial, and the next
    cooldown is `cooldown_ms` again. A success while it is out brings it back at once.

    Reading hangs on the instant alone, so a route comes back without any new observation. This is outlier ejection
    as in Envoy (`consecutive_5xx`, `base_ejection_time`, `max_ejection_time`), doubling instead of multiplying.

    >>> stream = Consecutive(k=2, cooldown_ms=5_000).start()
    >>> stream.fold(1_000, 1, 0.0); stream.fold(2_000, 2, 0.0)
    >>> stream.read(6_999).value, stream.read(7_000).value
    (0.0, 1.0)
    >>> stream.fold(8_000, 3, 0.0); stream.read(17_999).value, stream.read(18_000).value
    (0.0, 1.0)
    """

    k: int = 5
    cooldown_ms: int = 5_000
    longest_cooldown_ms: int = 300_000

    def __post_init__(self) -> None:
        require(self.k >= 1, f"k is {self.k}", "at least 1", "for example 5")
        require(self.cooldown_ms > 0, f"cooldown is {self.cooldown_ms} ms", "more than 0", "for example 5s")
        longest = f"longest_cooldown is {self.longest_cooldown_ms} ms"
        shortest = f"at least the cooldown, {self.cooldown_ms} ms"
        require(self.longest_cooldown_ms >= self.cooldown_ms, longest, shortest, "for example 5m")

    def start(self) -> Stream:
        """Return the streaming form with nothing observed."""
        return _ConsecutiveStream(self)


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
    def __init__(self, tau_ms: int, peak: bool) -> None:
        self.tau_ms = tau_ms
        self.peak = peak
        self.mean: float | None = None
        self.last_ms = 0
        self.count = 0

    def fold(self, at_ms: int, identity: int, value: float) -> None:
        self.count += 1
        if self.mean is None:
            self.mean, self.last_ms = value, at_ms
            return
        if self.peak and value > self.mean:
            self.mean = value
        else:
            weight = math.exp(-max(0, at_ms - self.last_ms) / self.tau_ms)
            self.mean = weight * self.mean + (1 - weight) * value
        self.last_ms = max(self.last_ms, at_ms)

    def read(self, at_ms: int) -> Reading:
        return Reading(self.mean, self.count)


class _BetaStream:
    def __init__(self, rule: Beta) -> None:
        self.rule = rule
        self.a = self.b = 0.0
        self.count = 0

    def fold(self, at_ms: int, identity: int, value: float) -> None:
        self.count += 1
        self.a = self.rule.gamma * self.a + value
        self.b = self.rule.gamma * self.b + (1 - value)

    def read(self, at_ms: int) -> Reading:
        if not self.count:
            return Reading(None, 0)
        successes = self.a + self.rule.a0
        return Reading(successes / (successes + (self.b + self.rule.b0)), self.count)


class _ConsecutiveStream:
    def __init__(self, rule: Consecutive) -> None:
        self.rule = rule
        self.failures = 0
        self.out_until_ms = -(2**63)
        self.next_cooldown_ms = rule.cooldown_ms
        self.count = 0

    def fold(self, at_ms: int, identity: int, value: float) -> None:
        self.count += 1
        if value > 0:
            self.failures, self.out_until_ms = 0, -(2**63)
            self.next_cooldown_ms = self.rule.cooldown_ms
        elif at_ms >= self.out_until_ms:
            self.failures += 1
            if self.failures >= self.rule.k:
                self.out_until_ms = at_ms + self.next_cooldown_ms
                self.next_cooldown_ms = min(2 * self.next_cooldown_ms, self.rule.longest_cooldown_ms)

    def read(self, at_ms: int) -> Reading:
        if not self.count:
            return Reading(None, 0)
        return Reading(0.0 if at_ms < self.out_until_ms else 1.0, self.count)
