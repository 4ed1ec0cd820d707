"""`replay prices`: fill a mirror's offers from a price list, and say what it covers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from replay.cli.options import AsJson, Mirror
from replay.cli.show import console
from replay.ledger.mirror import open_mirror
from replay.ledger.offers import Coverage, Covered, FillReport, fill_offers, load_price_list

SHOWN = 10


def prices(
    mirror: Mirror,
    source: Annotated[
        str, typer.Option("--from", help="A file of price events, or genai-prices for the installed package's list.")
    ],
    mapping: Annotated[
        str | None, typer.Option(help="The mapping to read the file with: a shipped one's name, or a TOML file.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Discard offers and prices that came from elsewhere, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fill offer_history from a price list: what each route in the ledger cost, and when.

    Names are joined exactly, by the rules, or by an explicit alias of the alias table; a name that none of them
    joins gets no price. Running it again replaces what it wrote before.

    Example: replay prices ledger.duckdb --from openrouter_price_events.csv.gz --mapping openrouter_price_events
    """
    with open_mirror(mirror):
        pass  # a mirror that is not there must not be created here
    listed = load_price_list(source, mapping)
    with open_mirror(mirror, write=True) as connection:
        report = fill_offers(connection, listed, replace=replace)
    if as_json:
        typer.echo(json.dumps(report_json(report), indent=2))
    else:
        _print(console(), report)


def report_json(report: FillReport) -> dict[str, Any]:
    """Return the report as plain values."""
    listed, coverage = report.prices, report.coverage
    return {
        "source": listed.source,
        "version": listed.version,
        "alias_table_version": report.alias_version,
        "models_listed": len(listed.listings),
        "rejected": dict(sorted(listed.rejected.items())),
        "notes": dict(sorted(listed.notes.items())),
        "routes": report.routes,
        "routes_merged": report.routes_merged,
        "offers_written": report.offers_written,
        "offers_replaced": report.offers_replaced,
        "prices_written": report.prices_written,
        "prices_kept": report.prices_kept,
        "coverage": [asdict(row) for row in (*coverage.by_way, coverage.total)],
        "largest_call_usd": coverage.largest_call_usd,
        "families": [asdict(family) for family in coverage.families],
    }


def _print(out: Console, report: FillReport) -> None:
    listed, total = report.prices, report.coverage.total
    out.print(
        f"{report.offers_written:,} offers for {report.routes:,} routes, from {listed.source} "
        f"({escape(listed.version)}, {len(listed.listings):,} models), alias table version {report.alias_version}"
        + (f"; {report.offers_replaced:,} offers of an earlier run replaced" if report.offers_replaced else "")
    )
    out.print(
        f"{report.prices_written:,} latest prices in provider_prices"
        + (f"; {report.prices_kept:,} from elsewhere kept (--replace discards them)" if report.prices_kept else "")
    )
    if report.routes_merged:
        out.print(
            f"{report.routes_merged:,} ledger routes with an empty served_by are the same candidate as one that names "
            "its provider there"
        )
    out.print(_coverage_table(report.coverage))
    largest, cost = report.coverage.largest_call_usd, total.cost_usd
    if cost > 0 and largest > cost / 2:
        out.print(f"One call alone is ${largest:,.2f} of ${cost:,.2f}: read the cost column with that in mind.")
    for reason, count in sorted(listed.rejected.items()):
        out.print(f"rejected: {count:,} × {escape(reason)}")
    if listed.rejected:
        out.print("From a rejected price on, that model's price is unknown, not the one before.")
    for note, count in sorted(listed.notes.items()):
        out.print(f"note: {count:,} × {note}")
    _print_unmatched(out, report.coverage)


def _coverage_table(coverage: Coverage) -> Table:
    total = coverage.total
    table = Table(title="How the ledger's models were joined", title_justify="left")
    table.add_column("way")
    for heading in ("models", "calls", "with a price at their moment", "tokens", "cost", "attempts"):
        table.add_column(heading, justify="right")
    for row in (*coverage.by_way, total):
        table.add_row(*_cells(row, total), end_section=row.way == coverage.by_way[-1].way)
    return table


def _cells(row: Covered, total: Covered) -> list[str]:
    return [
        row.way,
        f"{row.families:,}",
        _share(row.calls, total.calls),
        _share(row.priced_calls, total.calls),
        _share(row.tokens, total.tokens),
        f"{_percent(row.cost_usd, total.cost_usd)}",
        _share(row.attempts, total.attempts),
    ]


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({_percent(part, whole)})"


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _print_unmatched(out: Console, coverage: Coverage) -> None:
    unmatched = coverage.unmatched
    if not unmatched:
        return
    table = Table(title=f"Unmatched, most calls first ({len(unmatched):,} in all)", title_justify="left")
    for heading in ("provider", "model"):
        table.add_column(heading)
    for heading in ("calls", "attempts"):
        table.add_column(heading, justify="right")
    for family in unmatched[:SHOWN]:
        name = family.model_family or "(none)"
        table.add_row(escape(family.provider_id or "(none)"), escape(name), f"{family.calls:,}", f"{family.attempts:,}")
    out.print(table)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("prices")(prices)
