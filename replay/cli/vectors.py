"""`replay vectors`: check the routing core against recorded decisions and failover runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from replay.cli.show import console
from replay.core.vectors import Miss, check_file


def vectors(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Vector files, .json or .json.gz.")],
) -> None:
    """Check vector files: how many decisions, refusals and failover runs this routing core reproduces exactly.

    Exit code 1 if one is missed; the first miss of each file is shown with both values.

    Example: replay vectors ../shared/vectors/plan.json.gz ../shared/vectors/failover.json.gz
    """
    out = console()
    tallies = [(path, check_file(path)) for path in files]
    table = Table("file", "kind", "reproduced", "of", title="Vectors")
    for path, tally in tallies:
        for kind, total in tally.total.items():
            table.add_row(Text(path.name), kind, str(tally.reproduced[kind]), str(total))
        if not tally.total:
            table.add_row(Text(path.name), "none", "0", "0")
    out.print(table)
    for _, tally in tallies:
        if tally.first_miss is not None:
            _show(out, tally.first_miss)
    if any(tally.first_miss for _, tally in tallies):
        raise typer.Exit(1)
    if not any(tally.total for _, tally in tallies):
        out.print("No vector was checked: the files hold none.")
    else:
        out.print("Every vector is reproduced exactly.")


def _show(out: Console, miss: Miss) -> None:
    out.print(Text(f"First miss: {miss.vector}, {miss.what}"))
    for name, value in (("expected", miss.expected), ("got", miss.got)):
        out.print(Text(f"  {name:<9}{_as_json(value)}"), soft_wrap=True)


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("vectors")(vectors)
