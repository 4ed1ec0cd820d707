"""A baseline that was edited by hand: a verdict with a sentence, whatever stands in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.report.markdown import to_markdown
from replay.cli import run_cli
from replay.gate.check import Checked, Verdict, compare, exit_code
from replay.gate.differences import CHECKS
from replay.gate.outcome import Outcome
from replay.gate.report import document, failure
from replay.gate.suite import read_suite
from replay.gate.text import to_text

JSON = (None, True, 7, -1.5, "text", [], ["text"], {}, {"key": 1})
TABLES = ("decisions", "predictions", "sql")

edited = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""Every example writes the whole file anew."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to every value in a piece of JSON, the whole first."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return JSON with another value at a path."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = put(value[path[0]], path[1:], new)
    return changed


def told(suite: Path, outcome: Outcome) -> Verdict:
    """Compare, and write everything that a check and its tests would print; return the verdict."""
    found = compare(read_suite(suite).scenarios[0], outcome)
    report = document(suite, [found])
    assert to_text(report)
    assert to_markdown(report, "gate")
    texts = [failure(suite, found, check) for check in CHECKS]
    assert any(texts) or found.verdict is Verdict.same
    assert exit_code([found]) in (0, 1, 3)
    return found.verdict


@pytest.mark.slow
@edited
@given(data=st.data())
def test_another_value_anywhere_in_the_record_is_a_verdict(suite: Path, outcome: Outcome, data: Any) -> None:
    """Same, a regression, or not comparable, and the report can be written: never a traceback."""
    path = suite.parent / "baselines" / "small" / "record.json"
    kept = path.read_text()
    record = json.loads(kept)
    place = data.draw(st.sampled_from(list(places(record))))
    new = data.draw(st.sampled_from(JSON))
    try:
        path.write_text(json.dumps(put(record, place, new)))
        told(suite, outcome)
    finally:
        path.write_text(kept)


@pytest.mark.slow
@edited
@given(data=st.data())
def test_another_type_in_any_column_is_a_verdict(suite: Path, outcome: Outcome, data: Any) -> None:
    """A column dropped, emptied or of another type fails the scenario."""
    path = suite.parent / "baselines" / "small" / f"{data.draw(st.sampled_from(TABLES))}.parquet"
    kept = path.read_bytes()
    frame = pl.read_parquet(path)
    name = data.draw(st.sampled_from(frame.columns))
    new = data.draw(st.sampled_from([None, 5, "text", "[1]", [1], b"1", "drop", "empty"]))
    kind = frame.schema[name] if isinstance(new, str) and new == "empty" else None
    other = frame.with_columns(pl.lit(None if kind else new, kind).alias(name))
    other = frame.drop(name) if isinstance(new, str) and new == "drop" else other
    try:
        other.write_parquet(path)
        same = other.equals(frame) and other.schema == frame.schema
        assert (told(suite, outcome) is Verdict.same) is same
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("path", "new", "code", "said"),
    [
        ((), ["a list"], 3, "it is not a JSON object with a format"),
        (("format",), 2, 3, "has format 2, this version reads format 1"),
        (("metrics",), {"a": 1}, 3, "metrics is no list of objects"),
        (("metrics", 0, "value"), "much", 3, "the value of a metric is no number"),
        (("replayed", 0), {}, 3, "an entry of replayed lacks one of the texts setting, decision_hash"),
        (("replayed", 0, "audit"), 5, 1, "replayed.production-now.audit"),
        (("settings", 0, "tools"), "none", 1, "settings.production-now.tools"),
        (("input", "tables", "calls"), 7, 3, "input.tables.calls"),
    ],
)
def test_the_command_says_what_is_wrong_with_a_record(
    suite: Path, path: tuple[Any, ...], new: Any, code: int, said: str, capsys: Any
) -> None:
    """Damage is not comparable, exit code 3; a value that can be compared and differs is what it always is."""
    file = suite.parent / "baselines" / "small" / "record.json"
    file.write_text(json.dumps(put(json.loads(file.read_text()), path, new)))
    assert run_cli(["check", str(suite)]) == code
    printed = capsys.readouterr()
    assert said in printed.out
    assert "Traceback" not in printed.out + printed.err


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _other_format(path: Path) -> None:
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))


def _without_calls(path: Path) -> None:
    pl.read_parquet(path).drop("call_id").write_parquet(path)


def _answers_as_numbers(path: Path) -> None:
    pl.read_parquet(path).with_columns(row=pl.lit("1")).write_parquet(path)


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("record.json", Path.unlink, "there is no baseline at"),
        ("record.json", _cut, "cannot be read"),
        ("record.json", _other_format, "has format 99, this version reads format 1"),
        ("record.json", lambda path: path.write_text("[]"), "cannot be read"),
        ("record.json", lambda path: path.write_text('{"format": 1}'), "its key history is missing"),
        ("record.json", lambda path: path.write_text("null"), "it is not a JSON object with a format"),
        ("decisions.parquet", _cut, "cannot be read"),
        ("decisions.parquet", Path.unlink, "cannot be read"),
        ("decisions.parquet", _without_calls, "its column call_id is missing, or not Int64 in every row"),
        ("sql.parquet", lambda path: path.write_bytes(b""), "cannot be read"),
        ("sql.parquet", _answers_as_numbers, "an answer's row is no JSON object"),
    ],
)
def test_a_baseline_that_cannot_be_read_is_not_comparable(
    suite: Path, held: Callable[..., Checked], name: str, damage: Callable[[Path], Any], said: str
) -> None:
    """Missing, truncated or of another version: a verdict with one sentence, and no update over it."""
    damage(suite.parent / "baselines" / "small" / name)
    found = held(update=True)
    assert found.verdict is Verdict.not_comparable
    assert said in (found.problem or "")
    assert found.proposal is None
    assert found.refused is not None
