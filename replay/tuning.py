"""Tuning on a slice: replay one rule at a time, quickly, hold two against each other, and keep what was chosen.

A look is not proved: reproduction and audit are left out, so that it can follow a slider. `engine.run` with
`prove=True`, or `replay run`, proves the settings that were found.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from analysis import decisions as deciding
from analysis import prequential
from replay import engine, timeline
from replay.causes import causes
from replay.core import SHIPPED_FIELDS, SHIPPED_POLICIES, Policy, Schema, admit, load_policy
from replay.demo import record_demo
from replay.durations import human, iso
from replay.errors import ReplayError
from replay.estimators import Ema, Window
from replay.ledger.load import Ledger, load_ledger
from replay.ledger.mirror import open_mirror
from replay.settings import PRODUCTION_BEFORE, PRODUCTION_NOW, Settings, quantiles
from replay.timeline import route_key_expr

DAY_MS = 86_400_000
DEMO_MIRROR = Path("demo/ledger.duckdb")
RECORDED = "recorded with each call"


def window_settings(window_ms: int) -> Settings:
    """Return production's settings of today with another window for reliability and latency.

    >>> window_settings(300_000).name, window_settings(900_000).identity == PRODUCTION_NOW.identity
    ('window 5m', True)
    """
    rule = Window(window_ms)
    return replace(
        PRODUCTION_NOW,
        name=f"window {human(window_ms)}",
        reliability=replace(PRODUCTION_NOW.reliability, rule=rule),
        latency=replace(PRODUCTION_NOW.latency, rule=rule),
    )


def ema_settings(alpha: float, latency_alpha: float) -> Settings:
    """Return the settings production had before, with other weights of the newest observation.

    >>> ema_settings(0.1, 0.3).name, ema_settings(0.2, 0.3).identity == PRODUCTION_BEFORE.identity
    ('EMA 0.1, latency 0.3', True)
    """
    return replace(
        PRODUCTION_BEFORE,
        name=f"EMA {alpha:g}, latency {latency_alpha:g}",
        reliability=replace(PRODUCTION_BEFORE.reliability, rule=Ema(alpha)),
        latency=replace(PRODUCTION_BEFORE.latency, rule=Ema(latency_alpha)),
    )


def with_floor(policy: Policy, floor: float) -> Policy:
    """Return the policy that also refuses every route whose success rate reads below `floor` (0: the policy itself).

    A route without a stamp reads 1, so it passes. Raises ReplayError where the floor is not in [0, 1].

    >>> from replay.core import load_policy, SHIPPED_FIELDS
    >>> balanced = admit(load_policy("balanced"), Schema.declare(SHIPPED_FIELDS))
    >>> with_floor(balanced, 0.9).term[1][2]
    ['cmp', 'success_rate', 'ge', 0.9]
    """
    if not 0 <= floor <= 1:
        raise ReplayError(f"the reliability floor is {floor}; expected a share from 0 to 1, for example 0.9")
    if floor == 0:
        return policy
    name, accepted, *others = policy.term
    return admit([name, ["and", accepted, ["cmp", "success_rate", "ge", floor]], *others], policy.schema)


def floored(ledger: Ledger, floor: float) -> Ledger:
    """Return the ledger with `with_floor` applied to every recorded policy, each still under its recorded identity.

    That makes a what-if: the calls name the policies they were decided with, and find them with a floor.
    """
    rows = ledger.policies.to_dicts()
    for row in rows:
        schema = Schema.declare(json.loads(row["declared_fields"]), json.loads(row["tiers"]))
        row["term"] = json.dumps(with_floor(admit(json.loads(row["term"]), schema), floor).term)
    return replace(ledger, policies=pl.DataFrame(rows, schema=ledger.policies.schema))


@dataclass(frozen=True)
class Look:
    """One setting on a slice, not proved: its decisions and predictions (columns as in a run's folder).

    `turned_by_floor` counts the decisions that choose another route, or none, because of the floor.
    """

    settings: Settings
    decisions: pl.DataFrame
    predictions: pl.DataFrame
    turned_by_floor: int


def look(
    ledger: Ledger,
    settings: Settings,
    policy: Policy | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    floor: float = 0.0,
    progress: engine.Progress | None = None,
) -> Look:
    """Replay one setting over [since_ms, until_ms), unproved, with a reliability floor on whatever policy decides.

    `policy` None decides each call with its recorded policy. Raises ReplayError as `engine.run` does.
    """
    plain = engine.run(ledger, [settings], policy, since_ms, until_ms, progress, prove=False)
    if floor == 0 or plain.decisions.is_empty():
        return Look(settings, plain.decisions, plain.predictions, 0)
    given = policy and with_floor(policy, floor)
    done = engine.run(floored(ledger, floor), [settings], given, since_ms, until_ms, progress, prove=False)
    both = plain.decisions.select("call_id", "chosen_route").join(
        done.decisions.select("call_id", "chosen_route"), on="call_id", suffix="_floored"
    )
    turned = both["chosen_route"].ne_missing(both["chosen_route_floored"]).sum()
    return Look(settings, done.decisions, done.predictions, int(turned))


@dataclass(frozen=True)
class Contrast:
    """Two looks at one slice, held against each other; frames as `analysis.prequential` and `analysis.decisions`."""

    figures: pl.DataFrame
    differences: pl.DataFrame
    flips: pl.DataFrame
    flip_summary: pl.DataFrame
    verdict: list[str]

    def leading(self) -> pl.DataFrame:
        """Return the Brier differences as the router read them, over all attempts: overall and per route."""
        asked = (pl.col("question") == prequential.AS_READ) & (pl.col("metric") == prequential.BRIER)
        return self.differences.filter(asked & (pl.col("over") == prequential.OVER_ALL))


def contrast(first: Look, second: Look) -> Contrast:
    """Compare two looks at the same slice of the same ledger; a difference below 0: the first predicts better."""
    a, b = first.settings, second.settings
    if a.name == b.name:
        raise ReplayError(f"both looks are called {a.name!r}; expected two settings, each under its own name")
    window_ms = max(a.longest_window_ms, b.longest_window_ms)
    predictions = pl.concat([first.predictions, second.predictions])
    decisions = pl.concat([first.decisions, second.decisions])
    asked_q = quantiles([a, b])
    figures = prequential.score(predictions, asked_q)
    differences = (
        prequential.differences(predictions, a.name, [b.name], window_ms=window_ms, quantiles=asked_q)
        if len(predictions)
        else pl.DataFrame(schema=prequential.DIFFERENCES_SCHEMA)
    )
    flips, summary = pl.DataFrame(), None
    if len(decisions):
        pair = {"setting_a": pl.lit(a.name), "setting_b": pl.lit(b.name)}
        flips = deciding.flips(decisions, a.name, b.name).with_columns(**pair)
        summary = deciding.flip_summary(decisions, a.name, b.name, window_ms=window_ms)
    return Contrast(
        figures=figures,
        differences=differences,
        flips=flips,
        flip_summary=pl.DataFrame(schema=deciding.SUMMARY_SCHEMA) if summary is None else summary,
        verdict=deciding.verdict(figures, differences, summary),
    )


def with_causes(
    flips: pl.DataFrame,
    ledger: Ledger,
    looks: tuple[Look, Look],
    policy: Policy | None = None,
    floor: float = 0.0,
    progress: engine.Progress | None = None,
) -> pl.DataFrame:
    """Return the flips of two looks with the `cause` that turned each (`replay.causes`).

    `policy` and `floor` are those that both looks were taken with.
    """
    axis = timeline.build(floored(ledger, floor) if floor else ledger)
    given = policy and with_floor(policy, floor)
    turned = causes(axis, given, looks[0].settings, looks[1].settings, flips, progress)
    return flips.join(turned, on="call_id", how="left", maintain_order="left")


def read_ledger(mirror: Path | None, progress: engine.Progress | None = None) -> tuple[Ledger, str]:
    """Return a ledger to tune on, and a sentence that says which: the mirror's, else the demo's.

    Without a mirror that is `demo/ledger.duckdb` in the working folder if it is there, else a demo recorded now into a
    folder that is gone again afterwards. The file is opened, read and closed. Raises ReplayError where there is no
    mirror at the path, or no attempt in it.
    """
    path = mirror or (DEMO_MIRROR if DEMO_MIRROR.is_file() else None)
    if path is not None:
        ledger = _read(path)
        source = str(path)
    else:
        say = progress or (lambda what, done, total: None)
        with TemporaryDirectory(prefix="replay-demo-") as folder:
            fresh = Path(folder) / "ledger.duckdb"
            record_demo(fresh, progress=lambda done, total: say("recording a simulated week", done, total))
            ledger = _read(fresh)
        source = "a demo recorded just now (simulated providers, the real router)"
    attempts = ledger.attempts
    if attempts.is_empty():
        raise ReplayError(f"{source} holds no attempts, so there is nothing to tune on: import a ledger first")
    first, last = (iso(int(attempts["ts"].sort()[place])) for place in (0, -1))
    return ledger, f"{source}: {len(ledger.calls):,} calls and {len(attempts):,} attempts, {first} to {last}."


def _read(path: Path) -> Ledger:
    with open_mirror(path) as connection:
        return load_ledger(connection, whole=False)


def policy_names(ledger: Ledger) -> list[str]:
    """Return the policies a slice can be decided with, the fitting one first: recorded ones, then those that ship."""
    recorded = set(ledger.calls["policy_id"].drop_nulls().to_list()) & set(ledger.policies["policy_id"].to_list())
    return [*([RECORDED] if recorded else []), "balanced", *(name for name in SHIPPED_POLICIES if name != "balanced")]


def policy_named(name: str) -> Policy | None:
    """Return a policy by one of `policy_names`; None for the recorded ones."""
    return None if name == RECORDED else admit(load_policy(name), Schema.declare(SHIPPED_FIELDS))


def instants(first: dt.date, last: dt.date) -> tuple[int, int]:
    """Return [from, until) in ms of whole days in UTC, both days included.

    >>> instants(dt.date(1970, 1, 1), dt.date(1970, 1, 2))
    (0, 172800000)
    """
    epoch = dt.date(1970, 1, 1)
    return (first - epoch).days * DAY_MS, ((last - epoch).days + 1) * DAY_MS


def day(at_ms: int) -> dt.date:
    """Return the day in UTC of an instant.

    >>> day(86_400_000)
    datetime.date(1970, 1, 2)
    """
    return dt.datetime.fromtimestamp(at_ms // 1000, dt.UTC).date()


def dates(ledger: Ledger) -> tuple[dt.date, dt.date, tuple[dt.date, dt.date]]:
    """Return the first and last day with attempts, and the days to begin with (see `telling_days`)."""
    ends = ledger.attempts["ts"].sort()
    first, last = day(int(ends[0])), day(int(ends[-1]))
    since_ms, until_ms = telling_days(ledger) or (0, 0)
    return first, last, (max(first, day(since_ms)), min(last, day(until_ms - 1)))


def routes(ledger: Ledger, since_ms: int, until_ms: int) -> list[str]:
    """Return the route keys with attempts ending in [since_ms, until_ms), most attempts first, then by key."""
    inside = ledger.attempts.filter(pl.col("ts").is_between(since_ms, until_ms, closed="left"))
    counted = inside.group_by(route_key_expr().alias("route_key")).len()
    return counted.sort(["len", "route_key"], descending=[True, False])["route_key"].to_list()


def telling_days(ledger: Ledger, days: int = 2) -> tuple[int, int] | None:
    """Return [from, until) of whole days (UTC) that hold the day of most failures; None without attempts.

    They end with that day, or begin with the ledger's first. Where nothing ever failed, the busiest day; of equals,
    the earliest. Two days hold enough hours for an interval.
    """
    if ledger.attempts.is_empty():
        return None
    per_day = ledger.attempts.group_by((pl.col("ts") // DAY_MS).alias("day")).agg(
        (~pl.col("ok")).sum().alias("failed"), pl.len().alias("attempts")
    )
    worst = int(per_day.sort(["failed", "attempts", "day"], descending=[True, True, False])["day"][0])
    first = max(worst - days + 1, int(per_day["day"].sort()[0]))
    return first * DAY_MS, (first + days) * DAY_MS


def to_toml(settings: Settings, comment: str = "") -> str:
    """Write settings as the TOML that `replay run --settings` and `settings.load` read; `comment` goes on top.

    >>> print(to_toml(window_settings(300_000)).splitlines()[0])
    name = "window 5m"
    """
    lines = [f"# {line}" for line in comment.splitlines()]
    table = settings.to_dict()
    lines += [f"{key} = {_toml(value)}" for key, value in table.items() if _worth_writing(value)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]"]
            lines += [f"{inner} = {_toml(item)}" for inner, item in value.items() if item is not None]
    return "\n".join(lines) + "\n"


def _worth_writing(value: Any) -> bool:
    return value is not None and not isinstance(value, dict)


def _toml(value: Any) -> str:
    """Write one value; JSON's strings, integers and booleans are TOML's, a table inside one is written inline."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)  # inf and nan, which JSON has not, are written as TOML writes them
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML refuses DEL as it is
