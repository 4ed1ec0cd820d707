import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.intervals import CELLS_PER_BLOCK, HOUR_MS, Interval, block_bootstrap, block_length_ms
from replay.errors import ReplayError


def circle(times, over, under, block_ms):
    """Return the block sums of every start on the circle, in plain Python."""
    cell_ms = math.ceil(block_ms / CELLS_PER_BLOCK)
    first = min(times)
    count = (max(times) - first) // cell_ms + 1
    cells = [[0.0, 0.0, 0] for _ in range(count)]
    for instant, a, b in zip(times, over, under, strict=True):
        cell = cells[(instant - first) // cell_ms]
        cell[0] += a
        cell[1] += b
        cell[2] += 1
    blocks = []
    for start in range(count):
        members = [cells[(start + i) % count] for i in range(CELLS_PER_BLOCK)]
        blocks.append(tuple(sum(member[i] for member in members) for i in range(3)))
    return blocks


def percentile(values, percent):
    """Return a percentile by linear interpolation between order statistics."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def sparse_events(seed, hours=200, share=0.4):
    """Return events in some hours only, with failures that cluster by hour."""
    rng = random.Random(seed)
    rows = []
    for hour in range(hours):
        if hour in (0, hours - 1) or rng.random() < share:
            rate = rng.random() * 0.5
            rows += [(hour * HOUR_MS + rng.randrange(HOUR_MS), float(rng.random() < rate)) for _ in range(9)]
    return [r[0] for r in rows], [r[1] for r in rows], [1.0] * len(rows)


def test_it_equals_a_plain_python_resampling_with_the_same_draws():
    """The vectorised interval is the one that loops over cells, blocks and draws give."""
    times, over, under = sparse_events(7)
    blocks = circle(times, over, under, HOUR_MS)
    full = [block for block in blocks if block[2]]
    rng = np.random.Generator(np.random.PCG64(5))
    hits = rng.binomial(math.ceil(len(blocks) / CELLS_PER_BLOCK), len(full) / len(blocks), size=300)
    ratios = []
    for hit in hits:
        drawn = [full[i] for i in rng.integers(0, len(full), size=int(hit))]
        ratios.append(math.fsum(b[0] for b in drawn) / math.fsum(b[1] for b in drawn))
    found = block_bootstrap(times, over, under, HOUR_MS, replicates=300, seed=5)
    assert found.low == pytest.approx(percentile(ratios, 2.5), abs=1e-12)
    assert found.high == pytest.approx(percentile(ratios, 97.5), abs=1e-12)


def test_it_agrees_with_drawing_every_block_uniformly():
    """Drawing only blocks that hold data has the distribution of drawing all blocks, empty ones too."""
    times, over, under = sparse_events(11, share=0.2)
    blocks = circle(times, over, under, HOUR_MS)
    rng = random.Random(3)
    ratios = []
    for _ in range(2_000):
        drawn = rng.choices(blocks, k=math.ceil(len(blocks) / CELLS_PER_BLOCK))
        ratios.append(sum(b[0] for b in drawn) / sum(b[1] for b in drawn))
    low, high = percentile(ratios, 2.5), percentile(ratios, 97.5)
    found = block_bootstrap(times, over, under, HOUR_MS, seed=1)
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))


def test_width_for_independent_events_is_the_textbook_width():
    """For independent coin flips the interval is about p ± 1.96 √(p(1−p)/n)."""
    rng = np.random.default_rng(2)
    n = 20_000
    times = np.arange(n) * (400 * HOUR_MS // n)
    flips = (rng.random(n) < 0.2).astype(float)
    found = block_bootstrap(times, flips, np.ones(n), HOUR_MS)
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.2 * 0.8 / n), rel=0.12)


def test_coverage_on_correlated_data_is_near_the_nominal_95_percent():
    """On failures that come in bad half hours the interval covers the true rate; one that ignores time does not."""
    covered = naive = 0
    trials = 300
    for trial in range(trials):
        rng = np.random.default_rng(1_000 + trial)
        times = np.sort(rng.integers(0, 300 * HOUR_MS, size=6_000))
        bad = rng.random(601) < 0.1
        rate = np.where(bad[times // (HOUR_MS // 2)], 0.8, 0.05)
        failed = (rng.random(times.size) < rate).astype(float)
        truth = 0.1 * 0.8 + 0.9 * 0.05
        found = block_bootstrap(times, failed, np.ones(times.size), HOUR_MS, replicates=400, seed=trial)
        covered += found.low <= truth <= found.high
        half = 1.96 * failed.std() / math.sqrt(times.size)
        naive += abs(failed.mean() - truth) <= half
    assert 0.90 <= covered / trials <= 0.98
    assert naive / trials < 0.80


def test_a_ratio_is_recomputed_in_every_replicate():
    """Where numerator is always twice the denominator, every replicate gives 2, however uneven the blocks."""
    times, _, _ = sparse_events(4)
    weights = [float(i % 7 + 1) for i in range(len(times))]
    found = block_bootstrap(times, [2 * w for w in weights], weights, HOUR_MS)
    assert (found.low, found.high) == (2.0, 2.0)


def test_under_30_blocks_there_is_no_interval_and_a_reason():
    """29 hours with data give no interval, 30 do, although the span is the same."""
    hours = [*range(28), 100]
    times = [hour * HOUR_MS for hour in hours]
    found = block_bootstrap(times, [1.0] * 29, [1.0] * 29, HOUR_MS)
    assert found == Interval(None, None, 29, "29 blocks of 60 min hold data; an interval needs 30")
    thirty = block_bootstrap([*times, 50 * HOUR_MS], [1.0] * 30, [1.0] * 30, HOUR_MS)
    assert (thirty.low, thirty.high, thirty.blocks, thirty.reason) == (1.0, 1.0, 30, None)


def test_no_data_and_no_denominator_are_said():
    """Empty input and a denominator of zeros give a reason, not a NaN."""
    assert block_bootstrap([], [], [], HOUR_MS).reason == "no data"
    times = [hour * HOUR_MS for hour in range(40)]
    found = block_bootstrap(times, [1.0] * 40, [0.0] * 40, HOUR_MS)
    assert (found.low, found.blocks, found.reason) == (None, 40, "the denominator is 0 everywhere")


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_row_order_never_matters(shuffler):
    """Any permutation of the events gives the identical interval."""
    times, over, under = sparse_events(13)
    over = [value * 0.1 + 1 / (i + 3) for i, value in enumerate(over)]
    rows = list(zip(times, over, under, strict=True))
    shuffler.shuffle(rows)
    assert block_bootstrap(*zip(*rows, strict=True), HOUR_MS, replicates=50) == block_bootstrap(
        times, over, under, HOUR_MS, replicates=50
    )


def test_the_seed_decides_the_draws():
    """The same seed repeats the interval, another one moves it."""
    times, over, under = sparse_events(17)
    first = block_bootstrap(times, over, under, HOUR_MS, seed=1)
    assert first == block_bootstrap(times, over, under, HOUR_MS, seed=1)
    assert first != block_bootstrap(times, over, under, HOUR_MS, seed=2)


def test_blocks_are_at_least_one_hour_and_else_the_window():
    """max(1 h, W)."""
    assert block_length_ms(60_000) == HOUR_MS
    assert block_length_ms(2 * HOUR_MS) == 2 * HOUR_MS


@pytest.mark.parametrize(
    ("columns", "block_ms", "message"),
    [
        (([1, 2], [1.0], [1.0]), HOUR_MS, "shapes"),
        (([1], [1.0], [1.0]), 0, "at least 1"),
        (([1], [float("nan")], [1.0]), HOUR_MS, "not finite"),
    ],
)
def test_bad_input_is_refused(columns, block_ms, message):
    """Ragged columns, an empty block and NaN are errors that say what to do."""
    with pytest.raises(ReplayError, match=message):
        block_bootstrap(*columns, block_ms)


def test_two_instants_far_apart_cost_nothing():
    """A row with a wild timestamp stretches the span, not the memory."""
    times = [hour * HOUR_MS for hour in range(40)] + [10**15]
    found = block_bootstrap(times, [1.0] * 41, [1.0] * 41, HOUR_MS, replicates=20)
    assert (found.low, found.blocks) == (1.0, 41)


def test_a_million_rows_take_about_a_second():
    """2,000 replicates over a million rows stay interactive (a wide bound, for a busy machine)."""
    rng = np.random.default_rng(0)
    times = rng.integers(0, 7 * 24 * HOUR_MS, size=1_000_000)
    values = rng.random(1_000_000)
    begin = time.perf_counter()
    block_bootstrap(times, values, np.ones(1_000_000), HOUR_MS)
    assert time.perf_counter() - begin < 6
