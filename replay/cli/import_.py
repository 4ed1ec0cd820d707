"""`replay import` and `replay info`: a file goes into a mirror; what a mirror holds, and what it lacks."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import duckdb
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from replay.cli.options import Mirror
from replay.cli.show import console
from replay.errors import ReplayError
from replay.ledger.importers import ImportReport, import_file, shipped_mappings
from replay.ledger.lacks import lacks
from replay.ledger.mirror import TABLES, open_mirror

_INSTANT_MS = {"calls": "ts * 1000", "route_observations": "ts", "offer_history": "valid_from"}
_ROUTES_SHOWN = 10
_REJECTS_SHOWN = 20


def import_command(
    file: Annotated[Path, typer.Argument(help="CSV, JSONL (each also .gz) or Parquet file.")],
    into: Annotated[Path, typer.Option("--into", help="The mirror, a DuckDB file; created if it does not exist.")],
    as_: Annotated[str | None, typer.Option("--as", help=f"{', '.join(TABLES)}, or litellm (spend logs).")] = None,
    mapping: Annotated[
        str | None, typer.Option(help=f"A TOML file, or one of: {', '.join(shipped_mappings())}.")
    ] = None,
    reject_unreadable: Annotated[
        bool, typer.Option("--reject-unreadable", help="Set rows with unreadable values aside instead of stopping.")
    ] = False,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for a mirror that is held.")] = 10.0,
) -> None:
    """Import a file of calls, attempts, prices, offers or policies into a mirror, all of it or nothing.

    Example: replay import aider_calls.csv.gz --mapping aider_calls --into ledger.duckdb
    """
    if (as_ is None) == (mapping is None):
        raise ReplayError(
            f"Say what {file} is, in one way: --as TABLE ({', '.join(TABLES)}), --as litellm, or --mapping "
            f"NAME|FILE.toml (shipped: {', '.join(shipped_mappings())})."
        )
    if as_ is not None and as_ not in (*TABLES, "litellm"):
        raise ReplayError(f"--as {as_}: expected one of {', '.join(TABLES)}, litellm; other files need a --mapping.")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        step = progress.add_task("opening")
        with open_mirror(into, write=True, wait_s=wait_s) as connection:
            report = import_file(
                file,
                connection,
                source=as_ or mapping or "",
                reject_unreadable=reject_unreadable,
                note=lambda text: progress.update(step, description=text),
            )
    _print_report(report, into)


def _print_report(report: ImportReport, into: Path) -> None:
    out = console()
    table = Table(title=f"{report.source_name} as {report.mapping}, into {into.name}", title_justify="left")
    for heading in ("table", "rows read", "added", "already there", "rejected"):
        table.add_column(heading, justify="left" if heading == "table" else "right")
    for target in report.targets:
        counts = (target.read, target.added, target.present, target.rejected)
        table.add_row(target.target, *(f"{count:,}" for count in counts))
    out.print(table)
    for target in report.targets:
        for reason, count in target.reasons.items():
            out.print(
                f"rejected from {target.target}: {count:,} × {reason}", markup=False, highlight=False, soft_wrap=True
            )
    out.print(f"Next: replay info {into}", markup=False, highlight=False)


def info_command(
    mirror: Mirror,
    rejects: Annotated[
        bool, typer.Option("--rejects", help="Show rejected rows as they stood in their files.")
    ] = False,
    limit: Annotated[int, typer.Option(help="How many rejected rows to show.")] = _REJECTS_SHOWN,
) -> None:
    """Show what a mirror holds (tables, ranges, routes, imports, rejects) and what a replay of it must infer.

    Example: replay info ledger.duckdb
    """
    out = console()
    with open_mirror(mirror) as connection:
        _print_tables(out, connection)
        _print_routes(out, connection)
        _print_imports(out, connection)
        _print_rejects(out, connection, limit if rejects else 0)
        findings = lacks(connection)
    out.print("\nWhat a replay will have to infer" if findings else "\nA replay has nothing to infer.", style="bold")
    for finding in findings:
        out.print(f"- {finding}", markup=False, highlight=False, soft_wrap=True)


def _instant(value_ms: int | None) -> str:
    if value_ms is None:
        return "–"
    try:
        return datetime.fromtimestamp(value_ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"{value_ms} ms"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        numeric = heading in ("rows", "attempts", "share ok", "read", "added", "rejected", "row")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    return table


def _print_tables(out: Console, connection: duckdb.DuckDBPyConnection) -> None:
    table = _table("Tables", "table", "rows", "first (UTC)", "last (UTC)")
    for name in TABLES:
        instant = _INSTANT_MS.get(name, "NULL::BIGINT")
        row = connection.execute(f"SELECT count(*), min({instant}), max({instant}) FROM {name}").fetchone()
        assert row is not None
        table.add_row(name, f"{row[0]:,}", _instant(row[1]), _instant(row[2]))
    out.print(table)


def _print_routes(out: Console, connection: duckdb.DuckDBPyConnection) -> None:
    parts = "coalesce(provider_id, ''), coalesce(model_family, ''), coalesce(served_by, '')"
    key = parts.replace(", coalesce(", " || '|' || coalesce(")
    rows = connection.execute(
        f"SELECT {key} AS route, count(*) AS attempts, avg(ok::INTEGER) AS share, count(*) OVER () AS routes "
        f"FROM route_observations GROUP BY {parts} ORDER BY attempts DESC, route LIMIT {_ROUTES_SHOWN}"
    ).fetchall()
    if not rows:
        return
    table = _table(f"Routes: {rows[0][3]:,}, by attempts", "provider|family|served by", "attempts", "share ok")
    for route, attempts, share, _ in rows:
        table.add_row(route.replace("[", r"\["), f"{attempts:,}", f"{share:.1%}")
    out.print(table)


def _print_imports(out: Console, connection: duckdb.DuckDBPyConnection) -> None:
    rows = connection.execute(
        "SELECT source_name, mapping, target, rows_read, rows_added, rows_rejected FROM mirror_imports ORDER BY ALL"
    ).fetchall()
    table = _table("Imports", "file", "as", "table", "read", "added", "rejected")
    for *texts, read, added, rejected in rows:
        table.add_row(*texts, f"{read:,}", f"{added:,}", f"{rejected:,}")
    out.print(table)


def _print_rejects(out: Console, connection: duckdb.DuckDBPyConnection, limit: int) -> None:
    counted = connection.execute(
        "SELECT target, reason, count(*) FROM mirror_rejects GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
    ).fetchall()
    if not counted:
        return
    table = _table("Rejected rows", "table", "reason", "rows")
    for target, reason, count in counted:
        table.add_row(target, reason, f"{count:,}")
    out.print(table)
    shown = connection.execute(
        "SELECT target, row_number, reason, source FROM mirror_rejects "
        "ORDER BY source_sha256, target, mapping, row_number LIMIT ?",
        [limit],
    ).fetchall()
    for target, number, reason, source in shown:
        out.print(f"{target}, row {number}, {reason}: {source}", markup=False, highlight=False, soft_wrap=True)
    if not limit:
        out.print("The rows themselves: replay info --rejects", highlight=False)


def register(app: typer.Typer) -> None:
    """Add `import` and `info` to the command line."""
    app.command("import")(import_command)
    app.command("info")(info_command)
