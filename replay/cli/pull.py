"""`replay pull`: PostgreSQL's rows into the mirror."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from replay.cli.progress import shown
from replay.cli.show import console, plain
from replay.durations import duration_ms, instant_ms, iso
from replay.errors import ReplayError, StoppedError
from replay.ledger.mirror import TABLES
from replay.ledger.pseudonyms import KEY_VARIABLE, Pseudonyms, read_key
from replay.ledger.pull import PullReport, pull

Dsn = Annotated[
    str | None,
    typer.Option(
        envvar="DATABASE_URL",
        help="The database, as postgresql://… or host=… dbname=…; better given as DATABASE_URL, since others on this "
        "machine can read a command's words. It is never shown.",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key-file", help=f"File with the key of the pseudonyms; by default the variable {KEY_VARIABLE}."),
]
Timeout = Annotated[str, typer.Option("--timeout", help="How long one statement may take on the server.")]

_HOW = {
    "txid": "txid",
    "row version": "row version",
    "overlap": "overlap: uncertain",
    "whole": "read whole",
}


def database(dsn: str | None) -> str:
    """Return the connection string that was given, or say how to give one."""
    if not dsn:
        raise ReplayError("No database was given: set DATABASE_URL, for example postgresql://user@host/database.")
    return dsn


def pull_command(
    mirror: Annotated[Path, typer.Argument(help="The mirror, a DuckDB file; created if it does not exist.")],
    dsn: Dsn = None,
    since: Annotated[
        str | None, typer.Option(help="Leave out calls and attempts that ended before this instant.")
    ] = None,
    tables: Annotated[
        list[str] | None, typer.Option("--tables", help=f"Only these, by comma or repeated: {', '.join(TABLES)}.")
    ] = None,
    pseudonymise: Annotated[
        bool, typer.Option("--pseudonymise", help="Keyed hashes in place of caller, consumer_sha and session_id.")
    ] = False,
    key_file: KeyFile = None,
    timeout: Timeout = "60s",
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for a mirror that is held.")] = 10.0,
) -> None:
    """Copy the router's PostgreSQL tables into a mirror: what is new since the last pull, in one read-only snapshot.

    It may be stopped at any moment and run again. Rows that committed late are found, rows that production has deleted
    stay. The user needs SELECT and nothing else. Without --since a later pull goes on from where the mirror begins.

    Example: replay pull ledger.duckdb --since 2026-03-01
    """
    chosen = [name.strip() for words in tables or [] for name in words.split(",") if name.strip()]
    names = Pseudonyms(read_key(key_file)) if pseudonymise else None
    come: dict[str, int] = {}
    try:
        with shown() as say:

            def told(table: str, read: int, total: int) -> None:
                come[table] = read
                say(table, read, total)

            report = pull(
                database(dsn),
                mirror,
                tables=chosen or TABLES,
                since_ms=None if since is None else instant_ms(since),
                pseudonyms=names,
                statement_timeout_ms=duration_ms(timeout),
                wait_s=wait_s,
                say=told,
            )
    except KeyboardInterrupt:
        rows = ", ".join(f"{read:,} of {table}" for table, read in come.items() if read) or "no rows yet"
        raise StoppedError(
            f"stopped; what was read until then is stored in {mirror}: {rows}; the same command goes on from there"
        ) from None
    _print(report, mirror)


def _print(report: PullReport, mirror: Path) -> None:
    out = console()
    table = Table(title=f"Pulled into {mirror.name}", title_justify="left")
    for heading in ("table", "rows read", "new or changed", "late rows found by", "without the columns"):
        table.add_column(heading, justify="right" if heading in ("rows read", "new or changed") else "left")
    for one in report.tables:
        table.add_row(one.name, f"{one.read:,}", f"{one.stored:,}", _HOW[one.way], ", ".join(one.lacking))
    out.print(table)
    for one in report.tables:
        if one.since_ms is not None:
            plain(out, f"{one.name}: only rows that ended at {iso(one.since_ms)} or later.")
    for name in report.absent:
        plain(out, f"{name}: the database has no such table.")
    for name in report.hidden:
        plain(out, f"{name}: this user may not read it; GRANT SELECT ON {name} would let it.", "yellow")
    for name in report.uncertain:
        plain(out, f"{name}: nothing tells which rows committed late, so some may be missing.", "yellow")
    plain(out, f"Next: replay verify {mirror}")


def register(app: typer.Typer) -> None:
    """Add `pull` to the command line."""
    app.command("pull")(pull_command)
