"""Which snapshot is the first to see a transaction, compiled: a binary search for each, as snapshots only grow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from replay.kernel.compiled import compiled, inlined

Ints = NDArray[np.int64]


@inlined
def _sees(xmin: Ints, xmax: Ints, start: Ints, running: Ints, snapshot: int, txid: int) -> bool:
    if txid < xmin[snapshot]:
        return True
    if txid >= xmax[snapshot]:
        return False
    for place in range(start[snapshot], start[snapshot + 1]):  # noqa: SIM110 (a generator would not compile)
        if running[place] == txid:
            return False
    return True


@compiled
def first_seen(xmin: Ints, xmax: Ints, start: Ints, running: Ints, txid: Ints, never: int) -> Ints:
    """Return, for each transaction id (-1: none, stays), the number of the first snapshot that sees it, else `never`.

    Snapshot i sees ids below `xmin[i]`, and those below `xmax[i]` that are not in `running[start[i]:start[i + 1]]`.
    """
    first = np.full(len(txid), -1, dtype=np.int64)
    for row in range(len(txid)):
        if txid[row] < 0:
            continue
        low, high = 0, len(xmin)
        while low < high:
            middle = (low + high) // 2
            if _sees(xmin, xmax, start, running, middle, txid[row]):
                high = middle
            else:
                low = middle + 1
        first[row] = low if low < len(xmin) else never
    return first
