"""Write docs/cli.md from the commands themselves: `make docs`. A test fails while the page is out of date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from replay.cli import build_app

PAGE = Path(__file__).with_name("cli.md")
_HEAD = """# The command line

Written by `make docs` from the commands themselves; change their docstrings and help texts, not this page.

Every command prints a result or one paragraph that says what was given, what was expected, and what to do. Exit codes:
0 done; 1 something did not hold (an audit, a reproduction, a vector); 2 bad usage or input; 3 not comparable; 130
stopped by Ctrl-C.
A duration is written `15m`, `200ms`, `2h`; an instant `2026-03-06T10:20:00Z`, `2026-03-06` or whole milliseconds.
"""


def commands() -> Iterator[tuple[str, Any]]:
    """Yield (name, command) of every command, subcommands as `policy check`, in the order of the help page."""
    for name, command in get_command(build_app()).commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", sub) for inner, sub in command.commands.items())
        else:
            yield name, command


def page() -> str:
    """Return the whole page."""
    named = list(commands())
    contents = "\n".join(f"- [`replay {name}`](#replay-{name.replace(' ', '-')}): {_first(one)}" for name, one in named)
    return "\n".join([_HEAD, contents, *(_section(name, command) for name, command in named)]) + "\n"


def _first(command: Any) -> str:
    return " ".join(command.help.split("\n\n")[0].split())


def _section(name: str, command: Any) -> str:
    paragraphs = [" ".join(part.split()) for part in command.help.split("\n\n")]
    prose = [part for part in paragraphs if not part.startswith("Example:")]
    examples = [part.removeprefix("Example:").strip() for part in paragraphs if part.startswith("Example:")]
    parts = [f"\n## replay {name}\n", "\n\n".join(prose), "", *(f"    {example}" for example in examples), ""]
    rows = [f"| {_shown(one)} | {_explained(one)} |" for one in command.params if one.name != "help"]
    return "\n".join([*parts, "| argument or option | meaning |", "|---|---|", *rows])


def _shown(one: Any) -> str:
    if one.param_type_name == "argument":
        name = (one.metavar or one.name.upper()).replace("|", "\\|")
        return f"`{name}`" + (" (several)" if one.nargs == -1 else "")
    return ", ".join(f"`{word}`" for word in [*one.opts, *one.secondary_opts])


def _explained(one: Any) -> str:
    text = " ".join((one.help or "").split()).replace("|", "\\|")
    if one.required:
        return f"{text} Required."
    plain = one.default is None or one.default is False or one.default == () or callable(one.default)
    return text if plain else f"{text} Default: `{getattr(one.default, 'value', one.default)}`."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
