"""`replay slice`: a small ledger out of a mirror, to be committed with the decisions it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from replay.cli.options import (
    Declared,
    Mirror,
    PolicyOption,
    SettingsNames,
    SinceGiven,
    UntilGiven,
    policy_given,
    settings_named,
)
from replay.cli.progress import shown
from replay.cli.show import console, plain, span_said
from replay.core import Policy
from replay.durations import instant_ms
from replay.ledger.folder import write_ledger_folder
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.record import decision_hash
from replay.settings import Settings
from replay.slicing import Slice, slice_ledger


def slice_command(
    mirror: Mirror,
    since: SinceGiven,
    until: UntilGiven,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ledger's folder; an earlier ledger there is replaced.")],
    settings: SettingsNames = None,
    policy: PolicyOption = None,
    declared: Declared = None,
    pseudonymise: Annotated[
        bool,
        typer.Option(
            "--pseudonymise/--keep-names", help="Numbers instead of callers, consumers, sessions, calls, replicas."
        ),
    ] = True,
) -> None:
    """Cut a small, self-sufficient ledger out of a mirror: some decisions and all that they rest on.

    Both are replayed under every given setting, and the slice is written only if its decisions, with every score and
    stamp behind them, are those of the whole mirror. The folder is small enough to commit, as a scenario for
    `replay check`.

    Example: replay slice demo/ledger.duckdb --since 2026-03-06T10:00Z --until 2026-03-06T11:00Z -o demo/slow-provider
    """
    chosen, given = settings_named(settings), policy_given(policy, declared)
    since_ms, until_ms = instant_ms(since), instant_ms(until)
    with shown() as say:
        say("reading the mirror", 0, 1)
        with open_mirror(mirror) as connection:
            ledger = load_ledger(connection)
        cut = slice_ledger(ledger, chosen, since_ms, until_ms, given, names=not pseudonymise, progress=say)
        say("writing the ledger's folder", 0, 1)
        write_ledger_folder(out, cut.ledger, _said(cut, chosen, given, pseudonymise))
    _print(console(), cut, chosen, pseudonymise, out)


def _said(cut: Slice, settings: list[Settings], policy: Policy | None, pseudonymised: bool) -> dict[str, Any]:
    """What the manifest says of the slice: nothing about this machine or moment."""
    return {
        "since_ms": cut.since_ms,
        "until_ms": cut.until_ms,
        "settings": [one.name for one in settings],
        "policy": None if policy is None else policy.identity,
        "decisions": cut.decisions,
        "warm_up": cut.warm_up,
        "pseudonymised": pseudonymised,
    }


def _print(out: Console, cut: Slice, settings: list[Settings], pseudonymised: bool, folder: Path) -> None:
    names = ", ".join(one.name for one in settings)
    count = f"{cut.decisions:,} decision{'s'[: cut.decisions != 1]}"
    plain(out, f"The slice replays as the whole mirror does: {count} under {names}, to the last bit.", "bold")
    for one in cut.run.replayed:
        plain(out, f"Decision hash of {one.settings.name}: {decision_hash(one.decisions)[:16]}")
    plain(
        out,
        f"{span_said(cut.since_ms, cut.until_ms)}, with {cut.warm_up:,} attempts from before it to rest on"
        + (", all there are" if cut.whole_history else ""),
    )
    if pseudonymised:
        plain(
            out,
            "Callers, consumers, sessions, calls, replicas and scopes are numbers; of a request only what the core "
            "reads is left. Routes, peers, models, instants, tokens and costs are as they were.",
        )
    else:
        plain(out, "Callers, sessions and requests are as they were: look before you commit them.", "yellow")
    size_kb = sum(file.stat().st_size for file in folder.iterdir()) / 1000
    plain(out, f"Written to {folder} ({size_kb:,.0f} kB)")


def register(app: typer.Typer) -> None:
    """Add `slice` to the command line."""
    app.command("slice")(slice_command)
