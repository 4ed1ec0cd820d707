"""Pinball loss: how well a predicted quantile of latency predicts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from analysis.prequential import METRICS, differences, pinball, score


def losses_of(figures: pl.DataFrame, question: str = "at the attempt") -> dict[str, float]:
    """Return each setting's overall pinball loss."""
    asked = (
        pl.col("metric").str.starts_with("pinball loss") & (pl.col("question") == question) & (pl.col("scope") == "all")
    )
    return dict(figures.filter(asked).select("setting", "value").iter_rows())


def test_pinball_by_hand(predictions: Any) -> None:
    """q = 0.9: 200 ms where 100 were predicted cost 0.9·ln 2, 100 where 200 were 0.1·ln 2; a failure costs nothing."""
    frame = predictions(
        {"latency_start_ms": 100.0, "latency_ms": 200.0},
        {"latency_start_ms": 200.0, "latency_ms": 100.0},
        {"latency_start_ms": 200.0, "ok": False},
        {"latency_ms": 100.0},
    )
    figures = score(frame, {"now": 0.9})
    assert losses_of(figures) == {"now": pytest.approx(math.log(2) / 2)}
    (row,) = figures.filter(
        (pl.col("metric") == "pinball loss (q = 0.9)")
        & (pl.col("question") == "at the attempt")
        & (pl.col("scope") == "all")
    ).iter_rows(named=True)
    assert (row["attempts"], row["unscored"], row["stamped_share"]) == (2, 1, 2 / 3)


def test_pinball_at_the_median_is_half_the_log_latency_error(predictions: Any, simulated: Any) -> None:
    """At q = 1/2 over and under cost the same."""
    figures = score(predictions(*simulated(4)), {"before": 0.5})
    errors = figures.filter((pl.col("metric") == "log latency error") & (pl.col("setting") == "before"))
    losses = figures.filter(pl.col("metric") == pinball(0.5))
    assert losses["value"].to_list() == pytest.approx([v / 2 if v is not None else v for v in errors["value"]])
    assert losses["attempts"].to_list() == errors["attempts"].to_list()


def test_the_true_quantile_predicts_best(predictions: Any) -> None:
    """Of constant predictions, the 95th percentile of what happens has the least loss at q = 0.95."""
    happened = np.exp(np.random.default_rng(2).normal(6, 1, 2_000))
    guesses = {share: float(np.quantile(happened, share)) for share in (0.5, 0.9, 0.94, 0.95, 0.96, 0.99)}
    rows = [
        {"setting": str(share), "attempt_id": n, "latency_ms": float(ms), "latency_start_ms": guess}
        for share, guess in guesses.items()
        for n, ms in enumerate(happened)
    ]
    losses = losses_of(score(predictions(*rows), dict.fromkeys(map(str, guesses), 0.95)))
    assert min(losses, key=losses.__getitem__) == "0.95"


def test_only_quantile_rules_are_scored_so(predictions: Any, simulated: Any) -> None:
    """A setting that predicts a mean has no pinball loss; nothing else changes when another does."""
    frame = predictions(*simulated(5))
    figures = score(frame, {"before": 0.95})
    assert set(losses_of(figures)) == {"before"}
    assert figures.filter(pl.col("metric").is_in(METRICS)).equals(score(frame))


@pytest.mark.parametrize(
    ("quantiles", "compared"),
    [
        ({"now": 0.9, "before": 0.9}, 2),
        ({"now": 0.9, "before": 0.5}, 0),
        ({"now": 0.9}, 0),
        ({"before": 0.9}, 0),
        ({}, 0),
    ],
)
def test_the_same_quantile_is_compared(
    predictions: Any, simulated: Any, quantiles: dict[str, float], compared: int
) -> None:
    """Two settings that predict the same quantile are paired, once a question; others are not comparable."""
    frame = predictions(*simulated(6))
    found = differences(frame, "now", ["before"], quantiles=quantiles, interval_routes=0)
    mine = found.filter((pl.col("metric") == pinball(0.9)) & (pl.col("scope") == "all"))
    assert mine.height == compared
    for row in mine.iter_rows(named=True):
        assert row["over"] == "both stamped"
        assert row["difference"] == pytest.approx(row["value_a"] - row["value_b"])
