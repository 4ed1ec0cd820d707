"""Accepting: the only way a baseline changes, with a reason that is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replay.cli import run_cli
from replay.errors import NotComparableError, ReplayError
from replay.gate.accept import accept
from replay.gate.check import Checked, Verdict
from replay.gate.suite import read_suite


def test_a_reason_joins_the_history_with_the_hashes_around_it(
    suite: Path, held: Callable[..., Checked], doctored: Any, putting: Any, capsys: Any
) -> None:
    """After accepting, the check is green, the proposal gone, and the history says what was replaced by what."""
    doctored("decisions", putting("margin", 40, 0.25))
    record = suite.parent / "baselines" / "small" / "record.json"
    (first,) = json.loads(record.read_text())["history"]
    assert held(update=True).proposal is not None
    assert run_cli(["accept", str(suite), "small", "--reason", "the margin is right now"]) == 0
    assert "Accepted small; commit " in capsys.readouterr().out
    assert held().verdict is Verdict.same
    assert not (suite.parent / "baselines" / "small.new").exists()
    history = json.loads(record.read_text())["history"]
    assert history[0] == first == {"reason": "the first one", "before": None, "after": first["after"]}
    # The doctored baseline kept its record, so both hashes are the code's.
    assert history[1:] == [{"reason": "the margin is right now", "before": first["after"], "after": first["after"]}]
    assert list(first["after"]) == ["production-now"]
    assert len(first["after"]["production-now"]) == 64


def test_without_a_proposal_nothing_is_accepted(suite: Path) -> None:
    """Named or not, the sentence says how to write one."""
    with pytest.raises(ReplayError, match="has no proposal; write one first: replay check"):
        accept(read_suite(suite), [], "a reason")
    with pytest.raises(ReplayError, match=r"small has no proposal at .*small\.new"):
        accept(read_suite(suite), ["small"], "a reason")


def test_a_reason_is_needed(suite: Path, held: Callable[..., Checked], doctored: Any, putting: Any) -> None:
    """An empty one is none; the option itself cannot be left out."""
    doctored("decisions", putting("margin", 40, 0.25))
    held(update=True)
    with pytest.raises(ReplayError, match="--reason is empty"):
        accept(read_suite(suite), [], " ")
    assert run_cli(["accept", str(suite)]) == 2
    assert (suite.parent / "baselines" / "small.new").is_dir()


def test_a_damaged_proposal_changes_nothing(suite: Path, held: Callable[..., Checked]) -> None:
    """The baseline stays as it is, byte for byte."""
    baseline = suite.parent / "baselines" / "small"
    shutil.copytree(baseline, baseline.with_name("small.new"))
    (baseline.with_name("small.new") / "sql.parquet").write_bytes(b"PAR1")
    with pytest.raises(NotComparableError, match="cannot be read"):
        accept(read_suite(suite), [], "a reason")
    assert held().verdict is Verdict.same


def test_a_proposal_on_another_input_is_refused(suite: Path) -> None:
    """It was written against a baseline that is not there any more."""
    baseline = suite.parent / "baselines" / "small"
    shutil.copytree(baseline, baseline.with_name("small.new"))
    record = baseline / "record.json"
    record.write_text(record.read_text().replace('"rows": 60', '"rows": 61'))
    with pytest.raises(NotComparableError, match="rests on another input"):
        accept(read_suite(suite), [], "a reason")
