"""`replay notebook`: open one of the notebooks that ship with the package, wherever it is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import replay
from replay.cli.show import console, plain
from replay.errors import ReplayError

FOLDER = Path(replay.__file__).resolve().parents[1] / "notebooks"
"""Beside the package `replay`, in a checkout and in an installed wheel alike: another's `notebooks` is never taken."""


def notebook_names() -> list[str]:
    """Return the names of the shipped notebooks.

    >>> notebook_names()
    ['window_tuning']
    """
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def command_line(
    name: str,
    mirror: Path | None = None,
    *,
    run: bool = False,
    headless: bool = False,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> list[str]:
    """Return marimo's command for a notebook; raises ReplayError on an unknown notebook or a mirror that is not there.

    >>> command_line("window_tuning", run=True)[2:4]
    ['marimo', 'run']
    """
    known = notebook_names()
    if name not in known:
        raise ReplayError(f"there is no notebook {name!r}; expected one of {', '.join(known)}")
    if mirror is not None and not mirror.is_file():
        raise ReplayError(
            f"there is no mirror at {mirror}; make one with `replay import` or `replay demo`, or give none"
        )
    path = str(FOLDER / f"{name}.py")
    flags = ["--headless"] if headless else []
    flags += [] if port is None else ["--port", str(port)]
    passed = [] if mirror is None else ["--", "--mirror", str(mirror.resolve())]
    # Only this machine can reach it (marimo binds the loopback address), and whoever edits can run code: marimo's own
    # token guards the editor; a read-only app has nothing to guard.
    return [sys.executable, "-m", "marimo", "run" if run else "edit", path, "--host", host, *flags, *passed]


def notebook_command(
    name: Annotated[str | None, typer.Argument(help="The notebook; none: list them.")] = None,
    mirror: Annotated[
        Path | None, typer.Argument(help="The mirror; default: demo/ledger.duckdb, else a demo recorded on the spot.")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="As an app: no code shown, nothing edited.")] = False,
    headless: Annotated[bool, typer.Option("--headless", help="Open no browser; print the address.")] = False,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="The port; default: a free one near 2718.")] = None,
) -> None:
    """Open a notebook in the browser, on a mirror; stop it with Ctrl-C.

    Example: replay notebook window_tuning demo/ledger.duckdb --run
    """
    if name is None:
        for one in notebook_names():
            plain(console(), one)
        return
    command = command_line(name, mirror, run=run, headless=headless, host=host, port=port)
    try:
        ended = subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return
    if ended:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add `notebook` to the command line."""
    app.command("notebook")(notebook_command)
