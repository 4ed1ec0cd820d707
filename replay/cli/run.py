"""`replay run`: a mirror under one or more settings, into a run's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from replay import record
from replay import settings as settings_room
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
from replay.cli.show import console, print_record
from replay.durations import duration_ms, instant_ms
from replay.engine import Core
from replay.errors import ReplayError
from replay.pieces import replay_mirror
from replay.settings import Settings
from replay.sweep.grid import other_rule

_Duration = Annotated[str | None, typer.Option(help="A duration such as 5m: replaces the rule of both measures.")]


def run_command(
    mirror: Mirror,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder; an earlier run there is replaced.")],
    settings: SettingsNames = None,
    policy: PolicyOption = None,
    declared: Declared = None,
    since: Since = None,
    until: Until = None,
    window: _Duration = None,
    alpha: Annotated[float | None, typer.Option(help="An EMA's alpha: replaces the rule of both measures.")] = None,
    tools_min: Annotated[int | None, typer.Option(help="Tools rule: minimum requests.")] = None,
    tools_window: Annotated[str | None, typer.Option(help="Tools rule: window or horizon, such as 30m.")] = None,
    memo: Annotated[str | None, typer.Option(help="How long a process reuses stamps, such as 2s.")] = None,
    lag: Annotated[
        list[str] | None, typer.Option(help="Write lag where visibility is not recorded; repeatable.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="Number of processes to assume.")] = None,
    restart: Annotated[list[str] | None, typer.Option(help="Instant at which processes lose their state.")] = None,
    prices: Annotated[str | None, typer.Option(help="recorded, measured, or an instant whose list to use.")] = None,
    scale_price: Annotated[list[str] | None, typer.Option(help="PROVIDER=FACTOR on its prices; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of whatever is drawn.")] = None,
    core: Annotated[Core, typer.Option(help="What decides; both decide alike.")] = "compiled",
    full: Annotated[
        bool, typer.Option("--full", help="Of a slice: every candidate of every decision too, in rankings.parquet.")
    ] = False,
) -> None:
    """Replay every recorded decision under each of the settings, audited, into a run's folder.

    The flags vary every given setting. --since and --until choose decisions and, by their ends, attempts. Exit code 1
    if an audit or the reproduction fails.

    Example: replay run demo/ledger.duckdb -s production-now -s production-before -o runs/both
    """
    changes: dict[str, Any] = {
        "window": window, "alpha": alpha, "tools_min": tools_min, "tools_window": tools_window, "memo": memo,
        "lag": lag, "replicas": replicas, "restart": restart, "prices": prices, "scale_price": scale_price,
        "seed": seed,
    }  # fmt: skip
    chosen = [varied(one, **changes) for one in settings_named(settings)]
    given = policy_given(policy, declared)
    since_ms, until_ms = span_ms(since, until)
    with shown() as say:
        say("reading the mirror", 0, 1)
        with record.Writer(out) as writer:
            rankings = writer.rankings if full else None
            read = replay_mirror(mirror, chosen, writer, given, since_ms, until_ms, say, core=core, full=rankings)
            done = read.run
            say("writing the run's folder", 0, 1)
            hashes = writer.hashes(done)
            made = record.make_record(done, read.identity, given, read.inferred, since_ms, until_ms, hashes)
            writer.finish(made, done, mirror)
    print_record(console(), made, out)
    if read.whole is not None:
        console().print(f"It was replayed whole, in as much memory as that takes: {read.whole}.")
    for one in done.replayed:
        if one.interpreted is not None:
            console().print(f"{one.settings.name} was decided by the interpreter: {one.interpreted}")
    if not done.passed:
        raise typer.Exit(1)


def varied(
    base: Settings,
    *,
    window: str | None = None,
    alpha: float | None = None,
    tools_min: int | None = None,
    tools_window: str | None = None,
    memo: str | None = None,
    lag: list[str] | None = None,
    replicas: int | None = None,
    restart: list[str] | None = None,
    prices: str | None = None,
    scale_price: list[str] | None = None,
    seed: int | None = None,
) -> Settings:
    """Return settings with the flags applied; its name says which.

    >>> varied(settings_room.PRODUCTION_NOW, window="5m", lag=["200ms"]).name
    'production-now window=5m lag=200ms'
    """
    if window is not None and alpha is not None:
        raise ReplayError("--window and --alpha each replace the rule of both measures; give one of them")
    table = base.to_dict()
    said = {"window": window, "alpha": alpha, "tools_min": tools_min, "tools_window": tools_window, "memo": memo,
            "lag": lag, "replicas": replicas, "restart": restart, "prices": prices, "scale_price": scale_price,
            "seed": seed}  # fmt: skip
    for measure in ("reliability", "latency"):
        if window is not None:
            table[measure] = other_rule(table[measure], rule="window", window_ms=duration_ms(window))
        if alpha is not None:
            table[measure] = other_rule(table[measure], rule="ema", alpha=alpha)
    if tools_min is not None:
        table["tools"]["min_samples"] = tools_min
    if tools_window is not None:
        key = "horizon_ms" if table["tools"]["rule"] == "sticky" else "window_ms"
        table["tools"][key] = duration_ms(tools_window)
    if prices is not None:
        named = prices in ("recorded", "measured")
        table["prices"] |= {"mode": prices} if named else {"mode": "at", "at_ms": instant_ms(prices)}
    if scale_price:
        pairs = [pair.partition("=") for pair in scale_price]
        table["prices"] |= {"mode": "scaled", "scale": {name: _factor(factor, name) for name, _, factor in pairs}}
    plain = {"memo_ms": None if memo is None else duration_ms(memo), "lag_ms": lag, "replicas": replicas,
             "restarts": restart, "seed": seed}  # fmt: skip
    table |= {key: value for key, value in plain.items() if value is not None}
    words = [f"{key}={_word(value)}" for key, value in said.items() if value not in (None, [])]
    return replace(settings_room.from_dict(table), name=" ".join([base.name, *words]))


def _factor(text: str, provider: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = float("nan")
    if not 0 <= factor < float("inf"):
        raise ReplayError(
            f"--scale-price {provider}={text}: expected a factor of 0 or more, for example {provider}=1.2"
        )
    return factor


def _word(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def register(app: typer.Typer) -> None:
    """Add `run` to the command line."""
    app.command("run")(run_command)
