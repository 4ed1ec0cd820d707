"""A small world's ledger in a committed form, a suite over it, and an accepted baseline to be doctored."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from replay.calls import CallRequest
from replay.core import Policy, admit
from replay.gate.accept import accept
from replay.gate.check import Checked, check, compare
from replay.gate.outcome import PREDICTIONS, Outcome, replay_scenario
from replay.gate.suite import read_suite
from replay.ledger.folder import ledger_of, write_ledger_folder
from replay.ledger.rows import AttemptRow, CallRow, OfferRow, columns, values
from replay.settings import PRODUCTION_NOW
from replay.world import Arrival, Life, RouteModel, Scenario, simulate

START_MS = 1_000_000_000
TERM = [
    "policy",
    ["and", ["meets_req"], ["not", ["is", "breaker_open"]]],
    [
        "add",
        ["field", "success_rate"],
        ["scale", 0.5, ["neg", ["normalize", ["clamp", 0, 10_000, ["field", "latency_ms"]]]]],
    ],
    ["argmax"],
    ["id"],
    ["always", {"action": "next_candidate"}],
]
SUITE = """
[[scenario]]
name = "small"
guards = "Three routes of one family, one of which fails often: the windows push it down."
ledger = "ledger"
"""


def _offer(place: int, name: str) -> OfferRow:
    return OfferRow(
        id=place,
        valid_from=0,
        position=place,
        provider_id=name,
        model_family="m",
        price_in=1.0 + place,
        price_out=2.0,
        capabilities='{"supports_tools": true}',
    )


def _arrival(number: int) -> Arrival:
    request = CallRequest(usage_event_id=f"c{number}", session_id=f"s{number % 4}", tools=number % 3 == 0, seed=number)
    at_ms = START_MS + number * 20_000 + (number * 7919) % 13_000
    return Arrival(at_ms=at_ms, request=request, tokens_in=1000, tokens_out=100)


WORLD = Scenario(
    offers=tuple(_offer(place, name) for place, name in enumerate(("p", "q", "r", "s"), start=1)),
    routes={
        "p|m|p": RouteModel(success_rate=0.6, latency_median_ms=900),
        "q|m|q": RouteModel(success_rate=0.85, latency_median_ms=1100),
        "r|m|r": RouteModel(success_rate=0.9, latency_median_ms=1500),
        "s|m|s": RouteModel(success_rate=0.9, latency_median_ms=1900),
    },
    arrivals=tuple(_arrival(number) for number in range(60)),
    lives=(Life(replica="a.1", slot=0, start_ms=0), Life(replica="b.1", slot=1, start_ms=0)),
    write_lag_ms=(0, 10_000),
)


def _frame(kind: type, rows: Any) -> pl.DataFrame:
    listed = list(zip(*(values(row) for row in rows), strict=True))
    table = pa.table({name: pa.array(column) for name, column in zip(columns(kind), listed, strict=True)})
    return pl.DataFrame(table)


@pytest.fixture(scope="session")
def gate_policy() -> Policy:
    """The policy that every call of the small world was decided with."""
    return admit(TERM)


@pytest.fixture(scope="session")
def accepted(tmp_path_factory: pytest.TempPathFactory, gate_policy: Policy) -> Path:
    """A folder with suite.toml, its ledger and its accepted baseline; copy it, do not write into it."""
    folder = tmp_path_factory.mktemp("accepted")
    settings = PRODUCTION_NOW
    calls, attempts = simulate(WORLD, 3, settings, gate_policy).rows()
    schema = gate_policy.schema
    policy = (gate_policy.identity, json.dumps(gate_policy.term), json.dumps(schema.declared), json.dumps(schema.tiers))
    ledger = ledger_of(
        {
            "calls": _frame(CallRow, calls),
            "route_observations": _frame(AttemptRow, attempts),
            "offer_history": _frame(OfferRow, WORLD.offers),
            "policies": pl.DataFrame([policy], schema=["policy_id", "term", "declared_fields", "tiers"], orient="row"),
            "settings": pl.DataFrame({"settings_id": [settings.identity], "settings": [settings.to_json()]}),
        }
    )
    write_ledger_folder(folder / "ledger", ledger)
    (folder / "suite.toml").write_text(SUITE)
    suite = read_suite(folder / "suite.toml")
    assert check(suite.scenarios[0], update=True).proposal is not None
    accept(suite, [], "the first one")
    return folder


@pytest.fixture
def suite(accepted: Path, tmp_path: Path) -> Path:
    """A copy of the accepted suite, to be changed: the path of its suite.toml."""
    shutil.copytree(accepted, tmp_path / "gate")
    return tmp_path / "gate" / "suite.toml"


@pytest.fixture(scope="session")
def outcome(accepted: Path) -> Outcome:
    """What the accepted suite's scenario gives under the code at hand."""
    return replay_scenario(read_suite(accepted / "suite.toml").scenarios[0])


@pytest.fixture(scope="session")
def recorded(outcome: Outcome) -> Outcome:
    """The same as a baseline keeps it."""
    return dataclasses.replace(outcome, predictions=outcome.predictions.select(PREDICTIONS))


@pytest.fixture
def held(suite: Path, outcome: Outcome) -> Callable[..., Checked]:
    """Hold that outcome against the suite's baseline as its files now stand; keyword arguments go to `compare`."""

    def run(**given: Any) -> Checked:
        return compare(read_suite(suite).scenarios[0], outcome, **given)

    return run


@pytest.fixture
def checked(suite: Path) -> Callable[..., Checked]:
    """Replay and check the suite's scenario as its files now stand; keyword arguments go to `check`."""

    def run(**given: Any) -> Checked:
        return check(read_suite(suite).scenarios[0], **given)

    return run


Edit = Callable[[pl.DataFrame], pl.DataFrame]


@pytest.fixture
def doctored(suite: Path) -> Callable[[str, Edit], None]:
    """Change a frame of the accepted baseline, as if other code had been accepted: `doctored("decisions", edit)`."""

    def edit(name: str, change: Edit) -> None:
        path = suite.parent / "baselines" / "small" / f"{name}.parquet"
        change(pl.read_parquet(path)).write_parquet(path)

    return edit


def put(column: str, row: int, value: Any) -> Edit:
    """Return an edit that puts a value into one row of a column; a function is given the old value."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        cells = frame[column].to_list()
        cells[row] = value(cells[row]) if callable(value) else value
        return frame.with_columns(pl.Series(column, cells, dtype=frame.schema[column]))

    return change


@pytest.fixture(scope="session")
def putting() -> Callable[[str, int, Any], Edit]:
    """Make an edit that puts a value into one cell."""
    return put
