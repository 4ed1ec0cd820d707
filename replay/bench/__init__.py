"""Benchmarks that compare: every figure stands beside the plain way of doing the same, measured in the same run.

`replay bench` runs them. Machines differ and are shared, so a bare time says nothing; a ratio within one run does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Say = Callable[[str, int, int], None]
"""Told what is being measured, how much is done, and of how much."""


@dataclass(frozen=True)
class Figure:
    """One measured number, and what it is measured against.

    `ratio` is this figure against the one named by `against` in the same run, as the aim states it; `aim` is what the
    project set out to reach, as text ("≥ 20×"), and `reached` whether it did (None: nothing was aimed at).
    """

    name: str
    value: float
    unit: str
    against: str | None = None
    ratio: float | None = None
    aim: str | None = None
    reached: bool | None = None


def best_of(rounds: int, work: Callable[[], object]) -> float:
    """Return the least seconds that some work took, the usual estimate on a machine that others share."""
    least = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - began)
    return least
