from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from replay import queries
from replay.errors import ReplayError
from replay.queries import parse

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTED = "-- What it means.\n"


def test_every_derivation_of_the_system_page_has_a_file() -> None:
    """The table of derivations names nine queries; each is a file here."""
    page = ROOT.parent / "shared" / "system.md"
    if not page.exists():
        pytest.skip("the system's page, ../shared/system.md beside the checkout, is not there")
    section = page.read_text(encoding="utf-8").split("## Derivations")[1].split("\n## ")[0]
    derivations = set(re.findall(r"^\| `(\w+)", section, flags=re.MULTILINE))
    assert len(derivations) == 9
    assert derivations <= set(queries.names())


def test_names_are_sorted_and_hold_no_schema() -> None:
    """The two files of tables are not queries."""
    assert queries.names() == sorted(queries.names())
    assert not set(queries.names()) & set(queries.DDL_NAMES)


@pytest.mark.parametrize("name", queries.names())
def test_the_text_is_the_file_byte_for_byte(name: str) -> None:
    """What is run is what was reviewed."""
    assert queries.load(name).text.encode() == (ROOT / "replay" / "sql" / f"{name}.sql").read_bytes()


@pytest.mark.parametrize("name", queries.names())
def test_the_documentation_sums_up_explains_parameters_and_says_the_neutral_value(name: str) -> None:
    """Its first line is one sentence; a caller that fails soft must know what to return."""
    query = queries.load(name)
    assert "Neutral value on error:" in query.documentation
    assert all(parameter in query.documentation for parameter in query.parameters)
    assert re.fullmatch(r"[^.]+\.", query.summary)


@pytest.mark.parametrize("name", queries.names())
def test_a_query_stays_in_the_subset_that_both_engines_read_alike(name: str) -> None:
    """What is banned has a meaning of its own in each engine, or reads a clock."""
    code = re.sub(r"--[^\n]*", "", queries.load(name).text)
    banned = r"\b(now|current_timestamp|round|any_value|median|jsonb|distinct)\b|::numeric(?!\()|~|;"
    assert re.findall(banned, code, flags=re.IGNORECASE) == []
    assert re.findall(r"\$\d+(?!::|\d)", code) == [], "every parameter is cast"


@pytest.mark.parametrize("name", queries.names())
def test_every_order_says_where_nulls_go_and_text_is_ordered_by_bytes(name: str) -> None:
    """No order depends on an engine's default or on the database's language."""
    code = re.sub(r"--[^\n]*", "", queries.load(name).text)
    for clause in re.findall(r"ORDER BY\s+(.*?)(?=\)|LIMIT|\Z)", code, flags=re.DOTALL):
        for item in clause.split(","):
            column, rest = item.split(maxsplit=1)
            collation = "" if column in {"ts", "id", "position"} else 'COLLATE "C" '
            assert re.fullmatch(rf"{collation}(ASC|DESC) NULLS (FIRST|LAST)", rest.strip()), item


def test_bind_puts_values_in_the_order_of_the_header() -> None:
    """Whatever the order in which they are given."""
    query = queries.load("tool_incapable_routes")
    assert query.bind(min_samples=20, until_ms=2, since_ms=1) == [1, 2, 20]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"since_ms": 1}, "until_ms not given"),
        ({"since_ms": 1, "until_ms": 2, "window_ms": 3}, "window_ms unknown"),
        ({"since": 1, "until_ms": 2}, "since_ms not given; since unknown"),
    ],
)
def test_bind_refuses_missing_and_unknown_values(values: dict[str, int], message: str) -> None:
    """It says which, and what is expected."""
    with pytest.raises(ReplayError, match=f"query route_stats: {message}; expected exactly since_ms, until_ms"):
        queries.load("route_stats").bind(**values)


def test_a_query_without_parameters_binds_to_nothing() -> None:
    """And refuses a value."""
    assert queries.load("all_session_totals").bind() == []
    with pytest.raises(ReplayError, match="expected exactly no parameters"):
        queries.load("all_session_totals").bind(since_ms=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with ''; expected a header"),
        ("SELECT 1", "expected a header"),
        ("-- name: q\n-- What it means.\nSELECT 1", "expected a header"),
        ("-- name: other()\n" + DOCUMENTED + "SELECT 1", "declares the name other; expected q"),
        ("-- name: q()\nSELECT 1", "no documentation"),
        ("-- name: q()\n--\n\nSELECT 1", "no documentation"),
        ("-- name: q(a)\n" + DOCUMENTED + "SELECT 1", r"declares \$1 \(a\) but uses no position"),
        ("-- name: q()\n" + DOCUMENTED + "SELECT $1::bigint", r"declares no position \(no parameters\) but uses \$1"),
        ("-- name: q(a, b)\n" + DOCUMENTED + "SELECT $1::bigint, $3::bigint", r"\$1, \$2 \(a, b\) but uses \$1, \$3"),
        ("-- name: q(a)\n" + DOCUMENTED + "SELECT '$1', \"$1\" -- $1\n/* $1 */", "but uses no position"),
        ("-- name: q(a, a)\n" + DOCUMENTED + "SELECT $1::bigint, $2::bigint", "expected distinct lower-case names"),
        ("-- name: q(a,)\n" + DOCUMENTED + "SELECT $1::bigint", "expected distinct lower-case names"),
    ],
)
def test_a_file_that_does_not_say_what_it_does_is_refused(text: str, message: str) -> None:
    """No header, no documentation, or parameters that do not match what the statement uses."""
    with pytest.raises(ReplayError, match=message):
        parse("q", text)


def test_a_parameter_may_be_used_twice() -> None:
    """Declared once, used wherever it is needed; one inside a string or a comment is no use."""
    query = parse("q", "-- name: q(a)\n" + DOCUMENTED + "SELECT $1::bigint + $1::bigint, 'it''s $2' -- not $3")
    assert query.parameters == ("a",)


def test_the_statement_is_the_text_without_its_documentation() -> None:
    """For a reader; comments inside the statement stay."""
    query = parse("q", "-- name: q()\n" + DOCUMENTED + "SELECT 1\n-- one\n")
    assert (query.statement, query.documentation) == ("SELECT 1\n-- one\n", "What it means.")


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    """For queries and for schemas."""
    with pytest.raises(ReplayError, match=r"no shared SQL named 'route_stat'; expected one of .*route_stats"):
        queries.load("route_stat")
    with pytest.raises(ReplayError, match="no schema 'postgres'; expected one of mirror, schema"):
        queries.ddl("postgres")


def test_the_loader_needs_nothing_of_the_workbench() -> None:
    """Production imports it with psycopg alone installed."""
    script = (
        "import sys, replay.queries as q; [q.load(n) for n in q.names()]; "
        "print(sorted({'duckdb', 'polars', 'numpy', 'numba', 'typer', 'rich', 'psycopg'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
