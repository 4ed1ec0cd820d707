"""`replay accept`: proposed baselines become the accepted ones, with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replay.cli.show import console, plain
from replay.gate.accept import accept
from replay.gate.suite import read_suite


def accept_command(
    suite: Annotated[Path, typer.Argument(metavar="SUITE.toml", help="The scenarios; see docs/gate.md.")],
    reason: Annotated[str, typer.Option(help="Why the new decisions are right; kept in the baseline's history.")],
    scenarios: Annotated[
        list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Some; else every one with a proposal.")
    ] = None,
) -> None:
    """Move the proposals that `replay check --update` wrote into place; look at them first, and commit them after.

    Example: replay accept scenarios/suite.toml outage --reason "the window is 20 minutes since RFC 12"
    """
    read = read_suite(suite)
    for name in accept(read, scenarios or [], reason):
        plain(console(), f"Accepted {name}; commit {read.only([name]).scenarios[0].baseline}.")


def register(app: typer.Typer) -> None:
    """Add `accept` to the command line."""
    app.command("accept")(accept_command)
