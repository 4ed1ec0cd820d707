"""The report of a difference, read as a reviewer would: what, where it started, how much, how to see it again."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replay.cli import run_cli
from replay.gate.check import Checked, compare
from replay.gate.differences import DIFFERENCES
from replay.gate.outcome import Outcome
from replay.gate.report import document, failure, headline
from replay.gate.suite import read_suite
from replay.gate.text import to_text


def flipped_at(row: int) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Return an edit that has the baseline choose the second route, on another success rate of the first."""

    def edit(frame: pl.DataFrame) -> pl.DataFrame:
        here = pl.int_range(pl.len()) == row
        other = {
            "chosen_route": pl.col("route_2"),
            "route_1": pl.col("route_2"),
            "route_2": pl.col("route_1"),
            "score_1": pl.col("score_2") + 0.5,
            "score_2": pl.col("score_1"),
            "success_rate_1": pl.lit(0.99),
            "success_rate_2": pl.col("success_rate_1"),
            "latency_ms_1": pl.col("latency_ms_2"),
            "latency_ms_2": pl.col("latency_ms_1"),
            "price_in_1": pl.col("price_in_2"),
            "price_in_2": pl.col("price_in_1"),
            "margin": pl.col("score_2") + 0.5 - pl.col("score_1"),
        }
        return frame.with_columns(
            **{name: pl.when(here).then(value).otherwise(pl.col(name)) for name, value in other.items()}
        )

    return edit


@pytest.fixture
def regression(held: Callable[..., Checked], doctored: Any, putting: Any) -> Checked:
    """Two flips, at the 31st and the 46th decision, a stamp that differs at the 41st, one prediction, one answer."""
    for row in (30, 45):
        doctored("decisions", flipped_at(row))
    doctored("decisions", putting("latency_ms_2", 40, 12_345.0))
    doctored("predictions", putting("p_read", 50, 0.125))
    doctored("sql", lambda frame: frame.with_columns(pl.col("row").str.replace(r'"count": (\d)', '"count": 1$1')))
    return held()


def positions(text: str, *parts: str) -> list[int]:
    """Return where each part begins in a text; every one has to be there."""
    found = [text.find(part) for part in parts]
    assert -1 not in found, f"not said: {[part for part, at in zip(parts, found, strict=True) if at < 0]}\n{text}"
    return found


def test_the_report_answers_in_a_reviewers_order(suite: Path, regression: Checked) -> None:
    """Verdict, input and settings, counts, the first divergence, causes, clearest flips, metrics, the command."""
    text = to_text(document(suite, [regression]))
    places = positions(
        text,
        "Replay check: 1 of 1 scenario not as accepted",
        "small: REGRESSION",
        "small: 2 of 60 decisions flipped, 1 more differ",
        "It guards: Three routes of one family",
        "Input: the same (calls 60, ",
        "Decisions: 60 compared, 2 flipped, 0 more flipped on a tie, 1 differ otherwise, 0 added, 0 missing.",
        "First divergence: call 31 at 1970-01-12T13:56:",
        "Likely cause: reliability evidence; ",
        "It flips.",
        "By cause",
        "Clearest flips (2 of 2)",
        "Predictions: 1 of ",
        "Metrics that changed",
        "decisions flipped, of 60",
        "The shared SQL answers otherwise",
        f"Reproduce: replay check {suite} small --diff small.parquet",
    )
    assert places == sorted(places)


def test_the_first_divergence_shows_every_value_that_differs(suite: Path, regression: Checked) -> None:
    """With the baseline's beside the present one, and which route is stamped otherwise."""
    text = to_text(document(suite, [regression]))
    table = text[text.index("What differs in it") : text.index("By cause")]
    differing = regression.differences.filter((pl.col("check") == "decisions") & (pl.col("id") == "31"))
    assert re.findall(r"^  (\w+) ", table, flags=re.MULTILINE) == ["Column", *differing["column"].to_list()]
    said = re.search(r"Likely cause: reliability evidence; (\S+) is stamped success_rate (\S+), not 0.99", text)
    assert said is not None
    chosen = differing.filter(pl.col("column") == "chosen_route").row(0, named=True)
    assert said[1] == chosen["baseline"]


def test_a_flip_shows_both_sides_scores_margins_and_stamps(suite: Path, regression: Checked) -> None:
    """Two lines a flip, what each side chose and saw of the other's choice; the larger margin first."""
    text = to_text(document(suite, [regression]))
    table = text[text.index("Clearest flips") : text.index("In brackets:")].splitlines()[2:-1]
    firsts, seconds = table[::2], table[1::2]
    assert sorted(line.split()[0] for line in firsts) == ["31", "46"]
    assert [line.split()[0] for line in seconds] == ["now", "now"]
    assert all(" baseline " in line and " 0.990 (" in line for line in firsts)
    margins = [float(re.search(r"\|\w +(\d\.\d{4}) ", line)[1]) for line in table]  # type: ignore[index]
    clear = [min(margins[place : place + 2]) for place in (0, 2)]
    assert clear == sorted(clear, reverse=True)


def test_the_first_divergence_says_what_lies_on_the_evidence_s_border(
    suite: Path, outcome: Outcome, doctored: Any, putting: Any
) -> None:
    """An attempt at the very edge of the window is what `<` for `≤` moves; the report points at it, and at no other."""
    doctored("decisions", putting("success_rate_1", 40, 0.99))
    row = outcome.decisions.row(40, named=True)
    for off_ms, told in ((0, True), (1, False)):
        edge = {"route_key": [row["route_1"]], "ts": [row["evidence_ms"] - 900_000 + off_ms]}
        now = dataclasses.replace(outcome, ends=pl.concat([outcome.ends, pl.DataFrame(edge)]))
        text = to_text(document(suite, [compare(read_suite(suite).scenarios[0], now)]))
        assert ("in the very millisecond in which its window of 15m begins" in text) is told


def test_the_parts_of_the_proof_are_marked_each_for_itself(suite: Path, outcome: Outcome) -> None:
    """A reproduction that fails says nothing against an audit that holds."""
    record = json.loads(json.dumps(outcome.record))
    record["reproduction"] |= {"agreed": 59, "causes": {"tie": 1}, "first_mismatch": "call 1: recorded a, replayed b"}
    found = compare(read_suite(suite).scenarios[0], dataclasses.replace(outcome, record=record, passed=False))
    text = failure(suite, found, "proof") or ""
    assert "the replay itself does not hold: its reproduction fails." in text
    positions(text, "✗ Reproduction: 98.33% of 60", "- Audit of production-now: 0 mismatches", "The proof differs")


def test_ties_are_counted_apart_and_still_fail(
    suite: Path, held: Callable[..., Checked], doctored: Any, putting: Any
) -> None:
    """A flip whose margin is nothing hangs on the order of candidates; it is a difference all the same."""
    doctored("decisions", putting("chosen_route", 30, "q|m|q "))
    doctored("decisions", putting("margin", 30, 0.0))
    found = held()
    assert headline(found).startswith("small: 1 flipped on a tie; first at ")
    assert "0 flipped, 1 more flipped on a tie" in to_text(document(suite, [found]))


def test_each_failing_test_tells_its_own_part(suite: Path, regression: Checked) -> None:
    """The decisions' test tells all; the others their part, with the headline and the command; the rest are silent."""
    told = {
        check: failure(suite, regression, check)
        for check in ("input", "settings", "decisions", "predictions", "metrics", "sql", "proof")
    }
    assert [check for check, text in told.items() if text is None] == ["input", "settings", "metrics", "proof"]
    assert "First divergence" in (told["decisions"] or "")
    for check in ("predictions", "sql"):
        text = told[check] or ""
        assert text.startswith(f"small: {check} not as accepted")
        assert headline(regression) in text
        assert "First divergence" not in text
        assert text.endswith("--diff small.parquet")


def test_an_answer_that_differs_names_query_values_and_row(suite: Path, regression: Checked) -> None:
    """Which query, asked with what, whose row and column, both values."""
    text = failure(suite, regression, "sql") or ""
    assert re.search(
        r"route_stats +DuckDB +\{\"since_ms\": \d+, \"until_ms\": \d+\} +count of row 1 \(p\|m\|p\) +1\d+ +\d+", text
    )


def test_metrics_change_with_paired_intervals_or_the_reason_for_none(
    suite: Path, held: Callable[..., Checked], doctored: Any
) -> None:
    """Twenty minutes hold no thirty blocks: the change is shown, and why it has no interval."""
    doctored("predictions", lambda frame: frame.with_columns(p_read=pl.lit(0.5)))
    record = suite.parent / "baselines" / "small" / "record.json"
    record.write_text(
        re.sub(r'("metric": "brier, as read",\n *"of": \d+,\n.*\n *"value": )[\d.]+', r"\g<1>0.25", record.read_text())
    )
    text = failure(suite, held(), "metrics") or ""
    row = re.search(r"production-now +brier, as read +0\.25 +0\.(\d+) +-0\.\d+ +none: 1 of 30 blocks needed", text)
    assert row is not None, text


def test_the_summary_and_the_full_difference_are_files(
    suite: Path, doctored: Any, putting: Any, tmp_path: Path
) -> None:
    """Markdown is appended, as a CI's step summary asks; the Parquet file holds one row per differing value."""
    doctored("decisions", flipped_at(30))
    summary, diff = tmp_path / "summary.md", tmp_path / "diff.parquet"
    summary.write_text("before\n")
    assert run_cli(["check", str(suite), "--summary", str(summary), "--diff", str(diff)]) == 1
    text = summary.read_text()
    assert text.startswith("before\n# Replay check: 1 of 1 scenario not as accepted\n")
    positions(text, "## small: REGRESSION", "| Column | Baseline | Now |", "```sh\nreplay check ")
    frame = pl.read_parquet(diff)
    assert frame.columns == ["scenario", *DIFFERENCES]
    assert frame.filter(pl.col("column") == "success_rate_1")["baseline"].to_list() == ["0.99"]
    assert set(frame["cause"]) == {"reliability evidence"}


def test_long_lists_are_cut_in_the_report_and_whole_in_the_file(
    suite: Path, held: Callable[..., Checked], doctored: Any
) -> None:
    """A summary shows the top rows only, and says how many it leaves out."""
    doctored("sql", lambda frame: frame.with_columns(pl.col("query") + "_old"))
    found = held()
    differing = len(found.differences)
    assert differing > 40
    text = to_text(document(suite, [found]))
    assert f"{differing - 20} more are not shown; --diff FILE writes them all." in text
    assert len(text.splitlines()) < 40


def test_a_file_that_cannot_be_written_is_a_sentence(suite: Path, tmp_path: Path, capsys: Any) -> None:
    """The report has been printed by then."""
    assert run_cli(["check", str(suite), "--summary", str(tmp_path / "none" / "s.md")]) == 2
    assert "cannot be written (No such file or directory)" in capsys.readouterr().err


def test_allowed_differences_are_said_and_idle_permissions_too(
    suite: Path, held: Callable[..., Checked], doctored: Any, putting: Any
) -> None:
    """Nothing is hidden: a green scenario still says what it puts up with."""
    allow = '[[scenario.allow]]\nreason = "{}"\ncalls = [{}]\n'
    suite.write_text(suite.read_text() + allow.format("a peer's own order", 41) + allow.format("an old bug", 7))
    doctored("decisions", putting("margin", 40, 0.25))
    text = to_text(document(suite, [held()]))
    positions(
        text,
        "✓ small: 60 decisions as accepted, 1 allowed difference.",
        "small: 1 difference is allowed: a peer's own order",
        "small: nothing differs that this allows, so it can go: an old bug",
    )
