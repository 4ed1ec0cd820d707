"""The frames behind charts: bins, disputed routes, flips, stamped shares, tools evidence."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import series
from analysis.prequential import PREDICTIONS_SCHEMA
from replay.errors import ReplayError
from replay.estimators import ToolsWindow

HOUR_MS = 3_600_000


def predictions(*rows: dict[str, Any]) -> pl.DataFrame:
    """Return predictions; what a row does not say is a success of 100 ms without stamps."""
    base = {"ok": True, "latency_ms": 100.0, "read_known": True, "route_key": "p|m|", "setting": "now", "call_id": 0}
    schema = {**PREDICTIONS_SCHEMA, "call_id": pl.Int64}
    full = [{**dict.fromkeys(schema), "attempt_id": i, "ts_ms": i, **base, **row} for i, row in enumerate(rows)]
    return pl.DataFrame(full, schema=schema)


def both(attempt: int, now: float | None, before: float | None, **more: Any) -> list[dict[str, Any]]:
    """Return one attempt's rows under two settings."""
    return [
        {"attempt_id": attempt, "setting": setting, "p_start": p, **more}
        for setting, p in (("now", now), ("before", before))
    ]


@given(st.integers(0, 2**45), st.integers(0, 2**41), st.integers(2, 200))
def test_bins_never_exceed_their_number(first: int, length: int, bins: int) -> None:
    """A span is covered by at most the number of bins asked for, unless the longest step is not enough."""
    step = series.bin_length_ms(first, first + length, bins)
    needed = (first + length) // step - first // step + 1
    assert needed <= bins or step == series.BIN_STEPS_MS[-1]


def test_most_disputed_route_is_where_the_rules_are_apart() -> None:
    """A route with few attempts and large disagreement is chosen before a busy one without."""
    rows = [row for i in range(9) for row in both(i, 0.9, 0.9, route_key="busy")] + both(9, 0.1, 0.9, route_key="odd")
    assert series.most_disputed_route(predictions(*rows)) == "odd"


def test_a_missing_stamp_is_read_as_certain_when_routes_are_ranked() -> None:
    """A rule that says nothing where the other says 10 % disputes more than 80 % against 90 %."""
    rows = [*both(0, 0.8, 0.9, route_key="seen"), *both(1, None, 0.1, route_key="silent")]
    assert series.most_disputed_route(predictions(*rows)) == "silent"


def test_most_disputed_route_without_dispute_is_the_busiest() -> None:
    """Where no rules differ, the route with most attempts is shown."""
    rows = [*both(0, 0.5, 0.5, route_key="a"), *both(1, 0.5, 0.5, route_key="b"), *both(2, 0.5, 0.5, route_key="b")]
    assert series.most_disputed_route(predictions(*rows)) == "b"


def test_rules_over_time_gives_shares_and_mean_predictions() -> None:
    """One bin: the share ok of three attempts, and each rule's mean over the attempts it stamped."""
    rows = [*both(0, 0.5, None), *both(1, 0.7, 0.8), *both(2, None, 0.6, ok=False)]
    made = series.rules_over_time(predictions(*rows))
    got = {row["series"]: (row["value"], row["attempts"], row["failed"]) for row in made.to_dicts()}
    assert got["recorded"] == (pytest.approx(2 / 3), 3, 1)
    assert got["now"] == (pytest.approx(0.6), 2, 1)
    assert got["before"] == (pytest.approx(0.7), 2, 1)


def test_rules_over_time_means_successful_latency_only() -> None:
    """A failed attempt's latency and an unknown latency of 0 are not part of the recorded mean."""
    rows = [
        {"latency_ms": 100.0, "latency_start_ms": 50.0},
        {"latency_ms": 300.0, "latency_start_ms": 150.0},
        {"latency_ms": 0.0},
        {"latency_ms": 9e9, "ok": False},
    ]
    made = series.rules_over_time(predictions(*rows), latency=True)
    assert made["value"].to_list() == [200.0, 100.0]


def test_lines_break_at_gaps() -> None:
    """The segment rises after days without traffic, and not between neighbouring bins."""
    days = [{"ts_ms": day * 24 * HOUR_MS + hour * HOUR_MS, "p_start": 1.0} for day in (0, 5) for hour in range(6)]
    made = series.rules_over_time(predictions(*days)).filter(series="now")
    assert made["segment"].to_list() == [0] * (made.height // 2) + [1] * (made.height // 2)


def test_lines_break_at_the_first_missing_bin() -> None:
    """Minutes 0 and 1 are neighbours, minute 3 comes after a bin without attempts, 5 after one without a figure."""
    minutes = [{"ts_ms": m * 60_000, "p_start": None if m == 4 else 1.0} for m in (0, 1, 3, 4, 5)]
    made = series.rules_over_time(predictions(*minutes)).filter(pl.col("value").is_not_null(), series="now")
    assert made["segment"].to_list() == [0, 0, 1, 2]


def test_rules_over_time_does_not_depend_on_the_order_of_rows() -> None:
    """The rows reversed give the same frame to the last bit."""
    rows = [row for i in range(50) for row in both(i, 1 / (i + 1), 0.3, ts_ms=i * HOUR_MS)]
    made = predictions(*rows).sort("setting", maintain_order=True)
    shuffled = made.sort("setting", "attempt_id", descending=[False, True])
    assert series.rules_over_time(made).equals(series.rules_over_time(shuffled))


def test_unknown_route_is_refused_with_those_there_are() -> None:
    """The message names the route asked for and the busiest there are."""
    with pytest.raises(ReplayError, match=r"'x\|y\|z' has no attempts.*p\|m\|"):
        series.rules_over_time(predictions({}), route="x|y|z")


def test_no_attempts_give_an_empty_frame() -> None:
    """A run without attempts is no error."""
    assert series.rules_over_time(predictions()).is_empty()


def flips(*causes: str | None, tie: bool = False) -> pl.DataFrame:
    """Return one flip per cause, a millisecond apart."""
    return pl.DataFrame(
        {
            "decided_ms": list(range(len(causes))),
            "cause": list(causes),
            "tie": [tie] * len(causes),
            "setting_a": "now",
            "setting_b": "before",
        },
        schema_overrides={"cause": pl.String},
    )


DECIDED = pl.DataFrame({"setting": ["now"] * 20 + ["before"] * 20, "decided_ms": [*range(20)] * 2})


def test_flips_over_time_counts_each_cause_and_all_decisions() -> None:
    """Two causes in one bin of twenty decisions; a flip without a cause is unknown."""
    made = series.flips_over_time(DECIDED, flips("latency", "latency", None))
    assert made.select("cause", "flips", "decisions").rows() == [("latency", 2, 20), ("unknown", 1, 20)]


def test_flips_on_ties_are_counted_apart() -> None:
    """A tie is a tie, whatever the cause says."""
    assert series.flips_over_time(DECIDED, flips("latency", tie=True))["cause"].to_list() == ["tie"]


def test_ties_never_hide_among_rare_causes() -> None:
    """One tie beside ten more frequent causes keeps its own name, last; all are eight."""
    many = pl.concat([flips(*(f"c{i}" for i in range(10)), *(f"c{i}" for i in range(10))), flips("c0", tie=True)])
    causes = series.flips_over_time(DECIDED, many)["cause"].unique(maintain_order=True).to_list()
    assert causes[-2:] == [series.OTHER, series.TIE]
    assert len(causes) == 8


def test_rare_causes_are_put_together() -> None:
    """Ten causes become eight: seven by name and the rest as one, with nothing lost."""
    made = series.flips_over_time(DECIDED, flips(*(f"c{i}" for i in range(10))))
    assert made["cause"].to_list()[-1] == series.OTHER
    assert (made["cause"].n_unique(), made["flips"].sum()) == (8, 10)


def test_stamped_shares_by_class() -> None:
    """Two of three attempts stamped: overall, by request class, and by traffic."""
    rows = predictions(
        {"p_read": 0.5, "call_id": 1}, {"p_read": 1.0, "call_id": 2}, {"call_id": 2, "route_key": "q|m|"}
    )
    decisions = pl.DataFrame({"call_id": [1, 2], "request_class": ["plain", "tools"]})
    got = {(r["group"], r["key"]): (r["routes"], r["stamped"], r["attempts"]) for r in
           series.stamped_shares(rows, decisions).to_dicts()}  # fmt: skip
    assert got == {
        ("all", "all"): (2, 2, 3),
        ("requests", "plain"): (1, 1, 1),
        ("requests", "tools"): (2, 1, 2),
        ("routes", "busy"): (1, 2, 2),
        ("routes", "middling"): (1, 0, 1),
    }


def test_stamped_shares_leave_out_attempts_of_unknown_calls() -> None:
    """What the router read for an attempt without a call cannot be said."""
    rows = predictions({"p_read": 0.5, "call_id": 1}, {"read_known": False})
    made = series.stamped_shares(rows, pl.DataFrame({"call_id": [1], "request_class": ["plain"]}))
    assert made.filter(group="all")["attempts"].to_list() == [1]


def attempts(*rows: tuple[int, bool]) -> pl.DataFrame:
    """Return attempts of one route that asked for tools: their end, and whether they called one."""
    return pl.DataFrame(
        [
            {
                "id": i, "ts": ts, "provider_id": "p", "model_family": "m", "served_by": None, "ok": True,
                "tools_requested": True, "tool_calls_emitted": emitted,
            }
            for i, (ts, emitted) in enumerate(rows)
        ]
    )  # fmt: skip


def test_longest_silence_is_that_of_a_window_without_a_tool_call() -> None:
    """Silent requests at 0, 10 and 99 fit a window of 100 ms; the one at 100 no longer shares it with the first."""
    rule = ToolsWindow(min_samples=3, window_ms=100)
    made = series.tools_evidence(attempts((0, False), (10, False), (99, False), (100, False)), rule, window_ms=100)
    assert made.select("most_silent", "condemned", "requests").rows() == [(3, 1, 4)]


def test_chance_of_silence_is_that_of_the_capable_routes() -> None:
    """One request of four is answered, so p = 1/4; two silent in a row have a chance of 9/16."""
    rule = ToolsWindow(min_samples=3, window_ms=100)
    made = series.tools_evidence(attempts((0, True), (200, False), (210, False), (400, False)), rule, window_ms=100)
    assert made.select("emission_rate", "most_silent", "chance").rows() == [(0.25, 2, 9 / 16)]


def test_a_tool_call_ends_the_silence() -> None:
    """With a tool call in between, no window holds more than one silent request."""
    rule = ToolsWindow(min_samples=3, window_ms=100)
    made = series.tools_evidence(attempts((0, False), (10, True), (150, False)), rule, window_ms=100)
    assert made.select("most_silent", "condemned", "emitted").rows() == [(1, 0, 1)]


@given(st.lists(st.tuples(st.integers(0, 500), st.booleans()), min_size=1, max_size=40), st.integers(1, 5))
def test_silence_reaches_the_threshold_exactly_when_the_rule_condemns(rows: list[tuple[int, bool]], least: int) -> None:
    """The figure drawn beside the threshold is the one the window rule compares with it."""
    made = series.tools_evidence(attempts(*rows), ToolsWindow(least, 100), window_ms=100)
    assert (made["most_silent"][0] >= least) == (made["condemned"][0] > 0)
