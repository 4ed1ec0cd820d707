"""A pytest plugin: one test per scenario and check of a suite, the report as the failure text.

    pytest --replay-suite scenarios/suite.toml

or `replay_suite = "scenarios/suite.toml"` in the project's pytest settings, for runs that name no tests themselves.
`TEST_DATABASE_URL`, where it is set, has the shared SQL asked on that PostgreSQL too. Nothing of the workbench is
imported until a suite is named, and of its engine nothing until a test runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from replay.errors import ReplayError

if TYPE_CHECKING:
    from replay.gate.check import Checked
    from replay.gate.suite import Scenario

CHECKS = ("input", "settings", "decisions", "predictions", "metrics", "sql", "proof")
"""Each check is one test of a scenario."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--replay-suite`, and `replay_suite` in the settings file."""
    said = "replay the scenarios of this SUITE.toml against their accepted baselines; repeatable"
    parser.getgroup("replay").addoption("--replay-suite", action="append", default=[], metavar="SUITE.toml", help=said)
    parser.addini("replay_suite", "suites that are part of every run which names no tests itself", type="paths")


def pytest_configure(config: pytest.Config) -> None:
    """Add the suites of the command line to what is collected, and those of the settings unless tests were named."""
    named, standing = _suites(config)
    tests_named = config.args_source is pytest.Config.ArgsSource.ARGS
    for suite in named if tests_named else [*named, *standing]:
        if str(suite) not in config.args:
            config.args.append(str(suite))


def _suites(config: pytest.Config) -> tuple[list[Path], list[Path]]:
    """Return the suites named on the command line, and those of the settings file."""
    named = [(config.invocation_params.dir / given).resolve() for given in config.getoption("--replay-suite")]
    return named, [path.resolve() for path in config.getini("replay_suite")]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    """Collect a suite that was named here or there; any other TOML file is left alone."""
    if file_path.suffix != ".toml" or not any(file_path.resolve() in suites for suites in _suites(parent.config)):
        return None
    return SuiteFile.from_parent(parent, path=file_path)


class SuiteFile(pytest.File):
    """A suite: its scenarios, in the order of the file."""

    def collect(self) -> Iterator[ScenarioTests]:
        """Yield each scenario."""
        from replay.gate.suite import read_suite

        for scenario in read_suite(_shown(self)).scenarios:
            yield ScenarioTests.from_parent(self, name=scenario.name, scenario=scenario)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Say what is wrong with the file, without a traceback."""
        return str(excinfo.value) if isinstance(excinfo.value, ReplayError) else super().repr_failure(excinfo)


class ScenarioTests(pytest.Collector):
    """A scenario: replayed once, when the first of its checks is run."""

    def __init__(self, *, scenario: Scenario, **given: Any) -> None:
        super().__init__(**given)
        self.scenario = scenario

    @cached_property
    def checked(self) -> Checked:
        """The scenario held against its baseline."""
        try:
            from replay.gate.check import check
        except ModuleNotFoundError as error:
            raise ReplayError(
                f"{error.name} is not installed. The gate needs the workbench: pip install 'route-replay[workbench]'"
            ) from error
        return check(self.scenario, postgres_url=os.environ.get("TEST_DATABASE_URL") or None)

    def collect(self) -> Iterator[CheckTest]:
        """Yield one test per check; under pytest-xdist, with --dist loadgroup, all of them on one worker."""
        for name in CHECKS:
            test: CheckTest = CheckTest.from_parent(self, name=name)
            if self.config.pluginmanager.hasplugin("xdist"):
                test.add_marker(pytest.mark.xdist_group(f"replay {self.path} {self.name}"))
            yield test


class CheckTest(pytest.Item):
    """One check of a scenario."""

    def runtest(self) -> None:
        """Fail with the report where the scenario differs from its baseline in this check."""
        from replay.gate.report import failure

        assert isinstance(self.parent, ScenarioTests)
        checked = self.parent.checked
        if checked.skipped:
            pytest.skip(f"{self.parent.name}: {checked.problem}")
        text = failure(_shown(self), checked, self.name)
        if text is not None:
            raise DiffersError(text)
        if checked.verdict.value == 3 and self.name != "input":
            pytest.skip(f"{self.parent.name} is not comparable; its test `input` says why")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the report alone, without a traceback."""
        known = isinstance(excinfo.value, DiffersError | ReplayError)
        return str(excinfo.value) if known else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name the test in the failures' headings."""
        return self.path, None, f"{self.parent.name if self.parent else ''}: {self.name}"


class DiffersError(Exception):
    """A scenario differs from its baseline; the message is the report."""


def _shown(node: pytest.Item | pytest.Collector) -> Path:
    """Return the suite's path as a person would type it."""
    here = node.config.invocation_params.dir
    return node.path.relative_to(here) if node.path.is_relative_to(here) else node.path
