"""All snapshots of a ledger parsed at once, against each one parsed by itself."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.errors import ReplayError
from replay.snapshots import Snapshot, Snapshots

NUMBERS = st.one_of(st.integers(0, 99), st.integers(0, 2**63 - 1))
RUNNING = st.lists(NUMBERS, max_size=4).map(lambda ids: ",".join(map(str, ids)))
TEXTS = st.builds("{}:{}:{}".format, NUMBERS, NUMBERS, RUNNING)


@given(st.lists(st.one_of(st.none(), TEXTS), max_size=6), st.integers(0, 3))
def test_all_at_once_are_read_as_one_by_one(texts: list[str | None], skipped: int) -> None:
    """Bounds and running ids of each, in its order; -1 and none where there is no snapshot. Slices of columns too."""
    series = pl.Series(texts, dtype=pl.String)[skipped:]
    read = Snapshots(series).read
    for row, text in enumerate(texts[skipped:]):
        running = read.running[read.starts[row] : read.starts[row + 1]].tolist()
        if text is None:
            assert (read.xmin[row], read.xmax[row], running) == (-1, -1, [])
        else:
            one = Snapshot.parse(text)
            assert (read.xmin[row], read.xmax[row], set(running)) == (one.xmin, one.xmax, one.running)


NO_SNAPSHOTS = (
    *("", "1", "1:2", "1:2:3,", "1:2:,3", "1:2:3,,4", "a:2:", "1: 2:", "1:2:3:4", "1:2:x", "-1:2:", "1::", ":2:"),
    "1:2:3 ",
)


@pytest.mark.parametrize("text", NO_SNAPSHOTS)
def test_what_is_no_snapshot_is_named(text: str) -> None:
    """The first one that is none, as it stands."""
    with pytest.raises(ReplayError, match="expected xmin:xmax:xip") as caught:
        _ = Snapshots(pl.Series(["1:2:", None, text, "worse"])).read
    assert repr(text) in str(caught.value)
    with pytest.raises(ReplayError, match="expected xmin:xmax:xip"):
        Snapshot.parse(text)


@pytest.mark.parametrize("text", [f"{2**63}:1:", f"1:{10**19}:", f"1:2:{2**63}"])
def test_ids_beyond_64_bits_are_none(text: str) -> None:
    """PostgreSQL's transaction ids have 64 bits, of which DuckDB's BIGINT leaves 63."""
    with pytest.raises(ReplayError, match="expected xmin:xmax:xip"):
        _ = Snapshots(pl.Series([text])).read
