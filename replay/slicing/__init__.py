"""Cutting a small ledger out of a large one, so that it replays to the very same decisions."""

from replay.slicing.cut import Slice, slice_ledger

__all__ = ["Slice", "slice_ledger"]
