"""What a dying or starved process leaves behind: a mirror as it was before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replay.ledger.importers import import_file
from replay.ledger.mirror import open_mirror

IMPORT = """
import resource, signal, sys
from replay.errors import ReplayError
from replay.ledger.importers import import_file
limit = int(sys.argv[3])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
def note(step):
    print(step, flush=True)
    if step == sys.argv[4]:
        sys.stdin.read()
try:
    import_file(sys.argv[1], sys.argv[2], source="route_observations", note=note)
except ReplayError as error:
    print("refused:", error, flush=True)
    sys.exit(error.exit_code)
"""


def start(file: Path, mirror: Path, *, limit: int = 0, stop_at: str = "") -> subprocess.Popen[str]:
    """Start an import in another process, which stops and waits when it comes to a step."""
    return subprocess.Popen(
        [sys.executable, "-c", IMPORT, str(file), str(mirror), str(limit), stop_at],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def count(mirror: Path) -> int:
    """Return a mirror's number of attempts."""
    with open_mirror(mirror) as connection:
        row = connection.execute("SELECT count(*) FROM route_observations").fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of one attempt."""
    path = tmp_path / "small.csv"
    path.write_text("ts,ok,provider_id\n1700000000000,true,p\n")
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of 60,000 attempts, several megabytes in a mirror."""
    path = tmp_path / "large.csv"
    lines = (f"{1700000000000 + n},true,provider-{n * 7919},request-{n * 104729}\n" for n in range(60_000))
    path.write_text("ts,ok,provider_id,request_id\n" + "".join(lines))
    return path


def test_full_disk_leaves_the_mirror_unchanged(tmp_path: Path, small: Path, large: Path) -> None:
    """When the file may not grow any further, the import is refused in a sentence and the mirror reads as before."""
    mirror = tmp_path / "ledger.duckdb"
    import_file(small, mirror, source="route_observations")
    process = start(large, mirror, limit=mirror.stat().st_size + 300_000)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "refused:" in output
    assert "Traceback" not in output
    assert count(mirror) == 1
    assert import_file(large, mirror, source="route_observations").added == 60_000


def test_full_disk_leaves_no_new_mirror(tmp_path: Path, large: Path) -> None:
    """A first import that runs out of room leaves no mirror at all."""
    process = start(large, tmp_path / "new.duckdb", limit=600_000)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert list(tmp_path.iterdir()) == [large]


@pytest.mark.parametrize("step", ["storing route_observations", "committing"])
def test_killed_import_leaves_the_mirror_unchanged(tmp_path: Path, small: Path, large: Path, step: str) -> None:
    """An import killed before it commits leaves a mirror that opens and holds what it held."""
    mirror = tmp_path / "ledger.duckdb"
    import_file(small, mirror, source="route_observations")
    process = start(large, mirror, stop_at=step)
    assert process.stdout is not None
    while process.stdout.readline().strip() != step:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert count(mirror) == 1
    assert import_file(large, mirror, source="route_observations").added == 60_000


def test_interrupted_import_leaves_nothing(tmp_path: Path, large: Path) -> None:
    """Ctrl-C during a first import leaves no mirror behind."""
    mirror = tmp_path / "ledger.duckdb"
    process = start(large, mirror, stop_at="storing route_observations")
    assert process.stdout is not None
    while process.stdout.readline().strip() != "storing route_observations":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in output
    assert list(tmp_path.iterdir()) == [large]
