"""The parts of a scenario's report, one per check: sentences and tables of what differs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from analysis.intervals import MIN_BLOCKS
from analysis.report.document import Block, Column, Paragraph, Points, Table
from replay.durations import iso
from replay.gate import figures
from replay.gate.check import Checked, not_reproduced
from replay.gate.figures import Divergence
from replay.sentences import audit_said, reproduction_said

TOP_ROWS = 10
LONG_ROWS = 20
LONG = 80
DASH = "–"


def of_input(one: Checked) -> list[Block]:
    """Say that the input is the same, and what differs in settings and policy."""
    assert one.now is not None
    given = one.now.record["input"]["tables"]
    rows = ", ".join(f"{table} {given[table]['rows']:,}" for table in ("calls", "route_observations", "offer_history"))
    content = given["calls"]["content"][:8]
    same = f"Input: the same ({rows} rows; content of calls {content})."
    if not len(one.counted("settings")):
        return [Paragraph(f"{same} Settings and policy: the same.")]
    return [Paragraph(same), *paths(one.counted("settings"), "Settings or policy differ")]


def of_decisions(one: Checked) -> list[Block]:
    """Count the decisions, and show the first divergence, flips by cause and the clearest flips."""
    counts = figures.counts(one)
    text = (
        f"Decisions: {counts['compared']:,} compared, {counts['flipped']:,} flipped, {counts['ties']:,} more flipped "
        f"on a tie, {counts['otherwise']:,} differ otherwise, {counts['added']:,} added, {counts['missing']:,} missing."
    )
    blocks: list[Block] = [Paragraph(text)]
    found = one.counted("decisions")
    if _columns(found):
        blocks.append(Points.of([_column_said(row) for row in _columns(found)], "bad"))
    first = figures.first_divergence(one)
    if first is None:
        return blocks
    return [*blocks, *_first_divergence(one, first), _by_cause(one), *_top_flips(one)]


def _first_divergence(one: Checked, first: Divergence) -> list[Block]:
    row = first.row
    text = (
        f"First divergence: call {row['call_id']} at {iso(row['decided_ms'])} under {row['setting']}, a "
        f"{row.get('request_class')} request. Likely cause: {first.cause.label}; {_cut(first.cause.said)}."
        f"{_upstream(one)}{_first_flip(one, row)}"
    )
    rows = []
    for value in first.values:
        short = _hash_short if value["column"] == "order_hash" else _short
        rows.append([value["column"] or value["kind"], short(value["baseline"]), short(value["now"])])
    columns = [Column("Column"), Column("Baseline", True), Column("Now", True)]
    return [Paragraph(text, "bad"), Table("What differs in it", columns, rows[:LONG_ROWS], note=_left(rows, LONG_ROWS))]


def _first_flip(one: Checked, diverged: dict[str, Any]) -> str:
    """Say when another route was first chosen, which may be long after the first divergence."""
    flipped = figures.changed(one).filter(pl.col("column") == "chosen_route")
    if flipped.is_empty():
        return " No decision flips."
    row = flipped.row(0, named=True)
    if (row["setting"], row["id"]) == (diverged["setting"], str(diverged["call_id"])):
        return " It flips."
    return f" First flip: call {row['id']} at {iso(row['at_ms'])} under {row['setting']}."


def _upstream(one: Checked) -> str:
    """Say what else changed that a decision's row cannot show: settings, costs, the shared SQL, the audit."""
    said = []
    for row in one.counted("settings").head(3).iter_rows(named=True):
        said.append(f"{row['id']} was {_short(row['baseline'])} and is {_short(row['now'])}")
    costs = one.counted("metrics").filter((pl.col("setting") == "") & (pl.col("column") == "value"))
    for row in costs.head(1).iter_rows(named=True):
        said.append(f"the {row['id']}, was {row['baseline']} and is {row['now']}, on the same tokens")
    answers = one.counted("sql")["id"].str.split(" ").list.first().unique(maintain_order=True).to_list()
    if answers:
        said.append(f"the shared SQL answers otherwise ({', '.join(answers)})")
    for replayed in one.now.record["replayed"] if one.now is not None else []:
        if replayed["audit"]["mismatches"]:
            said.append(f"the audit against production's SQL fails ({replayed['audit']['first_mismatches'][0]})")
            break
    return f" Upstream: {'; '.join(said)}." if said else ""


def _by_cause(one: Checked) -> Table:
    found = figures.changed(one)
    decision = pl.struct("setting", "id")
    causes = found.group_by("cause").agg(
        flips=decision.filter(pl.col("column") == "chosen_route").n_unique(), decisions=decision.n_unique()
    )
    rows = [
        [row["cause"], f"{row['flips']:,}", f"{row['decisions']:,}"]
        for row in causes.sort(["flips", "decisions", "cause"], descending=[True, True, False]).iter_rows(named=True)
    ]
    columns = [Column("Likely cause"), Column("Flips", True), Column("Decisions that differ", True)]
    return Table("By cause", columns, rows)


def _top_flips(one: Checked) -> list[Block]:
    """The flips whose weaker margin is largest come first; two lines each, one per side."""
    found = figures.flips(one)
    if found.is_empty():
        return []
    clearest = found.with_columns(clear=pl.min_horizontal("margin_a", "margin_b")).sort(
        ["tie", "clear", "call_id"], descending=[False, True, False], nulls_last=True
    )
    rows: list[list[str]] = []
    for row in clearest.head(TOP_ROWS).iter_rows(named=True):
        head = [
            str(row["call_id"]),
            iso(row["decided_ms"]),
            row["setting"],
            row["cause"] + (", tie" if row["tie"] else ""),
        ]
        for end, other, side in (("a", "b", figures.BASELINE), ("b", "a", figures.NOW)):
            seen = [
                f"{_number(row[f'{name}_{end}_in_{end}'], digits)} ({_number(row[f'{name}_{other}_in_{end}'], digits)})"
                for name, digits in (("score", 4), ("success_rate", 3), ("latency_ms", 0), ("price_in", 2))
            ]
            rows.append([*head, side, row[f"chosen_{end}"] or "none", _number(row[f"margin_{end}"], 4), *seen])
            head = ["", "", "", ""]
    columns = [
        Column("Call", True), Column("Decided"), Column("Setting"), Column("Likely cause"), Column("Side"),
        Column("Chooses"), Column("Margin", True), Column("Score", True), Column("Success", True),
        Column("Latency ms", True), Column("Price in", True),
    ]  # fmt: skip
    note = (
        "In brackets: what this side saw of the route that the other side chose; –: no stamp, or not in its first "
        "three."
    )
    return [Table(f"Clearest flips ({min(len(clearest), TOP_ROWS)} of {len(clearest):,})", columns, rows, note=note)]


def of_predictions(one: Checked) -> list[Block]:
    """Count the attempts that are predicted otherwise, and show the first."""
    assert one.now is not None
    found = one.counted("predictions")
    blocks: list[Block] = [Points.of([_column_said(row) for row in _columns(found)], "bad")] if _columns(found) else []
    rows = found.filter(pl.col("id") != "").sort("at_ms", nulls_last=True, maintain_order=True)
    if rows.is_empty():
        return blocks
    first, attempts = rows.row(0, named=True), rows.select("setting", "id").n_unique()
    ended = "" if first["at_ms"] is None else f", ended {iso(first['at_ms'])}"
    text = (
        f"Predictions: {attempts:,} of {len(one.now.predictions):,} differ; first of attempt {first['id']}{ended}, "
        f"under {first['setting']}: {first['column'] or first['kind']} was {_short(first['baseline'])} and is "
        f"{_short(first['now'])}."
    )
    return [*blocks, Paragraph(text)]


def of_metrics(one: Checked) -> list[Block]:
    """Show what changed in the figures, with paired intervals where there are any."""
    rows = [
        [
            row["setting"],
            f"decisions flipped, of {row['decisions']:,}",
            "0",
            f"{row['flips']:,}",
            f"{row['share']:+.2%}",
            _interval(row, "{:+.2%}"),
        ]
        for row in figures.flip_shares(one)
    ]
    for row in figures.metric_changes(one):
        said = [DASH if row[name] is None else f"{row[name]:{_form(row[name], 6)}}" for name in ("baseline", "now")]
        change = DASH if row["change"] is None else f"{row['change']:+{_form(row['change'])}}"
        rows.append([row["setting"] or "ledger", row["metric"], *said, change, _interval(row, "{:+.3g}")])
    if rows:
        columns = [
            Column("Of"), Column("Metric"), Column("Baseline", True), Column("Now", True), Column("Change", True),
            Column("95 % interval", True),
        ]  # fmt: skip
        return [Table("Metrics that changed", columns, rows)]
    return []


def of_sql(one: Checked) -> list[Block]:
    """Show which of the shared queries answer otherwise."""
    rows = [
        [row["id"].partition(" ")[0], row["setting"] or "", row["id"].partition(" ")[2], row["column"] or row["kind"],
         _short(row["baseline"]), _short(row["now"])]
        for row in one.counted("sql").iter_rows(named=True)
    ]  # fmt: skip
    columns = [Column(name) for name in ("Query", "Engine", "Values", "First difference", "Baseline", "Now")]
    return (
        [Table("The shared SQL answers otherwise", columns, rows[:LONG_ROWS], note=_left(rows, LONG_ROWS))]
        if rows
        else []
    )


def of_proof(one: Checked) -> list[Block]:
    """Say what the audit and the reproduction show now, and what differs in them."""
    assert one.now is not None
    record = one.now.record
    if one.problem is None and not len(one.counted("proof")):
        return []
    said = [Paragraph(reproduction_said(record["reproduction"]), "bad" if not_reproduced(record) else "plain")]
    said += [
        Paragraph(audit_said(replayed), "bad" if replayed["audit"]["mismatches"] else "plain")
        for replayed in record["replayed"]
    ]
    counted = one.counted("proof").filter(~pl.col("id").str.contains("first_mismatch"))  # the sentences show them
    return [Points(said), *paths(counted, "The proof differs")]


def paths(found: pl.DataFrame, caption: str) -> list[Block]:
    """Return differing places of the record as a table."""
    rows = [[row["id"], _short(row["baseline"]), _short(row["now"])] for row in found.iter_rows(named=True)]
    columns = [Column("What"), Column("Baseline"), Column("Now")]
    return [Table(caption, columns, rows[:LONG_ROWS], note=_left(rows, LONG_ROWS))] if rows else []


def _cut(text: str) -> str:
    """Cut hashes in a sentence to twelve digits."""
    return _HASH.sub(lambda found: found[0][:12] + "…", text)


def _columns(found: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the columns that differ as a whole."""
    return found.filter(pl.col("id") == "").to_dicts()


def _column_said(row: dict[str, Any]) -> str:
    said = {"added": "is new", "missing": "is not there any more", "changed": "has another type"}[row["kind"]]
    return f"The column {row['column']} {said} ({row['baseline'] or DASH} → {row['now'] or DASH})."


def _left(rows: Sequence[object], shown: int) -> str:
    return f"{len(rows) - shown:,} more are not shown; --diff FILE writes them all." if len(rows) > shown else ""


def _short(value: str | None) -> str:
    """Write a value for a table: doubles to nine digits, hashes to twelve, long texts cut."""
    if value is None:
        return DASH
    if _DOUBLE.fullmatch(value):
        return f"{float(value):.9g}"
    cut = 12 if _HASH.fullmatch(value) else LONG
    return value if len(value) <= cut else value[:cut] + "…"


def _hash_short(value: str | None) -> str:
    return DASH if value is None else value[:8] + "…"


_DOUBLE = re.compile(r"-?\d+(\.\d+(e[+-]?\d+)?|e[+-]?\d+)")
_HASH = re.compile(r"[0-9a-f]{32,}")


def _number(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:,.{digits}f}"


def _form(value: float, digits: int = 3) -> str:
    """Return how a figure is written: money in whole micro-dollars, all else to a few digits."""
    return "," if isinstance(value, int) else f".{digits}g"


def _interval(row: dict[str, Any], form: str) -> str:
    if row["low"] is not None:
        return f"[{form.format(row['low'])}, {form.format(row['high'])}]"
    few = 0 < row["blocks"] < MIN_BLOCKS
    return f"none: {row['blocks']} of {MIN_BLOCKS} blocks needed" if few else f"none: {row['reason']}"


PARTS: dict[str, Callable[[Checked], list[Block]]] = {
    "settings": of_input,
    "decisions": of_decisions,
    "predictions": of_predictions,
    "metrics": of_metrics,
    "sql": of_sql,
    "proof": of_proof,
}
"""Each check's part of the report, in its order."""
