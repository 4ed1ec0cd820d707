"""Rules as they are written in a settings file: their defaults, what they need, and where they make sense."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.errors import ReplayError
from replay.estimators import Beta, Consecutive, PeakEma, Quantile, Rule, TimeEma, Wilson
from replay.settings import Measure, Settings, from_dict

positive = st.integers(1, 10**9)
rates = st.floats(0.01, 1)
members = st.one_of(st.builds(dict, window_ms=positive), st.builds(dict, n=st.integers(1, 999)))
reliability_rules: st.SearchStrategy[Any] = st.one_of(
    st.builds(Beta, rates, st.floats(0, 9), st.floats(0, 9)),
    st.builds(lambda over, z: Wilson(**over, z=z), members, st.floats(0.1, 5)),
    st.builds(lambda k, one, other: Consecutive(k, *sorted((one, other))), st.integers(1, 99), positive, positive),
)
latency_rules: st.SearchStrategy[Any] = st.one_of(
    st.builds(PeakEma, positive), st.builds(lambda over, q: Quantile(**over, q=q), members, rates)
)


@given(reliability=reliability_rules, latency=latency_rules)
def test_rules_survive_being_written(reliability: Rule, latency: Rule) -> None:
    """As JSON, and again from what was read: the same rules under the same identity."""
    chosen = Settings(reliability=Measure(rule=reliability), latency=Measure(rule=latency))
    again = from_dict(json.loads(json.dumps(chosen.to_dict())))
    assert again == chosen
    assert again.identity == chosen.identity


@pytest.mark.parametrize(
    ("measure", "text", "rule"),
    [
        ("reliability", 'rule = "wilson"\nwindow = "15m"', Wilson(window_ms=900_000, z=1.96)),
        ("reliability", 'rule = "wilson"\nn = 20\nz = 1', Wilson(n=20, z=1.0)),
        ("reliability", 'rule = "beta"\ngamma = 0.95\na0 = 1\nb0 = 0.5', Beta(0.95, 1.0, 0.5)),
        ("reliability", 'rule = "consecutive"', Consecutive(5, 5_000, 300_000)),
        ("reliability", 'rule = "consecutive"\nk = 3\ncooldown = "1s"', Consecutive(3, 1_000, 300_000)),
        ("reliability", 'rule = "time_ema"', TimeEma(10_000)),
        ("latency", 'rule = "peak_ema"', PeakEma(10_000)),
        ("latency", 'rule = "quantile"\nwindow = "5m"\nq = 0.95', Quantile(window_ms=300_000, q=0.95)),
        ("latency", 'rule = "quantile"\nn = 100\nq = 0.5', Quantile(n=100, q=0.5)),
    ],
)
def test_rules_are_read(measure: str, text: str, rule: Rule) -> None:
    """Units, and the published defaults where a parameter is left out."""
    read = from_dict(tomllib.loads(f"[{measure}]\n{text}"))
    assert getattr(read, measure).rule == rule


@pytest.mark.parametrize(
    ("measure", "text", "said"),
    [
        ("latency", 'rule = "beta"\ngamma = 0.9\na0 = 1\nb0 = 1', "rule is 'beta', which is for reliability alone"),
        ("latency", 'rule = "wilson"\nn = 20', "'wilson', which is for reliability alone .it bounds a share"),
        ("latency", 'rule = "consecutive"', "expected one of window, count, ema, time_ema, peak_ema, quantile"),
        ("reliability", 'rule = "quantile"\nn = 20\nq = 0.5', "'quantile', which is for latency alone"),
        ("reliability", 'rule = "peak_ema"', "window, count, ema, time_ema, beta, wilson, consecutive"),
        ("reliability", 'rule = "wilson"', "wilson has neither window nor n"),
        ("reliability", 'rule = "wilson"\nn = 20\nwindow = "5m"', "wilson has window and n"),
        ("reliability", 'rule = "beta"\ngamma = 0.9', "has rule 'beta' without 'a0'; say a0 = 1.0"),
        ("latency", 'rule = "quantile"\nn = 20', "has rule 'quantile' without 'q'; say q = 0.95"),
        ("latency", 'rule = "quantile"\nn = 20\nq = 95', "q is 95.0; expected more than 0 and at most 1"),
        ("reliability", 'rule = "consecutive"\ncooldown = "10m"', "expected at least the cooldown, 600000 ms"),
        ("reliability", 'rule = "consecutive"\nwindow = "10m"', "settings.reliability has no key 'window'"),
    ],
)  # fmt: skip
def test_rules_without_meaning_are_refused(measure: str, text: str, said: str) -> None:
    """A rule for the other measure, over nothing or over two things, or without what it needs, says so."""
    with pytest.raises(ReplayError, match=said):
        from_dict(tomllib.loads(f"[{measure}]\n{text}"))


@pytest.mark.parametrize(
    ("rule", "longest_ms"),
    [(Wilson(window_ms=10**9), 10**9), (Wilson(n=5), 1_800_000), (Consecutive(), 1_800_000)],
)
def test_the_longest_window_is_that_of_any_rule(rule: Rule, longest_ms: int) -> None:
    """Warm-up reaches back by the longest window: Wilson's too, and the tools rule's where the others have none."""
    assert Settings(reliability=Measure(rule=rule)).longest_window_ms == longest_ms
