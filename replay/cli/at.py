"""`replay at`: one instant, every derivation, and what the engine stamps beside it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from replay import settings as settings_room
from replay import timeline
from replay.audit import audited
from replay.cli.options import Mirror, SettingsName
from replay.cli.show import console, plain
from replay.durations import human, instant_ms, iso
from replay.estimators import ToolsWindow, Window
from replay.ledger.load import load_ledger
from replay.ledger.mirror import open_mirror
from replay.measuring import Measuring
from replay.shadow import Shadow
from replay.snapshots import NOTHING, Snapshot
from replay.timeline import Timeline

DAY_S = 86_400
_SHOWN_OFFERS = ["position", "provider_id", "model_family", "served_by", "tier", "price_in", "price_out", "context"]


def at_command(
    instant: Annotated[str, typer.Argument(help="An ISO time with offset, such as 2026-03-03T12:00:00Z, or ms.")],
    mirror: Mirror,
    settings: SettingsName = "production-now",
    session: Annotated[str | None, typer.Option(help="Also show what is known of this session.")] = None,
) -> None:
    """Show what every derivation would have said at an instant, beside what the engine stamps then.

    Example: replay at 2026-03-03T12:00:00Z demo/ledger.duckdb
    """
    at_ms, chosen = instant_ms(instant), settings_room.load(settings)
    with open_mirror(mirror) as connection:
        ledger = load_ledger(connection)
    axis = timeline.build(ledger)
    out = console()
    plain(out, f"At {iso(at_ms)}", "bold")
    measuring = Measuring(axis, chosen)
    plain(out, f"visibility: {measuring.visibility.kind}; rows a decision at this instant could see")
    with Shadow(Measuring(axis, audited(chosen))) as shadow:
        until_ms = shadow.see(at_ms, _snapshot_at(shadow.measuring, at_ms))
        _print_stamps(out, axis, measuring, shadow, at_ms, until_ms)
        shadow.without()
        _print(out, "cost_by_route, last 24h", shadow.frame(
            "cost_by_route", since_s=at_ms // 1000 - DAY_S, until_s=at_ms // 1000 + 1))  # fmt: skip
        offers = shadow.frame("candidates_at", at_ms=at_ms)
        _print(out, "candidates_at", offers.select(_SHOWN_OFFERS))
        if session is not None:
            for name in ("session_owner", "hot_route", "session_warm", "session_totals"):
                _print(out, f"{name} of {session}", shadow.frame(name, session_id=session))


def _snapshot_at(measuring: Measuring, at_ms: int) -> Snapshot:
    """Return what the latest decision until then had seen; where nothing was recorded, nothing limits it."""
    visibility = measuring.visibility
    if visibility.kind == "lagged":
        return NOTHING
    key = int(visibility.instants(np.array([at_ms], dtype=np.int64))[0])
    return visibility.snapshot(key) if key > 0 else NOTHING


def _print_stamps(
    out: Console, axis: Timeline, measuring: Measuring, shadow: Shadow, at_ms: int, until_ms: int
) -> None:
    rules = shadow.measuring.settings
    assert isinstance(rules.reliability.rule, Window)
    assert isinstance(rules.tools.rule, ToolsWindow)
    window_ms, tools_ms = rules.reliability.rule.window_ms, rules.tools.rule.window_ms
    seen = shadow.without(rules.reliability.exclude_kinds)
    stats = seen.frame("route_stats", since_ms=at_ms - window_ms, until_ms=until_ms)
    families = seen.frame("provider_family_stats", since_ms=at_ms - window_ms, until_ms=until_ms)
    seen = shadow.without(failed=rules.tools.failed == "excluded")
    tools = seen.frame("tool_evidence", since_ms=at_ms - tools_ms, until_ms=until_ms)
    condemned = seen.frame(
        "tool_incapable_routes", since_ms=at_ms - tools_ms, until_ms=until_ms, min_samples=rules.tools.rule.min_samples
    )
    routes = np.unique(axis.attempts.route)
    stamps = measuring.answer(measuring.at_instant(at_ms, routes))
    engine = pl.DataFrame(
        {
            "route": [axis.routes[route] for route in routes.tolist()],
            "stamped success": stamps.reliability,
            "stamped ms": stamps.stamped_latency_ms,
            "stamped tools": stamps.capable,
        },
        schema_overrides={"route": pl.String},
    ).with_columns(pl.col(pl.Float64).fill_nan(None))
    silent = _keyed(condemned).select("route", verdict=pl.lit("incapable"))
    asked = _keyed(tools).select("route", "requests", "emitted")
    joined = engine.join(_keyed(stats), on="route", how="full", coalesce=True)
    joined = joined.join(asked, on="route", how="left").join(silent, on="route", how="left").sort("route")
    columns = ["route", "count", "success_rate", "stamped success", "latency_ms", "stamped ms"]
    title = f"route_stats over {human(window_ms)} and tool_evidence over {human(tools_ms)} by production's SQL, "
    shown = joined.select(*columns, "requests", "emitted", "verdict", "stamped tools")
    shown = shown.filter(pl.any_horizontal(pl.col("count", "requests", "stamped success", "verdict").is_not_null()))
    title = f"{len(shown)} of {len(joined)} routes have evidence: {title}"
    _print(out, f"{title}beside the stamps of {measuring.settings.name}", shown)
    _print(out, f"provider_family_stats over {human(window_ms)}", families)


def _keyed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(timeline.route_key_expr().alias("route"))


def _print(out: Console, title: str, frame: pl.DataFrame) -> None:
    plain(out, f"\n{title}", "bold")
    if frame.is_empty():
        plain(out, "nothing")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, kind in frame.schema.items():
        table.add_column(name, justify="right" if kind.is_numeric() else "left", overflow="fold")
    for row in frame.rows():
        table.add_row(
            *("–" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row)
        )
    out.print(table)


def register(app: typer.Typer) -> None:
    """Add `at` to the command line."""
    app.command("at")(at_command)
