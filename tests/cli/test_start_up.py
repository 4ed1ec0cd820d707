"""Start-up: a command imports what it needs, and no command waits for what another needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from replay.cli import _ROOMS, run_cli

HEAVY = ("altair", "marimo", "numba", "replay.engine", "vl_convert")
WITHOUT_REPLAY = (
    "import", "info", "pull", "verify", "prices", "settings", "tools", "cost", "policy", "vectors", "sql", "notebook",
    "chart", "bench",
)  # fmt: skip
"""Commands that replay nothing, or not at once."""

_LOADED = """
import json, sys
from replay.cli import run_cli
code = run_cli(sys.argv[1:])
print(json.dumps([code, sorted(set(sys.modules))]))
"""
_ASKED_FOR = """
import json, sys
from replay.cli import build_app
from typer.main import get_command
commands = get_command(build_app()).commands
for name in sys.argv[1:]:
    commands[name]
print(json.dumps([0, sorted(set(sys.modules))]))
"""


def modules(program: str, *words: str) -> set[str]:
    """Run a program in a process of its own; return the modules it had imported at its end."""
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(loaded)


def test_the_version_needs_no_library() -> None:
    """Neither DuckDB nor Polars nor NumPy, let alone the compiler."""
    assert modules(_LOADED, "--version") & {*HEAVY, "duckdb", "polars", "numpy", "pyarrow"} == set()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of one call."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "one.csv").write_text(
        "ts_utc,session,mode,provider,model,tokens_in,tokens_out,cost_usd,latency_s,status\n"
        "2025-01-01T12:00:00Z,s,code,openai,gpt-4o,1000,100,0.01,3,ok\n"
    )
    assert run_cli(["import", str(folder / "one.csv"), "--mapping", "aider_calls", "--into", str(folder / "m")]) == 0
    return folder / "m"


def test_a_look_into_a_mirror_needs_no_compiler(mirror: Path) -> None:
    """`replay info` from its start to its end."""
    assert modules(_LOADED, "info", str(mirror)) & set(HEAVY) == set()


def test_what_replays_nothing_imports_nothing_heavy() -> None:
    """Every command that does not replay, asked for in one process."""
    assert modules(_ASKED_FOR, *WITHOUT_REPLAY) & set(HEAVY) == set()


def test_every_command_is_registered_under_its_name() -> None:
    """What the table of commands promises, the modules hold."""
    assert modules(_ASKED_FOR, *_ROOMS) >= {f"replay.cli.{room}" for room in _ROOMS.values()}
