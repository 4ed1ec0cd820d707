import math

import numpy as np
import polars as pl
import pytest

from analysis.intervals import HOUR_MS, block_bootstrap
from analysis.prequential import FIGURES_SCHEMA, differences, percent, score, stamped_line
from replay.errors import NotComparableError, ReplayError


def figure(figures, question, metric, scope="all", setting="now"):
    """Return the one row of a figures frame."""
    found = figures.filter(
        (pl.col("question") == question)
        & (pl.col("metric") == metric)
        & (pl.col("scope") == scope)
        & (pl.col("setting") == setting)
    )
    assert found.height == 1
    return found.row(0, named=True)


def difference(frame, question, metric, over, scope="all"):
    """Return the one row of a differences frame."""
    found = frame.filter(
        (pl.col("question") == question)
        & (pl.col("metric") == metric)
        & (pl.col("over") == over)
        & (pl.col("scope") == scope)
    )
    assert found.height == 1
    return found.row(0, named=True)


def asked(row, question):
    """Tell, in plain Python, whether a question can be asked of an attempt."""
    if question == "as read":
        return row["read_known"]
    return (row["start_ms"] is not None) == (question == "at the attempt")


def losses(row, question):
    """Return (brier, log loss, log latency error, clipped), each null where it cannot be scored: the oracle."""
    p = row["p_read"] if question == "as read" else row["p_start"]
    latency = row["latency_read_ms"] if question == "as read" else row["latency_start_ms"]
    if p is None and question == "as read":
        p = 1.0
    brier = log_loss = error = clipped = None
    if p is not None:
        brier = (p - row["ok"]) ** 2
        clipped = not 1e-6 <= p <= 1 - 1e-6
        q = min(max(p if row["ok"] else 1 - p, 1e-6), 1 - 1e-6)
        log_loss = -math.log(q)
    if is_timed(row) and latency is not None and 0 < latency < math.inf:
        error = abs(math.log(latency) - math.log(row["latency_ms"]))
    return {"brier": brier, "log loss": log_loss, "log latency error": error, "clipped": clipped}


def is_timed(row):
    """Tell whether an attempt succeeded with a latency above 0."""
    return row["ok"] and row["latency_ms"] is not None and row["latency_ms"] > 0


@pytest.mark.parametrize("question", ["at the attempt", "as read", "start unknown"])
@pytest.mark.parametrize("metric", ["brier", "log loss", "log latency error"])
@pytest.mark.parametrize("scope", ["all", "q|m|"])
def test_figures_equal_a_brute_force_computation(predictions, simulated, question, metric, scope):
    """Value, attempts, unscored, stamped and clipped share equal a loop in plain Python, on awkward rows."""
    rows = simulated(3)
    found = figure(score(predictions(*rows)), question, metric, scope, "before")
    mine = [r for r in rows if r["setting"] == "before" and asked(r, question) and scope in ("all", r["route_key"])]
    if metric == "log latency error":
        mine = [r for r in mine if is_timed(r)]
    scored = [x for x in (losses(r, question) for r in mine) if x[metric] is not None]
    assert found["value"] == pytest.approx(sum(x[metric] for x in scored) / len(scored), rel=1e-12)
    assert (found["attempts"], found["unscored"]) == (len(scored), len(mine) - len(scored))
    stamp = "p_read" if question == "as read" else "p_start"
    stamped = len(scored) if metric == "log latency error" else sum(r[stamp] is not None for r in mine)
    assert found["stamped_share"] == stamped / len(mine)
    clipped = sum(x["clipped"] for x in scored) / len(scored) if metric == "log loss" else None
    assert found["clipped_share"] == clipped


def test_scores_by_hand(predictions):
    """Brier, log loss and log latency error of two attempts, on paper."""
    figures = score(
        predictions(
            {"p_start": 0.8, "latency_start_ms": 200.0, "latency_ms": 100.0},
            {"p_start": 0.5, "ok": False},
        )
    )
    assert figure(figures, "at the attempt", "brier")["value"] == pytest.approx((0.04 + 0.25) / 2)
    assert figure(figures, "at the attempt", "log loss")["value"] == pytest.approx((-math.log(0.8) - math.log(0.5)) / 2)
    assert figure(figures, "at the attempt", "log latency error")["value"] == pytest.approx(math.log(2))


def test_a_certain_prediction_is_clipped_and_counted(predictions):
    """p = 1 on a failure costs −ln 1e-6, and the share that hit the clip says so."""
    found = figure(
        score(predictions({"p_start": 1.0, "ok": False}, {"p_start": 0.5})),
        "at the attempt",
        "log loss",
    )
    assert found["value"] == pytest.approx((-math.log(1e-6) - math.log(0.5)) / 2)
    assert found["clipped_share"] == 0.5
    at_the_clip = figure(score(predictions({"p_start": 1e-6})), "at the attempt", "log loss")
    assert (at_the_clip["clipped_share"], at_the_clip["value"]) == (0.0, pytest.approx(-math.log(1e-6)))


def test_as_read_an_unstamped_attempt_is_the_default_success(predictions):
    """Without a stamp the router reads success 1 (scored) and no latency (counted, not scored)."""
    figures = score(predictions({"ok": False}, {"ok": True}))
    read = figure(figures, "as read", "brier")
    assert (read["value"], read["attempts"], read["stamped_share"]) == (0.5, 2, 0.0)
    assert figure(figures, "at the attempt", "brier")["attempts"] == 0
    latency = figure(figures, "as read", "log latency error")
    assert (latency["value"], latency["attempts"], latency["unscored"]) == (None, 0, 1)


def test_unknown_starts_and_unknown_calls_are_kept_apart(predictions):
    """An attempt without a start is scored as "start unknown", one without a call is counted as "call unknown"."""
    figures = score(predictions({"start_ms": None, "p_start": 0.5, "read_known": False}, {"p_start": 1.0}))
    assert figure(figures, "start unknown", "brier")["value"] == 0.25
    assert figure(figures, "at the attempt", "brier")["value"] == 0.0
    unknown = figure(figures, "call unknown", "brier")
    assert (unknown["value"], unknown["attempts"], unknown["unscored"], unknown["stamped_share"]) == (None, 0, 1, None)
    assert "call unknown: 1 attempts, kept apart" in stamped_line(figures)


def test_no_rows_give_an_empty_frame(predictions):
    """An empty frame has the columns and no figure."""
    figures = score(predictions())
    assert figures.height == 0
    assert dict(figures.schema) == FIGURES_SCHEMA
    assert stamped_line(figures) == "Stamped: nothing to score."


def test_figures_are_never_nan(predictions):
    """No success, no stamp and no latency give nulls."""
    rows = [{"ok": False, "latency_ms": None}, {"ok": False, "latency_ms": math.nan, "latency_start_ms": math.nan}]
    figures = score(predictions(*rows))
    values = figures["value"].drop_nulls().to_list()
    assert values
    assert not any(math.isnan(v) for v in values)
    assert figure(figures, "at the attempt", "brier")["value"] is None


def test_row_order_never_matters(predictions, simulated):
    """Shuffled rows give the identical figures and differences, to the last bit."""
    frame = predictions(*simulated(5))
    mixed = frame.sample(fraction=1.0, shuffle=True, seed=1)
    assert score(mixed).equals(score(frame))
    options = {"replicates": 50, "seed": 3}
    assert differences(mixed, "now", ["before"], **options).equals(differences(frame, "now", ["before"], **options))


@pytest.mark.parametrize(
    ("question", "metric", "over"),
    [
        ("at the attempt", "brier", "both stamped"),
        ("as read", "brier", "both stamped"),
        ("as read", "brier", "all"),
        ("as read", "log loss", "all"),
        ("as read", "log latency error", "both stamped"),
    ],
)
def test_differences_equal_a_brute_force_pairing(predictions, simulated, question, metric, over):
    """A difference is a − b over the attempts both stamped (as read: also all), with the interval of those."""
    rows = simulated(8, attempts=2_000, hour_step=0.05)
    found = difference(
        differences(predictions(*rows), "now", ["before"], replicates=200, seed=4), question, metric, over, "q|n|peer"
    )
    by_key = {(r["setting"], r["attempt_id"]): r for r in rows}
    stamp = "p_read" if question == "as read" else "p_start"
    times, deltas = [], []
    for attempt in range(2_000):
        a, b = by_key["now", attempt], by_key["before", attempt]
        if not asked(a, question) or a["route_key"] != "q|n|peer":
            continue
        if metric != "log latency error" and over != "all" and (a[stamp] is None or b[stamp] is None):
            continue
        x, y = losses(a, question)[metric], losses(b, question)[metric]
        if x is not None and y is not None:
            times.append(a["ts_ms"])
            deltas.append(x - y)
    assert found["attempts"] == len(deltas) > 10
    assert found["difference"] == pytest.approx(sum(deltas) / len(deltas), rel=1e-10)
    assert found["difference"] == pytest.approx(found["value_a"] - found["value_b"], abs=1e-12)
    spread = block_bootstrap(times, deltas, np.ones(len(deltas)), HOUR_MS, replicates=200, seed=4)
    assert (found["blocks"], found["reason"]) == (spread.blocks, spread.reason)
    assert (found["low"] is None) == (spread.low is None)
    if spread.low is not None:
        assert found["low"] == pytest.approx(spread.low, abs=1e-12)


def test_a_better_first_setting_has_a_negative_difference(predictions):
    """Predictions that are right beat predictions that are wrong: below 0, first is better."""
    rows = [
        {"setting": setting, "attempt_id": i, "ts_ms": i * HOUR_MS, "p_start": p, "p_read": p}
        for i in range(40)
        for setting, p in (("now", 0.9), ("before", 0.5))
    ]
    found = difference(differences(predictions(*rows), "now", ["before"]), "as read", "brier", "all")
    assert found["difference"] == pytest.approx(0.01 - 0.25)
    assert found["low"] == pytest.approx(found["high"]) == pytest.approx(-0.24)


def test_nothing_stamped_by_both_gives_a_reason(predictions):
    """Two settings that never stamp the same attempt have no paired difference."""
    rows = [{"setting": "now", "attempt_id": 1, "p_start": 0.5}, {"setting": "before", "attempt_id": 1}]
    found = difference(differences(predictions(*rows), "now", ["before"]), "at the attempt", "brier", "both stamped")
    assert (found["difference"], found["low"], found["attempts"], found["reason"]) == (None, None, 0, "no data")


def test_settings_over_different_attempts_are_not_comparable(predictions):
    """A pair over different attempts is refused."""
    frame = predictions({"setting": "now", "attempt_id": 1}, {"setting": "before", "attempt_id": 2})
    with pytest.raises(NotComparableError, match="different attempts"):
        differences(frame, "now", ["before"])


def test_an_unknown_setting_is_refused(predictions):
    """The error names the settings there are."""
    with pytest.raises(ReplayError, match=r"'later'.*\['now'\]"):
        differences(predictions({}), "now", ["later"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("p_read"), "lack the columns"),
        (lambda f: pl.concat([f, f]), "more than once"),
        (lambda f: f.with_columns(p_start=pl.lit(1.5)), "p_start = 1.5"),
        (lambda f: f.with_columns(p_read=pl.lit(math.nan)), "p_read = "),
    ],
)
def test_frames_that_would_give_a_wrong_figure_are_refused(predictions, change, message):
    """A missing column, a doubled attempt and a prediction that is no probability are errors."""
    with pytest.raises(ReplayError, match=message):
        score(change(predictions({"p_start": 0.5})))


def test_a_share_never_rounds_to_an_untrue_whole():
    """Nearly all is not 100 %."""
    assert [percent(x) for x in (0.0, 0.0004, 0.05, 0.5, 0.999, 0.9995, 1.0)] == [
        "0 %",
        "< 0.1 %",
        "5.0 %",
        "50 %",
        "99.9 %",
        "> 99.9 %",
        "100 %",
    ]
