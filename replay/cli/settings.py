"""`replay settings`: the presets, and what a settings file means."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from replay import settings as settings_room
from replay.cli.show import console, plain
from replay.settings import PRESETS


def settings_command(
    name: Annotated[str | None, typer.Argument(help=f"A TOML file, {' or '.join(PRESETS)}; none: list them.")] = None,
) -> None:
    """Show settings in full, every default filled in, with their identity; without a name, list the presets.

    Example: replay settings production-now
    """
    out = console()
    if name is None:
        for preset in PRESETS:
            plain(out, f"{preset}  {settings_room.load(preset).identity[:16]}")
        return
    loaded = settings_room.load(name)
    plain(out, json.dumps({**loaded.to_dict(), "identity": loaded.identity}, indent=1))


def register(app: typer.Typer) -> None:
    """Add `settings` to the command line."""
    app.command("settings")(settings_command)
