"""`replay report`: a run, or several compared, as one HTML file and a Markdown twin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replay import record, report
from replay.cli.options import MirrorOfRuns, Runs
from replay.cli.progress import shown
from replay.cli.show import console, plain


def report_command(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The HTML file; default: report.html in the first run's folder.")
    ] = None,
    mirror: MirrorOfRuns = None,
) -> None:
    """Write one self-contained HTML file, and its Markdown twin with PNGs beside it for a pull request.

    The comparison is made again and stored as `replay compare` does.

    Example: replay report demo/run -o report.html
    """
    stored = [record.read(folder) for folder in runs]
    path = out or runs[0] / "report.html"
    report.require_html(path)
    with shown() as say:
        compared = report.gather(stored, mirror, say)
        pictures, missing = report.draw(stored, compared, mirror, say)
        document = report.build(stored, compared, pictures, mirror, missing)
        written = report.write(document, path)
    for sentence in compared.verdict:
        plain(console(), f"- {sentence}")
    for name in written:
        plain(console(), f"Written: {name} ({name.stat().st_size / 1e6:.1f} MB)")


def register(app: typer.Typer) -> None:
    """Add `report` to the command line."""
    app.command("report")(report_command)
