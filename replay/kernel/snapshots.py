"""Which snapshot is the first to see a transaction, compiled: a search for each, as snapshots only grow.

Rows lie nearly in the order of their transactions, so each search begins where the last one ended and looks twice as
far at every step, until a binary search can finish.
"""

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
    near = 0
    for row in range(len(txid)):
        if txid[row] < 0:
            continue
        low, high, step = 0, len(xmin), 1
        if near < high and _sees(xmin, xmax, start, running, near, txid[row]):
            high = near
            while low < high:
                below = max(low, high - step)
                if not _sees(xmin, xmax, start, running, below, txid[row]):
                    low = below + 1
                    break
                high, step = below, 2 * step
        elif near < high:
            low = near + 1
            while low < high:
                above = min(high - 1, low + step - 1)
                if _sees(xmin, xmax, start, running, above, txid[row]):
                    high = above
                    break
                low, step = above + 1, 2 * step
        while low < high:
            middle = (low + high) // 2
            if _sees(xmin, xmax, start, running, middle, txid[row]):
                high = middle
            else:
                low = middle + 1
        near = min(low, len(xmin) - 1)
        first[row] = low if low < len(xmin) else never
    return first
