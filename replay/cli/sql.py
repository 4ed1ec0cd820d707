"""`replay sql`: show the shared queries and schemas."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.syntax import Syntax
from rich.text import Text

from replay import queries
from replay.cli.show import console
from replay.errors import ReplayError

_DDL_TITLES = {
    "mirror": "The tables of the workbench's mirror, in DuckDB.",
    "schema": "Production's tables, in PostgreSQL.",
}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("sql")(sql)


def sql(
    name: Annotated[
        str | None, typer.Argument(help="A query, or schema (PostgreSQL) or mirror (DuckDB); without it, list them.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Print the file as it is, byte for byte, for a pipe.")] = False,
) -> None:
    """List the shared SQL, or print one query with its parameters and documentation.

    Example: replay sql route_stats
    """
    if name is None:
        if raw:
            raise ReplayError("--raw was given without a name; expected one, for example replay sql route_stats --raw")
        _print_list()
    elif raw:
        typer.echo(_text(name).encode(), nl=False)
    elif name in queries.DDL_NAMES:
        _print_statements(queries.ddl(name))
    else:
        _print_query(queries.load(name))


def _text(name: str) -> str:
    return queries.ddl(name) if name in queries.DDL_NAMES else queries.load(name).text


def _print_list() -> None:
    entries = [(queries.load(name).signature, queries.load(name).summary) for name in queries.names()]
    entries += [(name, _DDL_TITLES[name]) for name in queries.DDL_NAMES]
    for signature, summary in entries:
        _print(Text(signature, style="bold"))
        _print(Text(f"    {summary}"))


def _print_query(query: queries.Query) -> None:
    _print(Text(query.signature, style="bold"))
    for position, parameter in enumerate(query.parameters, start=1):
        _print(Text(f"    ${position}  {parameter}"))
    _print(Text(f"\n{query.documentation}\n"))
    _print_statements(query.statement)


def _print(text: Text) -> None:
    # Soft: the documentation's own lines are kept, tables in it too.
    console().print(text, soft_wrap=True)


def _print_statements(text: str) -> None:
    out = console()
    if out.is_terminal:
        out.print(Syntax(text, "sql", background_color="default", word_wrap=True))
    else:
        typer.echo(text, nl=not text.endswith("\n"))
