"""Every rule against hand-worked values, and against a naive recomputation from all that was folded."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.errors import ReplayError
from replay.estimators import (
    Beta,
    Consecutive,
    Count,
    DoubleDouble,
    Ema,
    PeakEma,
    Quantile,
    Reading,
    TimeEma,
    ToolsNever,
    ToolsReading,
    ToolsSticky,
    ToolsWindow,
    Wilson,
    Window,
)

# What happens to a stream: an observation (end, value) or a read (instant), in any order of time.
instants = st.integers(0, 60)
values = st.sampled_from([0.0, 1.0, 0.1, 250.0, 1e16, -1e16, 1 / 3])
events = st.lists(st.one_of(st.tuples(instants, values), instants), max_size=60)


def exact_mean(numbers: list[float]) -> float | None:
    """The mean of doubles, worked out in fractions and rounded once at the end."""
    return float(sum(map(Fraction, numbers)) / len(numbers)) if numbers else None


def assert_same(reading: Reading, numbers: list[float]) -> None:
    """The reading is the mean of these numbers, to a double's last bits even beside an outlier."""
    assert reading.observations == len(numbers)
    expected = exact_mean(numbers)
    if expected is None:
        assert reading.value is None
    else:
        assert reading.value is not None
        # The compensated sum is good to some 2^-100 of its largest part: 1e16 leaves nothing above 1e-12.
        assert math.isclose(reading.value, expected, rel_tol=1e-13, abs_tol=1e-12)


@given(events=events, window_ms=st.integers(1, 40))
def test_window_equals_the_mean_of_what_is_in_it(events: list[Any], window_ms: int) -> None:
    """At every read, earlier instants and late rows included: the mean over at ≥ t − W of all that was folded."""
    stream, folded = Window(window_ms).start(), []
    for identity, event in enumerate(events):
        if isinstance(event, tuple):
            stream.fold(event[0], identity, event[1])
            folded.append(event)
        else:
            assert_same(stream.read(event), [value for at, value in folded if at >= event - window_ms])


@given(events=events, n=st.integers(1, 8))
def test_count_equals_the_mean_of_the_last_n(events: list[Any], n: int) -> None:
    """At every read: the mean over the last N by (end, identity), in whatever order they became visible."""
    stream, folded = Count(n).start(), []
    for identity, event in enumerate(events):
        if isinstance(event, tuple):
            stream.fold(event[0], identity, event[1])
            folded.append((event[0], identity, event[1]))
        else:
            assert_same(stream.read(event), [value for _, _, value in sorted(folded)[-n:]])


@given(events=st.lists(st.one_of(st.tuples(instants, st.booleans(), st.booleans()), instants), max_size=60))
def test_tools_window_equals_its_counts(events: list[Any]) -> None:
    """At every read: requests and tool calls with at ≥ t − W; condemned at 3 requests and no tool call."""
    stream, folded = ToolsWindow(min_samples=3, window_ms=20).start(), []
    for event in events:
        if isinstance(event, tuple):
            stream.fold(*event)
            folded.append(event)
        else:
            inside = [row for row in folded if row[0] >= event - 20]
            requests, emitted = sum(row[1] for row in inside), sum(row[2] for row in inside)
            assert stream.read(event) == ToolsReading(not (requests >= 3 and emitted == 0), requests, emitted)


def test_rates_are_exact_ratios() -> None:
    """A success rate is a ratio of whole numbers, the very double that ok ÷ count gives, however rows came and went."""
    stream = Window(1_000).start()
    outcomes = [(n * 7919) % 11 > 3 for n in range(5_000)]
    for n, ok in enumerate(outcomes):
        stream.fold(n, n, float(ok))
        inside = outcomes[max(0, n - 1_000) : n + 1]
        assert stream.read(n) == (sum(inside) / len(inside), len(inside))


def test_an_outlier_leaves_no_residue() -> None:
    """0.1 and 0.2 are as exact after 1e16 has come and gone as they were before."""
    stream = Window(100).start()
    stream.fold(0, 0, 1e16)
    stream.fold(50, 1, 0.1)
    stream.fold(60, 2, 0.2)
    assert stream.read(100) == (pytest.approx(1e16 / 3), 3)
    reading = stream.read(101)
    assert reading.value is not None
    assert abs(reading.value - 0.15) < 1e-16
    total = DoubleDouble()
    for value in (0.1, 1e16, 0.2, -1e16):
        total.add(value)
    assert total.value == 0.1 + 0.2


def test_a_value_that_is_no_number_empties_the_window_only_while_inside() -> None:
    """Infinite and undefined values give no estimate while in the window, whichever way its edge moves."""
    stream = Window(100).start()
    for at, value in ((0, 5.0), (10, math.inf), (20, math.nan), (30, 7.0)):
        stream.fold(at, at, value)
    assert stream.read(50) == (None, 4)
    assert stream.read(125) == (7.0, 1)
    assert stream.read(115) == (None, 2)
    assert stream.read(130) == (7.0, 1)
    assert stream.read(131) == (None, 0)


def test_the_first_read_of_a_window_before_anything_else_is_empty() -> None:
    """Nothing observed, nothing estimated; a late row older than the edge last read stays out."""
    stream = Window(10).start()
    assert stream.read(100) == (None, 0)
    stream.fold(89, 1, 1.0)
    assert stream.read(100) == (None, 0)
    stream.fold(90, 2, 0.0)
    assert stream.read(100) == (0.0, 1)


def test_ema_by_hand() -> None:
    """α = 0.2: seeded by the first; one failure takes a perfect route to 0.8, then 0.64, and back to 0.712."""
    stream = Ema(alpha=0.2).start()
    assert stream.read(0) == (None, 0)
    said = []
    for identity, value in enumerate((1.0, 1.0, 0.0, 0.0, 1.0)):
        stream.fold(identity, identity, value)
        said.append(stream.read(identity).value)
    assert said == pytest.approx([1.0, 1.0, 0.8, 0.64, 0.712], abs=1e-15)
    latency = Ema(alpha=0.3).start()
    for identity, value in enumerate((1_000.0, 2_000.0)):
        latency.fold(identity, identity, value)
    assert latency.read(9) == (pytest.approx(1_300.0), 2)


def test_ema_goes_by_the_order_of_folding_and_never_forgets() -> None:
    """An EMA takes evidence in the order it became visible, whatever its end, and does not age."""
    stream = Ema(alpha=0.5).start()
    stream.fold(100, 1, 0.0)
    stream.fold(1, 2, 1.0)
    assert stream.read(10**12) == (0.5, 2)


def test_alpha_one_is_the_last_observation() -> None:
    """α = 1 forgets all but the last."""
    stream = Ema(alpha=1).start()
    for at, value in ((1, 0.25), (2, 0.75)):
        stream.fold(at, at, value)
    assert stream.read(3).value == 0.75


def test_time_ema_by_hand() -> None:
    """w = exp(−Δt/τ): after one half-life the old mean weighs half; late and simultaneous rows weigh nothing."""
    tau = 10_000
    stream = TimeEma(tau_ms=tau).start()
    assert stream.read(0) == (None, 0)
    stream.fold(0, 1, 1.0)
    assert stream.read(10**9) == (1.0, 1)
    half_life = round(tau * math.log(2))
    stream.fold(half_life, 2, 0.0)
    assert stream.read(half_life).value == pytest.approx(0.5, abs=1e-4)
    before = stream.read(half_life).value
    stream.fold(half_life, 3, 1.0)  # Δt = 0: w = 1
    stream.fold(half_life - 5_000, 4, 1.0)  # late: Δt = max(0, ·)
    assert stream.read(half_life) == (before, 4)
    stream.fold(half_life + tau, 5, 1.0)  # Δt counts from the latest end, not from the late row's
    assert before is not None
    assert stream.read(0).value == pytest.approx(math.exp(-1) * before + (1 - math.exp(-1)))


def test_sticky_tools_condemn_after_enough_silence() -> None:
    """19 silent requests say nothing, the 20th marks the route; the mark expires 30 min after its count began."""
    stream = ToolsSticky(min_samples=20, horizon_ms=1_800_000).start()
    for n in range(19):
        stream.fold(n * 1_000, True, False)
    assert stream.read(18_000) == (True, 19, 0)
    stream.fold(19_000, True, False)
    assert stream.read(19_000) == (False, 20, 0)
    assert stream.read(1_799_999).capable is False
    assert stream.read(1_800_000).capable is True


def test_sticky_tools_restart_their_count_when_the_mark_expires() -> None:
    """Requests while marked change nothing; the first one after it expired begins a new count of 20."""
    stream = ToolsSticky(min_samples=20, horizon_ms=1_800_000).start()
    for n in range(25):
        stream.fold(n, True, False)
    stream.fold(1_800_000, True, False)
    assert stream.read(1_800_000) == (True, 1, 0)
    for n in range(18):
        stream.fold(1_800_001 + n, True, False)
    assert stream.read(1_900_000).capable is True
    stream.fold(1_900_000, True, False)
    assert stream.read(1_900_000) == (False, 20, 0)
    assert stream.read(3_599_999).capable is False
    assert stream.read(3_600_000).capable is True


def test_one_tool_call_ever_proves_a_route_for_good() -> None:
    """A tool call clears a mark at once and for all time, asked for or not; attempts without tools never count."""
    stream = ToolsSticky(min_samples=2, horizon_ms=1_000).start()
    for n in range(9):
        stream.fold(n, False, False)
    assert stream.read(9) == (True, 0, 0)
    stream.fold(10, True, False)
    stream.fold(11, True, False)
    assert stream.read(12).capable is False
    stream.fold(13, False, True)
    assert stream.read(14).capable is True
    for n in range(5_000, 5_100):
        stream.fold(n, True, False)
    assert stream.read(5_100).capable is True


def test_a_slow_count_never_marks() -> None:
    """Requests so rare that the 20th comes after the horizon of the first: the mark has expired before it is set."""
    stream = ToolsSticky(min_samples=20, horizon_ms=1_800_000).start()
    for n in range(100):
        stream.fold(n * 100_000, True, False)
        assert stream.read(n * 100_000).capable is True


def test_tools_window_is_cleared_by_any_tool_call_in_it() -> None:
    """One tool call in the window clears the verdict; when it has left the window, the silence counts again."""
    stream = ToolsWindow(min_samples=2, window_ms=100).start()
    stream.fold(0, True, True)
    stream.fold(50, True, False)
    stream.fold(60, True, False)
    assert stream.read(100) == (True, 3, 1)
    assert stream.read(101) == (False, 2, 0)
    assert stream.read(151).capable is True


def test_no_tools_rule_never_condemns() -> None:
    """`never` keeps a route capable after any number of silent requests."""
    stream = ToolsNever().start()
    for n in range(1_000):
        stream.fold(n, True, False)
    assert stream.read(1_000).capable is True


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Window(0), "window is 0 ms; expected more than 0"),
        (lambda: Window(-5), "window is -5 ms; expected more than 0"),
        (lambda: Count(0), "count is 0; expected at least 1"),
        (lambda: Ema(0), "alpha is 0; expected more than 0 and at most 1"),
        (lambda: Ema(1.01), "alpha is 1.01; expected more than 0 and at most 1"),
        (lambda: Ema(math.nan), "alpha is nan; expected"),
        (lambda: TimeEma(0), "tau is 0 ms; expected more than 0"),
        (lambda: PeakEma(0), "tau is 0 ms; expected more than 0"),
        (lambda: Beta(0, 1, 1), "gamma is 0; expected more than 0 and at most 1"),
        (lambda: Beta(1.1, 1, 1), "gamma is 1.1; expected more than 0 and at most 1"),
        (lambda: Beta(0.9, -1, 1), "a0 is -1; expected a finite number of 0 or more"),
        (lambda: Beta(0.9, 1, math.inf), "b0 is inf; expected a finite number of 0 or more"),
        (lambda: Wilson(), "wilson has neither window nor n; expected one of the two"),
        (lambda: Wilson(window_ms=1, n=1), "wilson has window and n; expected one of the two"),
        (lambda: Wilson(window_ms=0), "window is 0 ms; expected more than 0"),
        (lambda: Wilson(n=0), "n is 0; expected at least 1"),
        (lambda: Wilson(n=1, z=0), "z is 0; expected a finite number above 0"),
        (lambda: Quantile(q=0.5), "quantile has neither window nor n; expected one of the two"),
        (lambda: Quantile(q=0, n=1), "q is 0; expected more than 0 and at most 1"),
        (lambda: Quantile(q=95, n=1), "q is 95; expected more than 0 and at most 1"),
        (lambda: Consecutive(0), "k is 0; expected at least 1"),
        (lambda: Consecutive(5, 0), "cooldown is 0 ms; expected more than 0"),
        (lambda: Consecutive(5, 9, 8), "longest_cooldown is 8 ms; expected at least the cooldown, 9 ms"),
        (lambda: ToolsWindow(0, 1), "tools min_samples is 0; expected at least 1"),
        (lambda: ToolsWindow(1, 0), "tools window is 0 ms; expected more than 0"),
        (lambda: ToolsSticky(0, 1), "tools min_samples is 0; expected at least 1"),
        (lambda: ToolsSticky(1, 0), "tools horizon is 0 ms; expected more than 0"),
    ],
)
def test_parameters_without_meaning_are_refused(make: Any, said: str) -> None:
    """Each parameter out of range says what was given, what was expected, and gives an example."""
    with pytest.raises(ReplayError, match="for example") as error:
        make()
    assert str(error.value).startswith(said)
