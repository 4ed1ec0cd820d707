"""The benchmark, on small volumes: it measures what it says and leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from replay.bench.store import bench_store, crossing_volume


@pytest.mark.slow
def test_the_store_benchmark_gives_its_figures(postgres_url: str, ask: Callable[..., list[dict[str, Any]]]) -> None:
    """Both engines, the three states of the server, the two ways of writing; every comparison names a figure."""
    schemas = "SELECT nspname AS name FROM pg_namespace ORDER BY 1"
    before = ask(schemas)
    said: list[tuple[str, int, int]] = []
    figures = bench_store(lambda what, done, total: said.append((what, done, total)), True, postgres_url)
    names = [figure.name for figure in figures]
    assert len(set(names)) == len(names)
    assert {figure.against for figure in figures} <= {None, *names}
    assert all(figure.value > 0 for figure in figures)
    assert {"record_attempt, server up, median", "record_attempt, server gone, p99"} <= set(names)
    assert {"the store, committed", "derive all stamps, 1,000 attempts in the window, DuckDB"} <= set(names)
    assert said[-1][1] == said[-1][2]
    assert ask(schemas) == before


FLAT = ([7.67, 7.68], [7.68, 7.67], [7.5, 7.5])


@pytest.mark.parametrize(
    ("times_ms", "crossing"), [*((flat, math.inf) for flat in FLAT), ([30.0, 40.0], 100), ([10.0, 20.0], 1_000)]
)
def test_two_like_times_tell_of_no_crossing(times_ms: list[float], crossing: float) -> None:
    """A line that hardly rises, or falls, reaches no limit; one that begins above it, at once."""
    assert crossing_volume((100, 1_000), times_ms, 20.0) == pytest.approx(crossing)
