"""This project's own regression gate, on its own scenarios; and that what guards them is up to date."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from replay.gate.check import Verdict, check
from replay.gate.report import document
from replay.gate.suite import Scenario, read_suite
from replay.gate.text import to_text

ROOT = Path(__file__).parents[2]
SUITE = read_suite(ROOT / "scenarios/suite.toml")
LARGEST_BYTES = 1_500_000


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SUITE.scenarios, ids=[one.name for one in SUITE.scenarios])
def test_a_scenario_decides_as_accepted(scenario: Scenario, postgres_url: str) -> None:
    """The code at hand decides every committed scenario as its baseline says, and PostgreSQL answers the shared SQL.

    The failure text is the gate's report.
    """
    checked = check(scenario, postgres_url=postgres_url)
    if checked.skipped:
        assert checked.problem, "a scenario is skipped for the reason that its suite gives, never without one"
        pytest.skip(checked.problem)
    assert checked.verdict is Verdict.same, to_text(document(SUITE.path, [checked]))
    assert checked.now is not None
    assert checked.now.postgres is not None


def test_there_are_six_scenarios_of_our_own_and_each_says_what_it_guards() -> None:
    """Those whose data may be missing do not count."""
    assert len([one for one in SUITE.scenarios if one.absent is None]) >= 6
    assert all(one.guards.endswith(".") for one in SUITE.scenarios)


def test_the_scenarios_stay_small() -> None:
    """Ledgers and baselines are committed, so that every clone carries them."""
    assert sum(file.stat().st_size for file in (ROOT / "scenarios").rglob("*") if file.is_file()) < LARGEST_BYTES


def test_no_proposal_is_left_beside_a_baseline() -> None:
    """A proposal is accepted or deleted, not committed."""
    assert not list((ROOT / "scenarios").rglob("*.new"))


def test_a_scenario_on_a_slice_covers_what_the_slice_was_cut_for(tmp_path: Path) -> None:
    """Without since and until in the suite, the warm-up is there to rest on and is not decided again."""
    ledger = ROOT / "scenarios/ledgers/silent-tools"
    entry = f'[[scenario]]\nname = "bare"\nguards = "The span."\nledger = "{ledger}"\n'
    (tmp_path / "suite.toml").write_text(entry)
    (bare,) = read_suite(tmp_path / "suite.toml").scenarios
    ours = SUITE.only(["silent-tools"]).scenarios[0]
    assert (bare.since_ms, bare.until_ms) == (ours.since_ms, ours.until_ms)


@pytest.fixture(scope="module")
def mutations() -> ModuleType:
    """The script that breaks one rule at a time."""
    spec = importlib.util.spec_from_file_location("mutations", ROOT / "scripts/mutations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_mutation_still_fits_the_code(mutations: ModuleType) -> None:
    """Fifteen rules can be broken, each text to be replaced occurring exactly once: `make mutations` does the rest."""
    known = mutations.read_mutations()
    assert len(known) == 15
    for mutation in known:
        changed = mutations.applied(ROOT, mutation)
        assert all(text != path.read_text(encoding="utf-8") for path, text in changed.items())


def test_every_mutation_names_a_scenario_and_tests_that_exist(mutations: ModuleType) -> None:
    """What should notice it is there."""
    scenarios = {one.name for one in SUITE.scenarios}
    for mutation in mutations.read_mutations():
        assert mutation.scenario in scenarios
        assert all((ROOT / test).exists() for test in mutation.tests)


def test_a_mutation_that_does_not_fit_is_refused(mutations: ModuleType) -> None:
    """A text that is not there, or there twice, is never half applied."""
    stale = mutations.Mutation("m", "s", (), (mutations.Edit("replay/errors.py", "no such text", ""),))
    with pytest.raises(mutations.StaleError, match="0 times, not once"):
        mutations.applied(ROOT, stale)
