"""`replay compare`: two settings, of one run or of two, held against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from analysis.prequential import stamped_line
from replay import record
from replay.cli.progress import shown
from replay.cli.show import audit_said, differences_table, figures_table, flips_table, plain, reproduction_said
from replay.comparison import Comparison, compare


def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="One run's folder with two settings, or two folders.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to store the frames; default: compare/ in the first run.")
    ] = None,
    mirror: Annotated[
        Path | None, typer.Option(help="The mirror they replayed, if it moved: flips' causes need it.")
    ] = None,
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
    print_comparison(Console(), compared, routes)
    plain(Console(), f"Stored in {folder}")


def print_comparison(console: Console, compared: Comparison, routes: bool = False) -> None:
    """Print a comparison: verdict, proofs, then figures."""
    plain(console, "Verdict", "bold")
    for sentence in compared.verdict:
        plain(console, f"- {sentence}")
    seen = set()
    for side in compared.sides:
        made = side.run.record
        for sentence in (
            reproduction_said(made["reproduction"]),
            *(audit_said(one) for one in made["replayed"] if one["setting"] == side.settings.name),
        ):
            if sentence not in seen:
                plain(console, f"- {sentence}")
                seen.add(sentence)
    for note in compared.notes:
        plain(console, f"Note: {note}", "yellow")
    plain(console, "")
    plain(console, stamped_line(compared.figures))
    console.print(figures_table(compared.figures))
    console.print(differences_table(compared.differences))
    if len(compared.flip_summary):
        console.print(flips_table(compared.flip_summary))
    else:
        plain(console, "No decisions to compare: the ledger holds attempts alone.")
    for route in sorted(set(compared.figures["scope"]) - {"all"}) if routes else []:
        plain(console, f"\n{route}", "bold")
        console.print(figures_table(compared.figures, route))
        console.print(differences_table(compared.differences, route))


def register(app: typer.Typer) -> None:
    """Add `compare` to the command line."""
    app.command("compare")(compare_command)
