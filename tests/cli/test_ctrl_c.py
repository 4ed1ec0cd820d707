"""Ctrl-C: one sentence and exit code 130, whichever command it meets, and wherever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from replay.cli import STOPPED, _stoppable
from replay.errors import ReplayError, StoppedError
from replay.ledger.mirror import open_mirror


def _until_duckdb_is_there(running: subprocess.Popen[str]) -> None:
    """Wait until a process has loaded DuckDB, so that it is about to open its mirror, or waits for it."""
    until = time.monotonic() + 60
    maps = Path(f"/proc/{running.pid}/maps")
    while running.poll() is None and "duckdb" not in maps.read_text() and time.monotonic() < until:
        time.sleep(0.01)


@pytest.mark.parametrize(
    "words", [["info", "held.duckdb"], ["sweep", "held.duckdb", "--window", "1m,5m", "-o", "out.parquet"]]
)
def test_a_command_that_still_opens_its_mirror_is_stopped(words: list[str], tmp_path: Path) -> None:
    """The mirror is held, so the command cannot get past opening it; the whole group is told, as by a terminal."""
    with open_mirror(tmp_path / "held.duckdb", write=True):
        running = subprocess.Popen(
            [sys.executable, "-m", "replay", *words],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        _until_duckdb_is_there(running)
        os.killpg(running.pid, signal.SIGINT)
        out, said = running.communicate()
    assert (running.returncode, out, said.strip()) == (130, "", f"replay: {STOPPED}")
    assert [path.name for path in tmp_path.iterdir()] == ["held.duckdb"]


def _query() -> None:
    """End as a query of DuckDB does that Ctrl-C breaks into: with an error of its own."""
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    raise RuntimeError("Query interrupted")


def test_a_query_that_is_stopped_is_no_failure_of_the_query() -> None:
    """Whatever error a library makes of Ctrl-C, the command was stopped."""
    with pytest.raises(StoppedError, match=STOPPED), _stoppable():
        _query()


def test_an_error_that_nobody_caused_by_ctrl_c_stays_what_it_is() -> None:
    """Only after Ctrl-C is an error taken for its consequence."""
    with pytest.raises(ReplayError, match="as it was"), _stoppable():
        raise ReplayError("as it was")


def test_what_a_stopped_command_says_itself_stands() -> None:
    """A sweep knows what it keeps."""
    with pytest.raises(StoppedError, match="two of five are kept"), _stoppable():
        raise StoppedError("two of five are kept")


def test_the_handler_of_before_is_back_afterwards() -> None:
    """A caller of the library keeps its own."""
    before = signal.getsignal(signal.SIGINT)
    with _stoppable():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_beside_the_main_thread_nothing_is_installed() -> None:
    """Python allows a handler there only; a command run in another thread ends as ever."""
    ended: list[str] = []

    def work() -> None:
        with _stoppable():
            ended.append("well")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended == ["well"]
