"""`replay policy`: admit a policy and print what it is; explain one decision."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replay.cli.options import AsJson, Declared, SettingsName, Tiers, policy_named
from replay.cli.show import console
from replay.core.encoding import encode_argument, encode_term
from replay.core.explain import ExplainedCandidate, Explanation, FieldReading, decision_from_record, explain
from replay.core.library import SHIPPED_POLICIES, read_json
from replay.errors import ReplayError
from replay.settings import load as load_settings

PolicyName = Annotated[
    str, typer.Argument(metavar="FILE|NAME", help=f"A policy's JSON file, or one of {', '.join(SHIPPED_POLICIES)}.")
]


def check(
    policy: PolicyName,
    declared: Declared = None,
    tiers: Tiers = None,
    as_json: AsJson = False,
) -> None:
    """Admit a policy and print its identity, encoding and normal form.

    Example: replay policy check default
    """
    admitted = policy_named(policy, declared, tiers)
    if as_json:
        parts = {"identity": admitted.identity, "encoding": admitted.encoding, "normal": admitted.normal}
        typer.echo(json.dumps(parts, ensure_ascii=False, indent=1))
        return
    out = console()
    out.print(Text(f"{policy}: admitted"))
    for title, text in (
        ("identity", admitted.identity),
        ("encoding", admitted.encoding),
        ("normal form", pretty(admitted.normal)),
    ):
        out.print(Text(title, style="bold"))
        out.print(Text(text), soft_wrap=True)


def explain_command(
    policy: Annotated[
        str, typer.Argument(metavar="FILE|NAME", help="A policy's file or name; for a recorded call also: recorded.")
    ],
    decision: Annotated[
        Path | None, typer.Option(help="JSON file of a decision: {candidates, request, state, seed}, as in a vector.")
    ] = None,
    mirror: Annotated[Path | None, typer.Option(help="A mirror, with --call: explain a recorded decision.")] = None,
    call: Annotated[int | None, typer.Option(help="The id of the recorded call.")] = None,
    settings: SettingsName = "production-now",
    declared: Declared = None,
    tiers: Tiers = None,
) -> None:
    """Explain one decision: each candidate's fields, its reject reason or its score by sub-term, and the order.

    Example: replay policy explain recorded --mirror demo/ledger.duckdb --call 100
    """
    if (decision is None) == (mirror is None or call is None):
        raise ReplayError("say which decision: --decision FILE.json, or --mirror M.duckdb with --call ID, and not both")
    given = None if policy == "recorded" else policy_named(policy, declared, tiers)
    if mirror is not None and call is not None:
        from replay.explaining import explain_call  # the workbench's part: files need the core alone

        explained = explain_call(mirror, call, load_settings(settings), given)
    elif given is None:
        raise ReplayError("a decision from a file records no policy; name one instead of 'recorded'")
    else:
        record = read_json(str(decision), "expected a decision's JSON file; check the path and its content")
        explained = explain(given, *decision_from_record(record))
    console().print(render_explanation(explained))


_LINE = 100


def pretty(term: Any, indent: int = 0) -> str:
    """Write a normal form over several lines, one argument per line where a term does not fit into one.

    >>> pretty(("not", ("is", "no_log")))
    '(not (is "no_log"))'
    """
    text = encode_term(term)
    if len(text) + indent <= _LINE:
        return text
    op, *arguments = term
    lines = [
        pretty(argument, indent + 2)
        if isinstance(argument, tuple) and op != "chain"
        else encode_argument(op, place, argument)
        for place, argument in enumerate(arguments, start=1)
    ]
    return f"({op}\n" + "\n".join(" " * (indent + 2) + line for line in lines) + ")"


MAX_SUB_TERM_COLUMNS = 12


def render_explanation(explanation: Explanation) -> RenderableType:
    """Return tables for one explained decision: the order, the fields as read, the scores by sub-term."""
    parts: list[RenderableType] = [
        Text(f"policy {explanation.policy.identity[:12]}, selector {explanation.selector}"),
        _order_table(explanation),
        _fields_table(explanation),
    ]
    if any(explained.sub_scores for explained in explanation.candidates):
        parts += [_scores_table(explanation), _legend(explanation)]
    return Group(*parts)


def _order_table(explanation: Explanation) -> Table:
    table = Table("place", "candidate", "route", "score", "verdict", title="Order")
    for explained in sorted(explanation.candidates, key=_final_order):
        table.add_row(
            str(explained.place or ""),
            str(explained.index),
            Text(explained.candidate.route_key),
            "" if explained.score is None else _number(explained.score),
            Text(_verdict(explained, explanation)),
        )
    if explanation.plan.reason is not None:
        table.caption = f"nothing to call: {explanation.plan.reason}"
    return table


def _final_order(explained: ExplainedCandidate) -> tuple[int, int, int]:
    """Ranked ones by place, then those left out, then the rejected, each in candidate order."""
    group = 2 if explained.reason is not None else 1 if explained.place is None else 0
    return (group, explained.place or 0, explained.index)


def _verdict(explained: ExplainedCandidate, explanation: Explanation) -> str:
    if explained.reason is not None:
        return f"rejected: {explained.reason}"
    if explained.place is not None:
        return "first" if explained.place == 1 else "fallback"
    return (
        "not pinned" if explanation.request.pin is not None and not explained.sub_scores else "left out by the selector"
    )


def _fields_table(explanation: Explanation) -> Table:
    names = list(explanation.candidates[0].fields) if explanation.candidates else []
    table = Table(
        "candidate", *names, title="Fields as the policy reads them", caption="* default: nothing was observed"
    )
    for explained in explanation.candidates:
        table.add_row(str(explained.index), *(_reading(explained.fields[name]) for name in names))
    return table


def _scores_table(explanation: Explanation) -> Table:
    shown = explanation.sub_terms[:MAX_SUB_TERM_COLUMNS]
    table = Table("candidate", *(sub.label for sub in shown), title="Scores by sub-term")
    for explained in sorted(explanation.candidates, key=_final_order):
        if explained.sub_scores:
            table.add_row(str(explained.index), *(_number(score) for score in explained.sub_scores[: len(shown)]))
    if len(shown) < len(explanation.sub_terms):
        table.caption = f"the first {len(shown)} of {len(explanation.sub_terms)} sub-terms"
    return table


def _legend(explanation: Explanation) -> Text:
    shown = explanation.sub_terms[:MAX_SUB_TERM_COLUMNS]
    return Text("\n".join(f"{'  ' * sub.depth}{sub.label} = {sub.text}" for sub in shown))


def _reading(reading: FieldReading) -> str:
    value = reading.value
    text = ("true" if value else "false") if isinstance(value, bool) else _number(value)
    return f"{text}*" if reading.is_default else text


def _number(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else str(value)


def register(app: typer.Typer) -> None:
    """Add the sub-application `policy` to the application."""
    group = typer.Typer(help="Admit policies and explain their decisions.", no_args_is_help=True)
    group.command("check")(check)
    group.command("explain")(explain_command)
    app.add_typer(group, name="policy")
