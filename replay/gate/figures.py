"""What the report counts and shows of a checked scenario: divergences, flips and changed metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from analysis import decisions as deciding
from analysis import prequential
from analysis.intervals import block_bootstrap, block_length_ms
from replay.durations import iso
from replay.errors import ReplayError
from replay.gate.borders import on_the_border
from replay.gate.check import Checked
from replay.gate.likely import UNSEEN, Likely, likely
from replay.gate.outcome import PREDICTIONS, Outcome
from replay.settings import quantiles

BASELINE, NOW = "baseline", "now"
_SPREAD = ("low", "high", "blocks", "reason")


def changed(one: Checked) -> pl.DataFrame:
    """Return the differing values of decisions that count, without columns that differ as a whole."""
    return one.counted("decisions").filter(pl.col("id") != "")


def counts(one: Checked) -> dict[str, int]:
    """Count decisions: compared, flipped (ties apart), otherwise different, added and missing."""
    assert one.now is not None
    rows = (
        changed(one)
        .group_by("setting", "id")
        .agg(flipped=(pl.col("column") == "chosen_route").any(), kind=pl.col("kind").first())
    )
    kinds = rows["kind"].to_list()
    added, missing = kinds.count("added"), kinds.count("missing")
    flipped, ties = int(rows["flipped"].sum()), int(flips(one)["tie"].sum())
    return {
        "compared": len(one.now.decisions) - added,
        "flipped": flipped - ties,
        "ties": ties,
        "otherwise": len(rows) - flipped - added - missing,
        "added": added,
        "missing": missing,
    }


@dataclass(frozen=True)
class Divergence:
    """The earliest decision that differs: its row now (or then), the values that differ, and the likely cause."""

    row: dict[str, Any]
    values: list[dict[str, Any]]
    cause: Likely


def first_divergence(one: Checked) -> Divergence | None:
    """Return the earliest decision that differs in anything compared and not allowed; None where none does."""
    found = changed(one)
    if found.is_empty():
        return None
    head = found.row(0, named=True)
    values = found.filter((pl.col("setting") == head["setting"]) & (pl.col("id") == head["id"])).to_dicts()
    row = _decision(one.now, head) or _decision(one.before, head) or {}
    return Divergence(row, values, _with_evidence(one, _likely(one, head), head["at_ms"]))


def _decision(side: Outcome | None, head: dict[str, Any]) -> dict[str, Any] | None:
    assert side is not None
    mine = (pl.col("setting") == head["setting"]) & (pl.col("call_id") == int(head["id"]))
    rows = side.decisions.filter(mine)
    return rows.row(0, named=True) if len(rows) else None


def _likely(one: Checked, head: dict[str, Any]) -> Likely:
    """Return the likely cause of a decision's difference; of a stamp's, with what lies on its evidence's border."""
    before, now = (_decision(side, head) for side in (one.before, one.now))
    cause = likely(before, now)
    if now is None or one.now is None or not cause.route:
        return cause
    settings = next(given for given in one.scenario.settings if given.name == head["setting"])
    seen = next(done["visibility"] for done in one.now.record["replayed"] if done["setting"] == head["setting"])
    borders = on_the_border(one.now.ends, settings, seen, now, cause)
    return replace(cause, said="; ".join([cause.said, *borders]))


def _with_evidence(one: Checked, cause: Likely, at_ms: int) -> Likely:
    """Where the first row does not show what moved, look at the next one that does, then at predictions until then."""
    if cause.label != UNSEEN:
        return cause
    shown = changed(one).filter(pl.col("cause") != UNSEEN)
    if len(shown):
        head = shown.row(0, named=True)
        more = _likely(one, head)
        return Likely(more.label, f"{cause.said}; call {head['id']} at {iso(head['at_ms'])} shows it: {more.said}")
    until = one.counted("predictions").filter((pl.col("id") != "") & (pl.col("at_ms") <= at_ms))
    moved = {"reliability evidence": ("p_start", "p_read"), "latency evidence": ("latency_start_ms", "latency_read_ms")}
    labels = [label for label, columns in moved.items() if until["column"].is_in(columns).any()]
    return Likely(" and ".join(labels), f"{cause.said}; predictions moved before it") if labels else cause


def flips(one: Checked) -> pl.DataFrame:
    """Return the flipped decisions that count, as `analysis.decisions.flips` with `setting` and `cause` beside it."""
    assert one.before is not None
    assert one.now is not None
    found = changed(one).filter(pl.col("column") == "chosen_route")
    causes = found.select("setting", pl.col("id").cast(pl.Int64).alias("call_id"), "cause")
    frames = []
    for setting, sides in _sides(one):
        if set(deciding.DECISIONS_SCHEMA) <= set(sides.columns):
            flipped = deciding.flips(sides, BASELINE, NOW).with_columns(setting=pl.lit(setting))
            frames.append(flipped.join(causes, on=["setting", "call_id"]))
    return pl.concat(frames) if frames else pl.DataFrame(schema={"tie": pl.Boolean})


def _sides(one: Checked) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each setting with its decisions then and now, as two settings over the calls that both decided."""
    assert one.before is not None
    assert one.now is not None
    for setting in one.now.decisions["setting"].unique(maintain_order=True).to_list():
        then, now = (side.decisions.filter(pl.col("setting") == setting) for side in (one.before, one.now))
        columns = [name for name in now.columns if then.schema.get(name) == now.schema[name]]
        if "call_id" not in columns or not len(then):
            continue
        both = [
            side.filter(pl.col("call_id").is_in(other["call_id"].implode()))
            .select(columns)
            .unique("call_id", keep="first", maintain_order=True)
            .with_columns(setting=pl.lit(name))
            for side, other, name in ((then, now, BASELINE), (now, then, NOW))
        ]
        yield setting, pl.concat(both)


def flip_shares(one: Checked) -> list[dict[str, Any]]:
    """Return, for each setting with flips, the row "all" of `analysis.decisions.flip_summary`."""
    rows = []
    for setting, sides in _sides(one):
        if set(deciding.DECISIONS_SCHEMA) <= set(sides.columns):
            row = deciding.flip_summary(sides, BASELINE, NOW, window_ms=_window_ms(one)).row(0, named=True)
            rows += [{**row, "setting": setting}] if row["flips"] or row["ties"] else []
    return rows


def metric_changes(one: Checked) -> list[dict[str, Any]]:
    """Return the metrics whose value changed: `setting`, `metric`, `baseline`, `now`, `change` and its interval.

    What is predicted is paired by attempt: the change is now − baseline over the attempts that both stamped (or, as
    read, all). `low` and `high` are None where `reason` says why.
    """
    assert one.before is not None
    assert one.now is not None
    then, now = ({(m["setting"], m["metric"]): m for m in side.record["metrics"]} for side in (one.before, one.now))
    paired = {**_paired(one), **_agreed(one)}
    rows = []
    for row in one.counted("metrics").filter(pl.col("column") == "value").iter_rows(named=True):
        key = (row["setting"], row["id"])
        was, is_now = (side.get(key, {}).get("value") for side in (then, now))
        head = {"setting": key[0], "metric": key[1], "baseline": was, "now": is_now}
        spread = {"low": None, "high": None, "blocks": 0, "reason": "not a mean over pairs"}
        change = is_now - was if was is not None and is_now is not None else None
        rows.append({**head, "change": change, **spread, **paired.get(key, {})})
    return rows


def _paired(one: Checked) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the paired change of each prequential metric, by setting and metric; {} where rows cannot be paired."""
    found = one.counted("predictions")
    if found.is_empty() or (found["id"] == "").any() or set(found["kind"]) != {"changed"}:
        return {}
    assert one.before is not None
    assert one.now is not None
    facts = one.now.predictions.drop(PREDICTIONS[2:])
    then = facts.join(one.before.predictions, on=PREDICTIONS[:2]).select(one.now.predictions.columns)
    changes, measured = {}, quantiles(one.scenario.settings)
    for setting in one.now.predictions["setting"].unique(maintain_order=True).to_list():
        both = [
            side.filter(pl.col("setting") == setting).with_columns(setting=pl.lit(name))
            for side, name in ((then, BASELINE), (one.now.predictions, NOW))
        ]
        try:
            told = prequential.differences(
                pl.concat(both),
                NOW,
                [BASELINE],
                window_ms=_window_ms(one),
                interval_routes=0,
                quantiles=dict.fromkeys((BASELINE, NOW), measured[setting]) if setting in measured else None,
            )
        except ReplayError:  # a damaged baseline predicts what nobody can, which the differences of rows show
            return {}
        for row in told.filter(pl.col("scope") == prequential.ALL).iter_rows(named=True):
            key = (setting, f"{row['metric']}, {row['question']}")
            if row["over"] == prequential.OVER_ALL or key not in changes:
                changes[key] = {"change": row["difference"], **{name: row[name] for name in _SPREAD}}
    return changes


def _agreed(one: Checked) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the paired change of agreement with the recorded first attempt, by setting and metric."""
    changes = {}
    for setting, sides in _sides(one):
        if set(deciding.DECISIONS_SCHEMA) <= set(sides.columns):
            then, now = (sides.filter(pl.col("setting") == name).sort("call_id") for name in (BASELINE, NOW))
            known = now["recorded_first_route"].is_not_null() & then["recorded_first_route"].is_not_null()
            hits = [
                side["chosen_route"].eq_missing(side["recorded_first_route"]).filter(known).cast(pl.Float64)
                for side in (now, then)
            ]
            gained, at_ms = hits[0] - hits[1], now["decided_ms"].filter(known)
            if len(gained):
                spread = block_bootstrap(
                    at_ms.to_numpy(), gained.to_numpy(), [1.0] * len(gained), block_ms=block_length_ms(_window_ms(one))
                )
                changes[(setting, deciding.FIRST_ATTEMPT_AGREEMENT)] = {name: getattr(spread, name) for name in _SPREAD}
    return changes


def _window_ms(one: Checked) -> int:
    return max(settings.longest_window_ms for settings in one.scenario.settings)
