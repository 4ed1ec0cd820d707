from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from replay.errors import ReplayError
from replay.ledger.mirror import TABLES, open_mirror

HOLD = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """An existing empty mirror."""
    path = tmp_path / "ledger.duckdb"
    with open_mirror(path, write=True):
        pass
    return path


@pytest.fixture
def holder(mirror: Path):
    """Another process that holds the mirror until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(mirror)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline().strip() == "held"
    yield process
    process.communicate()


def test_writer_creates_every_table(mirror: Path) -> None:
    """A new mirror holds production's tables, all empty, for a reader."""
    with open_mirror(mirror) as connection:
        counts = [connection.execute(f"SELECT count(*) FROM {table}").fetchone() for table in TABLES]
    assert counts == [(0,)] * 7


def test_reader_cannot_write(mirror: Path) -> None:
    """A reader's connection refuses to write."""
    with open_mirror(mirror) as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("DELETE FROM calls")


def test_reader_of_a_missing_mirror_creates_nothing(tmp_path: Path) -> None:
    """A path that does not exist is refused with the command that creates a mirror."""
    with pytest.raises(ReplayError, match="replay import FILE --into"), open_mirror(tmp_path / "none.duckdb"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_failing_block_removes_the_new_file(tmp_path: Path) -> None:
    """A writer whose block fails leaves no file behind that was not there before."""
    with pytest.raises(ZeroDivisionError), open_mirror(tmp_path / "new.duckdb", write=True):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_failing_block_keeps_an_existing_file(mirror: Path) -> None:
    """A writer whose block fails keeps a mirror that was there before."""
    with pytest.raises(ZeroDivisionError), open_mirror(mirror, write=True):
        _ = 1 / 0
    with open_mirror(mirror) as connection:
        assert connection.execute("SELECT count(*) FROM calls").fetchone() == (0,)


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("content", [b"", b"ts,ok\n1,true\n" * 1000])
def test_a_file_that_is_not_duckdb_is_refused(tmp_path: Path, content: bytes, write: bool) -> None:
    """A file of another kind is refused by readers and writers, and stays as it was."""
    path = tmp_path / "ledger.duckdb"
    path.write_bytes(content)
    with pytest.raises(ReplayError, match="is not a mirror"), open_mirror(path, write=write):
        pass
    assert path.read_bytes() == content


@pytest.mark.parametrize("write", [True, False])
def test_a_foreign_duckdb_file_is_refused(tmp_path: Path, write: bool) -> None:
    """A DuckDB file with other tables is refused and gets none of ours."""
    path = tmp_path / "other.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")
    with pytest.raises(ReplayError, match="without the tables calls"), open_mirror(path, write=write):
        pass
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("cats",)]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    """A folder given as a mirror is named as one."""
    with pytest.raises(ReplayError, match="is a folder"), open_mirror(tmp_path, write=True):
        pass


@pytest.mark.parametrize("write", [True, False])
def test_a_held_mirror_is_refused_and_the_holder_named(mirror: Path, holder, write: bool) -> None:
    """After the bounded wait the error names the process that holds the file."""
    began = time.monotonic()
    with (
        pytest.raises(ReplayError, match=f"held by process {holder.pid}"),
        open_mirror(mirror, write=write, wait_s=0.3),
    ):
        pass
    assert 0.3 <= time.monotonic() - began < 5


def test_a_released_mirror_is_opened(mirror: Path, holder) -> None:
    """A mirror that is released within the wait is opened."""
    closer = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    with pytest.raises(ReplayError), open_mirror(mirror, wait_s=0.0):
        pass
    holder.stdin.close()
    with open_mirror(mirror, wait_s=10.0) as connection:
        assert connection.execute("SELECT count(*) FROM calls").fetchone() == (0,)
    closer.wait()
    holder.stdin = None


def test_a_second_way_of_opening_in_one_process_is_refused(mirror: Path) -> None:
    """One process cannot read a mirror through a second connection while it writes it."""
    with (
        open_mirror(mirror, write=True),
        pytest.raises(ReplayError, match="already open in this process"),
        open_mirror(mirror),
    ):
        pass
