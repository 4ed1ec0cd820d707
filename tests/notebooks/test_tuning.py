from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import decisions as deciding
from analysis import prequential
from replay import engine, record, settings, tuning
from replay.comparison import compare
from replay.core import SHIPPED_FIELDS, Candidate, Schema, admit, load_policy, plan
from replay.errors import ReplayError
from replay.estimators import Count, TimeEma, ToolsNever
from replay.ledger.load import Ledger

FROM_MS = 1772668800000  # 2026-03-05
UNTIL_MS = FROM_MS + tuning.DAY_MS


def test_the_presets_are_where_the_sliders_start() -> None:
    """A 15 minute window is production now, α 0.2 and 0.3 is production before."""
    assert tuning.window_settings(900_000).identity == settings.PRODUCTION_NOW.identity
    assert tuning.ema_settings(0.2, 0.3).identity == settings.PRODUCTION_BEFORE.identity


def test_a_floor_refuses_what_reads_below_it_and_keeps_the_unmeasured() -> None:
    """A route at 0.89 is out under a floor of 0.9, one at 0.9 and one without a stamp stay."""
    policy = tuning.with_floor(admit(load_policy("balanced"), Schema.declare(SHIPPED_FIELDS)), 0.9)
    rates = {"a": {"success_rate": 0.89}, "b": {"success_rate": 0.9}, "c": {}}
    fields = {"price_in": 1.0, "price_out": 1.0}
    candidates = [Candidate(name, "m", fields={**fields, **rate}) for name, rate in rates.items()]
    kept = plan(policy, candidates)
    assert sorted(kept.ordered) == [1, 2]
    assert [index for index, _ in kept.rejected] == [0]


def test_a_floor_of_0_is_the_policy_itself() -> None:
    """The slider at its left end changes nothing."""
    policy = admit(load_policy("cheapest"), Schema.declare(SHIPPED_FIELDS))
    assert tuning.with_floor(policy, 0) is policy


@pytest.mark.parametrize("floor", [-0.1, 1.5, float("nan")])
def test_a_floor_that_is_no_share_is_refused(floor: float) -> None:
    """The error says what a floor is."""
    policy = admit(load_policy("cheapest"), Schema.declare(SHIPPED_FIELDS))
    with pytest.raises(ReplayError, match="expected a share from 0 to 1"):
        tuning.with_floor(policy, floor)


def test_a_look_is_what_the_engine_says(demo_ledger: Ledger) -> None:
    """Decisions and predictions of a slice are those of `engine.run`, row for row."""
    chosen = tuning.window_settings(300_000)
    seen = tuning.look(demo_ledger, chosen, None, FROM_MS, UNTIL_MS)
    done = engine.run(demo_ledger, [chosen], None, FROM_MS, UNTIL_MS, prove=False)
    assert seen.decisions.equals(done.decisions)
    assert seen.predictions.equals(done.predictions)
    assert seen.decisions.height > 500


def test_a_floor_turns_decisions_and_leaves_predictions(demo_ledger: Ledger) -> None:
    """A floor no measured route below it is chosen, the count says how many turned, predictions stay."""
    chosen = tuning.window_settings(300_000)
    plain = tuning.look(demo_ledger, chosen, None, FROM_MS, UNTIL_MS)
    seen = tuning.look(demo_ledger, chosen, None, FROM_MS, UNTIL_MS, floor=0.95)
    below = (pl.col("chosen_route") == pl.col("route_1")) & (pl.col("success_rate_1") < 0.95)
    assert plain.decisions.filter(below).height > 0
    assert seen.decisions.filter(below).height == 0
    turned = [a != b for a, b in zip(plain.decisions["chosen_route"], seen.decisions["chosen_route"], strict=True)]
    assert seen.turned_by_floor == sum(turned) > 0
    assert seen.predictions.equals(plain.predictions)


def test_a_given_policy_takes_the_floor_too(demo_ledger: Ledger) -> None:
    """With a policy of one's own the floor is put on that one."""
    policy = admit(load_policy("balanced"), Schema.declare(SHIPPED_FIELDS))
    seen = tuning.look(demo_ledger, tuning.window_settings(900_000), policy, FROM_MS, UNTIL_MS, floor=1.0)
    assert set(seen.decisions["policy_id"]) == {tuning.with_floor(policy, 1.0).identity}


def test_a_contrast_is_what_the_analysis_says(demo_ledger: Ledger) -> None:
    """Differences and flips of two looks are those of the analysis on a run of both."""
    a, b = tuning.window_settings(900_000), tuning.ema_settings(0.2, 0.3)
    looks = [tuning.look(demo_ledger, one, None, FROM_MS, UNTIL_MS) for one in (a, b)]
    held = tuning.contrast(*looks)
    done = engine.run(demo_ledger, [a, b], None, FROM_MS, UNTIL_MS, prove=False)
    wanted = prequential.differences(done.predictions, a.name, [b.name], window_ms=1_800_000)
    assert held.differences.equals(wanted)
    assert held.flips.drop("setting_a", "setting_b").equals(deciding.flips(done.decisions, a.name, b.name))
    assert held.verdict[-1] == deciding.STANDING


def test_causes_are_those_of_a_full_comparison(demo_ledger: Ledger, demo_mirror: Path, tmp_path: Path) -> None:
    """What turned each flip is what `replay compare` says of a proved run of the same slice."""
    a, b = tuning.window_settings(900_000), tuning.ema_settings(0.2, 0.3)
    until_ms = FROM_MS + tuning.DAY_MS // 4
    looks = (
        tuning.look(demo_ledger, a, None, FROM_MS, until_ms),
        tuning.look(demo_ledger, b, None, FROM_MS, until_ms),
    )
    found = tuning.with_causes(tuning.contrast(*looks).flips, demo_ledger, looks)
    done = engine.run(demo_ledger, [a, b], None, FROM_MS, until_ms)
    made = record.make_record(done, demo_ledger.identity, None, [], FROM_MS, until_ms)
    record.write(tmp_path / "run", made, done, demo_mirror)
    wanted = compare([record.read(tmp_path / "run")]).flips
    assert found.height > 10
    assert found.select("call_id", "cause").equals(wanted.select("call_id", "cause"))


def test_a_contrast_of_an_empty_slice_says_so(demo_ledger: Ledger) -> None:
    """A slice before the ledger begins has no figures, and no stack trace."""
    looks = [
        tuning.look(demo_ledger, one, None, 0, 1) for one in (tuning.window_settings(1), tuning.ema_settings(1, 1))
    ]
    held = tuning.contrast(*looks)
    assert held.flips.is_empty()
    assert held.flip_summary.is_empty()
    assert held.differences.is_empty()
    assert held.verdict == [deciding.STANDING]


def test_two_looks_need_two_names(demo_ledger: Ledger) -> None:
    """Comparing a setting with itself is refused."""
    seen = tuning.look(demo_ledger, tuning.window_settings(900_000), None, 0, 1)
    with pytest.raises(ReplayError, match="each under its own name"):
        tuning.contrast(seen, seen)


def test_routes_come_by_their_attempts(demo_ledger: Ledger) -> None:
    """The first route has the most attempts inside the slice."""
    inside = demo_ledger.attempts.filter(pl.col("ts").is_between(FROM_MS, UNTIL_MS, closed="left"))
    counts: dict[str, int] = {}
    for row in inside.iter_rows(named=True):
        key = "|".join(row[name] or "" for name in ("provider_id", "model_family", "served_by"))
        counts[key] = counts.get(key, 0) + 1
    wanted = sorted(counts, key=lambda key: (-counts[key], key))
    assert tuning.routes(demo_ledger, FROM_MS, UNTIL_MS) == wanted


def test_the_telling_days_hold_the_day_of_most_failures(demo_ledger: Ledger) -> None:
    """Two whole days of the ledger, and no other day has more failed attempts than one of them."""
    found = tuning.telling_days(demo_ledger)
    assert found is not None
    since_ms, until_ms = found
    assert until_ms - since_ms == 2 * tuning.DAY_MS
    failed = demo_ledger.attempts.filter(~pl.col("ok"))["ts"].to_list()
    days = [ts // tuning.DAY_MS for ts in failed]
    assert since_ms // tuning.DAY_MS <= max(set(days), key=days.count) < until_ms // tuning.DAY_MS
    assert since_ms >= min(demo_ledger.attempts["ts"]) // tuning.DAY_MS * tuning.DAY_MS


def test_without_attempts_no_day_is_telling(demo_ledger: Ledger) -> None:
    """An empty ledger has nothing to suggest."""
    assert tuning.telling_days(replace(demo_ledger, attempts=demo_ledger.attempts.clear())) is None


RULES = st.one_of(
    st.builds(lambda ms: tuning.window_settings(ms), st.integers(1, 10**10)),
    st.builds(lambda a, b: tuning.ema_settings(a, b), *[st.floats(0.0001, 1.0)] * 2),
    st.builds(
        lambda n, tau, name, scale, lag: settings.Settings(
            name=name,
            reliability=settings.Measure(rule=Count(n), exclude_kinds=("timeout",), when_cold=0.5),
            latency=settings.Measure(rule=TimeEma(tau), failed_latency_ms=1e4, zero_latency="unknown"),
            tools=settings.Tools(rule=ToolsNever(), failed="excluded"),
            prices=settings.Prices(mode="scaled", scale=scale),
            lag_ms=lag,
            replicas=3,
            restarts=(1_000, 2_000),
            memo_ms=0,
        ),
        st.integers(1, 10**6),
        st.integers(1, 10**9),
        st.text(st.characters(exclude_categories=("Cs",)), min_size=1),
        st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), st.floats(0, 1e9), min_size=1, max_size=3),
        st.lists(st.integers(0, 10**6), min_size=1, max_size=4).map(tuple),
    ),
)


@given(RULES)
def test_written_settings_read_back_the_same(chosen: settings.Settings) -> None:
    """TOML out, TOML in: the same settings, the same identity, the same name."""
    read = settings.from_dict(tomllib.loads(tuning.to_toml(chosen, "a comment\nof two lines")))
    assert read == chosen
    assert read.identity == chosen.identity


def test_an_exported_file_is_one_that_replay_run_reads(tmp_path: Path) -> None:
    """The file loads by its path, as `replay run --settings` loads it."""
    path = tmp_path / "tuned.toml"
    path.write_text(tuning.to_toml(tuning.window_settings(300_000)), encoding="utf-8")
    assert settings.load(str(path)) == tuning.window_settings(300_000)
