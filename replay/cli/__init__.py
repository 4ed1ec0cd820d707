"""The command line: each module registers its commands; errors become one paragraph and an exit code."""

from __future__ import annotations

from importlib import import_module

import typer
from rich.console import Console

import replay
from replay.errors import ReplayError

_ROOMS = (
    "demo",
    "import_",
    "pull",
    "verify",
    "prices",
    "run",
    "compare",
    "sweep",
    "slice",
    "check",
    "accept",
    "chart",
    "report",
    "notebook",
    "at",
    "settings",
    "tools",
    "cost",
    "policy",
    "vectors",
    "sql",
    "bench",
)


def build_app() -> typer.Typer:
    """Return the app with every command registered, in the order a newcomer meets them."""
    app = typer.Typer(
        name="replay",
        help="Replay what an LLM router recorded, under other measurement settings, and prove the answer.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"route-replay {replay.__version__}")
            raise typer.Exit

    @app.callback()
    def common(version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True)) -> None:
        """Replay what an LLM router recorded, under other measurement settings, and prove the answer."""

    for room in _ROOMS:
        import_module(f"replay.cli.{room}").register(app)
    return app


def run_cli(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 something did not hold, 2 bad usage or input, 3 not comparable.

    >>> run_cli(["--version"])
    route-replay 0.1.0
    0
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        build_app()(arguments)
    except ReplayError as error:
        errors.print(f"replay: {error}")
        return error.exit_code
    except SystemExit as ended:  # how typer ends every command, and refuses wrong words with code 2
        return ended.code if isinstance(ended.code, int) else 0
    return 0
