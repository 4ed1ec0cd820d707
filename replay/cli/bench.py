"""`replay bench`: what everything costs, against the plain way of doing the same, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from replay.bench import report
from replay.bench.report import BENCHES, Options, Result
from replay.cli.progress import shown
from replay.cli.show import console, plain
from replay.errors import ReplayError, StoppedError


def bench_command(
    names: Annotated[list[str] | None, typer.Argument(help=f"Some of {', '.join(BENCHES)}; by default all.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything that was measured here.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help=f"Put the table into this page, between {report.BEGIN} and {report.END}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, which only show that it works.")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="The largest sizes too: ten million calls, in much time and memory.")
    ] = False,
    dsn: Annotated[
        str | None,
        typer.Option(
            envvar="BENCH_DATABASE_URL",
            help="A PostgreSQL to measure on, as postgresql://… or host=… dbname=…: a schema and a database are "
            "created there, filled with millions of rows, and dropped. It is never shown.",
        ),
    ] = None,
) -> None:
    """Measure what everything costs, against the plain way of doing the same in the same run.

    Ratios mean something on any machine, bare times on this one only; an aim that is missed is said, and is no error.
    The store and the pull are measured on a PostgreSQL that is started for it and removed again, unless one is given;
    DATABASE_URL, which may name production's, is not looked at.

    Example: replay bench estimators decisions --quick
    """
    if quick and (full or markdown is not None):
        raise ReplayError("--quick only shows that it works: its figures go with neither --full nor --markdown")
    if markdown is not None:
        report.require_markers(markdown)
    if json_file is not None and not json_file.parent.is_dir():
        raise ReplayError(f"The folder {json_file.parent} for {json_file.name} does not exist; create it first.")
    options, out, results, stopped = Options(quick, full, dsn), console(), list[Result](), False
    try:
        with shown() as say:
            for result in report.run(names or [], options, say):
                results.append(result)
                _print(out, result)
    except KeyboardInterrupt:
        stopped = True
    told = report.about(results, options)
    plain(out, f"Measured on {report.measured_on(told)}")
    if json_file is not None:
        json_file.write_text(report.to_json(told), encoding="utf-8")
        plain(out, f"Written to {json_file}")
    if stopped:
        raise StoppedError("stopped; what was measured until then is above")
    if markdown is not None:
        report.into_page(markdown, told)
        plain(out, f"Table put into {markdown}")


def _print(out: Console, result: Result) -> None:
    if result.cannot is not None:
        plain(out, f"{result.name} cannot be measured here: {result.cannot}", "yellow")
        return
    table = Table(box=None, header_style="bold", pad_edge=False, title=result.name, title_justify="left")
    for heading in ("measured", "value", "unit", "ratio", "against", "aim", "reached"):
        table.add_column(heading, justify="right" if heading in ("value", "ratio") else "left")
    for one in result.figures:
        ratio = "" if one.ratio is None else f"{report.shown(one.ratio)}×"
        style = "red" if one.reached is False else None
        cells = (one.name, report.shown(one.value), one.unit, ratio, one.against or "", one.aim or "")
        table.add_row(*cells, report.verdict(one), style=style)
    out.print(table)
    out.print()


def register(app: typer.Typer) -> None:
    """Add `bench` to the command line."""
    app.command("bench")(bench_command)
