"""`replay demo`: the router lives through a small simulated week, and the week is replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from replay import engine, record
from replay.cli.compare import print_comparison
from replay.cli.progress import shown
from replay.cli.show import console, plain, span_said
from replay.comparison import compare
from replay.demo import DemoSummary, record_demo
from replay.errors import ReplayError
from replay.ledger.load import read_for_replay
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW

_OURS = "recorded by `replay demo`\n"


def demo_command(
    folder: Annotated[Path, typer.Argument(help="Where the ledger and the run go; made anew each time.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the simulated world's luck.")] = 7,
) -> None:
    """Record a simulated week with the router itself, replay it under both presets, and print what that shows.

    Example: replay demo demo
    """
    mirror, run_folder = folder / "ledger.duckdb", folder / "run"
    _make_room(folder, mirror)
    with shown() as say:
        summary = record_demo(mirror, seed, lambda done, total: say("the router serves a simulated week", done, total))
        ledger, inferred = read_for_replay(mirror)
        done = engine.run(ledger, [PRODUCTION_NOW, PRODUCTION_BEFORE], progress=say)
        made = record.make_record(done, ledger.identity, None, inferred, None, None)
        record.write(run_folder, made, done, mirror)
        compared = compare([record.read(run_folder)], mirror, say)
        compared.write(run_folder / "compare")
    out = console()
    print_comparison(out, compared, brief=True)
    _print_week(out, summary)
    plain(out, "\nNext", "bold")
    for command in (
        f"replay info {mirror}",
        f"replay at 2026-03-06T10:20:00Z {mirror}",
        f"replay tools {mirror}",
        f"replay cost {mirror}",
        f"replay run {mirror} -s production-now --window 5m -o {folder}/run-5m",
        f"replay compare {run_folder} {folder}/run-5m",
        f"replay report {run_folder} -o {folder}/report.html",
        f"replay notebook window_tuning {mirror}",
    ):
        plain(out, f"  {command}")
    if not done.passed:
        raise typer.Exit(1)


def _make_room(folder: Path, mirror: Path) -> None:
    """Clear what an earlier demo left; refuse a folder that is somebody's own."""
    mark = folder / ".route-replay-demo"
    if folder.exists() and any(folder.iterdir()) and not mark.is_file():
        raise ReplayError(f"{folder} holds files that no demo wrote; nothing was changed: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(_OURS, encoding="utf-8")
    mirror.unlink(missing_ok=True)
    mirror.with_name(mirror.name + ".wal").unlink(missing_ok=True)


def _print_week(out: Console, week: DemoSummary) -> None:
    plain(out, "\nThe week that was recorded (simulated providers, the real router)", "bold")
    plain(out, f"{span_said(week.from_ms, week.to_ms)}: {week.calls:,} calls, {week.attempts:,} attempts, "
                   f"{week.routes} routes, {len(week.replicas)} processes, ${week.cost_usd:.2f}")  # fmt: skip
    for sentence in week.happened:
        plain(out, f"- {sentence}")


def register(app: typer.Typer) -> None:
    """Add `demo` to the command line."""
    app.command("demo")(demo_command)
