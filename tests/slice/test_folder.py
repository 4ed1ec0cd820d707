from __future__ import annotations

import json
from pathlib import Path

import pytest

from replay.errors import NotComparableError, ReplayError
from replay.ledger.folder import frames, ledger_of, read_ledger_folder, read_manifest, write_ledger_folder
from replay.ledger.load import Ledger


@pytest.fixture
def folder(two_hours: Ledger, tmp_path: Path) -> Path:
    """The two hours as a folder."""
    write_ledger_folder(tmp_path / "ledger", two_hours, {"since_ms": 5})
    return tmp_path / "ledger"


def test_a_ledger_comes_back_from_its_folder_as_it_was(two_hours: Ledger, folder: Path) -> None:
    """Every value, type and column, those without any value included, and the identity."""
    back = read_ledger_folder(folder)
    assert back.identity == two_hours.identity
    for table, frame in frames(two_hours).items():
        assert frames(back)[table].equals(frame)
        assert frames(back)[table].schema == frame.schema


def test_the_same_ledger_gives_the_same_bytes(two_hours: Ledger, folder: Path, tmp_path: Path) -> None:
    """Nothing of the clock, of chance or of the order of rows is in the files."""
    shuffled = ledger_of({table: frame.reverse() for table, frame in frames(two_hours).items()})
    write_ledger_folder(tmp_path / "again", shuffled, {"since_ms": 5})
    first, second = ({file.name: file.read_bytes() for file in at.iterdir()} for at in (folder, tmp_path / "again"))
    assert first == second


def test_awkward_values_survive(tmp_path: Path, two_hours: Ledger) -> None:
    """NaN, infinities, empty texts, null and signs outside ASCII are told apart."""
    awkward = two_hours.attempts.head(5).with_columns(
        latency_ms=frames(two_hours)["route_observations"]["latency_ms"].head(5).scatter(
            [0, 1, 2], [float("nan"), float("inf"), -0.0]
        ),
        served_by=frames(two_hours)["route_observations"]["served_by"].head(5).scatter([0, 1], ["", None]),
        error_kind=frames(two_hours)["route_observations"]["error_kind"].head(5).scatter([0], ["é\n\"'"]),
    )  # fmt: skip
    ledger = ledger_of(frames(two_hours) | {"route_observations": awkward})
    write_ledger_folder(tmp_path / "awkward", ledger)
    back = read_ledger_folder(tmp_path / "awkward")
    assert back.attempts.write_json() == ledger.attempts.write_json()
    assert back.attempts["served_by"].to_list()[:2] == ["", None]


def test_the_manifest_says_what_the_ledger_is_for(folder: Path) -> None:
    """The slice's span travels with it."""
    assert read_manifest(folder)["slice"] == {"since_ms": 5}


def test_writing_over_a_ledger_replaces_it_whole(two_hours: Ledger, folder: Path) -> None:
    """A file that the new ledger does not have is gone."""
    (folder / "stray").write_text("x")
    write_ledger_folder(folder, two_hours)
    assert not (folder / "stray").exists()
    assert "slice" not in read_manifest(folder)


def test_a_folder_of_something_else_is_never_written_over(two_hours: Ledger, tmp_path: Path) -> None:
    """Somebody's own files stay."""
    (tmp_path / "own").write_text("mine")
    with pytest.raises(ReplayError, match="not a ledger's folder; nothing was written"):
        write_ledger_folder(tmp_path, two_hours)
    assert (tmp_path / "own").read_text() == "mine"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda file: file.unlink(), "calls.parquet is missing; restore it"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "calls.parquet is no whole Parquet file"),
        (lambda file: file.write_bytes(b""), "calls.parquet is no whole Parquet file"),
        (lambda file: file.write_bytes((file.parent / "settings.parquet").read_bytes()), "does not fit the mirror"),
    ],
)
def test_a_harmed_file_is_named(folder: Path, harm: object, said: str) -> None:
    """Missing, cut short, empty or another table's: one sentence says which file and what to do."""
    harm(folder / "calls.parquet")  # type: ignore[operator]
    with pytest.raises(ReplayError, match=said):
        read_ledger_folder(folder)


def test_a_table_that_is_not_the_manifests_is_refused(two_hours: Ledger, folder: Path, tmp_path: Path) -> None:
    """A file exchanged for a shorter one of the same shape is noticed by its content."""
    shorter = ledger_of(frames(two_hours) | {"calls": two_hours.calls.head(9)})
    write_ledger_folder(tmp_path / "other", shorter)
    (folder / "calls.parquet").write_bytes((tmp_path / "other" / "calls.parquet").read_bytes())
    with pytest.raises(ReplayError, match=r"holds 9 rows with content \w{8}, the manifest says 720 with content"):
        read_ledger_folder(folder)


def test_another_format_cannot_be_compared(folder: Path) -> None:
    """The version that wrote it must read it; the exit code is 3."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(NotComparableError, match="format 99, this version reads format 1"):
        read_manifest(folder)


def test_a_folder_without_a_manifest_is_no_ledger(tmp_path: Path) -> None:
    """The message says how one is made."""
    with pytest.raises(ReplayError, match="no ledger's folder: it has no manifest"):
        read_ledger_folder(tmp_path)
