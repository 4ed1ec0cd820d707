"""`replay sweep`: a grid of settings over one mirror, into one table of figures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.table import Table

from analysis.prequential import ALL, AS_READ, BRIER, LATENCY, LOG_LOSS, MEASURED_SHARE, percent
from replay.cli.options import (
    Declared,
    Mirror,
    PolicyOption,
    SettingsNames,
    Since,
    Until,
    policy_given,
    settings_named,
    span_ms,
)
from replay.cli.progress import shown
from replay.cli.run import varied
from replay.cli.show import console, number, plain
from replay.errors import ReplayError
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.record import make_record
from replay.sentences import audit_said, reproduction_said
from replay.settings import Settings
from replay.sweep import grid as grids
from replay.sweep.running import Swept, sweep
from replay.sweep.work import AGREEMENT, DECISIONS, FLIPS, SWITCHES


def sweep_command(
    mirror: Mirror,
    out: Annotated[Path, typer.Option("--out", "-o", help="The Parquet file of figures to write.")],
    settings: SettingsNames = None,
    grid: Annotated[Path | None, typer.Option(help="A TOML file with [grid]: settings' keys and values.")] = None,
    window: Annotated[str | None, typer.Option(help="Windows of both measures, such as 1m..60m:12.")] = None,
    alpha: Annotated[str | None, typer.Option(help="EMA weights of both measures, beside the windows.")] = None,
    tools_min: Annotated[str | None, typer.Option(help="The tools rule: fewest requests, such as 5,10,20.")] = None,
    tools_window: Annotated[str | None, typer.Option(help="The tools rule: windows or horizons.")] = None,
    memo: Annotated[str | None, typer.Option(help="How long a process reuses stamps: durations.")] = None,
    lag: Annotated[str | None, typer.Option(help="Write lags where visibility is not recorded.")] = None,
    replicas: Annotated[str | None, typer.Option(help="Numbers of processes to assume, such as 1,2,4.")] = None,
    seed: Annotated[str | None, typer.Option(help="Seeds of whatever is drawn, such as 0..19:20.")] = None,
    policy: PolicyOption = None,
    declared: Declared = None,
    since: Since = None,
    until: Until = None,
    jobs: Annotated[int | None, typer.Option(help="Worker processes; by default one for each core.")] = None,
    top: Annotated[int, typer.Option(help="How many of the best settings to show.")] = 10,
) -> None:
    """Measure every point of a grid of settings: one table of figures, resumable.

    Lists are 1m,5m,15m, ranges are 1m..60m:12. The flags' product varies every given setting; --window and --alpha are
    one axis. The settings varied are audited and reproduced first. Ctrl-C keeps what is measured: the same command goes
    on.

    Example: replay sweep demo/ledger.duckdb --window 1m..60m:12 --alpha 0.05,0.1,0.2 -o sweep.parquet
    """
    flags = {"window": window, "alpha": alpha, "tools_min": tools_min, "tools_window": tools_window, "memo": memo,
             "lag": lag, "replicas": replicas, "seed": seed}  # fmt: skip
    bases, points = points_of(settings, grid, flags)
    given = policy_given(policy, declared)
    since_ms, until_ms = span_ms(since, until)
    with shown() as say:
        say("reading the mirror", 0, 1)
        with open_mirror(mirror) as connection:
            ledger = load_ledger(connection, whole=False)
        workers = os.cpu_count() or 1 if jobs is None else jobs
        done = sweep(ledger, bases, points, out, given, since_ms, until_ms, jobs=workers, progress=say)
    _print(done, len(points), top)
    plain(console(), f"Written to {out}")


def points_of(
    names: list[str] | None, grid: Path | None, flags: Mapping[str, str | None]
) -> tuple[list[Settings], list[Settings]]:
    """Return the settings to vary, and every point of the grid: the file's points, each varied by the flags.

    >>> [one.name for one in points_of(None, None, {"window": "1m..4m:3"})[1]]
    ['production-now window=1m', 'production-now window=2m', 'production-now window=4m']
    """
    based, inner = ([], [{}]) if grid is None else grids.load(grid)
    if based and names:
        raise ReplayError(f"{grid} names its base, and --settings another; give one of them")
    bases = settings_named(names or based)
    listed = {key: _listed(key, text) for key, text in flags.items() if text is not None}
    if grid is None and not listed:
        raise ReplayError("no grid was given; give --grid FILE, or flags such as --window 1m..60m:12")
    rules: dict[str, list[Any]] = {key: listed.pop(key) for key in ("window", "alpha") if key in listed}
    outer = grids.combinations(rules, **listed)
    return bases, [varied(grids.at_point(base, point), **some) for base in bases for point in inner for some in outer]


_DURATIONS, _WHOLE = "durations with their unit, such as 1m,5m,15m or 1m..60m:12", "whole numbers, such as 5,10,20"
_EXPECTED: dict[str, tuple[type | tuple[type, ...], str]] = {
    "window": (str, _DURATIONS),
    "alpha": ((int, float), "numbers, such as 0.05,0.1,0.2"),
    "tools_min": (int, _WHOLE),
    "tools_window": (str, _DURATIONS),
    "memo": (str, _DURATIONS),
    "lag": (str, _DURATIONS),
    "replicas": (int, _WHOLE),
    "seed": (int, _WHOLE),
}


def _listed(flag: str, text: str) -> list[Any]:
    """Return a flag's values as `varied` takes them; of durations 0 needs no unit."""
    kinds, expected = _EXPECTED[flag]
    found = [str(value) if value == 0 and kinds is str else value for value in grids.values(text)]
    for value in found:
        if not isinstance(value, kinds):
            raise ReplayError(f"--{flag.replace('_', '-')} has {value!r}; expected {expected}")
    return [[value] for value in found] if flag == "lag" else found


# What is shown

_SHOWN = (
    ("brier", AS_READ, BRIER, 4),
    ("log loss", AS_READ, LOG_LOSS, 4),
    ("latency", AS_READ, LATENCY, 4),
    ("agree", DECISIONS, AGREEMENT, 3),
    ("flips", DECISIONS, FLIPS, 3),
    ("switches", DECISIONS, SWITCHES, 2),
)


def _print(done: Swept, points: int, top: int) -> None:
    out = console()
    said = make_record(done.proof, {}, None, [], None, None, {one.settings.name: "" for one in done.proof.replayed})
    plain(out, reproduction_said(said["reproduction"]), "bold")
    for one in said["replayed"]:
        plain(out, audit_said(one))
    kept = f", {done.kept:,} kept from before" if done.kept else ""
    plain(out, f"{points:,} points; {done.measured:,} distinct settings measured{kept}.")
    for name, why in done.interpreted.items():
        plain(out, f"{name} was decided by the interpreter: {why}")
    out.print(_best(done.table, top))
    for line in (
        "Brier, log loss and latency (log error) as the router read them: smaller is better. In brackets: the "
        "difference to the first setting. Latency is over the attempts that a setting stamped.",
        "Only routes that the recorded policy chose are scored; no figure says what the other routes would have done.",
        "Differences have no interval here, and the best of many is partly luck: `replay run` a few of them, which "
        "audits them too, then `replay compare`.",
    ):
        plain(out, line)
    workers = f", of the largest worker {done.worker_peak_mb:,.0f} MB" if done.worker_peak_mb else ""
    plain(out, f"Peak memory: {done.peak_mb:,.0f} MB{workers} (what they share is counted in both).")


def _best(table: pl.DataFrame, top: int) -> Table:
    """Return the first setting and the best others by Brier as read, each with its difference to the first."""
    whole = table.filter(pl.col("scope") == ALL)
    names = whole["setting"].unique(maintain_order=True).to_list()
    figure = {(row["setting"], row["question"], row["metric"]): row for row in whole.iter_rows(named=True)}
    worst = float("inf")

    def brier(name: str) -> float:
        value = figure[name, AS_READ, BRIER]["value"]
        return worst if value is None else float(value)

    listed = [names[0], *sorted(names[1:], key=brier)[:top]]
    shown = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    shown.title = f"The first setting, and the best {len(listed) - 1} of {len(names) - 1:,} by Brier"
    for heading in ("setting", *(heading for heading, *_ in _SHOWN), "stamped"):
        shown.add_column(heading, justify="left" if heading == "setting" else "right")
    for name in listed:
        cells = [_cell(figure, names[0], name, question, metric, digits) for _, question, metric, digits in _SHOWN]
        share = figure[name, AS_READ, BRIER]["stamped_share"]
        stamped = "–" if share is None else percent(share)
        shown.add_row(name, *cells, stamped + (" mostly unmeasured" if (share or 1.0) < MEASURED_SHARE else ""))
    return shown


def _cell(figure: dict[Any, Any], first: str, name: str, question: str, metric: str, digits: int) -> str:
    value, base = figure[name, question, metric]["value"], figure[first, question, metric]["value"]
    if name == first or question == DECISIONS or value is None or base is None:
        return number(value, digits) + (" " * (digits + 6) if question != DECISIONS else "")
    return f"{value:.{digits}f} ({value - base:+.{digits}f})"


def register(app: typer.Typer) -> None:
    """Add `sweep` to the command line."""
    app.command("sweep")(sweep_command)
