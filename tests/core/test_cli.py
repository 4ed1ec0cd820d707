from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from replay.cli import policy as policy_commands
from replay.cli import vectors as vector_commands
from replay.core import SHIPPED_FIELDS, Schema, admit, load_policy
from replay.errors import ReplayError


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command line; returns (exit code, output), and raises the ReplayError that ended it."""
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    policy_commands.register(app)
    vector_commands.register(app)

    def invoke(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(words))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


def write(path: Path, value: Any) -> str:
    """Write a value as JSON; return the path as a word of a command line."""
    path.write_text(json.dumps(value))
    return str(path)


TERM = ["policy", ["top"], ["field", "price_in"], ["argmax"], ["id"], ["always", {"action": "abort"}]]


def test_check_prints_identity_encoding_and_normal_form(run: Any) -> None:
    """For a shipped policy by name, with its own declared fields."""
    policy = admit(load_policy("default"), Schema.declare(SHIPPED_FIELDS))
    code, output = run("policy", "check", "default")
    assert code == 0
    assert policy.identity in output
    assert policy.encoding in output
    assert '\n    (cmp "price_in" "le" 5)\n' in output


def test_check_as_json(run: Any, tmp_path: Path) -> None:
    """One object; the normal form is a term again."""
    code, output = run("policy", "check", write(tmp_path / "p.json", TERM), "--json")
    assert code == 0
    assert json.loads(output) == {
        "identity": admit(TERM).identity,
        "encoding": admit(TERM).encoding,
        "normal": TERM,
    }


def test_an_undeclared_field_says_how_to_declare_it(run: Any, tmp_path: Path) -> None:
    """And declaring it helps."""
    term = [*TERM[:2], ["field", "bench_x"], *TERM[3:]]
    file = write(tmp_path / "p.json", term)
    with pytest.raises(ReplayError, match=r"^\$\.policy\[2\]\.field\[1\]: undeclared field 'bench_x'\. .*--declared"):
        run("policy", "check", file)
    declared = write(tmp_path / "fields.json", {"bench_x": {"sort": "Num", "default": 0}})
    assert run("policy", "check", file, "--declared", declared)[0] == 0


def test_an_unknown_tier_says_how_to_give_the_order(run: Any, tmp_path: Path) -> None:
    """`--tiers` replaces the default order."""
    file = write(tmp_path / "p.json", ["policy", ["tier_eq", "gold"], *TERM[2:]])
    with pytest.raises(ReplayError, match="--tiers"):
        run("policy", "check", file)
    assert run("policy", "check", file, "--tiers", "bronze, gold")[0] == 0


@pytest.mark.parametrize("content", ["", "[", "3", "{}", '["policy"]', "[" * 5000])
def test_a_file_that_is_no_policy_is_refused(run: Any, tmp_path: Path, content: str) -> None:
    """Each with a ReplayError, and nothing printed."""
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ReplayError):
        run("policy", "check", str(tmp_path / "p.json"))


def test_explain_shows_a_decision(run: Any, tmp_path: Path) -> None:
    """Order, fields and scores of a decision in the vectors' form."""
    candidates = [
        {"provider_id": "a", "model_family": "m", "price_in": 2},
        {"provider_id": "b", "model_family": "m", "price_in": 3, "offer": {"peer_id": "x"}},
    ]
    decision = write(tmp_path / "d.json", {"candidates": candidates, "request": {}, "state": {}, "seed": 1})
    code, output = run("policy", "explain", write(tmp_path / "p.json", TERM), "--decision", decision)
    assert code == 0
    assert output.index("b|m|x") < output.index("a|m|a")
    assert 's0 = field "price_in"' in output


def test_explain_refuses_what_is_no_decision(run: Any, tmp_path: Path) -> None:
    """A missing file, and a file without candidates."""
    with pytest.raises(ReplayError, match="expected a decision"):
        run("policy", "explain", "cheapest", "--decision", str(tmp_path / "absent.json"))
    with pytest.raises(ReplayError, match="no list of candidates"):
        run("policy", "explain", "cheapest", "--decision", write(tmp_path / "d.json", {}))


def test_vectors_counts_what_is_reproduced(run: Any, vectors: Path) -> None:
    """Both files at once, exit 0."""
    code, output = run("vectors", str(vectors / "plan.json.gz"), str(vectors / "failover.json.gz"))
    assert code == 0
    assert all(count in output for count in ("441", "42", "120"))
    assert "Every vector is reproduced exactly." in output


def test_vectors_exits_1_and_shows_the_first_miss(run: Any, tmp_path: Path) -> None:
    """With both values."""
    wrong = {"id": "r-0", "kind": "reject", "term": ["nonsense"], "error": "$: something else"}
    code, output = run("vectors", write(tmp_path / "v.json", {"vectors": [wrong]}))
    assert code == 1
    assert "First miss: r-0, error" in output
    assert '"$: something else"' in output
    assert "\"$: unknown op 'nonsense'\"" in output


def test_vectors_of_an_empty_file_claims_nothing(run: Any, tmp_path: Path) -> None:
    """No vector, no success."""
    code, output = run("vectors", write(tmp_path / "v.json", {"vectors": []}))
    assert code == 0
    assert "No vector was checked" in output
