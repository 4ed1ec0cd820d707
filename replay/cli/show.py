"""How results look in a terminal: the verdict first, then figures, then what to run next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table

from replay.durations import iso
from replay.sentences import audit_said, reproduction_said


def console() -> Console:
    """Return a console as wide as the terminal, and wide enough for every table where there is none (a pipe, CI)."""
    found = Console()
    return found if found.is_terminal or "COLUMNS" in os.environ else Console(width=160)


def plain(console: Console, text: str, style: str | None = None) -> None:
    """Print a sentence as it is: no markup read from data, no wrapping in the middle of a path."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_record(console: Console, record: dict[str, Any], folder: Path) -> None:
    """Print what a run's record says."""
    good = record["reproduction"]["kind"] != "reproduction" or (
        record["reproduction"]["agreed"] == record["reproduction"]["compared"]
    )
    plain(console, reproduction_said(record["reproduction"]), "bold" if good else "bold red")
    for one in record["replayed"]:
        plain(console, audit_said(one), "red" if one["audit"]["mismatches"] else None)
    for one in record["replayed"]:
        lag = one["lag_flips"]
        total = one["decisions"]
        flips = f"{lag:,} of {total:,} decisions flip without any write lag" if lag is not None and total else ""
        unknown = "no write lag is recorded or assumed" if lag is None else ""
        plain(console, f"Visibility of {one['setting']}: {one['visibility']}; {flips or unknown or 'no decisions'}.")
    for warning in record["warnings"]:
        plain(console, f"Warning: {warning}.", "yellow")
    if record["inferred"]:
        plain(console, "Inferred, as the ledger does not record it:")
        for sentence in record["inferred"]:
            plain(console, f"- {sentence}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("setting", "decisions", "attempts scored", "decision hash"):
        table.add_column(heading, justify="left" if heading in ("setting", "decision hash") else "right")
    for one in record["replayed"]:
        table.add_row(one["setting"], f"{one['decisions']:,}", f"{one['predictions']:,}", one["decision_hash"][:16])
    console.print(table)
    plain(console, f"Written to {folder}")


def number(value: float | None, digits: int = 4) -> str:
    """Write a figure, a dash where there is none.

    >>> number(0.12345678), number(None)
    ('0.1235', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"


def interval(row: dict[str, Any], digits: int = 4) -> str:
    """Write a difference or share's interval, or why there is none."""
    if row["low"] is None:
        return row.get("reason") or "no interval"
    return f"[{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"


def figures_table(figures: pl.DataFrame, scope: str = "all") -> Table:
    """Return prequential figures of a scope as a table."""
    table = Table(
        box=None, header_style="bold", pad_edge=False, title="Prediction, before looking", title_justify="left"
    )
    for heading in ("question", "metric", "setting", "value", "attempts", "stamped", "clipped"):
        table.add_column(heading, justify="left" if heading in ("question", "metric", "setting") else "right")
    for row in figures.filter(pl.col("scope") == scope).iter_rows(named=True):
        if row["value"] is None and not row["attempts"]:
            continue
        stamped = "–" if row["stamped_share"] is None else f"{row['stamped_share']:.1%}"
        clipped = "" if row["clipped_share"] is None else f"{row['clipped_share']:.1%}"
        shown = (row["question"], row["metric"], row["setting"], number(row["value"]), f"{row['attempts']:,}")
        table.add_row(*shown, stamped, clipped)
    return table


def differences_table(differences: pl.DataFrame, scope: str = "all") -> Table:
    """Return one pair's paired differences of a scope as a table."""
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    pair = (differences["setting_a"][0], differences["setting_b"][0])
    table.title = f"{pair[0]} − {pair[1]}, paired (below 0: {pair[0]} predicts better)"
    for heading in ("question", "metric", "over", "difference", "95 % interval", "attempts"):
        table.add_column(heading, justify="right" if heading in ("difference", "attempts") else "left")
    for row in differences.filter(pl.col("scope") == scope).iter_rows(named=True):
        if row["difference"] is None:
            continue
        shown = (row["question"], row["metric"], row["over"], f"{row['difference']:+.4f}", interval(row))
        table.add_row(*shown, f"{row['attempts']:,}")
    return table


def flips_table(summary: pl.DataFrame) -> Table:
    """Return one pair's flips overall, by cause and by request class as a table."""
    pair = f"{summary['setting_a'][0]} and {summary['setting_b'][0]}"
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    table.title = f"Decisions that flip between {pair}"
    for heading in ("by", "", "flips", "of decisions", "share", "95 % interval", "ties apart"):
        table.add_column(heading, justify="left" if heading in ("by", "", "95 % interval") else "right")
    for row in summary.filter(pl.col("group") != "day").iter_rows(named=True):
        share = "–" if row["share"] is None else f"{row['share']:.2%}"
        span = (row.get("reason") or "") if row["low"] is None else f"[{row['low']:.2%}, {row['high']:.2%}]"
        counts = (f"{row['flips']:,}", f"{row['decisions']:,}", share, span, f"{row['ties']:,}")
        table.add_row("" if row["group"] == "all" else row["group"], row["key"], *counts)
    return table


def span_said(first_ms: int, last_ms: int) -> str:
    """Say from when to when."""
    return f"{iso(first_ms)} to {iso(last_ms)}"
