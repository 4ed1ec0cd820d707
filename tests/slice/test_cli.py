from __future__ import annotations

from pathlib import Path

import pytest

from replay.cli import run_cli
from replay.ledger.folder import fill, frames, read_ledger_folder, read_manifest
from replay.ledger.load import Ledger
from replay.ledger.mirror import open_mirror

SPAN = ["--since", "1970-01-12T14:20:00Z", "--until", "1970-01-12T14:23:00Z"]  # 33 to 36 minutes in: the outage


@pytest.fixture(scope="module")
def mirror(two_hours: Ledger, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The two hours as a mirror file."""
    path = tmp_path_factory.mktemp("mirror") / "ledger.duckdb"
    with open_mirror(path, write=True) as connection:
        fill(connection, frames(two_hours))
    return str(path)


def test_slice_writes_a_ledger_and_says_what_is_in_it(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict comes first; the manifest says what the slice is for; a second cut gives the same bytes."""
    outs = [tmp_path / name for name in ("first", "second")]
    assert [run_cli(["slice", mirror, *SPAN, "-o", str(out)]) for out in outs] == [0, 0]
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "The slice replays as the whole mirror does: 18 decisions under production-now, to the last bit."
    assert read_manifest(outs[0])["slice"] == {
        "since_ms": 1_002_000_000,
        "until_ms": 1_002_180_000,
        "settings": ["production-now"],
        "policy": None,
        "decisions": 18,
        "warm_up": len(read_ledger_folder(outs[0]).attempts) - _attempts_within(outs[0]),
        "pseudonymised": True,
    }
    first, second = ({file.name: file.read_bytes() for file in out.iterdir()} for out in outs)
    assert first == second


def _attempts_within(folder: Path) -> int:
    ledger = read_ledger_folder(folder)
    decided = dict(zip(ledger.calls["usage_event_id"], ledger.calls["decided_at"], strict=True))
    return sum(
        1_002_000_000 <= ts < 1_002_180_000 or 1_002_000_000 <= decided[request] < 1_002_180_000
        for ts, request in zip(ledger.attempts["ts"], ledger.attempts["request_id"], strict=True)
    )


def test_keep_names_keeps_them_and_says_so(mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever keeps names is told to look before committing them."""
    assert run_cli(["slice", mirror, *SPAN, "--keep-names", "-o", str(tmp_path / "named")]) == 0
    assert "look before you commit them" in capsys.readouterr().out
    assert set(read_ledger_folder(tmp_path / "named").calls["caller"]) == {"alice"}


def test_an_empty_span_writes_nothing(mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one sentence, no folder."""
    span = ["--since", "2026-01-01", "--until", "2026-01-02"]
    assert run_cli(["slice", mirror, *span, "-o", str(tmp_path / "none")]) == 2
    assert "no call was decided from 2026-01-01T00:00:00Z" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
