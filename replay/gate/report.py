"""What the gate says, in the order a reviewer asks: what differs, where it started, how much, how to see it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from analysis.report.document import Block, Command, Document, Paragraph, Points, Section
from replay.durations import iso
from replay.gate import figures
from replay.gate.check import Checked, Verdict
from replay.gate.parts import PARTS, paths
from replay.gate.text import section_text

_VERDICTS = {Verdict.same: "same", Verdict.regression: "REGRESSION", Verdict.not_comparable: "NOT COMPARABLE"}


def document(suite: Path, checked: Sequence[Checked]) -> Document:
    """Return the report of a suite: the scenarios that are not the same first, a line for each of the others."""
    bad = [one for one in checked if one.verdict is not Verdict.same]
    good = [one for one in checked if one.verdict is Verdict.same]
    sections = [section(suite, one) for one in bad]
    if good:
        items = [Paragraph(headline(one), "note" if one.skipped else "good") for one in good]
        notes = [Paragraph(note, "note") for one in good for note in _notes(suite, one)]
        sections.append(Section("same", "As accepted", [Points([*items, *notes])]))
    counted = f"{len(checked)} scenario{'s' if len(checked) > 1 else ''}"
    title = f"{len(bad)} of {counted} not as accepted" if bad else f"{counted} as accepted"
    return Document(f"Replay check: {title}", str(suite), [], sections)


def failure(suite: Path, one: Checked, check: str) -> str | None:
    """Return the text with which a test of one check fails, None where it holds.

    The test of the decisions tells all; the others tell their own part.
    """
    whole = {"input": one.verdict is Verdict.not_comparable, "decisions": len(one.counted("decisions")) > 0}
    if whole.get(check):
        return section_text(section(suite, one))
    broken = check == "proof" and one.verdict is Verdict.regression and one.problem is not None
    if one.verdict is Verdict.not_comparable or not (broken or len(one.counted(check))):
        return None
    blocks = [*_head(one), *PARTS[check](one), Command(again(suite, one))]
    return section_text(Section(one.scenario.name, f"{one.scenario.name}: {check} not as accepted", blocks))


def section(suite: Path, one: Checked) -> Section:
    """Return a scenario's whole report."""
    blocks = _head(one)
    if one.verdict is Verdict.not_comparable:
        blocks += paths(one.counted("input"), "The input differs")
    else:
        blocks += [block for part in PARTS.values() for block in part(one)]
    notes = list(_notes(suite, one))
    blocks += [Points.of(notes, "note")] if notes else []
    blocks.append(Command(again(suite, one)))
    return Section(one.scenario.name, f"{one.scenario.name}: {_VERDICTS[one.verdict]}", blocks)


def _head(one: Checked) -> list[Block]:
    return [Paragraph(headline(one), "lead"), Paragraph(f"It guards: {one.scenario.guards}")]


def headline(one: Checked) -> str:
    """Say in one sentence how a scenario stands."""
    name = f"{one.scenario.name}: "
    if one.skipped:
        return f"{name}skipped, {one.problem}"
    if one.verdict is Verdict.not_comparable:
        return f"{name}not comparable: {one.problem}."
    counts = figures.counts(one)
    if one.verdict is Verdict.same:
        allowed = one.differences.filter(pl.col("allowed").is_not_null()).height
        return f"{name}{counts['compared']:,} decisions as accepted" + (
            f", {allowed:,} allowed difference{'s' if allowed > 1 else ''}." if allowed else "."
        )
    return name + "; ".join([*_decisions_said(one, counts), *_rest_said(one)]) + "."


def _decisions_said(one: Checked, counts: dict[str, int]) -> Iterator[str]:
    said = [f"{counts['flipped']:,} of {counts['compared']:,} decisions flipped"] if counts["flipped"] else []
    said += [f"{counts['ties']:,} flipped on a tie"] if counts["ties"] else []
    if counts["otherwise"]:
        what = (
            "more differ in what they rest on" if said else f"of {counts['compared']:,} decisions differ, none flipped"
        )
        said.append(f"{counts['otherwise']:,} {what}")
    said += [f"{counts[what]:,} {what}" for what in ("added", "missing") if counts[what]]
    yield ", ".join(said) or f"none of {counts['compared']:,} decisions differs"
    first = figures.first_divergence(one)
    if first is not None:
        yield f"first at {iso(first.row['decided_ms'])}: {first.cause.label}"


def _rest_said(one: Checked) -> Iterator[str]:
    """Name the other checks that differ, and say if the replay does not even hold by itself."""
    others = [said for check, said in _NAMES.items() if len(one.counted(check))]
    if others:
        verb = "differs" if others == ["the proof"] else "differ"
        yield f"{', '.join(others[:-1])}{' and ' if others[:-1] else ''}{others[-1]} {verb}"
    if one.problem is not None:
        yield one.problem


_NAMES = {
    "settings": "settings or policy",
    "predictions": "predictions",
    "metrics": "metrics",
    "sql": "the shared SQL's answers",
    "proof": "the proof",
}


def again(suite: Path, one: Checked) -> str:
    """Return the command that reproduces a scenario's result, every difference in a file."""
    name = one.scenario.name
    return f"replay check {suite} {name}" + (f" --diff {name}.parquet" if len(one.differences) else "")


def _notes(suite: Path, one: Checked) -> Iterator[str]:
    """Say what was allowed, what was proposed, and what was refused."""
    used = one.differences.drop_nulls("allowed").group_by("allowed", maintain_order=True).len()
    for reason, count in used.iter_rows():
        what = "differences are" if count > 1 else "difference is"
        yield f"{one.scenario.name}: {count:,} {what} allowed: {reason}"
    if one.now is not None and one.before is not None and one.verdict is not Verdict.not_comparable:
        for allowed in one.scenario.allowed:
            if allowed.reason not in used["allowed"].to_list():
                yield f"{one.scenario.name}: nothing differs that this allows, so it can go: {allowed.reason}"
    if one.proposal is not None:
        yield f'Proposed in {one.proposal}; look at it, then: replay accept {suite} {one.scenario.name} --reason "…"'
    if one.refused is not None:
        yield f"No update was written: {one.refused}."
