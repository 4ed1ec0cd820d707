"""The store in a base install: what it imports, and what it says where libpq is missing."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

RunPython = Callable[..., CompletedProcess[str]]

HEAVY = ("duckdb", "polars", "numpy", "numba", "pyarrow", "altair", "marimo", "typer", "rich")
HIDE_LIBPQ = """
import ctypes.util, sys
sys.modules["psycopg_binary"] = sys.modules["psycopg_c"] = None
ctypes.util.find_library = lambda name, found=ctypes.util.find_library: None if name == "pq" else found(name)
"""


def test_the_store_imports_nothing_of_the_workbench(run_python: RunPython) -> None:
    """psycopg and its pool, nothing heavier, even where the workbench is installed."""
    done = run_python(f"import replay.ledger.store, sys; print(sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_without_libpq_it_says_what_is_needed(run_python: RunPython) -> None:
    """One sentence to act on; everything that needs no database still works."""
    done = run_python(
        HIDE_LIBPQ + "import replay.queries, replay.router\nfrom replay.errors import ReplayError\n"
        "try: import replay.ledger.store\nexcept ReplayError as error: print(error)"
    )
    assert done.stderr == ""
    assert "expected libpq on this host" in done.stdout
    assert "psycopg[binary]" in done.stdout
