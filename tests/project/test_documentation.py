"""What the README and docs/ say is run: every command, and every line of output they quote."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from absent import absent
from typer.main import get_command

from replay.cli import build_app

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
SHARED = ROOT.parent / "shared"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS, OUTPUT = ("console", "sh"), "text"
SERVED_S = 15  # how long a command that serves until Ctrl-C is watched


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the section it stands in."""

    language: str
    text: str
    section: str


def blocks(page: Path) -> list[Block]:
    """Return a page's fenced blocks in order."""
    found, section, open_block = [], "", None
    for line in page.read_text(encoding="utf-8").splitlines():
        if open_block is not None:
            if line == "```":
                found.append(Block(open_block[0], "\n".join(open_block[1:]), section))
                open_block = None
            else:
                open_block.append(line)
        elif line.startswith("```"):
            open_block = [line.removeprefix("```")]
        elif line.startswith("## "):
            section = line.removeprefix("## ")
    assert open_block is None, f"{page.name}: a fenced block is not closed"
    return found


def sessions(page: Path) -> dict[str, list[Block]]:
    """Return the page's command and output blocks by session: one for each section on real data, one for the rest."""
    ours = [block for block in blocks(page) if block.language in (*COMMANDS, OUTPUT)]
    real = {block.section for block in ours if "../shared" in block.text}
    parts: dict[str, list[Block]] = {}
    for block in ours:
        parts.setdefault(block.section if block.section in real else "", []).append(block)
    return {title: part for title, part in parts.items() if any(block.language in COMMANDS for block in part)}


def _checked(line: str) -> str:
    """Return a line as it stands, with what its comment says of it checked.

    `# exit code N`: it ends with just that one. `# until Ctrl-C`: it is still running when it is stopped.
    """
    said = re.fullmatch(r"(.+?)\s+# (?:exit code (\d+)|until Ctrl-C)", line)
    if said is None:
        return line
    command, code = (said[1], said[2]) if said[2] else (f"timeout -s KILL {SERVED_S} {said[1]}", str(128 + 9))
    return f'code=0; {command} || code=$?; [ "$code" = {code} ] || {{ echo "exit code $code: {said[1]}"; exit 99; }}'


def script(part: list[Block]) -> str:
    """Return one bash script of the command blocks, in order, with a marker before each."""
    lines = ["set -euo pipefail"]
    for number, block in enumerate(part):
        if block.language in COMMANDS:
            lines.append(f"echo '@@ {number}'")
            lines += [_checked(line) for line in block.text.splitlines()]
    return "\n".join(lines)


EVERY = [
    pytest.param(page, title, id=page.name + (f"#{title}" if title else ""))
    for page in PAGES
    for title in sessions(page)
]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "title"), EVERY)
def test_the_commands_of_a_page_run_as_pasted(
    page: Path,
    title: str,
    checkout: Path,
    environment: dict[str, str],
    with_demo: Callable[[], None],
    request: pytest.FixtureRequest,
) -> None:
    """In order, in a checkout, each with its documented exit code; every quoted line is part of the output."""
    part = sessions(page)[title]
    if "../shared" in "".join(block.text for block in part) and not SHARED.is_dir():
        absent("the real data, ../shared beside the checkout, is not there")
    first_steps = page.name == "README.md" and not title
    if page.name != "README.md":
        with_demo()
    if "DATABASE_URL" in page.read_text(encoding="utf-8"):
        environment |= {"DATABASE_URL": request.getfixturevalue("postgres_url")}
    if not first_steps:  # which activate the environment themselves
        environment |= {"PATH": f"{checkout / '.venv' / 'bin'}:{environment['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script(part)],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, f"{page.name} exits with {done.returncode}:\n{done.stdout[-3000:]}"
    outputs = dict(re.findall(r"^@@ (\d+)$(.*?)(?=^@@ |\Z)", done.stdout, flags=re.MULTILINE | re.DOTALL))
    for number, block in enumerate(part):
        if block.language == OUTPUT:
            for line in filter(str.strip, block.text.splitlines()):
                assert line in outputs[str(number - 1)], f"{page.name} quotes what is not printed: {line}"


def test_the_readme_shows_commands() -> None:
    """The test above has something to run, on the demo and on real data."""
    assert set(sessions(ROOT / "README.md")) == {"", "Your own ledger"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page is a file of the checkout."""
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_commands_exist(page: Path) -> None:
    """A page names only commands that the command line has; what is coming is described, not named."""
    named = set(re.findall(r"`replay ([a-z]+)\b", page.read_text(encoding="utf-8")))
    assert named - set(get_command(build_app()).commands) == set()  # type: ignore[attr-defined]


@pytest.mark.parametrize("room", ["replay", "analysis"])
def test_every_module_has_its_room_on_the_architecture_page(room: str) -> None:
    """A newcomer finds each module named, or the folder that holds it."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = [path.name for path in (ROOT / room).glob("*.py") if not path.name.startswith("__")]
    unnamed = [name for name in modules if f"{name}`" not in page]
    assert unnamed == []
