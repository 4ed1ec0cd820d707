"""SUITE.toml: what it may say, and one sentence for what it may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replay.cli import run_cli
from replay.errors import ReplayError
from replay.gate.suite import Allowed, read_suite

LEAST = '[[scenario]]\nname = "a"\nguards = "g"\nledger = "l"\n'


def written(folder: Path, text: str) -> Path:
    """Write a suite's text into a folder."""
    path = folder / "suite.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_least_a_scenario_says(tmp_path: Path) -> None:
    """Name, guards and ledger: production's settings today, each call's own policy, the whole ledger."""
    (one,) = read_suite(written(tmp_path, LEAST)).scenarios
    assert (one.name, one.guards, one.ledger) == ("a", "g", tmp_path / "l")
    assert one.baseline == tmp_path / "baselines" / "a"
    assert [settings.name for settings in one.settings] == ["production-now"]
    assert (one.policy, one.since_ms, one.until_ms, one.source, one.absent, one.allowed) == (
        None, None, None, None, None, ()
    )  # fmt: skip


def test_all_a_scenario_may_say(tmp_path: Path) -> None:
    """Files lie beside the suite; instants may be TOML's own."""
    (tmp_path / "mine.toml").write_text("seed = 7\n")
    (tmp_path / "fields.json").write_text('{"weight": {"sort": "Num", "default": 1}}')
    (tmp_path / "own.json").write_text(
        '["policy", ["top"], ["field", "weight"], ["argmax"], ["id"], ["always", {"action": "next_candidate"}]]'
    )
    text = f"""baselines = "accepted"
{LEAST}
source = "aider_calls"
settings = ["production-before", "mine.toml"]
policy = "own.json"
declared = "fields.json"
since = 2026-03-02T00:00:00Z
until = "2026-03-03"
absent = "it is private"
[[scenario.allow]]
reason = "r"
columns = ["margin"]
calls = [3]
"""
    (one,) = read_suite(written(tmp_path, text)).scenarios
    assert one.baseline == tmp_path / "accepted" / "a"
    assert [(settings.name, settings.seed) for settings in one.settings] == [("production-before", 0), ("mine", 7)]
    assert one.policy is not None
    assert (one.since_ms, one.until_ms) == (1_772_409_600_000, 1_772_496_000_000)
    assert one.allowed == (Allowed("r", ("margin",), (3,)),)
    assert (one.source, one.absent) == ("aider_calls", "it is private")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no scenario"),
        ("[[scenario]", "cannot be read as TOML"),
        ("baseline = 'x'\n" + LEAST, "has no key 'baseline'; it knows baselines, scenario"),
        ("scenario = 3", r"expected \[\[scenario\]\] tables"),
        (LEAST + LEAST, "lists the scenario 'a' more than once"),
        (LEAST.replace('"a"', '"../a"'), "expected letters, digits, - and _"),
        (LEAST.replace('guards = "g"\n', ""), "has no guards; expected a text"),
        (LEAST.replace('"g"', '" "'), "has ' ' as guards; expected a text"),
        (LEAST + "legder = 'x'", "has no key 'legder'"),
        (LEAST + "settings = 'production-now'", "expected a list of texts"),
        (LEAST + "settings = ['nowhere']", "no settings"),
        (LEAST + "settings = ['production-now', 'production-now']", "two settings of one name"),
        (LEAST + "policy = 'nowhere'", "expected a policy file"),
        (LEAST + "since = '2026-03-03'\nuntil = '2026-03-02'", "not after its start"),
        (LEAST + "since = 'yesterday'", "is not an instant"),
        (LEAST + "[[scenario.allow]]\nreason = 'r'", "allows every difference"),
        (LEAST + "[[scenario.allow]]\ncalls = [1]", "has no reason"),
        (LEAST + "[[scenario.allow]]\nreason = 'r'\ncalls = [true]", "expected a list of whole numbers"),
    ],
)
def test_a_suite_that_is_wrong_is_refused(tmp_path: Path, text: str, said: str) -> None:
    """With a sentence, and exit code 2."""
    path = written(tmp_path, text)
    with pytest.raises(ReplayError, match=said):
        read_suite(path)
    assert run_cli(["check", str(path)]) == 2


def test_a_policy_that_is_not_admitted_is_refused(tmp_path: Path) -> None:
    """It observes a field that nobody declared."""
    (tmp_path / "own.json").write_text(
        '["policy", ["top"], ["field", "weight"], ["argmax"], ["id"], ["always", {"action": "next_candidate"}]]'
    )
    with pytest.raises(ReplayError, match=r"the policy own\.json is not admitted: .*weight"):
        read_suite(written(tmp_path, LEAST + "policy = 'own.json'"))


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    """A path that was misspelt."""
    with pytest.raises(ReplayError, match="there is no suite"):
        read_suite(tmp_path / "suite.toml")


def test_scenarios_are_picked_by_name(tmp_path: Path) -> None:
    """An unknown name is refused with those there are."""
    suite = read_suite(written(tmp_path, LEAST + LEAST.replace('"a"', '"b"')))
    assert [one.name for one in suite.only([]).scenarios] == ["a", "b"]
    assert [one.name for one in suite.only(["b"]).scenarios] == ["b"]
    with pytest.raises(ReplayError, match="has no scenario 'c'; it has a, b"):
        suite.only(["c"])


@pytest.mark.parametrize("since", ["noon", 1.5, None, [1]])
def test_a_slice_whose_manifest_gives_no_span_is_replayed_whole(tmp_path: Path, since: Any) -> None:
    """What is not a pair of instants in ms is no span; that the input is another one then, the check says."""
    (tmp_path / "ledger").mkdir()
    said = {"slice": {"since_ms": since, "until_ms": 2_000_000_000}}
    (tmp_path / "ledger" / "manifest.json").write_text(json.dumps(said))
    (scenario,) = read_suite(written(tmp_path, LEAST.replace('"l"', '"ledger"'))).scenarios
    assert (scenario.since_ms, scenario.until_ms) == (None, None)
