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
from replay.orderhash import GOLDEN, MASK, NAN_BITS, ODD

Words = NDArray[np.uint64]

NOTHING = np.uint64(0xA0761D6478BD642F)
"""The word of a null."""

_NAN, _INFINITE, _NOT_SIGN = np.uint64(NAN_BITS), np.uint64(0x7FF0000000000000), np.uint64(0x7FFFFFFFFFFFFFFF)


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
            _add(mixed, _fixed(total), False, _ALL, 0, np.uint64(salt))
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
        first = 0
        for part in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            _add_column(total[first : first + len(part)], part, np.uint64(place * GOLDEN & MASK))
            first += len(part)
    return total


def _add_column(total: Words, column: pa.Array, salt: np.uint64) -> None:
    """Add every mixed word of whole numbers, truths, doubles or texts to its row's total; every NaN has the same."""
    if not len(column):
        return
    valid = _ALL if not column.null_count else _array(column.buffers()[0], np.uint8)
    if pa.types.is_dictionary(column.type):
        few = np.zeros(len(column.dictionary), dtype=np.uint64)
        _add_column(few, column.dictionary, salt)
        codes = _numbers(column.indices.cast(pa.int32()))
        _add_coded(total, codes, few, valid, column.offset, salt)
    else:
        words, real = _words(column)
        _add(total, words, real, valid, column.offset, salt)


def _words(column: pa.Array) -> tuple[Words, bool]:
    """Return the words of a column, of a null any, and whether they are doubles, whose NaNs are as they came."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return _fixed(text_words(column)), False
    if pa.types.is_boolean(kind):
        bits = np.unpackbits(_array(column.buffers()[1], np.uint8), bitorder="little")
        return _fixed(bits[column.offset : column.offset + len(column)].astype(np.uint64)), False
    values = _numbers(column)
    if pa.types.is_floating(kind):
        return _fixed(values.astype(np.float64, copy=False).view(np.uint64)), True
    return _fixed((values if values.itemsize == 8 else values.astype(np.int64)).view(np.uint64)), False


def text_words(column: pa.Array) -> Words:
    """Return one word for each text of a column; of a null, any."""
    column = column.cast(pa.string())
    _, offsets, characters = column.buffers()
    span = slice(column.offset, column.offset + len(column) + 1)
    return _chains(_array(offsets, np.int32)[span], _array(characters or pa.py_buffer(b""), np.uint8))


def _numbers(column: pa.Array) -> NDArray[Any]:
    return _array(column.buffers()[1], column.type.to_pandas_dtype())[column.offset : column.offset + len(column)]


def _array(buffer: pa.Buffer, kind: type[np.generic]) -> NDArray[Any]:
    return _fixed(np.frombuffer(buffer, dtype=kind))


def _fixed(values: NDArray[Any]) -> NDArray[Any]:
    """Return an array that cannot be written to, as all of Arrow's are: others would be compiled for once more."""
    values.flags.writeable = False
    return values


_ALL = _fixed(np.empty(0, dtype=np.uint8))
"""The bits of a column without nulls."""


@compiled
def _add(total: Words, words: Words, real: bool, valid: NDArray[np.uint8], offset: int, salt: np.uint64) -> None:
    """Add every mixed word to its row's total, that of a null where its bit, counted from `offset`, is not set."""
    for row in range(len(total)):
        word = words[row]
        if real and (word & _NOT_SIGN) > _INFINITE:
            word = _NAN
        if len(valid) and not _holds(valid, offset + row):
            word = NOTHING
        total[row] += _mixed(word ^ salt)


@compiled
def _add_coded(
    total: Words, codes: NDArray[np.int32], mixed: Words, valid: NDArray[np.uint8], offset: int, salt: np.uint64
) -> None:
    """Add what is there already mixed, by its number."""
    nothing = _mixed(NOTHING ^ salt)
    for row in range(len(total)):
        total[row] += mixed[codes[row]] if not len(valid) or _holds(valid, offset + row) else nothing


@inlined
def _holds(valid: NDArray[np.uint8], place: int) -> bool:
    return bool(valid[place >> 3] >> (place & 7) & 1)


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
