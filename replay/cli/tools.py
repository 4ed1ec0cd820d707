"""`replay tools`: which routes a tools rule condemns, and on what evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import polars as pl
import typer
from rich.table import Table
from rich.text import Text

from analysis import tools as evidence
from replay.cli.options import Mirror
from replay.cli.show import console
from replay.durations import duration_ms, instant_ms, iso
from replay.errors import ReplayError
from replay.estimators import ToolsSticky, ToolsWindow
from replay.ledger.mirror import open_mirror


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("tools")(tools)


def tools(
    mirror: Mirror,
    min_samples: Annotated[int, typer.Option(help="Silent tools requests that condemn a route.")] = 20,
    window: Annotated[str, typer.Option(help="The rule's window; for the sticky rule, how long a mark lasts.")] = "30m",
    failed: Annotated[
        Literal["counted", "excluded"], typer.Option(help="Whether failed attempts count as having ignored the tools.")
    ] = "counted",
    rule: Annotated[
        Literal["window", "sticky"], typer.Option(help="window: production now; sticky: production before.")
    ] = "window",
    at: Annotated[
        str | None, typer.Option(help="An instant (ISO with offset, or ms): what the rule knows then.")
    ] = None,
) -> None:
    """Show which routes a tools rule condemns, when, and on what evidence.

    Example: replay tools ledger.duckdb --min-samples 20 --window 30m --failed excluded --rule sticky
    """
    window_ms = duration_ms(window)
    chosen = ToolsWindow(min_samples, window_ms) if rule == "window" else ToolsSticky(min_samples, window_ms)
    at_ms = None if at is None else instant_ms(at)
    attempts = _attempts(mirror)
    out = console()
    if at_ms is not None:
        known = evidence.evidence_at(attempts, chosen, at_ms, failed=failed)
        out.print(Text(_at_said(known, at_ms, evidence.rule_said(chosen, failed))))
        if known.height:
            out.print(_at_table(known))
        return
    for sentence in evidence.verdict(attempts, chosen, failed=failed):
        out.print(Text(sentence))
    per_route = evidence.evidence(attempts, failed=failed)
    if per_route.height:
        out.print(_routes_table(per_route, evidence.condemnations(attempts, chosen, failed=failed)))


def _attempts(mirror: Path) -> pl.DataFrame:
    """Read the attempts and close the mirror at once: an open reader blocks its writer."""
    with open_mirror(mirror) as connection:
        columns = ", ".join(evidence.ATTEMPTS_SCHEMA)
        attempts: pl.DataFrame = connection.execute(f"SELECT {columns} FROM route_observations").pl()
    if attempts.is_empty():
        raise ReplayError(
            f"{mirror.name} holds no attempts (route_observations is empty); the tools rule is about attempts. "
            "Import a ledger of attempts first, with replay import."
        )
    return attempts


def _at_said(known: pl.DataFrame, at_ms: int, rule_said: str) -> str:
    condemned = known.filter("condemned")["route_key"].to_list()
    routes = ", ".join(condemned) if condemned else "no route"
    return f"At {iso(at_ms)}, {rule_said} condemns {routes}."


def _at_table(known: pl.DataFrame) -> Table:
    table = _table("route", "requests", "failed", "tool calls", "condemned")
    for row in known.iter_rows(named=True):
        verdict = "yes" if row["condemned"] else "no"
        counts = (f"{row[name]:,}" for name in ("requests", "failed", "emitted"))
        table.add_row(Text(row["route_key"]), *counts, verdict)
    return table


def _routes_table(per_route: pl.DataFrame, found: pl.DataFrame) -> Table:
    table = _table("route", "asked", "failed", "called", "rate", "times", "for", "chance", "silent")
    table.caption = (
        "asked: tools requests; failed: of these; called: attempts with a tool call; times, for: condemned how often "
        "and how long; chance: that a capable route is as silent as this one when first condemned; silent: requests "
        "answered without tools before it was condemned."
    )
    table.caption_justify = "left"
    for row in per_route.iter_rows(named=True):
        mine = found.filter(pl.col("route_key") == row["route_key"])
        counts = [f"{row[name]:,}" for name in ("requests", "failed", "emitted")]
        rate = "-" if row["emission_rate"] is None else f"{row['emission_rate']:.3f}"
        table.add_row(Text(row["route_key"]), *counts, rate, *_condemned_cells(mine))
    return table


def _condemned_cells(mine: pl.DataFrame) -> list[str]:
    """Return how often, for how long, by what chance, and the silent requests before it."""
    if mine.is_empty():
        return ["0", "-", "-", "-"]
    chance = mine["chance"][0]
    length = evidence.hours(int(mine["duration_ms"].sum()))
    return [
        f"{mine.height:,}",
        length,
        "-" if chance is None else f"{chance:.2g}",
        f"{int(mine['silent_before'].sum()):,}",
    ]


def _table(first: str, *others: str) -> Table:
    """Return a table whose route column folds, so that a narrow terminal hides no part of a key and no number."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
