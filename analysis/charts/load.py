"""Where charts get their data: a run's folder, its comparison, and the mirror it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from analysis import cost, prequential, series, tools
from analysis.charts.cost import COLUMNS as COST_COLUMNS
from replay import record, settings
from replay.comparison import compare
from replay.errors import ReplayError
from replay.estimators import ToolsSticky, ToolsWindow
from replay.ledger.mirror import open_mirror
from replay.ledger.offers import cost_frames


@dataclass(frozen=True)
class Compared:
    """The two frames of a comparison that charts draw."""

    differences: pl.DataFrame
    flips: pl.DataFrame


def reliability(run: Path, mirror: Path | None = None, *, route: str | None = None) -> pl.DataFrame:
    """Return the reliability chart's frame."""
    return series.rules_over_time(record.read(run).predictions, route=route)


def latency(run: Path, mirror: Path | None = None, *, route: str | None = None) -> pl.DataFrame:
    """Return the latency chart's frame."""
    return series.rules_over_time(record.read(run).predictions, route=route, latency=True)


def flips(run: Path, mirror: Path | None = None, *, against: str | None = None) -> pl.DataFrame:
    """Return the flips chart's frame, of the first setting against the second or the one named."""
    stored = record.read(run)
    found = compared(stored, mirror).flips
    if "setting_b" not in found.columns:
        return pl.DataFrame(schema=series.FLIPS_OVER_TIME_SCHEMA)
    return series.flips_over_time(stored.decisions, _pair(found, against))


def differences(
    run: Path, mirror: Path | None = None, *, against: str | None = None, metric: str | None = None
) -> pl.DataFrame:
    """Return the differences chart's frame: as the router read it, over all attempts where that can be said."""
    wanted = prequential.BRIER if metric is None else metric
    found = _pair(compared(record.read(run), mirror).differences, against)
    known = dict.fromkeys([*prequential.METRICS, *found["metric"].unique(maintain_order=True)])
    if wanted not in known:
        raise ReplayError(f"The metric {wanted!r} is not known; expected one of {', '.join(known)}. Give one of these.")
    over = prequential.OVER_ALL if wanted in (prequential.BRIER, prequential.LOG_LOSS) else prequential.BOTH_STAMPED
    return found.filter(
        (pl.col("question") == prequential.AS_READ) & (pl.col("metric") == wanted) & (pl.col("over") == over)
    )


def stamped(run: Path, mirror: Path | None = None) -> pl.DataFrame:
    """Return the stamped chart's frame."""
    stored = record.read(run)
    return series.stamped_shares(stored.predictions, stored.decisions)


def tools_evidence(run: Path | None, mirror: Path | None = None, *, setting: str | None = None) -> pl.DataFrame:
    """Return the tools chart's frame: under the rule of the first setting that has one, or of the one named.

    Without a run the setting is a preset or a settings file, by default production's.
    """
    stored = None if run is None else record.read(run)
    known = (settings.load(setting or settings.PRESETS[0]),) if stored is None else stored.settings
    names = [one.name for one in known]
    if stored is not None and setting is not None and setting not in names:
        raise ReplayError(f"The setting {setting!r} is not in {run}; it holds {', '.join(names)}. Give one of these.")
    ruled = [
        (one.tools.rule, one.tools.failed)
        for one in known
        if isinstance(one.tools.rule, ToolsWindow | ToolsSticky) and (stored is None or setting in (None, one.name))
    ]
    if not ruled:
        return pl.DataFrame(schema=series.TOOLS_SCHEMA)
    rule, failed = ruled[0]
    with open_mirror(_mirror(stored, mirror)) as connection:
        columns = ", ".join(tools.ATTEMPTS_SCHEMA)
        attempts: pl.DataFrame = connection.execute(f"SELECT {columns} FROM route_observations").pl()
    window_ms = rule.window_ms if isinstance(rule, ToolsWindow) else rule.horizon_ms
    return series.tools_evidence(attempts, rule, failed=failed, window_ms=window_ms)


def cost_drift(run: Path | None, mirror: Path | None = None) -> pl.DataFrame:
    """Return the cost chart's frame."""
    with open_mirror(_mirror(None if run is None else record.read(run), mirror)) as connection:
        (calls,) = connection.execute("SELECT count(*) FROM calls").fetchone() or (0,)
        if not calls:
            return pl.DataFrame(schema=COST_COLUMNS)
        frames = cost_frames(connection)
    return cost.roll_up(cost.price_calls(*frames))


def compared(stored: record.StoredRun, mirror: Path | None = None) -> Compared:
    """Return the run's comparison: the stored one (`replay compare`), else made now; empty for a single setting."""
    folder = stored.folder / "compare"
    if (folder / "differences.parquet").is_file() and (folder / "flips.parquet").is_file():
        return Compared(pl.read_parquet(folder / "differences.parquet"), pl.read_parquet(folder / "flips.parquet"))
    if len(stored.settings) < 2:
        return Compared(pl.DataFrame(schema=prequential.DIFFERENCES_SCHEMA), pl.DataFrame())
    made = compare([stored], mirror)
    return Compared(made.differences, made.flips)


def _pair(frame: pl.DataFrame, against: str | None) -> pl.DataFrame:
    """Return one pair's rows: the named other setting's, by default the first pair's."""
    others = frame["setting_b"].unique(maintain_order=True).to_list()
    if against is None:
        return frame.filter(pl.col("setting_b") == others[0]) if others else frame
    if against not in others:
        raise ReplayError(
            f"The setting {against!r} was not compared; there is {', '.join(others) or 'none'}. Give one of these."
        )
    return frame.filter(pl.col("setting_b") == against)


def _mirror(stored: record.StoredRun | None, given: Path | None) -> Path:
    path = given or (stored.mirror if stored else None)
    if path is None or not path.is_file():
        of = f"The mirror of {stored.folder}" if stored else "The mirror"
        raise ReplayError(
            f"{of} is not at {path}; this chart reads attempts and calls from it. Say where it is with --mirror."
        )
    return path
