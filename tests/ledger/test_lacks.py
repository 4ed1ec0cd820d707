from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from replay.cli.import_ import register
from replay.errors import ReplayError
from replay.ledger.lacks import lacks
from replay.ledger.mirror import open_mirror

COMPLETE = """
INSERT INTO policies VALUES ('P', '["top"]', '{}', '[]', 0);
INSERT INTO settings VALUES ('S', '{}', 0);
INSERT INTO offer_history (id, valid_from, position) VALUES (1, 0, 0);
INSERT INTO calls (id, ts, usage_event_id, latency_ms, decided_at, evidence_at, request, policy_id, settings_id,
    replica, replica_seq, evidence_snapshot, evidence_state)
    VALUES (1, 10, 'c', 5, 9, 9, '{}', 'P', 'S', 'r', 1, '1:1:', 'ok');
INSERT INTO route_observations (id, ts, provider_id, ok, latency_ms, started_at, request_id, tools_requested, replica,
    replica_seq, txid) VALUES (1, 10, 'p', true, 5, 5, 'c', false, 'r', 2, 1);
"""


def found(tmp_path: Path, *statements: str) -> list[str]:
    """Return what is lacking in a complete ledger after these changes."""
    with open_mirror(tmp_path / "ledger.duckdb", write=True) as connection:
        for statement in (COMPLETE, *statements):
            connection.execute(statement)
        return lacks(connection)


def test_a_complete_ledger_lacks_nothing(tmp_path: Path) -> None:
    """Where everything was recorded, there is nothing to infer."""
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE calls SET decided_at = NULL", "1 calls lack decided_at: the decision is placed at"),
        ("UPDATE calls SET decided_at = NULL, latency_ms = 0", "lack decided_at and a latency too"),
        ("UPDATE calls SET evidence_at = NULL", "lack evidence_at"),
        ("UPDATE calls SET request = NULL", "lack request:"),
        ("UPDATE calls SET policy_id = NULL", "lack policy_id"),
        ("UPDATE calls SET policy_id = 'Q'", "name a policy that the table policies does not hold"),
        ("UPDATE calls SET settings_id = 'Q'", "name settings that the table settings does not hold"),
        ("UPDATE calls SET evidence_snapshot = NULL", "lack evidence_snapshot"),
        ("UPDATE calls SET evidence_state = 'unavailable'", "every stamp was neutral"),
        ("UPDATE calls SET tokens_in = 1, tokens_cached = 2", "more tokens_cached than tokens_in"),
        ("UPDATE calls SET cost_usd = 1, cost_basis = 'computed'", "comparison with list prices is circular"),
        ("DELETE FROM calls", "no calls"),
        ("UPDATE route_observations SET request_id = NULL", "only final-route agreement"),
        ("UPDATE route_observations SET request_id = 'x'", "name a call that is not in the ledger"),
        ("UPDATE route_observations SET started_at = NULL", "begun at ts − latency_ms"),
        ("UPDATE route_observations SET started_at = NULL, latency_ms = NULL", "their start is unknown"),
        ("UPDATE route_observations SET latency_ms = NULL", "successful attempts lack a latency"),
        ("UPDATE route_observations SET latency_ms = 0", "a latency of 0, which is read as unknown"),
        ("UPDATE route_observations SET latency_ms = 3000", "every latency is a whole number of seconds"),
        ("UPDATE route_observations SET tools_requested = NULL", "no evidence for the tools rule"),
        ("DELETE FROM route_observations", "no attempts"),
        ("DELETE FROM offer_history", "no offer_history"),
    ],
)
def test_each_gap_is_said(tmp_path: Path, change: str, said: str) -> None:
    """Each thing a ledger lacks gives its sentence."""
    assert any(said in sentence for sentence in found(tmp_path, change))


def test_counts_are_said(tmp_path: Path) -> None:
    """A part is counted against its whole."""
    said = found(tmp_path, "INSERT INTO route_observations (id, ts, ok, latency_ms) VALUES (2, 11, false, 7)")
    assert "1 of 2 attempts lack request_id: only final-route agreement, not reproduction, can be shown" in said


@pytest.fixture
def app() -> typer.Typer:
    """The two commands alone."""
    commands = typer.Typer()
    register(commands)
    return commands


def test_import_then_info(tmp_path: Path, app: typer.Typer) -> None:
    """The commands say what was added and rejected, then what the mirror holds and lacks."""
    file = tmp_path / "a.csv"
    file.write_text("ts,ok,provider_id\n1700000000000,true,p\n1700000000001,,p\n")
    mirror = tmp_path / "ledger.duckdb"
    imported = CliRunner().invoke(app, ["import", str(file), "--as", "route_observations", "--into", str(mirror)])
    assert imported.exit_code == 0
    assert "rejected from route_observations: 1 × no ok (true or false)" in imported.stdout
    shown = CliRunner().invoke(app, ["info", str(mirror), "--rejects"])
    assert shown.exit_code == 0
    for part in ("p||", "100.0%", "a.csv", "row 2, no ok (true or false)", "no calls"):
        assert part in shown.stdout


@pytest.mark.parametrize("options", [[], ["--as", "calls", "--mapping", "aider_calls"], ["--as", "cals"]])
def test_import_wants_to_know_what_the_file_is(tmp_path: Path, app: typer.Typer, options: list[str]) -> None:
    """Neither, both or an unknown kind of file is refused before anything is created."""
    mirror = tmp_path / "ledger.duckdb"
    result = CliRunner().invoke(app, ["import", "a.csv", "--into", str(mirror), *options])
    assert isinstance(result.exception, ReplayError)
    assert not mirror.exists()
