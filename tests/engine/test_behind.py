"""Rows handed on from a thread of their own."""

from __future__ import annotations

import threading

import polars as pl
import pytest

from replay.behind import Behind


def test_rows_are_taken_in_order_by_another_thread() -> None:
    """Whoever takes the rows does so one after the other, all of them by the end of the block."""
    taken: list[int] = []
    threads: set[str] = set()

    def take(rows: pl.DataFrame) -> None:
        taken.append(rows.item())
        threads.add(threading.current_thread().name)

    with Behind() as behind:
        for number in range(20):
            behind.hand(take, pl.DataFrame({"n": [number]}))
    assert taken == list(range(20))
    assert threading.current_thread().name not in threads


def test_what_cannot_be_taken_is_an_error_of_the_block() -> None:
    """An error of the taker comes out at the end at the latest."""

    def refuse(rows: pl.DataFrame) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Behind() as behind:
        behind.hand(refuse, pl.DataFrame())


def test_a_block_that_fails_hands_nothing_more_on() -> None:
    """Of what is still waiting nothing is taken, and the block's own error is the one that is heard."""
    taken: list[int] = []
    going, failed = threading.Event(), threading.Event()

    def take(rows: pl.DataFrame) -> None:
        going.set()
        failed.wait(10)
        taken.append(rows.item())

    def interrupted() -> None:
        with Behind() as behind:
            for number in range(2):
                behind.hand(take, pl.DataFrame({"n": [number]}))
            going.wait(10)
            threading.Timer(0.1, failed.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert taken == [0]
