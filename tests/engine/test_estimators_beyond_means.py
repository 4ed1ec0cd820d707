"""Peaks, priors, bounds, quantiles and failures in a row, by hand and against what defines them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.estimators import Beta, Consecutive, Count, PeakEma, Quantile, Stream, Wilson, Window

# What happens to a stream: an observation (end, value) or a read (instant), in any order of time.
instants = st.integers(0, 60)
values = st.sampled_from([0.0, 1.0, 0.1, 250.0, 1e16, -1e16, 1 / 3])
events = st.lists(st.one_of(st.tuples(instants, values), instants), max_size=60)


def fold_all(stream: Stream, rows: list[tuple[int, float]]) -> Stream:
    """Fold (end, value) pairs in this order."""
    for identity, (at_ms, value) in enumerate(rows):
        stream.fold(at_ms, identity, value)
    return stream


def test_peak_ema_jumps_up_and_decays_down() -> None:
    """100, then 900 at once; one τ later a 100 leaves 1/e of the height; equal and lower ones never raise it."""
    stream = fold_all(PeakEma(tau_ms=10_000).start(), [(0, 100.0), (1, 900.0)])
    assert stream.read(1) == (900.0, 2)
    assert stream.read(10**9) == (900.0, 2)  # an idle route keeps its estimate
    stream.fold(10_001, 3, 100.0)
    assert stream.read(10_001).value == pytest.approx(100 + 800 / math.e)
    stream.fold(5_000, 4, 50.0)  # late: Δt = 0, so it weighs nothing
    assert stream.read(10_001).value == pytest.approx(100 + 800 / math.e)
    stream.fold(4_000, 5, 7_000.0)  # late and higher: at once, and time does not go back
    stream.fold(20_001, 6, 0.0)
    assert stream.read(0) == (pytest.approx(7_000 / math.e), 6)


def test_beta_by_hand() -> None:
    """γ = 1/2, prior 1:1: a = 1 → 2/3; then b → (0.5 + 1) / (1.5 + 2); without a prior the last decides most."""
    stream = Beta(gamma=0.5, a0=1.0, b0=1.0).start()
    assert stream.read(0) == (None, 0)
    stream.fold(1, 1, 1.0)
    assert stream.read(1) == (2 / 3, 1)
    stream.fold(2, 2, 0.0)
    assert stream.read(2) == (1.5 / 3.5, 2)
    bare = fold_all(Beta(gamma=0.5, a0=0, b0=0).start(), [(1, 0.0), (2, 0.0), (3, 1.0)])
    assert bare.read(9) == (1 / 1.75, 3)


def test_beta_without_decay_counts() -> None:
    """γ = 1: successes plus a0 over all plus the prior, 7 of 10 and 2:1 give 9/13."""
    stream = fold_all(Beta(gamma=1.0, a0=2.0, b0=1.0).start(), [(n, float(n < 7)) for n in range(10)])
    assert stream.read(10) == (9 / 13, 10)


@pytest.mark.parametrize(
    ("successes", "n", "z", "bound"),
    [
        (0, 10, 1.96, 0.0),
        (10, 10, 1.96, 10 / (10 + 1.96**2)),
        # Newcombe, "Two-sided confidence intervals for the single proportion", Stat. Med. 17 (1998), table I.
        (81, 263, 1.959964, 0.2553),
        (15, 148, 1.959964, 0.0624),
        (1, 29, 1.959964, 0.0061),
    ],
)
def test_wilson_equals_published_bounds(successes: int, n: int, z: float, bound: float) -> None:
    """The lower bound of the score interval, over the last n as over a window."""
    rows = [(place, float(place < successes)) for place in range(n)]
    for rule in (Wilson(n=n, z=z), Wilson(window_ms=1_000, z=z)):
        assert fold_all(rule.start(), rows).read(n) == (pytest.approx(bound, abs=6e-5), n)


@given(successes=st.integers(0, 60), failures=st.integers(0, 60), z=st.floats(0.01, 5))
def test_wilson_solves_its_equation(successes: int, failures: int, z: float) -> None:
    """The bound is the p at or below s/n from which s/n is z standard errors away: (s/n − p)² = z²p(1−p)/n."""
    n = successes + failures
    stream = fold_all(Wilson(n=200, z=z).start(), [(0, 1.0)] * successes + [(0, 0.0)] * failures)
    p = stream.read(0).value
    if n == 0:
        assert p is None
        return
    assert p is not None
    assert 0 <= p <= successes / n
    assert (successes / n - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n, rel=1e-6, abs=1e-12)


@given(events=events, q=st.sampled_from([0.01, 0.25, 0.5, 0.9, 0.95, 1.0]), window_ms=st.integers(1, 40))
def test_quantile_is_the_smallest_with_that_share_below_or_at_it(events: list[Any], q: float, window_ms: int) -> None:
    """Of what is in the window, the smallest value such that at least the share q is not above it."""
    stream, folded = Quantile(window_ms=window_ms, q=q).start(), []
    for identity, event in enumerate(events):
        if isinstance(event, tuple):
            stream.fold(event[0], identity, event[1])
            folded.append(event)
            continue
        inside = [value for at, value in folded if at >= event - window_ms]
        enough = [x for x in inside if sum(value <= x for value in inside) >= q * len(inside)]
        assert stream.read(event) == (min(enough) if enough else None, len(inside))


def test_quantile_of_the_last_n() -> None:
    """The median of the last 4 is the second smallest; a row older than all of them never counts."""
    stream = fold_all(Quantile(n=4, q=0.5).start(), [(1, 9e9), (2, 30.0), (3, 10.0), (4, 20.0), (5, 40.0)])
    assert stream.read(9) == (20.0, 4)
    stream.fold(0, 9, -1.0)
    assert stream.read(9) == (20.0, 4)


def test_no_number_among_the_members_is_no_quantile_and_no_mean() -> None:
    """An infinite latency leaves windows and counts without an estimate while it is a member, and no longer."""
    rows = [(0, 5.0), (10, math.inf), (20, 7.0), (30, 9.0)]
    for rule in (Quantile(window_ms=100, q=0.5), Window(100)):
        stream = fold_all(rule.start(), rows)
        assert stream.read(100) == (None, 4)
        assert stream.read(111).observations == 2
        assert stream.read(111).value is not None
    for last in (Quantile(n=3, q=1.0), Count(3)):
        counted = fold_all(last.start(), rows)
        assert counted.read(30) == (None, 3)
        counted.fold(40, 9, 8.0)
        assert counted.read(30).value in (9.0, 8.0)


def states(stream: Stream, instants: list[int]) -> list[float | None]:
    """Read at several instants."""
    return [stream.read(at_ms).value for at_ms in instants]


def test_consecutive_goes_out_and_comes_back() -> None:
    """Never observed: no estimate; two failures in a row are not three; out from the third until t + cooldown."""
    stream = Consecutive(k=3, cooldown_ms=5_000).start()
    assert stream.read(0) == (None, 0)
    fold_all(stream, [(1_000, 0.0), (2_000, 0.0), (2_500, 1.0), (3_000, 0.0), (4_000, 0.0)])
    assert stream.read(4_000) == (1.0, 5)
    stream.fold(5_000, 9, 0.0)
    assert states(stream, [5_000, 9_999, 10_000]) == [0.0, 0.0, 1.0]


def test_consecutive_doubles_until_a_success() -> None:
    """On trial one failure is enough, for 5, 10, 20 … 300 s; one success ends it: k failures and 5 s again."""
    stream = Consecutive(k=2).start()
    at_ms, lengths = 0, []
    stream.fold(0, 0, 0.0)
    for number in range(9):
        stream.fold(at_ms, number, 0.0)
        back_ms = next(at for at in range(at_ms, at_ms + 400_000, 1_000) if stream.read(at).value == 1.0)
        lengths.append((back_ms - at_ms) // 1_000)
        at_ms = back_ms
    assert lengths == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    fold_all(stream, [(at_ms, 1.0), (at_ms + 1, 0.0)])
    assert stream.read(at_ms + 1).value == 1.0
    stream.fold(at_ms + 2, 9, 0.0)
    assert states(stream, [at_ms + 5_001, at_ms + 5_002]) == [0.0, 1.0]


def test_consecutive_while_out() -> None:
    """Failures that end while the route is out neither count nor prolong it; a success brings it back at once."""
    stream = fold_all(Consecutive(k=1, cooldown_ms=5_000).start(), [(1_000, 0.0), (3_000, 0.0), (5_999, 0.0)])
    assert states(stream, [5_999, 6_000]) == [0.0, 1.0]
    stream.fold(6_000, 8, 0.0)
    assert states(stream, [15_999, 16_000]) == [0.0, 1.0]
    stream.fold(7_000, 9, 1.0)
    assert states(stream, [7_000]) == [1.0]
