"""`replay cost`: measured against list, with signal, deviation and warning."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import polars as pl
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from analysis import cost as drift
from replay.cli.options import AsJson, Mirror, Since, Until
from replay.cli.show import console
from replay.durations import instant_ms
from replay.ledger.mirror import open_mirror
from replay.ledger.offers import cost_frames

STEP = 1.5


class By(StrEnum):
    """What one row of the table is."""

    provider = "provider"
    family = "family"


def cost(
    mirror: Mirror,
    since: Since = None,
    until: Until = None,
    by: Annotated[By, typer.Option(help="One row per provider, or per provider and model family.")] = By.provider,
    monthly: Annotated[bool, typer.Option("--monthly", help="One row per month as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare what calls cost with what their tokens cost at the list price of that moment.

    Prices come from offer_history (see: replay prices), else from provider_prices. A deviation warns only where
    at least half the calls carry the provider's own figure; costs computed from the list price are near 1 by
    construction.

    Example: replay cost ledger.duckdb --monthly --by family
    """
    with open_mirror(mirror) as connection:
        calls, prices, constant = cost_frames(connection, _seconds(since), _seconds(until))
    priced = drift.price_calls(calls, prices, constant)
    keys = drift.PROVIDER if by is By.provider else drift.FAMILY
    rows = drift.by_month(priced, keys) if monthly else drift.roll_up(priced, keys)
    if as_json:
        typer.echo(json.dumps(cost_json(rows, drift.skipped(priced)), indent=2))
    else:
        _print(console(), rows, drift.skipped(priced), monthly)


def _seconds(instant: str | None) -> int | None:
    # ts counts whole seconds: [since, until) keeps its meaning when a fraction is rounded up
    return None if instant is None else -(-instant_ms(instant) // 1000)


def cost_json(rows: pl.DataFrame, skipped: pl.DataFrame) -> dict[str, Any]:
    """Return the figures as plain values; money in integer micro-dollars."""
    return {"rows": rows.to_dicts(), "skipped": skipped.to_dicts(), "left_out": list(drift.LEFT_OUT)}


def _print(out: Console, rows: pl.DataFrame, skipped: pl.DataFrame, monthly: bool) -> None:
    warned = rows.filter("warn").height
    where = "month rows" if monthly else "rows"
    out.print(
        f"{warned} of {rows.height} {where} warn: the provider's figure is {drift.WARN_PERCENT} % or more off list"
        if warned
        else f"No warning in {rows.height} {where}."
    )
    out.print(_drift_table(rows.filter(pl.col("calls") > 0), monthly))
    without = rows.filter(pl.col("calls") == 0)
    if without.height:
        out.print(f"{without.height} {where} without any call of known cost are not shown.")
    elsewhere = int(rows["computed_elsewhere"].sum())
    if elsewhere:
        out.print(
            f"{elsewhere:,} costs are marked as computed, yet are not the list price: computed elsewhere, by another "
            "rule."
        )
    if skipped.height:
        out.print(_skipped_table(skipped))
    out.print(f"The expectation leaves out: {', '.join(drift.LEFT_OUT)}.")
    if rows["compared"].sum() == 0:
        out.print("Nothing could be compared. If list prices are missing, fill them with: replay prices.")


def _drift_table(rows: pl.DataFrame, monthly: bool) -> Table:
    families = "model_family" in rows.columns
    table = Table(title="Cost drift" + (" by month" if monthly else ", worst first"), title_justify="left")
    names = ["provider", *(["model"] if families else []), *(["month"] if monthly else [])]
    figures = ["calls", "cost USD"]
    figures += ["USD/Mtok", "like for like"] if monthly else ["measured USD", "expected USD"]
    figures += ["compared", "deviation", "reported"]
    for name in names:
        table.add_column(name)
    for figure in figures:
        table.add_column(figure, justify="right")
    for name in ("signal", "says"):
        table.add_column(name)
    for row in rows.iter_rows(named=True):
        table.add_row(*_drift_cells(row, families, monthly))
    return table


def _drift_cells(row: dict[str, Any], families: bool, monthly: bool) -> list[str]:
    cells = [escape(row["provider_id"] or "(none)")]
    cells += [escape(row["model_family"] or "(none)")] if families else []
    cells += [row["month"]] if monthly else []
    cells += [f"{row['calls']:,}", _usd(row["cost_micro"])]
    if monthly:
        cells += [_number(row["usd_per_mtok"], ",.4f"), _number(row["change"], ",.2f", "×")]
    else:
        cells += [_usd(row["measured_micro"]), _usd(row["expected_micro"])]
    share = row["reported_share"]
    return [
        *cells,
        f"{row['compared']:,}",
        _number(row["deviation"], ",.3f"),
        "-" if share is None else f"{share:.0%}",
        row["signal"] or "-",
        ", ".join(_says(row, monthly)),
    ]


def _says(row: dict[str, Any], monthly: bool) -> list[str]:
    says = ["[bold red]WARN[/]"] if row["warn"] else []
    if row["computed_elsewhere"]:
        says.append(f"{row['computed_elsewhere']:,} computed elsewhere")
    change = row["change"] if monthly else None
    if change is not None and not 1 / STEP < change < STEP:
        says.append("price step")
    if row["skipped"]:
        says.append(f"{row['skipped']:,} skipped")
    return says


def _usd(micro: int) -> str:
    return f"{micro / 1e6:,.4f}"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def _skipped_table(skipped: pl.DataFrame) -> Table:
    table = Table(title="Skipped, not compared", title_justify="left")
    table.add_column("reason")
    for heading in ("models", "calls", "tokens", "cost USD"):
        table.add_column(heading, justify="right")
    for row in skipped.iter_rows(named=True):
        figures = (f"{row['routes']:,}", f"{row['calls']:,}", f"{row['tokens']:,}", _usd(row["cost_micro"]))
        table.add_row(row["reason"], *figures)
    return table


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("cost")(cost)
