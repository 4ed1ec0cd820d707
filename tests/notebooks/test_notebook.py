from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import browser
import pytest
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from analysis import prequential
from replay import engine, settings, tuning
from replay.cli import run_cli
from replay.cli.notebook import FOLDER, command_line, notebook_names
from replay.ledger.load import Ledger

FROM_MS = 1772668800000  # 2026-03-05
UNTIL_MS = FROM_MS + tuning.DAY_MS
NOTEBOOKS = [FOLDER / f"{name}.py" for name in notebook_names()]


def marimo(*arguments: str, mirror: Path | None = None, folder: Path | None = None) -> str:
    """Run marimo (or Python, for a path) and return what it printed; fails the test where that fails."""
    named = {} if mirror is None else {"REPLAY_MIRROR": str(mirror)}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=os.environ | named, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_marimo_has_nothing_to_say(notebook: Path) -> None:
    """`marimo check --strict` is clean."""
    assert marimo("-m", "marimo", "check", "--strict", str(notebook)).strip() == ""


def test_it_runs_as_a_script_and_exports(demo_mirror: Path, tmp_path: Path) -> None:
    """`marimo export html` runs it as a script does, outside the checkout, and no cell fails."""
    page = tmp_path / "out.html"
    marimo("-m", "marimo", "export", "html", str(FOLDER / "window_tuning.py"), "-o", str(page), mirror=demo_mirror,
           folder=tmp_path)  # fmt: skip
    text = page.read_text()
    assert "choose different routes in" in text
    assert "Traceback" not in text


def test_its_numbers_are_the_engines(demo_ledger: Ledger, demo_mirror: Path) -> None:
    """On a day, through `app.run(defs=…)`: decisions, predictions and differences equal those of `engine.run`."""
    from notebooks.window_tuning import app

    given = {"window_ms": 300_000, "alpha": 0.1, "latency_alpha": 0.3, "floor": 0.0}
    span = {"since_ms": FROM_MS, "until_ms": UNTIL_MS, "policy": None}
    _, defined = app.run(defs={"mirror": demo_mirror, **span, **given})
    a, b = tuning.window_settings(300_000), tuning.ema_settings(0.1, 0.3)
    done = engine.run(demo_ledger, [a, b], None, FROM_MS, UNTIL_MS, prove=False)
    assert defined["predictions"].equals(done.predictions)
    assert defined["decisions"].equals(done.decisions)
    wanted = prequential.differences(done.predictions, a.name, [b.name], window_ms=1_800_000)
    assert defined["held"].differences.equals(wanted)
    assert defined["held"].flip_summary.filter(group="all")["flips"][0] > 50
    assert "unknown" not in defined["flips"]["cause"].to_list()
    assert defined["reliability"]["route_key"][0] == defined["route"]
    assert {*defined["route_charts"], *defined["setting_charts"]} == {"reliability", "latency", "flips", "differences"}
    read = [settings.from_dict(tomllib.loads(text)) for text in defined["exports"].values()]
    assert read == [a, b]


def test_its_proof_is_the_engines(demo_mirror: Path) -> None:
    """With the switch on, two hours are reproduced and audited, and the sentences say so."""
    from notebooks.window_tuning import app

    given = {"window_ms": 900_000, "alpha": 0.2, "latency_alpha": 0.3, "floor": 0.9, "prove": True}
    span = {"since_ms": FROM_MS, "until_ms": FROM_MS + 7_200_000, "policy": None}
    _, defined = app.run(defs={"mirror": demo_mirror, **span, **given})
    assert defined["proof"].proved
    assert defined["proof"].passed
    assert re.match(r"Reproduction: 100\.00% of \d+ decisions", defined["proof_said"][0])
    assert len(defined["proof_said"]) == 3


def test_without_a_mirror_it_records_a_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no demo in the folder, one is recorded and read, with progress; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    told: list[tuple[int, int]] = []
    ledger, said = tuning.read_ledger(None, lambda what, done, total: told.append((done, total)))
    assert len(ledger.calls) > 6_000
    assert said.startswith("a demo recorded just now")
    assert told
    assert list(tmp_path.iterdir()) == []


@contextmanager
def opened(mirror: Path, folder: Path) -> Iterator[str]:
    """Serve the notebook as an app, from a folder outside the checkout, and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = command_line("window_tuning", mirror, run=True, headless=True, port=port)
    with (folder / "marimo.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            browser.until(lambda: _answers(port), f"marimo at port {port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


DEEP = """
const found = [];
const visit = root => root.querySelectorAll('*').forEach(one => {
  if (one.matches(arguments[0])) found.push(one);
  if (one.shadowRoot) visit(one.shadowRoot);
});
visit(document);
"""
CHARTS = DEEP + "return found.map(one => one.tagName === 'CANVAS' ? one.toDataURL() : one.outerHTML);"
FIRST = DEEP + "return found[arguments[1]];"


def _shown(session: webdriver.Chrome) -> str:
    """Return the page's text once nothing runs any more and four charts are drawn; empty until then."""
    text = str(session.execute_script("return document.body.innerText"))
    running = session.execute_script("return document.querySelectorAll('[data-status=running], .mo-spinner').length")
    drawn = session.execute_script(CHARTS, ".marks")
    busy = running or "Replaying" in text or "Looking for causes" in text
    return text if "Keep it" in text and len(drawn) >= 4 and not busy else ""


def _all_other(before: list[str], after: list[str]) -> bool:
    """Say whether every picture was drawn anew."""
    return len(after) == len(before) and not set(before) & set(after)


@pytest.mark.slow
def test_a_slider_moves_chart_and_numbers(demo_mirror: Path, tmp_path: Path) -> None:
    """In headless Chromium: open, move the window, and chart and sentences change, without an error."""
    with browser.chromium(1200, 900) as session, opened(demo_mirror, tmp_path) as address:
        session.get(address)
        before = browser.until(lambda: _shown(session), "the notebook's first results")
        charts = session.execute_script(CHARTS, ".marks")
        assert "window 15m and EMA 0.2, latency 0.3 choose different routes in" in before
        browser.set_media(session, width=1200, height=3900)
        browser.screenshot(session, "notebook-before")
        thumb = session.execute_script(FIRST, "[role=slider]", 0)
        thumb.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)

        def moved() -> str:
            text = _shown(session)
            return text if "window 5m and EMA 0.2, latency 0.3 choose different routes in" in text else ""

        after = browser.until(moved, "the results of a 5 minute window")
        browser.until(lambda: _all_other(charts, session.execute_script(CHARTS, ".marks")), "four other pictures")
        stale = "return document.querySelectorAll('.marimo-output-stale, .output-area.stale, .stale').length === 0"
        browser.until(lambda: session.execute_script(stale), "no output that waits to be computed again")
        browser.screenshot(session, "notebook-after")
        assert before != after
        assert "Traceback" not in after
        assert session.execute_script("return document.querySelectorAll('.marimo-error').length") == 0
        assert browser.console_errors(session) == []


def test_notebook_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a name it lists; a wrong name, or a mirror that is not there, ends with one paragraph and code 2."""
    assert run_cli(["notebook"]) == 0
    assert capsys.readouterr().out.split() == ["window_tuning"]
    assert run_cli(["notebook", "nothing"]) == 2
    assert "expected one of window_tuning" in capsys.readouterr().err
    assert run_cli(["notebook", "window_tuning", "nowhere.duckdb"]) == 2
    assert "there is no mirror at nowhere.duckdb" in capsys.readouterr().err
