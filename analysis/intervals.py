"""Confidence intervals for ratios of sums over correlated events: the circular block bootstrap over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.errors import ReplayError

HOUR_MS = 3_600_000
CELLS_PER_BLOCK = 12
MIN_BLOCKS = 30
REPLICATES = 2_000
LEVEL_PERCENTILES = (2.5, 97.5)
_DRAWS_PER_CHUNK = 2_000_000  # bounds the memory of one chunk of replicates

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval, or the reason why there is none.

    `blocks` is the number of consecutive blocks of the span that hold data.
    """

    low: float | None
    high: float | None
    blocks: int
    reason: str | None = None

    @property
    def excludes_zero(self) -> bool:
        """Tell whether there is an interval and 0 lies outside it.

        >>> Interval(-0.2, -0.1, 40).excludes_zero, Interval(-0.2, 0.1, 40).excludes_zero
        (True, False)
        """
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def block_length_ms(window_ms: int) -> int:
    """Return the block length for figures measured over windows of `window_ms`: at least one hour.

    >>> block_length_ms(15 * 60_000), block_length_ms(6 * HOUR_MS)
    (3600000, 21600000)
    """
    return max(HOUR_MS, window_ms)


def block_bootstrap(
    time_ms: npt.ArrayLike,
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike,
    block_ms: int,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Return the 95 % interval of R = Σ numerator / Σ denominator over events at `time_ms`.

    Formula. The span from the first to the last event is cut into n cells of c = ⌈block_ms / 12⌉ ms and closed
    to a circle. A block is L = 12 consecutive cells and may start at any of the n cells. A replicate draws
    k = ⌈n / L⌉ starts S₁ … S_k with replacement, uniformly, and recomputes the ratio
    R* = Σⱼ N(Sⱼ) / Σⱼ D(Sⱼ), where N(s) and D(s) are the sums of numerator and denominator over the block at s.
    The interval is the 2.5th and 97.5th percentile of R* over the replicates.

    Symbols and units: `time_ms` (n events, integer ms), `numerator` and `denominator` (n events each, any unit;
    for a mean the denominator is all ones), `block_ms` (ms; use `block_length_ms(W)`), `replicates` (count),
    `seed` of NumPy's PCG64.

    Assumptions: events further apart than a block are about independent; the process does not drift over the
    span. Fewer than 30 consecutive blocks that hold data: no interval, and the reason says so.

    A block without events adds nothing to either sum. So of the k draws only the number that hit a block with
    events is drawn (binomial), then which ones: the same distribution, at a cost that follows the data and
    not the span. Sums are taken in the order (cell, numerator, denominator), so the result does not depend on
    the order of the events.

    Source: D. N. Politis and J. P. Romano (1992), "A circular block-resampling procedure for stationary data".

    Raises ReplayError on arrays of different lengths, values that are not finite, and a block or number of
    replicates below 1.

    >>> hours = np.arange(40 * 60) * 60_000
    >>> interval = block_bootstrap(hours, np.full(2400, 0.25), np.ones(2400), HOUR_MS)
    >>> interval.low, interval.high, interval.blocks
    (0.25, 0.25, 40)
    >>> block_bootstrap([0], [1], [1], HOUR_MS).reason
    '1 block of 60 min holds data; an interval needs 30'
    """
    times, over, under = _checked(time_ms, numerator, denominator, block_ms, replicates)
    if times.size == 0:
        return Interval(None, None, 0, "no data")
    cell_ms = -(-block_ms // CELLS_PER_BLOCK)
    cells = (times - times.min()) // cell_ms
    blocks = int(np.unique(cells // CELLS_PER_BLOCK).size)
    if blocks < MIN_BLOCKS:
        noun, verb = ("block", "holds") if blocks == 1 else ("blocks", "hold")
        length = f"{block_ms / 60_000:g} min"
        return Interval(None, None, blocks, f"{blocks} {noun} of {length} {verb} data; an interval needs {MIN_BLOCKS}")
    cell_count = int(cells.max()) + 1
    block_over, block_under = _block_sums(cells, over, under, cell_count)
    ratios = _replicate_ratios(block_over, block_under, cell_count, replicates, seed)
    if ratios.size == 0:
        return Interval(None, None, blocks, "the denominator is 0 everywhere")
    low, high = np.percentile(ratios, LEVEL_PERCENTILES)
    return Interval(float(low), float(high), blocks)


def _checked(
    time_ms: npt.ArrayLike, numerator: npt.ArrayLike, denominator: npt.ArrayLike, block_ms: int, replicates: int
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Return the three columns as arrays, or refuse them."""
    times = np.asarray(time_ms, dtype=np.int64)
    over, under = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if not times.shape == over.shape == under.shape or times.ndim != 1:
        raise ReplayError(
            f"A bootstrap was given columns of shapes {times.shape}, {over.shape} and {under.shape}; it expects three "
            "columns of one length. Take time, numerator and denominator from the same frame."
        )
    if block_ms < 1 or replicates < 1:
        raise ReplayError(
            f"A bootstrap was given blocks of {block_ms} ms and {replicates} replicates; both must be at least 1. "
            "Use block_length_ms(window_ms) and 2000."
        )
    if not (np.isfinite(over).all() and np.isfinite(under).all()):
        raise ReplayError(
            "A bootstrap was given a value that is not finite; numerators and denominators must be finite numbers. "
            "Leave out what cannot be scored and count it."
        )
    return times, over, under


def _block_sums(cells: IntArray, over: FloatArray, under: FloatArray, cell_count: int) -> tuple[FloatArray, FloatArray]:
    """Return both sums for every block start on the circle whose block holds data, by start.

    Only occupied cells are touched: a ledger of two years with a few busy days costs what the days cost.
    """
    order = np.lexsort((under, over, cells))
    occupied, first = np.unique(cells[order], return_index=True)
    starts = (occupied[:, None] - np.arange(CELLS_PER_BLOCK)) % cell_count
    _, which = np.unique(starts, return_inverse=True)
    which = which.ravel()
    sums: list[FloatArray] = []
    for column in (over, under):
        cell_sums = np.add.reduceat(column[order], first)
        sums.append(np.bincount(which, weights=np.repeat(cell_sums, CELLS_PER_BLOCK)).astype(np.float64))
    return sums[0], sums[1]


def _replicate_ratios(
    block_over: FloatArray, block_under: FloatArray, cell_count: int, replicates: int, seed: int
) -> FloatArray:
    """Return R* of every replicate whose denominator is not 0."""
    rng = np.random.Generator(np.random.PCG64(seed))
    draws = -(-cell_count // CELLS_PER_BLOCK)
    hits = rng.binomial(draws, block_over.size / cell_count, size=replicates)
    chunk = max(1, _DRAWS_PER_CHUNK // max(1, int(hits.max())))
    ratios: list[Any] = []
    for begin in range(0, replicates, chunk):
        part = hits[begin : begin + chunk]
        picked = rng.integers(0, block_over.size, size=int(part.sum()))
        replicate = np.repeat(np.arange(part.size), part)
        over = np.bincount(replicate, weights=block_over[picked], minlength=part.size)
        under = np.bincount(replicate, weights=block_under[picked], minlength=part.size)
        ratios.append(over[under != 0] / under[under != 0])
    return np.concatenate(ratios)
