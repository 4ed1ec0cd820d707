"""The command line: a command's module is imported when it is asked for; errors become one paragraph and a code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup
from typer.main import get_group

import replay
from replay.errors import ReplayError, StoppedError

STOPPED = "stopped before its end; the same command begins again"

_ROOMS = {
    "demo": "demo",
    "import": "import_",
    "info": "import_",
    "pull": "pull",
    "verify": "verify",
    "prices": "prices",
    "run": "run",
    "compare": "compare",
    "sweep": "sweep",
    "slice": "slice",
    "check": "check",
    "accept": "accept",
    "chart": "chart",
    "report": "report",
    "notebook": "notebook",
    "at": "at",
    "settings": "settings",
    "tools": "tools",
    "cost": "cost",
    "policy": "policy",
    "vectors": "vectors",
    "sql": "sql",
    "bench": "bench",
}
"""Command → the module that registers it, in the order a newcomer meets them."""


class _Commands(Mapping[str, Any]):
    """The commands by name. Only the one asked for is imported: none waits for what another needs."""

    def __getitem__(self, name: str) -> Any:
        app = typer.Typer(rich_markup_mode=None)
        import_module(f"replay.cli.{_ROOMS[name]}").register(app)
        return get_group(app).commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_ROOMS)

    def __len__(self) -> int:
        return len(_ROOMS)


class _Group(TyperGroup):
    """The command `replay` itself."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = _Commands()  # type: ignore[assignment]

    def make_context(self, *given: Any, **named: Any) -> Any:
        """Read the words; typer would make a silent exit of Ctrl-C."""
        with _stoppable():
            return super().make_context(*given, **named)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with _stoppable():
            return super().invoke(ctx)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make one error of Ctrl-C, whatever became of it on its way: within a query, DuckDB raises its own."""
    pressed: list[int] = []

    def notice(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    here = threading.current_thread() is threading.main_thread()  # no signal arrives in another
    before = signal.signal(signal.SIGINT, notice) if here else None
    try:
        yield
    except (StoppedError, typer.Exit):  # of a command that knows what it keeps
        raise
    except (Exception, KeyboardInterrupt) as error:
        if pressed or isinstance(error, KeyboardInterrupt):
            raise StoppedError(STOPPED) from None
        raise
    finally:
        if here:
            signal.signal(signal.SIGINT, before)


def build_app() -> typer.Typer:
    """Return the app with every command."""
    app = typer.Typer(
        name="replay",
        help="Replay what an LLM router recorded, under other measurement settings, and prove the answer.",
        cls=_Group,
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

    return app


def run_cli(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 done, 1 something did not hold, 2 bad usage or input, 3 not comparable, 130 stopped by Ctrl-C.

    >>> run_cli(["--version"])
    route-replay 0.1.0
    0
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    try:
        build_app()(arguments)
    except KeyboardInterrupt:  # before or after the command
        errors.print(f"replay: {STOPPED}")
        return StoppedError.exit_code
    except ReplayError as error:
        errors.print(f"replay: {error}")
        return error.exit_code
    except SystemExit as ended:  # how typer ends every command, and refuses wrong words with code 2
        return ended.code if isinstance(ended.code, int) else 0
    return 0
