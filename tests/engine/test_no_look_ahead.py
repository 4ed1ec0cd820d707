"""The future never reaches back: poisoned evidence, later routes and calls, and slices of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from replay import engine
from replay.ledger.load import Ledger
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Prices, Settings, from_dict

LAGGED = replace(PRODUCTION_NOW, name="lagged", visibility="lagged", lag_ms=(0, 2_000, 20_000))
OTHERS = from_dict(
    {
        "name": "others",
        "reliability": {"rule": "count", "n": 10, "when_cold": 0.9},
        "latency": {"rule": "time_ema", "tau": "10s", "failed_latency_ms": 5_000},
        "tools": {"rule": "sticky", "min_samples": 3, "horizon": "10m"},
        "memo": "30s",
    }
)
MEASURED = replace(PRODUCTION_NOW, name="measured", prices=Prices(mode="measured", window_ms=3_600_000, min_calls=3))
ALL = [PRODUCTION_NOW, PRODUCTION_BEFORE, LAGGED, OTHERS, MEASURED]


def poisoned(ledger: Ledger, cut_ms: int) -> Ledger:
    """Change everything after the cut: outcomes, latencies, tools, calls, offers, and routes that were not there."""
    late = pl.col("ts") >= cut_ms
    attempts = ledger.attempts.with_columns(
        ok=pl.when(late).then(~pl.col("ok")).otherwise("ok"),
        latency_ms=pl.when(late).then(pl.col("latency_ms") * 1000).otherwise("latency_ms"),
        error_kind=pl.when(late).then(pl.lit("timeout")).otherwise("error_kind"),
        tools_requested=pl.when(late).then(True).otherwise("tools_requested"),
        tool_calls_emitted=pl.when(late).then(False).otherwise("tool_calls_emitted"),
    )
    strange = attempts.filter(late).with_columns(
        id=pl.col("id") + 1_000_000,
        provider_id=pl.lit("a"),
        served_by=pl.lit("aa"),
        request_id=pl.lit(None, dtype=pl.String),
        replica=pl.lit("strange"),
    )
    decided_late = pl.col("decided_at") >= cut_ms
    calls = ledger.calls.with_columns(
        request=pl.when(decided_late).then(pl.lit('{"requirements":{"model_family":"x"}}')).otherwise("request"),
        cost_usd=pl.when(pl.col("ts") * 1000 >= cut_ms).then(9_999.0).otherwise("cost_usd"),
        tokens_in=pl.when(decided_late).then(1).otherwise("tokens_in"),
        evidence_snapshot=pl.when(decided_late).then(pl.lit("999999:999999:")).otherwise("evidence_snapshot"),
    )
    offer = ledger.offers.head(1).with_columns(
        id=pl.lit(999_999, dtype=pl.Int64),
        provider_id=pl.lit("a"),
        peer_id=pl.lit("aa"),
        position=pl.lit(-1, dtype=pl.Int32),
        valid_from=pl.lit(cut_ms, dtype=pl.Int64),
    )
    return replace(
        ledger, attempts=pl.concat([attempts, strange]), calls=calls, offers=pl.concat([ledger.offers, offer])
    )


def before(run: engine.Run, cut_ms: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the decisions made, and the attempts that ended, before the cut."""
    return run.decisions.filter(pl.col("decided_ms") < cut_ms), run.predictions.filter(pl.col("ts_ms") < cut_ms)


def test_poisoned_evidence_moves_no_decision_before_the_cut(small_world: Ledger) -> None:
    """Not one value of a decision or prediction before the cut changes, whatever the rules and the visibility."""
    cut_ms = int(small_world.calls.sort("decided_at")["decided_at"][80])
    clean = engine.run(small_world, ALL, prove=False)
    poison = engine.run(poisoned(small_world, cut_ms), ALL, prove=False)
    assert [one.visibility for one in clean.replayed] == ["recorded", "recorded", "lagged", "recorded", "recorded"]
    for ours, theirs in zip(before(clean, cut_ms), before(poison, cut_ms), strict=True):
        assert ours.height >= 80 * len(ALL)
        assert_frame_equal(ours, theirs, check_exact=True)
    after = clean.decisions.filter(pl.col("decided_ms") >= cut_ms)
    changed = poison.decisions.filter(pl.col("decided_ms") >= cut_ms)
    assert after["order_hash"].to_list() != changed["order_hash"].to_list(), "the poison must be strong"


def test_ledgers_without_offers_or_servers_do_not_look_ahead_either(small_world: Ledger) -> None:
    """Candidates taken from the ledger itself, the server left out: nothing later changes them."""
    cut_ms = int(small_world.calls.sort("decided_at")["decided_at"][80])
    early = pl.col("ts") < cut_ms
    bare = replace(
        small_world,
        offers=small_world.offers.clear(),
        attempts=small_world.attempts.with_columns(served_by=pl.lit(None, dtype=pl.String)),
        calls=small_world.calls.with_columns(route_key=pl.col("provider_id") + "|m|"),
    )
    cut_short = replace(
        bare, attempts=bare.attempts.filter(early), calls=bare.calls.filter(pl.col("decided_at") < cut_ms)
    )
    spelt_out = replace(
        bare,
        attempts=bare.attempts.with_columns(served_by=pl.when(early).then(None).otherwise("provider_id")),
        calls=bare.calls.with_columns(
            route_key=pl.when(pl.col("decided_at") < cut_ms)
            .then("route_key")
            .otherwise(pl.col("provider_id") + "|m|" + pl.col("provider_id"))
        ),
    )
    chosen = [LAGGED, PRODUCTION_BEFORE]
    short, whole, spelt = (
        before(engine.run(ledger, chosen, prove=False), cut_ms) for ledger in (cut_short, bare, spelt_out)
    )
    first = ["recorded_first_route", "label", "recorded_score", "recorded_success_rate", "recorded_latency_ms"]
    assert_frame_equal(short[0].drop(first), whole[0].drop(first), check_exact=True)
    assert_frame_equal(spelt[0].drop(first), whole[0].drop(first), check_exact=True)
    assert whole[0]["success_rate_1"].is_not_null().mean() > 0.9  # type: ignore[operator]
    later = engine.run(spelt_out, chosen, prove=False).decisions.filter(pl.col("decided_ms") > cut_ms + 1_000_000)
    assert later["success_rate_1"].is_not_null().all(), "after the change of spelling, the new one is measured"


@pytest.mark.parametrize(
    "chosen", [PRODUCTION_NOW, PRODUCTION_BEFORE, LAGGED, OTHERS, MEASURED], ids=lambda one: one.name
)
def test_a_slice_decides_as_the_whole_run_does(small_world: Ledger, chosen: Settings) -> None:
    """Warm-up: a slice's decisions and predictions are the very rows of the longer run, from its first one on."""
    decided = small_world.calls.sort("decided_at")["decided_at"]
    since_ms, until_ms = int(decided[90]), int(decided[110])
    whole = engine.run(small_world, [chosen], prove=False)
    part = engine.run(small_world, [chosen], None, since_ms, until_ms, prove=False)
    assert len(part.decisions) == 20
    assert_frame_equal(part.decisions, whole.decisions.filter(pl.col("decided_ms").is_between(since_ms, until_ms - 1)))
    ended = pl.col("ts_ms").is_between(since_ms, until_ms - 1)
    assert_frame_equal(part.predictions, whole.predictions.filter(ended))


def test_a_slice_of_the_demo_decides_as_the_week_did(demo_ledger: Ledger, demo_run: engine.Run) -> None:
    """The demo from Thursday on for six hours, both presets: row for row what the whole week gave."""
    first: Any = demo_ledger.calls["decided_at"].min()
    since_ms = int(first) + 3 * 86_400_000
    span = (since_ms, since_ms + 6 * 3_600_000)
    part = engine.run(demo_ledger, [PRODUCTION_NOW, PRODUCTION_BEFORE], None, *span, prove=False)
    assert len(part.decisions) > 50
    inside = pl.col("decided_ms").is_between(span[0], span[1] - 1)
    assert_frame_equal(part.decisions, demo_run.decisions.filter(inside))
