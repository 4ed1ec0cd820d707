"""The command line documents itself: docstrings, examples, docs/cli.md, and the shared SQL."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from replay import queries

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())


def _writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_cli", ROOT / "docs" / "write_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRITER = _writer()
COMMANDS: dict[str, Any] = dict(WRITER.commands())


def test_the_reference_is_up_to_date() -> None:
    """docs/cli.md is what the commands say; `make docs` writes it anew."""
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == WRITER.page(), "run: make docs"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_with_one_example_that_parses(name: str) -> None:
    """Its docstring ends in `Example: replay NAME …`, which its own parser accepts."""
    examples = re.findall(r"^Example: replay (.+)$", COMMANDS[name].help, flags=re.MULTILINE)
    assert len(examples) == 1
    assert COMMANDS[name].help.rstrip().endswith(examples[0])
    words = shlex.split(examples[0])
    own = name.split()
    assert words[: len(own)] == own
    COMMANDS[name].make_context(f"replay {name}", words[len(own) :])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_and_option_is_explained(name: str) -> None:
    """None is listed without a help text."""
    assert [one.name for one in COMMANDS[name].params if not (one.help or "").strip()] == []


def test_every_query_is_in_the_page_about_sharing() -> None:
    """docs/sql-sharing.md lists each query's signature with the first sentence of its documentation."""
    rows = re.findall(
        r"^\| `(\w+\(.*?\))` \| (.+) \|$", (ROOT / "docs" / "sql-sharing.md").read_text(), flags=re.MULTILINE
    )
    loaded = [queries.load(name) for name in queries.names()]
    assert rows == [(query.signature, query.summary) for query in loaded]
