"""`replay run` of a long ledger: in pieces where it can, whole and with a word about it where it cannot."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from replay.cli import run as command
from replay.cli import run_cli
from replay.pieces import replay_mirror


@pytest.fixture
def _in_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A week of 6,674 calls is a long ledger."""
    monkeypatch.setattr(command, "replay_mirror", functools.partial(replay_mirror, calls_per_piece=1_000))


def run(mirror: Path, out: Path, *more: str) -> dict[str, object]:
    """Replay the demo; returns its record, without how many decisions were audited."""
    assert run_cli(["run", str(mirror), "-o", str(out), *more]) == 0
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    for one in record["replayed"]:
        assert one["audit"].pop("decisions") > 400
        assert one["audit"].pop("comparisons") > 0
    return dict(record)


@pytest.mark.slow
def test_the_folder_is_the_same(demo_mirror: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The record, with what was reproduced, and the very bytes of decisions and predictions."""
    whole = run(demo_mirror, tmp_path / "whole", "-s", "production-now")
    request.getfixturevalue("_in_thousands")
    assert run(demo_mirror, tmp_path / "pieces", "-s", "production-now") == whole
    assert whole["reproduction"]["agreed"] == 6_674  # type: ignore[index]
    for name in ("decisions", "predictions"):
        ours, theirs = (tmp_path / folder / f"{name}.parquet" for folder in ("pieces", "whole"))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.usefixtures("_in_thousands")
def test_what_has_to_be_whole_is_said(demo_mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An EMA remembers everything."""
    run(demo_mirror, tmp_path / "run", "-s", "production-before")
    said = " ".join(capsys.readouterr().out.split())
    assert "It was replayed whole, in as much memory as that takes: production-before remembers everything." in said
