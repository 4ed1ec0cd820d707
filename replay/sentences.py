"""What a run's record shows, said in whole sentences: the same in a terminal, a report and a notebook."""

from __future__ import annotations

from typing import Any


def reproduction_said(result: dict[str, Any]) -> str:
    """Say what the reproduction shows, in one sentence."""
    compared, agreed, total = result["compared"], result["agreed"], result["decisions"]
    if result["kind"] == "none":
        return "Reproduction: there are no decisions to reproduce, the ledger holds attempts alone."
    share = f"{agreed / compared:.2%}" if compared else "none"
    if result["kind"] == "final-route agreement":
        why = "; ".join(f"{count:,} × {reason}" for reason, count in result["incomplete"].items())
        forced = f"for {result['forced']:,} of them only one candidate qualified, which says nothing"
        return (
            f"Final-route agreement: {share} of {compared:,} calls; {forced}. This is not reproduction, which this "
            f"ledger cannot show: {why}."
        )
    excluded = total - compared
    because = "; ".join(f"{count:,} × {reason}" for reason, count in result["excluded"].items())
    left_out = f"{excluded:,} of {total:,} excluded ({because})" if excluded else "none excluded"
    missed = "; ".join(f"{cause} {count:,}" for cause, count in result["causes"].items())
    return f"Reproduction: {share} of {compared:,} decisions with complete evidence, {left_out}." + (
        f" Mismatches: {missed}. First: {result['first_mismatch']}." if missed else ""
    )


def audit_said(one: dict[str, Any]) -> str:
    """Say what the audit of one setting found, in one sentence."""
    audit = one["audit"]
    if not audit["decisions"]:
        return f"Audit of {one['setting']}: nothing to audit, as no decision read any evidence."
    checked = f"{audit['decisions']:,} of {audit['of_decisions']:,} decisions, {audit['comparisons']:,} values"
    if audit["mismatches"]:
        return (
            f"Audit of {one['setting']} FAILED: {audit['mismatches']:,} mismatches in {checked}. First: "
            + "; ".join(audit["first_mismatches"][:3])
        )
    return f"Audit of {one['setting']}: 0 mismatches against production's SQL in {checked}."
