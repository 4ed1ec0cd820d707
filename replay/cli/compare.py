"""`replay compare`: two settings, of one run or of two, held against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.console import Console

from analysis.prequential import stamped_line
from replay import record
from replay.cli.options import MirrorOfRuns, Runs
from replay.cli.progress import shown
from replay.cli.show import console, differences_table, figures_table, flips_table, plain
from replay.comparison import Comparison, compare
from replay.sentences import audit_said, reproduction_said


def compare_command(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to store the frames; default: compare/ in the first run.")
    ] = None,
    mirror: MirrorOfRuns = None,
    routes: Annotated[bool, typer.Option("--routes", help="Print the figures of every route, too.")] = False,
) -> None:
    """Compare settings: which predicts better, which decisions flip and by what cause; frames stored as Parquet.

    Runs with other inputs are refused (exit code 3).

    Example: replay compare runs/both
    """
    stored = [record.read(folder) for folder in runs]
    with shown() as say:
        compared = compare(stored, mirror, say)
    folder = out or runs[0] / "compare"
    compared.write(folder)
    print_comparison(console(), compared, routes)
    plain(console(), f"Stored in {folder}")


def print_comparison(out: Console, compared: Comparison, routes: bool = False, brief: bool = False) -> None:
    """Print a comparison: verdict, proofs, then figures; `brief` keeps to what the router read and leaves log loss."""
    plain(out, "Verdict", "bold")
    for sentence in compared.verdict:
        plain(out, f"- {sentence}")
    seen = set()
    for side in compared.sides:
        made = side.run.record
        for sentence in (
            reproduction_said(made["reproduction"]),
            *(audit_said(one) for one in made["replayed"] if one["setting"] == side.settings.name),
        ):
            if sentence not in seen:
                plain(out, f"- {sentence}")
                seen.add(sentence)
    for note in compared.notes:
        plain(out, f"Note: {note}", "yellow")
    plain(out, "")
    plain(out, stamped_line(compared.figures))
    figures, differences = compared.figures, compared.differences
    if brief:
        leading = (pl.col("question") == "as read") & (pl.col("metric") != "log loss")
        figures, differences = figures.filter(leading), differences.filter(leading)
    out.print(figures_table(figures))
    for pair in differences.partition_by("setting_b", maintain_order=True):
        out.print(differences_table(pair))
    for row in compared.process_range.iter_rows(named=True):
        plain(
            out,
            f"{row['setting']}, {row['question']}, {row['metric']}: {row['lowest']:.4f} to {row['highest']:.4f} over "
            f"{row['seeds']} assignments of calls to processes",
        )
    if compared.flip_summary.is_empty():
        plain(out, "No decisions to compare: the ledger, or its slice, holds attempts alone.")
    else:
        for pair in compared.flip_summary.partition_by("setting_b", maintain_order=True):
            out.print(flips_table(pair))
    for route in sorted(set(compared.figures["scope"]) - {"all"}) if routes else []:
        plain(out, f"\n{route}", "bold")
        out.print(figures_table(compared.figures, route))
        for pair in differences.partition_by("setting_b", maintain_order=True):
            out.print(differences_table(pair, route))


def register(app: typer.Typer) -> None:
    """Add `compare` to the command line."""
    app.command("compare")(compare_command)
