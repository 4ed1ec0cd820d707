"""Attempts find their calls by the numbers of their texts as they would by the texts."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay import matching
from replay.matching import last_places

IDS = st.lists(st.one_of(st.none(), st.text("ab", max_size=3)), max_size=12)


@given(wanted=IDS, known=IDS)
def test_the_last_of_equals_is_found(wanted: list[str | None], known: list[str | None]) -> None:
    """As a search from the end does; a null is nowhere and finds nothing."""
    expected = [
        -1 if text is None else next((place for place in reversed(range(len(known))) if known[place] == text), -1)
        for text in wanted
    ]
    found = last_places(pl.Series(wanted, dtype=pl.String), pl.Series(known, dtype=pl.String))
    assert found.tolist() == expected


def test_texts_that_share_a_number_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two texts have one number, which may happen once in a lifetime, the texts themselves decide."""
    monkeypatch.setattr(matching, "text_words", lambda column: np.zeros(len(column), dtype=np.uint64))
    assert last_places(pl.Series(["a", "b", "c"]), pl.Series(["a", "b"])).tolist() == [0, 1, -1]
