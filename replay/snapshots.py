"""Evidence snapshots: what a transaction could see, one by one, and a ledger's all at once as numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from replay.errors import ReplayError
from replay.kernel.compiled import compiled, inlined

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]
Bools = NDArray[np.bool_]

_SNAPSHOT = r"([0-9]{1,19}):([0-9]{1,19}):((?:[0-9]{1,19}(?:,[0-9]{1,19})*)?)"
_COLON, _COMMA, _ZERO, _NINE = b":,09"
_LARGEST = 2**63 - 1
_DIGITS = 19


def _no_snapshot(text: str) -> ReplayError:
    return ReplayError(
        f"a call has the evidence_snapshot {text[:80]!r}; expected xmin:xmax:xip,… as pg_current_snapshot() "
        'writes it, or null where it is unknown; correct the ledger, or set visibility = "lagged"'
    )


@dataclass(frozen=True)
class Snapshot:
    """What a transaction could see: ids below `xmin`, and those below `xmax` that were not in progress.

    >>> snapshot = Snapshot.parse("10:14:11,12")
    >>> [txid for txid in range(8, 16) if snapshot.sees(txid)], snapshot.size
    ([8, 9, 10, 13], 12)
    """

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read the text form of `pg_current_snapshot()`, xmin:xmax:xip,…; raises ReplayError for any other."""
        found = re.fullmatch(_SNAPSHOT, text)
        if found is None:
            raise _no_snapshot(text)
        xmin, xmax, running = found.groups()
        return cls(int(xmin), int(xmax), frozenset(int(one) for one in running.split(",") if one))

    def sees(self, txid: int) -> bool:
        """Say whether the writes of a finished transaction are visible."""
        return txid < self.xmin or (txid < self.xmax and txid not in self.running)

    @property
    def size(self) -> int:
        """How many ids it sees. Snapshots of one cluster only ever grow, so this orders them by what they see."""
        return self.xmax - len(self.running)


NOTHING = Snapshot(0, 0, frozenset())
"""A snapshot that sees no transaction."""


class Snapshots:
    """Every call's snapshot: its text as recorded, null where unknown, and all of them as numbers."""

    def __init__(self, texts: pl.Series) -> None:
        self.texts = texts
        self.known: Bools = texts.is_not_null().to_numpy()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, call: int) -> str | None:
        text: str | None = self.texts[call]
        return text

    @cached_property
    def read(self) -> SnapshotNumbers:
        """All of them parsed at once; raises ReplayError for the first that is no snapshot."""
        column = self.texts.cast(pl.String).fill_null("").to_arrow().cast(pa.large_string())
        _, offsets, characters = column.buffers()
        ends = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
        text: Any = np.frombuffer(b"" if characters is None else characters, dtype=np.uint8)
        xmin, xmax, starts, running, wrong = _parsed(ends, text, self.known)
        if wrong >= 0:
            raise _no_snapshot(self.texts[wrong])
        return SnapshotNumbers(xmin, xmax, starts, running)


@dataclass(frozen=True)
class SnapshotNumbers:
    """Snapshots as arrays: the ids running at snapshot i are `running[starts[i]:starts[i + 1]]`."""

    xmin: Ints
    xmax: Ints
    starts: Ints
    running: Ints

    @property
    def size(self) -> Ints:
        """How many ids each sees; see `Snapshot.size`."""
        return self.xmax - np.diff(self.starts)

    def of(self, which: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Return the four arrays of some snapshots, each one once, in that order."""
        if len(which) == len(self.xmin) and np.all(which[1:] > which[:-1]):
            return self.xmin, self.xmax, self.starts, self.running
        counts = np.diff(self.starts)[which]
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        places = np.repeat(self.starts[:-1][which] - starts[:-1], counts) + np.arange(starts[-1], dtype=np.int64)
        return self.xmin[which], self.xmax[which], starts, self.running[places]


@compiled
def _parsed(ends: Offsets, text: Bytes, known: Bools) -> tuple[Ints, Ints, Ints, Ints, int]:
    """Return xmin, xmax, the starts of the running ids, these, and the first row that is no snapshot (-1: none)."""
    commas = 0
    for place in range(ends[0], ends[-1]):
        commas += text[place] == _COMMA
    rows = len(known)
    xmin, xmax = np.full(rows, -1, dtype=np.int64), np.full(rows, -1, dtype=np.int64)
    starts, running = np.zeros(rows + 1, dtype=np.int64), np.empty(commas + rows, dtype=np.int64)
    used = 0
    for row in range(rows):
        starts[row] = used
        if not known[row]:
            continue
        end = ends[row + 1]
        xmin[row], place = _number(text, ends[row], end)
        if place >= end or text[place] != _COLON:
            return xmin, xmax, starts, running, row
        xmax[row], place = _number(text, place + 1, end)
        if xmin[row] < 0 or xmax[row] < 0 or place >= end or text[place] != _COLON:
            return xmin, xmax, starts, running, row
        place += 1
        while place < end:
            running[used], place = _number(text, place, end)
            if running[used] < 0 or (place < end and (text[place] != _COMMA or place + 1 == end)):
                return xmin, xmax, starts, running, row
            used, place = used + 1, place + 1
    starts[rows] = used
    return xmin, xmax, starts, running[:used], -1


@inlined
def _number(text: Bytes, place: Any, end: Any) -> tuple[Any, Any]:
    """Return the number whose digits begin at a place, -1 if there is none or it is too large, and where it ends."""
    first, number = place, np.uint64(0)
    while place < end and place - first <= _DIGITS and _ZERO <= text[place] <= _NINE:
        number = number * np.uint64(10) + np.uint64(text[place] - _ZERO)
        place += 1
    if place == first or place - first > _DIGITS or number > np.uint64(_LARGEST):
        return np.int64(-1), place
    return np.int64(number), place
