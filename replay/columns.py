"""Columns of Arrow tables from arrays, and such a table as a plain frame.

Texts are numbers into the few that there are, from the arrays to the file: nobody writes them out in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from replay.kernel.compiled import compiled
from replay.timeline import Bools, Codes, Ints

_ROWS_AT_A_TIME = 128

Field = Callable[..., NDArray[Any]]
"""Returns a field of some records by its name, and its place where a row has several."""


def numbers(values: NDArray[Any], holds: Bools | None = None) -> pa.Array:
    """Return whole numbers or doubles as a column, null where they do not hold; the array becomes the column's.

    >>> numbers(np.array([1.5, 2.5]), np.array([True, False])).to_pylist()
    [1.5, None]
    """
    laid = np.ascontiguousarray(values)
    return _column(pa.from_numpy_dtype(laid.dtype), len(laid), laid, holds)


def known(values: NDArray[np.float64], holds: Bools | None = None) -> pa.Array:
    """Return doubles as a column, null where they do not hold or are no number.

    >>> known(np.array([1.5, np.nan])).to_pylist()
    [1.5, None]
    """
    real = values == values
    return numbers(values, real if holds is None else real & holds)


def truths(values: Bools, holds: Bools | None = None) -> pa.Array:
    """Return truths as a column, null where they do not hold."""
    return _column(pa.bool_(), len(values), _bits(values), holds)


def texts(codes: NDArray[np.integer[Any]], of: Sequence[str]) -> pa.DictionaryArray:
    """Return the texts of some numbers as a column, null below 0.

    >>> texts(np.array([1, -1, 0]), ["a", "b"]).to_pylist()
    ['b', None, 'a']
    """
    holds = codes >= 0
    laid = np.maximum(codes, 0).astype(np.int32)
    return pa.DictionaryArray.from_arrays(numbers(laid, holds), pa.array(of, pa.large_string()))


def texts_that_recur(codes: NDArray[np.integer[Any]], of: Sequence[str | None]) -> pa.DictionaryArray:
    """Return the same where several numbers may have one text, or none.

    >>> texts_that_recur(np.array([0, 1, 2]), ["a", None, "a"]).dictionary.to_pylist()
    ['a']
    """
    distinct: dict[str, int] = {}
    place = [-1 if text is None else distinct.setdefault(text, len(distinct)) for text in of]
    return texts(np.array(place, dtype=np.int32)[codes], list(distinct))


def fields(records: NDArray[np.void], rows: Ints) -> Field:
    """Take some rows of aligned records apart: the fields by name, and by their place where there are several a row.

    >>> records = np.array([[(1.5, 1, 2)], [(2.5, 3, 4)]], dtype=[("x", "f8"), ("a", "i4"), ("b", "i4")])
    >>> field = fields(records, np.array([1]))
    >>> field("x", 0), field("b", 0)
    (array([2.5]), array([4], dtype=int32))
    """
    kinds: Mapping[str, Any] = records.dtype.fields or {}
    width = records.dtype.itemsize // 8
    turned = _turned(records.view(np.uint64).reshape(len(records), width * math.prod(records.shape[1:])), rows)

    def field(name: str, place: int = 0) -> NDArray[Any]:
        kind, offset = kinds[name][:2]
        word, byte = divmod(offset, 8)
        found: NDArray[Any] = turned[place * width + word].view(kind)[byte // kind.itemsize :: 8 // kind.itemsize]
        return found

    return field


@compiled
def _turned(words: NDArray[np.uint64], rows: Ints) -> NDArray[np.uint64]:
    """Return some rows as columns, a few rows at a time, which stay in the cache from one column to the next."""
    turned = np.empty((words.shape[1], len(rows)), dtype=np.uint64)
    for first in range(0, len(rows), _ROWS_AT_A_TIME):
        for column in range(words.shape[1]):
            for place in range(first, min(first + _ROWS_AT_A_TIME, len(rows))):
                turned[column, place] = words[rows[place], column]
    return turned


def _column(kind: pa.DataType, rows: int, values: NDArray[Any], holds: Bools | None) -> pa.Array:
    valid = None if holds is None or holds.all() else pa.py_buffer(_bits(holds))
    return pa.Array.from_buffers(kind, rows, [valid, pa.py_buffer(values)])


def _bits(values: Bools) -> NDArray[np.uint8]:
    return np.packbits(values, bitorder="little")


def frame(table: pa.Table) -> pl.DataFrame:
    """Return a table as a frame with plain texts."""
    plain = [field.with_type(pa.large_string()) if _numbered(field.type) else field for field in table.schema]
    made = pl.from_arrow(table.cast(pa.schema(plain)))
    assert isinstance(made, pl.DataFrame)
    return made


def by_first_use(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Return a column of texts with those that it has and no other, in the order in which each comes first.

    >>> column = pa.chunked_array([texts(np.array([2, 0]), ["a", "b", "c"]), texts(np.array([0]), ["d"])])
    >>> by_first_use(column).dictionary.to_pylist()
    ['c', 'a', 'd']
    """
    if not _numbered(column.type):
        column = column.cast(pa.large_string()).dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    codes, used = _renumbered(whole.indices.fill_null(-1).to_numpy(), len(whole.dictionary))
    holds = whole.indices.is_valid().to_numpy(zero_copy_only=False) if whole.null_count else None
    return pa.DictionaryArray.from_arrays(numbers(codes, holds), whole.dictionary.take(pa.array(used)), safe=False)


@compiled
def _renumbered(codes: Codes, count: int) -> tuple[Codes, Codes]:
    """Number what is in use by its first use; returns the new codes, 0 below 0, and the old number of each new one."""
    place, used = np.full(count, -1, dtype=np.int32), np.empty(count, dtype=np.int32)
    laid, known = np.zeros(len(codes), dtype=np.int32), 0
    for row in range(len(codes)):
        code = codes[row]
        if code >= 0:
            if place[code] < 0:
                place[code] = known
                used[known] = code
                known += 1
            laid[row] = place[code]
    return laid, used[:known]


def _numbered(kind: pa.DataType) -> bool:
    return bool(pa.types.is_dictionary(kind))
