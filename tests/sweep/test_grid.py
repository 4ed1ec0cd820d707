"""Grids: ranges, dotted keys, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.cli.run import varied
from replay.cli.sweep import points_of
from replay.durations import duration_ms
from replay.errors import ReplayError
from replay.estimators import Ema, Quantile, ToolsSticky, ToolsWindow, Window
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, from_dict
from replay.sweep.grid import MOST, at_point, combinations, load, require_unique_names, values


def test_durations_are_spaced_in_ratio_and_readable() -> None:
    """From 1 to 60 minutes in 3 is 60 s, 60·√60 = 464.8 s, 3600 s, in whole seconds."""
    assert values("1m..60m:3") == ["1m", "465s", "1h"]


def test_short_durations_keep_their_milliseconds() -> None:
    """From 10 ms to 1 s in 3: 100 ms lies between."""
    assert values("10ms..1s:3") == ["10ms", "100ms", "1s"]


def test_whole_numbers_are_spaced_evenly() -> None:
    """From 5 to 40 in 8 steps of 5; downwards too."""
    assert (values("5..40:8"), values("3..1:3")) == ([5, 10, 15, 20, 25, 30, 35, 40], [3, 2, 1])


def test_fractions_have_three_digits() -> None:
    """From 0.05 to 0.4 in 4, each twice the one before."""
    assert values("0.05..0.4:4") == [0.05, 0.1, 0.2, 0.4]


def test_lists_and_ranges_mix() -> None:
    """A value beside a range: 0 cannot be spaced in ratio."""
    assert values("0, 1s..4s:3") == [0, "1s", "2s", "4s"]


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(2, 40))
def test_a_range_runs_between_its_ends_or_is_refused(low_ms: int, high_ms: int, n: int) -> None:
    """N different durations, in order, that begin and end where they should to the second; or a sentence."""
    try:
        found = [duration_ms(text) for text in values(f"{low_ms}ms..{high_ms}ms:{n}")]
    except ReplayError:
        return
    assert len(set(found)) == n
    assert found == sorted(found, reverse=low_ms > high_ms)
    assert abs(found[0] - low_ms) <= 500
    assert abs(found[-1] - high_ms) <= 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1m..60m", "expected FROM..TO:N"),
        ("1m..:3", "expected FROM..TO:N"),
        ("1m..5:3", "expected FROM..TO:N"),
        ("0.0..0.5:3", "both ends have to be more than 0"),
        ("0s..5m:3", "both ends have to be more than 0"),
        ("1..3:9", "the same once rounded"),
        ("1m..2m:1", "2 to 10,000"),
        ("1m..2q:3", "is not a duration"),
        ("1,,2", "an empty value"),
        ("", "an empty value"),
    ],
)
def test_what_is_no_range_is_refused(text: str, said: str) -> None:
    """A sentence says what was expected."""
    with pytest.raises(ReplayError, match=said):
        values(text)


def test_another_rule_leaves_nothing_of_the_old_one() -> None:
    """Flags over rules whose parameters have other names."""
    for rule in ({"rule": "wilson", "n": 20}, {"rule": "beta", "gamma": 0.9, "a0": 1.0, "b0": 1.0}):
        base = from_dict({"reliability": rule, "latency": {"rule": "quantile", "q": 0.5, "window": "5m"}})
        assert varied(base, window="1m").reliability.rule == Window(60_000)
        assert varied(base, alpha=0.1).latency.rule == Ema(0.1)


def test_window_and_alpha_together_are_refused() -> None:
    """Each replaces the rule, so one would be lost."""
    with pytest.raises(ReplayError, match="give one of them"):
        varied(PRODUCTION_NOW, window="1m", alpha=0.1)


def test_windows_and_alphas_are_one_axis() -> None:
    """Two windows and one alpha, each with two counts: six points."""
    _, points = points_of(["production-now"], None, {"window": "1m,2m", "alpha": "0.1", "tools_min": "5,6"})
    assert [one.name for one in points] == [
        "production-now window=1m tools_min=5",
        "production-now window=1m tools_min=6",
        "production-now window=2m tools_min=5",
        "production-now window=2m tools_min=6",
        "production-now alpha=0.1 tools_min=5",
        "production-now alpha=0.1 tools_min=6",
    ]
    assert points[3].tools.rule == ToolsWindow(6, 1_800_000)


def test_every_base_is_varied() -> None:
    """The tools window is the horizon of a sticky rule."""
    bases, points = points_of(["production-now", "production-before"], None, {"tools_window": "1h"})
    assert bases == [PRODUCTION_NOW, PRODUCTION_BEFORE]
    assert isinstance(points[1].tools.rule, ToolsSticky)
    assert points[1].tools.rule.horizon_ms == 3_600_000


def _written(folder: Path, text: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_names_keys_and_values(tmp_path: Path) -> None:
    """Dotted keys, tables and ranges; the last key varies fastest."""
    names, points = load(
        _written(
            tmp_path,
            'base = "production-now"\n[grid]\nreliability.window = "1m..4m:3"\n[grid.tools]\nmin_samples = [10, 20]\n',
        )
    )
    assert names == ["production-now"]
    assert points[:3] == [
        {"reliability.window": "1m", "tools.min_samples": 10},
        {"reliability.window": "1m", "tools.min_samples": 20},
        {"reliability.window": "2m", "tools.min_samples": 10},
    ]
    assert len(points) == 6


def test_a_base_may_lie_beside_the_file(tmp_path: Path) -> None:
    """Its path is the file's, wherever the command runs."""
    (tmp_path / "mine.toml").write_text("seed = 7\n", encoding="utf-8")
    path = _written(tmp_path, 'base = ["mine.toml"]\n[grid]\nseed = [1]\n')
    bases, points = points_of(None, path, {})
    assert (bases[0].seed, points[0].seed, points[0].name) == (7, 1, "mine seed=1")


def test_a_point_replaces_a_whole_rule() -> None:
    """A table with a rule takes the old rule's place; what else the measure says is kept."""
    base = from_dict({"latency": {"rule": "window", "window": "5m", "zero_latency": "unknown"}})
    found = at_point(base, {"latency": {"rule": "quantile", "q": 0.9, "n": 20}})
    assert found.latency.rule == Quantile(q=0.9, n=20)
    assert found.latency.zero_latency == "unknown"
    assert found.name == "unnamed latency={rule=quantile q=0.9 n=20}"


def test_flags_vary_the_points_of_a_file(tmp_path: Path) -> None:
    """Two points of the file times two flags."""
    path = _written(tmp_path, "[grid]\nseed = [1, 2]\n")
    _, points = points_of(None, path, {"window": "1m,2m"})
    assert len({one.name for one in points}) == len({one.identity for one in points}) == 4


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(0.001, 1), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(1, 50), max_size=3, unique=True),
)
def test_names_are_unique(windows: list[int], alphas: list[float], counts: list[int]) -> None:
    """Different values give different names."""
    made = combinations({"window": [f"{ms}ms" for ms in windows], "alpha": alphas}, tools_min=counts)
    require_unique_names([varied(PRODUCTION_NOW, **point) for point in made])


BAD: list[tuple[str, str]] = [
    ("[grid\n", "is not TOML"),
    ("[grid]\n", "no .grid. with keys"),
    ("[gird]\nseed = [1]\n", "has the key 'gird'"),
    ("base = 3\n[grid]\nseed = [1]\n", "has base = 3"),
    ("[grid]\nseed = []\n", "expected a list of values"),
    ("[grid]\nseed = 4\n", "expected a list of values"),
    ("[grid]\nseeds = [1]\n", "no key 'seeds'"),
    ("[grid]\nreliability.windows = ['5m']\n", "no key 'windows'"),
    ("[grid]\nseed.low = [1]\n", "'seed' is no table"),
    ("[grid]\nseed = [1, 1]\n", "are called 'production-now seed=1'"),
    (f"[grid]\nseed = '1..{MOST}:{MOST}'\nreplicas = [1, 2]\n", "20,000 points"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """A sentence says what is wrong with it."""
    with pytest.raises(ReplayError, match=said):
        require_unique_names(points_of(None, _written(tmp_path, text), {})[1])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "no grid was given"),
        ({"alpha": "5m"}, "--alpha has '5m'; expected numbers"),
        ({"window": "5"}, "--window has 5; expected durations with their unit"),
        ({"tools_min": "1.5"}, "--tools-min has 1.5; expected whole numbers"),
        ({"memo": "soon"}, "'soon' is not a duration"),
        ({"lag": "soon"}, "'soon' is not a duration"),
    ],
)
def test_wrong_flags_are_refused(flags: dict[str, Any], said: str) -> None:
    """A sentence names the flag, or the value."""
    with pytest.raises(ReplayError, match=said):
        points_of(None, None, flags)


def test_a_base_in_the_file_and_another_given_are_refused(tmp_path: Path) -> None:
    """Which of them counts would be a guess."""
    path = _written(tmp_path, 'base = "production-now"\n[grid]\nseed = [1]\n')
    with pytest.raises(ReplayError, match="give one of them"):
        points_of(["production-before"], path, {})
