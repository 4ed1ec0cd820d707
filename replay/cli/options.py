"""Options that several commands take, each declared once, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from replay import settings as settings_room
from replay.core.admission import AdmissionError
from replay.core.fields import Schema
from replay.core.library import SHIPPED_FIELDS, SHIPPED_POLICIES, load_policy, read_json
from replay.core.policy import Policy, admit
from replay.durations import instant_ms
from replay.errors import ReplayError
from replay.settings import PRESETS, Settings

_SETTINGS = f"a TOML file, {' or '.join(PRESETS)}"
_SINCE = "From this instant on, such as 2026-03-03 or 2026-03-06T10:00:00Z."
_UNTIL = "Up to this instant, and without it."

Mirror = Annotated[Path, typer.Argument(help="The mirror, a DuckDB file.")]
Runs = Annotated[list[Path], typer.Argument(help="One run's folder, or several of the same input.")]
MirrorOfRuns = Annotated[
    Path | None, typer.Option("--mirror", help="The mirror that was replayed, if it moved: causes and charts need it.")
]
SettingsNames = Annotated[
    list[str] | None,
    typer.Option("--settings", "-s", help=f"The settings: {_SETTINGS}; repeatable. By default production-now."),
]
SettingsName = Annotated[str, typer.Option("--settings", "-s", help=f"Whose stamps: {_SETTINGS}.")]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy", help=f"A JSON file, or one of {', '.join(SHIPPED_POLICIES)}; by default each call's recorded one."
    ),
]
Declared = Annotated[
    Path | None,
    typer.Option(help='JSON file of the fields that a policy file declares: {"x": {"sort": "Num", "default": 0}, …}.'),
]
Tiers = Annotated[str | None, typer.Option(help="Tier order, lowest first, separated by commas.")]
Since = Annotated[str | None, typer.Option(help=_SINCE)]
Until = Annotated[str | None, typer.Option(help=_UNTIL)]
SinceGiven = Annotated[str, typer.Option(help=_SINCE)]
UntilGiven = Annotated[str, typer.Option(help=_UNTIL)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]


def settings_named(names: list[str] | None) -> list[Settings]:
    """Return the settings of `--settings`, by default production's of today.

    >>> [one.name for one in settings_named(None)]
    ['production-now']
    """
    return [settings_room.load(name) for name in names or ["production-now"]]


def span_ms(since: str | None, until: str | None) -> tuple[int | None, int | None]:
    """Return the instants of `--since` and `--until`.

    >>> span_ms("1970-01-02", None)
    (86400000, None)
    """
    return None if since is None else instant_ms(since), None if until is None else instant_ms(until)


def policy_given(name: str | None, declared: Path | None = None) -> Policy | None:
    """Return the policy of `--policy`; None: each call's recorded one.

    Raises as `policy_named`, and where fields are declared for no policy.
    """
    if name is None and declared is not None:
        raise ReplayError(f"--declared {declared} was given without a policy; name one with --policy, or leave it out")
    return None if name is None else policy_named(name, declared)


def policy_named(name: str, declared: Path | None = None, tiers: str | None = None) -> Policy:
    """Load and admit a shipped policy or a file, with the fields and tiers declared for it.

    Shipped policies know their own fields. Raises `ReplayError`; for an undeclared field it says how to declare it.
    """
    fields: dict[str, Any] = dict(SHIPPED_FIELDS) if name in SHIPPED_POLICIES else {}
    if declared is not None:
        more = read_json(declared, 'expected {"name": {"sort": "Num" or "Bool", "default": …}}; check the file')
        if not isinstance(more, Mapping):
            raise ReplayError(f'{declared}: no JSON object; expected {{"name": {{"sort", "default"}}}}; correct it')
        fields.update(more)
    order = None if tiers is None else [tier.strip() for tier in tiers.split(",")]
    schema = Schema.declare(fields, order)
    try:
        return admit(load_policy(name), schema)
    except AdmissionError as refused:
        raise ReplayError(f"{refused}. {_advice(refused, name)}") from refused


def _advice(refused: AdmissionError, name: str) -> str:
    if refused.reason.startswith("undeclared field"):
        example = '{"that_field": {"sort": "Num", "default": 0}}'
        return (
            f"{name} observes a field that nobody declared: declare it with --declared FIELDS.json holding "
            f'for example {example} (sort "Num" or "Bool"), or correct its name.'
        )
    if refused.reason.startswith("unknown tier"):
        return f"{name} names a tier outside the order: give the order with --tiers, or correct the name."
    return f"{name} is not admitted, nothing was run: correct the term at that path."
