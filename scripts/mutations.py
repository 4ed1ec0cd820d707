"""Does the gate notice? Break a rule in a scratch copy, one rule at a time, and see what catches it.

    python scripts/mutations.py [NAME…]

Each mutation changes a rule wherever it is written (the definition, its compiled twin, the shared SQL), so that the
code still agrees with itself and only a baseline or a test can know better. The gate is asked first, with the scenario
that should notice, then with all of them; where it stays green, the tests that should notice are run. Exit code 1 if
anything survives, or if a mutation no longer fits the code: then its texts in mutations.toml need bringing up to date.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from replay.cli.show import console

ROOT = Path(__file__).resolve().parents[1]
SUITE = "scenarios/suite.toml"
_LEFT_OUT = (".*", "__pycache__", "*.egg-info", "build", "demo", "runs")


@dataclass(frozen=True)
class Edit:
    """One text in a file, and what is written in its place; it must occur exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutation:
    """A broken rule: the scenario and the tests that should notice it."""

    name: str
    scenario: str
    tests: tuple[str, ...]
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Finding:
    """What caught a mutation (None: nothing did), the first line of its report, and where it says things diverge."""

    caught_by: str | None
    first_line: str
    divergence: str = ""


def read_mutations(path: Path = ROOT / "scripts/mutations.toml") -> list[Mutation]:
    """Read what is to be broken."""
    return [
        Mutation(one["name"], one["scenario"], tuple(one["tests"]), tuple(_edits(one["edit"])))
        for one in tomllib.loads(path.read_text(encoding="utf-8"))["mutation"]
    ]


def _edits(given: list[dict[str, Any]]) -> Iterator[Edit]:
    """Yield each edit once per file that it is made in."""
    for one in given:
        for file in one["files"]:
            yield Edit(file, one["old"], one["new"])


class StaleError(Exception):
    """A mutation does not fit the code any more."""


def applied(root: Path, mutation: Mutation) -> dict[Path, str]:
    """Return the texts of the mutated files; raises StaleError unless every edit fits exactly once."""
    texts: dict[Path, str] = {}
    for edit in mutation.edits:
        path = root / edit.file
        text = texts.get(path) or path.read_text(encoding="utf-8")
        if text.count(edit.old) != 1:
            raise StaleError(f"{mutation.name}: {edit.file} holds {edit.old!r} {text.count(edit.old)} times, not once")
        texts[path] = text.replace(edit.old, edit.new)
    return texts


class Scratch:
    """A copy of the checkout, in which the checkout's own environment runs the copy's code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "copy"
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        if (ROOT.parent / "shared").exists():  # real data that scenarios may name
            (folder / "shared").symlink_to(ROOT.parent / "shared")
        self.compiled = folder / "compiled"

    @contextmanager
    def mutated(self, mutation: Mutation) -> Iterator[None]:
        """Apply a mutation and take it back; what was compiled from other code is not used meanwhile."""
        before = {path: (path.read_bytes(), path.stat()) for path in (self.root / edit.file for edit in mutation.edits)}
        texts = applied(self.root, mutation)
        if any("/kernel/" in edit.file or "/estimators/" in edit.file for edit in mutation.edits):
            self.compiled = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            for path, text in texts.items():
                path.write_text(text, encoding="utf-8")
            yield
        finally:
            for path, (content, stat) in before.items():
                path.write_bytes(content)
                os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            self.compiled = self.folder / "compiled"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a module of the copy."""
        own = {
            "PYTHONPATH": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",  # a file is changed and changed back within a second
            "NUMBA_CACHE_DIR": str(self.compiled),
            "COLUMNS": "400",
        }
        environment = {key: value for key, value in os.environ.items() if key != "TEST_DATABASE_URL"} | own
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)


def gate(scratch: Scratch, *scenarios: str) -> Finding:
    """Ask the gate; exit code 2 means that the code at hand cannot even replay, which is a finding too."""
    done = scratch.run("replay", "check", SUITE, *scenarios)
    if done.returncode == 0:
        return Finding(None, "")
    failed = re.search(r"^(\S+): (?:REGRESSION|NOT COMPARABLE)\n=+\n\n(.*)$", done.stdout, re.MULTILINE)
    if failed is None:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing was said"]
        return Finding("the gate, which stopped", said[-1])
    report = done.stdout[failed.end() :]
    divergence = re.search(r"^✗ (First divergence: .*)$", report, re.MULTILINE)
    table = re.search(r"^(The (?:input differs|shared SQL answers otherwise))\n.*\n +(.*)$", report, re.MULTILINE)
    where = divergence[1] if divergence else f"{table[1]}: {' '.join(table[2].split())}" if table else ""
    return Finding(f"gate: {failed[1]}", failed[2], where)


def tests(scratch: Scratch, mutation: Mutation) -> Finding:
    """Run the tests that should notice."""
    done = scratch.run("pytest", "-q", "-x", "-p", "no:randomly", *mutation.tests)
    if done.returncode == 0:
        return Finding(None, "")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+?)(?: - (.*))?$", done.stdout, re.MULTILINE)
    where, said = (failed[1], failed[2] or "") if failed else ("collecting", (done.stdout + done.stderr).strip()[-200:])
    return Finding(f"test: {where}", said)


def find(scratch: Scratch, mutation: Mutation) -> Finding:
    """Ask the scenario that should notice, then all of them, then the tests."""
    with scratch.mutated(mutation):
        for found in (gate(scratch, mutation.scenario), gate(scratch)):
            if found.caught_by is not None:
                return found
        return tests(scratch, mutation)


def main(names: list[str]) -> int:
    """Run the named mutations, or all; print the table; return the exit code."""
    out = console()
    known = read_mutations()
    unknown = [name for name in names if not any(name in mutation.name for mutation in known)]
    if unknown:
        out.print(f"No mutation's name has {unknown[0]!r} in it.", markup=False)
        return 2
    chosen = [mutation for mutation in known if not names or any(name in mutation.name for name in names)]
    table = Table("Mutation", "Caught by", "First line of the report, and its first divergence", show_lines=True)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        scratch = Scratch(Path(folder))
        unchanged = gate(scratch)
        if unchanged.caught_by is not None:
            out.print(f"The gate is not green on unchanged code: {unchanged.first_line}", markup=False)
            return 1
        for number, mutation in enumerate(chosen, start=1):
            try:
                found = find(scratch, mutation)
            except StaleError as error:
                found = Finding(None, f"STALE: {error}")
            caught = found.caught_by or "NOTHING"
            bad += found.caught_by is None
            out.print(f"{number}/{len(chosen)} {mutation.name}: {caught}", markup=False, highlight=False)
            said = "\n".join(text for text in (found.first_line, found.divergence) if text)
            table.add_row(mutation.name, caught, said)
    out.print(table, markup=False)
    out.print(f"{len(chosen) - bad} of {len(chosen)} mutations were caught.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
