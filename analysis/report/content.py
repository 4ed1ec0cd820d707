"""The report's sections that come from frames: verdict, figures, tables, limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from analysis.decisions import STANDING
from analysis.intervals import MIN_BLOCKS
from analysis.prequential import ALL, percent, stamped_line
from analysis.report.document import Block, Column, Command, Paragraph, Points, Section, Table
from replay.durations import iso

TOP_FLIPS = 20
ROUTES_SHOWN = 40
DASH = "–"

LIMITS = (
    "A flip says that the choice differs, not that it would have been better: what the other route would have done was "
    "not recorded, and is not evaluable from this ledger.",
    STANDING,
    "Brier, log loss, log latency error and pinball loss judge the measurement of routes, not the requests' outcomes; "
    "smaller is better. A paired difference below 0 means that the first setting predicts better.",
    "Intervals are 95 % block-bootstrap intervals over time. Under 30 blocks that hold data there is none, and a "
    "difference without an interval decides nothing. With many routes, some intervals exclude 0 by chance.",
    "“As read” is what the router saw when it decided, “at the attempt” what was known when the attempt began. They "
    "are different questions; neither stands in for the other.",
    "A replay is open loop: another choice would have changed the evidence after it. That effect is not in here.",
)
"""What the numbers cannot say, in every report."""


def verdict_section(verdict: Sequence[str], names: Sequence[str], command: str) -> Section:
    """Return the reviewer's section: the leading sentence large, the others below it, and what prints them.

    `names` are the settings', which keep their first letter as it is.
    """
    begun = [one if one.startswith(tuple(names)) else one[:1].upper() + one[1:] for one in verdict]
    blocks: list[Block] = [Paragraph(sentence, "lead") for sentence in begun[:1]]
    blocks += [Points.of(begun[1:])] if begun[1:] else []
    return Section("verdict", "Verdict", [*blocks, Command(command)])


def figures_section(
    figures: pl.DataFrame,
    differences: pl.DataFrame,
    summary: pl.DataFrame,
    agreed: pl.DataFrame,
    process_range: pl.DataFrame,
    command: str,
) -> Section:
    """Return the overall figures: the share stamped, paired differences, each setting's own, flips, agreement.

    In: frames of `prequential.score`, `prequential.differences`, `decisions.flip_summary`, `decisions.agreement`, and
    `process_range` (setting, question, metric, lowest, highest, seeds). All but the first may be empty, and then show
    nothing.
    """
    blocks: list[Block] = [Paragraph(stamped_line(figures), "lead")]
    for pair in _pairs(differences.filter(pl.col("scope") == ALL)) if len(differences) else []:
        blocks.append(_differences_table(pair, command))
    blocks.append(_figures_table(figures.filter(pl.col("scope") == ALL), command))
    for pair in _pairs(summary.filter(pl.col("group") != "day")) if len(summary) else []:
        blocks.append(_flips_table(pair, "by cause and request class", command))
    blocks += [_agreement_table(agreed, command)] if len(agreed) else []
    blocks += [_process_range_table(process_range, command)] if len(process_range) else []
    return Section("figures", "Figures with intervals", blocks)


def tables_section(
    differences: pl.DataFrame,
    flips: pl.DataFrame,
    summary: pl.DataFrame,
    command: str,
    explain: Callable[[int], str],
) -> Section:
    """Return the long tables: the clearest flips with what both settings saw, differences per route, flips per day.

    `explain` gives the command that explains one call.
    """
    blocks: list[Block] = []
    for pair in _pairs(flips) if len(flips) else []:
        blocks.append(_top_flips(pair, explain))
    for pair in _pairs(differences.filter(pl.col("scope") != ALL)) if len(differences) else []:
        blocks.append(_routes_table(pair, command + " --routes"))
    for pair in _pairs(summary.filter(pl.col("group") == "day")) if len(summary) else []:
        blocks.append(_flips_table(pair, "by day (UTC)", command))
    if not blocks:
        blocks.append(Paragraph("One setting was replayed, so there is nothing that flips or differs.", "note"))
    return Section("tables", "Tables", blocks)


def limits_section(more: Sequence[str] = ()) -> Section:
    """Return what the numbers cannot say; `more` are limits of this ledger."""
    return Section("limits", "What these numbers cannot say", [Points.of([*more, *LIMITS])])


def _pairs(frame: pl.DataFrame) -> list[pl.DataFrame]:
    return frame.partition_by("setting_a", "setting_b", maintain_order=True)


def _names(pair: pl.DataFrame) -> tuple[str, str]:
    return pair["setting_a"][0], pair["setting_b"][0]


def _number(value: float | None, digits: int = 4) -> str:
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float | None, digits: int = 4) -> str:
    return DASH if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _count(value: int | None) -> str:
    return DASH if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return DASH if value is None else percent(value)


def _seconds(at_ms: int) -> str:
    """Write an instant in UTC to the second, for a column of them.

    >>> _seconds(1772409600250)
    '2026-03-02 00:00:00'
    """
    return iso(at_ms // 1000 * 1000).replace("T", " ").removesuffix("Z")


def _span(row: dict[str, Any], write: Callable[[float | None], str]) -> str:
    """Write an interval, or why there is none."""
    if row["low"] is None:
        few = 0 < (row["blocks"] or 0) < MIN_BLOCKS
        return f"none: {row['blocks']} of {MIN_BLOCKS} blocks" if few else row["reason"] or "no interval"
    return f"[{write(row['low'])}, {write(row['high'])}]"


def _differences_table(pair: pl.DataFrame, command: str) -> Table:
    a, b = _names(pair)
    columns = [
        Column("Question"), Column("Metric"), Column("Over"), Column(a, True), Column(b, True),
        Column("Difference", True), Column("95 % interval", True), Column("Attempts", True), Column("Blocks", True),
    ]  # fmt: skip
    rows = [
        [
            row["question"], row["metric"], row["over"], _number(row["value_a"]), _number(row["value_b"]),
            _signed(row["difference"]), _span(row, _signed), _count(row["attempts"]), _count(row["blocks"]),
        ]
        for row in pair.iter_rows(named=True)
        if row["difference"] is not None
    ]  # fmt: skip
    caption = f"Paired differences, {a} − {b}"
    return Table(caption, columns, rows, command, f"Below 0: {a} predicts better. Both settings on the same attempts.")


def _figures_table(figures: pl.DataFrame, command: str) -> Table:
    columns = [
        Column("Question"), Column("Metric"), Column("Setting"), Column("Value", True), Column("Attempts", True),
        Column("Not scored", True), Column("Stamped", True), Column("Clipped", True),
    ]  # fmt: skip
    rows = [
        [
            row["question"], row["metric"], row["setting"], _number(row["value"]), _count(row["attempts"]),
            _count(row["unscored"]), _share(row["stamped_share"]), _share(row["clipped_share"]),
        ]
        for row in figures.iter_rows(named=True)
        if row["value"] is not None or row["unscored"]
    ]  # fmt: skip
    note = "Each setting over all attempts it could be asked of: not paired, so read differences in the table above."
    return Table(
        "Prediction, before looking", columns, rows, command, note if figures["setting"].n_unique() > 1 else ""
    )


def _flips_table(pair: pl.DataFrame, by: str, command: str) -> Table:
    a, b = _names(pair)
    columns = [
        Column("By"), Column(""), Column("Flips", True), Column("Of decisions", True), Column("Share", True),
        Column("95 % interval", True), Column("Ties apart", True),
    ]  # fmt: skip
    rows = [
        [
            "all decisions" if row["group"] == ALL else row["group"], "" if row["group"] == ALL else row["key"],
            _count(row["flips"]), _count(row["decisions"]), _share(row["share"]), _span(row, _share),
            _count(row["ties"]),
        ]
        for row in pair.iter_rows(named=True)
    ]  # fmt: skip
    return Table(f"Decisions that flip between {a} and {b}, {by}", columns, rows, command)


def _agreement_table(agreed: pl.DataFrame, command: str) -> Table:
    columns = [
        Column("Setting"), Column("Held against"), Column("Agreed", True), Column("Of decisions", True),
        Column("Share", True), Column("95 % interval", True),
    ]  # fmt: skip
    rows = [
        [
            row["setting"], row["label"], _count(row["agreed"]), _count(row["decisions"]), _share(row["share"]),
            _span(row, _share),
        ]
        for row in agreed.iter_rows(named=True)
    ]  # fmt: skip
    return Table("Choices that are what was recorded", columns, rows, command)


def _process_range_table(process_range: pl.DataFrame, command: str) -> Table:
    columns = [
        Column("Setting"), Column("Question"), Column("Metric"), Column("Lowest", True), Column("Highest", True),
        Column("Assignments", True),
    ]  # fmt: skip
    rows = [
        [row["setting"], row["question"], row["metric"], _number(row["lowest"]), _number(row["highest"]),
         _count(row["seeds"])]
        for row in process_range.iter_rows(named=True)
    ]  # fmt: skip
    note = "Which process took which call is not recorded; one assignment’s figure would be luck."
    return Table("Range over assignments of calls to assumed processes", columns, rows, command, note)


def _top_flips(pair: pl.DataFrame, explain: Callable[[int], str]) -> Table:
    """The flips whose weaker margin is largest come first: there the settings disagree most clearly."""
    a, b = _names(pair)
    columns = [
        Column("Call", True), Column("Decided (UTC)", True), Column("Class"), Column("Cause"), Column("Setting"),
        Column("Chooses"), Column("Score", True), Column("Other’s score", True), Column("Margin", True),
        Column("Success", True), Column("Other’s", True), Column("Latency, ms", True), Column("Other’s", True),
    ]  # fmt: skip
    clearest = pair.with_columns(pl.min_horizontal("margin_a", "margin_b").alias("clear")).sort(
        ["tie", "clear", "call_id"], descending=[False, True, False], nulls_last=True
    )
    rows: list[list[str]] = []
    for row in clearest.head(TOP_FLIPS).iter_rows(named=True):
        for end, other, setting in (("a", "b", a), ("b", "a", b)):
            first = end == "a"
            head = [
                str(row["call_id"]),
                _seconds(row["decided_ms"]),
                row["request_class"] or "",
                row.get("cause") or "",
            ]
            rows.append(
                [
                    *(head if first else ["", "", "", ""]), setting, row[f"chosen_{end}"] or "no candidate",
                    _number(row[f"score_{end}_in_{end}"]), _number(row[f"score_{other}_in_{end}"]),
                    _number(row[f"margin_{end}"]), _number(row[f"success_rate_{end}_in_{end}"], 3),
                    _number(row[f"success_rate_{other}_in_{end}"], 3), _number(row[f"latency_ms_{end}_in_{end}"], 0),
                    _number(row[f"latency_ms_{other}_in_{end}"], 0),
                ]
            )  # fmt: skip
    ties = int(pair["tie"].sum())
    flips = f"{len(pair) - ties:,}" + (f", and {ties:,} ties apart" if ties else "")
    shown = f"the {TOP_FLIPS} clearest of {flips}" if len(pair) > TOP_FLIPS else flips
    note = (
        "Two lines per call, one per setting: its choice, and beside it what it saw of the route the other chose. "
        "The larger the smaller margin, the clearer the flip. A dash: no such stamp, or not in the top three. "
        "All of them are in compare/flips.parquet of the run’s folder; the command explains the first."
    )
    caption = f"Flips between {a} and {b}: {shown}"
    return Table(caption, columns, rows, explain(int(clearest["call_id"][0])), note)


def _routes_table(pair: pl.DataFrame, command: str) -> Table:
    a, b = _names(pair)
    columns = [
        Column("Route"), Column("Question"), Column("Metric"), Column("Difference", True),
        Column("95 % interval", True), Column("Attempts", True),
    ]  # fmt: skip
    scored = pair.filter(pl.col("difference").is_not_null() & (pl.col("metric") != "log loss"))
    routes = scored["scope"].unique(maintain_order=True).to_list()
    rows = [
        [row["scope"], row["question"], f"{row['metric']} ({row['over']})", _signed(row["difference"]),
         _span(row, _signed), _count(row["attempts"])]
        for route in routes[:ROUTES_SHOWN]
        for row in scored.filter(pl.col("scope") == route).iter_rows(named=True)
    ]  # fmt: skip
    left = f" The {ROUTES_SHOWN} with most attempts of {len(routes)} routes." if len(routes) > ROUTES_SHOWN else ""
    caption = f"Paired differences per route, {a} − {b}"
    return Table(caption, columns, rows, command, f"Below 0: {a} predicts better on this route’s attempts.{left}")
