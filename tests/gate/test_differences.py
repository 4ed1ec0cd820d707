"""What differs is found exactly: every changed value, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.gate.differences import DIFFERENCES, differences, same
from replay.gate.outcome import Outcome

EXAMPLES = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def other(value: Any, kind: pl.DataType) -> Any:
    """Return a value of a column's type that differs enough to count."""
    if kind == pl.Boolean:
        return not value
    if kind.is_numeric():
        return 1 if value is None else value + 1
    return '{"other": 1}'


def changed(frame: pl.DataFrame, cells: set[tuple[int, str]]) -> pl.DataFrame:
    """Return a frame with some cells changed; a null becomes a value."""
    for row, name in sorted(cells):
        kind, values = frame.schema[name], frame[name].to_list()
        values[row] = other(values[row], kind)
        frame = frame.with_columns(pl.Series(name, values, dtype=kind))
    return frame


@EXAMPLES
@given(st.data())
def test_every_changed_cell_is_found_and_nothing_else(recorded: Outcome, outcome: Outcome, data: st.DataObject) -> None:
    """Any cells of any decisions, keys aside."""
    frame = outcome.decisions
    names = [name for name in frame.columns if name not in ("setting", "call_id", "candidates", "rejected")]
    cell = st.tuples(st.integers(0, len(frame) - 1), st.sampled_from(names))
    cells = data.draw(st.sets(cell, max_size=6))
    before = dataclasses.replace(recorded, decisions=changed(frame, cells))
    found = differences(before, outcome)
    ids = frame["call_id"].to_list()
    ranked = (frame["candidates"] - frame["rejected"]).to_list()
    counted = {(row, name) for row, name in cells if name != "order_hash" or ranked[row] > 3}
    assert {(int(row["id"]), row["column"]) for row in found.to_dicts()} == {(ids[row], name) for row, name in counted}
    assert set(found["check"]) <= {"decisions"}
    assert found["at_ms"].is_sorted()


@EXAMPLES
@given(st.sets(st.integers(0, 59), max_size=5), st.sets(st.integers(0, 59), max_size=5))
def test_rows_are_told_apart_both_ways(
    recorded: Outcome, outcome: Outcome, dropped: set[int], kept_out: set[int]
) -> None:
    """What only the baseline has is missing now, what only the code gives is added."""
    frame, place = outcome.decisions, pl.int_range(pl.len())
    before = dataclasses.replace(recorded, decisions=frame.filter(~place.is_in(list(dropped))))
    now = dataclasses.replace(outcome, decisions=frame.filter(~place.is_in(list(kept_out))))
    found = differences(before, now)
    by_kind = {
        kind: set(found.filter(pl.col("kind") == kind)["id"].cast(pl.Int64).to_list()) for kind in ("added", "missing")
    }
    ids = frame["call_id"].to_list()
    assert by_kind["added"] == {ids[row] for row in dropped - kept_out}
    assert by_kind["missing"] == {ids[row] for row in kept_out - dropped}
    assert len(found) == len(dropped ^ kept_out)


def test_an_outcome_differs_in_nothing_from_itself(recorded: Outcome, outcome: Outcome) -> None:
    """An empty frame of the documented columns."""
    found = differences(recorded, outcome)
    assert found.is_empty()
    assert dict(found.schema) == DIFFERENCES


numbers = st.floats(allow_nan=True) | st.integers() | st.booleans() | st.none() | st.text(max_size=2)


@given(numbers, numbers)
def test_sameness_is_mutual_and_within_the_tolerance(one: Any, two: Any) -> None:
    """Of doubles by their distance; of all else by equality and type."""
    assert same(one, one)
    assert same(one, two) == same(two, one)
    if isinstance(one, float) and isinstance(two, float) and math.isfinite(one) and math.isfinite(two):
        assert same(one, two) == (abs(one - two) <= 1e-12 * max(1.0, abs(one), abs(two)))
    elif not isinstance(one, float):
        assert same(one, two) == (type(one) is type(two) and one == two)


def test_the_full_difference_keeps_doubles_to_the_last_bit(recorded: Outcome, outcome: Outcome) -> None:
    """A text that reads back as the same double."""
    changed_score = outcome.decisions.with_columns(score_1=pl.col("score_1") + 0.1)
    found = differences(dataclasses.replace(recorded, decisions=changed_score), outcome)
    scores = found.filter(pl.col("column") == "score_1")
    assert scores["now"].cast(pl.Float64).to_list() == outcome.decisions["score_1"].to_list()
    assert scores["baseline"].cast(pl.Float64).to_list() == changed_score["score_1"].to_list()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("reproduction", "agreed"), 3, "reproduction.agreed"),
        (("replayed", 0, "audit", "comparisons"), 3, "replayed.production-now.audit.comparisons"),
        (("replayed", 0, "lag_flips"), None, "replayed.production-now.lag_flips"),
        (("warnings",), ["something"], "warnings"),
    ],
)
def test_the_proof_is_part_of_a_baseline(
    recorded: Outcome, outcome: Outcome, path: tuple[Any, ...], value: Any, said: str
) -> None:
    """Counts of the audit and the reproduction, and warnings, by their place in the record."""
    record = json.loads(json.dumps(outcome.record))
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    found = differences(dataclasses.replace(recorded, record=record), outcome)
    assert found.select("check", "id").rows() == [("proof", said)]


def test_money_in_the_metrics_is_exact(recorded: Outcome, outcome: Outcome) -> None:
    """One micro-dollar of one provider's cost."""
    record = json.loads(json.dumps(outcome.record))
    (place, *_) = [n for n, one in enumerate(record["metrics"]) if one["metric"].startswith("list cost of ")]
    assert isinstance(record["metrics"][place]["value"], int)
    record["metrics"][place]["value"] += 1
    found = differences(dataclasses.replace(recorded, record=record), outcome)
    assert found.select("check", "column").rows() == [("metrics", "value")]
