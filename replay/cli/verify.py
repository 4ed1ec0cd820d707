"""`replay verify`: does the mirror hold what PostgreSQL holds?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from replay.cli.progress import shown
from replay.cli.pull import Dsn, KeyFile, Timeout, database
from replay.cli.show import console, plain
from replay.durations import duration_ms
from replay.ledger.pseudonyms import COLUMNS, KEY_VARIABLE, Pseudonyms, read_key
from replay.ledger.verify import VerifyReport, verify


def verify_command(
    mirror: Annotated[Path, typer.Argument(help="The mirror, a DuckDB file that was pulled.")],
    dsn: Dsn = None,
    key_file: KeyFile = None,
    timeout: Timeout = "10m",
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for a mirror that is held.")] = 10.0,
) -> None:
    """Compare a mirror with the database it was pulled from: counts, ranges and checksums per table and day.

    Names the first difference, by table, day, row and column. What was written since the last pull is left out, and so
    are the rows that production has deleted. Exit code 1 on a difference.

    Example: replay verify ledger.duckdb
    """
    given = key_file is not None or os.environ.get(KEY_VARIABLE)
    names = Pseudonyms(read_key(key_file)) if given else None
    with shown() as say:
        report = verify(
            database(dsn),
            mirror,
            pseudonyms=names,
            statement_timeout_ms=duration_ms(timeout),
            wait_s=wait_s,
            say=say,
        )
    _print(report, mirror)
    if report.difference:
        raise typer.Exit(1)


def _print(report: VerifyReport, mirror: Path) -> None:
    out = console()
    if report.difference:
        plain(out, f"{mirror} differs from the database. The first difference: {report.difference}.", "bold red")
    else:
        rows = sum(table.rows for table in report.tables)
        plain(out, f"{mirror} holds what the database holds: {rows:,} rows compared, no difference.", "bold")
    table = Table(title_justify="left")
    for heading in (
        "table",
        "rows compared",
        "written since the pull",
        "deleted in the database",
        "from files",
        "first difference",
    ):
        table.add_column(heading, justify="left" if heading in ("table", "first difference") else "right")
    for one in report.tables:
        counts = (one.rows, one.later, one.deleted, one.imported)
        table.add_row(
            one.name, *(f"{count:,}" for count in counts), (one.difference or "none").partition(": ")[2] or "none"
        )
    out.print(table)
    for name in report.skipped:
        plain(out, f"{name}: not compared, as it was never pulled or is not in the database.")
    for one in report.tables:
        if one.unseen:
            hidden = " (pseudonyms: give the key to compare them)" if set(one.unseen) & set(COLUMNS) else ""
            plain(out, f"{one.name}: without {', '.join(one.unseen)}{hidden}.")


def register(app: typer.Typer) -> None:
    """Add `verify` to the command line."""
    app.command("verify")(verify_command)
