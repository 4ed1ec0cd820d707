"""Which call each attempt belongs to: a join over the ids of requests, by their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from replay.kernel.compiled import compiled
from replay.rowhash import text_words

Ints = NDArray[np.int64]
Halves = NDArray[np.int32]
Bools = NDArray[np.bool_]
Words = NDArray[np.uint64]


def last_places(wanted: pl.Series, known: pl.Series) -> Ints:
    """Return, for each wanted text, at which place the known texts have it last; -1: nowhere, or it is null.

    >>> last_places(pl.Series(["b", "c", None]), pl.Series(["a", "b", "b", None])).tolist()
    [2, -1, -1]
    """
    filled, sought = (series.is_not_null().to_numpy() for series in (known, wanted))
    places: Ints = _last_places(text_words(wanted.to_arrow()), sought, text_words(known.to_arrow()), filled)
    found = np.flatnonzero(places >= 0)
    if (wanted.gather(found) == known.gather(places[found])).all():
        return places
    return _by_text(wanted, known)  # two texts with one number: once in 2⁶⁴ pairs


@compiled
def _last_places(wanted: Words, sought: Bools, known: Words, filled: Bools) -> Ints:
    """Join by a hash table with open addressing: a place each for the numbers that are known, the last of equals."""
    size = np.int64(1)
    while size < 2 * len(known) + 1:
        size *= 2
    mask = np.uint64(size - 1)
    table = np.full(size, -1, dtype=np.int32)
    for row in range(len(known)):
        if filled[row]:
            place: Any = np.int64(known[row] & mask)
            while table[place] >= 0 and known[table[place]] != known[row]:
                place = (place + 1) & np.int64(mask)
            table[place] = row
    found = np.full(len(wanted), -1, dtype=np.int64)
    for row in range(len(wanted)):
        if sought[row]:
            place = np.int64(wanted[row] & mask)
            while table[place] >= 0 and known[table[place]] != wanted[row]:
                place = (place + 1) & np.int64(mask)
            found[row] = table[place]
    return found


def _by_text(wanted: pl.Series, known: pl.Series) -> Ints:
    """Join by the texts themselves."""
    numbered = pl.DataFrame({"text": known}).with_row_index("place").drop_nulls().unique("text", keep="last")
    joined = pl.DataFrame({"text": wanted}).join(numbered, on="text", how="left", maintain_order="left")
    places: Ints = joined["place"].cast(pl.Int64).fill_null(-1).to_numpy(writable=True)
    return places
