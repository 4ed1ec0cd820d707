from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from replay import queries
from replay.cli import sql
from replay.errors import ReplayError

FOLDER = Path(__file__).resolve().parents[2] / "replay" / "sql"


def _replay(*arguments: str) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)  # so that one command alone keeps its name
    sql.register(app)
    return CliRunner().invoke(app, list(arguments))


def test_the_list_names_every_query_with_its_parameters() -> None:
    """And the two schemas."""
    result = _replay("sql")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    for name in queries.names():
        query = queries.load(name)
        assert lines[lines.index(query.signature) + 1] == f"    {query.summary}"
    assert set(queries.DDL_NAMES) <= set(lines)


def test_a_query_is_printed_with_its_positions_its_documentation_and_its_statement() -> None:
    """The documentation once, then the SQL as it stands."""
    query = queries.load("tool_incapable_routes")
    output = _replay("sql", "tool_incapable_routes").output
    assert output.startswith("tool_incapable_routes(since_ms, until_ms, min_samples)\n")
    assert "    $3  min_samples\n" in output
    assert output.count("The routes that ignore tools") == 1
    assert output.endswith(query.statement)


@pytest.mark.parametrize("name", [*queries.names(), *queries.DDL_NAMES])
def test_raw_prints_the_file_byte_for_byte(name: str) -> None:
    """So that it can be piped into psql or duckdb."""
    assert _replay("sql", name, "--raw").stdout_bytes == (FOLDER / f"{name}.sql").read_bytes()


@pytest.mark.parametrize("name", queries.DDL_NAMES)
def test_a_schema_is_printed_whole(name: str) -> None:
    """Its comments are its documentation."""
    assert _replay("sql", name).output == queries.ddl(name)


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    """With and without --raw."""
    for arguments in (["sql", "nope"], ["sql", "nope", "--raw"]):
        error = _replay(*arguments).exception
        assert isinstance(error, ReplayError)
        assert "no shared SQL named 'nope'" in str(error)
        assert "route_stats" in str(error)


def test_raw_needs_a_name() -> None:
    """A list has no bare file."""
    error = _replay("sql", "--raw").exception
    assert isinstance(error, ReplayError)
    assert "--raw was given without a name" in str(error)
