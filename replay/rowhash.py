"""Numbers that stand for rows: one for a table in any order, one for rows in theirs.

    word    of a whole number or truth its value, of a double its bits, of a text a chain of its bytes, eight at a time
    row     Σ mix(word_k xor k · GOLDEN) mod 2⁶⁴ over its columns k = 1, 2, …
    table   Σ mix(row) and Σ mix(row xor ODD) mod 2⁶⁴, side by side: 128 bits
    rows    SHA-256 of the rows' numbers, in their order

No version, machine, cut into parts or DuckDB's own `hash()` has a part in it. Sums know no order, and a row that is
there twice counts twice. They find what was changed by accident; they are no signature.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from replay.kernel.compiled import compiled, inlined
from replay.orderhash import GOLDEN, MASK, ODD

Words = NDArray[np.uint64]

NOTHING = np.uint64(0xA0761D6478BD642F)
"""The word of a null."""


class TableHash:
    """The hash of a table from its rows as Arrow batches, whatever their order.

    >>> rows = pa.record_batch({"id": [1, 2], "name": ["a", None]})
    >>> whole, parts = TableHash(), TableHash()
    >>> whole.update(rows)
    >>> parts.update(rows.slice(1))
    >>> parts.update(rows.slice(0, 1))
    >>> whole.hexdigest() == parts.hexdigest(), whole.hexdigest()[:8]
    (True, 'f059e412')
    """

    def __init__(self) -> None:
        self._sums = [0, 0]

    def update(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Take in more rows."""
        total = row_words(rows)
        for number, salt in enumerate((0, ODD)):
            mixed = np.zeros(len(total), dtype=np.uint64)
            _add(mixed, total, np.uint64(salt))
            self._sums[number] += int(mixed.sum(dtype=np.uint64))

    def hexdigest(self) -> str:
        """Return the hash of all rows so far, as 32 hex digits."""
        return "".join(f"{one & MASK:016x}" for one in self._sums)


class RowHash:
    """The hash of rows in their order, as they come."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Take in more rows."""
        self._digest.update(row_words(rows).tobytes())

    def hexdigest(self) -> str:
        """Return the hash of all rows so far."""
        return self._digest.hexdigest()


def row_words(rows: pa.RecordBatch | pa.Table) -> Words:
    """Return one word for each row."""
    total = np.zeros(len(rows), dtype=np.uint64)
    for place, column in enumerate(rows.columns, start=1):
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        _add(total, words(whole), np.uint64(place * GOLDEN & MASK))
    return total


def words(column: pa.Array) -> Words:
    """Return a column of whole numbers, truths, doubles or texts as one word for each row; every NaN has the same."""
    if pa.types.is_dictionary(column.type):
        # The last word is that of rows without a value.
        of_values: Words = np.append(words(column.dictionary), NOTHING)
        codes: NDArray[np.int64] = (
            column.indices.cast(pa.int64()).fill_null(len(column.dictionary)).to_numpy(zero_copy_only=False)
        )
        return of_values[codes]
    found = _found(column)
    return np.where(column.is_null().to_numpy(zero_copy_only=False), NOTHING, found) if column.null_count else found


def _found(column: pa.Array) -> Words:
    """Return the words of a column; of a null, any."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return _text_words(column.cast(pa.string()))
    if pa.types.is_floating(kind):
        values = column.fill_null(0.0).to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
        return np.where(np.isnan(values), np.float64("nan"), values).view(np.uint64)
    known: NDArray[np.generic] = column.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy(
        zero_copy_only=False
    )
    return known.view(np.uint64) if known.dtype == np.uint64 else known.astype(np.int64, copy=False).view(np.uint64)


def _text_words(column: pa.Array) -> Words:
    _, offsets, characters = column.buffers()
    span = slice(column.offset, column.offset + len(column) + 1)
    given: Any = np.frombuffer(b"" if characters is None else characters, dtype=np.uint8)
    return _chains(np.frombuffer(offsets, dtype=np.int32)[span], given)


@compiled
def _add(total: Words, found: Words, salt: np.uint64) -> None:
    """Add every mixed word to its row's total."""
    for row in range(len(total)):
        total[row] += _mixed(found[row] ^ salt)


@compiled
def _chains(offsets: NDArray[np.int32], text: NDArray[np.uint8]) -> Words:
    """Return for every text mix(… mix(mix(length) xor bytes 0–7) xor bytes 8–15 …), the last bytes filled with 0."""
    found = np.empty(len(offsets) - 1, dtype=np.uint64)
    for row in range(len(found)):
        place, end = np.int64(offsets[row]), np.int64(offsets[row + 1])
        chain = _mixed(np.uint64(end - place))
        while place + 8 <= end:
            word = _byte(text, place, 0) | _byte(text, place, 1) | _byte(text, place, 2) | _byte(text, place, 3)
            word |= _byte(text, place, 4) | _byte(text, place, 5) | _byte(text, place, 6) | _byte(text, place, 7)
            chain = _mixed(chain ^ word)
            place += 8
        if place < end:
            word = np.uint64(0)
            for number in range(end - place):
                word |= _byte(text, place, number)
            chain = _mixed(chain ^ word)
        found[row] = chain
    return found


@inlined
def _byte(text: NDArray[np.uint8], place: np.int64, number: int) -> np.uint64:
    return np.uint64(text[place + number]) << np.uint64(8 * number)


@inlined
def _mixed(word: np.uint64) -> np.uint64:
    """`replay.orderhash.mix`."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
