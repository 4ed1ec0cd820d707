"""`replay check`: the regression gate over a suite of scenarios."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from analysis.report.markdown import to_markdown
from replay.cli.progress import shown
from replay.cli.show import console, plain
from replay.errors import ReplayError
from replay.gate.check import check, exit_code
from replay.gate.report import document
from replay.gate.suite import read_suite
from replay.gate.text import to_text


def check_command(
    suite: Annotated[Path, typer.Argument(metavar="SUITE.toml", help="The scenarios; see docs/gate.md.")],
    scenarios: Annotated[list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Some; else all.")] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Write what differs as NAME.new beside the baseline, to be accepted.")
    ] = False,
    diff: Annotated[Path | None, typer.Option(help="Write every difference to this Parquet file.")] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Append the report as Markdown, for a CI's step summary.")
    ] = None,
    dsn: Annotated[
        str | None,
        typer.Option(envvar="TEST_DATABASE_URL", show_envvar=True, help="Ask the shared SQL on this PostgreSQL too."),
    ] = None,
) -> None:
    """Replay a suite's scenarios and hold them against their accepted baselines; nothing accepted is changed.

    Exit codes: 0 same, 1 regression, 2 usage or bad input, 3 not comparable (no baseline, or another input).

    Example: replay check scenarios/suite.toml
    """
    read = read_suite(suite)
    chosen = read.only(scenarios or [])
    checked = []
    with shown() as say:
        for one in chosen.scenarios:
            checked.append(check(one, postgres_url=dsn or None, update=update, progress=say))
    report = document(suite, checked)
    plain(console(), to_text(report).rstrip())
    try:
        if diff is not None:
            frames = [one.differences.select(pl.lit(one.scenario.name).alias("scenario"), pl.all()) for one in checked]
            pl.concat(frames).write_parquet(diff)
        if summary is not None:
            with summary.open("a", encoding="utf-8") as stream:
                stream.write(to_markdown(report, "gate")[0])
    except OSError as error:
        raise ReplayError(
            f"{error.filename or diff} cannot be written ({error.strerror}); give another file"
        ) from error
    if exit_code(checked):
        raise typer.Exit(exit_code(checked))


def register(app: typer.Typer) -> None:
    """Add `check` to the command line."""
    app.command("check")(check_command)
